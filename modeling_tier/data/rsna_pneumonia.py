# Licensed under the Apache License, Version 2.0.
"""RSNA Pneumonia Detection Challenge (2018): DICOM radiographs with boxes of lung opacities that suggest pneumonia."""

import os
from collections import defaultdict
from pathlib import Path

import pandas as pd
from datasets import Dataset

from .columns import check_split, make_pairs, pair_features
from .pictures import box_regions
from .record import ID_END, ID_START, DatasetRecord
from .tables import find_picture, find_table, good_rows, need_folder, read_table, to_numbers, with_pictures


LABELS = ("Pneumonia",)

_TABLES = ["stage_2_train_labels.csv", "train_labels.csv"]
_FOLDERS = ("stage_2_train_images", "train_dicoms", "train_images", "")
_ENDS = (".dcm", ".png", ".jpg")
_BOX = ("x", "y", "width", "height")
_SIDE = 1024  # pixels of the published pictures, in which boxes are given


def rsna_pneumonia(
    split: str = "test", data_dir: str | os.PathLike | None = None, with_boxes: bool = False
) -> Dataset:
    """
    The radiographs of RSNA's challenge whose labels are published, 1 where a reader drew a box, with `regions`; there
    are no texts. Published work divides them in different ways: all of them are the test set here, and an evaluation
    takes a list of images. Missing images are skipped with a warning that counts them.

    Args:
        split: "test".
        data_dir: folder with `stage_2_train_labels.csv`, and the images in `stage_2_train_images` or beside it, as
            DICOM, or as PNG or JPEG copies of any size.
        with_boxes: whether to take the images with boxes alone.

    Raises:
        ValueError: for a missing file or column, too many bad rows (file, line), or if no image is found.
    """
    check_split("rsna_pneumonia", split, ("test",))
    folder = need_folder(RECORD, data_dir, f"the folder with {_TABLES[0]} and stage_2_train_images")
    path = find_table(folder, _TABLES)
    table = _rows(path)
    boxes = _boxes(table[table["Target"] == "1"], path)
    images = table.drop_duplicates("patientId")
    if with_boxes:
        images = images[images["patientId"].isin(boxes)]
    folders = [folder / name for name in _FOLDERS]
    paths = [_picture(folders, name) for name in images["patientId"]]
    images = with_pictures(images, paths, "rsna_pneumonia", path, folders, "patientId")
    names = images["patientId"].tolist()
    columns = {
        "image": images["path"].tolist(),
        "subject_id": names,
        "study_id": names,
        "image_id": names,
        "labels": [{"Pneumonia": float(target)} for target in images["Target"]],
        "regions": [_regions(path, boxes.get(name, [])) for name, path in zip(names, images["path"])],
    }
    return make_pairs(columns, pair_features(LABELS, ids="string", regions=True))


def _rows(path: Path) -> pd.DataFrame:
    """One row per box, or per image without a box."""
    table = read_table(path, ("patientId", *_BOX, "Target"))
    table["Target"] = table["Target"].str.replace(r"\.0+$", "", regex=True)
    bad = ~table["Target"].isin(("0", "1")) | (table["patientId"] == "")
    table = good_rows(table, bad, path, lambda i: f"Target must be 0 or 1; got {table.loc[i, 'Target']!r}.")
    both = table.groupby("patientId")["Target"].transform("nunique") > 1
    return good_rows(table, both, path, lambda i: f"{table.loc[i, 'patientId']} has rows of both Targets.")


def _boxes(table: pd.DataFrame, path: Path) -> dict[str, list[list[float]]]:
    """Corners by image; a bad box is skipped, its image stays positive."""
    boxes = defaultdict(list)
    numbers = to_numbers(table, _BOX, path)
    x, y, width, height = (numbers[name] for name in _BOX)
    outside = (width <= 0) | (height <= 0) | (x <= -width) | (x >= _SIDE) | (y <= -height) | (y >= _SIDE)
    reason = f"the box lies outside of the {_SIDE} x {_SIDE} pixels, or is empty."
    numbers = good_rows(numbers, outside, path, lambda i: reason)
    for name, (x, y, width, height) in zip(table.loc[numbers.index, "patientId"], numbers.to_numpy().tolist()):
        boxes[name].append([x, y, x + width, y + height])
    return boxes


def _picture(folders: list[Path], name: str) -> str | None:
    return next(filter(None, (find_picture(folders, f"{name}{end}") for end in _ENDS)), None)


def _regions(path: str, boxes: list[list[float]]) -> list[dict]:
    cell = {"bytes": None, "path": path}
    return box_regions(cell, [("Pneumonia", "pneumonia", box, (_SIDE, _SIDE)) for box in boxes])


RECORD = DatasetRecord(
    name="rsna_pneumonia",
    load=rsna_pneumonia,
    title="RSNA Pneumonia Detection Challenge",
    address="https://www.rsna.org/rsnai/ai-image-challenge/rsna-pneumonia-detection-challenge-2018",
    licence="RSNA's terms of use of the challenge's data: no passing on",
    access="registration with Kaggle, under the challenge's terms",
    id_patterns={
        "an image of RSNA's challenge": rf"{ID_START}[0-9a-f]{{8}}(-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}{ID_END}"
    },
    folders=("rsna*",),
    files=(tuple(_TABLES),),
    findings=LABELS,
)
