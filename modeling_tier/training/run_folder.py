# Licensed under the Apache License, Version 2.0.
"""The output folder of a run: locked, made ready, and what a new run replaces kept until the new one can begin."""

import os
import platform
import shutil
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path

from accelerate import Accelerator

from ..files import LOCK_FILE, locked_folder, move_contents, replace_json
from .checkpoints import Checkpoint
from .options import TrainConfig, flat
from .processes import main_process_decides
from .resume import Conditions, check_options, find_checkpoint, same_options


ASIDE = ".overwritten"  # in output_dir: the run that is to be replaced, until the new one takes its first step
MOVING = ASIDE + ".tmp"
LOCK_SECONDS = 20  # the processes of a launcher that was killed notice it within seconds
PACKAGES = ("torch", "transformers", "datasets", "accelerate", "evaluate", "safetensors", "tokenizers", "numpy")


@contextmanager
def run_folder(config: TrainConfig, accelerator: Accelerator) -> Iterator[Checkpoint | None]:
    """
    Lock the output folder, and make it ready; all processes must enter this. An earlier run that is to be replaced is
    put back if the block ends in an error before [`forget_replaced_run`].

    Yields:
        the checkpoint to resume from, if one is asked for and there.

    Raises:
        ValueError: if another process holds the folder, or it holds what must not be replaced.
    """
    output_dir = Path(config.output_dir)
    with ExitStack() as stack:
        main_process_decides(lambda: _lock(output_dir, stack))
        checkpoint = main_process_decides(lambda: _make_ready(config, accelerator, output_dir))
        try:
            yield checkpoint
        except BaseException:
            if accelerator.is_main_process:
                put_back(output_dir)
            raise


def _lock(output_dir: Path, stack: ExitStack) -> None:
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"output_dir: {output_dir} is a file.")
    stack.enter_context(locked_folder(output_dir, timeout=LOCK_SECONDS))


def _make_ready(config: TrainConfig, accelerator: Accelerator, output_dir: Path) -> Checkpoint | None:
    overwrite = config.training.overwrite
    checkpoint = _checkpoint_to_resume(config, Conditions.of_run(config, accelerator), output_dir)
    occupied = _is_occupied(output_dir, config.training.resume_from_checkpoint, checkpoint)
    if occupied and not checkpoint and not overwrite:
        raise ValueError(
            f"{output_dir} is not empty: go on with --training.resume_from_checkpoint last, replace it with "
            "--training.overwrite true, or choose another output_dir."
        )
    if occupied and overwrite and not (output_dir / "training_config.yaml").is_file():
        raise ValueError(f"{output_dir} holds no training run: training.overwrite does not empty it.")
    if overwrite and not checkpoint:
        _check_sources_outside(config, output_dir)
        if occupied:
            set_aside(output_dir)
    config.save(output_dir / "training_config.yaml")
    environment = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    environment |= {"system": platform.system(), "machine": platform.machine(), "device": accelerator.device.type}
    replace_json(output_dir / "environment.json", environment | {"num_processes": accelerator.num_processes})
    return checkpoint


def _checkpoint_to_resume(config: TrainConfig, conditions: Conditions, output_dir: Path) -> Checkpoint | None:
    """None where the run begins anew; with `overwrite`, also where the folder's run is another one or damaged."""
    resume, overwrite = config.training.resume_from_checkpoint, config.training.overwrite
    if not resume:
        return None
    try:
        checkpoint = find_checkpoint(resume, output_dir)
    except ValueError as error:
        if not overwrite:
            raise
        warnings.warn(f"{error} training.overwrite replaces the run.", stacklevel=2)
        return None
    if checkpoint and overwrite and not same_options(checkpoint, conditions):
        return None
    if checkpoint:
        check_options(checkpoint, conditions, output_dir)
        if checkpoint.state.epoch + (checkpoint.state.step_in_epoch > 0) > config.training.epochs:
            raise ValueError(_too_few_epochs(checkpoint, config.training.epochs))
    return checkpoint


def _too_few_epochs(checkpoint: Checkpoint, epochs: int) -> str:
    state = checkpoint.state
    begun = f" and {state.step_in_epoch} steps of the next one" if state.step_in_epoch else ""
    return (
        f"training.epochs is {epochs}, but {state.epoch} epochs{begun} of this run are done: set it to "
        f"{state.epoch + (state.step_in_epoch > 0)} or more."
    )


def _is_occupied(output_dir: Path, resume: str | None, checkpoint: Checkpoint | None) -> bool:
    """Whether the folder holds something that a new run would replace."""
    if (output_dir / "training_config.yaml").is_file() and not (output_dir / "log.jsonl").is_file():
        # A run that ended before its first step left nothing worth keeping.
        return any((output_dir / name).exists() for name in ("checkpoints", "model.safetensors", MOVING))
    if resume == "auto" and not checkpoint and (output_dir / "training_config.yaml").is_file():
        # Stopped before its first checkpoint: there is nothing to go on from, and nothing to lose.
        if not (output_dir / "model.safetensors").exists() and not (output_dir / "checkpoints" / "last").exists():
            (output_dir / "log.jsonl").unlink(missing_ok=True)
            return False
    return any(path.name != LOCK_FILE for path in output_dir.iterdir())


def _check_sources_outside(config: TrainConfig, output_dir: Path) -> None:
    for key, value in flat(config.to_dict()).items():
        path = Path(value).resolve() if isinstance(value, str) and key != "output_dir" else None
        if path and os.path.exists(path) and output_dir.resolve() in (path, *path.parents):
            raise ValueError(f"{key}: {value} is in output_dir, which training.overwrite replaces.")


def set_aside(output_dir: Path) -> None:
    """Clear the folder for a run that replaces another, which is only moved."""
    aside, moving = output_dir / ASIDE, output_dir / MOVING
    if aside.is_dir():  # of a start that was killed before its first step
        return _empty(output_dir)
    moving.mkdir(exist_ok=True)  # killed before its new name, it is filled up by the next start
    # Last the file that identifies a run, so that a kill in between leaves a folder known as a run.
    move_contents(output_dir, moving, skipped=(MOVING, LOCK_FILE), last="training_config.yaml")
    moving.rename(aside)


def put_back(output_dir: Path) -> None:
    """Undo [`set_aside`], if it was done and the new run has not taken its first step."""
    aside = output_dir / ASIDE
    if aside.is_dir():
        _empty(output_dir)
        move_contents(aside, output_dir)
        aside.rmdir()


def forget_replaced_run(output_dir: Path) -> None:
    """Delete what [`set_aside`] has kept: the new run has all that it needs."""
    shutil.rmtree(output_dir / ASIDE, ignore_errors=True)


def _empty(output_dir: Path) -> None:
    for child in output_dir.iterdir():
        if child.name not in (ASIDE, LOCK_FILE):
            shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()
