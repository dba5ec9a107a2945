# Licensed under the Apache License, Version 2.0.
"""Metrics with intervals, by image and by study, and what two models differ in."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from datasets import Dataset

from .localisation import MAPS, PLAIN, REGIONS, RESOLUTIONS, variant_name
from .measures import DECISION, LOCALISATION, MAIN, RETRIEVAL, SPARSITY, TOKENS, group, shown_in
from .metrics.phrase_grounding.phrase_grounding import SCALED_THRESHOLDS, dice
from .scored import MapScores, Scored
from .statistics import (
    DECISIONS,
    Classification,
    Confusion,
    Estimate,
    Ranking,
    Resamples,
    calibrated,
    choose_threshold,
    delong,
    difference,
    differences,
    distribution,
    fit_calibration,
    group_means,
    holm,
    interval,
    intervals,
    macro_mean,
    missing_class,
    weighted_mean,
)
from .zero_shot import finding_order, map_rows


TEXTS = ("sentence", "token")
MAX_TOKENS = 30
LEFT_RIGHT = "auroc_left_right"
# The maps whose numbers are the main ones: of sentences against boxes, over the pixels, plain cosines.
MAIN_MAPS = {"text": TEXTS[0], "place": REGIONS[0], "resolution": RESOLUTIONS[0], "map": MAPS[0]}
# With fewer subjects of a class there is no interval; with few it covers less than it says.
MIN_SUBJECTS, FEW_SUBJECTS = 2, 10
# Relative difference of the fraction of the picture that a region takes, up to which two models see the same picture.
MAX_CHANCE_DIFFERENCE = 0.03


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
    """(N,) index, among the rows that were read, of the image, or of the first image of the study."""
    negation: dict[str, np.ndarray]
    """Scores (N, F) by the name of a measure, larger where the finding should be present; empty: not measured."""


@dataclass
class Evidence:
    """The results of one model, with all that a comparison needs."""

    metrics: dict
    details: dict
    scored: Scored
    validation: Scored | None
    resamples: int
    seed: int
    confidence: float
    subjects: np.ndarray | None = None
    """Of each row that was read."""
    units: dict[str, Unit] = field(default_factory=dict)
    calibrated: dict[str, np.ndarray] = field(default_factory=dict)
    """By unit (N, F): probabilities after calibration on the validation set."""
    estimates: dict[tuple, Estimate] = field(default_factory=dict)
    """By path in `metrics`."""
    undefined: dict[tuple, list[str | None]] = field(default_factory=dict)
    no_interval: dict[str, list[str | None]] = field(default_factory=dict)
    """By unit, for each finding."""
    map_thresholds: dict[tuple, int] = field(default_factory=dict)
    """By kind of map the number of the threshold that is best on the validation set."""
    reader_unit: str | None = None
    reader_points: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    """By finding and reader: sensitivity and specificity."""

    def distribution(self, subjects: np.ndarray, statistic) -> dict[str, Estimate]:
        # Of a single subject every resample is the same: that is no certainty.
        number = self.resamples if len(np.unique(subjects)) > 1 else 0
        return distribution(Resamples(subjects, number, self.seed), statistic)


def gather_evidence(
    parts: dict[str, tuple[dict, dict, Scored]],
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
            and `mean`: `auroc`, `average_precision`, `ece`, where negation was scored `auroc_negated` and
            `auroc_pair`, and, with a validation set, `mcc`, `sensitivity`, `specificity` at the threshold with its
            best MCC, `f1` at that with its best F1, and `ece_calibrated` after logistic regression on it; `readers`:
            the same of the radiologists, of their mean, and the model minus that; `localisation_intervals` of
            `localisation`, and `localisation_masks`, the same against masks, with `iou_at_threshold` and
            `dice_at_threshold` if the validation set has regions; `localisation_maps`: the means over findings of
            every way of looking at a map, with the `threshold` of these two; `radiologist`: `pointing_game`, `iou` and
            `dice` of another radiologist against the same masks, where the data set has one; `laterality`: by finding
            and `mean` `auroc_left_right`, where phrases of regions name a side; `localisation_tokens`:
            the most frequent tokens alone; `sparsity` without and with padding; `retrieval_intervals`.
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
    evidence.subjects = subjects
    if scored.maps is not None and scored.maps.measured:
        _localise(evidence)
    if scored.sides is not None:
        evidence.metrics["laterality"] = _laterality(evidence)
    if "radiologist" in sets["data"].column_names:
        evidence.metrics |= _radiologist(evidence, sets["data"])
    if scored.pairs is not None:
        for key, by_name in (("without_padding", scored.pairs.sparsity), ("with_padding", scored.pairs.padded)):
            if by_name:
                values = {m.name: by_name[m.name] for m in group(SPARSITY)}
                means = _means(evidence, subjects, values, ("sparsity", key))
                evidence.metrics.setdefault("sparsity", {})[key] = means
    for way, ranks in details.get("ranks", {}).items():
        values = {m.name: ranks < int(m.name.removeprefix("r@")) for m in group(RETRIEVAL)}
        means = _means(evidence, subjects[details["queries"][way]], values, ("retrieval", way))
        evidence.metrics.setdefault("retrieval_intervals", {})[way] = means
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
    for key, estimate in model.estimates.items():
        other = baseline.estimates.get(key)
        if other is None:
            continue
        kind, which, name = key
        if kind == "classification":
            by_finding = differences(
                estimate, other, findings, model.confidence, model.undefined[key], model.no_interval[which]
            )
            into = result.setdefault(kind, {}).setdefault(which, {})
            for finding, values in by_finding.items():
                into.setdefault(finding, {})[name] = values
        elif kind in ("retrieval", "laterality") or _same_tokens_and_patches(model, baseline):
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
    if "localisation_maps" in model.metrics and "localisation_maps" in baseline.metrics:
        result["localisation_maps"] = _compare_maps(model, baseline)
    return result


def _same_tokens_and_patches(model: Evidence, baseline: Evidence) -> bool:
    """Entropies of other numbers of patches, or over other tokens, cannot be subtracted."""
    mine, theirs = model.scored, baseline.scored
    return np.array_equal(mine.images.num_patches, theirs.images.num_patches) and np.array_equal(
        mine.pairs.max_patch_entropy, theirs.pairs.max_patch_entropy
    )


def _compare_maps(model: Evidence, baseline: Evidence) -> list[dict]:
    """Over the maps that both have: of two models that crop otherwise each may see regions that the other does not."""
    rows = []
    shared = set(_map_kinds(baseline.scored.maps))
    for kind in _map_kinds(model.scored.maps):
        if kind not in shared:
            continue
        mine, theirs = (_maps(one.scored.maps, kind, one.map_thresholds.get(kind)) for one in (model, baseline))
        common = sorted(set(mine.keys) & set(theirs.keys))
        if not common:
            continue
        mine, theirs = mine.chosen(common), theirs.chosen(common)
        names = [n for n in finding_order(model.scored.maps, model.details["findings"]) if n in mine.findings]
        own, other = _map_estimates(model, mine, names), _map_estimates(baseline, theirs, names)
        row = dict(zip(("text", "place", "resolution", "map"), kind)) | {"num_maps": len(common)}
        by_name = {
            name: differences(own[name], other[name], names, model.confidence)["mean"] for name in own if name in other
        }
        row["chance"] = by_name.pop("chance")["value"]
        level = macro_mean(other["chance"].value)
        if abs(row["chance"]) > MAX_CHANCE_DIFFERENCE * level:
            row["incomparable"] = (
                f"The ground-truth region takes {level + row['chance']:.3f} of what one model sees and {level:.3f} of "
                "what the other sees: their maps are not of the same picture."
            )
            by_name = {name: {"value": values["value"]} for name, values in by_name.items()}
        rows.append(row | by_name)
    return rows


def subject_names(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """The subject of each row, as a text; without one its study, and without either the row stands for itself."""
    table = dataset.select_columns(["subject_id", "study_id"]).select(rows)[:]

    def name(row, subject, study):
        if subject is not None:
            return f"subject {subject}"
        return f"row {row}" if study is None else f"study {study}"

    return np.array([name(*ids) for ids in zip(rows, table["subject_id"], table["study_id"])])


def judged_units(dataset: Dataset, details: dict) -> dict[str, Unit]:
    """Images, and studies where one has several images."""
    rows = details["rows"]
    subjects = subject_names(dataset, rows)
    studies = dataset.select_columns("study_id").select(rows)["study_id"][:]
    names = [
        f"row {row}" if study is None else f"{subject}, study {study}"
        for row, subject, study in zip(rows, subjects, studies)
    ]
    negation = {}
    if "negated" in details:  # who believes the denial less sees the finding
        negation = {"auroc_negated": -details["negated"], "auroc_pair": details["affirmed"] - details["negated"]}
    scores, probabilities, labels = (details[name] for name in ("scores", "probabilities", "labels"))
    image = Unit(scores, probabilities, labels, subjects, np.arange(len(rows)), negation)
    units = {"image": image}
    _, first, codes = np.unique(names, return_index=True, return_inverse=True)
    if len(first) < len(rows):
        order = np.argsort(codes, kind="stable")
        starts = np.searchsorted(codes[order], np.arange(len(first)))
        count = np.bincount(codes)[:, None]

        def mean(values):
            return np.add.reduceat(values[order], starts, axis=0) / count

        def largest(values):
            return np.fmax.reduceat(values[order], starts, axis=0)

        shown = largest(image.labels)
        for name, reduce in (("study_mean", mean), ("study_max", largest)):
            scores, probabilities = reduce(image.scores), reduce(image.probabilities)
            negation = {measure: reduce(values) for measure, values in image.negation.items()}
            units[name] = Unit(scores, probabilities, shown, subjects[first], first, negation)
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
        unit.labels,
        unit.scores,
        probabilities=unit.probabilities,
        calibrated=answers,
        negation=unit.negation,
        **thresholds,
    )
    result: dict = {finding: {} for finding in (*findings, "mean")}
    evidence.no_interval[name] = []
    for i, finding in enumerate(findings):
        classes = {"positive": unit.labels[:, i] == 1, "negative": unit.labels[:, i] == 0}
        subjects = {kind: len(np.unique(unit.subjects[rows])) for kind, rows in classes.items()}
        rare = min(subjects, key=subjects.get)
        why = f"{subjects[rare]} {rare} subject" if subjects[rare] < MIN_SUBJECTS else None
        evidence.no_interval[name].append(why)
        result[finding] |= {f"num_{kind}": int(rows.sum()) for kind, rows in classes.items()}
        if subjects[rare] < FEW_SUBJECTS:
            result[finding]["few_subjects"] = subjects[rare]
        result[finding] |= {key: values[i] for key, values in thresholds.items()}
    for measure, estimate in evidence.distribution(unit.subjects, statistic).items():
        key = ("classification", name, measure)
        if measure.startswith("ece"):  # resampling adds to it: its distribution says nothing about the value
            estimate = Estimate(estimate.value, estimate.distribution[:0])
        evidence.estimates[key] = estimate
        evidence.undefined[key] = statistic.undefined.get(measure, [None] * len(findings))
        reasons = evidence.undefined[key], evidence.no_interval[name]
        by_finding = intervals(estimate, findings, evidence.confidence, *reasons)
        for finding, values in by_finding.items():
            result[finding][measure] = values
    return result


def _readers(evidence: Evidence, dataset: Dataset) -> dict:
    """Radiologists read studies: they are compared with the model's mean over a study's images."""
    name = "study_mean" if "study_mean" in evidence.units else "image"
    unit, findings = evidence.units[name], evidence.details["findings"]
    undefined = [missing_class(column) for column in unit.labels.T]

    def with_intervals(estimates: dict[str, Estimate]) -> dict:
        reasons = undefined, evidence.no_interval[name]
        return _by_finding({m: intervals(e, findings, evidence.confidence, *reasons) for m, e in estimates.items()})

    result: dict = {"unit": name, "by_reader": {}}
    of_readers = []
    for reader, answers in _reader_answers(dataset, evidence.details["rows"][unit.first_row], findings).items():
        estimates = _reader_estimates(evidence, unit, answers)
        of_readers.append(estimates)
        by_finding = result["by_reader"][reader] = with_intervals(estimates)
        for i, finding in enumerate(findings):
            by_finding[finding]["num_read"] = int((~np.isnan(answers[:, i]) & ~np.isnan(unit.labels[:, i])).sum())
            point = float(estimates["sensitivity"].value[i]), float(estimates["specificity"].value[i])
            if not np.isnan(point).any():
                evidence.reader_points.setdefault(finding, {})[reader] = point
    evidence.reader_unit = name
    means = {m.name: _mean_estimate([estimates[m.name] for estimates in of_readers]) for m in shown_in(MAIN, DECISION)}
    result["mean_of_readers"] = with_intervals(means)
    own = {key: evidence.estimates.get(("classification", name, key)) for key in means}
    if all(own.values()):
        result["model_minus_readers"] = _by_finding(
            {
                key: differences(
                    own[key],
                    means[key],
                    findings,
                    evidence.confidence,
                    evidence.undefined["classification", name, key],
                    evidence.no_interval[name],
                )
                for key in means
            }
        )
    return result


def _reader_answers(dataset: Dataset, rows: np.ndarray, findings: list[str]) -> dict[str, np.ndarray]:
    """By reader (N, F): 1, 0, or NaN where the answer is blank or uncertain."""
    answers: dict[str, list] = {}
    for annotations in dataset.select_columns("reads").select(rows)["reads"]:
        for annotation in annotations:
            values = [annotation["labels"][finding] for finding in findings]
            known = [value if value in (0.0, 1.0) else np.nan for value in values]
            answers.setdefault(annotation["reader"], []).append(known)
    return {reader: np.array(values, dtype=np.float64) for reader, values in answers.items()}


def _reader_estimates(evidence: Evidence, unit: Unit, answers: np.ndarray) -> dict[str, Estimate]:
    confusion = Confusion(unit.labels, answers)

    def statistic(weights):
        counts = confusion(weights)
        return {m.name: DECISIONS[m.name](counts) for m in group(DECISION)}

    return evidence.distribution(unit.subjects, statistic)


def _mean_estimate(estimates: list[Estimate]) -> Estimate:
    """Over those who have answered."""
    parts = ([one[part] for one in estimates] for part in (0, 1))
    return Estimate(*(macro_mean(np.stack(values, axis=-1)) for values in parts))


def _by_finding(by_measure: dict[str, dict]) -> dict:
    """From measure -> finding to finding -> measure."""
    findings = next(iter(by_measure.values()))
    return {finding: {name: values[finding] for name, values in by_measure.items()} for finding in findings}


@dataclass
class Maps:
    """The maps of one kind, one row per phrase: of its tokens the mean."""

    keys: list[tuple[int, str, str]]
    """Row of the data set, finding and phrase."""
    values: dict[str, np.ndarray]
    """By name of a measure: (M,), or (M, K) at K thresholds."""

    @property
    def findings(self) -> np.ndarray:
        return np.array([finding for _, finding, _ in self.keys])

    @property
    def rows(self) -> list[int]:
        return [row for row, _, _ in self.keys]

    def chosen(self, keys: list[tuple[int, str, str]]) -> "Maps":
        number = {key: i for i, key in enumerate(self.keys)}
        rows = [number[key] for key in keys]
        return Maps(keys, {name: values[rows] for name, values in self.values.items()})


def _map_kinds(maps: MapScores) -> list[tuple[str, str, str, str]]:
    """Text, region, resolution and kind of the maps that were measured."""
    return [
        (text, region, resolution, kind)
        for text in TEXTS
        for region in REGIONS
        for resolution in RESOLUTIONS
        for kind in MAPS
        if variant_name(region, resolution, kind) in maps.measured and map_rows(maps, text).any()
    ]


def _maps(maps: MapScores, kind: tuple[str, str, str, str], threshold: int | None = None) -> Maps:
    """
    Without those whose region covers nothing, or everything, of what the model sees; with a threshold also IoU and
    Dice at it.
    """
    text, *variant = kind
    measured = maps.measured[variant_name(*variant)]
    known = np.flatnonzero(map_rows(maps, text) & ~np.isnan(measured["chance"]))
    keys = list(zip(*(column[known].tolist() for column in (maps.row, maps.finding, maps.phrase))))
    unique = list(dict.fromkeys(keys))
    number = {key: i for i, key in enumerate(unique)}
    codes = np.array([number[key] for key in keys], dtype=np.int64)
    count = np.bincount(codes, minlength=len(unique))

    def mean(values: np.ndarray) -> np.ndarray:
        columns = values[known].astype(np.float64).reshape(len(known), math.prod(values.shape[1:]))
        sums = np.stack([np.bincount(codes, column, len(unique)) for column in columns.T], axis=1)
        return (sums / count[:, None]).reshape(len(unique), *values.shape[1:])

    values = {m.name: mean(measured[m.of_map]) for m in group(LOCALISATION)}
    if threshold is not None:
        at_threshold = measured["ious"][:, threshold]
        values |= {"iou_at_threshold": mean(at_threshold), "dice_at_threshold": mean(dice(at_threshold))}
    return Maps(unique, values)


def _best_threshold(maps: MapScores, kind: tuple[str, str, str, str]) -> int | None:
    """The number of the threshold with the best Dice, mean over the findings; None where there is no such map."""
    text, *variant = kind
    measured = maps.measured.get(variant_name(*variant))
    known = map_rows(maps, text) & ~np.isnan(measured["chance"]) if measured else np.array([])
    if not known.any():
        return None
    values, findings = dice(measured["ious"][known]), maps.finding[known]
    return int(np.mean([values[findings == name].mean(axis=0) for name in np.unique(findings)], axis=0).argmax())


def _map_estimates(evidence: Evidence, maps: Maps, names: list[str]) -> dict[str, Estimate]:
    """By measure each finding's means, for the names. Where there are thresholds, at the best for the finding."""
    findings, columns = maps.findings, []
    for values in maps.values.values():
        if values.ndim == 2:
            best = np.empty(len(values))
            for name in names:
                rows = findings == name
                best[rows] = values[rows, values[rows].mean(axis=0).argmax()]
            values = best
        columns.append(values)
    stacked = np.column_stack(columns)
    positions = np.searchsorted(evidence.details["rows"], maps.rows)

    def statistic(weights):  # of all images: the draws do not depend on which of them have maps
        means = group_means(stacked, findings, names, np.take(weights, positions, axis=1))  # (b, G, measures)
        return dict(zip(maps.values, np.moveaxis(means, 2, 0)))

    return evidence.distribution(evidence.subjects, statistic)


