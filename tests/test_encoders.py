# Licensed under the Apache License, Version 2.0.
"""Every encoder that transformers maps: refused when the configuration is made, or it does what is promised."""

from dataclasses import fields

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, BertConfig, PreTrainedConfig, ViTConfig

from modeling_tier import TierConfig, TierModel
from modeling_tier.encoders_tier import max_text_length, unreached_parameters


QUICK_TEXT = ("bert", "roberta", "modernbert", "longformer", "squeezebert", "siglip_text_model", "roformer")
QUICK_VISION = ("vit", "deit", "dinov2", "chinese_clip_vision_model", "aimv2_vision_model", "regnet", "swinv2")

# Why each of these is refused by name was seen by these very tests.
REFUSED_TEXT = ("convbert", "fnet", "funnel", "mobilebert", "mra", "nystromformer", "reformer", "yoso")
REFUSED_VISION = ("glpn", "yolos", "pixtral", "hiera", "vit_mae", "siglip2_vision_model", "videomae", "segformer")

# These compute their positions, or clip them, and run beyond what they were made for.
RUN_ON = ("esmc", "eurobert", "gte", "jina_embeddings_v3", "modernbert", "neomme", "nomic_bert", "tapas", "ultrabert")

# Types that transformers cannot configure without options; both are made of several models.
WITHOUT_DEFAULT = ("gemma4_assistant", "nougat")

_TINY = {
    "hidden_size": 32,
    "d_model": 32,
    "dim": 32,
    "emb_dim": 32,
    "embedding_size": 32,
    "true_hidden_size": 32,
    "intra_bottleneck_size": 32,
    "intermediate_size": 64,
    "hidden_dim": 64,
    "mlp_dim": 64,
    "num_hidden_layers": 2,
    "n_layers": 2,
    "num_layers": 2,
    "num_attention_heads": 4,
    "n_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "vocab_size": 120,
    "max_position_embeddings": 64,
    "attention_window": 8,
    "image_size": 32,
    "patch_size": 8,
}
_STAGES = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
_WINDOWS = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "patch_size": 4}
_OTHERWISE_TINY = {
    "bit": _STAGES | {"num_groups": 2},
    "convnext": _STAGES | {"num_stages": 2},
    "convnextv2": _STAGES | {"num_stages": 2},
    "clip_text_model": {"eos_token_id": 98},
    "donut-swin": _WINDOWS,
    "focalnet": {"embed_dim": 8, "depths": [1, 1], "focal_levels": [1, 1], "focal_windows": [3, 3], "patch_size": 4}
    | {"hidden_sizes": [8, 16]},
    "maskformer-swin": _WINDOWS,
    "neomme": {"hidden_size": 128, "head_dim": 32},
    "regnet": _STAGES | {"groups_width": 4},
    "resnet": _STAGES | {"layer_type": "basic"},
    "swin": _WINDOWS,
    "swinv2": _WINDOWS,
    "xmod": {"default_language": "en_XX"},
}
_BATCH_STATISTICS = (nn.BatchNorm1d, nn.BatchNorm2d)


def tiny(model_type: str) -> PreTrainedConfig:
    """A small configuration by the names that the class has for its sizes."""
    config_class, options = CONFIG_MAPPING[model_type], {}
    default = config_class()
    names = {field.name for field in fields(config_class)} | set(config_class.attribute_map)
    for name, value in _TINY.items():
        known = getattr(default, name, None) if name in names else None
        if known is not None:
            options[name] = [value] * len(known) if isinstance(known, (list, tuple)) else value
    if isinstance(getattr(default, "pad_token_id", None), int) and default.pad_token_id >= 120:
        options["pad_token_id"] = 1
    return config_class(**options | _OTHERWISE_TINY.get(model_type, {}))


def accepted(option: str) -> list[str]:
    """The types whose default configuration is not refused."""
    names = []
    for model_type, config_class in CONFIG_MAPPING.items():
        try:
            TierConfig(**{option: config_class()}, image_pooling="mean")
        except Exception:  # noqa: S112 - the messages are looked at by test_every_refusal_is_a_sentence
            continue
        names.append(model_type)
    return names


def build(option: str, model_type: str) -> TierModel:
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    other = {
        "text_config": BertConfig(**small, vocab_size=120),
        "vision_config": ViTConfig(**small, image_size=16, patch_size=8),
    }
    torch.manual_seed(0)
    model = TierModel(TierConfig(**other | {option: tiny(model_type)}, projection_dim=16, image_pooling="mean")).eval()
    encoder = getattr(model, option.replace("config", "model"))
    for name, parameter in encoder.named_parameters():  # far from symmetric beginnings
        if parameter.ndim > 1 and "norm" not in name:
            nn.init.normal_(parameter, std=min(0.2, 2 / max(1, parameter[0].numel()) ** 0.5))
    return model


def check_gradients(model: TierModel, inputs: dict) -> None:
    """DistributedDataParallel waits for every parameter that trains."""
    model.train()(**inputs, return_loss=True).loss.backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not [name for name, p in model.named_parameters() if not p.requires_grad and p.grad is not None]


