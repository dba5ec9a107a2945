# Licensed under the Apache License, Version 2.0.
"""
Where a run stands, and its tensors on the disk: weights, optimiser and random numbers as safetensors, all else as
JSON. Nothing is pickled, so that reading a checkpoint can run no code.
"""

import dataclasses
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType, clean_state_dict_for_safetensors
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.lr_scheduler import LRScheduler

from .sharding import load_deepspeed, save_deepspeed


MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"


@dataclass
class RunState:
    """
    Where a run stands.

    Attributes:
        step: optimiser steps that are done, skipped ones included.
        epoch: epochs that are done, with their evaluations.
        step_in_epoch: steps that are done of the next epoch.
        best: `step`, `epoch` and `validation` metrics of the best model so far.
        evaluations: `[epoch, value of the best metric]` of each evaluation.
        skipped: steps skipped for a non-finite gradient.
        skipped_in_a_row: how many of them came last, one after the other.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    best: dict | None = None
    evaluations: list = field(default_factory=list)
    skipped: int = 0
    skipped_in_a_row: int = 0

    @classmethod
    def from_dict(cls, content: Mapping) -> "RunState":
        """Raises ValueError for what [`dataclasses.asdict`] cannot have made of such a state."""
        state = cls(**{entry.name: content[entry.name] for entry in dataclasses.fields(cls) if entry.name in content})
        counts = (state.step, state.epoch, state.step_in_epoch, state.skipped, state.skipped_in_a_row)
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("its counts of steps and epochs are not whole numbers")
        if not (state.best is None or isinstance(state.best, dict)) or not isinstance(state.evaluations, list):
            raise ValueError("its evaluations cannot be read")
        return state


@dataclass
class Trainables:
    """What a training step changes, as `accelerator.prepare` returns it."""

    accelerator: Accelerator
    model: nn.Module
    optimizer: AcceleratedOptimizer
    scheduler: LRScheduler

    @property
    def bare_model(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model)


def save_tensors(folder: Path, parts: Trainables) -> dict:
    """
    Write weights, optimiser state and random numbers; all processes must call this.

    Returns:
        the rest, for the main process to write as JSON and to give to [`load_tensors`].
    """
    accelerator = parts.accelerator
    save_file(_random_states(accelerator.device), folder / _random_file(accelerator.process_index))
    rest = {"scheduler": parts.scheduler.state_dict(), "scaler": None, "optimizer": None}
    if accelerator.scaler is not None:
        rest["scaler"] = accelerator.scaler.state_dict()
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        save_deepspeed(parts.model, folder)
        return rest
    weights = accelerator.get_state_dict(parts.model)
    tensors, rest["optimizer"] = _split_optimizer(parts.optimizer.state_dict())
    if accelerator.is_main_process:
        prefix = "module." if any(name.startswith("module.") for name in weights) else ""
        weights = {name.removeprefix(prefix): weight for name, weight in weights.items()}
        save_file(clean_state_dict_for_safetensors(weights), folder / MODEL_FILE)
        save_file(tensors, folder / OPTIMIZER_FILE)
    return rest


def load_tensors(folder: Path, parts: Trainables, rest: dict, same_processes: bool) -> None:
    """
    Put back what [`save_tensors`] found; all processes must call this.

    Args:
        folder: a checkpoint.
        parts: of a run with the same model and optimiser.
        rest: what [`save_tensors`] returned.
        same_processes: whether as many processes wrote the checkpoint. If not, their random numbers are left alone.

    Raises:
        Exception: of many kinds, for files that are damaged or of another model.
    """
    accelerator = parts.accelerator
    if accelerator.scaler is not None and rest["scaler"]:
        accelerator.scaler.load_state_dict(rest["scaler"])
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        load_deepspeed(parts.model, folder)
    else:
        _load_weights(parts.bare_model, load_file(folder / MODEL_FILE))
        _load_optimizer(parts.optimizer, load_file(folder / OPTIMIZER_FILE), rest["optimizer"])
    parts.scheduler.load_state_dict(rest["scheduler"])
    if same_processes:
        _set_random_states(load_file(folder / _random_file(accelerator.process_index)), accelerator.device)


def _random_file(process: int) -> str:
    return f"random_states_{process}.safetensors"


@torch.no_grad()
def _load_weights(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    own = model.state_dict()
    storage = {name: _address(tensor) for name, tensor in own.items()}
    loaded = {storage[name] for name in weights if name in own}
    missing = [name for name in own if name not in weights and storage[name] not in loaded]  # a tied weight is not
    unknown = [name for name in weights if name not in own]
    if missing or unknown:
        raise ValueError(f"it is of another model (missing: {missing[:3]}, unknown: {unknown[:3]})")
    for name, weight in weights.items():
        own[name].copy_(_spread_like(own[name], weight))


def _address(tensor: torch.Tensor) -> int:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.data_ptr() or id(tensor)


def _spread_like(target: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    if target.shape != value.shape:
        raise ValueError(f"a tensor has the shape {tuple(value.shape)} where {tuple(target.shape)} is needed")
    if not isinstance(target, DTensor):
        return value
    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements)


def _split_optimizer(state: dict) -> tuple[dict[str, torch.Tensor], dict]:
    """The tensors of an optimiser's state by name, and what remains of it."""
    tensors, others = {}, {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                value = value.full_tensor() if isinstance(value, DTensor) else value
                tensors[f"{index}.{name}"] = value.detach().cpu().contiguous()
            else:
                others[f"{index}.{name}"] = value
    return tensors, {"others": others, "param_groups": state["param_groups"]}


def _load_optimizer(optimizer: AcceleratedOptimizer, tensors: dict[str, torch.Tensor], rest: dict) -> None:
    own = optimizer.state_dict()["param_groups"]
    groups = [
        {
            name: tuple(value) if isinstance(value, list) and isinstance(before.get(name), tuple) else value
            for name, value in group.items()
        }
        for group, before in zip(rest["param_groups"], own, strict=True)
    ]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict] = {}
    for key, value in {**tensors, **rest["others"]}.items():
        index, name = key.split(".", 1)
        parameter = parameters[int(index)]
        if isinstance(value, torch.Tensor) and value.dim():
            value = _spread_like(parameter, value)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _random_states(device: torch.device) -> dict[str, torch.Tensor]:
    version, integers, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    states = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor([version, *integers]),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.tensor([position, has_gauss, *keys.tolist()]),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
    }
    if device.type != "cpu":
        states["device"] = torch.get_device_module(device).get_rng_state(device)
    return states


def _set_random_states(states: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["torch"])
    version, *integers = states["python"].tolist()
    random.setstate((version, tuple(integers), *(states["python_gauss"].tolist() or [None])))
    position, has_gauss, *keys = states["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, np.uint32), position, has_gauss, states["numpy_gauss"].item()))
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states["device"], device)
