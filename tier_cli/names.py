# Licensed under the Apache License, Version 2.0.
"""Mistakes in names of folders that are seen without torch and without the Hub."""

import difflib
import os
import sys
from pathlib import Path


def check_model_names(*names: str) -> None:
    """End the program with a message if one of these is plainly a path, and nothing is there."""
    for name in names:
        path = Path(name).expanduser()
        plainly = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or name.endswith("/")
        if plainly and not path.exists():
            sys.exit(f"error: There is no folder and no Hub repository named {name!r}{_near(path)}")


def check_order(model: str, other: str, right: str) -> None:
    """End the program if `other` is the folder of a model and `model` is none: they were given in the wrong order."""
    if (Path(other) / "config.json").is_file() and not (Path(model) / "config.json").is_file():
        sys.exit(f"error: {model} is no folder of a model, and {other} is one: it comes first, as in: {right}")


def _near(path: Path) -> str:
    """What is there instead, as the rest of a message."""
    absolute = Path(os.path.abspath(path))
    parent = next(parent for parent in absolute.parents if parent.exists())
    if parent != absolute.parent:
        return f": {parent} has no {absolute.relative_to(parent).parts[0]}."
    folders = sorted(child.name for child in parent.iterdir() if child.is_dir()) if parent.is_dir() else []
    near = difflib.get_close_matches(path.name, folders, n=1)
    return f". Did you mean {path.with_name(near[0])}?" if near else f": {parent} has no {path.name}."
