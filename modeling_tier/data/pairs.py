# Licensed under the Apache License, Version 2.0.
"""
A user's own image-text pairs. `data_dir` is one of

- a csv, csv.gz, tsv or jsonl file, or a folder with one (or one per split: `train.csv`, `validation.csv`, ...); the
  image column holds paths from the file's folder. A csv file may be separated by commas, semicolons, tabs or bars
- a folder that `save_to_disk` has written, or with Parquet or Arrow files; pictures, or paths from the folder
- a folder with WebDataset shards (`*.tar`)
- the name of a data set on the Hub

In a folder, files are of the split that their name begins with, or that their folder is called. A file that `data_dir`
itself names is the training set. Where there is no validation split, a fraction of the training set becomes it, chosen
by a hash of the subject (else the id, else the text): the same rows each time, whatever the order, and no subject in
both. Parquet, Arrow and WebDataset are copied into the cache of `datasets`, unless they are streamed.

Rows without a text (blank, or "nan", "None", "N/A", "null") are skipped and counted. So are bad rows: a missing
picture, a path out of the folder, a label of another value, a line that is not csv or JSON.
"""

import hashlib
import os
import zlib
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Image, IterableDataset, Value, concatenate_datasets

from .columns import check_split, check_subjects
from .pairs_rows import IDS, PairsOptions, as_id, as_text, cells, column_names, convert, find_columns, picture_path
from .pairs_source import stored_parts
from .record import DatasetRecord
from .rejected import MAX_REJECTED, RejectedRow, note_rejected, reject, short
from .tables import listed, warn_skipped


MAX_SHARDS = 64  # workers that can read a table as a stream
MIN_SEEN = 100  # rows of a stream before the fraction of bad ones is judged


def pairs(
    split: str = "train",
    data_dir: str | os.PathLike | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    subject_column: str | None = None,
    study_column: str | None = None,
    id_column: str | None = None,
    folder_column: str | None = None,
    view_column: str | None = None,
    views: Iterable[str] = (),
    label_columns: Iterable[str] = (),
    label_values: Mapping[str, float | None] | None = None,
    validation_share: float = 0.05,
    streaming: bool = False,
    encoding: str | None = None,
    max_rejected: float = MAX_REJECTED,
) -> Dataset | IterableDataset:
    """
    Your own image-text pairs, in one of the forms above.

    Args:
        split, data_dir: "train", "validation" or "test"; see above.
        image_column, text_column: by default the usual names, such as "image" and "text". "json.caption" is the field
            `caption` within a column `json`.
        subject_column, study_column, id_column: no subject may be in two splits (not checked in a stream). Without ids
            a row is called by split and number, such as "train row 7", and in a stream by a hash of the picture.
        folder_column: folder of the picture, before the path in the image column.
        view_column, views: the view of a picture; and those to keep, such as [PA, AP], by default all.
        label_columns: columns of 1, 0, -1 and blank, one per finding.
        label_values: what other texts in them mean, such as {positive: 1, "no": 0, unclear: -1, not mentioned: null}.
        validation_share: of the subjects (ids, texts), where there is no validation split.
        streaming: read from front to back instead of in any order; for what does not fit on a disk.
        encoding: of csv and jsonl files, such as "cp1252"; by default UTF-8, or what their byte order mark says.
        max_rejected: largest fraction of bad rows.

    Raises:
        ValueError: for a missing column (with those that exist), too many bad rows (the first with file and line),
            subjects in two splits, or a split without rows.
    """
    named = {"image": image_column, "text": text_column, "subject_id": subject_column, "study_id": study_column}
    named |= {"image_id": id_column, "folder": folder_column, "view": view_column}
    options = PairsOptions(named, list(label_columns), dict(label_values or {}), views, encoding, max_rejected)
    check_split("pairs", split)
    return _split_of(data_dir, split, options, validation_share, streaming)


