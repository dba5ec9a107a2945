# Licensed under the Apache License, Version 2.0.
"""
ZeroGPU, the shared GPUs of Spaces: a decorated function has one while it runs, in a process that is forked for it. Its
arguments and its result are pickled; what it closes over, such as a model, is not. Elsewhere nothing changes.
"""

import os
from collections.abc import Callable

import torch

from modeling_tier import TierZeroShotPipeline


ON_ZERO_GPU = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
MAX_SECONDS = 30  # of one call, first transfer of the models included: shorter calls wait less in ZeroGPU's queue

if ON_ZERO_GPU:
    import spaces  # the platform's own package


def on_gpu(function: Callable) -> Callable:
    """The function, with a GPU on ZeroGPU."""
    return spaces.GPU(function, duration=MAX_SECONDS) if ON_ZERO_GPU else function


def move_to_gpu(models: dict[str, TierZeroShotPipeline], device: str = "cuda") -> None:
    """On ZeroGPU, have the models on the GPU of every later call."""
    if ON_ZERO_GPU:
        for pipeline in models.values():
            pipeline.model.to(device)
            pipeline.device = torch.device(device)
