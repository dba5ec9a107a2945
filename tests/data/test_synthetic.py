# Licensed under the Apache License, Version 2.0.
"""The drawings, their reports and regions, and the same on a disk as MIMIC-CXR lies there."""

import csv
import gzip
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_tier.data import load_pairs
from modeling_tier.data.synthetic import draw_studies, write_contact_sheet, write_mimic_tree
from modeling_tier.data.synthetic.phantom import FINDINGS, Finding, render, sample_anatomy
from modeling_tier.data.synthetic.reports import region_phrase, write_report


@pytest.fixture(scope="module")
def studies():
    return list(draw_studies("train", 400, 64, seed=3))


def same(a, b) -> bool:
    def comparable(row):
        regions = [(r["finding"], r["phrase"], r["box"], np.asarray(r["mask"]).tobytes()) for r in row["regions"]]
        return {**row, "image": np.asarray(row["image"]).tobytes(), "regions": regions}

    return all(comparable(x) == comparable(y) for x, y in zip(a, b, strict=True))


def test_the_seed_decides_and_the_number_of_processes_does_not():
    load = lambda **options: load_pairs("synthetic", "train", image_size=64, **options)  # noqa: E731
    rows = load(num_images=30, seed=1)
    assert same(rows, load(num_images=30, seed=1, num_proc=2))
    assert same(rows.select(range(12)), load(num_images=12, seed=1)), "the first images do not depend on the number"
    assert not same(rows, load(num_images=30, seed=2))


