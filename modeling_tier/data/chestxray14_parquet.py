# Licensed under the Apache License, Version 2.0.
"""
ChestX-ray14 as Parquet files with the pictures in them, on the Hub (timm/nih-chest-xray-14) or in a folder. Not all of
its columns are documented: known variants are accepted, and messages say what was found.
"""

import os
import warnings
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Image, concatenate_datasets

from .columns import check_subjects, pair_features
from .parquet import load_parquet, parquet_files
from .pictures import box_regions
from .rejected import RejectedRow, reject, short
from .tables import listed


LABELS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Effusion",
    "Emphysema",
    "Fibrosis",
    "Hernia",
    "Infiltration",
    "Mass",
    "No Finding",
    "Nodule",
    "Pleural_Thickening",
    "Pneumonia",
    "Pneumothorax",
)
SIDE = 1024  # pixels of the published pictures, in which boxes are given
BOX_NAMES = {"Infiltrate": "Infiltration"}
NUM_OFFICIAL = {"train": 86524, "test": 25596}  # images of the official lists

_NAMES = {
    "image": ("image", "img", "jpg", "png"),
    "image_id": ("image_id", "image_index", "Image Index", "file_name"),
    "patient_id": ("patient_id", "Patient ID", "subject_id"),
    "label_names": ("label_names", "Finding Labels", "finding_labels"),
    "labels": ("labels", "label"),
    "view": ("view_position", "View Position", "view"),
    "boxes": ("bboxes", "boxes", "bbox", "objects"),
}
_REQUIRED = ("image", "image_id", "patient_id")
_BOX_LABELS = ("label_name", "label", "finding", "finding_label", "category", "name", "class_name")
_BOX_CORNERS = ("bbox", "box", "coordinates", "xywh")
_BOX_NUMBERS = (("x", "y", "w", "h"), ("x", "y", "width", "height"))
_BY_SMALL_NAME = {name.lower().replace(" ", "_"): name for name in LABELS}


def check_box(box: list[float]) -> None:
    """Raise ValueError for a box (x, y, width, height) that is empty, or outside of the published picture."""
    x, y, width, height = box
    if not (0 < width < float("inf") and 0 < height < float("inf") and -width < x < SIDE and -height < y < SIDE):
        raise ValueError(f"the box lies outside of the {SIDE} x {SIDE} pixels, or is empty")


def regions(cell: dict, boxes: list[tuple[str, list[float]]]) -> list[dict]:
    """In pixels of a stored picture, which may be smaller than the published one; boxes have corners."""
    return box_regions(cell, [(name, name.replace("_", " "), box, (SIDE, SIDE)) for name, box in boxes])


def chestxray14_from_parquet(source: str, split: str, with_boxes: bool, max_images: int | None) -> Dataset:
    """
    The images of a split.

    Args:
        source: a folder with Parquet files, or the name of a data set on the Hub.
        split: "train" or "test".
        with_boxes: whether to take the images with boxes alone.
        max_images: the first so many are read; None: all.

    Raises:
        ValueError: for a missing column (with those that exist), too many bad rows, or if no image is left.
    """
    rows = load_parquet(source, split, max_images)
    columns = _columns(source, rows)
    _check_split(source, split, rows, columns, max_images)
    classes = _class_names(rows, columns)
    kept, bad, seen, kept_columns = [], [], set(), {name: [] for name in ("labels", "boxes")}
    wanted = [columns[name] for name in ("image_id", "label_names", "labels", "boxes") if name in columns]
    for i, row in enumerate(rows.select_columns(wanted)):
        name = _image_name(row[columns["image_id"]])
        try:
            if name in seen:
                raise ValueError("an image twice")
            seen.add(name)
            names = _label_names(row, columns, classes)
            boxes = _boxes(row.get(columns.get("boxes", "")), classes)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            bad.append(RejectedRow(source, f"row {i + 1} ({name})", str(error)))
        else:
            if boxes or not with_boxes:
                kept.append(i)
                kept_columns["labels"].append(names)
                kept_columns["boxes"].append(boxes)
    reject(bad, len(rows))
    if not kept:
        raise ValueError(f"chestxray14: no image of {source} is of the split {split!r} with with_boxes {with_boxes}.")
    return _pairs(rows.select(kept), columns, **kept_columns)


