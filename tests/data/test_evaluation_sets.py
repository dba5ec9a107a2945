# Licensed under the Apache License, Version 2.0.
"""Evaluation sets, read from trees in the form in which they are published."""

import csv
import gzip
import hashlib
import json
import re
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tier_config
from PIL import Image
from small_sets import ROWS, TREES

import evaluate_zeroshot
from modeling_tier import TierModel
from modeling_tier.data import DATASETS, load_pairs
from modeling_tier.data.columns import CHEXPERT_LABELS
from modeling_tier.data.padchest import _PAPER, label_names
from modeling_tier.data.pictures import read_picture, undecoded
from modeling_tier.data.prepare import prepare
from modeling_tier.data.synthetic import write_mimic_tree
from modeling_tier.evaluation.localisation import box_mask
from modeling_tier.training import load_config, train


ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "real"
# CheXpert's own order, which is not MIMIC-CXR's.
CHEXPERT_ORDER = (
    "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,"
    "Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
).split(",")


def write_csv(path: Path, columns, rows, newline="\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = gzip.open(path, "wt", newline="") if path.suffix == ".gz" else open(path, "w", newline="")
    with opened as file:
        writer = csv.writer(file, lineterminator=newline)
        writer.writerows([columns, *rows])


def picture(path: Path, size=(40, 50), value=90, bits=8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    dtype = np.uint16 if bits == 16 else np.uint8
    pixels = np.linspace(0, value, size[0] * size[1]).reshape(size[::-1]).astype(dtype)
    Image.fromarray(pixels).save(path)


# CheXpert


@pytest.fixture(params=["CheXpert-v1.0-small", "CheXpert-v1.0"])
def chexpert(request, tmp_path):
    """Three patients of the validation set, three of the test set (the second with two views), two of training."""
    archive, root = request.param, tmp_path / "my-data"
    labels = ["0.0"] * 12 + ["1.0", "0.0"]
    image = ["Female", "60"]

    def table(name, paths, values):
        rows = []
        for path, value in zip(paths, values):
            lateral = "lateral" in path
            rows.append([f"{archive}/{path}", *image, *(("Lateral", "") if lateral else ("Frontal", "AP")), *value])
        write_csv(root / name, ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_ORDER), rows)

    train = [f"train/patient0000{i}/study1/view1_frontal.jpg" for i in (1, 2)]
    kept_apart = ["", "-1.0", "0.0", "1.0", *[""] * 10]
    table("train.csv", train, [kept_apart, labels])
    valid = [f"valid/patient6454{i}/study1/view1_frontal.jpg" for i in (1, 2)]
    valid += ["valid/patient64542/study1/view2_lateral.jpg"]
    table("valid.csv", valid, [labels] * 3)
    test = ["test/patient64741/study1/view1_frontal.jpg", "test/patient64742/study1/view1_frontal.jpg"]
    test += ["test/patient64742/study1/view2_lateral.jpg", "test/patient64743/study1/view1_frontal.jpg"]
    values = [[str(int(i == j)) for j in range(14)] for i in (2, 5, 5, 8)]  # cardiomegaly, edema, edema, atelectasis
    write_csv(root / "test_labels.csv", ("Path", *CHEXPERT_ORDER), [[p, *v] for p, v in zip(test, values)])
    by_study = [[f"CheXpert-v1.0/{Path(p).parent.as_posix()}", *v] for p, v in zip(test, values) if "lateral" not in p]
    write_csv(root / "groundtruth.csv", ("Study", *CHEXPERT_ORDER), by_study)
    for name, shift in (("bc4", 0), ("bc6", 1), ("bc8", 2)):
        shifted = [[row[0], *row[1 + shift :], *row[1 : 1 + shift]] for row in by_study]
        write_csv(root / "radiologists/benchmark_radiologists" / f"{name}.csv", ("Study", *CHEXPERT_ORDER), shifted)
    for path in (*train, *valid, *test):
        picture(root / path)
    return root


def positive(row) -> list[str]:
    return [name for name, value in row["labels"].items() if value == 1.0]


def test_chexpert_by_image(chexpert):
    valid, test = (
        load_pairs("chexpert", "validation", data_dir=chexpert),
        load_pairs("chexpert", "test", data_dir=chexpert),
    )
    assert [row["study_id"] for row in valid] == ["patient64541/study1", *["patient64542/study1"] * 2]
    assert [row["view"] for row in valid] == ["AP", "AP", "LATERAL"]
    assert all(positive(row) == ["Fracture"] for row in valid)
    assert [positive(row)[0] for row in test] == ["Cardiomegaly", "Edema", "Edema", "Atelectasis"]
    assert [row["view"] for row in test] == ["FRONTAL", "FRONTAL", "LATERAL", "FRONTAL"]
    assert list(test.features["labels"]) == list(CHEXPERT_LABELS) and test[0]["text"] is None
    assert test[0]["image"].size == (40, 50)
    frontal = load_pairs("chexpert", "test", data_dir=chexpert, views="frontal")
    assert [row["subject_id"] for row in frontal] == ["patient64741", "patient64742", "patient64743"]


def test_chexpert_minus_one_blank_and_zero_are_kept_apart(chexpert):
    labels = load_pairs("chexpert", "train", data_dir=chexpert)[0]["labels"]
    assert (labels["No Finding"], labels["Enlarged Cardiomediastinum"], labels["Cardiomegaly"]) == (None, -1.0, 0.0)
    assert labels["Lung Opacity"] == 1.0 and labels["Support Devices"] is None


@pytest.mark.parametrize("source", ["test_labels.csv", "groundtruth.csv"])
def test_chexpert_by_study_from_either_table_with_reader_annotations(chexpert, source):
    for name in {"test_labels.csv", "groundtruth.csv"} - {source}:
        (chexpert / name).unlink()
    test = load_pairs("chexpert", "test", data_dir=chexpert, by="study")
    assert [row["study_id"] for row in test] == [f"patient6474{i}/study1" for i in (1, 2, 3)]
    assert all("view1_frontal" in row["image_id"] for row in test)
    assert [positive(row)[0] for row in test] == ["Cardiomegaly", "Edema", "Atelectasis"]
    reads = test[1]["reads"]
    assert [read["reader"] for read in reads] == ["bc4", "bc6", "bc8"]
    order = [CHEXPERT_ORDER.index(positive(read)[0]) for read in reads]
    assert order == [5, 4, 3], "each reader's own answers"
    assert len(load_pairs("chexpert", "test", data_dir=chexpert)) == 4, "and by image from either table"


def test_chexpert_in_the_folder_of_the_archive(chexpert, tmp_path):
    (tmp_path / "around").mkdir()
    chexpert.rename(tmp_path / "around" / "CheXpert-v1.0")
    assert len(load_pairs("chexpert", "validation", data_dir=tmp_path / "around")) == 3


@pytest.mark.parametrize("given", ["around", "first part"])
def test_chexpert_in_the_parts_of_its_download(chexpert, tmp_path, given):
    """Tables and validation images in the first part; the parts of the training set have no folder train/."""
    around = tmp_path / "chexpertchestxrays-u20210408"
    first, second, third = (
        around / f"CheXpert-v1.0 batch {name}" for name in ("1 (validate & csv)", "2 (train 1)", "3 (train 2)")
    )
    first.mkdir(parents=True), third.mkdir()
    for name in ("train.csv", "valid.csv", "valid"):
        (chexpert / name).rename(first / name)
    (chexpert / "train").rename(second)
    (second / "patient00002").rename(third / "patient00002")
    folder = around if given == "around" else first
    train = load_pairs("chexpert", "train", data_dir=folder)
    assert [row["image_id"] for row in train] == [f"train/patient0000{i}/study1/view1_frontal.jpg" for i in (1, 2)]
    assert train[0]["image"].size == (40, 50) and positive(train[1]) == ["Fracture"]
    assert len(load_pairs("chexpert", "validation", data_dir=folder)) == 3


def test_chexpert_paths_that_begin_with_the_patient_or_with_another_folder(chexpert):
    path = chexpert / "valid.csv"
    lines = path.read_text().splitlines()
    for i, prefix in ((1, ""), (2, "CheXpert-v1.0 batch 1 (validate & csv)/valid/"), (3, "/data/CheXpert/valid/")):
        lines[i] = prefix + lines[i][lines[i].index("patient") :]
    path.write_text("\n".join(lines))
    valid = load_pairs("chexpert", "validation", data_dir=chexpert)
    assert [row["image_id"].split("/")[0] for row in valid] == ["valid"] * 3


def test_chexpert_says_what_is_wrong(chexpert):
    load = lambda split="test", **options: load_pairs("chexpert", split, data_dir=chexpert, **options)  # noqa: E731
    for options, message in (({"by": "patient"}, "study"), ({"views": "lateral"}, "frontal")):
        with pytest.raises(ValueError, match=message):
            load(**options)
    with pytest.raises(ValueError, match=r"no csv file in .*nowhere \(reads_dir\)"):
        load(reads_dir=chexpert / "nowhere")
    reads = chexpert / "radiologists/benchmark_radiologists/bc6.csv"
    reads.write_text("\n".join(reads.read_text().splitlines()[:-1]))
    with pytest.raises(ValueError, match=r"bc6\.csv lacks 1 .*patient64743/study1"):
        load()
    (chexpert / "valid/patient64541/study1/view1_frontal.jpg").unlink()
    with pytest.warns(UserWarning, match=r"1 of 3 rows skipped.*missing.*patient64541"):
        assert len(load("validation")) == 2
    content = (chexpert / "valid.csv").read_text()
    (chexpert / "valid.csv").write_text(content.replace(",1.0,", ",2.0,", 1))
    with pytest.raises(ValueError, match=r"valid\.csv, line \d: Fracture .*'2\.0'"):
        load("validation")
    (chexpert / "valid.csv").write_text(content.replace("Edema", "Oedema"))
    with pytest.raises(ValueError, match=r"valid\.csv has no column 'Edema'.*Oedema"):
        load("validation")
    (chexpert / "valid.csv").write_text(content.replace("valid/patient64541", "valid/../../patient64541"))
    with pytest.raises(ValueError, match=r"valid\.csv, line 2: Path must be like"):
        load("validation")
    (chexpert / "valid.csv").write_text(content.replace("patient64541", "patient00001"))
    with pytest.raises(ValueError, match="1 subjects are in both train and validation, such as patient00001"):
        load("validation")
    (chexpert / "valid.csv").unlink()
    with pytest.raises(ValueError, match=r"none of \['valid\.csv'"):
        load("validation")


def test_chexpert_studies_without_a_frontal_image_are_counted(chexpert):
    (chexpert / "test/patient64742/study1/view1_frontal.jpg").unlink()
    with pytest.warns(UserWarning) as warned:
        assert len(load_pairs("chexpert", "test", data_dir=chexpert, by="study")) == 2
    assert any("1 of 3 rows skipped: no frontal image of the study" in str(w.message) for w in warned)


def test_chexpert_packed_tables_are_checked_for_subjects_too(chexpert):
    content = (chexpert / "train.csv").read_bytes()
    (chexpert / "train.csv").unlink()
    (chexpert / "train.csv.gz").write_bytes(gzip.compress(content.replace(b"patient00001", b"patient64541")))
    with pytest.raises(ValueError, match="1 subjects are in both train and validation, such as patient64541"):
        load_pairs("chexpert", "validation", data_dir=chexpert)


def test_chexpert_an_image_twice_counts_once_and_windows_paths_are_read(chexpert):
    path = chexpert / "valid.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *(line.replace("/", "\\", 3) for line in [*lines[1:], lines[1]])]))
    with pytest.warns(UserWarning, match=r"1 of 4 rows skipped: an image twice in valid\.csv"):
        assert len(load_pairs("chexpert", "validation", data_dir=chexpert)) == 3


# PadChest


PADCHEST = ("ImageID", "ImageDir", "StudyID", "PatientID", "Projection", "MethodLabel", "Labels", "Localizations")


@pytest.fixture(params=["by folder", "flat"])
def padchest(request, tmp_path):
    rows = [
        ("a.png", "0", "s1", "p1", "PA", "Physician", "['cardiomegaly', ' pleural effusion', '']", "[]"),
        ("b.png", "0", "s2", "p2", "L", "Physician", "['normal']", "[]"),
        ("c.png", "54", "s3", "p2", "AP_horizontal", "Physician", "['pleural  effusion']", "[]"),
        ("d.png", "54", "s4", "p3", "PA", "RNN_model", "['cardiomegaly']", "[]"),
        ("e.png", "54", "s5", "p4", "PA", "Physician", "", "[]"),
        ("f.png", "54", "s6", "p5", "PA", "Physician", "['nodule'", "[]"),
        ("g.png", "54", "s7", "p6", "PA", "Physician", "['a rare name']", "[]"),
        ("gone.png", "54", "s8", "p6", "PA", "Physician", "['normal']", "[]"),
    ]
    write_csv(tmp_path / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz", PADCHEST, rows)
    for name, folder, *_ in rows[:-1]:
        picture(tmp_path / (folder if request.param == "by folder" else "") / name, value=3000, bits=16)
    return tmp_path


def test_padchest(padchest):
    with pytest.warns(UserWarning) as warned:
        test = load_pairs("padchest", "test", data_dir=padchest)
    said = " ".join(str(w.message) for w in warned)
    assert "2 of 7 rows skipped: no list of labels" in said and "line 6" in said
    assert "1 of 5 rows skipped: the file is missing, such as ImageID gone.png" in said
    assert [row["image_id"] for row in test] == ["a.png", "b.png", "c.png", "g.png"]
    assert list(test.features["labels"]) == ["cardiomegaly", "normal", "pleural effusion"]
    assert [list(row["labels"].values()) for row in test] == [[1, 0, 1], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert test[2]["subject_id"] == "p2" and test[0]["text"] is None


@pytest.mark.filterwarnings("ignore:padchest")
def test_padchest_options(padchest):
    load = lambda **options: load_pairs("padchest", "test", data_dir=padchest, **options)  # noqa: E731
    every_name = load(findings="all").features["labels"]
    assert "a rare name" in every_name and "normal" not in every_name
    assert list(load(findings="all", min_count=2).features["labels"]) == ["pleural effusion"]
    assert [row["image_id"] for row in load(views="frontal")] == ["a.png", "c.png", "g.png"]
    assert "d.png" in load(readers="all")["image_id"]
    for options, message in (
        ({"readers": "robots"}, "physician"),
        ({"findings": "some"}, "paper"),
        ({"min_count": 99}, "min_count 99"),
    ):
        with pytest.raises(ValueError, match=message):
            load(**options)
    for path in padchest.rglob("*.png"):
        path.unlink()
    with pytest.raises(ValueError, match=r"none of 5 images was found; looked for .*a\.png"):
        load()


@pytest.mark.filterwarnings("ignore:padchest")
def test_padchest_with_reports_in_english(padchest, tmp_path):
    path = tmp_path / "english.csv"
    rows = [("b.png", "No XXXX change."), ("a.png", "Cardiomegaly."), ("c.png", ""), ("other.png", "Clear.")]
    write_csv(path, ("imageid", "Report_EN"), rows)
    with pytest.warns(UserWarning) as warned:
        pairs = load_pairs("padchest", "test", data_dir=padchest, reports=path)
    said = " ".join(str(w.message) for w in warned)
    assert dict(zip(pairs["image_id"], pairs["text"])) == {"a.png": "Cardiomegaly.", "b.png": "No change."}
    assert "column 'Report_en' of english.csv." in said and "2 of 4 rows skipped: no text in english.csv" in said
    write_csv(path, ("ImageID", "Report"), [("a.png", "cardiomegali .")])
    with pytest.warns(UserWarning, match="Spanish and stemmed"):
        load_pairs("padchest", "test", data_dir=padchest, reports=path)
    write_csv(path, ("ImageID", "Text"), [("a.png", "x")])
    with pytest.raises(ValueError, match=r"english\.csv \(reports\) has none of the columns \['Report_en'"):
        load_pairs("padchest", "test", data_dir=padchest, reports=path)
    with pytest.raises(ValueError, match=r"no file .*nowhere\.csv \(reports\)"):
        load_pairs("padchest", "test", data_dir=padchest, reports=tmp_path / "nowhere.csv")


@pytest.mark.filterwarnings("ignore:padchest")
def test_padchest_in_parts_and_its_rarest_findings(tmp_path):
    rows = []
    for i in range(60):
        names = ["normal"] if i < 20 else [f"finding {k:02d}" for k in range(30) if i - 20 <= k]
        rows.append((f"{i}.png", "0", f"s{i}", f"p{i // 2}", "PA", "Physician", str(names), "[]"))
        picture(tmp_path / "0" / f"{i}.png", value=3000, bits=16)
    write_csv(tmp_path / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", PADCHEST, rows)
    options = {"data_dir": tmp_path, "split_by": "subject", "findings": "rarest"}
    parts = {split: load_pairs("padchest", split, **options) for split in ("train", "validation", "test")}
    patients = [set(pairs["subject_id"]) for pairs in parts.values()]
    assert all(patients) and sum(map(len, patients)) == len(set().union(*patients)) == 30
    assert list(parts["train"].features["labels"]) == [f"finding {k:02d}" for k in range(20)]
    assert len({str(pairs.features) for pairs in parts.values()}) == 1
    with pytest.raises(ValueError, match="no split 'train'"):
        load_pairs("padchest", "train", data_dir=tmp_path)


def test_padchest_pictures_of_16_bits_are_not_white(padchest):
    with pytest.warns(UserWarning):
        rows = undecoded(load_pairs("padchest", "test", data_dir=padchest))
    pixels = np.asarray(read_picture(rows[0]["image"], "a.png"))
    assert pixels.min() == 0 and pixels.max() == 255 and 100 < pixels.mean() < 155


@pytest.mark.filterwarnings("ignore:padchest")
def test_padchest_folders_do_not_leave_the_data(padchest, tmp_path):
    path = tmp_path / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz"
    picture(tmp_path.parent / "outside.png", value=3000, bits=16)
    rows = [
        ("outside.png", "..", "s1", "p1", "PA", "Physician", "['normal']", "[]"),
        ("outside.png", str(tmp_path.parent), "s1", "p1", "PA", "Physician", "['normal']", "[]"),
        ("../outside.png", "0", "s1", "p1", "PA", "Physician", "['normal']", "[]"),
    ]
    for row in rows:
        write_csv(path, PADCHEST, [row])
        with pytest.raises(ValueError, match="none of 1 images was found"):
            load_pairs("padchest", "test", data_dir=tmp_path)


def test_padchest_labels():
    assert len(_PAPER) == 57
    assert label_names("['a', ' b  c ', '']") == {"a", "b c"} and label_names("[]") == frozenset()
    for text in ("", "nan", "['a'", "'a'", "[1]", "__import__('os')"):
        assert label_names(text) is None


# ChestX-ray14


@pytest.fixture(params=["images", "images_001/images", ""])
def chestxray14(request, tmp_path):
    columns = ("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender")
    columns += ("View Position", "OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]", "")
    rows = [
        ("00000001_000.png", "Cardiomegaly|Effusion", "0", "1", "58", "M", "PA", "2682", "2749", "0.143", "0.143", ""),
        ("00000002_000.png", "No Finding", "0", "2", "58", "M", "AP", "2682", "2749", "0.143", "0.143", ""),
        ("00000003_000.png", "Infiltration", "0", "3", "58", "M", "AP", "2682", "2749", "0.143", "0.143", ""),
        ("00000003_001.png", "Pleural_Thickening", "1", "3", "58", "M", "AP", "2682", "2749", "0.143", "0.143", ""),
    ]
    write_csv(tmp_path / "Data_Entry_2017.csv", columns, rows)
    boxes = [
        ("00000001_000.png", "Cardiomegaly", "100.5", "200", "300", "400"),
        ("00000003_000.png", "Infiltrate", "0", "0", "512", "1024"),
        ("00000003_000.png", "Infiltrate", "600", "0", "100", "100"),
    ]
    # As published: three names of columns more than the rows have fields.
    boxes_header = ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]", "", "", "")
    write_csv(tmp_path / "BBox_List_2017.csv", boxes_header, boxes)
    (tmp_path / "train_val_list.txt").write_text("00000002_000.png\n")
    (tmp_path / "test_list.txt").write_text("00000001_000.png\n00000003_000.png\n00000003_001.png\n")
    for i, row in enumerate(rows):
        # The third is a smaller copy, as many keep them.
        picture(tmp_path / request.param / row[0], size=(256, 256) if i == 2 else (1024, 1024))
    return tmp_path


def test_chestxray14(chestxray14):
    test = load_pairs("chestxray14", "test", data_dir=chestxray14)
    assert [row["image_id"] for row in test] == ["00000001_000.png", "00000003_000.png", "00000003_001.png"]
    assert [positive(row) for row in test] == [["Cardiomegaly", "Effusion"], ["Infiltration"], ["Pleural_Thickening"]]
    assert all(value == 0.0 for name, value in test[1]["labels"].items() if name != "Infiltration")
    assert test[0]["regions"] == [
        {"finding": "Cardiomegaly", "phrase": "Cardiomegaly", "box": [100.5, 200, 400.5, 600]}
    ]
    assert [r["box"] for r in test[1]["regions"]] == [[0, 0, 128, 256], [150, 0, 175, 25]], "in the copy's pixels"
    assert test[1]["regions"][0]["finding"] == "Infiltration" and test[2]["regions"] == []
    assert len(load_pairs("chestxray14", "test", data_dir=chestxray14, with_boxes=True)) == 2
    assert load_pairs("chestxray14", "train", data_dir=chestxray14)["image_id"] == ["00000002_000.png"]


@pytest.mark.skipif(not (REAL / "BBox_List_2017.csv.gz").is_file(), reason="the real files are not here")
def test_chestxray14_published_boxes(chestxray14):
    """All 984 boxes of the published table, on 880 images."""
    (chestxray14 / "BBox_List_2017.csv").unlink()
    shutil.copy(REAL / "BBox_List_2017.csv.gz", chestxray14)
    with gzip.open(chestxray14 / "BBox_List_2017.csv.gz", "rt") as file:
        boxes = [line.split(",") for line in file.read().splitlines()[1:]]
    images = sorted({box[0] for box in boxes})
    header = (chestxray14 / "Data_Entry_2017.csv").read_text().splitlines()[0]
    rows = [f"{name},No Finding,0,{name[:8]},58,M,PA,2682,2749,0.143,0.143," for name in images]
    (chestxray14 / "Data_Entry_2017.csv").write_text("\n".join([header, *rows]))
    (chestxray14 / "test_list.txt").write_text("\n".join(images))
    (chestxray14 / "train_val_list.txt").unlink()
    for name in images:
        (chestxray14 / name).touch()
    pairs = load_pairs("chestxray14", "test", data_dir=chestxray14, with_boxes=True)
    assert (len(boxes), len(pairs)) == (984, 880)
    regions = {row["image_id"]: row["regions"] for row in pairs.remove_columns("image")}
    assert sum(map(len, regions.values())) == 984
    for image, finding, *numbers in boxes:
        x, y, width, height = map(float, numbers)
        names = [region["finding"] for region in regions[image]]
        assert {"Infiltrate": "Infiltration"}.get(finding, finding) in names
        corners = [np.float32([x, y, x + width, y + height])]
        assert any(np.allclose(region["box"], corners) for region in regions[image])


def test_chestxray14_says_what_is_wrong(chestxray14):
    load = lambda split="test", **options: load_pairs("chestxray14", split, data_dir=chestxray14, **options)  # noqa: E731
    with pytest.raises(ValueError, match="no split 'validation'; use one of"):
        load("validation")
    with pytest.raises(ValueError, match="with_boxes"):
        load("train", with_boxes=True)
    boxes = (chestxray14 / "BBox_List_2017.csv").read_text()
    (chestxray14 / "BBox_List_2017.csv").write_text(boxes.replace("100.5", "left"))
    with pytest.raises(ValueError, match=r"BBox_List_2017\.csv, line 2: Bbox \[x must be a number; got 'left'"):
        load()
    (chestxray14 / "BBox_List_2017.csv").write_text(boxes)
    (chestxray14 / "train_val_list.txt").write_text("00000002_000.png\n00000003_001.png\n")
    with pytest.raises(ValueError, match="1 subjects are in both train and test, such as 3"):
        load()
    (chestxray14 / "test_list.txt").unlink()
    with pytest.raises(ValueError, match=r"there is no test_list\.txt"):
        load()
    entries = (chestxray14 / "Data_Entry_2017.csv").read_text()
    (chestxray14 / "Data_Entry_2017.csv").write_text(entries.replace("Effusion", "Effusions"))
    with pytest.raises(ValueError, match=r"line 2: Finding Labels .*'Cardiomegaly\|Effusions'"):
        load("train")


@pytest.mark.parametrize("box", [("2000", "0", "10", "10"), ("5", "5", "-3", "10"), ("-90", "5", "80", "10")])
def test_chestxray14_a_box_outside_of_the_picture_is_named(chestxray14, box):
    path = chestxray14 / "BBox_List_2017.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, ",".join(["00000001_000.png", "Cardiomegaly", *box])]))
    with pytest.raises(ValueError, match=r"BBox_List_2017\.csv, line 5: the box lies outside"):
        load_pairs("chestxray14", "test", data_dir=chestxray14)


def test_chestxray14_what_is_twice_or_not_in_the_table_is_counted(chestxray14):
    path = chestxray14 / "Data_Entry_2017.csv"
    path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")
    (chestxray14 / "test_list.txt").write_text((chestxray14 / "test_list.txt").read_text() + "00000009_000.png\n")
    with pytest.warns(UserWarning) as warned:
        assert len(load_pairs("chestxray14", "test", data_dir=chestxray14)) == 3
    said = " ".join(str(w.message) for w in warned)
    assert "1 of 5 rows skipped: an image twice" in said and "line 6" in said
    assert "1 of 4 rows skipped: not in Data_Entry_2017.csv, such as 00000009_000.png" in said


# MS-CXR


@pytest.fixture(scope="module")
def mimic(tmp_path_factory):
    root = tmp_path_factory.mktemp("mimic") / "tree"
    write_mimic_tree(root, {"train": 40, "validation": 8, "test": 12}, image_size=96, seed=5)
    prepare(root, root.parent / "prepared", size=48, progress=False)
    return root


def boxes_of(root) -> list[dict]:
    return list(csv.DictReader(open(root / "ms_cxr.csv")))


@pytest.mark.filterwarnings("ignore:ms_cxr")
def test_ms_cxr_on_the_tree(mimic):
    pairs, table = load_pairs("ms_cxr", "test", data_dir=mimic), boxes_of(mimic)
    assert sorted(pairs["image_id"]) == sorted({box["dicom_id"] for box in table})
    for row in pairs:
        own = [box for box in table if box["dicom_id"] == row["image_id"]]
        assert [r["phrase"] for r in row["regions"]] == [box["label_text"] for box in own]
        for region, box in zip(row["regions"], own):
            x, y, w, h = (float(box[name]) for name in "xywh")
            assert region["box"] == [x, y, x + w, y + h]
            assert row["labels"][region["finding"]] == 1.0 and region["finding"] == box["category_name"]
        assert all(v is None for k, v in row["labels"].items() if k not in {box["category_name"] for box in own})
        assert f"p{row['subject_id']}/s{row['study_id']}/" in own[0]["path"] and row["text"] is None


def as_json(boxes: list[dict]) -> dict:
    """MS-CXR's json file, in the form of COCO's."""
    images = list(dict.fromkeys((box["dicom_id"], box["path"]) for box in boxes))
    findings = sorted({box["category_name"] for box in boxes})
    return {
        "info": {"version": "1.1.0"},
        "licenses": [],
        "categories": [{"id": i + 1, "name": name, "supercategory": ""} for i, name in enumerate(findings)],
        "images": [{"id": i, "file_name": f"{name}.jpg", "path": path} for i, (name, path) in enumerate(images)],
        "annotations": [
            {
                "id": i,
                "category_id": findings.index(box["category_name"]) + 1,
                "image_id": images.index((box["dicom_id"], box["path"])),
                "bbox": [int(box[name]) for name in "xywh"],
                "label_text": box["label_text"],
                "width": int(box["image_width"]),
                "height": int(box["image_height"]),
                "split": box["split"],
            }
            for i, box in enumerate(boxes)
        ],
    }


@pytest.mark.filterwarnings("ignore:ms_cxr")
def test_ms_cxr_from_its_json_file(mimic, tmp_path):
    content = as_json(boxes_of(mimic))
    path = tmp_path / "MS_CXR_Local_Alignment_v1.1.0.json"
    load = lambda **options: load_pairs("ms_cxr", "test", data_dir=mimic, **options)  # noqa: E731
    for where in ("annotations", "images"):  # which of them have the size of the picture
        if where == "images":
            for annotation in content["annotations"]:
                size = {name: annotation.pop(name) for name in ("width", "height")}
                content["images"][annotation["image_id"]] |= size
        path.write_text(json.dumps(content))
        a, b = (pairs.remove_columns("image") for pairs in (load(boxes=path), load()))
        assert a[:] == b[:] and a.features == b.features
    del content["annotations"][1]["bbox"]
    path.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match=r"json: 1 of \d+ rows skipped, such as annotation 2: not in the form .*bbox"):
        load(boxes=path)
    for wrong in ("{", "[]", '{"images": []}', '"text"'):
        path.write_text(wrong)
        with pytest.raises(ValueError, match=r"json is not the json file of MS-CXR, with 'images', 'categories'"):
            load(boxes=path)


@pytest.mark.filterwarnings("ignore:ms_cxr")
def test_ms_cxr_boxes_follow_a_prepared_picture_through_resize_and_crop(mimic, processor):
    raw, small = (
        load_pairs("ms_cxr", "test", data_dir=folder, boxes=mimic / "ms_cxr.csv")
        for folder in (mimic, mimic.parent / "prepared")
    )
    by_id = {row["image_id"]: row for row in small}
    assert len(by_id) == len(raw) > 20 and raw[0]["image"].size == (96, 96) and small[0]["image"].size == (48, 48)
    for row in raw:
        other = by_id[row["image_id"]]
        for a, b in zip(row["regions"], other["regions"], strict=True):
            np.testing.assert_allclose(np.array(b["box"]) * 2, a["box"])
            masks = [
                box_mask([r["box"]], x["image"].size, processor.image_processor) for r, x in ((a, row), (b, other))
            ]
            assert masks[0].shape == (32, 32) and (masks[0] == masks[1]).all()
        assert (row["subject_id"], row["study_id"], row["view"] or "x") == (
            other["subject_id"],
            other["study_id"],
            "x",
        ) or other["view"]


def test_ms_cxr_warns_of_the_training_split_and_can_leave_it(mimic):
    prepared = mimic.parent / "prepared"
    for folder in (mimic, prepared):
        options = {"data_dir": folder, "boxes": mimic / "ms_cxr.csv"}
        with pytest.warns(UserWarning, match="training split"):
            whole = load_pairs("ms_cxr", "test", **options)
        parts = [
            set(load_pairs("ms_cxr", "test", mimic_split=part, **options)["image_id"])
            for part in ("train", "validation", "test")
        ]
        assert set().union(*parts) == set(whole["image_id"]) and sum(map(len, parts)) == len(whole)
        official = {
            row["dicom_id"]: row["split"]
            for row in csv.DictReader(gzip.open(mimic / "mimic-cxr-2.0.0-split.csv.gz", "rt"))
        }
        assert {official[name] for name in parts[2]} == {"test"}


@pytest.mark.filterwarnings("ignore:mimic_cxr", "ignore:.*is read raw", "ignore:ms_cxr")
def test_its_patients_can_be_kept_out_of_training(mimic):
    patients = {int(box["path"].split("/p")[2].split("/")[0]) for box in boxes_of(mimic)}
    for folder in (mimic, mimic.parent / "prepared"):
        load = lambda split, f=folder, **options: load_pairs("mimic_cxr", split, data_dir=f, **options)  # noqa: E731
        whole, train = load("train"), load("train", exclude_subjects=mimic / "ms_cxr.csv")
        assert set(whole["subject_id"]) & patients
        assert set(train["subject_id"]) == set(whole["subject_id"]) - patients
        test = load("test", exclude_subjects=mimic / "ms_cxr.csv")
        assert test["image_id"][:] == load("test")["image_id"][:], "they may be tested on"


@pytest.mark.filterwarnings("ignore:ms_cxr")
def test_nothing_is_written_into_a_prepared_folder(mimic):
    """Others may read it at the same time, and it may not be writable at all."""
    prepared = mimic.parent / "prepared"
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}
    load_pairs("ms_cxr", "test", data_dir=prepared, boxes=mimic / "ms_cxr.csv", mimic_split="train")[0]
    load_pairs("mimic_cxr", "train", data_dir=prepared, views="frontal", exclude_subjects=mimic / "ms_cxr.csv")[0]
    load_pairs("pairs", "train", data_dir=prepared, subject_column="subject_id")[0]
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*")} == before


def test_ms_cxr_says_what_is_wrong(mimic, tmp_path):
    content = (mimic / "ms_cxr.csv").read_text()

    def bad(old, new):
        assert old in content
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.csv"
        path.write_text(content.replace(old, new, 1))
        return {"data_dir": mimic, "boxes": path}

    first = boxes_of(mimic)[0]
    cases = [
        (bad("category_name", "category"), r"\d\.csv has no column 'category_name'"),
        ({"data_dir": mimic, "boxes": tmp_path / "none.csv"}, r"no file .*none\.csv"),
        ({"data_dir": mimic, "mimic_split": "dev"}, "mimic_split must be one of"),
        ({"data_dir": tmp_path}, r"MS_CXR_Local_Alignment_v1\.1\.0\.csv"),
        ({"data_dir": None}, "ms_cxr needs data_dir"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            load_pairs("ms_cxr", "test", **options)
    of_first = sum(box["dicom_id"] == first["dicom_id"] for box in boxes_of(mimic))
    cases = [
        (bad(first["dicom_id"], "another"), "line 2: the path .* is not of the image another", of_first == 1),
        (bad(f",{first['x']},", ",96,"), "line 2: the box lies outside of the image", of_first == 1),
        (bad(f",{first['x']},", ",nan,"), "line 2: x must be a number", of_first == 1),
        (bad(first["path"], "../" + first["path"]), "line 2: the path .* leaves the data folder", True),
        (bad(first["path"], "files/picture.jpg"), "line 2: path must be like files/p10", True),
    ]
    number = len({box["dicom_id"] for box in boxes_of(mimic)})
    for options, message, lost in cases:
        with pytest.warns(UserWarning, match=rf"1 of \d+ rows skipped, such as {message}"):
            assert len(load_pairs("ms_cxr", "test", **options)) == number - lost


# Open-I


@pytest.fixture
def openi(tmp_path):
    columns = ("uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression")
    reports = [
        (str(i), "normal", problems, "Xray Chest PA and Lateral", "", "", findings, impression)
        for i, (problems, findings, impression) in enumerate(
            [
                ("normal", "The heart is XXXX.  Lungs\nare clear.", "No acute disease, XXXX."),
                ("Cardiomegaly;Pulmonary Atelectasis", "Large heart.", "Cardiomegaly."),
                ("Cardiomegaly", "Large heart.", ""),
                ("No Indexing", "", "Clear."),
                ("normal", "XXXX", "XXXX"),
            ]
            + [("normal", "Clear.", "Clear.")] * 60
        )
    ]
    write_csv(tmp_path / "indiana_reports.csv", columns, reports, newline="\r\n")
    rows = [
        (str(i), f"{i}_IM-0001-{k}.dcm.png", name)
        for i in range(65)
        for k, name in ((3001, "Frontal"), (4001, "Lateral"))
    ]
    write_csv(tmp_path / "indiana_projections.csv", ("uid", "filename", "projection"), rows)
    for _, name, _ in rows:
        picture(tmp_path / "images/images_normalized" / name)
    return tmp_path


@pytest.mark.filterwarnings("ignore:openi")
def test_openi(openi):
    with pytest.warns(UserWarning, match=r"openi: 4 of 130 rows skipped: no impression.*2_IM-0001-3001"):
        pairs = load_pairs("openi", "test", data_dir=openi, min_count=1)
    texts = dict(zip(pairs["study_id"], pairs["text"]))
    assert texts["0"] == "No acute disease." and texts["3"] == "Clear." and "2" not in texts and "4" not in texts
    assert list(pairs.features["labels"]) == ["Cardiomegaly", "Pulmonary Atelectasis", "normal"]
    rows = {row["study_id"]: row["labels"] for row in pairs.remove_columns("image")}
    assert list(rows["1"].values()) == [1, 1, 0] and list(rows["3"].values()) == [None] * 3
    both = load_pairs("openi", "test", data_dir=openi, section="both", views="frontal")
    assert both[0]["text"] == "The heart is. Lungs are clear. No acute disease."
    assert set(both["view"]) == {"Frontal"} and list(both.features["labels"]) == ["normal"], "the others are rare"
    assert "2" in load_pairs("openi", "test", data_dir=openi, section="impression_or_findings")["study_id"]


@pytest.mark.filterwarnings("ignore:openi")
def test_openi_in_parts(openi):
    load = lambda split: load_pairs("openi", split, data_dir=openi, split_by="subject")  # noqa: E731
    parts = {split: set(load(split)["subject_id"]) for split in ("train", "validation", "test")}
    assert len(parts["train"]) > 40 and parts["validation"] and parts["test"]
    assert sum(map(len, parts.values())) == len(set().union(*parts.values())) == 63
    with pytest.raises(ValueError, match="no split 'train'; use one of"):
        load_pairs("openi", "train", data_dir=openi)


@pytest.mark.filterwarnings("ignore:openi")
def test_openi_says_what_is_wrong(openi):
    name = "1_IM-0001-3001.dcm.png"
    (openi / "images/images_normalized" / name).unlink()
    with pytest.warns(UserWarning, match=f"missing, such as filename {name}"):
        load_pairs("openi", "test", data_dir=openi)
    for path in (openi / "images").rglob("*.png"):
        path.unlink()
    with pytest.raises(ValueError, match=r"none of 126 images of .* was found; looked in .*images_normalized"):
        load_pairs("openi", "test", data_dir=openi)
    (openi / "indiana_projections.csv").unlink()
    with pytest.raises(ValueError, match=r"none of \['indiana_projections\.csv'\]"):
        load_pairs("openi", "test", data_dir=openi)


def test_openi_numbers_that_a_table_with_gaps_has_made_floats(openi):
    path = openi / "indiana_reports.csv"
    path.write_bytes(re.sub(rb"(?m)^(\d+),", rb"\1.0,", path.read_bytes()))
    with pytest.warns(UserWarning, match="4 of 130 rows skipped: no impression"):
        assert len(load_pairs("openi", "test", data_dir=openi)) == 126


# All of them


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"synthetic"}))
def test_a_folder_is_needed_and_a_wrong_one_named(name, tmp_path):
    split = "validation" if name == "chexpert_plus" else "test"  # it has no test part
    with pytest.raises(ValueError, match=f"{name}.*data_dir"):
        load_pairs(name, split)
    with pytest.raises(ValueError, match="nowhere"):
        load_pairs(name, split, data_dir=tmp_path / "nowhere")
    with pytest.raises(ValueError, match=str(tmp_path)):
        load_pairs(name, split, data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "option", "value", "kind"),
    [
        ("padchest", "min_count", "abc", "a whole number"),
        ("padchest", "min_count", True, "a whole number"),
        ("chexpert", "data_dir", 5, "a text or a path or null"),
        ("chestxray14", "with_boxes", "yes", "true or false"),
        ("pairs", "validation_share", "x", "a number"),
        ("pairs", "label_columns", "Edema", "a list of texts"),
        ("pairs", "streaming", "yes", "true or false"),
        ("mimic_cxr", "views", 3, "a text or null"),
    ],
)
def test_options_of_a_wrong_kind_are_named(name, option, value, kind):
    with pytest.raises(ValueError, match=f"{name}: {option} must be {kind}; got {value!r}"):
        load_pairs(name, "test", **{option: value})


