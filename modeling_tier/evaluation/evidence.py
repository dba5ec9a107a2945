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
    macro_mean,
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
# With fewer subjects of a class there is no interval; with few it covers less than it says.
_FEWEST_SUBJECTS, _FEW_SUBJECTS = 2, 10
# Relative difference of the share that a place takes of the picture, up to which two models see the same.
_SAME_CHANCE = 0.03


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
    subjects: np.ndarray | None = None
    """Of each row that was read."""
    units: dict[str, Unit] = field(default_factory=dict)
    calibrated: dict[str, np.ndarray] = field(default_factory=dict)
    """By unit (N, F): probabilities after calibration on the validation set."""
    estimates: dict[tuple, Estimate] = field(default_factory=dict)
    """By place in `metrics`."""
    undefined: dict[tuple, list[str | None]] = field(default_factory=dict)
    no_interval: dict[str, list[str | None]] = field(default_factory=dict)
    """By unit, for each finding."""
    reader_unit: str | None = None
    reader_points: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    """By finding and reader: sensitivity and specificity."""

    def distribution(self, subjects: np.ndarray, statistic) -> dict[str, Estimate]:
        # Of a single subject every resample is the same: that is no certainty.
        number = self.resamples if len(np.unique(subjects)) > 1 else 0
        return distribution(Resamples(subjects, number, self.seed), statistic)


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
    evidence.subjects = subjects
    if "map/row" in scored:
        _localise(evidence)
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
        kind, which, name = place
        if kind == "classification":
            by_finding = differences(
                estimate, other, findings, model.confidence, model.undefined[place], model.no_interval[which]
            )
            into = result.setdefault(kind, {}).setdefault(which, {})
            for finding, values in by_finding.items():
                into.setdefault(finding, {})[name] = values
        elif kind == "retrieval" or _same_tokens_and_patches(model, baseline):
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
    if "map/row" in model.scored and "map/row" in baseline.scored:
        result["localisation_maps"] = _compare_maps(model, baseline)
    return result


def _same_tokens_and_patches(model: Evidence, baseline: Evidence) -> bool:
    """Entropies of other numbers of patches, or over other tokens, cannot be subtracted."""
    counts = ("num_patches", "max_patch_entropy")
    return all(np.array_equal(model.scored[name], baseline.scored[name]) for name in counts)


