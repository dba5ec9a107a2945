# Licensed under the Apache License, Version 2.0.
"""ChestX-ray14 as Parquet files, of the columns that timm/nih-chest-xray-14 has, from a folder and from the Hub."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, List
from datasets import Image as ImageFeature
from hub import serve
from nih_parquet import CLASSES, FEATURES, row, write

from modeling_tier.data import load_pairs
from modeling_tier.data.rejected import collect_rejected


ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


TEST = [
    row(1, 3, ["Cardiomegaly", "Effusion"], [{"label": "Cardiomegaly", "bbox": [100.0, 200.0, 400.0, 300.0]}]),
    row(2, 3, []),
    row(3, 4, ["Infiltration"], [{"label": "Infiltrate", "bbox": [0.0, 0.0, 512.0, 1024.0]}]),
    row(4, 5, ["Pleural_Thickening"]),
]
TRAIN = [row(i, i, ["Mass"]) for i in range(10, 16)]


def load(folder, split="test", **options) -> Dataset:
    return load_pairs("chestxray14", split, data_dir=str(folder), **options)


def found(row: dict) -> list[str]:
    return [name for name, value in row["labels"].items() if value]


@pytest.mark.filterwarnings("ignore:chestxray14")
def test_from_a_folder(tmp_path):
    write(tmp_path, TEST[:2], "test", part="00000-of-00002"), write(tmp_path, TEST[2:], "test", part="00001-of-00002")
    write(tmp_path, TRAIN, "train")
    test = load(tmp_path)
    assert [row["image_id"] for row in test] == [f"{row['image_id']}.png" for row in TEST], "as in the original files"
    assert list(map(found, test)) == [["Cardiomegaly", "Effusion"], ["No Finding"], ["Infiltration"], CLASSES[-3:-2]]
    assert [row["subject_id"] for row in test] == ["3", "3", "4", "5"] and test[0]["view"] == "PA"
    assert test[0]["regions"] == [{"finding": "Cardiomegaly", "phrase": "Cardiomegaly", "box": [25, 50, 125, 125]}]
    assert test[2]["regions"][0]["finding"] == "Infiltration" and test[2]["regions"][0]["box"] == [0, 0, 128, 256]
    assert np.asarray(test[3]["image"]).mean() == pytest.approx(40, abs=1) and test[1]["regions"] == []
    assert [row["image_id"] for row in load(tmp_path, with_boxes=True)] == ["00000003_001.png", "00000004_003.png"]
    assert len(load(tmp_path, "train")) == 6
    assert load(tmp_path, max_images=3)[:] == test.select(range(3))[:]


def test_what_a_copy_holds_is_said(tmp_path):
    write(tmp_path, TEST, "test")
    with pytest.warns(UserWarning, match="4 images of the split 'test', the official list 25596"):
        load(tmp_path)
    write(tmp_path, [row(9, 3, [])], "train")
    with pytest.raises(ValueError, match="1 subjects are in both test and train, such as 3"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"has no split 'validation'; use one of \['train', 'test'\]"):
        load(tmp_path, "validation")
    with pytest.raises(ValueError, match="max_images must be at least 1; got 0"):
        load(tmp_path, max_images=0)


@pytest.mark.filterwarnings("ignore:chestxray14")
@pytest.mark.parametrize(
    ("boxes", "kind"),
    [
        ([{"x": 100.0, "y": 200.0, "w": 400.0, "h": 300.0, "finding": "Cardiomegaly"}], "numbers"),
        ({"label": [1], "bbox": [[100.0, 200.0, 400.0, 300.0]]}, "object of lists"),
    ],
)
def test_boxes_in_other_forms(tmp_path, boxes, kind):
    rows = [{"image": TEST[0]["image"], "labels": [1], "image_id": "00000003_001", "patient_id": 3, "boxes": boxes}]
    table = Dataset.from_list(rows).cast_column("labels", List(ClassLabel(names=CLASSES)))
    (tmp_path / "data").mkdir()
    table.cast_column("image", ImageFeature()).to_parquet(tmp_path / "data/test.parquet")
    (test,) = load(tmp_path)
    assert test["regions"] == [{"finding": "Cardiomegaly", "phrase": "Cardiomegaly", "box": [25, 50, 125, 125]}], kind
    assert found(test) == ["Cardiomegaly"] and test["view"] == ""


@pytest.mark.filterwarnings("ignore:chestxray14")
def test_bad_rows_and_missing_columns_are_named(tmp_path):
    bad = [{"label": "Cardiomegaly", "bbox": [2000.0, 0.0, 5.0, 5.0]}]
    write(tmp_path, [*(row(i, 100 + i, []) for i in range(40)), row(50, 7, ["Oedema"] * 0, bad)], "test")
    with collect_rejected() as rejected, pytest.warns(UserWarning, match=r"1 of 41 rows skipped, such as row 41"):
        assert len(load(tmp_path)) == 40
    assert "lies outside of the 1024 x 1024 pixels" in rejected[0].reason and "00000007_050" in rejected[0].row
    for name in ("patient_id", "image_id", "image"):
        some = {key: kind for key, kind in FEATURES.items() if key != name}
        write(tmp_path, TEST, "test", some)
        with pytest.raises(ValueError, match=f"has no column '{name}' or .*; it has .*'label_names'"):
            load(tmp_path)
    (tmp_path / "data/test-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=f"{tmp_path}, split 'test', cannot be read"):
        load(tmp_path)
    with pytest.raises(ValueError, match="no Parquet file whose name begins with 'train'"):
        load(tmp_path, "train")


READ = """
import json, sys, warnings
warnings.simplefilter("ignore")
from modeling_tier.data import load_pairs

for options in ({"max_images": 2}, {}):
    rows = load_pairs("chestxray14", "test", data_dir="timm/nih-chest-xray-14", **options)
    print(json.dumps([[row["image_id"], row["image"].size, row["regions"]] for row in rows]))
try:
    load_pairs("chestxray14", "test", data_dir="timm/nothing")
except ValueError as error:
    print(json.dumps(str(error)))
"""


@pytest.mark.slow
def test_from_the_hub_by_name(tmp_path):
    write(tmp_path, TEST, "test"), write(tmp_path, TRAIN, "train")
    files = {f"data/{path.name}": path.read_bytes() for path in (tmp_path / "data").glob("*.parquet")}
    with serve("datasets", "timm/nih-chest-xray-14", files, tmp_path / "home") as (environment, asked):
        command = [sys.executable, "-c", READ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert set(asked) == {"data/test-00000-of-00001.parquet"}, "the other split is not downloaded"
    first, everything, error = [json.loads(line) for line in done.stdout.splitlines()]
    assert [name for name, *_ in everything] == [f"{row['image_id']}.png" for row in TEST]
    assert first == everything[:2] and everything[0][1] == [256, 256]
    assert everything[0][2][0]["box"] == [25, 50, 125, 125]
    assert error.startswith("timm/nothing, split 'test', cannot be read") and "\n" not in error
