# Licensed under the Apache License, Version 2.0.
"""
A prepared folder, shard by shard. A shard is written under another name and renamed when it is complete, so the work
can be stopped at any moment, by any signal, and the same command goes on behind the last complete shard.
"""

import csv
import io
import json
import multiprocessing
import signal
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Features
from tqdm.auto import tqdm

from ..files import LOCK_FILE, locked_folder, replaced_file
from .columns import SPLITS, check_subjects
from .prepared import (
    PREPARATION,
    REJECTED,
    SUMMARY,
    is_prepared,
    notes_path,
    open_shard,
    preparation,
    shard_notes,
    shard_path,
)
from .processes import follow_parent


ROWS_PER_SHARD = 1000
ROWS_PER_TASK = 16
MAX_HEADINGS = 20  # of the commonest unknown ones in the summary

Submit = Callable[..., Any]  # takes a function with its arguments, and gives something that has a `result()`


@dataclass
class OpenShard:
    """A shard whose texts are read, and whose pictures are being decoded."""

    path: Path
    features: Features
    names: list[str]
    """Of each picture, for the list of what failed."""
    work: list[tuple[int, Any]]
    """Number of pictures, and what gives them: the bytes of each, or the reason why there is none."""
    columns: Callable[[list[int], list[bytes]], dict[str, list]]
    """From the rows whose picture could be read, and these pictures, to the columns of `features`."""
    notes: dict


@dataclass
class Plan:
    """What is prepared."""

    options: dict
    """All that the result depends on."""
    rows: dict[str, Any]
    """Of each split; a table that can be cut into shards by `cut`."""
    cut: Callable[[Any, int, int], Any]
    """The rows of a split from one position to another."""
    rejected: list[dict]
    """Rows that were rejected before: `split`, `path`, `reason`."""
    open: Callable[[Path, Any, Submit], OpenShard]
    can_be_mended: Callable[[dict], bool]
    """Whether the notes of a shard speak of something that mended data would change."""

    def shards(self, folder: Path) -> list[tuple[Path, Any]]:
        shards = []
        for split in SPLITS:
            if split in self.rows and (rows := len(self.rows[split])):
                total = -(-rows // ROWS_PER_SHARD)
                for number in range(total):
                    part = self.cut(self.rows[split], number * ROWS_PER_SHARD, (number + 1) * ROWS_PER_SHARD)
                    shards.append((shard_path(folder, split, number, total), part))
        return shards


def check_numbers(least: dict[str, tuple[int, int]], max_failed: float) -> None:
    """Raise ValueError for a count below its least value, or a fraction that is none."""
    for name, (value, lowest) in least.items():
        if type(value) is not int or value < lowest:
            raise ValueError(f"{name} must be an integer of at least {lowest}; got {value!r}.")
    if not 0 <= max_failed <= 1:
        raise ValueError(f"max_failed must be a fraction between 0 and 1; got {max_failed!r}.")


def write_prepared(
    folder: Path, plan: Plan, num_proc: int, max_failed: float, retry_failed: bool, progress: bool
) -> dict:
    """
    Write a prepared folder, or what is missing of it.

    Returns:
        its summary.

    Raises:
        ValueError: for a folder with something else in it or that another process is writing, too many bad pictures,
            a full disk, or a killed worker; complete shards are kept.
    """
    with alone(folder):
        _claim(folder, plan.options)
        shards = plan.shards(folder)
        if retry_failed:
            (folder / SUMMARY).unlink(missing_ok=True)
            for path, _ in shards:
                if (notes := shard_notes(path)) and plan.can_be_mended(notes):
                    path.unlink()
        if not (folder / SUMMARY).is_file() or not all(shard_notes(path) for path, _ in shards):
            _write(folder, shards, plan, num_proc, max_failed, progress)
            _complete(folder, shards, plan.rejected)
        return json.loads((folder / SUMMARY).read_text(encoding="utf-8"))


def _write(folder: Path, shards: list, plan: Plan, num_proc: int, max_failed: float, progress: bool) -> None:
    """Write the shards that are missing or cut off."""
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
                opened.append(plan.open(*todo[i], submit))
            if i >= 2 or i >= len(todo):
                if opened:
                    failed += _finish(opened.popleft(), bar)
            if failed > max_failed * total:
                worst = _write_rejected(folder, shards, plan.rejected)
                raise ValueError(
                    f"{failed} of {total} pictures are missing or unreadable, more than max_failed "
                    f"{max_failed:g}; {worst}. All of them are in {folder / REJECTED}. Mend the data and run the same "
                    "command with retry_failed, or go on with a larger max_failed."
                )


def tasks(number: int) -> list[tuple[int, int]]:
    """The pictures of a shard in tasks for a process: first, and behind the last."""
    return [(start, min(start + ROWS_PER_TASK, number)) for start in range(0, number, ROWS_PER_TASK)]


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
    pool = ProcessPoolExecutor(num_proc, mp_context=context, initializer=follow_parent)
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


def _finish(shard: OpenShard, bar) -> int:
    """Write a shard; returns how many pictures failed."""
    results: list[bytes | str] = []
    notes = shard.notes
    bar.update(len(notes["without_text"]) + len(notes["failed"]))
    for number, future in shard.work:
        results += future.result()
        bar.update(number)
    notes["failed"] += [{"path": p, "reason": r} for p, r in zip(shard.names, results) if isinstance(r, str)]
    good = [i for i, result in enumerate(results) if isinstance(result, bytes)]
    columns = shard.columns(good, [results[i] for i in good])
    schema = shard.features.arrow_schema
    table = pa.Table.from_arrays([pa.array(columns[field.name], type=field.type) for field in schema], schema=schema)
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, schema) as writer:
        writer.write_table(table, max_chunksize=100)
    content = stream.getvalue()
    with replacing(notes_path(shard.path)) as file:  # before the shard: a complete shard has its notes
        file.write(json.dumps(notes | {"bytes": content.size}).encode())
    with replacing(shard.path) as file:
        file.write(content)
    return len(notes["failed"])


