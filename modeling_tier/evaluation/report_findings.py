# Licensed under the Apache License, Version 2.0.
"""The report's sections on findings: classification, readers, calibration."""

from pathlib import Path

from .document import Definitions, Paragraph, Subheading, flat_text
from .measures import CALIBRATION, DECISION, MAIN, NEGATION, RANKING, group, shown_in
from .report_cells import (
    count_cell,
    definitions,
    difference_cell,
    differences_of,
    estimate_cell,
    figure_blocks,
    finding_column,
    has_intervals,
    listed,
    lookup,
    models_of,
    p_cell,
    table_blocks,
    threshold_cell,
)


UNITS = {
    "image": "by image",
    "study_mean": "by study, mean over its images",
    "study_max": "by study, largest over its images",
}
_FEW = "†"


def classification(result: dict, figures: dict[str, Path]) -> list:
    models = models_of(result)
    blocks: list = []
    for unit, title in UNITS.items():
        parts = {name: lookup(metrics, "classification", unit) for name, metrics in models.items()}
        parts = {name: part for name, part in parts.items() if part}
        if parts:
            blocks += _classification_of(result, figures, unit, title, parts)
    if any("auroc_negated" in part for metrics in models.values() for part in _image_parts(metrics)):
        blocks.append(Definitions(definitions(group(NEGATION))))
    for name, metrics in models.items():
        members = metrics.get("members", {})
        columns = {"mean AUROC": [estimate_cell(lookup(member, "auroc", "mean")) for member in members.values()]}
        blocks += table_blocks(f"{name}: its single members, by image", "member", list(members), columns)
    return blocks


def _image_parts(metrics: dict) -> list[dict]:
    return list((lookup(metrics, "classification", "image") or {}).values())


def _classification_of(result: dict, figures: dict[str, Path], unit: str, title: str, parts: dict[str, dict]) -> list:
    """Of one unit: figure, tables of each model and of the differences."""
    blocks: list = [Subheading(title.capitalize())]
    means = listed(
        f"{flat_text(estimate_cell(lookup(part, 'mean', 'auroc')))} for {name}" for name, part in parts.items()
    )
    alt = f"ROC curves {title} in one panel a finding. Mean area under the curve: {means}."
    blocks += figure_blocks(figures, f"roc_{unit}", alt, f"ROC curves {title}")
    few = {finding for part in parts.values() for finding, values in part.items() if "few_subjects" in values}
    if few and has_intervals(result):
        text = (
            f"{_FEW} Fewer than 10 subjects with the finding, or without it: intervals and p values promise more "
            "than they hold. With a single one there are none."
        )
        blocks.append(Paragraph(text, "note"))
    for name, part in parts.items():
        findings = [f"{finding} {_FEW}" if finding in few else finding for finding in part]
        columns = {m.title: finding_column(part, m.name, estimate_cell) for m in group(RANKING)}
        columns |= {
            "n+": finding_column(part, "num_positive", count_cell),
            "n-": finding_column(part, "num_negative", count_cell),
        }
        blocks += table_blocks(f"{name}: ranking, {title}", "finding", findings, columns)
        columns = {m.title: finding_column(part, m.name, estimate_cell) for m in group(NEGATION)}
        blocks += table_blocks(f"{name}: negation, {title}", "finding", findings, columns)
        columns = {}
        for threshold in dict.fromkeys(m.threshold for m in group(DECISION)):
            taken = [m for m in group(DECISION) if m.threshold == threshold]
            columns |= {m.title: finding_column(part, m.name, estimate_cell) for m in taken}
            columns[f"threshold ({taken[0].title})"] = finding_column(part, threshold, threshold_cell)
        caption = f"{name}: decisions at the thresholds of the validation set, {title}"
        blocks += table_blocks(caption, "finding", findings, columns)
    for name, difference in differences_of(result).items():
        part = lookup(difference, "classification", unit) or {}
        findings = [f"{finding} {_FEW}" if finding in few else finding for finding in part]
        auroc = [values.get("auroc") for values in part.values()]
        columns = {"AUROC": [difference_cell(values, p=False) for values in auroc]}
        columns |= {
            f"p ({test})": [p_cell(values, f"p_{test.lower()}") for values in auroc]
            for test in ("bootstrap", "DeLong", "Holm")
        }
        blocks += table_blocks(f"{name}: AUROC, {title}", "finding", findings, columns)
        others = [m for m in group(RANKING, NEGATION, DECISION, CALIBRATION) if m.name != "auroc"]
        for measures in ([m for m in others if MAIN in m.shown], [m for m in others if MAIN not in m.shown]):
            columns = {m.title: finding_column(part, m.name, difference_cell) for m in measures}
            blocks += table_blocks(f"{name}, {title}; p by bootstrap", "finding", findings, columns)
    return blocks


