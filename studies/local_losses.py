# Licensed under the Apache License, Version 2.0.
"""
Losses over tokens and patches that are trained beside CLIP's, TIER's own among them, for the comparison of
`trained_start.py`. Each takes a [`Pairs`] and returns a scalar; its negatives, if it has any, are those of the batch.

Of the methods below only the local term is here, as its paper has it; data, encoders and CLIP's loss are the same for
all. What their authors train beside it (other encoders, sentence sampling, learned attention) is not.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.functional import cross_entropy, logsigmoid, normalize

from modeling_tier import text_image_entropy
from modeling_tier.entropy_tier import entropies, mean_entropies
from modeling_tier.modeling_tier import TierOutput


@dataclass
class Pairs:
    """N matched pairs, embedded; embeddings are of unit length."""

    text: torch.Tensor
    """(N, D)"""
    image: torch.Tensor
    """(N, D)"""
    tokens: torch.Tensor
    """(N, T, D)"""
    patches: torch.Tensor
    """(N, P, D)"""
    patch_weights: torch.Tensor
    """(N, P): a patch's contribution to the score is its cosine with the text times this."""
    mask: torch.Tensor
    """(N, T) the tokens that are no padding."""
    content: torch.Tensor
    """(N, T) those of them that are neither [CLS] nor [SEP]."""
    scale: torch.Tensor
    """The model's exp(logit_scale)."""

    @classmethod
    def of(cls, out: TierOutput, mask: torch.Tensor, content: torch.Tensor, scale: torch.Tensor) -> "Pairs":
        return cls(
            out.text_embeds,
            out.image_embeds,
            out.token_embeds,
            out.patch_embeds,
            out.patch_weights,
            mask.bool(),
            content.bool(),
            scale,
        )


def contrast(scores: torch.Tensor) -> torch.Tensor:
    """Mean of the two cross-entropies of scores (N, N) of all texts with all images, matched ones on the diagonal."""
    targets = torch.arange(len(scores), device=scores.device)
    return (cross_entropy(scores, targets) + cross_entropy(scores.t(), targets)) / 2


def masked_mean(values: torch.Tensor, mask: torch.Tensor, dim: int) -> torch.Tensor:
    mask = mask.to(values.dtype)
    return (values * mask).sum(dim=dim) / mask.sum(dim=dim).clamp(min=1)


def all_cosines(pairs: Pairs) -> torch.Tensor:
    """Cosines (N texts, N images, T, P) of every text's tokens with every image's patches."""
    return torch.einsum("itd,jpd->ijtp", pairs.tokens, pairs.patches)


def tier(
    pairs: Pairs, token: float = 0.2, patch: float = 0.0, temperature: float = 1.0, content_only: bool = False
) -> torch.Tensor:
    """TIER's term (arXiv 2212.06710): weighted entropies of the tokens over the patches and the other way round."""
    mask = pairs.content if content_only else pairs.mask
    entropy = text_image_entropy(pairs.tokens, pairs.patches, mask, temperature)
    return token * entropy.token + patch * entropy.patch


def contribution_entropy(pairs: Pairs, token: float = 0.2, temperature: float = 1.0) -> torch.Tensor:
    """TIER's token term over what the patches add to the score: cosines times P |z_p| / (P |v|)."""
    contributions = pairs.tokens @ pairs.patches.transpose(1, 2)
    contributions = contributions * pairs.patch_weights.unsqueeze(1) * pairs.patches.shape[1]
    return token * mean_entropies(*entropies(contributions, pairs.mask, temperature), pairs.mask).token


def steep(pairs: Pairs, weight: float = 0.1) -> torch.Tensor:
    """
    An older variant of TIER's authors: the less a token's softmax q over the P patches differs from the uniform
    distribution, the larger: minus half the mean of |P q - 1|.
    """
    probability = torch.softmax(pairs.tokens @ pairs.patches.transpose(1, 2), dim=2)
    distance = (probability * probability.shape[2] - 1).abs().mean(dim=2) / 2  # (N, T)
    return -weight * masked_mean(distance, pairs.mask, dim=1).mean()


def filip(pairs: Pairs, weight: float = 1.0) -> torch.Tensor:
    """FILIP (arXiv 2111.07783): each token with its best patch, each patch with its best token; means; contrast."""
    cosines = all_cosines(pairs)
    token_mask = pairs.mask[:, None, :]  # (N, 1, T)
    by_token = masked_mean(cosines.amax(dim=3), token_mask.expand(cosines.shape[:3]), dim=2)
    by_patch = cosines.masked_fill(~token_mask.unsqueeze(3), -math.inf).amax(dim=2).mean(dim=2)
    targets = torch.arange(len(cosines), device=cosines.device)
    text_to_image = cross_entropy(pairs.scale * by_token, targets)
    image_to_text = cross_entropy(pairs.scale * by_patch.t(), targets)
    return weight * (text_to_image + image_to_text) / 2


def gloria(pairs: Pairs, weight: float = 1.0, sharpness=(4.0, 5.0, 10.0)) -> torch.Tensor:
    """
    GLoRIA's local loss (ICCV 2021): each token's context is the mean of the patches by a softmax of its cosines; a
    pair's score is the log-sum-exp of the tokens' cosines with their contexts; contrast. The factors are the paper's.
    """
    attention, words, batch = sharpness
    cosines = all_cosines(pairs)
    context = torch.einsum("ijtp,jpd->ijtd", torch.softmax(attention * cosines, dim=3), pairs.patches)
    likeness = torch.einsum("ijtd,itd->ijt", normalize(context, dim=3), pairs.tokens)
    likeness = (words * likeness).masked_fill(~pairs.content[:, None, :], -math.inf)
    return weight * contrast(batch * torch.logsumexp(likeness, dim=2))


