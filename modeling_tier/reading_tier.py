# Licensed under the Apache License, Version 2.0.
"""
Radiographs from every form in which they come, as 8-bit pictures.

The same picture gives the same pixels as a path, a URL, a data URI, bytes, an open file, a cell of `datasets`, a PIL
image, an array or a tensor. Nothing of torch is imported: the exported encoders read pictures by copies of this file
and of dicom_tier.
"""

import base64
import binascii
import functools
import http.client
import io
import os
import stat
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from .dicom_tier import CONTRASTS, NUM_HEAD_BYTES, is_dicom, read_dicom


# The largest chest detectors make 19 megapixels; a radiograph of a whole spine is 5 times as long as it is wide.
MAX_PIXELS = 64_000_000
MAX_ASPECT_RATIO = 20.0

MAX_DOWNLOAD_BYTES = 512 * 2**20
MAX_DOWNLOAD_SECONDS = 60.0

# Formats that a radiograph comes in. Others, such as EPS, which starts another program, are not tried.
_FORMATS = ("PNG", "JPEG", "MPO", "JPEG2000", "TIFF", "BMP", "DIB", "GIF", "WEBP", "AVIF", "PPM")
_WITH_FRAMES = ("TIFF", "GIF", "WEBP", "AVIF", "PNG")  # MPO holds thumbnails of its one picture

# Pillow keeps the high byte of 16-bit colours alone. By these raw modes it reads the low one: Pillow's raw mode of the
# file, then the mode and the raw mode to decode by.
_LOW_BYTES = {
    "RGB;16B": ("RGB", "RGB;16L"),
    "RGB;16L": ("RGB", "RGB;16B"),
    "RGBA;16B": ("RGBA", "RGBA;16L"),
    "RGBA;16L": ("RGBA", "RGBA;16B"),
    "LA;16B": ("RGBA", "RGBA"),  # four bytes: grey high, grey low, alpha high, alpha low
}

# A picture is taken for clipped where so much is pure white; or some of it is, and hardly anything is grey.
_CLIPPED_FRACTION, _SOME_WHITE, _HARDLY_GREY = 0.5, 0.1, 0.1
_GREYS = range(16, 240)


def _is_whole(number: Any) -> bool:
    return isinstance(number, (int, np.integer)) and not isinstance(number, bool)


@dataclass(frozen=True)
class ReadingOptions:
    """
    How a picture is read.

    Args:
        frame: which frame of a file of several, counted from 1 as DICOM counts them. Needed for a file of several.
        dicom_contrast: from the values of a DICOM file to 8 bits.
            - `"window"`: its first VOI LUT or window, as a viewer shows it; its full range where it has neither
            - `"full_range"`: from the smallest to the largest value in the picture
            - `"equalized"`: full range, then histogram equalisation, as MIMIC-CXR-JPG was made
        max_pixels: width times height above which a picture is refused, before it is decoded.
        max_aspect_ratio: longer side over shorter side above which it is refused.

    Raises:
        ValueError: for a value that is none of these.
    """

    frame: int | None = None
    dicom_contrast: str = "window"
    max_pixels: int = MAX_PIXELS
    max_aspect_ratio: float = MAX_ASPECT_RATIO

    def __post_init__(self):
        if self.frame is not None and (not _is_whole(self.frame) or self.frame < 1):
            raise ValueError(f"frame must be a whole number from 1; got {self.frame!r}.")
        if self.dicom_contrast not in CONTRASTS:
            raise ValueError(f"dicom_contrast must be one of {list(CONTRASTS)}; got {self.dicom_contrast!r}.")
        if not _is_whole(self.max_pixels) or self.max_pixels < 1:
            raise ValueError(f"max_pixels must be a whole number of at least 1; got {self.max_pixels!r}.")
        if not isinstance(self.max_aspect_ratio, (int, float)) or not self.max_aspect_ratio >= 1:
            raise ValueError(f"max_aspect_ratio must be a number of at least 1; got {self.max_aspect_ratio!r}.")

    def check_size(self, width: int, height: int) -> None:
        """Raise ValueError for a picture that is empty or larger than allowed."""
        if width < 1 or height < 1:
            raise ValueError(f"it is empty: {width} x {height} pixels")
        if width * height > self.max_pixels:
            raise ValueError(
                f"it has {width} x {height} pixels, more than max_pixels={self.max_pixels} allows; "
                "reduce it, or raise max_pixels"
            )
        if max(width, height) > self.max_aspect_ratio * min(width, height):
            raise ValueError(
                f"it has {width} x {height} pixels; max_aspect_ratio={self.max_aspect_ratio:g} allows no picture as "
                "narrow"
            )


