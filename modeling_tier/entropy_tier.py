# Licensed under the Apache License, Version 2.0.
"""
The text-image entropy regulariser of TIER (Palepu & Beam, 2023, arXiv 2212.06710).

With `S[t, p]` the cosine similarity of token `t` and patch `p` of one pair of text and image,

    H_t = -sum_p q[t, p] log q[t, p],  q[t, :] = softmax(S[t, :] / temperature)  over the patches
    H_p = -sum_t r[t, p] log r[t, p],  r[:, p] = softmax(S[:, p] / temperature)  over the valid tokens

are averaged over the valid tokens (the patches) of a pair, then over the pairs.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable

from .cosines_tier import cosine_embedding_gradients, l2_normalize, token_patch_cosines


class TextImageEntropy(NamedTuple):
    """The two terms of the regulariser, in nats: scalar tensors, float32 (float64 for float64 inputs)."""

    token: torch.Tensor
    """Mean entropy of a token over the patches, in [0, log P]; low when a token describes few patches."""
    patch: torch.Tensor
    """Mean entropy of a patch over the tokens, in [0, log T]; low when a patch answers to few tokens."""


def plain_text_image_entropy(
    token_embeds: torch.Tensor, patch_embeds: torch.Tensor, token_mask: torch.Tensor, temperature: float = 1.0
) -> TextImageEntropy:
    """The definition, differentiated by autograd: what [`text_image_entropy`] gives in less time and memory."""
    cosines = l2_normalize(token_embeds) @ l2_normalize(patch_embeds).transpose(1, 2)  # (N, T, P)
    return mean_entropies(*entropies(cosines, token_mask, temperature), token_mask)


def entropies(
    cosines: torch.Tensor, token_mask: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Entropy of every token over the patches (N, T), and of every patch over the valid tokens (N, P)."""
    token_entropy = entropy(log_distribution(cosines, token_mask, temperature, dim=2), dim=2)
    patch_entropy = entropy(log_distribution(cosines, token_mask, temperature, dim=1), dim=1)
    return token_entropy, patch_entropy


def log_distribution(cosines: torch.Tensor, token_mask: torch.Tensor, temperature: float, dim: int) -> torch.Tensor:
    """Logarithm of `q`, over the patches (`dim` 2), or of `r`, over the valid tokens (1); cosines are finite."""
    scores = cosines if temperature == 1 else cosines / temperature
    if dim == 1:  # not minus infinity, which times its probability 0 would be NaN
        scores = scores.masked_fill(~token_mask.unsqueeze(2), -1e30)
    return torch.log_softmax(scores, dim=dim)


def entropy(log_probability: torch.Tensor, dim: int) -> torch.Tensor:
    """In nats, without an epsilon: the logarithm comes from log_softmax."""
    return -(log_probability.exp() * log_probability).sum(dim=dim)


def mean_entropies(
    token_entropy: torch.Tensor, patch_entropy: torch.Tensor, token_mask: torch.Tensor
) -> TextImageEntropy:
    """Means over the valid tokens (the patches) of a pair, then over the pairs that have a valid token."""
    valid = token_mask.to(token_entropy.dtype)
    num_tokens = valid.sum(dim=1)  # (N,)
    token_entropy = (token_entropy * valid).sum(dim=1) / num_tokens.clamp(min=1)  # (N,)
    pair_weight = (num_tokens > 0).to(token_entropy.dtype)
    num_pairs = pair_weight.sum().clamp(min=1)
    return TextImageEntropy(
        token=(token_entropy * pair_weight).sum() / num_pairs,
        patch=(patch_entropy.mean(dim=1) * pair_weight).sum() / num_pairs,
    )


# The same with its gradient in closed form. Between the two passes autograd would keep several N x T x P arrays and
# the unit vectors in float32, which are larger still; this keeps the embeddings alone, and takes less time.


