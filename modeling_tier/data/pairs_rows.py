# Licensed under the Apache License, Version 2.0.
"""From the cells of a user's own rows to our columns: which column is which, and what a cell says."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, Features, IterableDataset

from .columns import pair_features
from .rejected import short
from .tables import inside, is_missing, listed


# Where no column is named: the usual names, those of WebDataset's files among them.
IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "image_path", "path", "filename", "file_name")
TEXT_COLUMNS = ("text", "txt", "caption", "report")
IDS = ("subject_id", "study_id", "image_id")
LABEL_VALUES = (1, 0, -1, None)

_OPTIONS = {"image_id": "id_column", "subject_id": "subject_column", "study_id": "study_column"}


@dataclass(frozen=True)
class PairsOptions:
    """How own pairs are read; the options of [`~data.pairs.pairs`], checked."""

    named: dict[str, str | None]
    """The user's name of each of our columns, and of the "folder" of a picture, if there is one."""
    label_columns: list[str]
    label_values: Mapping[str, float | None] = field(default_factory=dict)
    """In small letters."""
    views: Iterable[str] = ()
    encoding: str | None = None
    max_rejected: float = 0.1

    def __post_init__(self):
        if not 0 <= self.max_rejected <= 1:
            raise ValueError(f"max_rejected must be a fraction between 0 and 1; got {self.max_rejected!r}.")
        if self.views and not self.named.get("view"):
            raise ValueError(f"views {list(self.views)} needs view_column, the column that says a picture's view.")
        if self.label_values and not self.label_columns:
            raise ValueError("label_values needs label_columns, the columns whose texts it maps.")
        for text, value in self.label_values.items():
            if isinstance(text, bool):
                raise ValueError(
                    "label_values: YAML reads yes, no, on and off as true and false; write them in quotation marks, "
                    'such as {"yes": 1, "no": 0}.'
                )
            if isinstance(value, bool) or value not in LABEL_VALUES:
                raise ValueError(f"label_values must map {text!r} to 1, 0, -1 or null; got {value!r}.")
        object.__setattr__(self, "label_values", {_small(text): value for text, value in self.label_values.items()})
        object.__setattr__(self, "views", frozenset(map(_small, self.views)))

    @property
    def advice(self) -> str:
        return " Mend them, or go on with a larger max_rejected."

    @property
    def features(self) -> Features:
        return pair_features(self.label_columns, ids="string")

    def wants(self, view: str) -> bool:
        return not self.views or _small(view) in self.views

    def label(self, column: str, value) -> float | None:
        """
        The label that a cell says.

        Raises:
            ValueError: if it says none.
        """
        if value is None or value != value:
            return None
        mapped = self.label_values.get(_small(value), value) if isinstance(value, str | int) else value
        if mapped is None or (isinstance(mapped, str) and not mapped.strip()):
            return None
        try:
            number = float(mapped)
        except (TypeError, ValueError):
            number = None
        if number not in (-1.0, 0.0, 1.0):
            also = f", or one of {sorted(self.label_values)}" if self.label_values else ""
            advice = "" if self.label_values else " (label_values maps other texts)"
            raise ValueError(f"{column} must be 1, 0, -1 or blank{also}; got {value!r}{advice}.")
        return number


def _small(text) -> str:
    return str(text).strip().lower()


def convert(
    row: dict, columns: dict[str, str], options: PairsOptions, picture: Callable[[object, str | None], object]
) -> dict:
    """
    A row under our names.

    Args:
        row: as it is stored.
        columns: as of [`find_columns`].
        options: how it is read.
        picture: gives the picture of a row from its cell and that of its folder.

    Raises:
        ValueError: if it cannot be used.
    """

    def value(ours: str):
        return cell(row, columns[ours]) if ours in columns else None

    out = {"image": picture(value("image"), as_id(value("folder"))), "text": as_text(value("text"))}
    out |= {ours: as_id(value(ours)) for ours in IDS}
    out["view"] = as_id(value("view")) or ""
    for ours in ("text", "view", *IDS):
        _check_text(ours, out[ours])
    if options.label_columns:
        out["labels"] = {name: options.label(name, value(f"labels.{name}")) for name in options.label_columns}
    return out


def _check_text(ours: str, text: str | None) -> None:
    """Half of a surrogate pair, which JSON can hold, is no character."""
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{ours} {short(ascii(text))} is not text: {error.reason}") from None


def column_names(part: Dataset | IterableDataset, where: str) -> list[str]:
    """Names of columns, and "outer.inner" for those within one."""
    columns = part.features or next(iter(part), None)
    if columns is None:
        raise ValueError(f"{where} has no rows.")
    return nested_names(columns)


def nested_names(columns: dict) -> list[str]:
    names = []
    for name, content in columns.items():
        names += [name, *(f"{name}.{inner}" for inner in content)] if isinstance(content, dict) else [name]
    return names


def find_columns(where: str, existing: list[str], options: PairsOptions) -> dict[str, str]:
    """
    The data set's name for each of our columns and for "folder"; a label's is called "labels." and its name.

    Raises:
        ValueError: for one that does not exist, with those that do and the option that names it.
    """
    columns = {}
    usual = {"image": IMAGE_COLUMNS, "text": TEXT_COLUMNS, "image_id": ("__key__",)}
    for ours, name in options.named.items():
        candidates = (name,) if name else usual.get(ours, ())
        chosen = next(filter(None, (_existing(candidate, existing) for candidate in candidates)), None)
        if chosen:
            columns[ours] = chosen
        elif name or ours in ("image", "text"):
            raise ValueError(
                f"{where} has no column {' or '.join(map(repr, candidates))}; its columns are {listed(existing)}. Set "
                f"{_OPTIONS.get(ours, f'{ours}_column')}."
            )
    for name in options.label_columns:
        chosen = _existing(name, existing)
        if not chosen:
            raise ValueError(f"{where} has no column {name!r} (label_columns); its columns are {listed(existing)}.")
        columns[f"labels.{name}"] = chosen
    return columns


def _existing(name: str, existing: list[str]) -> str | None:
    """The column of that name, or else one of that name in other letter case."""
    same = [other for other in existing if other == name] or [o for o in existing if o.lower() == name.lower()]
    return same[0] if same else None


def cell(row: dict, name: str):
    if name in row:
        return row[name]
    outer, _, inner = name.partition(".")
    nested = row.get(outer)
    return nested.get(inner) if isinstance(nested, dict) else None


def cells(part: Dataset, name: str) -> list:
    """A column, or one within a column."""
    if name in part.column_names:
        return part[name][:]
    return [cell(row, name) for row in part.select_columns(name.partition(".")[0])]


def picture_path(folder: Path | None, subfolder: str | None, path: str | None) -> str | None:
    """
    The path of a picture, from the data set's folder and the row's own one in it. Addresses stay as they are.

    Raises:
        ValueError: if it leaves the folder.
    """
    if path is None or not path.strip():
        raise ValueError("there is no picture (the cell is blank)")
    if "://" in path:
        return path
    relative = f"{subfolder}/{path}" if subfolder else path
    return relative if folder is None else str(inside(folder, relative, "image"))


def as_text(value) -> str | None:
    return value if isinstance(value, str) and not is_missing(value) else None


def as_id(value) -> str | None:
    if value is None or value != value:
        return None
    # A column of whole numbers with gaps is one of floats, in tables as texts.
    text = re.sub(r"^(-?\d+)\.0+$", r"\1", str(value).strip())
    return None if is_missing(text) else text
