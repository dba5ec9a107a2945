# Licensed under the Apache License, Version 2.0.
"""What a model can do: zero-shot classification, localisation, sparsity of its maps, retrieval."""

from .prompts import load_prompts
from .zero_shot import evaluate_zero_shot, load_model


__all__ = ["evaluate_zero_shot", "load_model", "load_prompts"]
