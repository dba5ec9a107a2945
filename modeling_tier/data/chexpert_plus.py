# Licensed under the Apache License, Version 2.0.
"""CheXpert Plus: the radiographs of CheXpert's training and validation parts with their reports."""

import json
import os
import re
from pathlib import Path

import pandas as pd
from datasets import Dataset

from .chexpert import RECORD as CHEXPERT
from .columns import CHEXPERT_LABELS, VIEWS, check_choice, check_split, check_subjects, make_pairs, pair_features
from .record import DatasetRecord
from .rejected import RejectedRow, reject
from .sections import SECTIONS, section_text
from .tables import find_table, good_rows, inside, need_folder, read_table, skip_rows, with_pictures


LABELS = ("report", "findings", "impression")

_TABLE = "df_chexpert_plus_240401.csv"
_COLUMNS = ("path_to_image", "frontal_lateral", "deid_patient_id", "split", "section_findings", "section_impression")
_SPLITS = {"train": "train", "validation": "valid"}
# The table says .jpg; the archives hold PNG files, unpacked once or twice into a folder of that name, or DICOM files.
_FOLDERS = ("PNG", "PNG/PNG", "PNGs", "DICOM", "DICOM/DICOM", "")
_ENDS = (".png", ".jpg", ".dcm")
_STUDY = re.compile(r"(?:^|/)(patient\d+)/(study\d+)/[^/]+$")


def chexpert_plus(
    split: str = "train",
    data_dir: str | os.PathLike | None = None,
    section: str = "impression",
    views: str = "all",
    labels: str = "report",
) -> Dataset:
    """
    Radiographs of CheXpert Plus with their reports, and CheXbert's 14 labels where `chexbert_labels` is there. Rows
    without text, and missing images, are skipped with a warning that counts them.

    Its patients are CheXpert's: no patient of CheXpert's validation or test part is in "train".

    Args:
        split: "train", or "validation" (CheXpert's own, 234 images). There is no test part: use `chexpert`.
        data_dir: folder with `df_chexpert_plus_240401.csv`, the pictures in `PNG`, `PNGs` or `DICOM` or beside it, and
            `chexbert_labels`.
        section: "impression", "findings", "impression_or_findings" or "both" (findings, then impression).
        views: "all", or "frontal".
        labels: the text that CheXbert has read: "report", "findings" or "impression".

    Raises:
        ValueError: for an unknown option, a missing file or column, too many bad rows, or patients in both parts.
    """
    check_split("chexpert_plus", split, _SPLITS)
    check_choice("chexpert_plus", "section", section, SECTIONS)
    check_choice("chexpert_plus", "views", views, VIEWS)
    check_choice("chexpert_plus", "labels", labels, LABELS)
    folder = need_folder(RECORD, data_dir, f"the folder with {_TABLE} and the images")
    path = find_table(folder, [_TABLE])
    table = _rows(path, split)
    if views == "frontal":
        table = table[table["frontal_lateral"] == "Frontal"]
    texts = zip(table["section_findings"], table["section_impression"])
    table = table.assign(text=[section_text(section, *row) for row in texts])
    table = skip_rows(table, table["text"] == "", "chexpert_plus", f"no {section} in the report", "path_to_image")
    if table.empty:
        raise ValueError(f"chexpert_plus: no row of {path} is left with section {section!r} and views {views!r}.")
    folders = [folder / name for name in _FOLDERS]
    paths = [_picture(folders, image) for image in table["path_to_image"]]
    table = with_pictures(table, paths, "chexpert_plus", path, folders, "path_to_image")
    return _pairs(table, _labels(folder / "chexbert_labels" / f"{labels}_fixed.json"))


def _pairs(table: pd.DataFrame, found: dict[str, dict]) -> Dataset:
    """With the labels that were found of the images, if any were."""
    columns = {
        "image": table["path"].tolist(),
        "text": table["text"].tolist(),
        "subject_id": table["subject"].tolist(),
        "study_id": table["study"].tolist(),
        "image_id": table["path_to_image"].tolist(),
        "view": table["view"].tolist(),
        "labels": [found.get(image, dict.fromkeys(CHEXPERT_LABELS)) for image in table["path_to_image"]],
    }
    return make_pairs(columns, pair_features(CHEXPERT_LABELS if found else (), ids="string"))


def _rows(path: Path, split: str) -> pd.DataFrame:
    """The rows of a part, each image once, with the `subject`, `study` and `view`."""
    table = read_table(path, _COLUMNS, ("ap_pa",))
    parts = table["path_to_image"].map(lambda text: _STUDY.search(text.replace("\\", "/")))
    expected = "path_to_image must be like train/patient42142/study5/view1_frontal.jpg"
    table = good_rows(table, parts.isna(), path, lambda i: f"{expected}; got {table.loc[i, 'path_to_image']!r}.")
    parts = parts.loc[table.index]
    table = table.assign(subject=[part[1] for part in parts], study=[f"{part[1]}/{part[2]}" for part in parts])
    check_subjects(str(path), {name: table.loc[table["split"] == own, "subject"] for name, own in _SPLITS.items()})
    table = table[table["split"] == _SPLITS[split]]
    view = table["ap_pa"] if "ap_pa" in table else pd.Series("", index=table.index)
    table = table.assign(view=view.where(view != "", table["frontal_lateral"].str.upper()))
    duplicate = table.duplicated("path_to_image")
    return skip_rows(table, duplicate, "chexpert_plus", f"an image twice in {path.name}", "path_to_image")


def _picture(folders: list[Path], image: str) -> str | None:
    stem = image.replace("\\", "/").rpartition(".")[0]
    candidates = (inside(folder, f"{stem}{end}", image) for folder in folders for end in _ENDS)
    return next((str(path) for path in candidates if path.is_file()), None)


def _labels(path: Path) -> dict[str, dict]:
    """Of each image, from JSON lines; empty if there is no such file."""
    if not path.is_file():
        return {}
    labels, bad = {}, []
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                    labels[row["path_to_image"]] = {name: _label(row[name]) for name in CHEXPERT_LABELS}
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    bad.append(RejectedRow(str(path), f"line {number}", f"{type(error).__name__}: {error}"))
    reject(bad, len(labels) + len(bad))
    return labels


def _label(value) -> float | None:
    if value is None or value != value:
        return None
    if isinstance(value, bool) or value not in (1, 0, -1):
        raise ValueError(f"a label must be 1, 0, -1 or null; got {value!r}")
    return float(value)


RECORD = DatasetRecord(
    name="chexpert_plus",
    load=chexpert_plus,
    title="CheXpert Plus",
    address="https://aimi.stanford.edu/datasets/chexpert-plus",
    licence=CHEXPERT.licence,
    access=CHEXPERT.access,
    data_use_agreement=True,
    id_patterns=CHEXPERT.id_patterns,
    patients="chexpert",
    findings=CHEXPERT_LABELS,
)
