# Licensed under the Apache License, Version 2.0.
"""
Reading the csv files of published data sets as they are published: found under one of their names, in any of the
usual encodings and line ends, with the oddities of their headers, checked column by column.
"""

import codecs
import csv
import gzip
import io
import itertools
import json
import os
import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from .record import DatasetRecord
from .rejected import MAX_REJECTED, RejectedRow, note_rejected, reject, short


# What programs write into a cell that has no value.
_MISSING = frozenset(("", "nan", "none", "n/a", "na", "null", "<na>", "#n/a"))
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_UNDECODED = re.compile("[\udc80-\udcff]")
FALLBACK = "cp1252"  # what older Windows programs write


def is_missing(text: str | None) -> bool:
    """Whether a cell holds no value: blank, or "nan", "None", "N/A", "null"."""
    return text is None or text.strip().lower() in _MISSING


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


def csv_rows(
    path: Path, encoding: str | None = None, fallback: str | None = None, bad: list[tuple[int, str]] | None = None
) -> Iterator[tuple[int, list[str]]]:
    """
    The line that it begins in and the fields of the header, then of each row of a csv file that is not blank; packed
    by gzip or not, separated by commas, semicolons, tabs or bars, whichever the header has. Columns without a name at
    the end of the header, and blank fields behind the last column, are cut off.

    Args:
        path: the file.
        encoding: of the text; by default UTF-8, or what its byte order mark says.
        fallback: encoding of lines that are not in UTF-8; without one they are an error.
        bad: gets line and reason of each row that is not csv, or has another number of fields than the header;
            without it they are errors.

    Raises:
        ValueError: with file and line, if the file cannot be read, has no header, or ends within quotation marks.
    """
    records = _records(path, text_lines(path, encoding, fallback), bad)
    line, separator, columns = next(records, (1, "", []))
    columns = [re.sub(r"\s+", " ", name).strip() for name in columns]
    while columns and not columns[-1]:
        columns.pop()
    if not columns:
        raise ValueError(f"{path} has no rows, nor names of columns.")
    yield line, columns
    for line, _, fields in records:
        while len(fields) > len(columns) and not fields[-1].strip():
            fields.pop()
        if len(fields) == len(columns):
            yield line, fields
            continue
        reason = (
            f"{len(fields)} fields, but there are {len(columns)} columns. A text with {_SEPARATORS[separator]} must "
            "stand in quotation marks."
        )
        if bad is None:
            raise ValueError(f"{path}, line {line}: {reason}")
        bad.append((line, reason))


def _records(
    path: Path, lines: Iterator[str], bad: list[tuple[int, str]] | None
) -> Iterator[tuple[int, str, list[str]]]:
    """The records that are not blank: line, separator of the file, fields."""
    head, line = "", 0
    for head in lines:
        line += 1
        excel = re.fullmatch(r'"?sep=[,;\t|]"?\s*', head)  # Excel's own line before the header
        if head.strip() and not excel:
            break
    separator = _separator(head)
    before = line - 1
    reader = csv.reader(itertools.chain([head], lines), delimiter=separator, skipinitialspace=True, strict=True)
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # An open quotation mark takes other rows into its field; those must not be lost.
            several = before + reader.line_num > line or "unexpected end" in str(error)
            if bad is None or several:
                raise ValueError(f"{path}, line {line}: not csv ({error}).") from error
            bad.append((line, f"not csv ({error})"))
        else:
            if any(field.strip() for field in fields):
                yield line, separator, fields
        line = before + reader.line_num + 1


def _separator(head: str) -> str:
    """What divides the header into most names; a comma where nothing does."""
    counts = {}
    for separator in _SEPARATORS:
        try:
            counts[separator] = len(next(csv.reader([head], delimiter=separator), []))
        except csv.Error:
            counts[separator] = 0
    return "," if counts[","] > 1 else max(counts, key=counts.get)


def text_lines(path: Path, encoding: str | None = None, fallback: str | None = None) -> Iterator[str]:
    """
    The lines of a text file with their ends, those of Windows and of old Macs included; packed by gzip or not,
    whatever its name says. Arguments and errors as for [`csv_rows`].
    """
    line, fallback_from = 0, None
    try:
        with path.open("rb") as raw:
            head = raw.read(2)
            raw.seek(0)
            stream = gzip.GzipFile(fileobj=raw) if head == b"\x1f\x8b" else raw
            buffered = io.BufferedReader(stream) if stream is not raw else raw
            chosen = encoding or _encoding(buffered.peek(4)[:4])
            strict = encoding is not None or chosen != "utf-8"
            with io.TextIOWrapper(buffered, chosen, "strict" if strict else "surrogateescape", newline="") as text:
                for line, content in enumerate(text, 1):
                    if not strict and _UNDECODED.search(content):
                        content = _undecoded_line(path, line, content, fallback)
                        if fallback_from is None:
                            fallback_from = line
                            warnings.warn(
                                f"{path}, line {line}: not UTF-8; such lines are read as {fallback}.", stacklevel=2
                            )
                    yield content
    except LookupError as error:
        raise ValueError(f"{path}: there is no encoding {encoding!r}, such as 'utf-8' or 'cp1252'.") from error
    except (UnicodeError, EOFError, zlib.error, OSError) as error:
        name = encoding or "UTF-8"
        raise ValueError(f"{path}, line {line + 1}: cannot be read as text in {name} ({error}).") from error


