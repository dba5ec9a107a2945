# Licensed under the Apache License, Version 2.0.
"""The page of a suite: for each measure a table of models and data sets, with published numbers set apart."""

import shlex
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from .document import Cell, Code, Link, Paragraph, Section, Table
from .evidence import MAIN_MAPS
from .measures import BY_NAME, LOCALISATION
from .published import PublishedRow, published
from .report_cells import estimate_cell, listed, models_of
from .tables import p_text


@dataclass
class SuiteResults:
    """What was evaluated, and what came of it."""

    suite: str
    protocol: str
    measures: list[str]
    results: dict[str, dict]
    """By data set, what its metrics.json holds."""
    skipped: dict[str, str] = field(default_factory=dict)
    """By data set that is not there, what was looked for."""
    failed: dict[str, str] = field(default_factory=dict)
    """By data set that could not be evaluated, why."""
    command: list[tuple[str, object]] = field(default_factory=list)
    """Options of `evaluate_zeroshot.py`; the value of one that takes none is True."""

    @property
    def models(self) -> list[str]:
        return list(models_of(next(iter(self.results.values()))))

    @property
    def title(self) -> str:
        return f"Suite {self.suite}: {listed(self.models)}"

    @property
    def failure(self) -> str:
        """What could not be evaluated, and why; empty if everything was."""
        return " ".join(f"{name} could not be evaluated: {reason}" for name, reason in self.failed.items())


def suite_sections(done: SuiteResults, folder: str = "") -> list[Section]:
    """The sections that have something to say; `folder`: that of the reports, from the page's own."""
    sections = [Section("Summary", _summary(done))]
    sections += [Section(BY_NAME[name].term, _measure(done, name)) for name in done.measures]
    sections += [Section("Data sets", _data_sets(done, folder)), Section("Published rows", _published_notes(done))]
    words = " ".join(
        f"--{name}" if value is True else f"--{name} {shlex.quote(str(value))}" for name, value in done.command
    )
    sections.append(Section("To run it again", [Code(f"python evaluate_zeroshot.py {words}")] if words else []))
    return [section for section in sections if section.blocks]


def suite_summary(done: SuiteResults) -> dict:
    """What metrics.json holds."""
    first = next(iter(done.results.values()))
    return {
        "suite": done.suite,
        "protocol": done.protocol,
        "models": done.models,
        "settings": first["settings"],
        "labels": first["labels"],
        "sets": {
            name: {
                "dataset": result["dataset"],
                "split": result["split"],
                "options": result["options"],
                "images": result["metrics"]["num_images"],
                "fingerprints": result["fingerprints"],
                "regions": region_of(result),
                "measures": {
                    measure: {
                        model: value | ({} if (p := p_against_first(result, model, measure)) is None else {"p": p})
                        for model, metrics in models_of(result).items()
                        if (value := mean_of(metrics, measure, region_of(result)))
                    }
                    for measure in done.measures
                },
            }
            for name, result in done.results.items()
        },
        "skipped": done.skipped,
        "failed": done.failed,
    }


# In metrics.json, the numbers of the main maps against each kind of ground-truth region.
_INTERVALS = {"box": "localisation_intervals", "mask": "localisation_masks"}


def region_of(result: dict) -> str | None:
    """What maps of a data set are judged by: masks where it has them, or else boxes; None without regions."""
    models = models_of(result).values()
    return next((kind for kind in ("mask", "box") if any(_INTERVALS[kind] in m for m in models)), None)


def _localised(metrics: dict, measure: str, region: str | None) -> dict[str, dict]:
    """By finding and `mean`, a measure of the main maps; empty if it was not measured."""
    return metrics.get(_INTERVALS[region], {}).get(measure, {}) if region else {}


def _entry(maps: list[dict], region: str | None) -> dict:
    """Of `localisation_maps`, the one of the main maps; empty if there is none."""
    kind = MAIN_MAPS | {"place": region}
    return next((entry for entry in maps if all(entry[key] == value for key, value in kind.items())), {})


