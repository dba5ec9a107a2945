# Licensed under the Apache License, Version 2.0.
"""Metrics with intervals, by image and by study, and what two models differ in."""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from datasets import Dataset

from .localisation import MAPS, PLACES, RESOLUTIONS, variant_name
from .statistics import (
    Classification,
    Confusion,
    Estimate,
    Resamples,
    calibrated,
    choose_threshold,
    delong,
    difference,
    differences,
    distribution,
    f1,
    fit_calibration,
    group_means,
    holm,
    interval,
    intervals,
    matthews,
    missing_class,
    sensitivity,
    specificity,
    weighted_mean,
)
from .zero_shot import finding_order, map_rows


TEXTS = ("sentence", "token")
_SPARSITY = ("token_entropy", "patch_entropy", "effective_patches", "gini", "negative_share", "peak")
_GROUNDING = ("pointing_game", "cnr", "miou", "iou")
_MOST_TOKENS = 30


class Unit(NamedTuple):
    """What is judged as one: an image, or a study by the mean or the largest score of its images."""

    scores: np.ndarray
    """(N, F)"""
    probabilities: np.ndarray
    """(N, F)"""
    labels: np.ndarray
    """(N, F) 1, 0 or NaN. A study shows what any of its images shows."""
    subjects: np.ndarray
    """(N,)"""
    first_row: np.ndarray
    """(N,) place, among the rows that were read, of (the first image of) each."""


@dataclass
class Evidence:
    """The results of one model, with all that a comparison needs."""

    metrics: dict
    details: dict
    scored: dict[str, np.ndarray]
    validation: dict[str, np.ndarray] | None
    resamples: int
    seed: int
    confidence: float
    units: dict[str, Unit] = field(default_factory=dict)
    calibrated: dict[str, np.ndarray] = field(default_factory=dict)
    """By unit (N, F): probabilities after calibration on the validation set."""
    estimates: dict[tuple, Estimate] = field(default_factory=dict)
    """By place in `metrics`."""
    undefined: dict[tuple, list[str | None]] = field(default_factory=dict)
    reader_unit: str | None = None
    reader_points: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    """By finding and reader: sensitivity and specificity."""

    def distribution(self, subjects: np.ndarray, statistic) -> dict[str, Estimate]:
        return distribution(Resamples(subjects, self.resamples, self.seed), statistic)


