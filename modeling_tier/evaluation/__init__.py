# Licensed under the Apache License, Version 2.0.
"""What a model can do: zero-shot classification, localisation, sparsity of its maps, retrieval."""

from .prompts import has_prompts, load_prompts
from .zero_shot import (
    ENSEMBLE_FILE,
    LABEL_POLICIES,
    combine_members,
    evaluate_zero_shot,
    is_ensemble,
    load_model,
    member_folders,
)


__all__ = [
    "ENSEMBLE_FILE",
    "LABEL_POLICIES",
    "combine_members",
    "evaluate_zero_shot",
    "has_prompts",
    "is_ensemble",
    "load_model",
    "load_prompts",
    "member_folders",
]
