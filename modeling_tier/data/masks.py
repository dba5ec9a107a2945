# Licensed under the Apache License, Version 2.0.
"""Masks of ground-truth regions: from run lengths to a picture as `datasets` stores it, and the box around it."""

import io

import numpy as np
from PIL import Image


MAX_SIDE = 20_000  # pixels: more than any radiograph has


def mask_cell(mask: Image.Image | np.ndarray, size: tuple[int, int] | None = None) -> dict:
    """A mask as `datasets` stores an image, in another width and height if they are given."""
    image = mask if isinstance(mask, Image.Image) else Image.fromarray(np.asarray(mask, dtype=bool))
    image = image.convert("1")
    if size and image.size != tuple(size):
        image = image.resize(size, Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


def mask_box(mask: np.ndarray) -> list[float]:
    """x_min, y_min, x_max, y_max around the pixels of a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]


def coco_mask(encoded) -> np.ndarray:
    """
    A mask (height, width) of COCO's compressed run lengths, {"size": [height, width], "counts": text}.

    Raises:
        ValueError: if it is none, or pycocotools is missing.
    """
    try:
        from pycocotools import mask as coco  # optional
    except ImportError as error:
        raise ValueError("COCO's run lengths need pycocotools: pip install pycocotools") from error
    if not isinstance(encoded, dict) or not isinstance(encoded.get("counts"), str):
        raise ValueError(f'a mask must be {{"size": [height, width], "counts": text}}; got {str(encoded)[:80]!r}')
    size = encoded.get("size")
    if not (isinstance(size, list) and len(size) == 2 and all(type(n) is int and 0 < n <= MAX_SIDE for n in size)):
        raise ValueError(f"the size of a mask must be [height, width]; got {str(size)[:80]!r}")
    try:
        return coco.decode({"size": size, "counts": encoded["counts"]}).astype(bool)
    except (ValueError, UnicodeError, IndexError) as error:
        raise ValueError(f"the run lengths of a mask are damaged ({error})") from error


def relative_runs(text: str, side: int) -> np.ndarray:
    """
    A mask (side, side) of run lengths as SIIM-ACR writes them: pairs of an offset from the end of the last run and a
    length, column by column.

    Raises:
        ValueError: if they are no such pairs, or run out of the picture.
    """
    numbers = np.array([_whole(word) for word in text.split()], dtype=np.int64)
    if len(numbers) % 2 or not len(numbers):
        raise ValueError("run lengths must be pairs of an offset and a length")
    ends = numbers.cumsum()  # behind each gap, and behind each run
    if ends[-1] > side * side:
        raise ValueError(f"the run lengths go beyond {side} x {side} pixels")
    flat = np.zeros(side * side, dtype=bool)
    for start, end in zip(ends[::2], ends[1::2]):
        flat[start:end] = True
    return flat.reshape(side, side).T


def _whole(word: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) < 10):
        raise ValueError(f"run lengths must be whole numbers; got {word[:20]!r}")
    return int(word)
