# Licensed under the Apache License, Version 2.0.
"""The augmentations against formulas written again in float64, and the evaluation transform against the processor."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
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
    look_up_pixels,
    pixel_table,
    stack_pixels,
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

    def brightest(image):
        return np.array(np.unravel_index(np.asarray(image).argmax(), (65, 65)))

    turned = dot.transform((65, 65), Image.Transform.AFFINE, inverse_affine((65, 65), 10, [0, 0], 1.0))
    assert brightest(turned)[0] > 32
    moved = dot.transform((65, 65), Image.Transform.AFFINE, inverse_affine((65, 65), 0, [-5, 3], 1.0))
    assert brightest(moved).tolist() == [35, 55]


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


@pytest.mark.parametrize("contrast", [0.8, 1.2])
def test_contrast_first_against_the_formula(contrast):
    image = picture(32, 32)
    values = np.asarray(image, np.float64)
    expected = np.clip(np.clip(values.mean() + contrast * (values - values.mean()), 0, 255) * 1.1, 0, 255)
    assert np.abs(np.asarray(adjust(image, 1.1, contrast, contrast_first=True)) - expected).max() <= 0.5 + 1e-6


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

    def version(*key):
        return augment(image, AUGMENTATIONS["paper"], (64, 64), generator(*key)).tobytes()

    assert version(0, 0, "a") == version(0, 0, "a")
    assert len({version(0, 0, "a"), version(1, 0, "a"), version(0, 1, "a"), version(0, 0, "b")}) == 4


class Draws:
    """Stands for a random generator: gives what it is told, in order."""

    def __init__(self, *values):
        self.values = list(values)

    def uniform(self, low, high):
        value = self.values.pop(0)
        assert low <= value <= high
        return value

    def integers(self, high):
        return int(self.uniform(0, high - 1))

    def random(self):
        return self.uniform(0, 1)


def as_torchvision(image, area, log_ratio, top_left, angle, shift, scale, brightness, contrast, contrast_first):
    """Resize(256), RandomResizedCrop(224), RandomAffine and ColorJitter on a PIL image, written again."""
    width, height = image.size
    if width <= height:
        image = image.resize((256, int(256 * height / width)), Image.Resampling.BILINEAR)
    else:
        image = image.resize((int(256 * width / height), 256), Image.Resampling.BILINEAR)
    width, height = image.size
    crop_width = int(round(math.sqrt(width * height * area * math.exp(log_ratio))))
    crop_height = int(round(math.sqrt(width * height * area / math.exp(log_ratio))))
    left, top = top_left
    image = image.crop((left, top, left + crop_width, top + crop_height)).resize((224, 224), Image.Resampling.BILINEAR)
    cosine, sine = math.cos(math.radians(angle)) / scale, math.sin(math.radians(angle)) / scale
    center = 224 * 0.5
    x, y = center + int(round(shift[0] * 224)), center + int(round(shift[1] * 224))
    matrix = [cosine, sine, center - cosine * x - sine * y, -sine, cosine, center + sine * x - cosine * y]
    image = image.transform((224, 224), Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)
    steps = [(ImageEnhance.Brightness, brightness), (ImageEnhance.Contrast, contrast)]
    for enhance, factor in reversed(steps) if contrast_first else steps:
        image = enhance(image).enhance(factor)
    return image


@pytest.mark.parametrize("size", [(320, 389), (389, 320), (256, 256)])
@pytest.mark.parametrize("contrast_first", [False, True])
@pytest.mark.parametrize("area", [0.1, 0.7])
def test_paper_as_published_against_the_arithmetic_of_torchvision(size, contrast_first, area):
    image = picture(*size)
    rng = Draws(area, math.log(0.95), 11, 5, -7.3, 0.041, -0.023, 1.03, 1.13, 0.88, 1 - contrast_first)
    ours = np.asarray(augment(image, AUGMENTATIONS["paper_as_published"], (224, 224), rng)).astype(int)
    assert not rng.values
    expected = np.asarray(as_torchvision(
        image, area, math.log(0.95), (11, 5), -7.3, (0.041, -0.023), 1.03, 1.13, 0.88, contrast_first
    )).astype(int)  # fmt: skip
    # Pillow cuts off to whole greys in each of the two steps, and rounds the mean; ours rounds once, at the end.
    assert np.abs(ours - expected).max() <= 2


def test_paper_is_sharper_than_as_published_on_small_crops():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (640, 640), dtype=np.uint8))

    def sharpness(name, draws):
        out = np.asarray(augment(noise, AUGMENTATIONS[name], (224, 224), Draws(*draws)), np.float64)
        return np.abs(np.diff(out[40:180, 40:180], axis=1)).mean()

    after_crop = [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.9]
    sharp = sharpness("paper", [0.1, 0.0, 9, 9, *after_crop[:-1]])
    published = sharpness("paper_as_published", [0.1, 0.0, 3, 3, *after_crop])
    assert sharp > 1.2 * published


@pytest.mark.parametrize(("size", "expected"), [((100, 33), (33, 0, 66, 33)), ((30, 101), (0, 34, 30, 67))])
def test_a_crop_that_never_fits_is_torchvisions_middle_one(size, expected):
    """in_ratio outside of (0.9, 1): height 30 / 0.9 = 33, (101 - 33) // 2 = 34; width 33 * 1 = 33, (100 - 33) // 2."""
    never = Draws(*[1.0, 0.0] * 10)
    assert crop_box(size, (0.08, 1.0), (0.9, 1.0), never, whole_pixels=True) == expected


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
        assert torch.equal(look_up_pixels(torch.from_numpy(table), stack_pixels(pictures)), expected["pixel_values"])


def test_pixels_travel_as_one_byte_each_where_all_pictures_are_grey():
    grey, colour = Image.new("L", (5, 3), 7), Image.new("RGB", (5, 3), (1, 2, 3))
    assert stack_pixels([grey, grey]).shape == (2, 1, 3, 5) and stack_pixels([grey]).dtype == torch.uint8
    mixed = stack_pixels([grey, colour])
    assert mixed.shape == (2, 3, 3, 5) and mixed[:, :, 0, 0].tolist() == [[7, 7, 7], [1, 2, 3]]


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
