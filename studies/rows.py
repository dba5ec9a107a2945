# Licensed under the Apache License, Version 2.0.
"""
The rows of the study's table: each a loss over tokens and patches that is trained beside CLIP's. Those of other
papers are those of `train.py` (`modeling_tier/training/local_losses.py`); variants of TIER's term are here.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch.nn.functional import normalize

from modeling_tier import text_image_entropy
from modeling_tier.entropy_tier import entropies
from modeling_tier.training.local_losses import (
    filip,
    flair,
    gloria,
    masked_mean,
    mean_by_pair,
    multi_positive,
    sparc,
    steep,
    vl_cabs,
)
from modeling_tier.training.pairs_of_batch import Pairs, gathered, mean_of_pairs, over_processes


def tier(
    pairs: Pairs, token: float = 0.2, patch: float = 0.0, temperature: float = 1.0, content_only: bool = False
) -> torch.Tensor:
    """TIER's term (arXiv 2212.06710): weighted entropies of the tokens over the patches and the other way round."""
    total, number = 0.0, 0
    for part in pairs.parts():  # its gradient keeps the embeddings alone, so that nothing is computed again
        mask = part.content if content_only else part.mask
        entropy = text_image_entropy(part.tokens, part.patches, mask, temperature)
        counted = mask.any(dim=1).sum()
        total = total + counted * (token * entropy.token + patch * entropy.patch)
        number = number + counted
    return over_processes(total / number.clamp(min=1), number)


def contribution_entropy(pairs: Pairs, token: float = 0.2, temperature: float = 1.0) -> torch.Tensor:
    """TIER's token term over what the patches add to the score: cosines times P |z_p| / (P |v|)."""

    def of_pairs(pairs: Pairs) -> torch.Tensor:
        contributions = pairs.tokens @ pairs.patches.transpose(1, 2)
        contributions = contributions * pairs.patch_weights.unsqueeze(1) * pairs.patches.shape[1]
        return masked_mean(entropies(contributions, pairs.mask, temperature)[0], pairs.mask, dim=1)

    return token * mean_of_pairs(of_pairs, pairs)


def entropy_without_common(pairs: Pairs, token: float = 0.2, temperature: float = 1.0) -> torch.Tensor:
    """
    TIER's token term over maps without what all texts have in common: of each token's map that of the mean text of the
    batch is subtracted, as "no finding" is from the maps that are looked at.
    """
    common = gathered(pairs)[0].text.mean(dim=0)  # (D,)

    def of_pairs(pairs: Pairs) -> torch.Tensor:
        maps = (pairs.tokens - common) @ pairs.patches.transpose(1, 2)
        return masked_mean(entropies(maps, pairs.mask, temperature)[0], pairs.mask, dim=1)

    return token * mean_of_pairs(of_pairs, pairs)


def sentence_cosines(pairs: Pairs) -> torch.Tensor:
    """Cosines (S, P) of every sentence with the patches of its own image."""
    return torch.einsum("sd,spd->sp", pairs.sentences, pairs.patches[pairs.owners])


def sentence_entropy(pairs: Pairs, weight: float = 0.2, temperature: float = 1.0) -> torch.Tensor:
    """TIER's token term with the sentences of the report in the place of its tokens."""

    def of_pairs(pairs: Pairs) -> torch.Tensor:
        log_share = torch.log_softmax(sentence_cosines(pairs) / temperature, dim=1)
        return mean_by_pair(-(log_share.exp() * log_share).sum(dim=1), pairs.owners, len(pairs))

    return weight * mean_of_pairs(of_pairs, pairs)


def sentence_patch_entropy(pairs: Pairs, weight: float = 0.2, temperature: float = 1.0) -> torch.Tensor:
    """
    TIER's patch term with the sentences of the report in the place of its tokens: the entropy of each patch over
    them. It is 0 for a report of one sentence.
    """

    def of_pairs(pairs: Pairs) -> torch.Tensor:
        scores = sentence_cosines(pairs) / temperature
        by_pair = scores.new_zeros(len(pairs), scores.shape[1])
        total = by_pair.index_add(0, pairs.owners, scores.exp())
        log_share = scores - total[pairs.owners].log()
        entropy = by_pair.index_add(0, pairs.owners, -log_share.exp() * log_share)
        return entropy.mean(dim=1)

    return weight * mean_of_pairs(of_pairs, pairs)


def likeness_of_maps(pairs: Pairs, weight: float = 0.1) -> torch.Tensor:
    """
    How alike the maps of a report's sentences are: the correlation over the patches, where it is positive, of each
    two of its sentences; the mean of these, 0 for a report of one sentence.
    """

    def of_pairs(pairs: Pairs) -> torch.Tensor:
        maps = sentence_cosines(pairs)
        maps = normalize(maps - maps.mean(dim=1, keepdim=True), dim=1)
        two = (pairs.owners.unsqueeze(1) == pairs.owners).triu(diagonal=1).nonzero(as_tuple=True)
        return mean_by_pair((maps @ maps.t())[two].clamp(min=0), pairs.owners[two[0]], len(pairs))

    return weight * mean_of_pairs(of_pairs, pairs)


def tier_with(
    term: Callable[[Pairs], torch.Tensor], pairs: Pairs, token: float = 0.2, temperature: float = 0.5
) -> torch.Tensor:
    """TIER's token term and another one."""
    return tier(pairs, token=token, temperature=temperature) + term(pairs)


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
    "entropy without the common map, 0.2 at temperature 0.5": partial(
        entropy_without_common, token=0.2, temperature=0.5
    ),
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

# Rows that need `Pairs.sentences`. The first three are mendings of what `maps_of_sentences.py` finds; the weights are
# first guesses.
SENTENCE_ROWS = {
    "entropy of sentences, 0.2 at temperature 0.5": partial(sentence_entropy, weight=0.2, temperature=0.5),
    "TIER 0.2, 0 at temperature 0.5, patches over sentences 0.2": partial(
        tier_with, partial(sentence_patch_entropy, weight=0.2, temperature=0.5)
    ),
    "TIER 0.2, 0 at temperature 0.5, unlike maps 0.5": partial(tier_with, partial(likeness_of_maps, weight=0.5)),
    "sentences as positives, 0.1": partial(multi_positive, weight=0.1),
    "sentences as positives, 1": partial(multi_positive, weight=1.0),
    "VL-CABS over sentences, 0.1": partial(multi_positive, weight=0.1, attends=True),
}
