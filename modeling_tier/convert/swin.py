# Licensed under the Apache License, Version 2.0.
"""Swin transformers under the names of transformers' first versions, as its SwinModel of today."""

import re

from transformers import SwinConfig

from .assemble import Names, shape_of
from .weight_files import Weights


UNUSED = {r".*\.relative_position_index": "where two patches of a window lie: counted here, not stored"}

_HEAD_CHANNELS, _WINDOW = 32, 7  # of every published Swin of 224 pixels
_LONG_NAMES = {"q": "query", "k": "key", "v": "value"}


def swin_config(weights: Weights, prefix: str, kind: str) -> SwinConfig:
    """
    Depths and widths of a Swin transformer for 224 pixels whose keys begin with `prefix`.

    Args:
        kind: what the weights should be, for the message if they are not.
    """
    embed_dim, _, patch_size, _ = shape_of(weights, f"{prefix}embeddings.patch_embeddings.projection.weight", 4, kind)
    pattern = rf"{re.escape(prefix)}encoder\.layers\.(\d)\.blocks\.(\d+)\."
    blocks = {m.groups() for m in (re.match(pattern, key) for key in weights) if m}
    stages = sorted({stage for stage, _ in blocks})
    return SwinConfig(
        image_size=224,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depths=[sum(stage == other for other, _ in blocks) for stage in stages],
        num_heads=[embed_dim * 2**i // _HEAD_CHANNELS for i in range(len(stages))],
        window_size=_WINDOW,
    )


def swin_names(prefix: str) -> Names:
    """Patterns and replacements that make the old names, behind `prefix`, from those of our vision model."""
    return [
        (r"\.attention\.([qkv])_proj\.", lambda m: f".attention.self.{_LONG_NAMES[m[1]]}."),
        (r"\.attention\.o_proj\.", ".attention.output.dense."),
        (r"\.attention\.relative_position_bias\.", ".attention.self."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
        (r"^vision_model\.", prefix),
    ]
