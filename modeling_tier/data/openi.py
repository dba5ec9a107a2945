# Licensed under the Apache License, Version 2.0.
"""Open-I (Indiana University): radiographs with reports under an open licence."""

import os
import re
from pathlib import Path

import pandas as pd
from datasets import Dataset

from .columns import SPLITS, VIEWS, check_choice, check_split, hashed_split, make_pairs, pair_features
from .openi_xml import XML_FOLDERS, images_of_reports, reports_folder
from .padchest import chosen_names
from .record import ID_START, DatasetRecord
from .sections import SECTIONS, section_text
from .tables import find_picture, find_table, need_folder, read_table, skip_rows, with_pictures


SPLIT_RULES = ("none", "subject")
LABELS = ("major", "automatic")

_REPORTS, _PROJECTIONS = "indiana_reports.csv", "indiana_projections.csv"
_FOLDERS = (
    *("images/images_normalized", "images_normalized", "images/NLMCXR_png", "NLMCXR_png", "images", "png"),
    "",
)
_UNKNOWN = "No Indexing"

# The 18 findings for which the automatic terms are searched, and words that count as one. It is the list and the rule
# of torchxrayvision's reader of Open-I; that CARZero's 18 labels are the same is likely and was not verified.
_AUTOMATIC = {
    "Atelectasis": ("atelectasis", "atelectases"),
    "Calcified Granuloma": ("calcified granuloma",),
    "Cardiomegaly": ("cardiomegaly",),
    "Edema": ("edema",),
    "Effusion": ("effusion",),
    "Emphysema": ("emphysema",),
    "Fibrosis": ("fibrosis",),
    "Fracture": ("fracture",),
    "Granuloma": ("granuloma",),
    "Hernia": ("hernia",),
    "Infiltration": ("infiltration", "infiltrate"),
    "Lung Lesion": ("lesion",),
    "Lung Opacity": ("opacity",),
    "Mass": ("mass",),
    "Nodule": ("nodule",),
    "Pleural Thickening": ("pleural thickening",),
    "Pneumonia": ("pneumonia",),
    "Pneumothorax": ("pneumothorax",),
}


def openi(
    split: str = "test",
    data_dir: str | os.PathLike | None = None,
    section: str = "impression",
    split_by: str = "none",
    views: str = "all",
    labels: str = "major",
    min_count: int = 10,
) -> Dataset:
    """
    Radiographs of Open-I with their reports and labels, 1 or 0. Rows without text, and missing images, are skipped
    with a warning that counts them.

    The data set names no patients: the report's number is `study_id` and `subject_id`. Its authors are said to have
    drawn one study per patient, which nothing in the files shows.

    Args:
        split: "test"; with split_by "subject" also "train" and "validation".
        data_dir: folder of the National Library of Medicine's archives, unpacked: XML reports in `ecgen-radiology`,
            images in `NLMCXR_png`, `images` or beside it; or of the form on Kaggle: `indiana_reports.csv`,
            `indiana_projections.csv`, and `images/images_normalized`.
        section: "impression", "findings", "impression_or_findings" or "both" (findings, then impression).
        split_by: "none": all of it is the test set; or "subject": about 80, 10 and 10% of the reports, chosen by a
            hash of their number, the same in both forms and in every version of the data set.
        views: "all", or "frontal". The XML files do not know the views of their images: `indiana_projections.csv`
            beside them tells those of the images that it names.
        labels: "major": the headings by which people have indexed a report, null where nobody has ("No Indexing");
            "automatic": 18 findings in the terms that a program has found, of the XML form alone.
        min_count: findings of fewer images are no labels.

    Raises:
        ValueError: for an unknown option, a missing file or column, too many bad files, or if no image is left.
    """
    check_choice("openi", "section", section, SECTIONS)
    check_choice("openi", "split_by", split_by, SPLIT_RULES)
    check_split("openi", split, SPLITS if split_by == "subject" else ("test",))
    check_choice("openi", "views", views, VIEWS)
    check_choice("openi", "labels", labels, LABELS)
    what = f"the folder with ecgen-radiology, or {_REPORTS}, and the images"
    folder = need_folder(RECORD, data_dir, f"{what}; `python -m modeling_tier.data download openi FOLDER` fetches it")
    table = _images_with_reports(folder, views)
    names, of_each = _labels(table, labels, min_count)
    table["labels"] = of_each
    if views == "frontal":
        table = table[table["projection"] == "Frontal"]
    if split_by == "subject":
        table = table[table["uid"].map(hashed_split) == split]
    table["text"] = [section_text(section, *row) for row in zip(table["findings"], table["impression"])]
    table = skip_rows(table, table["text"] == "", "openi", f"no {section} in the report", "filename")
    if table.empty:
        raise ValueError(f"openi: no row is left with section {section!r}, views {views!r} and split {split!r}.")
    return _pairs(table, folder, names)


