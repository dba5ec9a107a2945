# Licensed under the Apache License, Version 2.0.
"""Any data set in the form that trains and evaluates fast: all its columns, with small pictures, boxes and masks."""

import hashlib
import io
import json
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from . import shards
from .columns import SPLITS, UnknownSplit
from .masks import mask_cell
from .pictures import picture_size, scaled_box, undecoded
from .prepared import FORMAT, NOT_KEPT
from .record import DatasetRecord
from .rejected import collect_rejected
from .shards import OpenShard, Plan, Submit, check_numbers, tasks, write_prepared
from .shrink import MIN_SIDE, shrink_all


def prepare_dataset(
    record: DatasetRecord,
    output_dir: str | os.PathLike,
    options: dict,
    splits: Iterable[str] = (),
    size: int = 320,
    num_proc: int = 1,
    max_failed: float = 0.01,
    retry_failed: bool = False,
    progress: bool = True,
) -> dict:
    """
    Write a data set in the form that `load_pairs` reads fastest; goes on where an earlier call was stopped.

    Args:
        record: of the data set.
        output_dir: folder to write; it becomes the `data_dir` of the data set.
        options: of its loader, `data_dir` among them.
        splits: which ones; by default all that the data set has.
        size, num_proc, max_failed, retry_failed, progress: as in [`~data.prepare.prepare`].

    Returns the summary, as [`write_prepared`].

    Raises:
        ValueError: as the loader and [`write_prepared`] do.
    """
    check_numbers({"size": (size, MIN_SIDE), "num_proc": (num_proc, 1)}, max_failed)
    if options.get("streaming"):
        raise ValueError(f"{record.name}: streaming and preparation exclude each other.")
    loaded, rejected = _load(record, list(splits), options)
    features = Features(next(iter(loaded.values())).features | {"image": ImageFeature()})
    chosen = {name: _plain(value) for name, value in options.items() if name not in NOT_KEPT}
    plan = Plan(
        {
            "format": FORMAT,
            "dataset": record.name,
            "options": chosen,
            "splits": list(loaded),
            "size": size,
            "rows_per_shard": shards.ROWS_PER_SHARD,
            "planned": _fingerprint(loaded),
        },
        loaded,
        lambda rows, start, end: rows.select(range(start, min(end, len(rows)))),
        rejected,
        partial(_open, features=features, size=size),
        lambda notes: bool(notes["failed"]),
    )
    return write_prepared(Path(output_dir), plan, num_proc, max_failed, retry_failed, progress)


def _load(record: DatasetRecord, splits: list[str], options: dict) -> tuple[dict[str, Dataset], list[dict]]:
    """The splits, with pictures as they are stored, and what the loader has rejected."""
    loaded, rejected = {}, {}
    for split in splits or SPLITS:
        try:
            with collect_rejected() as rows:
                loaded[split] = undecoded(record.load(split=split, **options))
        except UnknownSplit:
            if splits:
                raise
        except ValueError as error:
            advice = "" if splits else " (To prepare other splits alone, name them with splits.)"
            raise ValueError(f"{error}{advice}") from error
        else:
            for row in rows:
                key = f"{Path(row.source).name}, {row.row}", row.reason
                # A bad row of a table that all splits are read from is of none of them.
                rejected[key] = "" if key in rejected else split
    return loaded, [{"split": split, "path": path, "reason": reason} for (path, reason), split in rejected.items()]


def _plain(value):
    return list(value) if isinstance(value, tuple) else os.fspath(value) if isinstance(value, os.PathLike) else value


def _fingerprint(loaded: dict[str, Dataset]) -> str:
    """Of the rows: a run goes on only with the same ones."""
    content = hashlib.sha256()
    for split, rows in loaded.items():
        content.update(split.encode())
        columns = rows.with_format("arrow")
        for start in range(0, len(rows), shards.ROWS_PER_SHARD):
            for row in columns[start : start + shards.ROWS_PER_SHARD].to_pylist():
                content.update(json.dumps(row, sort_keys=True, default=_digest).encode())
    return content.hexdigest()[:16]


def _digest(value) -> str:
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)


def _open(path: Path, rows: Dataset, submit: Submit, features: Features, size: int) -> OpenShard:
    """Have the pictures of a shard decoded."""
    cells = rows["image"][:]
    sources = [None if cell is None else cell["bytes"] or cell["path"] for cell in cells]
    work = [(end - start, submit(shrink_all, sources[start:end], size)) for start, end in tasks(len(sources))]
    notes = {"without_text": [], "failed": [], "not_utf8": [], "unknown_headings": {}}
    names = [str(name) for name in rows["image_id"]]
    return OpenShard(path, features, names, work, partial(_columns, rows), notes)


def _columns(rows: Dataset, good: list[int], pictures: list[bytes]) -> dict[str, list]:
    kept = rows.select(good)
    stored = kept.with_format("arrow")[:]
    columns = {name: stored[name].to_pylist() for name in kept.column_names}
    if "regions" in columns:
        columns["regions"] = [
            _smaller_regions(regions or [], cell, content)
            for regions, cell, content in zip(columns["regions"], columns["image"], pictures)
        ]
    columns["image"] = [{"bytes": content, "path": f"{i}.jpg"} for i, content in zip(range(len(pictures)), pictures)]
    return columns


def _smaller_regions(regions: list[dict], cell: dict, content: bytes) -> list[dict]:
    """Boxes and masks of a picture in the pixels of its small copy."""
    if not regions:
        return []
    size = picture_size({"bytes": content, "path": None})
    whole = picture_size(cell) or size
    smaller = []
    for region in regions:
        region = region | {"box": scaled_box(region["box"], whole, size)}
        if region.get("mask"):
            region["mask"] = _smaller_mask(region["mask"], size)
        smaller.append(region)
    return smaller


def _smaller_mask(cell: dict, size: tuple[int, int]) -> dict:
    with Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] else cell["path"]) as mask:
        return mask_cell(mask, size)
