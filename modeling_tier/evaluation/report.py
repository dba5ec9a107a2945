# Licensed under the Apache License, Version 2.0.
"""
The report of an evaluation, as one HTML file that needs nothing else and as Markdown.

Each part of `metrics.json` becomes a list of blocks (paragraphs, tables, figures); two short functions at the end turn
the blocks into HTML and into Markdown, so both say the same.
"""

import base64
import html
import json
import math
import os
import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from .failure_modes import has_collapsed, has_fixed_peaks
from .measures import (
    CALIBRATION,
    DECISION,
    LOCALISATION,
    MAIN,
    RANKING,
    RETRIEVAL,
    SPARSITY,
    TOKENS,
    WHOLE_SET,
    Measure,
    group,
    shown_in,
)


# What a cell holds: a text, or pieces that stay whole (a number, its interval), or a list with one text per line.
Cell = str | tuple[str, ...] | list[str]


@dataclass
class Paragraph:
    text: str
    kind: str = "text"
    """"text", "note" or "warning"."""


@dataclass
class Subheading:
    text: str


@dataclass
class Definitions:
    items: dict[str, str]


@dataclass
class Table:
    """The first column names the row."""

    caption: str
    columns: list[str]
    rows: list[list[Cell]]
    texts: bool = False
    """Whether the cells are texts, set to the left, and not numbers."""


@dataclass
class Figure:
    path: Path
    alt: str
    caption: str


@dataclass
class Code:
    text: str


@dataclass
class Section:
    title: str
    blocks: list = field(default_factory=list)

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z]+", "-", self.title.lower()).strip("-")


UNITS = {
    "image": "by image",
    "study_mean": "by study, mean over its images",
    "study_max": "by study, largest over its images",
}
_FEW = "†"

# Pixels from which a figure is not made smaller than its texts can be read, but scrolls in its box.
_WIDE = 1000
# In print: rows up to which a table stays on one page, and columns from which an interval may be cut into two lines.
_SHORT, _MANY = 15, 8


def write_report(result: dict, figures: Path, output_dir: Path) -> None:
    """
    Write `report.html` and `report.md`.

    Args:
        result: what `metrics.json` holds.
        figures: folder with the PNG files. Shown are `roc_UNIT` for each unit of the classification, `reliability`,
            `patch_similarity` and `similarity_maps`, where they exist.
        output_dir: where both files go. The Markdown file links to the figures; the HTML file contains them.
    """
    sections = report_sections(result, {path.stem: path for path in sorted(figures.glob("*.png"))})
    title = f"Zero-shot evaluation: {_listed(_models(result))} on {result['dataset']} ({result['split']})"
    (output_dir / "report.html").write_text(as_html(title, sections), encoding="utf-8")
    (output_dir / "report.md").write_text(as_markdown(title, sections, output_dir), encoding="utf-8")


def report_sections(result: dict, figures: dict[str, Path]) -> list[Section]:
    """The sections that have something to say, in order; `figures` by the name of the file."""
    sections = [
        Section("Summary", _summary(result)),
        Section("How it was measured", _method(result)),
        Section("Classification", _classification(result, figures)),
        Section("Readers", _readers(result)),
        Section("Calibration", _calibration(result, figures)),
        Section("Localisation", _localisation(result)),
        Section("Sparsity", _sparsity(result, figures)),
        Section("Retrieval", _retrieval(result)),
        Section("Example maps", _maps(result, figures)),
        Section("Prompts", _prompts(result)),
        Section("To run it again", _again(result)),
    ]
    return [section for section in sections if section.blocks]


# The sections