def _split_of(
    data_dir, split: str, options: PairsOptions, validation_share: float, streaming: bool
) -> Dataset | IterableDataset:
    if not data_dir:
        raise ValueError("pairs needs data_dir: a csv or jsonl file, a folder, or the name of a data set on the Hub.")
    if not 0 < validation_share < 1:
        raise ValueError(f"validation_share must lie between 0 and 1; got {validation_share!r}.")
    source, folder = str(data_dir), Path(data_dir) if os.path.isdir(data_dir) else None
    parts, columns = stored_parts(source, options, streaming)
    made = "train" in parts and "validation" not in parts and split in ("train", "validation")
    check_split(source, split, [*parts, "validation"] if made else parts)
    part, where = parts["train" if made else split], f"{source} ({split})"
    columns = columns or find_columns(where, column_names(part, where), options)
    if "subject_id" in columns and isinstance(part, Dataset):
        check_subjects(source, {n: _subjects(p, columns["subject_id"], f"{source} ({n})") for n, p in parts.items()})
    common = _stream if isinstance(part, IterableDataset) else partial(_common, split="train" if made else split)
    result = common(part, columns, options, where, folder)
    if made:
        result = _made_part(result, columns, split, validation_share)
    if isinstance(result, IterableDataset):
        return result.cast(options.features)  # last, as a filter after it would open every picture
    if len(result) == 0:
        why = f": the validation set is {validation_share} of the training set; set validation_share" if made else ""
        raise ValueError(f"{where} has no rows{why}.")
    return result.to_iterable_dataset(num_shards=min(MAX_SHARDS, len(result))) if streaming else result


def _subjects(part: Dataset, column: str, where: str) -> set[str]:
    find_columns(where, column_names(part, where), PairsOptions({"subject_id": column}, []))
    return {as_id(value) for value in cells(part, column)} - {None}


def _made_part(
    part: Dataset | IterableDataset, columns: dict, split: str, fraction: float
) -> Dataset | IterableDataset:
    """The rows of a training set that are of the validation set that is made of it, or the other ones."""
    keys = [name for name in ("subject_id", "image_id", "text") if name in columns]
    keep = partial(_is_of, split=split, keys=keys, fraction=fraction)
    if isinstance(part, IterableDataset):
        return part.filter(keep)
    return part.select([i for i, row in enumerate(part.select_columns(keys)) if keep(row)])


def _is_of(row: dict, split: str, keys: list[str], fraction: float) -> bool:
    key = next(row[name] for name in keys if row[name])
    held_out = int.from_bytes(hashlib.sha256(key.encode(errors="surrogatepass")).digest()[:8]) / 2**64 < fraction
    return held_out == (split == "validation")


def _common(
    part: Dataset, columns: dict, options: PairsOptions, where: str, folder: Path | None, split: str
) -> Dataset:
    """Our columns; pictures are not copied. Rows are dropped last: `datasets` would write a file beside the data."""
    others = _other_columns(part, columns, split)
    wanted = [options.wants(view) for view in others["view"]]
    if not any(wanted):
        raise ValueError(
            f"{where}: no row has one of the views {sorted(options.views)}; the column {columns['view']!r} has "
            f"{listed(sorted(set(others['view'])), 10)}."
        )
    used = [keep and text is not None for keep, text in zip(wanted, others["text"])]
    bad: dict[int, str] = {}
    images = _pictures(part, columns, where, folder, used, bad)
    if options.label_columns:
        others["labels"] = _labels(part, columns, options, used, bad)
    features = Features({name: kind for name, kind in options.features.items() if name != "image"})
    rest = Dataset.from_dict({name: others[name] for name in features}, features=features)
    together = concatenate_datasets([images, rest], axis=1)
    rejected = [RejectedRow(where, f"row {i + 1}", reason) for i, reason in sorted(bad.items())]
    reject(rejected, sum(wanted), options.max_rejected, options.advice)
    empty = [i for i, text in enumerate(others["text"]) if text is None and wanted[i]]
    if empty:
        warn_skipped(where, len(empty), sum(wanted), "no text", f"row {empty[0] + 1}")
        note_rejected([RejectedRow(where, f"row {i + 1}", "no text") for i in empty])
    if bad or not all(used):
        together = together.select([i for i, use in enumerate(used) if use and i not in bad])
    return together


def _other_columns(part: Dataset, columns: dict, split: str) -> dict[str, list]:
    """All of our columns but pictures and labels."""

    def given(ours: str) -> list:
        return cells(part, columns[ours]) if ours in columns else [None] * len(part)

    others = {"text": [as_text(text) for text in given("text")], "view": [as_id(v) or "" for v in given("view")]}
    others |= {ours: [as_id(value) for value in given(ours)] for ours in IDS}
    # With the split, as the rows of two splits are not the same images.
    others["image_id"] = [name or f"{split} row {i + 1}" for i, name in enumerate(others["image_id"])]
    return others