def load_radiograph(
    image: Any,
    *,
    frame: int | None = None,
    dicom_contrast: str = "window",
    max_pixels: int = MAX_PIXELS,
    max_aspect_ratio: float = MAX_ASPECT_RATIO,
) -> Image.Image:
    """
    Read one radiograph as an 8-bit RGB picture.

    Files of more than 8 bits, grey or colour, are scaled to 8 bits by the picture's own smallest and largest value; a
    plain `convert("RGB")` would clip them to white. Pictures are turned by their EXIF orientation; transparency is
    ignored. DICOM files need `pydicom`, compressed ones also `pylibjpeg` and its plugins; see [`read_dicom`].

    Args:
        image: one of
            - a path, a URL (`http`, `https`, `file`) or a data URI (`data:image/png;base64,...`)
            - `bytes` of a file, or a file opened for reading bytes
            - a cell of `datasets`, `{"bytes": ..., "path": ...}`
            - a `PIL.Image`
            - an array or tensor of shape `(H, W)`, `(H, W, C)` or `(C, H, W)` with C 1, 3 or 4, or `(H, W, 2)` of
              grey and alpha. Floating-point values within [0, 1] are taken as such, values within [0, 255] as 8-bit;
              16-bit integers and everything else is scaled by its own range
        frame, dicom_contrast, max_pixels, max_aspect_ratio: see [`ReadingOptions`].

    Raises:
        ValueError: if it is none of these, too large, or cannot be read (the message names it).
        ImportError: for a DICOM file where `pydicom` is not installed.
    """
    options = ReadingOptions(frame, dicom_contrast, max_pixels, max_aspect_ratio)
    return open_radiograph(image, options).convert("RGB")


def open_radiograph(image: Any, options: ReadingOptions | None = None, name: str | None = None) -> Image.Image:
    """
    As [`load_radiograph`], but a grey picture stays of mode "L".

    Args:
        image: as there.
        options: how it is read.
        name: what error messages call it; else its path or address, where it has one.

    Raises:
        ValueError, ImportError: as there.
    """
    address = _address(image)
    try:
        picture = _read(image, options or ReadingOptions())
    except Exception as error:  # decoders of damaged files raise errors of many kinds
        if isinstance(error, (ImportError, MemoryError)):
            raise
        subject = " ".join(["The image", *filter(None, [name or address])])
        why = str(error) or type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            why = error.strerror
        if name and address and address not in why:
            why = f"{why} ({address})"
        raise ValueError(f"{subject} cannot be read: {why}") from error
    if picture.format != "DICOM":  # there a narrow window may do that
        _warn_if_clipped(picture, name or address)
    return picture


def _read(image: Any, options: ReadingOptions) -> Image.Image:
    if isinstance(image, dict):
        image = _cell_content(image)
    if isinstance(image, os.PathLike):
        image = os.fspath(image)
    if isinstance(image, str):
        return _read_address(image, options)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _read_stream(io.BytesIO(image), options)
    if isinstance(image, Image.Image):
        return _read_pil(image, options)
    if hasattr(image, "detach") and hasattr(image, "numpy"):  # a tensor of torch
        image = image.detach().cpu()
        return _from_array((image.float() if str(image.dtype) == "torch.bfloat16" else image).numpy(), options)
    if hasattr(image, "__array__"):
        return _from_array(np.asarray(image), options)
    if hasattr(image, "read"):
        return _read_file_object(image, options)
    raise ValueError(
        "an image must be a path, a URL, bytes, an open file, a PIL image, an array or a tensor; got "
        f"{type(image).__name__}"
    )


