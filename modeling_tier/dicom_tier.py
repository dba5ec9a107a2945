# Licensed under the Apache License, Version 2.0.
"""
DICOM files as 8-bit pictures.

The order is that of DICOM PS3.4 N.2: stored values, modality LUT or rescaling, VOI LUT or window, presentation. Each
step is pydicom's.
"""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


CONTRASTS = ("window", "full_range", "equalized")
NUM_HEAD_BYTES = 140

_INSTALL_DECODERS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
_MAX_INFLATED_BYTES = 2**28  # 64 million pixels of 32 bits
_MAX_TABLE = 2**20  # distinct values for which a table is cheaper than every pixel

# Start of a frame by each of JPEG's processes, of a hierarchy of frames, and of one of JPEG-LS.
_JPEG_FRAME_MARKERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC} | {0xDE, 0xF7}

# Storage classes whose pixels are no picture of a patient.
_NO_PICTURES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "Segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "Label Map Segmentation",
    "1.2.840.10008.5.1.4.1.1.30": "Parametric Map",
    "1.2.840.10008.5.1.4.1.1.481.2": "RT Dose",
}
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_PARTIAL_422", "YBR_ICT", "YBR_RCT")

# The elements that say how grey values are shown; enhanced files have them in a sequence for each frame.
_SHOWN_BY = (
    "BitsStored",
    "ModalityLUTSequence",
    "PixelPaddingRangeLimit",
    "PixelPaddingValue",
    "PixelRepresentation",
    "PresentationLUTShape",
    "RescaleIntercept",
    "RescaleSlope",
    "VOILUTFunction",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
)
_SHOWN_BY_SEQUENCES = ("FrameVOILUTSequence", "PixelValueTransformationSequence")


def is_dicom(head: bytes) -> bool:
    """
    Whether a file of these first `NUM_HEAD_BYTES` bytes is DICOM.

    Files of old devices have no preamble and no "DICM": they begin with an element of group 0002 or 0008.
    """
    if head[128:132] == b"DICM":
        return True
    if len(head) < 8 or head[:2] not in (b"\x02\x00", b"\x08\x00") or head[3] != 0:
        return False
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return explicit or int.from_bytes(head[4:8], "little") < 2**16


def read_dicom(stream: Any, contrast: str, frame: int | None, check_size: Callable[[int, int], None]) -> np.ndarray:
    """
    The picture of a DICOM file.

    Grey values go through the file's rescaling and its contrast; inverted greys (MONOCHROME1, or a Presentation LUT
    Shape INVERSE) are turned over; padding is black. Palettes and YBR become RGB.

    Args:
        stream: a seekable binary stream, at its beginning.
        contrast: one of `CONTRASTS`, for grey values; see [`ReadingOptions`].
        frame: counted from 1; needed for a file of several.
        check_size: is called with width and height before pixels are decoded, to raise for those that are too large.

    Returns:
        uint8, (H, W) or (H, W, 3).

    Raises:
        ValueError: if it holds no picture, or none that can be decoded.
        ImportError: if `pydicom` is not installed.
    """
    pydicom = _import_pydicom()
    stream = _inflated(pydicom, stream)
    header = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
    _check_is_picture(header)
    check_size(int(header.Columns), int(header.Rows))
    index = _frame_index(header, frame)
    _complete_file_meta(pydicom, header)
    _check_decoder(pydicom, header.file_meta.TransferSyntaxUID)
    stream.seek(0)
    dataset = pydicom.dcmread(stream, force=True)
    _complete_file_meta(pydicom, dataset)
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise ValueError("it is a DICOM file without pixels")
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_transfer_syntax and syntax.is_encapsulated:
        _check_compressed_size(pydicom, dataset, index)
    stored = pydicom.pixels.pixel_array(dataset, index=index)
    return _shown(pydicom, dataset, stored, contrast, index)


def _import_pydicom() -> Any:
    try:
        import pydicom
        import pydicom.encaps
        import pydicom.filereader
        import pydicom.pixels
    except ImportError as error:
        raise ImportError(f"Reading a DICOM file needs pydicom: pip install pydicom ({error})") from error
    return pydicom


def _inflated(pydicom: Any, stream: Any) -> Any:
    """
    The stream; of a deflated file its inflated elements, which pydicom reads as it reads a file without file meta
    information. pydicom itself would inflate without a limit, and 2 MB can hold gigabytes.
    """
    try:
        pydicom.filereader.read_preamble(stream, force=True)
        file_meta = pydicom.filereader.read_dataset(
            stream, is_implicit_VR=False, is_little_endian=True, stop_when=_is_outside_of_file_meta
        )
        syntax = file_meta.get("TransferSyntaxUID")
    except Exception:  # damaged file meta information: dcmread says so better
        syntax = None
    if syntax != pydicom.uid.DeflatedExplicitVRLittleEndian:
        stream.seek(0)
        return stream
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    content = unpacker.decompress(stream.read(), _MAX_INFLATED_BYTES)
    if not unpacker.eof:
        if len(content) == _MAX_INFLATED_BYTES:
            raise ValueError(
                f"it inflates to {_MAX_INFLATED_BYTES // 2**20} MiB or more; save it under another transfer syntax"
            )
        raise ValueError("its deflated content is cut off")
    return io.BytesIO(content)


