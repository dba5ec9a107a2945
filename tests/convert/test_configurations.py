# Licensed under the Apache License, Version 2.0.
"""
Published models that the converters of transformers' classes take as they are: their widths, patches, image sizes and
lengths, with fewer layers and words, and random weights.
"""

import io
import json

import pytest
import torch
from published import TEXTS, randomize, tokens, word_tokenizer
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from modeling_tier import TierModel, conversion
from modeling_tier.evaluation import load_model


LAYERS = {"num_hidden_layers": 2}
ENDS = {"vocab_size": 22, "bos_token_id": 2, "eos_token_id": 21, "pad_token_id": 1}

_B16 = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
_L16 = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
CLIP_MODELS = {
    "XrayCLIP, ViT-B/16": (
        {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "hidden_act": "gelu"},
        {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "patch_size": 16,
            "image_size": 224,
        },
        512,
    ),
    "XrayCLIP, ViT-L/14": (
        {**_B16, "hidden_act": "gelu"},
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "patch_size": 14,
            "image_size": 224,
        },
        768,
    ),
}
_SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16}
SIGLIP_MODELS = {
    "XraySigLIP, ViT-B/16, 512 px": (_B16, {"patch_size": 16, "image_size": 512}),
    "XraySigLIP, ViT-L/16, 384 px": (_L16, {"patch_size": 16, "image_size": 384}),
    "MedSigLIP, so400m, 448 px": (_SO400M, {"patch_size": 14, "image_size": 448}),
    "SigLIP 2, ViT-B/16, 224 px": (_B16, {"patch_size": 16, "image_size": 224}),
}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def unit(tensor: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(tensor, dim=-1)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLIP_MODELS)
def test_clip_models(tmp_path, name):
    text, vision, dimension = CLIP_MODELS[name]
    text = {**text, **LAYERS, **ENDS, "max_position_embeddings": 77}
    vision = {**vision, **LAYERS, "hidden_act": "gelu"}
    theirs = randomize(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=dimension)))
    theirs.save_pretrained(tmp_path / "source")
    size = vision["image_size"]
    image_processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    image_processor.save_pretrained(tmp_path / "source")
    word_tokenizer("<pad>", "<end>", model_max_length=77).save_pretrained(tmp_path / "source")
    conversion.convert("clip", tmp_path / "tier", model=str(tmp_path / "source"))
    model, processor = load_model(str(tmp_path / "tier"))
    inputs = {**tokens(processor), "pixel_values": torch.randn(1, 3, size, size)}
    with torch.no_grad():
        ours, expected = model(**inputs), theirs(**inputs)
        states = theirs.vision_model.post_layernorm(expected.vision_model_output.last_hidden_state[:, 1:])
        patches = theirs.visual_projection(states)
        token_embeds = theirs.text_projection(expected.text_model_output.last_hidden_state)
    for part in ("text_embeds", "image_embeds"):
        torch.testing.assert_close(ours[part], expected[part], **CLOSE)
    torch.testing.assert_close(ours.logits_per_image, expected.logits_per_image, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(ours.patch_embeds, unit(patches), **CLOSE)
    torch.testing.assert_close(ours.token_embeds, unit(token_embeds), **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIGLIP_MODELS)
def test_siglip_models(tmp_path, name):
    sizes, vision = SIGLIP_MODELS[name]
    text = {
        **sizes,
        **LAYERS,
        "vocab_size": 22,
        "max_position_embeddings": 64,
        "bos_token_id": None,
        "eos_token_id": 21,
    }
    theirs = randomize(SiglipModel(SiglipConfig(text_config=text, vision_config={**sizes, **LAYERS, **vision})))
    theirs.logit_scale.data.fill_(2.5), theirs.logit_bias.data.fill_(-9.0)
    theirs.save_pretrained(tmp_path / "source")
    size = vision["image_size"]
    SiglipImageProcessor(size={"height": size, "width": size}).save_pretrained(tmp_path / "source")
    # SigLIP pads by its end token, SigLIP 2 by one of its own.
    tokenizer = word_tokenizer("<pad>", "<end>") if name.startswith("SigLIP 2") else word_tokenizer("<end>", "<end>")
    tokenizer.save_pretrained(tmp_path / "source")
    conversion.convert("siglip", tmp_path / "tier", model=str(tmp_path / "source"))
    model, processor = load_model(str(tmp_path / "tier"))
    pixel_values = torch.randn(1, 3, size, size)
    full = tokenizer(TEXTS, padding="max_length", max_length=64, return_tensors="pt").input_ids
    with torch.no_grad():
        ours, expected = model(**tokens(processor), pixel_values=pixel_values), theirs(full, pixel_values)
        first = theirs.vision_model.head(expected.vision_model_output.last_hidden_state[:, :1])
    for part in ("text_embeds", "image_embeds"):
        torch.testing.assert_close(ours[part], expected[part], **CLOSE)
    torch.testing.assert_close(ours.logits_per_image, expected.logits_per_image, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(ours.patch_embeds[:, 0], unit(first), **CLOSE)
    assert processor(images=torch.zeros(40, 60))["pixel_values"].shape[2:] == (size, size)


VISION_ENCODERS = {
    "RAD-DINO": (Dinov2Model, Dinov2Config(**LAYERS, hidden_size=768, patch_size=14, image_size=518), 1),
    "DINOv2 with registers": (
        Dinov2WithRegistersModel,
        Dinov2WithRegistersConfig(**LAYERS, hidden_size=384, num_attention_heads=6, patch_size=14, image_size=224),
        5,
    ),
    "DINOv3": (
        DINOv3ViTModel,
        DINOv3ViTConfig(
            **LAYERS, hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_register_tokens=4
        ),
        5,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VISION_ENCODERS)
def test_image_encoders_with_a_bert(tmp_path, name):
    model_class, config, prefix = VISION_ENCODERS[name]
    vision, text = randomize(model_class(config)), randomize(BertModel(BertConfig(**LAYERS, vocab_size=50)))
    vision.save_pretrained(tmp_path / "vision"), text.save_pretrained(tmp_path / "text")
    model = TierModel.from_encoders(str(tmp_path / "vision"), str(tmp_path / "text"), projection_dim=32).eval()
    pixels, ids = torch.randn(1, 3, config.image_size, config.image_size), torch.randint(5, 50, (2, 9))
    with torch.no_grad():
        out = model(input_ids=ids, pixel_values=pixels)
        states, texts = vision(pixels).last_hidden_state, text(ids).last_hidden_state
        image = unit(model.visual_projection(states))
        tokens_of_text = unit(model.text_projection(texts))
    torch.testing.assert_close(out.image_embeds, image[:, 0], **CLOSE)
    torch.testing.assert_close(out.patch_embeds, image[:, prefix:], **CLOSE)
    torch.testing.assert_close(out.text_embeds, tokens_of_text[:, 0], **CLOSE)
    torch.testing.assert_close(out.token_embeds, tokens_of_text, **CLOSE)


def sentencepiece_folder(folder) -> None:
    """A SigLIP's tokenizer as XraySigLIP's repositories have it: spiece.model and no tokenizer.json."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model, sentences = io.BytesIO(), [*TEXTS, "there is no effusion", "left lower lobe"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    settings = {"tokenizer_class": "SiglipTokenizer", "model_input_names": ["input_ids"], "model_max_length": 64}
    settings |= {"pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def small_siglip(folder) -> SiglipModel:
    small = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 1}
    text = {**small, "vocab_size": 100, "max_position_embeddings": 64, "eos_token_id": 1, "bos_token_id": None}
    theirs = randomize(
        SiglipModel(SiglipConfig(text_config=text, vision_config={**small, "patch_size": 8, "image_size": 32}))
    )
    theirs.save_pretrained(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    sentencepiece_folder(folder)
    return theirs


def test_a_tokenizer_of_sentencepiece(tmp_path):
    theirs = small_siglip(tmp_path / "source")
    record = conversion.convert("siglip", tmp_path / "tier", model=str(tmp_path / "source"))
    assert "spiece.model" in [file["name"] for file in record.files]
    model, processor = load_model(str(tmp_path / "tier"))
    full = processor.tokenizer(TEXTS, padding="max_length", max_length=64, return_tensors="pt").input_ids
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        ours, expected = model(**tokens(processor), pixel_values=pixels), theirs(full, pixels)
    torch.testing.assert_close(ours.text_embeds, expected.text_embeds, **CLOSE)


def test_without_sentencepiece_a_message_says_what_to_install(tmp_path, monkeypatch):
    small_siglip(tmp_path / "source")
    needs_it = ImportError("SiglipTokenizer requires the SentencePiece library but it was not found")
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: (_ for _ in ()).throw(needs_it))
    with pytest.raises(ValueError, match=r"SentencePiece.*pip install 'modeling-tier\[sentencepiece\]'"):
        conversion.siglip(str(tmp_path / "source"))
