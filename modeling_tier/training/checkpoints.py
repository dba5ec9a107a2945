# Licensed under the Apache License, Version 2.0.
"""Checkpoints of a run: written under another name, then renamed; a half-written one is never taken for whole."""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from ..evaluation import ENSEMBLE_FILE


STATE_FILE = "trainer_state.json"
BEST_FILE = "evaluation.json"  # in checkpoints/best: the step and epoch of that model
ASIDE = ".overwritten"  # in output_dir: the run that is to be replaced, until the new one takes its first step
MOVING = ASIDE + ".tmp"


@contextmanager
def replacing(folder: Path, accelerator, keep: int | None = None):
    """
    A temporary folder that takes the place of `folder` when all processes have left the block.

    Args:
        keep: of a checkpoint: so many of the newest stay, `folder` being one, the older ones beside it as `step-N`.

    Raises:
        OSError: if something cannot be written; what stood in `folder` before is still there, whole.
    """
    temporary = folder.with_name(folder.name + ".tmp")
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        yield temporary
    except Exception as error:  # torch and safetensors have errors of their own for a full disk
        raise OSError(
            f"{folder} could not be written: {str(error).splitlines()[0]}. What stood there before is whole: make "
            "room, and go on with --training.resume_from_checkpoint auto."
        ) from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for path in temporary.rglob("*"):  # on the disk before the name is, should the power fail
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file)
        old = folder.with_name(folder.name + ".old")
        if (keep or 1) > 1 and _step(folder) not in (None, _step(temporary)):
            old = folder.with_name(f"step-{_step(folder)}")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        for each in [folder.with_name(folder.name + ".old"), *(_older(folder)[keep - 1 :] if keep else [])]:
            shutil.rmtree(each, ignore_errors=True)
    accelerator.wait_for_everyone()


def replace_text(path: Path, text: str) -> None:
    """Write a file that is there whole or as it was before."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def _step(folder: Path) -> int | None:
    """Where a checkpoint stands; None if it is not whole."""
    try:
        return json.loads((folder / STATE_FILE).read_text())["step"]
    except (OSError, ValueError):
        return None


def _older(folder: Path) -> list[Path]:
    """The whole checkpoints that are kept beside `folder`, the newest first."""
    return sorted((each for each in folder.parent.glob("step-*") if _step(each) is not None), key=_step, reverse=True)


def save_checkpoint(folder: Path, accelerator, state: dict, keep: int = 1) -> None:
    """Model, optimiser, scheduler and random numbers of every process, and where the run stands."""
    with replacing(folder, accelerator, keep) as temporary:
        accelerator.save_state(str(temporary))
        if accelerator.is_main_process:
            (temporary / STATE_FILE).write_text(json.dumps(state))


def load_checkpoint(folder: Path, accelerator) -> dict:
    """Put everything back as [`save_checkpoint`] found it; returns where the run stood."""
    state = json.loads((folder / STATE_FILE).read_text())
    try:
        accelerator.load_state(str(folder))
    except Exception as error:
        raise ValueError(
            f"The checkpoint {folder} cannot be read: {str(error).splitlines()[0]}. Go on from an older one with "
            f"--training.resume_from_checkpoint; there are {[each.name for each in _older(folder)] or 'none'}."
        ) from error
    return state


def best_is_later(folder: Path, step: int) -> bool:
    """Whether the best model was found only after this step, and what was the best before it is gone."""
    path = folder / "best" / BEST_FILE
    return path.is_file() and json.loads(path.read_text())["step"] > step


def drop_later_checkpoints(folder: Path, step: int) -> None:
    """Of a run that goes on from an earlier step: what came after it is another run's."""
    if best_is_later(folder, step):
        shutil.rmtree(folder / "best")
    for each in [folder / "last", *_older(folder / "last")]:
        if (_step(each) or 0) > step:
            shutil.rmtree(each)


def find_checkpoint(resume: str, output_dir: Path) -> Path | None:
    """
    The checkpoint that `training.resume_from_checkpoint` means; None for "auto", if there is none yet.

    Raises:
        ValueError: if it is not there, not complete, or of another run.
    """
    folder = Path(resume)
    if resume in ("last", "auto"):
        folder = output_dir / "checkpoints" / "last"
        # A run may have been stopped between two renames, or the newest have been damaged.
        candidates = [folder, folder.with_name("last.old"), *_older(folder)]
        folder = next((each for each in candidates if _step(each) is not None), folder)
    if _step(folder) is None:
        if resume == "auto":
            return None
        raise ValueError(f"training.resume_from_checkpoint: there is no complete checkpoint in {folder}.")
    if folder.resolve().parent != (output_dir / "checkpoints").resolve():
        raise ValueError(
            f"training.resume_from_checkpoint: {folder} belongs to another run. Set output_dir to that run's folder, "
            "or start a new run from its model with model.pretrained."
        )
    return folder


def best_epochs(evaluations: list[list], number: int) -> list[int]:
    """The epochs of the `number` best of `[epoch, value]`, the best first; of equal ones the earlier."""
    return [epoch for epoch, _ in sorted(evaluations, key=lambda entry: -entry[1])[:number]]


def settle_ensemble(folder: Path, epochs: list[int]) -> None:
    """
    Write down the members of an ensemble, and delete the models that are no longer among them. Only after the
    checkpoint that says so is whole: a run that resumes from an earlier one finds all that it counts on.
    """
    if not folder.is_dir():
        return
    # A run that is resumed with a larger number has not kept all of them.
    names = [name for name in (f"epoch-{epoch}" for epoch in epochs) if (folder / name / "config.json").is_file()]
    replace_text(folder / ENSEMBLE_FILE, json.dumps(names))
    for member in folder.glob("epoch-*"):
        if member.name not in names:
            shutil.rmtree(member)


def set_aside(output_dir: Path) -> None:
    """Clear the folder for a run that replaces another, which is only moved."""
    aside, moving = output_dir / ASIDE, output_dir / MOVING
    if aside.is_dir():  # of a start that was killed; what is beside it is nobody's loss
        return _empty(output_dir)
    moving.mkdir(exist_ok=True)  # killed before its new name, it is filled up by the next start
    # The file by which a run is known goes last.
    for child in sorted(output_dir.iterdir(), key=lambda each: each.name == "training_config.yaml"):
        if child != moving:
            child.rename(moving / child.name)
    moving.rename(aside)


def put_back(output_dir: Path) -> None:
    """Undo [`set_aside`], if it was done and the new run has not taken its first step."""
    aside = output_dir / ASIDE
    if aside.is_dir():
        _empty(output_dir)
        for child in aside.iterdir():
            child.rename(output_dir / child.name)
        aside.rmdir()


def _empty(output_dir: Path) -> None:
    for child in output_dir.iterdir():
        if child.name != ASIDE:
            shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()
