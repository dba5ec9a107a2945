# Licensed under the Apache License, Version 2.0.
"""Scores of any classifier, from a csv file, judged as a model's scores are."""

import hashlib
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset

from ..data.rejected import short
from ..data.tables import FALLBACK, csv_rows, listed
from .protocols import Protocol
from .scored import ImageScores, Scored


ID_COLUMNS = ("image_id", "study_id", "subject_id")


def _probability(scores: np.ndarray, negative: None, temperature: float) -> np.ndarray:
    """Scores that lie between 0 and 1 are probabilities; of others the sigmoid."""
    is_probability = (scores.min(axis=0) >= 0) & (scores.max(axis=0) <= 1)
    return np.where(is_probability, scores, 0.5 * (1 + np.tanh(0.5 * scores)))


GIVEN = Protocol(
    "the numbers of a file; where they do not lie between 0 and 1, the probability is their sigmoid",
    None,
    lambda scores, negative, temperature: scores,
    _probability,
)


@dataclass(frozen=True)
class GivenScores:
    """A file of scores."""

    path: Path
    id_column: str
    findings: list[str]
    rows: dict[str, list[float]]
    """The scores of `findings`, by id."""
    fingerprint: str
    """SHA-256 of the file."""


def read_scores(path: str | Path) -> GivenScores:
    """
    Read a csv file with a column `image_id` (or `study_id`, `subject_id`: the same scores for all images of it) and a
    column of numbers per finding.

    Raises:
        ValueError: for a missing file, one without such columns, an id twice, or what is no finite number, with file,
            line and column.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no file {path} (--scores).")
    rows = csv_rows(path, fallback=FALLBACK)
    _, columns = next(rows)
    id_column = next((name for name in ID_COLUMNS if name in columns), None)
    findings = [name for name in columns if name not in ID_COLUMNS]
    if id_column is None or not findings:
        raise ValueError(
            f"{path} must have one of the columns {list(ID_COLUMNS)}, and a column per finding; it has "
            f"{listed(columns)}."
        )
    twice = [name for name, number in Counter(columns).items() if number > 1]
    if twice:
        raise ValueError(f"{path} has the column {short(twice[0])!r} more than once: which of them holds the scores?")
    by_id: dict[str, list[float]] = {}
    for line, fields in rows:
        cells = dict(zip(columns, fields))
        name = cells[id_column].strip()
        if not name or name in by_id:
            raise ValueError(
                f"{path}, line {line}: {id_column} {'is blank' if not name else f'{name} is a duplicate'}."
            )
        by_id[name] = [_number(cells[finding], f"{path}, line {line}: {finding}") for finding in findings]
    if not by_id:
        raise ValueError(f"{path} has no rows.")
    return GivenScores(path, id_column, findings, by_id, hashlib.sha256(path.read_bytes()).hexdigest())


def _number(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where} must be a number; got {text!r}.")
    return number


def scores_of(given: GivenScores, dataset: Dataset, findings: list[str]) -> Scored:
    """
    The scores of the images of a data set.

    Raises:
        ValueError: if a finding has no column, or an image no row, with how many and the first of them.
    """
    missing = [finding for finding in findings if finding not in given.findings]
    if missing:
        raise ValueError(f"{given.path} has no column {missing[0]!r}; its findings are {given.findings}.")
    names = [str(name) for name in dataset[given.id_column]]
    unknown = [name for name in names if name not in given.rows]
    if unknown:
        raise ValueError(
            f"{given.path} has no scores of {len(unknown)} of {len(names)} images, such as {given.id_column} "
            f"{unknown[0]}. To evaluate some of the images, name them with --image_ids."
        )
    columns = [given.findings.index(finding) for finding in findings]
    scores = np.array([[given.rows[name][i] for i in columns] for name in names])
    # No picture is opened: two images are the same if their ids are.
    digests = [hashlib.sha256(str(name).encode()).hexdigest() for name in dataset["image_id"]]
    number = len(names)
    images = ImageScores(np.arange(number), np.array(digests), np.zeros((number, 0)), np.zeros(number), scores)
    return Scored(images)


def shared_findings(paths: list[str], labels: list[str]) -> list[str]:
    """
    The labels of a data set that all files of scores have a column for.

    Raises:
        ValueError: if there is none.
    """
    files = [read_scores(path) for path in paths]
    shared = [label for label in labels if all(label in given.findings for given in files)]
    if not shared:
        raise ValueError(
            f"{files[0].path}: no column of all files of scores is called as one of the labels {labels}; it "
            f"has {files[0].findings}."
        )
    return shared
