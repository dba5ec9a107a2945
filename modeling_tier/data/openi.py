# Licensed under the Apache License, Version 2.0.
"""Open-I (Indiana University): radiographs with reports under an open licence."""

import os
import zlib
from pathlib import Path

import pandas as pd
from datasets import Dataset

from .columns import SPLITS, VIEWS, check_choice, check_split, make_pairs, pair_features
from .deidentification import clean
from .padchest import chosen_names
from .record import ID_START, DatasetRecord
from .sections import SECTIONS
from .tables import find_picture, find_table, is_missing, need_folder, read_table, skip_rows


SPLIT_RULES = ("none", "subject")

_FOLDERS = ("images/images_normalized", "images_normalized", "images", "")
_UNKNOWN = "No Indexing"


def openi(
    split: str = "test",
    data_dir: str | os.PathLike | None = None,
    section: str = "impression",
    split_by: str = "none",
    views: str = "all",
    min_count: int = 10,
) -> Dataset:
    """
    Radiographs of Open-I with their reports, and the `Problems` of the reports as labels, 1 or 0 (null where nobody
    has indexed the report). Rows without text, and missing images, are skipped with a warning that counts them.

    Args:
        split: "test"; with split_by "subject" also "train" and "validation".
        data_dir: folder with `indiana_reports.csv`, `indiana_projections.csv`, and `images/images_normalized`.
        section: "impression", "findings", "impression_or_findings" or "both" (findings, then impression).
        split_by: "none": all of it is the test set; or "subject": about 80, 10 and 10% of the subjects, chosen by a
            hash of their number, the same in every version of the data set.
        views: "all", or "frontal".
        min_count: problems of fewer images are no labels.

    Raises:
        ValueError: for an unknown option, a missing file or column, or if no image is left.
    """
    check_choice("openi", "section", section, SECTIONS)
    check_choice("openi", "split_by", split_by, SPLIT_RULES)
    check_split("openi", split, SPLITS if split_by == "subject" else ("test",))
    check_choice("openi", "views", views, VIEWS)
    folder = need_folder("openi", data_dir, "the folder with indiana_reports.csv and the images")
    table = _images_with_reports(folder)
    if views == "frontal":
        table = table[table["projection"] == "Frontal"]
    if split_by == "subject":
        table = table[table["uid"].map(_split) == split]
    table["text"] = [_text(section, *row) for row in zip(table["findings"], table["impression"])]
    table = skip_rows(table, table["text"] == "", "openi", f"no {section} in the report", "filename")
    if table.empty:
        raise ValueError(f"openi: no row is left with section {section!r} and views {views!r}.")
    table = _with_paths(table, [folder / name for name in _FOLDERS])
    names, labels = _labels(table["Problems"], min_count)
    columns = {
        "image": table["path"].tolist(),
        "text": table["text"].tolist(),
        "subject_id": table["uid"].tolist(),
        "study_id": table["uid"].tolist(),
        "image_id": table["filename"].tolist(),
        "view": table["projection"].tolist(),
        "labels": labels,
    }
    return make_pairs(columns, pair_features(names, ids="string"))


def _images_with_reports(folder: Path) -> pd.DataFrame:
    """One row per image, with the columns of its report."""
    path = find_table(folder, ["indiana_reports.csv"])
    reports = read_table(path, ("uid", "Problems", "findings", "impression"))
    table = read_table(find_table(folder, ["indiana_projections.csv"]), ("uid", "filename", "projection"))
    for part in (reports, table):
        part["uid"] = part["uid"].str.replace(r"\.0+$", "", regex=True)  # as tables with gaps write whole numbers
    reports = skip_rows(reports, reports.duplicated("uid"), "openi", f"a report twice in {path.name}", "uid")
    table = skip_rows(table, ~table["uid"].isin(reports["uid"]), "openi", f"not in {path.name}", "filename")
    return table.merge(reports, on="uid", how="left").fillna("")


def _with_paths(table: pd.DataFrame, folders: list[Path]) -> pd.DataFrame:
    """The rows whose picture exists, with its `path`."""
    table = table.assign(path=[find_picture(folders, name) for name in table["filename"]])
    if table["path"].isna().all():
        looked = ", ".join(map(str, folders))
        raise ValueError(f"openi: none of {len(table)} images was found; looked in {looked}.")
    return skip_rows(table, table["path"].isna(), "openi", "the file is missing", "filename")


def _labels(problems: pd.Series, min_count: int) -> tuple[list[str], list[dict]]:
    """The names of the labels, and those of each row."""
    problems = problems.map(lambda text: {name.strip() for name in text.split(";")} - {""})
    indexed = problems.map(lambda names: bool(names - {_UNKNOWN}))
    names = chosen_names(problems[indexed], min_count)
    labels = [
        {name: float(name in present) if known else None for name in names}
        for present, known in zip(problems, indexed)
    ]
    return names, labels


def _split(uid: str) -> str:
    tenth = zlib.crc32(uid.encode()) % 10
    return {8: "validation", 9: "test"}.get(tenth, "train")


def _text(section: str, findings: str, impression: str) -> str:
    findings, impression = ("" if is_missing(text) else clean(text) for text in (findings, impression))
    return {
        "findings": findings,
        "impression": impression,
        "impression_or_findings": impression or findings,
        "both": f"{findings} {impression}".strip(),
    }[section]


RECORD = DatasetRecord(
    name="openi",
    load=openi,
    title="Open-I",
    address="https://openi.nlm.nih.gov/",
    licence="CC BY-NC-ND 4.0",
    access="from the National Library of Medicine, under its own licence",
    id_patterns={"an image of Open-I": rf"(?i){ID_START}(CXR)?\d+_IM-\d{{4}}"},
)