def _pairs(table: pd.DataFrame, folder: Path, names: list[str]) -> Dataset:
    """The rows whose picture exists."""
    folders = [folder / name for name in _FOLDERS]
    paths = [find_picture(folders, name) for name in table["filename"]]
    table = with_pictures(table, paths, "openi", folder, folders, "filename")
    columns = {
        "image": table["path"].tolist(),
        "text": table["text"].tolist(),
        "subject_id": table["uid"].tolist(),
        "study_id": table["uid"].tolist(),
        "image_id": table["filename"].tolist(),
        "view": table["projection"].tolist(),
        "labels": table["labels"].tolist(),
    }
    return make_pairs(columns, pair_features(names, ids="string"))


def _images_with_reports(folder: Path, views: str) -> pd.DataFrame:
    """One row per image, with the columns of its report and its view in `projection`, "" where it is not known."""
    if _has(folder, _REPORTS):
        return _kaggle_form(folder)
    reports = reports_folder(folder)
    if reports is None:
        raise ValueError(
            f"openi: {folder} has neither XML reports (ecgen-radiology/1.xml and so on) nor {_REPORTS}, the form on "
            "Kaggle."
        )
    table = images_of_reports(reports)
    if _has(folder, _PROJECTIONS):
        views_of = _projections(folder)
        keys = [_key(*row) for row in zip(views_of["uid"], views_of["filename"])]
        known = dict(zip(keys, views_of["projection"]))
        table["projection"] = [known.get(_key(*row), "") for row in zip(table["uid"], table["filename"])]
    elif views == "frontal":
        raise ValueError(
            f"openi: views 'frontal' needs {_PROJECTIONS} in {folder}, from the form on Kaggle: the XML files do not "
            "know the views of their images."
        )
    else:
        table["projection"] = ""
    return table


def _has(folder: Path, name: str) -> bool:
    return any((folder / f"{name}{end}").is_file() for end in ("", ".gz"))


def _kaggle_form(folder: Path) -> pd.DataFrame:
    path = find_table(folder, [_REPORTS])
    reports = read_table(path, ("uid", "Problems", "findings", "impression"))
    reports["uid"] = _whole(reports["uid"])
    table = _projections(folder)
    reports = skip_rows(reports, reports.duplicated("uid"), "openi", f"a report twice in {path.name}", "uid")
    table = skip_rows(table, ~table["uid"].isin(reports["uid"]), "openi", f"not in {path.name}", "filename")
    table = table.merge(reports, on="uid", how="left").fillna("")
    terms = table["Problems"].str.split(";")
    table["problems"] = terms.map(lambda names: frozenset(name.strip() for name in names) - {""})
    return table.drop(columns="Problems")


def _projections(folder: Path) -> pd.DataFrame:
    table = read_table(find_table(folder, [_PROJECTIONS]), ("uid", "filename", "projection"))
    table["uid"] = _whole(table["uid"])
    return table


def _whole(numbers: pd.Series) -> pd.Series:
    """Numbers of reports, which tables with gaps write as 1.0."""
    return numbers.str.replace(r"\.0+$", "", regex=True)


def _key(uid: str, filename: str) -> tuple[str, str]:
    """What `CXR1_1_IM-0001-3001.png` and Kaggle's `1_IM-0001-3001.dcm.png` have in common."""
    found = re.search(r"IM-[\d-]*\d", filename)
    return uid, found[0] if found else filename


def _labels(table: pd.DataFrame, source: str, min_count: int) -> tuple[list[str], list[dict]]:
    """The names of the labels, and those of each row."""
    if source == "automatic":
        if "automatic" not in table:
            raise ValueError("openi: labels 'automatic' are in the XML files alone, not in the form on Kaggle.")
        found = table["automatic"].map(_automatic)
        known = found.map(lambda _: True)
    else:
        found = table["problems"]
        known = found.map(lambda names: bool(names - {_UNKNOWN}))
    names = chosen_names(found[known], min_count)
    return names, [
        {name: float(name in present) if sure else None for name in names} for present, sure in zip(found, known)
    ]


def _automatic(terms: frozenset[str]) -> frozenset[str]:
    text = "|".join(sorted(terms)).lower()
    return frozenset(name for name, words in _AUTOMATIC.items() if any(word in text for word in words))


RECORD = DatasetRecord(
    name="openi",
    load=openi,
    title="Open-I",
    folders=("open-i*", "openi*", "iu-x-ray*", "iu-xray*", "indiana*", "nlmcxr*", "."),
    files=((_REPORTS, *(f"{name}/*.xml".lstrip("/") for name in XML_FOLDERS)),),
    address="https://openi.nlm.nih.gov/",
    licence="CC BY-NC-ND 4.0",
    licence_address="https://creativecommons.org/licenses/by-nc-nd/4.0/",
    access="free from the National Library of Medicine; not for commercial use, nor to be passed on altered",
    id_patterns={"an image of Open-I": rf"(?i){ID_START}(CXR)?\d+(_\d+)?_IM-\d{{4}}"},
)
