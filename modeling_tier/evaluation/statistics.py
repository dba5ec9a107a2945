# Licensed under the Apache License, Version 2.0.
"""How sure an evaluation's numbers are: bootstrap over subjects, DeLong's test, thresholds and calibration."""

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression

from .metrics.zeroshot_auroc.zeroshot_auroc import Ranking, Resamples, percentile_interval


# What differs by less than this differs by rounding.
_ZERO = 1e-12


class Estimate(NamedTuple):
    """A statistic on all rows, `value` (...), and on each resample, `distribution` (B, ...); NaN where undefined."""

    value: np.ndarray
    distribution: np.ndarray


def distribution(
    resamples: Resamples, statistic: Callable[[np.ndarray], dict[str, np.ndarray]]
) -> dict[str, Estimate]:
    """
    The bootstrap distribution of several statistics at a time.

    Args:
        resamples: draws of the rows' subjects. Two models are compared on equal `resamples`.
        statistic: gives for weights (b, N), how often each row counts, values (b, ...) by name, NaN where undefined.
    """
    blocks = [statistic(weights) for weights in resamples.blocks()]
    all_rows = statistic(np.ones((1, len(resamples.codes))))
    return {
        name: Estimate(value[0], np.concatenate([value[:0], *(block[name] for block in blocks)]))
        for name, value in all_rows.items()
    }


def interval(
    value: float | None, distribution: np.ndarray, confidence: float = 0.95, undefined: str | None = None
) -> dict:
    """
    An estimate with the percentile interval of its bootstrap distribution.

    Args:
        value: on all rows; None or NaN if it cannot be computed.
        distribution: (B,) on the resamples; NaN ones are skipped. Empty: no interval.
        confidence: between 0 and 1.
        undefined: why the value cannot be computed, if it cannot.

    Returns:
        `value`, `low`, `high`, and `undefined_resamples`, how many were skipped, if any; low and high are None if
        all were. Without a value: `value` None and `undefined`.
    """
    if value is None or math.isnan(value):
        return {"value": None, "undefined": undefined or "not defined for these rows"}
    if len(distribution) == 0:
        return {"value": float(value)}
    low, high = percentile_interval(distribution, confidence) or (None, None)
    left_out = int(np.isnan(distribution).sum())
    return {"value": float(value), "low": low, "high": high} | ({"undefined_resamples": left_out} if left_out else {})


def difference(
    value: float | None,
    distribution_a: np.ndarray,
    distribution_b: np.ndarray,
    confidence: float = 0.95,
    undefined: str | None = None,
) -> dict:
    """
    The difference a - b of two models on the same draws, as [`interval`], with `p_bootstrap`.

    The p value is two-sided, min(1, 2 (min(#(d <= 0), #(d >= 0)) + 1) / (B + 1)), of the B defined differences d: it
    is never 0, and 1 for a model against itself.

    Args:
        value: a - b on all rows.
        distribution_a, distribution_b: (B,) of equal resamples.
        confidence, undefined: as for [`interval`].
    """
    if len(distribution_a) != len(distribution_b):
        raise ValueError(f"{len(distribution_a)} resamples against {len(distribution_b)}: draw both alike.")
    differences = distribution_a - distribution_b
    result = interval(value, differences, confidence, undefined)
    if "low" in result:
        number = int((~np.isnan(differences)).sum())
        tail = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
        result["p_bootstrap"] = min(1.0, 2 * (tail + 1) / (number + 1)) if number else None
    return result


def intervals(
    estimate: Estimate,
    names: Sequence[str],
    confidence: float = 0.95,
    undefined: Sequence[str | None] = (),
    no_interval: Sequence[str | None] = (),
) -> dict[str, dict]:
    """
    [`interval`] of each finding and of their macro `mean`.

    Args:
        estimate: value (F,) and distribution (B, F).
        names: of the F findings.
        confidence: between 0 and 1.
        undefined: for each finding why it cannot be computed, or None.
        no_interval: for each finding why an interval would deceive, or None; it then has `no_interval` instead.

    Returns:
        by name; the mean has `findings_left_out`, if any: how many findings, on average, a resample's mean lacks
        because they are not defined in it.
    """

    def entry(value, samples, why):
        return interval(value, samples, confidence, why)

    return _by_name(estimate, names, undefined, no_interval, entry)


