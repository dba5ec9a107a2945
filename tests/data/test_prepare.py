# Licensed under the Apache License, Version 2.0.
"""MIMIC-CXR prepared: equal to the tree, and the same bytes after any stop, of any kind."""

import csv
import errno
import inspect
import io
import json
import multiprocessing.forkserver
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
import zipfile
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from trees import Row, drawing, encoded, study, write_pictures, write_tables, write_tree

import modeling_tier.data.command as command_module
import modeling_tier.data.prepare as prepare_module
import modeling_tier.data.shards as shards_module
from modeling_tier.data import load_pairs, mimic_cxr
from modeling_tier.data.__main__ import main
from modeling_tier.data.columns import CHEXPERT_LABELS
from modeling_tier.data.prepare import shrink
from modeling_tier.data.synthetic import write_mimic_tree


ROOT = Path(__file__).parents[2]
CLEAR, EDEMA = "IMPRESSION: Clear lungs.\n", "FINDINGS: Edema.\n"
SPLITS = ("train", "validation", "test")


def prepare(data_dir, output_dir, **options) -> dict:
    return prepare_module.prepare(data_dir, output_dir, **{"size": 32, "progress": False, **options})


def load(folder, split="train", **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(is read raw|skipped)")
        return load_pairs("mimic_cxr", split, data_dir=folder, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rejected(folder: Path) -> list[tuple[str, str, str]]:
    return [tuple(row.values()) for row in csv.DictReader((folder / "rejected.csv").open(newline=""))]


def image_path(row: Row) -> str:
    return f"files/{row.patient}/s{row.study_id}/{row.dicom_id}.jpg"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("drawn") / "tree"
    write_mimic_tree(root, {"train": 20, "validation": 4, "test": 4}, image_size=96, seed=2)
    return root


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(shards_module, "ROWS_PER_SHARD", 4)
    monkeypatch.setattr(shards_module, "ROWS_PER_TASK", 2)


# What is written


@pytest.mark.parametrize("options", [{}, {"section": "both", "labeler": "negbio", "views": "frontal"}])
def test_the_folder_holds_what_the_tree_holds(drawn, tmp_path, small_shards, options):
    prepare(drawn, tmp_path / "out", size=64, **options)
    for split in SPLITS:
        raw, small = load(drawn, split, **options), load(tmp_path / "out", split)
        assert len(small) == len(raw) > 0 and small.features == raw.features
        assert raw.remove_columns("image")[:] == small.remove_columns("image")[:]
        for a, b in zip(raw["image"], small["image"]):
            assert b.mode == "L" and b.format == "JPEG" and b.size == (64, 64)
            expected = np.asarray(a.convert("L").resize((64, 64), Image.Resampling.BICUBIC), dtype=float)
            assert np.abs(expected - np.asarray(b)).mean() < 2


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 400), (102, 64)),
        ((400, 650), (64, 104)),
        ((90, 64), (90, 64)),
        ((40, 300), (40, 300)),
        ((65, 64), (65, 64)),
    ]
    + [((513, 1024), (64, 128)), ((128, 128), (64, 64))],
)
def test_the_shorter_side_gets_the_size_and_the_aspect_is_kept(tmp_path, size, expected):
    path = tmp_path / "x.jpg"
    path.write_bytes(encoded(drawing(*size)))
    image = Image.open(io.BytesIO(shrink(str(path), 64)))
    assert image.size == expected and image.mode == "L"
    plain = Image.open(path).resize(expected, Image.Resampling.BICUBIC)
    difference = np.abs(np.asarray(plain, dtype=float) - np.asarray(image))
    assert difference.mean() < 1 and np.quantile(difference, 0.99) < 12


