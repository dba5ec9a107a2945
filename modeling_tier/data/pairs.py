# Licensed under the Apache License, Version 2.0.
"""Any other pairs: a csv or jsonl file beside pictures, a data set of `datasets`, local or on the Hub, WebDataset."""

import hashlib
import json
import os
import re
import warnings
import zlib
from collections.abc import Iterable
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
from .tables import csv_rows, inside, text_lines, warn_left_out


_SPLIT_NAMES = {"validate": "validation", "valid": "validation", "val": "validation", "dev": "validation"}
_TABLES = (".csv", ".csv.gz", ".jsonl")
_BUILDERS = {".tar": "webdataset", ".parquet": "parquet", ".arrow": "arrow"}
# Where no column is named: the usual names, those of WebDataset's files among them.
_IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "image_path", "path", "filename", "file_name")
_TEXT_COLUMNS = ("text", "txt", "caption", "report")
_IDS = ("subject_id", "study_id", "image_id")
# A stream is read by up to so many workers.
_SHARDS = 64


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
        - a folder that `save_to_disk` has written, or with Parquet or Arrow files; pictures, or paths from the folder
        - a folder with WebDataset shards (`*.tar`)
        - the name of a data set on the Hub

    Files are of the split that their name begins with, or that their folder is called. Where there is no validation
    split, a share of the training set becomes it, chosen by a hash of the subject (else the id, else the text): the
    same rows each time, whatever the order, and no subject in both. Parquet, Arrow and WebDataset are copied into the
    cache of `datasets`, unless they are streamed.

    Args:
        split: "train", "validation" or "test".
        data_dir: see above.
        image_column, text_column: default: the usual names, such as "image" and "text", or "jpg" and "txt". What lies
            within a column is named with a dot: "json.caption".
        subject_column, study_column, id_column: if there are any. With subjects, no one may stand in two splits (not
            checked in a stream). Without ids, a row is called by its number, and in a stream by a hash of the picture.
        label_columns: columns of 1, 0, -1 and blank, one a finding.
        validation_share: of the subjects (ids, texts), where there is no validation split.
        streaming: whether to read from front to back instead of at random places; for what does not fit on a disk.

    Raises:
        ValueError: for a missing column (with those that are there), a missing picture or a bad line (with file and
            line), subjects in two splits, or a split without rows.
    """
    check_split("pairs", split)
    if not data_dir:
        raise ValueError("pairs needs data_dir: a csv or jsonl file, a folder, or the name of a data set on the Hub.")
    if not 0 < validation_share < 1:
        raise ValueError(f"validation_share must lie between 0 and 1; got {validation_share!r}.")
    source, folder = str(data_dir), Path(data_dir) if os.path.isdir(data_dir) else None
    named = {
        "image": image_column,
        "text": text_column,
        "subject_id": subject_column,
        "study_id": study_column,
        "image_id": id_column,
    }
    label_columns = list(label_columns)
    parts, columns = _parts(source, named, label_columns, streaming)
    made = "train" in parts and "validation" not in parts and split in ("train", "validation")
    check_split(source, split, [*parts, "validation"] if made else parts)
    part, where = parts["train" if made else split], f"{source} ({split})"
    columns = columns or _columns(where, _there(part, where), named, label_columns)
    if "subject_id" in columns and isinstance(part, Dataset):
        check_subjects(source, {n: _subjects(p, columns["subject_id"], f"{source} ({n})") for n, p in parts.items()})
    common = _stream if isinstance(part, IterableDataset) else _common
    result = common(part, columns, label_columns, where, folder)
    if made:
        keys = [name for name in ("subject_id", "image_id", "text") if name in columns]
        keep = partial(_is_of, split=split, keys=keys, share=validation_share)
        if isinstance(result, IterableDataset):
            result = result.filter(keep)
        else:
            result = result.select([i for i, row in enumerate(result.select_columns(keys)) if keep(row)])
    if isinstance(result, IterableDataset):
        return result.cast(_features(label_columns))  # last, as a filter after it would open every picture
    if len(result) == 0:
        why = f": the validation set is {validation_share} of the training set; set validation_share" if made else ""
        raise ValueError(f"{where} has no rows{why}.")
    return result.to_iterable_dataset(num_shards=min(_SHARDS, len(result))) if streaming else result


def _subjects(part: Dataset, column: str, where: str) -> set[str]:
    _columns(where, _there(part, where), {"subject_id": column}, [])
    return {_id(value) for value in _values(part, column)} - {None}


def _is_of(row: dict, split: str, keys: list[str], share: float) -> bool:
    """Whether a row belongs to this one of the training set and the validation set that is made of it."""
    key = next(row[name] for name in keys if row[name])
    held_out = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64 < share
    return held_out == (split == "validation")


def _parts(source: str, named: dict, label_columns: list[str], streaming: bool) -> tuple[dict, dict]:
    """The splits that are there, each as it is stored; for tables, which are read here, the names of their columns."""
    path = Path(source)
    if path.is_file() and path.name.endswith(_TABLES):
        return {"train": _read_table(path, named, label_columns)}, _table_columns(named, label_columns)
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
            read = {s: [_read_table(Path(f), named, label_columns) for f in names] for s, names in files.items()}
            parts = {split: concatenate_datasets(tables) for split, tables in read.items()}
            return parts, _table_columns(named, label_columns)
        raise ValueError(
            f"The folder {path} holds no csv, jsonl, tar, parquet or arrow file, and no data set of save_to_disk."
        )
    if path.exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        raise ValueError(f"{source} is no csv or jsonl file, no folder, and no name of a data set on the Hub.")
    try:
        return _renamed(load_dataset(source, streaming=streaming)), {}
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
            f"{folder}: {len(unknown)} of {len(files)} files left out: their names begin with no split, such as "
            f"{unknown[0]}.",
            stacklevel=3,
        )
    return by_split or ({"train": unknown} if unknown else {})


def _read_table(path: Path, named: dict, label_columns: list[str]) -> Dataset:
    """A csv or jsonl file under our names, its paths made whole; every picture must be there."""
    wanted = {*_IMAGE_COLUMNS, *_TEXT_COLUMNS, *filter(None, named.values()), *label_columns}
    read = _read_jsonl if path.name.endswith(".jsonl") else _read_csv
    there, rows = read(path, wanted | {name.partition(".")[0] for name in wanted})
    if not rows:
        raise ValueError(f"{path} has no rows.")
    columns = _columns(str(path), _names(there), named, label_columns)
    cells: dict[str, list] = {ours: [] for ours in ("image", "text", *_IDS)}
    labels, missing = [], []
    for line, row in rows:
        where = f"{path}, line {line}"
        image = _id(_cell(row, columns["image"]))
        whole = inside(path.parent, image, where) if image else None
        if whole is None or not whole.is_file():
            missing.append(f"{where}: there is no picture {whole or '(the cell is blank)'}")
        cells["image"].append(str(whole))
        cells["text"].append(_text(_cell(row, columns["text"])))
        for ours in _IDS:
            cells[ours].append(_id(_cell(row, columns[ours])) if ours in columns else None)
        labels.append({name: _label(where, name, _cell(row, columns[f"labels.{name}"])) for name in label_columns})
    if missing:
        raise ValueError(
            f"{missing[0]} ({len(missing)} of {len(rows)} are missing). Paths are read from the folder of the file."
        )
    if label_columns:
        cells["labels"] = labels
    features = {name: kind for name, kind in _features(label_columns).items() if name in cells}
    table = Dataset.from_dict(cells, features=Features(features | {"image": Value("string")}))
    return table.cast_column("image", Image())


def _table_columns(named: dict, label_columns: list[str]) -> dict[str, str]:
    ours = [name for name, given in named.items() if given or name in ("image", "text")]
    return {name: name for name in (*ours, *(f"labels.{name}" for name in label_columns))}


def _read_csv(path: Path, wanted: set[str]) -> tuple[dict, list[tuple[int, dict]]]:
    """All columns; and of each row, the line that it begins in and the wanted columns."""
    rows = csv_rows(path)
    _, columns = next(rows)
    kept = [(line, {name: field for name, field in zip(columns, fields) if name in wanted}) for line, fields in rows]
    return dict.fromkeys(columns), kept


def _read_jsonl(path: Path, wanted: set[str]) -> tuple[dict, list[tuple[int, dict]]]:
    """As [`_read_csv`]."""
    columns, rows = {}, []
    for line, content in enumerate(text_lines(path), 1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {line}: not JSON ({error}).") from error
        if not isinstance(row, dict):
            raise ValueError(f'{path}, line {line}: must be an object, such as {{"image": ..., "text": ...}}.')
        columns |= row
        rows.append((line, {name: value for name, value in row.items() if name in wanted}))
    return columns, rows


def _there(part: Dataset | IterableDataset, where: str) -> list[str]:
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


def _columns(where: str, there: list[str], named: dict, label_columns: list[str]) -> dict[str, str]:
    """The data set's name for each of our columns; a label's is called "labels." and its name."""
    columns = {}
    usual = {"image": _IMAGE_COLUMNS, "text": _TEXT_COLUMNS, "image_id": ("__key__",)}
    for ours, name in named.items():
        candidates = (name,) if name else usual.get(ours, ())
        found = [candidate for candidate in candidates if candidate in there]
        if found:
            columns[ours] = found[0]
        elif name or ours in ("image", "text"):
            raise ValueError(
                f"{where} has no column {' or '.join(map(repr, candidates))}; its columns are {there}. Set "
                f"{'id_column' if ours == 'image_id' else ours.removesuffix('_id') + '_column'}."
            )
    missing = [name for name in label_columns if name not in there]
    if missing:
        raise ValueError(f"{where} has no column {missing[0]!r} (label_columns); its columns are {there}.")
    return columns | {f"labels.{name}": name for name in label_columns}


def _features(label_columns: list[str]) -> Features:
    return pair_features(label_columns, ids="string")


def _common(part: Dataset, columns: dict, label_columns: list[str], where: str, folder: Path | None) -> Dataset:
    """Our columns; pictures are not copied. Rows are left out last: `datasets` would write a file beside the data."""
    texts = [_text(text) for text in _values(part, columns["text"])]
    images = part.select_columns(columns["image"])
    images = images if columns["image"] == "image" else images.rename_column(columns["image"], "image")
    if folder and getattr(images.features["image"], "dtype", None) in ("string", "large_string"):
        paths = [
            _path(folder, path, f"{where}, row {i + 1}") if texts[i] is not None else None
            for i, path in enumerate(images["image"])
        ]
        images = Dataset.from_dict({"image": paths}, features=Features({"image": Value("string")}))
    if not isinstance(images.features["image"], Image):
        images = images.cast_column("image", Image())
    others = {"text": texts, "view": [""] * len(part)}
    for ours in _IDS:
        given = _values(part, columns[ours]) if ours in columns else [None] * len(part)
        others[ours] = [_id(value) for value in given]
    others["image_id"] = [given or f"row {i + 1}" for i, given in enumerate(others["image_id"])]
    if label_columns:
        values = [_values(part, columns[f"labels.{name}"]) for name in label_columns]
        others["labels"] = [
            {name: _label(f"{where}, row {i + 1}", name, value) for name, value in zip(label_columns, row)}
            for i, row in enumerate(zip(*values))
        ]
    features = Features({name: kind for name, kind in _features(label_columns).items() if name != "image"})
    rest = Dataset.from_dict({name: others[name] for name in features}, features=features)
    whole = concatenate_datasets([images, rest], axis=1)
    rows = [i for i, text in enumerate(texts) if text is not None]
    if len(rows) < len(texts):
        warn_left_out(where, len(texts) - len(rows), len(texts), "no text", f"row {texts.index(None) + 1}")
        whole = whole.select(rows)
    return whole


def _stream(
    part: IterableDataset, columns: dict, label_columns: list[str], where: str, folder: Path | None
) -> IterableDataset:
    """Our columns, not yet with their types; rows without text are passed over."""
    source = list(part.features or next(iter(part)))
    if part.features is not None and isinstance(part.features[columns["image"]], Image):
        part = part.cast_column(columns["image"], Image(decode=False))
    ours = set(_features(label_columns))
    convert = partial(_converted, columns=columns, label_columns=label_columns, where=where, folder=folder)
    return part.map(convert, remove_columns=[name for name in source if name not in ours]).filter(_has_text)


def _converted(row: dict, columns: dict, label_columns: list[str], where: str, folder: Path | None) -> dict:
    image = row[columns["image"]]
    image = _path(folder, image, where) if isinstance(image, str) and folder else image
    out = {"image": image, "text": _text(_cell(row, columns["text"])), "view": ""}
    out |= {ours: _id(_cell(row, columns[ours])) if ours in columns else None for ours in _IDS}
    out["image_id"] = out["image_id"] or f"image {_checksum(image):08x}"
    if label_columns:
        cells = {name: _cell(row, columns[f"labels.{name}"]) for name in label_columns}
        out["labels"] = {name: _label(f"{where}, {out['image_id']}", name, cells[name]) for name in cells}
    return out


def _has_text(row: dict) -> bool:
    return row["text"] is not None


def _path(folder: Path, path: str | None, where: str) -> str | None:
    return path if path is None or "://" in path else str(inside(folder, path, where))


def _checksum(image) -> int:
    content = (image["bytes"] or image["path"]) if isinstance(image, dict) else image
    return zlib.crc32(content if isinstance(content, bytes) else str(content).encode())


def _text(value) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _id(value) -> str | None:
    if value is None or value != value:
        return None
    # A column of whole numbers with gaps is one of floats, in tables as texts.
    return re.sub(r"^(-?\d+)\.0+$", r"\1", str(value).strip()) or None


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
