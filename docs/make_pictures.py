# Licensed under the Apache License, Version 2.0.
"""
Make the pictures of the README from the models of `make demo`:

    python -m docs.make_pictures --models runs/demo

`radiograph.png` is the first drawing of the test split with both a large heart and a left effusion. `maps.png` shows
one phrase in two models. The phrase is chosen by a rule, not by eye: of all phrases about the 1,000 test drawings, the
one whose CNR differs between the two models by the median.
"""

import argparse
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))
from tier_cli.options import option_parser


def parse_arguments() -> argparse.Namespace:
    parser = option_parser(__doc__)
    parser.add_argument("--models", default="runs/demo", type=Path, help="output folder of demo.py")
    return parser.parse_args()


if __name__ == "__main__":
    parse_arguments()  # before torch is imported, which takes seconds: --help and mistakes are answered at once

import matplotlib
import numpy as np
from PIL import Image


matplotlib.use("Agg")
from matplotlib import pyplot as plt

from modeling_tier import TierZeroShotPipeline
from modeling_tier.data.synthetic import draw_studies, region_phrase
from modeling_tier.evaluation import load_model
from modeling_tier.evaluation.figures import map_colours


FOLDER = Path(__file__).parent
NUM_IMAGES, MODEL_SIDE, SEED = 1000, 64, 0  # the test set of demo.py
EXAMPLE_SIDE = 256
OPACITY = 0.55  # of the largest cosine; the page and `overlay_map` use 0.7


def main() -> None:
    arguments = parse_arguments()
    write_example(FOLDER / "radiograph.png")
    models = {}
    for name in ("CLIP", "TIER"):
        model, processor = load_model(str(arguments.models / name.lower()))
        models[name] = TierZeroShotPipeline(model=model, processor=processor)
    cases = measure(models)
    number, phrase = median_case(cases)
    print(f"{len(cases)} phrases; drawing {number}: {phrase} {cases[number, phrase]}")
    means = {name: np.mean([case[name] for case in cases.values()]) for name in models}
    print(f"mean CNR over all phrases: {means}")
    plot(models, number, phrase, cases[number, phrase], FOLDER / "maps.png")


def write_example(path: Path) -> None:
    for study in draw_studies("test", NUM_IMAGES, EXAMPLE_SIDE, SEED):
        drawn = {(region.finding.name, region.side) for region in study.regions}
        if {("Cardiomegaly", None), ("Pleural Effusion", "left")} <= drawn:
            Image.fromarray(study.pixels).save(path)
            return


def phrases(study) -> dict[str, np.ndarray]:
    """The phrases about a drawing, each with the mask (H, W) of all regions that it is true of."""
    masks: dict[str, np.ndarray] = {}
    for region in study.regions:
        phrase = region_phrase(region.finding, region.side)
        masks[phrase] = masks.get(phrase, np.zeros_like(region.mask)) | region.mask
    return masks


def cosine_maps(model: TierZeroShotPipeline, pixels: np.ndarray, sentences: list[str]) -> dict[str, np.ndarray]:
    prompts = {sentence: {"positive": [sentence], "negative": [sentence]} for sentence in sentences}
    return {row["finding"]: row["map"] for row in model(pixels, prompts, maps="array")}


def contrast(cosines: np.ndarray, inside: np.ndarray) -> float:
    """CNR: difference of the means inside and outside of a region, over the root of the sum of both variances."""
    a, b = cosines[inside], cosines[~inside]
    return float((a.mean() - b.mean()) / np.sqrt(a.var() + b.var()))


def measure(models: dict[str, TierZeroShotPipeline]) -> dict[tuple[int, str], dict[str, float]]:
    """CNR of each model, by number of the drawing and phrase."""
    cases = {}
    for number, study in enumerate(draw_studies("test", NUM_IMAGES, MODEL_SIDE, SEED)):
        masks = {phrase: mask for phrase, mask in phrases(study).items() if mask.any() and not mask.all()}
        if not masks:
            continue
        maps = {name: cosine_maps(model, study.pixels, list(masks)) for name, model in models.items()}
        for phrase, mask in masks.items():
            cases[number, phrase] = {name: contrast(maps[name][phrase], mask) for name in models}
    return cases


def median_case(cases: dict) -> tuple[int, str]:
    ranked = sorted(cases, key=lambda case: (cases[case]["TIER"] - cases[case]["CLIP"], case))
    return ranked[len(ranked) // 2]


def plot(models: dict[str, TierZeroShotPipeline], number: int, phrase: str, case: dict, path: Path) -> None:
    *_, study = draw_studies("test", number + 1, MODEL_SIDE, SEED)
    maps = {name: cosine_maps(model, study.pixels, [phrase])[phrase] for name, model in models.items()}
    limit = max(np.abs(cosines).max() for cosines in maps.values())
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 5.85), layout="constrained")
    for axis, (name, cosines) in zip(axes, maps.items()):
        axis.imshow(study.pixels, cmap="gray", interpolation="bicubic")
        painted = axis.imshow(cosines, cmap=map_colours(OPACITY), vmin=-limit, vmax=limit, interpolation="bilinear")
        for width, colour, style in ((3.4, "black", "solid"), (1.8, "white", "dashed")):
            axis.contour(phrases(study)[phrase], levels=[0.5], colors=colour, linewidths=width, linestyles=style)
        y, x = np.unravel_index(cosines.argmax(), cosines.shape)
        for width, colour in ((4.5, "black"), (2, "white")):
            axis.plot(x, y, "o", ms=15, mfc="none", mec=colour, mew=width)
        axis.set_title(f"{name}   CNR {case[name]:.2f}", fontsize=13)
        axis.set_axis_off()
    bar = figure.colorbar(painted, ax=axes, location="bottom", shrink=0.5, aspect=34, pad=0.02)
    bar.ax.set_facecolor("#777777")
    bar.set_label(f"cosine of “{phrase}” with each patch, one scale for both maps", fontsize=10)
    figure.savefig(path, dpi=100, facecolor="white")
    plt.close(figure)


if __name__ == "__main__":
    main()
