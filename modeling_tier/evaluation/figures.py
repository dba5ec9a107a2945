# Licensed under the Apache License, Version 2.0.
"""Figures of an evaluation: maps over radiographs, similarity by rank, ROC curves."""

from pathlib import Path

import matplotlib
import numpy as np
from datasets import Dataset
from sklearn.metrics import roc_auc_score, roc_curve

from ..modeling_tier import TierModel
from ..processing_tier import TierProcessor
from .localisation import box_mask


matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


# Told apart by every kind of colour vision.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def plot_similarity_maps(
    models: dict[str, TierModel], processor: TierProcessor, dataset: Dataset, path: Path, findings: list[str]
) -> None:
    """
    One column a finding: the radiograph as the model sees it with the true places outlined, and under it each model's
    map of the phrase, from its own smallest (dark) to its own largest cosine (bright), which are written below it; a
    cross marks the largest.

    Args:
        models: models by the name that stands beside their row.
        processor: the processor of all of them.
        dataset: rows with regions; the first one that shows a finding, and few others, is taken for it.
        path: PNG file to write; none, if no row shows any of the findings.
        findings: what to show; a finding that no row shows is left out.
    """
    chosen = _choose(dataset, findings)
    if not chosen:
        return
    figure, axes = plt.subplots(
        1 + len(models),
        len(chosen),
        figsize=(2.1 * len(chosen) + 0.4, 2.35 * (1 + len(models))),
        squeeze=False,
        layout="constrained",
    )
    for column, (finding, row, phrase) in zip(axes.T, chosen):
        boxes = [region["box"] for region in row["regions"] if region["phrase"] == phrase]
        place = box_mask(boxes, row["image"].size, processor.image_processor)
        pixel_values = processor(images=row["image"])["pixel_values"]
        picture = pixel_values[0].mean(dim=0).numpy()
        column[0].imshow(picture, cmap="gray")
        column[0].set_title(f"{finding}\n“{phrase}”", fontsize=7.5)
        for axis, model in zip(column[1:], models.values()):
            inputs = processor(text=phrase).to(model.device)
            maps = model.get_similarity_map(pixel_values.to(model.device), **inputs, size=place.shape)
            fine = maps.text_to_patch[0].float().cpu().numpy()
            peak = np.unravel_index(fine.argmax(), fine.shape)
            axis.imshow(picture, cmap="gray")
            axis.imshow(fine, cmap="viridis", alpha=0.6)
            axis.plot(peak[1], peak[0], "x", color="white", markersize=7, markeredgewidth=1.8)
            axis.set_xlabel(f"cosine {fine.min():.2f} to {fine.max():.2f}", fontsize=7)
        for axis in column:
            axis.contour(place, levels=[0.5], colors="#ff3030", linewidths=1.2)
            axis.set_xticks([])
            axis.set_yticks([])
    for axis, name in zip(axes[:, 0], ["radiograph", *models]):
        axis.set_ylabel(name, fontsize=9)
    title = "Where the phrases point; red: the true place, cross: the map's maximum"
    figure.suptitle(_caption(dataset, title), fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_patch_similarity(details: dict[str, dict], dataset: Dataset, path: Path) -> None:
    """
    Cosines of the patches to the text of their own image, sorted within each image: mean and standard deviation over
    the images by rank, one curve a model. A sparse map falls steeply.
    """
    figure, axis = plt.subplots(figsize=(5.5, 3.8), layout="constrained")
    for (name, detail), colour in zip(details.items(), _COLOURS):
        ranked = detail["rank_similarity"]
        rank, mean, deviation = np.arange(1, ranked.shape[1] + 1), ranked.mean(axis=0), ranked.std(axis=0)
        axis.plot(rank, mean, color=colour, label=name)
        axis.fill_between(rank, mean - deviation, mean + deviation, color=colour, alpha=0.2, linewidth=0)
    axis.set_xlabel("patch, from the most to the least similar")
    axis.set_ylabel("cosine to the whole text (mean, sd)")
    axis.legend()
    axis.set_title(_caption(dataset, "Similarity of the patches by rank"), fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_roc(detail: dict, dataset: Dataset, path: Path) -> None:
    """ROC curve of each finding that has both classes."""
    figure, axis = plt.subplots(figsize=(5, 4.6), layout="constrained")
    for i, finding in enumerate(detail["findings"]):
        known = ~np.isnan(detail["labels"][:, i])
        labels, scores = detail["labels"][known, i], detail["scores"][known, i]
        if len(set(labels)) < 2:
            continue
        false_positive, true_positive, _ = roc_curve(labels, scores)
        style = {"color": _COLOURS[i % len(_COLOURS)], "linestyle": "-" if i < len(_COLOURS) else "--"}
        axis.plot(false_positive, true_positive, label=f"{finding} {roc_auc_score(labels, scores):.2f}", **style)
    axis.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
    axis.set_xlabel("1 - specificity")
    axis.set_ylabel("sensitivity")
    axis.legend(title="area under the curve", fontsize=8)
    axis.set_title(_caption(dataset, "Zero-shot classification"), fontsize=9)
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
    names = [name for name in ("auroc", "pointing_game", "cnr") if any(name in trial["metrics"] for trial in trials)]
    names = names or [best_metric]
    figure, axes = plt.subplots(1, len(names), figsize=(4.4 * len(names), 3.9), squeeze=False, layout="constrained")
    best = max(trials, key=lambda trial: trial["value"])
    for axis, name in zip(axes[0], names):
        known = [trial for trial in trials if name in trial["metrics"]]
        values = [trial["metrics"][name] for trial in known]
        scale = {"vmin": min(values), "vmax": max(values), "cmap": "viridis"}
        for pruned, marker in ((False, "o"), (True, "X")):
            part = [i for i, trial in enumerate(known) if trial["pruned"] == pruned]
            places = ([known[i][axis_name] for i in part] for axis_name in ("lambda_token", "lambda_patch"))
            label = "ended early" if pruned else "all epochs"
            dots = axis.scatter(*places, c=[values[i] for i in part], marker=marker, s=70, label=label, **scale)
        axis.scatter(best["lambda_token"], best["lambda_patch"], s=190, facecolors="none", edgecolors="#d55e00")
        axis.set_xlabel("lambda_token")
        axis.set(xlim=(-0.05 * largest, 1.05 * largest), ylim=(-0.05 * largest, 1.05 * largest))
        figure.colorbar(dots, ax=axis)
        axis.set_title({"auroc": "AUROC", "pointing_game": "pointing game", "cnr": "CNR"}.get(name, name), fontsize=10)
    axes[0, 0].set_ylabel("lambda_patch")
    if any(trial["pruned"] for trial in trials):
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
    figure.suptitle(f"Each mark is a training run; the ring has the best {best_metric}", fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _choose(dataset: Dataset, findings: list[str]) -> list[tuple[str, dict, str]]:
    """For each finding the row that shows it beside the fewest others, and its phrase."""
    rows = list(dataset.select_columns(["labels", "regions"]))  # without opening the pictures
    chosen = []
    for finding in findings:
        phrases = {i: [r["phrase"] for r in row["regions"] if r["finding"] == finding] for i, row in enumerate(rows)}
        showing = [i for i, row in enumerate(rows) if row["labels"].get(finding) == 1.0 and phrases[i]]
        if showing:
            index = min(showing, key=lambda i: sum(value == 1.0 for value in rows[i]["labels"].values()))
            chosen.append((finding, dataset[index], phrases[index][0]))
    return chosen


def _caption(dataset: Dataset, text: str) -> str:
    return text + ("\n(drawings made by code, of no clinical meaning)" if "drawn" in dataset.info.description else "")