def gather_evidence(
    parts: dict[str, tuple[dict, dict, dict]],
    sets: dict[str, Dataset],
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Evidence:
    """
    Put intervals on a model's metrics.

    Args:
        parts: for "data" and, if there is one, "validation": metrics and details of [`summarise`], and what it was
            given.
        sets: the data sets of the same names.
        resamples: of the bootstrap over subjects; 0: no intervals.
        seed: of the draws. The same for two models that are compared.
        confidence: of the intervals.

    Returns:
        [`Evidence`], whose `metrics` are those given with, as far as there is something to measure:
            `classification`: by unit ("image"; "study_mean" and "study_max" where a study has several images), finding
            and `mean`: `auroc`, `average_precision`, `ece` and, with a validation set, `mcc`, `sensitivity`,
            `specificity` at the threshold with its best MCC, `f1` at that with its best F1, and `ece_calibrated`
            after logistic regression on it; `readers`: the same of the radiologists, of their mean, and the model
            minus that; `localisation_intervals` of `localisation`; `localisation_maps`: the means over findings of
            every way of looking at a map; `localisation_tokens`: the most frequent tokens alone; `sparsity` without
            and with padding; `retrieval_intervals`.
    """
    metrics, details, scored = parts["data"]
    validation = parts.get("validation")
    subjects = subject_names(sets["data"], details["rows"])
    evidence = Evidence(dict(metrics), details, scored, validation and validation[2], resamples, seed, confidence)
    if "scores" in details:
        evidence.units = judged_units(sets["data"], details)
        chosen = judged_units(sets["validation"], validation[1]) if validation else {}
        evidence.metrics["classification"] = {
            unit: _classify(evidence, unit, chosen.get(unit) or chosen.get("image")) for unit in evidence.units
        }
        if "reads" in sets["data"].column_names:
            evidence.metrics["readers"] = _readers(evidence, sets["data"])
    if "map/row" in scored:
        place = np.searchsorted(details["rows"], scored["map/row"])
        _localise(evidence, subjects[place])
    for key, prefix in (("without_padding", "sparsity"), ("with_padding", "padded")):
        if f"{prefix}/gini" in scored:
            values = np.stack([scored[f"{prefix}/{name}"] for name in _SPARSITY], axis=1)
            found = _means(evidence, subjects, values, ("sparsity", key), _SPARSITY)
            evidence.metrics.setdefault("sparsity", {})[key] = found
    for way, ranks in details.get("ranks", {}).items():
        names = [f"r@{k}" for k in (1, 5, 10)]
        values = np.stack([ranks < k for k in (1, 5, 10)], axis=1)
        found = _means(evidence, subjects, values, ("retrieval", way), names)
        evidence.metrics.setdefault("retrieval_intervals", {})[way] = found
    return evidence


def compare(model: Evidence, baseline: Evidence) -> dict:
    """
    What a model has more than another on the same images: differences with intervals and p values of the paired
    bootstrap over subjects, for AUROC also by DeLong's test, with Holm's correction over the findings.

    Raises:
        ValueError: if they have not read the same images.
    """
    if not np.array_equal(model.details["rows"], baseline.details["rows"]):
        raise ValueError("The two models have not read the same images: evaluate both again.")
    result: dict = {}
    findings = model.details["findings"]
    for place, estimate in model.estimates.items():
        other = baseline.estimates.get(place)
        if other is None:
            continue
        kind, *path = place
        if kind == "classification":
            unit, name = path
            undefined = model.undefined.get(place, ())
            by_finding = differences(estimate, other, findings, model.confidence, undefined)
            into = result.setdefault(kind, {}).setdefault(unit, {})
            for finding, values in by_finding.items():
                into.setdefault(finding, {})[name] = values
        elif kind == "localisation_maps":
            *how, name = path
            rows = result.setdefault(kind, [])
            entry = dict(zip(("text", "place", "resolution", "map"), how))
            row = next((row for row in rows if entry.items() <= row.items()), None)
            if row is None:
                rows.append(row := entry)
            order = list(map(str, range(len(estimate.value))))
            row[name] = differences(estimate, other, order, model.confidence)["mean"]
        elif kind in ("sparsity", "retrieval"):
            which, name = path
            gap = float(estimate.value - other.value)
            result.setdefault(kind, {}).setdefault(which, {})[name] = difference(
                gap, estimate.distribution, other.distribution, model.confidence
            )
    for unit in result.get("classification", {}):
        tests = [
            delong(
                model.units[unit].labels[:, i],
                model.units[unit].scores[:, i],
                baseline.units[unit].scores[:, i],
                model.units[unit].subjects,
                model.confidence,
            )["p"]
            for i in range(len(findings))
        ]
        for finding, p, adjusted in zip(findings, tests, holm(tests)):
            result["classification"][unit][finding]["auroc"] |= {"p_delong": p, "p_holm": adjusted}
    return result


def subject_names(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """The subject of each row, as a text; a row without one stands for itself."""
    subjects = dataset.select_columns("subject_id").select(rows)["subject_id"][:]
    return np.array(
        [f"row {row}" if subject is None else f"subject {subject}" for row, subject in zip(rows, subjects)]
    )


def judged_units(dataset: Dataset, details: dict) -> dict[str, Unit]:
    """Images, and studies where one has several images."""
    rows = details["rows"]
    subjects = subject_names(dataset, rows)
    studies = dataset.select_columns("study_id").select(rows)["study_id"][:]
    names = [
        f"row {row}" if study is None else f"{subject}, study {study}"
        for row, subject, study in zip(rows, subjects, studies)
    ]
    image = Unit(details["scores"], details["probabilities"], details["labels"], subjects, np.arange(len(rows)))
    units = {"image": image}
    _, first, codes = np.unique(names, return_index=True, return_inverse=True)
    if len(first) < len(rows):
        order = np.argsort(codes, kind="stable")
        starts = np.searchsorted(codes[order], np.arange(len(first)))
        count = np.bincount(codes)[:, None]
        mean = lambda values: np.add.reduceat(values[order], starts, axis=0) / count  # noqa: E731
        most = lambda values: np.fmax.reduceat(values[order], starts, axis=0)  # noqa: E731
        for name, of in (("study_mean", mean), ("study_max", most)):
            units[name] = Unit(of(image.scores), of(image.probabilities), most(image.labels), subjects[first], first)
    return units


def _classify(evidence: Evidence, name: str, validation: Unit | None) -> dict:
    """`validation`: the same unit of the validation set; its images, where no study of it has several."""
    unit, findings = evidence.units[name], evidence.details["findings"]
    thresholds: dict[str, list] = {}
    answers = None
    if validation is not None:
        columns = list(zip(validation.labels.T, validation.scores.T))
        thresholds = {
            f"threshold_{criterion}": [choose_threshold(*column, criterion) for column in columns]
            for criterion in ("mcc", "f1")
        }
        fits = [fit_calibration(*column) for column in columns]
        answers = np.stack([calibrated(scores, fit) for scores, fit in zip(unit.scores.T, fits)], axis=1)
        evidence.calibrated[name] = answers
    statistic = Classification(
        unit.labels, unit.scores, probabilities=unit.probabilities, calibrated=answers, **thresholds
    )
    result: dict = {finding: {} for finding in (*findings, "mean")}
    for i, finding in enumerate(findings):
        result[finding] |= {
            "num_positive": int((unit.labels[:, i] == 1).sum()),
            "num_negative": int((unit.labels[:, i] == 0).sum()),
            **{key: values[i] for key, values in thresholds.items()},
        }
    for measure, estimate in evidence.distribution(unit.subjects, statistic).items():
        place = ("classification", name, measure)
        if measure.startswith("ece"):  # resampling adds to it: its distribution says nothing about the value
            estimate = Estimate(estimate.value, estimate.distribution[:0])
        evidence.estimates[place] = estimate
        evidence.undefined[place] = statistic.undefined.get(measure, [None] * len(findings))
        by_finding = intervals(estimate, findings, evidence.confidence, evidence.undefined[place])
        for finding, values in by_finding.items():
            result[finding][measure] = values
    return result


def _readers(evidence: Evidence, dataset: Dataset) -> dict:
    """Radiologists read studies: they are compared with the model's mean over a study's images."""
    name = "study_mean" if "study_mean" in evidence.units else "image"
    unit, findings = evidence.units[name], evidence.details["findings"]
    reads = dataset.select_columns("reads").select(evidence.details["rows"][unit.first_row])["reads"]
    decisions: dict[str, list] = {}
    for row in reads:
        for read in row:
            answers = [read["labels"][finding] for finding in findings]
            decisions.setdefault(read["reader"], []).append([v if v in (0.0, 1.0) else np.nan for v in answers])
    measures = {"mcc": matthews, "f1": f1, "sensitivity": sensitivity, "specificity": specificity}
    undefined = [missing_class(column) for column in unit.labels.T]
    known = np.array([why is None for why in undefined])
    result: dict = {"unit": name, "by_reader": {}}
    all_estimates = []
    for reader, answers in decisions.items():
        confusion = Confusion(unit.labels, np.array(answers, dtype=np.float64))

        def statistic(weights, confusion=confusion):
            counts = confusion(weights)
            return {key: np.where(known, measure(counts), np.nan) for key, measure in measures.items()}

        estimates = evidence.distribution(unit.subjects, statistic)
        all_estimates.append(estimates)
        result["by_reader"][reader] = _turned(
            {key: intervals(each, findings, evidence.confidence, undefined) for key, each in estimates.items()}
        )
        for i, finding in enumerate(findings):
            if known[i]:
                point = float(estimates["sensitivity"].value[i]), float(estimates["specificity"].value[i])
                evidence.reader_points.setdefault(finding, {})[reader] = point
    evidence.reader_unit = name
    means = {
        key: Estimate(*(np.mean([each[key][part] for each in all_estimates], axis=0) for part in (0, 1)))
        for key in ("mcc", "f1")
    }
    result["mean_of_readers"] = _turned(
        {key: intervals(each, findings, evidence.confidence, undefined) for key, each in means.items()}
    )
    own = {key: evidence.estimates.get(("classification", name, key)) for key in means}
    if all(own.values()):
        result["model_minus_readers"] = _turned(
            {key: differences(own[key], means[key], findings, evidence.confidence, undefined) for key in means}
        )
    return result


def _turned(by_measure: dict[str, dict]) -> dict:
    """From measure -> finding to finding -> measure."""
    findings = next(iter(by_measure.values()))
    return {finding: {measure: of[finding] for measure, of in by_measure.items()} for finding in findings}


def _localise(evidence: Evidence, subjects: np.ndarray) -> None:
    """`subjects`: of each map."""
    scored, confidence = evidence.scored, evidence.confidence
    order = finding_order(scored, evidence.details["findings"])
    evidence.metrics["localisation_maps"] = []
    for text in TEXTS:
        chosen = map_rows(scored, text)
        groups = scored["map/finding"][chosen]
        for place in PLACES:
            for resolution in RESOLUTIONS:
                for kind in MAPS:
                    variant = variant_name(place, resolution, kind)
                    if f"map/{variant}:hit" not in scored or not chosen.any():
                        continue
                    values = _grounding_values(scored, variant, chosen, groups)
                    names = [finding for finding in order if (groups == finding).any()]
                    numbers = [*_GROUNDING, "chance"]

                    def statistic(weights, values=values, groups=groups, names=names, numbers=numbers):
                        means = group_means(values, groups, names, weights)  # (b, G, K)
                        return {name: means[:, :, k] for k, name in enumerate(numbers)}

                    estimates = evidence.distribution(subjects[chosen], statistic)
                    by_finding = {key: intervals(each, names, confidence) for key, each in estimates.items()}
                    how = (text, place, resolution, kind)
                    row = dict(zip(("text", "place", "resolution", "map"), how))
                    row |= {"num_maps": int((~np.isnan(values[:, 0])).sum())}
                    row |= {"chance": by_finding["chance"]["mean"]["value"]}
                    for name in _GROUNDING:
                        evidence.estimates["localisation_maps", *how, name] = estimates[name]
                        row[name] = by_finding[name]["mean"]
                    evidence.metrics["localisation_maps"].append(row)
                    if how == (TEXTS[0], PLACES[0], RESOLUTIONS[0], MAPS[0]):
                        evidence.metrics["localisation_intervals"] = {name: by_finding[name] for name in _GROUNDING}
    evidence.metrics["localisation_tokens"] = _tokens(scored)


def _grounding_values(scored: dict, variant: str, chosen: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(maps, 5): as `_GROUNDING` and chance. IoU at the threshold that is best for its finding."""
    of = {
        name: scored[f"map/{variant}:{name}"][chosen].astype(np.float64)
        for name in ("hit", "cnr", "mious", "ious", "chance")
    }
    iou = np.full(len(groups), np.nan)
    for finding in np.unique(groups):
        rows = groups == finding
        there = of["ious"][rows][~np.isnan(of["ious"][rows][:, 0])]
        if len(there):
            iou[rows] = of["ious"][rows, there.mean(axis=0).argmax()]
    return np.stack([of["hit"], of["cnr"], of["mious"], iou, of["chance"]], axis=1)


def _tokens(scored: dict[str, np.ndarray]) -> list[dict]:
    """The tokens of most maps, alone: against boxes, plain, at the resolution of the pixels."""
    variant = variant_name(PLACES[0], RESOLUTIONS[0], MAPS[0])
    tokens = scored["map/token"]
    names = {"pointing_game": "hit", "chance": "chance", "cnr": "cnr", "miou": "mious"}
    rows = []
    for token, number in Counter(tokens[tokens != ""].tolist()).most_common(_MOST_TOKENS):
        chosen = tokens == token
        means = {key: float(scored[f"map/{variant}:{name}"][chosen].mean()) for key, name in names.items()}
        rows.append({"token": token, "num_maps": number} | means)
    return rows


def _means(evidence: Evidence, subjects: np.ndarray, values: np.ndarray, place: tuple, names) -> dict:
    """Means of values (N, K) with their intervals, by name."""
    estimate = evidence.distribution(subjects, lambda weights: {"mean": weighted_mean(values, weights)})["mean"]
    result = {}
    for k, name in enumerate(names):
        evidence.estimates[*place, name] = Estimate(estimate.value[k], estimate.distribution[:, k])
        result[name] = interval(float(estimate.value[k]), estimate.distribution[:, k], evidence.confidence)
    return result
