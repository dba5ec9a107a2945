# Licensed under the Apache License, Version 2.0.
"""TierConfig: what it refuses, what it says, and that it survives saving."""

import json

import pytest
from conftest import TEXT_CONFIGS, VISION_CONFIGS, tier_config
from transformers import (
    AutoConfig,
    BertConfig,
    CLIPConfig,
    CLIPTextConfig,
    GPT2Config,
    SiglipTextConfig,
    T5Config,
    ViTConfig,
)

from modeling_tier import TierConfig


def test_default_is_clip():
    config = TierConfig()
    assert config.text_config.model_type == "clip_text_model"
    assert config.vision_config.model_type == "clip_vision_model"
    assert (config.lambda_token, config.lambda_patch, config.entropy_temperature) == (0.2, 0.1, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"projection": "conv"}, r"projection.*linear.*mlp"),
        ({"image_pooling": "max"}, r"image_pooling.*cls.*mean"),
        ({"projection": "siglip"}, "projection='siglip' and image_pooling='attention'.*'cls'"),
        ({"image_pooling": "attention"}, "projection='siglip' and image_pooling='attention'.*'linear'"),
        ({"projection": "siglip", "image_pooling": "attention"}, "siglip_vision_model.*clip_vision_model"),
        (
            {"projection": "siglip", "image_pooling": "attention", "vision_config": VISION_CONFIGS["siglip"]},
            "projection_dim must be 32; got 512",
        ),
        ({"logit_bias_init_value": "-10"}, "logit_bias_init_value"),
        ({"text_config": SiglipTextConfig(pad_token_id=None)}, "siglip_text_model.*pad_token_id"),
        ({"projection_dim": 0}, "projection_dim"),
        ({"projection_dim": 16.0}, "projection_dim"),
        ({"lambda_token": -0.1}, "lambda_token"),
        ({"lambda_patch": "0.1"}, "lambda_patch"),
        ({"lambda_patch": float("nan")}, "lambda_patch"),
        ({"lambda_token": True}, "lambda_token"),
        ({"entropy_temperature": 0}, "entropy_temperature"),
        ({"logit_scale_init_value": None}, "logit_scale_init_value"),
        ({"count_special_tokens": "no"}, "count_special_tokens"),
        ({"special_token_ids": 3}, "special_token_ids"),
        ({"text_config": {"model_type": "no-such-model"}}, "text_config.*no-such-model.*bert"),
        ({"vision_config": {"model_type": "no-such-model"}}, "vision_config.*no-such-model.*vit"),
        ({"vision_config": "vit"}, "vision_config must be a configuration or a dict.*'vit'"),
        ({"text_config": GPT2Config()}, "gpt2.*bert"),
        ({"text_config": T5Config()}, "t5.*bert"),
        ({"text_config": BertConfig(is_decoder=True)}, "bert"),
        ({"text_config": ViTConfig()}, "text encoder.*pixel_values"),
        ({"vision_config": BertConfig()}, "image encoder.*input_ids"),
        ({"vision_config": CLIPConfig()}, "CLIPConfig.*vision_config"),
        ({"vision_config": {"model_type": "vit_mae"}}, "vit_mae.*'vit'"),
        ({"vision_config": {"model_type": "resnet"}}, "image_pooling='mean'"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "image_pooling='mean'"),
        ({"text_config": TEXT_CONFIGS["bert"], "count_special_tokens": False}, "all_special_ids"),
        ({"lambda_tokens": 0.5}, "'lambda_tokens': did you mean 'lambda_token'"),
        ({"image_poling": "mean"}, "did you mean 'image_pooling'"),
        ({"colour": "red"}, "no option 'colour'; its options are.*lambda_token"),
        ({"text_config": {"model_type": "bert", "hiden_size": 32}}, "text_config.*did you mean 'hidden_size'"),
        ({"text_config": CLIPTextConfig(eos_token_id=None)}, "eos_token_id"),
        ({"text_config": {"model_type": "modernbert", "num_hidden_layers": 10**12}}, "num_hidden_layers.*at most"),
        ({"input_side": 10**9}, "input_side must be an integer from 1 to 4096"),
        ({"text_config": BertConfig(num_hidden_layers=10**400)}, "num_hidden_layers.*at most"),
        ({"vision_config": {"model_type": "resnet", "depths": [2, 10**9]}}, r"vision_config: depths.*at most 5,000"),
    ],
)
def test_what_cannot_work_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TierConfig(**options)


def test_keys_of_every_configuration_are_no_options_of_ours():
    config = TierConfig(dtype="float16", attn_implementation="eager", name_or_path="x", architectures=["TierModel"])
    assert config.text_config._attn_implementation == "eager"
    assert TierConfig(**config.to_dict()).to_dict() == config.to_dict()


@pytest.mark.parametrize("vision", VISION_CONFIGS)
def test_what_a_configuration_says_of_itself_is_known(vision, monkeypatch):
    """Also names that are no fields, and ends of a text for an encoder without them."""
    warnings = []
    monkeypatch.setattr("modeling_tier.configuration_tier.logger.warning", warnings.append)
    text = TEXT_CONFIGS["distilbert"].to_dict() | {"bos_token_id": 2, "eos_token_id": 3}
    TierConfig(text_config=text, vision_config=VISION_CONFIGS[vision].to_dict(), image_pooling="mean")
    assert not warnings
    TierConfig(text_config=text | {"colour": "red"})
    assert len(warnings) == 1 and "colour" in warnings[0]


def test_a_file_may_have_keys_of_another_version(tmp_path):
    TierConfig().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["text_config"]["classifier_dropout_of_the_future"] = 0.1
    (tmp_path / "config.json").write_text(
        json.dumps(content | {"tie_encoder_decoder": False, "torch_dtype": "float32"})
    )
    assert AutoConfig.from_pretrained(tmp_path).tie_encoder_decoder is False
    (tmp_path / "config.json").write_text(json.dumps(content | {"lambda_tokens": 0.5}))
    with pytest.raises(ValueError, match="did you mean 'lambda_token'"):
        AutoConfig.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="did you mean 'lambda_patch'"):
        TierConfig.from_pretrained(tmp_path, lambda_patchs=0.5)


@pytest.mark.parametrize("vision", VISION_CONFIGS)
@pytest.mark.parametrize("text", ["clip", "bert"])
def test_save_and_load(tmp_path, text, vision):
    config = tier_config(
        text, vision, image_pooling="mean", projection="mlp", lambda_token=0.3, special_token_ids=[1, 2]
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is TierConfig
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert type(loaded.text_config) is type(TEXT_CONFIGS[text])
    assert type(loaded.vision_config) is type(VISION_CONFIGS[vision])


def test_siglips_heads_survive_saving(tmp_path):
    heads = {"projection": "siglip", "image_pooling": "attention", "projection_dim": 32}
    config = tier_config("bert", "siglip", **heads, logit_bias_init_value=-9.5)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in heads} == heads and loaded.logit_bias_init_value == -9.5
    assert TierConfig().logit_bias_init_value is None


def test_special_token_ids_come_from_the_text_encoder():
    assert tier_config("clip").special_token_ids == [0, 98]
    assert tier_config("clip", special_token_ids=[7]).special_token_ids == [7]