def test_every_row_is_a_pair_or_a_counted_rejection(tmp_path, small_shards):
    broken = encoded(drawing(60, 50))[:900]
    rows = [
        study(1, report="IMPRESSION: One two three.\n", labels={"Edema": "1.0", "Fracture": "-1.0"}, view="AP"),
        Row("again", 10000001, 50000001, view="LATERAL", report="IMPRESSION: One two three.\n", labels={}),
        study(2, report="IMPRESSION: 5\u00b0 tilt.".encode("cp1252"), labels=None, view=""),
        Row("again-2", 10000002, 50000002, report="IMPRESSION: 5\u00b0 tilt.".encode("cp1252"), labels=None),
        Row("again-3", 10000002, 50000002, report="IMPRESSION: 5\u00b0 tilt.".encode("cp1252"), labels=None),
        study(3, picture=None, report=CLEAR),
        study(4, picture=broken, report=CLEAR),
        study(5, report=EDEMA),
        study(6, report=None),
        study(7, split="validate", report="IMPRESSION: Word.\n", labels={"Edema": "0.0"}),
        study(8, split="test", report=CLEAR),
        study(8, split="test", report=CLEAR),
        study(9, split="test", picture=None, report=EDEMA)._replace(dicom_id="../../x"),
    ]
    root = write_tree(tmp_path / "mimic", rows)
    summary = prepare(root, tmp_path / "out", max_failed=0.5)
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["pairs"] == {"train": 5, "validation": 1, "test": 1}
    assert summary["studies"] == {"train": 2, "validation": 1, "test": 1} == summary["subjects"]
    assert summary["shards"] == {"train": 3, "validation": 1, "test": 1}
    assert summary["views"] == {"PA": 4, "AP": 1, "LATERAL": 1, "": 1}
    assert summary["labels"]["Edema"] == {"positive": 2, "negative": 1, "not mentioned": 4}
    assert summary["labels"]["Fracture"] == {"uncertain": 2, "not mentioned": 5}
    assert set(summary["labels"]) == set(CHEXPERT_LABELS)
    assert summary["words"] == {"least": 1, "median": 2, "95%": 3, "most": 3}
    assert summary["not_utf8_reports"] == 1, "a report counts once, however many images it has"
    report = lambda row: f"{root}/files/{row.patient}/s{row.study_id}.txt"  # noqa: E731
    assert sorted(rejected(tmp_path / "out")) == sorted(
        [
            ("train", image_path(rows[5]), "the file is missing"),
            ("train", image_path(rows[6]), "the file is truncated"),
            ("train", report(rows[7]), "no text for section impression"),
            ("train", report(rows[8]), "the report is missing"),
            ("test", image_path(rows[10]), "a duplicate row of mimic-cxr-2.0.0-split.csv"),
            ("test", image_path(rows[12]), "path leaves the data folder"),
        ]
    )
    assert sum(summary["rejected"].values()) == 6 and len(rows) == 6 + 7
    assert summary["rejected"]["the report is missing"] == 1
    text = prepare_module.summary_text(summary)
    for line in (
        "train .* 5 .* 2 .* 2",
        "views: PA 4, AP 1, LATERAL 1, blank 1",
        "Edema +2 +1 +0 +4",
        "least 1, median 2",
    ):
        assert re.search(line, text), text
    assert "1 reports were not UTF-8" in text


def stretched(pixels: np.ndarray) -> np.ndarray:
    return (pixels - pixels.min()) / (pixels.max() - pixels.min()) * 255


DRAWING = drawing(80, 60)
DEEP = DRAWING.astype(np.uint16) * 16 + 1000
COLOURS = Image.merge(
    "CMYK", [Image.fromarray(np.roll(DRAWING, 9 * i, axis=1)) for i in range(3)] + [Image.new("L", (80, 60))]
)
UNUSUAL = {
    "a PNG": (encoded(DRAWING, "PNG"), DRAWING),
    "a PNG in colours": (encoded(np.dstack([DRAWING] * 3), "PNG"), DRAWING),
    "a PNG with a palette": (encoded(Image.fromarray(DRAWING).convert("P"), "PNG"), DRAWING),
    "a PNG of 16 bits": (encoded(DEEP, "PNG"), stretched(DEEP)),
    "a JPEG in colours": (encoded(np.dstack([DRAWING] * 3)), DRAWING),
    "a CMYK JPEG": (encoded(COLOURS), np.asarray(COLOURS.convert("RGB").convert("L"))),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNUSUAL)
def test_another_picture_under_the_name_of_a_jpeg_is_read_as_what_it_is(tmp_path, kind):
    content, expected = UNUSUAL[kind]
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    small = np.asarray(Image.open(io.BytesIO(shrink(str(path), 30))), dtype=float)
    plain = Image.fromarray(expected.astype(np.uint8)).resize((40, 30), Image.Resampling.BICUBIC)
    assert small.shape == (30, 40) and np.abs(small - np.asarray(plain)).mean() < 2
    assert small.std() > 30, "neither white nor black"


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (encoded(DRAWING)[:-400], "the file is truncated"),
        (encoded(DRAWING, "PNG")[:-400], "image file is truncated"),
        (encoded(DRAWING)[:20], "not a picture"),
        (b"", "the file is empty"),
        (None, "the file is missing"),
        (b"<html>\nlog in first\n", "not a picture"),
        (encoded(DRAWING[:1, :1]), "fewer than 32 pixels a side"),
        (encoded(np.zeros((32, 66000), np.uint8), "PNG"), "66000 x 32 pixels"),
    ],
)
def test_a_bad_picture_is_rejected_with_its_reason_and_its_neighbours_are_kept(tmp_path, picture, reason):
    rows = [study(1), study(2, picture=picture), study(3)]
    summary = prepare(write_tree(tmp_path / "mimic", rows), tmp_path / "out", max_failed=0.5)
    assert load(tmp_path / "out")["image_id"][:] == ["00000001-0", "00000003-0"]
    [(split, path, given)] = rejected(tmp_path / "out")
    assert (split, path) == ("train", image_path(rows[1])) and reason in given
    assert summary["rejected"] == {given: 1}


def test_a_decoder_that_raises_anything_spoils_one_picture_alone(tmp_path, monkeypatch):
    real = Image.Image.convert

    def convert(image, *args, **options):
        if image.size == (50, 50):
            raise ZeroDivisionError
        return real(image, *args, **options)

    monkeypatch.setattr(Image.Image, "convert", convert)
    root = write_tree(tmp_path / "mimic", [study(1), study(2, picture=drawing(50, 50))])
    assert prepare(root, tmp_path / "out", max_failed=0.5)["rejected"] == {"ZeroDivisionError": 1}