def differences(
    a: Estimate,
    b: Estimate,
    names: Sequence[str],
    confidence: float = 0.95,
    undefined: Sequence[str | None] = (),
    no_interval: Sequence[str | None] = (),
) -> dict[str, dict]:
    """[`difference`] a - b of each finding and of their macro `mean`; the arguments are those of [`intervals`]."""
    zero = np.zeros(len(a.distribution))
    # A finding that only one of the two has is in neither mean.
    both = Estimate(a.value - b.value, a.distribution - b.distribution)

    def entry(value, samples, why):
        return difference(value, samples, zero, confidence, why)

    return _by_name(both, names, undefined, no_interval, entry)


def _by_name(
    estimate: Estimate,
    names: Sequence[str],
    undefined: Sequence[str | None],
    no_interval: Sequence[str | None],
    entry: Callable,
) -> dict:
    reasons = list(undefined) or [None] * len(names)
    if not len(names) == len(reasons) == len(estimate.value):
        raise ValueError(f"{len(names)} names and {len(reasons)} reasons for {len(estimate.value)} values.")
    result = {name: entry(estimate.value[i], estimate.distribution[:, i], reasons[i]) for i, name in enumerate(names)}
    for name, why in zip(names, no_interval):
        if why and result[name]["value"] is not None:
            result[name] = {"value": result[name]["value"], "no_interval": why}
    mean = entry(macro_mean(estimate.value), macro_mean(estimate.distribution), "defined for no finding")
    left_out = (np.isnan(estimate.distribution) & ~np.isnan(estimate.value)).sum(axis=-1)
    if left_out.any():
        mean["findings_left_out"] = float(left_out.mean())
    return result | {"mean": mean}


def macro_mean(values: np.ndarray) -> np.ndarray:
    """
    Unweighted mean over the last axis, the findings, without those that are NaN; NaN if all are.

    In a resample that happens to lack a rare finding's positives, the mean is over the other findings.
    """
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0).sum(axis=-1) / defined.sum(axis=-1)


class ConfusionCounts(NamedTuple):
    """True and false positives, false and true negatives, arrays of one shape."""

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    tn: np.ndarray


class Confusion:
    """
    Confusion counts of decisions, of a model at a threshold or of a reader.

    Args:
        labels: (N, F) 1, 0 or NaN.
        decisions: (N, F) 1, 0 or NaN; where either is NaN, the row is skipped for that finding.
    """

    def __init__(self, labels: np.ndarray, decisions: np.ndarray):
        labels = _checked_labels(labels)
        decisions = _checked_labels(decisions)
        if labels.shape != decisions.shape:
            raise ValueError(f"Labels and decisions differ in shape: {labels.shape} and {decisions.shape}.")
        cells = ((1, 1), (0, 1), (1, 0), (0, 0))
        self.rows = [
            [np.flatnonzero((label == a) & (decision == b)) for label, decision in zip(labels.T, decisions.T)]
            for a, b in cells
        ]

    def __call__(self, weights: np.ndarray) -> ConfusionCounts:
        """Counts (b, F) each, for weights (b, N)."""
        return ConfusionCounts(
            *(np.stack([np.take(weights, rows, axis=1).sum(axis=1) for rows in cell], axis=1) for cell in self.rows)
        )


def matthews(counts: ConfusionCounts) -> np.ndarray:
    """
    Matthews correlation coefficient; 0 where everything is called positive (or negative), as scikit-learn has it, NaN
    without positives or negatives.
    """
    tp, fp, fn, tn = counts
    scale = np.sqrt((tp + fp) * (tp + fn)) * np.sqrt((tn + fp) * (tn + fn))
    return _of_both_classes(counts, np.where(scale > 0, (tp * tn - fp * fn) / np.where(scale > 0, scale, 1), 0.0))


def f1(counts: ConfusionCounts) -> np.ndarray:
    """F1 = 2 tp / (2 tp + fp + fn); NaN without positives or negatives."""
    return _of_both_classes(counts, _ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn))


def _of_both_classes(counts: ConfusionCounts, values: np.ndarray) -> np.ndarray:
    return np.where((counts.tp + counts.fn > 0) & (counts.tn + counts.fp > 0), values, np.nan)


