# Licensed under the Apache License, Version 2.0.
"""Training sets with reports, each on a tree of its layout with the oddities that are known of it."""

import csv
import json
import sys

import numpy as np
import pytest

from modeling_tier.data import load_pairs
from modeling_tier.data.__main__ import main
from modeling_tier.data.columns import CHEXPERT_LABELS
from modeling_tier.data.rejected import collect_rejected
from modeling_tier.data.synthetic import write_chexpert_plus_tree, write_rexgradient_tree
from modeling_tier.data.synthetic.pairs import draw_studies


pytestmark = pytest.mark.filterwarnings("ignore:.*rows skipped")


@pytest.fixture
def plus(tmp_path):
    write_chexpert_plus_tree(tmp_path / "plus", 40, 32)
    return tmp_path / "plus"


@pytest.fixture
def gradient(tmp_path):
    write_rexgradient_tree(tmp_path / "gradient", 40, 32)
    return tmp_path / "gradient"


def rewrite_csv(path, change) -> None:
    """Change the rows of a table, each a mapping."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    change(rows)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader(), table.writerows(rows)


def rewrite_json(path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# CheXpert Plus


def test_chexpert_plus(plus):
    pairs = load_pairs("chexpert_plus", "train", data_dir=plus, section="both")
    drawn = list(draw_studies("train", 36, 32, 0))
    assert [row["text"] for row in pairs] == [f"{study.report.findings} {study.report.impression}" for study in drawn]
    assert (np.asarray(pairs[3]["image"]) == drawn[3].pixels).all(), "of the .png file of a path that ends in .jpg"
    assert pairs[0]["image_id"].endswith("view1_frontal.jpg") and pairs[0]["view"] in ("AP", "PA")
    assert pairs[0]["subject_id"] == f"patient{drawn[0].subject_id}"
    assert list(pairs.features["labels"]) == list(CHEXPERT_LABELS)
    for row, study in zip(pairs, drawn):
        named = {finding.name for finding in study.findings} & set(CHEXPERT_LABELS)
        assert {name for name, value in row["labels"].items() if value == 1} >= named
    assert len(load_pairs("chexpert_plus", "validation", data_dir=plus)) == 4
    with pytest.raises(ValueError, match=r"no split 'test'; use one of \['train', 'validation'\]"):
        load_pairs("chexpert_plus", "test", data_dir=plus)


def test_chexpert_plus_with_bad_rows(plus):
    def change(rows):
        rows[0] |= {"section_findings": "", "section_impression": "nan"}
        rows[1] |= {"frontal_lateral": "Lateral", "ap_pa": ""}
        rows[2]["path_to_image"] = "train/view1_frontal.jpg"
        rows.append(dict(rows[3]))

    rewrite_csv(plus / "df_chexpert_plus_240401.csv", change)
    next((plus / "PNG/train").rglob("*.png")).rename(plus / "PNG/lost.png")
    labels = (plus / "chexbert_labels/report_fixed.json").read_text().splitlines()
    (plus / "chexbert_labels/report_fixed.json").write_text("\n".join(["{", '{"path_to_image": 3}', *labels]))
    with collect_rejected() as rejected:
        pairs = load_pairs("chexpert_plus", "train", data_dir=plus)
    reasons = " ".join(row.reason for row in rejected)
    assert len(pairs) == 33 or len(pairs) == 34, "two of the changes may meet in one row"
    for words in ("no impression", "must be like train/patient42142", "an image twice", "file is missing", "KeyError"):
        assert words in reasons
    assert "LATERAL" in pairs["view"]
    assert "LATERAL" not in load_pairs("chexpert_plus", "train", data_dir=plus, views="frontal")["view"]
    (plus / "chexbert_labels/report_fixed.json").unlink()
    assert "labels" not in load_pairs("chexpert_plus", "train", data_dir=plus).features


def test_patients_of_chexpert_plus_are_in_one_part(plus):
    rewrite_csv(plus / "df_chexpert_plus_240401.csv", lambda rows: rows[0].update(split="valid"))
    table = plus / "df_chexpert_plus_240401.csv"
    rewrite_csv(table, lambda rows: rows.append(rows[0] | {"split": "train"}))
    with pytest.raises(ValueError, match="1 subjects are in both train and validation, such as patient"):
        load_pairs("chexpert_plus", "train", data_dir=plus)


# ReXGradient-160K


def test_rexgradient(gradient):
    parts = {name: load_pairs("rexgradient", name, data_dir=gradient) for name in ("train", "validation", "test")}
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 38, "validation": 4, "test": 4}
    drawn = list(draw_studies("train", 32, 32, 0))
    assert parts["train"][0]["text"] == drawn[0].report.impression
    assert parts["train"][0]["subject_id"] == f"GRDN{drawn[0].subject_id:012d}"
    fifth = [row for row in parts["train"] if row["study_id"] == parts["train"][4]["study_id"]]
    assert len(fifth) == 2 and fifth[0]["text"] == fifth[1]["text"] and fifth[0]["image_id"] != fifth[1]["image_id"]
    assert (np.asarray(fifth[0]["image"]) == drawn[4].pixels).all()


def test_rexgradient_with_its_oddities(gradient):
    path = gradient / "metadata/train_metadata_view_position.json"
    reports = {}

    def change(content):
        names = list(content)
        views = ["ANTERO_POSTERIOR", "LATERAL", "UNKNOWN", None, "LL"]
        for name, view in zip(names, views):
            content[name]["ImageViewPosition"] = [view] * len(content[name]["ImagePath"])
        content[names[5]]["ImageViewPosition"] = []
        content[names[6]] = "nothing"
        for name, about in content.items():
            if isinstance(about, dict):
                reports[name] = (about.pop("Findings"), about.pop("Impression"))
                del about["PatientID"]

    rewrite_json(path, change)
    with (gradient / "metadata/train_metadata.csv").open("w", newline="") as file:
        rows = [(name, *texts) for name, texts in reports.items()]
        csv.writer(file).writerows([("id", "Findings", "Impression"), *rows])
    with collect_rejected() as rejected:
        pairs = load_pairs("rexgradient", "train", data_dir=gradient)
    assert len(rejected) == 2 and "ImageViewPosition must be a list of as many views" in rejected[0].reason
    assert pairs[0]["view"] == "ANTERO_POSTERIOR" and pairs[3]["view"] == "" and len(pairs) == 36
    assert pairs[0]["text"] == next(iter(reports.values()))[1], "from the table"
    assert pairs[0]["subject_id"].startswith("GRDN"), "the folder, where no patient is named"
    frontal = load_pairs("rexgradient", "train", data_dir=gradient, views="frontal")
    assert set(frontal["view"]) <= {"ANTERO_POSTERIOR", "AP", "PA"}


def test_rexgradient_says_what_is_wrong(gradient, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no train_metadata_view_position\.json in .*empty, nor in"):
        load_pairs("rexgradient", "train", data_dir=tmp_path / "empty")
    train = json.loads((gradient / "metadata/train_metadata_view_position.json").read_text())
    name, about = next(iter(train.items()))
    valid = gradient / "metadata/valid_metadata_view_position.json"
    rewrite_json(valid, lambda content: content.update({name: about}))
    with pytest.raises(ValueError, match="1 subjects are in both train and validation, such as GRDN"):
        load_pairs("rexgradient", "train", data_dir=gradient)
    leaving = {name: about | {"ImagePath": ["../../../etc/passwd"], "ImageViewPosition": ["PA"]}}
    path = gradient / "metadata/test_metadata_view_position.json"
    path.write_text(json.dumps(leaving))
    valid.unlink()
    (gradient / "metadata/train_metadata_view_position.json").unlink()
    with pytest.raises(ValueError, match="none of 1 images"):
        load_pairs("rexgradient", "test", data_dir=gradient)


@pytest.mark.parametrize("name", ["openi", "chexpert_plus", "rexgradient"])
def test_drawn_and_prepared_by_command(name, tmp_path, monkeypatch, capsys):
    tree, output = str(tmp_path / "tree"), str(tmp_path / "prepared")
    drawn = ["synthetic", tree, "--layout", name, "--num_images", "30", "--image_size", "48"]
    prepared = ["prepare", name, "--data_dir", tree, "--output_dir", output, "--size", "32"]
    for command in (drawn, [*prepared, *(["--split_by", "subject"] if name == "openi" else [])]):
        monkeypatch.setattr(sys, "argv", ["modeling_tier.data", *command])
        main()
    options = {"split_by": "subject"} if name == "openi" else {}
    for split in ("train", "validation"):
        raw = load_pairs(name, split, data_dir=tree, **options)
        small = load_pairs(name, split, data_dir=output)
        assert (
            small["text"] == raw["text"]
            and small["image_id"] == raw["image_id"]
            and small[0]["image"].size == (32, 32)
        )
    with pytest.raises(SystemExit, match="is not an empty folder"):
        monkeypatch.setattr(sys, "argv", ["modeling_tier.data", *drawn])
        main()
