# Licensed under the Apache License, Version 2.0.
"""MS-CXR: phrases with the boxes that they describe, on images of MIMIC-CXR."""

import os
import re
import warnings
from collections import defaultdict
from pathlib import Path

import pandas as pd
from datasets import Dataset

from .columns import SPLITS, check_choice, check_split, make_pairs, pair_features
from .mimic_cxr import official_splits
from .pictures import picture_size, scaled_box, undecoded
from .prepared import is_prepared, load_prepared, prepared_splits
from .tables import file_line, find_table, inside, leave_out, need_folder, read_table, to_numbers


MIMIC_SPLITS = ("all", *SPLITS)

_NAMES = ["MS_CXR_Local_Alignment_v1.1.0.csv", "MS_CXR_Local_Alignment_v1.0.0.csv", "ms_cxr.csv"]
_NUMBERS = ("x", "y", "w", "h", "image_width", "image_height")
_IDS = re.compile(r"p(\d+)/s(\d+)/[^/]+$")


def ms_cxr(
    split: str = "test",
    data_dir: str | os.PathLike | None = None,
    boxes: str | os.PathLike | None = None,
    mimic_split: str = "all",
) -> Dataset:
    """
    Images of MIMIC-CXR with `regions`: a phrase, its finding, and a box; several boxes may belong to one phrase. The
    labels of the findings are 1 where a phrase is about them and null elsewhere; there are no texts. Images that are
    not there are left out with a warning that counts them.

    Patients of MIMIC-CXR's training split are among them (a warning counts their images). A model that was trained on
    them must not be judged by them: train it with `exclude_subjects` of [`mimic_cxr`], or choose a `mimic_split` that
    it has not seen.

    Args:
        split: "test": all of MS-CXR is for testing.
        data_dir: folder of MIMIC-CXR-JPG, or one that `prepare` has written; boxes are brought to the size that the
            pictures have there.
        boxes: the csv file of MS-CXR; by default `MS_CXR_Local_Alignment_v1.1.0.csv` (or v1.0.0, or `ms_cxr.csv`) in
            `data_dir`.
        mimic_split: "all", or the images of that part of MIMIC-CXR alone: of the official split, or of the prepared
            folder's.

    Raises:
        ValueError: for an unknown option, a missing file or column, a bad box or path (file, line), or if no image is
            there.
    """
    check_split("ms_cxr", split, ("test",))
    check_choice("ms_cxr", "mimic_split", mimic_split, MIMIC_SPLITS)
    folder = need_folder("ms_cxr", data_dir, "the folder of MIMIC-CXR-JPG, or one that prepare has written")
    if boxes and not Path(boxes).is_file():
        raise ValueError(f"There is no file {boxes} (boxes of ms_cxr).")
    path = Path(boxes) if boxes else find_table(folder, _NAMES)
    table = read_table(path, ("category_name", "label_text", "dicom_id", "path", *_NUMBERS))
    numbers = to_numbers(table, _NUMBERS, path)
    bad = (numbers[["w", "h", "image_width", "image_height"]] <= 0).any(axis=1)
    for start, length, whole in (("x", "w", "image_width"), ("y", "h", "image_height")):
        bad |= (numbers[start] >= numbers[whole]) | (numbers[start] + numbers[length] <= 0)
    if bad.any():
        _, line = file_line(table, bad)
        raise ValueError(f"{path}, line {line}: the box lies outside of the image, or one of them is empty.")
    marked = defaultdict(list)
    for row, (x, y, width, height, *size) in zip(table.itertuples(), numbers.to_numpy().tolist()):
        marked[row.dicom_id].append((row.category_name, row.label_text, (x, y, x + width, y + height), size))
    findings = sorted(set(table["category_name"]))

    read = _prepared if is_prepared(folder) else _raw
    images = read(folder, table.assign(line=table.index + 2).drop_duplicates("dicom_id"), mimic_split, path)
    columns = {name: images[name][:] for name in ("image", "view", "image_id")}
    columns |= {name: [str(number) for number in images[name]] for name in ("subject_id", "study_id")}
    columns["labels"] = [_labels(findings, marked[name]) for name in columns["image_id"]]
    columns["regions"] = [_regions(*pair) for pair in zip(columns["image"], map(marked.get, columns["image_id"]))]
    return make_pairs(columns, pair_features(findings, ids="string", regions=True))


