# Licensed under the Apache License, Version 2.0.
"""log.jsonl and the trackers, and a warning when the maps collapse."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator

from ..evaluation.failure_modes import has_collapsed
from ..files import replace_text
from ..modeling_tier import TierModel, TierOutput
from .options import TrainConfig, flat
from .state import RunState


class Log:
    """One line of JSON for every logged step, and the same to the trackers; on the main process alone."""

    def __init__(self, path: Path, accelerator: Accelerator, config: TrainConfig, state: RunState):
        self.path, self.accelerator, self._has_warned = path, accelerator, False
        if accelerator.is_main_process and path.exists():  # lines of what a resumed run does again
            _keep_lines_before(path, state)
        if config.training.trackers:
            self._track(lambda: accelerator.init_trackers("tier", config=flat(config.to_dict())))

    def write(self, step: int, **values) -> None:
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        if self.accelerator.trackers:
            numbers = {name: value for name, value in flat(values).items() if isinstance(value, int | float)}
            self._track(lambda: self.accelerator.log(numbers, step=step))

    def warn_of_collapse(self, step: int, shape: dict[str, float], lambda_patch: float) -> None:
        """Print once what to do when [`has_collapsed`]; `lambda_patch` is the weight at this step."""
        if self._has_warned or lambda_patch <= 0 or not has_collapsed(shape["negative_share"], shape["peak"]):
            return
        self._has_warned = True
        self.accelerator.print(
            f"WARNING at step {step}: {shape['negative_share']:.0%} of the token-patch cosines are negative and a "
            f"token's largest is {shape['peak']:.2f} on average. The patch term has turned the patches against the "
            "tokens: the maps will be worthless although the AUROC may not show it. Lower model.lambda_patch, or let "
            "it come in later with regulariser.ramp_start and regulariser.ramp_end."
        )

    def end(self) -> None:
        self._track(self.accelerator.end_training)

    def _track(self, call: Callable[[], None]) -> None:
        """A tracker that cannot be reached does not end a run."""
        try:
            call()
        except Exception as error:
            self.accelerator.trackers.clear()
            print(f"WARNING: the trackers failed and are not used from here on; log.jsonl goes on. {error}")


def _keep_lines_before(path: Path, state: RunState) -> None:
    """Drop what a run does again after it resumed, and what a power failure left in place of lines."""
    kept, damaged = [], 0
    for line in path.read_bytes().split(b"\n")[:-1]:  # what follows the last line's end is torn
        try:
            entry = json.loads(line)
            is_before = entry["epoch"] < state.epoch if "validation" in entry else entry["step"] <= state.step
        except (ValueError, TypeError, KeyError):
            damaged += 1
            continue
        if is_before:
            kept.append(line.decode() + "\n")
    if damaged:
        print(f"WARNING: {damaged} damaged lines of {path} were dropped.")
    replace_text(path, "".join(kept))


def peak_memory(device: torch.device) -> dict[str, float]:
    """The most memory, in MiB, that tensors have taken on the GPU in this epoch's steps; empty for another device."""
    if device.type != "cuda":
        return {}
    return {"peak_memory_mib": torch.cuda.max_memory_allocated(device) / 2**20}


@torch.no_grad()
def map_shape(out: TierOutput, model: TierModel, batch: dict[str, torch.Tensor]) -> dict[str, float]:
    """Fraction of negative token-patch cosines, and the mean over tokens of the largest one."""
    mask = model.entropy_mask(batch["input_ids"], batch["attention_mask"])
    cosines = (out.token_embeds.float() @ out.patch_embeds.float().transpose(1, 2))[mask]
    return {
        "negative_share": (cosines < 0).float().mean().item(),
        "peak": cosines.max(dim=1).values.mean().item(),
    }
