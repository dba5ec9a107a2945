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
from .mimic_cxr import DISTINCTIVE_IDS, ID_PATTERNS, official_splits
from .mimic_cxr import RECORD as MIMIC_CXR
from .pictures import box_regions, picture_size, undecoded
from .prepared import is_prepared, load_prepared, prepared_splits
from .record import DatasetRecord
from .rejected import RejectedRow, reject
from .tables import find_table, good_rows, inside, need_folder, read_json, read_table, skip_rows, to_numbers


MIMIC_SPLITS = ("all", *SPLITS)

_NAMES = [f"MS_CXR_Local_Alignment_v{version}.{kind}" for kind in ("csv", "json") for version in ("1.1.0", "1.0.0")]
_NAMES = [*_NAMES, "ms_cxr.csv"]
_BOX_FOLDERS = ("ms-cxr*", "physionet.org/files/ms-cxr", ".")
_TEXTS = ("category_name", "label_text", "dicom_id", "path")
_NUMBERS = ("x", "y", "w", "h", "image_width", "image_height")
_OUR_SPLITS = {"validate": "validation", "valid": "validation", "val": "validation"}
_IDS = re.compile(r"p(\d+)/s(\d+)/[^/]+$")


def ms_cxr(
    split: str = "test",
    data_dir: str | os.PathLike | None = None,
    boxes: str | os.PathLike | None = None,
    mimic_split: str = "all",
    own_split: str = "all",
    single_box: bool = False,
) -> Dataset:
    """
    Images of MIMIC-CXR with `regions`: a phrase, its finding, and a box; several boxes may belong to one phrase. The
    labels of the findings are 1 where a phrase is about them and null elsewhere; there are no texts. Missing images
    are skipped with a warning that counts them.

    Patients of MIMIC-CXR's training split are among them (a warning counts their images). A model that was trained on
    them must not be judged by them: train it with `exclude_subjects` of [`mimic_cxr`], or choose a `mimic_split` that
    it has not seen.

    Args:
        split: "test": all of MS-CXR is for testing.
        data_dir: folder of MIMIC-CXR-JPG, or one that `prepare` has written; boxes are scaled to the size of its
            pictures.
        boxes: the csv or json file of MS-CXR; by default `MS_CXR_Local_Alignment_v1.1.0.csv` (or .json, or v1.0.0, or
            `ms_cxr.csv`) in `data_dir`.
        mimic_split: "all", or the images of that part of MIMIC-CXR alone: of the official split, or of the prepared
            folder's.
        own_split: "all", or the part of version 1.1.0's own column `split` alone.
        single_box: whether to take the phrases with one box alone. With own_split "test" these are the 167 images on
            which RadZero and MedRPG report the pointing game.

    Raises:
        ValueError: for an unknown option, a missing file or column, too many bad boxes or paths, or no image.
    """
    check_split("ms_cxr", split, ("test",))
    check_choice("ms_cxr", "mimic_split", mimic_split, MIMIC_SPLITS)
    check_choice("ms_cxr", "own_split", own_split, MIMIC_SPLITS)
    folder = need_folder(RECORD, data_dir, "the folder of MIMIC-CXR-JPG, or one that prepare has written")
    if boxes and not Path(boxes).is_file():
        raise ValueError(f"There is no file {boxes} (boxes of ms_cxr).")
    path = Path(boxes) if boxes else find_table(folder, _NAMES)
    table, numbers = _boxes(path)
    findings = sorted(set(table["category_name"]))
    table = _selected(table, path, own_split, single_box)
    marked = _by_image(table, numbers.loc[table.index])
    read = _prepared if is_prepared(folder) else _raw
    images = read(folder, table.drop_duplicates("dicom_id"), mimic_split, path)
    columns = {name: images[name][:] for name in ("image", "view", "image_id")}
    columns |= {name: [str(number) for number in images[name]] for name in ("subject_id", "study_id")}
    columns["labels"] = [_labels(findings, marked[name]) for name in columns["image_id"]]
    columns["regions"] = [box_regions(*pair) for pair in zip(columns["image"], map(marked.get, columns["image_id"]))]
    return make_pairs(columns, pair_features(findings, ids="string", regions=True))