def _is_outside_of_file_meta(tag: Any, vr: str | None, length: int) -> bool:
    return tag.group != 2


def _check_is_picture(header: Any) -> None:
    uid: Any = header.get("SOPClassUID") or ""
    if uid in _NO_PICTURES or header.get("Modality") == "SEG":
        raise ValueError(f"it is a DICOM {_NO_PICTURES.get(uid, 'Segmentation')}, not a radiograph")
    if not header.get("Rows") or not header.get("Columns"):
        kind = f" ({uid.name})" if getattr(uid, "name", "") else ""
        raise ValueError(f"it is a DICOM file without a picture{kind}")


def _frame_index(header: Any, frame: int | None) -> int:
    frames = int(header.get("NumberOfFrames") or 1)
    if frame is None and frames > 1:
        raise ValueError(f"it holds {frames} frames: choose one with frame=1, ..., frame={frames}")
    if frame is not None and frame > frames:
        raise ValueError(f"it has no frame {frame}, but {frames}")
    return (frame or 1) - 1


def _complete_file_meta(pydicom: Any, dataset: Any) -> None:
    """A file without preamble does not name its transfer syntax: it is the one by which it could be read."""
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
    if not dataset.file_meta.get("TransferSyntaxUID"):
        implicit, little = dataset.original_encoding
        uid = pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian if implicit else uid


def _check_decoder(pydicom: Any, syntax: Any) -> None:
    if not syntax.is_transfer_syntax or not syntax.is_compressed or syntax.is_deflated:
        return
    try:
        available = pydicom.pixels.get_decoder(syntax).is_available
    except NotImplementedError as error:
        raise ValueError(f"it is compressed as {syntax.name}, which pydicom cannot decode") from error
    if not available:
        raise ValueError(
            f"it is compressed as {syntax.name}, for which no decoder is installed: {_INSTALL_DECODERS} (the extra "
            "`dicom` of the package)"
        )


