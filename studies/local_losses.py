# Licensed under the Apache License, Version 2.0.
"""
Losses over tokens and patches that are trained beside CLIP's, TIER's own among them, for the comparison of
`trained_start.py`. Each takes a [`Pairs`] and returns a scalar. Its negatives, if it has any, are those of the batch,
of all processes under torch.distributed; with `Pairs.chunk_size` it is computed block by block.

Of the methods below only the local term is here, as its paper has it; data, encoders and CLIP's loss are the same for
all. What their authors train beside it (other encoders, learned attention) is not.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from embedded import Pairs, Score, gathered, mean_of_pairs, over_processes, scores_in_blocks
from torch.nn.functional import cross_entropy, logsigmoid, normalize

from modeling_tier import text_image_entropy
from modeling_tier.entropy_tier import entropies


def contrast(pairs: Pairs, score: Score, score_to_text: Score | None = None) -> torch.Tensor:
    """
    Mean of two cross-entropies, matched pairs against all others: of each text over the images by `score`, and of each
    image over the texts, by `score_to_text` if that is another one.
    """
    everyone, first = gathered(pairs)
    targets = torch.arange(first, first + len(pairs), device=pairs.text.device)
    to_image = scores_in_blocks(score, pairs, everyone)  # (n of this process, N of all)
    if score_to_text is None and everyone is pairs:
        to_text = to_image
    else:
        to_text = scores_in_blocks(score_to_text or score, everyone, pairs)  # (N, n)
    loss = (cross_entropy(to_image, targets) + cross_entropy(to_text.t(), targets)) / 2
    return over_processes(loss, len(pairs))


def masked_mean(values: torch.Tensor, mask: torch.Tensor, dim: int) -> torch.Tensor:
    mask = mask.to(values.dtype)
    return (values * mask).sum(dim=dim) / mask.sum(dim=dim).clamp(min=1)


def all_cosines(texts: Pairs, images: Pairs) -> torch.Tensor:
    """Cosines (N texts, M images, T, P) of every text's tokens with every image's patches."""
    return torch.einsum("itd,jpd->ijtp", texts.tokens, images.patches)


# Of one pair alone.


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


def steep(pairs: Pairs, weight: float = 0.1) -> torch.Tensor:
    """
    An older variant of TIER's authors: the less a token's softmax q over the P patches differs from the uniform
    distribution, the larger: minus half the mean of |P q - 1|.
    """

    def of_pairs(pairs: Pairs) -> torch.Tensor:
        probability = torch.softmax(pairs.tokens @ pairs.patches.transpose(1, 2), dim=2)
        distance = (probability * probability.shape[2] - 1).abs().mean(dim=2) / 2  # (N, T)
        return masked_mean(distance, pairs.mask, dim=1)

    return -weight * mean_of_pairs(of_pairs, pairs)


def sparc(pairs: Pairs, weight: float = 1.0) -> torch.Tensor:
    """
    SPARC's fine-grained loss (arXiv 2401.09865): similarities of a token with its own image's patches, scaled to
    0..1, those below 1/P set to 0, are the weights of its grouped patch; tokens and grouped patches of one pair are
    contrasted with each other, both ways.
    """

    def of_pairs(pairs: Pairs) -> torch.Tensor:
        similarity = pairs.tokens @ pairs.patches.transpose(1, 2)  # (N, T, P)
        low, high = similarity.amin(dim=2, keepdim=True), similarity.amax(dim=2, keepdim=True)
        alignment = (similarity - low) / (high - low).clamp(min=1e-6)
        alignment = torch.where(alignment < 1 / alignment.shape[2], 0.0, alignment)
        alignment = alignment / alignment.sum(dim=2, keepdim=True).clamp(min=1e-6)
        grouped = normalize(alignment @ pairs.patches, dim=2)  # (N, T, D)
        scores = pairs.scale * grouped @ pairs.tokens.transpose(1, 2)  # (N, T, T)
        targets = torch.arange(scores.shape[1], device=scores.device).expand(scores.shape[:2])
        loss = torch.zeros(len(pairs), dtype=scores.dtype, device=scores.device)
        for rows in (scores, scores.transpose(1, 2)):
            rows = rows.masked_fill(~pairs.mask[:, None, :], -1e30).flatten(0, 1)
            by_token = cross_entropy(rows, targets.flatten(), reduction="none").view_as(targets)
            loss = loss + masked_mean(by_token, pairs.mask, dim=1) / 2
        return loss

    return weight * mean_of_pairs(of_pairs, pairs)


# Against the other pairs of the batch.


def filip(pairs: Pairs, weight: float = 1.0) -> torch.Tensor:
    """FILIP (arXiv 2111.07783): each token with its best patch, each patch with its best token; means; contrast."""

    def by_token(texts: Pairs, images: Pairs) -> torch.Tensor:
        best = all_cosines(texts, images).amax(dim=3)  # (N, M, T)
        return texts.scale * masked_mean(best, texts.mask[:, None, :].expand_as(best), dim=2)

    def by_patch(texts: Pairs, images: Pairs) -> torch.Tensor:
        cosines = all_cosines(texts, images).masked_fill(~texts.mask[:, None, :, None], -math.inf)
        return texts.scale * cosines.amax(dim=2).mean(dim=2)

    return weight * contrast(pairs, by_token, by_patch)


def gloria(pairs: Pairs, weight: float = 1.0, sharpness=(4.0, 5.0, 10.0)) -> torch.Tensor:
    """
    GLoRIA's local loss (ICCV 2021): each token's context is the mean of the patches by a softmax of its cosines; a
    pair's score is the log-sum-exp of the tokens' cosines with their contexts; contrast. The factors are the paper's.
    """
    attention, words, batch = sharpness

    def score(texts: Pairs, images: Pairs) -> torch.Tensor:
        weights = torch.softmax(attention * all_cosines(texts, images), dim=3)
        context = torch.einsum("ijtp,jpd->ijtd", weights, images.patches)
        likeness = torch.einsum("ijtd,itd->ijt", normalize(context, dim=3), texts.tokens)
        likeness = (words * likeness).masked_fill(~texts.content[:, None, :], -math.inf)
        return batch * torch.logsumexp(likeness, dim=2)

    return weight * contrast(pairs, score)


def attended(embeds: torch.Tensor, images: Pairs) -> torch.Tensor:
    """
    Cosines (N, M) of N embeddings (N, D) with the mean of every image's patches, weighted by a softmax of their
    cosines; sharpened, and multiplied, by the model's logit scale.
    """
    cosines = torch.einsum("id,jpd->ijp", embeds, images.patches)
    pooled = torch.einsum("ijp,jpd->ijd", torch.softmax(images.scale * cosines, dim=2), images.patches)
    return images.scale * torch.einsum("ijd,id->ij", normalize(pooled, dim=2), embeds)


def vl_cabs(pairs: Pairs, weight: float = 1.0) -> torch.Tensor:
    """
    RadZero's VL-CABS (arXiv 2504.07416) with the report as the one sentence of its image: the text attends over the
    patches by cosine, sharpened by the model's logit scale; contrast of the text with what it attends to.
    """
    return weight * contrast(pairs, lambda texts, images: attended(texts.text, images))


def flair(pairs: Pairs, weight: float = 1.0) -> torch.Tensor:
    """
    The sigmoid loss of FLAIR (arXiv 2412.03561) over text-conditioned pooling, by cosine attention without weights of
    its own; the bias is the one at which 1 of N texts matches: -log(N - 1) off the mean score of the batch.
    """
    everyone, first = gathered(pairs)
    scores = scores_in_blocks(lambda texts, images: attended(texts.text, images), pairs, everyone)  # (n, N)
    mean = over_processes(scores.mean().detach(), len(pairs))
    scores = scores - mean - math.log(max(len(everyone) - 1, 1))
    matched = torch.arange(first, first + len(pairs), device=scores.device)
    signs = torch.full_like(scores, -1.0).scatter_(1, matched.unsqueeze(1), 1.0)
    return -weight * over_processes(logsigmoid(signs * scores).sum(dim=1).mean(), len(pairs))


# Over the sentences of a text, each embedded by itself.


def mean_by_pair(values: torch.Tensor, owners: torch.Tensor, num_pairs: int) -> torch.Tensor:
    """Means (N,) of the values (S,) of each pair's sentences."""
    zeros = values.new_zeros(num_pairs)
    numbers = zeros.index_add(0, owners, torch.ones_like(values))
    return zeros.index_add(0, owners, values) / numbers.clamp(min=1)