def _summary(result: dict) -> list:
    models, counts, data = _models(result), result["counts"], result["dataset"]
    paths = [result["model"], *(other["model"] for other in result.get("compared", {}).values())]
    named = _listed(f"{name} ({path})" if name != path else name for name, path in zip(models, paths))
    number = " of ".join(f"{counts[name]:,} {name}" for name in ("images", "studies", "subjects") if name in counts)
    blocks: list = [Paragraph(f"{named}: evaluated zero-shot on the {result['split']} split of {data}, {number}.")]
    if data == "synthetic":
        text = "The pictures are drawings made by code: pictures and numbers are of no clinical meaning."
    else:
        text = (
            f"This file may hold pictures and sentences of {data}. The rules of access to that data set hold for this "
            "file too: check them before you pass it on."
        )
    blocks.append(Paragraph(text, "note"))
    blocks.append(Paragraph("For research. Neither the models nor this report are a medical device.", "note"))
    caption = "The main numbers, by image and with means over the findings"
    if any("localisation_maps" in metrics for metrics in models.values()):
        caption += "; maps of whole sentences over the pixels"
    if _has_intervals(result):
        caption += f"; in brackets {result['settings']['confidence']:.0%} intervals"
    by_finding = shown_in(MAIN, RANKING, DECISION)
    titles = {m.name: f"mean {m.title}" if m in by_finding else m.title for m in shown_in(MAIN)}
    return blocks + _beside(result, caption, titles, _main_numbers) + _warnings(models)


def _main_numbers(part: dict) -> dict:
    """Of a model, or of a difference."""
    maps = [entry for entry in part.get("localisation_maps", []) if _map_name(entry) == _map_name({})]
    sparsity = _at(part, "sparsity", "without_padding") or {}
    return (_at(part, "classification", "image", "mean") or {}) | (maps[0] if maps else {}) | sparsity


def _method(result: dict) -> list:
    where = f"{result['dataset']}, split {result['split']}{_with_options(result.get('options'))}."
    items = {"Data": where} | _method_of_scores(result) | _method_of_intervals(result)
    blocks: list = [Definitions(items)]
    blocks += [Paragraph(f"While the data were loaded: {note}", "note") for note in result.get("notes", [])]
    notes = result.get("validation", {}).get("notes", [])
    blocks += [Paragraph(f"While the validation data were loaded: {note}", "note") for note in notes]
    return blocks + _counts(result)


def _method_of_scores(result: dict) -> dict[str, str]:
    if not _at(result, "prompts", "findings"):
        return {}
    items = {"Score of a finding": f"{result['protocol']['score']} (protocol “{result['protocol']['name']}”)."}
    if "study_mean" in result["metrics"].get("classification", {}):
        items["Studies"] = (
            "Scored by the mean, or by the largest, of their images' scores; a study shows what any of its images "
            "shows."
        )
    if "validation" not in result:
        return items | {
            "Validation set": "None was named. So there are no MCC, F1, sensitivity and specificity: their thresholds "
            "must not be chosen on the images that they are judged by."
        }
    validation = result["validation"]
    items["Validation set"] = (
        f"{validation['num_images']:,} images, the {validation['split']} split of {validation['dataset']}"
        f"{_with_options(validation.get('options'))}."
    )
    items["Thresholds"] = (
        "Chosen for each finding on the validation set, one with the best MCC there and one with the best F1; a "
        "score above it is positive. For studies they are chosen on its studies, or on its images where none has "
        "several. MCC, sensitivity and specificity are taken at the first, F1 at the second. Intervals and p "
        "values take the thresholds (and the calibration) as given: another validation set would have given "
        "others."
    )
    return items


def _method_of_intervals(result: dict) -> dict[str, str]:
    settings, items = result["settings"], {}
    if _has_intervals(result):
        items["Intervals"] = (
            f"{settings['confidence']:.0%}, written as value (low to high): percentiles of a bootstrap over subjects, "
            "not over images (without a subject a study, without a study an image stands for itself), "
            f"{settings['resamples']:,} resamples, seed {settings['seed']}. A resample that lacks a class of a "
            "finding is skipped for it, and its mean is over the other findings; metrics.json says how many. The "
            "intervals speak of these models on other subjects, not of models from other training runs."
        )
    items["Means"] = "Unweighted, over the findings for which the number is defined."
    if result.get("compared"):
        items["Comparison"] = (
            "Both models are taken on the same resamples; p (bootstrap) is two-sided"
            + (f" and at least {2 / (settings['resamples'] + 1):.3f}" if _has_intervals(result) else "")
            + ". p (DeLong) is DeLong's test of two AUROCs on the same cases, with Obuchowski's variance where a "
            "subject has several images; p (Holm) is that after Holm's correction over the findings. No other p is "
            "corrected for the number of comparisons."
        )
    return items


