# Licensed under the Apache License, Version 2.0.
"""Names of models that may be folders or repositories of the Hub, where the Hub cannot be reached."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.utils import get_session


MAX_SECONDS = 5.0  # that the Hub may take to answer at all, unless HF_HUB_ETAG_TIMEOUT allows more


@contextmanager
def hub_or_cache(*names: str | None) -> Iterator[str | None]:
    """
    Read names that are no folders from the Hub or, where that is not reached, from what was downloaded before.
    huggingface_hub would try for 24 seconds for each file.

    Args:
        names: of folders or repositories.

    Yields:
        why the Hub is not asked; None if it answers, or if all names are paths that exist.
    """
    if all(name is None or _exists(name) for name in names):
        yield None
    elif constants.HF_HUB_OFFLINE:
        yield "HF_HUB_OFFLINE is set"
    elif (why := _no_answer()) is None:
        yield None
    else:
        constants.HF_HUB_OFFLINE = True
        try:
            yield f"the Hub ({constants.ENDPOINT}) {why}"
        finally:
            constants.HF_HUB_OFFLINE = False


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except OSError:  # a name too long for a file
        return False


def _no_answer() -> str | None:
    """
    Why there is no answer of any kind; None if there is one. In a thread, since the time to look up an address has no
    limit.
    """
    limit = max(MAX_SECONDS, constants.HF_HUB_ETAG_TIMEOUT) if "HF_HUB_ETAG_TIMEOUT" in os.environ else MAX_SECONDS
    answers, failures = [], []

    def ask() -> None:
        try:
            answers.append(get_session().head(constants.ENDPOINT, timeout=limit))
        except Exception as error:  # of the network, of whatever kind
            failures.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(limit)
    if answers:
        return None
    timed_out = not failures or "Timeout" in type(failures[0]).__name__
    return f"did not answer within {limit:g} s (HF_HUB_ETAG_TIMEOUT)" if timed_out else "was not reached"