def test_a_killed_process_is_an_error_that_says_what_to_do(tmp_path):
    """In another process, whose workers alone are killed."""
    script = tmp_path / "draw.py"
    script.write_text(
        "import multiprocessing, threading, time\n"
        "from modeling_tier.data import load_pairs\n"
        "def kill():\n"
        "    while not multiprocessing.active_children():\n"
        "        time.sleep(0.01)\n"
        "    multiprocessing.active_children()[0].kill()\n"
        "if __name__ == '__main__':\n"
        "    threading.Thread(target=kill, daemon=True).start()\n"
        "    load_pairs('synthetic', 'train', num_images=5000, image_size=128, num_proc=2)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=120)
    assert "ValueError: A process that draws ended too soon: killed" in done.stderr
    assert "num_proc: 1 draws in this process" in done.stderr


def test_no_subject_in_two_splits():
    splits = [
        load_pairs("synthetic", split, num_images=300, image_size=32) for split in ("train", "validation", "test")
    ]
    for column in ("subject_id", "study_id", "image_id"):
        ids = [set(split[column]) for split in splits]
        assert not ids[0] & ids[1] and not ids[0] & ids[2] and not ids[1] & ids[2]
    assert all(len(set(split["study_id"])) == 300 for split in splits)
    assert 120 < len(set(splits[0]["subject_id"])) < 260, "some subjects have several studies"


def test_columns():
    rows = load_pairs("synthetic", "test", num_images=40, image_size=64)
    assert list(rows.features) == [
        "image",
        "text",
        "subject_id",
        "study_id",
        "image_id",
        "view",
        "labels",
        "regions",
    ]
    assert list(rows.features["labels"]) == [*FINDINGS, "Support Devices"]
    row = rows[0]
    assert row["image"].mode == "L" and row["image"].size == (64, 64)
    assert set(rows["view"]) == {"PA", "AP"}
    assert all(10_000_000 <= i < 20_000_000 for i in rows["subject_id"])
    assert "no clinical meaning" in rows.info.description


@pytest.mark.parametrize("section", ["findings", "impression", "both"])
def test_sections(section, studies):
    rows = load_pairs("synthetic", "train", num_images=10, image_size=64, seed=3, section=section)
    for row, study in zip(rows, studies):
        expected = {"both": f"{study.report.findings} {study.report.impression}"} | study.report._asdict()
        assert row["text"] == expected[section]


def test_labels_regions_boxes_and_masks_agree():
    for row in load_pairs("synthetic", "train", num_images=300, image_size=48, seed=5):
        with_region = {region["finding"] for region in row["regions"]}
        positive = {name for name, value in row["labels"].items() if value == 1 and name != "Support Devices"}
        assert with_region == positive
        for region in row["regions"]:
            mask = np.asarray(region["mask"])
            assert mask.dtype == bool and mask.shape == (48, 48)
            rows, columns = np.nonzero(mask)
            assert region["box"] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_left_is_on_the_right_of_the_picture(studies):
    sided = 0
    for study in studies:
        for region in study.regions:
            if region.side is None:
                continue
            centre = np.nonzero(region.mask)[1].mean()
            assert (centre > 32) == (region.side == "left"), region.finding
            assert region.side in region_phrase(region.finding, region.side).lower() or region.finding.name == "Edema"
            sided += 1
    assert sided > 100


@pytest.mark.parametrize("finding", FINDINGS)
def test_a_finding_changes_the_picture_in_its_region(finding):
    """The same exposure with and without it, averaged over patients: brighter inside (darker for air) than outside."""
    inside, outside = [], []
    for seed in range(12):
        anatomy = sample_anatomy(np.random.default_rng(seed))
        drawn = Finding(
            finding,
            0.8,
            "bilateral" if finding == "Edema" else "left",
            "apical" if finding == "Pneumothorax" else "lower",
        )
        pictures = [render(np.random.default_rng([7, seed]), anatomy, f, 96) for f in ([drawn], [])]
        change = pictures[0][0].astype(float) - pictures[1][0].astype(float)
        mask = np.any([region.mask for region in pictures[0][1]], axis=0)
        inside.append(change[mask].mean()), outside.append(change[~mask].mean())
    difference = np.mean(inside) - np.mean(outside)
    assert difference < -8 if finding == "Pneumothorax" else difference > 8


def test_reports_name_what_is_drawn_and_deny_nothing_of_it(studies):
    words = {
        "Cardiomegaly": "cardiomegaly|enlarge",
        "Pleural Effusion": "effusion|pleural fluid|costophrenic",
        "Consolidation": "consolidation|airspace opacity|lung opacity",
        "Atelectasis": "atelectasis",
        "Pneumothorax": "pneumothorax",
        "Edema": "edema",
        "Nodule": "nodul",
    }
    denials = {
        name: rf"\b(no|not|normal|unremarkable|clear|sharp)\b[^.]*({word})|({word})[^.]*\b(normal|not|sharp|clear)\b"
        for name, word in words.items()
    }
    omitted = 0
    for study in studies:
        drawn = {finding.name: finding for finding in study.findings if finding.name in words}
        for text in study.report:
            text = text.lower()
            for name in drawn:
                assert not re.search(denials[name], text), (name, text)
        for name, finding in drawn.items():
            assert re.search(words[name], study.report.impression.lower())
            omitted += not re.search(words[name], study.report.findings.lower())
            if finding.side in ("left", "right"):
                other = {"left": "right", "right": "left"}[finding.side]
                sentence = next(s for s in study.report.impression.lower().split(".") if re.search(words[name], s))
                assert finding.side in sentence and other not in sentence
        if not drawn:
            for sentence in " ".join(study.report).lower().split("."):
                for word in words.values():
                    if re.search(word, sentence):
                        assert re.search(r"\b(no|not|normal|clear|sharp)\b", sentence), sentence
    positives = sum(len([f for f in study.findings if f.name in words]) for study in studies)
    assert 0 < omitted < 0.12 * positives, "readers pass over a few findings"


def test_findings_occur_together_and_a_quarter_is_normal(studies):
    names = [{finding.name for finding in study.findings} for study in studies]
    normal = np.mean([not n for n in names])
    assert 0.15 < normal < 0.40
    heart = [n for n in names if "Cardiomegaly" in n]
    edema_rate = np.mean(["Edema" in n for n in names])
    assert np.mean(["Edema" in n for n in heart]) > 1.5 * edema_rate


def test_severity_is_in_the_words():
    report = lambda severity: write_report(np.random.default_rng(0), [Finding("Edema", severity)], "PA")  # noqa: E731
    assert report(0.1).impression == "Mild pulmonary edema."
    assert report(0.99).impression == report(1.0).impression == "Severe pulmonary edema."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "mimic"}, "synthetic"),
        ({"split": "dev"}, "validation"),
        ({"num_image": 3}, "'num_image'.*num_images"),
        ({"section": "history"}, "impression"),
        ({"num_images": 0}, "num_images"),
        ({"image_size": 8}, "image_size"),
        ({"seed": -1}, "seed"),
        ({"num_proc": 0}, "num_proc"),
    ],
)
def test_bad_options_are_named(options, message):
    options = {"name": "synthetic", "split": "train", "num_images": 4, **options}
    with pytest.raises(ValueError, match=message):
        load_pairs(**options)


