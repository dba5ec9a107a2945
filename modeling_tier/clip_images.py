# Licensed under the Apache License, Version 2.0.
"""CLIP's image processor, by torchvision where it is installed and by Pillow elsewhere."""

from transformers.utils import is_torchvision_available


if is_torchvision_available():
    from transformers import CLIPImageProcessor
else:  # the same class that transformers falls back to, without its advice at the start of every command
    from transformers import CLIPImageProcessorPil as CLIPImageProcessor


__all__ = ["CLIPImageProcessor"]