def mean_of(metrics: dict, measure: str, region: str | None) -> dict | None:
    """Mean over the findings with its interval; None if it was not measured. `region`: as [`region_of`] gives it."""
    if BY_NAME[measure].group == LOCALISATION:
        value = _localised(metrics, measure, region).get("mean")
    else:
        value = metrics.get("classification", {}).get("image", {}).get("mean", {}).get(measure)
    return None if value is None or value["value"] is None else value


def p_against_first(result: dict, model: str, measure: str) -> float | None:
    """Of the paired bootstrap over patients; None for the first model, and where the two cannot be compared."""
    difference = result["compared"].get(model, {}).get("difference", {})
    if BY_NAME[measure].group == LOCALISATION:
        value = _entry(difference.get("localisation_maps", []), region_of(result)).get(measure)
    else:
        value = difference.get("classification", {}).get("image", {}).get("mean", {}).get(measure)
    return (value or {}).get("p_bootstrap")


def number_of_findings(metrics: dict, measure: str, region: str | None) -> int:
    """Those that the mean is over."""
    if BY_NAME[measure].group == LOCALISATION:
        values = _localised(metrics, measure, region)
    else:
        by_finding = metrics["classification"]["image"].items()
        values = {name: of_finding.get(measure) for name, of_finding in by_finding}
    return sum(name != "mean" and bool(value) and value["value"] is not None for name, value in values.items())


def _measured(result: dict, measure: str) -> dict | None:
    """The metrics of the first model that has a measure: an ensemble has no maps, its members do."""
    region = region_of(result)
    return next((m for m in models_of(result).values() if mean_of(m, measure, region)), None)


def _counts(result: dict, measure: str) -> dict[str, int]:
    """What published numbers say, where they do, of how much they are of."""
    metrics = _measured(result, measure)
    return {
        "findings": number_of_findings(metrics, measure, region_of(result)),
        "images": metrics["num_images"],
    }


def _head(name: str, result: dict, measure: str) -> str:
    """A data set with the number of findings and images; of maps with their number, and what they are judged by."""
    counts, region = _counts(result, measure), region_of(result)
    if BY_NAME[measure].group != LOCALISATION:
        return f"{name} ({', '.join(_numbers(counts))})"
    maps = _entry(_measured(result, measure)["localisation_maps"], region)["num_maps"]
    against = {"box": "boxes", "mask": "masks"}[region]
    return f"{name} ({', '.join(_numbers({'findings': counts['findings'], 'maps': maps}))} against {against})"


def _summary(done: SuiteResults) -> list:
    first = next(iter(done.results.values()))
    number = len(done.results)
    sets = f"{number} data set{'' if number == 1 else 's'} ({listed(done.results)})"
    protocol = f"protocol {done.protocol!r}: {first['protocol']['score']}"
    blocks: list = [Paragraph(f"{listed(done.models)}: evaluated zero-shot on {sets}, {protocol}.")]
    text, settings = "In each cell the mean over the findings", first["settings"]
    if settings["resamples"]:
        text += f" and its {settings['confidence']:.0%} interval over the patients"
        if len(done.models) > 1:
            text += f"; p: of the paired bootstrap against {done.models[0]}"
    blocks.append(Paragraph(text + "."))
    for name, reason in done.skipped.items():
        blocks.append(Paragraph(f"{name} was skipped: {reason.rstrip('.')}.", "note"))
    for name, reason in done.failed.items():
        blocks.append(Paragraph(f"{name} could not be evaluated: {reason.rstrip('.')}.", "warning"))
    blocks.append(Paragraph("For research. Neither the models nor this page are a medical device.", "note"))
    return blocks


