# Licensed under the Apache License, Version 2.0.
"""Where, under a folder that holds several data sets, one of them is: by the usual names of its folder."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from .prepared import check_options_kept, is_prepared, preparation
from .record import DatasetRecord


_VERSION = "[0-9].[0-9].[0-9]"  # PhysioNet's folder within that of the data set


@dataclass
class FoundFolder:
    """The folder of a data set, or why there is none."""

    path: Path | None
    options: dict[str, str] = field(default_factory=dict)
    """Of the loader: files that are in other folders."""
    reason: str = ""
    """Why no folder was taken: what was looked for, and what is wrong with the folders that have the name."""


def find_folder(root: Path, record: DatasetRecord, options: dict, name: str = "") -> FoundFolder:
    """
    The first folder under `root` that has a usual name of the data set and holds its files.

    Prepared folders come before raw ones; they must be of this data set and prepared with the same options.

    Args:
        root: folder with the data sets.
        record: of the data set.
        options: of its loader.
        name: another name of the folder, which is looked for first.
    """
    names = tuple(dict.fromkeys((*([_plain(name)] if name else []), _plain(record.name), *record.folders)))
    candidates = list(dict.fromkeys(folder for pattern in names for folder in _folders(root, pattern)))
    refused = {}
    for folder in sorted(candidates, key=lambda folder: not _is_prepared(folder)):
        try:
            problem = _problem(folder, record, options)
        except OSError as error:  # such as another user's folder
            problem = f"cannot be read ({error.strerror})"
        if not problem:
            beside, problem = _companions(root, folder, record, options)
        if not problem:
            return FoundFolder(folder, beside)
        if folder != root:
            refused[folder] = problem
    looked = ", ".join(pattern for pattern in names if pattern != ".")
    reasons = [f"{folder} {problem}" for folder, problem in refused.items()]
    return FoundFolder(None, reason="; ".join([f"no folder of it in {root} (looked for {looked})", *reasons]))


def _is_prepared(folder: Path) -> bool:
    try:
        return is_prepared(folder)
    except OSError:
        return False


def _plain(name: str) -> str:
    return re.sub(r"[\s_]+", "-", name).lower()


def _folders(root: Path, pattern: str) -> Iterator[Path]:
    """Folders that match, each before those of its versions, the newest version first."""
    found = [root]
    for part in pattern.split("/"):
        if part != ".":
            found = [
                below
                for folder in found
                for below in _content(folder)
                if fnmatchcase(_plain(below.name), part) and below.is_dir()
            ]
    for folder in found:
        yield folder
        if folder != root:
            yield from sorted(folder.glob(_VERSION), reverse=True)


def _content(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # which [`_problem`] says of a folder that has the name
        return []


def _problem(folder: Path, record: DatasetRecord, options: dict) -> str:
    """Why a folder is not that of the data set; "" if it is."""
    if is_prepared(folder):
        try:
            before = preparation(folder)["dataset"]
            if before == "mimic_cxr" == record.patients:  # its pictures are those of MS-CXR
                return ""
            if before != record.name:
                return f"was prepared from the data set {before!r}"
            check_options_kept(folder, record.options, options)
        except ValueError as error:
            return str(error).removeprefix(f"{folder} ").rstrip(".")
        return ""
    for patterns in record.files:
        if not any(_holds(folder, pattern) for pattern in patterns):
            return f"holds none of {', '.join(patterns)}"
    return ""


def _holds(folder: Path, pattern: str) -> bool:
    return any(next(folder.glob(pattern + end), None) is not None for end in ("", ".gz"))


def _companions(root: Path, folder: Path, record: DatasetRecord, options: dict) -> tuple[dict[str, str], str]:
    """Options for the files that are in other folders, and what is missing."""
    beside = {}
    for option, patterns in record.companions.items():
        names = list(dict.fromkeys(pattern.rpartition("/")[2] for pattern in patterns))
        if options.get(option) or any(_holds(folder, name) for name in names):
            continue
        places = dict.fromkeys(below for pattern in patterns for below in _folders(root, pattern.rpartition("/")[0]))
        files = [place / name for place in places for name in names if (place / name).is_file()]
        if not files:
            return {}, f"holds none of {', '.join(names)}, nor do {', '.join(_parents(patterns))}"
        beside[option] = str(files[0])
    return beside, ""


def _parents(patterns: tuple[str, ...]) -> dict[str, None]:
    return dict.fromkeys(pattern.rpartition("/")[0] for pattern in patterns)
