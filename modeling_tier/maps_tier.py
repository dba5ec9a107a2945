# Licensed under the Apache License, Version 2.0.
"""Maps on the grid of patches laid over the picture, pixel by pixel."""

import re
from collections.abc import Sequence

import numpy as np
from PIL import Image


# Colour-blind readers tell these two apart, and both from grey.
POSITIVE_COLOUR, NEGATIVE_COLOUR = (255, 140, 0), (0, 114, 255)
OVERLAY_OPACITY = 0.7

# What "no finding" means where a file of prompts does not say it; its map is subtracted from that of a phrase.
NO_FINDING = (
    "No acute cardiopulmonary process.",
    "No acute cardiopulmonary abnormality.",
    "The lungs are clear.",
)


def overlay_map(picture: Image.Image, cosines: np.ndarray, limit: float = 1.0) -> Image.Image:
    """
    Paint a map over its picture: orange where the cosine is positive, blue where it is negative, bare where it is NaN.

    Args:
        picture: of W x H pixels.
        cosines: (H, W).
        limit: the cosine, up or down, at which the colour covers 70% of the picture; it fades in proportion to 0. The
            same for all maps that are to be compared.

    Returns:
        an RGB picture of W x H pixels.
    """
    opacity = OVERLAY_OPACITY * np.clip(np.nan_to_num(np.abs(cosines)) / limit, 0, 1)[..., None]
    colour = np.where(cosines[..., None] > 0, np.float32(POSITIVE_COLOUR), np.float32(NEGATIVE_COLOUR))
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    return Image.fromarray(np.round(pixels + opacity * (colour - pixels)).astype(np.uint8))


def picture_geometry(size: tuple[int, int], processor):
    """
    What a processor does to a picture of `size` (width, height): three pairs, of x and y.

    Args:
        processor: a [`TierProcessor`], or an image processor alone.

    The centre crop is the library's: where the margin is odd, its smaller half lies left and above. torchvision rounds
    half a pixel to the even one, so its crop lies one pixel further where the margin is 3 modulo 4.

    Returns:
        the factors of its resizing; the offset of the result in the resized picture, in pixels, not always whole
        ones (negative where it pads); and the width and height of the result.

    Raises:
        ValueError: if it resizes in a way that is not known here.
    """
    image_processor = getattr(processor, "image_processor", processor)
    framing = getattr(processor, "framing", None)
    if framing is not None and framing.pad_to_square:
        resized, margins, side = framing.square(size)
        factors, offset, kept = picture_geometry((side, side), image_processor)
        across, down = (factor * inner / full for factor, inner, full in zip(factors, resized, size))
        shifted = tuple(cut - margin * factor for cut, margin, factor in zip(offset, margins, factors))
        return (across, down), shifted, kept
    width, height = resized = size
    if getattr(image_processor, "do_resize", False):
        wanted = image_processor.size
        shortest = wanted.get("shortest_edge")
        if getattr(image_processor, "crop_pct", None) is not None or wanted.get("longest_edge"):
            raise ValueError(
                f"A map cannot follow how {type(image_processor).__name__} resizes: by edge and crop_pct."
            )
        if shortest:
            longest = int(shortest * max(size) / min(size))
            resized = (shortest, longest) if width <= height else (longest, shortest)
        elif wanted.get("height") and wanted.get("width"):
            resized = wanted["width"], wanted["height"]
        else:
            raise ValueError(f"A map cannot follow a resizing by {dict(wanted)}: only edges or height and width.")
    kept = resized
    if getattr(image_processor, "do_center_crop", False):
        kept = image_processor.crop_size["width"], image_processor.crop_size["height"]
    offset = tuple((full - part) // 2 for full, part in zip(resized, kept))
    return (resized[0] / width, resized[1] / height), offset, kept


def interpolation(length: int, scale: float, offset: float, input_length: int, cells: int) -> np.ndarray:
    """
    Weights (length, cells) by which the pixels along one side of the picture are made of the cells of the patch grid:
    linear between the centres of the cells, constant beyond the outer ones, NaN for pixels outside of the input.
    """
    position = (np.arange(length) + 0.5) * scale - offset
    cell = np.clip(position * cells / input_length - 0.5, 0, cells - 1)
    weights = np.maximum(0, 1 - np.abs(cell[:, None] - np.arange(cells)))
    weights[(position < 0) | (position > input_length)] = np.nan
    return weights.astype(np.float32)


def words_of(sentence: str, offsets: Sequence[Sequence[int]]) -> list[tuple[str, list[int]]]:
    """Words of a sentence, each with the positions of its tokens; tokens without letter or digit belong to none."""
    words = []
    for match in re.finditer(r"\S+", sentence):
        positions = [
            i for i, token in enumerate(offsets) if match.start() <= _first_letter(sentence, token) < match.end()
        ]
        if positions:
            words.append((re.sub(r"^\W+|\W+$", "", match.group()), positions))
    return words


def _first_letter(sentence: str, token: Sequence[int]) -> int:
    """Index of a token's first letter or digit in the sentence; -1 for special tokens and punctuation."""
    return next((i for i in range(*token) if sentence[i].isalnum()), -1)
