# Licensed under the Apache License, Version 2.0.
"""Area under the ROC curve of one finding's zero-shot scores, as a module for `evaluate`."""

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """
Area under the ROC curve: the chance that a random positive image scores higher than a random negative one, ties
counted as one half. Average precision: the precision at each positive image's score, averaged over the positive
images. Both with percentile intervals of a bootstrap over patients, because images of one patient are alike.
"""

_INPUTS = """
Args:
    predictions: a score for each image, higher for the finding.
    references: 1 where the finding is present, 0 where it is absent.
    subjects: the id of each image's patient; by default every image is a patient of its own.
    resamples: how many times patients are drawn, with replacement, as many as there are; 0: no intervals.
    seed: seed of the draws. The same patients are drawn alike whatever their images and scores are.
    confidence: of the intervals, between 0 and 1.
Returns:
    roc_auc, average_precision: in [0, 1], or None if one class is missing.
    roc_auc_interval, average_precision_interval: [low, high], or None if one class is missing.
    num_positive, num_negative: counts.
"""

# Numbers in a block of weights: what is computed from them should stay in the processor's cache.
_BLOCK = 2**18


class Resamples:
    """
    The draws of a cluster bootstrap: subjects with replacement, as many as there are, each with all of its rows.

    The same seed and the same set of subjects give the same draws, however many rows each of them has.

    Args:
        subjects: (N,) the id of each row's subject, of any type that can be sorted.
        number: of resamples.
        seed: of the draws.

    Raises:
        ValueError: if there are no rows, an id is missing (with its row), or the number is negative.
    """

    def __init__(self, subjects, number: int = 1000, seed: int = 0):
        subjects = np.asarray(subjects)
        if subjects.ndim != 1 or len(subjects) == 0:
            raise ValueError(f"subjects must be a list of one id a row, not empty; got the shape {subjects.shape}.")
        for row, subject in enumerate(subjects.tolist()):
            if subject is None or subject != subject:
                raise ValueError(f"subjects[{row}] is {subject}: give every row the id of its subject.")
        if number < 0:
            raise ValueError(f"The number of resamples must not be negative; got {number}.")
        self.number, self.seed = number, seed
        unique, self.codes = np.unique(subjects, return_inverse=True)
        self.num_subjects = len(unique)

    def __len__(self) -> int:
        return self.number

    def blocks(self):
        """Yields weights (b, N), float64: how often each row counts in each of the next b resamples."""
        rng, number = np.random.default_rng(self.seed), self.num_subjects
        size = max(1, _BLOCK // len(self.codes))
        for start in range(0, self.number, size):
            counts = np.empty((min(size, self.number - start), number))
            for row in counts:  # one resample at a time: the size of a block must not matter
                row[:] = np.bincount(rng.integers(number, size=number), minlength=number)
            yield np.take(counts, self.codes, axis=1)


class Ranking:
    """
    One finding's rows in the order of their scores, sorted once for many weightings.

    Args:
        labels: (N,) 1, 0, or NaN for rows that are skipped.
        scores: (N,) higher for the finding.
    """

    def __init__(self, labels: np.ndarray, scores: np.ndarray):
        labels, scores = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
        self.num_rows = len(labels)
        order = np.argsort(-scores, kind="stable")
        self.positive, self.negative = order[labels[order] == 1], order[labels[order] == 0]
        positive, negative = -scores[self.positive], -scores[self.negative]
        # For each positive row: negative rows above it, those above or level with it, and the same of positive rows.
        self.above = np.searchsorted(negative, positive, side="left")
        self.level = np.searchsorted(negative, positive, side="right")
        self.reached = np.searchsorted(positive, positive, side="right")

    def __call__(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        AUROC and average precision, (b,) each, for weights (b, N); NaN where a class has no weight.

        With p and n the weights of positive and negative rows, AUROC is the sum over i, j of
        p_i n_j ([s_i > s_j] + [s_i = s_j] / 2), divided by sum(p) sum(n). Average precision is the sum over i of
        p_i precision(s >= s_i), divided by sum(p): scikit-learn's sum of (recall gained) x precision over thresholds.
        """
        if weights.shape[1] != self.num_rows:
            raise ValueError(f"There are weights for {weights.shape[1]} rows and labels for {self.num_rows}.")
        positive = np.take(weights, self.positive, axis=1)
        hits, alarms = _running_sum(positive), _running_sum(np.take(weights, self.negative, axis=1))
        above, level = np.take(alarms, self.above, axis=1), np.take(alarms, self.level, axis=1)
        reached = np.take(hits, self.reached, axis=1)
        precision = reached / np.maximum(reached + level, np.finfo(np.float64).tiny)
        lost = np.einsum("bn,bn->b", positive, above + level) / 2
        gained = np.einsum("bn,bn->b", positive, precision)
        num_positive, num_negative = hits[:, -1], alarms[:, -1]
        undefined = (num_positive == 0) | (num_negative == 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            auroc, average_precision = 1 - lost / (num_positive * num_negative), gained / num_positive
        return np.where(undefined, np.nan, auroc), np.where(undefined, np.nan, average_precision)


def _running_sum(weights: np.ndarray) -> np.ndarray:
    """Sums (b, n + 1) of the first 0 to n columns."""
    sums = np.zeros((len(weights), weights.shape[1] + 1))
    np.cumsum(weights, axis=1, out=sums[:, 1:])
    return sums


def percentile_interval(distribution: np.ndarray, confidence: float = 0.95) -> list[float] | None:
    """[low, high] of a bootstrap distribution (B,) by its percentiles, without NaN; None if nothing else is there."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1; got {confidence}.")
    defined = distribution[~np.isnan(distribution)]
    if len(defined) == 0:
        return None
    return [float(bound) for bound in np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])]


class ZeroShotAUROC(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int32")}
            ),
        )

    def _compute(self, predictions, references, subjects=None, resamples=1000, seed=0, confidence=0.95):
        scores, labels = np.asarray(predictions, dtype=np.float64), np.asarray(references)
        if not np.isin(labels, (0, 1)).all():
            raise ValueError("references must be 0 or 1; leave images out whose label is unknown.")
        if np.isnan(scores).any():
            raise ValueError(f"predictions[{int(np.flatnonzero(np.isnan(scores))[0])}] is NaN.")
        if subjects is not None and len(subjects) != len(scores):
            raise ValueError(f"There are {len(subjects)} subjects for {len(scores)} predictions: one each is needed.")
        positive, ranking = int(labels.sum()), Ranking(labels, scores)
        values = dict(zip(("roc_auc", "average_precision"), ranking(np.ones((1, len(scores))))))
        result = {name: None if np.isnan(value[0]) else float(value[0]) for name, value in values.items()}
        if resamples:
            draws = Resamples(np.arange(len(scores)) if subjects is None else subjects, resamples, seed)
            blocks = [ranking(weights) for weights in draws.blocks()]
            for name, distribution in zip(values, map(np.concatenate, zip(*blocks))):
                result[f"{name}_interval"] = percentile_interval(distribution, confidence)
        return result | {"num_positive": positive, "num_negative": len(labels) - positive}
