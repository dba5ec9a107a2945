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
    figsize = (13, 1.8 + 0.34 * len(sizes))
    figure, axes = plt.subplots(1, 4, figsize=figsize, sharex=True, sharey=True, layout="constrained")
    places = [*range(len(pairs)), *range(len(pairs) + 1, len(pairs) + 1 + len(others))]
    for axis, (measure, title) in zip(axes, PANELS.items()):
        axis.axvline(0, color="#777777", linewidth=1)
        for number, row in enumerate(rows):
            gains = [_gains(sizes[size], row, measure) for size in (*pairs, *others)]
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            means = [own.mean() for own in gains]
            step = 0.6 / len(rows)
            at = np.array(places) + step * (number - (len(rows) - 1) / 2)
            half = [_half_width(own) for own in gains]
            axis.errorbar(means, at, xerr=half, fmt=marker, ms=5, color=colour, label=row)
            axis.plot(means[: len(pairs)], at[: len(pairs)], color=colour, linewidth=1)
            for y, own in zip(at, gains):
                axis.plot(own, [y + 0.4 * step] * len(own), "|", color=colour, alpha=0.6, ms=5)
        axis.set_title(title, fontsize=11)
        axis.set_yticks(places, [*pairs, *others], fontsize=9)
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    figure.supxlabel("pointing game, minus CLIP's", fontsize=10)
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
