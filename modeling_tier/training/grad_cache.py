# Licensed under the Apache License, Version 2.0.
"""Gradient caching (Gao et al., 2021, arXiv 2101.06983): the step of a large batch in the memory of a small one."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import Accelerator
from torch.utils.checkpoint import get_device_states, set_device_states

from ..modeling_tier import TierCachedGradients, TierModel, TierOutput
from .local_loss import EMBEDDINGS, LocalLoss
from .stopping import batch_statistics


@dataclass
class Embedded:
    """
    The pairs of a batch, embedded without a graph.

    Attributes:
        embeds: of all pairs by their names in [`TierOutput`]: (N, D), and of tokens and patches (N, T, D), (N, P, D).
        counted: of each chunk the number of pairs that the entropies count.
        random_states: before each chunk, for the same dropout once more.
    """

    embeds: dict[str, torch.Tensor]
    counted: list[torch.Tensor]
    random_states: list[tuple]


def cached_backward(
    model: torch.nn.Module,
    accelerator: Accelerator,
    batch: dict[str, torch.Tensor],
    chunk_size: int,
    entropy_scale: float = 1.0,
    to_device: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] | None = None,
    local_loss: LocalLoss | None = None,
) -> tuple[TierOutput, dict[str, torch.Tensor]]:
    """
    Add the gradient of a batch's loss to the parameters, `chunk_size` pairs at a time.

    The pairs are embedded without a graph; the contrastive loss of all of them, and the local loss, give the gradient
    of each embedding; with it, each chunk is embedded again, with the same dropout, and has its own backward pass. The
    sum is the gradient of the whole batch, the negatives and entropies of all processes included. BatchNorm alone sees
    chunks: its statistics are a chunk's own, as with several processes they are a process's own.

    Args:
        model: a [`TierModel`] as `accelerator.prepare` returns it, in training mode.
        batch: inputs of the model for N pairs, on any device. All processes must have as many chunks.
        chunk_size: pairs that are embedded at once.
        entropy_scale: as the model takes it.
        to_device: makes the model's inputs on its device of a chunk; by default they are only moved.
        local_loss: of the whole batch; none over sentences. The tokens and patches of all pairs are then held as well.

    Returns:
        The output for the last chunk, with `loss`, `contrastive_loss`, `local_loss` and entropies of the whole batch,
        and the inputs that it belongs to.
    """
    to_device = to_device or partial(on, accelerator.device)
    bare_model: TierModel = accelerator.unwrap_model(model)
    chunks = [dict(zip(batch, rows)) for rows in zip(*(rows.split(chunk_size) for rows in batch.values()))]
    embedded = _embed(model, accelerator, map(to_device, chunks), EMBEDDINGS[: None if local_loss else 2])
    losses, embed_grads, scale_grad = _gradients(bare_model, embedded.embeds, local_loss)
    # With the mean of the gradients over the processes in mind, as the gradient of the contrastive loss is.
    total = accelerator.reduce(sum(embedded.counted), reduction="mean").clamp(min=torch.finfo().tiny)

    terms = torch.zeros((), device=accelerator.device)
    grads = [dict(zip(embed_grads, own)) for own in zip(*(grad.split(chunk_size) for grad in embed_grads.values()))]
    for number, (chunk, grad, state) in enumerate(zip(chunks, grads, embedded.random_states)):
        chunk, is_last = to_device(chunk), number == len(chunks) - 1
        torch.set_rng_state(state[0])
        set_device_states(*state[1:])
        weight = embedded.counted[number] / total
        cached = TierCachedGradients(**grad, logit_scale=scale_grad if is_last else None, term_weight=weight)
        with nullcontext() if is_last else accelerator.no_sync(model):
            with accelerator.autocast():
                out = model(**chunk, return_loss=True, entropy_scale=entropy_scale, cached_gradients=cached)
            if out.loss.requires_grad:  # else logit_scale alone is trained, and this is not the last chunk
                accelerator.backward(out.loss)
        if out.terms:
            terms = terms + weight * torch.stack([term.detach() for term in out.terms.values()])

    out.contrastive_loss = losses["contrastive_loss"]
    if out.terms:
        for name, value in zip(out.terms, accelerator.reduce(terms, reduction="mean")):
            out[name] = value
    out.loss = bare_model.total_loss(out.contrastive_loss, out.terms, entropy_scale)
    if "local_loss" in losses:
        out["local_loss"] = losses["local_loss"]
        out.loss = out.loss + out.local_loss
    return out, chunk


@torch.no_grad()
def _embed(
    model: torch.nn.Module, accelerator: Accelerator, chunks: Iterable[dict[str, torch.Tensor]], names: Sequence[str]
) -> Embedded:
    """Embed chunk by chunk; BatchNorm's statistics stay as they are, since the second pass adds to them."""
    bare_model: TierModel = accelerator.unwrap_model(model)
    statistics = batch_statistics(bare_model)
    before = [buffer.clone() for buffer in statistics]
    random_states, embeds, counted = [], {name: [] for name in names}, []
    for chunk in chunks:
        random_states.append((torch.get_rng_state(), *get_device_states(chunk["pixel_values"])))
        with accelerator.autocast():
            out = model(**chunk)
        for name in names:
            embeds[name].append(out[name].float())
        mask = bare_model.entropy_mask(chunk["input_ids"], chunk.get("attention_mask"))
        mask = torch.ones_like(chunk["input_ids"]) if mask is None else mask
        counted.append(mask.any(dim=1).sum().float())
    for buffer, value in zip(statistics, before):
        buffer.copy_(value)
    return Embedded({name: torch.cat(parts) for name, parts in embeds.items()}, counted, random_states)


def _gradients(
    bare_model: TierModel, embeds: dict[str, torch.Tensor], local_loss: LocalLoss | None
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor | None]:
    """The losses of all pairs; their gradients by each kind of embedding, and by `logit_scale` if that is trained."""
    embeds = {name: value.requires_grad_() for name, value in embeds.items()}
    losses = {"contrastive_loss": bare_model.contrastive_loss(embeds["text_embeds"], embeds["image_embeds"])}
    if local_loss is not None:
        losses["local_loss"] = local_loss(bare_model, TierOutput(**embeds))
    scale = [bare_model.logit_scale] if bare_model.logit_scale.requires_grad else []
    # A local loss may look at no tokens, or at no patches.
    grads = torch.autograd.grad(sum(losses.values()), [*embeds.values(), *scale], allow_unused=True)
    by_name = {name: grad for name, grad in zip(embeds, grads) if grad is not None}
    return {name: loss.detach() for name, loss in losses.items()}, by_name, grads[len(embeds)] if scale else None


def on(device: torch.device, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