def sensitivity(counts: ConfusionCounts) -> np.ndarray:
    """tp / (tp + fn); NaN without positives."""
    return _ratio(counts.tp, counts.tp + counts.fn)


def specificity(counts: ConfusionCounts) -> np.ndarray:
    """tn / (tn + fp); NaN without negatives."""
    return _ratio(counts.tn, counts.tn + counts.fp)


# Measures of decisions, by their names in `measures.py`.
DECISIONS = {"mcc": matthews, "f1": f1, "sensitivity": sensitivity, "specificity": specificity}


class Reliability:
    """
    Probabilities of one finding in bins of equal width, (low, high] and the first one with its 0.

    Args:
        labels: (N,) 1, 0 or NaN for rows that are skipped.
        probabilities: (N,) in [0, 1].
        bins: number of bins.
    """

    def __init__(self, labels: np.ndarray, probabilities: np.ndarray, bins: int = 10):
        labels, probabilities = _checked(labels, probabilities)
        if ((probabilities < 0) | (probabilities > 1)).any():
            row = int(np.flatnonzero((probabilities < 0) | (probabilities > 1))[0])
            raise ValueError(f"probabilities[{row}] is {probabilities[row]}: it must be in [0, 1].")
        bin_numbers = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], probabilities, side="left")
        order = np.argsort(bin_numbers, kind="stable")
        self.rows = order[~np.isnan(labels[order])]
        self.labels, self.probabilities = labels[self.rows], probabilities[self.rows]
        self.bins, self.starts = np.unique(bin_numbers[self.rows], return_index=True)  # those that are not empty

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """
        Expected calibration error (b,) for weights (b, N): over the bins, the mean distance, weighted by the rows in
        it, of the mean probability from the fraction of positives (Guo et al. 2017, arXiv 1706.04599, eq. 3).
        """
        known = np.take(weights, self.rows, axis=1)
        if len(self.rows) == 0:
            return np.full(len(weights), np.nan)
        gaps = np.add.reduceat(known * (self.probabilities - self.labels), self.starts, axis=1)
        return _ratio(np.abs(gaps).sum(axis=1), known.sum(axis=1))


def reliability(labels: np.ndarray, probabilities: np.ndarray, bins: int = 10) -> dict[str, np.ndarray]:
    """
    The points of a reliability diagram, over bins as [`Reliability`] makes them.

    Returns:
        `mean_probability` and `fraction_positive`, (bins,), NaN in an empty bin, and `count` (bins,).
    """
    binned = Reliability(labels, probabilities, bins)
    bin_numbers = np.repeat(binned.bins, np.diff([*binned.starts, len(binned.rows)]))
    count = np.bincount(bin_numbers, minlength=bins)
    return {
        "mean_probability": _ratio(np.bincount(bin_numbers, binned.probabilities, bins), count),
        "fraction_positive": _ratio(np.bincount(bin_numbers, binned.labels, bins), count),
        "count": count,
    }


