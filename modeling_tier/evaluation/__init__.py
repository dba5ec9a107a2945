# Licensed under the Apache License, Version 2.0.
"""What a model can do: zero-shot classification, localisation, sparsity of its maps, retrieval."""

from ..loading import load_model
from .prompts import has_prompts, load_negation, load_no_finding, load_prompts, own_prompts
from .protocols import PROTOCOLS
from .scoring import DTYPES
from .zero_shot import (
    ENSEMBLE_FILE,
    LABEL_POLICIES,
    combine_members,
    evaluate_zero_shot,
    is_ensemble,
    member_folders,
)


__all__ = [
    "DTYPES",
    "ENSEMBLE_FILE",
    "LABEL_POLICIES",
    "PROTOCOLS",
    "combine_members",
    "evaluate_zero_shot",
    "has_prompts",
    "is_ensemble",
    "load_model",
    "load_negation",
    "load_no_finding",
    "load_prompts",
    "own_prompts",
    "member_folders",
]
