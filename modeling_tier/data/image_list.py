# Licensed under the Apache License, Version 2.0.
"""Lists of images by id: what an evaluation has used, and what another one is to use."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from datasets import Dataset

from .rejected import short
from .tables import FALLBACK, csv_rows, text_lines


_COLUMN = "image_id"


def read_image_list(path: str | Path) -> list[str]:
    """
    The ids of a text file with one per line, or of the column `image_id` of a csv file.

    Raises:
        ValueError: if there is no such file, it is empty, or an id stands in it twice.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no file {path} (image_ids).")
    lines = [line.strip() for line in text_lines(path, fallback=FALLBACK)]
    head = next(filter(None, lines), "")
    if _COLUMN in [name.strip().strip('"') for name in head.replace(";", ",").replace("\t", ",").split(",")]:
        rows = csv_rows(path, fallback=FALLBACK)
        _, names = next(rows)
        position = names.index(_COLUMN)
        ids = [fields[position].strip() for _, fields in rows]
    else:
        ids = lines
    ids = [name for name in ids if name]
    twice = [name for name, number in Counter(ids).items() if number > 1]
    if twice:
        raise ValueError(f"{path}: {len(twice)} ids stand in it more than once, such as {short(twice[0])}.")
    if not ids:
        raise ValueError(f"{path} names no image: it must have one id per line, or a column {_COLUMN!r}.")
    return ids


def select_images(dataset: Dataset, ids: list[str], source: str | Path) -> tuple[Dataset, str | None]:
    """
    The rows of a data set that a list names, in the data set's order.

    Returns:
        them, and a sentence on how many others there are; None without others.

    Raises:
        ValueError: if an image of the list is not in the data set, with how many there are and the first of them.
    """
    existing = dataset["image_id"][:]
    known = set(existing)
    missing = [name for name in ids if name not in known]
    if missing:
        like = f"its ids are like {existing[0]}" if existing else "which is empty"
        raise ValueError(
            f"{source}: {len(missing)} of {len(ids)} images are not in the data set, such as "
            f"{short(missing[0])}; {like}. "
            "Loaders skip images whose file is missing."
        )
    wanted = set(ids)
    rows = np.flatnonzero([name in wanted for name in existing])
    others = len(existing) - len(rows)
    note = f"{source} names {len(rows)} of the {len(existing)} images; {others} others are not used."
    return dataset.select(rows), note if others else None


def images_fingerprint(ids: Iterable[str]) -> str:
    """SHA-256 of the sorted ids, one per line: the same for the same images in any order."""
    return hashlib.sha256("".join(f"{name}\n" for name in sorted(ids)).encode()).hexdigest()
