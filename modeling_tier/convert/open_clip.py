# Licensed under the Apache License, Version 2.0.
"""
open_clip's folders and repositories, with `open_clip_config.json`: WhyXrayCLIP, BiomedCLIP and others.

An image tower is open_clip's own vision transformer or timm's, a text tower open_clip's own or a BERT of transformers.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import (
    CLIPTextConfig,
    CLIPVisionConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    ViTConfig,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ..clip_images import CLIPImageProcessor
from ..configuration_tier import TierConfig
from ..encoders_tier import max_text_length
from ..training.building import with_options
from .assemble import POSITIONS, Names, assemble, load_config, load_tokenizer, renaming, shape_of
from .openai import OPENAI_NAMES, OPENAI_TOKENIZER, openai_weights
from .source import Converted, Source
from .weight_files import Record, Weights, existing, find_folder, folder_weights


CONFIG_FILE = "open_clip_config.json"
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")

# Options of towers that change what is computed, with the only value that can be converted.
_VISION_FIXED = {
    "ls_init_value": None,
    "attentional_pool": False,
    "no_ln_pre": False,
    "pos_embed_type": "learnable",
    "final_ln_after_pool": False,
    "pool_type": "tok",
    "act_kwargs": {},
    "norm_kwargs": {},
    "block_type": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
}
_TEXT_FIXED = {
    **{name: _VISION_FIXED[name] for name in ("ls_init_value", "final_ln_after_pool", "act_kwargs", "norm_kwargs")},
    **{name: value for name, value in _VISION_FIXED.items() if name.startswith(("scale", "qk", "block"))},
    "embed_cls": False,
    "no_causal_mask": False,
    "pool_type": "argmax",
    "proj_type": "linear",
    "proj_bias": False,
}
_TIMM_FIXED = {"timm_pool": ("", "token"), "timm_proj": ("linear",), "timm_proj_bias": (False,)}

_UNUSED = POSITIONS | {
    r"(text\.)?attn_mask": "the causal mask: made here, not stored",
    r"text\.transformer\.pooler\..*": "BERT's own pooling: no embedding needs it",
}

# Attention heads of timm's plain vision transformers, by the size in their name.
_TIMM_HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16}

_TIMM_NAMES: Names = [
    (r"^vision_model\.embeddings\.cls_token", "visual.trunk.cls_token"),
    (r"^vision_model\.embeddings\.position_embeddings", "visual.trunk.pos_embed"),
    (r"^vision_model\.embeddings\.patch_embeddings\.projection", "visual.trunk.patch_embed.proj"),
    (r"^vision_model\.(?:encoder\.)?layers?\.(\d+)\.", r"visual.trunk.blocks.\1."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(?:q_proj|attention\.query)\.(\w+)", r".attn.qkv.\1 (query)"),
    (r"\.attention\.(?:k_proj|attention\.key)\.(\w+)", r".attn.qkv.\1 (key)"),
    (r"\.attention\.(?:v_proj|attention\.value)\.(\w+)", r".attn.qkv.\1 (value)"),
    (r"\.attention\.(?:o_proj|output\.dense)\.", ".attn.proj."),
    (r"^(visual\.trunk\.blocks\.\d+)\.(?:mlp\.fc1|intermediate\.dense)\.", r"\1.mlp.fc1."),
    (r"^(visual\.trunk\.blocks\.\d+)\.(?:mlp\.fc2|output\.dense)\.", r"\1.mlp.fc2."),
    (r"^vision_model\.layernorm\.", "visual.trunk.norm."),
    (r"^visual_projection\.", "visual.head.proj."),
]
_BERT_NAMES: Names = [
    (r"^text_model\.", "text.transformer."),
    (r"^text_projection\.", "text.proj."),
]


@dataclass
class _Tower:
    """One encoder: its configuration, and the patterns that make the source's names from ours."""

    config: PreTrainedConfig
    names: Names


