# Licensed under the Apache License, Version 2.0.
"""
Make the pictures of the README from the models of `make demo`:

    python -m docs.make_pictures --models runs/demo

`radiograph.png` is the drawing of the examples, of a large heart and a left pleural effusion. `maps.png` shows
three phrases in two models, by two kinds of map. The phrases are chosen by a rule, not by eye: of each of the three
findings with the most phrases about the 1,000 test drawings, the phrase for which the CNR of the plain map differs
between the two models by the median.
"""

import argparse
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))
from tier_cli.options import option_parser


def parse_arguments() -> argparse.Namespace:
    parser = option_parser(__doc__)
    parser.add_argument("--models", default="runs/demo", type=Path, help="output folder of demo.py")
    return parser.parse_args()


if __name__ == "__main__":
    parse_arguments()  # before torch is imported, which takes seconds: --help and mistakes are answered at once

from typing import NamedTuple

import matplotlib
import numpy as np
from datasets import Dataset
from matplotlib import patheffects
from PIL import Image


matplotlib.use("Agg")
from matplotlib import pyplot as plt

from modeling_tier import TierZeroShotPipeline
from modeling_tier.data import load_pairs
from modeling_tier.data.synthetic import example_study
from modeling_tier.evaluation import load_model, load_no_finding, own_prompts
from modeling_tier.evaluation.figures import map_colours
from modeling_tier.training import load_config


FOLDER = Path(__file__).parent
NUM_IMAGES = 1000  # the test set of demo.py
OPACITY = 0.6  # of the largest value; the page and `overlay_map` use 0.7
NUM_SHOWN = 3  # findings
KINDS = {"cosine": "cosines", "contribution": "contributions minus “no finding”"}


class Case(NamedTuple):
    """A phrase about a drawing."""

    number: int
    finding: str
    phrase: str
    cnr: dict[tuple[str, str], float]
    """By kind of map and model."""

    @property
    def gain(self) -> float:
        """How much larger the CNR of TIER's plain map is than that of CLIP's."""
        return self.cnr["cosine", "TIER"] - self.cnr["cosine", "CLIP"]


def main() -> None:
    arguments = parse_arguments()
    Image.fromarray(example_study().pixels).save(FOLDER / "radiograph.png")
    models = {}
    for name in ("CLIP", "TIER"):
        model, processor = load_model(str(arguments.models / name.lower()))
        models[name] = TierZeroShotPipeline(model=model, processor=processor)
    data = load_config(arguments.models / "tier" / "training_config.yaml", []).data
    test = load_pairs(data.name, "test", **data.options | {"num_images": NUM_IMAGES})
    no_finding = load_no_finding(own_prompts(data.name, data.options) or data.name)
    cases = measure(models, test, no_finding)
    chosen = choose(cases)
    print(f"{len(cases)} phrases; chosen: {chosen}")
    print("mean CNR over all phrases:", {own: np.mean([case.cnr[own] for case in cases]) for own in cases[0].cnr})
    plot(models, test, chosen, no_finding, FOLDER / "maps.png")


def regions_of(row: dict) -> dict[str, np.ndarray]:
    """The phrases about a drawing, each with the mask (H, W) of all regions that it is true of."""
    masks: dict[str, np.ndarray] = {}
    for region in row["regions"]:
        mask = np.asarray(region["mask"]).astype(bool)
        masks[region["phrase"]] = masks.get(region["phrase"], np.zeros_like(mask)) | mask
    return {phrase: mask for phrase, mask in masks.items() if mask.any() and not mask.all()}


def maps_of(
    model: TierZeroShotPipeline, picture, phrases: Iterable[str], kind: str, no_finding: list[str]
) -> dict[str, np.ndarray]:
    """The map (H, W) of each phrase, of one of `KINDS`; contributions are P times theirs, as of P equal patches."""
    texts = {phrase: [phrase] for phrase in phrases} | ({"none": no_finding} if kind == "contribution" else {})
    prompts = {name: {"positive": sentences, "negative": sentences} for name, sentences in texts.items()}
    rows = {row["finding"]: row for row in model(picture, prompts, maps="array", map_kind=kind)}
    if kind == "cosine":
        return {phrase: row["map"] for phrase, row in rows.items()}
    common = rows.pop("none")["map"]
    return {phrase: (row["map"] - common) * np.prod(row["grid"]) for phrase, row in rows.items()}


