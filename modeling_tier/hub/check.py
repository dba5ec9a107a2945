# Licensed under the Apache License, Version 2.0.
"""Pull a published model into an empty folder, without this package, and run the examples of its card."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from huggingface_hub import constants, get_token, snapshot_download

from .repository import check_names, explained_errors


MAX_SECONDS = 1800
"""Seconds for all examples together."""
# Variables by which a process would find this package, or files that were pulled before, or would stay offline.
_REMOVED = (
    *("PYTHONPATH", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"),
    *("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE", "HF_MODULES_CACHE", "HF_ASSETS_CACHE"),
    *("HF_XET_CACHE", "HF_TOKEN_PATH", "XDG_CACHE_HOME"),
)


def check(repo_id: str, revision: str | None = None) -> int:
    """
    Pull a repository into an empty folder, with an empty cache, and run the Python examples of its card there, in one
    process of its own. They run the code of the repository: check only what you trust.

    Args:
        repo_id: "user/name".
        revision: branch, tag or commit; default: main.

    Returns:
        how many examples were run.

    Raises:
        ValueError: if the card has no examples, or one of them fails, with what it said.
        OSError: if the Hub cannot be reached or does not give the repository.
    """
    check_names("", repo_id)
    if constants.HF_HUB_OFFLINE:
        raise ValueError("HF_HUB_OFFLINE is set: unset it, since --check pulls the repository from the Hub.")
    with tempfile.TemporaryDirectory() as folder:
        home, empty = Path(folder) / "home", Path(folder) / "empty"
        empty.mkdir()
        with explained_errors(repo_id, "Nothing was run."):
            pulled = Path(snapshot_download(repo_id, revision=revision, cache_dir=home / "hub"))
        card = pulled / "README.md"
        examples = re.findall(r"^```python\n(.*?)^```", card.read_text("utf-8"), re.M | re.S) if card.is_file() else []
        if not examples:
            raise ValueError(f"{repo_id}: its card has no Python examples.")
        (empty / "examples.py").write_text("\n".join(examples), encoding="utf-8")
        _run(repo_id, empty, home)
    return len(examples)


def environment_of_examples(home: Path) -> dict[str, str]:
    """The environment of this process, but online, and with a cache, token file and Python path of its own."""
    environment = {name: value for name, value in os.environ.items() if name not in _REMOVED}
    environment |= {"HF_HOME": str(home), "HF_ENDPOINT": constants.ENDPOINT, "HF_HUB_DISABLE_TELEMETRY": "1"}
    return environment | ({"HF_TOKEN": token} if (token := get_token()) else {})


def _run(repo_id: str, folder: Path, home: Path) -> None:
    environment = environment_of_examples(home)
    try:
        process = subprocess.run(
            [sys.executable, "examples.py"],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=MAX_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"{repo_id}: the examples of its card ran longer than {MAX_SECONDS} seconds.") from None
    if process.returncode:
        last = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"{repo_id}: the examples of its card fail: {last}")