def _localise(evidence: Evidence) -> None:
    scored, rows = evidence.scored.maps, []
    validation = evidence.validation.maps if evidence.validation else None
    for kind in _map_kinds(scored):
        threshold = _best_threshold(validation, kind) if validation is not None else None
        if threshold is not None:
            evidence.map_thresholds[kind] = threshold
        maps = _maps(scored, kind, threshold)
        findings = maps.findings
        names = [name for name in finding_order(scored, evidence.details["findings"]) if name in findings]
        if not names:
            continue
        estimates = _map_estimates(evidence, maps, names)
        subjects = evidence.subjects[np.searchsorted(evidence.details["rows"], maps.rows)]
        numbers = [len(np.unique(subjects[findings == name])) for name in names]
        alone = [f"{number} subject" if number < MIN_SUBJECTS else None for number in numbers]
        by_finding = {
            name: intervals(estimate, names, evidence.confidence, (), alone) for name, estimate in estimates.items()
        }
        row = dict(zip(("text", "place", "resolution", "map"), kind))
        row |= {"num_maps": len(maps.keys), "chance": by_finding.pop("chance")["mean"]["value"]}
        row |= {"threshold": float(SCALED_THRESHOLDS[threshold])} if threshold is not None else {}
        rows.append(row | {name: values["mean"] for name, values in by_finding.items()})
        for region, key in {"box": "localisation_intervals", "mask": "localisation_masks"}.items():
            if kind == (*(MAIN_MAPS | {"place": region}).values(),):
                evidence.metrics[key] = by_finding
    evidence.metrics["localisation_maps"] = rows
    evidence.metrics["localisation_tokens"] = _tokens(scored)