def _counts(result: dict) -> list:
    counts = result["counts"]
    titles = {name: name for name in ("images", "studies", "subjects", "unreadable", "regions", "texts")}
    titles |= {"unreadable": "unreadable images, skipped", "regions": "ground-truth regions"}
    table = {title: f"{counts[name]:,}" for name, title in titles.items() if name in counts}
    table["views"] = ", ".join(f"{number:,} {view}" for view, number in counts.get("views", {}).items())
    blocks = _table("What was evaluated", "", list(table), {"number": list(table.values())})
    reasons = result["metrics"].get("unreadable", [])
    numbers = [str(i + 1) for i in range(len(reasons))]
    blocks += _table("Images that could not be read", "", numbers, {"reason": reasons}, texts=True)
    labels = counts.get("labels", {})
    columns = {
        kind: [f"{numbers[kind]:,}" for numbers in labels.values()]
        for kind in ("positive", "negative", "uncertain", "blank")
    }
    meaning = {"ignore": "ignored", "zeros": "counted as negative", "ones": "counted as positive"}
    policy = ", ".join(f"{kind} ones {meaning[result['labels'][kind]]}" for kind in ("uncertain", "blank"))
    return blocks + _table(f"Labels of the images; {policy}", "finding", list(labels), columns)


def _classification(result: dict, figures: dict[str, Path]) -> list:
    models = _models(result)
    blocks: list = []
    for unit, title in UNITS.items():
        parts = {name: _at(metrics, "classification", unit) for name, metrics in models.items()}
        parts = {name: part for name, part in parts.items() if part}
        if parts:
            blocks += _classification_of(result, figures, unit, title, parts)
    for name, metrics in models.items():
        members = metrics.get("members", {})
        columns = {"mean AUROC": [_estimate(_at(member, "auroc", "mean")) for member in members.values()]}
        blocks += _table(f"{name}: its members, each by itself, by image", "member", list(members), columns)
    return blocks


def _classification_of(result: dict, figures: dict[str, Path], unit: str, title: str, parts: dict[str, dict]) -> list:
    """Of one unit: figure, tables of each model and of the differences."""
    blocks: list = [Subheading(title.capitalize())]
    means = _listed(f"{_flat(_estimate(_at(part, 'mean', 'auroc')))} for {name}" for name, part in parts.items())
    alt = f"ROC curves {title} in one panel a finding. Mean area under the curve: {means}."
    blocks += _figure(figures, f"roc_{unit}", alt, f"ROC curves {title}")
    few = {finding for part in parts.values() for finding, values in part.items() if "few_subjects" in values}
    if few and _has_intervals(result):
        text = (
            f"{_FEW} Fewer than 10 subjects with the finding, or without it: intervals and p values promise more "
            "than they hold. With a single one there are none."
        )
        blocks.append(Paragraph(text, "note"))
    for name, part in parts.items():
        findings = [f"{finding} {_FEW}" if finding in few else finding for finding in part]
        columns = {m.title: _column(part, m.name, _estimate) for m in group(RANKING)}
        columns |= {"n+": _column(part, "num_positive", _count), "n-": _column(part, "num_negative", _count)}
        blocks += _table(f"{name}: ranking, {title}", "finding", findings, columns)
        columns = {}
        for threshold in dict.fromkeys(m.threshold for m in group(DECISION)):
            taken = [m for m in group(DECISION) if m.threshold == threshold]
            columns |= {m.title: _column(part, m.name, _estimate) for m in taken}
            columns[f"threshold ({taken[0].title})"] = _column(part, threshold, _threshold)
        caption = f"{name}: decisions at the thresholds of the validation set, {title}"
        blocks += _table(caption, "finding", findings, columns)
    for name, difference in _differences(result).items():
        part = _at(difference, "classification", unit) or {}
        findings = [f"{finding} {_FEW}" if finding in few else finding for finding in part]
        auroc = [values.get("auroc") for values in part.values()]
        columns = {"AUROC": [_difference(values, p=False) for values in auroc]}
        columns |= {
            f"p ({test})": [_p(values, f"p_{test.lower()}") for values in auroc]
            for test in ("bootstrap", "DeLong", "Holm")
        }
        blocks += _table(f"{name}: AUROC, {title}", "finding", findings, columns)
        others = [m for m in group(RANKING, DECISION, CALIBRATION) if m.name != "auroc"]
        for measures in ([m for m in others if MAIN in m.shown], [m for m in others if MAIN not in m.shown]):
            columns = {m.title: _column(part, m.name, _difference) for m in measures}
            blocks += _table(f"{name}, {title}; p by bootstrap", "finding", findings, columns)
    return blocks


