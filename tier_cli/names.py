# Licensed under the Apache License, Version 2.0.
"""Mistakes in names of folders that are seen without torch and without the Hub."""

import difflib
import os
import sys
from pathlib import Path


def check_model_names(*names: str) -> None:
    """End the program with a message if one of these is plainly a path, and nothing is there."""
    for name in names:
        path = Path(name)
        plainly = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or name.endswith("/")
        if plainly and not exists(path):
            sys.exit(f"error: There is no folder and no Hub repository named {name!r}{_near(path)}")


def check_order(model: str, other: str, right: str) -> None:
    """End the program if `other` is the folder of a model and `model` is none: they were given in the wrong order."""
    if exists(Path(other) / "config.json") and not exists(Path(model) / "config.json"):
        sys.exit(f"error: {model} is no folder of a model, and {other} is one: it comes first, as in: {right}")


def exists(path: Path) -> bool:
    """Whether a path can be seen: not if it is too long, or in a folder that may not be read."""
    try:
        return path.exists()
    except OSError:
        return False


def _near(path: Path) -> str:
    """What is there instead, as the rest of a message."""
    if path.parts[:1] and path.parts[0].startswith("~"):
        return ": the shell did not put your home folder in the place of ~; leave a blank before it."
    absolute = Path(os.path.abspath(path))
    parent = next(parent for parent in absolute.parents if exists(parent))
    if parent != absolute.parent:
        return f": {parent} has no {absolute.relative_to(parent).parts[0]}."
    try:
        folders = sorted(child.name for child in parent.iterdir() if child.is_dir())
    except OSError:
        folders = []
    near = difflib.get_close_matches(path.name, folders, n=1)
    return f". Did you mean {path.with_name(near[0])}?" if near else f": {parent} has no {path.name}."