class Classification:
    """
    The measures of several findings as one statistic for [`distribution`].

    Args:
        labels: (N, F) 1, 0, or NaN for rows that are skipped for that finding alone.
        scores: (N, F).
        threshold_mcc, threshold_f1: for each finding the threshold for MCC, sensitivity and specificity, and that for
            F1, from other images; None where there is none. Positive means score > threshold.
        probabilities, calibrated: (N, F) in [0, 1], before and after calibration on other images; NaN throughout a
            finding where there are none.
        negation: scores (N, F) by the name of a measure, such as `auroc_negated`, of which the AUROC is taken.

    Attributes:
        undefined: by name of a measure, for each finding why it cannot be computed, or None; for [`intervals`].
    """

    def __init__(
        self,
        labels,
        scores,
        threshold_mcc=None,
        threshold_f1=None,
        probabilities=None,
        calibrated=None,
        negation=None,
    ):
        labels, scores = _checked(labels, scores)
        self.rankings = [Ranking(*columns) for columns in zip(labels.T, scores.T)]
        self.negation = {
            name: [Ranking(*columns) for columns in zip(labels.T, _checked(labels, values)[1].T)]
            for name, values in (negation or {}).items()
        }
        missing = [missing_class(column) for column in labels.T]
        self.undefined = dict.fromkeys(("auroc", "average_precision", *self.negation), missing)
        self.decisions, self.binned = {}, {}
        for names, thresholds in ((("mcc", "sensitivity", "specificity"), threshold_mcc), (("f1",), threshold_f1)):
            if thresholds is not None:
                thresholds = np.array(thresholds, dtype=np.float64)  # None becomes NaN
                why = [gone or ("no threshold" if np.isnan(t) else None) for gone, t in zip(missing, thresholds)]
                self.undefined |= dict.fromkeys(names, why)
                decided = np.where([reason is None for reason in why], scores > thresholds, np.nan)
                self.decisions[names] = Confusion(labels, decided)
        for name, values in (("ece", probabilities), ("ece_calibrated", calibrated)):
            if values is not None:
                values = np.asarray(values, dtype=np.float64)
                absent = np.isnan(values).all(axis=0)
                self.undefined[name] = ["no probabilities" if gone else None for gone in absent]
                self.binned[name] = [
                    Reliability(np.where(gone, np.nan, label), np.where(gone, 0.0, value))
                    for gone, label, value in zip(absent, labels.T, values.T)
                ]

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """
        By name (b, F) for weights (b, N): `auroc`, `average_precision`, with thresholds `mcc`, `sensitivity`,
        `specificity`, `f1`, with probabilities `ece`, `ece_calibrated`, and the names of `negation`. All but the ECEs
        are NaN for a finding of which the rows have one class only, or which has no threshold.
        """
        ranked = [ranking(weights) for ranking in self.rankings]
        result = {name: np.stack(values, axis=1) for name, values in zip(("auroc", "average_precision"), zip(*ranked))}
        for name, rankings in self.negation.items():
            result[name] = np.stack([ranking(weights)[0] for ranking in rankings], axis=1)
        for names, confusion in self.decisions.items():
            counts = confusion(weights)
            for name in names:
                known = [why is None for why in self.undefined[name]]
                result[name] = np.where(known, DECISIONS[name](counts), np.nan)
        for name, binned in self.binned.items():
            result[name] = np.stack([one(weights) for one in binned], axis=1)
        return result


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """
    Means of values a row, of a map's measures for instance, under weights (b, N).

    Args:
        values: (N,) or (N, K); those that are NaN are skipped.
        weights: (b, N).

    Returns:
        (b,) or (b, K), NaN where nothing has a weight.
    """
    values = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(values)
    # Not a matrix product: its sums may depend on the number of threads.
    total = np.einsum("bn,n...->b...", weights, np.where(known, values, 0.0))
    return _ratio(total, np.einsum("bn,n...->b...", weights, known.astype(np.float64)))


def group_means(values: np.ndarray, groups: Sequence, names: Sequence, weights: np.ndarray) -> np.ndarray:
    """
    [`weighted_mean`] of each group of rows, such as the maps of a finding.

    Args:
        values: (N,) or (N, K).
        groups: (N,) the name of each row's group.
        names: of the G groups, in the order of the result.
        weights: (b, N).

    Returns:
        (b, G) or (b, G, K).
    """
    values, groups = np.asarray(values), np.asarray(groups)
    chosen = [np.flatnonzero(groups == name) for name in names]
    return np.stack([weighted_mean(values[rows], np.take(weights, rows, axis=1)) for rows in chosen], axis=1)


def missing_class(labels: np.ndarray) -> str | None:
    """What labels (N,), 1, 0 or NaN, lack for an AUROC: "n+ = 0, n- = 60"; None if both classes are there."""
    positive, negative = int((labels == 1).sum()), int((labels == 0).sum())
    return None if positive and negative else f"n+ = {positive}, n- = {negative}"


