# Licensed under the Apache License, Version 2.0.
"""
Attacks on runs, too slow for every day: damage to each file of a stopped run, options of every wrong kind, and kills
at random moments. What holds: the same end as without, or an error of ours; never a traceback, never another end in
silence.
"""

import json
import os
import shutil
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file


sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

from test_stopping import at_step, interrupt, start_run  # noqa: E402
from test_training import ROOT, TINY, tiny  # noqa: E402

from modeling_tier.training import load_config, train  # noqa: E402


pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

OPTIONS = ["--training.log_every=1", "--training.save_every_steps=3", "--training.keep_checkpoints=2"]
AUTO = "--training.resume_from_checkpoint=auto"
FILES = [f"checkpoints/last/{name}" for name in ("random_states_0.safetensors", "optimizer.safetensors")]
FILES += ["checkpoints/last/model.safetensors", "checkpoints/last/trainer_state.json", "log.jsonl"]
FILES += ["checkpoints/best/model.safetensors", "checkpoints/best/evaluation.json", "checkpoints/best/config.json"]
FILES += ["training_config.yaml", "environment.json", "tokenizer.json", "tokenizer_config.json"]
FILES += ["processor_config.json"]
DAMAGES = {
    "removed": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "NULs": lambda path: path.write_bytes(b"\0" * path.stat().st_size),
    "a bit": lambda path: path.write_bytes(flipped(path.read_bytes())),
    "other JSON": lambda path: path.write_text('{"a": [1, null]}'),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a dangling link": lambda path: (path.unlink(), path.symlink_to("nowhere")),
}


def flipped(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[len(changed) * 2 // 3] ^= 1
    return bytes(changed)


def outcome(config) -> str:
    """ "done", or the message of an error that is ours; anything else is raised."""
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            train(config)
    except (ValueError, OSError) as error:
        return str(error)
    return "done"


def same_end(one: Path, other: Path) -> bool:
    first, second = (load_file(folder / "checkpoints/last/model.safetensors") for folder in (one, other))
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    assert outcome(tiny(folder / "uninterrupted", *OPTIONS)) == "done"
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(folder / "stopped", *OPTIONS), after_step=at_step(10, interrupt))
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_each_file_of_a_stopped_run(runs, tmp_path, damage):
    broke, ends = [], {}
    for name in FILES:
        run = tmp_path / "run"
        shutil.copytree(runs / "stopped", run, symlinks=True)
        DAMAGES[damage](run / name)
        try:
            ends[name] = outcome(tiny(run, *OPTIONS, AUTO))
        except BaseException as error:
            broke.append(f"{name}: {type(error).__name__}: {error}")
        else:
            if ends[name] == "done" and not same_end(runs / "uninterrupted", run):
                broke.append(f"{name}: another end in silence")
        shutil.rmtree(run)
    print(json.dumps(ends, indent=1))
    assert not broke, "\n".join(broke)


VALUES = ["", " ", "null", "~", "-1", "0", "1e400", ".nan", "-.inf", "true", "[", "]", "{", "a: b: c", "@home", "[x"]
VALUES += [
    "[1, [2]]",
    "{a: {b: 1}}",
    "!!python/name:os.system",
    "&a [*a]",
    "9" * 5000,
    "\ud800",
    "%",
    "- 1",
    "2024-01-01",
]
KEYS = ["output_dir", "seed", "data.name", "data.options", "data.options.image_size", "data.augmentation"]
KEYS += ["data.max_text_tokens", "model.pretrained", "model.image_size", "model.vision_config", "model.text_config"]
KEYS += ["model.text_config.hidden_size", "model.vision_config.depths", "model.lambda_token", "model.image_options"]
KEYS += ["tokenizer.vocab_size", "freeze.patterns", "freeze.text_layers", "optimizer.lr", "optimizer.name"]
KEYS += ["regulariser.ramp_end", "training.epochs", "training.mixed_precision", "training.trackers", "training"]
KEYS += ["evaluation.prompts", "evaluation.options", "evaluation.best_metric", "", ".", "a.b.c", "data..name"]


def test_options_of_every_wrong_kind():
    broke, tried = [], 0
    for key in KEYS:
        for value in VALUES:
            tried += 1
            try:
                load_config(ROOT / "configs" / "demo.yaml", [*TINY, f"--{key}", value])
            except (ValueError, OSError):  # of which train.py prints the message alone
                pass
            except BaseException as error:
                broke.append(f"--{key} {value[:20]!r}: {type(error).__name__}: {str(error)[:100]}")
    print(tried, "options tried")
    assert not broke, "\n".join(broke)


NUM_STEPS = 150


def last_step(folder: Path) -> int:
    """The last step in the log of a run that is going on."""
    try:
        complete = (folder / "log.jsonl").read_text().rpartition("\n")[0].splitlines()
    except OSError:
        return 0
    steps = [json.loads(line).get("step", 0) for line in complete if line.startswith("{")]
    return max(steps, default=0)


def wait_for_step(process, folder: Path, step: int) -> None:
    """Return when a run has come so far, or has ended."""
    while process.is_alive() and last_step(folder) < step:
        time.sleep(0.005)


def test_killed_at_48_moments_a_run_ends_as_if_it_had_not_been(tmp_path):
    """
    At any moment, that of a start, an evaluation and the end included. The moments are counted in steps, or fractions
    of the time that a start takes here, so that they are the same on a slow machine.
    """
    rng, kills = np.random.default_rng(1), 0
    began = time.monotonic()
    uninterrupted = start_run(tmp_path / "uninterrupted", every_epochs=5)
    wait_for_step(uninterrupted, tmp_path / "uninterrupted", 1)
    first_step = time.monotonic()
    uninterrupted.join()
    assert uninterrupted.exitcode == 0 and last_step(tmp_path / "uninterrupted") == NUM_STEPS
    start_seconds = first_step - began
    step_seconds = (time.monotonic() - first_step) / NUM_STEPS
    moments = sorted([*range(5, NUM_STEPS, 5), 30, 60, 90, 120, *[NUM_STEPS] * 3])  # evaluations after 30 steps
    for i in range(12):
        moments.insert(4 * i, None)  # while it starts
    assert len(moments) == 48
    for step in moments:
        process = start_run(tmp_path / "run", every_epochs=5)
        if step is None:
            # Not later than its first step: a start may take less time than the first one did.
            deadline, reached = time.monotonic() + rng.uniform(0, start_seconds), last_step(tmp_path / "run")
            while process.is_alive() and time.monotonic() < deadline and last_step(tmp_path / "run") <= reached:
                time.sleep(0.005)
        else:
            wait_for_step(process, tmp_path / "run", step)
            process.join(timeout=rng.uniform(0, 3 * step_seconds))
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
    end = start_run(tmp_path / "run", every_epochs=5)
    end.join()
    print(kills, "kills")
    assert end.exitcode == 0 and kills >= 36
    assert same_end(tmp_path / "uninterrupted", tmp_path / "run")
    ours, theirs = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("uninterrupted", "run"))
    assert ours == theirs
    names = ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "processor_config.json", "config.json")
    assert all(
        (tmp_path / "uninterrupted" / name).read_bytes() == (tmp_path / "run" / name).read_bytes() for name in names
    )
    assert not [name for name in os.listdir(tmp_path / "run") if name.endswith((".tmp", ".lock"))]
