# Licensed under the Apache License, Version 2.0.
"""ChestX-Det10: 3,543 radiographs of ChestX-ray14 with radiologists' boxes of ten findings."""

import os
from pathlib import Path

from datasets import Dataset

from .columns import check_split, make_pairs, pair_features
from .pictures import box_regions
from .record import ID_END, ID_START, DatasetRecord
from .rejected import RejectedRow, reject
from .tables import find_table, found_pictures, need_folder, read_json


LABELS = (
    *("Atelectasis", "Calcification", "Consolidation", "Effusion", "Emphysema", "Fibrosis", "Fracture", "Mass"),
    *("Nodule", "Pneumothorax"),
)
# How the protocol of CARZero names those whose name alone says too little; phrases of the boxes, too.
PROMPT_NAMES = {
    "Calcification": "tissue calcification",
    "Consolidation": "pulmonary consolidation",
    "Effusion": "pleural effusion",
    "Emphysema": "pulmonary emphysema",
    "Fracture": "bone fracture",
    "Mass": "pulmonary mass",
    "Nodule": "lung nodule",
}

SPLITS = ("train", "test")
_TABLES = ("{0}.json", "{0}/{0}.json", "ChestX_Det10_{0}.json")
_SIDE = 1024  # pixels of the published pictures, in which boxes are given


def chestxdet10(split: str = "test", data_dir: str | os.PathLike | None = None, with_boxes: bool = False) -> Dataset:
    """
    Radiographs of ChestX-Det10 with its ten labels, 1 or 0, and `regions`; there are no texts, and patients are not
    named. Missing images are skipped with a warning that counts them.

    Args:
        split: "test" (542 images), or "train" (3,001).
        data_dir: folder with `test.json` and `train.json` (or `test/test.json` ...), and the images in `test_data` and
            `train_data`, of the published size or smaller.
        with_boxes: whether to take the images with boxes alone.

    Raises:
        ValueError: for a missing file, one of another form, too many bad rows, or if no image is found.
    """
    check_split("chestxdet10", split, SPLITS)
    folder = need_folder(RECORD, data_dir, f"the folder with {split}.json and {split}_data")
    path = find_table(folder, [name.format(split) for name in _TABLES])
    images = _images(path)
    if with_boxes:
        images = {name: boxes for name, boxes in images.items() if boxes}
    folders = [folder / name for name in (f"{split}_data", f"{split}_data/{split}_data", f"{split}/{split}_data", "")]
    paths = found_pictures(images, "chestxdet10", path, folders)
    columns = {
        "image": list(paths.values()),
        "image_id": list(paths),
        "study_id": [name.rsplit(".", 1)[0] for name in paths],
        "labels": [_labels(images[name]) for name in paths],
        "regions": [_regions(file, images[name]) for name, file in paths.items()],
    }
    return make_pairs(columns, pair_features(LABELS, ids="string", regions=True))


def _images(path: Path) -> dict[str, list[tuple[str, list[float]]]]:
    """Findings with their corners, by name of the image."""
    content = read_json(path)
    if not isinstance(content, list):
        raise ValueError(f'{path} must be a list of {{"file_name": ..., "syms": [...], "boxes": [...]}}.')
    images, bad = {}, []
    for i, item in enumerate(content):
        try:
            name, boxes = _image(item)
            if name in images:
                raise ValueError(f"{name} is a duplicate")
            images[name] = boxes
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            bad.append(RejectedRow(str(path), f"image {i + 1}", reason))
    reject(bad, len(content))
    if not images:
        raise ValueError(f"{path} has no images.")
    return images


def _image(item) -> tuple[str, list[tuple[str, list[float]]]]:
    if not isinstance(item, dict) or not isinstance(item.get("file_name"), str):
        raise ValueError(f"an image must be an object with a file_name; got {str(item)[:80]!r}")
    syms, boxes = item["syms"], item["boxes"]
    if not isinstance(syms, list) or not isinstance(boxes, list) or len(syms) != len(boxes):
        raise ValueError("syms and boxes must be lists of one length")
    return item["file_name"], [(_finding(sym), _corners(box)) for sym, box in zip(syms, boxes)]


def _finding(sym) -> str:
    if sym not in LABELS:
        raise ValueError(f"unknown finding {str(sym)[:40]!r}; known are {list(LABELS)}")
    return sym


def _corners(box) -> list[float]:
    if not isinstance(box, list) or len(box) != 4:
        raise ValueError(f"a box must be [x_min, y_min, x_max, y_max]; got {str(box)[:80]!r}")
    x_min, y_min, x_max, y_max = map(float, box)
    if not (x_min < x_max < float("inf") and y_min < y_max < float("inf")):
        raise ValueError(f"the box {box} is empty")
    if x_min >= _SIDE or y_min >= _SIDE or x_max <= 0 or y_max <= 0:
        raise ValueError(f"the box {box} lies outside of the {_SIDE} x {_SIDE} pixels")
    return [x_min, y_min, x_max, y_max]


def _labels(boxes: list) -> dict[str, float]:
    present = {finding for finding, _ in boxes}
    return {finding: float(finding in present) for finding in LABELS}


def _regions(path: str, boxes: list) -> list[dict]:
    marked = [(name, PROMPT_NAMES.get(name, name.lower()), box, (_SIDE, _SIDE)) for name, box in boxes]
    return box_regions({"bytes": None, "path": path}, marked)


RECORD = DatasetRecord(
    name="chestxdet10",
    load=chestxdet10,
    title="ChestX-Det10",
    address="https://github.com/Deepwise-AILab/ChestX-Det10-Dataset",
    licence=None,
    access="from Deepwise AI Lab, and the pictures under the NIH's terms of use",
    id_patterns={"an image of ChestX-Det10": rf"{ID_START}\d{{5}}\.png{ID_END}"},
    folders=("chestx-det10*", "chestx-det-10*", "chestxdet*"),
    files=(tuple(name.format("test") for name in _TABLES),),
    findings=LABELS,
)
