# Licensed under the Apache License, Version 2.0.
"""
The report of an evaluation, as one HTML file that needs nothing else and as Markdown: each part of `metrics.json`
becomes a section of blocks.
"""

import json
import shlex
from pathlib import Path

from .document import Code, Paragraph, Section, as_html, as_markdown
from .measures import DECISION, LATERALITY, MAIN, NEGATION, RANKING, RETRIEVAL, group, shown_in
from .protocols import PROTOCOLS
from .report_cells import has_intervals, listed, lookup, models_of, side_by_side, smallest_p, table_blocks
from .report_findings import calibration, classification, readers
from .report_maps import example_maps, failure_warnings, localisation, map_name, sparsity
from .report_method import method


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
    title = f"Zero-shot evaluation: {listed(models_of(result))} on {result['dataset']} ({result['split']})"
    (output_dir / "report.html").write_text(as_html(title, sections), encoding="utf-8")
    (output_dir / "report.md").write_text(as_markdown(title, sections, output_dir), encoding="utf-8")


def report_sections(result: dict, figures: dict[str, Path]) -> list[Section]:
    """The sections that have something to say, in order; `figures` by the name of the file."""
    sections = [
        Section("Summary", _summary(result)),
        Section("How it was measured", method(result)),
        Section("Classification", classification(result, figures)),
        Section("Readers", readers(result)),
        Section("Calibration", calibration(result, figures)),
        Section("Localisation", localisation(result)),
        Section("Sparsity", sparsity(result, figures)),
        Section("Retrieval", _retrieval(result)),
        Section("Example maps", example_maps(result, figures)),
        Section("Prompts", _prompts(result)),
        Section("To run it again", _again(result)),
    ]
    return [section for section in sections if section.blocks]


def _summary(result: dict) -> list:
    models, counts, data = models_of(result), result["counts"], result["dataset"]
    paths = [result["model"], *(other["model"] for other in result.get("compared", {}).values())]
    named = listed(f"{name} ({path})" if name != path else name for name, path in zip(models, paths))
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
    if has_intervals(result):
        caption += f"; in brackets {result['settings']['confidence']:.0%} intervals"
    if has_intervals(result) and len(models) > 1:
        caption += f"; p by bootstrap, {smallest_p(result):.3f} being the smallest possible"
    by_finding = shown_in(MAIN, RANKING, DECISION, NEGATION, LATERALITY)
    titles = {m.name: f"mean {m.title}" if m in by_finding else m.title for m in shown_in(MAIN)}
    return blocks + side_by_side(result, caption, titles, _main_numbers) + failure_warnings(models)


def _main_numbers(part: dict) -> dict:
    """Of a model, or of a difference."""
    maps = [entry for entry in part.get("localisation_maps", []) if map_name(entry) == map_name({})]
    sparsity = lookup(part, "sparsity", "without_padding") or {}
    sides = lookup(part, "laterality", "mean") or {}
    return (lookup(part, "classification", "image", "mean") or {}) | (maps[0] if maps else {}) | sparsity | sides


def _retrieval(result: dict) -> list:
    blocks = []
    titles = {m.name: m.title for m in group(RETRIEVAL)}
    ways = {
        "image_to_text": "Image to text: fraction of the queries whose own partner is found; equal texts count as one",
        "text_to_image": "Text to image, likewise",
        "image_to_sentence": "Image to sentence, among the distinct sentences of all texts: fraction of the images of "
        "which any sentence is found",
        "sentence_to_image": "Sentence to image: fraction of the sentences of which an image that has it is found",
    }
    for way, caption in ways.items():
        blocks += side_by_side(
            result,
            caption,
            titles,
            lambda part, way=way: lookup(part, "retrieval_intervals", way) or lookup(part, "retrieval", way) or {},
        )
    return blocks


def _prompts(result: dict) -> list:
    findings = lookup(result, "prompts", "findings") or {}
    columns = {
        kind: [list(prompts.get(kind, [])) for prompts in findings.values()] for kind in ("positive", "negative")
    }
    negation = lookup(result, "prompts", "negation") or {}
    for kind, title in {"positive": "affirmed", "negative": "negated"}.items():
        columns[title] = [list(lookup(negation, finding, kind) or []) for finding in findings]
    caption = f"Every sentence, as it was used; from {lookup(result, 'prompts', 'source')}"
    return table_blocks(caption, "finding", list(findings), columns, texts=True)


def _again(result: dict) -> list:
    settings, prints = result["settings"], result["fingerprints"]
    named = {"data": prints["data"]} | {f"model {name}": value for name, value in prints["models"].items()}
    if "validation" in result:
        named["validation data"] = result["validation"]["fingerprint"]
    caption = "Fingerprints (SHA-256): equal data have the same, and so have equal models"
    blocks: list = [Code(command(result))]
    blocks += table_blocks(caption, "of", list(named), {"fingerprint": list(named.values())}, texts=True)
    rows = {name.replace("_", " "): str(value) for name, value in settings.items()}
    blocks += table_blocks("Settings", "setting", list(rows), {"value": list(rows.values())}, texts=True)
    versions = result["versions"]
    return blocks + table_blocks(
        "Versions", "software", list(versions), {"version": list(versions.values())}, texts=True
    )


def command(result: dict) -> str:
    """The command line that gives these results."""
    settings, validation = result["settings"], result.get("validation")
    many = settings["processes"] > 1
    words = [
        f"accelerate launch --num_processes {settings['processes']}" if many else "python",
        "evaluate_zeroshot.py",
    ]
    judged = [result["model"], *(other["model"] for other in result.get("compared", {}).values())]
    options = [("scores" if path in result.get("scores", ()) else "model", path) for path in judged]
    options += [("dataset", result["dataset"]), ("split", result["split"])]
    options += [("image_ids", result["image_ids"])] if "image_ids" in result else []
    options += [(f"data.options.{name}", value) for name, value in result["options"].items()]
    if validation:
        options += [("validation_dataset", validation["dataset"]), ("validation_split", validation["split"])]
        options += [(f"validation.options.{name}", value) for name, value in validation["options"].items()]
        options += [("validation_image_ids", validation["image_ids"])] if "image_ids" in validation else []
    if result["protocol"]["name"] in PROTOCOLS:  # files of scores have none
        options += [("protocol", result["protocol"]["name"])]
    options += result["labels"].items()
    source = result["prompts"]["source"]
    options += [("prompts", source)] if source not in ("", result["dataset"]) else []
    options += [(name, settings[name]) for name in ("resamples", "batch_size", "dtype", "device")]
    options += [("smooth_maps", settings["smooth_maps"])] if settings.get("smooth_maps") else []
    words += ["--sentence_retrieval"] if settings.get("sentence_retrieval") else []
    texts = [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in options]
    return " ".join([*words, *(f"--{name} {shlex.quote(text)}" for name, text in texts)])
