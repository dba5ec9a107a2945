# Licensed under the Apache License, Version 2.0.
"""Any other pairs: a csv or jsonl file beside pictures, a data set of `datasets`, local or on the Hub, WebDataset."""

import json
import os
import re
import zlib
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)

from .columns import SPLITS, check_split, check_subjects, pair_features
from .tables import inside, read_table, warn_left_out


_SPLIT_NAMES = {"validate": "validation", "valid": "validation", "val": "validation", "dev": "validation"}
_TABLES = (".csv", ".csv.gz", ".jsonl")
_BUILDERS = {".tar": "webdataset", ".parquet": "parquet", ".arrow": "arrow"}
# Where no column is named: the usual names, those of WebDataset's files among them.
_IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "image_path", "path", "filename")
_TEXT_COLUMNS = ("text", "txt", "caption", "report")


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
) -> Dataset | IterableDataset:
    """
    Image-text pairs of one's own.

    `data_dir` is one of
        - a csv, csv.gz or jsonl file, or a folder with one (or with one a split: `train.csv`, `validation.csv`, ...);
          the image column holds paths from the file's folder
        - a folder that `save_to_disk` has written, or with Parquet or Arrow files
        - a folder with WebDataset shards (`*.tar`)
        - the name of a data set on the Hub

    Files are of the split that their name begins with, or that their folder is called. Where there is no validation
    split, a share of the training set becomes it, chosen by a hash of the subject (else the id, else the text): the
    same rows each time, whatever the order, and no subject in both.

    Args:
        split: "train", "validation" or "test".
        data_dir: see above.
        image_column, text_column: default: the usual names, such as "image" and "text", or "jpg" and "txt".
        subject_column, study_column, id_column: if there are any. With subjects, no one may stand in two splits (not
            checked in a stream).
        label_columns: columns of 1, 0, -1 and blank, one a finding.
        validation_share: of the subjects (ids, texts), where there is no validation split.
        streaming: whether to read from front to back instead of at random places; for what does not fit on a disk.

    Raises:
        ValueError: for a missing column (with those that are there), a missing picture or a bad line (with file and
            line), or subjects in two splits.
    """
    check_split("pairs", split)
    if not data_dir:
        raise ValueError("pairs needs data_dir: a csv or jsonl file, a folder, or the name of a data set on the Hub.")
    if not 0 < validation_share < 1:
        raise ValueError(f"validation_share must lie between 0 and 1; got {validation_share!r}.")
    named = {
        "image": image_column,
        "text": text_column,
        "subject_id": subject_column,
        "study_id": study_column,
        "image_id": id_column,
    }
    label_columns = list(label_columns)
    parts = _parts(str(data_dir), named, label_columns, streaming)
    made = "validation" not in parts and split in ("train", "validation")
    check_split(f"{data_dir}", split, [*parts, "validation"] if made else parts)
    wanted = [name for name in ("train" if made else split, *parts) if name in parts]
    chosen = parts[wanted[0]]
    columns = _columns(str(data_dir), list(chosen.features or next(iter(chosen))), named, label_columns)
    if "subject_id" in columns and isinstance(chosen, Dataset):
        check_subjects(str(data_dir), {name: part[columns["subject_id"]] for name, part in parts.items()})
    common = _stream if isinstance(chosen, IterableDataset) else _common
    result = common(chosen, columns, label_columns, f"{data_dir} ({split})")
    if made:
        key = next(name for name in ("subject_id", "image_id", "text") if name in columns)
        keep = lambda row: _held_out(row[key], validation_share) == (split == "validation")  # noqa: E731
        if isinstance(result, IterableDataset):
            result = result.filter(keep)
        else:
            result = result.select([i for i, row in enumerate(result.select_columns(key)) if keep(row)])
    return result.to_iterable_dataset() if streaming and isinstance(result, Dataset) else result


def _held_out(key: str, share: float) -> bool:
    return zlib.crc32(str(key).encode()) / 2**32 < share


