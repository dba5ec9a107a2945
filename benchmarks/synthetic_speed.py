# Licensed under the Apache License, Version 2.0.
"""
Complete rows of the synthetic data set (drawing, report, masks, PNG) per second and core, beside PNG alone.

    OMP_NUM_THREADS=1 python benchmarks/synthetic_speed.py
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

import io
import itertools
import time

import numpy as np
from PIL import Image

from modeling_tier.data.synthetic import DRAWINGS, draw_studies, synthetic_pairs
from modeling_tier.evaluation.tables import aligned


NUM_IMAGES = 300


def rate(work) -> float:
    started = time.perf_counter()
    work()
    return NUM_IMAGES / (time.perf_counter() - started)


def encode(pictures: list[np.ndarray]) -> None:
    for pixels in pictures:
        Image.fromarray(pixels).save(io.BytesIO(), "PNG", compress_level=1)


def main() -> None:
    parse_arguments()
    rows = [["drawings", "pixels a side", "rows/s", "ms a row", "PNG of the picture alone, pictures/s", "ratio"]]
    for size, drawings in itertools.product((64, 96, 128, 224), DRAWINGS):
        pictures = [study.pixels for study in draw_studies("train", NUM_IMAGES, size, 0, drawings)]
        complete = max(
            rate(lambda s=size, d=drawings: synthetic_pairs("train", NUM_IMAGES, s, drawings=d)) for _ in range(3)
        )
        baseline = max(rate(lambda p=pictures: encode(p)) for _ in range(3))
        rates = f"{complete:.0f}", f"{1000 / complete:.1f}", f"{baseline:.0f}", f"{complete / baseline:.2f}"
        rows.append([drawings, str(size), *rates])
    print(aligned(rows))


if __name__ == "__main__":
    main()
