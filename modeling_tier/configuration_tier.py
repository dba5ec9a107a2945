# Licensed under the Apache License, Version 2.0.
"""Configuration of TIER: two encoders of transformers, a joint space and the weights of the regulariser."""

import math

from transformers import CONFIG_MAPPING, MODEL_MAPPING, PreTrainedConfig, SiglipTextConfig, SiglipTextModel
from transformers.models.auto.configuration_auto import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES


PROJECTIONS = ("linear", "mlp", "siglip")
IMAGE_POOLINGS = ("cls", "mean", "attention")

# Text encoders whose global state stands at the end-of-text token, or at the last position of a text that is padded to
# full length; elsewhere it is the first one.
EOS_POOLED_TEXT = ("clip_text_model",)
LAST_POOLED_TEXT = ("siglip_text_model",)

# Vision encoders whose output is a grid of patches with no class token in front.
VISION_WITHOUT_CLASS_TOKEN = (
    "convnext",
    "convnextv2",
    "regnet",
    "resnet",
    "siglip_vision_model",
    "swin",
    "swinv2",
)

# Encoders that look usable from outside but would give wrong or no patch maps, with what works instead.
_UNUSABLE = {
    "siglip2_vision_model": "it takes packed patches instead of pixel_values; use 'siglip_vision_model'",
    "vit_mae": "it hides 75% of the patches at random; use 'vit', which loads the same weights",
    "hiera": "it re-orders its patches; use 'vit' or 'swin'",
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
            `"linear"`: one matrix per modality, as CLIP. `"mlp"`: the paper's two-layer heads (image: linear, batch
            norm, ReLU, linear; text: linear, GELU, layer norm, linear). `"siglip"`: SigLIP's heads (image: attention
            pooling; text: linear with bias); with `image_pooling="attention"` and SigLIP's vision encoder only, whose
            width is then `projection_dim`.
        image_pooling (`str`, defaults to `"cls"`):
            `"cls"`: the global image embedding is the projected class token, as CLIP. `"mean"`: it is the mean of the
            projected patches, as the paper; for encoders without a class token. `"attention"`: SigLIP's head pools
            all patches into it; a patch's own embedding is the head's output for that patch alone.
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
        ValueError: if a value is outside of what is said above, or an encoder cannot be used, with what would work.
    """

    model_type = "tier"
    # Under this name transformers 5.17 and 5.23 know them alike; their values are made in __post_init__.
    sub_configs = {"text_config": AutoConfig, "vision_config": AutoConfig}

    text_config: PreTrainedConfig | dict | None = None
    vision_config: PreTrainedConfig | dict | None = None
    projection_dim: int = 512
    projection: str = "linear"
    image_pooling: str = "cls"
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
        for name, default in (("text_config", "clip_text_model"), ("vision_config", "clip_vision_model")):
            setattr(self, name, _sub_config(name, getattr(self, name), default))
        super().__post_init__(**kwargs)
        self._check_options()
        _check_text_encoder(self.text_config)
        _check_vision_encoder(self.vision_config, self.image_pooling)
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

    def _check_options(self) -> None:
        for name, allowed in (("projection", PROJECTIONS), ("image_pooling", IMAGE_POOLINGS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {list(allowed)}; got {getattr(self, name)!r}.")
        if (self.projection == "siglip") != (self.image_pooling == "attention"):
            raise ValueError(
                "projection='siglip' and image_pooling='attention' are one head and need each other; got "
                f"projection={self.projection!r} and image_pooling={self.image_pooling!r}."
            )
        if type(self.projection_dim) is not int or self.projection_dim < 1:
            raise ValueError(f"projection_dim must be a positive integer; got {self.projection_dim!r}.")
        for name in ("lambda_token", "lambda_patch"):
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


def encoder_class(config: PreTrainedConfig):
    """The class of the bare encoder that a configuration describes, or None."""
    if isinstance(config, SiglipTextConfig):  # missing in AutoModel's mapping
        return SiglipTextModel
    try:
        return MODEL_MAPPING[type(config)]
    except KeyError:
        return None


def encoder_width(config: PreTrainedConfig) -> int:
    """Number of channels of an encoder's `last_hidden_state`."""
    width = getattr(config, "hidden_size", None)
    return width if width is not None else config.hidden_sizes[-1]


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _sub_config(name: str, config, default: str) -> PreTrainedConfig:
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
    return CONFIG_MAPPING[model_type](**options)


def _single_encoder(name: str, config: PreTrainedConfig):
    if config.sub_configs:
        towers = ", ".join(config.sub_configs)
        raise ValueError(
            f"{name} must describe a single encoder, but {config.model_type!r} is made of {towers}. Pass the one that "
            f"is meant, such as {type(config).__name__}(...).{name if name in config.sub_configs else towers}."
        )
    model_class = encoder_class(config)
    if model_class is None:
        raise ValueError(f"{name}: transformers has no plain encoder for the model_type {config.model_type!r}.")
    return model_class


def _check_text_encoder(config: PreTrainedConfig) -> None:
    model_class = _single_encoder("text_config", config)
    if getattr(model_class, "main_input_name", "input_ids") != "input_ids":
        raise ValueError(
            f"text_config must describe a text encoder, but {config.model_type!r} reads "
            f"{model_class.main_input_name}. Use for example 'clip_text_model', 'bert' or 'roberta'."
        )
    name = config.model_type
    pools = name in (*EOS_POOLED_TEXT, *LAST_POOLED_TEXT, *MODEL_FOR_MASKED_LM_MAPPING_NAMES)
    if not pools or config.is_encoder_decoder or getattr(config, "is_decoder", False):
        raise ValueError(
            f"text_config {name!r} has no token that is known to sum up the whole text: it decodes, or is not one of "
            "CLIP's, SigLIP's and the masked-language encoders. Use for example 'clip_text_model' or 'bert'."
        )
    if name in LAST_POOLED_TEXT and config.pad_token_id is None:
        raise ValueError(f"text_config {name!r} needs a pad_token_id: its texts are padded to full length.")


def _check_vision_encoder(config: PreTrainedConfig, image_pooling: str) -> None:
    if config.model_type in _UNUSABLE:
        raise ValueError(f"vision_config {config.model_type!r} cannot be used: {_UNUSABLE[config.model_type]}.")
    model_class = _single_encoder("vision_config", config)
    if getattr(model_class, "main_input_name", "input_ids") != "pixel_values":
        raise ValueError(
            f"vision_config must describe an image encoder, but {config.model_type!r} reads "
            f"{model_class.main_input_name}. Use for example 'clip_vision_model', 'vit', 'dinov2' or 'resnet'."
        )
    if image_pooling == "cls" and config.model_type in VISION_WITHOUT_CLASS_TOKEN:
        raise ValueError(
            f"image_pooling='cls' needs a class token, and {config.model_type!r} has none. Use image_pooling='mean'."
        )


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
