# Licensed under the Apache License, Version 2.0.
"""Measures of sparsity against float64 loops and against what they must be by their definitions."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from modeling_tier import text_image_entropy
from modeling_tier.cosines_tier import l2_normalize
from modeling_tier.evaluation.sparsity import peak_spread, sparsity, top_share


NAMES = ["token_entropy", "patch_entropy", "effective_patches", "gini", "negative_share", "peak"]


def random_pairs(number=5, tokens=6, patches=11, seed=0):
    generator = torch.Generator().manual_seed(seed)
    token_embeds = torch.randn(number, tokens, 4, generator=generator)
    patch_embeds = torch.randn(number, patches, 4, generator=generator)
    mask = torch.rand(number, tokens, generator=generator) < 0.6
    mask[:, 0] = True
    cosines = l2_normalize(token_embeds) @ l2_normalize(patch_embeds).transpose(1, 2)
    return token_embeds, patch_embeds, cosines, mask


def softmax(values):
    powers = [math.exp(value) for value in values]
    return [power / math.fsum(powers) for power in powers]


def pair_loop(cosines, temperature):
    """One pair's valid tokens as lists of cosines, in Python's own float64."""

    def mean(numbers):
        return math.fsum(numbers) / len(numbers)

    token_entropies = [entropy(softmax([c / temperature for c in row])) for row in cosines]
    patch_entropies = [entropy(softmax([c / temperature for c in column])) for column in zip(*cosines)]
    ginis = []
    for row in cosines:  # the mean absolute difference of two patches, by twice the mean
        shifted = [c - min(row) for c in row]
        differences = math.fsum(abs(a - b) for a in shifted for b in shifted) / len(row) ** 2
        ginis.append(differences / (2 * mean(shifted)))
    return {
        "token_entropy": mean(token_entropies),
        "patch_entropy": mean(patch_entropies),
        "effective_patches": mean([math.exp(entry) for entry in token_entropies]),
        "gini": mean(ginis),
        "negative_share": mean([c < 0 for row in cosines for c in row]),
        "peak": mean([max(row) for row in cosines]),
    }


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_every_measure_against_a_loop(temperature):
    _, _, cosines, mask = random_pairs()
    measured = sparsity(cosines, mask, temperature)
    assert sorted(measured) == sorted(NAMES)
    for i in range(5):
        expected = pair_loop(cosines[i][mask[i]].double().tolist(), temperature)
        for name, values in measured.items():
            assert values.shape == (5,) and values.dtype == torch.float32
            assert values[i].item() == pytest.approx(expected[name], rel=2e-6), name


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_the_entropies_are_the_regularisers_pair_by_pair(temperature):
    token_embeds, patch_embeds, cosines, mask = random_pairs(seed=1)
    measured = sparsity(cosines, mask, temperature)
    for i in range(5):
        one = slice(i, i + 1)
        expected = text_image_entropy(token_embeds[one], patch_embeds[one], mask[one], temperature)
        assert measured["token_entropy"][i].item() == pytest.approx(expected.token.item(), rel=1e-6)
        assert measured["patch_entropy"][i].item() == pytest.approx(expected.patch.item(), rel=1e-6)
    together = text_image_entropy(token_embeds, patch_embeds, mask, temperature)
    assert measured["token_entropy"].mean().item() == pytest.approx(together.token.item(), rel=1e-6)


def test_what_stands_at_a_masked_token_does_not_matter():
    _, _, cosines, mask = random_pairs(seed=2)
    measured = sparsity(cosines, mask)
    spoilt = sparsity(cosines.masked_fill(~mask.unsqueeze(-1), torch.nan), mask)
    padded = sparsity(torch.cat([cosines, torch.full((5, 3, 11), 9.0)], dim=1), torch.nn.functional.pad(mask, (0, 3)))
    for name in NAMES:
        assert torch.equal(measured[name], spoilt[name])
        torch.testing.assert_close(measured[name], padded[name], rtol=1e-6, atol=0)


def test_a_pair_without_a_token_gives_nan_and_leaves_the_others_alone():
    _, _, cosines, mask = random_pairs(seed=3)
    whole = sparsity(cosines, mask)
    mask[2] = False
    for name, values in sparsity(cosines, mask).items():
        assert values.isnan().tolist() == [False, False, True, False, False]
        assert torch.equal(values[[0, 1, 3, 4]], whole[name][[0, 1, 3, 4]])


def test_equal_patches_are_not_sparse_at_all_and_one_patch_alone_is_as_sparse_as_can_be():
    equal = sparsity(torch.full((1, 2, 8), -0.3), torch.ones(1, 2))
    assert equal["gini"].item() == 0 and equal["negative_share"].item() == 1
    assert equal["effective_patches"].item() == pytest.approx(8) and equal["peak"].item() == pytest.approx(-0.3)
    assert equal["token_entropy"].item() == pytest.approx(math.log(8))
    one = torch.full((1, 2, 8), -1.0)
    one[0, 0, 3] = one[0, 1, 5] = 1.0
    alone = sparsity(one, torch.ones(1, 2))
    assert alone["gini"].item() == pytest.approx(1 - 1 / 8) and alone["peak"].item() == 1
    share = math.e**2 / (math.e**2 + 7)  # the softmax of one 1 among seven -1
    assert alone["token_entropy"].item() == pytest.approx(entropy([share] + 7 * [(1 - share) / 7]), rel=1e-6)
    assert sparsity(one, torch.ones(1, 2), temperature=0.01)["effective_patches"].item() == pytest.approx(1)
    assert sparsity(torch.ones(1, 1, 1), torch.ones(1, 1))["gini"].item() == 0


def test_half_precision_is_measured_in_single():
    _, _, cosines, mask = random_pairs(seed=4)
    half = cosines.to(torch.bfloat16)
    for name, values in sparsity(half, mask).items():
        assert torch.equal(values, sparsity(half.float(), mask)[name])


@pytest.mark.parametrize(
    ("cosines", "mask", "temperature", "message"),
    [
        (torch.ones(2, 3), torch.ones(2), 1.0, r"\(N, T, P\)"),
        (torch.ones(2, 3, 4), torch.ones(2, 4), 1.0, r"got \(2, 3, 4\) and \(2, 4\)"),
        (torch.ones(2, 3, 0), torch.ones(2, 3), 1.0, "one patch"),
        (torch.ones(2, 3, 4), torch.ones(2, 3), 0.0, "temperature must be positive"),
    ],
)
def test_inputs_that_do_not_fit_are_named(cosines, mask, temperature, message):
    with pytest.raises(ValueError, match=message):
        sparsity(cosines, mask, temperature)


def test_top_fraction_is_that_of_a_tenth_of_the_patches_rounded_up():
    ranks = -np.sort(-np.random.default_rng(5).standard_normal((6, 25)), axis=1)
    expected = []
    for row in ranks.tolist():
        shifted = [value - row[-1] for value in row]
        expected.append(math.fsum(shifted[:3]) / math.fsum(shifted))
    assert top_share(ranks) == pytest.approx(np.mean(expected))
    assert top_share(np.eye(1, 20)) == 1 and top_share(np.ones((2, 20))) == 0


def test_peak_spread_is_the_entropy_of_the_peaks_position():
    peaks = np.array([[0, 3], [0, 3], [1, 3], [2, 3]])
    assert peak_spread(peaks, 8) == pytest.approx(entropy([0.5, 0.25, 0.25]) / math.log(8) / 2)
    assert peak_spread(np.arange(64)[:, None] % 16, 16) == pytest.approx(1)
    assert peak_spread(np.zeros((4, 2), int), 1) == 0
