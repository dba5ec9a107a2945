# Licensed under the Apache License, Version 2.0.
"""Any other pairs: a csv or jsonl file beside pictures, a data set of `datasets`, local or on the Hub, WebDataset."""

import hashlib
import json
import os
import re
import warnings
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from datasets import (
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    Value,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)

from .columns import SPLITS, check_split, check_subjects, pair_features
from .record import DatasetRecord
from .rejected import MAX_REJECTED, RejectedRow, note_rejected, reject
from .tables import csv_rows, inside, is_missing, text_lines, warn_skipped


_SPLIT_NAMES = {"validate": "validation", "valid": "validation", "val": "validation", "dev": "validation"}
_TABLES = (".csv", ".csv.gz", ".jsonl")
_BUILDERS = {".tar": "webdataset", ".parquet": "parquet", ".arrow": "arrow"}
# Where no column is named: the usual names, those of WebDataset's files among them.
_IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "image_path", "path", "filename", "file_name")
_TEXT_COLUMNS = ("text", "txt", "caption", "report")
_IDS = ("subject_id", "study_id", "image_id")
MAX_SHARDS = 64  # workers that can read a table as a stream
MIN_SEEN = 100  # rows of a stream before the fraction of bad ones is judged


@dataclass(frozen=True)
class _Reading:
    """How the rows are read."""

    named: dict[str, str | None]
    """The user's name of each of our columns, if there is one."""
    label_columns: list[str]
    encoding: str | None
    max_rejected: float

    @property
    def advice(self) -> str:
        return " Mend them, or go on with a larger max_rejected."


def pairs(
    split: str = "train",
    data_dir: str | os.PathLike | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    subject_column: str | None = None,
    study_column: str | None = None,
    id_column: str | None = None,
    label_columns: Iterable[str] = (),
    validation_share: float = 0.05,
    streaming: bool = False,
    encoding: str | None = None,
    max_rejected: float = MAX_REJECTED,
) -> Dataset | IterableDataset:
    """
    Your own image-text pairs.

    `data_dir` is one of
        - a csv, csv.gz or jsonl file, or a folder with one (or one per split: `train.csv`, `validation.csv`, ...);
          the image column holds paths from the file's folder. A csv file may be separated by commas, semicolons or
          tabs
        - a folder that `save_to_disk` has written, or with Parquet or Arrow files; pictures, or paths from the folder
        - a folder with WebDataset shards (`*.tar`)
        - the name of a data set on the Hub

    Files are of the split that their name begins with, or that their folder is called. Where there is no validation
    split, a fraction of the training set becomes it, chosen by a hash of the subject (else the id, else the text): the
    same rows each time, whatever the order, and no subject in both. Parquet, Arrow and WebDataset are copied into the
    cache of `datasets`, unless they are streamed.

    Rows without a text (blank, or "nan", "None", "N/A", "null") are skipped and counted. So are bad rows: a missing
    picture, a path out of the folder, a label of another value, a line that is not csv or JSON.

    Args:
        split: "train", "validation" or "test".
        data_dir: see above.
        image_column, text_column: default: the usual names, such as "image" and "text", or "jpg" and "txt". A field
            within a column is named with a dot: "json.caption".
        subject_column, study_column, id_column: if there are any. With subjects, no one may be in two splits (not
            checked in a stream). Without ids, a row is called by its split and number, such as "train row 7", and in a
            stream by a hash of the picture.
        label_columns: columns of 1, 0, -1 and blank, one per finding.
        validation_share: of the subjects (ids, texts), where there is no validation split.
        streaming: whether to read from front to back instead of in any order; for what does not fit on a disk.
        encoding: of csv and jsonl files, such as "cp1252"; default: UTF-8, or what their byte order mark says.
        max_rejected: largest fraction of bad rows.

    Raises:
        ValueError: for a missing column (with those that exist), too many bad rows (the first with file and line),
            subjects in two splits, or a split without rows.
    """
    check_split("pairs", split)
    if not data_dir:
        raise ValueError("pairs needs data_dir: a csv or jsonl file, a folder, or the name of a data set on the Hub.")
    if not 0 < validation_share < 1:
        raise ValueError(f"validation_share must lie between 0 and 1; got {validation_share!r}.")
    if not 0 <= max_rejected <= 1:
        raise ValueError(f"max_rejected must be a fraction between 0 and 1; got {max_rejected!r}.")
    source, folder = str(data_dir), Path(data_dir) if os.path.isdir(data_dir) else None
    named = {
        "image": image_column,
        "text": text_column,
        "subject_id": subject_column,
        "study_id": study_column,
        "image_id": id_column,
    }
    label_columns = list(label_columns)
    reading = _Reading(named, label_columns, encoding, max_rejected)
    parts, columns = _parts(source, reading, streaming)
    made = "train" in parts and "validation" not in parts and split in ("train", "validation")
    check_split(source, split, [*parts, "validation"] if made else parts)
    part, where = parts["train" if made else split], f"{source} ({split})"
    columns = columns or _columns(where, _column_names(part, where), named, label_columns)
    if "subject_id" in columns and isinstance(part, Dataset):
        check_subjects(source, {n: _subjects(p, columns["subject_id"], f"{source} ({n})") for n, p in parts.items()})
    common = _stream if isinstance(part, IterableDataset) else partial(_common, split="train" if made else split)
    result = common(part, columns, reading, where, folder)
    if made:
        keys = [name for name in ("subject_id", "image_id", "text") if name in columns]
        keep = partial(_is_of, split=split, keys=keys, fraction=validation_share)
        if isinstance(result, IterableDataset):
            result = result.filter(keep)
        else:
            result = result.select([i for i, row in enumerate(result.select_columns(keys)) if keep(row)])
    if isinstance(result, IterableDataset):
        return result.cast(_features(label_columns))  # last, as a filter after it would open every picture
    if len(result) == 0:
        why = f": the validation set is {validation_share} of the training set; set validation_share" if made else ""
        raise ValueError(f"{where} has no rows{why}.")
    return result.to_iterable_dataset(num_shards=min(MAX_SHARDS, len(result))) if streaming else result


