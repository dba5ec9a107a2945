# Licensed under the Apache License, Version 2.0.
"""A folder that `prepare` has written: found, checked and memory-mapped."""

import json
from pathlib import Path

from datasets import Dataset, concatenate_datasets

from .columns import check_split


PREPARATION, SUMMARY, REJECTED = "preparation.json", "summary.json", "rejected.csv"
FORMAT = 2  # to be raised with every change of what stands in a shard, the rules of texts and labels among it


def is_prepared(folder: Path) -> bool:
    return (folder / PREPARATION).is_file()


def preparation(folder: Path) -> dict:
    """
    The options that a folder was prepared with.

    Raises:
        ValueError: if it was written in another format.
    """
    options = json.loads((folder / PREPARATION).read_text())
    if options.get("format") != FORMAT:
        raise ValueError(
            f"{folder} was prepared by another version of this code (format {options.get('format')}, now {FORMAT}): "
            "prepare it again, in another folder."
        )
    return options


def shard_path(folder: Path, split: str, number: int, total: int) -> Path:
    return folder / split / f"data-{number:05d}-of-{total:05d}.arrow"


def prepared_splits(folder: Path) -> dict[str, int]:
    """
    The splits of a folder with the number of their shards.

    Raises:
        ValueError: if the preparation was not finished.
    """
    if not (folder / SUMMARY).is_file():
        raise ValueError(f"The preparation of {folder} is not finished: run the same command again, it goes on.")
    return json.loads((folder / SUMMARY).read_text())["shards"]


def load_prepared(folder: Path, split: str) -> Dataset:
    """
    One split, memory-mapped: it takes no memory of its own.

    Raises:
        ValueError: if the preparation was not finished, or a shard is missing.
    """
    shards = prepared_splits(folder)
    check_split(str(folder), split, shards)
    paths = [shard_path(folder, split, number, shards[split]) for number in range(shards[split])]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise ValueError(
            f"{folder} is not whole: {len(missing)} of {len(paths)} shards of {split} are missing, such as "
            f"{missing[0].name}. The command that prepared it writes them again."
        )
    return concatenate_datasets([Dataset.from_file(str(path)) for path in paths])
