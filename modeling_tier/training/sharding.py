# Licensed under the Apache License, Version 2.0.
"""Sharded training: what FSDP2 and DeepSpeed need, and the unsharded model of all processes' parts."""

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from ..modeling_tier import TierModel
from .options import TrainConfig


def prepare(
    accelerator: Accelerator, model: TierModel, optimizer: torch.optim.Optimizer, config: TrainConfig
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """
    `accelerator.prepare`, for DDP, FSDP2 and DeepSpeed alike.

    Raises:
        ValueError: for what one of them cannot do.
    """
    if accelerator.distributed_type == DistributedType.FSDP:
        plugin = accelerator.state.fsdp_plugin
        if plugin.fsdp_version != 2:
            raise ValueError(
                "Set fsdp_version to 2 in accelerate's configuration: FSDP of version 1 is not supported."
            )
        if plugin.cpu_ram_efficient_loading:
            raise ValueError(
                "fsdp_cpu_ram_efficient_loading must be false in accelerate's configuration: every process reads the "
                "weights itself."
            )
        # Its own mixed precision would round the loss and BatchNorm's statistics too; the loop's autocast does not.
        plugin.mixed_precision_policy = None
        plugin.transformer_cls_names_to_wrap = _layer_classes(model)
        # A scalar cannot be sharded: every process holds it, and its gradient is averaged here.
        model.logit_scale.data = model.logit_scale.data.to(accelerator.device)
        plugin.ignored_modules = [nn.ParameterList([model.logit_scale])]
        if model.logit_scale.requires_grad:
            model.logit_scale.register_post_accumulate_grad_hook(_average)
    elif accelerator.distributed_type == DistributedType.DEEPSPEED:
        if config.training.chunk_size is not None:
            raise ValueError("training.chunk_size: DeepSpeed takes a step at each backward pass; use DDP or FSDP2.")
        options = accelerator.state.deepspeed_plugin.deepspeed_config
        if options["gradient_accumulation_steps"] not in ("auto", config.training.gradient_accumulation_steps):
            raise ValueError(
                f"training.gradient_accumulation_steps is {config.training.gradient_accumulation_steps}, and "
                f"{options['gradient_accumulation_steps']} in accelerate's configuration of DeepSpeed."
            )
        model.logit_scale.data = model.logit_scale.data.reshape(1)  # DeepSpeed sends no scalars
        options["train_micro_batch_size_per_gpu"] = config.training.batch_size
        options["gradient_clipping"] = config.optimizer.max_grad_norm or 0.0
    return accelerator.prepare(model, optimizer)


def check_skipped(accelerator: Accelerator) -> None:
    """Raise ValueError where a step with a non-finite gradient has been taken all the same."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED and accelerator.mixed_precision != "fp16":
        raise ValueError(
            "A gradient was not finite, and DeepSpeed takes its steps inside the backward pass: this one could not be "
            "skipped. What is in checkpoints/ is from before it; log.jsonl names its images under 'skipped'. Start "
            "again under DDP or FSDP2, which skip such steps."
        )


# Classes that DeepSpeed pickles into its checkpoints beside tensors.
_DEEPSPEED_CLASSES = {
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}


def save_deepspeed(engine: nn.Module, folder: Path) -> None:
    engine.save_checkpoint(str(folder), "deepspeed")


def load_deepspeed(engine: nn.Module, folder: Path) -> None:
    """
    DeepSpeed unpickles its files without restriction, so each is first searched for what could run code.

    Raises:
        ValueError: for a file with a class that DeepSpeed does not write.
    """
    for path in sorted((folder / "deepspeed").rglob("*.pt")):
        surplus = set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - _DEEPSPEED_CLASSES
        if surplus:
            raise ValueError(f"{path} holds what DeepSpeed does not write and may run code: {sorted(surplus)}")
    engine.load_checkpoint(str(folder), "deepspeed")


def _layer_classes(model: nn.Module) -> list[str]:
    """Names of the classes of the encoders' layers, which are found in module lists."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return sorted({type(layer).__name__ for layers in lists for layer in layers} - {"ModuleList"})


def _average(parameter: nn.Parameter) -> None:
    """Also right for a gradient that is added to an averaged one, which all processes have alike."""
    torch.distributed.all_reduce(parameter.grad)
    parameter.grad /= torch.distributed.get_world_size()


def unsharded_model(accelerator: Accelerator, model: nn.Module) -> TierModel:
    """The model, for use by the main process alone; all processes must call this."""
    bare_model = accelerator.unwrap_model(model)
    if accelerator.distributed_type not in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        return bare_model
    weights = accelerator.get_state_dict(model)
    if not accelerator.is_main_process:
        return bare_model
    weights["logit_scale"] = weights["logit_scale"].reshape(())
    with torch.random.fork_rng():  # its first weights take no random numbers from the run
        unsharded = TierModel(bare_model.config)
    unsharded.load_state_dict(weights)
    return unsharded.to(accelerator.device)