def _parts(source: str, named: dict, label_columns: list[str], streaming: bool) -> dict:
    """The splits that are there, each as it is stored."""
    path = Path(source)
    if path.is_file() and path.name.endswith(_TABLES):
        return {"train": _read_table(path, named, label_columns)}
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            loaded = load_from_disk(source)
            return _renamed(loaded) if isinstance(loaded, DatasetDict) else {"train": loaded}
        for suffix, builder in _BUILDERS.items():
            files = _by_split(path, (suffix,))
            if files:
                return dict(load_dataset(builder, data_files=files, streaming=streaming))
        files = _by_split(path, _TABLES)
        if files:
            read = {s: [_read_table(Path(f), named, label_columns) for f in names] for s, names in files.items()}
            return {s: concatenate_datasets(tables) for s, tables in read.items()}
        raise ValueError(
            f"The folder {path} holds no csv, jsonl, tar, parquet or arrow file, and no data set of save_to_disk."
        )
    if path.exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        raise ValueError(f"{source} is no csv or jsonl file, no folder, and no name of a data set on the Hub.")
    try:
        return _renamed(load_dataset(source, streaming=streaming))
    except Exception as error:  # whatever goes wrong between here and the Hub
        raise ValueError(
            f"There is no file or folder {source}, and as a data set on the Hub it cannot be loaded: {error}"
        ) from error


def _renamed(loaded) -> dict:
    """With our names of the splits; others are left out."""
    parts = {_SPLIT_NAMES.get(name, name): part for name, part in loaded.items()}
    return {name: part for name, part in parts.items() if name in SPLITS} or {"train": next(iter(parts.values()))}


def _by_split(folder: Path, suffixes: tuple[str, ...]) -> dict[str, list[str]]:
    """Files of the folder, and one folder below, by split; all are of "train" where no name says more."""
    files = sorted(p for p in (*folder.glob("*"), *folder.glob("*/*")) if p.name.endswith(suffixes) and p.is_file())
    by_split: dict[str, list[str]] = {}
    for file in files:
        names = (file.name, file.parent.name) if file.parent != folder else (file.name,)
        for name in names:
            match = re.match(r"(train|validation|validate|valid|val|dev|test)(?![a-z])", name.lower())
            if match:
                split = _SPLIT_NAMES.get(match[1], match[1])
                by_split.setdefault(split, []).append(str(file))
                break
    if files and not by_split:
        return {"train": [str(file) for file in files]}
    return by_split


def _read_table(path: Path, named: dict, label_columns: list[str]) -> Dataset:
    """A csv or jsonl file, its paths made whole; every picture must be there."""
    if path.name.endswith(".jsonl"):
        table = _read_jsonl(path)
    else:
        wanted = [name for name in named.values() if name] + label_columns
        table = read_table(path, wanted, {*_IMAGE_COLUMNS, *_TEXT_COLUMNS, "__key__"})
    image = _columns(str(path), list(table.columns), named, label_columns)["image"]
    folder, missing = path.parent, []
    whole = []
    for i, relative in enumerate(table[image]):
        line = i + (1 if path.name.endswith(".jsonl") else 2)
        whole.append(str(inside(folder, str(relative), f"{path}, line {line}")))
        if not os.path.isfile(whole[-1]):
            missing.append((line, relative))
    if missing:
        line, relative = missing[0]
        raise ValueError(
            f"{path}, line {line}: there is no picture {folder / relative} ({len(missing)} of {len(table)} are "
            "missing). Paths are read from the folder of the file."
        )
    table[image] = whole
    return Dataset.from_pandas(table, preserve_index=False).cast_column(image, Image())


def _read_jsonl(path: Path) -> pd.DataFrame:
    rows = []
    with path.open(encoding="utf-8") as file:
        for line, content in enumerate(file, 1):
            try:
                row = json.loads(content)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise ValueError(f"{path}, line {line}: not JSON ({error}).") from error
            if not isinstance(row, dict):
                raise ValueError(f'{path}, line {line}: must be an object, such as {{"image": ..., "text": ...}}.')
            rows.append(row)
    return pd.DataFrame(rows)