def _subjects(part: Dataset, column: str, where: str) -> set[str]:
    _columns(where, _column_names(part, where), {"subject_id": column}, [])
    return {_id(value) for value in _values(part, column)} - {None}


def _is_of(row: dict, split: str, keys: list[str], fraction: float) -> bool:
    """Whether a row belongs to this one of the training set and the validation set that is made of it."""
    key = next(row[name] for name in keys if row[name])
    held_out = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64 < fraction
    return held_out == (split == "validation")


def _parts(source: str, reading: _Reading, streaming: bool) -> tuple[dict, dict]:
    """The existing splits, each as it is stored; for tables, which are read here, the names of their columns."""
    path = Path(source)
    if path.is_file() and path.name.endswith(_TABLES):
        return {"train": _read_table(path, reading)}, _table_columns(reading)
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            loaded = load_from_disk(source)
            return (_renamed(loaded) if isinstance(loaded, DatasetDict) else {"train": loaded}), {}
        for suffix, builder in _BUILDERS.items():
            files = _by_split(path, (suffix,))
            if files:
                try:
                    return dict(load_dataset(builder, data_files=files, streaming=streaming)), {}
                except Exception as error:  # datasets hides what is wrong with a file behind one of its own
                    raise ValueError(
                        f"The {suffix} files of {path} cannot be read: {error.__cause__ or error}"
                    ) from error
        files = _by_split(path, _TABLES)
        if files:
            read = {split: [_read_table(Path(file), reading) for file in names] for split, names in files.items()}
            parts = {split: concatenate_datasets(tables) for split, tables in read.items()}
            return parts, _table_columns(reading)
        raise ValueError(
            f"The folder {path} holds no csv, jsonl, tar, parquet or arrow file, and no data set of save_to_disk."
        )
    if path.exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        raise ValueError(f"There is no csv or jsonl file, no folder and no Hub data set named {source}.")
    try:
        return _renamed(load_dataset(source, streaming=streaming)), {}
    except Exception as error:  # whatever goes wrong between here and the Hub
        raise ValueError(
            f"There is no file or folder {source}, and no data set of that name could be loaded from the Hub: {error}"
        ) from error


def _renamed(loaded) -> dict:
    """With our names of the splits; others are dropped."""
    parts = {_SPLIT_NAMES.get(name, name): part for name, part in loaded.items()}
    return {name: part for name, part in parts.items() if name in SPLITS} or {"train": next(iter(parts.values()))}


