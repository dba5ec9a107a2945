# Licensed under the Apache License, Version 2.0.
"""
MIMIC-CXR made ready for training once: small pictures and extracted texts, in Arrow shards that `datasets` maps into
memory. Other data sets: [`~data.prepare_set.prepare_dataset`].
"""

import hashlib
import os
from functools import partial
from pathlib import Path

import pandas as pd

from . import shards
from .mimic_cxr import FEATURES, NO_REPORT, UNREADABLE, image_path, pair_columns, plan
from .prepared import FORMAT
from .rejected import collect_rejected
from .shards import OpenShard, Plan, Submit, check_numbers, summary_text, tasks, write_prepared
from .shrink import MIN_SIDE, shrink, shrink_all


__all__ = ["prepare", "shrink", "summary_text"]


def prepare(
    data_dir: str | os.PathLike,
    output_dir: str | os.PathLike,
    reports_dir: str | os.PathLike | None = None,
    reports: str | os.PathLike | None = None,
    size: int = 320,
    section: str = "impression",
    split_by: str = "official",
    views: str = "all",
    labeler: str = "chexpert",
    num_proc: int = 1,
    max_failed: float = 0.01,
    retry_failed: bool = False,
    progress: bool = True,
) -> dict:
    """
    Write MIMIC-CXR in a form that trains fast; goes on where an earlier call was stopped.

    The folder gets `train/`, `validation/` and `test/` with shards of grey JPEG pictures (quality 95) and all columns
    of [`~data.mimic_cxr.mimic_cxr`], `rejected.csv` (every skipped row, with its path and the reason),
    `preparation.json` (the options) and, when all is done, `summary.json`, which is returned.

    Args:
        data_dir, reports_dir, reports, section, split_by, views, labeler: as in [`~data.mimic_cxr.mimic_cxr`].
        output_dir: folder to write.
        size: pixels of the shorter side. The aspect is kept, a smaller picture stays as it is. Leave room for
            augmentation: a third more than the model's input.
        num_proc: processes that decode pictures.
        max_failed: largest fraction of pictures that may be missing or unreadable, or have an unreadable report.
        retry_failed: write those shards again in which pictures or reports failed, after the data were mended.
        progress: show a bar with pictures per second and the time left.

    Raises:
        ValueError: for bad options or tables, and as [`write_prepared`].
    """
    check_numbers({"size": (size, MIN_SIDE), "num_proc": (num_proc, 1)}, max_failed)
    choices = {"section": section, "split_by": split_by, "views": views, "labeler": labeler}
    planned = _plan(data_dir, reports_dir, reports, choices, size)
    return write_prepared(Path(output_dir), planned, num_proc, max_failed, retry_failed, progress)


def _plan(data_dir, reports_dir, reports, choices: dict[str, str], size: int) -> Plan:
    with collect_rejected() as bad_rows:
        table, rejected, source = plan(data_dir, reports_dir, reports, **choices)
    rejected += [
        {"split": "", "path": f"{Path(row.source).name}, {row.row}", "reason": row.reason} for row in bad_rows
    ]
    options = {
        "format": FORMAT,
        "dataset": "mimic_cxr",
        **choices,
        "size": size,
        "rows_per_shard": shards.ROWS_PER_SHARD,
    }
    return Plan(
        options | {"reports": source.description(), "planned": _fingerprint(table)},
        dict(tuple(table.groupby("split"))),
        lambda rows, start, end: rows.iloc[start:end],
        rejected,
        partial(_open, data_dir=Path(data_dir), source=source, section=choices["section"], size=size),
        lambda notes: bool(notes["failed"]) or any(row["reason"] == NO_REPORT for row in notes["without_text"]),
    )


def _open(
    path: Path, rows: pd.DataFrame, submit: Submit, data_dir: Path, source, section: str, size: int
) -> OpenShard:
    """Read the texts of a shard, and have its pictures decoded."""
    source.forget()
    texts, reasons = source.texts(rows, section)
    lost = [
        {"path": source.where(row.subject_id, row.study_id), "reason": reasons[row.study_id]}
        for row in rows.itertuples()
        if row.study_id in reasons
    ]
    notes = {
        "without_text": [row for row in lost if row["reason"] != UNREADABLE],
        "failed": [row for row in lost if row["reason"] == UNREADABLE],
        "not_utf8": sorted(source.not_utf8),
        "unknown_headings": dict(source.unknown_headings),
    }
    rows = rows.assign(text=rows["study_id"].map(texts))
    with_text = rows[rows["text"] != ""]
    paths = list(map(image_path, with_text["subject_id"], with_text["study_id"], with_text["dicom_id"]))
    work = [
        (end - start, submit(shrink_all, [str(data_dir / p) for p in paths[start:end]], size))
        for start, end in tasks(len(paths))
    ]
    return OpenShard(path, FEATURES, paths, work, partial(_columns, with_text), notes)


def _columns(rows: pd.DataFrame, good: list[int], pictures: list[bytes]) -> dict[str, list]:
    kept = rows.iloc[good]
    cells = [{"bytes": content, "path": f"{name}.jpg"} for content, name in zip(pictures, kept["dicom_id"])]
    return pair_columns(kept, cells)


def _fingerprint(table: pd.DataFrame) -> str:
    """Of the rows that are planned: a run goes on only with the same ones."""
    hashes = pd.util.hash_pandas_object(table, index=False).to_numpy()
    return hashlib.sha256(hashes.tobytes()).hexdigest()[:16]
