# Licensed under the Apache License, Version 2.0.
"""SIIM-ACR Pneumothorax Segmentation (2019): DICOM radiographs with masks of the pneumothorax."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset

from .columns import check_split, make_pairs, pair_features
from .masks import mask_box, mask_cell, relative_runs
from .pictures import picture_size, scaled_box
from .record import ID_END, ID_START, DatasetRecord
from .rejected import RejectedRow, reject
from .tables import find_table, need_folder, read_table, with_pictures


LABELS = ("Pneumothorax",)

_TABLES = ["train-rle.csv", "stage_2_train.csv", "train-rle-sample.csv"]
_FOLDERS = ("dicom-images-train", "dicom-images-test", "train", "images", "png", "")
_ENDS = (".dcm", ".png", ".jpg")
_SIDE = 1024  # pixels of the published pictures, in which masks are given
_NONE = "-1"


def siim_acr(split: str = "test", data_dir: str | os.PathLike | None = None, with_masks: bool = False) -> Dataset:
    """
    The radiographs of the challenge whose masks are published, with `regions` that have a mask and the box around it;
    there are no texts. Several rows of the table may be of one image: each is a region of its own. All images are the
    test set here. Missing images are skipped with a warning that counts them.

    Args:
        split: "test".
        data_dir: folder with `train-rle.csv` (or `stage_2_train.csv`, read by the same rules), and the images in
            `dicom-images-train`, at any depth, as DICOM, or as PNG or JPEG copies of any size.
        with_masks: whether to take the images with a pneumothorax alone.

    Raises:
        ValueError: for a missing file or column, too many bad rows (file, line), or if no image is found.
    """
    check_split("siim_acr", split, ("test",))
    folder = need_folder(RECORD, data_dir, f"the folder with {_TABLES[0]} and dicom-images-train")
    path = find_table(folder, _TABLES)
    table = read_table(path, ("ImageId", "EncodedPixels"))
    images = table.drop_duplicates("ImageId")
    masks = table[~table["EncodedPixels"].isin(("", _NONE))]
    if with_masks:
        images = images[images["ImageId"].isin(masks["ImageId"])]
    files = _pictures(folder)
    folders = [folder / name for name in _FOLDERS]
    images = with_pictures(images, images["ImageId"].map(files), "siim_acr", path, folders, "ImageId")
    paths = dict(zip(images["ImageId"], images["path"]))
    regions = _regions(masks[masks["ImageId"].isin(paths)], paths, path)
    positive = set(masks["ImageId"])
    names = list(paths)
    columns = {
        "image": list(paths.values()),
        "subject_id": names,
        "study_id": names,
        "image_id": names,
        "labels": [{"Pneumothorax": float(name in positive)} for name in names],
        "regions": [regions.get(name, []) for name in names],
    }
    return make_pairs(columns, pair_features(LABELS, ids="string", regions=True, mask=True))


def _pictures(folder: Path) -> dict[str, str]:
    """Paths by name without the end; below the folders of DICOM files each is in two folders of its own."""
    paths: dict[str, str] = {}
    for name in _FOLDERS:
        for file in sorted((folder / name).glob("**/*" if name else "*")):
            if file.suffix.lower() in _ENDS:
                paths.setdefault(file.stem, str(file))
    return paths


def _regions(masks: pd.DataFrame, paths: dict[str, str], source: Path) -> dict[str, list[dict]]:
    """By image; rows whose run lengths are damaged, or empty, are bad."""
    regions: dict[str, list[dict]] = {}
    bad = []
    for i, name, text in masks[["ImageId", "EncodedPixels"]].itertuples():
        try:
            mask = relative_runs(text, _SIDE)
            if not mask.any():
                raise ValueError("the mask is empty")
        except ValueError as error:
            bad.append(RejectedRow(str(source), f"line {i + 2}", str(error)))
        else:
            regions.setdefault(name, []).append(_region(mask, paths[name]))
    reject(bad, len(masks))
    return regions


def _region(mask: np.ndarray, path: str) -> dict:
    """In pixels of the stored picture."""
    size = picture_size({"bytes": None, "path": path}) or (_SIDE, _SIDE)
    box = scaled_box(mask_box(mask), (_SIDE, _SIDE), size)
    return {"finding": "Pneumothorax", "phrase": "pneumothorax", "box": box, "mask": mask_cell(mask, size)}


RECORD = DatasetRecord(
    name="siim_acr",
    load=siim_acr,
    title="SIIM-ACR Pneumothorax Segmentation",
    address="https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation",
    licence="terms of the challenge: no passing on",
    access="registration with Kaggle, under the challenge's terms",
    id_patterns={"an image of SIIM-ACR": rf"{ID_START}1\.2\.276\.0\.7230010\.3\.1\.\d[\d.]{{10,}}{ID_END}"},
    folders=("siim*",),
    files=(tuple(_TABLES),),
    findings=LABELS,
)