def _cell_content(cell: dict) -> Any:
    if not cell or not set(cell) <= {"bytes", "path"}:
        raise ValueError(
            "a dict must be a cell of `datasets`, {'bytes': ..., 'path': ...}; this one has the keys "
            f"{sorted(map(str, cell))}"
        )
    if cell.get("bytes"):
        return cell["bytes"]
    if cell.get("path"):
        return cell["path"]
    raise ValueError("it has neither bytes nor a path")


def _address(image: Any) -> str | None:
    if isinstance(image, dict):
        image = image.get("path")
    if isinstance(image, os.PathLike):
        image = os.fspath(image)
    if not isinstance(image, str):
        image = getattr(image, "filename", None) or getattr(image, "name", None)
    if not isinstance(image, str):
        return None
    return image if len(image) <= 300 else f"{image[:100]}... ({len(image)} characters)"


# From an address to bytes


def _read_address(address: str, options: ReadingOptions) -> Image.Image:
    scheme = address[:8].lower()
    if scheme.startswith(("http://", "https://")):
        return _read_stream(io.BytesIO(_download(address)), options)
    if scheme.startswith("data:"):
        return _read_stream(io.BytesIO(_data_uri_content(address)), options)
    if scheme.startswith("file:"):
        address = urllib.request.url2pathname(urllib.parse.urlsplit(address).path)
    if not stat.S_ISREG(os.stat(address).st_mode):
        raise ValueError("it is no file")
    with open(address, "rb") as file:
        return _read_stream(file, options)