def _encoding(head: bytes) -> str:
    for mark, name in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return name
    if len(head) == 4 and head[1] == head[3] == 0:
        return "utf-16-le"
    if len(head) == 4 and head[0] == head[2] == 0:
        return "utf-16-be"
    return "utf-8"


def _undecoded_line(path: Path, line: int, content: str, fallback: str | None) -> str:
    raw = content.encode("utf-8", "surrogateescape")
    if fallback is None:
        raise ValueError(
            f"{path}, line {line}: not text in UTF-8. Name its encoding with the option encoding, such as "
            f"{FALLBACK!r} for older Windows programs, or save it as UTF-8."
        )
    return raw.decode(fallback, errors="replace")


def read_table(
    path: Path, columns: Iterable[str], optional: Iterable[str] = (), limit: float = MAX_REJECTED
) -> pd.DataFrame:
    """
    The named columns of a csv or csv.gz file as texts without blanks at their ends, an empty field as "". Names of
    columns may be written in other letter case. A row is in line index + 2 of the file.
    Rows that are not csv are skipped, as [`reject`] does.

    Raises:
        ValueError: if a column of `columns` is missing (with the existing ones), if more than the fraction `limit`
            of the rows is bad, or as [`csv_rows`].
    """
    columns, optional = list(columns), list(optional)
    bad: list[tuple[int, str]] = []
    rows = csv_rows(path, fallback=FALLBACK, bad=bad)
    _, names = next(rows)
    by_small_name = {name.lower(): i for i, name in reversed(list(enumerate(names)))}
    positions = {}
    for name in (*columns, *optional):
        position = names.index(name) if name in names else by_small_name.get(name.lower())
        if position is not None:
            positions[name] = position
        elif name in columns:
            raise ValueError(f"{path} has no column {name!r}; its columns are {listed(names)}.")
    lines, cells = [], {name: [] for name in positions}
    for line, fields in rows:
        lines.append(line)
        for name, position in positions.items():
            cells[name].append(fields[position].strip())
    reject([RejectedRow(str(path), f"line {line}", reason) for line, reason in bad], len(lines) + len(bad), limit)
    return pd.DataFrame(cells, index=pd.Index(lines, dtype="int64") - 2, dtype="str")


def listed(names: Iterable[str], most: int = 20) -> str:
    """Names for a message, no more and no longer than a reader takes in."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    shown = ", ".join(f"'{short(str(name), 60)}'" for name in names[:most])
    return f"[{shown}]{more}" if len(shown) < 1000 else f"[{shown[:1000]}...]"


def file_line(table: pd.DataFrame, bad) -> tuple[int, int]:
    """Position and line in the file of the first row of [`read_table`] that is bad."""
    row = int(np.asarray(bad).argmax())
    return row, int(table.index[row]) + 2


def row_name(table: pd.DataFrame, index: int) -> str:
    """What a row of [`read_table`] is called in its file."""
    return f"{table.attrs.get('row', 'line')} {index + 2}"


def good_rows(
    table: pd.DataFrame, bad: pd.Series, path: Path, reason: Callable[[int], str], limit: float = MAX_REJECTED
) -> pd.DataFrame:
    """The rows of [`read_table`] that are not bad; the others are skipped, as [`reject`] does."""
    rows = [RejectedRow(str(path), row_name(table, i), reason(i)) for i in table.index[np.asarray(bad, dtype=bool)]]
    reject(rows, len(table), limit)
    return table[~np.asarray(bad, dtype=bool)]


def _parsed(
    table: pd.DataFrame, columns: Iterable[str], path: Path, is_bad: Callable, kind: str, limit: float
) -> pd.DataFrame:
    """Columns as numbers, without the rows in which one of them is bad."""
    columns = list(columns)
    numbers = table[columns].apply(pd.to_numeric, errors="coerce").astype("float64")  # without rows it is no number
    bad = pd.DataFrame({name: is_bad(numbers[name], table[name]) for name in columns}, index=table.index)

    def reason(i: int) -> str:
        name = bad.columns[bad.loc[i].to_numpy().argmax()]
        return f"{name} must be {kind}; got {table.loc[i, name]!r}."

    return good_rows(numbers, bad.any(axis=1), path, reason, limit)


def to_integers(table: pd.DataFrame, columns: Iterable[str], path: Path, limit: float = MAX_REJECTED) -> pd.DataFrame:
    """
    Columns of texts as whole numbers; rows with another value are skipped, as [`reject`] does.

    Raises:
        ValueError: with file, line and column, if more than the fraction `limit` is bad.
    """

    def is_bad(numbers, _):
        return numbers.isna() | (numbers % 1 != 0) | (numbers.abs() > 2**53)

    return _parsed(table, columns, path, is_bad, "a whole number", limit).astype("int64")


def to_numbers(table: pd.DataFrame, columns: Iterable[str], path: Path) -> pd.DataFrame:
    """Columns of texts as finite numbers; rows with another value are skipped, as [`reject`] does."""
    numbers = _parsed(table, columns, path, lambda numbers, _: ~np.isfinite(numbers), "a number", MAX_REJECTED)
    return numbers.astype("float64")


def to_labels(table: pd.DataFrame, columns: Iterable[str], path: Path) -> pd.DataFrame:
    """
    Columns of 1.0, 0.0, -1.0 and blank as float32; blank becomes NaN, which says: not mentioned. Rows with another
    value are skipped, as [`reject`] does.
    """

    def is_bad(numbers, texts):
        return ~numbers.isin((-1, 0, 1)) & (texts.str.strip() != "")

    return _parsed(table, columns, path, is_bad, "1.0, 0.0, -1.0 or blank", MAX_REJECTED).astype("float32")


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
        ValueError: for a path that leaves the folder, with `where` it was found.
    """
    plain = relative.replace("\\", "/")
    normal = os.path.normpath(plain)
    absolute = PurePosixPath(plain).is_absolute() or re.match(r"[A-Za-z]:", plain)
    if not plain.strip() or absolute or Path(normal).parts[:1] == ("..",) or "\0" in plain:
        raise ValueError(f"{where}: the path {short(relative)!r} leaves the data folder {folder}.")
    return folder / normal