def delong(
    labels: np.ndarray,
    scores_a: np.ndarray,
    scores_b: np.ndarray,
    subjects: Sequence | None = None,
    confidence: float = 0.95,
) -> dict:
    """
    Test of the difference between the AUROCs of two models on the same rows.

    DeLong, DeLong & Clarke-Pearson (Biometrics 1988), in O(N log N) as Sun & Xu (IEEE SPL 2014): the structural
    components come from ranks. With subjects, the components are summed over each subject's rows first, which gives
    the variance for clustered data of Obuchowski (Biometrics 1997); it is DeLong's if every subject has one row.

    Args:
        labels: (N,) 1, 0 or NaN for rows that are skipped.
        scores_a, scores_b: (N,).
        subjects: (N,) the id of each row's subject; by default every row is a subject of its own.
        confidence: of the interval, between 0 and 1.

    Returns:
        `auroc_a`, `auroc_b`, `difference` (a - b), its `standard_error`, the two-sided `p`, and `low` and `high` of
        the normal interval. p is 1 for a model against itself. The last four are None if fewer than two subjects have
        a positive (or a negative) row, the last three if the models differ and the variance is 0 (one of them is
        perfect, for instance). If a class is missing all are None, and `undefined` says which.
    """
    labels, scores_a = _checked(labels, scores_a)
    _, scores_b = _checked(labels, scores_b)
    result = dict.fromkeys(("auroc_a", "auroc_b", "difference", "standard_error", "p", "low", "high"))
    if missing_class(labels):
        return result | {"undefined": missing_class(labels)}
    rows = [np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)]
    parts_a, parts_b = (_structural_components(scores[rows[0]], scores[rows[1]]) for scores in (scores_a, scores_b))
    auroc_a, auroc_b = float(parts_a[0].mean()), float(parts_b[0].mean())
    gap = auroc_a - auroc_b
    result |= {"auroc_a": auroc_a, "auroc_b": auroc_b, "difference": gap}

    codes = np.arange(len(labels)) if subjects is None else Resamples(subjects, 0).codes
    if len(codes) != len(labels):
        raise ValueError(f"There are {len(codes)} subjects for {len(labels)} labels: one each is needed.")
    if min(len(np.unique(codes[of_class])) for of_class in rows) < 2:
        return result
    error = _clustered_error(codes, rows, [a - b - gap for a, b in zip(parts_a, parts_b)])
    if error < _ZERO < abs(gap):
        return result | {"standard_error": error}
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * error
    p = 1.0 if error < _ZERO else math.erfc(abs(gap) / error / math.sqrt(2))
    return result | {"standard_error": error, "p": p, "low": gap - reach, "high": gap + reach}


def _clustered_error(codes: np.ndarray, rows: list[np.ndarray], deviations: list[np.ndarray]) -> float:
    """Obuchowski's standard error, from the subjects' codes (N,), the rows of both classes and their deviations."""
    # Of each subject: its sum of deviations, over its positive and over its negative rows, as fractions of the total.
    sums = [
        np.bincount(codes[of_class], values, codes.max() + 1) / len(of_class)
        for of_class, values in zip(rows, deviations)
    ]
    numbers = [len(np.unique(codes[members])) for members in (*rows, np.concatenate(rows))]
    correction = [number / (number - 1) for number in numbers]
    variance = (
        correction[0] * (sums[0] ** 2).sum()
        + correction[1] * (sums[1] ** 2).sum()
        + correction[2] * 2 * (sums[0] * sums[1]).sum()
    )
    return math.sqrt(max(variance, 0.0))


