# Licensed under the Apache License, Version 2.0.
"""Several data sets in one run: what is loaded, how often each is drawn, and that no patient is on both sides."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from modeling_tier.data import load_pairs
from modeling_tier.data.synthetic import write_chexpert_plus_tree, write_openi_tree, write_rexgradient_tree
from modeling_tier.hub.known_fields import Selection, training_fields
from modeling_tier.hub.origin import origin_of
from modeling_tier.training.configuration import load_config
from modeling_tier.training.mixture import Weighted, check_patients, load_sets


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trees(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trees")
    write_openi_tree(folder / "openi", 40, 32), write_rexgradient_tree(folder / "rexgradient", 30, 32)
    write_chexpert_plus_tree(folder / "chexpert_plus", 20, 32)
    return folder


def sets_of(trees: Path) -> dict:
    return {
        "openi": {"weight": 2, "split_by": "subject", "section": "both", "data_dir": str(trees / "openi")},
        "rexgradient": {"weight": 0.5, "section": "both", "data_dir": str(trees / "rexgradient")},
    }


def configured(sets: dict, *options: str):
    values = ["--data.options", "{}", "--data.train", "{}", "--data.validation", "{}"]
    values += ["--evaluation.best_metric", "contrastive_loss", "--data.sets", json.dumps(sets)]
    return load_config("configs/demo.yaml", [*values, *options])


def test_pairs_of_several_sets(trees):
    train = load_sets(configured(sets_of(trees)).data, "train")
    assert set(train.column_names) == {*("image", "text", "subject_id", "study_id", "image_id", "view", "set")}
    alone = {
        name: load_pairs(name, "train", **{k: v for k, v in options.items() if k != "weight"})
        for name, options in sets_of(trees).items()
    }
    assert Counter(train["set"]) == {name: len(pairs) for name, pairs in alone.items()}
    row, first = train[len(alone["openi"])], alone["rexgradient"][0]
    assert row["subject_id"] == f"rexgradient:{first['subject_id']}" and row["text"] == first["text"]
    assert (np.asarray(row["image"]) == np.asarray(first["image"])).all()


def test_each_set_is_drawn_by_its_weight_and_in_the_end_evenly():
    names = ["a"] * 10 + ["b"] * 7
    weighted = Weighted(names, {"a": 0.4, "b": 2.5})
    assert len(weighted) == 4 + 18
    counts = Counter()
    for epoch in range(300):
        order = weighted.drawn(np.random.default_rng(epoch))
        assert len(order) == 22 and len(set(order[order < 10])) == 4, "none twice before all were once"
        assert set(Counter(order[order >= 10]).values()) <= {2, 3}
        counts.update(order.tolist())
    assert all(abs(counts[i] / 300 - 0.4) < 0.12 for i in range(10))
    assert all(abs(counts[i] / 300 - 18 / 7) < 0.12 for i in range(10, 17))
    with pytest.raises(ValueError, match=r"data\.sets\.a gives no pairs"):
        Weighted(names, {"a": 0.01, "b": 1})


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"nothing": {}}, "data.sets: Unknown data set 'nothing'"),
        ({"openi": {"parts": 1}}, "data.sets: Unknown option 'parts' of the data set 'openi'"),
        ({"openi": 3}, r"data\.sets\.openi must be the options of the data set openi; got 3"),
        ({"openi": {"weight": 0}}, r"data\.sets\.openi\.weight must be a number above 0"),
        ({"openi": {"weight": True}}, r"data\.sets\.openi\.weight must be a number above 0"),
        ({"pairs": {"streaming": True}}, "a stream cannot be mixed"),
    ],
)
def test_impossible_sets_are_named(sets, message):
    with pytest.raises(ValueError, match=message):
        configured(sets)


def test_options_of_one_set_are_in_the_way_of_several(trees):
    with pytest.raises(ValueError, match=r"delete data\.options, data\.train and data\.validation"):
        configured(sets_of(trees), "--data.options.section", "both")


def test_a_patient_on_both_sides_is_named(trees):
    name, folder = "chexpert_plus", {"data_dir": trees / "chexpert_plus"}
    train, validation = (load_pairs(name, split, **folder) for split in ("train", "validation"))
    check_patients(train, {"evaluation.dataset": ("chexpert", validation)}, name)
    with pytest.raises(ValueError, match="subjects are in both training and evaluation.dataset, such as chexpert:pat"):
        check_patients(train, {"evaluation.dataset": ("chexlocalize", train)}, name)
    mixed = load_sets(configured({name: {"data_dir": str(trees / name)}}).data, "train")
    with pytest.raises(ValueError, match="such as chexpert:patient"):
        check_patients(mixed, {"evaluation.dataset": ("chexpert", train)}, "")
    check_patients(train, {"evaluation.dataset": ("padchest", train)}, name)  # whose ids are of other patients
    check_patients(train, {"validation": (None, train)}, "pairs")


@pytest.mark.slow
def test_a_run_on_two_sets(trees, tmp_path):
    options = ["--training.epochs=1", "--training.batch_size=16", "--training.progress=false", "--data.options={}"]
    options += ["--data.train={}", "--data.validation={}", "--evaluation.best_metric=contrastive_loss"]
    options += [f"--data.sets={json.dumps(sets_of(trees))}", f"--output_dir={tmp_path / 'run'}"]
    command = [sys.executable, "train.py", "--config", "configs/demo.yaml", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    train = Counter(load_sets(configured(sets_of(trees)).data, "train")["set"])
    openi, other = train["openi"], train["rexgradient"]
    counts = f"openi {openi} ({2 * openi} an epoch), rexgradient {other} ({round(other / 2)} an epoch)"
    assert f"Training pairs: {counts}." in done.stdout
    first = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[0])
    assert first["step"] == 0 and set(first["sets"]) == {"openi", "rexgradient"}
    config = yaml.safe_load((tmp_path / "run/training_config.yaml").read_text())
    assert origin_of(config, []).datasets == ("openi", "rexgradient")


def test_a_published_configuration_has_no_places(trees):
    content = configured(sets_of(trees)).to_dict()
    kept = training_fields({"data": content["data"]}, Selection("training_config.yaml"), {}, None)
    assert kept["data"]["sets"]["openi"] == {"weight": 2, "split_by": "subject", "section": "both"}
    assert str(trees) not in json.dumps(kept)