def multi_positive(pairs: Pairs, weight: float = 1.0, attends: bool = False) -> torch.Tensor:
    """
    All sentences of an image's report as its positives: each sentence against the images, by cross-entropy, and each
    image against the sentences: of each of its own the cross-entropy over that one and all sentences of other images
    (its further own ones are no negatives). Means over the sentences of an image, then over the images. The score is
    the cosine with the image, or, as RadZero has it, with what the sentence attends to.
    """

    def score(texts: Pairs, images: Pairs) -> torch.Tensor:
        if attends:
            return attended(texts.sentences, images)
        return texts.scale * texts.sentences @ images.image.t()

    everyone, first = gathered(pairs)
    number, owners = len(pairs), pairs.owners
    to_image = scores_in_blocks(score, pairs, everyone)  # (s, N)
    text_loss = mean_by_pair(cross_entropy(to_image, owners + first, reduction="none"), owners, number)
    to_text = to_image if everyone is pairs else scores_in_blocks(score, everyone, pairs)  # (S, n)
    is_own = everyone.owners.unsqueeze(1) == torch.arange(first, first + number, device=owners.device)  # (S, n)
    of_others = to_text.masked_fill(is_own, -math.inf).logsumexp(dim=0)  # (n,)
    sentence, image = is_own.nonzero(as_tuple=True)
    positive = to_text[sentence, image]
    by_sentence = torch.logaddexp(positive, of_others[image]) - positive
    return weight * over_processes((text_loss + mean_by_pair(by_sentence, image, number)).mean() / 2, number)


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
    "sentences as positives, 1": partial(multi_positive, weight=1.0),
    "VL-CABS over sentences, 0.1": partial(multi_positive, weight=0.1, attends=True),
}
