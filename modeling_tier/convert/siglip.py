# Licensed under the Apache License, Version 2.0.
"""SiglipModel of transformers: SigLIP, SigLIP 2 of fixed size, MedSigLIP, XraySigLIP."""

from ..configuration_tier import TierConfig
from .assemble import POSITIONS, assemble, read_transformers_model, renaming, shape_of
from .source import Converted, Source
from .weight_files import Record


def siglip(model: str, image_options: dict | None = None, record: Record | None = None) -> Converted:
    """
    Any SiglipModel of transformers.

    Args:
        model: its folder or Hub id.
        image_options, record, returns, raises: as in [`~convert.clip.clip`].
    """
    record = record or Record()
    source = read_transformers_model(model, "siglip", image_options, record)
    weights, text_config, vision_config = source.weights, source.config.text_config, source.config.vision_config
    for name in ("logit_scale", "logit_bias"):
        shape_of(weights, name, 1, "a SiglipModel")
    weights["logit_scale"] = weights["logit_scale"].squeeze()
    tokenizer = source.tokenizer
    tokenizer.model_input_names = ["input_ids", "attention_mask"]  # the mask tells TIER what is a token
    tokenizer.padding_side = "right"
    text_config.pad_token_id = tokenizer.pad_token_id
    config = TierConfig(
        text_config=text_config,
        vision_config=vision_config,
        projection_dim=vision_config.hidden_size,
        projection="siglip",
        image_pooling="attention",
        logit_scale_init_value=weights["logit_scale"].item(),
        logit_bias_init_value=weights["logit_bias"].item(),
    )
    names = [(r"^text_projection", "text_model.head"), (r"^visual_projection", "vision_model.head")]
    return assemble(config, weights, renaming(names), POSITIONS, source.image_processor, tokenizer, record)


SOURCE = Source(
    name="siglip",
    convert=siglip,
    reads="a SiglipModel of transformers",
    writes="SigLIP's two encoders and heads",
    options={"model": "folder or Hub id"},
)
