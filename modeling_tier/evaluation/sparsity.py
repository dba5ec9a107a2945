# Licensed under the Apache License, Version 2.0.
"""How sparse are the similarities of a text's tokens to its image's patches?"""

import math

import numpy as np
import torch

from ..entropy_tier import entropy, log_distribution


def sparsity(cosines: torch.Tensor, mask: torch.Tensor, temperature: float = 1.0) -> dict[str, torch.Tensor]:
    """
    Measures of sparsity of each pair.

    Args:
        cosines (`torch.Tensor` of shape `(N, T, P)`):
            Cosine of each token with each patch of its own image. What stands at a masked token does not matter.
        mask (`torch.Tensor` of shape `(N, T)`, bool or 0/1):
            True where a token counts.
        temperature (`float`, defaults to 1.0):
            Divides the cosines before the softmax of the entropies; the others are of the cosines themselves.

    Returns:
        tensors (N,), NaN for a pair without a valid token; means over a pair's valid tokens unless said otherwise:
            `token_entropy`: entropy of a token over the patches, H_t, in nats;
            `patch_entropy`: entropy of a patch over the valid tokens, mean over the patches, in nats; both as in
            [`text_image_entropy`];
            `effective_patches`: exp(H_t), between 1 and P: the number of patches over which a uniform distribution has
            that entropy. At a temperature of 1 it stays close to P, since cosines lie in [-1, 1];
            `gini`: Gini coefficient (Hurley & Rickard, 2009, "Comparing measures of sparsity") of a token's cosines,
            shifted so that the smallest is 0: 0 if all are equal, 1 - 1 / P if one patch holds all. Scale does not
            matter to it: differences that are no more than rounding count like others;
            `negative_share`: fraction of the cosines below 0;
            `peak`: a token's largest cosine.

    Raises:
        ValueError: if the shapes do not fit each other, there is no patch, or the temperature is not positive.
    """
    if cosines.ndim != 3 or mask.shape != cosines.shape[:2] or 0 in cosines.shape[1:]:
        raise ValueError(
            "cosines must have shape (N, T, P), with at least one token and one patch, and mask (N, T); got "
            f"{tuple(cosines.shape)} and {tuple(mask.shape)}."
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive; got {temperature}.")
    mask = mask.to(torch.bool)
    cosines = cosines.to(torch.promote_types(cosines.dtype, torch.float32)).masked_fill(~mask.unsqueeze(-1), 0.0)
    num_tokens, num_patches = mask.sum(dim=1), cosines.shape[2]
    log_q, log_r = (log_distribution(cosines, mask, temperature, dim) for dim in (2, 1))
    token_entropy, patch_entropy = entropy(log_q, dim=2), entropy(log_r, dim=1)  # (N, T), (N, P)

    ascending = cosines.sort(dim=2).values
    shifted = ascending - ascending[:, :, :1]
    rank = torch.arange(1, num_patches + 1, dtype=cosines.dtype, device=cosines.device)
    total = shifted.sum(dim=2)
    gini = (shifted * (2 * rank - num_patches - 1)).sum(dim=2) / (num_patches * torch.where(total > 0, total, 1.0))

    by_token = {
        "token_entropy": token_entropy,
        "effective_patches": token_entropy.exp(),
        "gini": gini,
        "negative_share": (cosines < 0).to(cosines.dtype).mean(dim=2),
        "peak": ascending[:, :, -1],
    }
    # 0 / 0 makes the NaN of a pair without a valid token.
    means = {name: (values * mask).sum(dim=1) / num_tokens for name, values in by_token.items()}
    means["patch_entropy"] = torch.where(num_tokens > 0, patch_entropy.mean(dim=1), torch.nan)
    return means


def top_share(rank_similarity: np.ndarray, fraction: float = 0.1) -> float:
    """Fraction of a map's similarity, shifted so that its smallest is 0, in its largest patches; rows are sorted."""
    shifted = rank_similarity - rank_similarity[:, -1:]
    top = math.ceil(fraction * shifted.shape[1])
    return float((shifted[:, :top].sum(axis=1) / np.maximum(shifted.sum(axis=1), 1e-12)).mean())


def peak_spread(peaks: np.ndarray, num_patches: int) -> float:
    """Entropy of the peak's patch over the images (rows), divided by log P and averaged over sentences (columns)."""
    if num_patches == 1:
        return 0.0
    entropies = []
    for column in peaks.T:
        fractions = np.bincount(column, minlength=num_patches) / len(column)
        fractions = fractions[fractions > 0]
        entropies.append(-(fractions * np.log(fractions)).sum() / math.log(num_patches))
    return float(np.mean(entropies))
