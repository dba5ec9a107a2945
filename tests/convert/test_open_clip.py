# Licensed under the Apache License, Version 2.0.
"""Folders of open_clip, built here from plain torch, against what comes of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from published import (
    DIMENSION,
    BiomedClip,
    OpenaiClip,
    assert_same,
    randomize,
    tokens,
    with_plain_gelu,
    write_bert,
    write_biomedclip,
    write_open_clip,
)

from modeling_tier import conversion
from modeling_tier.evaluation import load_model


pytest_plugins = ["tests.convert.fixtures"]

VISION = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}
TEXT = {"context_length": 12, "vocab_size": 22, "width": 128, "heads": 2, "layers": 2}
NATIVE = {"embed_dim": DIMENSION, "vision_cfg": VISION, "text_cfg": TEXT}


@pytest.fixture
def biomedclip(tmp_path) -> tuple[BiomedClip, Path]:
    model = randomize(BiomedClip(write_bert(tmp_path / "bert")))
    return model, write_biomedclip(tmp_path / "model", model, str(tmp_path / "bert"))


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("prefix", ["", "text."])
def test_a_native_model_gives_the_same_embeddings_and_logits(tmp_path, pixels, openai_tokenizer, quick, prefix):
    theirs, pixels = randomize(OpenaiClip()), pixels[..., :32, :32]
    theirs = theirs if quick else with_plain_gelu(theirs)
    architecture = NATIVE | {"quick_gelu": quick, "custom_text": bool(prefix)}
    folder = write_open_clip(tmp_path / "model", theirs, architecture, "open_clip_model.safetensors")
    if prefix:
        state = {n if n.startswith("visual.") or n == "logit_scale" else prefix + n: t for n, t in
                 theirs.state_dict().items()}  # fmt: skip
        torch.save(state | {"text.attn_mask": torch.zeros(12, 12)}, folder / "open_clip_pytorch_model.bin")
        (folder / "open_clip_model.safetensors").unlink()
    record = conversion.Record()
    model, processor = conversion.open_clip(str(folder), openai_tokenizer, record=record)
    texts = tokens(processor)
    with torch.no_grad():
        image, (token_embeds, text) = theirs.visual(pixels), theirs.encode_text(texts["input_ids"])
        assert_same(model, texts, pixels, token_embeds, text, image[:, 1:], image[:, 0])
    assert list(record.unused) == (["text.attn_mask"] if prefix else [])
    assert processor.tokenizer.model_max_length == 12


def test_biomedclips_form_gives_the_same_embeddings_and_logits(biomedclip, pixels, tmp_path):
    (theirs, folder), pixels = biomedclip, pixels[..., :32, :32]
    record = conversion.convert("open_clip", tmp_path / "tier", model=str(folder))
    assert set(record.unused) == {"text.transformer.pooler.dense.weight", "text.transformer.pooler.dense.bias"}
    model, processor = load_model(str(tmp_path / "tier"))
    texts = tokens(processor)
    with torch.no_grad():
        image, token_embeds = theirs.encode_image(pixels), theirs.encode_text(texts["input_ids"])
        assert_same(model, texts, pixels, token_embeds, token_embeds[:, 0], image[:, 1:], image[:, 0])
        cosines = torch.nn.functional.cosine_similarity(image[:, :1], token_embeds[None, :, 0], dim=-1)
        logits = model(**texts, pixel_values=pixels).logits_per_image
    torch.testing.assert_close(logits, cosines * np.exp(3.4), rtol=1e-5, atol=1e-4)


def test_the_bias_of_a_sigmoid_loss_is_kept(tmp_path, pixels, openai_tokenizer):
    theirs, pixels = with_plain_gelu(randomize(OpenaiClip())), pixels[..., :32, :32]
    theirs.logit_bias = torch.nn.Parameter(torch.tensor(-9.5))
    folder = write_open_clip(tmp_path / "model", theirs, NATIVE, "open_clip_model.safetensors")
    model, processor = conversion.open_clip(str(folder), openai_tokenizer)
    with torch.no_grad():
        image, text = theirs.visual(pixels)[:, 0], theirs.encode_text(tokens(processor)["input_ids"])[1]
        cosines = torch.nn.functional.cosine_similarity(image[:, None], text[None], dim=-1)
        logits = model(**tokens(processor), pixel_values=pixels).logits_per_image
    torch.testing.assert_close(logits, cosines * theirs.logit_scale.exp() - 9.5, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_pictures_are_those_of_its_configuration(tmp_path, openai_tokenizer, mode):
    """open_clip's evaluation transform, in Pillow: resize, crop where the shorter side was resized, normalise."""
    preprocessing = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear", "resize_mode": mode}
    model = randomize(OpenaiClip())
    folder = write_open_clip(tmp_path / "m", model, NATIVE, "open_clip_model.safetensors", **preprocessing)
    _, processor = conversion.open_clip(str(folder), openai_tokenizer)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 100), dtype=np.uint8))
    if mode == "squash":
        resized = picture.resize((32, 32), Image.Resampling.BILINEAR)
    else:
        resized = picture.resize((45, 32), Image.Resampling.BILINEAR).crop((6, 0, 38, 32))
    expected = torch.tensor(np.asarray(resized.convert("RGB")) / 255.0)
    expected = (expected - torch.tensor([0.4, 0.5, 0.6])) / torch.tensor([0.2, 0.3, 0.4])
    actual = processor(images=picture)["pixel_values"][0].permute(1, 2, 0)
    torch.testing.assert_close(actual, expected.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("tower", "change", "message"),
    [
        ("vision_cfg", {"pool_type": "avg"}, "pool_type='avg'; only 'tok'"),
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, "CLIP's ResNet"),
        ("vision_cfg", {"layers": 10**9}, "says 1000000000 layers, and the weights of visual.transformer have 2"),
        ("vision_cfg", {"width": 10**12}, "No model can be made of the source.s configuration"),
        ("vision_cfg", {"width": "wide"}, "does not describe a model"),
        ("vision_cfg", {"head_width": 0}, "does not describe a model.*ZeroDivisionError"),
        ("vision_cfg", {"patch_size": None}, "does not describe a model|No model can be made"),
        ("text_cfg", {"width": 10**9, "heads": 1}, "No model can be made"),
        ("text_cfg", {"layers": 3}, "says 3 layers, and the weights of transformer have 2"),
        ("vision_cfg", {"image_size": [32, 64]}, "only squares"),
        ("vision_cfg", {"timm_model_name": "convnext_base"}, "timm's 'convnext_base'"),
        ("vision_cfg", {"timm_model_name": "vit_base_patch16_224", "timm_pool": "map"}, "timm_pool is 'map'"),
        ("text_cfg", {"no_causal_mask": True}, "no_causal_mask=True.*siglip"),
        ("text_cfg", {"hf_model_name": "roberta", "hf_pooler_type": "mean_pooler"}, "pooled by 'mean_pooler'"),
        ("text_cfg", {"vocab_size": 23}, "end token must be the last of the model's 23"),
        ("preprocess_cfg", {"resize_mode": "longest"}, "resized by 'longest'"),
    ],
)
def test_what_cannot_be_converted_is_told(tmp_path, openai_tokenizer, tower, change, message):
    architecture = json.loads(json.dumps(NATIVE))
    if tower != "preprocess_cfg":
        architecture[tower] |= change
    options = change if tower == "preprocess_cfg" else {}
    model = randomize(OpenaiClip())
    folder = write_open_clip(tmp_path / "m", model, architecture, "open_clip_model.safetensors", **options)
    with pytest.raises(ValueError, match=message):
        conversion.open_clip(str(folder), openai_tokenizer)


@pytest.mark.parametrize("content", ["[]", "{", '{"model_cfg": {"embed_dim": 3}}', '{"model_cfg": 1}'])
def test_a_damaged_configuration_is_named(tmp_path, openai_tokenizer, content):
    (tmp_path / "open_clip_config.json").write_text(content)
    with pytest.raises(ValueError, match="open_clip_config.json in .* does not describe a model"):
        conversion.open_clip(str(tmp_path), openai_tokenizer)
    (tmp_path / "open_clip_config.json").unlink()
    with pytest.raises(ValueError, match="There is no open_clip_config.json"):
        conversion.open_clip(str(tmp_path), openai_tokenizer)
