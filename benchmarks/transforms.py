# Licensed under the Apache License, Version 2.0.
"""
The paper's augmentation of a prepared picture in libraries that could draw it: pictures a second on one core,
and how far their reduction of a picture lies from the antialiased formula in float64. A library that is not installed
is passed over: pip install opencv-python-headless albumentations kornia

    OMP_NUM_THREADS=1 python benchmarks/transforms.py
"""

import argparse
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))
from tier_cli.options import option_parser


def parse_arguments() -> argparse.Namespace:
    return option_parser(__doc__).parse_args()


if __name__ == "__main__":
    parse_arguments()  # before torch is imported, which takes seconds: --help and mistakes are answered at once

import time
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
from PIL import Image

from modeling_tier.data.synthetic import draw_studies
from modeling_tier.data.transforms import AUGMENTATIONS, augment, generator
from modeling_tier.evaluation.tables import aligned


REPEATS, SIZE, SMALL = 400, 224, (224, 224)
PAPER = AUGMENTATIONS["paper"]


def pillow(picture: Image.Image):
    numbers = iter(range(10**9))
    return (
        lambda: np.asarray(augment(picture, PAPER, SMALL, generator(0, 0, str(next(numbers))))),
        lambda: np.asarray(picture.resize(SMALL, Image.Resampling.BILINEAR)),
    )


def albumentations(picture: Image.Image):
    import albumentations as A
    import cv2

    cv2.setNumThreads(1)
    pixels = np.asarray(picture)
    chain = A.Compose(
        [
            A.RandomResizedCrop(SMALL, scale=PAPER.area, ratio=PAPER.ratio, area_for_downscale="image"),
            A.Affine(scale=PAPER.scale, translate_percent=(-0.05, 0.05), rotate=(-10, 10), p=1),
            A.RandomBrightnessContrast(0.2, 0.2, brightness_by_max=False, p=1),
        ]
    )
    return (
        lambda: chain(image=pixels)["image"],
        lambda: cv2.resize(pixels, SMALL, interpolation=cv2.INTER_AREA),
    )


def kornia(picture: Image.Image):
    import kornia.augmentation as K
    from kornia.geometry import resize

    pixels = torch.from_numpy(np.asarray(picture).copy())[None, None] / 255
    chain = K.AugmentationSequential(
        K.RandomResizedCrop(SMALL, scale=PAPER.area, ratio=PAPER.ratio),
        K.RandomAffine(10, translate=(0.05, 0.05), scale=PAPER.scale, p=1.0),
        K.ColorJiggle(brightness=0.2, contrast=0.2, p=1.0),
    )
    return lambda: chain(pixels), lambda: 255 * resize(pixels, SMALL, antialias=True)[0, 0].numpy()


def triangle(old: int, new: int) -> np.ndarray:
    """Weights (new, old) of linear interpolation that is widened by the reduction, as antialiasing asks."""
    scale = old / new
    distance = (np.arange(new)[:, None] + 0.5) * scale - (np.arange(old)[None] + 0.5)
    weights = np.clip(1 - np.abs(distance) / max(scale, 1), 0, None)
    return weights / weights.sum(axis=1, keepdims=True)


def main() -> None:
    parse_arguments()
    torch.set_num_threads(1)
    drawing = next(draw_studies("train", 1, 384, seed=0)).pixels
    noisy = np.clip(drawing + np.random.default_rng(0).normal(0, 8, drawing.shape), 0, 255).astype(np.uint8)
    picture = Image.fromarray(noisy[:, :320])  # a quarter of the width and height goes in the reduction, and more
    pixels = np.asarray(picture, np.float64)
    exact = triangle(384, SIZE) @ pixels @ triangle(320, SIZE).T
    rows = [
        ["320 x 384 to 224 x 224", "version", "images/s", "against Pillow", "error of the reduction, greys of 255"]
    ]
    baseline = None
    for make in (pillow, albumentations, kornia):
        try:
            name = make.__name__
            random, reduce = make(picture)
            installed = version(name)
        except (ImportError, PackageNotFoundError):
            rows.append([make.__name__, "not installed", "", "", ""])
            continue
        random()
        started = time.perf_counter()
        for _ in range(REPEATS):
            random()
        rate = REPEATS / (time.perf_counter() - started)
        baseline = baseline or rate
        error = np.abs(reduce() - exact).mean()
        rows.append([name, installed, f"{rate:.0f}", f"{rate / baseline:.2f}", f"{error:.2f}"])
    print(aligned(rows))


if __name__ == "__main__":
    main()
