# Licensed under the Apache License, Version 2.0.
"""
Rows of a data set that cannot be used. One bad row never ends a run: it is skipped, counted in a warning and named in
a file; too many of them are an error.
"""

import csv
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import astuple, dataclass, fields
from pathlib import Path


MAX_REJECTED = 0.1  # fraction of the rows of a table
FILE = "rejected.csv"


@dataclass(frozen=True)
class RejectedRow:
    source: str
    """The data set, or a file of it."""
    row: str
    """What the row is called there: its line, or an id."""
    reason: str


_collected: ContextVar[list[RejectedRow] | None] = ContextVar("rejected rows", default=None)


@contextmanager
def collect_rejected() -> Iterator[list[RejectedRow]]:
    """A list that gets every row that is rejected within the block."""
    rows: list[RejectedRow] = []
    token = _collected.set(rows)
    try:
        yield rows
    finally:
        _collected.reset(token)


def reject(rows: Sequence[RejectedRow], total: int, limit: float = MAX_REJECTED, advice: str = "") -> None:
    """
    Skip rows, with a warning that counts them.

    Args:
        rows: of one source.
        total: rows of the source, bad ones included.
        limit: largest fraction that may be rejected.
        advice: what else to do, for the message of an error.

    Raises:
        ValueError: above the limit, with the first of them.
    """
    if not rows:
        return
    rows = [RejectedRow(row.source, short(row.row), short(row.reason, 500)) for row in rows]
    first = f"{rows[0].source}, {rows[0].row}: {rows[0].reason}"
    if len(rows) > limit * total:
        bound = f"; at most {limit:.0%} may be" if limit else ""
        raise ValueError(f"{first.removesuffix('.')}. ({len(rows)} of {total} rows are bad{bound}.{advice})")
    collected = _collected.get()
    if collected is not None:
        collected.extend(rows)
    warnings.warn(
        f"{rows[0].source}: {len(rows)} of {total} rows skipped, such as {rows[0].row}: {rows[0].reason}", stacklevel=3
    )


def short(text: str, limit: int = 300) -> str:
    """A text of a file for a message of one line: control characters are written out, the end is cut off."""
    plain = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda match: repr(match[0])[1:-1], text[:limit])
    return plain + "..." * (len(text) > limit)


def note_rejected(rows: Sequence[RejectedRow]) -> None:
    """Add rows to the list of [`collect_rejected`]; the caller has counted them."""
    collected = _collected.get()
    if collected is not None:
        collected.extend(rows)


def write_rejected(folder: Path, rows: Sequence[RejectedRow]) -> None:
    """Add rows to `rejected.csv` in a folder, each once; nothing without rows."""
    path = Path(folder) / FILE
    columns = [field.name for field in fields(RejectedRow)]
    known: set[tuple] = set()
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            known = {tuple(row) for row in csv.reader(file)}
    new = [row for row in dict.fromkeys(map(astuple, rows)) if row not in known]
    if new:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(new if known else [columns, *new])
