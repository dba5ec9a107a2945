# Licensed under the Apache License, Version 2.0.
"""Pull a published model into an empty folder, without this package, and run the examples of its card."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from huggingface_hub import constants, get_token, snapshot_download
from PIL import Image

from .repository import check_names, explained_errors


MAX_SECONDS = 1800
"""Of all examples together."""
_PICTURE = "radiograph.png"


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
    with tempfile.TemporaryDirectory() as folder:
        home, empty = Path(folder) / "home", Path(folder) / "empty"
        empty.mkdir()
        with explained_errors(repo_id, "Nothing was run."):
            pulled = Path(snapshot_download(repo_id, revision=revision, cache_dir=home / "hub"))
        card = pulled / "README.md"
        examples = re.findall(r"^```python\n(.*?)^```", card.read_text("utf-8"), re.M | re.S) if card.is_file() else []
        if not examples:
            raise ValueError(f"{repo_id}: its card has no Python examples.")
        noise = np.random.default_rng(0).integers(0, 2**16, (96, 80), dtype=np.uint16)
        Image.fromarray(noise).save(empty / _PICTURE)
        (empty / "examples.py").write_text("\n".join(examples), encoding="utf-8")
        _run(repo_id, empty, home)
    return len(examples)


def _run(repo_id: str, folder: Path, home: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(home), "HF_ENDPOINT": constants.ENDPOINT, "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"HF_TOKEN": token} if (token := get_token()) else {}
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