def _columns(source: str, rows: Dataset) -> dict[str, str]:
    columns = {}
    for ours, names in _NAMES.items():
        name = next((name for name in names if name in rows.column_names), None)
        if name:
            columns[ours] = name
        elif ours in _REQUIRED:
            raise ValueError(
                f"{source} has no column {' or '.join(map(repr, names))}; it has {listed(rows.column_names)}."
            )
    if "label_names" not in columns and "labels" not in columns:
        raise ValueError(f"{source} has no column 'label_names' or 'labels'; it has {listed(rows.column_names)}.")
    if "boxes" not in columns:
        warnings.warn(f"{source} has no column of boxes (looked for {_NAMES['boxes']}): no regions.", stacklevel=4)
    return columns


def _check_split(source: str, split: str, rows: Dataset, columns: dict, max_images: int | None) -> None:
    """Of patients, where a folder holds both splits; of the number of images, as the copy's split may be its own."""
    if max_images is None and len(rows) != NUM_OFFICIAL[split]:
        warnings.warn(
            f"chestxray14: {source} has {len(rows)} images of the split {split!r}, the official list "
            f"{NUM_OFFICIAL[split]}: it is a part of it, or a split of its own.",
            stacklevel=4,
        )
    other = "test" if split == "train" else "train"
    if os.path.isdir(source) and max_images is None and parquet_files(Path(source), other):
        patients = columns["patient_id"]
        others = load_parquet(source, other, None)
        if patients in others.column_names:
            check_subjects(source, {split: set(rows[patients]), other: set(others[patients])})


def _class_names(rows: Dataset, columns: dict) -> list[str]:
    kind = rows.features.get(columns.get("labels", ""))
    inner = getattr(kind, "feature", kind)
    return list(inner.names) if isinstance(inner, ClassLabel) else []


def _label_names(row: dict, columns: dict, classes: list[str]) -> set[str]:
    names = row[columns["label_names"]] if "label_names" in columns else row[columns["labels"]]
    names = names.split("|") if isinstance(names, str) else names if isinstance(names, list) else [names]
    return {_label_name(name, classes) for name in names if name is not None} or {"No Finding"}


def _label_name(name, classes: list[str]) -> str:
    text = classes[name] if isinstance(name, int) and 0 <= name < len(classes) else str(name)
    known = _BY_SMALL_NAME.get(BOX_NAMES.get(text.strip(), text).strip().lower().replace(" ", "_"))
    if known is None:
        raise ValueError(f"unknown finding {name!r}; known are {list(LABELS)}")
    return known


def _boxes(value, classes: list[str]) -> list[tuple[str, list[float]]]:
    """Finding and corners; of a list of objects, or of an object of lists."""
    if not value:
        return []
    if isinstance(value, dict):
        value = [dict(zip(value, items)) for items in zip(*value.values())]
    boxes = []
    for item in value:
        if not isinstance(item, dict):
            raise ValueError(f"boxes must be objects with a label and a bbox; got {short(str(item))}")
        label = next((item[name] for name in _BOX_LABELS if item.get(name) is not None), None)
        box = next((item[name] for name in _BOX_CORNERS if item.get(name) is not None), None)
        if box is None:
            box = next(([item[n] for n in names] for names in _BOX_NUMBERS if set(names) <= set(item)), None)
        if label is None or box is None or len(box) != 4:
            raise ValueError(f"a box needs a label and a bbox of 4 numbers; it has {short(str(item))}")
        box = [float(number) for number in box]
        check_box(box)
        x, y, width, height = box
        boxes.append((_label_name(label, classes), [x, y, x + width, y + height]))
    return boxes


def _pairs(rows: Dataset, columns: dict, labels: list[set[str]], boxes: list) -> Dataset:
    """Our columns; pictures stay where they are stored."""
    names = [_image_name(name) for name in rows[columns["image_id"]]]
    others = {
        "text": [None] * len(rows),
        "subject_id": [str(patient) for patient in rows[columns["patient_id"]]],
        "study_id": names,
        "image_id": [f"{name}.png" for name in names],
        "view": rows[columns["view"]][:] if "view" in columns else [""] * len(rows),
        "labels": [{label: float(label in present) for label in LABELS} for present in labels],
        "regions": [regions(rows[i][columns["image"]], marked) if marked else [] for i, marked in enumerate(boxes)],
    }
    features = pair_features(LABELS, ids="string", regions=True)
    rest = Dataset.from_dict(others, features=Features({n: features[n] for n in features if n != "image"}))
    images = rows.select_columns(columns["image"])
    images = images if columns["image"] == "image" else images.rename_column(columns["image"], "image")
    return concatenate_datasets([images.cast_column("image", Image()), rest], axis=1)


def _image_name(image_id) -> str:
    return str(image_id).rsplit(".", 1)[0]
