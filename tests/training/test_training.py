# Licensed under the Apache License, Version 2.0.
"""The training loop on tiny models: what a run leaves, that resuming changes nothing, several processes."""

import json
import math
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from safetensors.torch import load_file
from transformers import AutoModel

from modeling_tier import TierModel, TierProcessor
from modeling_tier.data import load_pairs
from modeling_tier.training import load_config, train
from modeling_tier.training.batches import Batches, fraction_of_subjects
from modeling_tier.training.building import build_model, build_processor, train_tokenizer
from modeling_tier.training.optimization import parameter_groups, ramp
from modeling_tier.training.options import ModelOptions, changed_options
from modeling_tier.training.run_folder import set_aside
from modeling_tier.training.validation import metric_value


ROOT = Path(__file__).parents[2]
TINY = [
    "--data.options.image_size=32",
    "--data.train.num_images=48",
    "--data.validation.num_images=40",
    "--model.image_size=32",
    "--model.vision_config.embedding_size=8",
    "--model.vision_config.hidden_sizes=[8, 16]",
    "--model.vision_config.depths=[1, 1]",
    "--model.text_config.hidden_size=32",
    "--model.text_config.num_hidden_layers=1",
    "--model.text_config.intermediate_size=37",
    "--model.text_config.hidden_dropout_prob=0.1",
    "--model.projection_dim=16",
    "--model.lambda_patch=0.05",
    "--training.batch_size=8",
    "--training.epochs=2",
    "--training.log_every=2",
    "--evaluation.every_epochs=1",
    "--training.progress=false",
]


def tiny(folder, *options):
    return load_config(ROOT / "configs" / "demo.yaml", [*TINY, f"--output_dir={folder}", *options])


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


