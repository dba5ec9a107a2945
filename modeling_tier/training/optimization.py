# Licensed under the Apache License, Version 2.0.
"""Optimiser, learning rate and the ramp of the regulariser."""

import torch
from transformers import get_scheduler

from .options import OptimizerOptions


MIN_LR_FRACTION = 0.01  # of the largest learning rate, at the end of the cosine


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """
    Weight decay for the weights of linear and convolutional layers. None for biases and norms, which set scales and
    not directions; for embeddings, of which a step sees few rows and would shrink the others; and for single
    parameters such as `logit_scale` and class tokens. Frozen parameters are in neither group.
    """
    matrices = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d)
    decayed = {id(m.weight) for m in model.modules() if isinstance(m, matrices)}
    decayed |= {id(m.in_proj_weight) for m in model.modules() if isinstance(m, torch.nn.MultiheadAttention)}
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) not in decayed], "weight_decay": 0.0},
    ]


def build_optimizer(model: torch.nn.Module, options: OptimizerOptions) -> torch.optim.Optimizer:
    """AdamW as CLIP's, or Adam as the authors of arXiv 2212.06710 use it: weight decay in every gradient."""
    betas = (options.beta1, options.beta2)
    fused = torch.cuda.is_available() or None  # one kernel that reads everything once; elsewhere as torch chooses
    if options.name == "adam":
        trained = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.Adam(trained, lr=options.lr, betas=betas, weight_decay=options.weight_decay, fused=fused)
    return torch.optim.AdamW(parameter_groups(model, options.weight_decay), lr=options.lr, betas=betas, fused=fused)


def build_scheduler(
    optimizer: torch.optim.Optimizer, options: OptimizerOptions, total_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """A linear warm-up, then a cosine or the same rate to the end."""
    warmup_steps = round(options.warmup_share * total_steps)
    if options.schedule == "constant":
        return get_scheduler("constant_with_warmup", optimizer, num_warmup_steps=warmup_steps)
    return get_scheduler(
        "cosine_with_min_lr",
        optimizer,
        num_warmup_steps=warmup_steps,
        num_training_steps=total_steps,
        scheduler_specific_kwargs={"min_lr_rate": MIN_LR_FRACTION},
    )


def ramp(progress: float, start: float, end: float) -> float:
    """Factor on both lambdas: 0 before `start`, 1 from `end` on, linear in between; all are fractions of the steps."""
    if progress >= end:
        return 1.0
    return 0.0 if progress <= start else (progress - start) / (end - start)
