# Licensed under the Apache License, Version 2.0.
"""Figures of an evaluation: maps over radiographs, similarity by rank, ROC curves, reliability, a search's plane."""

import math
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from datasets import Dataset
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.lines import Line2D
from sklearn.metrics import roc_auc_score, roc_curve

from ..cosines_tier import l2_normalize
from ..data.pictures import read_picture, undecoded
from ..maps_tier import NEGATIVE_COLOUR, OVERLAY_OPACITY, POSITIVE_COLOUR
from ..modeling_tier import TierModel
from ..processing_tier import TierProcessor
from .localisation import box_mask, scale_maps, smooth_maps
from .measures import BY_NAME, SEARCH_FIGURE, shown_in
from .statistics import reliability


matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


matplotlib.rcParams["text.parse_math"] = False  # a $ in a name is a $

# Distinguishable with every kind of colour vision.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_MARKERS = "os^Dvp*"
MAX_COLUMNS = 5


class _Kind(NamedTuple):
    """How a kind of map is named in a figure: behind its model, and before the range of its values."""

    label: str
    unit: str


_KINDS = {
    "plain": _Kind("", "cosine"),
    "minus_no_finding": _Kind(" minus\n“No finding”", "difference"),
    "contribution_minus_no_finding": _Kind(", contributions\nminus “No finding”", "difference"),
}
DRAWN = "\n(drawings made by code, of no clinical meaning)"


def map_colours(opacity: float = OVERLAY_OPACITY) -> LinearSegmentedColormap:
    """The colours of [`overlay_map`], to be laid over an image: from blue over transparent to orange."""
    blue, orange = (tuple(value / 255 for value in colour) for colour in (NEGATIVE_COLOUR, POSITIVE_COLOUR))
    stops = [(0, (*blue, opacity)), (0.5, (*blue, 0)), (0.5, (*orange, 0)), (1, (*orange, opacity))]
    return LinearSegmentedColormap.from_list("tier", stops)


def plot_similarity_maps(
    models: dict[str, tuple[TierModel, TierProcessor]],
    dataset: Dataset,
    path: Path,
    findings: list[str],
    no_finding: list[str] | None = None,
    smoothing: float = 0.0,
) -> None:
    """
    One column per finding: the radiograph as the first model sees it with the ground-truth regions outlined, and under
    it each model's map of the phrase over what that model sees, in the colours of [`overlay_map`]. The cosines of one
    column share one scale, and so do the differences; each map's range is written below it, a ring marks its maximum.

    Args:
        models: models with their processors, by the name that stands beside their row.
        dataset: rows with regions; the first one that shows a finding, and few others, is taken for it.
        path: PNG file to write; none, if no row shows any of the findings.
        findings: what to show; a finding that no row shows is skipped.
        no_finding: sentences for the absence of any finding. A second row for each model then shows its map minus the
            map of their embeddings' normalised mean, as the heat maps of arXiv 2212.06710; and a third row the same
            difference of what the patches contribute to the score, where the model pools them by their mean.
        smoothing: as for [`~localisation.smooth_maps`]; 0: maps are shown as they are.
    """
    chosen = _choose(dataset, findings)
    if not chosen:
        return
    kinds = [(name, kind) for name in models for kind in _shown_kinds(models[name][0], no_finding)]
    figure, axes = plt.subplots(
        1 + len(kinds),
        len(chosen),
        figsize=(2.1 * len(chosen) + 0.4, 2.35 * (1 + len(kinds))),
        squeeze=False,
        layout="constrained",
    )
    for column, (finding, row, phrase) in zip(axes.T, chosen):
        boxes = [region["box"] for region in row["regions"] if region["phrase"] == phrase]
        _show(column[0], *_seen(row["image"], boxes, next(iter(models.values()))[1]))
        column[0].set_title(f"{finding}\n“{phrase}”", fontsize=7.5)
        seen = [_seen(row["image"], boxes, models[name][1]) for name, _ in kinds]
        maps = [
            _map(*models[name], row["image"], phrase, kind, no_finding, region.shape, smoothing)
            for (name, kind), (_, region) in zip(kinds, seen)
        ]
        limits = {own: max(abs(m).max() for m, (_, kind) in zip(maps, kinds) if kind == own) for _, own in kinds}
        for axis, (_, kind), (picture, region), values in zip(column[1:], kinds, seen, maps):
            _show(axis, picture, region, values, limits[kind])
            axis.set_xlabel(f"{_KINDS[kind].unit} {values.min():z.2f} to {values.max():z.2f}", fontsize=7)
    _label_maps(figure, axes, [name + _KINDS[kind].label for name, kind in kinds], dataset)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _label_maps(figure, axes, rows: list[str], dataset: Dataset) -> None:
    for axis, name in zip(axes[:, 0], ["radiograph", *rows]):
        axis.set_ylabel(name, fontsize=9)
    title = "Where the phrases point. Orange: positive, blue: negative, one scale in each column;\n"
    title += "dashed: the ground-truth region, ring: the map's maximum"
    figure.suptitle(_caption(dataset, title), fontsize=9)


