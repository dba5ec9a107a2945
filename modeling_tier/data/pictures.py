# Licensed under the Apache License, Version 2.0.
"""From the cell of a data set to a picture, with an error that says which one is bad."""

import io
from collections.abc import Iterable

import PIL.Image
from datasets import Dataset, Image, IterableDataset
from datasets.utils.file_utils import xopen

from ..dicom_tier import NUM_HEAD_BYTES, is_dicom
from ..reading_tier import ReadingOptions, open_radiograph


def undecoded(pairs: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """The same pairs with images as they are stored, for [`read_picture`]."""
    return pairs.cast_column("image", Image(decode=False))


def undecoded_columns(rows: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """The same rows under whatever names, with every column of images as it is stored."""
    for name, kind in (rows.features or {}).items():
        if isinstance(kind, Image):
            rows = rows.cast_column(name, Image(decode=False))
    return rows


def read_picture(cell: dict, image_id: str, options: ReadingOptions | None = None) -> PIL.Image.Image:
    """
    A picture of 8 bits, of mode "L" or "RGB", as [`open_radiograph`] gives it.

    Args:
        cell: `{"bytes": ..., "path": ...}` as `datasets` stores an image.
        image_id: for the message.
        options: how it is read.

    Raises:
        ValueError: if it cannot be read.
    """
    if cell is None or not (cell["bytes"] or cell["path"]):
        raise ValueError(f"The image {image_id} cannot be read: there is none in its row.")
    path = cell["path"]
    if not cell["bytes"] and "://" in path and not path.startswith(("http://", "https://")):  # hf://, zip://, ...
        try:
            with xopen(path, "rb") as file:
                cell = {"bytes": file.read(), "path": path}
        except Exception as error:  # of the file system behind the address
            raise ValueError(f"The image {image_id} cannot be read: {error} ({path})") from error
    return open_radiograph(cell, options, name=image_id)


def scaled_box(box: Iterable[float], whole: tuple[float, float], size: tuple[int, int]) -> list[float]:
    """A box of a picture of the width and height `whole` in pixels of a copy of another size."""
    scale = (size[0] / whole[0], size[1] / whole[1]) * 2
    return [value * factor for value, factor in zip(box, scale)]


def box_regions(cell: dict, boxes: Iterable[tuple]) -> list[dict]:
    """
    Ground-truth regions in pixels of a stored picture, which may be a smaller copy of the published one.

    Args:
        cell: the picture.
        boxes: finding, phrase, corners (x_min, y_min, x_max, y_max), and width and height of the picture in whose
            pixels they are; None: of the stored one.
    """
    size = None
    regions = []
    for finding, phrase, box, published in boxes:
        size = size or picture_size(cell) or published
        regions.append({"finding": finding, "phrase": phrase, "box": scaled_box(box, published or size, size)})
    return regions


def picture_size(cell: dict) -> tuple[int, int] | None:
    """Width and height of a stored picture, of which only the head is read; None if it is none."""
    try:
        with PIL.Image.open(cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"])) as image:
            return image.size
    except OSError:
        return _dicom_size(cell)


def _dicom_size(cell: dict) -> tuple[int, int] | None:
    try:
        with _opened(cell) as file:
            if not is_dicom(file.read(NUM_HEAD_BYTES)):
                return None
            file.seek(0)
            import pydicom  # optional

            header = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=["Rows", "Columns"])
            return int(header.Columns), int(header.Rows)
    except Exception:  # whatever a damaged file makes pydicom raise: reading the picture names it
        return None


def _opened(cell: dict):
    return open(cell["path"], "rb") if cell["bytes"] is None else io.BytesIO(cell["bytes"])
