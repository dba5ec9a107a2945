# Licensed under the Apache License, Version 2.0.
"""CLIP and SigLIP of transformers, against what comes of them."""

import json

import pytest
import torch
from PIL import Image
from published import TEXTS, clip_folder, close, siglip_folder, tokens
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoTokenizer,
)

from modeling_tier import TierModel, TierProcessor, conversion
from modeling_tier.evaluation import load_model


pytest_plugins = ["tests.convert.fixtures"]


def test_clip_is_from_clip_with_its_processor(tmp_path, pixels):
    theirs = clip_folder(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["text_model.embeddings.position_ids"] = torch.arange(24)[None]  # as in the files of OpenAI on the Hub
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    record = conversion.Record()
    model, processor = conversion.clip(str(tmp_path), record=record)
    assert list(record.unused) == ["text_model.embeddings.position_ids"]
    for name, tensor in TierModel.from_clip(str(tmp_path)).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    inputs = {**tokens(processor), "pixel_values": pixels[..., :32, :32]}
    with torch.no_grad():
        ours, expected = model(**inputs), theirs(**inputs)
    for name in ("logits_per_image", "text_embeds", "image_embeds"):
        torch.testing.assert_close(ours[name], expected[name], **close)
    assert model.config.special_token_ids == [0, 1, 2, 21]
    assert processor(images=Image.new("L", (50, 40)))["pixel_values"].shape == (1, 3, 32, 32)


def test_half_precision_becomes_single(tmp_path):
    clip_folder(tmp_path / "clip").half().save_pretrained(tmp_path / "clip", max_shard_size="50KB")
    (tmp_path / "clip" / "model.safetensors").unlink()
    assert len(list((tmp_path / "clip").glob("model-*.safetensors"))) > 1
    config = json.loads((tmp_path / "clip" / "config.json").read_text())
    config["text_config"]["dtype"] = config["vision_config"]["dtype"] = "float16"
    (tmp_path / "clip" / "config.json").write_text(json.dumps(config))
    conversion.convert("clip", tmp_path / "tier", model=str(tmp_path / "clip"))
    model, _ = load_model(str(tmp_path / "tier"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_siglip_gives_the_same_embeddings_and_logits(tmp_path, pixels):
    theirs = siglip_folder(tmp_path)
    model, processor = conversion.siglip(str(tmp_path))
    inputs = {**tokens(processor), "pixel_values": pixels[..., :32, :32]}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, padding_side="right")
    full = tokenizer(TEXTS, padding="max_length", max_length=24, return_tensors="pt")
    assert list(full) == ["input_ids"] and (full["input_ids"][0, -1] == 21)
    with torch.no_grad():
        ours, expected = model(**inputs), theirs(**full, pixel_values=inputs["pixel_values"])
    for name in ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds"):
        torch.testing.assert_close(ours[name], expected[name], rtol=1e-5, atol=1e-4 if "logits" in name else 1e-5)
    states = expected.text_model_output.last_hidden_state[:, : inputs["input_ids"].shape[1]]
    token_embeds = nn.functional.normalize(theirs.text_model.head(states), dim=-1)
    torch.testing.assert_close(ours.token_embeds, token_embeds, **close)
    states = expected.vision_model_output.last_hidden_state
    patches = torch.stack([theirs.vision_model.head(states[:, [p]]) for p in range(16)], dim=1)
    torch.testing.assert_close(ours.patch_embeds, nn.functional.normalize(patches, dim=-1), **close)
    assert model.config.text_config.pad_token_id == 21 and processor.tokenizer.model_max_length == 24
    assert model.logit_bias.item() == -9 == model.config.logit_bias_init_value and not model.logit_bias.requires_grad
    assert model.config.special_token_ids == [0, 21]
    processor.save_pretrained(tmp_path / "processor")
    loaded = tokens(TierProcessor.from_pretrained(tmp_path / "processor"))
    assert all(torch.equal(loaded[name], inputs[name]) for name in loaded)


def test_another_kind_of_model_is_refused(tmp_path):
    siglip_folder(tmp_path)
    with pytest.raises(ValueError, match="type 'siglip'; 'clip' is needed"):
        conversion.clip(str(tmp_path))
    weights = load_file(tmp_path / "model.safetensors")
    del weights["vision_model.head.probe"]
    weights["text_model.head.bias"] = torch.zeros(5)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"missing: vision_model.head.probe; .*text_model.head.bias \(expected"):
        conversion.siglip(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no weights: neither model.safetensors nor pytorch_model.bin"):
        conversion.siglip(str(tmp_path))