def _columns(where: str, there: list[str], named: dict, label_columns: list[str]) -> dict[str, str]:
    """The data set's name for each of our columns."""
    columns = {}
    usual = {"image": _IMAGE_COLUMNS, "text": _TEXT_COLUMNS, "image_id": ("__key__",)}
    for ours, name in named.items():
        candidates = (name,) if name else usual.get(ours, ())
        found = [candidate for candidate in candidates if candidate in there]
        if found:
            columns[ours] = found[0]
        elif name or ours in ("image", "text"):
            raise ValueError(
                f"{where} has no column {name or ' or '.join(map(repr, candidates))!s}; its columns are {there}. Set "
                f"{'id_column' if ours == 'image_id' else ours.removesuffix('_id') + '_column'}."
            )
    missing = [name for name in label_columns if name not in there]
    if missing:
        raise ValueError(f"{where} has no column {missing[0]!r} (label_columns); its columns are {there}.")
    return columns


def _features(label_columns: list[str]) -> Features:
    return pair_features(label_columns, ids="string")


def _common(part: Dataset, columns: dict, label_columns: list[str], name: str) -> Dataset:
    """Our columns; pictures are not copied."""
    texts = part[columns["text"]]
    with_text = [i for i, text in enumerate(texts) if isinstance(text, str) and text.strip()]
    if len(with_text) < len(part):
        first = next(i for i, text in enumerate(texts) if not (isinstance(text, str) and text.strip()))
        warn_left_out(name, len(part) - len(with_text), len(part), "no text", f"row {first + 1}")
        part = part.select(with_text)
    features = _features(label_columns)
    images = part.select_columns([columns["image"]]).rename_column(columns["image"], "image")
    if not isinstance(images.features["image"], Image):
        images = images.cast_column("image", Image())
    others = {}
    for ours in ("text", "subject_id", "study_id", "image_id"):
        given = columns.get(ours)
        others[ours] = [None if v is None else str(v) for v in part[given]] if given else [None] * len(part)
    if "image_id" not in columns:
        others["image_id"] = [f"row {i + 1}" for i in range(len(part))]
    others["view"] = [""] * len(part)
    if label_columns:
        values = part.select_columns(label_columns)
        others["labels"] = [{n: _label(name, n, row[n]) for n in label_columns} for row in values]
    rest = Dataset.from_dict(others, features=Features({k: v for k, v in features.items() if k != "image"}))
    return concatenate_datasets([images, rest], axis=1)


def _stream(part: IterableDataset, columns: dict, label_columns: list[str], name: str) -> IterableDataset:
    """Our columns; rows without text are passed over."""

    def convert(row: dict) -> dict:
        out = {ours: row[theirs] for ours, theirs in columns.items()}
        for ours in ("text", "subject_id", "study_id", "image_id"):
            out[ours] = None if out.get(ours) is None else str(out[ours])
        out["image_id"] = out["image_id"] or f"text {zlib.crc32((out['text'] or '').encode()):08x}"
        out["view"] = ""
        if label_columns:
            out["labels"] = {n: _label(name, n, row[n]) for n in label_columns}
        return out

    source = list(part.features or next(iter(part)))
    if part.features is not None and isinstance(part.features[columns["image"]], Image):
        part = part.cast_column(columns["image"], Image(decode=False))
    features = _features(label_columns)
    ours = set(features)
    converted = part.map(convert, remove_columns=[c for c in source if c not in ours], features=features)
    return converted.filter(lambda row: bool(row["text"] and row["text"].strip()))


def _label(where: str, column: str, value) -> float | None:
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = None
    if number not in (-1.0, 0.0, 1.0):
        raise ValueError(f"{where}: {column} must be 1, 0, -1 or blank; got {value!r}.")
    return number