def _column(part: dict[str, dict], name: str, cell: Callable[..., Cell]) -> list[Cell]:
    """The cells of one measure, by finding."""
    return [cell(values.get(name)) for values in part.values()]


def _readers(result: dict) -> list:
    models = {name: metrics for name, metrics in _models(result).items() if "readers" in metrics}
    if not models:
        return []
    first = next(iter(models.values()))["readers"]
    unit = first["unit"]
    text = f"The readers are scored against the same ground truth as the models, {UNITS[unit]}"
    text += ", which are taken at the thresholds of the validation set" if "validation" in result else ""
    blocks: list = [Paragraph(f"{text}. Their mean is over those who have answered.")]
    judged = _at(models, next(iter(models)), "classification", unit)
    for reader, part in first["by_reader"].items():
        known = {
            finding: values["num_positive"] + values["num_negative"]
            for finding, values in judged.items()
            if finding != "mean"
        }
        gaps = [f"{n - part[f]['num_read']:,} of {n:,} for {f}" for f, n in known.items() if part[f]["num_read"] < n]
        if gaps:
            blocks.append(Paragraph(f"{reader} has no plain answer (blank, or uncertain): {_listed(gaps)}.", "note"))
    for measure in group(DECISION):
        columns = first["by_reader"] | {"mean of the readers": first["mean_of_readers"]}
        findings = list(dict.fromkeys(finding for part in columns.values() for finding in part))
        cells = {name: [_estimate(_at(part, f, measure.name)) for f in findings] for name, part in columns.items()}
        blocks += _table(f"The readers: {measure.title}", "finding", findings, cells)
    for name, metrics in models.items():
        difference = metrics["readers"].get("model_minus_readers", {})
        columns = {}
        for m in shown_in(MAIN, DECISION):
            own = [_estimate(_at(metrics, "classification", unit, finding, m.name)) for finding in difference]
            columns[f"{m.title} of {name}"] = own
            columns[f"{m.title}, minus readers"] = [_difference(part.get(m.name)) for part in difference.values()]
        caption = f"{name} minus the mean of the readers; p by bootstrap"
        blocks += _table(caption, "finding", list(difference), columns)
    return blocks


def _calibration(result: dict, figures: dict[str, Path]) -> list:
    models = _models(result)
    blocks: list = []
    for unit, title in UNITS.items():
        parts = {name: _at(metrics, "classification", unit) or {} for name, metrics in models.items()}
        findings = list(dict.fromkeys(finding for part in parts.values() for finding in part))
        columns = {
            (f"{name}: " if len(parts) > 1 else "") + m.title: [_estimate(_at(part, f, m.name)) for f in findings]
            for name, part in parts.items()
            for m in group(CALIBRATION)
        }
        blocks += _table(f"Expected calibration error (ECE), {title}", "finding", findings, columns)
    alt = f"Fraction of positives against the mean probability in ten bins, for {_listed(models)}."
    caption = "Reliability by image, all findings together: on the diagonal the probabilities are right"
    blocks = _figure(figures, "reliability", alt, caption) + blocks
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


def _localisation(result: dict) -> list:
    models = _models(result)
    blocks: list = []
    titles = {m.name: m.title for m in group(LOCALISATION)}
    for name, metrics in models.items():
        part, intervals = metrics.get("localisation", {}), metrics.get("localisation_intervals", {})
        findings = list(part.get("pointing_game", {}))
        columns = {
            title: [_estimate(_at(intervals, key, f) or _at(part, key, f)) for f in findings]
            for key, title in titles.items()
        }
        caption = f"{name}: maps of whole sentences over the pixels, by finding"
        if part.get("num_outside"):
            caption += (
                f"; {part['num_outside']:,} ground-truth regions lie outside what the model sees and are skipped"
            )
        blocks += _table(caption, "finding", findings, columns)
        if part.get("num_outside") and not findings:
            blocks.append(
                Paragraph(
                    f"{name}: all {part['num_outside']:,} ground-truth regions lie outside what it sees.", "warning"
                )
            )
    blocks += _map_kinds(result)
    for name, metrics in models.items():
        tokens = metrics.get("localisation_tokens", [])
        columns = {"maps": [_count(token["num_maps"]) for token in tokens]}
        columns |= {m.title: [_estimate(token.get(m.name)) for token in tokens] for m in shown_in(TOKENS)}
        caption = f"{name}: maps of single tokens over the pixels, the most frequent ones"
        blocks += _table(caption, "token", [token["token"] for token in tokens], columns)
    if blocks:
        items = _definitions(group(LOCALISATION)) | {
            "Smoothing": _smoothing(result["settings"]),
            "Single tokens": "each token of a phrase alone, small words included, punctuation not, against the region "
            "of the whole phrase; the mean over a phrase's tokens counts as one map.",
            "Maps by patch": "the patches as they are; those belong to a region of which it covers at least one half, "
            "or, if there is none, the one of which it covers most.",
        }
        blocks.insert(0, Definitions(items))
    return blocks