def contrast(values: np.ndarray, inside: np.ndarray) -> float:
    """CNR: difference of the means inside and outside of a region, over the root of the sum of both variances."""
    a, b = values[inside], values[~inside]
    return float((a.mean() - b.mean()) / np.sqrt(a.var() + b.var()))


def measure(models: dict[str, TierZeroShotPipeline], test: Dataset, no_finding: list[str]) -> list[Case]:
    """CNR of each model's maps, of every phrase about every drawing."""
    cases = []
    for number, row in enumerate(test):
        masks = regions_of(row)
        if not masks:
            continue
        maps = {
            (kind, name): maps_of(model, row["image"], masks, kind, no_finding)
            for kind in KINDS
            for name, model in models.items()
        }
        findings = {region["phrase"]: region["finding"] for region in row["regions"]}
        for phrase, mask in masks.items():
            cnr = {own: contrast(maps[own][phrase], mask) for own in maps}
            cases.append(Case(number, findings[phrase], phrase, cnr))
    return cases


def choose(cases: list[Case]) -> list[Case]:
    """Of the findings with the most phrases, the phrase with the median gain."""
    chosen = []
    for finding, number in Counter(case.finding for case in cases).most_common(NUM_SHOWN):
        own = sorted((case for case in cases if case.finding == finding), key=lambda case: (case.gain, case.number))
        chosen.append(own[number // 2])
    return chosen


def plot(
    models: dict[str, TierZeroShotPipeline], test: Dataset, chosen: list[Case], no_finding: list[str], path: Path
) -> None:
    """A row for each phrase: the drawing, then each kind of map in each model; one scale for a kind of map."""
    panels = [(kind, name) for kind in KINDS for name in models]
    rows = [test[case.number] for case in chosen]
    maps = {
        (line, kind, name): maps_of(models[name], rows[line]["image"], [case.phrase], kind, no_finding)[case.phrase]
        for line, case in enumerate(chosen)
        for kind, name in panels
    }
    limits = {kind: max(np.abs(own).max() for (_, other, _), own in maps.items() if other == kind) for kind in KINDS}
    figure, axes = plt.subplots(len(chosen), 5, figsize=(9.6, 6.9), layout="constrained")
    painted = {}
    for line, case in enumerate(chosen):
        picture, region = rows[line]["image"], regions_of(rows[line])[case.phrase]
        show(axes[line, 0], picture, region)
        axes[line, 0].set_ylabel("“" + "\n".join(textwrap.wrap(case.phrase, 18)) + "”", fontsize=9)
        for axis, (kind, name) in zip(axes[line, 1:], panels):
            own = maps[line, kind, name]
            scale = {"vmin": -limits[kind], "vmax": limits[kind], "cmap": map_colours(OPACITY)}
            painted[kind] = axis.imshow(own, **scale, interpolation="bilinear", zorder=2)
            show(axis, picture, region, own)
            axis.set_xlabel(f"CNR {case.cnr[kind, name]:.2f}", fontsize=9, labelpad=2)
    for columns, (kind, label) in zip((axes[:, 1:3], axes[:, 3:5]), KINDS.items()):
        bar = figure.colorbar(painted[kind], ax=columns, location="bottom", shrink=0.8, aspect=30, pad=0.02)
        bar.ax.set_facecolor("#777777")
        bar.set_label(label, fontsize=9)
    for axis, title in zip(axes[0], ["radiograph", *(name for _, name in panels)]):
        axis.set_title(title, fontsize=11)
    figure.savefig(path, dpi=100, facecolor="white")
    plt.close(figure)


def show(axis, picture: Image.Image, region: np.ndarray, values: np.ndarray | None = None) -> None:
    """The drawing below what is there, the region's outline, and a ring where a map is largest."""
    axis.imshow(picture, cmap="gray", interpolation="bicubic", zorder=1)
    outline = axis.contour(region, levels=[0.5], colors="white", linewidths=1.3, linestyles="dashed", zorder=3)
    outline.set_path_effects([patheffects.withStroke(linewidth=2.6, foreground="black")])
    if values is not None:
        y, x = np.unravel_index(values.argmax(), values.shape)
        for width, colour in ((3.6, "black"), (1.6, "white")):
            axis.plot(x, y, "o", ms=10, mfc="none", mec=colour, mew=width, zorder=4)
    axis.set_xticks([])
    axis.set_yticks([])


if __name__ == "__main__":
    main()
