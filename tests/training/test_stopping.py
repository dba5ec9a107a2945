# Licensed under the Apache License, Version 2.0.
"""A run that is asked to stop, that meets a gradient that is not finite, or whose evaluation fails, loses nothing."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_training import ROOT, TINY, lines, tiny, weights

from modeling_tier.training import setup, stopping, train, validation
from modeling_tier.training.resume import find_checkpoint
from modeling_tier.training.stopping import EXIT_STOPPED


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(tiny(folder, "--training.log_every=1"))
    return folder


def state_of(folder) -> dict:
    return json.loads((folder / "checkpoints/last/trainer_state.json").read_text())


def best_of(folder) -> dict:
    content = json.loads((folder / "checkpoints/best/evaluation.json").read_text())
    return {name: content[name] for name in ("step", "epoch")}


def at_step(number, action):
    """A callback that does something once a run has done so many steps."""

    def after_step(state):
        if state.step == number:
            action()

    return after_step


def interrupt():
    raise KeyboardInterrupt


def assert_same_end(one, other):
    for name, weight in weights(one / "checkpoints/last").items():
        assert torch.equal(weight, weights(other / "checkpoints/last")[name]), name


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
@pytest.mark.parametrize("step", [3, pytest.param(6, marks=pytest.mark.slow)])
def test_a_signal_ends_the_run_after_the_step_and_it_goes_on(finished, tmp_path, number, step):
    """In the middle of an epoch, and at its end, where the evaluation is still done."""
    seen, before = [], signal.getsignal(number)

    def signalled(state):
        seen.append(state.step)
        if state.step == step:
            for _ in range(2):  # by itself and through a launcher
                os.kill(os.getpid(), number)

    options = ["--training.log_every=1", "--training.resume_from_checkpoint=auto"]
    with pytest.raises(SystemExit) as stopped:
        train(tiny(tmp_path / "run", *options), after_step=signalled)
    assert stopped.value.code == EXIT_STOPPED == 75 and signal.getsignal(number) is before
    assert state_of(tmp_path / "run")["step"] == step and seen == list(range(1, step + 1))
    train(tiny(tmp_path / "run", "--training.log_every=1", "--training.resume_from_checkpoint=auto"))
    assert_same_end(finished, tmp_path / "run")


@pytest.mark.parametrize("epoch", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_signal_ends_an_evaluation_which_is_done_again(finished, tmp_path, monkeypatch, epoch):
    calls, original = [], validation.evaluate_zero_shot

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == epoch:
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("the evaluation goes on")
        return original(*args, **kwargs)

    options = ["--training.log_every=1", "--training.resume_from_checkpoint=auto"]
    with monkeypatch.context() as patch:
        patch.setattr(validation, "evaluate_zero_shot", interrupted)
        with pytest.raises(SystemExit) as stopped:
            train(tiny(tmp_path / "run", *options))
    assert stopped.value.code == EXIT_STOPPED and len(calls) == epoch
    assert state_of(tmp_path / "run")["step"] == 6 * epoch
    metrics = train(tiny(tmp_path / "run", *options))
    assert_same_end(finished, tmp_path / "run")
    assert json.loads((finished / "metrics.json").read_text()) == metrics
    assert len([line for line in lines(tmp_path / "run") if "validation" in line]) == 2


@pytest.mark.slow
def test_old_checkpoints_are_kept_to_a_number_and_the_best_beside_them(finished, tmp_path):
    options = ["--training.log_every=1", "--training.save_every_steps=2", "--training.keep_checkpoints=3"]
    folder = tmp_path / "run"
    train(tiny(folder, *options))
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best", "last", "step-8", "step-10"}
    # Each of them is one to go on from; "auto" takes the newest, also between two renames.
    (folder / "checkpoints/last").rename(tmp_path / "away")
    (folder / "checkpoints/step-9").mkdir()  # torn
    train(tiny(folder, *options, "--training.resume_from_checkpoint=auto"))
    assert_same_end(finished, folder)
    older = folder / "checkpoints/step-8"
    train(tiny(folder, *options, f"--training.resume_from_checkpoint={older}"))
    assert_same_end(finished, folder)
    # A damaged one gives way to the one before it.
    (folder / "checkpoints/last/trainer_state.json").write_text("")
    with pytest.warns(UserWarning, match="last/trainer_state.json is damaged. The run goes on from .*step-10"):
        assert find_checkpoint("auto", folder).folder == folder / "checkpoints/step-10"
    (folder / "checkpoints/step-10/model.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="step-10/model.safetensors is damaged"):
        train(tiny(folder, *options, "--training.resume_from_checkpoint=auto"))
    assert_same_end(finished, folder)


def test_an_evaluation_that_fails_costs_no_epoch(finished, tmp_path, monkeypatch):
    original, calls = validation.evaluate_zero_shot, []

    def fails(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("The image p10 cannot be read")
        return original(*args, **kwargs)

    monkeypatch.setattr(validation, "evaluate_zero_shot", fails)
    with pytest.raises(ValueError, match="The image p10"):
        train(tiny(tmp_path / "run", "--training.log_every=1"))
    assert state_of(tmp_path / "run")["step"] == 12
    train(tiny(tmp_path / "run", "--training.log_every=1", "--training.resume_from_checkpoint=auto"))
    assert_same_end(finished, tmp_path / "run")
    assert (tmp_path / "run/metrics.json").read_text() == (finished / "metrics.json").read_text()


@pytest.mark.slow
def test_a_run_that_goes_back_forgets_a_best_model_of_later(tmp_path):
    options = ["--evaluation.best_metric=loss", "--training.keep_checkpoints=9", "--training.epochs=3"]
    run = tmp_path / "run"
    train(tiny(run, *options))
    best = json.loads((run / "metrics.json").read_text())["epoch"]
    assert best > 1, "else there is nothing to forget"
    back = f"--training.resume_from_checkpoint={run}/checkpoints/step-6"
    with pytest.raises(ValueError, match="training.epochs is 1, but 1 epochs of this run are done"):
        train(tiny(run, *options, back, "--training.epochs=1"))
    assert best_of(run) == {"step": 6 * best, "epoch": best}
    train(tiny(run, *options, back, "--training.epochs=2"))
    result = json.loads((run / "metrics.json").read_text())
    assert best_of(run) == {"step": 12, "epoch": 2}
    assert result["epoch"] == 2 and all(
        torch.equal(weight, weights(run)[name]) for name, weight in weights(run / "checkpoints/last").items()
    )


def test_what_evaluations_are_compared_by_stays(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    for option in ("best_metric=loss", "dataset=synthetic", "uncertain=ones"):
        with pytest.raises(ValueError, match=f"evaluation.{option.split('=')[0]} is not what the run in"):
            train(
                tiny(
                    tmp_path / "run",
                    "--training.log_every=1",
                    "--training.epochs=3",
                    "--training.resume_from_checkpoint=auto",
                    f"--evaluation.{option}",
                )
            )


def test_a_signal_before_an_evaluation_skips_it():
    request = stopping.StopRequest()
    assert request.interruptible(lambda: {"auroc": 0.5}) == {"auroc": 0.5}
    request.received = True
    assert request.interruptible(lambda: pytest.fail("it begins")) is None


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_begins_again(finished, tmp_path):
    options = ["--training.log_every=1", "--training.resume_from_checkpoint=auto"]
    with pytest.raises(KeyboardInterrupt):
        train(tiny(tmp_path / "run", *options), after_step=at_step(2, interrupt))
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
    original, given = setup.Batches.of_epoch, []

    def of_epoch(self, *args, **kwargs):
        for batch in original(self, *args, **kwargs):
            given.append(1)
            yield batch | ({"pixel_values": batch["pixel_values"] * torch.nan} if len(given) in steps else {})

    monkeypatch.setattr(setup.Batches, "of_epoch", of_epoch)


def test_a_step_with_non_finite_gradients_is_skipped_and_its_images_are_named(tmp_path, monkeypatch, capsys):
    spoil(monkeypatch, {4, 9})
    folder = tmp_path / "run"
    train(tiny(folder, "--training.log_every=1", "--training.trackers=[tensorboard]"))
    assert "trackers failed" not in capsys.readouterr().out
    skipped = {line["step"]: line["skipped"] for line in lines(folder) if "skipped" in line}
    assert set(skipped) == {4, 9} and state_of(folder)["skipped"] == 2 and state_of(folder)["skipped_in_a_row"] == 0
    for values in skipped.values():
        assert len(set(values["image_ids"])) == 8 and values["grad_norm"] == values["loss"] == "nan"
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.isfinite(tensor.float()).all(), name  # BatchNorm's statistics too
    losses = [line["contrastive_loss"] for line in lines(folder) if "contrastive_loss" in line]
    assert np.isfinite([loss for i, loss in enumerate(losses, 1) if i not in (4, 9)]).all()


def test_a_skipped_step_changes_nothing(tmp_path, monkeypatch):
    """A run whose last three steps are spoiled ends where one ended that never had them."""
    options = ["--training.log_every=1", "--training.save_every_steps=9", "--training.max_skipped_steps=3"]
    with monkeypatch.context() as patch:
        spoil(patch, {10, 11, 12})
        with pytest.raises(
            ValueError, match=r"Non-finite gradients in 3 consecutive steps.*checkpoints/last.*optimizer\.lr"
        ):
            train(tiny(tmp_path / "spoiled", *options))
    with pytest.raises(KeyboardInterrupt):
        train(tiny(tmp_path / "short", *options), after_step=at_step(10, interrupt))
    assert (state_of(tmp_path / "spoiled")["step"], state_of(tmp_path / "short")["step"]) == (12, 9)
    assert_same_end(tmp_path / "spoiled", tmp_path / "short")


def test_a_full_disk_leaves_the_previous_checkpoint_complete(finished, tmp_path, monkeypatch):
    options = ["--training.log_every=1", "--training.save_every_steps=2", "--training.resume_from_checkpoint=auto"]
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    full = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (20_000, limit[1]))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(OSError, match="checkpoints/last could not be written.*before is complete"):
            train(tiny(tmp_path / "run", *options), after_step=at_step(8, full))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert state_of(tmp_path / "run")["step"] == 6
    train(tiny(tmp_path / "run", *options))
    assert_same_end(finished, tmp_path / "run")


@pytest.mark.parametrize(
    "call",
    [
        pytest.param("init_trackers", marks=pytest.mark.slow),
        "log",
        pytest.param("end_training", marks=pytest.mark.slow),
    ],
)
def test_a_tracker_that_cannot_be_reached_does_not_end_a_run(finished, tmp_path, monkeypatch, capsys, call):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no route to the tracker")

    monkeypatch.setattr(setup.Accelerator, call, unreachable)
    train(tiny(tmp_path / "run", "--training.log_every=1", "--training.trackers=[tensorboard]"))
    assert capsys.readouterr().out.count("no route to the tracker") == 1
    assert_same_end(finished, tmp_path / "run")


LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--multi_gpu"]
LAUNCH += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def test_a_second_signal_acts_at_once(monkeypatch):
    request = stopping.StopRequest()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    request.listen()
    try:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.received
        now = time.monotonic()
        monkeypatch.setattr(stopping.time, "monotonic", lambda: now + 10)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
    finally:
        request.leave()
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("to", "every_epochs"),
    [("the launcher, which passes it on", 1), ("all, as SLURM and Ctrl-C do", 1000)],
)
@pytest.mark.slow
def test_two_processes_stop_at_the_same_step(tmp_path, to, every_epochs):
    folder = tmp_path / "run"
    options = [*TINY, "--training.batch_size=4", "--training.epochs=1000", f"--output_dir={folder}"]
    command = [*LAUNCH, "train.py", "--config", "configs/demo.yaml", *options]
    command.append(f"--evaluation.every_epochs={every_epochs}")
    process = subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not ((folder / "log.jsonl").is_file() and len(lines(folder)) > 8):
        time.sleep(0.1)
    if to.startswith("all"):
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and b"Asked to stop" in output, output[-2000:]
    state = state_of(folder)
    assert state["step"] > 8
    assert len(list((folder / "checkpoints/last").glob("random_states_*.safetensors"))) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.slow
def test_a_signal_to_all_processes_of_a_job_finds_the_workers_of_the_loader_too(tmp_path, number):
    """As SLURM sends it, and Ctrl-C: a worker that died of it would end the run before its checkpoint."""
    folder = tmp_path / "run"
    options = [*TINY, "--training.epochs=1000", "--data.num_workers=2", f"--output_dir={folder}"]
    command = [sys.executable, "train.py", "--config", "configs/demo.yaml", *options, "--training.log_every=1"]
    command += ["--evaluation.every_epochs=1000"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not ((folder / "log.jsonl").is_file() and len(lines(folder)) > 8):
        time.sleep(0.1)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=150)
    assert process.returncode == EXIT_STOPPED, output[-2000:]
    assert state_of(folder)["step"] > 8 and b"Traceback" not in output


@pytest.mark.slow
def test_the_number_of_processes_may_change_on_the_way(tmp_path):
    """One process of 16 pairs, then two of 8; no dropout, no batch norm: as one process from beginning to end."""
    options = ["--model.text_config.hidden_dropout_prob=0", "--training.log_every=1"]
    options += ["--model.vision_config={model_type: convnext, hidden_sizes: [8, 16], depths: [1, 1], num_stages: 2}"]
    options += ["--model.lambda_token=0.2", "--training.resume_from_checkpoint=auto"]
    train(tiny(tmp_path / "whole", *options, "--training.batch_size=16"))
    asked = at_step(2, partial(os.kill, os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        train(tiny(tmp_path / "run", *options, "--training.batch_size=16"), after_step=asked)
    with pytest.raises(ValueError, match="has 16 pairs over all processes; .*batch_size 8 x 1 processes are 8"):
        train(tiny(tmp_path / "run", *options, "--training.batch_size=8"))
    command = [*LAUNCH, "train.py", "--config", "configs/demo.yaml", *TINY, *options]
    command += ["--training.batch_size=8", f"--output_dir={tmp_path / 'run'}"]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT)
    assert process.returncode == 0, process.stderr[-3000:]
    one, two = ([line for line in lines(tmp_path / name) if "loss" in line] for name in ("whole", "run"))
    assert [line["step"] for line in one] == [line["step"] for line in two] == list(range(1, 7))
    for first, second in zip(one, two):
        assert first["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-3)
    for name, weight in weights(tmp_path / "whole/checkpoints/last").items():
        torch.testing.assert_close(weight, weights(tmp_path / "run/checkpoints/last")[name], rtol=0, atol=3e-4)


@pytest.mark.slow
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
    for i in (3, 5):  # one of them would be allowed
        broken = tmp_path / "pairs" / f"validation{i}.png"
        broken.write_bytes(broken.read_bytes()[:100])
    options = [option for option in TINY if not option.startswith("--data.")]
    options += ["--data.name=pairs", f"--data.options={{data_dir: {tmp_path / 'pairs'}}}", "--data.train={}"]
    options += ["--data.validation={}", "--training.epochs=1", "--training.batch_size=4"]
    options += ["--evaluation.best_metric=contrastive_loss", f"--output_dir={tmp_path / 'run'}"]
    command = [*LAUNCH, "train.py", "--config", "configs/demo.yaml", *options]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT, timeout=250)
    assert process.returncode != 0
    assert "validation3.png" in process.stderr and "more than 1%" in process.stderr


def run_to_its_end(folder, every_epochs):
    torch.set_num_threads(1)
    options = ["--training.epochs=25", "--training.save_every_steps=1", "--training.log_every=1"]
    options += [f"--evaluation.every_epochs={every_epochs}", "--training.resume_from_checkpoint=auto"]
    train(tiny(folder, *options))


def start_run(folder, every_epochs=25):
    """A run in a process of its own, which goes on where an earlier one ended."""
    context = multiprocessing.get_context("forkserver")  # which imports everything once
    context.set_forkserver_preload(["modeling_tier.training", "test_stopping"])
    process = context.Process(target=run_to_its_end, args=(folder, every_epochs))
    process.start()
    return process


@pytest.mark.slow
def test_killed_at_twenty_moments_a_run_ends_as_if_it_had_not_been(tmp_path):
    """SIGKILL, at any moment, during the writing of a checkpoint too; every start goes on by itself."""
    uninterrupted = start_run(tmp_path / "uninterrupted")
    uninterrupted.join()
    assert uninterrupted.exitcode == 0
    rng, folder, kills, writing = np.random.default_rng(0), tmp_path / "run", 0, 0
    log = folder / "log.jsonl"

    def number():
        return log.read_text().count("\n") if log.is_file() else 0

    while kills < 20:
        process = start_run(folder)
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
    end = start_run(folder)
    end.join()
    assert end.exitcode == 0 and writing > 2
    assert_same_end(tmp_path / "uninterrupted", folder)
    for name, weight in weights(tmp_path / "uninterrupted").items():
        assert torch.equal(weight, weights(folder)[name]), name