def check_text_encoder(model: TierModel) -> None:
    config, generator = model.config.text_config, torch.Generator().manual_seed(1)
    pad = config.pad_token_id if isinstance(config.pad_token_id, int) else 1
    short = torch.randint(5, 97, (1, 9), generator=generator)
    short[:, -1] = 98
    padded = torch.cat([short, torch.full((1, 6), pad)], dim=1)
    others = torch.randint(5, 97, (1, 15), generator=generator)
    others[:, -1] = 98
    ids, mask = torch.cat([padded, others]), torch.ones(2, 15, dtype=torch.int64)
    mask[0, 9:] = 0
    with torch.no_grad():
        alone, again = (model.encode_text(short, torch.ones_like(short)) for _ in range(2))
        together = model.encode_text(ids, mask)
    torch.testing.assert_close(alone.embeds, again.embeds, rtol=0, atol=0, msg="not the same twice")
    torch.testing.assert_close(alone.embeds, together.embeds[:1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(alone.local_embeds, together.local_embeds[:1, :9], rtol=1e-4, atol=1e-4)

    longest = max_text_length(config)
    fits = torch.randint(5, 97, (1, longest or 128), generator=generator)
    with torch.no_grad():
        assert model.encode_text(fits).local_embeds.shape[1] == fits.shape[1]
        if longest is not None:
            with pytest.raises(ValueError, match=f"at most {longest}"):
                model.encode_text(torch.cat([fits, fits[:, :1]], dim=1))
            if config.model_type not in RUN_ON:
                with pytest.raises((IndexError, RuntimeError, ValueError)):
                    model.text_model(input_ids=torch.cat([fits, fits[:, :1]], dim=1))
    check_gradients(model, {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.randn(2, 3, 16, 16)})


def check_vision_encoder(model: TierModel) -> None:
    size = getattr(model.config.vision_config, "image_size", None) or 128  # a grid of 4 x 4 at a stride of 32
    size = size if isinstance(size, int) else size[0]
    generator = torch.Generator().manual_seed(2)
    pixels, ids = torch.randn(2, 3, size, size, generator=generator), torch.tensor([[2, 5, 3], [2, 6, 3]])
    with torch.no_grad():
        together, alone = model.encode_image(pixels), model.encode_image(pixels[:1])
        torch.testing.assert_close(together.embeds[:1], alone.embeds, rtol=1e-4, atol=1e-4)
        height, width = together.grid
        assert together.local_embeds.shape == (2, height * width, 16)
        # A change in one part of the picture changes the patch there most; in random convolutions, one near by.
        distances = []
        for number in torch.randperm(height * width, generator=generator)[:16].tolist():
            row, column = divmod(number, width)
            changed, rows, columns = pixels[:1].clone(), size // height, size // width
            part = changed[:, :, row * rows :, column * columns :][:, :, :rows, :columns]
            part += 0.5 * torch.randn(part.shape, generator=generator)
            change = (model.encode_image(changed).local_embeds - alone.local_embeds).norm(dim=-1)[0]
            result = divmod(change.argmax().item(), width)
            distances.append([abs(row - result[0]) / height, abs(column - result[1]) / width])
        assert torch.tensor(distances).mean(dim=0).max() < 0.2, "its maps are shifted or turned"
    check_gradients(model, {"input_ids": ids, "pixel_values": pixels})


@pytest.mark.parametrize("model_type", QUICK_TEXT)
def test_a_text_encoder_does_what_is_promised(model_type):
    check_text_encoder(build("text_config", model_type))


@pytest.mark.parametrize("model_type", QUICK_VISION)
def test_a_vision_encoder_does_what_is_promised(model_type):
    check_vision_encoder(build("vision_config", model_type))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("option", "check"), [("text_config", check_text_encoder), ("vision_config", check_vision_encoder)]
)
def test_every_encoder_that_is_accepted_does_what_is_promised(option, check):
    broken, names = {}, accepted(option)
    print(f"{option}: of {len(list(CONFIG_MAPPING))} types {len(names)} are accepted")
    assert len(names) > 25
    for model_type in names:
        try:
            check(build(option, model_type))
        except Exception as error:  # also where the sizes of `tiny` do not suit this type: give them there
            broken[model_type] = f"{type(error).__name__}: {str(error)[:300]}"
    print(f"{len(names) - len(broken)} of them do what is promised")
    assert not broken, "\n".join(f"{name}: {message}" for name, message in broken.items())


@pytest.mark.slow
def test_every_refusal_is_a_sentence_of_ours():
    for model_type, config_class in CONFIG_MAPPING.items():
        try:
            config = config_class()
        except Exception:
            assert model_type in WITHOUT_DEFAULT, model_type
            continue
        for option in ("text_config", "vision_config"):
            try:
                TierConfig(**{option: config}, image_pooling="mean")
            except ValueError as error:
                assert (
                    option in str(error)
                    and "se " in str(error)
                    or "single encoder" in str(error)
                    or ("no plain encoder" in str(error))
                ), (model_type, str(error))


@pytest.mark.parametrize(
    ("option", "model_type"),
    [("text_config", name) for name in REFUSED_TEXT] + [("vision_config", name) for name in REFUSED_VISION],
)
def test_what_cannot_do_what_is_promised_is_refused_with_what_would_work(option, model_type):
    with pytest.raises(ValueError, match=rf"{option} '{model_type}'.*[Uu]se "):
        TierConfig(**{option: {"model_type": model_type}}, image_pooling="mean")


def test_finding_what_does_not_train_takes_no_random_number():
    state = torch.get_rng_state()
    assert unreached_parameters(tiny("dinov2")) == ["embeddings.mask_token"]
    assert unreached_parameters(tiny("bert")) == []
    assert all(name.startswith("pooler.") for name in unreached_parameters(tiny("squeezebert")))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "bert", "max_position_embeddings": 40}, 40),
        ({"model_type": "roberta", "max_position_embeddings": 40, "pad_token_id": 1}, 38),
        ({"model_type": "roberta", "max_position_embeddings": 40, "pad_token_id": 0}, 39),
        ({"model_type": "deberta-v2", "position_biased_input": False}, None),
        ({"model_type": "modernbert"}, None),
    ],
)
def test_the_longest_text_is_known_from_the_configuration(config, expected):
    assert max_text_length(TierConfig(text_config=config, vision_config={"model_type": "vit"}).text_config) == expected