@pytest.fixture
def run(processor, tmp_path, monkeypatch):
    """evaluate_zeroshot.py on a model of random weights; gives what it wrote."""
    torch.manual_seed(0)
    model = TierModel(tier_config(text="bert", vision="resnet", image_pooling="mean"))
    model.save_pretrained(tmp_path / "model"), processor.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # the command changes it

    def run(*options):
        output = ["--output_dir", tmp_path / "out"]
        command = ["evaluate_zeroshot.py", "--model", tmp_path / "model", *output, "--dataset", *options]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        evaluate_zeroshot.main()
        return json.loads((tmp_path / "out" / "metrics.json").read_text())

    return run


@pytest.mark.filterwarnings("ignore:ms_cxr")
def test_evaluated_by_the_command(mimic, chexpert, run, tmp_path):
    """CheXpert without texts or places, MS-CXR with places and without classes, MIMIC-CXR with its reports."""
    written = run("chexpert", "--data_dir", chexpert, "--data.options.by", "study")
    assert written["metrics"]["num_images"] == 3 and "retrieval" not in written["metrics"]
    assert written["metrics"]["undefined"]["Consolidation"] == "n+ = 0, n- = 3"
    assert written["metrics"]["auroc"]["Edema"] in (0, 0.5, 1) and written["options"]["by"] == "study"
    written = run("ms_cxr", "--data_dir", mimic, "--data.options.mimic_split", "test")
    assert (
        "auroc" not in written["metrics"] and written["metrics"]["localisation"]["pointing_game"]["mean"] is not None
    )
    written = run("mimic_cxr", "--data_dir", mimic.parent / "prepared", "--blank", "zeros")
    assert written["metrics"]["num_images"] == 12 and written["metrics"]["retrieval"]
    assert written["labels"] == {"uncertain": "ignore", "blank": "zeros"}
    # What a model was trained with is taken over, but not where things lay, and null takes it back.
    trained = {"name": "mimic_cxr", "options": {"data_dir": "x", "reports": "r.zip", "section": "findings"}}
    (tmp_path / "model" / "training_config.yaml").write_text(json.dumps({"data": trained}))
    with pytest.raises(SystemExit, match="prepared with section 'impression', not 'findings'"):
        run("mimic_cxr", "--data_dir", mimic.parent / "prepared")
    ignored = run("mimic_cxr", "--data_dir", mimic.parent / "prepared", "--data.options.section", "null")
    assert ignored["options"] == {"data_dir": str(mimic.parent / "prepared")}
    assert len(ignored["metrics"]["undefined"]) > len(written["metrics"].get("undefined", {}))