def _measure(done: SuiteResults, measure: str) -> list:
    columns = [name for name, result in done.results.items() if _measured(result, measure)]
    if not columns:
        return []
    counts = {name: _counts(done.results[name], measure) for name in columns}
    rows: list[list[Cell]] = [
        [model, *(_cell(done.results[name], model, measure) for name in columns), done.protocol, "measured here"]
        for model in done.models
    ]
    others: list[list[Cell]] = [
        [
            row.model,
            *(_published(row, name, counts[name]) for name in columns),
            row.protocol,
            published().sources[row.source].short,
        ]
        for row in published().of(measure, done.protocol, columns)
    ]
    heads = [_head(name, done.results[name], measure) for name in columns]
    title = "Published, not measured here; in brackets where it is of other findings or images than the column"
    table = Table(
        f"{BY_NAME[measure].term}: {BY_NAME[measure].definition.rstrip('.')}",
        ["", *heads, "protocol", "source"],
        rows,
        apart=others,
        apart_title=title,
    )
    return [table]


def _numbers(counts: dict[str, int]) -> list[str]:
    return [f"{number:,} {key if number != 1 else key.removesuffix('s')}" for key, number in counts.items()]


def _cell(result: dict, model: str, measure: str) -> Cell:
    cell = estimate_cell(mean_of(models_of(result)[model], measure, region_of(result)))
    p = p_against_first(result, model, measure)
    if p is None:
        return cell or "-"
    *pieces, last = (cell,) if isinstance(cell, str) else cell
    return *pieces, f"{last},", f"p {p_text(p)}" if p < 0.001 else f"p = {p_text(p)}"


def _published(row: PublishedRow, name: str, ours: dict[str, int]) -> Cell:
    if name not in row.values:
        return "-"
    known, number = published().counts.get(row.measure, {}).get(name, {}), f"{row.values[name]:.3f}"
    other = {key: value for key, value in known.items() if value != ours[key]}
    unknown = [f"{key} not known" for key in ours if key not in known]
    pieces = [f"[{number}]" if other else number, *_numbers(other), *unknown]
    return (*(f"{piece}," for piece in pieces[:-1]), pieces[-1])


def _data_sets(done: SuiteResults, folder: str) -> list:
    rows: list[list[Cell]] = []
    for name, result in done.results.items():
        counts = result["counts"]
        number = ", ".join(f"{counts[key]:,} {key}" for key in ("images", "studies", "subjects") if key in counts)
        options = {key: value for key, value in result["options"].items() if key != "data_dir"}
        rows.append(
            [
                name,
                str(result["options"].get("data_dir") or "drawn"),
                f"{result['dataset']}, {result['split']}"
                + "".join(f", {key} {value}" for key, value in options.items()),
                number,
                Link("report", str(PurePosixPath(folder, name, "report.html"))),
            ]
        )
    caption = "What was read; each report has all measures by finding, curves and maps"
    return [Table(caption, ["", "folder", "data set, split, options", "number", "report"], rows, texts=True)]


def _published_notes(done: SuiteResults) -> list:
    rows = [row for measure in done.measures for row in published().of(measure, done.protocol, list(done.results))]
    if not rows:
        return [Paragraph(f"There are no published rows of these data sets by the protocol {done.protocol!r}.")]
    text = (
        "Numbers of other code, on the images that its authors chose. The sources take the own logit of a model, some "
        "of them that of a cross-attention; here the score is a cosine. Maps here are of the phrase of each region, "
        "smoothed only if the settings of a report say so."
    )
    notes = {f"protocol {row.protocol}": published().protocols[row.protocol] for row in rows}
    notes |= {f"source {published().sources[row.source].short}": published().sources[row.source] for row in rows}
    lines: list[list[Cell]] = [
        [name, note.text, note.unknown or "-", Link("page", note.address) if note.address else "-"]
        for name, note in notes.items()
    ]
    caption = "What the published numbers are, and what is not known of them"
    return [Paragraph(text), Table(caption, ["", "what it is", "not known", "page"], lines, texts=True)]
