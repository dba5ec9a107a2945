# Licensed under the Apache License, Version 2.0.
"""Reading the csv files of published data sets: found under one of their names, checked column by column."""

import os
import warnings
import zlib
from collections.abc import Iterable
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


def read_table(path: Path, columns: Iterable[str], optional: Iterable[str] = ()) -> pd.DataFrame:
    """
    The named columns of a csv or csv.gz file as texts, an empty field as "". Line ends and a byte order mark of
    Windows are understood.

    Raises:
        ValueError: if a column of `columns` is missing (with those that are there), or the file cannot be read.
    """
    columns, optional = list(columns), set(optional)
    try:
        table = pd.read_csv(
            path,
            dtype=str,
            keep_default_na=False,
            encoding="utf-8-sig",
            usecols=lambda name: name.strip() in optional or name.strip() in columns,
            skipinitialspace=True,
            index_col=False,  # else a comma at the end of each line moves all columns by one
        )
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError, EOFError, zlib.error, OSError) as e:
        raise ValueError(f"{path} cannot be read as a csv file: {e}") from e
    except ValueError as error:  # usecols chose nothing at all
        raise ValueError(f"{path} cannot be read as a csv file: {error}") from error
    table.columns = table.columns.str.strip()
    missing = [name for name in columns if name not in table.columns]
    if missing:
        there = list(pd.read_csv(path, nrows=0, encoding="utf-8-sig").columns)
        raise ValueError(f"{path} has no column {missing[0]!r}; its columns are {there}.")
    return table.fillna("")


def to_integers(table: pd.DataFrame, column: str, path: Path) -> pd.Series:
    """
    A column of texts as whole numbers.

    Raises:
        ValueError: with file, line and column of the first text that is none.
    """
    numbers = pd.to_numeric(table[column], errors="coerce")
    bad = numbers.isna() | (numbers % 1 != 0) | (numbers.abs() > 2**53)
    if bad.any():
        row = int(bad.to_numpy().argmax())
        raise ValueError(f"{path}, line {row + 2}: {column} must be a whole number; got {table[column].iloc[row]!r}.")
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
            row = int(bad.to_numpy().argmax())
            raise ValueError(f"{path}, line {row + 2}: {column} must be a number; got {table[column].iloc[row]!r}.")
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
            row = int(bad.to_numpy().argmax())
            raise ValueError(
                f"{path}, line {row + 2}: {column} must be 1.0, 0.0, -1.0 or blank; got {table[column].iloc[row]!r}."
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
