# Licensed under the Apache License, Version 2.0.
"""Gradient caching: the gradient of the whole batch, in the memory of a part of it."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import EOS, tier_config
from torch import nn
from torch.profiler import ProfilerActivity, profile

from modeling_tier import TierModel
from modeling_tier.training.grad_cache import cached_backward
from modeling_tier.training.local_loss import LocalLoss
from modeling_tier.training.local_losses import LOCAL_LOSSES, SENTENCE_LOSSES
from tests.processes import in_processes
from tests.test_processes import pairs


def build(dropout=0.0, **options) -> TierModel:
    torch.manual_seed(0)
    config = tier_config(**{"text": "bert", "lambda_token": 0.7, "lambda_patch": 0.4, **options})
    model = TierModel(config).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    return model


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def cached(model, inputs, chunk_size, entropy_scale=1.0, local_loss=None):
    accelerator = Accelerator(cpu=True)
    prepared, local_loss = accelerator.prepare(model), local_loss and local(local_loss, inputs)
    return cached_backward(prepared, accelerator, inputs, chunk_size, entropy_scale, local_loss=local_loss)[0]


def local(name: str, inputs: dict) -> LocalLoss:
    return LocalLoss(name, 0.5, inputs["input_ids"], inputs["attention_mask"], {})


NAMES = ("loss", "contrastive_loss", "token_entropy", "patch_entropy", "local_loss")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"vision": "convnext", "image_pooling": "mean", "projection": "linear"},
        {"count_special_tokens": False, "special_token_ids": [0, EOS]},
        {"lambda_token": 0.0, "lambda_patch": 0.0},
        {"text": "clip", "vision": "siglip", "image_pooling": "mean", "entropy_temperature": 0.5},
    ],
    ids=["bert and clip", "convnext", "a text without a token", "both lambdas 0", "clip and siglip"],
)
@pytest.mark.parametrize("chunk_size", [1, 3, 4, 8])
def test_without_dropout_it_is_the_plain_step(options, chunk_size):
    inputs, model = pairs(8), build(**options)
    expected = model(**inputs, return_loss=True, entropy_scale=0.6)
    expected.loss.backward()
    plain = gradients(model)
    model.zero_grad()
    result = cached(model, inputs, chunk_size, entropy_scale=0.6)
    for name in (name for name in NAMES if name in expected):
        torch.testing.assert_close(result[name], expected[name].detach(), rtol=1e-5, atol=1e-6)
    assert gradients(model).keys() == plain.keys()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", [name for name in LOCAL_LOSSES if name not in SENTENCE_LOSSES])
def test_a_local_loss_is_that_of_the_whole_batch(name):
    inputs, model = pairs(8), build()
    expected = model(**inputs, return_loss=True, local_loss=local(name, inputs))
    expected.loss.backward()
    plain = gradients(model)
    model.zero_grad()
    result = cached(model, inputs, 3, local_loss=name)
    for value in NAMES:
        torch.testing.assert_close(result[value], expected[value].detach(), rtol=1e-5, atol=1e-6)
    assert gradients(model).keys() == plain.keys()
    for weight, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, plain[weight], rtol=1e-4, atol=1e-5, msg=weight)


def test_with_dropout_it_is_the_gradient_of_what_the_chunks_saw():
    """Both passes drop the same: the gradient is that of one graph over the chunks' embeddings."""
    inputs, model = pairs(8), build(dropout=0.3)
    torch.manual_seed(5)
    outs = [model(**{name: rows[i : i + 3] for name, rows in inputs.items()}, output_entropy=True) for i in (0, 3, 6)]
    after = torch.rand(1)
    text, image = (torch.cat([out[name] for out in outs]) for name in ("text_embeds", "image_embeds"))
    expected = model.contrastive_loss(text, image)
    for out, size in zip(outs, (3, 3, 2)):
        expected = expected + size / 8 * (0.7 * out.token_entropy + 0.4 * out.patch_entropy)
    expected.backward()
    plain = gradients(model)
    model.zero_grad()
    torch.manual_seed(5)
    assert cached(model, inputs, 3).loss.item() == pytest.approx(expected.item(), abs=1e-5)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-4, atol=1e-5, msg=name)
    assert torch.equal(torch.rand(1), after)  # as many random numbers as one pass over the chunks takes


def test_batch_norm_sees_every_chunk_once():
    inputs, model, same = pairs(8), *(build(vision="resnet", image_pooling="mean") for _ in range(2))
    for start in (0, 4):
        same(**{name: rows[start : start + 4] for name, rows in inputs.items()})
    cached(model, inputs, 4)
    for (name, result), expected in zip(model.named_buffers(), same.buffers()):
        torch.testing.assert_close(result, expected, msg=name)


def test_a_frozen_temperature_stays_without_gradient():
    model = build()
    model.logit_scale.requires_grad_(False)
    cached(model, pairs(4), 2)
    assert model.logit_scale.grad is None and model.text_projection.weight.grad is not None


def cached_share(rank: int, sizes: list[int], chunk_size: int, options: dict, local_loss: str | None = None) -> dict:
    AcceleratorState._reset_state(True)  # that of the process from which this one was forked
    start, model = sum(sizes[:rank]), build(**options)
    inputs = {name: rows[start : start + sizes[rank]] for name, rows in pairs(sum(sizes)).items()}
    out = cached(model, inputs, chunk_size, local_loss=local_loss)
    values = {name: out[name].detach() for name in NAMES if name in out}
    return {"values": values, "gradients": gradients(model)}


@pytest.mark.parametrize("options", [{}, {"count_special_tokens": False, "special_token_ids": [0, EOS]}], ids=str)
@pytest.mark.parametrize("sizes", [[6, 6], [7, 5]], ids=str)
def test_two_processes_are_one(sizes, options):
    model = build(**options)
    expected = model(**pairs(sum(sizes)), return_loss=True)
    expected.loss.backward()
    for result in in_processes(2, cached_share, sizes, 4, options):
        for name in result["values"]:
            torch.testing.assert_close(result["values"][name], expected[name].detach(), rtol=0, atol=1e-5)
        for name, gradient in gradients(model).items():
            torch.testing.assert_close(result["gradients"][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_two_processes_are_one_with_a_local_loss():
    """In two processes, in chunks, against one process without: negatives, and the gradient's scale."""
    model, inputs = build(), pairs(12)
    expected = model(**inputs, return_loss=True, local_loss=local("gloria", inputs))
    expected.loss.backward()
    for result in in_processes(2, cached_share, [6, 6], 4, {}, "gloria"):
        for name in NAMES:
            torch.testing.assert_close(result["values"][name], expected[name].detach(), rtol=0, atol=1e-5)
        for name, gradient in gradients(model).items():
            torch.testing.assert_close(result["gradients"][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def peak_memory(step) -> int:
    """Most bytes that torch's allocator has handed out at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def test_memory_does_not_grow_with_the_batch():
    def peak(number, chunk_size):
        model, inputs = build(), pairs(number)
        model(**pairs(4), return_loss=True).loss.backward()  # the gradients are there
        return peak_memory(lambda: cached(model, inputs, chunk_size))

    assert peak(128, 8) < 1.15 * peak(32, 8)
    assert peak(128, 128) > 5 * peak(128, 8)
