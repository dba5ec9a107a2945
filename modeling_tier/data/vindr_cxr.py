# Licensed under the Apache License, Version 2.0.
"""VinDr-CXR: 3,000 test radiographs with the consensus of five radiologists: 28 labels, and boxes of 22 of them."""

import os
from collections import defaultdict
from pathlib import Path

import pandas as pd
from datasets import Dataset

from .columns import check_split, make_pairs, pair_features
from .pictures import box_regions, picture_size
from .record import ID_END, ID_START, DatasetRecord
from .rejected import RejectedRow, reject
from .tables import (
    find_picture,
    find_table,
    good_rows,
    label_dicts,
    listed,
    need_folder,
    read_table,
    skip_rows,
    to_labels,
    to_numbers,
    with_pictures,
)


LABELS = (
    *("Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture", "Consolidation"),
    *("Edema", "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity", "Lung cavity", "Lung cyst"),
    *("Mediastinal shift", "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumothorax"),
    *("Pulmonary fibrosis", "Rib fracture", "Other lesion", "COPD", "Lung tumor", "Pneumonia", "Tuberculosis"),
    *("Other disease", "No finding"),
)

_ALIASES = {"Other diseases": "Other disease"}  # how the training table calls it
_FOLDERS = ("test", "test_dicom", "test_jpg", "test_png", "")
_ENDS = (".dicom", ".dcm", ".png", ".jpg")
_COPIES = (".png", ".jpg")
_BOX = ("x_min", "y_min", "x_max", "y_max")


def vindr_cxr(split: str = "test", data_dir: str | os.PathLike | None = None, with_boxes: bool = False) -> Dataset:
    """
    Radiographs of VinDr-CXR's test set with its 28 labels, 1 or 0, and `regions`; there are no texts. Missing images
    are skipped with a warning that counts them.

    Args:
        split: "test". In the training set each image has the labels of three single readers, and no consensus.
        data_dir: folder with `annotations/image_labels_test.csv` and `annotations/annotations_test.csv` (or both in
            the folder itself), and the images in `test`, as DICOM, or as PNG or JPEG copies of their size: boxes are
            in the original's pixels.
        with_boxes: whether to take the images with boxes alone.

    Raises:
        ValueError: for a missing file or column, too many bad rows (file, line), or if no image is found.
    """
    check_split("vindr_cxr", split, ("test",))
    folder = need_folder(RECORD, data_dir, "the folder with annotations/ and test/")
    tables = folder / "annotations" if (folder / "annotations").is_dir() else folder
    path = find_table(tables, ["image_labels_test.csv"])
    labels = _labels(path)
    box_path = find_table(tables, ["annotations_test.csv"])
    boxes = _boxes(box_path)
    if with_boxes:
        labels = labels[labels["image_id"].isin(boxes)]
    folders = [folder / name for name in _FOLDERS]
    paths = [_picture(folders, name) for name in labels["image_id"]]
    labels = with_pictures(labels, paths, "vindr_cxr", path, folders, "image_id")
    names = labels["image_id"].tolist()
    columns = {
        "image": labels["path"].tolist(),
        "subject_id": names,  # one image per patient, as far as the data set says
        "study_id": names,
        "image_id": names,
        "labels": label_dicts(labels[list(LABELS)]),
        "regions": _regions(labels["path"].tolist(), [boxes.get(name, []) for name in names], box_path),
    }
    return make_pairs(columns, pair_features(LABELS, ids="string", regions=True))


def _labels(path: Path) -> pd.DataFrame:
    """One row per image: image_id and the labels."""
    table = read_table(path, ("image_id",), (*LABELS, *_ALIASES)).rename(columns=_ALIASES)
    missing = [name for name in LABELS if name not in table]
    if missing:
        raise ValueError(f"{path} has no column {missing[0]!r}; it has {listed(table.columns)}.")
    labels = to_labels(table, LABELS, path)
    labels["image_id"] = table.loc[labels.index, "image_id"]
    labels["line"] = labels.index + 2
    return skip_rows(labels, labels.duplicated("image_id"), "vindr_cxr", f"an image twice in {path.name}", "line")


def _boxes(path: Path) -> dict[str, list[tuple[int, str, list[float]]]]:
    """Line, finding and corners by image. A row of "No finding", and of a finding without a box, has blank numbers."""
    table = read_table(path, ("image_id", "class_name", *_BOX))
    table["class_name"] = table["class_name"].replace(_ALIASES)
    unknown = ~table["class_name"].isin(LABELS)
    known = f"known are {list(LABELS)}."
    table = good_rows(table, unknown, path, lambda i: f"unknown class_name {table.loc[i, 'class_name']!r}; {known}")
    table = table[(table[list(_BOX)] != "").any(axis=1)]
    numbers = to_numbers(table, _BOX, path)
    empty = (numbers["x_max"] <= numbers["x_min"]) | (numbers["y_max"] <= numbers["y_min"]) | (numbers["x_max"] <= 0)
    empty |= numbers["y_max"] <= 0
    numbers = good_rows(numbers, empty, path, lambda i: "the box is empty, or outside of the picture.")
    boxes = defaultdict(list)
    for i, name, finding in table.loc[numbers.index, ["image_id", "class_name"]].itertuples():
        boxes[name].append((i + 2, finding, numbers.loc[i].tolist()))
    return boxes


def _regions(paths: list[str], boxes: list, source: Path) -> list[list[dict]]:
    """Those of each picture; a box outside of its picture is a bad row of the table."""
    bad, regions = [], []
    for path, marked in zip(paths, boxes):
        cell = {"bytes": None, "path": path}
        size = picture_size(cell) if marked else None
        good = []
        for line, finding, box in marked:
            if size and (box[0] >= size[0] or box[1] >= size[1]):
                hint = ", perhaps a smaller copy" if path.endswith(_COPIES) else ""
                reason = f"the box lies outside of {path}, of {size[0]} x {size[1]} pixels{hint}."
                bad.append(RejectedRow(str(source), f"line {line}", reason))
            else:
                good.append((finding, _PHRASES.get(finding, finding.lower()), box, size or (1, 1)))
        regions.append(box_regions(cell, good))
    reject(bad, sum(map(len, boxes)))
    return regions


_PHRASES = {
    "Enlarged PA": "enlarged pulmonary artery",
    "ILD": "interstitial lung disease",
    "Nodule/Mass": "nodule or mass",
    "COPD": "chronic obstructive pulmonary disease",
}


def _picture(folders: list[Path], name: str) -> str | None:
    return next(filter(None, (find_picture(folders, f"{name}{end}") for end in _ENDS)), None)


RECORD = DatasetRecord(
    name="vindr_cxr",
    load=vindr_cxr,
    title="VinDr-CXR",
    address="https://physionet.org/content/vindr-cxr/1.0.0/",
    licence="PhysioNet Credentialed Health Data License 1.5.0",
    access="credentialed access at PhysioNet, under a data use agreement",
    data_use_agreement=True,
    id_patterns={"an image of VinDr-CXR": rf"{ID_START}[0-9a-f]{{32}}{ID_END}"},
    folders=("vindr*", "physionet.org/files/vindr-cxr"),
    files=(("annotations/image_labels_test.csv", "image_labels_test.csv"),),
    findings=LABELS,
)