def test_too_many_bad_pictures_stop_the_work_and_can_be_mended(tmp_path, small_shards):
    rows = [study(i, picture=drawing(50, 40, seed=i)) for i in range(24)]
    good = write_tree(tmp_path / "good", rows)
    bad = write_tree(tmp_path / "bad", [*rows[:6], rows[6]._replace(picture=None), *rows[7:]])
    prepare(good, tmp_path / "expected")
    out = tmp_path / "out"
    message = (
        rf"1 of 24 pictures .* max_failed 0\.04; the first is {image_path(rows[6])}: the file is missing.*rejected"
    )
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            prepare(bad, out, max_failed=0.04)
    assert rejected(out) == [("train", image_path(rows[6]), "the file is missing")]
    assert not (out / "summary.json").exists()
    write_pictures(bad, [rows[6]])
    with pytest.raises(ValueError, match=message):
        prepare(bad, out, max_failed=0.04)
    prepare(bad, out, max_failed=0.04, retry_failed=True)
    assert contents(out) == contents(tmp_path / "expected")


def test_reports_that_are_missing_or_cannot_be_read_are_counted_and_can_be_mended(tmp_path, small_shards):
    rows = [study(i, report=f"IMPRESSION: Edema {i}.\n") for i in range(10)]
    root, out = write_tree(tmp_path / "mimic", rows), tmp_path / "out"
    reports = [root / "files" / row.patient / f"s{row.study_id}.txt" for row in rows]
    prepare(root, tmp_path / "expected")
    kept = [path.read_bytes() for path in reports]
    reports[1].unlink()
    reports[5].unlink()
    reports[5].mkdir()  # what cannot be opened, for root too
    with pytest.raises(ValueError, match=r"1 of 10 pictures .*s50000005\.txt: the report cannot be read"):
        prepare(root, out, max_failed=0.05)
    shutil.rmtree(out)
    summary = prepare(root, out, max_failed=0.1)
    assert summary["rejected"] == {"the report is missing": 1, "the report cannot be read": 1}
    assert summary["pairs"] == {"train": 8}
    reports[5].rmdir()
    for path, content in zip(reports, kept):
        path.write_bytes(content)
    assert prepare(root, out, retry_failed=True)["pairs"] == {"train": 10}
    assert contents(out) == contents(tmp_path / "expected")


def test_a_finished_folder_can_be_mended_too(tmp_path, small_shards):
    rows = [study(i, picture=drawing(50, 40, seed=i)) for i in range(10)]
    root, out = write_tree(tmp_path / "mimic", rows), tmp_path / "out"
    prepare(root, tmp_path / "expected")
    path = root / image_path(rows[9])
    path.unlink()
    assert prepare(root, out, max_failed=0.1)["pairs"] == {"train": 9}
    write_pictures(root, [rows[9]])
    times = {name: (out / name).stat().st_mtime_ns for name in contents(out) if name.endswith(".arrow")}
    assert prepare(root, out)["pairs"] == {"train": 9}, "not without being asked"
    assert prepare(root, out, retry_failed=True)["pairs"] == {"train": 10}
    again = [name for name, time in times.items() if (out / name).stat().st_mtime_ns != time]
    assert again == ["train/data-00002-of-00003.arrow"], "no other shard is written again"
    assert contents(out) == contents(tmp_path / "expected")


def test_a_split_whose_pictures_all_failed_is_empty(tmp_path):
    root = write_tree(tmp_path / "mimic", [study(1), study(2, split="test", picture=None)])
    assert prepare(root, tmp_path / "out", max_failed=0.5)["pairs"] == {"train": 1, "test": 0}
    assert len(load(tmp_path / "out", "test")) == 0
    with pytest.raises(ValueError, match="no split 'validation'; use one of .'train', 'test'"):
        load(tmp_path / "out", "validation")


def test_a_folder_whose_texts_are_all_missing_is_empty(tmp_path):
    summary = prepare(write_tree(tmp_path / "mimic", [study(1, report=EDEMA)]), tmp_path / "out")
    assert summary["pairs"] == {"train": 0} and "rejected: 1 no text" in prepare_module.summary_text(summary)


def test_reports_from_a_zip(tmp_path, drawn):
    apart = tmp_path / "apart"
    shutil.copytree(drawn, apart)
    with zipfile.ZipFile(tmp_path / "r.zip", "w") as archive:
        for path in apart.rglob("s*.txt"):
            archive.write(path, path.relative_to(apart))
            path.unlink()
    prepare(drawn, tmp_path / "merged")
    prepare(apart, tmp_path / "zipped", reports=tmp_path / "r.zip")
    merged, zipped = contents(tmp_path / "merged"), contents(tmp_path / "zipped")
    options = [json.loads(files.pop("preparation.json")) for files in (merged, zipped)]
    assert merged == zipped and options[0] == options[1] | {"reports": "folder"}
    with pytest.raises(ValueError, match=r"another preparation \(reports was 'r\.zip, \d+ bytes'\)"):
        prepare(drawn, tmp_path / "zipped")


# Splits and views


