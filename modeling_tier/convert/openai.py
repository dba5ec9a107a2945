# Licensed under the Apache License, Version 2.0.
"""OpenAI's format of CLIP with a vision transformer: state dicts, TorchScript archives, open_clip's checkpoints."""

import re
from pathlib import Path

from PIL import Image
from transformers import CLIPTextConfig, CLIPVisionConfig

from ..configuration_tier import TierConfig
from .assemble import Names, assemble, cropping_image_processor, load_tokenizer, renaming, shape_of
from .source import Converted, Source
from .weight_files import Record, Weights, find_file, find_folder, read_torch, state_dict


OPENAI_TOKENIZER = "openai/clip-vit-base-patch32"
ACTIVATIONS = ("quick_gelu", "gelu")

OPENAI_NAMES: Names = [
    (r"self_attn\.q_proj\.(weight|bias)", r"attn.in_proj_\1 (query)"),
    (r"self_attn\.k_proj\.(weight|bias)", r"attn.in_proj_\1 (key)"),
    (r"self_attn\.v_proj\.(weight|bias)", r"attn.in_proj_\1 (value)"),
    (r"self_attn\.out_proj", "attn.out_proj"),
    (r"layer_norm(\d)", r"ln_\1"),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
    (r"encoder\.layers", "transformer.resblocks"),
    (r"embeddings\.patch_embedding", "conv1"),
    (r"embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"embeddings\.(class|token)_embedding", r"\1_embedding"),
    (r"pre_layrnorm", "ln_pre"),
    (r"post_layernorm", "ln_post"),
    (r"final_layer_norm", "ln_final"),
    (r"^vision_model\.", "visual."),
    (r"^text_model\.", ""),
    (r"^visual_projection\.weight", "visual.proj (transposed)"),
    (r"^text_projection\.weight", "text_projection (transposed)"),
]


def openai(
    model: str,
    tokenizer: str = OPENAI_TOKENIZER,
    image_options: dict | None = None,
    record: Record | None = None,
    activation: str | None = None,
    **reading_options,
) -> Converted:
    """
    A vision transformer in the format of OpenAI's CLIP, such as CheXzero.

    Args:
        model: the .pt file, on the disk or as "user/name/path/in/repository.pt": a state dict, a TorchScript archive
            as OpenAI published them, or a checkpoint of open_clip's trainer.
        tokenizer: folder or Hub id of CLIP's tokenizer.
        activation: "quick_gelu", as OpenAI's models and open_clip's of a name with "-quickgelu" compute, or "gelu", as
            open_clip's others do. The weights do not tell. "quick_gelu" by default; a checkpoint of open_clip's
            trainer needs it said.
        image_options: replace CLIP's mean and standard deviation, and the size that the weights tell.
        **reading_options: of [`TierProcessor`].
        record, returns, raises: as in [`~convert.clip.clip`].
    """
    record = record or Record()
    if activation not in (None, *ACTIVATIONS):
        raise ValueError(f"activation must be one of {list(ACTIVATIONS)}; got {activation!r}.")
    content = read_torch(find_file(model, record))
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        if activation is None:
            raise ValueError(
                f"{Path(model).name} is a checkpoint of a trainer, such as open_clip's ('state_dict'), whose models "
                "compute with either activation: say --activation gelu, or quick_gelu if the name of its architecture "
                "ends in -quickgelu."
            )
        record.unused |= {key: "about the training, not the model" for key in content if key != "state_dict"}
        content = content["state_dict"]
    weights = state_dict(content)
    tokenizer = load_tokenizer(find_folder(tokenizer, record, weights=()))
    config = openai_config(weights, tokenizer, activation or ACTIVATIONS[0])
    if activation is None:
        record.notes.append(
            "computed with quick_gelu, as OpenAI's models are: the weights do not tell; open_clip's models without "
            "-quickgelu in their name need --activation gelu"
        )
    size = config.vision_config.image_size
    image_processor = cropping_image_processor(size, size, Image.Resampling.BICUBIC, image_options)
    unused = dict.fromkeys(("input_resolution", "context_length", "vocab_size"), "read from the shapes of the weights")
    weights, source_name = openai_weights(weights), renaming(OPENAI_NAMES)
    return assemble(config, weights, source_name, unused, image_processor, tokenizer, record, **reading_options)


def openai_config(weights: Weights, tokenizer, activation: str) -> TierConfig:
    """What the shapes tell, and the tokenizer's special tokens."""
    if any(key.startswith(("visual.layer1.", "visual.attnpool.")) for key in weights):
        raise ValueError("Its image encoder is CLIP's ResNet, which transformers does not have: use one with a ViT.")
    kind = "a CLIP with a vision transformer in OpenAI's format"
    width, _, _, patch_size = shape_of(weights, "visual.conv1.weight", 4, kind)
    num_positions, _ = shape_of(weights, "visual.positional_embedding", 2, kind)
    vocab_size, text_width = shape_of(weights, "token_embedding.weight", 2, kind)
    context_length, _ = shape_of(weights, "positional_embedding", 2, kind)
    if tokenizer.eos_token_id != vocab_size - 1:
        raise ValueError(
            f"The tokenizer's end token must be the last of the model's {vocab_size} tokens, as CLIP's is: "
            f"{vocab_size - 1}, not {tokenizer.eos_token_id}."
        )
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = _openai_tower(weights, "", text_width, activation)
    vision = _openai_tower(weights, "visual.", width, activation)
    return TierConfig(
        text_config=CLIPTextConfig(**text, **ends, vocab_size=vocab_size, max_position_embeddings=context_length),
        vision_config=CLIPVisionConfig(
            **vision, patch_size=patch_size, image_size=patch_size * round((num_positions - 1) ** 0.5)
        ),
        projection_dim=shape_of(weights, "visual.proj", 2, kind)[1],
    )


def _openai_tower(weights: Weights, prefix: str, width: int, activation: str) -> dict:
    if width % 64:
        raise ValueError(f"The heads of OpenAI's format have 64 channels, and {prefix}transformer is {width} wide.")
    pattern = rf"{re.escape(prefix)}transformer\.resblocks\.(\d+)\."
    layers = {m[1] for m in (re.match(pattern, key) for key in weights) if m}
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 64}
    return {**sizes, "num_hidden_layers": len(layers), "hidden_act": activation}


# Queries, keys and values in one: in OpenAI's format, and in timm's.
_FUSED = tuple(f"attn.{name}" for name in ("in_proj_weight", "in_proj_bias", "qkv.weight", "qkv.bias"))


def openai_weights(weights: Weights) -> Weights:
    """Queries, keys and values apart, and projections as linear layers have them."""
    result = {}
    for key, tensor in weights.items():
        if key.endswith(_FUSED):
            result |= {f"{key} ({part})": third for part, third in zip(("query", "key", "value"), tensor.chunk(3))}
        elif key in ("visual.proj", "text_projection", "text.text_projection"):
            result[f"{key} (transposed)"] = tensor.transpose(0, -1)
        else:
            result[key] = tensor
    return result


SOURCE = Source(
    name="openai",
    convert=openai,
    reads="a vision transformer in the format of OpenAI's CLIP, such as CheXzero",
    writes="CLIP's two encoders, linear projections",
    options={
        "model": ".pt file, or user/name/file.pt on the Hub",
        "tokenizer": "folder or Hub id of CLIP's tokenizer",
        "activation": "quick_gelu or gelu: what the weights do not tell",
    },
)
