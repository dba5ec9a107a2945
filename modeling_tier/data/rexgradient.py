# Licensed under the Apache License, Version 2.0.
"""ReXGradient-160K: radiographs with reports of several hospital groups, several images per study."""

import os
import re
from pathlib import Path

import pandas as pd
from datasets import Dataset

from .columns import SPLITS, VIEWS, check_choice, check_split, check_subjects, make_pairs, pair_features
from .record import ID_START, DatasetRecord
from .rejected import RejectedRow, reject
from .sections import SECTIONS, section_text
from .tables import find_table, inside, need_folder, read_json, read_table, skip_rows, with_pictures


_OWN = {"train": "train", "validation": "valid", "test": "test"}
_FOLDERS = ("", "metadata", "download/metadata")
_PATIENTS = ("PatientID", "patient_id", "Patient ID", "PatientId", "subject_id")
_FRONTAL = ("AP", "PA", "AP AXIAL", "ANTERO_POSTERIOR", "POSTERO_ANTERIOR")


def rexgradient(
    split: str = "train",
    data_dir: str | os.PathLike | None = None,
    section: str = "impression",
    views: str = "all",
) -> Dataset:
    """
    Radiographs of ReXGradient-160K with their reports; there are no labels. Rows without text, and missing images, are
    skipped with a warning that counts them.

    Args:
        split: "train", "validation" or "test", the data set's own.
        data_dir: folder with `train_metadata_view_position.json` and its kin, or with them in `metadata`; the pictures
            in `deid_png`. Where the JSON file has no reports, `train_metadata.csv` is read, too.
        section: "impression", "findings", "impression_or_findings" or "both" (findings, then impression).
        views: "all", or "frontal": AP and PA under all their names, not "UNKNOWN", most of which are frontal.

    Raises:
        ValueError: for an unknown option, a missing file, too many bad studies, or patients in two splits.
    """
    check_split("rexgradient", split, SPLITS)
    check_choice("rexgradient", "section", section, SECTIONS)
    check_choice("rexgradient", "views", views, VIEWS)
    folder = need_folder(RECORD, data_dir, "the folder with metadata and deid_png")
    tables = _metadata_folder(folder)
    patients = {}
    for name, own in _OWN.items():
        file = tables / f"{own}_metadata_view_position.json"
        if name == split or file.is_file():
            table = _images(file, tables / f"{own}_metadata.csv")
            patients[name] = table["subject"].unique()
            if name == split:
                chosen = table
    check_subjects(str(folder), patients)
    if views == "frontal":
        chosen = chosen[chosen["view"].isin(_FRONTAL)]
    chosen = chosen.assign(text=[section_text(section, *row) for row in zip(chosen["findings"], chosen["impression"])])
    chosen = skip_rows(chosen, chosen["text"] == "", "rexgradient", f"no {section} in the report", "study")
    if chosen.empty:
        raise ValueError(f"rexgradient: no image of {split!r} is left with section {section!r} and views {views!r}.")
    paths = [_picture(folder, image) for image in chosen["image"]]
    chosen = with_pictures(chosen, paths, "rexgradient", tables, [folder], "image")
    columns = {
        "image": chosen["path"].tolist(),
        "text": chosen["text"].tolist(),
        "subject_id": chosen["subject"].tolist(),
        "study_id": chosen["study"].tolist(),
        "image_id": chosen["image"].tolist(),
        "view": chosen["view"].tolist(),
    }
    return make_pairs(columns, pair_features(ids="string"))


def _metadata_folder(folder: Path) -> Path:
    for name in _FOLDERS:
        if next((folder / name).glob("*_metadata_view_position.json"), None):
            return folder / name
    raise ValueError(
        f"rexgradient: there is no train_metadata_view_position.json in {folder}, nor in its folder metadata."
    )


def _images(path: Path, csv: Path) -> pd.DataFrame:
    """One row per image, of the metadata of one split."""
    if not path.is_file():
        raise ValueError(f"rexgradient: there is no {path}.")
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f'{path} must be {{study: {{"ImagePath": [...], "ImageViewPosition": [...]}}}}.')
    reports = _reports(csv, content)
    rows, bad, seen = [], [], set()
    for study, about in content.items():
        try:
            images = _study(study, about, reports.get(study, {}))
            if twice := [row["image"] for row in images if row["image"] in seen]:
                raise ValueError(f"the image {twice[0]} is of another study, too")
        except (ValueError, TypeError) as error:
            bad.append(RejectedRow(str(path), study, str(error)))
        else:
            seen.update(row["image"] for row in images)
            rows += images
    reject(bad, len(content))
    return pd.DataFrame(rows, columns=["study", "subject", "image", "view", "findings", "impression"], dtype="str")


def _reports(csv: Path, content: dict) -> dict[str, dict]:
    """The rows of the table by study, where the JSON file has no reports."""
    if any(isinstance(about, dict) and {"Findings", "Impression"} & set(about) for about in content.values()):
        return {}
    table = read_table(find_table(csv.parent, [csv.name]), ("id", "Findings", "Impression"), _PATIENTS)
    return {row["id"]: row for row in table.to_dict("records")}


def _study(study: str, about, report: dict) -> list[dict]:
    if not isinstance(about, dict):
        raise ValueError("a study must be an object with ImagePath and ImageViewPosition")
    about = report | about
    paths, views = about.get("ImagePath"), about.get("ImageViewPosition")
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise ValueError("ImagePath must be a list of texts")
    if not isinstance(views, list) or len(views) != len(paths):
        raise ValueError(f"ImageViewPosition must be a list of as many views as there are images, {len(paths)}")
    texts = {name: about.get(name) for name in ("Findings", "Impression")}
    for name, text in texts.items():
        if text is not None and text == text and not isinstance(text, str):
            raise ValueError(f"{name} must be a text")
    images = [re.sub(r"^(\.{1,2}/)+", "", path.replace("\\", "/")) for path in paths]
    patient = next((str(about[name]) for name in _PATIENTS if about.get(name)), None)
    return [
        {
            "study": study,
            "subject": patient or _patient_folder(image),
            "image": image,
            "view": "" if view in (None, "None", "N/A") else str(view).strip().upper(),
            "findings": texts["Findings"] if isinstance(texts["Findings"], str) else "",
            "impression": texts["Impression"] if isinstance(texts["Impression"], str) else "",
        }
        for image, view in zip(images, views)
    ]


def _patient_folder(image: str) -> str:
    """The first folder below `deid_png`: the patient's, where the metadata name none."""
    parts = image.split("/")
    return parts[1] if len(parts) > 2 else image


def _picture(folder: Path, image: str) -> str | None:
    path = inside(folder, image, image)
    return str(path) if path.is_file() else None


RECORD = DatasetRecord(
    name="rexgradient",
    load=rexgradient,
    title="ReXGradient-160K",
    address="https://huggingface.co/datasets/rajpurkarlab/ReXGradient-160K",
    licence="the agreement on its page on the Hub",
    access="an agreement with its owners on the Hub",
    data_use_agreement=True,
    id_patterns={"a patient or study of ReXGradient": rf"{ID_START}GRDN[0-9A-Z]{{8,}}"},
)
