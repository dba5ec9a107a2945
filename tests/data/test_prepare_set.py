# Licensed under the Apache License, Version 2.0.
"""Every data set prepared: what is loaded from the prepared folder is what the loader gives, in small."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from small_sets import ROWS, TREES

from modeling_tier.data import DATASETS, load_pairs
from modeling_tier.data import shards as shards_module
from modeling_tier.data.masks import mask_cell
from modeling_tier.data.pictures import read_picture, undecoded
from modeling_tier.data.prepare_set import prepare_dataset
from modeling_tier.data.record import DatasetRecord
from modeling_tier.data.shards import summary_text


ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def prepared(name: str, data_dir: Path, out: Path, size: int = 32, **options) -> dict:
    rest = {key: options.pop(key) for key in ("splits", "num_proc", "max_failed", "retry_failed") if key in options}
    options = {"data_dir": str(data_dir)} | options
    return prepare_dataset(DATASETS[name], out, options, size=size, progress=False, **rest)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", [kind for kind in TREES if kind != "mimic_cxr"])
def test_a_prepared_folder_holds_what_the_loader_gives(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(shards_module, "ROWS_PER_SHARD", 8)
    (tmp_path / "data").mkdir()
    tree = TREES[kind](tmp_path / "data")
    split, options = tree.calls[0]
    raw = load_pairs(tree.name, split, data_dir=tmp_path / "data", **options)
    chosen = {name: value for name, value in options.items() if name != "streaming"}
    summary = prepared(tree.name, tmp_path / "data", tmp_path / "out", splits=[split], **chosen)
    assert summary["pairs"] == {split: len(raw)} and summary["shards"] == {split: -(-len(raw) // 8)}
    assert "rejected: none" in summary_text(summary)
    small = load_pairs(tree.name, split, data_dir=tmp_path / "out", **chosen)
    assert small.features == raw.features
    names = [name for name in raw.column_names if name not in ("image", "regions")]
    assert small.select_columns(names)[:] == raw.select_columns(names)[:]
    for before, after in zip(undecoded(raw), small):
        assert min(after["image"].size) == 32 and after["image"].mode == "L"
        picture = read_picture(before["image"], before["image_id"])
        scale = np.divide(after["image"].size, picture.size)
        expected = picture.convert("L").resize(after["image"].size, Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(expected, float) - np.asarray(after["image"])).mean() < 4
        for region, smaller in zip(before.get("regions") or (), after.get("regions") or (), strict=True):
            assert smaller["box"] == pytest.approx(np.multiply(region["box"], [*scale, *scale]).tolist(), rel=1e-5)
            assert smaller["phrase"] == region["phrase"]


def masked(split: str = "test") -> datasets.Dataset:
    """A data set with masks, as of a loader."""
    from modeling_tier.data.columns import check_split, make_pairs, pair_features

    check_split("masked", split, ("test",))
    pixels = np.zeros((90, 120), np.uint8)
    pixels[30:60, 40:100] = 255
    image = {"bytes": mask_cell(Image.fromarray(pixels))["bytes"], "path": None}
    region = {"finding": "Mass", "phrase": "a mass", "box": [40, 30, 100, 60], "mask": image}
    columns = {"image": [image] * 3, "image_id": ["a", "b", "c"], "regions": [[region], [], [region]]}
    return make_pairs(columns, pair_features(["Mass"], ids="string", regions=True, mask=True))


def test_masks_follow_their_picture(tmp_path):
    record = DatasetRecord("masked", masked, "Masked", None, None, "nobody", None)
    summary = prepare_dataset(record, tmp_path / "out", {}, size=45, progress=False)
    assert summary["pairs"] == {"test": 3} and summary["regions"] == {"Mass": 2}
    from modeling_tier.data.prepared import load_prepared

    rows = list(load_prepared(tmp_path / "out", "test"))
    assert rows[1]["regions"] == [] and rows[0]["image"].size == (60, 45)
    mask = np.asarray(rows[0]["regions"][0]["mask"])
    expected = np.zeros((45, 60), bool)
    expected[15:30, 20:50] = True
    assert np.array_equal(mask > 0, expected) and rows[0]["regions"][0]["box"] == [20, 15, 50, 30]


def test_own_pairs_with_bad_pictures_are_counted_and_a_stopped_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(shards_module, "ROWS_PER_SHARD", 4)
    (tmp_path / "data").mkdir()
    tree = TREES["pairs_csv"](tmp_path / "data")
    options = tree.calls[0][1]
    (tmp_path / "data/p/3.png").unlink(), (tmp_path / "data/p/9.png").write_bytes(b"not a picture")
    options = options | {"splits": ["train"]}
    summary = prepared("pairs", tmp_path / "data", tmp_path / "out", max_failed=0.1, **options)
    assert summary["pairs"] == {"train": ROWS - 2} and sum(summary["rejected"].values()) == 2
    rejected = (tmp_path / "out/rejected.csv").read_text()
    assert "a.csv, line 5" in rejected and "no picture" in rejected and "row 9,not a picture" in rejected
    expected = contents(tmp_path / "out")
    with pytest.raises(ValueError, match=r"1 of 19 pictures are missing or unreadable, more than max_failed 0\.01"):
        prepared("pairs", tmp_path / "data", tmp_path / "other", **options)
    for name in ("summary.json", "train/data-00002-of-00005.arrow"):
        (tmp_path / "out" / name).unlink()
    with pytest.raises(ValueError, match="not finished: run the same command again"):
        load_pairs("pairs", "train", data_dir=tmp_path / "out")
    prepared("pairs", tmp_path / "data", tmp_path / "out", max_failed=0.1, **options)
    assert contents(tmp_path / "out") == expected
    stream = load_pairs("pairs", "train", data_dir=tmp_path / "out", streaming=True)
    assert [row["text"] for row in stream] == load_pairs("pairs", "train", data_dir=tmp_path / "out")["text"][:]


def test_a_prepared_folder_says_what_it_holds(tmp_path):
    (tmp_path / "data").mkdir()
    TREES["chexpert"](tmp_path / "data")
    prepared("chexpert", tmp_path / "data", tmp_path / "out", splits=["test"], by="study")
    load = lambda name="chexpert", split="test", **options: load_pairs(  # noqa: E731
        name, split, data_dir=tmp_path / "out", **options
    )
    assert len(load()) == len(load(by="study")) == ROWS and load()[0]["reads"][0]["reader"] == "bc4"
    with pytest.raises(ValueError, match="was prepared with by 'study', not 'image'"):
        load(by="image")
    with pytest.raises(ValueError, match="was prepared with views 'all', not 'frontal'"):
        load(views="frontal")
    with pytest.raises(ValueError, match="was prepared from the data set 'chexpert', not from 'padchest'"):
        load("padchest")
    with pytest.raises(ValueError, match=r"has no split 'validation'; use one of \['test'\]"):
        load(split="validation")
    with pytest.raises(ValueError, match="holds another preparation"):
        prepared("chexpert", tmp_path / "data", tmp_path / "out", splits=["test"], by="image")
    (tmp_path / "data/train.csv").unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"none of \['train\.csv'\].*name them with splits"):
        prepared("chexpert", tmp_path / "data", tmp_path / "all")


@pytest.mark.slow
def test_by_command(tmp_path):
    (tmp_path / "data").mkdir()
    TREES["pairs_csv"](tmp_path / "data")
    run = lambda *options: subprocess.run(  # noqa: E731
        [sys.executable, "-m", "modeling_tier.data", "prepare", *map(str, options)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    command = ("pairs", "--data_dir", tmp_path / "data", "--output_dir", tmp_path / "out", "--size", 32)
    columns = ("--image_column", "file", "--folder_column", "dir", "--label_columns", "[Edema]", "--splits", "train")
    done = run(*command, *columns, "--label_values", '{"no": 0}')
    assert done.returncode == 0 and "rejected: none" in done.stdout, done.stderr
    assert json.loads((tmp_path / "out/preparation.json").read_text())["options"]["label_values"] == {"no": 0}
    done = run(*command, *columns, "--label_values", "[no]")
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: pairs: label_values must be a map")
