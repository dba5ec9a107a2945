# Licensed under the Apache License, Version 2.0.
"""The text-image entropy regulariser of TIER (Palepu & Beam, 2023, arXiv 2212.06710)."""

from typing import NamedTuple

import torch


class TextImageEntropy(NamedTuple):
    """The two terms of the regulariser, in nats: scalar tensors, float32 (float64 for float64 inputs)."""

    token: torch.Tensor
    """Mean entropy of a token over the patches, in [0, log P]; low when a token describes few patches."""
    patch: torch.Tensor
    """Mean entropy of a patch over the tokens, in [0, log T]; low when a patch answers to few tokens."""


def l2_normalize(embeds: torch.Tensor) -> torch.Tensor:
    """Scale the last dimension to unit length. A zero vector stays zero and passes no gradient on."""
    norm = torch.linalg.vector_norm(embeds, dim=-1, keepdim=True)
    # Division by infinity rather than by a small epsilon: the latter would multiply the gradient by 1 / epsilon.
    return embeds / torch.where(norm > 1e-12, norm, torch.inf)


def text_image_entropy(
    token_embeds: torch.Tensor,
    patch_embeds: torch.Tensor,
    token_mask: torch.Tensor | None = None,
    temperature: float = 1.0,
) -> TextImageEntropy:
    """
    Entropies of the token-to-patch similarities of matched text-image pairs: the regulariser of arXiv 2212.06710.

    With `S[t, p]` the cosine similarity of token `t` and patch `p` of one pair,

        H_t = -sum_p q[t, p] log q[t, p],  q[t, :] = softmax(S[t, :] / temperature)  over the patches
        H_p = -sum_t r[t, p] log r[t, p],  r[:, p] = softmax(S[:, p] / temperature)  over the valid tokens

    are averaged over the valid tokens (the patches) of a pair, then over the pairs. Both are computed without an
    epsilon as `H = logsumexp(s) - sum(softmax(s) * s)`, whose gradient is `dH/ds_j = -q_j (s_j - sum(q * s))`.

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
        also for half-precision inputs and under autocast.

    Raises:
        ValueError: if the shapes do not fit each other, a dimension is empty or the temperature is not positive.
    """
    _check_inputs(token_embeds, patch_embeds, token_mask, temperature)
    dtype = torch.promote_types(torch.promote_types(token_embeds.dtype, patch_embeds.dtype), torch.float32)

    with torch.autocast(device_type=token_embeds.device.type, enabled=False):
        if token_mask is None:
            token_mask = torch.ones(token_embeds.shape[:2], dtype=torch.bool, device=token_embeds.device)
        token_mask = token_mask.to(torch.bool)
        # Zeroed before anything is computed, so that not even a NaN at a padding position gets through.
        tokens = l2_normalize(token_embeds.to(dtype).masked_fill(~token_mask.unsqueeze(-1), 0.0))
        patches = l2_normalize(patch_embeds.to(dtype))
        scores = tokens @ patches.transpose(1, 2) / temperature  # (N, T, P)

        token_entropy = _softmax_entropy(scores, scores, dim=2)  # (N, T)
        valid = token_mask.to(dtype)
        num_tokens = valid.sum(dim=1)  # (N,)
        token_entropy = (token_entropy * valid).sum(dim=1) / num_tokens.clamp(min=1)  # (N,)

        # A pair without a valid token keeps all of its (zero) scores: it stays free of NaN until it is left out below.
        has_token = num_tokens > 0
        left_out = ~token_mask & has_token.unsqueeze(1)
        logits = scores.masked_fill(left_out.unsqueeze(-1), -torch.inf)
        patch_entropy = _softmax_entropy(logits, scores, dim=1).mean(dim=1)  # (N,)

        pair_weight = has_token.to(dtype)
        num_pairs = pair_weight.sum().clamp(min=1)
        return TextImageEntropy(
            token=(token_entropy * pair_weight).sum() / num_pairs,
            patch=(patch_entropy * pair_weight).sum() / num_pairs,
        )


def _softmax_entropy(logits: torch.Tensor, scores: torch.Tensor, dim: int) -> torch.Tensor:
    """Entropy of `softmax(logits)`; `scores` equals `logits` wherever the softmax is not zero, and is finite."""
    return torch.logsumexp(logits, dim=dim) - (torch.softmax(logits, dim=dim) * scores).sum(dim=dim)


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