def test_a_data_set_without_texts_is_not_trained_on(chexpert, tmp_path):
    config = load_config(
        ROOT / "configs" / "demo.yaml",
        [
            "--data.name=chexpert",
            f"--data.options={{data_dir: {chexpert}}}",
            "--data.train={}",
            "--data.validation={}",
            f"--output_dir={tmp_path / 'run'}",
        ],
    )
    with pytest.raises(ValueError, match="chexpert has no texts to train on.*data.template_reports: true"):
        train(config)


@pytest.mark.filterwarnings("ignore:ms_cxr")
def test_checkpoints_are_chosen_by_regions_alone(mimic, tmp_path):
    """MS-CXR has places and no sentences."""
    options = ["--data.options.image_size=32", "--data.train.num_images=32", "--data.validation.num_images=20"]
    options += [
        "--model.image_size=32",
        "--training.batch_size=16",
        "--training.epochs=1",
        "--training.progress=false",
    ]
    options += [
        "--evaluation.dataset=ms_cxr",
        "--evaluation.split=test",
        f"--evaluation.options={{data_dir: {mimic}}}",
    ]
    options += ["--evaluation.best_metric=cnr", f"--output_dir={tmp_path / 'run'}"]
    best = train(load_config(ROOT / "configs" / "demo.yaml", options))
    assert "auroc" not in best["validation"]["ms_cxr"] and "localisation" not in best["validation"]
    assert -5 < best["validation"]["ms_cxr"]["localisation"]["cnr"]["mean"] < 5


