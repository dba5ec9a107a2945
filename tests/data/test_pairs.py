# Licensed under the Apache License, Version 2.0.
"""Pairs of one's own: the same rows however they are stored, and a clear word about whatever is wrong with them."""

import csv
import gzip
import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, IterableDataset, Value
from datasets import Image as ImageFeature
from hub import serve
from PIL import Image

from modeling_tier.data import load_pairs, pairs_source
from modeling_tier.data.pictures import read_picture, undecoded
from modeling_tier.data.rejected import collect_rejected, write_rejected


ROOT = Path(__file__).parents[2]
OPTIONS = {
    "image_column": "file",
    "text_column": "findings",
    "subject_column": "patient",
    "study_column": "visit",
    "id_column": "uid",
    "label_columns": ["Edema", "Fracture"],
}
LABELS = [1, 0, -1, None]


def pixels(i: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (9, 7), dtype=np.uint8)


def png(i: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(i)).save(file, "PNG")
    return file.getvalue()


# Two pictures of each of ten patients. Texts have commas, quotation marks, line ends and letters outside of ASCII.
ROWS = [
    {
        "file": f"p{i // 2}/{i}.png",
        "findings": f'Ödem "{i}",\nsmall.',
        "patient": i // 2,
        "visit": 100 + i // 2,
        "uid": f"u{i}",
        "Edema": LABELS[i % 4],
        "Fracture": LABELS[i // 4 % 4],
    }
    for i in range(20)
]


def write_pictures(folder: Path, rows=ROWS) -> None:
    for row in rows:
        (folder / row["file"]).parent.mkdir(parents=True, exist_ok=True)
        (folder / row["file"]).write_bytes(png(int(row["uid"][1:])))


def csv_text(rows) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def jsonl_text(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(rows) -> Dataset:
    pictures = [{"bytes": png(int(row["uid"][1:])), "path": None} for row in rows]
    features = {"file": ImageFeature(), "findings": Value("string"), "patient": Value("int32")}
    features |= {
        "visit": Value("float64"),
        "uid": Value("string"),
        "Edema": Value("int8"),
        "Fracture": Value("float32"),
    }
    columns = {name: [row[name] for row in rows] for name in features}
    return Dataset.from_dict(columns | {"file": pictures}, features=Features(features))


def write_tar(path: Path, samples: list[tuple[str, dict[str, bytes]]]) -> None:
    with tarfile.open(path, "w") as file:
        for key, members in samples:
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))


def sample(row: dict) -> tuple[str, dict[str, bytes]]:
    about = {name: row[name] for name in ("patient", "visit", "Edema", "Fracture")}
    members = {"png": png(int(row["uid"][1:])), "txt": row["findings"].encode(), "json": json.dumps(about).encode()}
    return row["uid"], members


WEBDATASET = {
    "subject_column": "json.patient",
    "study_column": "json.visit",
    "label_columns": ["json.Edema", "json.Fracture"],
}


def store(folder: Path, form: str, rows=ROWS) -> tuple[Path, dict]:
    """Write the rows in one form; returns `data_dir` and the options to read them with."""
    folder.mkdir(parents=True, exist_ok=True)
    if form in ("csv", "csv.gz", "jsonl"):
        write_pictures(folder, rows)
        content = (jsonl_text(rows) if form == "jsonl" else csv_text(rows)).encode()
        (folder / f"pairs.{form}").write_bytes(gzip.compress(content) if form.endswith("gz") else content)
        return folder / f"pairs.{form}", OPTIONS
    if form == "folder":
        store(folder, "csv", rows)
        (folder / "._pairs.csv").write_bytes(b"\0\5\26\7")  # as some systems leave them beside a file
    elif form == "files":  # the first ones in a folder of their own
        store(folder / "first", "jsonl", rows[:7])
        store(folder, "csv", rows[7:])
    elif form == "saved":
        table(rows).save_to_disk(folder)
    elif form == "saved dictionary":
        DatasetDict({"train": table(rows)}).save_to_disk(folder)
    elif form in ("parquet", "arrow"):
        for i, part in enumerate((rows[:7], rows[7:])):
            if form == "parquet":
                table(part).to_parquet(folder / f"train-{i}.parquet")
            else:
                table(part).save_to_disk(folder / "saved")
                (folder / "saved" / "data-00000-of-00001.arrow").rename(folder / f"train-{i}.arrow")
    elif form == "webdataset":
        write_tar(folder / "shard-0.tar", [sample(row) for row in rows[:7]])
        write_tar(folder / "shard-1.tar", [sample(row) for row in rows[7:]])
        return folder, WEBDATASET
    return folder, OPTIONS


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def texts(split: str, data_dir, **options) -> list[str]:
    return [row["text"] for row in load_pairs("pairs", split, data_dir=data_dir, **options)]


