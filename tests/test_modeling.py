# Licensed under the Apache License, Version 2.0.
"""TierModel against CLIPModel and against plain formulas, and as a citizen of transformers."""

import json
import logging

import pytest
import torch
from conftest import EOS, TEXT_CONFIGS, VISION_CONFIGS, make_inputs, tier_config
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, CLIPModel, ResNetModel, SiglipConfig, SiglipModel, ViTModel

from modeling_tier import TierConfig, TierModel, TierOutput, text_image_entropy


PAIRS_OF_ENCODERS = [("clip", vision) for vision in VISION_CONFIGS] + [
    (text, vision) for text in TEXT_CONFIGS if text != "clip" for vision in ("vit", "resnet")
]


def build(text="clip", vision="clip", **options) -> TierModel:
    torch.manual_seed(0)
    return TierModel(tier_config(text, vision, **options)).eval()


# CLIP parity


def test_clip_parity_of_logits_loss_and_every_gradient(clip_model, inputs, tmp_path):
    clip_model.save_pretrained(tmp_path)
    model = TierModel.from_clip(str(tmp_path), lambda_token=0.0, lambda_patch=0.0).eval()
    assert model.state_dict().keys() == clip_model.state_dict().keys()
    ours, theirs = model(**inputs, return_loss=True), clip_model(**inputs, return_loss=True)
    for name in ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds", "loss"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-5, atol=1e-5)
    assert ours.token_entropy is None and ours.patch_entropy is None
    ours.loss.backward(), theirs.loss.backward()
    gradients = {name: p.grad for name, p in clip_model.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-5, atol=1e-5, msg=name)


def test_clip_features_agree(clip_model, inputs, tmp_path):
    clip_model.save_pretrained(tmp_path)
    model = TierModel.from_clip(str(tmp_path)).eval()
    text = {k: v for k, v in inputs.items() if k != "pixel_values"}
    torch.testing.assert_close(
        model.get_text_features(**text).pooler_output, clip_model.get_text_features(**text).pooler_output
    )
    torch.testing.assert_close(
        model.get_image_features(inputs["pixel_values"]).pooler_output,
        clip_model.get_image_features(inputs["pixel_values"]).pooler_output,
    )


def test_from_clip_finds_the_end_token_of_old_checkpoints(clip_model, inputs, tmp_path):
    """Their configuration says eos_token_id 2, and the end token is the one with the highest id."""
    clip_model.config.text_config.eos_token_id = clip_model.text_model.eos_token_id = 2
    clip_model.save_pretrained(tmp_path)
    model = TierModel.from_clip(str(tmp_path), lambda_token=0.0, lambda_patch=0.0).eval()
    torch.testing.assert_close(model(**inputs).logits_per_image, clip_model(**inputs).logits_per_image)


