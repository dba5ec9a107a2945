# Licensed under the Apache License, Version 2.0.
"""A large picture made small, once, before training."""

import io
from collections.abc import Iterable

from PIL import Image, ImageOps

from ..dicom_tier import NUM_HEAD_BYTES, is_dicom
from ..reading_tier import ReadingOptions, open_radiograph


MIN_SIDE = 32  # a picture of fewer pixels a side shows nothing


def shrink(source: str | bytes, size: int) -> bytes:
    """
    A picture as a grey JPEG whose shorter side has `size` pixels, or as many as it has.

    JPEG files are decoded at the smallest of the scales 1, 1/2, 1/4, 1/8 that has enough pixels, which the format's
    cosine transform gives almost for nothing. All others are read by [`load_radiograph`], whose limits hold here too.

    Args:
        source: path, or content, of a file.
        size: pixels.

    Raises:
        ValueError: if it is missing, unreadable or too small, with the reason.
    """
    try:
        content = _content(source)
        image = _opened(content)
        if min(image.size) < MIN_SIDE:
            raise ValueError(f"fewer than {MIN_SIDE} pixels a side")
        ReadingOptions().check_size(*image.size)
        scale = size / min(image.size)
        target = image.size if scale >= 1 else (round(image.width * scale), round(image.height * scale))
        _, box = image.draft("L", target) or (None, None)  # the picture within its last, perhaps incomplete, pixels
        image = image.convert("L").resize(target, Image.Resampling.BICUBIC, box)
        buffer = io.BytesIO()
        ImageOps.exif_transpose(image).save(buffer, "JPEG", quality=95)
        return buffer.getvalue()
    except FileNotFoundError:
        raise ValueError("the file is missing") from None
    except ValueError:
        raise
    except Exception as error:  # decoders raise many kinds, and one picture must not stop the others
        known = {"truncated": "the file is truncated", "cannot identify": "not a picture"}
        words = str(error).replace(str(source), "") or type(error).__name__
        reason = next((known[word] for word in known if word in words), words)
        raise ValueError(reason) from error


def _content(source: str | bytes) -> bytes:
    if isinstance(source, bytes):
        content = source
    else:
        with open(source, "rb") as file:
            content = file.read()
    if not content:
        raise ValueError("the file is empty")
    return content


def _opened(content: bytes) -> Image.Image:
    """Not yet decoded, if it is an ordinary JPEG."""
    if is_dicom(content[:NUM_HEAD_BYTES]):
        return open_radiograph(content).convert("L")
    image = Image.open(io.BytesIO(content))
    if image.format != "JPEG" or image.mode not in ("L", "RGB"):  # 16 bits, palettes, CMYK
        return open_radiograph(content).convert("L")
    return image


def shrink_all(sources: Iterable[str | bytes | None], size: int) -> list[bytes | str]:
    """For each source the picture, or the reason why there is none."""
    results: list[bytes | str] = []
    for source in sources:
        try:
            if source is None:
                raise ValueError("there is no picture in its row")
            results.append(shrink(source, size))
        except ValueError as error:
            results.append(str(error))
    return results