def sparc(pairs: Pairs, weight: float = 1.0) -> torch.Tensor:
    """
    SPARC's fine-grained loss (arXiv 2401.09865): similarities of a token with its own image's patches, scaled to
    0..1, those below 1/P set to 0, are the weights of its grouped patch; tokens and grouped patches of one pair are
    contrasted with each other, both ways.
    """
    similarity = pairs.tokens @ pairs.patches.transpose(1, 2)  # (N, T, P)
    low, high = similarity.amin(dim=2, keepdim=True), similarity.amax(dim=2, keepdim=True)
    alignment = (similarity - low) / (high - low).clamp(min=1e-6)
    alignment = torch.where(alignment < 1 / alignment.shape[2], 0.0, alignment)
    alignment = alignment / alignment.sum(dim=2, keepdim=True).clamp(min=1e-6)
    grouped = normalize(alignment @ pairs.patches, dim=2)  # (N, T, D)
    scores = pairs.scale * grouped @ pairs.tokens.transpose(1, 2)  # (N, T, T)
    targets = torch.arange(scores.shape[1], device=scores.device).expand(scores.shape[:2])
    loss = 0.0
    for rows in (scores, scores.transpose(1, 2)):
        rows = rows.masked_fill(~pairs.mask[:, None, :], -1e30).flatten(0, 1)
        by_token = cross_entropy(rows, targets.flatten(), reduction="none").view_as(targets)
        loss = loss + masked_mean(by_token, pairs.mask, dim=1).mean() / 2
    return weight * loss


def attended(pairs: Pairs, sharpness: torch.Tensor | float) -> torch.Tensor:
    """Cosines (N, N) of every text with the mean of every image's patches, weighted by a softmax of their cosines."""
    cosines = torch.einsum("id,jpd->ijp", pairs.text, pairs.patches)
    pooled = torch.einsum("ijp,jpd->ijd", torch.softmax(sharpness * cosines, dim=2), pairs.patches)
    return torch.einsum("ijd,id->ij", normalize(pooled, dim=2), pairs.text)


def vl_cabs(pairs: Pairs, weight: float = 1.0) -> torch.Tensor:
    """
    RadZero's VL-CABS (arXiv 2504.07416) with the report as the one sentence of its image: the text attends over the
    patches by cosine, sharpened by the model's logit scale; contrast of the text with what it attends to.
    """
    return weight * contrast(pairs.scale * attended(pairs, pairs.scale))


def flair(pairs: Pairs, weight: float = 1.0) -> torch.Tensor:
    """
    The sigmoid loss of FLAIR (arXiv 2412.03561) over text-conditioned pooling, by cosine attention without weights of
    its own; the bias is the one at which 1 of N texts matches: -log(N - 1) off the mean score of the batch.
    """
    scores = pairs.scale * attended(pairs, pairs.scale)
    scores = scores - scores.mean().detach() - math.log(max(len(scores) - 1, 1))
    signs = 2 * torch.eye(len(scores), device=scores.device) - 1
    return -weight * logsigmoid(signs * scores).sum() / len(scores)


def clip(pairs: Pairs) -> torch.Tensor:
    """Nothing beside CLIP's loss."""
    return pairs.text.new_zeros(())


# The rows of the study's table. The first is what the others are compared with.
ROWS = {
    "CLIP": clip,
    "TIER 0.2, 0.1": partial(tier, token=0.2, patch=0.1),
    "TIER 0.2, 0": partial(tier, token=0.2),
    "TIER 0.4, 0.2": partial(tier, token=0.4, patch=0.2),
    "TIER 0.2, 0 at temperature 0.5": partial(tier, token=0.2, temperature=0.5),
    "TIER 0.2, 0.1 at temperature 0.5": partial(tier, token=0.2, patch=0.1, temperature=0.5),
    "TIER 0.2, 0 at temperature 0.2": partial(tier, token=0.2, temperature=0.2),
    "TIER 0.2, 0 at temperature 0.5, no special tokens": partial(tier, token=0.2, temperature=0.5, content_only=True),
    "entropy of contributions, 0.2": partial(contribution_entropy, token=0.2),
    "entropy of contributions, 0.2 at temperature 0.5": partial(contribution_entropy, token=0.2, temperature=0.5),
    "steep, 0.1": partial(steep, weight=0.1),
    "steep, 1": partial(steep, weight=1.0),
    "FILIP, 0.1": partial(filip, weight=0.1),
    "FILIP, 1": partial(filip, weight=1.0),
    "GLoRIA local, 0.1": partial(gloria, weight=0.1),
    "GLoRIA local, 1": partial(gloria, weight=1.0),
    "SPARC, 0.1": partial(sparc, weight=0.1),
    "SPARC, 1": partial(sparc, weight=1.0),
    "VL-CABS, 0.1": partial(vl_cabs, weight=0.1),
    "VL-CABS, 1": partial(vl_cabs, weight=1.0),
    "FLAIR-like, 0.1": partial(flair, weight=0.1),
    "FLAIR-like, 1": partial(flair, weight=1.0),
}
