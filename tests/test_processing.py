# Licensed under the Apache License, Version 2.0.
"""TierProcessor: radiographs and texts to a model's inputs."""

import copy
import datetime
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer

from modeling_tier import ReadingOptions, TierProcessor


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


LENGTHS = {
    "max_length": 6,
    "padding": "max_length",
    "truncation": "longest_first",
    "stride": 2,
    "pad_to_multiple_of": 8,
}


@pytest.mark.parametrize("left_by", ["tokenizer.json", "tokenizer_config.json"])
def test_model_max_length_beats_what_the_tokenizers_files_say(processor, left_by, tmp_path):
    """A trial run with other lengths leaves them in the tokenizer's files."""
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.model_max_length = 9
    if left_by == "tokenizer.json":
        tokenizer.backend_tokenizer.enable_truncation(20)
        tokenizer.backend_tokenizer.enable_padding(length=20)
        tokenizer.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "tokenizer.json").read_text())["truncation"]["max_length"] == 20
    else:
        tokenizer.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "tokenizer_config.json").read_text())
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | LENGTHS))
    processor.image_processor.save_pretrained(tmp_path)
    made = TierProcessor(processor.image_processor, AutoTokenizer.from_pretrained(tmp_path))
    made.save_pretrained(tmp_path / "saved")
    # A folder of which only the tokenizer's files are as they were.
    made.save_pretrained(tmp_path / "as it was")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "as it was" / name).write_bytes((tmp_path / name).read_bytes())
    loaded = [TierProcessor.from_pretrained(tmp_path / name) for name in ("saved", "as it was")]
    for read in (made, *loaded):
        batch = read(text=["left " * 100, "no effusion"])
        assert batch["input_ids"].shape == (2, 9)
        assert read(text=["no effusion"])["input_ids"].shape == (1, 4), "padded to the longest alone"
        assert read(text="left " * 100, max_length=5)["input_ids"].shape == (1, 5), "what is asked for holds"
        assert read(text="left", padding="max_length", max_length=7)["input_ids"].shape == (1, 7)


def test_what_is_saved_does_not_depend_on_what_was_called_before(processor, tmp_path):
    processor.save_pretrained(tmp_path / "before")
    processor(text=["left " * 100, "no"], max_length=7, padding="max_length")
    processor.tokenizer(["left"], truncation=True, max_length=3, padding="max_length")
    processor.save_pretrained(tmp_path / "after")
    for file in (tmp_path / "before").iterdir():
        assert file.read_bytes() == (tmp_path / "after" / file.name).read_bytes(), file.name
    assert json.loads((tmp_path / "after" / "tokenizer.json").read_text())["truncation"] is None


def test_reading_options_are_saved(processor, tmp_path):
    options = {"dicom_contrast": "equalized", "max_pixels": 1000, "max_aspect_ratio": 3.0}
    made = TierProcessor(processor.image_processor, processor.tokenizer, **options)
    made.save_pretrained(tmp_path)
    for read in (made, TierProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert read.reading_options() == ReadingOptions(**options)
        with pytest.raises(ValueError, match="40 x 40.*max_pixels=1000"):
            read(images=np.zeros((40, 40), np.uint8))
    with pytest.raises(ValueError, match="dicom_contrast must be one of"):
        TierProcessor(processor.image_processor, processor.tokenizer, dicom_contrast="bright")
    config = json.loads((tmp_path / "processor_config.json").read_text())
    for name in options:
        del config[name]
    (tmp_path / "processor_config.json").write_text(json.dumps(config))
    assert TierProcessor.from_pretrained(tmp_path).reading_options() == ReadingOptions(), "as older folders have it"


def test_text_first_as_clips_processor_once_had_it(processor, tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8))
    expected = processor(images=picture, text=["left effusion"])
    calls = [((["left effusion"], picture), {}), (("left effusion", [picture]), {}), ((picture, "left effusion"), {}),
             ((), {"text": "left effusion", "images": [np.asarray(picture)]})]  # fmt: skip
    for arguments, named in calls:
        batch = processor(*arguments, **named)
        for name in expected:
            torch.testing.assert_close(batch[name], expected[name], rtol=0, atol=0)
    with pytest.raises(ValueError, match="left effusion cannot be read: No such file.*text=..."):
        processor("left effusion")


def test_a_frame_is_chosen_by_its_number(processor, tmp_path):
    pictures = [Image.new("L", (40, 40), grey) for grey in (10, 200)]
    pictures[0].save(tmp_path / "x.tiff", save_all=True, append_images=pictures[1:])
    with pytest.raises(ValueError, match="x.tiff.*several frames"):
        processor(images=tmp_path / "x.tiff")
    torch.testing.assert_close(
        processor(images=tmp_path / "x.tiff", frame=2)["pixel_values"], processor(images=pictures[1])["pixel_values"]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (7, "item 0 is of type int: '7'"),
        ([], "empty list"),
        (["left", None], "item 1 is of type NoneType"),
        ([datetime.date(2020, 1, 1)], "item 0 is of type date: '2020-01-01'"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), "item 0 is of type date"),
        (np.array([object()]), "item 0 is of type object"),
        (np.arange(3), "item 0 is of type int"),
        (b"left", "got bytes"),
        ({"text": "left"}, "got dict"),
        (torch.arange(3), "got Tensor"),
        ([["left"]], "item 0 is of type list"),
    ],
)
def test_texts_that_are_none_are_named(processor, text, message):
    with pytest.raises(ValueError, match=message):
        processor(text=text)


def test_texts_that_work(processor):
    expected = processor(text=["left effusion", "no effusion"])["input_ids"]
    for text in (np.array(["left effusion", "no effusion"]), ("left effusion", "no effusion"),
                 np.array(["left effusion", "no effusion"], dtype=object)):  # fmt: skip
        assert torch.equal(processor(text=text)["input_ids"], expected)
    alone, pair = processor(text=["left \ud83d effusion", "left \ud83d\ude00 effusion"])["input_ids"].tolist()
    assert alone == pair == [2, 4, 1, 7, 3], "half of a character is an unknown one"
    with pytest.raises(ValueError, match="images is an empty list"):
        processor(images=[])


@pytest.mark.parametrize("length", [-3, 0, "text", math.nan, [512]])
def test_a_damaged_maximal_length_is_named(processor, tmp_path, length):
    processor.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": length}))
    with pytest.raises(ValueError, match="model_max_length must be a number of tokens.*tokenizer_config.json"):
        TierProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        {"crop_size": {"height": 10**9, "width": 10**9}},
        {"size": {"shortest_edge": 10**400}},
        {"crop_size": {"height": {"a": 1}, "width": 32}},
        {"image_mean": [0.5, 0.5, {}]},
        {"rescale_factor": {}},
    ],
)
def test_a_damaged_image_processor_is_named_when_it_is_loaded(processor, tmp_path, damage):
    processor.save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    content = json.loads(path.read_text())
    content["image_processor"] |= damage
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"image processor of {tmp_path} .*cannot be used"):
        TierProcessor.from_pretrained(tmp_path)
