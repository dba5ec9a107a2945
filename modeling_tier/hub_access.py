# Licensed under the Apache License, Version 2.0.
"""Names of models that may be folders or repositories of the Hub, where the Hub cannot be reached."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.utils import get_session


MAX_SECONDS = 5.0  # that the Hub may take to answer at all


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
    elif _hub_answers():
        yield None
    else:
        constants.HF_HUB_OFFLINE = True
        try:
            yield f"the Hub ({constants.ENDPOINT}) was not reached"
        finally:
            constants.HF_HUB_OFFLINE = False


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except OSError:  # a name too long for a file
        return False


def _hub_answers() -> bool:
    """Whether there is an answer of any kind; in a thread, since the time to look up an address has no limit."""
    answers = []

    def ask() -> None:
        try:
            answers.append(get_session().head(constants.ENDPOINT, timeout=MAX_SECONDS))
        except Exception:  # of the network, of whatever kind
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(MAX_SECONDS)
    return bool(answers)
