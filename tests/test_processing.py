# Licensed under the Apache License, Version 2.0.
"""TierProcessor: radiographs and texts to a model's inputs."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from modeling_tier import TierProcessor


@pytest.fixture
def ramp() -> np.ndarray:
    """A 12-bit radiograph as its detector gives it: values from 200 to 3800, smooth from left to right."""
    return np.linspace(200, 3800, 48 * 64).reshape(64, 48).T.astype(np.uint16)


def test_text_and_images_in_one_call(processor, ramp):
    batch = processor(images=[ramp, Image.fromarray(ramp)], text=["left effusion .", "no large pleural effusion"])
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    assert batch["input_ids"].tolist() == [[2, 4, 7, 18, 3, 0], [2, 8, 13, 6, 7, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0], [1] * 6]
    assert processor(text="left effusion")["input_ids"].shape == (1, 4)
    assert processor(images=ramp)["pixel_values"].shape == (1, 3, 32, 32)
    assert processor(images=np.stack([ramp, ramp]).astype(np.float32)[..., None])["pixel_values"].shape[0] == 2
    assert processor(text=["left " * 100])["input_ids"].shape == (1, 24), "truncated to the tokenizer's length"
    with pytest.raises(ValueError, match="at least one input"):
        processor()


def test_pixels_are_the_image_processors(processor):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40), dtype=np.uint8))
    expected = processor.image_processor(picture.convert("RGB"), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(processor(images=picture)["pixel_values"], expected, rtol=0, atol=0)


def test_save_and_load(processor, ramp, tmp_path):
    processor.save_pretrained(tmp_path)
    expected = processor(images=ramp, text=["left effusion"])
    for loaded in (TierProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is TierProcessor
        batch = loaded(images=ramp, text=["left effusion"])
        for name in expected:
            torch.testing.assert_close(batch[name], expected[name], rtol=0, atol=0)