def _structural_components(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each positive the fraction of negatives below it, for each negative of positives above it; ties half."""
    below = sum(np.searchsorted(np.sort(negative), positive, side) for side in ("left", "right"))
    above = 2 * len(positive) - sum(np.searchsorted(np.sort(positive), negative, side) for side in ("left", "right"))
    return below / (2 * len(negative)), above / (2 * len(positive))


def holm(p_values: Iterable[float | None]) -> list[float | None]:
    """P values adjusted for their number by Holm (Scand. J. Stat. 1979), in their order; None is passed through."""
    p_values = list(p_values)
    order = sorted((i for i, p in enumerate(p_values) if p is not None), key=lambda i: p_values[i])
    adjusted, largest = [None] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def choose_threshold(labels: np.ndarray, scores: np.ndarray, criterion: str) -> float | None:
    """
    The threshold with the best MCC or F1; positive means score > threshold.

    Candidates are the midpoints between neighbouring scores, the largest score (nothing is positive) and the next
    number below the smallest (everything is). Among equals it is the highest, which calls the fewest rows positive.

    Args:
        labels: (N,) 1, 0 or NaN for rows that are skipped.
        scores: (N,).
        criterion: "mcc" or "f1".

    Returns:
        The threshold, to be compared in float64; None if a class is missing.
    """
    measures = {"mcc": matthews, "f1": f1}
    if criterion not in measures:
        raise ValueError(f"criterion must be one of {list(measures)}; got {criterion!r}.")
    labels, scores = _checked(labels, scores)
    if missing_class(labels):
        return None
    labels, scores = labels[~np.isnan(labels)], scores[~np.isnan(labels)]
    order = np.argsort(-scores, kind="stable")
    labels, scores = labels[order], scores[order]
    ends = np.flatnonzero(np.append(np.diff(scores) != 0, True))  # the last row of each group of equal scores
    tp = np.append(0, np.cumsum(labels)[ends])
    fp = np.append(0, ends + 1) - tp
    positive = labels.sum()
    values = measures[criterion](ConfusionCounts(tp, fp, positive - tp, len(labels) - positive - fp))
    best = int((values >= values.max() - _ZERO).argmax())
    levels = scores[ends]
    if best == 0:
        return float(levels[0])
    if best == len(levels):
        return float(np.nextafter(levels[-1], -np.inf))
    middle = levels[best] + (levels[best - 1] - levels[best]) / 2
    return float(middle if middle < levels[best - 1] else levels[best])  # neighbouring floats have nothing between


class Calibration(NamedTuple):
    """The probability of a score is the logistic function of slope * score + intercept."""

    slope: float
    intercept: float


def fit_calibration(labels: np.ndarray, scores: np.ndarray) -> Calibration | None:
    """
    Platt scaling: logistic regression of the labels on the scores, without penalty.

    The targets are Platt's (1999), (n+ + 1) / (n+ + 2) for positives and 1 / (n- + 2) for negatives in place of 1 and
    0, so that there is one finite solution for separable scores, too. Scores that are all equal get slope 0. A slope
    below 0 means that higher scores speak against the finding.

    Args:
        labels: (N,) 1, 0 or NaN for rows that are skipped.
        scores: (N,).

    Returns:
        Slope and intercept, or None if a class is missing.
    """
    labels, scores = _checked(labels, scores)
    if missing_class(labels):
        return None
    positive, scores = labels[~np.isnan(labels)] == 1, scores[~np.isnan(labels)]
    number = len(scores)
    targets = np.where(positive, (positive.sum() + 1) / (positive.sum() + 2), 1 / (number - positive.sum() + 2))
    centre, scale = scores.mean(), scores.std() or 1.0
    standard = ((scores - centre) / scale)[:, None]  # cosines are small and close together: hard for the solver
    # Each row is used twice, as a positive and as a negative, with its target's weight.
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(
        np.concatenate([standard, standard]),
        np.repeat([1, 0], number),
        sample_weight=np.concatenate([targets, 1 - targets]),
    )
    slope = float(model.coef_[0, 0]) / scale
    return Calibration(float(slope), float(model.intercept_[0] - slope * centre))


def calibrated(scores: np.ndarray, calibration: Calibration | None) -> np.ndarray:
    """Probabilities of the shape of the scores; NaN if there is no calibration."""
    scores = np.asarray(scores, dtype=np.float64)
    if calibration is None:
        return np.full_like(scores, np.nan)
    # The logistic function, in a form that cannot overflow.
    return (1 + np.tanh((calibration.slope * scores + calibration.intercept) / 2)) / 2


def _ratio(part: np.ndarray, total: np.ndarray) -> np.ndarray:
    """part / total, NaN where total is 0."""
    return np.where(total > 0, part / np.where(total > 0, total, 1), np.nan)


def _checked_labels(labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels, dtype=np.float64)
    wrong = np.argwhere(~np.isnan(labels) & (labels != 0) & (labels != 1))
    if len(wrong):
        raise ValueError(f"The label of row {wrong[0][0]} is {labels[tuple(wrong[0])]}; it must be 0, 1 or NaN.")
    return labels


def _checked(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = _checked_labels(labels), np.asarray(scores, dtype=np.float64)
    if labels.shape != scores.shape:
        raise ValueError(f"Labels and scores differ in shape: {labels.shape} and {scores.shape}.")
    wrong = np.argwhere(~np.isfinite(scores))
    if len(wrong):
        raise ValueError(f"The score of row {wrong[0][0]} is {scores[tuple(wrong[0])]}; it must be finite.")
    return labels, scores
