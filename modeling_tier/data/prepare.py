# Licensed under the Apache License, Version 2.0.
"""
A data set of large pictures, made ready for training once: small pictures and extracted texts, in Arrow shards that
`datasets` maps into memory.

A shard is written under another name and renamed when it is complete, so the work can be stopped at any moment, by any
signal, and the same command goes on behind the last complete shard.
"""

import csv
import hashlib
import io
import json
import multiprocessing
import os
import signal
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
from datasets import Dataset
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from ..files import LOCK_FILE, locked_folder, replaced_file
from ..reading_tier import ReadingOptions, open_radiograph
from .columns import CHEXPERT_LABELS, SPLITS, check_subjects
from .mimic_cxr import FEATURES, NO_REPORT, UNREADABLE, image_path, pair_columns, plan
from .prepared import (
    FORMAT,
    PREPARATION,
    REJECTED,
    SUMMARY,
    is_prepared,
    notes_path,
    preparation,
    shard_notes,
    shard_path,
)
from .rejected import collect_rejected


ROWS_PER_SHARD = 1000
ROWS_PER_TASK = 16
MIN_SIDE = 32  # a picture of fewer pixels a side shows nothing
NUM_HEADINGS = 20  # of the commonest unknown ones in the summary


def prepare(
    data_dir: str | os.PathLike,
    output_dir: str | os.PathLike,
    reports_dir: str | os.PathLike | None = None,
    reports: str | os.PathLike | None = None,
    size: int = 320,
    section: str = "impression",
    split_by: str = "official",
    views: str = "all",
    labeler: str = "chexpert",
    num_proc: int = 1,
    max_failed: float = 0.01,
    retry_failed: bool = False,
    progress: bool = True,
) -> dict:
    """
    Write MIMIC-CXR in a form that trains fast; goes on where an earlier call was stopped.

    The folder gets `train/`, `validation/` and `test/` with shards of grey JPEG pictures (quality 95) and all columns
    of [`~data.mimic_cxr.mimic_cxr`], `rejected.csv` (every skipped row, with its path and the reason),
    `preparation.json` (the options) and, when all is done, `summary.json`.

    Args:
        data_dir, reports_dir, reports, section, split_by, views, labeler: as in [`~data.mimic_cxr.mimic_cxr`].
        output_dir: folder to write.
        size: pixels of the shorter side; the aspect is kept, and a smaller picture stays as it is. Leave room for
            augmentation: a third more than the model's input.
        num_proc: processes that decode pictures.
        max_failed: largest fraction of pictures that may be missing or unreadable, or have an unreadable report,
            before the work stops.
        retry_failed: whether to write those shards again in which pictures or reports failed or were missing, after
            the data were mended.
        progress: whether to show a bar with pictures per second and the time left.

    Returns:
        the summary: pairs and subjects by split, pairs by view, values by label, words of the texts, rejected rows by
        reason, and the commonest headings of the reports that no rule knows, whose text is in no pair.

    Raises:
        ValueError: for bad options or tables, an output folder with something else in it or that another process is
            writing, too many bad pictures, a full disk, or a killed worker; complete shards are kept.
    """
    for name, value, least in (("size", size, MIN_SIDE), ("num_proc", num_proc, 1)):
        if type(value) is not int or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}.")
    if not 0 <= max_failed <= 1:
        raise ValueError(f"max_failed must be a fraction between 0 and 1; got {max_failed!r}.")
    choices = {"section": section, "split_by": split_by, "views": views, "labeler": labeler}
    with collect_rejected() as bad_rows:
        table, rejected, source = plan(data_dir, reports_dir, reports, **choices)
    rejected += [
        {"split": "", "path": f"{Path(row.source).name}, {row.row}", "reason": row.reason} for row in bad_rows
    ]
    folder = Path(output_dir)
    options = {"format": FORMAT, "dataset": "mimic_cxr", **choices, "size": size, "rows_per_shard": ROWS_PER_SHARD}
    options["reports"] = source.description()
    with _alone(folder):
        _claim(folder, options | {"planned": _fingerprint(table)})
        shards = list(_shards(folder, table))
        if retry_failed:
            (folder / SUMMARY).unlink(missing_ok=True)
            for path, _ in shards:
                notes = shard_notes(path) or {"failed": [], "without_text": []}
                if notes["failed"] or any(row["reason"] == NO_REPORT for row in notes["without_text"]):
                    path.unlink()
        if not (folder / SUMMARY).is_file() or not all(shard_notes(path) for path, _ in shards):
            make = partial(_open, data_dir=Path(data_dir), source=source, section=section, size=size)
            _write(folder, shards, rejected, make, num_proc, max_failed, progress)
            _complete(folder, table, shards, rejected)
        return json.loads((folder / SUMMARY).read_text(encoding="utf-8"))