def test_on_a_disk_as_mimic_cxr(tmp_path):
    root = tmp_path / "tree"
    write_mimic_tree(root, {"train": 30, "validation": 4, "test": 4}, image_size=64, seed=3)
    read = lambda name: list(csv.DictReader(gzip.open(root / f"mimic-cxr-2.0.0-{name}.csv.gz", "rt")))  # noqa: E731
    split, metadata, chexpert, negbio = (read(name) for name in ("split", "metadata", "chexpert", "negbio"))
    assert [row["split"] for row in split] == ["train"] * 30 + ["validate"] * 4 + ["test"] * 4
    assert list(split[0]) == ["dicom_id", "study_id", "subject_id", "split"]
    assert chexpert == negbio and len(chexpert) == 38 and len(chexpert[0]) == 16
    images = sorted(root.glob("files/p1?/p????????/s????????/*.jpg"))
    assert len(images) == 38
    subjects = {}
    for row, meta in zip(split, metadata):
        folder = root / "files" / f"p{row['subject_id'][:2]}" / f"p{row['subject_id']}"
        with Image.open(folder / f"s{row['study_id']}" / f"{row['dicom_id']}.jpg") as image:
            assert image.format == "JPEG" and image.mode == "L"
            assert (str(image.height), str(image.width)) == (meta["Rows"], meta["Columns"])
        assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{8}){4}", row["dicom_id"])
        text = (folder / f"s{row['study_id']}.txt").read_text()
        assert text.lstrip().startswith("FINAL REPORT") and max(map(len, text.splitlines())) <= 80
        assert all(f" {heading}:" in text for heading in ("INDICATION", "FINDINGS", "IMPRESSION"))
        assert subjects.setdefault(row["subject_id"], row["split"]) == row["split"]
    by_study = {row["study_id"]: row for row in chexpert}
    for study in draw_studies("train", 30, 64, seed=3):
        row = by_study[str(study.study_id)]
        for finding in study.findings:
            assert row[{"Nodule": "Lung Lesion"}.get(finding.name, finding.name)] == "1.0"
        words = re.sub(
            r"\s+",
            " ",
            (
                root / "files" / f"p{str(study.subject_id)[:2]}" / f"p{study.subject_id}" / f"s{study.study_id}.txt"
            ).read_text(),
        )
        assert study.report.findings in words and study.report.impression in words
    boxes = list(csv.DictReader(open(root / "ms_cxr.csv")))
    assert boxes and all((root / box["path"]).is_file() and int(box["w"]) > 0 for box in boxes)
    with pytest.raises(ValueError, match="not empty"):
        write_mimic_tree(root, {"train": 1})


def test_contact_sheet(tmp_path):
    write_contact_sheet(tmp_path / "sheet.png", num_images=7, image_size=64)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (6 * 256, 2 * 256)