def readers(result: dict) -> list:
    models = {name: metrics for name, metrics in models_of(result).items() if "readers" in metrics}
    if not models:
        return []
    first = next(iter(models.values()))["readers"]
    unit = first["unit"]
    text = f"The readers are scored against the same ground truth as the models, {UNITS[unit]}"
    text += ", which are taken at the thresholds of the validation set" if "validation" in result else ""
    blocks: list = [Paragraph(f"{text}. Their mean is over those who have answered.")]
    judged = lookup(models, next(iter(models)), "classification", unit)
    for reader, part in first["by_reader"].items():
        known = {
            finding: values["num_positive"] + values["num_negative"]
            for finding, values in judged.items()
            if finding != "mean"
        }
        gaps = [f"{n - part[f]['num_read']:,} of {n:,} for {f}" for f, n in known.items() if part[f]["num_read"] < n]
        if gaps:
            blocks.append(Paragraph(f"{reader} has no plain answer (blank, or uncertain): {listed(gaps)}.", "note"))
    for measure in group(DECISION):
        columns = first["by_reader"] | {"mean of the readers": first["mean_of_readers"]}
        findings = list(dict.fromkeys(finding for part in columns.values() for finding in part))
        cells = {
            name: [estimate_cell(lookup(part, f, measure.name)) for f in findings] for name, part in columns.items()
        }
        blocks += table_blocks(f"The readers: {measure.title}", "finding", findings, cells)
    for name, metrics in models.items():
        difference = metrics["readers"].get("model_minus_readers", {})
        columns = {}
        for m in shown_in(MAIN, DECISION):
            own = [estimate_cell(lookup(metrics, "classification", unit, finding, m.name)) for finding in difference]
            columns[f"{m.title} of {name}"] = own
            columns[f"{m.title}, minus readers"] = [difference_cell(part.get(m.name)) for part in difference.values()]
        caption = f"{name} minus the mean of the readers; p by bootstrap"
        blocks += table_blocks(caption, "finding", list(difference), columns)
    return blocks


def calibration(result: dict, figures: dict[str, Path]) -> list:
    models = models_of(result)
    blocks: list = []
    for unit, title in UNITS.items():
        parts = {name: lookup(metrics, "classification", unit) or {} for name, metrics in models.items()}
        findings = list(dict.fromkeys(finding for part in parts.values() for finding in part))
        columns = {
            (f"{name}: " if len(parts) > 1 else "") + m.title: [
                estimate_cell(lookup(part, f, m.name)) for f in findings
            ]
            for name, part in parts.items()
            for m in group(CALIBRATION)
        }
        blocks += table_blocks(f"Expected calibration error (ECE), {title}", "finding", findings, columns)
    alt = f"Fraction of positives against the mean probability in ten bins, for {listed(models)}."
    caption = "Reliability by image, all findings together: on the diagonal the probabilities are right"
    blocks = figure_blocks(figures, "reliability", alt, caption) + blocks
    if blocks:
        text = (
            "The distance between the probability that a model gives and the fraction of positives, in ten bins, "
            "weighted by how many probabilities a bin holds: 0 is best. Resampling adds to it, so it has no interval. "
            "A zero-shot model has seen no labels, so its probabilities need not be right as they come."
        )
        if "validation" in result:
            text += " “Calibrated”: by a logistic regression of the score for each finding on the validation set."
        blocks.insert(0, Paragraph(text))
    return blocks