def texts_that_end_with(end: int, padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Five texts of 3 to 7 tokens from 10 to 89, each ended by `end`, with the position of each end."""
    generator, lengths = torch.Generator().manual_seed(2), torch.tensor([3, 4, 5, 6, 7])
    ids = torch.randint(10, 90, (5, 8), generator=generator)
    for row, length in zip(ids, lengths):
        row[length], row[length + 1 :] = end, padding
    return ids, lengths


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize(
    ("named", "end", "padding"),
    [
        (EOS, EOS, EOS),  # CLIP: padded with the end token
        (EOS, EOS, 1),
        (2, 2, 1),  # RoBERTa's and XLM-V's order of special tokens
        (2, 2, 2),
        (2, EOS, EOS),  # CLIP's first checkpoints, whose end token is the last of the vocabulary
        (2, EOS, 0),
        ([7, EOS], EOS, 1),
    ],
)
def test_a_text_is_pooled_at_its_end_token(named, end, padding, with_mask):
    model = build()
    model.config.text_config.eos_token_id, model.config.text_config.pad_token_id = named, 1
    ids, ends = texts_that_end_with(end, padding)
    mask = (torch.arange(8) <= ends[:, None]).long() if with_mask else None
    text = model.encode_text(ids, mask)
    torch.testing.assert_close(text.embeds, text.local_embeds[torch.arange(5), ends])


@pytest.mark.parametrize("end", [2, EOS])
def test_a_text_that_was_cut_before_its_end_token_is_pooled_at_its_last_one(end):
    model = build()
    model.config.text_config.eos_token_id = end
    ids = torch.tensor([[0, 60, 50, 40], [0, 60, 51, 1]])
    text = model.encode_text(ids, torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]))
    torch.testing.assert_close(text.embeds, text.local_embeds[[0, 1], [3, 2]])
    assert (text.embeds[0] - text.embeds[1]).abs().max() > 1e-3


@pytest.mark.parametrize("mark", ["#", "padding that counts", "highest id within the text"])
def test_clip_parity_of_old_checkpoints_in_odd_texts(clip_model, inputs, mark, tmp_path):
    """An id 2 within a text is a plain token there, as in "#2 pencil"."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if mark == "#":
        ids[:, 2] = ids[0, 5] = 2
    elif mark == "padding that counts":
        mask = None
    else:
        ids[1, 3] = EOS
    clip_model.config.text_config.eos_token_id = clip_model.text_model.eos_token_id = 2
    clip_model.save_pretrained(tmp_path)
    model = TierModel.from_clip(str(tmp_path)).eval()
    torch.testing.assert_close(
        model.get_text_features(ids, mask).pooler_output,
        clip_model.get_text_features(ids, mask).pooler_output,
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize("make", ["from_clip", "from_encoders"])
def test_a_mistyped_option_is_an_error_before_anything_is_loaded(make):
    arguments = ["no-such-model"] * (1 if make == "from_clip" else 2)
    with pytest.raises(ValueError, match="'lambda_tokens': did you mean 'lambda_token'"):
        getattr(TierModel, make)(*arguments, lambda_tokens=0.5)


def test_from_clip_refuses_other_models_and_options(clip_model, tmp_path):
    clip_model.save_pretrained(tmp_path / "clip")
    build().save_pretrained(tmp_path / "tier")
    with pytest.raises(ValueError, match="from_pretrained"):
        TierModel.from_clip(str(tmp_path / "tier"))
    with pytest.raises(ValueError, match="projection_dim"):
        TierModel.from_clip(str(tmp_path / "clip"), projection_dim=8)


def test_from_clip_refuses_incomplete_weights(clip_model, tmp_path):
    clip_model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="text_projection.weight"):
        TierModel.from_clip(str(tmp_path))


# The loss


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_loss_is_the_weighted_sum(inputs, scale):
    model = build(lambda_token=0.3, lambda_patch=0.7)
    out = model(**inputs, return_loss=True, entropy_scale=scale)
    expected = text_image_entropy(out.token_embeds, out.patch_embeds, inputs["attention_mask"])
    torch.testing.assert_close((out.token_entropy, out.patch_entropy), tuple(expected))
    logits = out.logits_per_image.double()
    targets = torch.arange(len(logits))
    contrastive = -(logits.log_softmax(0)[targets, targets] + logits.log_softmax(1)[targets, targets]).mean() / 2
    torch.testing.assert_close(out.contrastive_loss.double(), contrastive, rtol=1e-5, atol=1e-6)
    total = contrastive + scale * (0.3 * expected.token + 0.7 * expected.patch)
    torch.testing.assert_close(out.loss.double(), total, rtol=1e-5, atol=1e-6)


def test_nothing_of_the_entropy_is_computed_unless_needed(inputs, monkeypatch):
    calls = []
    counting = lambda *args: calls.append(1) or text_image_entropy(*args)  # noqa: E731
    monkeypatch.setattr("modeling_tier.modeling_tier.text_image_entropy", counting)
    model, plain = build(), build(lambda_token=0.0, lambda_patch=0.0)
    model(**inputs)
    plain(**inputs, return_loss=True)
    model(**inputs, return_loss=True, entropy_scale=0.0)
    assert not calls
    diagnostic = plain(**inputs, return_loss=True, output_entropy=True)
    assert len(calls) == 1 and diagnostic.token_entropy > 0 and diagnostic.loss == diagnostic.contrastive_loss
    assert model(**inputs, output_entropy=True).patch_entropy > 0
    assert model(**inputs, return_loss=True).loss > 0
    assert len(calls) == 3


@pytest.mark.parametrize("vision", ["clip", "resnet"])
def test_one_pass_of_each_encoder_and_one_projection(inputs, vision):
    model = build("bert", vision, image_pooling="mean", projection="mlp")
    calls = {}
    for name in ("text_model", "vision_model", "text_projection", "visual_projection"):
        count = lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1})  # noqa: E731
        getattr(model, name).register_forward_hook(count)
    model(**inputs, return_loss=True)
    assert calls == {"text_model": 1, "vision_model": 1, "text_projection": 1, "visual_projection": 1}


