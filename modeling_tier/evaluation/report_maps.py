# Licensed under the Apache License, Version 2.0.
"""The report's sections on similarity maps: localisation, sparsity, examples, and the failures that maps show."""

from pathlib import Path

from .document import Definitions, Folded, Paragraph
from .failure_modes import has_collapsed, has_fixed_peaks
from .measures import LATERALITY, LOCALISATION, SEGMENTATION, SPARSITY, TOKENS, WHOLE_SET, group, shown_in
from .report_cells import (
    count_cell,
    definitions,
    difference_cell,
    differences_of,
    estimate_cell,
    figure_blocks,
    finding_column,
    listed,
    lookup,
    models_of,
    side_by_side,
    table_blocks,
    threshold_cell,
)


def localisation(result: dict) -> list:
    models = models_of(result)
    blocks: list = []
    titles = {m.name: m.title for m in group(LOCALISATION, SEGMENTATION)}
    for name, metrics in models.items():
        part, intervals = metrics.get("localisation", {}), metrics.get("localisation_intervals", {})
        findings = list(part.get("pointing_game", {}))
        columns = {
            title: [estimate_cell(lookup(intervals, key, f) or lookup(part, key, f)) for f in findings]
            for key, title in titles.items()
        }
        caption = f"{name}: maps of whole sentences over the pixels against boxes, by finding"
        if part.get("num_outside"):
            caption += (
                f"; {part['num_outside']:,} ground-truth regions lie outside what the model sees and are skipped"
            )
        blocks += table_blocks(caption, "finding", findings, columns)
        masks = metrics.get("localisation_masks", {})
        findings = list(next(iter(masks.values()), {}))
        columns = {title: [estimate_cell(lookup(masks, key, f)) for f in findings] for key, title in titles.items()}
        blocks += table_blocks(f"{name}: the same maps against masks", "finding", findings, columns)
        if part.get("num_outside") and not part.get("pointing_game"):
            blocks.append(
                Paragraph(
                    f"{name}: all {part['num_outside']:,} ground-truth regions lie outside what it sees.", "warning"
                )
            )
    blocks += _beside_radiologist(models)
    for name, metrics in models.items():
        sides = metrics.get("laterality", {})
        columns = {m.title: finding_column(sides, m.name, estimate_cell) for m in group(LATERALITY)}
        columns |= {
            title: finding_column(sides, key, count_cell)
            for key, title in (("num_left", "on the left"), ("num_right", "on the right"))
        }
        blocks += table_blocks(f"{name}: left against right", "finding", list(sides), columns)
    if kinds := _map_kinds(result):
        blocks.append(Folded("Every kind of map", kinds))
    for name, metrics in models.items():
        tokens = metrics.get("localisation_tokens", [])
        columns = {"maps": [count_cell(token["num_maps"]) for token in tokens]}
        columns |= {m.title: [estimate_cell(token.get(m.name)) for token in tokens] for m in shown_in(TOKENS)}
        caption = f"{name}: maps of single tokens over the pixels, the most frequent ones"
        blocks += table_blocks(caption, "token", [token["token"] for token in tokens], columns)
    if blocks:
        has_threshold = any("dice_at_threshold" in m.get("localisation_intervals", {}) for m in models.values())
        has_sides = any("laterality" in metrics for metrics in models.values())
        items = definitions(group(LOCALISATION, *[SEGMENTATION] * has_threshold)) | {
            "Smoothing": _smoothing(result["settings"]),
            "Single tokens": "each token of a phrase alone, small words included, punctuation not, against the region "
            "of the whole phrase; the mean over a phrase's tokens counts as one map.",
            "Maps by patch": "the patches as they are; those belong to a region of which it covers at least one half, "
            "or, if there is none, the one of which it covers most.",
        }
        if has_sides:
            items |= definitions(group(LATERALITY))
        blocks.insert(0, Definitions(items))
    return blocks


