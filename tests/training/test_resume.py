# Licensed under the Apache License, Version 2.0.
"""A resumed run notices damage, other options and other data, and one folder belongs to one run at a time."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from test_stopping import ENVIRONMENT, LAUNCH, assert_same_end, at_step, interrupt
from test_training import ROOT, TINY, contents, lines, tiny

from modeling_tier.files import locked_folder
from modeling_tier.training import train


AUTO = "--training.resume_from_checkpoint=auto"
OPTIONS = ["--training.log_every=1", "--training.save_every_steps=3", "--training.keep_checkpoints=2"]


@pytest.fixture(autouse=True)
def own_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path_factory.mktemp("runs") / "finished"
    train(tiny(folder, *OPTIONS))
    return folder


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory):
    """Checkpoints of the steps 6 (as step-6) and 9 (as last)."""
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.raises(KeyboardInterrupt):
        train(tiny(folder, *OPTIONS), after_step=at_step(10, interrupt))
    return folder


@pytest.fixture
def stopped(stopped_run, tmp_path):
    shutil.copytree(stopped_run, tmp_path / "run")
    return tmp_path / "run"


class Planted:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["custom_checkpoint_0.pkl", "random_states_0.pkl", "optimizer.bin", "scheduler.bin"])
def test_a_planted_pickle_is_not_run(stopped, finished, tmp_path, name):
    with (stopped / "checkpoints/last" / name).open("wb") as file:
        pickle.dump(Planted(tmp_path / "ran"), file)
    train(tiny(stopped, *OPTIONS, AUTO))
    assert not (tmp_path / "ran").exists()
    assert_same_end(finished, stopped)


def test_no_file_of_a_checkpoint_is_pickled(stopped_run):
    assert {path.suffix for path in (stopped_run / "checkpoints/last").iterdir()} == {".safetensors", ".json"}


def test_a_pickled_checkpoint_of_an_earlier_version_is_refused(stopped):
    last = stopped / "checkpoints/last"
    (last / "random_states_0.pkl").write_bytes(b"")
    (last / "trainer_state.json").write_text(json.dumps({"step": 9, "epoch": 1, "evaluations": []}))
    with pytest.raises(ValueError, match="last was written by an earlier version.*model.pretrained .*best"):
        train(tiny(stopped, *OPTIONS, AUTO))


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


def remove(path):
    path.unlink()


def another_form(path):
    path.write_text("[1, 2]")


FILES = ("random_states_0.safetensors", "model.safetensors", "optimizer.safetensors", "trainer_state.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [remove, empty, cut, flip_a_bit, another_form])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(stopped, name, damage):
    """With none before it, the error names the file."""
    damage(stopped / "checkpoints/last" / name)
    (stopped / "checkpoints/step-6").rename(stopped / "away")
    with pytest.raises(ValueError, match=f"last.*{name}.*no checkpoint before it.*overwrite"):
        train(tiny(stopped, *OPTIONS, AUTO))
    (stopped / "away").rename(stopped / "checkpoints/step-6")
    with pytest.warns(UserWarning, match=f"last.*{name}.* goes on from .*step-6, at step 6"):
        with pytest.raises(KeyboardInterrupt):
            train(tiny(stopped, *OPTIONS, AUTO), after_step=at_step(7, interrupt))


def test_the_one_before_it_leads_to_the_same_end(stopped, finished):
    flip_a_bit(stopped / "checkpoints/last/optimizer.safetensors")
    with pytest.warns(UserWarning, match="optimizer.safetensors is damaged"):
        train(tiny(stopped, *OPTIONS, AUTO))
    assert_same_end(finished, stopped)


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_last_may_be_no_folder(stopped, finished, kind):
    last = stopped / "checkpoints/last"
    shutil.rmtree(last)
    last.write_text("") if kind == "file" else last.symlink_to("nowhere")
    with pytest.warns(UserWarning, match="checkpoints/last is not a folder"):
        train(tiny(stopped, *OPTIONS, AUTO))
    assert_same_end(finished, stopped)


@pytest.mark.parametrize("name", ["evaluation.json", "model.safetensors"])
def test_a_damaged_best_model_is_named(stopped, name):
    flip_a_bit(stopped / "checkpoints/best" / name)
    before = contents(stopped / "checkpoints")
    with pytest.raises(ValueError, match=f"best/{name} is damaged.*delete it"):
        train(tiny(stopped, *OPTIONS, AUTO))
    assert contents(stopped / "checkpoints") == before


def test_damaged_lines_of_the_log_do_not_block_a_resume(stopped, finished, capsys):
    log = stopped / "log.jsonl"
    log.write_bytes(log.read_bytes() + b"\0" * 300 + b'\n{"step": \n[]\n"text"\n{"epoch": 0}\n\xff\xfe\n{"step": 3')
    train(tiny(stopped, *OPTIONS, AUTO))
    assert "6 damaged lines" in capsys.readouterr().out
    assert [line["step"] for line in lines(stopped)] == [line["step"] for line in lines(finished)]


@pytest.mark.parametrize(
    "option",
    ["training.mixed_precision=bf16", "training.gradient_accumulation_steps=2", "training.batch_size=4", "seed=1"]
    + ["regulariser.ramp_end=0.5", "data.max_text_tokens=40"],
)
def test_options_that_change_the_steps_to_come_are_refused(stopped, option):
    with pytest.raises(ValueError, match=option.split("=")[0].replace(".", r"\.")):
        train(tiny(stopped, *OPTIONS, AUTO, f"--{option}"))


def test_options_that_change_them_by_rounding_or_schedule_are_warned_of(stopped):
    with pytest.warns(UserWarning, match="training.epochs was 2 and is 3"):
        with pytest.raises(KeyboardInterrupt):
            train(tiny(stopped, *OPTIONS, AUTO, "--training.epochs=3"), after_step=at_step(10, interrupt))


def test_fewer_epochs_than_are_done_are_refused(stopped):
    with pytest.raises(ValueError, match="training.epochs is 1, but 1 epochs and 3 steps of the next one.* 2 or more"):
        train(tiny(stopped, *OPTIONS, AUTO, "--training.epochs=1"))


def own_pairs(folder, captions="left effusion"):
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for split, number in (("train", 16), ("validation", 8)):
        rows = ["image,text"]
        for i in range(number):
            Image.fromarray(rng.integers(0, 255, (32, 32), dtype=np.uint8)).save(folder / f"{split}{i}.png")
            rows.append(f"{split}{i}.png,{captions} {i}")
        (folder / f"{split}.csv").write_text("\n".join(rows))


@pytest.mark.parametrize("what", ["a text", "a validation text", "a picture", "the tokenizer", "nothing"])
def test_data_that_changed_is_noticed(tmp_path, what):
    own_pairs(tmp_path / "pairs")
    options = [option for option in TINY if not option.startswith("--data.")] + ["--data.name=pairs"]
    options += [f"--data.options={{data_dir: {tmp_path / 'pairs'}}}", "--data.train={}", "--data.validation={}"]
    options += ["--evaluation.best_metric=contrastive_loss", "--training.save_every_steps=1", AUTO]
    with pytest.raises(KeyboardInterrupt):
        train(tiny(tmp_path / "run", *options), after_step=at_step(2, interrupt))
    if "text" in what:
        table = tmp_path / "pairs" / ("validation.csv" if "validation" in what else "train.csv")
        table.write_text(table.read_text().replace("effusion 7", "effusion 9"))
    elif what == "a picture":
        Image.new("L", (32, 32)).save(tmp_path / "pairs/train7.png")
    elif what == "the tokenizer":
        path = tmp_path / "run/tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 4}))
    else:  # the same content elsewhere
        shutil.copytree(tmp_path / "pairs", tmp_path / "elsewhere")
        train(tiny(tmp_path / "run", *options, f"--data.options.data_dir={tmp_path / 'elsewhere'}"))
        return
    words = {"a validation text": "validation pairs", "the tokenizer": "tokenizer or image processor"}
    with pytest.raises(ValueError, match=f"The {words.get(what, 'training pairs')}.* changed since .*last"):
        train(tiny(tmp_path / "run", *options))


def test_what_is_saved_is_the_same_whenever_it_is_saved(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    train(tiny(tmp_path / "run", *OPTIONS, AUTO))
    before, after = contents(finished), contents(tmp_path / "run")
    changed = {name for name in before if after.get(name) != before[name]}
    assert changed <= {"training_config.yaml", "log.jsonl"} | {n for n in changed if n.startswith("checkpoints/last")}
    assert set(after) == set(before)
    tokenizer = json.loads(before["tokenizer.json"])
    assert tokenizer["padding"] is None and tokenizer["truncation"] is None
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        assert before[f"checkpoints/best/{name}"] == before[name]


def test_auto_with_overwrite_goes_on_with_the_same_run_and_replaces_another(stopped, finished):
    both = [*OPTIONS, AUTO, "--training.overwrite=true"]
    train(tiny(stopped, *both))
    assert_same_end(finished, stopped)
    assert [line["step"] for line in lines(stopped) if "loss" in line] == list(range(1, 13))
    with pytest.raises(KeyboardInterrupt):
        train(tiny(stopped, *both, "--seed=3"), after_step=at_step(2, interrupt))
    assert len(lines(stopped)) == 2 and not (stopped / "model.safetensors").exists()
    train(tiny(stopped, *both))
    assert_same_end(finished, stopped)


def test_a_folder_in_use_is_refused_by_name(stopped, monkeypatch):
    monkeypatch.setattr("modeling_tier.training.run_folder.LOCK_SECONDS", 0.1)
    before = contents(stopped)
    with locked_folder(stopped):
        with pytest.raises(ValueError, match=f"run is in use by process {os.getpid()} on .*choose another folder"):
            train(tiny(stopped, *OPTIONS, AUTO))
    assert contents(stopped) == before
    (stopped.parent / "file").write_text("")
    with pytest.raises(ValueError, match="output_dir: .*file is a file"):
        train(tiny(stopped.parent / "file"))


def children(pid):
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(line) for line in listed.stdout.split()]


def is_alive(pid):
    try:
        os.kill(pid, 0)
        return True
    except ProcessLookupError:
        return False


@pytest.mark.slow
def test_workers_do_not_outlive_a_launcher_that_was_killed(tmp_path):
    """And the same command then goes on in the same folder."""
    folder = tmp_path / "run"
    command = [*LAUNCH, "train.py", "--config", "configs/demo.yaml", *TINY, f"--output_dir={folder}", AUTO]
    command += ["--training.batch_size=4", "--training.save_every_steps=5", "--evaluation.every_epochs=1000"]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    launcher = subprocess.Popen([*command, "--training.epochs=1000"], cwd=ROOT, env=ENVIRONMENT, **silent)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not (folder / "checkpoints/last").is_dir():
        time.sleep(0.1)
    workers = children(launcher.pid)
    assert len(workers) == 2
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    while time.monotonic() < deadline and any(map(is_alive, workers)):
        time.sleep(0.1)
    assert not any(map(is_alive, workers))
    options = [*TINY, "--training.epochs=1000", "--training.batch_size=8", "--training.save_every_steps=5", AUTO]
    options += ["--evaluation.every_epochs=1000"]
    step = json.loads((folder / "checkpoints/last/trainer_state.json").read_text())["step"]
    with pytest.raises(KeyboardInterrupt):
        train(tiny(folder, *options), after_step=at_step(step + 1, interrupt))
    assert torch.isfinite(torch.tensor([line["loss"] for line in lines(folder) if "loss" in line])).all()


@pytest.mark.slow
def test_a_rendezvous_that_nobody_joins_ends(tmp_path):
    """As one process of two whose peer never comes; here after two seconds instead of minutes."""
    code = "from datetime import timedelta; from modeling_tier.training import load_config, setup, train; "
    code += "setup.STEP_TIMEOUT = timedelta(seconds=2); import sys; train(load_config(sys.argv[1], sys.argv[2:]))"
    environment = ENVIRONMENT | {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "29877"}
    command = [sys.executable, "-c", code, "configs/demo.yaml", *TINY, f"--output_dir={tmp_path / 'run'}"]
    environment |= {"MASTER_ADDR": "127.0.0.1", "PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert process.returncode != 0 and "imed out" in process.stderr
