# Licensed under the Apache License, Version 2.0.
"""Configuration of TIER: two encoders of transformers, a joint space and the weights of the regulariser."""

import math
from dataclasses import fields
from difflib import get_close_matches

from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.configuration_auto import AutoConfig
from transformers.utils import logging

from .encoders_tier import LAST_POOLED_TEXT, check_depth, check_text_encoder, check_vision_encoder


logger = logging.get_logger(__name__)

MAX_INPUT_SIDE = 4096  # pixels

# The terms of the loss beside the contrastive one, by their names in outputs, logs and metrics: the option that weighs
# each. TierModel.local_terms computes them.
TERMS = {"token_entropy": "lambda_token", "patch_entropy": "lambda_patch"}

PROJECTIONS = ("linear", "affine", "mlp", "open_clip", "siglip")
IMAGE_POOLINGS = ("cls", "mean", "attention", "first")
TEXT_POOLINGS = ("token", "mean", "last")

_DEFAULT_ENCODERS = {"text_config": "clip_text_model", "vision_config": "clip_vision_model"}

# What PreTrainedConfig takes beside its own fields, or writes into a config.json.
_FURTHER_KEYS = {
    "_attn_implementation_internal",
    "_commit_hash",
    "_experts_implementation_internal",
    "_name_or_path",
    "adapter_config",
    "attn_implementation",
    "auto_map",
    "bos_token_id",
    "cls_token_id",
    "custom_pipelines",
    "eos_token_id",
    "experts_implementation",
    "model_type",
    "pad_token_id",
    "per_layer_config",
    "quantization_config",
    "sep_token_id",
    "tie_word_embeddings",
    "tokenizer_class",
    "use_cache",
}