def _laterality(evidence: Evidence) -> dict:
    """By finding and `mean` the AUROC of the margin for "left", among the images where it has one side."""
    sides = evidence.scored.sides
    names = dict.fromkeys((*evidence.details["findings"], *sorted(sides.finding.tolist())))
    chosen = {name: np.flatnonzero(sides.finding == name) for name in names}
    chosen = {name: rows for name, rows in chosen.items() if len(rows)}
    rankings = [Ranking(sides.left[rows].astype(np.float64), sides.margin[rows]) for rows in chosen.values()]
    positions = np.searchsorted(evidence.details["rows"], sides.row)

    def statistic(weights):
        drawn = np.take(weights, positions, axis=1)
        by_finding = [ranking(drawn[:, rows])[0] for ranking, rows in zip(rankings, chosen.values())]
        return {LEFT_RIGHT: np.stack(by_finding, axis=1)}

    estimate = evidence.distribution(evidence.subjects, statistic)[LEFT_RIGHT]
    missing = [missing_class(sides.left[rows].astype(np.float64)) for rows in chosen.values()]
    subjects = evidence.subjects[positions]
    alone = [_alone_on_a_side(subjects[rows], sides.left[rows]) for rows in chosen.values()]
    by_finding = intervals(estimate, list(chosen), evidence.confidence, missing, alone)
    mean = Estimate(macro_mean(estimate.value), macro_mean(estimate.distribution))
    if not np.isnan(mean.value):
        evidence.estimates["laterality", "mean", LEFT_RIGHT] = mean
    numbers = {
        name: {"num_left": int(sides.left[rows].sum()), "num_right": int((~sides.left[rows]).sum())}
        for name, rows in chosen.items()
    }
    return {name: {LEFT_RIGHT: values} | numbers.get(name, {}) for name, values in by_finding.items()}


