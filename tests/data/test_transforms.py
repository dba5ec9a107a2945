# Licensed under the Apache License, Version 2.0.
"""The augmentations against formulas written again in float64, and the evaluation transform against the processor."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats
from transformers import BaseImageProcessor, BatchFeature, CLIPImageProcessor, SiglipImageProcessor, ViTImageProcessor

from modeling_tier.data.transforms import (
    AUGMENTATIONS,
    Augmentation,
    adjust,
    augment,
    crop_box,
    generator,
    inverse_affine,
    look_up,
    pixel_table,
)


STILL = Augmentation((1.0, 1.0), (1.0, 1.0), Image.Resampling.BILINEAR, 0.0, 0.0, (1.0, 1.0), 0.0, 0.0)


def picture(width=96, height=120, seed=0) -> Image.Image:
    """Smooth, so that interpolations can be compared."""
    noise = np.random.default_rng(seed).normal(size=(height, width))
    smooth = ndimage.gaussian_filter(noise, 6)
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    return Image.fromarray(np.round(30 + 180 * smooth).astype(np.uint8))


def test_nothing_random_changes_nothing():
    image = picture(64, 64)
    assert np.array_equal(augment(image, STILL, (64, 64), np.random.default_rng(0)), image)


@pytest.mark.parametrize("degrees", [-10.0, 0.0, 7.0])
@pytest.mark.parametrize("scale", [0.95, 1.0, 1.05])
def test_affine_against_scipy(degrees, scale):
    """scipy takes pixel centres at whole numbers, Pillow at halves; its order is (row, column)."""
    image, size, shift = picture(96, 80), (96, 80), [3.0, -2.0]
    a, b, c, d, e, f = inverse_affine(size, degrees, shift, scale)
    ours = np.asarray(image.transform(size, Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR))
    angle = math.radians(degrees)
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) * scale  # x, y
    inverse, middle = np.linalg.inv(rotation), np.array(size) / 2
    # x = middle + R^-1 (x' - middle - shift), with x' and x half a pixel further than scipy's.
    offset = middle - inverse @ (middle + shift) + inverse @ [0.5, 0.5] - 0.5
    swapped = inverse[::-1, ::-1]
    expected = ndimage.affine_transform(np.asarray(image, np.float64), swapped, offset[::-1], order=1, cval=np.nan)
    inner = ~np.isnan(expected) & (ours > 0)
    assert inner.mean() > 0.8
    assert np.abs(ours[inner] - expected[inner]).max() <= 1.001  # Pillow cuts off


def test_a_positive_angle_turns_clockwise_on_the_screen_and_a_shift_moves_with_its_sign():
    dot = Image.new("L", (65, 65))
    dot.putpixel((60, 32), 255)  # at three o'clock
    place = lambda image: np.array(np.unravel_index(np.asarray(image).argmax(), (65, 65)))  # noqa: E731
    turned = dot.transform((65, 65), Image.Transform.AFFINE, inverse_affine((65, 65), 10, [0, 0], 1.0))
    assert place(turned)[0] > 32
    moved = dot.transform((65, 65), Image.Transform.AFFINE, inverse_affine((65, 65), 0, [-5, 3], 1.0))
    assert place(moved).tolist() == [35, 55]


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(("brightness", "contrast"), [(1.2, 1.0), (0.8, 1.0), (1.0, 0.8), (1.1, 1.2)])
def test_brightness_and_contrast_against_the_formula(mode, brightness, contrast):
    image = picture(32, 32)
    values = np.asarray(image, np.float64)
    bright = np.clip(values * brightness, 0, 255)
    mean = values.mean() * brightness
    expected = np.clip(mean + contrast * (bright - mean), 0, 255)
    ours = np.asarray(adjust(image.convert(mode), brightness, contrast), np.float64)
    assert np.abs((ours if mode == "L" else ours[..., 1]) - expected).max() <= 0.5 + 1e-6


def test_crops_have_the_area_and_ratio_that_are_asked_for():
    rng = np.random.default_rng(0)
    boxes = np.array([crop_box((1000, 1000), (0.08, 1.0), (0.9, 1.0), rng) for _ in range(4000)], dtype=float)
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0 and boxes.max() <= 1000
    assert (width / height > 0.89).all() and (width / height < 1.01).all()
    small = width * height / 1e6 < 0.8  # above, some do not fit and are drawn again
    assert stats.kstest((width * height / 1e6)[small], stats.uniform(0.08, 0.72).cdf).pvalue > 0.01
    # Anywhere: the middle of the crop, relative to the room it has.
    room = small & (width < 900)
    assert stats.kstest(boxes[room, 0] / (1000 - width[room]), "uniform").pvalue > 0.01


@pytest.mark.parametrize("size", [(10, 1000), (1000, 10), (1, 1), (33, 32)])
def test_a_crop_of_any_picture_lies_inside(size):
    for seed in range(20):
        left, top, right, bottom = crop_box(size, (0.08, 1.0), (0.9, 1.0), np.random.default_rng(seed))
        assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_never_flipped(name):
    """Dark on the left, bright on the right, in every one of 300 versions."""
    ramp = Image.fromarray(np.tile(np.linspace(60, 180, 128).astype(np.uint8), (128, 1)))
    for i in range(300):
        out = np.asarray(augment(ramp, AUGMENTATIONS[name], (64, 64), generator(0, 0, str(i))), np.float64)
        middle = out[16:48]
        assert middle[:, 40:56].mean() > middle[:, 8:24].mean() + 5


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_size_and_mode(name, mode):
    out = augment(picture(90, 130).convert(mode), AUGMENTATIONS[name], (48, 40), np.random.default_rng(0))
    assert out.size == (48, 40) and out.mode == mode


def test_seed_epoch_and_picture_decide():
    image = picture()
    version = lambda *key: augment(image, AUGMENTATIONS["paper"], (64, 64), generator(*key)).tobytes()  # noqa: E731
    assert version(0, 0, "a") == version(0, 0, "a")
    assert len({version(0, 0, "a"), version(1, 0, "a"), version(0, 1, "a"), version(0, 0, "b")}) == 4


SIZE = {"height": 20, "width": 28}
IMAGE_PROCESSORS = {
    "CLIP's": CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}),
    "ViT's": ViTImageProcessor(size=SIZE),
    "SigLIP's": SiglipImageProcessor(size=SIZE),
    "without a shift": CLIPImageProcessor(size=SIZE, do_center_crop=False, do_normalize=False),
    "without a scale": CLIPImageProcessor(size=SIZE, do_center_crop=False, rescale_factor=1.0),
}


@pytest.mark.parametrize("image_processor", IMAGE_PROCESSORS.values(), ids=IMAGE_PROCESSORS)
def test_a_table_gives_what_the_image_processor_gives(image_processor):
    size = (24, 24) if image_processor.size.get("shortest_edge") else (28, 20)
    table = pixel_table(image_processor, size)
    rng = np.random.default_rng(1)
    for shape in ((*size[::-1], 3), size[::-1]):
        pictures = [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for _ in range(3)]
        expected = image_processor([picture.convert("RGB") for picture in pictures], return_tensors="pt")
        assert torch.equal(look_up(table, pictures), expected["pixel_values"])


class OfItsOwn(BaseImageProcessor):
    model_input_names = ["pixel_values"]

    def __init__(self, make=None, **more):
        self.make, self.more = make, more

    def __call__(self, images, return_tensors=None, **options):
        values = torch.stack([self.make(torch.tensor(np.asarray(image)).permute(2, 0, 1) / 255) for image in images])
        return BatchFeature({"pixel_values": values} | {name: values for name in self.more})


@pytest.mark.parametrize(
    "make",
    {
        "the picture's own mean": lambda x: x - x.mean(),
        "channels as one": lambda x: x.mean(dim=0, keepdim=True).expand(3, -1, -1),
        "its neighbours": lambda x: x - x.roll(1, dims=2),
        "one channel": lambda x: x[:1],
        "float64": lambda x: x.double(),
        "a larger picture": lambda x: x.repeat(1, 2, 2),
    }.values(),
)
def test_an_image_processor_that_looks_at_more_than_one_value_has_no_table(make):
    assert pixel_table(OfItsOwn(make), (28, 20)) is None
    assert pixel_table(OfItsOwn(lambda x: x * 2), (28, 20)) is not None


def test_there_is_no_table_for_other_sizes_more_outputs_or_fewer_pixels_than_greys():
    assert pixel_table(IMAGE_PROCESSORS["CLIP's"], (28, 20)) is None
    assert pixel_table(CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SIZE), (28, 20)) is None
    assert pixel_table(OfItsOwn(lambda x: x, pixel_mask=True), (28, 20)) is None
    assert pixel_table(OfItsOwn(lambda x: x), (15, 17)) is None
