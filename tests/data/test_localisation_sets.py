# Licensed under the Apache License, Version 2.0.
"""Sets with boxes or masks, read from trees in the form in which they are published, oddities included."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from small_sets import ROWS, TREES, dicom, picture

from modeling_tier.data import DATASETS, load_pairs
from modeling_tier.data.columns import CHEXPERT_LABELS
from modeling_tier.data.masks import coco_mask, relative_runs
from modeling_tier.data.pictures import read_picture, undecoded
from modeling_tier.evaluation.prompts import load_prompts


NEW = ("rsna_pneumonia", "vindr_cxr", "siim_acr", "chestxdet10", "chexlocalize", "padchest_gr")


@pytest.fixture
def load(tmp_path):
    """Writes a set in small, and loads it."""

    def load(name: str, split: str = "test", **options) -> Dataset:
        if not (tmp_path / "data").exists():
            (tmp_path / "data").mkdir()
            TREES[name](tmp_path / "data")
        return undecoded(load_pairs(name, split, data_dir=tmp_path / "data", **options))  # pictures may be DICOM

    return load


def change(path: Path, old: str, new: str) -> None:
    content = path.read_text(encoding="utf-8")
    assert old in content
    path.write_text(content.replace(old, new, 1), encoding="utf-8")


def positive(rows: Dataset) -> list[list[str]]:
    return [[name for name, value in labels.items() if value == 1] for labels in rows["labels"]]


@pytest.mark.parametrize("name", NEW)
def test_every_set_has_sentences_and_says_what_it_needs(name, load, tmp_path):
    rows = load(name)
    prompts = load_prompts(name, list(rows.features["labels"]))
    assert set(prompts) <= set(rows.features["labels"]) and prompts
    sentences = [text for lists in prompts.values() for part in lists.values() for text in part]
    assert all(re.fullmatch(r"[A-Za-z][\w ,/()-]*\.", text) for text in sentences)
    assert read_picture(rows[0]["image"], "a").size[0] > 40, "pictures are found, and can be read"
    with pytest.raises(ValueError, match=f"{name} needs data_dir: the folder with"):
        load_pairs(name, "test")
    with pytest.raises(ValueError, match=f"{name} has no split 'all'; use one of"):
        DATASETS[name].load(split="all", data_dir=tmp_path)
    pictures = [path for path in (tmp_path / "data").rglob("*") if path.suffix in (".dcm", ".dicom", ".png", ".jpg")]
    for path in pictures[1:]:
        path.unlink()
    with pytest.warns(UserWarning, match=r"rows skipped: the file is missing"):
        assert len(load(name)) == 1
    pictures[0].unlink()
    with pytest.raises(ValueError, match=rf"{name}: none of (the )?\d+ images .*looked"):
        load(name)


def test_rsna_pneumonia(load, tmp_path):
    rows = load("rsna_pneumonia")
    assert len(rows) == ROWS and positive(rows) == [["Pneumonia"]] * 8 + [[]] * 12
    # The published pictures have 1024 pixels a side, these have 64.
    expected = [[x / 16 for x in box] for box in ((264, 152, 477, 531), (562, 152, 818, 605))]
    assert [region["box"] for region in rows[0]["regions"]] == expected and rows[8]["regions"] == []
    assert {region["phrase"] for region in rows[0]["regions"]} == {"pneumonia"}
    assert len(load("rsna_pneumonia", with_boxes=True)) == 8
    path = tmp_path / "data/stage_2_train_labels.csv"
    change(path, "264.0,152.0,213.0,379.0,1\n", "264.0,152.0,-213.0,379.0,1\n")
    with pytest.raises(
        ValueError, match=r"labels\.csv, line 2: the box lies outside .*1 of 9 rows are bad; at most 10%"
    ):
        load("rsna_pneumonia")
    change(path, ",-213.0,379.0,1\n", ",213.0,379.0,2\n")
    with pytest.warns(UserWarning, match=r"line 2: Target must be 0 or 1; got '2'"):
        load("rsna_pneumonia")
    for copy in (tmp_path / "data/stage_2_train_images").iterdir():
        picture(copy.with_suffix(".png"), (128, 128)), copy.unlink()
    boxes = [r["box"] for row in load("rsna_pneumonia").select(range(1, 2)) for r in row["regions"]]
    assert boxes == [[x / 8 for x in (264, 152, 477, 531)]], "a copy of another size"


def test_vindr_cxr(load, tmp_path):
    rows = load("vindr_cxr")
    assert positive(rows) == [["Cardiomegaly"]] * 8 + [["No finding"]] * 12 and len(rows.features["labels"]) == 28
    assert [r["box"] for r in rows[0]["regions"]] == [[10.5, 20, 40, 30], [1, 2, 3, 4]]
    assert rows[0]["regions"][1]["phrase"] == "nodule or mass" and rows[9]["regions"] == []
    labels = tmp_path / "data/annotations/image_labels_test.csv"
    change(labels, "Other disease", "Other diseases")
    assert "Other disease" in load("vindr_cxr").features["labels"]
    change(labels, "Lung cyst", "Cyst")
    with pytest.raises(ValueError, match=r"image_labels_test\.csv has no column 'Lung cyst'"):
        load("vindr_cxr")
    change(labels, "Cyst", "Lung cyst")
    path = tmp_path / "data/test" / f"{0:032x}.dicom"
    picture(path.with_suffix(".png"), (8, 6)), path.unlink()
    with pytest.raises(ValueError, match=r"annotations_test\.csv, line 2: the box lies outside of .* smaller copy"):
        load("vindr_cxr")


@pytest.mark.parametrize("kind", ["in the folder itself", "DICOM with .dcm"])
def test_vindr_cxr_in_other_layouts(load, tmp_path, kind):
    expected = load("vindr_cxr").remove_columns("image")[:]
    data = tmp_path / "data"
    if kind == "in the folder itself":
        for path in (data / "annotations").iterdir():
            shutil.move(path, data)
        (data / "annotations").rmdir()
    else:
        for path in (data / "test").iterdir():
            path.rename(path.with_suffix(".dcm"))
    assert load("vindr_cxr").remove_columns("image")[:] == expected


def test_siim_acr(load, tmp_path):
    rows = load("siim_acr")
    assert positive(rows) == [["Pneumothorax"]] * 8 + [[]] * 12 and rows[9]["regions"] == []
    assert len(rows[0]["regions"]) == 2 and len(rows[1]["regions"]) == 1
    # 102500 is 100 columns of 1024 and 100 rows: 100 pixels down from (100, 100); then 924 further, 50 pixels down.
    assert rows[1]["regions"][0]["box"] == [100 / 16, 100 / 16, 102 / 16, 200 / 16]
    assert rows[1]["regions"][0]["mask"].size == (64, 64), "of the picture as it is stored"
    assert len(load("siim_acr", with_masks=True)) == 8
    table = tmp_path / "data/train-rle.csv"
    table.rename(tmp_path / "data/stage_2_train.csv")
    text = (
        (tmp_path / "data/stage_2_train.csv").read_text().replace(" EncodedPixels", "EncodedPixels").replace(", ", ",")
    )
    (tmp_path / "data/stage_2_train.csv").write_text(text)
    assert load("siim_acr").remove_columns("image")[:] == rows.remove_columns("image")[:]
    for damage in ("102500", "5 x", "1048570 100", "1.5 2"):
        (tmp_path / "data/stage_2_train.csv").write_text(text.replace("102500 100 924 50", damage, 1))
        with pytest.raises(ValueError, match=r"stage_2_train\.csv, line 2: (the )?run lengths"):
            load("siim_acr")


def test_relative_runs_against_a_walk_over_the_pixels():
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = np.zeros((9, 9), bool)
        position, words = 0, []
        while position < 70:
            gap, length = rng.integers(0, 6), rng.integers(1, 5)
            start = position + gap
            for pixel in range(start, start + length):
                mask[pixel % 9, pixel // 9] = True  # down the columns
            words += [gap, length]
            position = start + length
        assert np.array_equal(relative_runs(" ".join(map(str, words)), 9), mask)


def test_chestxdet10(load, tmp_path):
    rows = load("chestxdet10")
    assert positive(rows) == [["Effusion", "Mass"]] * 8 + [[]] * 12 and rows["subject_id"][:2] == [None, None]
    assert [r["box"] for r in rows[0]["regions"]] == [[32, 0, 64, 16], [10 / 16, 20 / 16, 30 / 16, 40 / 16]]
    assert [r["phrase"] for r in rows[0]["regions"]] == ["pulmonary mass", "pleural effusion"]
    assert len(load("chestxdet10", with_boxes=True)) == 8
    path = tmp_path / "data/test.json"
    content = json.loads(path.read_text())
    for damage, message in (
        ({"syms": ["Mass"]}, "lists of one length"),
        ({"syms": ["Mass", "Edema"]}, "unknown finding 'Edema'"),
        ({"boxes": [[1, 2, 3, 4], [5, 5, 5, 9]]}, r"\[5, 5, 5, 9\] is empty"),
        ({"boxes": [[1, 2, 3, 4], [2000, 5, 3000, 9]]}, "lies outside of the 1024 x 1024"),
        ({"file_name": content[1]["file_name"]}, "is a duplicate|1 of 20 rows"),
    ):
        path.write_text(json.dumps([content[0] | damage, *content[1:]]))
        with pytest.warns(UserWarning, match=rf"1 of 20 rows skipped, such as image \d+: .*({message})"):
            assert len(load("chestxdet10")) == ROWS - 1
    path.write_text(json.dumps({"images": []}))
    with pytest.raises(ValueError, match=r"test\.json must be a list of"):
        load("chestxdet10")


def test_chexlocalize(load, tmp_path):
    rows = load("chexlocalize")
    assert list(rows.features["labels"]) == list(CHEXPERT_LABELS) and positive(rows) == [["Lung Opacity"]] * ROWS
    marked = [row for row in rows if row["regions"]]
    assert len(rows) == ROWS and len(marked) == 8 == len(load("chexlocalize", with_masks=True))
    (region,) = marked[0]["regions"]  # the mask of edema has no pixels
    assert (region["finding"], region["phrase"], region["box"]) == ("Lung Opacity", "lung opacity", [30, 10, 40, 20])
    mask = np.asarray(region["mask"])
    assert mask.shape == (36, 48) and mask[10:20, 30:40].all() and mask.sum() == mask.max() * 100
    assert {row["image_id"] for row in marked} == {
        f"test/patient{64740 + i}/study1/view1_frontal.jpg" for i in range(8)
    }
    assert len(load("chexlocalize", views="frontal")) == ROWS - 1
    picture(tmp_path / "data/CheXpert/test/patient64740/study1/view1_frontal.jpg", (96, 72))
    (row,) = (row for row in load("chexlocalize") if row["image_id"].startswith("test/patient64740/study1/view1"))
    assert row["regions"][0]["box"] == [60, 20, 80, 40] and row["regions"][0]["mask"].size == (96, 72)
    path = tmp_path / "data/CheXlocalize/gt_segmentations_test.json"
    change(path, "Airspace Opacity", "Airspace Opacities")
    with pytest.warns(
        UserWarning, match="1 of 16 rows skipped, such as patient.*unknown finding 'Airspace Opacities'"
    ):
        load("chexlocalize")
    with pytest.raises(ValueError, match=r"none of \['CheXlocalize/gt_segmentations_val\.json'"):
        load("chexlocalize", "validation")


def test_chexlocalizes_other_radiologist(load, tmp_path):
    """As rajpurkarlab/cheXlocalize has it: no point is a miss; IoU is of the images where both have drawn."""
    answers = {row["image_id"]: row["radiologist"] for row in load("chexlocalize")}
    assert len(answers) == ROWS and sum(map(len, answers.values())) == 8
    shown = [answers[f"test/patient{64740 + i}/study1/view1_frontal.jpg"][0] for i in range(8)]
    assert {answer["finding"] for answer in shown} == {"Lung Opacity"}
    assert [answer["hit"] for answer in shown] == [1, 1, 1, 1, 0, 0, 0, 0]
    third = pytest.approx(1 / 3)
    assert [answer["iou"] for answer in shown] == [third, third, third, third, None, None, 1, None]
    folder = tmp_path / "data/CheXlocalize"
    change(folder / "hb_salient_pt_test.json", "35.2", "48.2")
    with pytest.raises(
        ValueError,
        match=r"64740.*Airspace Opacity: the point .48\.2, 19\.9. lies outside of the pic.*1 of 8 rows are bad",
    ):
        load("chexlocalize")
    (folder / "hb_salient_pt_test.json").unlink()
    with pytest.warns(
        UserWarning, match=r"hb_salient_pt_test\.json not found.*the radiologist's hit rate is not meas"
    ):
        assert {answer["hit"] for answers in load("chexlocalize")["radiologist"] for answer in answers} == {None}
    (folder / "hb_segmentations_test.json").write_text("[]")
    with pytest.raises(ValueError, match=r"hb_segmentations_test\.json must be like"):
        load("chexlocalize")
    (folder / "hb_segmentations_test.json").unlink()
    with pytest.warns(UserWarning, match=r"hb_segmentations_test\.json and hb_salient_pt_test\.json not found"):
        assert not any(load("chexlocalize")["radiologist"])


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        ({"size": [5, 7], "counts": "zzzz"}, "run lengths of a mask are damaged"),
        ({"size": [5, 10**6], "counts": "i"}, "size of a mask must be"),
        ({"size": [5], "counts": "i"}, "size of a mask must be"),
        ({"size": [5, 7], "counts": [1, 2]}, "a mask must be"),
        ("x", "a mask must be"),
    ],
)
def test_a_damaged_mask_is_named(encoded, message):
    with pytest.raises(ValueError, match=message):
        coco_mask(encoded)


def test_padchest_gr(load, tmp_path):
    rows = load("padchest_gr")
    assert len(rows) == 18 and [len(load("padchest_gr", split)) for split in ("train", "validation")] == [1, 1]
    assert (
        rows[0]["text"] == "Heart of normal size. Small left effusion." and rows[9]["text"] == "Heart of normal size."
    )
    assert rows[0]["regions"] == [
        {"finding": "pleural effusion", "phrase": "Small left effusion.", "box": [24, 18, 36, 36]}
    ]
    assert positive(rows) == [["pleural effusion"]] * 8 + [[]] * 10 and rows[0]["subject_id"] == "p0"
    assert len(load("padchest_gr", with_boxes=True)) == 8
    table = tmp_path / "data/master_table.csv"
    change(table, ",p19,", ",p0,")
    with pytest.raises(ValueError, match=r"master_table\.csv: 1 subjects are in both validation and test, such as p0"):
        load("padchest_gr")
    change(table, ",p0,Normal,group,validation", ",p19,Normal,group,dev")
    with pytest.warns(UserWarning, match=r"split must be one of .*got 'dev'|is not in master_table"):
        load("padchest_gr")
    path = tmp_path / "data/grounded_reports_20240819.json"
    content = json.loads(path.read_text())
    content[0]["findings"][1]["boxes"] = [[0.5, 0.5, 75, 100]]
    path.write_text(json.dumps(content))
    with pytest.warns(
        UserWarning, match=r"study 1: the box \[0\.5, 0\.5, 75, 100\] must have corners between 0 and 1"
    ):
        load("padchest_gr")


@pytest.mark.filterwarnings("ignore:ms_cxr")
@pytest.mark.parametrize("form", ["csv", "json"])
def test_ms_cxr_own_split_and_phrases_of_one_box(tmp_path, form):
    (tmp_path / "data").mkdir()
    TREES["ms_cxr"](tmp_path / "data")
    path = tmp_path / "data/ms_cxr.csv"
    header, *lines = path.read_text().splitlines()
    lines = [line + "," + ("train", "val", "test")[i % 3] for i, line in enumerate(lines)]
    lines.append(lines[2])  # a second box of the same phrase
    path.write_text("\n".join([f"{header},split", *lines]))
    if form == "json":
        rows = [dict(zip(f"{header},split".split(","), line.split(","))) for line in lines]
        images = [{"id": i, "path": r["path"], "file_name": Path(r["path"]).name} for i, r in enumerate(rows)]
        annotations = [
            {"image_id": i, "category_id": 1, "label_text": r["label_text"], "bbox": [int(r[n]) for n in "xywh"]}
            | {"width": 40, "height": 40, "split": r["split"]}
            for i, r in enumerate(rows)
        ]
        content = {"images": images, "categories": [{"id": 1, "name": "Edema"}], "annotations": annotations}
        path = tmp_path / "boxes.json"
        path.write_text(json.dumps(content))
    load = lambda **options: load_pairs("ms_cxr", "test", data_dir=tmp_path / "data", boxes=path, **options)  # noqa: E731
    assert [len(load(own_split=name)) for name in ("all", "train", "validation", "test")] == [60, 20, 20, 20]
    single = load(own_split="test", single_box=True)
    assert len(single) == 19 and all(len(row["regions"]) == 1 for row in single)
    with pytest.raises(ValueError, match="own_split must be one of"):
        load(own_split="dev")
    if form == "csv":
        path.write_text("\n".join([header, *(line.rpartition(",")[0] for line in lines)]))
        with pytest.raises(ValueError, match=r"ms_cxr\.csv has no column 'split', which version 1\.1\.0 has"):
            load(own_split="test")


def test_a_picture_of_dicom_has_a_size(tmp_path):
    from modeling_tier.data.pictures import picture_size

    dicom(tmp_path / "a.dcm", (64, 48))
    assert picture_size({"bytes": None, "path": str(tmp_path / "a.dcm")}) == (64, 48)
    assert picture_size({"bytes": (tmp_path / "a.dcm").read_bytes(), "path": None}) == (64, 48)
    (tmp_path / "b.dcm").write_bytes((tmp_path / "a.dcm").read_bytes()[:150])
    assert picture_size({"bytes": None, "path": str(tmp_path / "b.dcm")}) is None