def _check_compressed_size(pydicom: Any, dataset: Any, index: int) -> None:
    """
    Raise ValueError if a compressed frame is larger than Rows and Columns say. Decoders believe the frame, and one of
    2 kB can hold gigapixels.
    """
    tables = [dataset.get(name) for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    frame = pydicom.encaps.get_frame(
        dataset.PixelData,
        index,
        number_of_frames=int(dataset.get("NumberOfFrames") or 1),
        extended_offsets=tuple(tables) if all(tables) else None,
    )
    rows, columns, samples = int(dataset.Rows), int(dataset.Columns), int(dataset.get("SamplesPerPixel") or 1)
    if dataset.file_meta.TransferSyntaxUID == pydicom.uid.RLELossless:
        num_bytes = rows * columns * samples * max(1, int(dataset.BitsAllocated) // 8)
        if len(frame) > 2 * num_bytes + 1024:  # in the worst case it grows by a 64th
            raise ValueError(f"its compressed frame of {len(frame)} bytes is more than {columns} x {rows} pixels need")
        return
    for width, height, components in _compressed_sizes(frame):
        if width * height * components > rows * columns * samples or 0 in (width, height):
            raise ValueError(
                f"its compressed frame has {width} x {height} pixels of {components} components, while the file says "
                f"{columns} x {rows} of {samples}"
            )


def _compressed_sizes(frame: bytes) -> Iterator[tuple[int, int, int]]:
    """Width, height and components as each header of a JPEG, JPEG-LS or JPEG 2000 codestream gives them."""
    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)  # JPEG 2000, in a file format's box or without one
    if start >= 0 and len(frame) >= start + 42:
        right, bottom, left, top = struct.unpack_from(">4I", frame, start + 8)
        yield right - left, bottom - top, struct.unpack_from(">H", frame, start + 40)[0]
        return
    position = 2
    while position + 4 <= len(frame):
        if frame[position] != 0xFF:
            return
        marker, length = frame[position + 1], int.from_bytes(frame[position + 2 : position + 4], "big")
        if marker == 0xFF:  # fill bytes
            position += 1
            continue
        if marker in _JPEG_FRAME_MARKERS and position + 10 <= len(frame):
            height, width, components = struct.unpack_from(">HHB", frame, position + 5)
            yield width, height, components
        if marker == 0xDA:  # the first scan
            return
        position += 2 + length


def _shown(pydicom: Any, dataset: Any, stored: np.ndarray, contrast: str, index: int) -> np.ndarray:
    kind = dataset.get("PhotometricInterpretation")
    if kind == "PALETTE COLOR":
        colours = pydicom.pixels.apply_color_lut(stored, dataset)
        bits = colours.dtype.itemsize * 8
    elif kind in _COLOUR:
        colours, bits = stored, int(dataset.BitsStored)
    elif kind in _GREY or kind is None:
        return _grey(pydicom, stored, _settings(pydicom, dataset, index), kind == "MONOCHROME1", contrast)
    else:
        raise ValueError(f"its Photometric Interpretation {kind!r} is not known")
    return np.round(colours[..., :3] * (255.0 / (2**bits - 1))).clip(0, 255).astype(np.uint8)


def _settings(pydicom: Any, dataset: Any, index: int) -> Any:
    """How a frame's grey values are shown: elements without a value count as missing, as does a slope of 0."""
    settings = pydicom.dataset.Dataset()
    settings.file_meta = dataset.file_meta
    settings.PhotometricInterpretation = "MONOCHROME2"  # inverted greys are turned over at the end
    sources = [dataset]
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    for groups in [*(dataset.get("SharedFunctionalGroupsSequence") or [])[:1], *per_frame[index : index + 1]]:
        sources += [groups[name][0] for name in _SHOWN_BY_SEQUENCES if groups.get(name)]
    for source in sources:
        for name in _SHOWN_BY:
            if source.get(name) not in (None, "", []):
                settings[name] = source[name]
    if settings.get("RescaleSlope") == 0:
        del settings.RescaleSlope
    return settings


def _grey(pydicom: Any, stored: np.ndarray, settings: Any, inverted: bool, contrast: str) -> np.ndarray:
    """From stored values to 8-bit greys, by a table of one entry per value where there are few."""
    inverted = inverted or settings.get("PresentationLUTShape") == "INVERSE"
    low, high = stored.min(), stored.max()
    if stored.dtype.kind in "iu" and int(high) - int(low) < _MAX_TABLE:
        values = np.arange(int(low), int(high) + 1)
        places = stored.astype(np.int64) - int(low) if stored.dtype.itemsize > 4 else stored - low
        counts = np.bincount(places.ravel(), minlength=len(values))
    else:
        values, places, counts = np.unique(stored, return_inverse=True, return_counts=True)
    padding = _is_padding(values, settings)
    modality = np.asarray(pydicom.pixels.apply_modality_lut(values, settings), np.float64)
    fractions = _windowed(pydicom, modality, settings) if contrast == "window" else None
    if fractions is None:
        fractions = _full_range(modality, (counts > 0) & ~padding)
    greys = np.floor(255 * fractions) if contrast == "equalized" else 255 * fractions
    if inverted:
        greys = 255 - greys
    if contrast == "equalized":
        greys = _equalized(greys.astype(np.uint8), np.where(padding, 0, counts))
    return np.where(padding, 0, np.round(greys)).astype(np.uint8)[places].reshape(stored.shape)


def _is_padding(values: np.ndarray, settings: Any) -> np.ndarray:
    """Which stored values fill the area around the picture (PS3.3 C.7.5.1.1.2)."""
    first = settings.get("PixelPaddingValue")
    if first is None:
        return np.zeros(values.shape, bool)
    ends = [int(first), int(settings.get("PixelPaddingRangeLimit", first))]
    if settings.get("PixelRepresentation") == 1:  # signed, yet often written as unsigned
        ends = [end - 2**16 if end >= 2**15 else end for end in ends]
    return (values >= min(ends)) & (values <= max(ends))


def _windowed(pydicom: Any, modality: np.ndarray, settings: Any) -> np.ndarray | None:
    """In [0, 1] by the first VOI LUT or window; None where there is none of use."""
    if settings.get("VOILUTSequence"):
        bits = settings.VOILUTSequence[0].LUTDescriptor[2]
        return pydicom.pixels.apply_voi(np.rint(modality).astype(np.int64), settings) / (2.0**bits - 1)
    if "WindowCenter" not in settings or "WindowWidth" not in settings:
        return None
    settings.VOILUTFunction = settings.get("VOILUTFunction") or "LINEAR"
    # The range of the result depends on bits, sign and rescaling: two values far outside of every window show it.
    values = np.concatenate([[-1e30, 1e30], modality])
    try:
        with np.errstate(over="ignore"):
            shown = pydicom.pixels.apply_windowing(values, settings)
    except ValueError:  # a width below 1, or an unknown function
        return None
    low, high = shown[:2]
    return (shown[2:] - low) / (high - low)


def _full_range(modality: np.ndarray, seen: np.ndarray) -> np.ndarray:
    if not seen.any():
        return np.zeros(modality.shape)
    low, high = modality[seen].min(), modality[seen].max()
    if not np.isfinite(low) or not np.isfinite(high):
        raise ValueError("it holds NaN or infinite values")
    return ((modality - low) / (high - low)).clip(0, 1) if high > low else np.zeros(modality.shape)


def _equalized(greys: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Histogram equalisation of 256 greys as OpenCV does it: the darkest grey of the picture becomes 0."""
    histogram = np.bincount(greys, weights=counts, minlength=256)
    if np.count_nonzero(histogram) < 2:
        return greys
    darkest = np.flatnonzero(histogram)[0]
    above = np.cumsum(histogram) - histogram[darkest]
    return np.round(above / above[-1] * 255).clip(0)[greys]
