# Licensed under the Apache License, Version 2.0.
"""
What happens to a picture before the model sees it.

In training, one of the augmentations below, then the processor's rescaling and normalisation, looked up in a table; in
evaluation, the processor and nothing else. Drawn with Pillow (benchmarks/transforms.py holds it beside other
libraries).
"""

import math
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageStat


@dataclass(frozen=True)
class Augmentation:
    """
    Random resized crop, then a random affine map, then brightness and contrast.

    Pictures are never flipped left to right: reports say "left" and "right", and the heart has its side.
    """

    area: tuple[float, float]  # of the crop, as a fraction of the picture's
    ratio: tuple[float, float]  # width over height of the crop
    resample: Image.Resampling  # of the crop
    degrees: float  # rotation by up to so much, either way
    translate: float  # by up to this fraction of the side, either way
    scale: tuple[float, float]
    brightness: float  # factor 1 +- so much
    contrast: float  # likewise, around the mean
    # Where torchvision's transforms differ: the picture is first resized so that its shorter side has so many times
    # the pixels of the result's; the affine map takes the nearest pixel and shifts by whole ones; brightness and
    # contrast come in random order.
    resize_first: float | None = None
    affine_resample: Image.Resampling = Image.Resampling.BILINEAR
    whole_pixels: bool = False
    random_order: bool = False


_PAPER = ((0.08, 1.0), (0.9, 1.0), Image.Resampling.BILINEAR, 10, 0.05, (0.95, 1.05), 0.2, 0.2)

AUGMENTATIONS = {
    # As the authors of arXiv 2212.06710 trained: crops of 8% to all of the picture, for a convolutional network. Crops
    # are taken from the picture itself and interpolated linearly, so small ones are sharper than the authors'.
    "paper": Augmentation(*_PAPER),
    # The same with the arithmetic of the authors' torchvision transforms: a first resizing to 256 pixels for 224,
    # which blurs small crops, and an affine map without interpolation.
    "paper_as_published": Augmentation(
        *_PAPER,
        resize_first=256 / 224,
        affine_resample=Image.Resampling.NEAREST,
        whole_pixels=True,
        random_order=True,
    ),
    # For ViTs from CLIP's weights: bicubic as they were trained, and crops that leave in most of what a report names;
    # in exchange the exposure varies more, which differs between hospitals.
    "vit": Augmentation((0.5, 1.0), (0.8, 1.25), Image.Resampling.BICUBIC, 10, 0.05, (0.95, 1.05), 0.3, 0.3),
}


def generator(seed: int, epoch: int, image_id: str) -> np.random.Generator:
    """Random numbers of one picture in one epoch, whichever process meets it in whichever order."""
    return np.random.default_rng([seed, epoch, zlib.crc32(image_id.encode())])


def input_size(image_processor) -> tuple[int, int]:
    """Width and height of the pictures that an image processor gives."""
    size = getattr(image_processor, "crop_size" if getattr(image_processor, "do_center_crop", False) else "size", None)
    size = size or {}
    if size.get("height") and size.get("width"):
        return size["width"], size["height"]
    if size.get("shortest_edge"):
        return size["shortest_edge"], size["shortest_edge"]
    raise ValueError(f"data.augmentation needs an image processor with a fixed size; this one has {dict(size)}.")


