# Licensed under the Apache License, Version 2.0.
"""The figure of `growth.py`: differences to CLIP's row over the number of pairs, and of the other sizes."""

from pathlib import Path

import matplotlib
import numpy as np
import scipy.stats


matplotlib.use("Agg")
from growth import rows_of_all
from matplotlib import pyplot as plt


PANELS = {
    "pointing, cosine": "plain map",
    "pointing, cosine - no finding": "plain map minus “no finding”",
    "pointing, contribution": "contributions",
    "pointing, contribution - no finding": "contributions minus “no finding”",
}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
MARKERS = "os^D"


def plot_growth(sizes: dict[str, dict[str, list[dict[str, float]]]], path: Path) -> None:
    """A panel for each kind of map: every seed's difference in the pointing game, means, 95% intervals over seeds."""
    rows, pairs = rows_of_all(sizes), [size for size in sizes if size.endswith(" pairs")]
    others = [size for size in sizes if size not in pairs]
    figure, axes = plt.subplots(1, 4, figsize=(13, 5), sharey=True, layout="constrained")
    places = [*range(len(pairs)), *range(len(pairs) + 1, len(pairs) + 1 + len(others))]
    for axis, (measure, title) in zip(axes, PANELS.items()):
        axis.axhline(0, color="#777777", linewidth=1)
        for number, row in enumerate(rows):
            shift = 0.24 * (number - (len(rows) - 1) / 2)
            gains = [_gains(sizes[size], row, measure) for size in (*pairs, *others)]
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            means = [own.mean() for own in gains]
            at = np.array(places) + shift
            axis.errorbar(at, means, [_half_width(own) for own in gains], fmt=marker, ms=6, color=colour, label=row)
            axis.plot(at[: len(pairs)], means[: len(pairs)], color=colour, linewidth=1)
            for x, own in zip(at, gains):
                axis.plot([x + 0.09] * len(own), own, "_", color=colour, alpha=0.6, ms=5)
        axis.set_title(title, fontsize=11)
        labels = [size.replace(" pairs, ", " pairs,\n") for size in (*pairs, *others)]
        axis.set_xticks(places, labels, rotation=90, fontsize=8)
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel("pointing game, minus CLIP's")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(rows), frameon=False)
    figure.savefig(path, dpi=110, facecolor="white")
    plt.close(figure)


def _gains(results: dict[str, list[dict[str, float]]], row: str, measure: str) -> np.ndarray:
    """Seed by seed."""
    return np.array([own[measure] - base[measure] for own, base in zip(results[row], results["CLIP"])])


def _half_width(gains: np.ndarray) -> float:
    """Of the 95% interval of the mean (Student's t); 0 below three seeds, whose interval would hide all others."""
    if len(gains) < 3:
        return 0.0
    return float(scipy.stats.t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / len(gains) ** 0.5)