def _map_kinds(result: dict) -> list:
    """Every kind of map that was measured, of models and differences."""
    titles, blocks = {m.name: m.title for m in group(LOCALISATION)}, []
    everything = {name: (metrics, _estimate) for name, metrics in _models(result).items()}
    everything |= {name: (part, _difference) for name, part in _differences(result).items()}
    for name, (part, cell) in everything.items():
        maps = part.get("localisation_maps", [])
        columns = {"maps": [_count(entry.get("num_maps")) for entry in maps]}
        columns |= {title: [cell(entry.get(key)) for entry in maps] for key, title in titles.items()}
        caption = f"{name}: every kind of map, means over the findings"
        if cell is _difference:
            caption += "; of the maps that both have; p by bootstrap"
        blocks += _table(caption, "map of", [_map_name(entry) for entry in maps], columns)
        apart = [f"{_map_name(entry)}: {entry['incomparable']}" for entry in maps if "incomparable" in entry]
        blocks += [Paragraph(f"No interval and no p. {text}", "warning") for text in apart]
    return blocks


def _definitions(measures: list[Measure]) -> dict[str, str]:
    return {m.term + (f" ({m.unit})" if m.unit else ""): m.definition for m in measures}


def _smoothing(settings: dict) -> str:
    """Whether maps were smoothed, and that the authors of BioViL do it."""
    if settings.get("smooth_maps"):
        return (
            f"each map was filtered by a gaussian of {settings['smooth_maps']:g} patches before it was measured, as "
            "BioViL's authors do with 1.5. Compare these numbers only with those of maps that were smoothed alike."
        )
    return (
        "BioViL's authors filter each map by a gaussian of 1.5 patches before they measure it, which raises the CNR "
        "(in one measurement from 1.73 to 2.64, on the same maps). These maps were not smoothed (--smooth_maps 0)."
    )


def _map_name(entry: dict) -> str:
    """What kind of map it is; without an entry, the plain one of the main numbers."""
    name = "single tokens" if entry.get("text") == "token" else "whole sentence"
    name += f", by {entry.get('resolution', 'pixel')}"
    kind = entry.get("map") or ""
    name += ", contributions" if kind.startswith("contribution") else ""
    name += ", minus “No finding”" if kind.endswith("minus_no_finding") else ""
    return name + (", against masks" if entry.get("place") == "mask" else "")


def _sparsity(result: dict, figures: dict[str, Path]) -> list:
    models = _models(result)
    blocks: list = []
    if any("sparsity" in metrics for metrics in models.values()):
        items = _definitions(group(SPARSITY))
        blocks.append(Definitions(items))
    blocks += _warnings(models)
    alt = f"Cosines of the patches to the text of their image by rank, mean and standard deviation: {_listed(models)}."
    caption = (
        "Cosines of the patches to the whole text of their own image, sorted within each image: a sparse map falls"
    )
    blocks += _figure(figures, "patch_similarity", alt, f"{caption} steeply")
    titles = {m.name: m.title for m in group(SPARSITY)}
    for key, padding in {"without_padding": "padding ignored", "with_padding": "padding counted"}.items():
        caption = f"Sparsity of the maps, {padding}"
        blocks += _beside(result, caption, titles, lambda part, key=key: _at(part, "sparsity", key) or {})
    titles = {m.name: m.title for m in group(WHOLE_SET)}
    return blocks + _beside(result, "Limits, spread and losses", titles, lambda part: part)


