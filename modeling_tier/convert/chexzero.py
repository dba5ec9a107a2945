# Licensed under the Apache License, Version 2.0.
"""CheXzero (Tiu et al., 2022): OpenAI's format, with the image path of its own code."""

from PIL import Image

from .openai import OPENAI_TOKENIZER, openai
from .source import Converted, Source
from .weight_files import Record


_MEAN, _STD = 101.48761 / 255, 83.43944 / 255  # of the 8-bit pixels that it was trained on


def chexzero(
    model: str,
    tokenizer: str = OPENAI_TOKENIZER,
    image_options: dict | None = None,
    record: Record | None = None,
) -> Converted:
    """
    A checkpoint of CheXzero.

    Args:
        model: the .pt file, on the disk or as "user/name/path/in/repository.pt".
        tokenizer: folder or Hub id of CLIP's tokenizer.
        image_options: replace CheXzero's mean and standard deviation, and the size that the weights tell.
        record, returns, raises: as in [`~convert.clip.clip`].
    """
    normalisation = {"image_mean": [_MEAN] * 3, "image_std": [_STD] * 3}
    return openai(
        model,
        tokenizer,
        {**normalisation, **(image_options or {})},
        record,
        activation="quick_gelu",
        pad_to_square=True,
        longer_side=320,
        longer_side_resample=Image.Resampling.LANCZOS,
    )


SOURCE = Source(
    name="chexzero",
    convert=chexzero,
    reads="a checkpoint of CheXzero",
    writes="CLIP's two encoders, linear projections",
    options={
        "model": ".pt file, or user/name/file.pt on the Hub",
        "tokenizer": "folder or Hub id of CLIP's tokenizer",
    },
)