def _beside_radiologist(models: dict[str, dict]) -> list:
    """Models and another radiologist against the same masks, by finding; nothing where the data set has none."""
    human = next((metrics["radiologist"] for metrics in models.values() if "radiologist" in metrics), None)
    if human is None:
        return []
    titles = {"pointing_game": "pointing game", "iou": "IoU", "iou_at_threshold": "IoU at the threshold"}
    parts = {name: metrics.get("localisation_masks", {}) for name, metrics in models.items()}
    parts["radiologist"] = human
    findings = [*human["num_masks"], "mean"]
    columns = {
        f"{name}: {title}": [estimate_cell(lookup(part, key, f)) for f in findings]
        for key, title in titles.items()
        for name, part in parts.items()
    }
    columns["masks"] = [count_cell(human["num_masks"].get(f)) for f in findings]
    text = (
        "The radiologist is the data set's human benchmark: another radiologist's most representative point (a miss "
        "where none was given) and mask (IoU over the images where one was drawn), against the same ground-truth "
        "masks, over the whole picture. Of a model it is the largest value of a sentence's map, and the map cut at a "
        "threshold, over what it sees of the picture."
    )
    return [Paragraph(text), *table_blocks("Models and radiologist against masks", "finding", findings, columns)]


def _map_kinds(result: dict) -> list:
    """Every kind of map that was measured, of models and differences."""
    titles, blocks = {m.name: m.title for m in group(LOCALISATION, SEGMENTATION)}, []
    everything = {name: (metrics, estimate_cell) for name, metrics in models_of(result).items()}
    everything |= {name: (part, difference_cell) for name, part in differences_of(result).items()}
    for name, (part, cell) in everything.items():
        maps = part.get("localisation_maps", [])
        columns = {"maps": [count_cell(entry.get("num_maps")) for entry in maps]}
        columns |= {title: [cell(entry.get(key)) for entry in maps] for key, title in titles.items()}
        columns["threshold"] = [threshold_cell(entry.get("threshold")) for entry in maps]
        caption = f"{name}: every kind of map, means over the findings"
        if cell is difference_cell:
            caption += "; of the maps that both have; p by bootstrap"
        blocks += table_blocks(caption, "map of", [map_name(entry) for entry in maps], columns)
        apart = [f"{map_name(entry)}: {entry['incomparable']}" for entry in maps if "incomparable" in entry]
        blocks += [Paragraph(f"No interval and no p. {text}", "warning") for text in apart]
    return blocks


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


def map_name(entry: dict) -> str:
    """What kind of map it is; without an entry, the plain one of the main numbers."""
    name = "single tokens" if entry.get("text") == "token" else "whole sentence"
    name += f", by {entry.get('resolution', 'pixel')}"
    kind = entry.get("map") or ""
    name += ", contributions" if kind.startswith("contribution") else ""
    name += ", minus “No finding”" if kind.endswith("minus_no_finding") else ""
    return name + (", against masks" if entry.get("place") == "mask" else "")


def sparsity(result: dict, figures: dict[str, Path]) -> list:
    models = models_of(result)
    blocks: list = []
    if any("sparsity" in metrics for metrics in models.values()):
        items = definitions(group(SPARSITY))
        blocks.append(Definitions(items))
    blocks += failure_warnings(models)
    alt = f"Cosines of the patches to the text of their image by rank, mean and standard deviation: {listed(models)}."
    caption = (
        "Cosines of the patches to the whole text of their own image, sorted within each image: a sparse map falls"
    )
    blocks += figure_blocks(figures, "patch_similarity", alt, f"{caption} steeply")
    titles = {m.name: m.title for m in group(SPARSITY)}
    for key, padding in {"without_padding": "padding ignored", "with_padding": "padding counted"}.items():
        caption = f"Sparsity of the maps, {padding}"
        blocks += side_by_side(result, caption, titles, lambda part, key=key: lookup(part, "sparsity", key) or {})
    titles = {m.name: m.title for m in group(WHOLE_SET)}
    return blocks + side_by_side(result, "Limits, spread and losses", titles, lambda part: part)


def example_maps(result: dict, figures: dict[str, Path]) -> list:
    models = listed(models_of(result))
    alt = f"Radiographs with the ground-truth regions outlined, and the similarity maps of {models} over them."
    caption = (
        "For each finding the first image that shows it and few others. Each map is scaled to its own extremes, which "
        "stand below it: compare these before you compare colours"
    )
    return figure_blocks(figures, "similarity_maps", alt, caption)


def failure_warnings(models: dict[str, dict]) -> list[Paragraph]:
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
