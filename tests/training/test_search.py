# Licensed under the Apache License, Version 2.0.
"""The search for the lambdas: which pairs, that an interruption changes nothing, early stopping, what it leaves."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image
from test_training import ROOT, tiny

from modeling_tier.data import load_pairs
from modeling_tier.files import locked_folder
from modeling_tier.training import load_config, search
from modeling_tier.training.batches import fraction_of_subjects
from modeling_tier.training.search import search_lambdas, search_table


@pytest.fixture(autouse=True)
def own_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)


class Stopped(Exception):
    pass


class FakeTraining:
    """Runs whose AUROC has one maximum over the plane and grows with the epochs; stops before its n-th epoch."""

    def __init__(self, stop_before=None):
        self.stop_before, self.epochs, self.resumed = stop_before, 0, []

    def __call__(self, config, after_evaluation):
        folder = Path(config.output_dir)
        checkpoint = folder / "checkpoints" / "last" / "trainer_state.json"
        state = {"epoch": 0, "evaluations": []}
        if config.training.resume_from_checkpoint:
            state = json.loads(checkpoint.read_text())
            self.resumed.append(folder.name)
        token, patch = config.model.lambda_token, config.model.lambda_patch
        auroc = 0.8 - (token - 0.3) ** 2 - (patch - 0.1) ** 2
        ended = False
        while state["epoch"] < config.training.epochs and not ended:
            if self.epochs == self.stop_before:
                raise Stopped
            self.epochs += 1
            state["epoch"] += 1
            if state["epoch"] % config.evaluation.every_epochs == 0 or state["epoch"] == config.training.epochs:
                value = auroc + 0.01 * state["epoch"]
                state["evaluations"].append([state["epoch"], value])
                ended = after_evaluation(state["epoch"], {"auroc": {"mean": value}})
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            checkpoint.write_text(json.dumps(state))
        (folder / "model.safetensors").write_text("weights")
        best = max(value for _, value in state["evaluations"])
        return {"validation": {"auroc": {"mean": best}, "localisation": {"cnr": {"mean": token}}}}


def run(folder, monkeypatch, method="random", trials=8, epochs=1, stop_before=None, **options):
    fake = FakeTraining(stop_before)
    monkeypatch.setattr(search, "train", fake)
    monkeypatch.setattr(search, "plot_search", lambda *_: None)  # drawn in the last test
    monkeypatch.setattr(search.gc, "collect", lambda: None)  # there are no models to free
    every = ["--evaluation.every_epochs", str(options.get("every_epochs", 1))]
    config = load_config(ROOT / "configs" / "demo.yaml", ["--training.epochs", str(epochs), *every])
    config.output_dir = str(folder)
    return search_lambdas(config, method, trials, options.get("largest", 0.5)), fake


def test_random_draws_begin_without_the_regulariser(tmp_path, monkeypatch):
    trials, _ = run(tmp_path / "s", monkeypatch)
    assert [trial["value"] for trial in trials] == sorted((trial["value"] for trial in trials), reverse=True)
    by_number = sorted(trials, key=lambda trial: trial["number"])
    assert (by_number[0]["lambda_token"], by_number[0]["lambda_patch"]) == (0.0, 0.0)
    drawn = np.array([[trial["lambda_token"], trial["lambda_patch"]] for trial in by_number[1:]])
    assert len(np.unique(drawn)) == 14 and 0 <= drawn.min() < 0.2 and 0.3 < drawn.max() <= 0.5
    for trial in trials:
        expected = 0.81 - (trial["lambda_token"] - 0.3) ** 2 - (trial["lambda_patch"] - 0.1) ** 2
        assert trial["value"] == pytest.approx(expected) and trial["metrics"]["cnr"] == trial["lambda_token"]


@pytest.mark.parametrize(("method", "epochs", "every_epochs"), [("random", 2, 1), ("tpe", 3, 1), ("tpe", 5, 2)])
def test_an_interrupted_search_gives_the_same_trials(tmp_path, monkeypatch, method, epochs, every_epochs):
    every = {"every_epochs": every_epochs}
    whole, fake = run(tmp_path / "whole", monkeypatch, method, 14, epochs, **every)
    for stop_before in (1, 2, fake.epochs // 2, fake.epochs - 1):
        folder = tmp_path / str(stop_before)
        with pytest.raises(Stopped):
            run(folder, monkeypatch, method, 14, epochs, stop_before, **every)
        cut_off = len(list((folder / "trials").glob("*/checkpoints/last/trainer_state.json")))
        trials, second = run(folder, monkeypatch, method, 14, epochs, **every)
        assert trials == whole and len(second.resumed) == cut_off
        assert second.epochs == fake.epochs - stop_before, "nothing is trained twice"
    epochs_of = lambda trial: [epoch for epoch, _ in trial["values"]]  # noqa: E731
    evaluated = [epoch for epoch in range(1, epochs + 1) if epoch % every_epochs == 0 or epoch == epochs]
    assert all(epochs_of(trial) == evaluated for trial in whole if not trial["pruned"])
    assert any(trial["pruned"] for trial in whole) == (method == "tpe")


def test_a_trial_cut_off_just_after_it_was_to_end_ends_there(tmp_path, monkeypatch):
    whole, _ = run(tmp_path / "s", monkeypatch, "tpe", 14, 3)
    ended = next(trial for trial in sorted(whole, key=lambda trial: trial["number"]) if trial["pruned"])
    path = tmp_path / "s" / "trials.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: ended["number"]]))
    checkpoint = tmp_path / "s" / "trials" / f"{ended['number']:03d}" / "checkpoints" / "last"
    checkpoint.mkdir(parents=True)
    state = {"epoch": ended["values"][-1][0], "evaluations": ended["values"]}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    trials, _ = run(tmp_path / "s", monkeypatch, "tpe", ended["number"] + 1, 3)
    assert ended in trials


def test_early_stopping_saves_epochs_and_finds_the_maximum(tmp_path, monkeypatch):
    trials, fake = run(tmp_path / "s", monkeypatch, "tpe", 30, 4)
    assert fake.epochs < 0.75 * 30 * 4 and any(trial["pruned"] for trial in trials)
    best = trials[0]
    assert not best["pruned"] and len(best["values"]) == 4
    assert abs(best["lambda_token"] - 0.3) < 0.06 and abs(best["lambda_patch"] - 0.1) < 0.06
    for trial in trials:
        assert len(trial["values"]) == 4 or trial["pruned"]


def test_a_search_is_extended_but_not_changed(tmp_path, monkeypatch):
    longer, _ = run(tmp_path / "longer", monkeypatch, trials=8)
    run(tmp_path / "s", monkeypatch, trials=3)
    extended, fake = run(tmp_path / "s", monkeypatch, trials=8)
    assert extended == longer and fake.epochs == 5
    (tmp_path / "s" / "table.txt").unlink()
    assert run(tmp_path / "s", monkeypatch, trials=8)[0] == longer
    assert (tmp_path / "s" / "table.txt").is_file(), "made again"
    with pytest.raises(ValueError, match="another method"):
        run(tmp_path / "s", monkeypatch, "tpe", trials=8)
    with pytest.raises(ValueError, match="another largest"):
        run(tmp_path / "s", monkeypatch, trials=8, largest=1.0)
    with pytest.raises(ValueError, match=r"another training\.epochs"):
        run(tmp_path / "s", monkeypatch, trials=9, epochs=2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no search"):
        run(tmp_path / "mine", monkeypatch)
    with pytest.raises(ValueError, match="at least one trial"):
        run(tmp_path / "none", monkeypatch, trials=0)


@pytest.mark.slow
def test_what_changes_no_trial_may_change_when_a_search_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "train", FakeTraining())
    for trials, options in ((2, []), (4, ["--data.num_workers=1", "--training.log_every=3"])):
        config = load_config(ROOT / "configs" / "demo.yaml", ["--training.epochs=1", *options])
        config.output_dir = str(tmp_path / "s")
        assert len(search_lambdas(config, "random", trials, 0.5)) == trials


@pytest.mark.slow
def test_the_search_sets_its_own_options():
    for option in ("model.lambda_token", "training.overwrite"):
        command = [sys.executable, "search_lambdas.py", "--config", "configs/demo.yaml", f"--{option}", "0"]
        process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert process.returncode == 1 and f"--{option} is set by the search" in process.stderr


def test_the_loss_cannot_compare_lambdas(tmp_path):
    with pytest.raises(ValueError, match="contrastive_loss"):
        search_lambdas(tiny(tmp_path / "s", "--evaluation.best_metric=loss"), "random", 2, 0.5)


def test_a_real_search_leaves_logs_a_table_and_a_picture(tmp_path):
    folder = tmp_path / "s"
    options = ["--training.epochs=1", "--data.subject_share=0.5", "--training.save_every_steps=1"]
    trials = search_lambdas(tiny(folder, *options), "random", 2, 0.5)
    half = len(fraction_of_subjects(load_pairs("synthetic", "train", num_images=48, image_size=32), 0.5, seed=0))
    for trial in trials:
        own = folder / "trials" / f"{trial['number']:03d}"
        lines = [json.loads(line) for line in (own / "log.jsonl").read_text().splitlines()]
        assert lines[-1]["validation"]["auroc"]["mean"] == trial["value"] == trial["metrics"]["auroc"]
        assert lines[-1]["step"] == half // 8, "half of the subjects, in batches of 8"
        config = json.loads((own / "config.json").read_text())
        assert all(config[name] == trial[name] for name in ("lambda_token", "lambda_patch"))
        assert (own / "metrics.json").is_file() and not (own / "checkpoints").exists()
        assert not list(own.glob("*.safetensors"))
    assert (folder / "table.txt").read_text().strip() == search_table(trials)
    assert {"auroc", "pointing_game", "cnr", "contribution_cnr"} <= set(search_table(trials).split())
    picture = Image.open(folder / "search.png").convert("L")
    assert len(np.unique(np.asarray(picture))) > 50


def test_a_second_search_in_the_folder_and_damaged_files_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "LOCK_SECONDS", 0.1)
    folder = tmp_path / "s"
    run(folder, monkeypatch, trials=2)
    with locked_folder(folder), pytest.raises(ValueError, match="s is in use by process"):
        run(folder, monkeypatch, trials=2)
    trials = (folder / "trials.jsonl").read_bytes()
    (folder / "trials.jsonl").write_bytes(trials + b"\0\0\0\n")
    with pytest.raises(ValueError, match="trials.jsonl, line 3, is damaged"):
        run(folder, monkeypatch, trials=3)
    (folder / "trials.jsonl").write_bytes(trials)
    (folder / "search.json").write_text("[")
    with pytest.raises(ValueError, match="search.json is damaged"):
        run(folder, monkeypatch, trials=3)
