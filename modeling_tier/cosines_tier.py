# Licensed under the Apache License, Version 2.0.
"""
Unit vectors, and the cosines of tokens and patches with their gradient written out.

Autograd would keep the unit vectors in float32 between the two passes, which are larger than the embeddings
themselves; here the backward pass makes them again from the embeddings.
"""

from typing import NamedTuple

import torch


class Cosines(NamedTuple):
    """Cosines of N texts' tokens and their images' patches, with what their gradient needs."""

    values: torch.Tensor
    """(N, T, P), float32 (float64 for float64 embeddings)."""
    tokens: torch.Tensor
    """(N, T, D), zero at padding: of unit length, or as they were given where tensor cores multiply them."""
    patches: torch.Tensor
    """(N, P, D), likewise."""
    token_norm: torch.Tensor
    """(N, T, 1); infinite for a zero vector."""
    patch_norm: torch.Tensor
    """(N, P, 1)"""


def l2_normalize(embeds: torch.Tensor) -> torch.Tensor:
    """Scale the last dimension to unit length. A zero vector stays zero and passes no gradient on."""
    if embeds.ndim > 2 and embeds.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _UnitVectors.apply(embeds)
    return _unit(embeds)[0]


def token_patch_cosines(token_embeds: torch.Tensor, patch_embeds: torch.Tensor, token_mask: torch.Tensor) -> Cosines:
    """Cosines of (N, T, D) and (N, P, D) embeddings; tokens outside the mask (N, T) count as zero, NaN included."""
    # Zeroed before anything is computed, so that not even a NaN at a padding position gets through.
    tokens = token_embeds.masked_fill(~token_mask.unsqueeze(2), 0.0)
    if use_tensor_cores(token_embeds, patch_embeds):
        return tensor_core_cosines(tokens, patch_embeds)
    return unit_cosines(tokens, patch_embeds)


def cosine_embedding_gradients(cosines: Cosines, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the token and patch embeddings from that of the cosines (N, T, P), which may be overwritten."""
    if cosines.tokens.dtype == torch.bfloat16:
        return tensor_core_gradients(cosines, grad)
    return unit_gradients(cosines, grad)


def unit_cosines(tokens: torch.Tensor, patches: torch.Tensor) -> Cosines:
    """Unit vectors in at least float32, and their products."""
    dtype = torch.promote_types(torch.promote_types(tokens.dtype, patches.dtype), torch.float32)
    tokens, token_norm = _unit(tokens.to(dtype))
    patches, patch_norm = _unit(patches.to(dtype))
    return Cosines(tokens @ patches.transpose(1, 2), tokens, patches, token_norm, patch_norm)


def unit_gradients(cosines: Cosines, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values, tokens, patches, token_norm, patch_norm = cosines
    along = grad * values  # through x / |x|, the part of the gradient along x falls away
    token_grad = (grad @ patches).addcmul_(tokens, along.sum(dim=2).unsqueeze(2), value=-1).div_(token_norm)
    patch_grad = grad.transpose(1, 2) @ tokens
    patch_grad = patch_grad.addcmul_(patches, along.sum(dim=1).unsqueeze(2), value=-1).div_(patch_norm)
    return token_grad, patch_grad


def _unit(embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    norm = torch.linalg.vector_norm(embeds, dim=-1, keepdim=True)
    # Division by infinity rather than by a small epsilon: the latter would multiply the gradient by 1 / epsilon.
    norm = torch.where(norm > 1e-12, norm, torch.inf)
    return embeds / norm, norm


class _UnitVectors(torch.autograd.Function):
    """
    Keeps its input and the norms for the backward pass, and not the float32 copies that autocast makes: every token
    and patch has them, and where a training step returns a loss nobody may ever differentiate through them.
    """

    @staticmethod
    def forward(ctx, embeds):
        units, norm = _unit(embeds)
        ctx.save_for_backward(embeds, norm)
        return units

    @staticmethod
    def backward(ctx, grad):
        embeds, norm = ctx.saved_tensors
        units = embeds / norm
        return ((grad - units * (grad * units).sum(dim=-1, keepdim=True)) / norm).to(embeds.dtype)


# On tensor cores, for bfloat16 embeddings on a GPU: a quarter of the memory traffic, since products are taken of the
# embeddings as they are and norms divide the cosines, so that no float32 copies of the embeddings are written.


def use_tensor_cores(token_embeds: torch.Tensor, patch_embeds: torch.Tensor) -> bool:
    if token_embeds.dtype != torch.bfloat16 or patch_embeds.dtype != torch.bfloat16 or not patch_embeds.is_cuda:
        return False
    if torch.version.cuda is None or torch.compiler.is_compiling():
        return False
    return torch.cuda.get_device_capability(patch_embeds.device) >= (8, 0)


def tensor_core_cosines(tokens: torch.Tensor, patches: torch.Tensor) -> Cosines:
    token_norm, patch_norm = _float_norm(tokens), _float_norm(patches)
    values = _product(tokens, patches.transpose(1, 2)).div_(token_norm).div_(patch_norm.transpose(1, 2))
    return Cosines(values, tokens, patches, token_norm, patch_norm)


def tensor_core_gradients(cosines: Cosines, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    A gradient enters its product as the sum of two bfloat16 numbers, which keep 16 bits of it: its rows sum to zero,
    so that of patches that are alike little more would remain than the rounding of 8 bits.
    """
    values, tokens, patches, token_norm, patch_norm = cosines
    along = grad * values
    grad /= token_norm
    grad /= patch_norm.transpose(1, 2)
    grads = []
    for score_grad, others, own, norm, part in (
        (grad, patches, tokens, token_norm, along.sum(dim=2).unsqueeze(2)),
        (grad.transpose(1, 2), tokens, patches, patch_norm, along.sum(dim=1).unsqueeze(2)),
    ):
        high = score_grad.to(torch.bfloat16)
        halves = torch.cat([high, (score_grad - high).to(torch.bfloat16)], dim=2)
        product = _product(halves, torch.cat([others, others], dim=1))
        result = torch.empty_like(own)
        grads.append(torch.addcmul(product, own, part / norm**2, value=-1, out=result))
    return grads[0], grads[1]


def _float_norm(embeds: torch.Tensor) -> torch.Tensor:
    norm = torch.linalg.vector_norm(embeds, dim=-1, keepdim=True, dtype=torch.float32)
    return torch.where(norm > 1e-12, norm, torch.inf)


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Product of bfloat16 matrices (N, A, B) and (N, B, C), summed and returned in float32."""
    if left.is_cuda:
        return torch.bmm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()