def open_clip(
    model: str,
    tokenizer: str | None = None,
    text_config: str | None = None,
    image_options: dict | None = None,
    record: Record | None = None,
) -> Converted:
    """
    A model of open_clip.

    Args:
        model: folder or Hub id that holds `open_clip_config.json` and the weights.
        tokenizer: folder or Hub id of the tokenizer. By default the model's own, else the one its configuration
            names, else CLIP's.
        text_config: folder or Hub id with the config.json of a BERT text encoder. By default the one that the
            model's configuration names.
        image_options, record, returns, raises: as in [`~convert.clip.clip`]; mean, standard deviation, size and
            interpolation are the configuration's.
    """
    record = record or Record()
    folder = find_folder(model, record, weights=WEIGHT_FILES, more_files=[CONFIG_FILE])
    content = _read_config(folder)
    architecture, preprocessing = content["model_cfg"], content.get("preprocess_cfg") or {}
    vision, text = architecture["vision_cfg"], architecture["text_cfg"]
    weights = folder_weights(folder, WEIGHT_FILES)
    loaded = _tokenizer(folder, tokenizer, text, record)
    activation = "quick_gelu" if architecture.get("quick_gelu") else "gelu"
    with _describing(folder):
        vision_tower = _vision_tower(vision, weights, activation)
        if text.get("hf_model_name"):
            text_tower = _bert_tower(text, text_config, record)
        else:
            text_tower = _own_text(text, weights, activation, loaded)
        config = TierConfig(
            text_config=text_tower.config,
            vision_config=vision_tower.config,
            projection_dim=architecture["embed_dim"],
            projection=_projection(text),
            logit_bias_init_value=_logit_bias(weights),
        )
        loaded.model_max_length = min(loaded.model_max_length, text.get("context_length", 77))
        image_processor = _image_processor(preprocessing, vision, image_options)
    # open_clip's class CustomTextCLIP has its own text tower under a name.
    prefix = "text." if any(key.startswith("text.transformer.resblocks.") for key in weights) else ""
    vision_name, text_name = renaming(vision_tower.names), renaming(text_tower.names)

    def source_name(name: str) -> str:
        if name.startswith("vis"):
            return vision_name(name)
        return name if name.startswith("logit_") else prefix + text_name(name)

    return assemble(config, openai_weights(weights), source_name, _UNUSED, image_processor, loaded, record)


