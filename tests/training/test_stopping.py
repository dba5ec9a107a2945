# Licensed under the Apache License, Version 2.0.
"""A run that is asked to stop, that meets a gradient that is not finite, or whose evaluation fails, loses nothing."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_training import ROOT, TINY, lines, tiny, weights

from modeling_tier.training import loop, train
from modeling_tier.training.stopping import EXIT_STOPPED


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(tiny(folder, "--training.log_every=1"))
    return folder


def state_of(folder) -> dict:
    return json.loads((folder / "checkpoints/last/trainer_state.json").read_text())


def assert_same_end(one, other):
    for name, weight in weights(one / "checkpoints/last").items():
        assert torch.equal(weight, weights(other / "checkpoints/last")[name]), name


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [3, 6])
def test_a_signal_ends_the_run_after_the_step_and_it_goes_on(finished, tmp_path, monkeypatch, number, step):
    """In the middle of an epoch, and at its end, where the evaluation is still done."""
    seen, before = [], signal.getsignal(number)
    original = loop.map_shape

    def interrupted(*args):
        seen.append(1)
        if len(seen) == step:
            os.kill(os.getpid(), number)
            assert signal.getsignal(number) is before, "a second one acts at once"
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "map_shape", interrupted)
        with pytest.raises(SystemExit) as stopped:
            train(tiny(tmp_path / "run", "--training.log_every=1", "--training.resume_from_checkpoint=auto"))
    assert stopped.value.code == EXIT_STOPPED == 75 and signal.getsignal(number) is before
    assert state_of(tmp_path / "run")["step"] == step and len(seen) == step
    train(tiny(tmp_path / "run", "--training.log_every=1", "--training.resume_from_checkpoint=auto"))
    assert_same_end(finished, tmp_path / "run")


def test_a_run_killed_before_its_first_checkpoint_begins_again(finished, tmp_path, monkeypatch):
    calls = []

    def killed(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args)

    original = loop.map_shape
    options = ["--training.log_every=1", "--training.resume_from_checkpoint=auto"]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "map_shape", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tiny(tmp_path / "run", *options))
    assert not (tmp_path / "run/checkpoints").exists() and len(lines(tmp_path / "run")) == 2
    train(tiny(tmp_path / "run", *options))
    assert_same_end(finished, tmp_path / "run")
    assert [line["step"] for line in lines(tmp_path / "run") if "loss" in line] == list(range(1, 13))
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        train(tiny(tmp_path / "precious", *options))


def spoil(monkeypatch, steps):
    """NaN pixels in these steps, counted from 1."""
    original, given = loop.Batches.of_epoch, []

    def of_epoch(self, *args, **kwargs):
        for batch in original(self, *args, **kwargs):
            given.append(1)
            yield batch | ({"pixel_values": batch["pixel_values"] * torch.nan} if len(given) in steps else {})

    monkeypatch.setattr(loop.Batches, "of_epoch", of_epoch)


def test_a_step_without_a_finite_gradient_is_left_out_and_its_images_are_named(tmp_path, monkeypatch):
    spoil(monkeypatch, {4, 9})
    folder = tmp_path / "run"
    train(tiny(folder, "--training.log_every=1"))
    skipped = {line["step"]: line["skipped"] for line in lines(folder) if "skipped" in line}
    assert set(skipped) == {4, 9} and state_of(folder)["skipped"] == 2 and state_of(folder)["skipped_in_a_row"] == 0
    for each in skipped.values():
        assert len(set(each["image_ids"])) == 8 and each["grad_norm"] == each["loss"] == "nan"
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.isfinite(tensor.float()).all(), name  # BatchNorm's statistics too
    losses = [line["contrastive_loss"] for line in lines(folder) if "contrastive_loss" in line]
    assert np.isfinite([loss for i, loss in enumerate(losses, 1) if i not in (4, 9)]).all()


def test_a_step_that_is_left_out_changes_nothing(tmp_path, monkeypatch):
    """A run whose last three steps are spoiled ends where one ended that never had them."""
    options = ["--training.log_every=1", "--training.save_every_steps=9", "--training.max_skipped_steps=3"]
    with monkeypatch.context() as patch:
        spoil(patch, {10, 11, 12})
        with pytest.raises(ValueError, match=r"not finite in 3 steps in a row.*checkpoints/last.*optimizer\.lr"):
            train(tiny(tmp_path / "spoiled", *options))
    stopped = []
    original = loop.map_shape

    def stop(*args):
        stopped.append(1)
        if len(stopped) == 10:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(loop, "map_shape", stop)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(tmp_path / "short", *options))
    assert (state_of(tmp_path / "spoiled")["step"], state_of(tmp_path / "short")["step"]) == (12, 9)
    assert_same_end(tmp_path / "spoiled", tmp_path / "short")


LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--multi_gpu"]
LAUNCH += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def test_two_processes_stop_at_the_same_step(tmp_path):
    folder = tmp_path / "run"
    options = [*TINY, "--training.batch_size=4", "--training.epochs=1000", f"--output_dir={folder}"]
    command = [*LAUNCH, "train.py", "--config", "configs/demo.yaml", *options, "--evaluation.every_epochs=1000"]
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not ((folder / "log.jsonl").is_file() and len(lines(folder)) > 8):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)  # to the launcher, which passes it on
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and b"Asked to stop" in output, output[-2000:]
    state = state_of(folder)
    # Every tenth step, and at the end of an epoch of six.
    assert state["step"] > 8 and (state["step"] % 10 == 0 or state["step"] % 6 == 0)
    assert len(list((folder / "checkpoints/last").glob("random_states_*.pkl"))) == 2


def test_an_evaluation_that_fails_in_the_first_process_ends_all(tmp_path):
    """The others wait for its result: they must not wait for ever."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 16), ("validation", 8)):
        rows = ["image,text"]
        for i in range(number):
            path = tmp_path / "pairs" / f"{split}{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (32, 32), dtype=np.uint8)).save(path)
            rows.append(f"{path.name},left effusion {i}")
        (tmp_path / "pairs" / f"{split}.csv").write_text("\n".join(rows))
    broken = tmp_path / "pairs" / "validation3.png"
    broken.write_bytes(broken.read_bytes()[:100])
    options = [option for option in TINY if not option.startswith("--data.")]
    options += ["--data.name=pairs", f"--data.options={{data_dir: {tmp_path / 'pairs'}}}", "--data.train={}"]
    options += ["--data.validation={}", "--training.epochs=1", "--training.batch_size=4"]
    options += ["--evaluation.best_metric=contrastive_loss", f"--output_dir={tmp_path / 'run'}"]
    command = [*LAUNCH, "train.py", "--config", "configs/demo.yaml", *options]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT, timeout=120)
    assert process.returncode != 0
    assert Path(broken).name in process.stderr and "more than 1%" in process.stderr


