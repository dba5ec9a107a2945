# Licensed under the Apache License, Version 2.0.
"""Texts made from labels, for data sets without reports."""

import csv
import json

import pytest
from datasets import Dataset
from PIL import Image

from modeling_tier.data.columns import CHEXPERT_LABELS, make_pairs, pair_features
from modeling_tier.evaluation import load_prompts
from modeling_tier.training import load_config, train
from modeling_tier.training.mixture import load_sets
from modeling_tier.training.template_reports import with_template_reports


def labelled(labels: list[dict], texts: list[str | None] | None = None) -> Dataset:
    columns = {
        "image": [Image.new("L", (8, 8), i) for i in range(len(labels))],
        "image_id": [f"image {i}" for i in range(len(labels))],
        "labels": labels,
        "text": texts or [None] * len(labels),
    }
    return make_pairs(columns, pair_features(labels[0], ids="string"))


def test_positive_labels_become_sentences_of_the_data_sets_prompts():
    labels = {"Edema": 1, "Cardiomegaly": 1, "Consolidation": 0, "Atelectasis": -1, "No Finding": 0, "Fracture": 1}
    prompts = load_prompts("chexpert")
    texts = with_template_reports(labelled([labels] * 60), "chexpert")["text"][:]
    assert all("There is fracture." in text for text in texts)
    for finding in ("Edema", "Cardiomegaly"):
        used = [[sentence for sentence in prompts[finding]["positive"] if sentence in text] for text in texts]
        assert all(used), finding
        assert {sentence for found in used for sentence in found} == set(prompts[finding]["positive"])
    unsaid = [*prompts["Consolidation"]["positive"], *prompts["Atelectasis"]["positive"], "No consolidation."]
    assert not any(sentence in text for sentence in unsaid for text in texts)
    assert len({text.index("There is fracture.") == 0 for text in texts}) == 2  # no fixed order
    assert texts == with_template_reports(labelled([labels] * 60), "chexpert")["text"][:]


def test_without_a_positive_label():
    nothing = {"Edema": None, "Pneumothorax": 0, "No Finding": 1}
    denied = {"Edema": 0, "Pneumothorax": 0, "No Finding": None}
    unknown = {"Edema": -1, "Pneumothorax": None, "No Finding": 0}
    with pytest.warns(UserWarning, match="1 of 4 images of chexpert have neither a text nor a label"):
        pairs = with_template_reports(
            labelled([nothing, denied, unknown, unknown], [None, None, None, "As dictated."]), "chexpert"
        )
    clear = ("No acute cardiopulmonary process.", "No acute cardiopulmonary abnormality.", "The lungs are clear.")
    assert pairs["text"][0] in clear
    assert sorted(pairs["text"][1].split(". ")) in (["No edema", "No pneumothorax."], ["No edema.", "No pneumothorax"])
    assert pairs["text"][2] == "As dictated." and pairs["image_id"][2] == "image 3"
    assert pairs[2]["image"].getpixel((0, 0)) == 3  # the picture of its own row
    seven = {f"Finding {i}": 0 for i in range(7)}
    text = with_template_reports(labelled([seven]), "a set without prompts")["text"][0]
    assert text.count("No finding ") == 3


def test_sentences_are_those_of_the_kind_of_drawings():
    pairs = labelled([{"Malpositioned Tube": 1}, {"Malpositioned Tube": 0}])
    low, not_low = with_template_reports(pairs, "synthetic", {"drawings": "fine"})["text"]
    prompts = load_prompts("synthetic_fine")["Malpositioned Tube"]
    assert low in prompts["positive"] and not_low in prompts["negative"]
    assert low != "There is malpositioned tube."


def test_what_cannot_be_made():
    with pytest.raises(ValueError, match="from labels, and pairs has none"):
        with_template_reports(labelled([{"Edema": 1}]).remove_columns("labels"), "pairs")
    with pytest.raises(ValueError, match="no image of chexpert has a label of 1 or 0"):
        with_template_reports(labelled([{"Edema": None}]), "chexpert")
    with pytest.raises(ValueError, match="texts of a stream"):
        with_template_reports(labelled([{"Edema": 1}]).to_iterable_dataset(), "chexpert")


@pytest.fixture
def chexpert(tmp_path):
    """Two splits of CheXpert-v1.0-small, 12 patients each."""
    root = tmp_path / "CheXpert-v1.0-small"
    for split, first in (("train", 100), ("valid", 200)):
        rows = []
        for i in range(first, first + 12):
            name = f"{split}/patient{i:05}/study1/view1_frontal.jpg"
            (root / name).parent.mkdir(parents=True)
            Image.linear_gradient("L").resize((40, 40)).save(root / name)
            labels = {label: "" for label in CHEXPERT_LABELS}
            labels |= {"No Finding": "1.0" if i % 3 == 0 else "", "Edema": "1.0" if i % 3 == 1 else "0.0"}
            rows.append([f"CheXpert-v1.0-small/{name}", "Male", "60", "Frontal", "AP", *labels.values()])
        with open(root / f"{split}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_LABELS])
            writer.writerows(rows)
    return root


def test_training_on_labels_alone(chexpert, tmp_path):
    values = ["--data.template_reports=true", "--data.train={}", "--data.validation={}", "--training.progress=false"]
    values += [f"--output_dir={tmp_path / 'run'}", "--training.epochs=1", "--training.batch_size=4"]
    values += ["--evaluation.best_metric=contrastive_loss", "--model.image_size=32"]
    own = ["--data.name=chexpert", f"--data.options={{data_dir: {chexpert}}}"]
    train(load_config("configs/demo.yaml", [*values, *own]))
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert any("contrastive_loss" in line for line in lines)
    sets = {"chexpert": {"data_dir": str(chexpert)}}
    mixed = load_config("configs/demo.yaml", [*values, "--data.options={}", f"--data.sets={json.dumps(sets)}"])
    texts = load_sets(mixed.data, "train")["text"][:]
    assert len(texts) == 12 and texts.count("No edema.") == 4  # the rest has edema or no finding
