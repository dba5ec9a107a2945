# Licensed under the Apache License, Version 2.0.
"""The regulariser against a float64 loop written from the equations, and at its extremes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from modeling_tier import text_image_entropy
from modeling_tier.cosines_tier import l2_normalize, tensor_core_cosines, tensor_core_gradients
from modeling_tier.entropy_tier import cosine_gradient, entropies, plain_text_image_entropy


def entropy_of(weights: list[float]) -> float:
    total = sum(weights)
    return -sum(w / total * math.log(w / total) for w in weights if w > 0)


def reference(token_embeds, patch_embeds, token_mask=None, temperature=1.0) -> tuple[float, float]:
    """The equations, one number at a time, in double precision."""

    def cosine(a, b):
        a, b = a.tolist(), b.tolist()
        norm = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
        return sum(x * y for x, y in zip(a, b)) / norm if norm > 0 else 0.0

    token_terms, patch_terms = [], []
    for i in range(len(token_embeds)):
        tokens = [t for j, t in enumerate(token_embeds[i].double()) if token_mask is None or token_mask[i, j]]
        patches = list(patch_embeds[i].double())
        if not tokens:
            continue
        scores = [[math.exp(cosine(t, p) / temperature) for p in patches] for t in tokens]
        token_terms.append(sum(entropy_of(row) for row in scores) / len(tokens))
        patch_terms.append(sum(entropy_of([row[p] for row in scores]) for p in range(len(patches))) / len(patches))
    num_pairs = max(len(token_terms), 1)
    return sum(token_terms) / num_pairs, sum(patch_terms) / num_pairs


def random_pairs(n, t, p, d, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    tokens, patches = (torch.randn(n, k, d, generator=generator, dtype=torch.float64) for k in (t, p))
    return tokens.to(dtype), patches.to(dtype)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 4),
    t=st.integers(1, 6),
    p=st.integers(1, 7),
    d=st.integers(1, 5),
    temperature=st.sampled_from([0.05, 0.5, 1.0, 3.0]),
    seed=st.integers(0, 2**16),
    masked=st.booleans(),
)
def test_equals_the_equations(n, t, p, d, temperature, seed, masked):
    tokens, patches = random_pairs(n, t, p, d, seed)
    mask = torch.rand(n, t, generator=torch.Generator().manual_seed(seed)) > 0.4 if masked else None
    token, patch = text_image_entropy(tokens, patches, mask, temperature)
    assert (token.item(), patch.item()) == pytest.approx(reference(tokens, patches, mask, temperature), abs=1e-10)
    token, patch = text_image_entropy(tokens.float(), patches.float(), mask, temperature)
    assert (token.item(), patch.item()) == pytest.approx(reference(tokens, patches, mask, temperature), abs=1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_gradient(masked):
    tokens, patches = (x.requires_grad_() for x in random_pairs(3, 4, 5, 3))
    mask = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]]) if masked else None
    assert gradcheck(lambda a, b: tuple(text_image_entropy(a, b, mask, 0.7)), (tokens, patches))


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_the_gradient_in_closed_form_is_autograds_of_the_definition(temperature):
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
    results = []
    for function in (text_image_entropy, plain_text_image_entropy):
        tokens, patches = (x.requires_grad_() for x in random_pairs(4, 4, 5, 3))
        token, patch = function(tokens, patches, mask, temperature)
        (2 * token + 3 * patch).backward()
        results.append((token.detach(), patch.detach(), tokens.grad, patches.grad))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int64, torch.float32])
def test_padding_changes_neither_value_nor_gradient(mask_dtype):
    tokens, patches = random_pairs(3, 5, 6, 4)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]).to(mask_dtype)
    filler = torch.full((3, 2, 4), float("nan"), dtype=torch.float64)

    def run(tokens, mask):
        tokens, image = tokens.clone().requires_grad_(), patches.clone().requires_grad_()
        token, patch = text_image_entropy(tokens, image, mask)
        (2 * token + 3 * patch).backward()
        return token.detach(), patch.detach(), tokens.grad, image.grad

    plain = run(tokens, mask)
    padded = run(torch.cat([tokens, filler], 1), torch.cat([mask, torch.zeros(3, 2).to(mask_dtype)], 1))
    for a, b in zip(plain[:2] + plain[3:], padded[:2] + padded[3:]):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)
    torch.testing.assert_close(plain[2], padded[2][:, :5], rtol=0, atol=1e-14)
    assert (padded[2][:, 5:] == 0).all() and (plain[2][mask == 0] == 0).all()


def test_equal_scores_give_the_logarithms():
    ones = torch.ones(2, 5, 4)
    token, patch = text_image_entropy(ones, torch.ones(2, 9, 4))
    assert token.item() == pytest.approx(math.log(9), abs=1e-6)
    assert patch.item() == pytest.approx(math.log(5), abs=1e-6)


def test_one_patch_and_one_token():
    tokens, patches = random_pairs(2, 1, 1, 4)
    assert [x.item() for x in text_image_entropy(tokens, patches)] == pytest.approx([0.0, 0.0], abs=1e-12)
    tokens, patches = random_pairs(2, 1, 6, 4)
    assert text_image_entropy(tokens, patches).patch.item() == pytest.approx(0.0, abs=1e-12)


def test_cosines_of_one_and_minus_one():
    axis = torch.tensor([1.0, 0.0])
    patches = torch.stack([axis, -axis, -axis]).unsqueeze(0)
    token, patch = text_image_entropy(axis.view(1, 1, 2).requires_grad_(), patches)
    assert token.item() == pytest.approx(entropy_of([math.e, 1 / math.e, 1 / math.e]), abs=1e-6)
    token.backward()


def test_a_pair_without_a_token_is_not_counted():
    tokens, patches = random_pairs(3, 4, 5, 3)
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]])
    both = text_image_entropy(tokens, patches, mask)
    rest = text_image_entropy(tokens[[0, 2]], patches[[0, 2]], mask[[0, 2]])
    assert both.token.item() == pytest.approx(rest.token.item(), abs=1e-12)
    assert both.patch.item() == pytest.approx(rest.patch.item(), abs=1e-12)
    tokens.requires_grad_()
    nothing = text_image_entropy(tokens, patches, torch.zeros(3, 4))
    assert nothing.token.item() == nothing.patch.item() == 0
    (nothing.token + nothing.patch).backward()
    assert (tokens.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_zero_vectors_stay_finite_with_a_small_gradient(dtype):
    tokens, patches = random_pairs(2, 3, 4, 5, dtype=dtype)
    tokens[0, 1], patches[1, 2] = 0, 0
    tokens.requires_grad_(), patches.requires_grad_()
    token, patch = text_image_entropy(tokens, patches)
    (token + patch).backward()
    for x in (token, patch, tokens.grad, patches.grad):
        assert torch.isfinite(x).all()
    assert (tokens.grad[0, 1] == 0).all() and (patches.grad[1, 2] == 0).all()


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e4])
def test_the_length_of_the_embeddings_does_not_matter(scale):
    tokens, patches = random_pairs(2, 3, 4, 5, dtype=torch.float32)
    expected = text_image_entropy(tokens, patches)
    torch.testing.assert_close(tuple(text_image_entropy(tokens * scale, patches / scale)), tuple(expected))


@pytest.mark.parametrize(
    ("dtype", "result"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_dtypes(dtype, result):
    tokens, patches = random_pairs(2, 3, 4, 8, dtype=dtype)
    entropy = text_image_entropy(tokens, patches)
    assert entropy.token.dtype == entropy.patch.dtype == result
    # The inputs' own rounding is the only loss: the arithmetic is that of float32 on the rounded values.
    assert tuple(x.item() for x in entropy) == pytest.approx(reference(tokens, patches), abs=1e-5)


def test_autocast_changes_nothing():
    tokens, patches = random_pairs(2, 3, 40, 64, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = text_image_entropy(tokens, patches)
    assert inside.token.dtype == torch.float32
    assert tuple(inside) == tuple(text_image_entropy(tokens, patches))


def test_compiles_without_graph_breaks():
    tokens, patches = random_pairs(2, 3, 4, 5, dtype=torch.float32)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    compiled = torch.compile(text_image_entropy, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        tuple(compiled(tokens, patches, mask)), tuple(text_image_entropy(tokens, patches, mask))
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3), torch.zeros(2, 3, 4)), r"\(N, T, D\)"),
        ((torch.zeros(2, 3, 4), torch.zeros(1, 3, 4)), "number of pairs"),
        ((torch.zeros(2, 3, 4), torch.zeros(2, 3, 5)), "agree"),
        ((torch.zeros(2, 0, 4), torch.zeros(2, 3, 4)), "At least one token"),
        ((torch.zeros(2, 3, 4), torch.zeros(2, 0, 4)), "one patch"),
        ((torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.ones(2, 4)), "token_mask"),
        ((torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), None, 0.0), "temperature"),
        ((torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), None, float("nan")), "temperature"),
        ((torch.zeros(2, 3, 4, dtype=torch.int64), torch.zeros(2, 3, 4)), "floating point"),
    ],
)
def test_bad_inputs_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        text_image_entropy(*arguments)


@pytest.mark.parametrize("alike", [False, True])
def test_products_on_tensor_cores_are_as_exact_as_float32(alike):
    """The way of bfloat16 embeddings on a GPU, with its products on the CPU; patches that are alike cancel most."""
    generator = torch.Generator().manual_seed(0)
    common = 5 * torch.randn(64, generator=generator) if alike else 0
    embeds = [(torch.randn(8, size, 64, generator=generator) + common).bfloat16() for size in (11, 49)]
    mask = torch.rand(8, 11, generator=generator) > 0.3
    mask[3] = False  # a pair without a token
    embeds[0][~mask] = float("nan")
    embeds[1][5, 4] = 0

    doubles = [entry.double().masked_fill(~torch.isfinite(entry), 0).requires_grad_() for entry in embeds]
    units = [l2_normalize(entry) for entry in doubles]
    expected = entropies(units[0] @ units[1].transpose(1, 2), mask, 0.7)
    weights = [torch.linspace(1, 2, entry.numel(), dtype=torch.float64).view_as(entry) for entry in expected]
    weights[0] = weights[0].masked_fill(~mask, 0)
    expected_grads = torch.autograd.grad(expected, doubles, weights)

    cosines = tensor_core_cosines(embeds[0].masked_fill(~mask.unsqueeze(2), 0), embeds[1])
    ours = entropies(cosines.values, mask, 0.7)
    grad = cosine_gradient(cosines.values, mask, 0.7, *(entry.float() for entry in weights))
    for value, wanted, counted in zip(ours, expected, (mask, slice(None))):
        assert (value - wanted)[counted].norm() < 1e-6 * wanted[counted].norm()
    for value, wanted in zip(tensor_core_gradients(cosines, grad), expected_grads):
        assert value.dtype == torch.bfloat16  # the embeddings' own, which is the larger error
        assert (value - wanted).norm() < 2e-3 * wanted.norm()


def test_unit_vectors_of_tokens_have_the_gradient_of_the_division():
    embeds = torch.randn(3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(l2_normalize, embeds)
    assert torch.equal(l2_normalize(embeds), l2_normalize(embeds.flatten(0, 1)).view_as(embeds))


@pytest.mark.parametrize(("temperature", "fraction"), [(1.0, 0.206), (0.5, 0.057), (0.2, 0.001)])
def test_the_entropy_of_two_levels_is_least_where_the_document_says(temperature, fraction):
    """docs/study.md: of 1,000 patches of +1 and -1, how many are up where the entropy is least; at 0.2 one is."""
    up = torch.arange(1, 1000).unsqueeze(1) > torch.arange(1000)
    levels = torch.where(up, 1.0, -1.0).double().unsqueeze(0)
    token_entropy, _ = entropies(levels, torch.ones(1, 999, dtype=torch.bool), temperature)
    assert (int(token_entropy.argmin()) + 1) / 1000 == pytest.approx(fraction, abs=1e-9)
