# Licensed under the Apache License, Version 2.0.
"""Parquet files of the columns that timm/nih-chest-xray-14 has."""

import io
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from modeling_tier.data.chestxray14_parquet import LABELS


CLASSES = [name for name in LABELS if name != "No Finding"]
FEATURES = {
    "image": ImageFeature(),
    "labels": List(ClassLabel(names=CLASSES)),
    "label_names": List(Value("string")),
    "image_id": Value("string"),
    "fold": Value("int64"),
    "patient_id": Value("int64"),
    "follow_up": Value("int64"),
    "patient_age": Value("int64"),
    "patient_sex": Value("string"),
    "view_position": Value("string"),
    "original_width": Value("int64"),
    "original_height": Value("int64"),
    "bboxes": List({"label": Value("string"), "bbox": List(Value("float64"))}),
}


def jpeg(i: int, side: int = 256) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((side, side), 10 * i % 256, np.uint8)).save(file, "JPEG")
    return file.getvalue()


def row(i: int, patient: int, names: list[str], boxes=(), **other) -> dict:
    """A smaller copy of a published picture, of 1024 pixels a side."""
    about = {"fold": i % 10, "patient_id": patient, "follow_up": 0, "patient_age": 50, "patient_sex": "M"}
    about |= {"image": {"bytes": jpeg(i), "path": None}, "image_id": f"{patient:08d}_{i:03d}", "view_position": "PA"}
    about |= {"labels": [CLASSES.index(name) for name in names], "label_names": names}
    about |= {"original_width": 2048, "original_height": 2500, "bboxes": list(boxes)}
    return about | other


def write(folder: Path, rows: list[dict], split: str, features: dict = FEATURES, part: str = "00000-of-00001") -> None:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    columns = {name: [row[name] for row in rows] for name in features}
    Dataset.from_dict(columns, features=Features(features)).to_parquet(folder / f"data/{split}-{part}.parquet")
