# Licensed under the Apache License, Version 2.0.
"""Damage in files that are read only when a row is asked for: the file is named, and nothing is lost in silence."""

import io
import tarfile
import warnings
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as PillowImage
from torch.utils.data import DataLoader

from modeling_tier.data import load_pairs
from modeling_tier.data.pictures import undecoded
from modeling_tier.data.prepared import open_shard


NUM_ROWS = 60
OPTIONS = {"validation_share": 1e-9, "streaming": True}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(i: int) -> bytes:
    file = io.BytesIO()
    PillowImage.fromarray(np.random.default_rng(i).integers(0, 256, (9, 7), np.uint8)).save(file, "PNG")
    return file.getvalue()


def rows(first: int = 0) -> Dataset:
    numbers = range(first, first + NUM_ROWS)
    content = {"image": [{"bytes": png(i), "path": None} for i in numbers], "text": [f"effusion {i}" for i in numbers]}
    return Dataset.from_dict(content, features=Features({"image": Image(), "text": Value("string")}))


def write_parquet(folder: Path) -> Path:
    for number in range(3):
        rows(number * NUM_ROWS).to_parquet(folder / f"train-{number}.parquet", batch_size=20)
    return folder / "train-1.parquet"


def write_arrow(folder: Path) -> Path:
    for number in range(3):
        table = rows(number * NUM_ROWS).with_format("arrow")[:]
        with pa.ipc.new_stream(folder / f"train-{number}.arrow", table.schema) as writer:
            writer.write_table(table, max_chunksize=20)
    return folder / "train-1.arrow"


def write_tar(folder: Path) -> Path:
    for number in range(3):
        with tarfile.open(folder / f"train-{number}.tar", "w") as archive:
            for i in range(number * NUM_ROWS, (number + 1) * NUM_ROWS):
                for suffix, content in (("png", png(i)), ("txt", f"effusion {i}".encode())):
                    member = tarfile.TarInfo(f"{i:04}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return folder / "train-1.tar"


FORMS = {
    "parquet": (write_parquet, lambda content: content[:4] + bytes(500) + content[504:]),  # the first pages
    "arrow": (write_arrow, lambda content: content[: len(content) * 2 // 3]),
    "tar": (write_tar, lambda content: content[: NUM_ROWS * 1024 + 512 + 10]),  # within a picture
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("form", FORMS)
def test_a_stream_gives_each_row_once_and_names_a_damaged_file(tmp_path, form, workers):
    write, damage = FORMS[form]
    damaged = write(tmp_path)

    def texts():
        stream = undecoded(load_pairs("pairs", "train", data_dir=tmp_path, **OPTIONS))
        assert stream.num_shards == 3
        loader = DataLoader(stream, batch_size=7, num_workers=workers, collate_fn=list)
        return sorted(int(row["text"].split()[1]) for batch in loader for row in batch)

    assert texts() == list(range(3 * NUM_ROWS))
    damaged.write_bytes(damage(damaged.read_bytes()))
    with pytest.raises(ValueError, match=rf"{damaged} cannot be read behind row \d+ .*download it again"):
        texts()


@pytest.mark.parametrize("streaming", [False, True])
def test_an_archive_cut_between_two_members_is_told(tmp_path, streaming):
    archive = write_tar(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_pairs("pairs", "train", data_dir=tmp_path, **OPTIONS | {"streaming": streaming})
    archive.write_bytes(archive.read_bytes()[: 40 * 1024])
    with pytest.warns(UserWarning, match=f"{archive} does not end as a tar archive"):
        load_pairs("pairs", "train", data_dir=tmp_path, **OPTIONS | {"streaming": streaming})


def damage_texts(path: Path) -> None:
    """A byte that is in no text of UTF-8, in the middle of one: its offsets are as before."""
    content = path.read_bytes()
    assert content.count(b"effusion 41") == 1
    path.write_bytes(content.replace(b"effusion 41", b"effusio\xff 41"))


def test_a_saved_data_set_with_a_damaged_text(tmp_path):
    rows().save_to_disk(tmp_path / "data")
    (path,) = (tmp_path / "data").glob("*.arrow")
    damage_texts(path)
    with pytest.raises(ValueError, match=rf"data set in {tmp_path}/data is damaged .*download it again"):
        load_pairs("pairs", "train", data_dir=tmp_path / "data", validation_share=1e-9)


def test_a_prepared_shard_with_a_damaged_text(tmp_path):
    rows().save_to_disk(tmp_path / "data")
    (path,) = (tmp_path / "data").glob("*.arrow")
    assert len(open_shard(path)) == NUM_ROWS
    damage_texts(path)
    with pytest.raises(ValueError, match=f"shard {path} is damaged .*run the command that prepared the folder again"):
        open_shard(path)
