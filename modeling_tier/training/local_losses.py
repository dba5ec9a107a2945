# Licensed under the Apache License, Version 2.0.
"""
Local losses of other papers, trained in the place of TIER's term or beside it (`regulariser.local_loss`): what
researchers compare it with. Each takes a [`Pairs`] and a weight and returns a scalar. Its negatives, if it has any,
are those of the batch, of all processes under torch.distributed; with `Pairs.chunk_size` it is computed in blocks.

Of each method only the local term is here, by the formula of its paper; data, encoders and CLIP's loss are the same
for all. What its authors train beside it (other encoders, learned attention) is not.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch.nn.functional import cross_entropy, logsigmoid, normalize

from .pairs_of_batch import Pairs, Score, gathered, mean_of_pairs, over_processes, scores_in_blocks


Size = Callable[[Pairs], int]
"""Values of the largest tensor that a loss makes of one text and one image."""


def contrast(pairs: Pairs, score: Score, size: Size, score_to_text: Score | None = None) -> torch.Tensor:
    """
    Mean of two cross-entropies, matched pairs against all others: of each text over the images by `score`, and of each
    image over the texts, by `score_to_text` if that is another one. `size`: of the scores' largest tensor.
    """
    everyone, first = gathered(pairs)
    values = size(everyone)  # after gathering: the texts of other processes may be longer
    targets = torch.arange(first, first + len(pairs), device=pairs.text.device)
    to_image = scores_in_blocks(score, pairs, everyone, values)  # (n of this process, N of all)
    if score_to_text is None and everyone is pairs:
        to_text = to_image
    else:
        to_text = scores_in_blocks(score_to_text or score, everyone, pairs, values)  # (N, n)
    loss = (cross_entropy(to_image, targets) + cross_entropy(to_text.t(), targets)) / 2
    return over_processes(loss, len(pairs))


def masked_mean(values: torch.Tensor, mask: torch.Tensor, dim: int) -> torch.Tensor:
    mask = mask.to(values.dtype)
    return (values * mask).sum(dim=dim) / mask.sum(dim=dim).clamp(min=1)


def all_cosines(texts: Pairs, images: Pairs) -> torch.Tensor:
    """Cosines (N texts, M images, T, P) of every text's tokens with every image's patches."""
    return torch.einsum("itd,jpd->ijtp", texts.tokens, images.patches)


def size_of_cosines(pairs: Pairs) -> int:
    return pairs.tokens.shape[1] * pairs.patches.shape[1]


# Of one pair alone.


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

    return weight * contrast(pairs, by_token, size_of_cosines, by_patch)


def gloria(pairs: Pairs, weight: float = 1.0, sharpness=(4.0, 5.0, 10.0)) -> torch.Tensor:
    """
    GLoRIA's local loss (ICCV 2021): each token's context is the mean of the patches by a softmax of its cosines; a
    pair's score is the log-sum-exp of the tokens' cosines with their contexts; contrast. The factors are those of the
    authors' code, which takes them of dot products after a first softmax over the words; here they are of cosines.
    """
    attention, words, batch = sharpness

    def score(texts: Pairs, images: Pairs) -> torch.Tensor:
        weights = torch.softmax(attention * all_cosines(texts, images), dim=3)
        context = torch.einsum("ijtp,jpd->ijtd", weights, images.patches)
        likeness = torch.einsum("ijtd,itd->ijt", normalize(context, dim=3), texts.tokens)
        likeness = (words * likeness).masked_fill(~texts.content[:, None, :], -math.inf)
        return batch * torch.logsumexp(likeness, dim=2)

    def size(pairs: Pairs) -> int:
        return pairs.tokens.shape[1] * max(pairs.patches.shape[1:])

    return weight * contrast(pairs, score, size)


def attended(embeds: torch.Tensor, images: Pairs) -> torch.Tensor:
    """
    Cosines (N, M) of N embeddings (N, D) with the mean of every image's patches, weighted by a softmax of their
    cosines; sharpened, and multiplied, by the model's logit scale.
    """
    cosines = torch.einsum("id,jpd->ijp", embeds, images.patches)
    pooled = torch.einsum("ijp,jpd->ijd", torch.softmax(images.scale * cosines, dim=2), images.patches)
    return images.scale * torch.einsum("ijd,id->ij", normalize(pooled, dim=2), embeds)


def attended_texts(texts: Pairs, images: Pairs) -> torch.Tensor:
    return attended(texts.text, images)


def size_of_attended(pairs: Pairs) -> int:
    return max(pairs.patches.shape[1:])


def vl_cabs(pairs: Pairs, weight: float = 1.0) -> torch.Tensor:
    """
    RadZero's VL-CABS (arXiv 2504.07416) with the report as the one sentence of its image: the text attends over the
    patches by cosine, sharpened by the model's logit scale; contrast of the text with what it attends to.
    """
    return weight * contrast(pairs, attended_texts, size_of_attended)


def flair(pairs: Pairs, weight: float = 1.0) -> torch.Tensor:
    """
    The sigmoid loss of FLAIR (arXiv 2412.03561) over text-conditioned pooling, by cosine attention without weights of
    its own; the bias is the one at which 1 of N texts matches: -log(N - 1) off the mean score of the batch.
    """
    everyone, first = gathered(pairs)
    scores = scores_in_blocks(attended_texts, pairs, everyone, size_of_attended(pairs))  # (n, N)
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
    size = size_of_attended(pairs) if attends else 1
    values = math.ceil(size * len(everyone.sentences) / len(everyone))  # on average: a block may have more sentences
    to_image = scores_in_blocks(score, pairs, everyone, values)  # (s, N)
    text_loss = mean_by_pair(cross_entropy(to_image, owners + first, reduction="none"), owners, number)
    to_text = to_image if everyone is pairs else scores_in_blocks(score, everyone, pairs, values)  # (S, n)
    is_own = everyone.owners.unsqueeze(1) == torch.arange(first, first + number, device=owners.device)  # (S, n)
    of_others = to_text.masked_fill(is_own, -math.inf).logsumexp(dim=0)  # (n,)
    sentence, image = is_own.nonzero(as_tuple=True)
    positive = to_text[sentence, image]
    by_sentence = torch.logaddexp(positive, of_others[image]) - positive
    return weight * over_processes((text_loss + mean_by_pair(by_sentence, image, number)).mean() / 2, number)


LOCAL_LOSSES: dict[str, Callable[[Pairs, float], torch.Tensor]] = {
    "steep": steep,
    "sparc": sparc,
    "filip": filip,
    "gloria": gloria,
    "vl_cabs": vl_cabs,
    "flair": flair,
    "sentences": multi_positive,
    "vl_cabs_sentences": partial(multi_positive, attends=True),
}
SENTENCE_LOSSES = ("sentences", "vl_cabs_sentences")  # those that need `Pairs.sentences`
