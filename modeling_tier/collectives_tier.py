# Licensed under the Apache License, Version 2.0.
"""Collectives of torch.distributed with a gradient: embeddings and means of the pairs of all processes."""

import torch
import torch.distributed
from torch import nn


class _AllGather(torch.autograd.Function):
    """Rows (n, D) of all processes, one after the other; each gets the sum of the gradients that all have for it."""

    @staticmethod
    def forward(ctx, rows):
        ctx.size = len(rows)
        gathered = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(grad)
        return grad[torch.distributed.get_rank() * ctx.size :][: ctx.size]


class _AllReduce(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, summand):
        total = summand.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad):
        return _AllReduce.forward(ctx, grad)


def sizes_of_processes(size: int, device: torch.device) -> list[int]:
    size = torch.tensor([size], device=device)
    sizes = [torch.empty_like(size) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(sizes, size)
    return torch.cat(sizes).tolist()


def gather_rows(embeds: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Embeddings (sum of sizes, D) of all processes, which have different numbers of them."""
    gathered = _AllGather.apply(nn.functional.pad(embeds, (0, 0, 0, max(sizes) - len(embeds))))
    if len(set(sizes)) == 1:
        return gathered
    return torch.cat([rows[:size] for rows, size in zip(gathered.split(max(sizes)), sizes)])


def mean_over_processes(means: list[torch.Tensor], weight: int | torch.Tensor) -> list[torch.Tensor]:
    """
    Means over all processes of scalars that are means over `weight` pairs of this one. The sum's gradient is again
    summed over the processes, of which each has the same loss: it comes out multiplied by their number, and the mean
    of the parameters' gradients, which DDP and its kind take, divides by it.
    """
    means = torch.stack([mean.float() for mean in means])
    sums = torch.cat([means, torch.ones_like(means[:1])]) * weight
    *sums, weight = _AllReduce.apply(sums)
    return [total / weight.clamp(min=1) for total in sums]
