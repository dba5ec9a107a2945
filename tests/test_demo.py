# Licensed under the Apache License, Version 2.0.
"""The demo that was stopped goes on, and one that is finished is not trained again."""

import json
import os
import signal
import threading
import time

import pytest

import demo


TINY = "--training.epochs 2 --training.batch_size 8 --training.progress false --data.train.num_images 96 "
TINY += "--data.validation.num_images 40 --training.log_every 1 --training.save_every_steps 2"


def interrupt_after(path, lines: int) -> threading.Thread:
    """Send this process SIGINT as soon as a log has so many lines."""

    def wait() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (path.is_file() and len(path.read_text().splitlines()) >= lines):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
def test_a_stopped_demo_goes_on_and_a_finished_one_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "NUM_TEST_IMAGES", 60)
    folder, options = tmp_path / "demo", TINY.split()
    thread = interrupt_after(folder / "tier" / "log.jsonl", 4)
    with pytest.raises(SystemExit):
        demo.run_demo(folder, options)
    thread.join()
    assert "The same command goes on" in capsys.readouterr().out
    assert not (folder / "tier" / "model.safetensors").exists()

    results = demo.run_demo(folder, options)
    printed = capsys.readouterr().out
    assert "CLIP is already trained" in printed and "Training CLIP" not in printed and "Resumed from" in printed
    steps = [json.loads(line).get("step") for line in (folder / "tier" / "log.jsonl").read_text().splitlines()]
    assert sorted({step for step in steps if step}) == list(range(1, 25))  # 2 epochs of 12 batches

    weights = (folder / "tier" / "model.safetensors").read_bytes()
    assert demo.run_demo(folder, options) == results
    assert "TIER is already trained" in capsys.readouterr().out
    assert (folder / "tier" / "model.safetensors").read_bytes() == weights


def test_a_demo_of_other_options_is_not_replaced_in_silence(tmp_path):
    folder = tmp_path / "demo"
    (folder / "clip").mkdir(parents=True)
    config = demo.CONFIG.read_text().replace("  epochs: 2", "  epochs: 3")
    assert config != demo.CONFIG.read_text()
    (folder / "clip" / "training_config.yaml").write_text(config)
    with pytest.raises(ValueError, match="another value of .*training.epochs.*--training.overwrite true"):
        demo.run_demo(folder, [])
    (folder / "metrics.json").write_text("{}")  # nor are its numbers taken for those of these options
    with pytest.raises(ValueError, match="another value of .*training.epochs"):
        demo.is_finished(folder, [])


def test_a_demo_of_another_version_is_named(tmp_path):
    folder = tmp_path / "demo"
    (folder / "clip").mkdir(parents=True)
    (folder / "clip" / "training_config.yaml").write_text("optimizer: {an_option_of_old: 1}\n")
    with pytest.raises(ValueError, match="clip/training_config.yaml cannot be read.*an_option_of_old.*overwrite true"):
        demo.run_demo(folder, [])


def test_the_start_is_found_from_every_folder_and_is_the_same_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "NUM_TEST_IMAGES", 60)
    options = [*TINY.split(), "--training.epochs", "1", "--data.train.num_images", "16"]
    results = demo.run_demo(tmp_path / "demo", options)
    assert list(results) == ["start", "CLIP", "TIER"]
    assert all(0 <= metrics["localisation"]["contribution_pointing_game"]["mean"] <= 1 for metrics in results.values())
    assert results["start"]["auroc"]["mean"] > 0.7  # trained, and not made anew
    capsys.readouterr()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert demo.run_demo(tmp_path / "demo", options) == results
    assert capsys.readouterr().out.count("is already trained") == 2
