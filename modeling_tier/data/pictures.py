# Licensed under the Apache License, Version 2.0.
"""From the cell of a data set to a picture, with an error that says which one is bad."""

import io
import os
from collections.abc import Iterable

import PIL.Image
from datasets import Dataset, Image, IterableDataset

from ..processing_tier import load_radiograph


def undecoded(pairs: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """The same pairs with images as they are stored, for [`read_picture`]."""
    return pairs.cast_column("image", Image(decode=False))


def read_picture(cell: dict, image_id: str) -> PIL.Image.Image:
    """
    A picture of 8 bits: grey as it is, everything else as [`load_radiograph`] gives it.

    Args:
        cell: `{"bytes": ..., "path": ...}` as `datasets` stores an image.
        image_id: for the message.

    Raises:
        ValueError: if it cannot be read.
    """
    if cell is None or not (cell["bytes"] or cell["path"]):
        raise ValueError(f"The image {image_id} cannot be read: there is none in its row.")
    path, content = cell["path"], cell["bytes"]
    try:
        if content is None and "://" in path and not os.path.exists(path):
            image = Image().decode_example(cell)
        else:
            image = PIL.Image.open(path if content is None else io.BytesIO(content))
            image.load()
        return image if image.mode == "L" else load_radiograph(image)
    except PIL.UnidentifiedImageError:
        if content is not None:
            raise _unreadable(image_id, "it is of no known format", path) from None
    except (OSError, SyntaxError, ValueError, EOFError, PIL.Image.DecompressionBombError) as error:
        raise _unreadable(image_id, error, path) from error
    try:
        return load_radiograph(path)  # perhaps DICOM
    except ValueError as error:
        raise _unreadable(image_id, error, path) from error


def _unreadable(image_id: str, why, path: str | None) -> ValueError:
    place = f" ({path})" if path and path not in str(why) else ""
    return ValueError(f"The image {image_id} cannot be read: {why}{place}")


def scaled_box(box: Iterable[float], whole: tuple[float, float], size: tuple[int, int]) -> list[float]:
    """A box of a picture of the width and height `whole` in pixels of a copy of another size."""
    scale = (size[0] / whole[0], size[1] / whole[1]) * 2
    return [value * factor for value, factor in zip(box, scale)]


def picture_size(cell: dict) -> tuple[int, int] | None:
    """Width and height of a stored picture, of which only the head is read; None if it is none."""
    try:
        with PIL.Image.open(cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"])) as image:
            return image.size
    except OSError:
        return None