def _download(url: str) -> bytes:
    try:
        # A server that closes or slows down is given up after the same time.
        deadline, content = time.monotonic() + MAX_DOWNLOAD_SECONDS, bytearray()
        request = urllib.request.Request(url, headers={"User-Agent": "Mozilla/5.0 (compatible; TIER)"})
        with urllib.request.urlopen(request, timeout=MAX_DOWNLOAD_SECONDS / 2) as answer:
            while block := answer.read1(2**20):
                content += block
                if len(content) > MAX_DOWNLOAD_BYTES:
                    raise ValueError(f"the server sends more than {MAX_DOWNLOAD_BYTES // 2**20} MiB")
                if time.monotonic() > deadline:
                    raise ValueError(f"the server needs more than {MAX_DOWNLOAD_SECONDS:g} seconds")
            expected = answer.headers.get("Content-Length", "")
            if expected.isdigit() and len(content) < int(expected):
                raise ValueError(f"the server sent {len(content)} of {expected} bytes")
    except urllib.error.HTTPError as error:
        raise ValueError(f"the server answers {error.code} ({error.reason})") from error
    except urllib.error.URLError as error:
        raise ValueError(f"the server cannot be reached: {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(f"the server's answer cannot be read: {error or type(error).__name__}") from error
    return bytes(content)


def _data_uri_content(uri: str) -> bytes:
    head, comma, body = uri.partition(",")
    content = urllib.parse.unquote_to_bytes(body)
    if not comma:
        raise ValueError("the data URI has no comma before its content")
    if not head.lower().rstrip().endswith(";base64"):
        return content
    try:
        return base64.b64decode(b"".join(content.split()), validate=True)
    except binascii.Error as error:
        raise ValueError(f"the content of the data URI is not base64: {error}") from error


def _read_file_object(file: Any, options: ReadingOptions) -> Image.Image:
    if isinstance(file, io.TextIOBase):
        raise ValueError("the file is open as text; open it with mode 'rb'")
    if not getattr(file, "seekable", lambda: False)():
        file = io.BytesIO(file.read())
    file.seek(0)
    return _read_stream(file, options)


# From bytes to pixels


def _read_stream(stream: Any, options: ReadingOptions) -> Image.Image:
    head = stream.read(NUM_HEAD_BYTES)
    stream.seek(0)
    if not head:
        raise ValueError("the file is empty")
    if is_dicom(head):
        picture = Image.fromarray(read_dicom(stream, options.dicom_contrast, options.frame, options.check_size))
        picture.format = "DICOM"
        return picture
    if head.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        raise ValueError("it is a web page, not a picture")
    return _read_picture_file(stream, options)


def _read_picture_file(stream: Any, options: ReadingOptions) -> Image.Image:
    try:
        picture = _open_with_pillow(stream)
    except Image.UnidentifiedImageError as error:
        raise ValueError("it is of no known format (PNG, JPEG, TIFF, DICOM, ...)") from error
    with picture:
        options.check_size(*picture.size)
        frame = _chosen_frame(picture, options.frame)
        deep = _deep_colours(stream, picture, frame)
        if deep is not None:
            return _turned(_from_array(deep, options), picture)
        picture.load()
        return _to_8_bit_picture(picture, options)


@functools.cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _open_with_pillow(stream: Any) -> Image.Image:
    return Image.open(stream, formats=_known_formats())


def _chosen_frame(picture: Image.Image, frame: int | None) -> int:
    """Go to a frame of a picture file; without a number it must be the only one."""
    if frame is None:
        if picture.format in _WITH_FRAMES and getattr(picture, "is_animated", False):
            raise ValueError("it holds several frames: choose one with frame=1, frame=2, ...")
        return 1
    try:
        picture.seek(frame - 1)
    except EOFError as error:
        raise ValueError(f"it has no frame {frame}") from error
    return frame


def _deep_colours(stream: Any, picture: Image.Image, frame: int) -> np.ndarray | None:
    """
    Pixels (H, W, C) of a file of 16-bit colours, or of 16-bit grey with alpha, as uint16; None for other files.

    It is decoded twice, once for each byte.
    """
    raw_mode = _raw_mode(picture)
    if raw_mode not in _LOW_BYTES:
        return None
    picture.load()
    high = np.asarray(picture)
    stream.seek(0)
    with _open_with_pillow(stream) as again:
        again.seek(frame - 1)
        mode, low_mode = _LOW_BYTES[raw_mode]
        again._mode = mode
        again.tile = [tile._replace(args=_with_raw_mode(tile.args, low_mode)) for tile in again.tile]
        again.load()
        low = np.asarray(again)
    if raw_mode.startswith("LA"):
        return low[..., :1].astype(np.uint16) << 8 | low[..., 1:2]
    return high[..., :3].astype(np.uint16) << 8 | low[..., :3]


def _raw_mode(picture: Image.Image) -> str | None:
    """The raw mode that Pillow decodes a file by, with its byte order spelled out; None if it is decoded already."""
    tiles = getattr(picture, "tile", None)
    if not tiles or picture.format not in ("PNG", "TIFF"):
        return None
    args = tiles[0].args
    raw_mode = args if isinstance(args, str) else args[0]
    return raw_mode.replace("16N", "16L" if np.little_endian else "16B") if isinstance(raw_mode, str) else None


def _with_raw_mode(args: Any, raw_mode: str) -> Any:
    return raw_mode if isinstance(args, str) else (raw_mode, *args[1:])


def _read_pil(picture: Image.Image, options: ReadingOptions) -> Image.Image:
    options.check_size(*picture.size)
    if _raw_mode(picture) in _LOW_BYTES and getattr(picture, "fp", None):  # a file that is not decoded yet
        picture.fp.seek(0)
        content = io.BytesIO(picture.fp.read())
        with _open_with_pillow(content) as again:
            again.seek(picture.tell())
            deep = _deep_colours(content, again, picture.tell() + 1)
        if deep is not None:
            return _turned(_from_array(deep, options), picture)
    picture.load()
    return _to_8_bit_picture(picture, options)


def _to_8_bit_picture(picture: Image.Image, options: ReadingOptions) -> Image.Image:
    """A decoded picture of any of Pillow's modes, as mode "L" or "RGB", upright."""
    mode = picture.mode
    if mode.startswith("I") or mode == "F":
        pixels = np.asarray(picture)
        if picture.format == "PNG" and mode == "I":  # as older Pillow opens 16 bits
            pixels = pixels.astype(np.uint16)
        # 0 is white: Pillow inverts such files of 8 bits, but not of 16.
        if picture.format == "TIFF" and mode.startswith("I;16") and getattr(picture, "tag_v2", {}).get(262) == 0:
            pixels = np.iinfo(np.uint16).max - pixels
        return _turned(_from_array(pixels, options), picture)
    if mode in ("La", "RGBa"):  # alpha is multiplied in; Pillow converts these in two steps alone
        picture = _turned(picture, picture).convert("LA" if mode == "La" else "RGBA")
    else:
        picture = _turned(picture, picture)
    return picture.convert("L" if mode in ("1", "L", "LA", "La") else "RGB")


def _turned(picture: Image.Image, source: Image.Image) -> Image.Image:
    """`picture` turned by the EXIF orientation of `source`."""
    if source.format == "JPEG" and not {"exif", "xmp"} & source.info.keys():  # to save a tenth of the time
        return picture
    orientation = source.getexif().get(0x0112, 1)
    if orientation not in range(2, 9):
        return picture
    if picture is source:
        return ImageOps.exif_transpose(picture)
    marked = picture.copy()
    marked.getexif()[0x0112] = orientation
    return ImageOps.exif_transpose(marked)


def _from_array(pixels: np.ndarray, options: ReadingOptions) -> Image.Image:
    pixels = _channels_last(pixels)
    options.check_size(pixels.shape[1], pixels.shape[0])
    return Image.fromarray(np.ascontiguousarray(_to_8_bit(pixels)))


def _channels_last(pixels: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3), without alpha."""
    if pixels.dtype.kind not in "biuf":
        raise ValueError(f"an image array must hold numbers; this one is of type {pixels.dtype}")
    shape = pixels.shape
    if pixels.ndim == 3 and shape[2] not in (1, 2, 3, 4) and shape[0] in (1, 3, 4):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[2] in (1, 2):
        pixels = pixels[:, :, 0]
    if pixels.ndim == 3 and pixels.shape[2] in (3, 4):
        return pixels[:, :, :3]
    if pixels.ndim != 2:
        raise ValueError(
            f"an image array must have shape (H, W), (H, W, C) or (C, H, W) with C 1, 3 or 4; got {shape}"
        )
    return pixels


def _to_8_bit(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype == np.uint8:
        return pixels
    low, high = pixels.min(), pixels.max()
    if not np.isfinite(low) or not np.isfinite(high):
        raise ValueError("it holds NaN or infinite values")
    is_float = pixels.dtype.kind == "f"
    if is_float and low >= 0 and high <= 1:
        return np.round(pixels.astype(np.float32) * 255).astype(np.uint8)
    if (is_float or pixels.dtype.itemsize > 2) and low >= 0 and high <= 255:
        return np.round(pixels).astype(np.uint8)
    return _stretched(pixels, float(low), float(high))


def _stretched(pixels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scale from the smallest and largest value to [0, 255]; a picture of one value becomes black."""
    if low == high:
        return np.zeros(pixels.shape, np.uint8)
    wide = np.float64 if pixels.dtype.itemsize > 4 else np.float32
    if not np.isfinite(high - low):  # of float64 alone
        pixels, low, high = pixels / 4, low / 4, high / 4
    return np.round((pixels.astype(wide) - wide(low)) / wide(high - low) * 255).astype(np.uint8)


def _warn_if_clipped(picture: Image.Image, name: str | None) -> None:
    sample = picture.resize((64, 64), Image.Resampling.NEAREST)  # the histogram of all would cost a tenth of the time
    histogram = np.reshape(sample.histogram(), (-1, 256)) / 64**2  # one row per channel
    fraction, grey = histogram[:, 255].min(), histogram[:, _GREYS].sum(axis=1).max()
    if fraction > _CLIPPED_FRACTION or (fraction > _SOME_WHITE and grey < _HARDLY_GREY):
        warnings.warn(
            f"{fraction:.0%} of the pixels of {name or 'a picture'} are pure white, {grey:.0%} are grey. A "
            "picture of 16 bits that was converted to 8 bits without scaling looks so: its scores are worth nothing. "
            "Give the file itself.",
            stacklevel=4,
        )