def _by_split(folder: Path, suffixes: tuple[str, ...]) -> dict[str, list[str]]:
    """Files of the folder, and one folder below, by split; all are of "train" where no name says more."""
    files = sorted(
        file
        for file in (*folder.glob("*"), *folder.glob("*/*"))
        if file.name.endswith(suffixes)
        and file.is_file()
        and not file.name.startswith((".", "cache-"))  # those of `datasets`
    )
    by_split: dict[str, list[str]] = {}
    unknown = []
    for file in files:
        names = (file.name, file.parent.name) if file.parent != folder else (file.name,)
        matches = [re.match(r"(train|validation|validate|valid|val|dev|test)(?![a-z])", n.lower()) for n in names]
        match = next(filter(None, matches), None)
        if match:
            by_split.setdefault(_SPLIT_NAMES.get(match[1], match[1]), []).append(str(file))
        else:
            unknown.append(str(file))
    if by_split and unknown:
        warnings.warn(
            f"{folder}: {len(unknown)} of {len(files)} files skipped: their names begin with no split, such as "
            f"{unknown[0]}.",
            stacklevel=3,
        )
    return by_split or ({"train": unknown} if unknown else {})


def _read_table(path: Path, reading: _Reading) -> Dataset:
    """A csv or jsonl file under our names, with full paths; every picture exists."""
    named, label_columns = reading.named, reading.label_columns
    wanted = {*_IMAGE_COLUMNS, *_TEXT_COLUMNS, *filter(None, named.values()), *label_columns}
    read = _read_jsonl if path.name.endswith(".jsonl") else _read_csv
    bad: list[tuple[int, str]] = []
    names, rows = read(path, wanted | {name.partition(".")[0] for name in wanted}, reading.encoding, bad)
    total = len(rows) + len(bad)
    if not total:
        raise ValueError(f"{path} has no rows.")
    columns = _columns(str(path), _names(names), named, label_columns)
    cells: dict[str, list] = {ours: [] for ours in ("image", "text", *_IDS, *(["labels"] if label_columns else []))}
    for line, row in rows:
        try:
            converted = _table_row(path, row, columns, label_columns)
        except ValueError as error:
            bad.append((line, str(error)))
        else:
            for ours, values in cells.items():
                values.append(converted[ours])
    rejected = [RejectedRow(str(path), f"line {line}", reason) for line, reason in sorted(bad)]
    reject(rejected, total, reading.max_rejected, reading.advice)
    features = {name: kind for name, kind in _features(label_columns).items() if name in cells}
    table = Dataset.from_dict(cells, features=Features(features | {"image": Value("string")}))
    return table.cast_column("image", Image())


def _table_row(path: Path, row: dict, columns: dict[str, str], label_columns: list[str]) -> dict:
    """A row under our names; raises ValueError if it cannot be used."""
    image = _id(_cell(row, columns["image"]))
    if image is None:
        raise ValueError("there is no picture (the cell is blank)")
    picture = inside(path.parent, image, "image")
    if not _is_file(picture):
        raise ValueError(f"there is no picture {picture} (paths are read from the folder of the file)")
    out = {"image": str(picture), "text": _text(_cell(row, columns["text"]))}
    out |= {ours: _id(_cell(row, columns[ours])) if ours in columns else None for ours in _IDS}
    out["labels"] = {name: _label(name, _cell(row, columns[f"labels.{name}"])) for name in label_columns}
    return out


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _table_columns(reading: _Reading) -> dict[str, str]:
    ours = [name for name, given in reading.named.items() if given or name in ("image", "text")]
    return {name: name for name in (*ours, *(f"labels.{name}" for name in reading.label_columns))}


def _read_csv(
    path: Path, wanted: set[str], encoding: str | None, bad: list[tuple[int, str]]
) -> tuple[dict, list[tuple[int, dict]]]:
    """All columns; and of each row, the line that it begins in and the wanted columns."""
    small = {name.lower() for name in wanted}
    rows = csv_rows(path, encoding, bad=bad)
    _, columns = next(rows)
    kept = [
        (line, {name: field for name, field in zip(columns, fields) if name.lower() in small}) for line, fields in rows
    ]
    return dict.fromkeys(columns), kept


