# Licensed under the Apache License, Version 2.0.
"""Several data sets in one run (`data.sets`), each with a weight; and no patient on both sides of an evaluation."""

import math
from collections.abc import Mapping

import numpy as np
from datasets import Dataset, Features, IterableDataset, Value, concatenate_datasets

from ..data import DATASETS, check_options, load_pairs
from ..data.columns import check_subjects, pair_features
from .options import DataOptions
from .template_reports import with_template_reports


SET = "set"
"""Column with the name of the data set that a row is of."""
WEIGHT = "weight"

_NO_PATIENTS = ("synthetic", "pairs")  # whose ids mean nothing outside of one folder


def training_sets(data: DataOptions) -> dict[str, dict]:
    """The data sets of a run with their options, without their weights."""
    if not data.sets:
        return {data.name: data.options}
    return {name: {key: value for key, value in given.items() if key != WEIGHT} for name, given in data.sets.items()}


def set_weights(data: DataOptions) -> dict[str, float]:
    return {name: float(given.get(WEIGHT, 1)) for name, given in data.sets.items()}


def check_sets(data: DataOptions) -> None:
    """Raise ValueError for sets, options or weights that cannot be, before anything is loaded."""
    if data.options or data.train or data.validation:
        raise ValueError("data.sets has the options of each set: delete data.options, data.train and data.validation.")
    for name, given in data.sets.items():
        if not isinstance(given, Mapping):
            raise ValueError(f"data.sets.{name} must be the options of the data set {name}; got {given!r}.")
        weight = given.get(WEIGHT, 1)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= 100:
            raise ValueError(f"data.sets.{name}.{WEIGHT} must be a number above 0 and at most 100; got {weight!r}.")
        if given.get("streaming"):
            raise ValueError(f"data.sets.{name}.streaming: a stream cannot be mixed with other sets.")
        try:
            check_options(name, {key: value for key, value in given.items() if key != WEIGHT})
        except ValueError as error:
            raise ValueError(f"data.sets: {error}") from None


def load_sets(data: DataOptions, split: str) -> Dataset:
    """
    The pairs of one split of all sets, one set after the other, with the column `set`. Ids are preceded by the set's
    name, those of patients by that of the data set whose patients they are. Labels and regions, which differ between
    sets, are not kept.
    """
    features = pair_features(ids="string") | {SET: Value("string")}
    parts = []
    for name, options in training_sets(data).items():
        pairs = load_pairs(name, split, **options)
        if data.template_reports:
            pairs = with_template_reports(pairs, name, options)
        columns = {key: pairs[key][:] for key in features if key in pairs.column_names and key != "image"}
        for key, prefix in {"subject_id": _patients(name), "study_id": name, "image_id": name}.items():
            columns[key] = [None if value is None else f"{prefix}:{value}" for value in columns[key]]
        columns[SET] = [name] * len(pairs)
        rest = Dataset.from_dict(columns, features=Features({k: features[k] for k in columns}))
        parts.append(concatenate_datasets([pairs.select_columns("image"), rest], axis=1))
    return concatenate_datasets(parts)


def check_patients(
    train: Dataset | IterableDataset, others: Mapping[str, tuple[str | None, Dataset]], name: str
) -> None:
    """
    No patient of the training pairs is among those that the model is measured on, as far as their ids tell it.

    Args:
        train: the training pairs.
        others: what the model is measured on: for each, the data set that it is of (None: as `name`), and pairs.
        name: the data set of `train`; "" if its ids name their data set, as those of [`load_sets`] do.

    Raises:
        ValueError: with the number of shared patients and one of them.
    """
    if isinstance(train, IterableDataset):
        return
    known = _patient_names(name, train)
    for title, (dataset, pairs) in others.items():
        check_subjects(title, {"training": known, title: _patient_names(name if dataset is None else dataset, pairs)})


def _patients(name: str) -> str:
    return DATASETS[name].patients or name


def _patient_names(name: str, pairs: Dataset) -> set[str]:
    subjects = {str(subject) for subject in pairs["subject_id"][:] if subject is not None}
    if not name:
        return {subject for subject in subjects if subject.partition(":")[0] not in _NO_PATIENTS}
    return set() if name in _NO_PATIENTS else {f"{_patients(name)}:{subject}" for subject in subjects}


class Weighted:
    """
    Which rows, or groups of rows, an epoch takes of each set: all of them as often as the weight's whole part says,
    and of its rest a fraction, other ones in each epoch.
    """

    def __init__(self, sets: list[str], weights: Mapping[str, float]):
        """Of the set of each row or group, and the weight of each set."""
        names = np.array(sets)
        self.rows = {name: np.flatnonzero(names == name) for name in weights}
        self.numbers = {name: round(len(rows) * weights[name]) for name, rows in self.rows.items()}
        empty = [name for name, number in self.numbers.items() if number == 0]
        if empty:
            raise ValueError(f"data.sets.{empty[0]} gives no pairs to an epoch: its weight is too small.")

    def __len__(self) -> int:
        return sum(self.numbers.values())

    def drawn(self, rng: np.random.Generator) -> np.ndarray:
        """In random order."""
        parts = []
        for name, rows in self.rows.items():
            times = math.ceil(self.numbers[name] / len(rows))
            parts.append(np.concatenate([rng.permutation(rows) for _ in range(times)])[: self.numbers[name]])
        return rng.permutation(np.concatenate(parts))

    def description(self) -> str:
        return ", ".join(f"{name} {len(self.rows[name]):,} ({self.numbers[name]:,} an epoch)" for name in self.rows)