def augment(image: Image.Image, options: Augmentation, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """
    One random version of a picture.

    Args:
        image: mode "L" or "RGB"; the result has the same.
        options: one of `AUGMENTATIONS`.
        size: width and height of the result.
        rng: where all chance comes from.
    """
    if options.resize_first:
        image = resized_shorter_side(image, round(options.resize_first * min(size)), options.resample)
    box = crop_box(image.size, options.area, options.ratio, rng, options.whole_pixels)
    if options.whole_pixels:
        image = image.crop(box).resize(size, options.resample)
    else:
        image = image.resize(size, options.resample, box=box)
    angle = rng.uniform(-options.degrees, options.degrees)
    shift = [rng.uniform(-options.translate, options.translate) * side for side in size]
    if options.whole_pixels:
        shift = [round(pixels) for pixels in shift]
    matrix = inverse_affine(size, angle, shift, rng.uniform(*options.scale))
    image = image.transform(size, Image.Transform.AFFINE, matrix, options.affine_resample)
    brightness = rng.uniform(1 - options.brightness, 1 + options.brightness)
    contrast = rng.uniform(1 - options.contrast, 1 + options.contrast)
    return adjust(image, brightness, contrast, options.random_order and rng.random() < 0.5)


def resized_shorter_side(image: Image.Image, side: int, resample: Image.Resampling) -> Image.Image:
    """The picture with `side` pixels on its shorter side; the longer one is cut off to whole pixels."""
    longer = int(side * max(image.size) / min(image.size))
    size = (side, longer) if image.width <= image.height else (longer, side)
    return image if size == image.size else image.resize(size, resample)


def crop_box(
    size: tuple[int, int],
    area: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
    whole_pixels: bool = False,
) -> tuple[float, float, float, float]:
    """
    Left, top, right, bottom of a random crop, uniform in area and in the logarithm of the ratio, as "Inception" crops
    are drawn. After ten that do not fit, the largest one in the middle whose ratio is allowed, with `whole_pixels`
    rounded to them.
    """
    width, height = size
    for _ in range(10):
        pixels = width * height * rng.uniform(*area)
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        crop_width, crop_height = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(rng.integers(width - crop_width + 1))
            top = int(rng.integers(height - crop_height + 1))
            return left, top, left + crop_width, top + crop_height
    shape = min(max(width / height, ratio[0]), ratio[1])
    largest = min(width, height * shape), min(height, width / shape)
    if whole_pixels:
        largest = max(1, round(largest[0])), max(1, round(largest[1]))
        corner: tuple[float, float] = (width - largest[0]) // 2, (height - largest[1]) // 2
    else:
        corner = (width - largest[0]) / 2, (height - largest[1]) / 2
    return *corner, corner[0] + largest[0], corner[1] + largest[1]


def inverse_affine(size: tuple[int, int], degrees: float, shift: list[float], scale: float) -> tuple[float, ...]:
    """
    From a pixel of the result to the point of the picture it is taken from: (a, b, c, d, e, f) with
    x = a x' + b y' + c and y = d x' + e y' + f, for a rotation and scaling about the middle and a shift after them.
    """
    cosine, sine = math.cos(math.radians(degrees)) / scale, math.sin(math.radians(degrees)) / scale
    middle_x, middle_y = size[0] / 2, size[1] / 2
    x, y = middle_x + shift[0], middle_y + shift[1]
    return cosine, sine, middle_x - cosine * x - sine * y, -sine, cosine, middle_y + sine * x - cosine * y


def adjust(image: Image.Image, brightness: float, contrast: float, contrast_first: bool = False) -> Image.Image:
    """
    Multiply by `brightness`, then stretch around the mean by `contrast`, or the other way round; both as one table of
    256 greys.
    """
    greys: np.ndarray = np.arange(256, dtype=np.float64)
    mean = sum(ImageStat.Stat(image).mean) / len(image.getbands())
    if contrast_first:
        table = np.clip(mean + contrast * (greys - mean), 0, 255) * brightness
    else:
        mean *= brightness
        table = mean + contrast * (np.clip(greys * brightness, 0, 255) - mean)
    table = np.clip(np.round(table), 0, 255).astype(np.uint8)
    return image.point(table.tolist() * len(image.getbands()))


def pixel_table(image_processor, size: tuple[int, int], **options) -> np.ndarray | None:
    """
    What an image processor makes of each of the 256 greys of each channel, (3, 256), as float32; found by trying it.

    Args:
        size: width and height of the pictures.
        **options: for the image processor.

    Returns:
        None if for pictures of this size it does more than replace each value by another one.
    """
    width, height = size
    if width * height < 256:  # too few pixels for all greys
        return None
    rng = np.random.default_rng(0)
    greys: np.ndarray = np.resize(np.arange(256, dtype=np.uint8), width * height)
    all_greys = np.stack([rng.permutation(greys) for _ in range(3)], axis=1).reshape(height, width, 3)
    few_greys = rng.integers(100, 120, all_greys.shape, dtype=np.uint8)  # to tell what depends on the whole picture
    pictures = [Image.fromarray(all_greys), Image.fromarray(few_greys)]
    made = image_processor(pictures, return_tensors="pt", **options)
    if set(made) != {"pixel_values"}:
        return None
    values = made["pixel_values"]
    if values.shape != (2, 3, height, width) or values.dtype != torch.float32:
        return None
    table: np.ndarray = np.empty((3, 256), np.float32)
    for channel in range(3):
        table[channel, all_greys[:, :, channel]] = values[0, channel]
    return table if torch.equal(look_up(table, pictures), values) else None


def look_up(table: np.ndarray, images: list[Image.Image]) -> torch.Tensor:
    """`pixel_values` (N, 3, H, W) of pictures of one size, mode "L" or "RGB", with the table of [`pixel_table`]."""
    width, height = images[0].size
    values = np.empty((len(images), 3, height, width), np.float32)
    for row, image in zip(values, images):
        pixels = np.asarray(image)
        for channel in range(3):
            greys = pixels if pixels.ndim == 2 else pixels[:, :, channel]
            # No grey is out of range; "raise" would only look for one, in a copy.
            np.take(table[channel], greys, out=row[channel], mode="clip")
    return torch.from_numpy(values)


def stack_pixels(images: list[Image.Image]) -> torch.Tensor:
    """The pixels (N, 1 or 3, H, W) of pictures of one size, as bytes; grey only if all pictures are."""
    mode = "L" if all(image.mode == "L" for image in images) else "RGB"
    pixels = np.stack([np.asarray(image if image.mode == mode else image.convert(mode)) for image in images])
    return torch.from_numpy(pixels[:, None] if mode == "L" else np.moveaxis(pixels, 3, 1).copy())


def look_up_pixels(table: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """
    `pixel_values` (N, 3, H, W) as [`look_up`] gives them, on the device of its inputs and in the order of memory that
    convolutions on a GPU work in.

    Args:
        table: of [`pixel_table`], (3, 256).
        pixels: of [`stack_pixels`], (N, 1 or 3, H, W).
    """
    if pixels.shape[1] == 1:
        values = torch.nn.functional.embedding(pixels[:, 0].int(), table.t().contiguous())
    else:
        of_channels = [torch.nn.functional.embedding(pixels[:, c].int(), table[c, :, None]) for c in range(3)]
        values = torch.cat(of_channels, dim=3)
    return values.permute(0, 3, 1, 2)