def plot_patch_similarity(details: dict[str, dict], dataset: Dataset, path: Path) -> None:
    """
    Cosines of the patches to the text of their own image, sorted within each image: mean and standard deviation over
    the images by rank, one curve a model. A sparse map falls steeply. Models that cut a picture into different numbers
    of patches share the axis, as fractions of the patches.

    Args:
        details: for each model's name, `rank_similarity`: (N, P), each row from the largest to the smallest.
        dataset: the data set; its description says whether its pictures are drawn.
        path: PNG file to write.
    """
    as_fraction = len({detail["rank_similarity"].shape[1] for detail in details.values()}) > 1
    figure, axis = plt.subplots(figsize=(5.5, 3.8), layout="constrained")
    for (name, detail), colour in zip(details.items(), cycle(_COLOURS)):
        ranked = detail["rank_similarity"]
        rank, mean, deviation = np.arange(1, ranked.shape[1] + 1), ranked.mean(axis=0), ranked.std(axis=0)
        x, label = (rank / len(rank), f"{name} ({len(rank)} patches)") if as_fraction else (rank, name)
        label = _label(label)
        axis.plot(x, mean, color=colour, label=label)
        axis.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.2, linewidth=0)
    what = "fraction of the patches" if as_fraction else "patch"
    axis.set_xlabel(f"{what}, from the most to the least similar")
    axis.set_ylabel("cosine to the whole text (mean, sd)")
    axis.legend()
    axis.set_title(_caption(dataset, "Similarity of the patches by rank"), fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_roc(
    curves: dict[str, dict[str, np.ndarray]],
    findings: list[str],
    path: Path,
    caption: str,
    readers: dict[str, dict[str, tuple[float, float]]] | None = None,
) -> None:
    """
    ROC curves in one panel a finding, one curve a model, with the area under it.

    Args:
        curves: for each model's name `scores` and `labels`, both (N, F); a label of NaN does not count.
        findings: the F names; one that lacks a class has no panel.
        path: PNG file to write; none, if no finding has both classes.
        caption: what stands above.
        readers: for each finding each reader's sensitivity and specificity, drawn as a mark.
    """
    panels = [i for i in range(len(findings)) if any(len(set(_known(part, i)[0])) == 2 for part in curves.values())]
    if not panels:
        return
    columns = min(MAX_COLUMNS, len(panels))
    size = 2.4 if len(panels) <= 4 * MAX_COLUMNS else 1.7
    figure, axes = _panels(len(panels), columns, size, "1 - specificity", "sensitivity")
    names = dict.fromkeys(name for marks in (readers or {}).values() for name in marks)
    markers = dict(zip(names, cycle(_MARKERS)))
    for axis, i in zip(axes.flat, panels):
        for (_, part), colour in zip(curves.items(), cycle(_COLOURS)):
            labels, scores = _known(part, i)
            if len(set(labels)) == 2:
                false_positive, true_positive, _ = roc_curve(labels, scores)
                area = f"{roc_auc_score(labels, scores):.3f}"
                axis.plot(false_positive, true_positive, color=colour, linewidth=1.3, label=area)
        for name, (sensitivity, specificity) in (readers or {}).get(findings[i], {}).items():
            axis.plot(1 - specificity, sensitivity, markers[name], color="black", mfc="white", ms=5.5)
        axis.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
        axis.set_title(findings[i], fontsize=8)
        axis.legend(fontsize=7, loc="lower right", handlelength=1.2, borderpad=0.3, labelspacing=0.2)
    handles = [Line2D([], [], color=colour, label=_label(name)) for name, colour in zip(curves, cycle(_COLOURS))]
    style = {"color": "black", "mfc": "white", "linestyle": ""}
    handles += [
        Line2D([], [], marker=_MARKERS[i % len(_MARKERS)], label=_label(name), **style) for i, name in enumerate(names)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(2 * columns, len(handles)), fontsize=8)
    figure.suptitle(f"{caption}\nin each panel: the area under the curve", fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_reliability(
    parts: dict[str, dict[str, np.ndarray | None]], findings: list[str], path: Path, caption: str
) -> None:
    """
    Reliability diagrams, pooled over the findings: in ten bins of the probability, the fraction of positives against
    the mean probability. One column a model; one row as given and, where a model has them, one of calibrated ones.
    Bars below: how many probabilities a bin holds, beside the fullest one. The calibration error is the mean
    distance of the points from the diagonal, weighted by these numbers.

    Args:
        parts: for each model's name `probabilities`, `labels` and `calibrated`, all (N, F), the last one or None; a
            label or a probability of NaN does not count.
        findings: the F names.
        path: PNG file to write; none, if no label is known.
        caption: what stands above.
    """
    kinds = ["probabilities"] + ["calibrated"] * any(part.get("calibrated") is not None for part in parts.values())
    if all(np.isnan(part["labels"]).all() for part in parts.values()):
        return
    figure, axes = _panels(
        len(kinds) * len(parts), len(parts), 2.6, "mean probability in the bin", "fraction positive"
    )
    titles = {"probabilities": "as the model gives them", "calibrated": "calibrated on the validation set"}
    for axis_row, kind in zip(axes, kinds):
        for axis, (name, part), colour in zip(axis_row, parts.items(), cycle(_COLOURS)):
            probabilities = np.nan if part.get(kind) is None else part[kind]
            known = ~np.isnan(part["labels"] + probabilities)
            if not known.any():
                axis.set_axis_off()
                continue
            axis.set_title(f"{name}\n{titles[kind]}", fontsize=8)
            bins = reliability(part["labels"][known], probabilities[known])
            full = bins["count"] > 0
            mean, positive, count = (bins[key][full] for key in ("mean_probability", "fraction_positive", "count"))
            fraction = count / count.sum()
            axis.bar(mean, 0.2 * fraction / fraction.max(), width=0.035, color=colour, alpha=0.3)
            axis.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
            axis.plot(mean, positive, "o-", color=colour, linewidth=1.2, markersize=4)
            error = (fraction * abs(mean - positive)).sum()
            axis.text(0.04, 0.96, f"calibration error {error:.3f}", va="top", fontsize=8, transform=axis.transAxes)
    number = f"{len(findings)} findings" if len(findings) > 1 else findings[0]
    figure.suptitle(f"{caption}\npooled over {number}; bars: how many probabilities a bin holds", fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_search(trials: list[dict], path: Path, largest: float, best_metric: str) -> None:
    """
    Each measured quantity over the plane of the two lambdas: one mark a trial, in the colour of its value, a cross if
    it ended early; a ring marks the trial with the best `best_metric`.

    Args:
        trials: as [`~training.search.search_lambdas`] gives them.
        path: PNG file to write.
        largest: both axes end here.
        best_metric: name of the metric that the trials were compared by.
    """
    shown = [measure.name for measure in shown_in(SEARCH_FIGURE)]
    names = [name for name in shown if any(name in trial["metrics"] for trial in trials)] or [best_metric]
    figure, axes = plt.subplots(1, len(names), figsize=(4.4 * len(names), 3.9), squeeze=False, layout="constrained")
    best = max(trials, key=lambda trial: trial["value"])
    for axis, name in zip(axes[0], names):
        known = [trial for trial in trials if name in trial["metrics"]]
        values = [trial["metrics"][name] for trial in known]
        scale = {"vmin": min(values), "vmax": max(values), "cmap": "viridis"}
        for pruned, marker in ((False, "o"), (True, "X")):
            part = [i for i, trial in enumerate(known) if trial["pruned"] == pruned]
            points = ([known[i][axis_name] for i in part] for axis_name in ("lambda_token", "lambda_patch"))
            label = "ended early" if pruned else "all epochs"
            dots = axis.scatter(*points, c=[values[i] for i in part], marker=marker, s=70, label=label, **scale)
        axis.scatter(best["lambda_token"], best["lambda_patch"], s=190, facecolors="none", edgecolors="#d55e00")
        axis.set_xlabel("lambda_token")
        axis.set(xlim=(-0.05 * largest, 1.05 * largest), ylim=(-0.05 * largest, 1.05 * largest))
        figure.colorbar(dots, ax=axis)
        axis.set_title(BY_NAME[name].title if name in shown else name, fontsize=10)
    axes[0, 0].set_ylabel("lambda_patch")
    if any(trial["pruned"] for trial in trials):
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
    figure.suptitle(f"Each mark is a training run; the ring has the best {best_metric}", fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _label(name: str) -> str:
    """matplotlib leaves names with an underscore in front out of a legend."""
    return f" {name}" if name.startswith("_") else name


def _panels(count: int, columns: int, size: float, x_label: str, y_label: str):
    """A figure with `count` panels over the unit square, row by row; labels at the left and at the foot only."""
    rows = math.ceil(count / columns)
    width, height = max(size * columns + 0.5, 5.2), (size + 0.2) * rows + 1.1  # a single panel has a title as well
    figure, axes = plt.subplots(
        rows, columns, figsize=(width, height), squeeze=False, sharex=True, sharey=True, layout="constrained"
    )
    figure.get_layout_engine().set(h_pad=0.08, w_pad=0.06)
    axes[0, 0].set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    for i, axis in enumerate(axes.flat):
        axis.set_aspect("equal")
        foot = count - columns <= i < count
        axis.tick_params(labelsize=7, labelbottom=foot)
        axis.set_xlabel(x_label if foot else "", fontsize=8)
        axis.set_ylabel(y_label if i % columns == 0 else "", fontsize=8)
        if i >= count:
            axis.set_axis_off()
    return figure, axes


def _known(part: dict[str, np.ndarray], i: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores of a finding where its label is known."""
    known = ~np.isnan(part["labels"][:, i])
    return part["labels"][known, i], part["scores"][known, i]


def _seen(image, boxes: list[list[float]], processor: TierProcessor) -> tuple[np.ndarray, np.ndarray]:
    """The image as a model sees it, grey, and the mask of the regions in it; both (H, W)."""
    picture = processor(images=image)["pixel_values"][0].mean(dim=0).numpy()
    return picture, box_mask(boxes, image.size, processor)


def _show(
    axis, picture: np.ndarray, region: np.ndarray, cosines: np.ndarray | None = None, limit: float = 1.0
) -> None:
    """An image with the outline of a region; with a map over it and a ring at the map's maximum, if there is one."""
    axis.imshow(picture, cmap="gray")
    if cosines is not None:
        axis.imshow(cosines, cmap=map_colours(), vmin=-limit, vmax=limit)
        x, y = np.unravel_index(cosines.argmax(), cosines.shape)[::-1]
        for width, colour in ((3, "black"), (1.4, "white")):
            axis.plot(x, y, "o", color=colour, mfc="none", ms=8, mew=width)
    for width, colour, style in ((2.2, "black", "solid"), (1.1, "white", "dashed")):
        axis.contour(region, levels=[0.5], colors=colour, linewidths=width, linestyles=style)
    axis.set_xticks([])
    axis.set_yticks([])


@torch.no_grad()
def _shown_kinds(model: TierModel, no_finding: list[str] | None) -> list[str]:
    """Of `localisation.MAPS`, those of [`plot_similarity_maps`] for this model."""
    if not no_finding:
        return ["plain"]
    return ["plain", "minus_no_finding"] + ([] if model.no_contributions else ["contribution_minus_no_finding"])


@torch.no_grad()
def _map(
    model: TierModel,
    processor: TierProcessor,
    image,
    phrase: str,
    kind: str,
    no_finding: list[str] | None,
    size: tuple[int, int],
    smoothing: float = 0.0,
) -> np.ndarray:
    """The map (H, W) of a phrase, of a kind in `localisation.MAPS`; contributions are P times theirs, as there."""
    pixel_values = processor(images=image)["pixel_values"].to(model.device)
    options = {"kind": "contribution"} if kind.startswith("contribution") else {}

    def maps_of(text) -> torch.Tensor:  # (N, H, W)
        coarse = model.get_similarity_map(pixel_values, **text, **options).text_to_patch.float()
        grid = tuple(coarse.shape[1:])
        if options:
            coarse = coarse * (grid[0] * grid[1])
        maps = coarse.flatten(1)
        return scale_maps(smooth_maps(maps, grid, smoothing) if smoothing else maps, grid, size)

    fine = maps_of(processor(text=[phrase]).to(model.device))[0]
    if kind.endswith("minus_no_finding"):
        text = processor(text=no_finding).to(model.device)
        maps = maps_of(text)
        # Linear in the unit embedding of the text, so the mean of the maps is that of the mean embedding.
        mean = l2_normalize(model.get_text_features(**text).pooler_output.float()).mean(dim=0)
        fine = fine - maps.mean(dim=0) / mean.norm()
    return fine.cpu().numpy()


def _choose(dataset: Dataset, findings: list[str]) -> list[tuple[str, dict, str]]:
    """For each finding the row that shows it beside the fewest others, and its phrase."""
    stored = undecoded(dataset)
    rows = list(stored.select_columns(["labels", "regions"]))
    chosen = []
    for finding in findings:
        phrases = {i: [r["phrase"] for r in row["regions"] if r["finding"] == finding] for i, row in enumerate(rows)}
        showing = [i for i, row in enumerate(rows) if row["labels"].get(finding) == 1.0 and phrases[i]]
        if showing:
            index = min(showing, key=lambda i: sum(value == 1.0 for value in rows[i]["labels"].values()))
            row = stored[index]
            row["image"] = read_picture(row["image"], row["image_id"])  # DICOM, too, as it was scored
            chosen.append((finding, row, phrases[index][0]))
    return chosen


def is_drawn(dataset: Dataset) -> bool:
    """Whether the pictures are drawings made by code."""
    return "drawn" in dataset.info.description


def _caption(dataset: Dataset, text: str) -> str:
    return text + (DRAWN if is_drawn(dataset) else "")
