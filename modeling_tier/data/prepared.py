# Licensed under the Apache License, Version 2.0.
"""A folder that `prepare` has written: recognised, checked and memory-mapped."""

import json
from pathlib import Path

from datasets import Dataset, IterableDataset, concatenate_datasets

from .columns import check_split
from .stored import check_stored


PREPARATION, SUMMARY, REJECTED = "preparation.json", "summary.json", "rejected.csv"
# Options of a loader that say how it reads, not what.
NOT_KEPT = ("streaming", "data_dir", "encoding", "max_rejected")
MAX_SHARDS = 64  # workers that can read a prepared folder as a stream
FORMAT = 2  # to be raised with every change of a shard's content, the rules for texts and labels included


_REPAIR = "delete it and run the command that prepared the folder again, which writes what is missing"


def is_prepared(folder: Path) -> bool:
    return (folder / PREPARATION).is_file()


def preparation(folder: Path) -> dict:
    """
    The options that a folder was prepared with.

    Raises:
        ValueError: if it was written in another format.
    """
    options = _read(folder / PREPARATION)
    if options.get("format") != FORMAT:
        raise ValueError(
            f"{folder} was prepared by another version of this code (format {options.get('format')}, now {FORMAT}): "
            "prepare it again, in another folder."
        )
    return options


def shard_path(folder: Path, split: str, number: int, total: int) -> Path:
    return folder / split / f"data-{number:05d}-of-{total:05d}.arrow"


def notes_path(shard: Path) -> Path:
    return shard.with_suffix(".json")


def shard_notes(shard: Path) -> dict | None:
    """What was noted when a shard was written; None if the shard is missing, cut off, or its notes are."""
    try:
        notes = json.loads(notes_path(shard).read_text(encoding="utf-8"))
        return notes if shard.stat().st_size == notes["bytes"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def prepared_splits(folder: Path) -> dict[str, int]:
    """
    The splits of a folder with the number of their shards.

    Raises:
        ValueError: if the preparation was not finished.
    """
    if not (folder / SUMMARY).is_file():
        raise ValueError(f"The preparation of {folder} is not finished: run the same command again, it goes on.")
    return _read(folder / SUMMARY)["shards"]


def _read(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): {_REPAIR}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: {_REPAIR}.")
    return content


def load_prepared_set(name: str, defaults: dict, split: str, options: dict) -> Dataset | IterableDataset:
    """
    One split of a folder that [`~data.prepare_set.prepare_dataset`] has written.

    Args:
        name: of the data set.
        defaults: of its options.
        split: which one.
        options: `data_dir`, the folder, and others, which must be those that it was prepared with.

    Raises:
        ValueError: if the folder holds another data set, or was prepared with other options, and as [`load_prepared`].
    """
    folder = Path(options["data_dir"])
    before = preparation(folder)
    if before["dataset"] != name:
        raise ValueError(f"{folder} was prepared from the data set {before['dataset']!r}, not from {name!r}.")
    check_options_kept(folder, defaults, options)
    pairs = load_prepared(folder, split)
    return pairs.to_iterable_dataset(num_shards=min(MAX_SHARDS, len(pairs))) if options.get("streaming") else pairs


def check_options_kept(folder: Path, defaults: dict, options: dict) -> None:
    """Raise ValueError if a folder was prepared with other options of its loader than these."""
    before = preparation(folder)["options"]
    for option, value in options.items():
        if option in NOT_KEPT:
            continue
        kept = before.get(option, defaults[option])
        if json.loads(json.dumps([value, kept], default=str)) != [kept, kept]:
            raise ValueError(
                f"{folder} was prepared with {option} {kept!r}, not {value!r}: prepare another folder, or leave the "
                "option out."
            )


def load_prepared(folder: Path, split: str) -> Dataset:
    """
    One split, memory-mapped: it takes no memory of its own.

    Raises:
        ValueError: if the preparation was not finished, or a shard is missing or damaged.
    """
    shards = prepared_splits(folder)
    check_split(str(folder), split, shards)
    paths = [shard_path(folder, split, number, shards[split]) for number in range(shards[split])]
    damaged = [path for path in paths if shard_notes(path) is None]
    if damaged:
        raise ValueError(
            f"{folder} is not complete: {len(damaged)} of {len(paths)} shards of {split} are missing or cut off, such "
            f"as {damaged[0].name}. The command that prepared it writes them again."
        )
    return concatenate_datasets([open_shard(path) for path in paths])


def open_shard(path: Path) -> Dataset:
    """
    The rows of a shard, memory-mapped.

    Raises:
        ValueError: if it is damaged.
    """
    try:
        rows = Dataset.from_file(str(path))
    except (OSError, ValueError) as error:  # pyarrow's errors among them
        raise ValueError(f"The shard {path} is damaged ({error}): {_REPAIR}.") from error
    check_stored(rows, f"The shard {path}", _REPAIR)
    return rows