@pytest.mark.filterwarnings("ignore:padchest")
def test_padchest_evaluated(padchest, run):
    metrics = run("padchest", "--data_dir", padchest)["metrics"]
    assert metrics["num_images"] == 4 and set(metrics["auroc"]) == {
        "cardiomegaly",
        "normal",
        "pleural effusion",
        "mean",
    }


def test_chestxray14_evaluated(chestxray14, run):
    metrics = run("chestxray14", "--data_dir", chestxray14)["metrics"]
    assert metrics["num_images"] == 3 and metrics["undefined"]["Hernia"] == "n+ = 0, n- = 3"
    assert {name for name, value in metrics["auroc"].items() if value is not None} == {
        *("Cardiomegaly", "Effusion", "Infiltration", "Pleural_Thickening", "mean")
    }
    assert set(metrics["localisation"]["pointing_game"]) == {"Cardiomegaly", "Infiltration", "mean"}


@pytest.mark.slow
def test_exactly_the_images_of_a_list(chestxray14, run, tmp_path):
    used = tmp_path / "out" / "image_ids.txt"
    everything = run("chestxray14", "--data_dir", chestxray14)
    names = used.read_text().split()
    assert names == ["00000001_000.png", "00000003_000.png", "00000003_001.png"]
    assert (
        everything["fingerprints"]["images"] == hashlib.sha256("".join(f"{n}\n" for n in names).encode()).hexdigest()
    )
    (tmp_path / "list.csv").write_text("image_id\n00000003_001.png\n00000001_000.png\n")
    some = run("chestxray14", "--data_dir", chestxray14, "--image_ids", tmp_path / "list.csv")
    assert some["metrics"]["num_images"] == 2 and used.read_text().split() == [names[0], names[2]]
    assert some["fingerprints"]["images"] != everything["fingerprints"]["images"]
    assert "names 2 of the 3 images; 1 others are not used" in some["notes"][-1]
    assert run("chestxray14", "--data_dir", chestxray14, "--max_images", 1)["metrics"]["num_images"] == 1
    (tmp_path / "list.csv").write_text("image_id\n00000003_001.png\n00000009_000.png\n")
    with pytest.raises(
        SystemExit, match=r"list\.csv: 1 of 2 images are not in the data set, such as 00000009_000\.png"
    ):
        run("chestxray14", "--data_dir", chestxray14, "--image_ids", tmp_path / "list.csv")


