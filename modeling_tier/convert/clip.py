# Licensed under the Apache License, Version 2.0.
"""CLIPModel of transformers: OpenAI's models on the Hub, XrayCLIP and others."""

from ..configuration_tier import TierConfig
from .assemble import POSITIONS, assemble, read_transformers_model
from .source import Converted, Source
from .weight_files import Record


def clip(model: str, image_options: dict | None = None, record: Record | None = None) -> Converted:
    """
    Any CLIPModel of transformers.

    Args:
        model: its folder or Hub id.
        image_options: options that replace those of the model's own image processor.
        record: filled with what was read and what was not used.

    Returns:
        the model, in evaluation mode, and its processor.

    Raises:
        ValueError: if a file is missing, unreadable or refused, or weights are missing, surplus or of another shape.
    """
    record = record or Record()
    source = read_transformers_model(model, "clip", image_options, record)
    config = TierConfig(
        text_config=source.config.text_config,
        vision_config=source.config.vision_config,
        projection_dim=source.config.projection_dim,
        logit_scale_init_value=source.config.logit_scale_init_value,
    )
    return assemble(config, source.weights, str, POSITIONS, source.image_processor, source.tokenizer, record)


SOURCE = Source(
    name="clip",
    convert=clip,
    reads="a CLIPModel of transformers",
    writes="CLIP's two encoders, linear projections",
    options={"model": "folder or Hub id"},
)
