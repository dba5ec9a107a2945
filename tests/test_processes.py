# Licensed under the Apache License, Version 2.0.
"""The loss and its gradient do not depend on how the pairs are spread over processes."""

import pytest
import torch
from conftest import EOS, make_inputs, tier_config
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from modeling_tier import TierModel
from tests.processes import in_processes


def build(**options) -> TierModel:
    torch.manual_seed(0)
    model = TierModel(tier_config(**{"lambda_token": 0.7, "lambda_patch": 0.4, **options})).train()
    for module in model.modules():  # which pair gets which mask is the one thing that must depend on the spread
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def pairs(number: int) -> dict[str, torch.Tensor]:
    """Texts of different lengths; the last one is of special tokens alone, and does not count if these do not."""
    inputs = make_inputs(number, num_tokens=9)
    for row in range(number):
        length = 9 - row % 4
        inputs["input_ids"][row, length - 1 :] = EOS
        inputs["attention_mask"][row, length:] = 0
    inputs["input_ids"][-1, 1:] = EOS
    inputs["attention_mask"][-1, 2:] = 0
    return inputs


def result(model: nn.Module, inputs: dict) -> dict:
    shapes, cross_entropy = [], functional.cross_entropy

    def watched(logits, targets):
        shapes.append(tuple(logits.shape))
        return cross_entropy(logits, targets)

    functional.cross_entropy = watched
    try:
        out = model(**inputs, return_loss=True, output_entropy=True)
    finally:
        functional.cross_entropy = cross_entropy
    out.loss.backward()
    bare = getattr(model, "module", model)
    names = ("loss", "contrastive_loss", "token_entropy", "patch_entropy")
    return {
        "values": {name: out[name].detach() for name in names},
        "gradients": {name: p.grad for name, p in bare.named_parameters() if p.grad is not None},
        "logits": shapes,
    }


def share(rank: int, sizes: list[int], options: dict) -> dict:
    inputs, start = pairs(sum(sizes)), sum(sizes[:rank])
    return result(
        DistributedDataParallel(build(**options)),
        {name: rows[start : start + sizes[rank]] for name, rows in inputs.items()},
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"count_special_tokens": False, "special_token_ids": [0, EOS]},
        {"lambda_token": 0.0, "lambda_patch": 0.0},
        {"text": "bert", "vision": "convnext", "image_pooling": "mean", "projection": "linear"},
    ],
    ids=["special tokens counted", "a text without a token", "clip", "bert and convnext"],
)
@pytest.mark.parametrize("sizes", [[6, 6], [7, 5], [3, 3, 3, 3], [4, 3, 4, 1]], ids=str)
def test_loss_and_gradients_are_those_of_one_process(sizes, options):
    expected = result(build(**options), pairs(sum(sizes)))
    for rank, actual in enumerate(in_processes(len(sizes), share, sizes, options)):
        torch.testing.assert_close(actual["values"], expected["values"], rtol=0, atol=1e-5)
        assert actual["gradients"].keys() == expected["gradients"].keys()
        for name, gradient in expected["gradients"].items():
            torch.testing.assert_close(actual["gradients"][name], gradient, rtol=1e-5, atol=1e-5, msg=name)
        # A process holds its own rows of the logits, never all of them.
        assert actual["logits"] == [(sizes[rank], sum(sizes))] * 2


def embeddings_and_gradients(rank: int, size: int) -> list[torch.Tensor]:
    model = build(logit_scale_init_value=1.5)
    own = [rows[rank * size : (rank + 1) * size].clone().requires_grad_() for rows in unit_vectors()]
    loss = model.contrastive_loss(*own)
    loss.backward()
    return [loss.detach(), *(rows.grad for rows in own), model.logit_scale.grad]


def unit_vectors() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [functional.normalize(torch.randn(12, 16, generator=generator), dim=-1) for _ in range(2)]


@pytest.mark.parametrize("number", [2, 4])
def test_the_contrastive_loss_is_that_of_local_rows_and_gathered_columns(number):
    """
    open_clip's arithmetic with local_loss and gather_with_grad, as a formula: each process takes the cross-entropy of
    its rows against everybody's columns; a gathered embedding gets the sum of the gradients of all processes.
    """
    text, image = (rows.double().requires_grad_() for rows in unit_vectors())
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    size, losses = 12 // number, []
    for rank in range(number):
        rows = range(rank * size, (rank + 1) * size)
        for mine, others in ((text, image), (image, text)):
            logits = scale.exp() * mine[rows.start : rows.stop] @ others.T
            log_probability = logits - torch.logsumexp(logits, dim=1, keepdim=True)
            losses.append(-torch.stack([log_probability[i, row] for i, row in enumerate(rows)]).mean() / 2)
    sum(losses).backward()
    scale_grads = []
    for rank, (loss, *own, scale_grad) in enumerate(in_processes(number, embeddings_and_gradients, size)):
        assert loss.item() == pytest.approx(sum(losses).item() / number, abs=1e-6)
        for actual, expected in zip(own, (text, image)):
            torch.testing.assert_close(
                actual.double(), expected.grad[rank * size : (rank + 1) * size], rtol=1e-5, atol=1e-6
            )
        scale_grads.append(scale_grad)
    torch.testing.assert_close(sum(scale_grads).double(), scale.grad, rtol=1e-5, atol=1e-6)
