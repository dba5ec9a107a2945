# Licensed under the Apache License, Version 2.0.
"""TierProcessor: radiographs in every form, and texts, to the inputs of TierModel."""

from os import PathLike
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin
from transformers.processing_utils import ProcessingKwargs

from .framing_tier import Framing
from .reading_tier import MAX_ASPECT_RATIO, MAX_PIXELS, ReadingOptions, load_radiograph
from .tokenizer_tier import check_max_length, check_tokenizer_files


MAX_SIDE = 4096  # pixels of a picture for the model
# By these a tokenizer's files would set lengths that `model_max_length` should.
_LENGTH_OPTIONS = ("max_length", "padding", "truncation", "stride", "pad_to_multiple_of")


class TierProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]  # its own types are not read
    _defaults = {
        "text_kwargs": {"padding": True, "truncation": True},
        "common_kwargs": {"return_tensors": "pt"},
    }


class TierProcessor(ProcessorMixin):
    """
    An image processor and a tokenizer as one. Texts are padded to the longest and truncated to the tokenizer's
    `model_max_length`, tensors are torch's, unless asked otherwise.

    What the tokenizer's files say of truncation and padding is removed from it, here and before it is saved: some
    earlier call left it there, and it would be preferred to `model_max_length`.

    Args:
        image_processor: any image processor of transformers, such as `CLIPImageProcessor`.
        tokenizer: any tokenizer of transformers.
        dicom_contrast, max_pixels, max_aspect_ratio: how pictures are read, see [`ReadingOptions`]; saved with the
            processor.
        stretch_contrast, pad_to_square, longer_side, longer_side_resample: what is done to a picture before the image
            processor gets it, see [`Framing`]; by default nothing. Saved with the processor.
    """

    valid_processor_kwargs = TierProcessorKwargs

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        dicom_contrast: str = "window",
        max_pixels: int = MAX_PIXELS,
        max_aspect_ratio: float = MAX_ASPECT_RATIO,
        stretch_contrast: bool = False,
        pad_to_square: bool = False,
        longer_side: int | None = None,
        longer_side_resample: int = Image.Resampling.LANCZOS,
        **kwargs,
    ):
        super().__init__(image_processor, tokenizer, **kwargs)
        self.dicom_contrast, self.max_pixels, self.max_aspect_ratio = dicom_contrast, max_pixels, max_aspect_ratio
        self.stretch_contrast, self.pad_to_square = stretch_contrast, pad_to_square
        self.longer_side, self.longer_side_resample = longer_side, int(longer_side_resample)
        self.reading_options(), self.framing  # for their errors
        _remove_lengths(tokenizer)

    def reading_options(self, frame: int | None = None) -> ReadingOptions:
        """How this processor reads pictures."""
        return ReadingOptions(frame, self.dicom_contrast, self.max_pixels, self.max_aspect_ratio)

    @property
    def framing(self) -> Framing:
        """What this processor does to a picture before its image processor."""
        return Framing(self.stretch_contrast, self.pad_to_square, self.longer_side, self.longer_side_resample)

    def __call__(self, images=None, text=None, *, frame: int | None = None, **kwargs) -> BatchFeature:
        """
        Args:
            images (one or a list of what [`load_radiograph`] reads, *optional*): pictures.
            text (`str` or `list[str]`, *optional*): texts. In the order `(text, images)`, which CLIP's processor had,
                they are told apart where the pictures are no strings.
            frame: of files of several frames, the one to read, counted from 1.
            **kwargs: options of the image processor and of the tokenizer.

        Returns:
            `BatchFeature` with `pixel_values` of shape `(N, 3, H, W)` for images, and `input_ids`, `attention_mask`
            (and `token_type_ids` where the tokenizer makes them) of shape `(M, T)` for texts.

        Raises:
            ValueError: if neither is given, an image cannot be read, or a text is none.
        """
        if _are_strings(images) and text is not None and not _are_strings(text):
            images, text = text, images
        texts = _checked_texts(text)
        if images is not None:
            images = list(images) if isinstance(images, (list, tuple)) else _split_batch(images)
            if not images:
                raise ValueError("images is an empty list.")
            framing = self.framing
            images = [framing(self._read(image, frame)) for image in images]
        return super().__call__(images=images, text=texts, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """
        As every processor's.

        Raises:
            ValueError: for a tokenizer with more added tokens than can be loaded, and an image processor that cannot
                process a picture, as a damaged file makes it.
        """
        check_tokenizer_files(pretrained_model_name_or_path, **kwargs)
        loaded = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        processor = loaded[0] if isinstance(loaded, tuple) else loaded
        _try_image_processor(processor.image_processor, pretrained_model_name_or_path)
        return loaded

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        _remove_lengths(getattr(self, "tokenizer", None))  # each call leaves its own in a fast tokenizer
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def _read(self, image: Any, frame: int | None) -> Image.Image:
        options = self.reading_options(frame)
        try:
            return load_radiograph(
                image,
                frame=frame,
                dicom_contrast=options.dicom_contrast,
                max_pixels=options.max_pixels,
                max_aspect_ratio=options.max_aspect_ratio,
            )
        except ValueError as error:
            if isinstance(image, str) and isinstance(error.__cause__, FileNotFoundError):
                raise ValueError(f"{error}. A text is given as text=...") from error
            raise


def _try_image_processor(image_processor: Any, name_or_path: Any) -> None:
    """Raise ValueError if it makes a picture too large for memory, or fails at a small one."""
    if image_processor is None:
        return
    try:
        for option in ("size", "crop_size"):
            given = getattr(image_processor, option, None)
            given = given if isinstance(given, dict) else getattr(given, "__dict__", {})  # by transformers' version
            sides = [given.get(name) for name in ("height", "width", "shortest_edge", "longest_edge")]
            if any(side is not None and side > MAX_SIDE for side in sides):
                raise ValueError(f"{option} must be at most {MAX_SIDE} pixels")
        image_processor(Image.new("RGB", (64, 48)), return_tensors="pt")
    except Exception as error:  # of any kind, by whichever value is damaged
        reason = (str(error).splitlines() or [""])[0][:300]
        raise ValueError(
            f"The image processor of {name_or_path} (processor_config.json or preprocessor_config.json) cannot be "
            f"used: {type(error).__name__}: {reason}"
        ) from error


def _split_batch(images: Any) -> list:
    """A 4-dimensional array or tensor is a batch of pictures; everything else is one."""
    return list(images) if getattr(images, "ndim", None) == 4 else [images]


def _are_strings(given: Any) -> bool:
    """Whether it can only be texts or paths."""
    if isinstance(given, (list, tuple)):
        return bool(given) and all(isinstance(item, (str, PathLike)) for item in given)
    return isinstance(given, (str, PathLike)) or (isinstance(given, np.ndarray) and given.dtype.kind == "U")


def _checked_texts(text: Any) -> list[str] | None:
    """
    Raises:
        ValueError: if there is anything but strings; the message names the first.
    """
    if text is None:
        return None
    if isinstance(text, (torch.Tensor, bytes, dict)):
        raise ValueError(f"text must be a string or a list of strings; got {type(text).__name__}.")
    if isinstance(text, np.ndarray):
        text = text.tolist()
    texts = [text] if isinstance(text, str) or not isinstance(text, (list, tuple)) else list(text)
    if not texts:
        raise ValueError("text is an empty list.")
    for i, item in enumerate(texts):
        if not isinstance(item, str):
            raise ValueError(
                f"text must be a string or a list of strings; item {i} is of type {type(item).__name__}: "
                f"{str(item)[:80]!r}."
            )
    return [_without_surrogates(item) for item in texts]


def _without_surrogates(text: str) -> str:
    """Halves of a UTF-16 pair, which no tokenizer takes, are joined; one that stands alone becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _remove_lengths(tokenizer: Any) -> None:
    if tokenizer is None:
        return
    check_max_length(tokenizer)
    for name in _LENGTH_OPTIONS:
        tokenizer.init_kwargs.pop(name, None)
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()


TierProcessor.register_for_auto_class()
