# Licensed under the Apache License, Version 2.0.
"""TierProcessor: radiographs as they lie on a disk, and texts, to the inputs of TierModel."""

from os import PathLike, fspath

import numpy as np
from PIL import Image
from transformers import BatchFeature, ProcessorMixin
from transformers.image_utils import load_image
from transformers.processing_utils import ProcessingKwargs


class TierProcessorKwargs(ProcessingKwargs, total=False):
    _defaults = {
        "text_kwargs": {"padding": True, "truncation": True},
        "common_kwargs": {"return_tensors": "pt"},
    }


class TierProcessor(ProcessorMixin):
    """
    An image processor and a tokenizer as one. Texts are padded to the longest and truncated to the tokenizer's
    `model_max_length`, tensors are torch's, unless asked otherwise.

    Args:
        image_processor: any image processor of transformers, such as `CLIPImageProcessor`.
        tokenizer: any tokenizer of transformers.
    """

    valid_processor_kwargs = TierProcessorKwargs

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(self, images=None, text=None, **kwargs) -> BatchFeature:
        """
        Args:
            images (one or a list of what [`load_radiograph`] reads, *optional*): pictures.
            text (`str` or `list[str]`, *optional*): texts.
            **kwargs: options of the image processor and of the tokenizer.

        Returns:
            `BatchFeature` with `pixel_values` of shape `(N, 3, H, W)` for images, and `input_ids`, `attention_mask`
            (and `token_type_ids` where the tokenizer makes them) of shape `(M, T)` for texts.

        Raises:
            ValueError: if neither is given, or an image cannot be read.
        """
        if images is not None:
            images = images if isinstance(images, (list, tuple)) else _split_batch(images)
            images = [load_radiograph(image) for image in images]
        return super().__call__(images=images, text=[text] if isinstance(text, str) else text, **kwargs)


def load_radiograph(image) -> Image.Image:
    """
    Read one radiograph as an 8-bit RGB picture.

    Pixels of more than 8 bits are scaled to 8 bits by the picture's own smallest and largest value; a plain
    `convert("RGB")` would clip them to white. DICOM files need `pydicom`; their look-up tables and inverted greys
    (MONOCHROME1) are applied.

    Args:
        image: a path (or URL) of a picture or a DICOM file, a `PIL.Image`, or an array or tensor of shape `(H, W)`,
            `(H, W, C)` or `(C, H, W)` with C 1, 3 or 4. Floating-point arrays within [0, 1] are taken as such;
            integer arrays within [0, 255] as 8-bit, except 16-bit ones.

    Raises:
        ValueError: if it is none of these, or the file cannot be read (the message names it).
        ImportError: if a DICOM file is met and `pydicom` is not installed.
    """
    if isinstance(image, (str, PathLike)):
        image = _open(fspath(image))
    if isinstance(image, Image.Image):
        if image.mode == "F" or image.mode.startswith("I"):
            return _from_array(_stretch(np.asarray(image)))
        return image.convert("RGB")
    if hasattr(image, "detach"):  # a tensor
        image = image.detach().cpu().numpy()
    if isinstance(image, np.ndarray):
        return _from_array(_to_8_bit(image))
    raise ValueError(
        f"An image must be a path, a PIL image, a numpy array or a torch tensor; got {type(image).__name__}."
    )


def _open(path: str) -> Image.Image | np.ndarray:
    if path.startswith(("http://", "https://")):
        try:
            return load_image(path)
        except Exception as error:
            raise ValueError(f"The image {path} cannot be read: {error}") from error
    try:
        with open(path, "rb") as file:
            is_dicom = file.read(132)[128:] == b"DICM"
        if is_dicom:
            return _read_dicom(path)
        with Image.open(path) as image:
            image.load()
            return image
    except OSError as error:  # PIL's errors for unknown and truncated files are OSErrors too
        raise ValueError(f"The image {path} cannot be read: {error}") from error


def _read_dicom(path: str) -> np.ndarray:
    try:
        from pydicom import dcmread
        from pydicom.pixels import apply_modality_lut, apply_voi_lut
    except ImportError as error:
        raise ImportError(f"{path} is a DICOM file; reading it needs pydicom: pip install pydicom") from error
    try:
        dataset = dcmread(path)
        pixels = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset).astype(np.float32)
    except Exception as error:  # pydicom's decoders have many kinds of their own
        raise ValueError(f"The image {path} cannot be read: {error}") from error
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":  # large values are dark
        pixels = pixels.max() - pixels
    return _stretch(pixels)


def _split_batch(images) -> list:
    """A 4-dimensional array or tensor is a batch of pictures; everything else is one."""
    return list(images) if getattr(images, "ndim", None) == 4 else [images]


def _stretch(pixels: np.ndarray) -> np.ndarray:
    """Scale from the smallest and largest value to [0, 255]; a picture of one value becomes black."""
    pixels = pixels.astype(np.float32)
    low, high = pixels.min(), pixels.max()
    if not np.isfinite(low) or not np.isfinite(high):
        raise ValueError("The image holds NaN or infinite values.")
    return np.round((pixels - low) * (255.0 / max(high - low, 1e-12))).astype(np.uint8)


def _to_8_bit(pixels: np.ndarray) -> np.ndarray:
    if pixels.size == 0:
        raise ValueError(f"The image is empty: its shape is {pixels.shape}.")
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype == np.uint8:
        return pixels
    if np.issubdtype(pixels.dtype, np.floating) and pixels.min() >= 0 and pixels.max() <= 1:
        return np.round(pixels * 255).astype(np.uint8)
    if pixels.dtype.itemsize > 2 and pixels.min() >= 0 and pixels.max() <= 255:
        return np.round(pixels).astype(np.uint8)
    return _stretch(pixels)


def _from_array(pixels: np.ndarray) -> Image.Image:
    if pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4) and pixels.shape[0] in (1, 3, 4):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim != 2 and not (pixels.ndim == 3 and pixels.shape[2] in (3, 4)):
        raise ValueError(
            f"An image array must have shape (H, W), (H, W, C) or (C, H, W) with C 1, 3 or 4; got {pixels.shape}."
        )
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")


TierProcessor.register_for_auto_class()