def _retrieval(result: dict) -> list:
    blocks = []
    titles = {m.name: m.title for m in group(RETRIEVAL)}
    for way, name in {"image_to_text": "Image to text", "text_to_image": "Text to image"}.items():
        caption = f"{name}: fraction of the queries whose own partner is found; equal texts count as one"
        blocks += _beside(
            result,
            caption,
            titles,
            lambda part, way=way: _at(part, "retrieval_intervals", way) or _at(part, "retrieval", way) or {},
        )
    return blocks


def _maps(result: dict, figures: dict[str, Path]) -> list:
    models = _listed(_models(result))
    alt = f"Radiographs with the ground-truth regions outlined, and the similarity maps of {models} over them."
    caption = (
        "For each finding the first image that shows it and few others. Each map is scaled to its own extremes, which "
        "stand below it: compare these before you compare colours"
    )
    return _figure(figures, "similarity_maps", alt, caption)


def _prompts(result: dict) -> list:
    findings = _at(result, "prompts", "findings") or {}
    columns = {
        kind: [list(prompts.get(kind, [])) for prompts in findings.values()] for kind in ("positive", "negative")
    }
    caption = f"Every sentence, as it was used; from {_at(result, 'prompts', 'source')}"
    return _table(caption, "finding", list(findings), columns, texts=True)


def _again(result: dict) -> list:
    settings, prints = result["settings"], result["fingerprints"]
    named = {"data": prints["data"]} | {f"model {name}": value for name, value in prints["models"].items()}
    if "validation" in result:
        named["validation data"] = result["validation"]["fingerprint"]
    caption = "Fingerprints (SHA-256): equal data have the same, and so have equal models"
    blocks: list = [Code(command(result))]
    blocks += _table(caption, "of", list(named), {"fingerprint": list(named.values())}, texts=True)
    rows = {name.replace("_", " "): str(value) for name, value in settings.items()}
    blocks += _table("Settings", "setting", list(rows), {"value": list(rows.values())}, texts=True)
    versions = result["versions"]
    return blocks + _table("Versions", "software", list(versions), {"version": list(versions.values())}, texts=True)


def command(result: dict) -> str:
    """The command line that gives these results."""
    settings, validation = result["settings"], result.get("validation")
    many = settings["processes"] > 1
    words = [
        f"accelerate launch --num_processes {settings['processes']}" if many else "python",
        "evaluate_zeroshot.py",
    ]
    models = [result["model"], *(other["model"] for other in result.get("compared", {}).values())]
    options = [("model", model) for model in models]
    options += [("dataset", result["dataset"]), ("split", result["split"])]
    options += [(f"data.options.{name}", value) for name, value in result["options"].items()]
    if validation:
        options += [("validation_dataset", validation["dataset"]), ("validation_split", validation["split"])]
        options += [(f"validation.options.{name}", value) for name, value in validation["options"].items()]
    options += [("protocol", result["protocol"]["name"]), *result["labels"].items()]
    source = result["prompts"]["source"]
    options += [("prompts", source)] if source not in ("", result["dataset"]) else []
    options += [(name, settings[name]) for name in ("resamples", "batch_size", "dtype", "device")]
    options += [("smooth_maps", settings["smooth_maps"])] if settings.get("smooth_maps") else []
    texts = [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in options]
    return " ".join([*words, *(f"--{name} {shlex.quote(text)}" for name, text in texts)])


# What the sections are made of


def _models(result: dict) -> dict[str, dict]:
    """The metrics of each model by its name, the first one first."""
    others = {name: other["metrics"] for name, other in result.get("compared", {}).items()}
    return {result["name"]: result["metrics"], **others}


def _differences(result: dict) -> dict[str, dict]:
    """By the name of the difference."""
    compared = result.get("compared", {}).items()
    return {f"{name} minus {result['name']}": other.get("difference", {}) for name, other in compared}