def _alone_on_a_side(subjects: np.ndarray, left: np.ndarray) -> str | None:
    """Why there is no interval: as of a class of one subject, of which resamples say nothing."""
    numbers = {"left": len(np.unique(subjects[left])), "right": len(np.unique(subjects[~left]))}
    side = min(numbers, key=numbers.__getitem__)
    return f"{numbers[side]} subject on the {side}" if numbers[side] < MIN_SUBJECTS else None


def _radiologist(evidence: Evidence, dataset: Dataset) -> dict:
    """The column `radiologist`: another radiologist's hit rate, IoU and Dice against the ground-truth masks."""
    column = dataset.select_columns("radiologist").select(evidence.details["rows"])["radiologist"]
    answers = [(i, answer) for i, of_image in enumerate(column) for answer in of_image]
    if not answers:
        return {}
    positions = np.array([i for i, _ in answers])
    findings = np.array([answer["finding"] for _, answer in answers])
    hits, ious = (np.array([answer[key] for _, answer in answers], dtype=np.float64) for key in ("hit", "iou"))
    names = [name for name in dict.fromkeys((*evidence.details["findings"], *sorted(findings))) if name in findings]
    stacked = np.column_stack([hits, ious, dice(ious)])

    def statistic(weights):
        means = group_means(stacked, findings, names, np.take(weights, positions, axis=1))  # (b, G, 3)
        return dict(zip(("pointing_game", "iou", "dice"), np.moveaxis(means, 2, 0)))

    subjects = [evidence.subjects[positions[findings == name]] for name in names]
    alone = ["1 subject" if len(np.unique(of_finding)) < MIN_SUBJECTS else None for of_finding in subjects]
    result = {
        measure: intervals(estimate, names, evidence.confidence, (), alone)
        for measure, estimate in evidence.distribution(evidence.subjects, statistic).items()
        if not np.isnan(estimate.value).all()
    }
    result["num_masks"] = {name: int((findings == name).sum()) for name in names}
    return {"radiologist": result}


def _tokens(maps: MapScores) -> list[dict]:
    """The most frequent tokens alone: against boxes, plain, at the resolution of the pixels."""
    rows = []
    for token, number in Counter(maps.token[maps.token != ""].tolist()).most_common(MAX_TOKENS):
        chosen = maps.token == token
        means = {m.name: float(maps.of(PLAIN, m.of_map)[chosen].mean()) for m in shown_in(TOKENS)}
        rows.append({"token": token, "num_maps": number} | means)
    return rows


def _means(evidence: Evidence, subjects: np.ndarray, values: dict[str, np.ndarray], key: tuple[str, ...]) -> dict:
    """By name: the mean of values (N,) with its interval."""
    stacked = np.stack(list(values.values()), axis=1)
    estimate = evidence.distribution(subjects, lambda weights: {"mean": weighted_mean(stacked, weights)})["mean"]
    result = {}
    for name, value, samples in zip(values, estimate.value, estimate.distribution.T):
        evidence.estimates[*key, name] = Estimate(value, samples)
        result[name] = interval(float(value), samples, evidence.confidence)
    return result
