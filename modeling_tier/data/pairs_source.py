# Licensed under the Apache License, Version 2.0.
"""Where a user's own rows are stored: csv and jsonl files, folders of `datasets`, Parquet, WebDataset, the Hub."""

import json
import os
import re
import warnings
from collections.abc import Sequence
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

from .columns import SPLITS
from .pairs_rows import (
    IDS,
    IMAGE_COLUMNS,
    TEXT_COLUMNS,
    PairsOptions,
    as_id,
    cell,
    convert,
    find_columns,
    nested_names,
)
from .rejected import RejectedRow, reject, short
from .stored import check_stored, named_stream, warn_of_cut_archives
from .tables import csv_rows, inside, listed, text_lines


_SPLIT_NAMES = {"validate": "validation", "valid": "validation", "val": "validation", "dev": "validation"}
_TABLES = (".csv", ".csv.gz", ".tsv", ".jsonl")
_BUILDERS = {".tar": "webdataset", ".parquet": "parquet", ".arrow": "arrow"}


def stored_parts(source: str, options: PairsOptions, streaming: bool) -> tuple[dict, dict]:
    """The existing splits, each as it is stored; for tables, which are read here, the names of their columns."""
    path = Path(source)
    if path.is_file() and path.name.endswith(_TABLES):
        return {"train": _read_table(path, options)}, _table_columns(options)
    if path.is_dir():
        return _folder_parts(path, options, streaming)
    if path.exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        raise ValueError(f"There is no csv or jsonl file, no folder and no Hub data set named {source}.")
    try:
        parts = _renamed(load_dataset(source, streaming=streaming))
    except Exception as error:  # whatever goes wrong between here and the Hub
        raise ValueError(
            f"There is no file or folder {source}, and no data set of that name could be loaded from the Hub: "
            f"{short(str(error), 1000)}"
        ) from error
    return {split: _readable(part, source) for split, part in parts.items()}, {}


def _folder_parts(path: Path, options: PairsOptions, streaming: bool) -> tuple[dict, dict]:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        try:
            loaded = load_from_disk(str(path))
        except Exception as error:  # datasets, pyarrow and json raise many kinds
            raise ValueError(f"The data set in {path} cannot be read: {short(str(error))}") from error
        parts = _renamed(loaded) if isinstance(loaded, DatasetDict) else {"train": loaded}
        for part in parts.values():
            check_stored(part, f"The data set in {path}")
        return parts, {}
    for suffix, builder in _BUILDERS.items():
        files = _by_split(path, (suffix,))
        if files:
            try:
                parts = load_dataset(builder, data_files=files, streaming=streaming)
            except Exception as error:  # datasets hides what is wrong with a file behind one of its own
                reason = short(str(error.__cause__ or error))
                raise ValueError(f"The {suffix} files of {path} cannot be read: {reason}") from error
            if suffix == ".tar":
                warn_of_cut_archives([file for names in files.values() for file in names])
            return {split: _readable(part, str(path), files[split]) for split, part in parts.items()}, {}
    files = _by_split(path, _TABLES)
    if files:
        read = {split: [_read_table(Path(file), options) for file in names] for split, names in files.items()}
        parts = {split: concatenate_datasets(tables) for split, tables in read.items()}
        return parts, _table_columns(options)
    raise ValueError(
        f"The folder {path} holds no csv, tsv, jsonl, tar, parquet or arrow file, and no data set of save_to_disk."
    )


def _readable(part: Dataset | IterableDataset, source: str, files: Sequence[str] = ()) -> Dataset | IterableDataset:
    """The rows of `load_dataset`, of which what is damaged is named."""
    if isinstance(part, IterableDataset):
        return named_stream(part, source, files)
    if part.cache_files:
        folder = Path(part.cache_files[0]["filename"]).parent
        check_stored(part, f"The copy of {source} that datasets keeps in {folder}", "delete that folder")
    return part


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


def _read_table(path: Path, options: PairsOptions) -> Dataset:
    """A csv or jsonl file under our names, with full paths; every picture exists."""
    wanted = {*IMAGE_COLUMNS, *TEXT_COLUMNS, *filter(None, options.named.values()), *options.label_columns}
    read = _read_jsonl if path.name.endswith(".jsonl") else _read_csv
    bad: list[tuple[int, str]] = []
    names, rows = read(path, wanted | {name.partition(".")[0] for name in wanted}, options.encoding, bad)
    if not rows and not bad:
        raise ValueError(f"{path} has no rows.")
    columns = find_columns(str(path), nested_names(names), options)
    rows = _of_views(path, rows, columns, options)
    total = len(rows) + len(bad)
    cells: dict[str, list] = {name: [] for name in options.features}
    for line, row in rows:
        try:
            converted = convert(row, columns, options, partial(_existing_picture, path.parent))
        except ValueError as error:
            bad.append((line, str(error)))
        else:
            for ours, values in cells.items():
                values.append(converted[ours])
    rejected = [RejectedRow(str(path), f"line {line}", reason) for line, reason in sorted(bad)]
    reject(rejected, total, options.max_rejected, options.advice)
    features = Features(options.features | {"image": Value("string")})
    return Dataset.from_dict(cells, features=features).cast_column("image", Image())


def _of_views(path: Path, rows: list[tuple[int, dict]], columns: dict, options: PairsOptions) -> list:
    """The rows of the views that are wanted, before anything else of a row is judged."""
    if not options.views:
        return rows
    views = [as_id(cell(row, columns["view"])) or "" for _, row in rows]
    kept = [row for row, view in zip(rows, views) if options.wants(view)]
    if not kept:
        raise ValueError(
            f"{path}: no row has one of the views {sorted(options.views)}; the column {columns['view']!r} has "
            f"{listed(sorted(set(views)), 10)}."
        )
    return kept


def _existing_picture(folder: Path, image, subfolder: str | None) -> str:
    name = as_id(image)
    if name is None:
        raise ValueError("there is no picture (the cell is blank)")
    picture = inside(folder, f"{subfolder}/{name}" if subfolder else name, "image")
    if not os.path.isfile(picture):  # which a name that no file can have is not, either
        raise ValueError(f"there is no picture {short(str(picture))} (paths are read from the folder of the file)")
    return str(picture)


def _table_columns(options: PairsOptions) -> dict[str, str]:
    """Those of [`_read_table`]: our names, and full paths."""
    ours = ("image", "text", *(name for name in (*IDS, "view") if options.named.get(name)))
    return {name: name for name in (*ours, *(f"labels.{name}" for name in options.label_columns))}


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
        except (ValueError, RecursionError) as error:  # ValueError: a number of more digits than Python takes, too
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