def _write(folder: Path, shards: list, rejected: list[dict], make, num_proc: int, max_failed: float, progress: bool):
    """Write the shards that are missing or cut off, each opened by `make`."""
    total = sum(len(rows) for _, rows in shards)
    done = [(path, rows) for path, rows in shards if shard_notes(path)]
    failed = sum(len(shard_notes(path)["failed"]) for path, _ in done)
    written = sum(len(rows) for _, rows in done)
    bar = tqdm(total=total, initial=written, desc="preparing", unit="img", disable=not progress)
    with bar, _pool(num_proc) as submit:
        opened: deque = deque()
        todo = [shard for shard in shards if not shard_notes(shard[0])]
        for i in range(len(todo) + 2):  # two shards ahead, so that no process waits for the writing
            if i < len(todo):
                opened.append(make(*todo[i], submit))
            if i >= 2 or i >= len(todo):
                if opened:
                    failed += _finish(*opened.popleft(), bar)
            if failed > max_failed * total:
                worst = _write_rejected(folder, shards, rejected)
                raise ValueError(
                    f"{failed} of {total} pictures are missing or unreadable, more than max_failed "
                    f"{max_failed:g}; {worst}. All of them are in {folder / REJECTED}. Mend the data and run the same "
                    "command with retry_failed, or go on with a larger max_failed."
                )


def shrink(path: str, size: int) -> bytes:
    """
    A picture as a grey JPEG whose shorter side has `size` pixels, or as many as it has.

    JPEG files are decoded at the smallest of the scales 1, 1/2, 1/4, 1/8 that has enough pixels, which the format's
    cosine transform gives almost for nothing. All others are read by [`load_radiograph`], whose limits hold here too.

    Raises:
        ValueError: if it is missing, unreadable or too small, with the reason.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
        if not content:
            raise ValueError("the file is empty")
        image = Image.open(io.BytesIO(content))
        if image.format != "JPEG" or image.mode not in ("L", "RGB"):  # 16 bits, palettes, CMYK
            image = open_radiograph(content).convert("L")
        if min(image.size) < MIN_SIDE:
            raise ValueError(f"fewer than {MIN_SIDE} pixels a side")
        ReadingOptions().check_size(*image.size)
        scale = size / min(image.size)
        target = image.size if scale >= 1 else (round(image.width * scale), round(image.height * scale))
        _, box = image.draft("L", target) or (None, None)  # the picture within its last, perhaps incomplete, pixels
        image = image.convert("L").resize(target, Image.Resampling.BICUBIC, box)
        buffer = io.BytesIO()
        ImageOps.exif_transpose(image).save(buffer, "JPEG", quality=95)
        return buffer.getvalue()
    except FileNotFoundError:
        raise ValueError("the file is missing") from None
    except ValueError:
        raise
    except Exception as error:  # decoders raise many kinds, and one picture must not stop the others
        known = {"truncated": "the file is truncated", "cannot identify": "not a picture"}
        words = str(error).replace(path, "") or type(error).__name__
        reason = next((known[word] for word in known if word in words), words)
        raise ValueError(reason) from error


def _shrink_all(paths: list[str], size: int) -> list[bytes | str]:
    """For each path the picture, or the reason why there is none."""
    results: list[bytes | str] = []
    for path in paths:
        try:
            results.append(shrink(path, size))
        except ValueError as error:
            results.append(str(error))
    return results


@contextmanager
def _pool(num_proc: int):
    """A function that takes work, and gives something whose `result()` is that of the work."""
    if num_proc == 1:
        yield lambda function, *args: SimpleNamespace(result=partial(function, *args))
        return
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
    else:  # Windows
        context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_proc, mp_context=context, initializer=_follow_parent)
    try:
        with ThreadPoolExecutor(1) as starter:  # out of reach of Ctrl-C: half-started processes would complain
            starter.submit(_start, pool).result()
        yield pool.submit
    except BrokenProcessPool as error:
        raise ValueError(
            "A process that decodes pictures was killed, perhaps for want of memory. Complete shards are kept: run "
            "the same command again, with a smaller num_proc."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start(pool: ProcessPoolExecutor) -> None:
    """Start the server of processes without Ctrl-C, which reaches all processes of a terminal: one answers it."""
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()  # else it is started with the server, and lets the signal through again
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    pool.submit(int).result()


def _follow_parent() -> None:
    """A worker whose parent was killed would wait for work forever."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _shards(folder: Path, table: pd.DataFrame) -> Iterator[tuple[Path, pd.DataFrame]]:
    for split in SPLITS:
        rows = table[table["split"] == split]
        total = -(-len(rows) // ROWS_PER_SHARD)
        for number in range(total):
            yield (
                shard_path(folder, split, number, total),
                rows.iloc[number * ROWS_PER_SHARD : (number + 1) * ROWS_PER_SHARD],
            )


def _open(path: Path, rows: pd.DataFrame, submit, data_dir: Path, source, section: str, size: int) -> tuple:
    """Read the texts of a shard, and have its pictures decoded."""
    source.forget()
    texts, reasons = source.texts(rows, section)
    lost = [
        {"path": source.where(row.subject_id, row.study_id), "reason": reasons[row.study_id]}
        for row in rows.itertuples()
        if row.study_id in reasons
    ]
    notes = {
        "without_text": [row for row in lost if row["reason"] != UNREADABLE],
        "failed": [row for row in lost if row["reason"] == UNREADABLE],
        "not_utf8": sorted(source.not_utf8),
        "unknown_headings": dict(source.unknown_headings),
    }
    rows = rows.assign(text=rows["study_id"].map(texts))
    with_text = rows[rows["text"] != ""]
    paths = list(map(image_path, with_text["subject_id"], with_text["study_id"], with_text["dicom_id"]))
    work = []
    for start in range(0, len(paths), ROWS_PER_TASK):
        part = [str(data_dir / p) for p in paths[start : start + ROWS_PER_TASK]]
        work.append((len(part), submit(_shrink_all, part, size)))
    return path, with_text, paths, work, notes


def _finish(path: Path, rows: pd.DataFrame, paths: list[str], work: list, notes: dict, bar) -> int:
    """Write a shard; returns how many pictures failed."""
    results = []
    bar.update(len(notes["without_text"]) + len(notes["failed"]))
    for number, future in work:
        results += future.result()
        bar.update(number)
    good = np.array([isinstance(result, bytes) for result in results], dtype=bool)
    notes["failed"] += [{"path": p, "reason": r} for p, r in zip(paths, results) if isinstance(r, str)]
    kept = rows[good]
    pictures = [
        {"bytes": result, "path": f"{name}.jpg"}
        for result, name in zip((r for r in results if isinstance(r, bytes)), kept["dicom_id"])
    ]
    schema = FEATURES.arrow_schema
    columns = pair_columns(kept, pictures)
    arrays = [pa.array(columns[field.name], type=field.type) for field in schema]
    shard = pa.Table.from_arrays(arrays, schema=schema)
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, schema) as writer:
        writer.write_table(shard, max_chunksize=100)
    content = stream.getvalue()
    with _replacing(notes_path(path)) as file:  # before the shard: a complete shard has its notes
        file.write(json.dumps(notes | {"bytes": content.size}).encode())
    with _replacing(path) as file:
        file.write(content)
    return len(notes["failed"])


