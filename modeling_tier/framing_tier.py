# Licensed under the Apache License, Version 2.0.
"""What some published models do to a picture before any image processor: stretch its contrast, pad it to a square."""

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Framing:
    """
    What is done to an 8-bit picture before the image processor gets it; by default nothing.

    Args:
        stretch_contrast: its smallest and largest value become 0 and 255, as BioViL's code does it.
        pad_to_square: black margins of equal width make it a square, as for CheXzero, GLoRIA and MedCLIP.
        longer_side: pixels to which its longer side is resized before it is padded.
        longer_side_resample: the filter of that resizing, a number of `PIL.Image.Resampling`.

    Raises:
        ValueError: for a value that is none of these.
    """

    stretch_contrast: bool = False
    pad_to_square: bool = False
    longer_side: int | None = None
    longer_side_resample: int = Image.Resampling.LANCZOS

    def __post_init__(self):
        for name in ("stretch_contrast", "pad_to_square"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False; got {getattr(self, name)!r}.")
        side = self.longer_side
        if side is not None and (isinstance(side, bool) or not isinstance(side, int) or side < 1):
            raise ValueError(f"longer_side must be a positive whole number or None; got {side!r}.")
        if side is not None and not self.pad_to_square:
            raise ValueError("longer_side is the side of the square of pad_to_square=True.")
        if self.longer_side_resample not in list(Image.Resampling):
            raise ValueError(f"longer_side_resample must be a filter of Pillow; got {self.longer_side_resample!r}.")

    def __call__(self, picture: Image.Image) -> Image.Image:
        """The picture (8-bit, "L" or "RGB") as the image processor gets it."""
        if self.stretch_contrast:
            picture = _stretched(picture)
        if not self.pad_to_square:
            return picture
        resized, margins, side = self.square(picture.size)
        square = Image.new(picture.mode, (side, side))
        square.paste(picture.resize(resized, self.longer_side_resample) if self.longer_side else picture, margins)
        return square

    def square(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int], int]:
        """Of a picture of `size` (width, height): its size in the square, its left and upper margin, and the side."""
        if not self.longer_side:
            side, resized = max(size), size
        else:
            side, ratio = self.longer_side, self.longer_side / max(size)
            resized = max(1, int(size[0] * ratio)), max(1, int(size[1] * ratio))
        return resized, ((side - resized[0]) // 2, (side - resized[1]) // 2), side


def _stretched(picture: Image.Image) -> Image.Image:
    """Grey values from the smallest to the largest become 0 to 255, cut off to whole numbers."""
    extrema = picture.getextrema()
    channels = extrema if isinstance(extrema[0], tuple) else (extrema,)
    low, high = min(channel[0] for channel in channels), max(channel[1] for channel in channels)
    if low == high or (low, high) == (0, 255):
        return picture
    table = np.clip((np.arange(256) - low) / (high - low), 0, 1) * 255
    return picture.point(table.astype(np.uint8).tolist() * len(channels))
