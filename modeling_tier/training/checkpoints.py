# Licensed under the Apache License, Version 2.0.
"""
Checkpoints of a run on the disk. Each is written under another name and then renamed, and carries the sizes and
checksums of its files, so that one that is cut off or damaged is never taken for a good one.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import xxhash
from accelerate import Accelerator

from ..evaluation import ENSEMBLE_FILE
from ..files import replace_text, sync_folder
from .state import RunState, Trainables, load_tensors, save_tensors


FORMAT = 2  # of a checkpoint; 1, which had none, was pickled
STATE_FILE = "trainer_state.json"
BEST_FILE = "evaluation.json"  # in checkpoints/best: step and epoch of that model


class DamagedError(ValueError):
    """A checkpoint that is not what was written."""


@dataclass
class Checkpoint:
    """
    A checkpoint whose files are as they were written.

    Attributes:
        folder: where it is.
        state: where the run stood.
        conditions: what its next steps depend on, as it was given to [`save_checkpoint`].
        rest: as [`save_tensors`] returned it.
    """

    folder: Path
    state: RunState
    conditions: dict
    rest: dict

    def load(self, parts: Trainables, same_processes: bool) -> None:
        """Put weights, optimiser, scheduler and random numbers back; all processes must call this."""
        try:
            load_tensors(self.folder, parts, self.rest, same_processes)
        except Exception as error:
            raise ValueError(f"The checkpoint {self.folder} cannot be loaded: {_first_line(error)}.") from error


@contextmanager
def replaced_folder(folder: Path, accelerator: Accelerator, keep: int | None = None) -> Iterator[Path]:
    """
    A temporary folder that takes the place of `folder` when all processes have left the block.

    Args:
        keep: of a checkpoint: number of the newest to keep, `folder` included, the older ones beside it as `step-N`.

    Raises:
        OSError: if something cannot be written; what was in `folder` before is still there and complete.
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
            f"{folder} could not be written: {_first_line(error)}. What was there before is complete: make room, and "
            "go on with --training.resume_from_checkpoint auto."
        ) from error
    if accelerator.is_main_process:
        sync_folder(temporary)
        old = folder.with_name(folder.name + ".old")
        if (keep or 1) > 1 and checkpoint_step(folder) not in (None, checkpoint_step(temporary)):
            old = folder.with_name(f"step-{checkpoint_step(folder)}")
        _remove(old)
        if folder.exists() or folder.is_symlink():
            folder.rename(old)
        temporary.rename(folder)
        outdated = _older(folder)[keep - 1 :] if keep else []
        for path in [folder.with_name(folder.name + ".old"), *outdated]:
            _remove(path)
    accelerator.wait_for_everyone()


def save_checkpoint(folder: Path, parts: Trainables, state: RunState, conditions: dict, keep: int = 1) -> None:
    """Write a checkpoint in place of the one in `folder`; all processes must call this."""
    with replaced_folder(folder, parts.accelerator, keep) as temporary:
        rest = save_tensors(temporary, parts)
        parts.accelerator.wait_for_everyone()
        if parts.accelerator.is_main_process:
            content = {"format": FORMAT, **dataclasses.asdict(state), "conditions": conditions, "rest": rest}
            _write_with_sums(temporary, STATE_FILE, content)


def read_checkpoint(folder: Path) -> Checkpoint:
    """
    Read a checkpoint's JSON and compare the checksums of its files.

    Raises:
        DamagedError: if something is missing, cut off or changed, with its name.
        ValueError: if an earlier version of this package wrote it.
    """
    if (folder / "random_states_0.pkl").exists() and "format" not in _read_json(folder / STATE_FILE):
        raise ValueError(
            f"{folder} was written by an earlier version, whose checkpoints are pickled and could run code: end that "
            "run with the version that began it, or start a new run from its best model with --model.pretrained "
            f"{folder.parent / 'best'}."
        )
    content = _read_with_sums(folder, STATE_FILE)
    try:
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, and this version reads {FORMAT}")
        return Checkpoint(folder, RunState.from_dict(content), content["conditions"], content["rest"])
    except KeyError as error:
        raise DamagedError(f"{folder}/{STATE_FILE} is damaged: {error} is missing.") from None
    except (TypeError, ValueError) as error:
        raise DamagedError(f"{folder}/{STATE_FILE} is damaged: {error}.") from None


def save_model(folder: Path, accelerator: Accelerator, model, processor, state: RunState) -> None:
    """Write a model folder, with the epoch that it is of; all processes must call this."""
    with replaced_folder(folder, accelerator) as temporary:
        if accelerator.is_main_process:
            model.save_pretrained(temporary)
            processor.save_pretrained(temporary)
            _write_with_sums(temporary, BEST_FILE, {"step": state.step, "epoch": state.epoch})


