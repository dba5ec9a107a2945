# Licensed under the Apache License, Version 2.0.
"""PadChest: 16-bit radiographs with 174 finding names, a quarter of them labelled by physicians; English reports."""

import ast
import os
import re
import warnings
from collections import Counter
from pathlib import Path

import pandas as pd
from datasets import Dataset

from .columns import SPLITS, VIEWS, check_choice, check_split, hashed_split, make_pairs, pair_features
from .deidentification import clean
from .record import ID_END, ID_START, DatasetRecord
from .tables import find_picture, find_table, is_missing, need_folder, read_table, skip_rows


READERS = ("physician", "all")
SPLIT_RULES = ("none", "subject")
FINDINGS = ("paper", "all", "rarest")

_TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
_COLUMNS = ("ImageID", "ImageDir", "StudyID", "PatientID", "Projection", "MethodLabel", "Labels")
# Columns of a file of reports, in the order of preference; the last one is PadChest's own, in Spanish.
_TEXTS = ("Report_en", "report_en", "ReportEN", "english_report", "Report_English", "translated_report", "caption")
_SPANISH = "Report"
_NUM_RAREST = 20
_FRONTAL = ("PA", "AP", "AP_horizontal")
# The 57 names that arXiv 2212.06710 reports.
_PAPER = (
    "COPD signs, adenopathy, air trapping, alveolar pattern, atelectasis, bronchiectasis, bullas, calcified "
    "adenopathy, calcified pleural thickening, cardiomegaly, cavitation, central vascular redistribution, "
    "clavicle fracture, consolidation, costophrenic angle blunting, emphysema, end on vessel, endotracheal tube, "
    "ground glass pattern, heart insufficiency, hilar congestion, hilar enlargement, humeral fracture, "
    "hyperinflated lung, hypoexpansion, hypoexpansion basal, infiltrates, interstitial pattern, laminar "
    "atelectasis, lobar atelectasis, lung metastasis, mediastinal enlargement, mediastinal mass, minor fissure "
    "thickening, multiple nodules, nodule, normal, pleural effusion, pleural thickening, pneumonia, pneumothorax,"
    " pseudonodule, pulmonary edema, pulmonary fibrosis, pulmonary mass, reticular interstitial pattern, "
    "reticulonodular interstitial pattern, rib fracture, superior mediastinal enlargement, tracheal shift, "
    "tuberculosis, tuberculosis sequelae, unchanged, vascular hilar enlargement, vascular redistribution, "
    "vertebral compression, vertebral fracture"
).split(", ")


def padchest(
    split: str = "test",
    data_dir: str | os.PathLike | None = None,
    readers: str = "physician",
    findings: str = "paper",
    min_count: int = 1,
    views: str = "all",
    reports: str | os.PathLike | None = None,
    split_by: str = "none",
) -> Dataset:
    """
    Radiographs of PadChest with its own names of findings, 1 or 0, and texts where a file of English reports is named.
    Rows without a list of labels, and missing images, are skipped with a warning that counts them; an empty list names
    nothing. Pictures have 16 bits and are scaled by their own range when they are read.

    Args:
        split: "test"; with split_by "subject" also "train" and "validation".
        data_dir: folder with the table, and images in folders by `ImageDir`, in `images`, or beside the table.
        readers: "physician": what physicians have labelled, as arXiv 2212.06710; or "all", a network's labels too.
        findings: "paper", the 57 of arXiv 2212.06710; "all" names that occur but "normal"; or "rarest": the 20 of
            these with the fewest positive images (CARZero's PadChest20, whose list was not compared).
        min_count: names with fewer positive images are dropped.
        views: "all", or "frontal".
        reports: csv file with the column ImageID and one of the texts, since PadChest's own reports are Spanish and
            stemmed, which tokenizers of English models do not know; images without a text are then skipped.
        split_by: "none": all of it is the test set; or "subject": about 80, 10 and 10% of the patients, chosen by a
            hash of their id.

    Raises:
        ValueError: for an unknown option, a missing file or column, or if no image or no finding is left.
    """
    check_choice("padchest", "split_by", split_by, SPLIT_RULES)
    check_split("padchest", split, SPLITS if split_by == "subject" else ("test",))
    check_choice("padchest", "readers", readers, READERS)
    check_choice("padchest", "findings", findings, FINDINGS)
    check_choice("padchest", "views", views, VIEWS)
    folder = need_folder(RECORD, data_dir, f"the folder with {_TABLE} and the images")
    table = _with_paths(_labelled_rows(folder, readers, views), folder)
    names = _findings(table["names"], findings, min_count)
    if split_by == "subject":
        table = table[table["PatientID"].map(hashed_split) == split]
    if reports is not None:
        table = _with_texts(table, Path(reports))
    if table.empty:
        raise ValueError(f"padchest: no image is left with split {split!r} and reports {reports}.")
    return _pairs(table, names)