@contextmanager
def replacing(path: Path):
    """[`replaced_file`], whose errors say what to do."""
    try:
        with replaced_file(path) as file:
            yield file
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written: {error}. Complete shards are kept: make room and run the same command again."
        ) from error


@contextmanager
def alone(folder: Path):
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
    with replacing(folder / PREPARATION) as file:
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
    with replacing(folder / REJECTED) as file:
        file.write(text.getvalue().encode())
    failed = [row for path, _ in shards for row in (shard_notes(path) or {"failed": []})["failed"]]
    return f"the first is {failed[0]['path']}: {failed[0]['reason']}" if failed else ""


def _complete(folder: Path, shards: list, rejected: list[dict]) -> None:
    """Check the finished data set, and write its summary. A shard is read at a time."""
    _write_rejected(folder, shards, rejected)
    subjects, studies = defaultdict(set), defaultdict(set)
    pairs, views, words, regions = Counter(), Counter(), Counter(), Counter()
    labels: dict[str, Counter] = defaultdict(Counter)
    for path, _ in shards:
        split, stored = path.parent.name, open_shard(path)
        shard = stored.with_format("arrow")[:]
        pairs[split] += len(shard)
        subjects[split].update(shard["subject_id"].drop_null().to_pylist())
        studies[split].update(shard["study_id"].drop_null().to_pylist())
        views.update(view or "" for view in shard["view"].to_pylist())
        words.update(len(text.split()) for text in shard["text"].drop_null().to_pylist())
        if "labels" in stored.features:
            for name, column in zip(stored.features["labels"], shard["labels"].combine_chunks().flatten()):
                labels[name].update(LABEL_NAMES[value] for value in column.to_pylist())
        if "regions" in stored.features:
            findings = stored.select_columns("regions").with_format("arrow")[:]["regions"].combine_chunks().flatten()
            regions.update(findings.field("finding").to_pylist())
    check_subjects(str(folder), subjects)
    reasons = Counter(row["reason"] for row in _all_rejected(shards, rejected))
    total = sum(len(rows) for _, rows in shards) + len(rejected)
    if pairs.total() + reasons.total() != total:
        raise RuntimeError(f"{folder}: {total} rows became {pairs.total()} and {reasons.total()}.")
    counted = {"labels": labels} | ({"regions": dict(regions.most_common())} if regions else {})
    summary = {
        "shards": Counter(path.parent.name for path, _ in shards),
        "pairs": pairs,
        "studies": {split: len(ids) for split, ids in studies.items()},
        "subjects": {split: len(ids) for split, ids in subjects.items()},
        "views": dict(views.most_common()),
        **counted,
        "words": _quantiles(words),
        "rejected": dict(reasons.most_common()),
        **_of_reports([shard_notes(path) for path, _ in shards]),
    }
    with replacing(folder / SUMMARY) as file:
        file.write(json.dumps(summary, indent=2).encode())


def _quantiles(words: Counter) -> dict[str, int]:
    quantiles: Iterable = np.quantile(list(words.elements()), (0, 0.5, 0.95, 1)) if words else ()
    return {name: int(q) for name, q in zip(("least", "median", "95%", "most"), quantiles)}


def _of_reports(notes: list[dict]) -> dict:
    headings = sum((Counter(note["unknown_headings"]) for note in notes), Counter())
    return {
        "not_utf8_reports": len({study for note in notes for study in note["not_utf8"]}),
        "unknown_headings": dict(headings.most_common(MAX_HEADINGS)),
    }


LABEL_NAMES = {1.0: "positive", 0.0: "negative", -1.0: "uncertain", None: "not mentioned"}


def summary_text(summary: dict) -> str:
    """The summary as lines for a screen."""
    lines = ["split          pairs  studies  subjects"]
    for split, number in summary["pairs"].items():
        lines.append(f"{split:<12}{number:>8}{summary['studies'][split]:>9}{summary['subjects'][split]:>10}")
    lines.append("views: " + ", ".join(f"{view or 'blank'} {number}" for view, number in summary["views"].items()))
    columns = list(LABEL_NAMES.values())
    if summary["labels"]:
        lines.append(f"{'label':<28}" + "".join(f"{name:>15}" for name in columns))
    for name, values in summary["labels"].items():
        lines.append(f"{name:<28}" + "".join(f"{values.get(column, 0):>15}" for column in columns))
    if summary.get("regions"):
        lines.append("regions: " + ", ".join(f"{name} {number}" for name, number in summary["regions"].items()))
    lines.append("words of a text: " + ", ".join(f"{name} {value}" for name, value in summary["words"].items()))
    lines.append("rejected: " + (", ".join(f"{n} {reason}" for reason, n in summary["rejected"].items()) or "none"))
    if summary["not_utf8_reports"]:
        lines.append(f"{summary['not_utf8_reports']} reports were not UTF-8 and were read as Windows-1252")
    if summary["unknown_headings"]:
        headings = ", ".join(f"{heading.upper()} {number}" for heading, number in summary["unknown_headings"].items())
        lines.append(f"headings that no rule knows, whose text is in no pair: {headings}")
    return "\n".join(lines)
