# Licensed under the Apache License, Version 2.0.
"""The protocols of zero-shot classification by name: which sentences, and what score comes of their cosines."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Protocol(NamedTuple):
    """How a protocol turns cosines into answers. `templates` are filled in where the prompts say nothing else."""

    description: str
    templates: dict[str, list[str]] | None
    """None: the prompts' own sentences for each finding."""
    score: Callable[[np.ndarray, np.ndarray | None, float], np.ndarray]
    """From the cosines of N images with F positive and F negative embeddings, and the temperature exp(logit_scale)."""
    probability: Callable[[np.ndarray, np.ndarray | None, float], np.ndarray]
    """Likewise, a number in [0, 1]: what the model itself would call the probability of the finding."""
    competing: bool = False
    """Whether the score of a finding depends on the other findings."""
    lower_case: bool = False
    """Whether the names of findings are written in small letters."""


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * logits))


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def _pair(positive, negative, scale):
    """exp(p) / (exp(p) + exp(n)) of the bare cosines: CheXzero divides them by no temperature."""
    return _sigmoid(positive - negative)


def _softmax_over_findings(positive, negative, scale):
    return _softmax(scale * positive)


PROTOCOLS = {
    "tier": Protocol(
        "cos(image, positive sentences) - cos(image, negative sentences); the embeddings of a list are normalised, "
        "averaged and normalised again (arXiv 2212.06710)",
        None,
        lambda positive, negative, scale: positive - negative,
        lambda positive, negative, scale: _sigmoid(scale * (positive - negative)),
    ),
    "chexzero": Protocol(
        "softmax over the cosines of the image with a positive and a negative sentence, without a temperature "
        "(CheXzero, Tiu et al. 2022)",
        {"positive": ["{finding}"], "negative": ["no {finding}"]},
        _pair,
        _pair,
    ),
    "pipeline": Protocol(
        "softmax over the findings of the model's logits, as the zero-shot-image-classification pipeline of "
        "transformers gives it with the findings' names as candidate labels",
        {"positive": ["This is a photo of {finding}."]},
        _softmax_over_findings,
        _softmax_over_findings,
        competing=True,
    ),
    "carzero": Protocol(
        "cos(image, one positive sentence), the finding's name in small letters; no negative sentence (CARZero, "
        "arXiv 2402.17417; CARZero itself takes the logit of its cross-attention in place of the cosine)",
        {"positive": ["There is {finding}"]},
        lambda positive, negative, scale: positive,
        lambda positive, negative, scale: _sigmoid(scale * positive),
        lower_case=True,
    ),
}