def _beside(result: dict, caption: str, titles: dict[str, str], select: Callable[[dict], dict]) -> list[Table]:
    """One row per quantity, one column per model and difference; `select` finds the quantities in either."""
    models = {name: select(metrics) for name, metrics in _models(result).items()}
    keys = [key for key in titles if any(part.get(key) is not None for part in models.values())]
    columns = {name: [_estimate(part.get(key)) for key in keys] for name, part in models.items()}
    columns |= {
        name: [_difference(select(part).get(key)) for key in keys] for name, part in _differences(result).items()
    }
    return _table(caption, "", [titles[key] for key in keys], columns)


def _table(caption: str, head: str, names: list[str], columns: dict[str, list], texts: bool = False) -> list[Table]:
    """A table without its empty columns; nothing, if none is left."""
    columns = {title: cells for title, cells in columns.items() if any(cells)}
    if not columns:
        return []
    rows = [[name, *(cells[i] for cells in columns.values())] for i, name in enumerate(names)]
    return [Table(caption, [head, *columns], rows, texts)]


def _figure(figures: dict[str, Path], name: str, alt: str, caption: str) -> list[Figure]:
    return [Figure(figures[name], alt, caption)] if name in figures else []


def _warnings(models: dict[str, dict]) -> list[Paragraph]:
    """The two ways to fail that the AUROC does not show."""
    texts = []
    named = [(name, metrics) for name, metrics in models.items()]
    named += [
        (f"{name}/{member}", m) for name, metrics in models.items() for member, m in metrics.get("members", {}).items()
    ]
    for name, metrics in named:
        if has_fixed_peaks(metrics.get("peak_spread", 1.0)):
            texts.append(
                f"{name}: the spread of the peaks is {metrics['peak_spread']:.3f}, near 0: whatever the image, every "
                "sentence points at one fixed place. The maps say nothing about the images."
            )
        negative, peak = metrics.get("negative_share", 0.0), metrics.get("peak", 1.0)
        if has_collapsed(negative, peak):
            texts.append(
                f"{name}: {negative:.1%} of the cosines of tokens and patches are negative, and a token's largest is "
                f"{peak:.3f} on average: the patch term has turned the patches against the tokens (collapse). The "
                "maps are worthless, even where the AUROC is high."
            )
    return [Paragraph(text, "warning") for text in texts]


def _at(part: dict | None, *keys: str):
    for key in keys:
        part = (part or {}).get(key)
    return part


def _estimate(estimate: dict | float | None, sign: str = "") -> Cell:
    """A number, its interval where it has one, or why there is none; empty if it was not measured."""
    if estimate is None:
        return ""
    if not isinstance(estimate, dict):
        return "undefined" if math.isnan(estimate) else f"{estimate:{sign}.3f}"
    if estimate["value"] is None:
        return ("undefined", *([f"({estimate['undefined']})"] if "undefined" in estimate else []))
    number = f"{estimate['value']:{sign}.3f}"
    if estimate.get("low") is None:
        return number
    return number, f"({estimate['low']:.3f} to {estimate['high']:.3f})"


def _difference(estimate: dict | None, p: bool = True) -> Cell:
    cell = _estimate(estimate, sign="+")
    value = _p(estimate, "p_bootstrap") if p else ""
    if not value:
        return cell
    *pieces, last = (cell,) if isinstance(cell, str) else cell
    return *pieces, f"{last},", f"p {value}" if value.startswith("<") else f"p = {value}"