def test_no_subject_stands_in_two_splits_of_the_finished_folder(drawn, tmp_path, small_shards):
    prepare(drawn, tmp_path / "out", split_by="paper")
    train, validation = (set(load(tmp_path / "out", split)["subject_id"]) for split in ("train", "validation"))
    assert train and validation and not train & validation
    assert {split: sorted(load(drawn, split, split_by="paper")["image_id"]) for split in ("train", "validation")} == {
        split: sorted(load(tmp_path / "out", split)["image_id"]) for split in ("train", "validation")
    }


def test_the_shards_themselves_are_checked_for_subjects_in_two_splits(tmp_path, monkeypatch):
    rows = [study(1), study(2), study(3, subject_id=10000002, split="test")]
    root = write_tree(tmp_path / "mimic", rows)
    with pytest.raises(ValueError, match="both train and test"):
        prepare(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(mimic_cxr, "check_subjects", lambda *_: None)
    with pytest.raises(ValueError, match=f"{tmp_path}/out: 1 subjects are in both train and test, such as 10000002"):
        prepare(root, tmp_path / "out")
    with pytest.raises(ValueError, match="not finished"):
        load(tmp_path / "out")


def test_frontal_views_of_a_folder_with_all(tmp_path):
    rows = [study(i, view=view) for i, view in enumerate(["AP", "LATERAL", "PA", "LL", ""])]
    root = write_tree(tmp_path / "mimic", rows)
    prepare(root, tmp_path / "all")
    prepare(root, tmp_path / "frontal", views="frontal")
    frontal = load(tmp_path / "frontal").remove_columns("image")[:]
    assert frontal["view"] == ["AP", "PA"]
    assert load(tmp_path / "all", views="frontal").remove_columns("image")[:] == frontal
    assert load(tmp_path / "frontal", views="frontal").remove_columns("image")[:] == frontal
    assert len(load(tmp_path / "all")) == 5
    with pytest.raises(ValueError, match="prepared with views 'frontal', not 'all'"):
        load(tmp_path / "frontal", views="all")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"section": "findings"}, "prepared with section 'impression', not 'findings'"),
        ({"split_by": "paper"}, "prepared with split_by 'official', not 'paper'"),
        ({"labeler": "negbio"}, "prepared with labeler 'chexpert', not 'negbio'"),
        ({"reports_dir": "."}, "has its texts, leave out reports_dir"),
        ({"section": "history"}, "section must be one of"),
    ],
)
def test_a_prepared_folder_is_loaded_as_it_was_prepared(tmp_path, options, message):
    prepare(write_tree(tmp_path / "mimic", [study(1)]), tmp_path / "out")
    assert len(load(tmp_path / "out", section="impression", views="all")) == 1
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "out", **options)


