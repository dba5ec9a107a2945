# Licensed under the Apache License, Version 2.0.
"""What a model can do: zero-shot classification, localisation, sparsity of its maps, retrieval."""

from .prompts import has_prompts, load_prompts
from .zero_shot import LABEL_POLICIES, combine_members, evaluate_zero_shot, load_model, member_folders


__all__ = [
    "LABEL_POLICIES",
    "combine_members",
    "evaluate_zero_shot",
    "has_prompts",
    "load_model",
    "load_prompts",
    "member_folders",
]
