# Licensed under the Apache License, Version 2.0.
"""OpenAI's format, built here from plain torch, against what comes of it."""

import re

import pytest
import torch
from PIL import Image
from published import OpenaiClip, PublishedOpenaiClip, assert_same, randomize, tokens, with_plain_gelu
from torch import nn

from modeling_tier import conversion


pytest_plugins = ["tests.convert.fixtures"]


def as_published(model: nn.Module) -> nn.Module:
    """In half precision where OpenAI's archives are: convolutions, attention, linear layers and projections."""
    for name, parameter in model.named_parameters():
        if re.search(r"conv1|attn\.|mlp\.|proj$|text_projection", name):
            parameter.data = parameter.data.half()
    return model


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", ["state dict", "legacy state dict", "script", "trace"])
def test_openais_format_gives_the_same_embeddings_and_logits(tmp_path, pixels, openai_tokenizer, kind):
    path, pixels = tmp_path / "ViT-B-32.pt", pixels[..., :32, :32].contiguous()
    theirs = randomize(OpenaiClip())
    if kind.endswith("state dict"):
        torch.save(theirs.state_dict(), path, _use_new_zipfile_serialization="legacy" not in kind)
    else:
        published = PublishedOpenaiClip().eval()
        published.load_state_dict(theirs.state_dict(), strict=False)
        ids = torch.tensor([[2, 5, 21]])
        module = torch.jit.script(published) if kind == "script" else torch.jit.trace(published, (pixels, ids))
        as_published(module).save(path)
        theirs = as_published(theirs).float()
    record = conversion.Record()
    model, processor = conversion.openai(str(path), openai_tokenizer, record=record)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert len(record.unused) == (0 if kind.endswith("state dict") else 3)
    texts = tokens(processor)
    with torch.no_grad():
        image, (token_embeds, text) = theirs.visual(pixels), theirs.encode_text(texts["input_ids"])
        assert_same(model, texts, pixels, token_embeds, text, image[:, 1:], image[:, 0])
        logits = nn.functional.normalize(image[:, 0], dim=-1) @ nn.functional.normalize(text, dim=-1).T
        logits = logits * theirs.logit_scale.exp()
        torch.testing.assert_close(model(**texts, pixel_values=pixels).logits_per_image, logits, rtol=1e-5, atol=1e-4)
    assert processor.image_processor.resample == Image.Resampling.BICUBIC
    assert processor(images=Image.new("L", (50, 40)))["pixel_values"].shape == (1, 3, 32, 32)
    assert processor.tokenizer.model_max_length == 12


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_of_open_clips_trainer_needs_its_activation_said(tmp_path, pixels, openai_tokenizer, prefix):
    path, pixels = tmp_path / "epoch_32.pt", pixels[..., :32, :32].contiguous()
    theirs = with_plain_gelu(randomize(OpenaiClip()))
    weights = {prefix + name: tensor for name, tensor in theirs.state_dict().items()}
    torch.save({"epoch": 32, "name": "run", "state_dict": weights, "optimizer": {"state": {}}}, path)
    with pytest.raises(ValueError, match="epoch_32.pt is a checkpoint of a trainer.*--activation gelu"):
        conversion.openai(str(path), openai_tokenizer)
    with pytest.raises(ValueError, match="activation must be one of"):
        conversion.openai(str(path), openai_tokenizer, activation="relu")
    record = conversion.Record()
    model, processor = conversion.openai(str(path), openai_tokenizer, activation="gelu", record=record)
    with torch.no_grad():
        image, (_, text) = theirs.visual(pixels), theirs.encode_text(tokens(processor)["input_ids"])
        out = model(**tokens(processor), pixel_values=pixels)
    torch.testing.assert_close(out.image_embeds, nn.functional.normalize(image[:, 0], dim=-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.text_embeds, nn.functional.normalize(text, dim=-1), rtol=1e-5, atol=1e-5)
    assert record.unused.keys() == {"epoch", "name", "optimizer"} and not record.notes


def test_an_activation_that_was_taken_by_default_is_noted(tmp_path, openai_tokenizer):
    torch.save(randomize(OpenaiClip()).state_dict(), tmp_path / "model.pt")
    record = conversion.Record()
    conversion.openai(str(tmp_path / "model.pt"), openai_tokenizer, record=record)
    assert len(record.notes) == 1 and "--activation gelu" in record.notes[0]


def test_openai_lists_what_does_not_fit(tmp_path, openai_tokenizer):
    state = randomize(OpenaiClip()).state_dict()
    del state["transformer.resblocks.1.attn.in_proj_bias"]
    state["text_projection"] = torch.zeros(128, 9)
    state["visual.attn_pool"] = torch.zeros(1)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(ValueError) as error:
        conversion.openai(str(tmp_path / "model.pt"), openai_tokenizer)
    bias = "transformer.resblocks.1.attn.in_proj_bias"
    assert str(error.value) == (
        f"The weights do not fit the model. missing: {bias} (key), {bias} (value), {bias} (query); "
        "unknown: visual.attn_pool; "
        "of another shape: text_projection (transposed) (expected (16, 128), found (9, 128))."
    )
    with pytest.raises(ValueError, match="end token must be the last"):
        torch.save(randomize(OpenaiClip(vocabulary=30)).state_dict(), tmp_path / "model.pt")
        conversion.openai(str(tmp_path / "model.pt"), openai_tokenizer)
    torch.save({"visual.layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pt")
    with pytest.raises(ValueError, match="CLIP.s ResNet.*ViT"):
        conversion.openai(str(tmp_path / "resnet.pt"), openai_tokenizer)


def test_image_options_replace_the_image_processors(tmp_path, openai_tokenizer):
    torch.save(randomize(OpenaiClip()).state_dict(), tmp_path / "chexzero.pt")
    options = {"image_mean": [0.4, 0.4, 0.4], "image_std": [0.3, 0.3, 0.3]}
    _, processor = conversion.openai(str(tmp_path / "chexzero.pt"), openai_tokenizer, options)
    white = processor(images=Image.new("L", (40, 40), 255))["pixel_values"]
    torch.testing.assert_close(white, torch.full((1, 3, 32, 32), 2.0))
    with pytest.raises(ValueError, match="image_meen.*image_mean"):
        conversion.openai(str(tmp_path / "chexzero.pt"), openai_tokenizer, {"image_meen": 0.4})
    with pytest.raises(ValueError, match="cannot take what its processor makes"):
        conversion.openai(str(tmp_path / "chexzero.pt"), openai_tokenizer, {"crop_size": {"height": 48, "width": 48}})