# Folders


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 64}, r"another preparation \(size was 32\)"),
        ({"section": "both"}, r"another preparation \(section was 'impression'\)"),
        ({"split_by": "paper"}, r"another preparation \(split_by was 'official'\)"),
        ({"views": "frontal"}, r"another preparation \(views was 'all'\)"),
        ({"labeler": "negbio"}, r"another preparation \(labeler was 'chexpert'\)"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_other_options_at_the_same_folder(drawn, tmp_path, options, message, finished):
    prepare(drawn, tmp_path / "out")
    if not finished:
        (tmp_path / "out" / "summary.json").unlink()
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        prepare(drawn, tmp_path / "out", **options)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("change", [{"view": "AP"}, {"labels": {"Edema": "0.0"}}, {"split": "test"}])
def test_tables_that_changed_in_between(tmp_path, change):
    rows = [study(i, labels={"Edema": ""}) for i in range(3)]
    root = write_tree(tmp_path / "mimic", rows)
    prepare(root, tmp_path / "out")
    write_tables(root, [*rows[:2], rows[2]._replace(**change)])
    with pytest.raises(
        ValueError, match=r"another preparation \(the tables have changed\): choose another output_dir"
    ):
        prepare(root, tmp_path / "out")
    write_tables(root, rows, line_end="\r\n")
    assert prepare(root, tmp_path / "out")["pairs"] == {"train": 3}, "what the rows say has not changed"


def test_a_folder_of_another_format(tmp_path):
    root, out = write_tree(tmp_path / "mimic", [study(1)]), tmp_path / "out"
    prepare(root, out)
    options = json.loads((out / "preparation.json").read_text())
    (out / "preparation.json").write_text(json.dumps({name: options[name] for name in options if name != "format"}))
    for use in (load, lambda folder: prepare(root, folder)):
        with pytest.raises(ValueError, match="prepared by another version of this code .*prepare it again"):
            use(out)


def test_a_folder_that_holds_something_else(tmp_path):
    root = write_tree(tmp_path / "mimic", [study(1)])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    for folder in (tmp_path / "out", root):
        before = contents(folder)
        with pytest.raises(ValueError, match="is not empty and holds no preparation"):
            prepare(root, folder)
        assert contents(folder) == before
    with pytest.raises(ValueError, match=r"thesis\.tex cannot be written"):
        prepare(root, tmp_path / "out" / "thesis.tex")
    with pytest.raises(ValueError, match=r"thesis\.tex/out cannot be written"):
        prepare(root, tmp_path / "out" / "thesis.tex" / "out")


def test_an_unfinished_folder_is_not_trained_on(tmp_path, small_shards):
    root, out = write_tree(tmp_path / "mimic", [study(i) for i in range(10)]), tmp_path / "out"
    expected = prepare(root, out)
    (out / "summary.json").unlink()
    (out / "train" / "data-00002-of-00003.arrow").unlink()
    with pytest.raises(ValueError, match=f"preparation of {out} is not finished: run the same command again"):
        load(out)
    assert prepare(root, out) == expected and len(load(out)) == 10


def test_a_missing_shard_is_noticed_and_written_again(tmp_path, small_shards):
    root, out = write_tree(tmp_path / "mimic", [study(i) for i in range(10)]), tmp_path / "out"
    prepare(root, out)
    before = contents(out)
    for number in (0, 2):
        (out / "train" / f"data-0000{number}-of-00003.arrow").unlink()
    with pytest.raises(ValueError, match=r"2 of 3 shards of train are missing or cut off, such as data-00000-of"):
        load(out)
    prepare(root, out)
    assert contents(out) == before


@pytest.mark.parametrize("damage", ["shard cut off", "shard emptied", "shard too long", "notes cut off", "notes gone"])
def test_a_damaged_shard_is_noticed_and_written_again(tmp_path, small_shards, damage):
    root, out = write_tree(tmp_path / "mimic", [study(i) for i in range(10)]), tmp_path / "out"
    prepare(root, out)
    before = contents(out)
    shard = out / "train" / "data-00001-of-00003.arrow"
    path = shard if damage.startswith("shard") else shard.with_suffix(".json")
    content = path.read_bytes()
    kept = {"cut off": content[:-100], "emptied": b"", "too long": content + b"\0" * 8}
    path.unlink() if damage == "notes gone" else path.write_bytes(kept[damage.split(" ", 1)[1]])
    with pytest.raises(ValueError, match=r"1 of 3 shards of train are missing or cut off, such as data-00001-of"):
        load(out)
    prepare(root, out)
    assert contents(out) == before


@pytest.mark.parametrize("name", ["summary.json", "preparation.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_damaged_record_of_the_folder_is_named(tmp_path, name, content):
    root, out = write_tree(tmp_path / "mimic", [study(1)]), tmp_path / "out"
    prepare(root, out)
    (out / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is damaged.*delete it and run the command"):
        load(out)


def test_the_summary_lists_headings_that_no_rule_knows(tmp_path):
    reports = ["PROVISIONAL: Edema.\n IMPRESSION: Clear.\n"] * 2 + [
        "WIDGET: One.\n PROVISIONAL: Edema.\n IMPRESSION: A.\n"
    ]
    summary = prepare(
        write_tree(tmp_path / "mimic", [study(i, report=text) for i, text in enumerate(reports)]), tmp_path / "out"
    )
    assert summary["unknown_headings"] == {"provisional": 3, "widget": 1}
    assert "whose text is in no pair: PROVISIONAL 3, WIDGET 1" in prepare_module.summary_text(summary)


def test_bad_rows_of_the_tables_are_in_the_list(tmp_path):
    root, out = write_tree(tmp_path / "mimic", [study(i) for i in range(20)]), tmp_path / "out"
    path = root / "mimic-cxr-2.0.0-split.csv"
    path.write_text(path.read_text() + "only,three,fields\n" + "an-id,1,two,train\n")
    with pytest.warns(UserWarning, match="1 of 21 rows skipped, such as line 2[23]: "):
        summary = prepare(root, out)
    reasons = {(row[1], row[2].split(".")[0]) for row in rejected(out)}
    assert reasons == {
        ("mimic-cxr-2.0.0-split.csv, line 22", "3 fields, but there are 4 columns"),
        ("mimic-cxr-2.0.0-split.csv, line 23", "subject_id must be a whole number; got 'two'"),
    }
    assert sum(summary["rejected"].values()) == 2 and summary["pairs"] == {"train": 20}


def test_a_report_that_unpacks_to_gigabytes_is_a_failed_one(tmp_path):
    """300 MB of blanks in a small archive; memory is measured while it is read."""
    rows = [study(i) for i in range(10)]
    root, out = write_tree(tmp_path / "mimic", [row._replace(report=None) for row in rows]), tmp_path / "out"
    with zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for row in rows[:9]:
            archive.writestr(f"files/{row.patient}/s{row.study_id}.txt", row.report)
        with archive.open(f"files/{rows[9].patient}/s{rows[9].study_id}.txt", "w") as file:
            for _ in range(300):
                file.write(b" " * 1_000_000)
    tracemalloc.start()
    prepare(root, out, max_failed=0.1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [row[2] for row in rejected(out)] == ["the report cannot be read"] and peak < 50e6


@pytest.mark.slow
def test_nothing_of_it_needs_a_module_that_windows_lacks(tmp_path):
    code = (
        "import sys, datasets, filelock, pandas, sklearn.model_selection, torch, transformers, multiprocessing.pool\n"
        "for name in ('fcntl', 'pwd', 'grp', 'resource', 'termios', 'posix'):\n"
        "    sys.modules[name] = None\n"
        "from modeling_tier.data.__main__ import main\n"
        f"sys.argv = ['data', 'synthetic', {str(tmp_path / 'a.png')!r}, '--layout', 'contact_sheet']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and (tmp_path / "a.png").is_file(), done.stderr


def test_two_processes_do_not_write_one_folder(tmp_path):
    root, out = write_tree(tmp_path / "mimic", [study(1)]), tmp_path / "out"
    with shards_module.alone(out), pytest.raises(ValueError, match=f"{out} is in use by process {os.getpid()} on"):
        prepare(root, out)
    assert prepare(root, out)["pairs"] == {"train": 1}


def test_a_finished_folder_is_not_written_again(tmp_path, monkeypatch):
    root, out = write_tree(tmp_path / "mimic", [study(1)]), tmp_path / "out"
    first = prepare(root, out)
    monkeypatch.setattr(prepare_module, "_open", lambda *_, **__: pytest.fail("a shard is written again"))
    assert prepare(root, out) == first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 16}, "size must be an integer of at least 32; got 16"),
        ({"size": 64.0}, "size must be an integer"),
        ({"num_proc": 0}, "num_proc must be an integer of at least 1"),
        ({"max_failed": 1.5}, "max_failed must be a fraction between 0 and 1; got 1.5"),
        ({"max_failed": float("nan")}, "max_failed must be a fraction"),
        ({"section": "history"}, "section must be one of"),
        ({"data_dir": None}, "needs data_dir"),
        ({"labeler": "radiologist"}, r"test-set-labeled\.csv"),
    ],
)
def test_bad_options_are_named_before_anything_is_written(tmp_path, options, message):
    root = write_tree(tmp_path / "mimic", [study(1)])
    with pytest.raises(ValueError, match=message):
        prepare(**{"data_dir": root, "output_dir": tmp_path / "out", **options})
    assert not (tmp_path / "out").exists()


def test_nothing_is_left_to_prepare(tmp_path):
    root = write_tree(tmp_path / "mimic", [study(1)])
    table = root / "mimic-cxr-2.1.0-test-set-labeled.csv"
    table.write_text("study_id,Edema\n1,1.0\n")
    with pytest.raises(ValueError, match="no image of .* is left by .*'radiologist'"):
        prepare(root, tmp_path / "out", labeler="radiologist")


# A full disk


def test_a_full_disk_at_any_file(tmp_path, small_shards, monkeypatch):
    root = write_tree(tmp_path / "mimic", [study(i) for i in range(9)])
    prepare(root, tmp_path / "expected")
    expected = contents(tmp_path / "expected")
    calls, fsync = [], os.fsync

    def full(file):
        calls.append(file)
        if len(calls) == broken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    monkeypatch.setattr(prepare_module.os, "fsync", full)
    for broken in range(1, len(expected) + 1):
        out = tmp_path / f"out-{broken}"
        calls.clear()
        with pytest.raises(
            ValueError, match="cannot be written: .*No space left on device.*make room and run the same"
        ):
            prepare(root, out)
        left = contents(out)
        assert len(left) == broken - 1 and all(expected[name] == left[name] for name in left)
        prepare(root, out)
        assert contents(out) == expected
    calls.clear()
    broken = None
    prepare(root, tmp_path / "last")
    assert len(calls) == len(expected)


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_really_full(tmp_path, small_shards, small_disk):
    rows = [study(i, picture=drawing(200, 200, seed=i)) for i in range(40)]
    root = write_tree(tmp_path / "mimic", rows)
    prepare(root, tmp_path / "expected", size=200)
    expected = contents(tmp_path / "expected")
    with pytest.raises(ValueError, match="No space left on device.*Complete shards are kept"):
        prepare(root, small_disk / "out", size=200)
    left = contents(small_disk / "out")
    assert len(left) > 2 and all(expected[name] == left[name] for name in left)
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    prepare(root, small_disk / "out", size=200)
    assert contents(small_disk / "out") == expected


# The command line, and stops of every kind


DRIVER = """
import gc, json, os, pathlib, signal, sys

import modeling_tier.data.shards as shards
from modeling_tier.data.__main__ import main

shards.ROWS_PER_SHARD, shards.ROWS_PER_TASK = 4, 2


def dying(function, calls=[]):
    def call(*args):
        calls.append(args)
        if len(calls) == job["die_at"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args)

    return call


if __name__ == "__main__":
    gc.freeze()
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if not child:
            break
        print("started", child, flush=True)
        print("ended", os.waitpid(child, 0)[1], flush=True)
    else:
        sys.exit()
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, name in ((0, os.devnull), (1, job["stdout"]), (2, job["stderr"])):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    calls = []
    os.fsync = dying(os.fsync, calls)
    pathlib.Path.replace = dying(pathlib.Path.replace, calls)
    sys.argv = ["python -m modeling_tier.data", *job["arguments"]]
    main()
"""


class CommandLine:
    """`python -m modeling_tier.data` with small shards, a process each; one imports everything and the others fork."""

    def __init__(self, folder: Path):
        self.out, self.err, self.child = folder / "stdout", folder / "stderr", None
        (folder / "driver.py").write_text(DRIVER)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, folder / "driver.py"], env=environment, **pipes)

    def start(self, *arguments, die_at: int = 0) -> int:
        job = {"arguments": list(map(str, arguments)), "stdout": str(self.out), "stderr": str(self.err)}
        print(json.dumps(job | {"die_at": die_at}), file=self.process.stdin, flush=True)
        self.child = self._answer("started")
        return self.child

    def wait(self) -> int:
        code = os.waitstatus_to_exitcode(self._answer("ended"))
        self.child = None
        return code

    def _answer(self, expected: str) -> int:
        word, number = self.process.stdout.readline().split()
        assert word == expected
        return int(number)

    def run(self, *arguments, **options) -> int:
        self.start(*arguments, **options)
        return self.wait()