def best_step(folder: Path) -> int | None:
    """
    The step of the model in `checkpoints/best`, whose files are checked; None if there is none.

    Raises:
        DamagedError: if a file is not what was written, with its name.
    """
    best = folder / "best"
    if not best.exists() and not best.is_symlink():
        return None
    try:
        return int(_read_with_sums(best, BEST_FILE)["step"])
    except (DamagedError, KeyError, TypeError, ValueError) as error:
        reason = error if isinstance(error, DamagedError) else f"{best}/{BEST_FILE} is damaged."
        raise DamagedError(
            f"{reason} The best model so far cannot be trusted: put a copy of {best} in its place, or delete it; the "
            "run then goes on with the best of the epochs that are to come."
        ) from error


def drop_later_checkpoints(folder: Path, step: int) -> None:
    """Delete what came after `step`, from which a run goes on: it belongs to another course of the run."""
    if (best_step(folder) or 0) > step:
        shutil.rmtree(folder / "best")
    for path in [folder / "last", folder / "last.old", *_older(folder / "last")]:
        if (checkpoint_step(path) or 0) > step:
            _remove(path)


def candidates(folder: Path) -> list[Path]:
    """What `last` and `auto` may mean, the newest first: a run may have been killed between two renames."""
    last = folder / "last"
    return [path for path in (last, last.with_name("last.old"), *_older(last)) if path.exists() or path.is_symlink()]


def checkpoint_step(folder: Path) -> int | None:
    """The step of a checkpoint; None where that cannot be read."""
    step = _read_json(folder / STATE_FILE).get("step")
    return step if type(step) is int else None


def checkpoint_evaluations(folder: Path) -> list[list]:
    """`[epoch, value]` of each evaluation before a checkpoint."""
    evaluations = _read_json(folder / STATE_FILE).get("evaluations")
    return evaluations if isinstance(evaluations, list) else []


def best_epochs(evaluations: list[list], number: int) -> list[int]:
    """The epochs of the `number` best of `[epoch, value]`, the best first; of equal ones the earlier."""
    return [epoch for epoch, _ in sorted(evaluations, key=lambda entry: -entry[1])[:number]]


def settle_ensemble(folder: Path, epochs: list[int]) -> None:
    """
    Write down the members of an ensemble, and delete the models that are no longer among them. Only after the
    checkpoint that says so is complete: a run that resumes from an earlier one finds all that it counts on.
    """
    if not folder.is_dir():
        return
    # A run that is resumed with a larger number has not kept all of them.
    names = [name for name in (f"epoch-{epoch}" for epoch in epochs) if (folder / name / "config.json").is_file()]
    replace_text(folder / ENSEMBLE_FILE, json.dumps(names))
    for member in folder.glob("epoch-*"):
        if member.name not in names:
            shutil.rmtree(member)


def _older(folder: Path) -> list[Path]:
    """The checkpoints that are kept beside `folder`, the newest first."""
    steps = {path: checkpoint_step(path) for path in folder.parent.glob("step-*")}
    return sorted((path for path, step in steps.items() if step is not None), key=lambda path: -steps[path])


def _remove(path: Path) -> None:
    """Also what is no folder, such as a link to another disk, whose target stays."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _write_with_sums(folder: Path, name: str, content: dict) -> None:
    """JSON that carries the size and checksum of every other file of its folder, and its own checksum."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    content |= {"files": {str(path.relative_to(folder)): [path.stat().st_size, _checksum(path)] for path in paths}}
    (folder / name).write_text(json.dumps(content | {"checksum": _text_checksum(content)}))


def _read_with_sums(folder: Path, name: str) -> dict:
    path = folder / name
    if not folder.is_dir():
        raise DamagedError(f"{folder} is not a folder.")
    if not path.is_file():
        raise DamagedError(f"{folder} is not complete: it has no {name}.")
    content = _read_json(path)
    checksum = content.pop("checksum", None)
    if checksum is None or checksum != _text_checksum(content) or not isinstance(content.get("files"), dict):
        raise DamagedError(f"{path} is damaged.")
    for file, (size, expected) in content["files"].items():
        path = folder / file
        if not path.is_file():
            raise DamagedError(f"{path} is missing.")
        if path.stat().st_size != size or _checksum(path) != expected:
            raise DamagedError(f"{path} is damaged: its size or checksum is not the one that was written.")
    return content


def _read_json(path: Path) -> dict:
    """An empty one for what cannot be read."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _text_checksum(content: dict) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content).encode())


def _checksum(path: Path) -> str:
    """Against damage, not against an attacker: a cryptographic one would take ten times as long."""
    hashed = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            hashed.update(block)
    return hashed.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0] or type(error).__name__
