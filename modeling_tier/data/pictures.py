# Licensed under the Apache License, Version 2.0.
"""From the cell of a data set to a picture, with an error that says which one is bad."""

import io
import os

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
    try:
        if cell["bytes"] is None and not os.path.exists(cell["path"] or ""):
            if "://" not in (cell["path"] or ""):
                raise FileNotFoundError(f"there is no file {cell['path']}")
            image = Image().decode_example(cell)
        else:
            image = PIL.Image.open(cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"]))
            image.load()
        return image if image.mode == "L" else load_radiograph(image)
    except PIL.UnidentifiedImageError:
        if cell["bytes"] is None:
            return load_radiograph(cell["path"])  # perhaps DICOM
        raise ValueError(f"The image {image_id} cannot be read: it is of no known format.") from None
    except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"The image {image_id} cannot be read: {error}") from error


def picture_size(cell: dict) -> tuple[int, int] | None:
    """Width and height of a stored picture, of which only the head is read; None if it is none."""
    try:
        with PIL.Image.open(cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"])) as image:
            return image.size
    except OSError:
        return None
