# Licensed under the Apache License, Version 2.0.
"""TierProcessor: every form in which a radiograph comes, and texts, to a model's inputs."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from modeling_tier import TierProcessor, load_radiograph


@pytest.fixture
def ramp() -> np.ndarray:
    """A 12-bit radiograph as its detector gives it: values from 200 to 3800, smooth from left to right."""
    return np.linspace(200, 3800, 48 * 64).reshape(64, 48).T.astype(np.uint16)


def stretched(pixels: np.ndarray) -> np.ndarray:
    pixels = pixels.astype(np.float64)
    return np.round((pixels - pixels.min()) / (pixels.max() - pixels.min()) * 255)


@pytest.mark.parametrize("form", ["png", "pil", "array", "tensor", "int32", "float"])
def test_16_bit_is_scaled_by_its_own_range(ramp, form, tmp_path):
    if form == "png":
        Image.fromarray(ramp).save(tmp_path / "x.png")
        image = tmp_path / "x.png"
        assert np.asarray(Image.open(image).convert("RGB")).min() >= 200, "what a plain conversion does: nearly white"
    else:
        image = {
            "pil": lambda: Image.fromarray(ramp),
            "array": lambda: ramp,
            "tensor": lambda: torch.from_numpy(ramp.astype(np.int32)),
            "int32": lambda: Image.fromarray(ramp.astype(np.int32)),
            "float": lambda: Image.fromarray(ramp.astype(np.float32)),
        }[form]()
    result = load_radiograph(image)
    assert result.mode == "RGB"
    result = np.asarray(result)
    assert (result[..., 0] == result[..., 1]).all() and (result[..., 0] == result[..., 2]).all()
    np.testing.assert_allclose(result[..., 0], stretched(ramp), atol=1)


def test_a_dark_16_bit_array_is_stretched_too():
    pixels = np.arange(6, dtype=np.uint16).reshape(2, 3)
    np.testing.assert_array_equal(np.asarray(load_radiograph(pixels))[..., 0], stretched(pixels))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "1"])
def test_8_bit_pictures_keep_their_values(mode, tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).convert(mode)
    picture.save(tmp_path / "x.png")
    for image in (picture, tmp_path / "x.png", str(tmp_path / "x.png")):
        np.testing.assert_array_equal(np.asarray(load_radiograph(image)), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 1), (1, 20, 30), (20, 30, 3), (3, 20, 30), (20, 30, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
def test_arrays(shape, dtype):
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    result = np.asarray(load_radiograph((pixels / 255).astype(dtype) if dtype == np.float32 else pixels.astype(dtype)))
    expected = pixels.transpose(1, 2, 0) if shape[0] in (1, 3) else pixels
    expected = expected[..., None] if expected.ndim == 2 else expected[..., :3]
    np.testing.assert_array_equal(result, np.broadcast_to(expected, (20, 30, 3)))


def test_dicom(ramp, tmp_path):
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    for photometric in ("MONOCHROME2", "MONOCHROME1"):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        dataset.Rows, dataset.Columns = ramp.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, photometric
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
        dataset.PixelData = ramp.tobytes()
        path = tmp_path / f"{photometric}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        result = np.asarray(load_radiograph(path))[..., 0]
        expected = stretched(ramp) if photometric == "MONOCHROME2" else 255 - stretched(ramp)
        np.testing.assert_allclose(result, expected, atol=1)


def test_bad_images_are_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    Image.new("L", (64, 64), 7).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:300])
    for name in ("missing.png", "broken.png", "cut.jpg"):
        with pytest.raises(ValueError, match=name):
            load_radiograph(tmp_path / name)
    with pytest.raises(ValueError, match=r"\(H, W\)"):
        load_radiograph(np.zeros((4, 5, 6, 7)))
    with pytest.raises(ValueError, match="dict"):
        load_radiograph({})
    with pytest.raises(ValueError, match="empty"):
        load_radiograph(np.zeros((0, 5)))
    with pytest.raises(ValueError, match="NaN"):
        load_radiograph(np.full((4, 5), np.nan))


def test_a_picture_of_one_value_is_black():
    assert (np.asarray(load_radiograph(np.full((4, 5), 3000, np.uint16))) == 0).all()


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
