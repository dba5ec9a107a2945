# Licensed under the Apache License, Version 2.0.
"""Gradient caching (Gao et al., 2021, arXiv 2101.06983): the step of a large batch in the memory of a small one."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import Accelerator
from torch.utils.checkpoint import get_device_states, set_device_states

from ..modeling_tier import TierCachedGradients, TierModel, TierOutput
from .stopping import batch_statistics


@dataclass
class Embedded:
    """
    The pairs of a batch, embedded without a graph.

    Attributes:
        text_embeds: of all pairs, (N, D).
        image_embeds: of all pairs, (N, D).
        counted: of each chunk the number of pairs that the entropies count.
        random_states: before each chunk, for the same dropout once more.
    """

    text_embeds: torch.Tensor
    image_embeds: torch.Tensor
    counted: list[torch.Tensor]
    random_states: list[tuple]


def cached_backward(
    model: torch.nn.Module,
    accelerator: Accelerator,
    batch: dict[str, torch.Tensor],
    chunk_size: int,
    entropy_scale: float = 1.0,
    to_device: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] | None = None,
) -> tuple[TierOutput, dict[str, torch.Tensor]]:
    """
    Add the gradient of a batch's loss to the parameters, `chunk_size` pairs at a time.

    The pairs are embedded without a graph; the contrastive loss of all of them gives the gradient of each embedding;
    with it, each chunk is embedded again, with the same dropout, and has its own backward pass. The sum is the
    gradient of the whole batch, the negatives and entropies of all processes included. BatchNorm alone sees chunks:
    its statistics are a chunk's own, as with several processes they are a process's own.

    Args:
        model: a [`TierModel`] as `accelerator.prepare` returns it, in training mode.
        batch: inputs of the model for N pairs, on any device. All processes must have as many chunks.
        chunk_size: pairs that are embedded at once.
        entropy_scale: as the model takes it.
        to_device: makes the model's inputs on its device of a chunk; by default they are only moved.

    Returns:
        The output for the last chunk, with `loss`, `contrastive_loss` and entropies of the whole batch, and the inputs
        that it belongs to.
    """
    to_device = to_device or partial(on, accelerator.device)
    bare_model: TierModel = accelerator.unwrap_model(model)
    chunks = [dict(zip(batch, rows)) for rows in zip(*(rows.split(chunk_size) for rows in batch.values()))]
    embedded = _embed(model, accelerator, map(to_device, chunks))
    contrastive_loss, embed_grads, scale_grad = _contrastive_gradients(bare_model, embedded)
    # With the mean of the gradients over the processes in mind, as the gradient of the contrastive loss is.
    total = accelerator.reduce(sum(embedded.counted), reduction="mean").clamp(min=torch.finfo().tiny)

    terms = torch.zeros((), device=accelerator.device)
    grads = zip(*(grad.split(chunk_size) for grad in embed_grads))
    for number, (chunk, grad, state) in enumerate(zip(chunks, grads, embedded.random_states)):
        chunk, is_last = to_device(chunk), number == len(chunks) - 1
        torch.set_rng_state(state[0])
        set_device_states(*state[1:])
        weight = embedded.counted[number] / total
        cached = TierCachedGradients(*grad, scale_grad if is_last else None, weight)
        with nullcontext() if is_last else accelerator.no_sync(model):
            with accelerator.autocast():
                out = model(**chunk, return_loss=True, entropy_scale=entropy_scale, cached_gradients=cached)
            if out.loss.requires_grad:  # else logit_scale alone is trained, and this is not the last chunk
                accelerator.backward(out.loss)
        if out.terms:
            terms = terms + weight * torch.stack([term.detach() for term in out.terms.values()])

    out.contrastive_loss = contrastive_loss
    if out.terms:
        for name, value in zip(out.terms, accelerator.reduce(terms, reduction="mean")):
            out[name] = value
    out.loss = bare_model.total_loss(out.contrastive_loss, out.terms, entropy_scale)
    return out, chunk


@torch.no_grad()
def _embed(model: torch.nn.Module, accelerator: Accelerator, chunks: Iterable[dict[str, torch.Tensor]]) -> Embedded:
    """Embed chunk by chunk; BatchNorm's statistics stay as they are, since the second pass adds to them."""
    bare_model: TierModel = accelerator.unwrap_model(model)
    statistics = batch_statistics(bare_model)
    before = [buffer.clone() for buffer in statistics]
    random_states, text_embeds, image_embeds, counted = [], [], [], []
    for chunk in chunks:
        random_states.append((torch.get_rng_state(), *get_device_states(chunk["pixel_values"])))
        with accelerator.autocast():
            out = model(**chunk)
        text_embeds.append(out.text_embeds.float())
        image_embeds.append(out.image_embeds.float())
        mask = bare_model.entropy_mask(chunk["input_ids"], chunk.get("attention_mask"))
        mask = torch.ones_like(chunk["input_ids"]) if mask is None else mask
        counted.append(mask.any(dim=1).sum().float())
    for buffer, value in zip(statistics, before):
        buffer.copy_(value)
    return Embedded(torch.cat(text_embeds), torch.cat(image_embeds), counted, random_states)


def _contrastive_gradients(
    bare_model: TierModel, embedded: Embedded
) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor | None]:
    """The contrastive loss, its gradients by text and image embeddings, and by `logit_scale` if that is trained."""
    embeds = [embedded.text_embeds.requires_grad_(), embedded.image_embeds.requires_grad_()]
    loss = bare_model.contrastive_loss(*embeds)
    trains_scale = bare_model.logit_scale.requires_grad
    *grads, scale_grad = [
        *torch.autograd.grad(loss, embeds + ([bare_model.logit_scale] if trains_scale else [])),
        *([] if trains_scale else [None]),
    ]
    return loss.detach(), grads, scale_grad


def on(device: torch.device, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