FORMS = ("csv", "csv.gz", "jsonl", "folder", "files", "saved", "saved dictionary", "parquet", "arrow", "webdataset")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_the_same_rows_come_out_however_they_are_stored(tmp_path, form, streaming):
    data_dir, options = store(tmp_path / "data", form)
    options = options | {"validation_share": 0.3, "streaming": streaming}
    parts = {split: load_pairs("pairs", split, data_dir=str(data_dir), **options) for split in ("train", "validation")}
    assert all(isinstance(part, IterableDataset) == streaming for part in parts.values())
    names = ["image", "text", "subject_id", "study_id", "image_id", "view", "labels"]
    assert all(list(part.features) == names for part in parts.values())
    rows = {split: list(part) for split, part in parts.items()}
    subjects = {split: {row["subject_id"] for row in part} for split, part in rows.items()}
    assert subjects["validation"] == {"4", "8", "9"}, "whichever form they are stored in"
    assert subjects["train"] == {str(i) for i in range(10)} - {"4", "8", "9"}
    together = {row["image_id"]: row for part in rows.values() for row in part}
    assert len(together) == sum(map(len, rows.values())) == 20
    for i, expected in enumerate(ROWS):
        row = together[f"u{i}"]
        assert np.array_equal(row["image"], pixels(i))
        assert row["text"] == expected["findings"] and row["view"] == ""
        assert row["subject_id"] == str(i // 2) and row["study_id"] == str(100 + i // 2)
        labels = {name.removeprefix("json."): value for name, value in row["labels"].items()}
        assert labels == {name: expected[name] for name in ("Edema", "Fracture")}


def test_files_are_of_the_split_they_are_named_after(tmp_path):
    for i, name in enumerate(("train.csv", "train-2.jsonl", "val.csv", "Test_a.csv", "test/more.jsonl")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        write_pictures(path.parent, ROWS[4 * i : 4 * i + 4])
        path.write_text((csv_text if name.endswith("csv") else jsonl_text)(ROWS[4 * i : 4 * i + 4]))
    by_split = {split: texts(split, tmp_path, **OPTIONS) for split in ("train", "validation", "test")}
    expected = [row["findings"] for row in ROWS]
    assert sorted(by_split["train"]) == sorted(expected[:8]), "nothing is taken for validation where there is one"
    assert by_split["validation"] == expected[8:12] and sorted(by_split["test"]) == sorted(expected[12:])


def test_a_file_of_no_split_beside_files_of_splits_is_named(tmp_path):
    write_pictures(tmp_path)
    for name in ("train.csv", "training.csv", "mytest.csv"):
        (tmp_path / name).write_text(csv_text(ROWS))
    with pytest.warns(UserWarning, match="2 of 3 files skipped.*mytest.csv"):
        assert len(texts("train", tmp_path, **OPTIONS, validation_share=1e-9)) == 20


def test_a_dictionary_of_data_sets_has_its_splits(tmp_path):
    DatasetDict({"dev": table(ROWS[:4]), "train": table(ROWS[4:8]), "test": table(ROWS[8:])}).save_to_disk(tmp_path)
    assert texts("validation", tmp_path, **OPTIONS) == [row["findings"] for row in ROWS[:4]]
    assert texts("test", tmp_path, **OPTIONS) == [row["findings"] for row in ROWS[8:]]


def test_validation_is_never_taken_from_the_test_set(tmp_path):
    write_pictures(tmp_path)
    (tmp_path / "test.csv").write_text(csv_text(ROWS))
    assert len(texts("test", tmp_path, **OPTIONS)) == 20
    for split in ("train", "validation"):
        with pytest.raises(ValueError, match=rf"no split '{split}'; use one of \['test'\]"):
            load_pairs("pairs", split, data_dir=tmp_path, **OPTIONS)
    (tmp_path / "valid.csv").write_text(csv_text(ROWS[:2]))
    with pytest.raises(ValueError, match="no split 'train'"):
        load_pairs("pairs", "train", data_dir=tmp_path, **OPTIONS | {"subject_column": None})


def test_usual_names_need_not_be_given(tmp_path):
    write_pictures(tmp_path)
    (tmp_path / "a.csv").write_text(f"path,report,number\n{ROWS[0]['file']},Clear.,5\n")
    row = load_pairs("pairs", "train", data_dir=tmp_path / "a.csv", validation_share=1e-9)[0]
    assert row["text"] == "Clear." and np.array_equal(row["image"], pixels(0))
    assert row["image_id"] == "train row 1" and row["subject_id"] is None and row["study_id"] is None
    write_tar(tmp_path / "a.tar", [("k", {"jpg": png(3), "txt": b"Clear."})])
    row = load_pairs("pairs", "train", data_dir=tmp_path, validation_share=1e-9)[0]
    assert row["text"] == "Clear." and np.array_equal(row["image"], pixels(3)) and row["image_id"] == "k"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", ["csv", "jsonl", "saved", "parquet", "webdataset"])
def test_a_missing_column_is_named_with_the_existing_ones(tmp_path, form, streaming):
    data_dir, options = store(tmp_path, form)
    columns = "'png', 'txt'" if form == "webdataset" else "'file', 'findings', 'patient'"
    wrong = {"image_column": "x", "text_column": "x", "subject_column": "x", "study_column": "x", "id_column": "x"}
    for name, value in (wrong | {"label_columns": ["x"]}).items():
        with pytest.raises(ValueError, match=rf"has no column 'x'.*{columns}.*{name}|{name}.*{columns}"):
            load_pairs("pairs", "train", data_dir=data_dir, streaming=streaming, **options | {name: value})
    if form != "webdataset":
        with pytest.raises(ValueError, match=rf"has no column 'image' or 'jpg' or .*{columns}.* image_column"):
            load_pairs("pairs", "train", data_dir=data_dir, streaming=streaming)


def test_every_split_needs_the_subject(tmp_path):
    parts = {"train": table(ROWS[:10]), "test": table(ROWS[10:]).remove_columns("patient")}
    DatasetDict(parts).save_to_disk(tmp_path)
    with pytest.raises(ValueError, match=r"\(test\) has no column 'patient'"):
        load_pairs("pairs", "train", data_dir=tmp_path, **OPTIONS)


@pytest.mark.parametrize(("name", "line"), [("a.csv", 6), ("a.jsonl", 4)])
def test_a_missing_picture_is_named_by_file_and_line(tmp_path, name, line):
    """The texts of the csv file take two lines each; in the jsonl file the second line is blank."""
    rows = ROWS[:2] + [row | {"file": "nowhere.png"} for row in ROWS[2:4]]
    content = csv_text(rows) if name.endswith("csv") else jsonl_text(rows).replace("\n", "\n \n", 1)
    write_pictures(tmp_path, ROWS[:2])
    (tmp_path / name).write_text(content)
    with pytest.raises(
        ValueError, match=rf"{name}, line {line}: .*nowhere\.png .*2 of 4 rows are bad; at most 10%.*max_rejected"
    ):
        load_pairs("pairs", "train", data_dir=tmp_path / name, **OPTIONS)
    (tmp_path / name).write_text(content.replace("nowhere.png", ""))
    with pytest.raises(ValueError, match=rf"{name}, line {line}: .*blank.*2 of 4 rows"):
        load_pairs("pairs", "train", data_dir=tmp_path / name, **OPTIONS)


@pytest.mark.parametrize("path", ["../0.png", "p0/../../0.png", "{tmp}/0.png", "..\\0.png"])
@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_path_does_not_leave_the_folder(tmp_path, path, form):
    (tmp_path / "data").mkdir()
    (tmp_path / "0.png").write_bytes(png(0))
    path = path.format(tmp=tmp_path)
    if form == "parquet":
        Dataset.from_dict({"image": [path], "text": ["Clear."]}).to_parquet(tmp_path / "data" / "a.parquet")
    elif form == "csv":
        (tmp_path / "data" / "a.csv").write_text(f"image,text\n{path},Clear.\n")
    else:
        (tmp_path / "data" / "a.jsonl").write_text(json.dumps({"image": path, "text": "Clear."}))
    with pytest.raises(ValueError, match="(line|row) [12]: .*leaves the data folder"):
        load_pairs("pairs", "train", data_dir=tmp_path / "data")
    if form == "parquet":
        with pytest.warns(UserWarning, match="1 rows skipped: .*leaves the data folder"):
            options = {"data_dir": tmp_path / "data", "streaming": True, "validation_share": 1e-9}
            assert list(load_pairs("pairs", "train", **options)) == []


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", ["paths", "bytes", "both"])
def test_pictures_of_parquet_files_may_be_paths_or_bytes(tmp_path, monkeypatch, form, streaming):
    write_pictures(tmp_path, ROWS[:3])
    monkeypatch.chdir("/")
    cells = {
        "paths": [row["file"] for row in ROWS[:3]],
        "bytes": [png(i) for i in range(3)],
        "both": [{"bytes": png(i), "path": "elsewhere.png"} for i in range(3)],
    }
    Dataset.from_dict({"image": cells[form], "text": list("abc")}).to_parquet(tmp_path / "a.parquet")
    pairs = load_pairs("pairs", "train", data_dir=tmp_path, streaming=streaming, validation_share=1e-9)
    pictures = [row["image"] for row in pairs]
    assert len(pictures) == 3 and all(np.array_equal(picture, pixels(i)) for i, picture in enumerate(pictures))


BAD_FILES = {
    "not JSON": ("a.jsonl", b'{"image": "a.png", "text": "x"}\n{"image": \n', "line 2: not JSON"),
    "no object": ("a.jsonl", b'\n["a.png", "x"]\n', "line 2: must be an object"),
    "empty jsonl": ("a.jsonl", b"\n\n", "has no rows"),
    "not UTF-8 in jsonl": (
        "a.jsonl",
        b'{"image": "a.png", "text": "x"}\n{"text": "\xe9"}\n',
        "line 2: .*encoding.*cp1252",
    ),
    "not UTF-8": ("a.csv", b"image,text\na.png,x\na.png,\xe9\n", "line 3: .*encoding.*cp1252"),
    "empty": ("a.csv", b"", "has no rows"),
    "blank": ("a.csv", b"\n\n", "has no rows"),
    "only the columns": ("a.csv", b"image,text\n", "has no rows"),
    "a bare comma": ("a.csv", b'image,text\na.png,"x, y"\na.png,No mass, no effusion\n', "line 3: 3 fields, but.*2"),
    "always a bare comma": ("a.csv", b"image,text\na.png,No mass, no effusion\n", "line 2: 3 fields.*quotation"),
    "too few": ("a.csv", b"image,text\n\na.png\n", "line 3: 1 fields"),
    "a quotation without end": ("a.csv", b'image,text\na.png,x\na.png,"x\na.png,x\n', "line 3: not csv"),
    "a quotation within": ("a.csv", b'image,text\na.png,"an "open" lung"\n', "line 2: not csv"),
    "cut off": ("a.csv.gz", gzip.compress(b"image,text\na.png,x\n")[:-9], "cannot be read"),
    "parquet": ("a.parquet", b"PAR1 and nothing more", r"The \.parquet files of .* cannot be read"),
    "tar": ("a.tar", b"no archive" * 100, r"The \.tar files of .* cannot be read"),
    "picture": ("a.png", b"", "holds no csv, tsv, jsonl, tar, parquet or arrow file"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_named(tmp_path, kind):
    name, content, message = BAD_FILES[kind]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").write_bytes(png(0))
    (tmp_path / "data" / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_pairs("pairs", "train", data_dir=tmp_path / "data")
    assert str(tmp_path / "data") in str(error.value)


def test_line_ends_and_byte_order_mark_of_windows(tmp_path):
    write_pictures(tmp_path)
    for name, content in (("csv", csv_text(ROWS)), ("jsonl", jsonl_text(ROWS))):
        (tmp_path / f"w.{name}").write_bytes(content.replace("\n", "\r\n").encode("utf-8-sig"))
        pairs = texts("train", tmp_path / f"w.{name}", **OPTIONS, validation_share=1e-9)
        assert [text.replace("\r\n", "\n") for text in pairs] == [row["findings"] for row in ROWS]


# Tables as programs write them

TABLE = 'Image,TEXT,Edema\np0/0.png,"Ödem, klein.",1.0\np0/1.png,Clear lungs.,\np1/2.png,Wet.,0\n'
WRITTEN = {
    "semicolons": TABLE.replace("Ödem, klein", "Ödem KOMMA klein").replace(",", ";").replace(" KOMMA", ","),
    "tabs": "\n".join("\t".join(row) for row in csv.reader(io.StringIO(TABLE))) + "\n",
    "Excel's separator": "sep=,\r\n" + TABLE.replace("\n", "\r\n"),
    "line ends of old Macs": TABLE.replace("\n", "\r"),
    "line ends of Windows": TABLE.replace("\n", "\r\n"),
    "more columns than names": TABLE.replace("Edema\n", "Edema,,,\n"),
    "more names than columns": TABLE.replace("1.0\n", "1.0,,\n"),
    "every cell quoted": "".join('"' + '","'.join(row) + '"\n' for row in csv.reader(io.StringIO(TABLE))),
    "blanks around cells": TABLE.replace(",TEXT,", " , TEXT ,").replace("1.0\n", "1.0 \n").replace(",Wet.", " ,Wet."),
    "blank lines": "\n" + TABLE.replace("\n", "\n\n") + ",,\n",
}


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_tables_as_programs_write_them(tmp_path, kind, encoding):
    write_pictures(tmp_path)
    (tmp_path / "a.csv").write_bytes(WRITTEN[kind].encode(encoding))
    options = {"label_columns": ["edema"], "validation_share": 1e-9}
    options |= {"encoding": "cp1252"} if encoding == "cp1252" else {}
    rows = load_pairs("pairs", "train", data_dir=tmp_path / "a.csv", **options)
    assert [text.strip() for text in rows["text"]] == ["Ödem, klein.", "Clear lungs.", "Wet."]
    assert [row["edema"] for row in rows["labels"]] == [1.0, None, 0.0]
    assert np.array_equal(rows[2]["image"], pixels(2))


@pytest.mark.parametrize("packed", [True, False])
def test_packed_or_not_whatever_the_name_says(tmp_path, packed):
    write_pictures(tmp_path)
    content = TABLE.encode()
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(content) if packed else content)
    (tmp_path / "b.csv").write_bytes(gzip.compress(content))
    for name in ("a.csv.gz", "b.csv"):
        assert len(texts("train", tmp_path / name, validation_share=1e-9)) == 3


def test_an_unknown_encoding_is_named(tmp_path):
    (tmp_path / "a.csv").write_text(TABLE)
    with pytest.raises(ValueError, match=r"a\.csv: there is no encoding 'klingon', such as"):
        load_pairs("pairs", "train", data_dir=tmp_path / "a.csv", encoding="klingon")


# Bad rows


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_bad_rows_are_skipped_counted_and_named(tmp_path, form):
    write_pictures(tmp_path)
    rows = [row | {"findings": f"Text {i}."} for i, row in enumerate(ROWS * 3)]
    rows[1] |= {"file": "gone.png"}
    rows[5] |= {"file": "../escape.png"}
    rows[9] |= {"Edema": 7}
    lines = (csv_text(rows) if form == "csv" else jsonl_text(rows)).splitlines()
    lines.insert(12, "one field" if form == "csv" else '{"file": ')
    lines.insert(14, 'p0/0.png,a "b" c,1,"x"y,2,,' if form == "csv" else "[]")
    (tmp_path / f"a.{form}").write_text("\n".join(lines))
    options = OPTIONS | {"id_column": None, "validation_share": 1e-9}
    with collect_rejected() as rejected, pytest.warns(UserWarning, match="5 of 62 rows skipped, such as line [23]: "):
        kept = load_pairs("pairs", "train", data_dir=tmp_path / f"a.{form}", **options)
    assert kept["text"][:] == [f"Text {i}." for i in range(60) if i not in (1, 5, 9)]
    reasons = " ".join(row.reason for row in rejected)
    for word in ("no picture", "leaves the data folder", "Edema must be", "fields" if form == "csv" else "not JSON"):
        assert word in reasons
    assert len({row.row for row in rejected}) == 5 and all(f"a.{form}" in row.source for row in rejected)
    with pytest.raises(ValueError, match="5 of 62 rows are bad; at most 5%.*max_rejected"):
        load_pairs("pairs", "train", data_dir=tmp_path / f"a.{form}", max_rejected=0.05, **options)
    write_rejected(tmp_path / "out", rejected), write_rejected(tmp_path / "out", rejected)
    named = list(csv.DictReader((tmp_path / "out" / "rejected.csv").open(newline="")))
    assert [row["row"] for row in named] == [row.row for row in rejected], "each once"


@pytest.mark.parametrize("streaming", [False, True])
def test_bad_rows_of_parquet_files(tmp_path, streaming):
    columns = {"image": [png(i % 5) for i in range(40)], "text": [f"Text {i}." for i in range(40)]}
    columns["A"] = ["1"] * 20 + ["wrong"] + ["0"] * 19
    Dataset.from_dict(columns).to_parquet(tmp_path / "a.parquet")
    options = {"data_dir": tmp_path, "label_columns": ["A"], "validation_share": 1e-9, "streaming": streaming}
    with pytest.warns(UserWarning, match="row 21.*A must be .* got 'wrong'|A must be .* got 'wrong'.*row 21"):
        rows = list(load_pairs("pairs", "train", **options))
    assert [row["text"] for row in rows] == [f"Text {i}." for i in range(40) if i != 20]


def test_a_stream_of_bad_rows_ends(tmp_path):
    columns = {"image": [png(0)] * 300, "text": ["x"] * 300, "A": ["wrong", "1"] * 150}
    Dataset.from_dict(columns).to_parquet(tmp_path / "a.parquet")
    stream = load_pairs("pairs", "train", data_dir=tmp_path, label_columns=["A"], streaming=True)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="A must be .*at most 10% may be.*max_rejected"):
        list(stream)


@pytest.mark.parametrize("cell", ["nan", "NaN", "None", "N/A", "null", "NULL", " na ", "<NA>", ""])
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_cells_that_stand_for_nothing_are_no_captions(tmp_path, cell, form):
    write_pictures(tmp_path)
    if form == "csv":
        (tmp_path / "a.csv").write_text(f"image,text,s\np0/0.png,Clear.,{cell}\np0/1.png,{cell},\n")
    else:
        columns = {"image": [png(0), png(1)], "text": ["Clear.", cell], "s": [cell, ""]}
        Dataset.from_dict(columns).to_parquet(tmp_path / "a.parquet")
    with pytest.warns(UserWarning, match="1 of 2 rows skipped: no text, such as row 2"):
        rows = load_pairs("pairs", "train", data_dir=tmp_path, subject_column="s", validation_share=1e-9)
    assert rows["text"][:] == ["Clear."] and rows["subject_id"][:] == [None]


def test_ids_of_their_own_are_of_one_split(tmp_path):
    """The rows of two splits are not the same images because they have the same numbers."""
    write_pictures(tmp_path)
    for split, part in (("train", ROWS[:4]), ("validation", ROWS[4:6]), ("test", ROWS[6:9])):
        (tmp_path / f"{split}.csv").write_text(csv_text(part))
    options = OPTIONS | {"id_column": None, "subject_column": None}
    ids = [
        load_pairs("pairs", s, data_dir=tmp_path, **options)["image_id"][:] for s in ("train", "validation", "test")
    ]
    assert len(set(sum(ids, []))) == 9


def test_spaces_after_commas_and_blank_lines_do_not_count(tmp_path):
    write_pictures(tmp_path)
    (tmp_path / "a.csv").write_text('image, text\n\np0/0.png, "Clear, dry."\n,\n')
    assert texts("train", tmp_path / "a.csv", validation_share=1e-9) == ["Clear, dry."]


@pytest.mark.parametrize("content", ["1,0,-1,", "1.0,0.0,-1.0, "])
def test_labels_stay_apart(tmp_path, content):
    write_pictures(tmp_path)
    (tmp_path / "a.csv").write_text(f"image,text,A,B,C,D\np0/0.png,Clear.,{content}\n")
    options = {"label_columns": ["D", "C", "A", "B"], "validation_share": 1e-9}
    row = load_pairs("pairs", "train", data_dir=tmp_path / "a.csv", **options)[0]
    assert row["labels"] == {"D": None, "C": -1.0, "A": 1.0, "B": 0.0}


@pytest.mark.parametrize("value", ["2", "yes", "0.5", "nan"])
def test_a_bad_label_is_named(tmp_path, value):
    write_pictures(tmp_path)
    options = {"label_columns": ["A"], "validation_share": 1e-9}
    (tmp_path / "a.csv").write_text(f'image,text,A\np0/0.png,"Clear\nlungs.",1\np0/1.png,Clear.,{value}\n')
    with pytest.raises(ValueError, match=rf"a\.csv, line 4: A must be 1, 0, -1 or blank; got '{value}'"):
        load_pairs("pairs", "train", data_dir=tmp_path / "a.csv", **options)
    columns = {"image": [png(0), png(1)], "text": ["a", "b"], "A": ["1", value]}
    Dataset.from_dict(columns).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=rf"\(train\), row 2: A must be .* got '{value}'"):
        load_pairs("pairs", "train", data_dir=tmp_path, **options)
    with pytest.warns(UserWarning, match=rf"A must be .* got '{value}'"):
        stream = list(load_pairs("pairs", "train", data_dir=tmp_path, streaming=True, **options))
    assert [row["text"] for row in stream] == ["a"], "the stream goes on"


@pytest.mark.parametrize("form", ["csv", "jsonl", "saved", "parquet"])
def test_rows_without_text_are_skipped_and_reported(tmp_path, form):
    rows = [row | {"findings": {1: "", 3: " \n"}.get(i, row["findings"])} for i, row in enumerate(ROWS[:6])]
    data_dir, options = store(tmp_path, form, rows)
    options = options | {"id_column": None, "subject_column": None, "validation_share": 1e-9}
    with pytest.warns(UserWarning, match="2 of 6 rows skipped: no text, such as row 2"):
        pairs = load_pairs("pairs", "train", data_dir=data_dir, **options)
    assert pairs["text"][:] == [ROWS[i]["findings"] for i in (0, 2, 4, 5)]
    assert pairs["image_id"][:] == ["train row 1", "train row 3", "train row 5", "train row 6"]
    assert all(np.array_equal(picture, pixels(i)) for picture, i in zip(pairs["image"], (0, 2, 4, 5)))
    assert [row["Edema"] for row in pairs["labels"]] == [LABELS[i % 4] for i in (0, 2, 4, 5)]


@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_no_text_is_none(tmp_path, streaming):
    columns = {"image": [png(i) for i in range(3)], "text": [None, "Clear.", None]}
    Dataset.from_dict(columns).to_parquet(tmp_path / "a.parquet")
    options = {"data_dir": tmp_path, "streaming": streaming, "validation_share": 1e-9}
    if not streaming:
        with pytest.warns(UserWarning, match="2 of 3 rows"):
            assert texts("train", **options) == ["Clear."]
    else:
        assert texts("train", **options) == ["Clear."]


def test_a_subject_in_two_splits_is_refused(tmp_path):
    write_pictures(tmp_path)
    (tmp_path / "train.csv").write_text(csv_text(ROWS[:12]))
    (tmp_path / "test.jsonl").write_text(jsonl_text(ROWS[9:]))  # the same subjects, here as numbers
    for split in ("train", "validation", "test"):
        with pytest.raises(ValueError, match="2 subjects are in both (train and test|test and train), such as 4"):
            load_pairs("pairs", split, data_dir=tmp_path, **OPTIONS)
    DatasetDict({"train": table(ROWS[:12]), "dev": table(ROWS[11:])}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="1 subjects are in both train and validation, such as 5"):
        load_pairs("pairs", "train", data_dir=tmp_path / "saved", **OPTIONS)


def test_a_subject_is_the_same_as_an_integer_and_as_a_float(tmp_path):
    """A table with a blank cell writes all its whole numbers as floats."""
    write_pictures(tmp_path)
    (tmp_path / "train.csv").write_text(csv_text([row | {"patient": "17"} for row in ROWS[:10]]))
    (tmp_path / "test.csv").write_text(csv_text([ROWS[10] | {"patient": "17.0"}, ROWS[11] | {"patient": ""}]))
    with pytest.raises(ValueError, match="1 subjects are in both test and train, such as 17"):
        load_pairs("pairs", "test", data_dir=tmp_path, **OPTIONS)


def test_nothing_is_written_into_a_saved_folder(tmp_path):
    table([*ROWS[:5], ROWS[5] | {"findings": ""}, *ROWS[6:]]).save_to_disk(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.warns(UserWarning, match="1 of 20 rows skipped: no text, such as row 6"):
        options = OPTIONS | {"validation_share": 0.5}
        pairs = [load_pairs("pairs", split, data_dir=tmp_path, **options) for split in ("train", "validation")]
    assert sum(len(part[:]["image"]) for part in pairs) == 19
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_rows_without_a_subject_are_nobody(tmp_path):
    write_pictures(tmp_path)
    (tmp_path / "train.csv").write_text(csv_text([row | {"patient": ""} for row in ROWS[:10]] + ROWS[10:12]))
    (tmp_path / "test.jsonl").write_text(jsonl_text([row | {"patient": None} for row in ROWS[12:]]))
    assert len(texts("test", tmp_path, **OPTIONS)) == 8
    parts = {
        split: load_pairs("pairs", split, data_dir=tmp_path, **OPTIONS | {"validation_share": 0.5})
        for split in ("train", "validation")
    }
    assert set(parts["train"]["subject_id"]) | set(parts["validation"]["subject_id"]) == {None, "5"}
    assert None in parts["train"]["subject_id"] and None in parts["validation"]["subject_id"], "told by their ids"


def test_integers_are_the_same_subject_in_any_type(tmp_path):
    write_pictures(tmp_path)
    rows = [row | {"patient": None if i == 1 else 2**53 + i} for i, row in enumerate(ROWS[:3])]
    (tmp_path / "a.jsonl").write_text(jsonl_text(rows))
    pairs = load_pairs("pairs", "train", data_dir=tmp_path / "a.jsonl", **OPTIONS, validation_share=1e-9)
    assert pairs["subject_id"][:] == [str(2**53), None, str(2**53 + 2)]
    Dataset.from_dict({"image": [png(0), png(1)], "text": ["a", "b"], "s": [17.0, None]}).to_parquet(
        tmp_path / "a.parquet"
    )
    pairs = load_pairs("pairs", "train", data_dir=tmp_path, subject_column="s", validation_share=1e-9)
    assert pairs["subject_id"][:] == ["17", None]


@pytest.mark.parametrize("key", ["subject", "id", "text"])
@pytest.mark.parametrize("streaming", [False, True])
def test_the_made_validation_set(tmp_path, key, streaming):
    """A share of the subjects, else of the ids, else of the texts; the same rows in any order; nothing lost."""
    rng = np.random.default_rng(0)
    subjects, number = rng.integers(0, 300, 1500), 1500
    columns = {"image": [b"-"] * number, "text": [f"Report of {s}." for s in subjects]}
    columns |= {"s": [f"s{s}" for s in subjects], "i": [f"i{i}" for i in range(number)]}
    options = {"subject": {"subject_column": "s", "id_column": "i"}, "id": {"id_column": "i"}, "text": {}}[key]
    options |= {"validation_share": 0.2, "streaming": streaming}
    results = []
    for order in (np.arange(number), rng.permutation(number)):
        folder = tmp_path / str(len(results))
        folder.mkdir()
        Dataset.from_dict({name: [values[i] for i in order] for name, values in columns.items()}).to_parquet(
            folder / "a.parquet"
        )
        parts = {}
        for split in ("train", "validation"):
            rows = load_pairs("pairs", split, data_dir=folder, **options).select_columns(
                ["text", "subject_id", "image_id"]
            )
            parts[split] = sorted(
                (r["text"], r["subject_id"] or "", r["image_id"] if key != "text" else "") for r in rows
            )
        results.append(parts)
    assert results[0] == results[1]
    train, validation = results[0]["train"], results[0]["validation"]
    everything = sorted(
        (columns["text"][i], columns["s"][i] if key == "subject" else "", f"i{i}" if key != "text" else "")
        for i in range(number)
    )
    assert sorted(train + validation) == everything
    column = {"subject": 1, "id": 2, "text": 0}[key]
    held_out, kept = {row[column] for row in validation}, {row[column] for row in train}
    assert not held_out & kept
    assert len(held_out) / len(held_out | kept) == pytest.approx(0.2, abs=0.07)
    if key == "id":
        assert {row[0] for row in train} & {row[0] for row in validation}, "a text may be in both"


def test_a_derived_validation_set_without_rows_is_reported(tmp_path):
    data_dir, options = store(tmp_path, "csv", ROWS[:2])
    for split, share in (("validation", 1e-9), ("train", 1 - 1e-9)):
        with pytest.raises(ValueError, match=rf"\({split}\) has no rows.*validation_share"):
            load_pairs("pairs", split, data_dir=data_dir, **options, validation_share=share)
    for share in (0, 1, -0.1):
        with pytest.raises(ValueError, match="validation_share must lie between 0 and 1"):
            load_pairs("pairs", "train", data_dir=data_dir, **options, validation_share=share)


def test_a_stream_has_shards_for_workers(tmp_path):
    data_dir, options = store(tmp_path, "csv")
    assert load_pairs("pairs", "train", data_dir=data_dir, streaming=True, **options).num_shards > 8
    data_dir, options = store(tmp_path / "tar", "webdataset")
    assert load_pairs("pairs", "train", data_dir=data_dir, streaming=True, **options).num_shards == 2


def test_rows_of_a_stream_have_ids_of_their_pictures(tmp_path):
    columns = {"image": [png(i % 3) for i in range(6)], "text": ["Clear."] * 6}
    Dataset.from_dict(columns).to_parquet(tmp_path / "a.parquet")
    pairs = load_pairs("pairs", "train", data_dir=tmp_path, streaming=True, validation_share=1e-9)
    ids = [row["image_id"] for row in pairs]
    assert ids[:3] == ids[3:] and len(set(ids)) == 3


@pytest.mark.parametrize("streaming", [False, True])
def test_a_broken_picture_stops_nothing_before_it_is_read(tmp_path, streaming):
    samples = [
        ("a", {"jpg": png(0), "txt": b"x"}),
        ("b", {"jpg": b"broken", "txt": b"y"}),
        ("c", {"jpg": b"", "txt": b"z"}),
    ]
    write_tar(tmp_path / "a.tar", samples)
    pairs = load_pairs("pairs", "train", data_dir=tmp_path, streaming=streaming, validation_share=1e-9)
    rows = list(undecoded(pairs))
    assert [row["text"] for row in rows] == ["x", "y", "z"]
    assert np.array_equal(read_picture(rows[0]["image"], "a"), pixels(0))
    for row in rows[1:]:
        with pytest.raises(ValueError, match=f"The image {row['image_id']} cannot be read"):
            read_picture(row["image"], row["image_id"])


def test_an_unreadable_picture_is_named_by_its_id(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    (tmp_path / "b.png").write_bytes(png(0)[:60])
    (tmp_path / "c.tif").write_bytes(b"II*\0\x08\0\0\0\0\0\0\0\0\0")  # Pillow: a ValueError or a SyntaxError
    cells = [{"bytes": None, "path": str(tmp_path / name)} for name in ("a.png", "b.png", "c.tif", "nothing.png")]
    cells += [{"bytes": b"no picture", "path": "a.png"}, {"bytes": png(0)[:60], "path": None}]
    for cell in (*cells, {"bytes": None, "path": None}, {"bytes": b"", "path": None}, None):
        with pytest.raises(ValueError, match="^The image chest 7 cannot be read: ."):
            read_picture(cell, "chest 7")


def test_names_that_are_nothing(tmp_path):
    for name in (str(tmp_path / "nothing.csv"), "a/b/c", "what is this?", str(tmp_path / "data.txt")):
        (tmp_path / "data.txt").write_text("x")
        with pytest.raises(ValueError, match="no csv or jsonl file, no folder and no Hub data set named"):
            load_pairs("pairs", "train", data_dir=name)
    with pytest.raises(ValueError, match="needs data_dir"):
        load_pairs("pairs", "train")


def test_a_name_goes_to_the_hub_and_a_failure_is_reported(monkeypatch):
    asked = []

    def load_dataset(*args, **options):
        asked.append((args, options))
        raise ConnectionError("the wire is cut")

    monkeypatch.setattr(pairs_source, "load_dataset", load_dataset)
    for streaming in (False, True):
        with pytest.raises(ValueError, match="no file or folder someone/radiographs.*Hub: the wire is cut"):
            load_pairs("pairs", "train", data_dir="someone/radiographs", streaming=streaming)
    assert asked == [(("someone/radiographs",), {"streaming": False}), (("someone/radiographs",), {"streaming": True})]


READ_FROM_HUB = """
import hashlib, json, sys
from modeling_tier.data import load_pairs

for streaming in (False, True):
    for split in ("train", "validation", "test"):
        rows = load_pairs("pairs", split, streaming=streaming, **json.loads(sys.argv[1]))
        found = [[row["image_id"], row["text"], hashlib.sha1(row["image"].tobytes()).hexdigest()] for row in rows]
        print(json.dumps([streaming, split, found]))
try:
    load_pairs("pairs", "train", data_dir="someone/nothing")
except ValueError as error:
    print(json.dumps(str(error)))
"""


@pytest.mark.slow
def test_a_data_set_on_the_hub(tmp_path):
    """By a server of this process that stands in for the Hub; another process reads, as this one is offline."""
    table(ROWS[:12]).to_parquet(tmp_path / "train.parquet")
    table(ROWS[12:]).to_parquet(tmp_path / "test.parquet")
    names = {split: f"{split}-00000-of-00001.parquet" for split in ("train", "test")}
    files = {names[split]: (tmp_path / f"{split}.parquet").read_bytes() for split in names}
    options = json.dumps(OPTIONS | {"data_dir": "someone/radiographs", "validation_share": 0.3})
    with serve("datasets", "someone/radiographs", files, tmp_path / "home") as (environment, _):
        command = [sys.executable, "-c", READ_FROM_HUB, options]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    *parts, error = [json.loads(line) for line in done.stdout.splitlines()]
    expected = [
        [row["uid"], row["findings"], hashlib.sha1(pixels(i).tobytes()).hexdigest()] for i, row in enumerate(ROWS)
    ]
    validation = [row for row, about in zip(expected[:12], ROWS) if about["patient"] == 4]
    train = [row for row in expected[:12] if row not in validation]
    for streaming in (False, True):
        assert [streaming, "train", train] in parts and [streaming, "validation", validation] in parts
        assert [streaming, "test", expected[12:]] in parts
    assert "no file or folder someone/nothing" in error and "404" in error


# A folder column, views, texts as labels

COLUMNS = {"image_column": "file", "text_column": "text", "folder_column": "dir", "view_column": "Projection"}
LABEL_VALUES = {"positive": 1, "No": 0, "unclear": -1, "not mentioned": None}


def rows_in_folders() -> list[dict]:
    """Two rows of each of ten folders, of the views PA and L; the second is named relative to its folder, too."""
    said = list(LABEL_VALUES)
    return [
        {
            "dir": i // 2,
            "file": f"{i}.png",
            "text": f"Text {i}.",
            "Projection": ("PA", "L")[i % 2],
            "Edema": said[i // 2 % 4],
        }
        for i in range(20)
    ]


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet", "stream"])
def test_a_folder_column_views_and_a_mapping_of_labels(tmp_path, form):
    rows = rows_in_folders()
    for i, row in enumerate(rows):
        (tmp_path / str(row["dir"])).mkdir(exist_ok=True)
        (tmp_path / str(row["dir"]) / row["file"]).write_bytes(png(i))
    if form == "tsv":
        (tmp_path / "a.tsv").write_text(csv_text(rows).replace(",", "\t"))
    elif form in ("csv", "jsonl"):
        (tmp_path / f"a.{form}").write_text(csv_text(rows) if form == "csv" else jsonl_text(rows))
    else:
        Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    options = COLUMNS | {"views": ["pa"], "label_columns": ["Edema"], "label_values": LABEL_VALUES}
    pairs = list(
        load_pairs("pairs", "train", data_dir=tmp_path, validation_share=1e-9, streaming=form == "stream", **options)
    )
    assert [row["text"] for row in pairs] == [f"Text {i}." for i in range(0, 20, 2)]
    assert {row["view"] for row in pairs} == {"PA"}
    assert all(np.array_equal(row["image"], pixels(2 * i)) for i, row in enumerate(pairs))
    assert [row["labels"]["Edema"] for row in pairs] == [[1.0, 0.0, -1.0, None][i % 4] for i in range(10)]


def test_bad_pictures_of_other_views_are_not_counted(tmp_path):
    rows = [
        row | {"file": row["file"] if row["Projection"] == "PA" else "../../gone.png"} for row in rows_in_folders()
    ]
    for i in range(0, 20, 2):
        (tmp_path / str(i // 2)).mkdir()
        (tmp_path / str(i // 2) / f"{i}.png").write_bytes(png(i))
    (tmp_path / "a.csv").write_text(csv_text(rows))
    (tmp_path / "p").mkdir()
    Dataset.from_list(rows).to_parquet(tmp_path / "p" / "a.parquet")
    for data_dir in (tmp_path / "a.csv", tmp_path / "p"):
        options = COLUMNS | {"views": ["PA"], "data_dir": data_dir, "validation_share": 1e-9}
        assert len(load_pairs("pairs", "train", **options)) == 10
        with pytest.raises(ValueError, match="10 of 20 rows are bad"):
            load_pairs("pairs", "train", **options | {"views": []})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": ["PA"]}, r"views \['PA'\] needs view_column"),
        ({"view_column": "position"}, r"a\.csv has no column 'position'; .*Set view_column"),
        ({"view_column": "Projection", "views": ["AP"]}, r"a\.csv: no row .*views \['ap'\].*'Projection' has .*'PA'"),
        ({"folder_column": "ImageDir"}, r"a\.csv has no column 'ImageDir'; .*Set folder_column"),
        ({"label_values": {"yes": 1}}, "label_values needs label_columns"),
        ({"label_columns": ["Edema"], "label_values": {True: 1}}, "write them in quotation marks"),
        ({"label_columns": ["Edema"], "label_values": {"yes": 2}}, "label_values must map 'yes' to 1, 0, -1 or null"),
        ({"label_columns": ["Edema"], "label_values": {"yes": True}}, "map 'yes' to 1, 0, -1 or null; got True"),
        ({"label_columns": ["Edema"], "label_values": ["yes"]}, "label_values must be a mapping from texts to a num"),
        ({"label_columns": ["Edema"]}, r"line 2: Edema must be 1, 0, -1 or blank; got 'positive' \(label_values"),
        (
            {"label_columns": ["Edema"], "label_values": {"yes": 1}},
            r"a\.csv, line 2: Edema must be 1, 0, -1 or blank, or one of \['yes'\]; got 'positive'",
        ),
    ],
)
def test_options_of_folders_views_and_labels_are_checked(tmp_path, options, message):
    rows = rows_in_folders()
    for row in rows:
        (tmp_path / row["file"]).write_bytes(png(0))
    (tmp_path / "a.csv").write_text(csv_text(rows))
    with pytest.raises(ValueError, match=message):
        load_pairs("pairs", "train", data_dir=tmp_path / "a.csv", image_column="file", **options)


def test_a_folder_of_a_row_does_not_leave_the_data(tmp_path):
    (tmp_path / "outside.png").write_bytes(png(0))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("image,text,dir\noutside.png,Clear.,..\n")
    with pytest.raises(ValueError, match=r"a\.csv, line 2: image: the path '\.\./outside\.png' leaves"):
        load_pairs("pairs", "train", data_dir=tmp_path / "data", folder_column="dir")