@pytest.fixture(autouse=True)
def own_accelerator():
    """Accelerate keeps one state per process; every test starts afresh."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    AcceleratorState._reset_state(reset_partial_state=True)  # this comes before what is done for each test
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return folder, train(tiny(folder))


def test_a_run_leaves_a_complete_folder(finished):
    folder, best = finished
    for name in (
        "config.json",
        "model.safetensors",
        "modeling_tier.py",
        "configuration_tier.py",
        "entropy_tier.py",
        "processing_tier.py",
        "processor_config.json",
        "tokenizer.json",
        "training_config.yaml",
        "metrics.json",
        "environment.json",
        "log.jsonl",
        "checkpoints/last/trainer_state.json",
        "checkpoints/best/model.safetensors",
    ):
        assert (folder / name).is_file(), name
    assert type(AutoModel.from_pretrained(folder)) is TierModel
    assert load_config(folder / "training_config.yaml") == tiny(folder)
    assert json.loads((folder / "metrics.json").read_text()) == best
    assert json.loads((folder / "environment.json").read_text())["torch"] == version("torch")
    assert not list(folder.glob("checkpoints/*.tmp")) and not list(folder.glob("checkpoints/*.old"))


def test_the_log(finished):
    steps = [line for line in lines(finished[0]) if "loss" in line]
    assert [line["step"] for line in steps] == [2, 4, 6, 8, 10, 12]
    for line in steps:
        expected = line["contrastive_loss"] + 0.2 * line["token_entropy"] + 0.05 * line["patch_entropy"]
        assert line["loss"] == pytest.approx(expected, abs=1e-4)
        assert 0 <= line["negative_share"] <= 1 and line["pairs_per_second"] > 0 and line["grad_norm"] > 0
    assert steps[-1]["lr"] == pytest.approx(0.01 * 2e-3)
    evaluations = [line["validation"] for line in lines(finished[0]) if "validation" in line]
    assert len(evaluations) == 2
    for metrics in evaluations:
        assert {"loss", "contrastive_loss", "token_entropy", "patch_entropy", "auroc", "retrieval"} <= set(metrics)


def test_the_best_checkpoint_is_kept(finished):
    folder, best = finished
    evaluations = [line for line in lines(folder) if "validation" in line]
    values = [metric_value(line["validation"], "auroc") for line in evaluations]
    assert best["step"] == evaluations[values.index(max(values))]["step"]
    for name, weight in weights(folder).items():
        assert torch.equal(weight, weights(folder / "checkpoints" / "best")[name])


def test_metric_value_is_larger_for_the_better():
    metrics = {"auroc": {"mean": None}, "loss": 2.0, "localisation": {"cnr": {"mean": 0.5}}}
    assert metric_value(metrics, "auroc") == -math.inf
    assert metric_value(metrics, "loss") == -2.0 and metric_value(metrics, "cnr") == 0.5


class Stopped(Exception):
    pass


@pytest.mark.parametrize("stop_after", [4, 6, 9])
def test_a_resumed_run_ends_as_an_uninterrupted_one(finished, tmp_path, stop_after):
    """Stopped in the middle and at the end of an epoch (6 steps each); dropout is on, so random numbers count too."""

    def stop(state):
        if state.step > stop_after:
            raise Stopped

    options = ["--training.save_every_steps=2"]
    with pytest.raises(Stopped):
        train(tiny(tmp_path / "run", *options), after_step=stop)
    state = json.loads((tmp_path / "run/checkpoints/last/trainer_state.json").read_text())
    assert state["step"] == stop_after // 2 * 2
    assert not (tmp_path / "run/metrics.json").exists()
    train(tiny(tmp_path / "run", *options, "--training.resume_from_checkpoint=last"))
    for name, weight in weights(finished[0] / "checkpoints" / "last").items():
        assert torch.equal(weight, weights(tmp_path / "run/checkpoints/last")[name]), name
    same = [
        {k: v for k, v in line.items() if k != "pairs_per_second"}
        for folder in (finished[0], tmp_path / "run")
        for line in lines(folder)
    ]
    assert same[: len(same) // 2] == same[len(same) // 2 :], "the log too has every step once"


def test_a_pretrained_tokenizer_is_settled_by_the_options_and_needs_a_padding_token(finished, tmp_path):
    tokenizer = TierProcessor.from_pretrained(finished[0]).tokenizer
    settings = {"max_length": 512, "padding": "max_length", "pad_to_multiple_of": 8, "stride": 2}
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    path = tmp_path / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    config = tiny(tmp_path, f"--tokenizer.pretrained={tmp_path / 'tokenizer'}", "--data.max_text_tokens=5")
    texts = ["No pneumothorax or effusion in either lung.", "No effusion."]
    build_processor(config, None).save_pretrained(tmp_path / "processor")
    for processor in (build_processor(config, None), TierProcessor.from_pretrained(tmp_path / "processor")):
        assert processor(text=texts)["input_ids"].shape == (2, 5)
        assert processor(text=texts[1:])["input_ids"].tolist() == [tokenizer(texts[1])["input_ids"]]
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="tokenizer.pretrained: .*tokenizer has no padding token"):
        build_processor(config, None)


def test_pixels_that_stay_integers_are_refused(tmp_path):
    config = tiny(tmp_path, "--model.image_options={do_rescale: false, do_normalize: false}")
    with pytest.raises(ValueError, match="image_options: with neither do_rescale nor do_normalize"):
        build_processor(config, load_pairs("synthetic", "train", num_images=4, image_size=32))


def test_an_image_processor_without_a_size_serves_where_none_is_needed(tmp_path):
    options = ["--model.image_options={size: null, do_resize: false, do_center_crop: false}", "--training.epochs=1"]
    train(tiny(tmp_path / "run", *options))
    with pytest.raises(ValueError, match="data.augmentation needs an image processor with a fixed size"):
        train(tiny(tmp_path / "other", *options, "--data.augmentation=vit"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_replaced_only_when_the_new_one_can_begin(finished, tmp_path, monkeypatch):
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    before = contents(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    for folder in ("run", "link"):
        for option, message in {
            f"--tokenizer.pretrained={folder}/checkpoints/best": "tokenizer.pretrained: .* is in output_dir",
            "--tokenizer.pretrained=nowhere": "connect",
            "--training.batch_size=64": "fewer than one step",
        }.items():
            with pytest.raises((ValueError, OSError), match=message):
                train(tiny(folder, "--training.overwrite=true", option))
            assert contents(tmp_path / "run") == before
        config = tiny(folder, "--training.overwrite=true")
        config.model = ModelOptions(pretrained=folder)
        with pytest.raises(ValueError, match=f"model.pretrained: {folder} is in output_dir"):
            train(config)
        assert contents(tmp_path / "run") == before
    # Killed while it was set aside, then started again
    (tmp_path / "run" / ".overwritten.tmp").mkdir()
    for name in ("checkpoints", "log.jsonl", "model.safetensors"):
        (tmp_path / "run" / name).rename(tmp_path / "run" / ".overwritten.tmp" / name)
    with pytest.raises(ValueError, match="not empty"):
        train(tiny("run"))
    with pytest.raises(ValueError, match="fewer than one step"):
        train(tiny("run", "--training.overwrite=true", "--training.batch_size=64"))
    assert contents(tmp_path / "run") == before
    # Killed between the two, then started again
    set_aside(tmp_path / "run")
    (tmp_path / "run" / "environment.json").write_text("{}")
    shutil.copy(finished[0] / "training_config.yaml", tmp_path / "run")
    with pytest.raises(ValueError, match="fewer than one step"):
        train(tiny("run", "--training.batch_size=64"))
    assert contents(tmp_path / "run") == before
    train(tiny("link", "--training.overwrite=true", "--training.epochs=1"))
    assert len(lines(tmp_path / "run")) == 4 and (tmp_path / "link").is_symlink()
    assert not (tmp_path / "run" / ".overwritten").exists()


def test_an_output_folder_is_not_overwritten_unasked(finished, tmp_path):
    with pytest.raises(ValueError, match="not empty.*resume_from_checkpoint last.*overwrite"):
        train(tiny(finished[0]))
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="no training run"):
        train(tiny(tmp_path / "precious", "--training.overwrite=true"))
    assert (tmp_path / "precious" / "thesis.txt").exists()
    with pytest.raises(ValueError, match="no complete checkpoint"):
        train(tiny(tmp_path / "new", "--training.resume_from_checkpoint=last"))
    with pytest.raises(ValueError, match="another run.*pretrained"):
        train(tiny(tmp_path / "new", f"--training.resume_from_checkpoint={finished[0]}/checkpoints/last"))
    with pytest.raises(ValueError, match="48 pairs.*batch_size 64"):
        train(tiny(tmp_path / "large", "--training.batch_size=64"))


PAPER = [
    "--freeze.text_layers=1",
    "--optimizer.name=adam",
    "--optimizer.schedule=constant",
    "--optimizer.warmup_share=0",
    "--optimizer.max_grad_norm=null",
    "--evaluation.dataset=synthetic",
    "--evaluation.options={num_images: 30, image_size: 32, seed: 9}",
    "--evaluation.keep_best=2",
    "--training.epochs=4",
]


@pytest.fixture(scope="module")
def as_the_paper(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "paper"
    AcceleratorState._reset_state(reset_partial_state=True)
    return folder, train(tiny(folder, *PAPER))


def test_the_papers_options_reach_the_run(as_the_paper, tmp_path):
    folder, _ = as_the_paper
    assert {line["lr"] for line in lines(folder) if "lr" in line} == {2e-3}
    set_seed(0)
    start = build_model(tiny(tmp_path, *PAPER), TierProcessor.from_pretrained(folder)).state_dict()
    last = weights(folder / "checkpoints" / "last")
    unchanged = {name for name in last if torch.equal(start[name], last[name])}
    assert unchanged == {name for name in last if name.startswith(("text_model.embeddings.", "text_model.encoder."))}


def test_checkpoints_are_chosen_on_another_data_set(as_the_paper):
    folder, best = as_the_paper
    evaluations = [line["validation"] for line in lines(folder) if "validation" in line]
    assert all(
        "auroc" not in metrics and {"loss", "retrieval", "synthetic"} <= set(metrics) for metrics in evaluations
    )
    assert {metrics["synthetic"]["num_images"] for metrics in evaluations} == {30}
    assert {metrics["num_images"] for metrics in evaluations} == {40}
    assert best["validation"]["synthetic"]["auroc"]["mean"] == max(
        m["synthetic"]["auroc"]["mean"] for m in evaluations
    )


@pytest.mark.slow
def test_the_best_checkpoints_are_an_ensemble(as_the_paper, tmp_path):
    folder, best = as_the_paper
    auroc = [line["validation"]["synthetic"]["auroc"]["mean"] for line in lines(folder) if "validation" in line]
    order = sorted(range(4), key=lambda i: -auroc[i])[:2]
    assert {path.name for path in (folder / "ensemble").glob("*-*")} == {f"epoch-{i + 1}" for i in order}
    assert json.loads((folder / "ensemble" / "ensemble.json").read_text()) == [f"epoch-{i + 1}" for i in order]
    for model, output in ((folder / "ensemble", "all"), *((folder / "ensemble" / f"epoch-{i + 1}", i) for i in order)):
        command = [sys.executable, "evaluate_zeroshot.py", "--model", str(model), "--num_images", "25"]
        command += ["--data.options.image_size", "32", "--seed", "9", "--output_dir", str(tmp_path / str(output))]
        process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert process.returncode == 0, process.stderr[-2000:]
    results = {name: json.loads((tmp_path / str(name) / "metrics.json").read_text()) for name in ("all", *order)}
    members = results["all"]["metrics"]["members"]
    for i in order:
        assert members[f"epoch-{i + 1}"]["auroc"] == results[i]["metrics"]["auroc"]


@pytest.mark.slow
def test_a_resumed_run_keeps_the_same_ensemble(as_the_paper, tmp_path):
    members = json.loads((as_the_paper[0] / "ensemble" / "ensemble.json").read_text())
    folder = tmp_path / "run"
    train(tiny(folder, *PAPER), after_evaluation=lambda epoch, _: epoch == 2)
    assert set(json.loads((folder / "ensemble" / "ensemble.json").read_text())) == {"epoch-1", "epoch-2"}
    for _ in range(2):  # the second time only what a kill just before the end would have left is put right
        AcceleratorState._reset_state(reset_partial_state=True)
        (folder / "ensemble" / "epoch-9.tmp").mkdir()
        train(tiny(folder, *PAPER, "--training.resume_from_checkpoint=last"))
        assert {path.name for path in (folder / "ensemble").iterdir()} == {*members, "ensemble.json"}
    for member in members:
        for name, weight in weights(as_the_paper[0] / "ensemble" / member).items():
            assert torch.equal(weight, weights(folder / "ensemble" / member)[name])


def test_what_a_checkpoint_has_settled_is_not_changed(finished):
    for option in ("optimizer.name=adam", "freeze.text_layers=1", "data.subject_share=0.5", "model.lambda_token=0.9"):
        with pytest.raises(ValueError, match=rf"{option.split('=')[0]} is not what the run"):
            train(tiny(finished[0], "--training.resume_from_checkpoint=last", f"--{option}"))


def test_an_option_that_a_checkpoint_lacks_counts_as_its_default(tmp_path):
    before, now = (tiny(tmp_path, *more).to_dict() for more in ((), ("--regulariser.local_loss=filip",)))
    old = {**before, "regulariser": {"ramp_start": 0.0, "ramp_end": 0.0}}
    assert changed_options(old, before) == []
    assert changed_options(old, now) == ["regulariser.local_loss"]


@pytest.mark.parametrize("option", ["--data.num_workers=3", "--data.options.num_proc=3", "--data.train.num_proc=3"])
def test_the_number_of_processes_does_not_make_another_run(option):
    before = load_config(ROOT / "configs" / "demo_continued.yaml", [])
    now = load_config(ROOT / "configs" / "demo_continued.yaml", [option])
    assert before.to_dict() != now.to_dict() and changed_options(before.to_dict(), now.to_dict()) == []


def test_a_run_can_be_ended_after_an_evaluation(tmp_path):
    seen = []

    def after_evaluation(epoch, metrics):
        seen.append((epoch, metrics["auroc"]["mean"]))
        return epoch == 2

    best = train(tiny(tmp_path / "run", "--training.epochs=4"), after_evaluation)
    assert [epoch for epoch, _ in seen] == [1, 2]
    assert best["validation"]["auroc"]["mean"] == max(value for _, value in seen)
    assert AutoModel.from_pretrained(tmp_path / "run") is not None


def test_a_fraction_of_the_subjects():
    pairs = load_pairs("synthetic", "train", num_images=60, image_size=32)
    subjects = set(pairs["subject_id"][:])
    part = fraction_of_subjects(pairs, 0.3, seed=4)
    assert len(set(part["subject_id"][:])) == math.ceil(0.3 * len(subjects))
    for subject in set(part["subject_id"][:]):
        assert part["subject_id"][:].count(subject) == pairs["subject_id"][:].count(subject), "a subject is whole"
    assert part["image_id"][:] == fraction_of_subjects(pairs, 0.3, seed=4)["image_id"][:]
    assert part["image_id"][:] != fraction_of_subjects(pairs, 0.3, seed=5)["image_id"][:]
    alone = pairs.remove_columns("subject_id").add_column("subject_id", [None] * len(pairs))
    assert len(fraction_of_subjects(alone, 0.25, seed=0)) == 15, "rows without a subject stand for themselves"
    with pytest.raises(ValueError, match="subject_share.*streamed"):
        fraction_of_subjects(pairs.to_iterable_dataset(), 0.5, seed=0)


def test_options_of_the_image_processor(tmp_path):
    options = ["--model.image_options={size: {shortest_edge: 40}, image_mean: [0.1, 0.2, 0.3], do_normalize: true}"]
    train(tiny(tmp_path / "run", *options, "--training.epochs=1"))
    saved = TierProcessor.from_pretrained(tmp_path / "run").image_processor
    assert list(saved.image_mean) == [0.1, 0.2, 0.3] and saved.size["shortest_edge"] == 40
    assert saved.crop_size["height"] == 32, "the others stay"
    with pytest.raises(ValueError, match=r"image_options.*'image_means'.*image_mean"):
        train(tiny(tmp_path / "wrong", "--model.image_options.image_means=[0, 0, 0]"))


def test_after_a_mistake_the_same_folder_can_be_used(tmp_path):
    with pytest.raises(ValueError, match="48 pairs.*batch_size 64"):
        train(tiny(tmp_path / "run", "--training.batch_size=64"))
    train(tiny(tmp_path / "run", "--training.epochs=1"))
    assert (tmp_path / "run" / "metrics.json").is_file()


def test_going_on_from_a_pretrained_model(finished, tmp_path):
    content = load_config(ROOT / "configs" / "demo.yaml", TINY).to_dict()
    content["model"] = {"pretrained": str(finished[0]), "lambda_token": 0.7}
    content["output_dir"] = str(tmp_path / "run")
    content["training"]["epochs"] = 1
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    train(load_config(tmp_path / "c.yaml"))
    model = TierModel.from_pretrained(tmp_path / "run")
    assert model.config.lambda_token == 0.7 and model.config.lambda_patch == 0.05
    first = next(line for line in lines(tmp_path / "run") if "loss" in line)
    last = [line for line in lines(finished[0]) if "loss" in line][-1]
    assert first["logit_scale"] == pytest.approx(last["logit_scale"], rel=0.05), "its weights were taken"


def test_going_on_from_a_clip_model(clip_model, processor, tmp_path):
    clip_model.save_pretrained(tmp_path / "clip")
    processor.save_pretrained(tmp_path / "clip")
    content = load_config(ROOT / "configs" / "demo.yaml", TINY).to_dict()
    content["model"] = {"pretrained": str(tmp_path / "clip"), "lambda_token": 0.3}
    content["output_dir"] = str(tmp_path / "run")
    content["training"]["epochs"] = 1
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    train(load_config(tmp_path / "c.yaml"))
    model = TierModel.from_pretrained(tmp_path / "run")
    assert model.config.image_pooling == "cls" and model.config.lambda_token == 0.3
    before, after = clip_model.visual_projection.weight, model.visual_projection.weight
    assert 0 < (after - before).norm() < 0.5 * before.norm(), "trained, from CLIP's weights"


def test_weight_decay_only_where_it_belongs(tmp_path):
    config = tiny(tmp_path)
    from modeling_tier import TierConfig
    from modeling_tier.training.options import tier_options

    model = TierModel(
        TierConfig(
            vision_config=config.model.vision_config,
            text_config=config.model.text_config | {"vocab_size": 50},
            **tier_options(config.model),
        )
    )
    model.text_model.encoder.layer[0].requires_grad_(False)
    decayed, rest = (group["params"] for group in parameter_groups(model, 0.1))
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, rest = {names[id(p)] for p in decayed}, {names[id(p)] for p in rest}
    assert "text_projection.weight" in decayed and any("convolution.weight" in name for name in decayed)
    assert "logit_scale" in rest and "text_model.embeddings.word_embeddings.weight" in rest
    assert not any(name.endswith("bias") or "orm" in name for name in decayed)
    assert not any("layer.0" in name and name.startswith("text_model") for name in decayed | rest)
    assert decayed | rest == {name for name, p in model.named_parameters() if p.requires_grad}


def test_ramp():
    assert [ramp(p, 0.2, 0.6) for p in (0, 0.2, 0.4, 0.6, 1)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert ramp(0, 0, 0) == 1 and ramp(0.3, 0.4, 0.4) == 0 and ramp(0.4, 0.4, 0.4) == 1


def test_the_ramp_reaches_the_loss(tmp_path):
    train(tiny(tmp_path / "run", "--training.epochs=1", "--regulariser.ramp_start=0.5", "--regulariser.ramp_end=0.5"))
    early, *_, late = [line for line in lines(tmp_path / "run") if "loss" in line]
    assert early["entropy_scale"] == 0 and early["loss"] == early["contrastive_loss"]
    assert "token_entropy" not in early, "and nothing of it is computed before"
    assert late["entropy_scale"] == 1 and late["loss"] > late["contrastive_loss"]


def test_a_frozen_or_large_logit_scale_stays(finished, tmp_path):
    model = TierModel.from_pretrained(finished[0])
    model.logit_scale.data.fill_(4.7654)  # as a published SigLIP
    model.save_pretrained(tmp_path / "large")
    TierProcessor.from_pretrained(finished[0]).save_pretrained(tmp_path / "large")
    content = load_config(ROOT / "configs" / "demo.yaml", TINY).to_dict()
    content |= {"model": {"pretrained": str(tmp_path / "large")}, "freeze": {"patterns": ["logit_scale"]}}
    content["training"]["epochs"] = 1
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content | {"output_dir": str(tmp_path / "run")}))
    train(load_config(tmp_path / "c.yaml"))
    assert weights(tmp_path / "run")["logit_scale"].item() == pytest.approx(4.7654)


def test_logit_scale_is_clamped(tmp_path):
    train(tiny(tmp_path / "run", "--training.epochs=1", "--model.logit_scale_init_value=9"))
    scales = [line["logit_scale"] for line in lines(tmp_path / "run") if "loss" in line]
    assert len(scales) == 3 and all(90 < scale <= 100.001 for scale in scales), "it began at exp(9) = 8103"


def test_a_collapse_is_reported(tmp_path, monkeypatch, capsys):
    for_all = {"negative_share": 0.99, "peak": -0.3}
    monkeypatch.setattr("modeling_tier.training.loop.map_shape", lambda *args: for_all)
    train(tiny(tmp_path / "run", "--training.epochs=1"))
    said = capsys.readouterr().out
    assert said.count("WARNING") == 1 and "99%" in said and "lambda_patch" in said and "ramp_start" in said
    train(tiny(tmp_path / "without", "--training.epochs=1", "--model.lambda_patch=0"))
    assert "WARNING" not in capsys.readouterr().out


def test_gradient_accumulation_and_bf16(tmp_path):
    train(
        tiny(
            tmp_path / "run",
            "--training.gradient_accumulation_steps=3",
            "--training.mixed_precision=bf16",
            "--training.epochs=1",
        )
    )
    steps = [line["step"] for line in lines(tmp_path / "run") if "loss" in line]
    assert steps == [2], "48 pairs make two steps of 3 x 8"


def test_fp16_needs_a_gpu(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match="bf16"):
        train(tiny(tmp_path / "run", "--training.mixed_precision=fp16"))


def test_a_tracker_gets_the_log(tmp_path):
    pytest.importorskip("tensorboard")
    train(tiny(tmp_path / "run", "--training.epochs=1", "--training.trackers=[tensorboard]"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tier"))
    events.Reload()
    assert [event.step for event in events.Scalars("contrastive_loss")] == [2, 4, 6]
    assert events.Scalars("validation.auroc.mean")


def test_tokenizer_of_the_reports():
    texts = load_pairs("synthetic", "train", num_images=200, image_size=32)["text"][:]
    tokenizer = train_tokenizer(texts, 2000)
    ids = tokenizer("Left pleural EFFUSION.").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "left", "pleural", "effusion", ".", "[SEP]"]
    assert train_tokenizer(texts, 2000).get_vocab() == tokenizer.get_vocab()
    short = train_tokenizer(texts, 100)
    assert len(short) == 100 and short.decode(short("unremarkable").input_ids[1:-1]) == "unremarkable"
    with pytest.raises(ValueError, match=r"tokenizer\.vocab_size"):
        train_tokenizer(texts, 20)
    assert tokenizer.unk_token_id not in {i for text in texts for i in tokenizer(text).input_ids}


class OneOf:
    """What `Batches` needs of an Accelerator."""

    def __init__(self, num_processes, process_index):
        self.num_processes, self.process_index, self.device = num_processes, process_index, torch.device("cpu")


def test_processes_split_a_batch_without_overlap(processor, tmp_path):
    pairs = load_pairs("synthetic", "train", num_images=50, image_size=32)
    alone = Batches(pairs, processor, tiny(tmp_path, "--training.batch_size=8"), OneOf(1, 0))
    together = [Batches(pairs, processor, tiny(tmp_path, "--training.batch_size=4"), OneOf(2, i)) for i in range(2)]
    for epoch in range(2):
        parts = zip(*(batches.of_epoch(epoch) for batches in together))
        for whole, (first, second) in zip(alone.of_epoch(epoch), parts, strict=True):
            assert torch.equal(whole["pixel_values"], torch.cat([first["pixel_values"], second["pixel_values"]]))


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--freeze.text_layers=1", "--freeze.patterns=[logit_scale]", "--optimizer.name=adam"],
    ],
    ids=["all trained", "parts frozen"],
)
@pytest.mark.slow
def test_two_processes_are_one(tmp_path, options):
    """The same global batch on one and on two processes: the same losses, gradients and weights; no dropout here."""
    common = [*TINY, "--model.text_config.hidden_dropout_prob=0", "--training.epochs=1", "--training.log_every=1"]
    # Batch norm takes the statistics of a process's own pairs, so it must not take part in this comparison.
    common += ["--model.vision_config={model_type: convnext, hidden_sizes: [8, 16], depths: [1, 1], num_stages: 2}"]
    common += ["--model.lambda_token=0.2", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for number, size in ((1, 16), (2, 8)):
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(number)]
        launch += ["--multi_gpu"] if number > 1 else ["--cpu"]  # on CPUs it starts several processes by gloo
        launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        run = [f"--training.batch_size={size}", f"--output_dir={tmp_path / str(number)}"]
        command = [*launch, "train.py", "--config", "configs/demo.yaml", *common, *run]
        process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
        assert process.returncode == 0, process.stderr[-3000:]
    assert json.loads((tmp_path / "2" / "environment.json").read_text())["num_processes"] == 2
    first, second = ([line for line in lines(tmp_path / n) if "loss" in line] for n in "12")
    assert len(first) == len(second) == 3
    for one, two in zip(first, second):
        for name in ("loss", "contrastive_loss", "token_entropy", "patch_entropy"):
            assert one[name] == pytest.approx(two[name], abs=1e-4)
        # After clipping the gradients, their norm and the learning rate make the step.
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-3)
        assert one["lr"] == two["lr"]
    for name, weight in weights(tmp_path / "1" / "checkpoints" / "last").items():
        torch.testing.assert_close(weight, weights(tmp_path / "2" / "checkpoints" / "last")[name], rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    "options",
    [["chunk_size=3"], ["gradient_checkpointing=true"], pytest.param(["compile=true"], marks=pytest.mark.slow)],
    ids=lambda options: options[0].partition("=")[0],
)
def test_a_cheaper_step_is_the_same_step(tmp_path, monkeypatch, options):
    """In less memory or less time; without dropout, and BatchNorm, which sees chunks."""
    # Of the compiler everything but its last stage, which takes a minute.
    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile_(module, backend="aot_eager"))
    common = ["--model.text_config.hidden_dropout_prob=0", "--model.image_pooling=mean", "--training.epochs=1"]
    common += ["--model.vision_config={model_type: vit, hidden_size: 32, num_hidden_layers: 2, patch_size: 8}"]
    common += ["--model.vision_config.num_attention_heads=2", "--model.vision_config.intermediate_size=37"]
    common += ["--model.vision_config.image_size=32", "--training.log_every=1"]
    train(tiny(tmp_path / "plain", *common))
    train(tiny(tmp_path / "cheaper", *common, *(f"--training.{option}" for option in options)))
    plain, cheaper = ([line for line in lines(tmp_path / n) if "loss" in line] for n in ("plain", "cheaper"))
    assert len(plain) == 6
    for one, other in zip(plain, cheaper, strict=True):
        for name in ("loss", "contrastive_loss", "token_entropy", "patch_entropy", "grad_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-4), name
    for name, weight in weights(tmp_path / "plain").items():
        torch.testing.assert_close(weight, weights(tmp_path / "cheaper")[name], rtol=0, atol=3e-4, msg=name)
