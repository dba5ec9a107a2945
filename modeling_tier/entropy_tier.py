# Licensed under the Apache License, Version 2.0.
"""The text-image entropy regulariser of TIER (Palepu & Beam, 2023, arXiv 2212.06710)."""

from functools import partial
from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable


class TextImageEntropy(NamedTuple):
    """The two terms of the regulariser, in nats: scalar tensors, float32 (float64 for float64 inputs)."""

    token: torch.Tensor
    """Mean entropy of a token over the patches, in [0, log P]; low when a token describes few patches."""
    patch: torch.Tensor
    """Mean entropy of a patch over the tokens, in [0, log T]; low when a patch answers to few tokens."""


def entropies(
    cosines: torch.Tensor, token_mask: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The definition: entropy of every token over the patches (N, T), and of every patch over the valid tokens (N, P).

    Args:
        cosines (`torch.Tensor` of shape `(N, T, P)`), token_mask (of shape `(N, T)`, bool), temperature: as below.
    """
    token_entropy = entropy(log_distribution(cosines, token_mask, temperature, dim=2), dim=2)
    patch_entropy = entropy(log_distribution(cosines, token_mask, temperature, dim=1), dim=1)
    return token_entropy, patch_entropy


def log_distribution(cosines: torch.Tensor, token_mask: torch.Tensor, temperature: float, dim: int) -> torch.Tensor:
    """Logarithm of `q`, over the patches (`dim` 2), or of `r`, over the valid tokens (1); cosines are finite."""
    scores = cosines if temperature == 1 else cosines / temperature
    if dim == 1:  # not minus infinity, which times its probability 0 would be NaN
        scores = scores.masked_fill(~token_mask.unsqueeze(2), -1e30)
    return torch.log_softmax(scores, dim=dim)


def entropy(log_probability: torch.Tensor, dim: int) -> torch.Tensor:
    """In nats, without an epsilon: the logarithm comes from log_softmax."""
    return -(log_probability.exp() * log_probability).sum(dim=dim)


def text_image_entropy(
    token_embeds: torch.Tensor,
    patch_embeds: torch.Tensor,
    token_mask: torch.Tensor | None = None,
    temperature: float = 1.0,
) -> TextImageEntropy:
    """
    Entropies of the token-to-patch similarities of matched text-image pairs: the regulariser of arXiv 2212.06710.

    With `S[t, p]` the cosine similarity of token `t` and patch `p` of one pair,

        H_t = -sum_p q[t, p] log q[t, p],  q[t, :] = softmax(S[t, :] / temperature)  over the patches
        H_p = -sum_t r[t, p] log r[t, p],  r[:, p] = softmax(S[:, p] / temperature)  over the valid tokens

    are averaged over the valid tokens (the patches) of a pair, then over the pairs. The values are those of
    [`entropies`], the gradient is written out (see the end of this file); there is no second one.

    Args:
        token_embeds (`torch.Tensor` of shape `(N, T, D)`):
            Projected token embeddings of N texts, of any length (they are normalised here) and floating dtype.
        patch_embeds (`torch.Tensor` of shape `(N, P, D)`):
            Projected patch embeddings of the N images that the texts describe.
        token_mask (`torch.Tensor` of shape `(N, T)`, bool or 0/1, *optional*):
            True where a token counts. What stands at the other positions changes neither value nor gradient. A pair
            without a valid token adds nothing and is not counted in the mean; if no pair has one, both terms are 0.
        temperature (`float`, defaults to 1.0):
            Divides the cosines; the paper uses the raw cosine. Must be positive.

    Returns:
        [`TextImageEntropy`]: `.token` and `.patch`, scalars. The arithmetic is float32 (float64 for float64 inputs),
        also for half-precision inputs and under autocast. On a GPU, products with bfloat16 embeddings are those of
        the tensor cores, which sum in float32.

    Raises:
        ValueError: if the shapes do not fit each other, a dimension is empty or the temperature is not positive.
    """
    _check_inputs(token_embeds, patch_embeds, token_mask, temperature)
    if token_mask is None:
        token_mask = torch.ones(token_embeds.shape[:2], dtype=torch.bool, device=token_embeds.device)
    with torch.autocast(device_type=token_embeds.device.type, enabled=False):
        token_mask = token_mask.to(torch.bool)
        function = _TensorCoreEntropies if _on_tensor_cores(token_embeds, patch_embeds) else _Entropies
        token_entropy, patch_entropy = function.apply(token_embeds, patch_embeds, token_mask, temperature)
        valid = token_mask.to(token_entropy.dtype)
        num_tokens = valid.sum(dim=1)  # (N,)
        token_entropy = (token_entropy * valid).sum(dim=1) / num_tokens.clamp(min=1)  # (N,)

        pair_weight = (num_tokens > 0).to(token_entropy.dtype)
        num_pairs = pair_weight.sum().clamp(min=1)
        return TextImageEntropy(
            token=(token_entropy * pair_weight).sum() / num_pairs,
            patch=(patch_entropy.mean(dim=1) * pair_weight).sum() / num_pairs,
        )


def l2_normalize(embeds: torch.Tensor) -> torch.Tensor:
    """Scale the last dimension to unit length. A zero vector stays zero and passes no gradient on."""
    if embeds.ndim > 2 and embeds.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _UnitVectors.apply(embeds)
    return _unit(embeds)[0]


def _unit(embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    norm = torch.linalg.vector_norm(embeds, dim=-1, keepdim=True)
    # Division by infinity rather than by a small epsilon: the latter would multiply the gradient by 1 / epsilon.
    norm = torch.where(norm > 1e-12, norm, torch.inf)
    return embeds / norm, norm


def _check_inputs(
    token_embeds: torch.Tensor, patch_embeds: torch.Tensor, token_mask: torch.Tensor | None, temperature: float
) -> None:
    if token_embeds.ndim != 3 or patch_embeds.ndim != 3:
        raise ValueError(
            "token_embeds must have shape (N, T, D) and patch_embeds (N, P, D); got "
            f"{tuple(token_embeds.shape)} and {tuple(patch_embeds.shape)}."
        )
    if token_embeds.shape[0] != patch_embeds.shape[0] or token_embeds.shape[2] != patch_embeds.shape[2]:
        raise ValueError(
            "token_embeds (N, T, D) and patch_embeds (N, P, D) must agree in N, the number of pairs, and D, the "
            f"dimension of the joint space; got {tuple(token_embeds.shape)} and {tuple(patch_embeds.shape)}."
        )
    if 0 in token_embeds.shape[1:] or patch_embeds.shape[1] == 0:
        raise ValueError(
            "At least one token, one patch and one dimension are needed; got token_embeds "
            f"{tuple(token_embeds.shape)} and patch_embeds {tuple(patch_embeds.shape)}."
        )
    if not token_embeds.is_floating_point() or not patch_embeds.is_floating_point():
        raise ValueError(
            f"token_embeds and patch_embeds must be floating point; got {token_embeds.dtype} and {patch_embeds.dtype}."
        )
    if token_mask is not None and token_mask.shape != token_embeds.shape[:2]:
        raise ValueError(
            f"token_mask must have shape (N, T) = {tuple(token_embeds.shape[:2])}; got {tuple(token_mask.shape)}."
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive; got {temperature}.")


# The same with the gradient written out. Between the two passes autograd would keep several N x T x P arrays and
# normalised float32 copies of the embeddings, which are larger still; these functions keep their inputs alone.


class _Entropies(torch.autograd.Function):
    """
    Cosines and their [`entropies`], with the gradient `dH/ds_j = -q_j (log q_j + H)` of each score.
    """

    @staticmethod
    def forward(ctx, token_embeds, patch_embeds, token_mask, temperature):
        ctx.save_for_backward(token_embeds, patch_embeds, token_mask)
        ctx.temperature = temperature
        *_, cosines = _Entropies.cosines(token_embeds, patch_embeds, token_mask)
        return entropies(cosines, token_mask, temperature)

    @staticmethod
    @once_differentiable
    def backward(ctx, token_grad, patch_grad):
        token_embeds, patch_embeds, token_mask = ctx.saved_tensors
        with torch.autocast(device_type=token_embeds.device.type, enabled=False):  # whoever calls backward
            *units, cosines = _Entropies.cosines(token_embeds, patch_embeds, token_mask)
            tokens, token_norm, patches, patch_norm = units
            grad = cosine_gradient(cosines, token_mask, ctx.temperature, token_grad, patch_grad)
            # Through x / |x|: the part of the gradient along x falls away.
            along = grad * cosines
            token_grad = (grad @ patches).addcmul_(tokens, along.sum(dim=2).unsqueeze(2), value=-1).div_(token_norm)
            patch_grad = grad.transpose(1, 2) @ tokens
            patch_grad = patch_grad.addcmul_(patches, along.sum(dim=1).unsqueeze(2), value=-1).div_(patch_norm)
            return token_grad.to(token_embeds.dtype), patch_grad.to(patch_embeds.dtype), None, None

    @staticmethod
    def cosines(token_embeds, patch_embeds, token_mask):
        """Unit vectors and norms of both, and their cosines (N, T, P)."""
        dtype = torch.promote_types(torch.promote_types(token_embeds.dtype, patch_embeds.dtype), torch.float32)
        # Zeroed before anything is computed, so that not even a NaN at a padding position gets through.
        tokens, token_norm = _unit(token_embeds.to(dtype).masked_fill(~token_mask.unsqueeze(2), 0.0))
        patches, patch_norm = _unit(patch_embeds.to(dtype))
        return tokens, token_norm, patches, patch_norm, tokens @ patches.transpose(1, 2)


def cosine_gradient(cosines, token_mask, temperature: float, token_grad, patch_grad) -> torch.Tensor:
    """Gradient (N, T, P) with respect to the cosines, from those of the tokens' and of the patches' entropies."""
    distribution = partial(log_distribution, cosines, token_mask, temperature)
    # One direction after the other: few arrays of this size at a time. ds/dcosine = 1 / temperature.
    grad = minus_entropy_gradient(distribution(dim=2), dim=2).mul_(token_grad.unsqueeze(2))
    grad += minus_entropy_gradient(distribution(dim=1), dim=1).mul_(patch_grad.unsqueeze(1))
    grad /= -temperature
    return grad


def minus_entropy_gradient(log_probability: torch.Tensor, dim: int) -> torch.Tensor:
    """`-dH/ds_j = q_j (log q_j + H)`. Overwrites its input."""
    probability = log_probability.exp()
    log_probability -= (probability * log_probability).sum(dim=dim, keepdim=True)
    return probability.mul_(log_probability)


class _TensorCoreEntropies(torch.autograd.Function):
    """
    The same for bfloat16 embeddings on a GPU, a quarter of the memory traffic: products are taken of the embeddings as
    they are, and norms divide the scores, so that no float32 copies of the embeddings are written. A gradient of the
    scores enters its product as the sum of two bfloat16 numbers, 16 bits of it: rows of it sum to zero, and patches
    that are alike would leave little more than the rounding of 8 bits.
    """

    @staticmethod
    def forward(ctx, token_embeds, patch_embeds, token_mask, temperature):
        ctx.temperature = temperature
        tokens, token_norm, patch_norm, cosines = _TensorCoreEntropies.cosines(token_embeds, patch_embeds, token_mask)
        ctx.save_for_backward(token_embeds, patch_embeds, token_mask)
        return entropies(cosines, token_mask, temperature)

    @staticmethod
    @once_differentiable
    def backward(ctx, token_grad, patch_grad):
        token_embeds, patches, token_mask = ctx.saved_tensors
        with torch.autocast(device_type=patches.device.type, enabled=False):
            tokens, token_norm, patch_norm, cosines = _TensorCoreEntropies.cosines(token_embeds, patches, token_mask)
            grad = cosine_gradient(cosines, token_mask, ctx.temperature, token_grad, patch_grad)
            along = grad * cosines
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
                # Through x / |x|: the part of the gradient along x falls away.
                result = torch.empty_like(own)
                grads.append(torch.addcmul(product, own, part / norm**2, value=-1, out=result))
            return *grads, None, None

    @staticmethod
    def cosines(token_embeds, patch_embeds, token_mask):
        """Tokens with zeros at padding, the norms of both, and their cosines (N, T, P)."""
        tokens = token_embeds.masked_fill(~token_mask.unsqueeze(2), 0.0)
        token_norm, patch_norm = _norm(tokens), _norm(patch_embeds)
        cosines = _product(tokens, patch_embeds.transpose(1, 2))
        return tokens, token_norm, patch_norm, cosines.div_(token_norm).div_(patch_norm.transpose(1, 2))


def _on_tensor_cores(token_embeds: torch.Tensor, patch_embeds: torch.Tensor) -> bool:
    if token_embeds.dtype != torch.bfloat16 or patch_embeds.dtype != torch.bfloat16 or not patch_embeds.is_cuda:
        return False
    if torch.version.cuda is None or torch.compiler.is_compiling():
        return False
    return torch.cuda.get_device_capability(patch_embeds.device) >= (8, 0)


def _norm(embeds: torch.Tensor) -> torch.Tensor:
    norm = torch.linalg.vector_norm(embeds, dim=-1, keepdim=True, dtype=torch.float32)
    return torch.where(norm > 1e-12, norm, torch.inf)


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Product of bfloat16 matrices (N, A, B) and (N, B, C), summed and returned in float32."""
    if left.is_cuda:
        return torch.bmm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


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