class TierConfig(PreTrainedConfig):
    r"""
    Configuration of a [`TierModel`].

    Args:
        text_config (`PreTrainedConfig` or `dict`, *optional*, defaults to CLIP's text encoder):
            Any text encoder of transformers that returns a `last_hidden_state`: CLIP, SigLIP, BERT, RoBERTa, ... A
            dict is given with its `model_type`.
        vision_config (`PreTrainedConfig` or `dict`, *optional*, defaults to CLIP's vision encoder):
            Any vision encoder of transformers that returns a `last_hidden_state`: CLIP, SigLIP, ViT, DINOv2, Swin,
            ResNet, ConvNeXt, ... The feature map of a convolutional encoder is the patch grid.
        projection_dim (`int`, defaults to 512):
            Dimension D of the joint space.
        projection (`str`, defaults to `"linear"`):
            `"linear"`: one matrix per modality, as CLIP. `"affine"`: a matrix and a bias, as GLoRIA. `"open_clip"`:
            image: linear; text: linear, GELU, linear, without biases, as BiomedCLIP. `"mlp"`: the paper's two-layer
            heads (image: linear, batch norm, ReLU, linear; text: linear, GELU, layer norm, linear). `"siglip"`:
            SigLIP's heads (image: attention pooling; text: linear with bias); with `image_pooling="attention"` and
            SigLIP's vision encoder only, whose width is then `projection_dim`.
        image_pooling (`str`, defaults to `"cls"`):
            `"cls"`: the global image embedding is the projected class token, as CLIP. `"mean"`: it is the mean of the
            projected patches, as the paper; for encoders without a class token. `"attention"`: SigLIP's head pools
            all patches into it; a patch's own embedding is the head's output for that patch alone. `"first"`: it is
            the projected upper left patch, as CXR-CLIP has it with Swin, which has no class token.
        text_pooling (`str`, defaults to `"token"`):
            `"token"`: the global text embedding is that of the text encoder's own global token ([CLS], end of text).
            `"mean"`: it is the mean of the projected tokens, as GLoRIA and MedCLIP; padding never counts. `"last"`: it
            is that of the last token before the padding, [SEP] of a BERT, as CXR-CLIP.
        text_layers (`list[int]`, *optional*):
            Hidden states of the text encoder, 0 being its embeddings, whose mean is a token's state, as GLoRIA and
            MedCLIP; the last one must be among them. By default it is the last one alone.
        input_side (`int`, *optional*):
            Side in pixels to which `pixel_values` are interpolated before the encoder, bilinearly with aligned
            corners, as GLoRIA's 299. By default they stay as they are.
        logit_scale_init_value (`float`, defaults to 2.6592):
            Initial value of the learned `logit_scale`, log(1 / 0.07).
        logit_bias_init_value (`float`, *optional*):
            Value of `logit_bias`, which is added to the logits, as SigLIP's; it is not trained. None: there is none.
        lambda_token (`float`, defaults to 0.2):
            Weight of the token term, the mean entropy of a token over the patches. At least 0.
        lambda_patch (`float`, defaults to 0.1):
            Weight of the patch term, the mean entropy of a patch over the tokens. At least 0. Training from random
            weights needs less, or a ramp: a strong patch term can turn every patch against every token.
        entropy_temperature (`float`, defaults to 1.0):
            Divides the cosines before the two softmaxes; the paper uses 1. Positive.
        count_special_tokens (`bool`, defaults to `True`):
            Whether the special tokens ([CLS], end of text, ...) take part in the two entropies. Padding never does.
        special_token_ids (`list[int]`, *optional*):
            Ids of the tokenizer's special tokens, needed if `count_special_tokens` is `False`. Defaults to those that
            the text configuration names.

    Raises:
        ValueError: if a value is outside of what is said above, an option has another name (with the nearest one), or
            an encoder cannot be used (with what would work).
    """

    model_type = "tier"
    # Under this name transformers 5.17 and 5.23 know them alike; their values are made in __post_init__.
    sub_configs = {"text_config": AutoConfig, "vision_config": AutoConfig}

    text_config: PreTrainedConfig | dict | None = None
    vision_config: PreTrainedConfig | dict | None = None
    projection_dim: int = 512
    projection: str = "linear"
    image_pooling: str = "cls"
    text_pooling: str = "token"
    text_layers: list[int] | None = None
    input_side: int | None = None
    logit_scale_init_value: float = 2.6592
    logit_bias_init_value: float | None = None
    lambda_token: float = 0.2
    lambda_patch: float = 0.1
    entropy_temperature: float = 1.0
    count_special_tokens: bool = True
    special_token_ids: list[int] | None = None

    def __post_init__(self, **kwargs):
        if not type(self).__module__.startswith("transformers_modules."):
            # A folder's own pipeline would go before the registered one, and ask for trust_remote_code.
            kwargs.pop("custom_pipelines", None)
        check_option_names(kwargs)
        for name, default in _DEFAULT_ENCODERS.items():
            setattr(self, name, _sub_config(name, getattr(self, name), default))
        super().__post_init__(**kwargs)
        self._check_options()
        check_text_encoder(self.text_config)
        check_vision_encoder(self.vision_config, self.image_pooling)
        if self.text_pooling != "token" and self.text_config.model_type in LAST_POOLED_TEXT:
            raise ValueError(
                f"text_pooling={self.text_pooling!r} would count the padding that SigLIP's text encoder needs."
            )
        if self.projection == "siglip":
            _check_siglip_head(self.vision_config, self.projection_dim)
        if self.special_token_ids is None:
            ids = (getattr(self.text_config, f"{name}_token_id", None) for name in ("bos", "eos", "cls", "sep"))
            self.special_token_ids = sorted({i for i in ids if isinstance(i, int)})
        if not self.count_special_tokens and not self.special_token_ids:
            raise ValueError(
                "count_special_tokens=False needs special_token_ids, the ids of the tokens to leave out; the text "
                "configuration names none. Pass special_token_ids=tokenizer.all_special_ids."
            )

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """
        As every configuration's: keys of a file that are not known here, as other versions write them, are kept. One
        that is nearly the name of an option is an error.
        """
        check_option_names(kwargs, near_only=True)
        unknown = check_option_names(config_dict, near_only=True)
        known = {name: value for name, value in config_dict.items() if name not in unknown}
        for name, default in _DEFAULT_ENCODERS.items():
            known[name] = _sub_config(name, known.get(name), default, from_file=True)
        loaded = super().from_dict(known, **kwargs)
        for name in unknown:
            setattr(loaded[0] if isinstance(loaded, tuple) else loaded, name, config_dict[name])
        return loaded

    @property
    def term_weights(self) -> dict[str, float]:
        """Weights of the terms of the loss beside the contrastive one, by the terms' names."""
        return {term: getattr(self, option) for term, option in TERMS.items()}

    def _check_options(self) -> None:
        choices = {"projection": PROJECTIONS, "image_pooling": IMAGE_POOLINGS, "text_pooling": TEXT_POOLINGS}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {list(allowed)}; got {getattr(self, name)!r}.")
        if (self.projection == "siglip") != (self.image_pooling == "attention"):
            raise ValueError(
                "projection='siglip' and image_pooling='attention' are one head and need each other; got "
                f"projection={self.projection!r} and image_pooling={self.image_pooling!r}."
            )
        if type(self.projection_dim) is not int or self.projection_dim < 1:
            raise ValueError(f"projection_dim must be a positive integer; got {self.projection_dim!r}.")
        if self.input_side is not None and (
            type(self.input_side) is not int or not 1 <= self.input_side <= MAX_INPUT_SIDE
        ):
            raise ValueError(
                f"input_side must be an integer from 1 to {MAX_INPUT_SIDE} or None; got {self.input_side!r}."
            )
        if self.text_layers is not None:
            _check_layers(self.text_layers, getattr(self.text_config, "num_hidden_layers", None))
        for name in TERMS.values():
            value = getattr(self, name)
            if not _is_number(value) or value < 0:
                raise ValueError(f"{name} must be a number of at least 0; got {value!r}.")
        if not _is_number(self.logit_scale_init_value):
            raise ValueError(f"logit_scale_init_value must be a number; got {self.logit_scale_init_value!r}.")
        if self.logit_bias_init_value is not None and not _is_number(self.logit_bias_init_value):
            raise ValueError(f"logit_bias_init_value must be a number or None; got {self.logit_bias_init_value!r}.")
        if not _is_number(self.entropy_temperature) or self.entropy_temperature <= 0:
            raise ValueError(f"entropy_temperature must be a positive number; got {self.entropy_temperature!r}.")
        if not isinstance(self.count_special_tokens, bool):
            raise ValueError(f"count_special_tokens must be True or False; got {self.count_special_tokens!r}.")
        ids = self.special_token_ids
        if ids is not None and not (isinstance(ids, (list, tuple)) and all(type(i) is int for i in ids)):
            raise ValueError(f"special_token_ids must be a list of token ids or None; got {ids!r}.")