def _p(estimate: dict | None, name: str) -> str:
    p = (estimate or {}).get(name)
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _threshold(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _has_intervals(result: dict) -> bool:
    return result["settings"]["resamples"] > 0


def _listed(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _with_options(options: dict | None) -> str:
    return f" ({', '.join(f'{name} {value}' for name, value in options.items())})" if options else ""


def _flat(cell: Cell) -> str:
    return cell if isinstance(cell, str) else " ".join(cell)


# Markdown


def as_markdown(title: str, sections: list[Section], folder: Path) -> str:
    """GitHub's Markdown; links to figures are relative to `folder`."""
    lines = [f"# {_plain(title)}", *(f"- [{section.title}](#{section.anchor})" for section in sections)]
    parts = [lines[0], "\n".join(lines[1:])]
    for section in sections:
        parts.append(f"## {section.title}")
        parts += [_block_markdown(block, folder) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def _block_markdown(block, folder: Path) -> str:
    match block:
        case Paragraph(text, kind):
            mark = {"text": "", "note": "> ", "warning": "> **Warning.** "}[kind]
            return mark + _plain(text)
        case Subheading(text):
            return f"### {_plain(text)}"
        case Definitions(items):
            return "\n".join(f"- **{_plain(term)}**: {_plain(text)}" for term, text in items.items())
        case Figure(path, alt, caption):
            link = quote(Path(os.path.relpath(path, folder)).as_posix())
            return f"![{_plain(alt)}]({link})\n\n*{_plain(caption)}.*"
        case Code(text):
            return f"```bash\n{text}\n```"
        case Table(caption, columns, rows, texts):
            rule = ["---", *["---" if texts else "---:"] * (len(columns) - 1)]
            lines = [[_plain(column) for column in columns], rule]
            lines += [[_cell_markdown(cell) for cell in row] for row in rows]
            body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
            return f"**{_plain(caption)}**\n\n{body}"


def _cell_markdown(cell: Cell) -> str:
    return "<br>".join(map(_plain, cell)) if isinstance(cell, list) else _plain(_flat(cell))


def _plain(text: str) -> str:
    """The text as it is: nothing in it is markup, and it stays on one line."""
    return re.sub(r"([\\`*<>\[\]|&#~]|\b_|_\b)", r"\\\1", " ".join(text.split()))


# HTML


def as_html(title: str, sections: list[Section]) -> str:
    """One page with its style and its figures, without scripts."""
    contents = "\n".join(f'<li><a href="#{s.anchor}">{html.escape(s.title)}</a></li>' for s in sections)
    body = "\n".join(
        f'<section id="{s.anchor}">\n<h2>{html.escape(s.title)}</h2>\n'
        + "\n".join(_block_html(block) for block in s.blocks)
        + "\n</section>"
        for s in sections
    )
    style = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    return f"""<!DOCTYPE html>
<html lang="en-GB">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html.escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{html.escape(title)}</h1>
</header>
<nav aria-label="Contents">
<ul>
{contents}
</ul>
</nav>
<main>
{body}
</main>
</body>
</html>
"""


def _block_html(block) -> str:
    match block:
        case Paragraph(text, kind):
            mark = "<strong>Warning.</strong> " if kind == "warning" else ""
            return f'<p class="{kind}">{mark}{html.escape(text)}</p>'
        case Subheading(text):
            return f"<h3>{html.escape(text)}</h3>"
        case Definitions(items):
            pairs = (f"<dt>{html.escape(term)}</dt><dd>{html.escape(text)}</dd>" for term, text in items.items())
            return f"<dl>{''.join(pairs)}</dl>"
        case Figure(path, alt, caption):
            with Image.open(path) as picture:
                width, height = picture.size
            data = base64.b64encode(path.read_bytes()).decode()
            wide = ' class="wide"' if width > _WIDE else ""
            return (
                f'<figure>\n<div class="scroll" tabindex="0" role="group" aria-label="Figure">'
                f'<img{wide} src="data:image/png;base64,{data}" '
                f'width="{width}" height="{height}" alt="{html.escape(alt)}"></div>\n'
                f"<figcaption>{html.escape(caption)}.</figcaption>\n</figure>"
            )
        case Code(text):
            return f"<pre><code>{html.escape(text)}</code></pre>"
        case Table(caption, columns, rows, texts):
            head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in columns)
            body = "\n".join(
                f'<tr{_mean(row)}><th scope="row">{html.escape(_flat(row[0]))}</th>'
                + "".join(f"<td>{_cell_html(cell)}</td>" for cell in row[1:])
                + "</tr>"
                for row in rows
            )
            kinds = ["texts" if texts else "numbers"]
            kinds += ["short"] * (len(rows) <= _SHORT) + ["many"] * (len(columns) > _MANY)
            return (
                f'<div class="scroll" tabindex="0" role="group" aria-label="Table"><table class="'
                f'{" ".join(kinds)}">\n<caption><span>{html.escape(caption)}</span></caption>\n'
                f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
            )


def _mean(row: list[Cell]) -> str:
    return ' class="mean"' if row[0] == "mean" else ""


def _cell_html(cell: Cell) -> str:
    if isinstance(cell, list):
        return "<br>".join(map(html.escape, cell))
    if isinstance(cell, tuple):
        return " ".join(f"<span>{html.escape(piece)}</span>" for piece in cell)
    return html.escape(cell)