def test_padding_changes_nothing(inputs):
    model = build(lambda_token=0.3, lambda_patch=0.3)
    padded = dict(inputs)
    padded["input_ids"] = nn.functional.pad(inputs["input_ids"], (0, 4), value=EOS)
    padded["attention_mask"] = nn.functional.pad(inputs["attention_mask"], (0, 4))
    plain, longer = (model(**x, return_loss=True) for x in (inputs, padded))
    for name in ("loss", "token_entropy", "patch_entropy", "logits_per_image"):
        torch.testing.assert_close(getattr(plain, name), getattr(longer, name), rtol=1e-5, atol=1e-5)


def test_special_tokens_can_be_excluded(inputs):
    model = build(count_special_tokens=False)
    out = model(**inputs, output_entropy=True)
    mask = inputs["attention_mask"].bool() & (inputs["input_ids"] != 0) & (inputs["input_ids"] != EOS)
    expected = text_image_entropy(out.token_embeds, out.patch_embeds, mask)
    torch.testing.assert_close((out.token_entropy, out.patch_entropy), tuple(expected))
    assert out.token_entropy != build()(**inputs, output_entropy=True).token_entropy


def test_pairs_that_do_not_match_are_refused(inputs):
    model = build()
    fewer = {**inputs, "pixel_values": inputs["pixel_values"][:2]}
    assert model(**fewer).logits_per_image.shape == (2, 4)
    for options in ({"return_loss": True}, {"output_entropy": True}):
        with pytest.raises(ValueError, match="2 images and 4 texts"):
            model(**fewer, **options)
    with pytest.raises(ValueError, match="pixel_values"):
        model(input_ids=inputs["input_ids"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"input_ids": torch.full((4, 7), 99)}, "token id 99 is outside.*0 to 98"),
        ({"input_ids": torch.full((4, 7), -1)}, "token id -1 is outside"),
        ({"input_ids": torch.zeros(4, 25, dtype=torch.int64)}, "25 tokens.*at most 24"),
        ({"input_ids": torch.zeros(4, 0, dtype=torch.int64)}, "at least one token"),
        ({"input_ids": torch.zeros(0, 7, dtype=torch.int64)}, "at least one text"),
        ({"input_ids": torch.zeros(7, dtype=torch.int64)}, r"shape \(M, T\)"),
        ({"input_ids": torch.zeros(4, 7)}, "integers.*float32"),
        ({"attention_mask": torch.ones(4, 6)}, "attention_mask"),
        ({"pixel_values": torch.zeros(4, 3, 32, 32, dtype=torch.uint8)}, "floating point.*uint8.*processor"),
        ({"pixel_values": torch.zeros(0, 3, 32, 32)}, "at least one image"),
        ({"pixel_values": torch.zeros(4, 3, 0, 32)}, r"\(4, 3, 0, 32\)"),
        ({"pixel_values": torch.zeros(4, 1, 32, 32)}, r"shape \(N, 3, H, W\)"),
        ({"pixel_values": torch.zeros(3, 32, 32)}, r"shape \(N, 3, H, W\)"),
    ],
)
def test_inputs_that_cannot_be_embedded_are_named(inputs, changed, message):
    inputs = {**inputs, **changed}
    if "attention_mask" not in changed:
        inputs["attention_mask"] = None
    with pytest.raises(ValueError, match=message):
        build()(**inputs)


# Encoders, projections and pooling


@pytest.mark.parametrize("projection", ["linear", "mlp"])
@pytest.mark.parametrize(("text", "vision"), PAIRS_OF_ENCODERS)
def test_any_two_encoders(inputs, text, vision, projection):
    model = build(text, vision, image_pooling="mean", projection=projection).train()
    out = model(**inputs, return_loss=True)
    assert out.token_embeds.shape == (4, 7, 16) and out.patch_embeds.shape == (4, 16, 16)
    out.loss.backward()
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused, "DistributedDataParallel needs a gradient for every parameter that trains"


