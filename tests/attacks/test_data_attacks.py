# Licensed under the Apache License, Version 2.0.
"""
Damaged and hostile data: every loader gives rows and counted rejections, or a ValueError of one line that names a file
or an option; it never opens a picture outside of the data folder.
"""

import csv
import gzip
import io
import itertools
import json
import os
import shutil
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from modeling_tier.data import load_pairs
from modeling_tier.data.pictures import read_picture, undecoded
from modeling_tier.data.rejected import collect_rejected


sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from small_sets import ROWS, TREES, picture  # noqa: E402


pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]

CANARY = "canary.png"  # outside of the data folder
MAX_SECONDS = 20  # of one load
# Of the values, one in so many is tried in each place, other ones in the next; 1 tries all, in about 10 minutes.
EVERY = 4


def too_long(*_) -> None:
    raise TimeoutError(f"a load took more than {MAX_SECONDS} seconds")


class Sweep:
    """Loads a damaged tree again and again, counts, and keeps what broke."""

    def __init__(self, folder: Path, name: str):
        self.root = folder / "data"
        self.root.mkdir()
        picture(folder / CANARY), picture(folder / "0_IM-0001-3001.dcm.png")
        self.tree = TREES[name](self.root)
        signal.signal(signal.SIGALRM, too_long)
        self.original = {path: path.read_bytes() for path in self.root.rglob("*") if path.is_file()}
        self.tried, self.rows, self.broke = 0, 0, []
        assert self.holds("nothing damaged") and self.rows, self.broke

    def holds(self, damage: str) -> bool:
        self.tried += 1
        before = len(self.broke)
        for split, options in self.tree.calls:
            signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS)
            try:
                with collect_rejected():
                    pairs = load_pairs(self.tree.name, split, data_dir=self.root, **options)
                    self.rows += self.read(pairs)
            except ValueError as error:
                self.check_message(damage, str(error))
            except Exception as error:  # what a user would see as a traceback
                self.broke.append(f"{damage}: {type(error).__name__}: {str(error)[:200]}")
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        return len(self.broke) == before

    def read(self, pairs) -> int:
        number = 0
        for row in undecoded(pairs):
            number += 1
            path = row["image"]["path"]
            if path and not os.path.normpath(path).startswith(str(self.root) + os.sep):
                raise AssertionError(f"a picture outside of the data folder: {path}")
            for region in row.get("regions") or ():
                assert np.isfinite(region["box"]).all(), region
            if number <= 2:  # the others are not damaged
                try:
                    read_picture(row["image"], row["image_id"])
                except ValueError as error:
                    self.check_message("the picture", str(error))
        return number

    def check_message(self, damage: str, message: str) -> None:
        names = [str(self.root), self.tree.name, *(Path(table).name for table in self.tree.tables), "The image"]
        if "\n" in message or len(message) > 1500 or not any(name in message for name in names):
            self.broke.append(f"{damage}: unclear message: {message[:300]!r}")

    def restore(self) -> None:
        for path in sorted(self.root.rglob("*"), reverse=True):
            if path.is_symlink() or (path.is_file() and path not in self.original):
                path.unlink()
            elif path.is_dir() and path in self.original:
                shutil.rmtree(path)
        for path, content in self.original.items():
            if not path.is_file() or path.read_bytes() != content:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

    def with_file(self, relative: str, content: bytes, damage: str) -> None:
        path = self.root / relative
        path.write_bytes(content)
        self.holds(f"{relative}: {damage}")
        path.write_bytes(self.original[path])

    def check(self) -> None:
        print(f"{self.tree.name}: {self.tried} tried, {len(self.broke)} broke, {self.rows} rows read")
        assert not self.broke, "\n".join(self.broke[:40])


