# Licensed under the Apache License, Version 2.0.
"""Several data sets in one table, beside published numbers."""

import json
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from conftest import tier_config

import evaluate_zeroshot
from modeling_tier import TierModel
from modeling_tier.evaluation.suite import read_suite, suite_table
from tests.data.small_sets import chestxdet10, chestxray14


ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(processor, tmp_path, monkeypatch):
    """evaluate_zeroshot.py --suite on two models of random weights; gives suite.md."""
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        model = TierModel(tier_config(text="bert", vision="resnet", image_pooling="mean"))
        model.save_pretrained(tmp_path / name), processor.save_pretrained(tmp_path / name)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # the command changes it

    def run(suite, *options):
        (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite) if isinstance(suite, dict) else suite)
        models = ["--model", tmp_path / "a", "--model", tmp_path / "b"]
        command = ["evaluate_zeroshot.py", "--suite", tmp_path / "suite.yaml", *models, "--resamples", "20", *options]
        monkeypatch.setattr(
            sys, "argv", list(map(str, [*command, "--examples", "0", "--output_dir", tmp_path / "out"]))
        )
        evaluate_zeroshot.main()
        return (tmp_path / "out/suite.md").read_text("utf-8")

    return run


@pytest.mark.filterwarnings("ignore")
def test_a_suite(run, tmp_path):
    (tmp_path / "nih").mkdir(), (tmp_path / "det").mkdir()
    chestxray14(tmp_path / "nih"), chestxdet10(tmp_path / "det")
    sets = {
        "nih": {"dataset": "chestxray14", "data_dir": str(tmp_path / "nih")},
        "chestxdet10": {"data_dir": str(tmp_path / "det")},
        "chexpert": {"data_dir": "/nowhere/CheXpert", "by": "study"},
    }
    table = run({"protocol": "carzero", "sets": sets})
    files = {name: tmp_path / "out" / name / "metrics.json" for name in ("nih", "chestxdet10")}
    numbers = {name: json.loads(path.read_text()) for name, path in files.items()}
    assert numbers["nih"]["protocol"]["name"] == "carzero"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    # Every image has the same labels of ChestX-ray14, so that no AUROC is defined there.
    assert rows[0] == ["", "chestxdet10"] and rows[2][0] == "a" and rows[3][0] == "b"
    value = numbers["chestxdet10"]["metrics"]["auroc"]["mean"]
    assert rows[2][1].startswith(f"{value:.3f} (") and rows[2][1].endswith("2 findings, 20 images")
    other = numbers["chestxdet10"]["compared"]["b"]
    p = other["difference"]["classification"]["image"]["mean"]["auroc"]["p_bootstrap"]
    assert rows[3][1].startswith(f"{other['metrics']['auroc']['mean']:.3f}") and rows[3][1].endswith(f"p = {p:.3g}")
    assert ["CARZero (published)", "[0.796, 10 findings, 542 images]"] in rows, "of another number of findings"
    assert "## Pointing game" in table and "RadZero, arXiv 2504.07416" in table
    assert "chexpert was skipped: there is no /nowhere/CheXpert." in table
    assert "published)" not in run({"protocol": "tier", "sets": {"chestxdet10": sets["chestxdet10"]}})


def test_a_published_number_of_the_same_task_has_no_brackets():
    auroc = {f"finding {i}": 0.8 for i in range(14)} | {"mean": 0.8}
    mean = {"auroc": {"value": 0.8, "low": 0.79, "high": 0.81}}
    metrics = {"num_images": 22433, "auroc": auroc, "classification": {"image": {"mean": mean}}}
    result = {"name": "ours", "compared": {}, "metrics": metrics, "protocol": {"name": "carzero"}}
    table = suite_table({"chestxray14": result})
    assert "| ours | 0.800 (0.790 to 0.810), 14 findings, 22,433 images |" in table
    assert "| CARZero (published) | 0.811, 14 findings, 22,433 images |" in table
    metrics["num_images"] = 25596
    assert "| CARZero (published) | [0.811, 14 findings, 22,433 images] |" in suite_table({"chestxray14": result})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sets: {}", "must have the keys 'sets'"),
        ("[1]", "must have the keys 'sets'"),
        ("sets: {chexpert: {}}\nmodels: [a]", "must have the keys 'sets'"),
        ("sets: {chexprt: {}}", "chexprt is no data set; known are"),
        ("sets: {chexpert: 3}", "chexpert must hold the options"),
        ("sets: {../x: {dataset: chexpert}}", "the name of a set is that of its folder"),
        ("protocol: chexnet\nsets: {chexpert: {}}", "protocol must be one of"),
        ("sets: {chexpert: {data_dir: /nowhere}}", "none of its data sets is there"),
        ("sets: {chestxray14: {data_dir: user/name, view: PA}}", "chestxray14: .*Unknown option 'view'"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_a_bad_suite_is_named(run, content, message):
    with pytest.raises(SystemExit, match=message):
        run(content)


def test_the_suite_that_comes_along_is_one():
    protocol, sets = read_suite(ROOT / "configs/suite.yaml")
    assert protocol == "carzero" and len(sets) == 8
