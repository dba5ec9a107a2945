# Licensed under the Apache License, Version 2.0.
"""Grey pictures by the short way have the bits of the long one."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, SiglipImageProcessor, ViTImageProcessor

from modeling_tier import TierProcessor
from modeling_tier.data.grey_pictures import GreyPictures


PROCESSORS = {
    "clip": CLIPImageProcessor(),
    "small clip": CLIPImageProcessor(size={"shortest_edge": 96}, crop_size={"height": 80, "width": 80}),
    "siglip": SiglipImageProcessor(size={"height": 112, "width": 112}),
    "vit": ViTImageProcessor(size={"height": 224, "width": 224}),
}


def grey(width: int, height: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).normal(128, 60, (height, width)).clip(0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize(
    "framing", [{}, {"pad_to_square": True}, {"stretch_contrast": True, "pad_to_square": True, "longer_side": 512}]
)
def test_the_same_bits(tokenizer, name, framing):
    processor = TierProcessor(PROCESSORS[name], tokenizer, **framing)
    pictures = [grey(320, 400, 0), grey(391, 320, 1), grey(1, 1, 2), grey(50, 61, 3), grey(1024, 1024, 4)]
    expected = processor(images=pictures)["pixel_values"]
    short = GreyPictures(processor)
    assert short.table is not None, "the short way is taken"
    assert torch.equal(short(pictures)["pixel_values"], expected)
    coloured = [*pictures, Image.merge("RGB", [grey(320, 320, seed) for seed in (5, 6, 7)])]
    assert torch.equal(short(coloured)["pixel_values"], processor(images=coloured)["pixel_values"])


def test_a_processor_that_looks_at_the_whole_picture_takes_the_long_way(tokenizer):
    class Stretched(CLIPImageProcessor):
        def __call__(self, images, **options):
            made = super().__call__(images, **options)
            made["pixel_values"] = made["pixel_values"] / made["pixel_values"].amax()
            return made

    processor = TierProcessor(CLIPImageProcessor(), tokenizer)
    processor.image_processor = Stretched()
    short = GreyPictures(processor)
    assert short.table is None
    assert torch.equal(
        short([grey(320, 400, 0)])["pixel_values"], processor(images=[grey(320, 400, 0)])["pixel_values"]
    )
