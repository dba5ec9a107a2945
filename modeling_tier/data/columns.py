# Licensed under the Apache License, Version 2.0.
"""The columns that all data sets share, and the promise that no subject is in two splits."""

import zlib
from collections.abc import Iterable, Mapping

from datasets import Dataset, Features, Image, List, Value


SPLITS = ("train", "validation", "test")
VIEWS = ("all", "frontal")

# The 14 labels of CheXpert and MIMIC-CXR-JPG, in the order of MIMIC-CXR-JPG's tables.
CHEXPERT_LABELS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)


def pair_features(
    labels: Iterable[str] = (), ids: str = "int64", regions: bool = False, mask: bool = False
) -> Features:
    """
    Features of a data set of pairs.

    Args:
        labels: names of the findings; without any there is no column `labels`.
        ids: type of `subject_id` and `study_id`: "int64" where the data set's own are numbers, else "string".
        regions: whether ground-truth regions of the findings are known.
        mask: whether regions have masks beside their boxes.
    """
    features = {
        "image": Image(),
        "text": Value("string"),
        "subject_id": Value(ids),
        "study_id": Value(ids),
        "image_id": Value("string"),
        "view": Value("string"),
    }
    if labels:
        features["labels"] = {name: Value("float32") for name in labels}
    if regions:
        region = {"finding": Value("string"), "phrase": Value("string"), "box": List(Value("float32"), length=4)}
        features["regions"] = List(region | ({"mask": Image()} if mask else {}))
    return Features(features)


def make_pairs(columns: dict[str, list], features: Features) -> Dataset:
    """A data set of these columns; those of `features` that are not given are null."""
    number = len(columns["image"])
    return Dataset.from_dict({name: columns.get(name, [None] * number) for name in features}, features=features)


def check_choice(name: str, option: str, value, known: Iterable[str]) -> None:
    """Raise ValueError for a value that an option of a data set does not have."""
    if value not in (known := list(known)):
        raise ValueError(f"{name}: {option} must be one of {known}; got {value!r}.")


class UnknownSplit(ValueError):
    """A data set has no such split."""


def check_split(name: str, split: str, known: Iterable[str] = SPLITS) -> None:
    """Raise [`UnknownSplit`] for a split that the data set does not have."""
    known = list(known)
    if split not in known:
        raise UnknownSplit(f"{name} has no split {split!r}; use one of {known}.")


def hashed_split(subject: str) -> str:
    """The part of a subject where a data set has none: 80, 10 and 10% by a hash, the same on every machine."""
    return {8: "validation", 9: "test"}.get(zlib.crc32(subject.encode()) % 10, "train")


def check_subjects(name: str, splits: Mapping[str, Iterable]) -> None:
    """
    The promise that no subject is in two splits.

    Args:
        name: of the data set or folder, for the message.
        splits: the subjects of each split, once or more often.

    Raises:
        ValueError: with the number of shared subjects and one of them.
    """
    seen: dict = {}
    for split, subjects in splits.items():
        for other, earlier in seen.items():
            shared = earlier & (subjects := set(subjects))
            if shared:
                raise ValueError(
                    f"{name}: {len(shared)} subjects are in both {other} and {split}, such as {min(shared)}. "
                    "A model must not be tested on patients that it was trained on."
                )
        seen[split] = set(subjects)