def _compare_maps(model: Evidence, baseline: Evidence) -> list[dict]:
    """Over the maps that both have: of two models that crop otherwise each may see places that the other does not."""
    rows = []
    for how in _ways(model.scored):
        if how not in set(_ways(baseline.scored)):
            continue
        mine, theirs = _maps(model, how), _maps(baseline, how)
        common = sorted(set(mine.keys) & set(theirs.keys))
        if not common:
            continue
        mine, theirs = mine.chosen(common), theirs.chosen(common)
        names = [name for name in finding_order(model.scored, model.details["findings"]) if name in mine.findings]
        own, other = _map_estimates(model, mine, names), _map_estimates(baseline, theirs, names)
        row = dict(zip(("text", "place", "resolution", "map"), how)) | {"num_maps": len(common)}
        by_name = {
            name: differences(own[name], other[name], names, model.confidence)["mean"]
            for name in (*_GROUNDING, "chance")
        }
        row["chance"] = by_name.pop("chance")["value"]
        level = macro_mean(other["chance"].value)
        if abs(row["chance"]) > _SAME_CHANCE * level:
            row["incomparable"] = (
                f"The place takes {level + row['chance']:.3f} of what one model sees and {level:.3f} of what the "
                "other sees: their maps are not of the same picture."
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

    return np.array([name(*each) for each in zip(rows, table["subject_id"], table["study_id"])])


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
    evidence.no_interval[name] = []
    for i, finding in enumerate(findings):
        classes = {"positive": unit.labels[:, i] == 1, "negative": unit.labels[:, i] == 0}
        subjects = {kind: len(np.unique(unit.subjects[of])) for kind, of in classes.items()}
        rare = min(subjects, key=subjects.get)
        why = f"{subjects[rare]} {rare} subject" if subjects[rare] < _FEWEST_SUBJECTS else None
        evidence.no_interval[name].append(why)
        result[finding] |= {f"num_{kind}": int(of.sum()) for kind, of in classes.items()}
        if subjects[rare] < _FEW_SUBJECTS:
            result[finding]["few_subjects"] = subjects[rare]
        result[finding] |= {key: values[i] for key, values in thresholds.items()}
    for measure, estimate in evidence.distribution(unit.subjects, statistic).items():
        place = ("classification", name, measure)
        if measure.startswith("ece"):  # resampling adds to it: its distribution says nothing about the value
            estimate = Estimate(estimate.value, estimate.distribution[:0])
        evidence.estimates[place] = estimate
        evidence.undefined[place] = statistic.undefined.get(measure, [None] * len(findings))
        reasons = evidence.undefined[place], evidence.no_interval[name]
        by_finding = intervals(estimate, findings, evidence.confidence, *reasons)
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
    reasons = evidence.no_interval[name]
    result: dict = {"unit": name, "by_reader": {}}
    all_estimates = []
    for reader, answers in decisions.items():
        confusion = Confusion(unit.labels, np.array(answers, dtype=np.float64))

        def statistic(weights, confusion=confusion):
            counts = confusion(weights)
            return {key: measure(counts) for key, measure in measures.items()}

        estimates = evidence.distribution(unit.subjects, statistic)
        all_estimates.append(estimates)
        answered = (~np.isnan(np.array(answers, dtype=np.float64)) & ~np.isnan(unit.labels)).sum(axis=0)
        result["by_reader"][reader] = _turned(
            {
                key: intervals(each, findings, evidence.confidence, undefined, reasons)
                for key, each in estimates.items()
            }
        )
        for i, finding in enumerate(findings):
            result["by_reader"][reader][finding]["num_read"] = int(answered[i])
            point = float(estimates["sensitivity"].value[i]), float(estimates["specificity"].value[i])
            if not np.isnan(point).any():
                evidence.reader_points.setdefault(finding, {})[reader] = point
    evidence.reader_unit = name
    # Over those who have answered.
    of_all = lambda key, part: macro_mean(np.stack([each[key][part] for each in all_estimates], axis=-1))  # noqa: E731
    means = {key: Estimate(of_all(key, 0), of_all(key, 1)) for key in ("mcc", "f1")}
    result["mean_of_readers"] = _turned(
        {key: intervals(each, findings, evidence.confidence, undefined, reasons) for key, each in means.items()}
    )
    own = {key: evidence.estimates.get(("classification", name, key)) for key in means}
    if all(own.values()):
        result["model_minus_readers"] = _turned(
            {
                key: differences(
                    own[key],
                    means[key],
                    findings,
                    evidence.confidence,
                    evidence.undefined["classification", name, key],
                    reasons,
                )
                for key in means
            }
        )
    return result


def _turned(by_measure: dict[str, dict]) -> dict:
    """From measure -> finding to finding -> measure."""
    findings = next(iter(by_measure.values()))
    return {finding: {measure: of[finding] for measure, of in by_measure.items()} for finding in findings}


class Maps(NamedTuple):
    """One way of looking at the maps, a row each; of the tokens of a phrase the mean."""

    keys: list[tuple[int, str, str]]
    """Row of the data set, finding and phrase."""
    values: np.ndarray
    """(M, 4) hit, cnr, miou and chance."""
    ious: np.ndarray
    """(M, 19) at each threshold."""

    @property
    def findings(self) -> np.ndarray:
        return np.array([finding for _, finding, _ in self.keys])

    def chosen(self, keys: list[tuple[int, str, str]]) -> "Maps":
        place = {key: i for i, key in enumerate(self.keys)}
        rows = [place[key] for key in keys]
        return Maps(keys, self.values[rows], self.ious[rows])


def _ways(scored: dict[str, np.ndarray]) -> list[tuple[str, str, str, str]]:
    """Text, place, resolution and kind of the maps that were measured."""
    return [
        (text, place, resolution, kind)
        for text in TEXTS
        for place in PLACES
        for resolution in RESOLUTIONS
        for kind in MAPS
        if f"map/{variant_name(place, resolution, kind)}:hit" in scored and map_rows(scored, text).any()
    ]


def _maps(evidence: Evidence, how: tuple[str, str, str, str]) -> Maps:
    """Without those whose place is nowhere, or everywhere, in what the model sees."""
    scored, (text, *variant) = evidence.scored, how
    named = f"map/{variant_name(*variant)}"
    known = np.flatnonzero(map_rows(scored, text) & ~np.isnan(scored[f"{named}:cnr"]))
    keys = list(zip(*(scored[f"map/{name}"][known].tolist() for name in ("row", "finding", "phrase"))))
    unique = list(dict.fromkeys(keys))
    number = {key: i for i, key in enumerate(unique)}
    codes = np.array([number[key] for key in keys], dtype=np.int64)
    columns = [scored[f"{named}:{name}"][known] for name in ("hit", "cnr", "mious", "chance")]
    stacked = np.column_stack([*columns, scored[f"{named}:ious"][known]]).astype(np.float64)
    sums = np.stack([np.bincount(codes, column, len(unique)) for column in stacked.T], axis=1)
    means = sums / np.bincount(codes, minlength=len(unique))[:, None]
    return Maps(unique, means[:, :4], means[:, 4:])


def _map_estimates(evidence: Evidence, maps: Maps, names: list[str]) -> dict[str, Estimate]:
    """Each finding's means, for the names. IoU at the threshold that is best for the finding, on these maps."""
    findings, iou = maps.findings, np.empty(len(maps.keys))
    for name in names:
        rows = findings == name
        iou[rows] = maps.ious[rows, maps.ious[rows].mean(axis=0).argmax()]
    values = np.column_stack([maps.values[:, :3], iou, maps.values[:, 3]])
    place = np.searchsorted(evidence.details["rows"], [row for row, _, _ in maps.keys])

    def statistic(weights):  # of all images: the draws do not depend on which of them have maps
        means = group_means(values, findings, names, np.take(weights, place, axis=1))  # (b, G, 5)
        return {name: means[:, :, k] for k, name in enumerate((*_GROUNDING, "chance"))}

    return evidence.distribution(evidence.subjects, statistic)


def _localise(evidence: Evidence) -> None:
    evidence.metrics["localisation_maps"] = []
    for how in _ways(evidence.scored):
        maps = _maps(evidence, how)
        findings = maps.findings
        names = [name for name in finding_order(evidence.scored, evidence.details["findings"]) if name in findings]
        if not names:
            continue
        estimates = _map_estimates(evidence, maps, names)
        rows = np.searchsorted(evidence.details["rows"], [row for row, _, _ in maps.keys])
        subjects = [len(np.unique(evidence.subjects[rows[findings == name]])) for name in names]
        alone = [f"{number} subject" if number < _FEWEST_SUBJECTS else None for number in subjects]
        by_finding = {name: intervals(each, names, evidence.confidence, (), alone) for name, each in estimates.items()}
        row = dict(zip(("text", "place", "resolution", "map"), how))
        row |= {"num_maps": len(maps.keys), "chance": by_finding["chance"]["mean"]["value"]}
        evidence.metrics["localisation_maps"].append(row | {name: by_finding[name]["mean"] for name in _GROUNDING})
        if how == (TEXTS[0], PLACES[0], RESOLUTIONS[0], MAPS[0]):
            evidence.metrics["localisation_intervals"] = {name: by_finding[name] for name in _GROUNDING}
    evidence.metrics["localisation_tokens"] = _tokens(evidence.scored)


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
