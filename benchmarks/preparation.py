# Licensed under the Apache License, Version 2.0.
"""
`python -m modeling_tier.data prepare` on radiographs of 2,500 x 3,000 pixels beside loops that open, resize and save
them with plain Pillow, on one core, the variants in turn. And how much of the time is the decoder's, which nothing can
save: JPEG has no way around the entropy decoding of the whole file.

    OMP_NUM_THREADS=1 python benchmarks/preparation.py
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
import os
import shutil
import tempfile
import time

from large_tree import write_large_tree
from PIL import Image

from modeling_tier.data.prepare import prepare, shrink
from modeling_tier.evaluation.tables import aligned


NUM_IMAGES, SIZE, REPEATS = 288, 320, 2


def plain(path: Path, mode: str) -> None:
    image = Image.open(path).convert(mode)
    scale = SIZE / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)))
    image.save(io.BytesIO(), "JPEG", quality=95)


def decode_smallest(path: Path) -> None:
    """At an eighth of the size there is next to nothing but entropy decoding."""
    image = Image.open(path)
    image.draft("L", (1, 1))
    image.load()


def main() -> None:
    parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        write_large_tree(tree, NUM_IMAGES - 4)
        paths = sorted(tree.glob("files/*/*/*/*.jpg"))

        def prepared(num_proc: int):
            shutil.rmtree(Path(folder) / "out", ignore_errors=True)
            prepare(tree, Path(folder) / "out", size=SIZE, num_proc=num_proc, progress=False)

        work = {
            "plain loop, as grey": (lambda: [plain(path, "L") for path in paths], 1),
            "plain loop, as RGB": (lambda: [plain(path, "RGB") for path in paths], 1),
            "prepare, 1 process": (lambda: prepared(1), 1),
            f"prepare, {os.cpu_count()} processes": (lambda: prepared(os.cpu_count()), os.cpu_count()),
            "  of it: the picture alone": (lambda: [shrink(str(path), SIZE) for path in paths], 1),
            "  of it: entropy decoding": (lambda: [decode_smallest(path) for path in paths], 1),
        }
        best = dict.fromkeys(work, float("inf"))
        for _ in range(REPEATS):
            for name, (run, _) in work.items():
                started = time.perf_counter()
                run()
                best[name] = min(best[name], time.perf_counter() - started)
    rows = [[f"{len(paths)} images of 2,500 x 3,000", "images/s", "images/s and core", "against grey", "against RGB"]]
    rate = {name: len(paths) / seconds / work[name][1] for name, seconds in best.items()}
    grey, rgb = rate["plain loop, as grey"], rate["plain loop, as RGB"]
    for name, value in rate.items():
        rows.append(
            [name, f"{value * work[name][1]:.1f}", f"{value:.1f}", f"{value / grey:.2f}", f"{value / rgb:.2f}"]
        )
    print(aligned(rows))


if __name__ == "__main__":
    main()
