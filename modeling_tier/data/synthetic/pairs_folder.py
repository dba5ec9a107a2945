# Licensed under the Apache License, Version 2.0.
"""The synthetic radiographs as a person's own pairs lie on a disk, to try the loader of `pairs`."""

import csv
import os
from pathlib import Path

from PIL import Image

from .pairs import draw_studies


def write_pairs_folder(
    root: str | os.PathLike, num_images: int = 300, image_size: int = 128, seed: int = 0, drawings: str = "simple"
) -> None:
    """
    Write drawings of the training part as PNG files, and `pairs.csv` with the columns image, text and subject_id.

    Args:
        root: folder to write, created if it is missing; must be empty.
        num_images: number of pairs.
        image_size: pixels a side.
        seed: of everything.
        drawings: "simple" or "fine", as for [`synthetic_pairs`].

    Raises:
        ValueError: if the folder holds anything.
    """
    root = Path(root)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(f"{root} is not an empty folder.")
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "pairs.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("image", "text", "subject_id"))
        for i, study in enumerate(draw_studies("train", num_images, image_size, seed, drawings)):
            Image.fromarray(study.pixels).save(root / f"{i}.png")
            table.writerow((f"{i}.png", study.report.findings, study.subject_id))