def find_picture(folders: Iterable[Path], name: str) -> str | None:
    """The first file of that name in the folders; None if there is none, or the name leads out of a folder."""
    if not re.fullmatch(r"[\w-][\w.-]*", name):
        return None
    return next((str(folder / name) for folder in folders if os.path.isfile(folder / name)), None)


def warn_skipped(name: str, number: int, total: int, reason: str, example: str) -> None:
    """Say that rows were skipped; nothing is lost without a word."""
    if number:
        shown = short(str(example))
        warnings.warn(f"{name}: {number} of {total} rows skipped: {reason}, such as {shown}.", stacklevel=3)


def skip_rows(table: pd.DataFrame, bad: pd.Series, name: str, reason: str, column: str) -> pd.DataFrame:
    """
    The other rows of a table, with a warning that counts the skipped ones and gives the column of the first. As many
    as there are: users have parts of the published data sets.
    """
    if bad.any():
        examples = [f"{column} {value}" for value in table.loc[bad, column]]
        warn_skipped(name, len(examples), len(table), reason, examples[0])
        note_rejected([RejectedRow(name, example, reason) for example in examples])
    return table[~bad]


def with_pictures(
    table: pd.DataFrame, paths: Iterable[str | None], name: str, source: Path, folders: Iterable[Path], column: str
) -> pd.DataFrame:
    """
    The rows of a data set's table that have a picture, with its path in the column `path`; the others are skipped with
    a warning that counts them and shows one by its value in `column`.

    Raises:
        ValueError: if no row has one, with the folders that were looked in.
    """
    table = table.assign(path=paths)
    if table["path"].isna().all():
        looked = ", ".join(map(str, folders))
        raise ValueError(f"{name}: none of {len(table)} images of {source} was found; looked in {looked}.")
    return skip_rows(table, table["path"].isna(), name, "the file is missing", column)


def found_pictures(images: Iterable[str], name: str, source: Path, folders: list[Path]) -> dict[str, str]:
    """
    Paths of a data set's pictures by their file names, which are distinct; missing ones are skipped, with warning and
    error of [`with_pictures`].
    """
    table = pd.DataFrame({"image": list(images)}, dtype="str")
    paths = [find_picture(folders, image) for image in table["image"]]
    table = with_pictures(table, paths, name, source, folders, "image")
    return dict(zip(table["image"], table["path"]))


def need_folder(record: DatasetRecord, data_dir, what: str) -> Path:
    """
    The folder of a data set.

    Raises:
        ValueError: if none is given, or it does not exist, with what it should be and where it is published.
    """
    source = f"{record.title} is published at {record.address}"
    if not data_dir:
        raise ValueError(f"{record.name} needs data_dir: {what}. {source}")
    if not Path(data_dir).is_dir():
        raise ValueError(f"There is no folder {data_dir} (data_dir of {record.name}: {what}). {source}")
    return Path(data_dir)


def read_json(path: Path):
    """
    The content of a JSON file; half of a surrogate pair, which is no character, becomes "?".

    Raises:
        ValueError: if it is not JSON.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text)
        if re.search(r"\\u[dD][89a-fA-F]", text):
            content = json.loads(json.dumps(content, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({short(str(error))}).") from error
    return content