def _read_jsonl(
    path: Path, wanted: set[str], encoding: str | None, bad: list[tuple[int, str]]
) -> tuple[dict, list[tuple[int, dict]]]:
    """As [`_read_csv`]."""
    small = {name.lower() for name in wanted}
    columns, rows = {}, []
    for line, content in enumerate(text_lines(path, encoding), 1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except (json.JSONDecodeError, RecursionError) as error:
            bad.append((line, f"not JSON ({error})"))
            continue
        if not isinstance(row, dict):
            bad.append((line, 'must be an object, such as {"image": ..., "text": ...}'))
            continue
        columns |= row
        rows.append((line, {name: value for name, value in row.items() if name.lower() in small}))
    if bad and not rows:
        reject([RejectedRow(str(path), f"line {line}", reason) for line, reason in bad], len(bad))
    return columns, rows


def _column_names(part: Dataset | IterableDataset, where: str) -> list[str]:
    columns = part.features or next(iter(part), None)
    if columns is None:
        raise ValueError(f"{where} has no rows.")
    return _names(columns)


def _names(columns: dict) -> list[str]:
    """Names of columns, and "outer.inner" for those within one."""
    names = []
    for name, content in columns.items():
        names += [name, *(f"{name}.{inner}" for inner in content)] if isinstance(content, dict) else [name]
    return names


def _cell(row: dict, name: str):
    if name in row:
        return row[name]
    outer, _, inner = name.partition(".")
    return (row.get(outer) or {}).get(inner)


def _values(part: Dataset, name: str) -> list:
    if name in part.column_names:
        return part[name][:]
    return [_cell(row, name) for row in part.select_columns(name.partition(".")[0])]


def _columns(where: str, existing: list[str], named: dict, label_columns: list[str]) -> dict[str, str]:
    """The data set's name for each of our columns; a label's is called "labels." and its name."""
    columns = {}
    usual = {"image": _IMAGE_COLUMNS, "text": _TEXT_COLUMNS, "image_id": ("__key__",)}
    for ours, name in named.items():
        candidates = (name,) if name else usual.get(ours, ())
        chosen = next(filter(None, (_existing(candidate, existing) for candidate in candidates)), None)
        if chosen:
            columns[ours] = chosen
        elif name or ours in ("image", "text"):
            raise ValueError(
                f"{where} has no column {' or '.join(map(repr, candidates))}; its columns are {existing}. Set "
                f"{'id_column' if ours == 'image_id' else ours.removesuffix('_id') + '_column'}."
            )
    for name in label_columns:
        chosen = _existing(name, existing)
        if not chosen:
            raise ValueError(f"{where} has no column {name!r} (label_columns); its columns are {existing}.")
        columns[f"labels.{name}"] = chosen
    return columns


def _existing(name: str, existing: list[str]) -> str | None:
    """The column of that name, or else one of that name in other letter case."""
    same = [other for other in existing if other == name] or [o for o in existing if o.lower() == name.lower()]
    return same[0] if same else None


def _features(label_columns: list[str]) -> Features:
    return pair_features(label_columns, ids="string")


def _common(part: Dataset, columns: dict, reading: _Reading, where: str, folder: Path | None, split: str) -> Dataset:
    """Our columns; pictures are not copied. Rows are dropped last: `datasets` would write a file beside the data."""
    label_columns, bad = reading.label_columns, {}
    texts = [_text(text) for text in _values(part, columns["text"])]
    images = part.select_columns(columns["image"])
    images = images if columns["image"] == "image" else images.rename_column(columns["image"], "image")
    if folder and getattr(images.features["image"], "dtype", None) in ("string", "large_string"):
        images = _with_paths(images, folder, texts, bad)
    if not isinstance(images.features["image"], Image):
        images = images.cast_column("image", Image())
    others = {"text": texts, "view": [""] * len(part)}
    for ours in _IDS:
        given = _values(part, columns[ours]) if ours in columns else [None] * len(part)
        others[ours] = [_id(value) for value in given]
    # With the split, as the rows of two splits are not the same images.
    others["image_id"] = [given or f"{split} row {i + 1}" for i, given in enumerate(others["image_id"])]
    if label_columns:
        values = [_values(part, columns[f"labels.{name}"]) for name in label_columns]
        others["labels"] = [_row_labels(i, label_columns, row, bad) for i, row in enumerate(zip(*values))]
    features = Features({name: kind for name, kind in _features(label_columns).items() if name != "image"})
    rest = Dataset.from_dict({name: others[name] for name in features}, features=features)
    together = concatenate_datasets([images, rest], axis=1)
    rejected = [RejectedRow(where, f"row {i + 1}", reason) for i, reason in sorted(bad.items())]
    reject(rejected, len(part), reading.max_rejected, reading.advice)
    empty = [i for i, text in enumerate(texts) if text is None]
    if empty:
        warn_skipped(where, len(empty), len(texts), "no text", f"row {empty[0] + 1}")
        note_rejected([RejectedRow(where, f"row {i + 1}", "no text") for i in empty])
    if empty or bad:
        together = together.select([i for i, text in enumerate(texts) if text is not None and i not in bad])
    return together


def _with_paths(images: Dataset, folder: Path, texts: list, bad: dict[int, str]) -> Dataset:
    """Paths from the folder as full paths; `bad` gets those that leave it."""
    paths: list[str | None] = []
    for i, path in enumerate(images["image"]):
        try:
            paths.append(_path(folder, path) if texts[i] is not None else None)
        except ValueError as error:
            bad[i] = str(error)
            paths.append(None)
    return Dataset.from_dict({"image": paths}, features=Features({"image": Value("string")}))


def _row_labels(i: int, names: list[str], values: Iterable, bad: dict[int, str]) -> dict[str, float | None]:
    """The labels of a row; `bad` gets the reason if one is none."""
    try:
        return {name: _label(name, value) for name, value in zip(names, values)}
    except ValueError as error:
        bad.setdefault(i, str(error))
        return dict.fromkeys(names)


def _stream(
    part: IterableDataset, columns: dict, reading: _Reading, where: str, folder: Path | None
) -> IterableDataset:
    """Our columns, not yet with their types; rows without text and bad rows are passed over."""
    source = list(part.features or next(iter(part)))
    if part.features is not None and isinstance(part.features[columns["image"]], Image):
        part = part.cast_column(columns["image"], Image(decode=False))
    ours = set(_features(reading.label_columns))
    convert = _StreamRows(columns, reading, where, folder)
    return part.map(convert, remove_columns=[name for name in source if name not in ours]).filter(_has_text)


class _StreamRows:
    """Converts the rows of a stream. It is copied into each worker, which counts its own bad rows."""

    def __init__(self, columns: dict, reading: _Reading, where: str, folder: Path | None):
        self.columns, self.reading, self.where, self.folder = columns, reading, where, folder
        self.seen = self.bad = 0

    def __call__(self, row: dict) -> dict:
        self.seen += 1
        try:
            return self._convert(row)
        except ValueError as error:
            self.bad += 1
            rejected = [RejectedRow(self.where, f"row {self.seen} of the stream", str(error))]
            if self.bad > self.reading.max_rejected * max(self.seen, MIN_SEEN):
                reject(rejected * self.bad, self.seen, self.reading.max_rejected, self.reading.advice)
            if self.bad == 1:
                warn_skipped(self.where, 1, self.seen, str(error), rejected[0].row)
            note_rejected(rejected)
            names = self.reading.label_columns
            return {"image": None, "text": None, "view": "", **dict.fromkeys(_IDS)} | (
                {"labels": dict.fromkeys(names)} if names else {}
            )

    def _convert(self, row: dict) -> dict:
        columns, names = self.columns, self.reading.label_columns
        image = row[columns["image"]]
        image = _path(self.folder, image) if isinstance(image, str) and self.folder else image
        out = {"image": image, "text": _text(_cell(row, columns["text"])), "view": ""}
        out |= {ours: _id(_cell(row, columns[ours])) if ours in columns else None for ours in _IDS}
        out["image_id"] = out["image_id"] or f"image {_checksum(image):08x}"
        if names:
            out["labels"] = {name: _label(name, _cell(row, columns[f"labels.{name}"])) for name in names}
        return out


def _has_text(row: dict) -> bool:
    return row["text"] is not None


def _path(folder: Path, path: str | None) -> str | None:
    return path if path is None or "://" in path else str(inside(folder, path, "image"))


def _checksum(image) -> int:
    content = (image["bytes"] or image["path"]) if isinstance(image, dict) else image
    return zlib.crc32(content if isinstance(content, bytes) else str(content).encode())


def _text(value) -> str | None:
    return value if isinstance(value, str) and not is_missing(value) else None


def _id(value) -> str | None:
    if value is None or value != value:
        return None
    # A column of whole numbers with gaps is one of floats, in tables as texts.
    text = re.sub(r"^(-?\d+)\.0+$", r"\1", str(value).strip())
    return None if is_missing(text) else text


def _label(column: str, value) -> float | None:
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = None
    if number not in (-1.0, 0.0, 1.0):
        raise ValueError(f"{column} must be 1, 0, -1 or blank; got {value!r}.")
    return number


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