def _by_image(table: pd.DataFrame, numbers: pd.DataFrame) -> dict[str, list[tuple]]:
    """Finding, phrase, corners and size of the picture that they are in, of each box."""
    marked = defaultdict(list)
    for row, (x, y, width, height, *size) in zip(table.itertuples(), numbers.to_numpy().tolist()):
        marked[row.dicom_id].append((row.category_name, row.label_text, (x, y, x + width, y + height), size))
    return marked


def _boxes(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Texts and numbers of each box; bad ones are skipped."""
    read = _read_json if path.suffix == ".json" else read_table
    table = read(path, (*_TEXTS, *_NUMBERS), ("split",))
    numbers = to_numbers(table, _NUMBERS, path)
    numbers.attrs = table.attrs
    bad = (numbers[["w", "h", "image_width", "image_height"]] <= 0).any(axis=1)
    for start, length, side in (("x", "w", "image_width"), ("y", "h", "image_height")):
        bad |= (numbers[start] >= numbers[side]) | (numbers[start] + numbers[length] <= 0)
    reason = "the box lies outside of the image, or one of them is empty."
    numbers = good_rows(numbers, bad, path, lambda i: reason)
    return table.loc[numbers.index], numbers


def _selected(table: pd.DataFrame, path: Path, own_split: str, single_box: bool) -> pd.DataFrame:
    """The rows of a part of its own split, and of phrases with one box."""
    if own_split != "all":
        if "split" not in table:
            raise ValueError(f"{path} has no column 'split', which version 1.1.0 has, for own_split {own_split!r}.")
        splits = table["split"].str.lower().replace(_OUR_SPLITS)
        unknown = ~splits.isin(SPLITS)
        known = f"split must be one of {list(SPLITS)}"
        table = good_rows(table, unknown, path, lambda i: f"{known}; got {table.loc[i, 'split']!r}.")
        table = table[splits.loc[table.index] == own_split]
    if single_box:
        phrase = table.groupby(["dicom_id", "category_name", "label_text"])["path"]
        table = table[phrase.transform("size") == 1]
    if table.empty:
        raise ValueError(f"ms_cxr: no box of {path} is left with own_split {own_split!r} and single_box {single_box}.")
    return table


def _read_json(path: Path, columns: tuple[str, ...], optional: tuple[str, ...]) -> pd.DataFrame:
    """The same columns from MS-CXR's json file, which has the form of COCO's: images, categories, annotations."""
    try:
        content = read_json(path)
        images = {image["id"]: image for image in content["images"]}
        categories = {category["id"]: category["name"] for category in content["categories"]}
        annotations = content["annotations"]
        if not isinstance(annotations, list):
            raise TypeError("annotations must be a list")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is not the json file of MS-CXR, with 'images', 'categories' and 'annotations' ({error!r})."
        ) from error
    rows, bad = {}, []
    for i, annotation in enumerate(annotations):
        try:
            image = images[annotation["image_id"]]
            size = annotation if "width" in annotation else image
            path_of_image = image.get("path") or image["file_name"]
            values = (
                categories[annotation["category_id"]],
                annotation["label_text"],
                Path(image.get("file_name") or path_of_image).stem,
                path_of_image,
                *annotation["bbox"],
                size["width"],
                size["height"],
            )
            extra = {name: str(annotation[name]) for name in optional if name in annotation}
            rows[i] = dict(zip(columns, map(str, values), strict=True)) | extra
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            bad.append(RejectedRow(str(path), f"annotation {i + 1}", f"not in the form of MS-CXR ({error!r})"))
    reject(bad, len(annotations))
    names = [*columns, *(name for name in optional if any(name in row for row in rows.values()))]
    table = pd.DataFrame([[row.get(name, "") for name in names] for row in rows.values()], columns=names, dtype="str")
    table.index = pd.Index(rows, dtype="int64") - 1
    table.attrs["row"] = "annotation"
    return table


def _raw(folder: Path, table: pd.DataFrame, mimic_split: str, source: Path) -> dict[str, list]:
    splits = official_splits(folder)
    part = table["dicom_id"].map(splits)
    if mimic_split != "all":
        table, part = table[part == mimic_split], part[part == mimic_split]
    _warn_of_training(int((part == "train").sum()))
    reasons = {i: _bad_path(folder, row.path, row.dicom_id) for i, row in zip(table.index, table.itertuples())}
    table = good_rows(table, table.index.map(lambda i: bool(reasons[i])), source, reasons.get)
    rows, readable = [], []
    for row in table.itertuples():
        ids = _IDS.search(row.path.replace("\\", "/"))
        path = str(inside(folder, row.path, str(source)))
        cell = {"bytes": None, "path": path}
        readable.append(picture_size(cell) is not None)
        ids = {"subject_id": ids[1], "study_id": ids[2], "image_id": row.dicom_id}
        rows.append({**ids, "image": cell, "path": path, "view": ""})
    if not any(readable):
        where = f"; looked for {rows[0]['path']}" if rows else f" with mimic_split {mimic_split!r}"
        raise ValueError(f"ms_cxr: none of {len(rows)} images of {source} was found and can be read{where}.")
    reason = "the file is missing or no picture"
    return skip_rows(pd.DataFrame(rows), ~pd.Series(readable), "ms_cxr", reason, "path").to_dict("list")


def _bad_path(folder: Path, path: str, dicom_id: str) -> str:
    """Why a path cannot be that of an image of MIMIC-CXR; "" if it can."""
    plain = path.replace("\\", "/")
    if not _IDS.search(plain):
        return f"path must be like files/p10/p10000032/s50414267/{dicom_id}.jpg; got {path!r}."
    if Path(plain).stem != dicom_id:
        return f"the path {path!r} is not of the image {dicom_id}."
    try:
        inside(folder, path, "")
    except ValueError as error:
        return str(error).removeprefix(": ")
    return ""


def _prepared(folder: Path, table: pd.DataFrame, mimic_split: str, source: Path) -> dict[str, list]:
    wanted = set(table["dicom_id"])
    columns, splits = defaultdict(list), {}
    for name in prepared_splits(folder):
        pairs = undecoded(load_prepared(folder, name))
        rows = [i for i, image_id in enumerate(pairs["image_id"][:]) if image_id in wanted]
        chosen = pairs.select(rows)[:]
        splits |= dict.fromkeys(chosen["image_id"], name)
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
    skip_rows(table, ~table["dicom_id"].isin(splits), "ms_cxr", f"not in the prepared folder {folder}", "dicom_id")
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


RECORD = DatasetRecord(
    name="ms_cxr",
    load=ms_cxr,
    title="MS-CXR",
    address="https://physionet.org/content/ms-cxr/",
    licence="PhysioNet Credentialed Health Data License 1.5.0",
    access="credentialed access at PhysioNet, under a data use agreement: neither phrases nor boxes may be passed on",
    data_use_agreement=True,
    id_patterns=ID_PATTERNS,
    patients="mimic_cxr",
    folders=MIMIC_CXR.folders,
    files=MIMIC_CXR.files,
    companions={"boxes": tuple(f"{part}/{name}" for part in _BOX_FOLDERS for name in _NAMES)},
    distinctive_ids=DISTINCTIVE_IDS,
    findings=(
        *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Lung Opacity", "Pleural Effusion", "Pneumonia"),
        "Pneumothorax",
    ),
)