@pytest.mark.slow
def test_chexlocalize_evaluated(run, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    TREES["chexlocalize"](tmp_path / "data")
    metrics = run("chexlocalize", "--data_dir", tmp_path / "data")["metrics"]
    assert metrics["num_images"] == ROWS and metrics["localisation"]["pointing_game"]["Lung Opacity"] is not None
    assert set(metrics["undefined"]) >= {"Edema", "Lung Opacity"}
    human = metrics["radiologist"]
    assert human["num_masks"] == {"Lung Opacity": 8}
    expected = {"pointing_game": 4 / 8, "iou": (4 / 3 + 1) / 5, "dice": (4 / 2 + 1) / 5}
    for name, value in expected.items():
        assert human[name]["Lung Opacity"]["value"] == human[name]["mean"]["value"] == pytest.approx(value)
        assert human[name]["mean"]["low"] < value < human[name]["mean"]["high"]
    own = metrics["localisation_masks"]["pointing_game"]["Lung Opacity"]["value"]
    report = (tmp_path / "out/report.md").read_text()
    assert "model: pointing game | radiologist: pointing game" in report and f"| Lung Opacity | {own:.3f} (" in report
    printed = capsys.readouterr().out
    assert re.search(r"radiologist +0\.500 \(0\.\d+ to 0\.\d+\) +0\.467 \(", printed)


def test_a_threshold_of_maps_is_chosen_on_the_images_of_a_list(run, tmp_path):
    """Of a set with a single split: those of the list choose, the others are judged."""
    (tmp_path / "data").mkdir()
    TREES["siim_acr"](tmp_path / "data")
    table, runs = tmp_path / "data/train-rle.csv", "102500 100 924 50"
    table.write_text(table.read_text().replace(runs, "102500 300" + 200 * " 724 300"))
    names = load_pairs("siim_acr", "test", data_dir=tmp_path / "data")["image_id"][:]
    shutil.rmtree(tmp_path / "data/dicom-images-train")
    for i, name in enumerate(names):  # no two alike
        picture(tmp_path / "data/png" / f"{name}.png", (64, 64), value=100 + i)
    (tmp_path / "list.txt").write_text("\n".join([*names[:4], *names[-4:]]))
    options = ("--data_dir", tmp_path / "data", "--validation_split", "test")
    with pytest.raises(SystemExit, match="Thresholds must not be chosen on the images that they are judged on"):
        run("siim_acr", *options)
    written = run("siim_acr", *options, "--validation_image_ids", tmp_path / "list.txt")
    assert (written["validation"]["num_images"], written["metrics"]["num_images"]) == (8, ROWS - 8)
    assert set((tmp_path / "out/image_ids.txt").read_text().split()) == set(names[4:-4])
    masks = written["metrics"]["localisation_masks"]
    iou, dice = (masks[name]["Pneumothorax"]["value"] for name in ("iou_at_threshold", "dice_at_threshold"))
    assert (
        0 < iou < dice < 1 and masks["pixel_auroc"]["mean"]["value"] == masks["pixel_auroc"]["Pneumothorax"]["value"]
    )
    (row,) = (
        row
        for row in written["metrics"]["localisation_maps"]
        if (row["text"], row["place"], row["resolution"], row["map"]) == ("sentence", "mask", "pixel", "plain")
    )
    assert row["threshold"] * 20 == pytest.approx(round(row["threshold"] * 20)) and row["num_maps"] == 4
    assert "--validation_image_ids" in (tmp_path / "out/report.md").read_text()
    (tmp_path / "list.txt").write_text("\n".join(names))
    with pytest.raises(SystemExit, match="names all images of siim_acr: none is left to be judged"):
        run("siim_acr", *options, "--validation_image_ids", tmp_path / "list.txt")


@pytest.mark.filterwarnings("ignore:openi")
def test_openi_evaluated(openi, run):
    metrics = run("openi", "--data_dir", openi, "--data.options.min_count", "1")["metrics"]
    assert metrics["num_images"] == 126 and metrics["auroc"]["Cardiomegaly"] is not None and metrics["retrieval"]


def test_sentences_that_no_label_can_fill_are_refused(run, tmp_path):
    picture(tmp_path / "own" / "a.png")
    write_csv(tmp_path / "own" / "test.csv", ("image", "text"), [("a.png", "Clear lungs.")])
    (tmp_path / "p.yaml").write_text("templates: {positive: ['{finding}.'], negative: ['No {finding}.']}")
    with pytest.raises(SystemExit, match="filled with the data set's labels, and it has none"):
        run("pairs", "--data_dir", tmp_path / "own", "--prompts", tmp_path / "p.yaml")


@pytest.mark.slow
def test_own_pairs_without_ids_have_thresholds_from_their_validation_split(run, tmp_path):
    """The rows of both splits have the same numbers, and are not the same images for that."""
    for number, split in enumerate(("validation", "test")):
        for i in range(12):
            picture(tmp_path / "own" / split / f"{i}.png", value=100 + 12 * number + i)
        rows = [(f"{split}/{i}.png", "Edema." if i % 2 else "Clear.", i % 2) for i in range(12)]
        write_csv(tmp_path / "own" / f"{split}.csv", ("image", "text", "Edema"), rows)
    (tmp_path / "p.yaml").write_text("templates: {positive: ['{finding}.'], negative: ['No {finding}.']}")
    options = ("--data_dir", tmp_path / "own", "--prompts", tmp_path / "p.yaml", "--validation_split", "validation")
    written = run("pairs", *options, "--data.options.label_columns", "[Edema]")
    assert written["validation"]["num_images"] == written["metrics"]["num_images"] == 12
