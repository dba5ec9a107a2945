# Licensed under the Apache License, Version 2.0.
"""
What a converted processor makes of a picture, against the transform of the source's own code written again here in
Pillow, numpy and torch: pictures of 8 and 16 bits, upright, wide and square.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from published import (
    BiovilImage,
    BiovilTImage,
    CxrClip,
    Gloria,
    MedClip,
    OpenaiClip,
    cxr_bert,
    randomize,
    word_tokenizer,
    write_bert,
)

from modeling_tier import TierProcessor, conversion
from modeling_tier.convert.biovil import BIOVIL_IMAGE_FILE
from modeling_tier.convert.biovil_t import BIOVIL_T_IMAGE_FILE
from modeling_tier.framing_tier import Framing
from modeling_tier.maps_tier import picture_geometry


pytest_plugins = ["tests.convert.fixtures"]

SIZES = [(640, 512), (500, 701), (512, 512)]  # width, height


def smooth(size: tuple[int, int], low: int, high: int, dtype) -> Image.Image:
    """A picture of waves and edges from `low` to `high`."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    waves = 0.5 + 0.25 * np.sin(20 * x + 3 * y) + 0.25 * np.cos(25 * y * x)
    waves[height // 3 : height // 2, width // 4 : width // 2] = 0.9
    waves = (waves - waves.min()) / (waves.max() - waves.min())
    return Image.fromarray(np.round(low + waves * (high - low)).astype(dtype))


PICTURES = [
    *(pytest.param(smooth(size, 0, 255, np.uint8), id=f"8 bits {size}") for size in SIZES),
    pytest.param(smooth(SIZES[0], 30, 190, np.uint8), id="8 bits, pale"),
    pytest.param(smooth(SIZES[1], 300, 3900, np.uint16), id="16 bits"),
]


def remapped(picture: Image.Image) -> Image.Image:
    """hi-ml's reading of a picture: from the smallest to the largest value, cut off to whole greys."""
    pixels = np.asarray(picture).astype(float)
    pixels -= pixels.min()
    return Image.fromarray((pixels / pixels.max() * 255).astype(np.uint8)).convert("L")


def cropped(picture: Image.Image, shorter: int, crop: int, resample: Image.Resampling) -> np.ndarray:
    """torchvision's Resize and CenterCrop, in [0, 1]; its crop's margin is rounded half to even."""
    width, height = picture.size
    ratio = shorter / min(picture.size)
    size = (shorter, int(height * ratio)) if width <= height else (int(width * ratio), shorter)
    resized = picture.resize(size, resample)
    left, top = ((full - crop) // 2 for full in size)
    return np.asarray(resized.crop((left, top, left + crop, top + crop)), dtype=np.float64) / 255


def as_8_bits(picture: Image.Image) -> Image.Image:
    """Sources that read 8 bits alone get 16 bits scaled, as every picture here."""
    return remapped(picture) if picture.mode.startswith("I") else picture


def check(
    processor: TierProcessor, picture: Image.Image, expected: np.ndarray, greys: float, std: float = 1.0
) -> None:
    """At most so many greys apart where pixel values are divided by `std`."""
    actual = processor(images=picture)["pixel_values"][0].numpy()
    assert actual.shape == (3, *expected.shape)
    assert np.abs(actual - expected).max() <= greys / 255 / std + 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sources")


@pytest.fixture(scope="module")
def processors(folder) -> dict[str, TierProcessor]:
    """Of each source, loaded again from the folder that it was saved in."""
    cxr_bert(folder / "cxr-bert"), write_bert(folder / "bert")
    word_tokenizer("<pad>", "<end>", model_max_length=77).save_pretrained(folder / "clip")
    bert = write_bert(folder / "bert")
    torch.save(randomize(BiovilImage()).state_dict(), folder / "cxr-bert" / BIOVIL_IMAGE_FILE)
    torch.save(randomize(BiovilTImage()).state_dict(), folder / "cxr-bert" / BIOVIL_T_IMAGE_FILE)
    torch.save({"state_dict": randomize(Gloria(bert)).state_dict()}, folder / "gloria.ckpt")
    torch.save(randomize(MedClip(bert, "resnet")).state_dict(), folder / "medclip.bin")
    torch.save(randomize(CxrClip(bert, "resnet")).checkpoint(), folder / "cxr-clip.tar")
    torch.save(randomize(CxrClip(bert, "swin")).checkpoint(), folder / "cxr-clip-swin.tar")
    chexzero = randomize(OpenaiClip(grid=28))  # 224 pixels
    torch.save(chexzero.state_dict(), folder / "chexzero.pt")
    text = {"text_model": str(folder / "bert")}
    converted = {
        "biovil": conversion.biovil(str(folder / "cxr-bert"), str(folder / "cxr-bert")),
        "biovil-t": conversion.biovil_t(str(folder / "cxr-bert"), str(folder / "cxr-bert")),
        "gloria": conversion.gloria(str(folder / "gloria.ckpt"), **text),
        "medclip": conversion.medclip(str(folder / "medclip.bin"), **text),
        "cxr-clip": conversion.cxr_clip(str(folder / "cxr-clip.tar"), **text),
        "cxr-clip-swin": conversion.cxr_clip(str(folder / "cxr-clip-swin.tar"), **text),
        "chexzero": conversion.chexzero(str(folder / "chexzero.pt"), str(folder / "clip")),
    }
    for name, (_, processor) in converted.items():
        processor.save_pretrained(folder / f"{name}-tier")
    return {name: TierProcessor.from_pretrained(folder / f"{name}-tier") for name in converted}


@pytest.mark.parametrize("picture", PICTURES)
def test_biovil_stretches_every_picture(processors, picture):
    """Theirs cuts greys off; ours of 16 bits is rounded before."""
    greys = 1.01 if picture.mode.startswith("I") else 0.01
    for name, crop in (("biovil", 480), ("biovil-t", 448)):
        expected = cropped(remapped(picture), 512, crop, Image.Resampling.BILINEAR)
        check(processors[name], picture, expected, greys)


@pytest.mark.parametrize("picture", PICTURES)
def test_medclip_pads_and_resizes(processors, picture):
    grey = as_8_bits(picture)
    side = max(224, *grey.size)
    square = Image.new("L", (side, side), 0)
    square.paste(grey, tuple(int((side - length) / 2) for length in grey.size))
    expected = (cropped(square, 224, 224, Image.Resampling.BICUBIC) - 0.5862785803043838) / 0.27950088968644304
    check(processors["medclip"], picture, expected, 2.01 if picture.mode.startswith("I") else 0.01, 0.2795)


@pytest.mark.parametrize("picture", PICTURES)
def test_cxr_clip_resizes_and_crops(processors, picture):
    """The ResNet's pictures are normalised as ImageNet's; the Swin transformer's by 0.5."""
    expected = cropped(as_8_bits(picture), 224, 224, Image.Resampling.BILINEAR)
    greys = 1.01 if picture.mode.startswith("I") else 0.01
    check(processors["cxr-clip-swin"], picture, (expected - 0.5) / 0.5, greys, 0.5)
    actual = processors["cxr-clip"](images=picture)["pixel_values"][0].numpy()
    for channel, mean, std in zip(actual, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)):
        assert np.abs(channel - (expected - mean) / std).max() <= greys / 255 / std + 1e-5


def area(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Mean greys of the areas that the pixels of a smaller picture cover, as OpenCV's INTER_AREA; rounded."""

    def weights(full: int, part: int) -> np.ndarray:
        edges = np.arange(part + 1) * full / part
        cells = np.arange(full)
        covered = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
        return np.clip(covered, 0, None) * part / full

    width, height = size
    greys = np.asarray(picture, dtype=np.float64)
    return np.round(weights(greys.shape[0], height) @ greys @ weights(greys.shape[1], width).T)


@pytest.mark.parametrize("picture", PICTURES)
def test_gloria_resizes_by_areas_and_pads(processors, picture):
    """Pillow's box filter gives each pixel to one area where OpenCV's divides it between two."""
    grey = as_8_bits(picture)
    ratio = 256 / max(grey.size)
    resized = area(grey, tuple(int(length * ratio) for length in grey.size))
    margins = [((256 - length) // 2, -((length - 256) // 2)) for length in resized.shape]
    square = np.pad(resized, margins)
    expected = (square[16:240, 16:240] / 255 - 0.5) / 0.5
    actual = processors["gloria"](images=picture)["pixel_values"][0].numpy()
    difference = np.abs(actual - expected) * 0.5 * 255
    assert difference.mean() < 1.5 and np.percentile(difference, 90) < 4
    assert ((actual == -1) == (expected == -1)).mean() > 0.99, "the margins are the same"


@pytest.mark.parametrize("picture", PICTURES)
def test_chexzero_resizes_to_320_pads_and_resizes_again(processors, picture):
    """Its code resizes normalised floats a second time, where ours are rounded to 8 bits and cut off."""
    grey = as_8_bits(picture)
    ratio = 320.0 / max(grey.size)
    size = tuple(int(length * ratio) for length in grey.size)
    square = Image.new("L", (320, 320))
    square.paste(grey.resize(size, Image.Resampling.LANCZOS), tuple((320 - length) // 2 for length in size))
    pixels = (torch.tensor(np.asarray(square), dtype=torch.float64)[None, None] - 101.48761) / 83.43944
    expected = torch.nn.functional.interpolate(pixels, (224, 224), mode="bicubic", antialias=True)[0, 0].numpy()
    black, white = -101.48761 / 83.43944, (255 - 101.48761) / 83.43944
    check(processors["chexzero"], picture, expected.clip(black, white), 2.5, 83.43944 / 255)


@pytest.mark.parametrize("source", ["gloria", "medclip", "chexzero"])
@pytest.mark.parametrize("size", SIZES)
def test_a_map_knows_where_a_padded_picture_lies(processors, source, size):
    """A white spot in a black picture is actual where the geometry says."""
    processor, (x, y) = processors[source], (int(size[0] * 0.6), int(size[1] * 0.4))
    pixels = np.zeros(size[::-1], np.uint8)
    pixels[y - 8 : y + 8, x - 8 : x + 8] = 255
    values = processor(images=Image.fromarray(pixels))["pixel_values"][0, 0].numpy()
    weights = np.clip(values - np.median(values), 0, None)
    rows, columns = np.indices(values.shape) + 0.5
    actual = (weights * columns).sum() / weights.sum(), (weights * rows).sum() / weights.sum()
    factors, offset, kept = picture_geometry(size, processor)
    assert kept == values.shape[::-1]
    expected = [position * factor - cut for position, factor, cut in zip((x, y), factors, offset)]
    np.testing.assert_allclose(actual, expected, atol=0.35)


def test_the_options_are_off_by_default_and_saved(processors, processor, folder):
    assert processor.framing == Framing()
    content = json.loads((folder / "chexzero-tier" / "processor_config.json").read_text())
    assert (content["pad_to_square"], content["longer_side"]) == (True, 320)
    assert processors["biovil"].framing == Framing(stretch_contrast=True)


WRONG = [
    {"stretch_contrast": 1},
    {"pad_to_square": "yes"},
    {"longer_side": 320},
    {"pad_to_square": True, "longer_side": 0},
    {"pad_to_square": True, "longer_side": True},
    {"longer_side_resample": 9},
]


@pytest.mark.parametrize("options", WRONG)
def test_wrong_values_are_named(processor, options):
    with pytest.raises(ValueError, match=list(options)[-1]):
        TierProcessor(processor.image_processor, processor.tokenizer, **options)


def test_a_picture_of_one_grey_and_one_pixel():
    assert np.asarray(Framing(stretch_contrast=True)(Image.new("L", (3, 2), 7))).max() == 7
    framing = Framing(pad_to_square=True, longer_side=8)
    assert framing(Image.new("RGB", (1, 200), "white")).size == (8, 8)


def test_a_run_from_a_converted_model_keeps_its_framing(processors, folder):
    """Unless the configuration says otherwise, or gives another image size."""
    from modeling_tier.training import load_config
    from modeling_tier.training.building import build_processor

    conversion.convert("biovil", folder / "biovil-model", **{
        name: str(folder / "cxr-bert") for name in ("image_model", "text_model")
    })  # fmt: skip
    pretrained = f"--model.pretrained={folder / 'biovil-model'}"

    def framing(*options: str) -> Framing:
        config = load_config("configs/mimic_cxr.yaml", [pretrained, *options])
        return build_processor(config, []).framing

    assert framing() == Framing(stretch_contrast=True)
    assert framing("--model.image_options={stretch_contrast: false}") == Framing()
    assert framing("--model.image_size=224", "--model.image_options={pad_to_square: true}").pad_to_square


def test_both_pipelines_frame_pictures_and_lay_maps_over_them(processors, folder):
    from transformers import pipeline

    source = {"model": str(folder / "chexzero.pt"), "tokenizer": str(folder / "clip")}
    conversion.convert("chexzero", folder / "chexzero-model", **source)
    picture, findings = smooth((640, 320), 0, 255, np.uint8), ["effusion", "cardiomegaly"]
    read = pipeline("tier-zero-shot", model=str(folder / "chexzero-model"))
    rows = read(picture, findings=findings, maps="array")
    with torch.no_grad():
        out = read.model(**processors["chexzero"](images=picture, text=findings))
    assert all(row["map"].shape == (320, 640) and np.isfinite(row["map"]).all() for row in rows)
    classify = pipeline("zero-shot-image-classification", model=str(folder / "chexzero-model"))
    answers = classify(picture, candidate_labels=findings, hypothesis_template="{}")
    scores = {answer["label"]: answer["score"] for answer in answers}
    expected = out.logits_per_image[0].softmax(dim=0).tolist()
    assert [scores[name] for name in findings] == pytest.approx(expected, abs=1e-5)
