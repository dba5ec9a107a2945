# Licensed under the Apache License, Version 2.0.
"""Training: the configuration, the loop, its checkpoints."""

from .configuration import load_config
from .loop import train
from .options import TrainConfig


__all__ = ["TrainConfig", "load_config", "train"]