def run_to_its_end(folder):
    torch.set_num_threads(1)
    options = ["--training.epochs=25", "--training.save_every_steps=1", "--evaluation.every_epochs=25"]
    train(tiny(folder, *options, "--training.log_every=1", "--training.resume_from_checkpoint=auto"))


def test_killed_at_twenty_moments_a_run_ends_as_if_it_had_not_been(tmp_path):
    """SIGKILL, at any moment, during the writing of a checkpoint too; every start goes on by itself."""
    context = multiprocessing.get_context("forkserver")  # which imports everything once
    context.set_forkserver_preload(["modeling_tier.training", "test_stopping"])

    def start(name):
        process = context.Process(target=run_to_its_end, args=(tmp_path / name,))
        process.start()
        return process

    whole = start("whole")
    whole.join()
    assert whole.exitcode == 0
    rng, folder, kills, writing = np.random.default_rng(0), tmp_path / "run", 0, 0
    log = folder / "log.jsonl"
    number = lambda: log.read_text().count("\n") if log.is_file() else 0  # noqa: E731
    while kills < 20:
        process = start("run")
        process.join(timeout=0)
        before = None
        while process.is_alive():
            if before is None and (folder / "environment.json").is_file():
                before = number()
            if before is not None and number() != before:  # it goes on
                time.sleep(rng.uniform(0, 0.1))
                break
            time.sleep(0.002)
        assert process.is_alive(), f"the run ended by itself after {kills} kills"
        process.kill()
        process.join()
        kills += 1
        writing += any((folder / "checkpoints" / f"last.{end}").exists() for end in ("tmp", "old"))
    end = start("run")
    end.join()
    assert end.exitcode == 0 and writing > 2
    assert_same_end(tmp_path / "whole", folder)
    for name, weight in weights(tmp_path / "whole").items():
        assert torch.equal(weight, weights(folder)[name]), name