def _raw(folder: Path, table: pd.DataFrame, mimic_split: str, source: Path) -> dict[str, list]:
    splits = official_splits(folder)
    part = table["dicom_id"].map(splits)
    if mimic_split != "all":
        table, part = table[part == mimic_split], part[part == mimic_split]
    _warn_of_training(int((part == "train").sum()))
    rows, found = [], []
    for row in table.itertuples():
        ids = _IDS.search(row.path.replace("\\", "/"))
        if not ids:
            raise ValueError(
                f"{source}, line {row.line}: path must be like files/p10/p10000032/s50414267/{row.dicom_id}.jpg; got "
                f"{row.path!r}."
            )
        if Path(row.path.replace("\\", "/")).stem != row.dicom_id:
            raise ValueError(f"{source}, line {row.line}: the path {row.path!r} is not of the image {row.dicom_id}.")
        path = str(inside(folder, row.path, f"{source}, line {row.line}"))
        cell = {"bytes": None, "path": path}
        found.append(picture_size(cell) is not None)
        ids = {"subject_id": ids[1], "study_id": ids[2], "image_id": row.dicom_id}
        rows.append({**ids, "image": cell, "path": path, "view": ""})
    if not any(found):
        where = f"; looked for {rows[0]['path']}" if rows else f" with mimic_split {mimic_split!r}"
        raise ValueError(f"ms_cxr: none of {len(rows)} images of {source} is there or can be read{where}.")
    there = leave_out(pd.DataFrame(rows), ~pd.Series(found), "ms_cxr", "the file is missing or no picture", "path")
    return there.to_dict("list")


def _prepared(folder: Path, table: pd.DataFrame, mimic_split: str, source: Path) -> dict[str, list]:
    wanted = set(table["dicom_id"])
    columns, where = defaultdict(list), {}
    for name in prepared_splits(folder):
        pairs = undecoded(load_prepared(folder, name))
        rows = [i for i, image_id in enumerate(pairs["image_id"][:]) if image_id in wanted]
        chosen = pairs.select(rows)[:]
        where |= dict.fromkeys(chosen["image_id"], name)
        if mimic_split in ("all", name):
            if name == "train":
                _warn_of_training(len(rows))
            for column in ("image", "subject_id", "study_id", "image_id", "view"):
                columns[column] += chosen[column]
    if not columns["image"]:
        raise ValueError(
            f"ms_cxr: none of {len(wanted)} images of {source} is in the prepared folder {folder} with mimic_split "
            f"{mimic_split!r}."
        )
    leave_out(table, ~table["dicom_id"].isin(where), "ms_cxr", f"not in the prepared folder {folder}", "dicom_id")
    return columns


def _warn_of_training(number: int) -> None:
    if number:
        warnings.warn(
            f"ms_cxr: {number} images are of MIMIC-CXR's training split. They say nothing about a model that was "
            "trained on it: train with exclude_subjects, or use another mimic_split.",
            stacklevel=3,
        )


def _labels(findings: list[str], boxes: list) -> dict:
    named = {finding for finding, *_ in boxes}
    return {finding: 1.0 if finding in named else None for finding in findings}


def _regions(cell: dict, boxes: list) -> list[dict]:
    """In pixels of the picture as it is stored."""
    size = picture_size(cell)
    return [
        {"finding": finding, "phrase": phrase, "box": scaled_box(box, whole, size)}
        for finding, phrase, box, whole in boxes
    ]