@pytest.fixture(scope="module", autouse=True)  # it imports while the first tests run
def driver(tmp_path_factory):
    line = CommandLine(tmp_path_factory.mktemp("driver"))
    yield line
    line.process.stdin.close()
    assert line.process.wait(timeout=10) == 0


@pytest.fixture
def command(driver):
    yield driver
    if driver.child:  # the test has failed
        os.killpg(driver.child, signal.SIGKILL)
        driver.wait()


def arguments(data_dir, output_dir, **options) -> list:
    options = {"data_dir": data_dir, "output_dir": output_dir, "size": 32} | options
    return ["prepare", "mimic_cxr"] + [str(part) for name in options for part in (f"--{name}", options[name])]


def until(condition, seconds=60):
    """Wait for something that other processes do."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
    return value


def processes_of(session: int) -> list[psutil.Process]:
    processes = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                processes.append(process)
        except (ProcessLookupError, PermissionError, psutil.Error):
            pass
    return processes


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def release(pipe: Path) -> None:
    """Let a process go that waits for the other end of a named pipe, if there is one."""
    try:
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        assert error.errno == errno.ENXIO


def check_shards(folder: Path, expected: dict[str, bytes]) -> None:
    for path in folder.rglob("*.arrow"):
        assert path.read_bytes() == expected[str(path.relative_to(folder))], "half a shard"


@pytest.fixture(scope="module")
def ten(tmp_path_factory):
    """A tree of ten shards, and what a run that nobody stopped makes of it."""
    folder = tmp_path_factory.mktemp("ten")
    rows = [study(i, picture=drawing(64, 48, seed=i), split=("train", "validate", "test")[i // 16]) for i in range(40)]
    root = write_tree(folder / "mimic", rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards_module, "ROWS_PER_SHARD", 4)
        prepare(root, folder / "expected")
    return root, contents(folder / "expected"), rows


@pytest.fixture
def stuck(ten, tmp_path):
    """The same tree, with a picture in the sixth shard that blocks whoever opens it."""
    root, expected, rows = ten
    tree = tmp_path / "stuck"
    shutil.copytree(root, tree)
    pipe = tree / image_path(rows[21])
    pipe.unlink()
    os.mkfifo(pipe)
    yield tree, pipe, lambda: pipe.unlink() or shutil.copy(root / image_path(rows[21]), pipe)


def shards(folder: Path) -> int:
    return len(list(folder.rglob("*.arrow")))


def test_one_process_or_two_write_the_same_bytes(ten, tmp_path, small_shards):
    root, expected, _ = ten
    for num_proc in (1, 2):
        prepare(root, tmp_path / str(num_proc), num_proc=num_proc)
        assert contents(tmp_path / str(num_proc)) == expected
    assert len([name for name in expected if name.endswith(".arrow")]) == 10


def test_a_run_prints_its_summary_and_errors_have_no_traceback(ten, tmp_path, command):
    root, expected, _ = ten
    assert command.run(*arguments(root, tmp_path / "out")) == 0
    assert contents(tmp_path / "out") == expected
    summary = prepare_module.summary_text(json.loads(expected["summary.json"]))
    assert command.out.read_text() == summary + "\n" and "validation        16       16        16" in summary
    assert "img/s" in command.err.read_text()
    assert command.run(*arguments(root, tmp_path / "out", size=64)) == 1
    assert command.out.read_text() == ""
    assert command.err.read_text() == (
        f"error: {tmp_path}/out holds another preparation (size was 32): choose another output_dir or empty it.\n"
    )
    assert command.run(*arguments(root, tmp_path / "out", section="history")) == 2
    assert "invalid choice: 'history'" in command.err.read_text()


def test_the_real_command_line_explains_itself():
    line = [sys.executable, "-m", "modeling_tier.data", "prepare", "mimic_cxr", "--help"]
    result = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 and not result.stderr
    words = " ".join(result.stdout.split())
    for option, default in (("size", 320), ("num_proc", 1), ("max_failed", 0.01), ("section", "impression")):
        assert f"--{option}" in words and f"(default: {default})" in words


def test_the_command_line_offers_every_option(monkeypatch):
    given, signature = {}, inspect.signature(prepare_module.prepare)
    record = lambda **options: given.update(options)  # noqa: E731
    record.__signature__ = signature
    monkeypatch.setattr(command_module, "prepare", record)
    monkeypatch.setattr(command_module, "summary_text", str)
    monkeypatch.setattr(sys, "argv", ["data", *arguments("a", "b", max_failed=0.5), "--retry_failed"])
    main()
    assert set(given) == set(signature.parameters) - {"progress"}
    defaults = {name: signature.parameters[name].default for name in given}
    changed = {"data_dir": "a", "output_dir": "b", "size": 32, "max_failed": 0.5, "retry_failed": True}
    assert given == defaults | changed


def test_killed_before_any_durable_step_the_work_goes_on(tmp_path, command, small_shards):
    root = write_tree(tmp_path / "mimic", [study(i) for i in range(9)])
    prepare(root, tmp_path / "expected")
    expected = contents(tmp_path / "expected")
    for step in range(1, 2 * len(expected) + 1):  # each file is synced, then renamed
        out = tmp_path / f"out-{step}"
        assert command.run(*arguments(root, out), die_at=step) == -signal.SIGKILL
        left = contents(out)
        left.pop(".lock")
        assert all(expected[name] == left[name] for name in left if not name.endswith(".tmp"))
        assert len([name for name in left if name.endswith(".tmp")]) == 1
        prepare(root, out)
        assert contents(out) == expected
    assert command.run(*arguments(root, tmp_path / "last"), die_at=step + 1) == 0


@pytest.mark.slow
def test_killed_at_random_moments_the_work_goes_on(ten, tmp_path, command):
    root, expected, _ = ten
    out = tmp_path / "out"
    start = time.monotonic()
    assert command.run(*arguments(root, tmp_path / "whole")) == 0
    whole = time.monotonic() - start
    for moment in np.random.default_rng(0).uniform(0.1, 0.9, 6):
        child = command.start(*arguments(root, out))
        time.sleep(moment * whole)
        with suppress(ProcessLookupError):  # it was faster
            os.kill(child, signal.SIGKILL)
        assert command.wait() in (-signal.SIGKILL, 0)
        check_shards(out, expected)
    assert command.run(*arguments(root, out)) == 0
    assert contents(out) == expected


@pytest.mark.slow
def test_killed_with_workers_none_of_them_stays(ten, stuck, tmp_path, command):
    tree, pipe, mend = stuck
    out = tmp_path / "out"
    child = command.start(*arguments(tree, out, num_proc=2))
    until(lambda: shards(out) >= 3)
    assert len(processes_of(child)) >= 4, "the command, a server and two workers"
    os.kill(child, signal.SIGKILL)
    assert command.wait() == -signal.SIGKILL
    until(lambda: not processes_of(child))
    check_shards(out, ten[1])
    mend()
    assert command.run(*arguments(tree, out)) == 0
    assert contents(out) == ten[1]


@pytest.mark.parametrize(("num_proc", "moment"), [(1, "at work"), (2, "at work"), (2, "while workers start")])
@pytest.mark.slow
def test_ctrl_c_ends_it_cleanly(ten, stuck, tmp_path, command, num_proc, moment):
    tree, pipe, mend = stuck
    out = tmp_path / "out"
    child = command.start(*arguments(tree, out, num_proc=num_proc))
    if moment == "at work":
        until(lambda: shards(out) >= 3)
    else:
        until(lambda: [line for line in map(command_of, processes_of(child)) if "forkserver" in line])
        time.sleep(0.5)
    os.killpg(child, signal.SIGINT)
    until(lambda: release(pipe) or not processes_of(child))
    assert command.wait() == 1
    message = command.err.read_text()
    assert message.endswith("\nstopped; the same command goes on from here\n") and "Traceback" not in message
    check_shards(out, ten[1])
    assert not list(out.rglob("*.tmp"))
    mend()
    assert command.run(*arguments(tree, out)) == 0
    assert contents(out) == ten[1]


def workers() -> list[psutil.Process]:
    return psutil.Process(multiprocessing.forkserver._forkserver._forkserver_pid).children()


@pytest.mark.slow
def test_a_killed_worker_is_an_error_and_the_work_goes_on(ten, stuck, tmp_path, small_shards):
    tree, pipe, mend = stuck
    out = tmp_path / "out"

    def kill():
        until(lambda: shards(out) >= 3)
        for process in workers():
            process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(ValueError, match="process that decodes pictures was killed.*smaller num_proc"):
        prepare(tree, out, num_proc=2)
    killer.join()
    assert 3 <= shards(out) < 10 and not list(out.rglob("*.tmp")) and not workers()
    check_shards(out, ten[1])
    mend()
    prepare(tree, out, num_proc=2)
    assert contents(out) == ten[1]


def test_workers_that_die_while_texts_are_read(ten, tmp_path, small_shards, monkeypatch):
    out, opened, real = tmp_path / "out", [], prepare_module._open

    def submits(submit):
        try:
            return not submit(int)
        except BrokenProcessPool:
            return True

    def die_at_the_fifth(path, rows, submit, **options):
        opened.append(path)
        if len(opened) == 5:
            for process in workers():
                process.kill()
            until(lambda: submits(submit))
        return real(path, rows, submit, **options)

    monkeypatch.setattr(prepare_module, "_open", die_at_the_fifth)
    with pytest.raises(ValueError, match="process that decodes pictures was killed"):
        prepare(ten[0], out, num_proc=2)
    assert shards(out) == 2
    prepare(ten[0], out)
    assert contents(out) == ten[1]
