# Licensed under the Apache License, Version 2.0.
"""Reading the csv files of published data sets: found under one of their names, checked column by column."""

import csv
import gzip
import os
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd


def find_table(folder: Path, names: Iterable[str]) -> Path:
    """
    The first of several names that is a file in the folder, as it is or with .gz.

    Raises:
        ValueError: if there is none, with the names that were looked for and the folder.
    """
    names = list(names)
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise ValueError(f"In the folder {folder} there is none of {names} (or with .gz).")


def csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """
    The line that it begins in and the fields of the header, then of each row of a csv or csv.gz file that is not
    blank. Line ends and a byte order mark of Windows are understood; blank fields behind the last column are cut off.

    Raises:
        ValueError: with file and line, if it is no text in UTF-8, not separated by commas, not csv, or a row has
            another number of fields than the header.
    """
    reader = csv.reader(text_lines(path), skipinitialspace=True, strict=True)
    line = 1
    try:
        columns = [name.strip() for name in next(reader, [])]
        if not any(columns):
            raise ValueError(f"{path} has no rows, nor names of columns.")
        if len(columns) == 1 and any(separator in columns[0] for separator in ";\t|"):
            raise ValueError(f"{path} must be separated by commas; its first line is {columns[0]!r}.")
        yield line, columns
        line = reader.line_num + 1
        for fields in reader:
            while len(fields) > len(columns) and not fields[-1].strip():
                fields.pop()
            if any(fields) and len(fields) != len(columns):
                raise ValueError(
                    f"{path}, line {line}: {len(fields)} fields, but there are {len(columns)} columns. A text with "
                    "commas must stand in quotation marks."
                )
            if any(fields):
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {line}: not csv ({error}).") from error


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a text file, packed by gzip or not."""
    line = 1
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for line, content in enumerate(file, 1):
                yield content.decode("utf-8-sig" if line == 1 else "utf-8")
    except (UnicodeError, EOFError, zlib.error, OSError) as error:
        raise ValueError(f"{path}, line {line}: cannot be read as text in UTF-8 ({error}).") from error


def read_table(path: Path, columns: Iterable[str], optional: Iterable[str] = ()) -> pd.DataFrame:
    """
    The named columns of a csv or csv.gz file as texts, an empty field as "". The index is such that a row stands in
    line index + 2 of the file.

    Raises:
        ValueError: if a column of `columns` is missing (with those that are there), or as [`csv_rows`].
    """
    columns, optional = list(columns), set(optional)
    rows = csv_rows(path)
    _, there = next(rows)
    missing = [name for name in columns if name not in there]
    if missing:
        raise ValueError(f"{path} has no column {missing[0]!r}; its columns are {there}.")
    places = {name: there.index(name) for name in there if name in optional or name in columns}
    lines, cells = [], {name: [] for name in places}
    for line, fields in rows:
        lines.append(line)
        for name, place in places.items():
            cells[name].append(fields[place])
    return pd.DataFrame(cells, index=pd.Index(lines, dtype="int64") - 2, dtype="str")


def file_line(table: pd.DataFrame, bad) -> tuple[int, int]:
    """Position and line in the file of the first row of [`read_table`] that is bad."""
    row = int(np.asarray(bad).argmax())
    return row, int(table.index[row]) + 2


def to_integers(table: pd.DataFrame, column: str, path: Path) -> pd.Series:
    """
    A column of texts as whole numbers.

    Raises:
        ValueError: with file, line and column of the first text that is none.
    """
    numbers = pd.to_numeric(table[column], errors="coerce")
    bad = numbers.isna() | (numbers % 1 != 0) | (numbers.abs() > 2**53)
    if bad.any():
        row, line = file_line(table, bad)
        raise ValueError(f"{path}, line {line}: {column} must be a whole number; got {table[column].iloc[row]!r}.")
    return numbers.astype("int64")


def to_numbers(table: pd.DataFrame, columns: Iterable[str], path: Path) -> pd.DataFrame:
    """
    Columns of texts as finite numbers.

    Raises:
        ValueError: with file, line and column of the first text that is none.
    """
    columns = list(columns)
    numbers = table[columns].apply(pd.to_numeric, errors="coerce")
    for column in columns:
        bad = ~np.isfinite(numbers[column])
        if bad.any():
            row, line = file_line(table, bad)
            raise ValueError(f"{path}, line {line}: {column} must be a number; got {table[column].iloc[row]!r}.")
    return numbers.astype("float64")


def to_labels(table: pd.DataFrame, columns: Iterable[str], path: Path) -> pd.DataFrame:
    """
    Columns of 1.0, 0.0, -1.0 and blank as float32; blank becomes NaN, which says: not mentioned.

    Raises:
        ValueError: with file, line and column of the first other value.
    """
    columns = list(columns)
    labels = table[columns].apply(pd.to_numeric, errors="coerce")
    for column in columns:
        bad = ~labels[column].isin((-1, 0, 1)) & (table[column].str.strip() != "")
        if bad.any():
            row, line = file_line(table, bad)
            raise ValueError(
                f"{path}, line {line}: {column} must be 1.0, 0.0, -1.0 or blank; got {table[column].iloc[row]!r}."
            )
    return labels.astype("float32")


def label_dicts(labels: pd.DataFrame) -> list[dict]:
    """Rows as dictionaries, NaN as None."""
    columns = list(labels.columns)
    return [
        {name: None if value != value else float(value) for name, value in zip(columns, row)}
        for row in labels.to_numpy()
    ]


def inside(folder: Path, relative: str, where: str) -> Path:
    """
    A path of a table within its folder. Links in the folder may lead elsewhere; the path itself may not.

    Raises:
        ValueError: for a path that leaves the folder, with `where` it stands.
    """
    plain = relative.replace("\\", "/")
    normal = os.path.normpath(plain)
    if not plain.strip() or PurePosixPath(plain).is_absolute() or normal.split(os.sep)[0] == "..":
        raise ValueError(f"{where}: the path {relative!r} leaves the data folder {folder}.")
    return folder / normal


def find_picture(folders: Iterable[Path], name: str) -> str | None:
    """The first file of that name in the folders; None if there is none, or the name leads out of a folder."""
    if not re.fullmatch(r"[\w-][\w.-]*", name):
        return None
    return next((str(folder / name) for folder in folders if (folder / name).is_file()), None)


def warn_left_out(name: str, number: int, total: int, reason: str, example: str) -> None:
    """Say that rows were left out; nothing is lost without a word."""
    if number:
        warnings.warn(f"{name}: {number} of {total} rows left out: {reason}, such as {example}.", stacklevel=3)


def leave_out(table: pd.DataFrame, bad: pd.Series, name: str, reason: str, column: str) -> pd.DataFrame:
    """The other rows of a table, with a warning that counts those left out and gives the column of the first."""
    if bad.any():
        warn_left_out(name, int(bad.sum()), len(table), reason, f"{column} {table.loc[bad, column].iloc[0]}")
    return table[~bad]


def need_folder(name: str, data_dir, what: str) -> Path:
    """
    The folder of a data set.

    Raises:
        ValueError: if none is given, or it is not there, with what it should be.
    """
    if not data_dir:
        raise ValueError(f"{name} needs data_dir: {what}.")
    if not Path(data_dir).is_dir():
        raise ValueError(f"There is no folder {data_dir} (data_dir of {name}: {what}).")
    return Path(data_dir)