def check_option_names(options: dict, near_only: bool = False) -> list[str]:
    """
    Those of `options` that are neither of [`TierConfig`] nor of every configuration.

    Raises:
        ValueError: if there is one; with `near_only` only if it is nearly the name of an option of [`TierConfig`].
    """
    own = [name for name in TierConfig.__annotations__ if not name.startswith("_")]
    unknown = [
        name
        for name in options
        if name not in own and name not in _FURTHER_KEYS and not hasattr(PreTrainedConfig, name)
    ]
    for name in unknown:
        near = get_close_matches(name, own, n=1, cutoff=0.75)
        if near:
            raise ValueError(f"TierConfig has no option {name!r}: did you mean {near[0]!r}?")
        if not near_only:
            raise ValueError(f"TierConfig has no option {name!r}; its options are {', '.join(own)}.")
    return unknown


def _check_layers(layers, number: int | None) -> None:
    """Of `text_layers`; without the last state, layers would have no gradient, which several processes wait for."""
    if not isinstance(layers, (list, tuple)) or not layers or not all(type(i) is int for i in layers):
        raise ValueError(f"text_layers must be a list of layer numbers or None; got {layers!r}.")
    if number is not None and not all(-number - 1 <= i <= number for i in layers):
        raise ValueError(f"text_layers must lie between {-number - 1} and {number}; got {layers!r}.")
    if not {-1, number} & set(layers):
        raise ValueError(f"text_layers must hold the last layer, -1; got {layers!r}.")


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _sub_config(name: str, config, default: str, from_file: bool = False) -> PreTrainedConfig:
    """The configuration of an encoder from itself, from a dict with its model_type, or from nothing (`default`)."""
    if isinstance(config, PreTrainedConfig):
        return config
    if not isinstance(config, dict | None):
        raise ValueError(f"{name} must be a configuration or a dict with its model_type; got {config!r}.")
    options = dict(config or {})
    model_type = options.pop("model_type", default)
    if model_type not in CONFIG_MAPPING:
        examples = "clip_text_model, bert, roberta" if name == "text_config" else "clip_vision_model, vit, resnet"
        raise ValueError(f"{name} has the model_type {model_type!r}, unknown to transformers. Try one of: {examples}.")
    config_class = CONFIG_MAPPING[model_type]
    check_depth(name, options)  # some configurations make a list of their layers
    if not from_file:  # a file may be of another version
        _check_encoder_options(name, config_class, options)
    return config_class(**options)


def _check_encoder_options(name: str, config_class, options: dict) -> None:
    known = {field.name for field in fields(config_class)} | set(config_class.attribute_map)
    unknown = [name for name in options if not (name in known or name in _FURTHER_KEYS or hasattr(config_class, name))]
    written = config_class().to_dict() if unknown else {}  # names that are set, and saved, without being fields
    for option in (name for name in unknown if name not in written):
        near = get_close_matches(option, sorted(known), n=1, cutoff=0.8)
        if near:
            raise ValueError(
                f"{name}: {config_class.model_type!r} has no option {option!r}; did you mean {near[0]!r}?"
            )
        logger.warning(f"{name}: {config_class.model_type!r} has no option {option!r}.")


def _check_siglip_head(config: PreTrainedConfig, projection_dim: int) -> None:
    if config.model_type != "siglip_vision_model":
        raise ValueError(
            "projection='siglip' is the head of SigLIP's vision encoder, 'siglip_vision_model'; got "
            f"{config.model_type!r}. Use 'linear' or 'mlp'."
        )
    if config.hidden_size != projection_dim:
        raise ValueError(
            f"projection='siglip' keeps the width of the vision encoder: projection_dim must be {config.hidden_size}; "
            f"got {projection_dim}."
        )


TierConfig.register_for_auto_class()