@pytest.fixture
def sweep(request, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    sweep = Sweep(tmp_path, request.param)
    yield sweep
    sweep.check()


def damaged_files(content: bytes) -> dict[str, bytes]:
    """A file as a whole, damaged."""
    lines = [*content.split(b"\n"), b""]
    middle = len(content) // 2
    return {
        "empty": b"",
        "a blank line": b"\n",
        "the header alone": lines[0] + b"\n",
        "no header": b"\n".join(lines[1:]),
        "byte order mark": b"\xef\xbb\xbf" + content,
        "UTF-16": content.decode().encode("utf-16"),
        "UTF-16 cut in a letter": content.decode().encode("utf-16")[:-1],
        "UTF-32": content.decode().encode("utf-32"),
        "line ends of old Macs": content.replace(b"\n", b"\r"),
        "line ends of Windows": content.replace(b"\n", b"\r\n"),
        "cp1252 letters in the first row": lines[0] + b"\n" + lines[1][:-1] + b"\xe9\n" + b"\n".join(lines[2:]),
        "cp1252 letters in the header": b"\xe9" + content,
        "semicolons": content.replace(b",", b";"),
        "tabs": content.replace(b",", b"\t"),
        "every row twice": b"\n".join([lines[0], *lines[1:-1], *lines[1:]]),
        "the first row again": content + lines[1] + b"\n",
        "cut in the middle": content[:middle],
        "cut behind a quotation mark": content[:middle] + b'"',
        "an open quotation mark in the first row": lines[0] + b'\n"' + b"\n".join(lines[1:]),
        "zeros in the middle": content[:middle] + bytes(50) + content[middle:],
        "zeros alone": bytes(1000),
        "zeros at the end": content + bytes(4096),
        "a cell of 3 MB": lines[0] + b"\n" + b"x" * 3_000_000 + lines[1] + b"\n" + b"\n".join(lines[2:]),
        "a header of 100,000 columns": lines[0] + b"," * 100_000 + b"\n" + b"\n".join(lines[1:]),
        "more fields than columns in the first row": lines[0] + b"\n" + lines[1] + b",1,2\n" + b"\n".join(lines[2:]),
        "fewer fields than columns in each row": b"\n".join([lines[0], *(x.rpartition(b",")[0] for x in lines[1:])]),
        "a column twice": b"\n".join(x + b"," + x if x else x for x in lines),
        "packed": gzip.compress(content),
        "packed and cut": gzip.compress(content)[:-12],
        "packed twice": gzip.compress(gzip.compress(content)),
        "noise": np.random.default_rng(0).bytes(2000),
        "markup": b"<html><body>\n<h1>404</h1>\n</body></html>\n",
        "JSON's null": b"null",
        "a deep list": b"[" * 100_000,
        "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
    }


@pytest.mark.parametrize("sweep", TREES, indirect=True)
def test_files_damaged_as_a_whole(sweep):
    for table in sweep.tree.tables:
        path = sweep.root / table
        content = sweep.original[path]
        is_text = path.suffix != ".parquet"
        for damage, damaged in damaged_files(content if is_text else b"x,y\n1,2\n").items():
            sweep.with_file(table, damaged, damage)
        for damage in ("missing", "a folder", "a link to itself", "a dangling link", "a named pipe"):
            path.unlink()
            if damage == "a folder":
                path.mkdir()
            elif "link" in damage:
                path.symlink_to(path.name if "itself" in damage else "nowhere")
            elif damage == "a named pipe":
                os.mkfifo(path)
            sweep.holds(f"{table}: {damage}")
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
            path.write_bytes(content)


# Of which each is put into the first row, and those of ALL into all rows, too.
CELLS = (
    *("", "nan", "1,5", "-5", "-1", "1e400", "inf", "9" * 400, "x" * 300, "\U0001f4a9", "\u202e", "[" * 200, "True"),
    *(f"../{CANARY}", "..", "/", "/etc/passwd", "C:\\x\\y.png", f"..\\{CANARY}", "a\0b", "a\nb", "%s%n", "|"),
    *("file:///etc/passwd", "http://localhost:9/x.png", "zip://a::/b", "patient1/study1/../../x.jpg"),
)
ALL = ("", "nan", "-5", "1e400", f"../{CANARY}", "/etc/passwd", "a\0b", "x" * 300)


@pytest.mark.parametrize("sweep", TREES, indirect=True)
def test_cells(sweep):
    """Each column with each value; of columns that hold the same, one."""
    for table in sweep.tree.tables:
        path = sweep.root / table
        if path.suffix != ".csv":
            continue
        columns, *rows = csv.reader(io.StringIO(sweep.original[path].decode()))
        number = min(map(len, rows))  # which the header may exceed
        contents = {tuple(sorted({row[i] for row in rows})): i for i in reversed(range(number))}
        for k, i in enumerate(contents.values()):
            first, all_rows = CELLS[k % EVERY :: EVERY], ALL[k % EVERY :: EVERY]
            for value, every in [*((value, False) for value in first), *((value, True) for value in all_rows)]:
                changed = [[*row[:i], value, *row[i + 1 :]] if every or not k else row for k, row in enumerate(rows)]
                damage = f"{columns[i]!r} of {'every' if every else 'the first'} row is {value[:40]!r}"
                sweep.with_file(table, csv_bytes([columns, *changed]), damage)
            short = [[*row[:i], *row[i + 1 :]] for row in (columns, *rows)]
            sweep.with_file(table, csv_bytes(short), f"no column {columns[i]!r}")


def csv_bytes(rows) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


JSON_VALUES = (
    *(None, True, -1, 1.5, 1e308, 10**30, float("nan"), "", "x", "a\0b", "\ud800", [], {}, [[]], [None], ["a"] * 4),
    *([-1, -1, -1, -1], [float("nan")] * 4, f"../{CANARY}", "/etc/passwd", "http://localhost:9/x.png"),
)


def changed_json(content, depth: int = 0):
    """The content with each of its values replaced; of a list, the first item and the list itself."""
    if depth > 5:
        return
    items = (
        content.items() if isinstance(content, dict) else enumerate(content[:1]) if isinstance(content, list) else ()
    )
    items = list(items)
    if len(items) > 1 and all(isinstance(value, dict) for _, value in items):
        items = items[:1]  # objects of one form under names of images or findings
    for key, value in items:
        for other in JSON_VALUES:
            copy = content.copy()
            copy[key] = other
            yield f"{key} is {str(other)[:40]!r}", copy
        if isinstance(content, dict):
            yield f"no {key}", {k: v for k, v in content.items() if k != key}
        for what, inner in changed_json(value, depth + 1):
            copy = content.copy()
            copy[key] = inner
            yield f"{key}/{what}", copy


JSON_SETS = ("ms_cxr_json", "pairs_jsonl", "chestxdet10", "chexlocalize", "padchest_gr")


@pytest.mark.parametrize("sweep", JSON_SETS, indirect=True)
def test_json(sweep):
    for table in sweep.tree.tables:
        path = sweep.root / table
        if path.suffix not in (".json", ".jsonl"):
            continue
        lines = sweep.original[path].decode().splitlines()
        is_lines = path.suffix == ".jsonl"
        for damage, content in itertools.islice(changed_json(json.loads(lines[0])), 0, None, EVERY):
            text = json.dumps(content)
            sweep.with_file(table, "\n".join([text, *lines[1:]] if is_lines else [text]).encode(), damage)
        for other in JSON_VALUES:
            sweep.with_file(table, json.dumps(other).encode(), f"all of it is {str(other)[:40]!r}")


@pytest.mark.parametrize("sweep", ["pairs_parquet"], indirect=True)
def test_parquet(sweep):
    """Columns of other types, and a file damaged at many positions."""
    path = sweep.root / "a.parquet"
    rows = list(Dataset.from_parquet(str(path)))
    others = ([None] * ROWS, [1] * ROWS, [1.5] * ROWS, [True] * ROWS, [[1]] * ROWS, [{"a": 1}] * ROWS, [b"x"] * ROWS)
    for name in rows[0]:
        for values in others:
            columns = {key: [row[key] for row in rows] for key in rows[0]} | {name: values}
            Dataset.from_dict(columns).to_parquet(path)
            sweep.holds(f"{name} is {values[0]!r}")
    content, rng = sweep.original[path], np.random.default_rng(0)
    for at in rng.integers(0, len(content), 60 // EVERY):
        damaged = bytearray(content)
        damaged[at : at + 4] = rng.bytes(4)
        sweep.with_file("a.parquet", bytes(damaged), f"noise at {at}")
    for at in rng.integers(0, len(content), 20 // EVERY):
        sweep.with_file("a.parquet", content[:at], f"cut at {at}")


@pytest.mark.parametrize("sweep", TREES, indirect=True)
def test_pictures(sweep):
    path = sweep.root / sweep.tree.picture
    content = sweep.original[path]
    for damage, damaged in {
        "no bytes": b"",
        "cut": content[: len(content) // 2],
        "its head alone": content[:20],
        "text": b"not a picture\n",
        "zeros": bytes(500),
        "noise": np.random.default_rng(1).bytes(500),
    }.items():
        sweep.with_file(sweep.tree.picture, damaged, damage)
    for damage in ("missing", "a folder", "a link to itself"):
        path.unlink()
        if damage == "a folder":
            path.mkdir()
        elif damage == "a link to itself":
            path.symlink_to(path.name)
        sweep.holds(f"{sweep.tree.picture}: {damage}")
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(content)
    for part in Path(sweep.tree.picture).parents[:-1]:  # folders that lead back to themselves
        folder = sweep.root / part / "loop"
        folder.symlink_to("..")
        sweep.holds(f"{part}/loop leads up")
        folder.unlink()
    (sweep.root / "loop").symlink_to(".")
    sweep.holds("loop leads to itself")
    (sweep.root / "loop").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shutil.rmtree(sweep.root)
        sweep.holds("no folder")
        sweep.root.write_text("a file")
        sweep.holds("a file instead of the folder")