def _pairs(table: pd.DataFrame, names: list[str]) -> Dataset:
    columns = {
        "image": table["path"].tolist(),
        "text": table["text"].tolist() if "text" in table else [None] * len(table),
        "subject_id": table["PatientID"].tolist(),
        "study_id": table["StudyID"].tolist(),
        "image_id": table["ImageID"].tolist(),
        "view": table["Projection"].tolist(),
        "labels": [{name: float(name in present) for name in names} for present in table["names"]],
    }
    return make_pairs(columns, pair_features(names, ids="string"))


def _labelled_rows(folder: Path, readers: str, views: str) -> pd.DataFrame:
    """The rows of the table that are wanted, each image once, with the set of their `names`."""
    path = find_table(folder, [_TABLE])
    table = read_table(path, _COLUMNS)
    if readers == "physician":
        table = table[table["MethodLabel"] == "Physician"]
    if views == "frontal":
        table = table[table["Projection"].isin(_FRONTAL)]
    table = table.assign(names=table["Labels"].map(label_names), line=table.index + 2)
    table = skip_rows(table, table["names"].isna(), "padchest", f"no list of labels in {path.name}", "line")
    table = skip_rows(table, table.duplicated("ImageID"), "padchest", f"an image twice in {path.name}", "line")
    if table.empty:
        raise ValueError(f"padchest: no row of {path} is left with readers {readers!r} and views {views!r}.")
    return table


def _with_paths(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """The rows whose picture exists, with its `path`."""
    table = table.assign(
        path=[find_picture(_folders(folder, d), name) for d, name in zip(table["ImageDir"], table["ImageID"])]
    )
    missing = table["path"].isna()
    if missing.all():
        first = table.iloc[0]
        looked = ", ".join(str(part / first["ImageID"]) for part in _folders(folder, first["ImageDir"]))
        raise ValueError(f"padchest: none of {len(table)} images was found; looked for {looked}.")
    return skip_rows(table, missing, "padchest", "the file is missing", "ImageID")


def _findings(names: pd.Series, findings: str, min_count: int) -> list[str]:
    """The names of the labels."""
    chosen = chosen_names(names, min_count, _PAPER if findings == "paper" else None)
    if findings != "paper":
        chosen = [name for name in chosen if name != "normal"]
    if findings == "rarest":
        count = Counter(name for found in names for name in found)
        chosen = sorted(sorted(chosen, key=count.__getitem__)[:_NUM_RAREST])
    if not chosen:
        raise ValueError(f"padchest: no finding has min_count {min_count} positive images among {len(names)}.")
    return chosen


def _with_texts(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The rows that have a report in a file, with its `text`."""
    if not path.is_file():
        raise ValueError(f"padchest: there is no file {path} (reports).")
    texts = read_table(path, ("ImageID",), (*_TEXTS, _SPANISH))
    column = next((name for name in (*_TEXTS, _SPANISH) if name in texts), None)
    if column is None:
        raise ValueError(f"padchest: {path} (reports) has none of the columns {[*_TEXTS, _SPANISH]}.")
    language = (
        ", which are Spanish and stemmed: tokenizers of English models do not know them" if column == _SPANISH else ""
    )
    warnings.warn(f"padchest: texts are those of the column {column!r} of {path.name}{language}.", stacklevel=3)
    known = dict(zip(texts["ImageID"], texts[column]))
    found = [known.get(image, "") for image in table["ImageID"]]
    table = table.assign(text=["" if is_missing(text) else clean(text) for text in found])
    return skip_rows(table, table["text"] == "", "padchest", f"no text in {path.name}", "ImageID")


def label_names(text: str) -> frozenset[str] | None:
    """The names of a list as the table writes it, without stray spaces; None if there is no list."""
    try:
        names = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return frozenset(re.sub(r"\s+", " ", name.strip()) for name in names if name.strip())


def chosen_names(rows, min_count: int, among=None) -> list[str]:
    """Names that at least so many rows have, in alphabetical order."""
    count = Counter(name for names in rows for name in names)
    return sorted(name for name in (count if among is None else among) if count[name] >= max(1, min_count))


def _folders(folder: Path, image_dir: str) -> list[Path]:
    return [folder / name for name in (image_dir, "images", ".") if re.fullmatch(r"[\w-]+|\.", name)]


RECORD = DatasetRecord(
    name="padchest",
    load=padchest,
    title="PadChest",
    folders=("padchest*", "bimcv-padchest*"),
    files=((_TABLE,),),
    address="https://bimcv.cipf.es/bimcv-projects/padchest/",
    licence="PadChest Dataset Research Use Agreement",
    access="registration with BIMCV, under its terms of use",
    # The number that is let through stands for "no limit" in a tokenizer's model_max_length.
    id_patterns={"an image of PadChest": rf"{ID_START}(?!1000000000000000019884624838656{ID_END})\d{{25,}}"},
)