@pytest.mark.parametrize("vision", ["clip", "siglip", "vit", "dinov2_with_registers", "resnet", "convnext"])
@pytest.mark.parametrize("projection", ["linear", "mlp"])
def test_patches_take_the_way_of_the_global_embedding(inputs, vision, projection):
    """With mean pooling the global embedding is the mean of the projected patches."""
    model = build("bert", vision, image_pooling="mean", projection=projection)
    encoder = model.vision_model(pixel_values=inputs["pixel_values"])
    hidden = encoder.last_hidden_state
    hidden = hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden[:, hidden.shape[1] - 16 :]
    if vision == "clip":
        hidden = model.vision_model.post_layernorm(hidden)
    if vision == "convnext":
        hidden = model.vision_model.layernorm(hidden)
    patches = torch.stack([model.visual_projection(hidden[:, [p]])[:, 0] for p in range(16)], dim=1)
    out = model(**inputs)
    torch.testing.assert_close(out.vision_model_output.pooler_output, patches.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.patch_embeds, nn.functional.normalize(patches, dim=-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("text", ["bert", "roberta"])
def test_the_token_that_stands_for_the_text(inputs, text):
    out = build(text, "vit")(**inputs)
    torch.testing.assert_close(out.text_embeds, out.token_embeds[:, 0])


def test_paper_heads_have_the_papers_layers():
    model = build("bert", "resnet", image_pooling="mean", projection="mlp")
    assert [type(m) for m in model.visual_projection] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert model.visual_projection[0].bias is None
    assert [type(m) for m in model.text_projection] == [nn.Linear, nn.GELU, nn.LayerNorm, nn.Linear]


def test_from_encoders(tmp_path, inputs):
    torch.manual_seed(1)
    vision = ViTModel(VISION_CONFIGS["vit"])  # with its pooling head, which has no place in TIER
    text = AutoModel.from_config(TEXT_CONFIGS["bert"])
    text.save_pretrained(tmp_path)
    model = TierModel.from_encoders(vision, str(tmp_path), projection_dim=8, lambda_token=0.5).eval()
    assert model.config.lambda_token == 0.5 and model(**inputs).text_embeds.shape == (4, 8)
    expected = vision.eval()(pixel_values=inputs["pixel_values"]).last_hidden_state
    torch.testing.assert_close(model.vision_model(pixel_values=inputs["pixel_values"]).last_hidden_state, expected)
    resnet = TierModel.from_encoders(ResNetModel(VISION_CONFIGS["resnet"]), text, image_pooling="mean")
    assert resnet(**inputs).patch_embeds.shape == (4, 16, 512)


def test_another_image_size(inputs):
    """Grids follow the picture, rows first."""
    model = build("clip", "resnet", image_pooling="mean")
    maps = model.get_similarity_map(torch.randn(4, 3, 48, 64), inputs["input_ids"], inputs["attention_mask"])
    assert maps.text_to_patch.shape == (4, 6, 8)
    model = build()
    out = model(inputs["input_ids"], torch.randn(4, 3, 48, 32), interpolate_pos_encoding=True)
    assert out.patch_embeds.shape == (4, 24, 16)


# SigLIP


SIGLIP = {"projection": "siglip", "image_pooling": "attention", "projection_dim": 32, "logit_bias_init_value": -10.0}


@pytest.fixture
def siglip_model() -> SiglipModel:
    """With random biases too, which start at 0."""
    torch.manual_seed(0)
    config = SiglipConfig(text_config=TEXT_CONFIGS["siglip"], vision_config=VISION_CONFIGS["siglip"])
    model = SiglipModel(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def from_siglip(siglip_model, **options) -> TierModel:
    heads = {"text_model.head.": "text_projection.", "vision_model.head.": "visual_projection."}
    weights = {}
    for name, tensor in siglip_model.state_dict().items():
        head = next((head for head in heads if name.startswith(head)), "")
        weights[heads.get(head, "") + name.removeprefix(head)] = tensor
    weights["logit_scale"] = weights["logit_scale"].squeeze()
    model = build("siglip", "siglip", **SIGLIP, **options)
    model.load_state_dict(weights)
    return model


def full_length(inputs) -> torch.Tensor:
    """The ids as SigLIP was trained: padded to 24 positions with its padding token, 1."""
    ids = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 1)
    return nn.functional.pad(ids, (0, 24 - ids.shape[1]), value=1)


def test_siglip_parity_of_embeddings_and_logits(siglip_model, inputs):
    model = from_siglip(siglip_model)
    ours, theirs = model(**inputs), siglip_model(full_length(inputs), inputs["pixel_values"])
    for name in ("text_embeds", "image_embeds", "logits_per_image", "logits_per_text"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-5, atol=1e-5)
    for name in ("text_model_output", "vision_model_output"):
        torch.testing.assert_close(ours[name].pooler_output, theirs[name].pooler_output, rtol=1e-5, atol=1e-5)
    assert ours.token_embeds.shape == (4, 7, 32)
    states = theirs.text_model_output.last_hidden_state[:, :7]
    expected = nn.functional.normalize(siglip_model.text_model.head(states), dim=-1)
    torch.testing.assert_close(ours.token_embeds, expected, rtol=1e-5, atol=1e-5)


def test_a_patch_goes_through_siglips_head_alone(siglip_model, inputs):
    states = siglip_model.vision_model(inputs["pixel_values"]).last_hidden_state
    expected = torch.stack([siglip_model.vision_model.head(states[:, [p]]) for p in range(16)], dim=1)
    out = from_siglip(siglip_model)(**inputs)
    torch.testing.assert_close(out.patch_embeds, nn.functional.normalize(expected, dim=-1), rtol=1e-5, atol=1e-5)


def test_padding_of_the_batch_changes_nothing_for_siglips_text(siglip_model, inputs):
    model = from_siglip(siglip_model, count_special_tokens=False, special_token_ids=[0])
    longer = dict(inputs)
    longer["input_ids"] = nn.functional.pad(inputs["input_ids"], (0, 17), value=5)
    longer["attention_mask"] = nn.functional.pad(inputs["attention_mask"], (0, 17))
    alone = {name: value[[2]] for name, value in inputs.items()}
    alone |= {name: alone[name][:, :5] for name in ("input_ids", "attention_mask")}  # without any padding
    plain, padded, single = (model(**x, return_loss=True) for x in (inputs, longer, alone))
    for name in ("loss", "token_entropy", "patch_entropy", "logits_per_image"):
        torch.testing.assert_close(getattr(plain, name), getattr(padded, name), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(plain.text_embeds[2], single.text_embeds[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(plain.token_embeds[2, :5], single.token_embeds[0], rtol=1e-5, atol=1e-5)
    assert padded.token_embeds.shape == (4, 24, 32)
    maps = model.get_similarity_map(inputs["pixel_values"], inputs["input_ids"], inputs["attention_mask"])
    assert maps.token_to_patch.shape == (4, 7, 4, 4) and (maps.token_to_patch[2, 5:] == 0).all()


def test_siglips_text_has_an_end(inputs):
    model = build("siglip", "vit")
    with pytest.raises(ValueError, match="25 tokens.*at most 24"):
        model.get_text_features(torch.ones(1, 25, dtype=torch.int64))
    with pytest.raises(ValueError, match="position_ids"):
        model.get_text_features(inputs["input_ids"], position_ids=torch.arange(7)[None])


def test_a_logit_bias_changes_the_logits_alone(inputs):
    model, plain = build(logit_bias_init_value=-10), build()
    assert model.logit_bias.shape == (1,) and plain.logit_bias is None
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if name != "logit_bias"})
    out, expected = model(**inputs, return_loss=True), plain(**inputs, return_loss=True)
    torch.testing.assert_close(out.logits_per_image, expected.logits_per_image - 10)
    torch.testing.assert_close(out.logits_per_text, expected.logits_per_text - 10)
    torch.testing.assert_close(out.loss, expected.loss)


def test_all_of_siglip_trains_but_the_bias(siglip_model, inputs, tmp_path):
    from_siglip(siglip_model).save_pretrained(tmp_path)
    for model in (from_siglip(siglip_model), TierModel.from_pretrained(tmp_path)):
        model.train()(**inputs, return_loss=True).loss.backward()
        without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        assert without == {"logit_bias"} == {n for n, p in model.named_parameters() if not p.requires_grad}


def test_what_never_trains_stays_frozen_after_loading(inputs, tmp_path):
    build("bert", "dinov2").save_pretrained(tmp_path)
    model, _ = TierModel.from_pretrained(tmp_path, output_loading_info=True)
    model(**inputs, return_loss=True).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == ["vision_model.embeddings.mask_token"]
    assert not model.vision_model.embeddings.mask_token.requires_grad


def test_new_siglip_heads_start_as_transformers_does():
    torch.manual_seed(0)
    model = build("siglip", "siglip", **SIGLIP)
    assert model.logit_bias.item() == -10
    head = model.visual_projection
    assert 0 < head.probe.std() < 1 and (head.attention.in_proj_bias == 0).all()
    assert model.text_projection.weight.std().item() == pytest.approx(32**-0.5, rel=0.1)
    assert (model.text_projection.bias == 0).all()


# Similarity maps


def test_similarity_map(inputs):
    model = build("bert", "resnet", image_pooling="mean")
    out = model(**inputs)
    token_map, text_map = model.get_similarity_map(
        inputs["pixel_values"], inputs["input_ids"], inputs["attention_mask"]
    )
    assert token_map.shape == (4, 7, 4, 4) and text_map.shape == (4, 4, 4)
    cosine = lambda a, b: nn.functional.cosine_similarity(a, b, dim=-1)  # noqa: E731
    torch.testing.assert_close(text_map[1, 2, 3], cosine(out.text_embeds[1], out.patch_embeds[1, 2 * 4 + 3]))
    torch.testing.assert_close(token_map[3, 5, 1, 0], cosine(out.token_embeds[3, 5], out.patch_embeds[3, 4]))
    assert (token_map[2, 5:] == 0).all(), "padding has no map"
    assert not token_map.requires_grad


def test_similarity_map_is_in_the_pictures_order():
    """A bright square in one corner changes the map in that corner, and nowhere far from it."""
    model = build("bert", "resnet", image_pooling="mean")
    ids = torch.tensor([[1, 2, 3]])
    dark, bright = torch.zeros(1, 3, 128, 128), torch.zeros(1, 3, 128, 128)
    bright[:, :, :8, -8:] = 5.0  # top right
    change = (model.get_similarity_map(bright, ids)[1] - model.get_similarity_map(dark, ids)[1])[0].abs()
    assert change.shape == (16, 16)
    assert change[:4, 12:].max() > 1e-3 and change[8:].max() < 1e-6 and change[:, :8].max() < 1e-6


def test_similarity_map_of_one_image_and_many_texts(inputs):
    model = build()
    one = model.get_similarity_map(inputs["pixel_values"][:1], inputs["input_ids"], inputs["attention_mask"])
    repeated = model.get_similarity_map(
        inputs["pixel_values"][:1].repeat(4, 1, 1, 1), inputs["input_ids"], inputs["attention_mask"]
    )
    torch.testing.assert_close(one, repeated)
    with pytest.raises(ValueError, match="3 images and 4 texts"):
        model.get_similarity_map(inputs["pixel_values"][:3], inputs["input_ids"])


def test_similarity_map_on_pixels(inputs):
    model = build()
    maps = model.get_similarity_map(inputs["pixel_values"], inputs["input_ids"], size=(32, 32))
    assert maps.token_to_patch.shape == (4, 7, 32, 32) and maps.text_to_patch.shape == (4, 32, 32)
    coarse = model.get_similarity_map(inputs["pixel_values"], inputs["input_ids"])
    expected = nn.functional.interpolate(coarse.text_to_patch[:, None], size=(32, 32), mode="bilinear")[:, 0]
    torch.testing.assert_close(maps.text_to_patch, expected)


@pytest.mark.parametrize(
    ("text", "vision", "projection"),
    [("bert", "resnet", "linear"), ("clip", "vit", "mlp"), ("bert", "clip", "linear")],
)
def test_contributions_of_the_patches_sum_to_the_score(inputs, text, vision, projection):
    """Each is <z_p, t> / (P |v|), of the unnormalised patch and the unit text."""
    model = build(text, vision, image_pooling="mean", projection=projection).double()
    inputs = inputs | {"pixel_values": inputs["pixel_values"].double()}
    out = model(**inputs, output_patch_weights=True)
    maps = model.get_similarity_map(**inputs, kind="contribution")
    scores = (out.text_embeds * out.image_embeds).sum(dim=1)
    torch.testing.assert_close(maps.text_to_patch.sum(dim=(1, 2)), scores, rtol=1e-9, atol=1e-12)

    patches = model.encode_image(inputs["pixel_values"]).local_embeds  # (N, P, D)
    expected = torch.einsum("npd,ntd->ntp", patches, out.token_embeds)
    expected = expected / (patches.shape[1] * patches.mean(dim=1).norm(dim=1)[:, None, None])
    expected = expected * inputs["attention_mask"].unsqueeze(2)
    torch.testing.assert_close(maps.token_to_patch.flatten(2), expected, rtol=1e-9, atol=1e-12)
    cosines = (out.patch_embeds @ out.text_embeds.unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(cosines * out.patch_weights, maps.text_to_patch.flatten(1), rtol=1e-9, atol=1e-12)


def test_contributions_are_only_of_a_score_that_is_a_sum(inputs):
    for model, reason in ((build(), "class token"), (build("siglip", "siglip", **SIGLIP), "perceptron")):
        with pytest.raises(ValueError, match=reason):
            model.get_similarity_map(**inputs, kind="contribution")
    with pytest.raises(ValueError, match="kind must be one of 'cosine', 'contribution'; got 'cosines'"):
        build().get_similarity_map(**inputs, kind="cosines")


# A citizen of transformers


@pytest.mark.parametrize(("text", "vision"), [("clip", "clip"), ("bert", "resnet"), ("siglip", "siglip")])
@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"])
def test_save_and_load(tmp_path, inputs, text, vision, max_shard_size):
    heads = {"image_pooling": "mean", "projection": "mlp"}
    model = build(text, vision, **(SIGLIP if text == "siglip" else heads))
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (max_shard_size == "20KB")
    loaded, info = TierModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(
        loaded.eval()(**inputs).logits_per_image, model(**inputs).logits_per_image, rtol=0, atol=0
    )


@pytest.mark.parametrize("change", ["missing", "surplus"])
def test_weights_that_are_not_those_of_the_model_are_listed(tmp_path, change):
    """transformers draws missing weights at random, and says so in a warning."""
    build().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    if change == "missing":
        del weights["text_projection.weight"]
    else:
        weights["text_projection.bias"] = torch.zeros(16)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{change}: text_projection"):
        TierModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{change}: text_projection"):
        AutoModel.from_pretrained(tmp_path)
    _, info = TierModel.from_pretrained(tmp_path, output_loading_info=True)
    assert len([*info["missing_keys"], *info["unexpected_keys"]]) == 1


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path, value, dtype):
    build().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["visual_projection.weight"].fill_(60_000.0)  # finite in float16, unlike their sum
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    TierModel.from_pretrained(tmp_path, dtype=dtype)
    weights["text_projection.weight"][3, 2] = value
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for load in (TierModel.from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(ValueError, match="hold NaN or infinite values: text_projection.weight. Their training"):
            load(tmp_path, dtype=dtype)


@pytest.mark.parametrize("outside", ["../secret/model-00001-of-00002.safetensors", "/secret.safetensors"])
def test_an_index_of_weights_stays_in_its_folder(tmp_path, outside):
    build().save_pretrained(tmp_path / "model", max_shard_size="20KB")
    index = tmp_path / "model" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["logit_scale"] = outside
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="must lie beside their index"):
        TierModel.from_pretrained(tmp_path / "model")


def test_weights_load_back_into_clip(clip_model, inputs, tmp_path):
    clip_model.save_pretrained(tmp_path / "clip")
    model = TierModel.from_clip(str(tmp_path / "clip")).eval()
    clip = CLIPModel(clip_model.config).eval()
    clip.load_state_dict(model.state_dict())
    torch.testing.assert_close(clip(**inputs).logits_per_image, model(**inputs).logits_per_image)


def test_device_map(tmp_path, inputs):
    model = build()
    model.save_pretrained(tmp_path)
    loaded = TierModel.from_pretrained(tmp_path, device_map={"": "cpu"}).eval()
    torch.testing.assert_close(loaded(**inputs).logits_per_image, model(**inputs).logits_per_image)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("vision", VISION_CONFIGS)
def test_pixels_of_any_precision_suit_weights_of_any_precision(tmp_path, inputs, vision, dtype):
    build("bert", vision, image_pooling="mean").save_pretrained(tmp_path)
    model = TierModel.from_pretrained(tmp_path, dtype=dtype).eval()
    assert inputs["pixel_values"].dtype == torch.float32
    expected = model(**{**inputs, "pixel_values": inputs["pixel_values"].to(model.dtype)}).logits_per_image
    torch.testing.assert_close(model(**inputs).logits_per_image, expected, rtol=0, atol=0)
    assert model(**inputs).logits_per_image.dtype == getattr(torch, dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(inputs, dtype):
    model = build().to(dtype)
    out = model(**{**inputs, "pixel_values": inputs["pixel_values"].to(dtype)}, return_loss=True)
    assert out.logits_per_image.dtype == dtype and out.token_entropy.dtype == torch.float32
    out.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    torch.testing.assert_close(out.token_entropy, build()(**inputs, return_loss=True).token_entropy, rtol=0, atol=2e-3)


def test_autocast(inputs):
    model = build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(**inputs, return_loss=True)
    assert out.token_entropy.dtype == out.patch_entropy.dtype == torch.float32
    assert torch.isfinite(out.loss)


def test_sdpa_and_eager_agree(tmp_path, inputs):
    build("bert", "vit").save_pretrained(tmp_path)
    outs = []
    for implementation in ("eager", "sdpa"):
        model = TierModel.from_pretrained(tmp_path, attn_implementation=implementation).eval()
        assert model.text_model.config._attn_implementation == implementation
        outs.append(model(**inputs).logits_per_image)
    torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-4)


def test_an_attention_that_one_encoder_lacks_is_applied_to_the_other(tmp_path, inputs, caplog):
    build("bert", "resnet", image_pooling="mean").save_pretrained(tmp_path)
    transformers_logger = logging.getLogger("transformers")
    transformers_logger.propagate = True
    try:
        with caplog.at_level("WARNING"):
            model = TierModel.from_pretrained(tmp_path, attn_implementation="sdpa")
    finally:
        transformers_logger.propagate = False
    assert model.text_model.config._attn_implementation == "sdpa"
    assert model.vision_model.config._attn_implementation == "eager"
    assert model(**inputs).logits_per_image.shape == (4, 4)
    assert [r.message for r in caplog.records if "resnet" in r.message]


@pytest.mark.parametrize(("text", "vision"), [("clip", "clip"), ("bert", "vit")])
def test_gradient_checkpointing(inputs, text, vision):
    gradients = []
    for checkpointing in (False, True):
        model = build(text, vision)
        if checkpointing:
            model.gradient_checkpointing_enable()
            model.train()
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        model(**inputs, return_loss=True).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-5, msg=name)


def test_frozen_layers_get_no_gradient(inputs):
    model = build("bert", "resnet", image_pooling="mean")
    model.text_model.requires_grad_(False)
    model(**inputs, return_loss=True).loss.backward()
    assert all(p.grad is None for p in model.text_model.parameters())
    assert all(p.grad is not None for p in model.vision_model.parameters())


def test_tuple_output(inputs):
    model = build()
    out = model(**inputs, return_loss=True)
    as_tuple = model(**inputs, return_loss=True, return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == len(out)
    torch.testing.assert_close(as_tuple[0], out.loss)
    assert list(out)[:4] == ["loss", "contrastive_loss", "token_entropy", "patch_entropy"]
    assert isinstance(out, TierOutput)


def test_hidden_states_and_attentions(tmp_path, inputs):
    build("bert", "vit").save_pretrained(tmp_path)
    model = TierModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    out = model(**inputs, output_hidden_states=True, output_attentions=True)
    for tower in (out.text_model_output, out.vision_model_output):
        assert len(tower.hidden_states) == 3 and len(tower.attentions) == 2
    assert model(**inputs).text_model_output.hidden_states is None


@pytest.mark.slow
def test_torch_compile_of_the_full_model(inputs):
    model = build(lambda_token=0.3)
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(compiled(**inputs, return_loss=True).loss, model(**inputs, return_loss=True).loss)


def test_resize_token_embeddings(inputs):
    model = build()
    model.resize_token_embeddings(120)
    assert model.config.text_config.vocab_size == 120 and model.get_input_embeddings().num_embeddings == 120
    assert model(**inputs).text_embeds.shape == (4, 16)


def test_new_projections_start_as_clips():
    torch.manual_seed(0)
    model = TierModel(TierConfig(text_config=TEXT_CONFIGS["clip"], vision_config=VISION_CONFIGS["clip"]))
    assert model.logit_scale.item() == pytest.approx(2.6592)
    for projection in (model.text_projection, model.visual_projection):
        assert projection.weight.std().item() == pytest.approx(32**-0.5, rel=0.05)


def test_an_integer_logit_scale_trains_too(inputs):
    model = build(logit_scale_init_value=3)
    model(**inputs, return_loss=True).loss.backward()
    assert model.logit_scale.grad is not None and model.logit_scale.item() == 3


def test_equal_inputs_give_equal_maps_in_any_batch():
    """What a pair gets does not depend on its neighbours in the batch."""
    model = build("bert", "vit")
    inputs = make_inputs(num_pairs=5, seed=3)
    together = model(**inputs).patch_embeds
    alone = torch.cat([model(**{k: v[[i]] for k, v in inputs.items()}).patch_embeds for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