@contextmanager
def _describing(folder: Path) -> Iterator[None]:
    """What a configuration raises that lacks values, or has some of other types, becomes a ValueError."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ZeroDivisionError, OverflowError, StrictDataclassError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(
            f"{CONFIG_FILE} in {folder.name} does not describe a model of open_clip: {reason}."
        ) from error


def _read_config(folder: Path) -> dict:
    path = existing(folder / CONFIG_FILE)
    with _describing(folder):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise TypeError(str(error)) from error
        architecture = content["model_cfg"]
        if not all(isinstance(architecture[name], dict) for name in ("vision_cfg", "text_cfg")):
            raise TypeError("vision_cfg and text_cfg must be objects")
    for name in ("multimodal_cfg", "audio_cfg"):
        if architecture.get(name):
            raise ValueError(f"{CONFIG_FILE} has a {name}: only models of one image and one text encoder convert.")
    return content


def _tokenizer(folder: Path, name: str | None, text: dict, record: Record) -> PreTrainedTokenizerBase:
    own = any((folder / file).is_file() for file in ("tokenizer.json", "vocab.txt", "merges.txt", "spiece.model"))
    if name is None and own:
        return load_tokenizer(folder)
    return load_tokenizer(find_folder(name or text.get("hf_tokenizer_name") or OPENAI_TOKENIZER, record, weights=()))


def _check_fixed(options: dict, fixed: dict, tower: str) -> None:
    for name, value in fixed.items():
        if options.get(name, value) != value:
            hint = " Use `siglip` on the model's folder for transformers." if name == "no_causal_mask" else ""
            raise ValueError(
                f"{CONFIG_FILE}: {tower} has {name}={options[name]!r}; only {value!r} can be converted.{hint}"
            )


def _vision_tower(vision: dict, weights: Weights, activation: str) -> _Tower:
    if vision.get("timm_model_name"):
        return _timm_tower(vision, weights)
    if not isinstance(vision.get("layers"), int):
        raise ValueError("Its image encoder is CLIP's ResNet, which transformers does not have: use one with a ViT.")
    _check_fixed(vision, _VISION_FIXED, "vision_cfg")
    _check_layers(weights, "visual.", vision["layers"])
    width = vision["width"]
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=int(width * vision.get("mlp_ratio", 4.0)),
        num_hidden_layers=vision["layers"],
        num_attention_heads=width // vision.get("head_width", 64),
        patch_size=vision["patch_size"],
        image_size=_side(vision.get("image_size", 224)),
        hidden_act=activation,
    )
    return _Tower(config, OPENAI_NAMES)


def _timm_tower(vision: dict, weights: Weights) -> _Tower:
    name = vision["timm_model_name"]
    known = re.fullmatch(r"vit_(tiny|small|base|large|huge)_patch\d+_\d+(\..+)?", name)
    if known is None:
        raise ValueError(
            f"{CONFIG_FILE}: the image encoder is timm's {name!r}; only its plain vision transformers can be "
            "converted, vit_{tiny,small,base,large,huge}_patch*."
        )
    for option, allowed in _TIMM_FIXED.items():
        if vision.get(option, allowed[0]) not in allowed:
            raise ValueError(f"{CONFIG_FILE}: {option} is {vision[option]!r}; only {allowed} can be converted.")
    kind = "a vision transformer of timm"
    width, _, patch_size, _ = shape_of(weights, "visual.trunk.patch_embed.proj.weight", 4, kind)
    num_positions = shape_of(weights, "visual.trunk.pos_embed", 3, kind)[1]
    config = ViTConfig(
        hidden_size=width,
        intermediate_size=shape_of(weights, "visual.trunk.blocks.0.mlp.fc1.weight", 2, kind)[0],
        num_hidden_layers=len({key.split(".")[3] for key in weights if key.startswith("visual.trunk.blocks.")}),
        num_attention_heads=_TIMM_HEADS[known[1]],
        patch_size=patch_size,
        image_size=patch_size * round((num_positions - 1) ** 0.5),
        qkv_bias="visual.trunk.blocks.0.attn.qkv.bias" in weights,
        layer_norm_eps=1e-6,
        hidden_act="gelu",  # open_clip's quick_gelu is for its own towers
    )
    return _Tower(config, _TIMM_NAMES)


def _check_layers(weights: Weights, prefix: str, expected: int) -> None:
    """Before so many layers are built."""
    pattern = rf"{re.escape(prefix)}transformer\.resblocks\.(\d+)\."
    number = len({m[1] for m in (re.match(pattern, key) for key in weights) if m})
    if number != expected:
        raise ValueError(
            f"{CONFIG_FILE} says {expected} layers, and the weights of {prefix}transformer have {number}."
        )


def _own_text(text: dict, weights: Weights, activation: str, tokenizer: PreTrainedTokenizerBase) -> _Tower:
    _check_fixed(text, _TEXT_FIXED, "text_cfg")
    _check_layers(weights, "text." if "text.positional_embedding" in weights else "", text.get("layers", 12))
    width, vocab_size = text.get("width", 512), text.get("vocab_size", 49408)
    if tokenizer.eos_token_id != vocab_size - 1:
        raise ValueError(
            f"The tokenizer's end token must be the last of the model's {vocab_size} tokens, as CLIP's is: "
            f"{vocab_size - 1}, not {tokenizer.eos_token_id}."
        )
    config = CLIPTextConfig(
        **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")},
        hidden_size=width,
        intermediate_size=int(width * text.get("mlp_ratio", 4.0)),
        num_hidden_layers=text.get("layers", 12),
        num_attention_heads=text.get("heads", 8),
        vocab_size=vocab_size,
        max_position_embeddings=text.get("context_length", 77),
        hidden_act=activation,
    )
    return _Tower(config, OPENAI_NAMES)


def _bert_tower(text: dict, text_config: str | None, record: Record) -> _Tower:
    pooler = text.get("hf_pooler_type") or text.get("pooler_type") or "mean_pooler"
    if pooler != "cls_last_hidden_state_pooler":
        raise ValueError(
            f"{CONFIG_FILE}: texts are pooled by {pooler!r}; only 'cls_last_hidden_state_pooler' can be converted."
        )
    folder = find_folder(text_config or text["hf_model_name"], record, weights=())
    config = load_config(folder)
    if max_text_length(config) is not None and max_text_length(config) < text.get("context_length", 77):
        raise ValueError(f"{CONFIG_FILE}: context_length is more than the {max_text_length(config)} of its encoder.")
    return _Tower(config, _BERT_NAMES)


def _logit_bias(weights: Weights) -> float | None:
    """Of a model that was trained with the sigmoid loss; ours has one dimension."""
    if "logit_bias" not in weights:
        return None
    weights["logit_bias"] = weights["logit_bias"].reshape(-1)
    return weights["logit_bias"].float().mean().item()


def _projection(text: dict) -> str:
    """Our name of the two heads."""
    if not text.get("hf_model_name"):
        return "linear"
    kind = text.get("hf_proj_type") or text.get("proj")
    if kind not in ("linear", "mlp"):
        raise ValueError(f"{CONFIG_FILE}: the text projection is {kind!r}; 'linear' or 'mlp' can be converted.")
    return "open_clip" if kind == "mlp" else "linear"


def _side(size: int | list[int]) -> int:
    sides = set(size if isinstance(size, (list, tuple)) else [size])
    if len(sides) != 1:
        raise ValueError(f"{CONFIG_FILE}: the image encoder takes {size} pixels; only squares can be converted.")
    return sides.pop()


def _image_processor(preprocessing: dict, vision: dict, image_options: dict | None) -> CLIPImageProcessor:
    side = _side(preprocessing.get("size") or vision.get("image_size", 224))
    mode, interpolation = preprocessing.get("resize_mode", "shortest"), preprocessing.get("interpolation", "bicubic")
    if mode not in ("shortest", "squash") or interpolation not in ("bicubic", "bilinear"):
        raise ValueError(
            f"{CONFIG_FILE}: images are resized by {mode!r} and {interpolation!r}; 'shortest' or 'squash' and "
            "'bicubic' or 'bilinear' can be converted."
        )
    square = {"height": side, "width": side}
    processor = CLIPImageProcessor(
        size={"shortest_edge": side} if mode == "shortest" else square,
        crop_size=square,
        do_center_crop=mode == "shortest",
        resample=Image.Resampling[interpolation.upper()],
        image_mean=list(preprocessing.get("mean") or OPENAI_CLIP_MEAN),
        image_std=list(preprocessing.get("std") or OPENAI_CLIP_STD),
    )
    return with_options(processor, image_options or {})


SOURCE = Source(
    name="open_clip",
    convert=open_clip,
    reads=f"a model of open_clip with {CONFIG_FILE}, such as WhyXrayCLIP or BiomedCLIP",
    writes="CLIP's two encoders, or ViT and BERT; open_clip's projections",
    options={
        "model": f"folder or Hub id that holds {CONFIG_FILE}",
        "tokenizer": "folder or Hub id of the tokenizer, if it is not the one that the model names",
        "text_config": "folder or Hub id of the text encoder's config.json, if it is not the one that the model names",
    },
)