@contextmanager
def _replacing(path: Path):
    """[`replaced_file`], whose errors say what to do."""
    try:
        with replaced_file(path) as file:
            yield file
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written: {error}. Complete shards are kept: make room and run the same command again."
        ) from error


def _fingerprint(table: pd.DataFrame) -> str:
    """Of the rows that are planned: a run goes on only with the same ones."""
    hashes = pd.util.hash_pandas_object(table, index=False).to_numpy()
    return hashlib.sha256(hashes.tobytes()).hexdigest()[:16]


@contextmanager
def _alone(folder: Path):
    """Make the folder, and keep other processes out: two would write over each other's shards."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked_folder(folder))
        except OSError as error:
            raise ValueError(f"{folder} cannot be written: {error}") from error
        yield


def _claim(folder: Path, options: dict) -> None:
    """Take an empty folder, or one that the same preparation has begun."""
    if is_prepared(folder):
        before = preparation(folder)
        different = [name for name in options if before.get(name) != options[name]]
        if different:
            name = different[0]
            what = "the tables have changed" if name == "planned" else f"{name} was {before.get(name)!r}"
            raise ValueError(f"{folder} holds another preparation ({what}): choose another output_dir or empty it.")
        return
    if any(path.name not in (f"{PREPARATION}.tmp", LOCK_FILE) for path in folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no preparation: choose another output_dir.")
    with _replacing(folder / PREPARATION) as file:
        file.write(json.dumps(options, indent=2).encode())


def _all_rejected(shards: list, rejected: list[dict]) -> list[dict]:
    rows = list(rejected)
    for path, _ in shards:
        if notes := shard_notes(path):
            rows += [{"split": path.parent.name, **row} for row in notes["failed"] + notes["without_text"]]
    return rows


def _write_rejected(folder: Path, shards: list, rejected: list[dict]) -> str:
    """Write the list; returns the first failed picture with its reason."""
    rows = _all_rejected(shards, rejected)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ("split", "path", "reason"))
    writer.writeheader()
    writer.writerows(rows)
    with _replacing(folder / REJECTED) as file:
        file.write(text.getvalue().encode())
    failed = [row for path, _ in shards for row in (shard_notes(path) or {"failed": []})["failed"]]
    return f"the first is {failed[0]['path']}: {failed[0]['reason']}" if failed else ""


def _complete(folder: Path, table: pd.DataFrame, shards: list, rejected: list[dict]) -> None:
    """Check the finished data set, and write its summary. A shard is read at a time."""
    _write_rejected(folder, shards, rejected)
    subjects, studies = defaultdict(set), defaultdict(set)
    pairs, views, words = Counter(), Counter(), Counter()
    labels = {name: Counter() for name in CHEXPERT_LABELS}
    notes = [shard_notes(path) for path, _ in shards]
    headings = sum((Counter(note["unknown_headings"]) for note in notes), Counter())
    for path, _ in shards:
        split, shard = path.parent.name, Dataset.from_file(str(path)).with_format("arrow")[:]
        pairs[split] += len(shard)
        subjects[split].update(shard["subject_id"].to_pylist())
        studies[split].update(shard["study_id"].to_pylist())
        views.update(shard["view"].to_pylist())
        words.update(len(text.split()) for text in shard["text"].to_pylist())
        for name, column in zip(CHEXPERT_LABELS, shard["labels"].combine_chunks().flatten()):
            labels[name].update(_LABEL_NAMES[value] for value in column.to_pylist())
    check_subjects(str(folder), subjects)
    reasons = Counter(row["reason"] for row in _all_rejected(shards, rejected))
    if pairs.total() + reasons.total() != len(table) + len(rejected):
        raise RuntimeError(
            f"{folder}: {len(table) + len(rejected)} rows became {pairs.total()} and {reasons.total()}."
        )
    quantiles = np.quantile(list(words.elements()), (0, 0.5, 0.95, 1)) if words else ()
    summary = {
        "shards": Counter(path.parent.name for path, _ in shards),
        "pairs": pairs,
        "studies": {split: len(ids) for split, ids in studies.items()},
        "subjects": {split: len(ids) for split, ids in subjects.items()},
        "views": dict(views.most_common()),
        "labels": labels,
        "words": {name: int(q) for name, q in zip(("least", "median", "95%", "most"), quantiles)},
        "rejected": dict(reasons.most_common()),
        "not_utf8_reports": len({study for note in notes for study in note["not_utf8"]}),
        "unknown_headings": dict(headings.most_common(NUM_HEADINGS)),
    }
    with _replacing(folder / SUMMARY) as file:
        file.write(json.dumps(summary, indent=2).encode())


_LABEL_NAMES = {1.0: "positive", 0.0: "negative", -1.0: "uncertain", None: "not mentioned"}


def summary_text(summary: dict) -> str:
    """The summary as lines for a screen."""
    lines = ["split          pairs  studies  subjects"]
    for split, number in summary["pairs"].items():
        lines.append(f"{split:<12}{number:>8}{summary['studies'][split]:>9}{summary['subjects'][split]:>10}")
    lines.append("views: " + ", ".join(f"{view or 'blank'} {number}" for view, number in summary["views"].items()))
    columns = list(_LABEL_NAMES.values())
    lines.append(f"{'label':<28}" + "".join(f"{name:>15}" for name in columns))
    for name, values in summary["labels"].items():
        lines.append(f"{name:<28}" + "".join(f"{values.get(column, 0):>15}" for column in columns))
    lines.append("words of a text: " + ", ".join(f"{name} {value}" for name, value in summary["words"].items()))
    lines.append("rejected: " + (", ".join(f"{n} {reason}" for reason, n in summary["rejected"].items()) or "none"))
    if summary["not_utf8_reports"]:
        lines.append(f"{summary['not_utf8_reports']} reports were not UTF-8 and were read as Windows-1252")
    if summary["unknown_headings"]:
        headings = ", ".join(f"{heading.upper()} {number}" for heading, number in summary["unknown_headings"].items())
        lines.append(f"headings that no rule knows, whose text is in no pair: {headings}")
    return "\n".join(lines)
