# Licensed under the Apache License, Version 2.0.
"""BioViL, built here from plain torch, against what comes of it."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from published import BiovilImage, assert_same, clip_folder, close, cxr_bert, randomize, tokens

from modeling_tier import conversion
from modeling_tier.convert.biovil import BIOVIL_IMAGE_FILE


pytest_plugins = ["tests.convert.fixtures"]


@pytest.mark.parametrize(
    ("kind", "depths", "width", "weights"),
    [
        ("bottleneck", (3, 4, 6, 3), 4, "pytorch_model.bin"),
        ("bottleneck", (1, 2), 12, "model.safetensors"),
        ("basic", (2, 1, 2), 8, "model.safetensors"),
    ],
)
def test_biovil_gives_the_same_embeddings(tmp_path, pixels, kind, depths, width, weights):
    image, text = randomize(BiovilImage(kind, depths, width)), cxr_bert(tmp_path, weights)
    torch.save(image.state_dict(), tmp_path / BIOVIL_IMAGE_FILE)
    model, processor = conversion.biovil(str(tmp_path), str(tmp_path))
    assert not model.training and model.config.vision_config.depths == list(depths)
    for training in (False, True):
        for module in (model, image, text):
            module.train(training)
        with torch.no_grad():
            texts = tokens(processor)
            patches, whole = image(pixels)
            assert_same(model, texts, pixels, *text.embed(**texts), patches, whole)
    # In training mode both have moved their running statistics, by the same.
    moved, original = model.vision_model.embedder.embedder.normalization, image.encoder.encoder.bn1
    torch.testing.assert_close(moved.running_var, original.running_var, **close)
    torch.testing.assert_close(model.visual_projection[1].running_mean, image.projector.model[1].running_mean, **close)


def test_biovil_names_the_weights_that_are_not_used(biovil_files):
    _, text, files = biovil_files
    record = conversion.Record()
    conversion.biovil(**files, record=record)
    unused = {"encoder.encoder.fc.weight", "encoder.encoder.fc.bias", "bert.embeddings.position_ids"}
    assert record.unused.keys() == unused | {key for key in text.state_dict() if key.startswith("cls.predictions.")}
    assert "ImageNet" in record.unused["encoder.encoder.fc.bias"] and list(record.initial) == ["logit_scale"]
    expected = ["image.pt", "config.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"]
    assert [file["name"] for file in record.files] == [*expected, "pytorch_model.bin"]
    digest = hashlib.sha256(Path(files["image_model"]).read_bytes()).hexdigest()
    assert record.files[0]["sha256"] == digest


def test_biovils_processor_is_theirs_without_their_code(biovil_files, tmp_path):
    model, processor = conversion.biovil(**biovil_files[2])
    pixels = np.random.default_rng(0).integers(0, 256, (700, 610), dtype=np.uint8)
    small = Image.fromarray(pixels).resize((512, int(512 * 700 / 610)), Image.Resampling.BILINEAR)
    left, top = (small.width - 480) // 2, (small.height - 480) // 2
    expected = torch.tensor(np.asarray(small)[top : top + 480, left : left + 480] / 255, dtype=torch.float32)
    actual = processor(images=Image.fromarray(pixels))["pixel_values"]
    torch.testing.assert_close(actual, expected.expand(1, 3, 480, 480), rtol=0, atol=1e-6)
    assert processor(text="No Effusion").input_ids.tolist() == [[2, 9, 8, 3]]
    assert model.config.special_token_ids == [0, 1, 2, 3, 4] and processor.tokenizer.model_max_length == 24
    processor.save_pretrained(tmp_path / "saved")
    saved = "".join(path.read_text() for path in (tmp_path / "saved").glob("*.json"))
    assert "cxrbert" not in saved.lower() and "/home/someone" not in saved and str(tmp_path) not in saved


def test_weights_that_do_not_fit_are_all_listed(biovil_files):
    image, _, files = biovil_files
    state = image.state_dict()
    del state["encoder.encoder.layer2.1.bn2.running_var"], state["projector.model.3.bias"]
    state["encoder.encoder.layer5"] = state["momentum"] = torch.zeros(1)
    state["projector.model.1.weight"] = torch.zeros(3)
    torch.save(state, files["image_model"])
    with pytest.raises(ValueError) as error:
        conversion.biovil(**files)
    assert str(error.value) == (
        "The weights do not fit the model. missing: encoder.encoder.layer2.1.bn2.running_var, projector.model.3.bias; "
        "unknown: encoder.encoder.layer5, momentum; "
        "of another shape: projector.model.1.weight (expected (16,), found (3,))."
    )


def test_no_weight_is_loaded_into_another(biovil_files):
    image, text, files = biovil_files
    key = "bert.embeddings.LayerNorm.bias"
    torch.save(image.state_dict() | {key: text.state_dict()[key]}, files["image_model"])
    with pytest.raises(ValueError, match=f"same name: {key}"):
        conversion.biovil(**files)
    state = image.state_dict()
    state["projector.model.0.weight"] = state["projector.model.0.weight"].to(torch.int8)
    torch.save(state, files["image_model"])
    with pytest.raises(ValueError, match=r"of integers.*projector\.model\.0\.weight \(torch\.int8\)"):
        conversion.biovil(**files)


def test_weights_of_a_distributed_model_are_read(biovil_files):
    image, _, files = biovil_files
    expected = conversion.biovil(**files)[0].state_dict()
    torch.save({f"module.{key}": tensor for key, tensor in image.state_dict().items()}, files["image_model"])
    actual = conversion.biovil(**files)[0].state_dict()
    assert all(torch.equal(actual[key], tensor) for key, tensor in expected.items())


def test_a_tokenizer_without_its_vocabulary_is_refused(biovil_files, tmp_path):
    (tmp_path / "cxr-bert" / "vocab.txt").unlink()
    with pytest.raises(ValueError, match="does not know any word"):
        conversion.biovil(**biovil_files[2])
    clip_folder(tmp_path / "clip")
    for path in (tmp_path / "clip").glob("tokenizer*"):
        path.unlink()
    with pytest.raises((ValueError, OSError)):
        conversion.clip(str(tmp_path / "clip"))


def test_weights_that_give_nothing_are_refused(biovil_files):
    image, _, files = biovil_files
    state = image.state_dict()
    state["projector.model.3.bias"][0] = float("nan")
    torch.save(state, files["image_model"])
    with pytest.raises(ValueError, match="no finite similarity"):
        conversion.biovil(**files)


def test_other_models_are_refused_as_biovil(biovil_files, tmp_path):
    _, text, files = biovil_files
    torch.save(text.state_dict(), tmp_path / "text.pt")
    with pytest.raises(ValueError, match=r"encoder.encoder.conv1.weight is missing.*ResNet"):
        conversion.biovil(str(tmp_path / "text.pt"), files["text_model"])
    with pytest.raises(ValueError, match=f"no {BIOVIL_IMAGE_FILE} in"):
        conversion.biovil(files["text_model"], files["text_model"])
    with pytest.raises(ValueError, match="nothing-here is not on this disk.*Hub"):
        conversion.biovil(files["image_model"], str(tmp_path / "nothing-here"))
    with pytest.raises(ValueError, match="no file models/image.pt"):
        conversion.biovil("models/image.pt", files["text_model"])
    vocabulary = tmp_path / "cxr-bert" / "vocab.txt"
    vocabulary.write_text(vocabulary.read_text() + "more\n")
    with pytest.raises(ValueError, match="tokenizer has 20 tokens, and the text encoder 19"):
        conversion.biovil(**files)
    config = tmp_path / "cxr-bert" / "config.json"
    config.write_text(config.read_text().replace("cxr-bert", "bert"))
    with pytest.raises(ValueError, match="CXR-BERT"):
        conversion.biovil(**files)
