# Licensed under the Apache License, Version 2.0.
"""Published models that no TIER model can hold, recognised by the names of their weights."""

import re
from collections.abc import Iterable, Mapping


_BY_ATTENTION = (
    "its score of a picture and a text is computed by attention between the two, not as the cosine of two embeddings"
)
# A name that the model alone has, and why it cannot be converted.
_UNSUPPORTED = {
    "CARZero": (r"(.+\.)?fusion_module\..+", _BY_ATTENTION),
    "RadZero": (r"(.+\.)?align_transformer\..+", _BY_ATTENTION),
    "MedKLIP": (r"(.+\.)?disease_embedding_layer\..+", _BY_ATTENTION),
    "KAD": (r"(.+\.)?decoder\.layers\.\d+\.multihead_attn\..+", _BY_ATTENTION),  # MedKLIP has these names too
}


def check_supported(content: object) -> None:
    """
    Args:
        content: of a file: weights by their names, or a dict with such dicts in it.

    Raises:
        ValueError: for a model that is known not to fit, with its name and the reason.
    """
    names = list(_names(content))
    for model, (pattern, reason) in _UNSUPPORTED.items():
        if any(re.fullmatch(pattern, name) for name in names):
            raise ValueError(f"These are weights of {model}, which cannot be converted: {reason}.")


def _names(content: object) -> Iterable[str]:
    for name, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(name, str):
            yield name
        if isinstance(value, Mapping):
            yield from (inner for inner in value if isinstance(inner, str))
