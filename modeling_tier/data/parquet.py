# Licensed under the Apache License, Version 2.0.
"""Parquet files with pictures in them, in a folder or on the Hub; all rows, or the first ones alone."""

import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import httpx2
from datasets import Dataset, Features, Image, load_dataset
from huggingface_hub import HfApi, constants
from tqdm.auto import tqdm

from .pictures import undecoded_columns


_FOLDERS = ("", "data", "default")


def parquet_files(folder: Path, split: str) -> list[str]:
    """The Parquet files of a split, in a folder or in its `data`, as the Hub names them."""
    return [str(file) for file in sorted(_all_files(folder)) if _is_of_split(file.name, split)]


def _all_files(folder: Path) -> Iterator[Path]:
    return (file for name in _FOLDERS for file in (folder / name).glob("*.parquet"))


def _is_of_split(name: str, split: str) -> bool:
    return bool(re.match(rf"{split}(?![a-z])", name)) and name.endswith(".parquet")


def has_parquet(folder: Path) -> bool:
    return next(_all_files(folder), None) is not None


def is_hub_name(name: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name)) and not Path(name).exists()


def load_parquet(source: str, split: str, max_rows: int | None) -> Dataset:
    """
    The rows of a split, with pictures as they are stored.

    Args:
        source: a folder with Parquet files, or the name of a data set on the Hub.
        split: "train" or "test", as its files are called.
        max_rows: the first so many are read, and no more is downloaded than they need; None: all.

    Raises:
        ValueError: if there are none, or they cannot be read.
    """
    folder = Path(source)
    files = parquet_files(folder, split) if folder.is_dir() else []
    if folder.is_dir() and not files:
        raise ValueError(f"The folder {source} has no Parquet file whose name begins with {split!r}.")
    try:
        arguments: dict = {"path": "parquet" if folder.is_dir() else source, "split": split}
        if files := files or _files_on_hub(source, split):
            # The sizes that a data set card states are of all splits: they cannot be checked on one.
            arguments |= {"data_files": {split: files}, "verification_mode": "no_checks"}
        if max_rows is None:
            return undecoded_columns(load_dataset(**arguments))
        stream = load_dataset(**arguments, streaming=True)
        features = stream.features or Features({})
        rows = list(_first(undecoded_columns(stream), max_rows, source))
        return Dataset.from_list(rows, features=_stored(features) if rows and features else None)
    except Exception as error:  # of the Hub, the file system and Arrow
        raise ValueError(
            f"{source}, split {split!r}, cannot be read as a folder of Parquet files or a data set on the Hub: "
            f"{_reason(error)}"
        ) from error


def _files_on_hub(name: str, split: str) -> list[str]:
    """The files of a split alone: by its name, `datasets` downloads those of all splits."""
    files = HfApi().list_repo_files(name, repo_type="dataset")
    return sorted(file for file in files if _is_of_split(file.rpartition("/")[2], split))


def _stored(features: Features) -> Features:
    return Features({n: Image(decode=False) if isinstance(kind, Image) else kind for n, kind in features.items()})


def _first(rows: Iterable[dict], number: int, source: str) -> Iterable[dict]:
    return tqdm(itertools.islice(rows, number), total=number, desc=f"reading {source}", unit="img")


def _reason(error: Exception) -> str:
    cause = error.__cause__ or error
    if isinstance(error, httpx2.TransportError):
        return f"the Hub ({constants.ENDPOINT}) was not reached: {str(error)[:300]}"
    return (str(cause) or type(cause).__name__).splitlines()[0][:300]
