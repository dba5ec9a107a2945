# Licensed under the Apache License, Version 2.0.
"""Trees in MIMIC-CXR-JPG's form for the benchmarks, with pictures of the size that a detector gives."""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image


sys.path.insert(0, str(Path(__file__).parents[1]))
from modeling_tier.data.synthetic import draw_studies, write_mimic_tree  # noqa: E402


WIDTH, HEIGHT = 2500, 3000


def large_pictures(number: int) -> list[bytes]:
    """
    Drawings of 2,500 x 3,000 pixels as grey JPEG of quality 95. Noise of one grey level makes them 1.5 MB, as an image
    of MIMIC-CXR-JPG is on average (570 GB by 377,110).
    """
    pictures = []
    for i, study in enumerate(draw_studies("train", number, 512, seed=0)):
        large = np.asarray(Image.fromarray(study.pixels).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
        noise = np.random.default_rng(i).normal(0, 1, large.shape)
        buffer = io.BytesIO()
        noisy = np.clip(np.round(large + noise), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(buffer, "JPEG", quality=95)
        pictures.append(buffer.getvalue())
    return pictures


def write_large_tree(root: Path, num_images: int) -> None:
    """`num_images` training images and a few others; eight different pictures, each many times."""
    write_mimic_tree(root, {"train": num_images, "validation": 2, "test": 2}, image_size=32)
    pictures = large_pictures(8)
    for i, path in enumerate(sorted(root.glob("files/*/*/*/*.jpg"))):
        path.write_bytes(pictures[i % len(pictures)])
