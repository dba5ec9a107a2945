# Licensed under the Apache License, Version 2.0.
"""MIMIC-CXR-JPG and its reports as they lie on a disk, row by row, with any row awkward."""

import csv
import gzip
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from modeling_tier.data.columns import CHEXPERT_LABELS


class Row(NamedTuple):
    """An image of the tree. Report and labels are those of its study; None: the study has none."""

    dicom_id: str
    subject_id: int | str = 10000032
    study_id: int | str = 50000001
    split: str = "train"
    view: str = "PA"
    report: str | bytes | None = "FINAL REPORT\n FINDINGS: Edema.\n IMPRESSION: Heart failure.\n"
    labels: dict | None = {}
    picture: bytes | np.ndarray | None = np.full((40, 40), 90, np.uint8)

    @property
    def patient(self) -> str:
        return f"p{str(self.subject_id)[:2]}/p{self.subject_id}"


def study(number: int, **options) -> Row:
    """One image of a subject of its own."""
    ids = {"dicom_id": f"{number:08x}-0", "subject_id": 10000000 + number, "study_id": 50000000 + number}
    return Row(**ids | options)


def drawing(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Shades and edges that a wrong scale, a shift or a swap of the axes would change."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(20, 230, (9, 9), dtype=np.uint8))
    pixels = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))
    pixels[height // 4 : height // 2, width // 3 : width // 2] = 250
    return pixels


def encoded(pixels: np.ndarray | Image.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}) | options)
    return buffer.getvalue()


def write_table(path: Path, columns, rows, line_end: str = "\n", before: str = "") -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=line_end).writerows([columns, *rows])
    content = (before + text.getvalue()).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_pictures(root: Path, rows: list[Row]) -> None:
    for row in rows:
        if row.picture is not None:
            path = root / "files" / row.patient / f"s{row.study_id}" / f"{row.dicom_id}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(row.picture if isinstance(row.picture, bytes) else encoded(row.picture))


def write_reports(root: Path, rows: list[Row], prefix: str = "files/") -> None:
    for row in rows:
        if row.report is not None:
            path = root / prefix / row.patient / f"s{row.study_id}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(row.report if isinstance(row.report, bytes) else row.report.encode())


def write_tables(root: Path, rows: list[Row], version: str = "2.0.0", suffix: str = ".csv", **form) -> None:
    def write(name, columns, lines):
        write_table(root / f"mimic-cxr-{version}-{name}{suffix}", columns, lines, **form)

    root.mkdir(parents=True, exist_ok=True)
    ids = [(row.dicom_id, row.study_id, row.subject_id) for row in rows]
    write("split", ("dicom_id", "study_id", "subject_id", "split"), [(*i, row.split) for i, row in zip(ids, rows)])
    columns = ("dicom_id", "subject_id", "study_id", "ViewPosition", "Rows", "Columns")
    write("metadata", columns, [(d, p, s, row.view, 40, 40) for (d, s, p), row in zip(ids, rows)])
    labelled = {row.study_id: row for row in reversed(rows) if row.labels is not None}.values()
    lines = [
        (row.subject_id, row.study_id, *(row.labels.get(name, "") for name in CHEXPERT_LABELS))
        for row in reversed(labelled)
    ]
    for labeler in ("chexpert", "negbio"):
        write(labeler, ("subject_id", "study_id", *CHEXPERT_LABELS), lines)


def write_tree(root: Path, rows: list[Row], **form) -> Path:
    write_tables(root, rows, **form)
    write_pictures(root, rows)
    write_reports(root, rows)
    return root
