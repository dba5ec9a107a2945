# Licensed under the Apache License, Version 2.0.
"""ResNets under torchvision's names, as transformers' ResNetModel."""

import re
from collections.abc import Callable

from transformers import ResNetConfig

from .assemble import shape_of
from .weight_files import Weights


def resnet_config(weights: Weights, prefix: str) -> ResNetConfig:
    """Depths and widths of a ResNet whose keys begin with `prefix`; its stride is in the 3x3 convolution."""
    kind = "a ResNet with torchvision's names"
    blocks = {m.groups() for m in (re.match(rf"{re.escape(prefix)}layer(\d)\.(\d+)\.", key) for key in weights) if m}
    stages = sorted({stage for stage, _ in blocks} | {"1"})
    last = "conv3" if f"{prefix}layer1.0.conv3.weight" in weights else "conv2"
    embedding_size, num_channels, _, _ = shape_of(weights, f"{prefix}conv1.weight", 4, kind)
    return ResNetConfig(
        num_channels=num_channels,
        embedding_size=embedding_size,
        hidden_sizes=[shape_of(weights, f"{prefix}layer{stage}.0.{last}.weight", 4, kind)[0] for stage in stages],
        depths=[sum(stage == other for other, _ in blocks) for stage in stages],
        layer_type="bottleneck" if last == "conv3" else "basic",
        downsample_in_bottleneck=False,
    )


def resnet_names(prefix: str) -> list[tuple[str, str | Callable]]:
    """Patterns and replacements that make torchvision's names, behind `prefix`, from those of our vision model."""
    return [
        (r"^vision_model\.embedder\.embedder\.convolution", f"{prefix}conv1"),
        (r"^vision_model\.embedder\.embedder\.normalization", f"{prefix}bn1"),
        (r"^vision_model\.encoder\.stages\.(\d)\.layers", lambda m: f"{prefix}layer{int(m[1]) + 1}"),
        (r"\.layer\.(\d)\.convolution", lambda m: f".conv{int(m[1]) + 1}"),
        (r"\.layer\.(\d)\.normalization", lambda m: f".bn{int(m[1]) + 1}"),
        (r"\.shortcut\.convolution", ".downsample.0"),
        (r"\.shortcut\.normalization", ".downsample.1"),
    ]
