# Licensed under the Apache License, Version 2.0.
"""The shipped recipes for MIMIC-CXR as they are, but for sizes, on a small tree and small models."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from test_training import ROOT

from modeling_tier import TierModel, TierProcessor
from modeling_tier.data.columns import CHEXPERT_LABELS
from modeling_tier.training import load_config, train
from tests.data.trees import drawing, encoded, study, write_table, write_tree


pytest_plugins = ["tests.convert.fixtures"]

FINDINGS = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")


@pytest.fixture(autouse=True)
def own_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def mimic(tmp_path):
    rows = []
    for i in range(40):
        finding = FINDINGS[i % 5]
        report = f"FINAL REPORT\n IMPRESSION: {'No' if i % 2 else 'There is'} {finding.lower()}.\n"
        split = "validate" if i % 5 == 0 else "train"
        labels = {finding: "0.0" if i % 2 else "1.0"}
        rows.append(study(i, report=report, labels=labels, split=split, picture=drawing(60, 50, seed=i)))
    return write_tree(tmp_path / "mimic", rows)


@pytest.fixture
def chexpert(tmp_path):
    folder = tmp_path / "CheXpert-v1.0"
    rows = []
    for i in range(6):
        path = folder / f"valid/patient6454{i}/study1/view1_frontal.jpg"
        path.parent.mkdir(parents=True)
        path.write_bytes(encoded(drawing(50, 60, seed=100 + i)))
        values = [float((i + j) % 2) for j in range(14)]
        rows.append([f"CheXpert-v1.0/{path.relative_to(folder)}", "Male", "60", "Frontal", "AP", *values])
    columns = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_LABELS)
    write_table(folder / "valid.csv", columns, rows)
    return folder


@pytest.mark.slow
def test_the_papers_recipe(biovil_files, mimic, chexpert, tmp_path):
    places = biovil_files[2]
    command = [sys.executable, "-m", "modeling_tier.conversion", "biovil", str(tmp_path / "biovil")]
    command += [word for name, place in places.items() for word in (f"--{name}", place)]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 0, process.stderr[-2000:]
    start = load_file(tmp_path / "biovil" / "model.safetensors")

    options = ["--model.pretrained", str(tmp_path / "biovil"), "--output_dir", str(tmp_path / "run")]
    options += ["--data.options.data_dir", str(mimic), "--evaluation.options.data_dir", str(chexpert)]
    options += ["--freeze.text_layers", "1", "--data.max_text_tokens", "24", "--training.batch_size", "8"]
    options += ["--training.epochs", "4", "--evaluation.keep_best", "3"]
    options += ["--data.num_workers", "0", "--training.log_every", "1", "--training.progress", "false"]
    config = load_config(ROOT / "configs" / "mimic_cxr_paper.yaml", options)
    best = train(config)

    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {line["lr"] for line in log if "lr" in line} == {1e-4}, "constant"
    assert log[-1]["step"] == 4 * (36 // 8), "90% of 40 subjects, in batches of 8"
    evaluations = [line["validation"] for line in log if "validation" in line]
    assert [metrics["num_images"] for metrics in evaluations] == [4] * 4
    assert all(set(FINDINGS) < set(metrics["chexpert"]["auroc"]) for metrics in evaluations)
    auroc = [metrics["chexpert"]["auroc"]["mean"] for metrics in evaluations]
    assert best["validation"]["chexpert"]["auroc"]["mean"] == max(auroc)
    kept = sorted(range(4), key=lambda epoch: -auroc[epoch])[:3]
    assert {path.name for path in (tmp_path / "run/ensemble").glob("*-*")} == {f"epoch-{epoch + 1}" for epoch in kept}

    trained = load_file(tmp_path / "run" / "checkpoints" / "last" / "model.safetensors")
    changed = {name for name, weight in trained.items() if not torch.equal(weight, start[name])}
    frozen = {name for name in start if name.startswith(("text_model.embeddings.", "text_model.encoder.layer.0."))}
    assert frozen and not changed & frozen and {"logit_scale", "text_projection.0.weight"} <= changed
    assert any("vision_model" in name and "running_var" in name for name in changed)
    image_processor = TierProcessor.from_pretrained(tmp_path / "run").image_processor
    pixels = image_processor(np.full((300, 400, 3), 255, np.uint8), return_tensors="pt")["pixel_values"]
    white = (1 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(pixels[0, :, 100, 100], white, rtol=1e-5)
    assert pixels.shape[2:] == (224, 224)

    command = [sys.executable, "evaluate_zeroshot.py", "--model", str(tmp_path / "run/ensemble")]
    command += ["--dataset", "chexpert", "--split", "validation", "--data_dir", str(chexpert)]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 0, process.stderr[-2000:]
    metrics = json.loads((tmp_path / "run/ensemble/evaluation/metrics.json").read_text())["metrics"]
    members = {name: member["auroc"]["mean"] for name, member in metrics["members"].items()}
    assert members == {f"epoch-{epoch + 1}": pytest.approx(auroc[epoch]) for epoch in kept}


def test_the_vit_recipe(clip_model, processor, mimic, tmp_path):
    clip_model.save_pretrained(tmp_path / "clip")
    processor.save_pretrained(tmp_path / "clip")
    options = ["--model.pretrained", str(tmp_path / "clip"), "--output_dir", str(tmp_path / "run")]
    options += ["--data.options.data_dir", str(mimic), "--data.max_text_tokens", "24", "--training.batch_size", "8"]
    options += ["--training.epochs", "2", "--data.num_workers", "0", "--training.log_every", "1"]
    train(load_config(ROOT / "configs" / "mimic_cxr_vit.yaml", [*options, "--training.progress", "false"]))
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    rates = [line["lr"] for line in log if "lr" in line]
    assert len(rates) == 8 and max(rates) <= 5e-5 and rates[-1] < 0.1 * max(rates), "32 studies; a cosine"
    assert TierModel.from_pretrained(tmp_path / "run").config.image_pooling == "cls"