def _pictures(
    part: Dataset, columns: dict, where: str, folder: Path | None, used: list[bool], bad: dict[int, str]
) -> Dataset:
    """The column of pictures; `bad` gets the paths that leave the folder."""
    images = part.select_columns(columns["image"])
    images = images if columns["image"] == "image" else images.rename_column(columns["image"], "image")
    for i in np.flatnonzero(~np.asarray(images.with_format("arrow")[:]["image"].is_valid())).tolist():
        if used[i]:
            bad[i] = "there is no picture (the cell is blank)"
    is_path = getattr(images.features["image"], "dtype", None) in ("string", "large_string")
    if is_path and (folder or "folder" in columns):
        subfolders = map(as_id, cells(part, columns["folder"])) if "folder" in columns else [None] * len(part)
        images = _with_paths(images["image"], folder, subfolders, used, bad)
    if isinstance(images.features["image"], Image):
        return images
    try:
        return images.cast_column("image", Image())
    except (pa.ArrowException, TypeError, ValueError) as error:
        kind = images.features["image"]
        raise ValueError(
            f"{where}: the column {columns['image']!r} of {kind} holds no pictures: set image_column."
        ) from error


def _with_paths(names: Iterable, folder, subfolders: Iterable, used: list[bool], bad: dict[int, str]) -> Dataset:
    paths: list[str | None] = []
    for i, (name, subfolder) in enumerate(zip(names, subfolders)):
        try:
            paths.append(picture_path(folder, subfolder, name) if used[i] and i not in bad else None)
        except ValueError as error:
            bad[i] = str(error)
            paths.append(None)
    return Dataset.from_dict({"image": paths}, features=Features({"image": Value("string")}))


def _labels(part: Dataset, columns: dict, options: PairsOptions, used: list[bool], bad: dict[int, str]) -> list[dict]:
    """The labels of each row; `bad` gets the reason where one is none."""
    names, rows = options.label_columns, []
    for i, values in enumerate(zip(*(cells(part, columns[f"labels.{name}"]) for name in names))):
        try:
            rows.append({name: options.label(name, value) if used[i] else None for name, value in zip(names, values)})
        except ValueError as error:
            bad.setdefault(i, str(error))
            rows.append(dict.fromkeys(names))
    return rows


def _stream(
    part: IterableDataset, columns: dict, options: PairsOptions, where: str, folder: Path | None
) -> IterableDataset:
    """Our columns, not yet with their types; rows without text, of other views and bad rows are passed over."""
    source = list(part.features or next(iter(part)))
    if part.features is not None and isinstance(part.features[columns["image"]], Image):
        part = part.cast_column(columns["image"], Image(decode=False))
    ours = set(options.features)
    rows = _StreamRows(columns, options, where, folder)
    return part.map(rows, remove_columns=[name for name in source if name not in ours]).filter(_has_text)


class _StreamRows:
    """Converts the rows of a stream. It is copied into each worker, which counts its own bad rows."""

    def __init__(self, columns: dict, options: PairsOptions, where: str, folder: Path | None):
        self.columns, self.options, self.where, self.folder = columns, options, where, folder
        self.seen = self.bad = 0

    def __call__(self, row: dict) -> dict:
        self.seen += 1
        try:
            out = convert(row, self.columns, self.options, self._picture)
        except ValueError as error:
            self._count(str(error))
            return self._nothing()
        if not self.options.wants(out["view"]):
            return self._nothing()
        out["image_id"] = out["image_id"] or f"image {_checksum(out['image']):08x}"
        return out

    def _picture(self, image, subfolder: str | None):
        if image is None or isinstance(image, str):
            return picture_path(self.folder, subfolder, image)
        if isinstance(image, bytes) or (isinstance(image, dict) and {"bytes", "path"} <= set(image)):
            return image
        raise ValueError(f"the column {self.columns['image']!r} holds no picture; got {short(repr(image), 80)}")

    def _count(self, reason: str) -> None:
        self.bad += 1
        rejected = [RejectedRow(self.where, f"row {self.seen} of the stream", reason)]
        if self.bad > self.options.max_rejected * max(self.seen, MIN_SEEN):
            reject(rejected * self.bad, self.seen, self.options.max_rejected, self.options.advice)
        if self.bad == 1:
            warn_skipped(self.where, 1, self.seen, reason, rejected[0].row)
        note_rejected(rejected)

    def _nothing(self) -> dict:
        """A row that [`_has_text`] drops."""
        names = self.options.label_columns
        empty = {"image": None, "text": None, "view": "", **dict.fromkeys(IDS)}
        return empty | ({"labels": dict.fromkeys(names)} if names else {})


def _has_text(row: dict) -> bool:
    return row["text"] is not None


def _checksum(image) -> int:
    content = (image["bytes"] or image["path"]) if isinstance(image, dict) else image
    return zlib.crc32(content if isinstance(content, bytes) else str(content).encode())


RECORD = DatasetRecord(
    name="pairs",
    load=pairs,
    title="pairs of its makers' own",
    address=None,
    licence=None,
    access="not published here: ask the makers of the model",
    shareable=None,
    public_findings=False,
)