def text_image_entropy(
    token_embeds: torch.Tensor,
    patch_embeds: torch.Tensor,
    token_mask: torch.Tensor | None = None,
    temperature: float = 1.0,
) -> TextImageEntropy:
    """
    Entropies of the token-to-patch similarities of matched text-image pairs: the regulariser of arXiv 2212.06710, by
    the equations at the top of this file. There is no second derivative.

    Args:
        token_embeds (`torch.Tensor` of shape `(N, T, D)`):
            Projected token embeddings of N texts, of any length (they are normalised here) and floating dtype.
        patch_embeds (`torch.Tensor` of shape `(N, P, D)`):
            Projected patch embeddings of the N images that the texts describe.
        token_mask (`torch.Tensor` of shape `(N, T)`, bool or 0/1, *optional*):
            True where a token counts. What stands at the other positions changes neither value nor gradient. A pair
            without a valid token adds nothing and is not counted in the mean; if no pair has one, both terms are 0.
        temperature (`float`, defaults to 1.0):
            Divides the cosines; the paper uses the raw cosine. Must be positive.

    Returns:
        [`TextImageEntropy`]: `.token` and `.patch`, scalars. The arithmetic is float32 (float64 for float64 inputs),
        also for half-precision inputs and under autocast. On a GPU, products with bfloat16 embeddings are those of
        the tensor cores, which sum in float32.

    Raises:
        ValueError: if the shapes do not fit each other, a dimension is empty or the temperature is not positive.
    """
    _check_inputs(token_embeds, patch_embeds, token_mask, temperature)
    if token_mask is None:
        token_mask = torch.ones(token_embeds.shape[:2], dtype=torch.bool, device=token_embeds.device)
    with torch.autocast(device_type=token_embeds.device.type, enabled=False):
        token_mask = token_mask.to(torch.bool)
        token_entropy, patch_entropy = _Entropies.apply(token_embeds, patch_embeds, token_mask, temperature)
        return mean_entropies(token_entropy, patch_entropy, token_mask)


class _Entropies(torch.autograd.Function):
    """The [`entropies`] of embeddings, with the gradient `dH/ds_j = -q_j (log q_j + H)` of each score."""

    @staticmethod
    def forward(ctx, token_embeds, patch_embeds, token_mask, temperature):
        ctx.save_for_backward(token_embeds, patch_embeds, token_mask)
        ctx.temperature = temperature
        cosines = token_patch_cosines(token_embeds, patch_embeds, token_mask)
        return entropies(cosines.values, token_mask, temperature)

    @staticmethod
    @once_differentiable
    def backward(ctx, token_grad, patch_grad):
        token_embeds, patch_embeds, token_mask = ctx.saved_tensors
        with torch.autocast(device_type=token_embeds.device.type, enabled=False):  # whoever calls backward
            cosines = token_patch_cosines(token_embeds, patch_embeds, token_mask)
            grad = cosine_gradient(cosines.values, token_mask, ctx.temperature, token_grad, patch_grad)
            token_grad, patch_grad = cosine_embedding_gradients(cosines, grad)
            return token_grad.to(token_embeds.dtype), patch_grad.to(patch_embeds.dtype), None, None


def cosine_gradient(cosines, token_mask, temperature: float, token_grad, patch_grad) -> torch.Tensor:
    """Gradient (N, T, P) with respect to the cosines, from those of the tokens' and of the patches' entropies."""
    distribution = partial(log_distribution, cosines, token_mask, temperature)
    # One direction after the other: few arrays of this size at a time. ds/dcosine = 1 / temperature.
    grad = minus_entropy_gradient(distribution(dim=2), dim=2).mul_(token_grad.unsqueeze(2))
    grad += minus_entropy_gradient(distribution(dim=1), dim=1).mul_(patch_grad.unsqueeze(1))
    grad /= -temperature
    return grad


def minus_entropy_gradient(log_probability: torch.Tensor, dim: int) -> torch.Tensor:
    """`-dH/ds_j = q_j (log q_j + H)`. Overwrites its input."""
    probability = log_probability.exp()
    log_probability -= (probability * log_probability).sum(dim=dim, keepdim=True)
    return probability.mul_(log_probability)


def _check_inputs(
    token_embeds: torch.Tensor, patch_embeds: torch.Tensor, token_mask: torch.Tensor | None, temperature: float
) -> None:
    if token_embeds.ndim != 3 or patch_embeds.ndim != 3:
        raise ValueError(
            "token_embeds must have shape (N, T, D) and patch_embeds (N, P, D); got "
            f"{tuple(token_embeds.shape)} and {tuple(patch_embeds.shape)}."
        )
    if token_embeds.shape[0] != patch_embeds.shape[0] or token_embeds.shape[2] != patch_embeds.shape[2]:
        raise ValueError(
            "token_embeds (N, T, D) and patch_embeds (N, P, D) must agree in N, the number of pairs, and D, the "
            f"dimension of the joint space; got {tuple(token_embeds.shape)} and {tuple(patch_embeds.shape)}."
        )
    if 0 in token_embeds.shape[1:] or patch_embeds.shape[1] == 0:
        raise ValueError(
            "At least one token, one patch and one dimension are needed; got token_embeds "
            f"{tuple(token_embeds.shape)} and patch_embeds {tuple(patch_embeds.shape)}."
        )
    if not token_embeds.is_floating_point() or not patch_embeds.is_floating_point():
        raise ValueError(
            f"token_embeds and patch_embeds must be floating point; got {token_embeds.dtype} and {patch_embeds.dtype}."
        )
    if token_mask is not None and token_mask.shape != token_embeds.shape[:2]:
        raise ValueError(
            f"token_mask must have shape (N, T) = {tuple(token_embeds.shape[:2])}; got {tuple(token_mask.shape)}."
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive; got {temperature}.")
