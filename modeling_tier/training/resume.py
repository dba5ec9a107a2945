# Licensed under the Apache License, Version 2.0.
"""Which checkpoint a run goes on from, and whether what its next steps depend on is as it was."""

import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import DistributedType

from .checkpoints import Checkpoint, DamagedError, candidates, read_checkpoint
from .options import TrainConfig, changed_options


# Options of `training` that a run may not change on the way; the other sections may not change as a whole.
_FIXED = ("mixed_precision", "gradient_accumulation_steps", "steps_per_epoch")
# Those that change the steps to come by rounding, or by the schedule.
_NOTED = ("epochs", "chunk_size", "gradient_checkpointing", "compile")
# Those of `evaluation` that leave its values comparable.
_FREE = ("data.max_unreadable", "evaluation.every_epochs", "evaluation.batch_size", "evaluation.keep_best")


@dataclass
class Conditions:
    """
    What the next steps of a run depend on, besides its weights, optimiser and random numbers.

    Attributes:
        options: the configuration.
        engine: DDP, FSDP2, DeepSpeed or one process, in accelerate's words.
        processes: how many.
        data: fingerprints of the data sets and of the processor, by name.
    """

    options: dict
    engine: str
    processes: int
    data: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of_run(cls, config: TrainConfig, accelerator: Accelerator) -> "Conditions":
        return cls(config.to_dict(), accelerator.distributed_type.value, accelerator.num_processes)


def find_checkpoint(resume: str, output_dir: Path) -> Checkpoint | None:
    """
    The checkpoint that `training.resume_from_checkpoint` means, its files checked; None for "auto", if there is none
    yet. A damaged one gives way to the one before it, with a warning.

    Raises:
        ValueError: if it is not there, damaged with none before it, or of another run.
    """
    if resume not in ("last", "auto"):
        return _named_checkpoint(Path(resume), output_dir)
    folder, damages = output_dir / "checkpoints", []
    for path in candidates(folder):
        try:
            checkpoint = read_checkpoint(path)
        except DamagedError as error:
            damages.append(str(error))
            continue
        for damage in damages:
            warnings.warn(f"{damage} The run goes on from {path}, at step {checkpoint.state.step}.", stacklevel=2)
        return checkpoint
    if damages:
        raise ValueError(
            f"{' '.join(damages)} There is no checkpoint before it: put a copy in its place, or start again with "
            "--training.overwrite true."
        )
    if resume == "auto":
        return None
    raise ValueError(f"training.resume_from_checkpoint: there is no complete checkpoint in {folder}/last.")


def _named_checkpoint(folder: Path, output_dir: Path) -> Checkpoint:
    if not folder.is_dir():
        raise ValueError(f"training.resume_from_checkpoint: there is no complete checkpoint in {folder}.")
    if folder.resolve().parent != (output_dir / "checkpoints").resolve():
        raise ValueError(
            f"training.resume_from_checkpoint: {folder} belongs to another run. Set output_dir to that run's folder, "
            "or start a new run from its model with model.pretrained."
        )
    try:
        return read_checkpoint(folder)
    except DamagedError as error:
        raise ValueError(f"training.resume_from_checkpoint: {error}") from None


def check_options(checkpoint: Checkpoint, now: Conditions, output_dir: Path) -> None:
    """
    Raise ValueError for an option that a checkpoint has settled; warn of one that changes the steps to come.

    The number of processes may change if `training.batch_size` changes with it, so that a batch keeps its pairs, whose
    negatives are drawn from it.
    """
    before = checkpoint.conditions
    changed = _changed(before["options"], now.options, evaluated=bool(checkpoint.state.evaluations))
    if changed:
        raise ValueError(
            f"{changed[0]} is not what the run in {output_dir} was started with: leave it as it was, or start a new "
            "run, from this one's model with model.pretrained."
        )
    if DistributedType.DEEPSPEED.value in {before["engine"], now.engine} and before["engine"] != now.engine:
        raise ValueError(f"The checkpoint was written under {before['engine']} and cannot be read by {now.engine}.")
    old, new = before["options"]["training"], now.options["training"]
    pairs = old["batch_size"] * before["processes"]
    if new["batch_size"] * now.processes != pairs:
        raise ValueError(
            f"A batch of this run has {pairs} pairs over all processes; training.batch_size {new['batch_size']} x "
            f"{now.processes} processes are {new['batch_size'] * now.processes}. With another number of processes, "
            "set training.batch_size so that their product stays."
        )
    if now.processes != before["processes"]:
        warnings.warn(
            f"{before['processes']} processes wrote the checkpoint and {now.processes} go on: dropout draws others.",
            stacklevel=2,
        )
    for name in _NOTED:
        if old.get(name) != new[name]:
            warnings.warn(
                f"training.{name} was {old.get(name)} and is {new[name]}: the run does not end as it would have.",
                stacklevel=2,
            )


def _changed(before: dict, now: dict, evaluated: bool) -> list[str]:
    sections = ["seed", "data", "model", "tokenizer", "freeze", "optimizer", "regulariser"]
    sections += ["evaluation"] if evaluated else []  # to which the next evaluations are compared
    old, new = ({section: options.get(section) for section in sections} for options in (before, now))
    old["training"], new["training"] = (
        {name: options["training"].get(name) for name in _FIXED} for options in (before, now)
    )
    return [name for name in changed_options(old, new) if name not in _FREE]


def same_options(checkpoint: Checkpoint, now: Conditions) -> bool:
    """Whether [`check_options`] would find every option as it was."""
    return not _changed(checkpoint.conditions["options"], now.options, evaluated=True)


def check_data(checkpoint: Checkpoint, now: Conditions) -> None:
    """Raise ValueError if the data of a run is not what it was when the checkpoint was written."""
    before = checkpoint.conditions["data"]
    changed = [name for name in before if now.data.get(name) != before[name]]
    if changed:
        raise ValueError(
            f"The {changed[0]} changed since {checkpoint.folder} was written, so the run cannot go on as it began: "
            "put them back, or start a new run, from this one's model with model.pretrained."
        )
