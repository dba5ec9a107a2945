# Licensed under the Apache License, Version 2.0.
"""Every data set by its name, and the functions that take one: the names of `modeling_tier.data`."""

import textwrap
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path

from datasets import Dataset

from . import (
    chestxdet10,
    chestxray14,
    chexlocalize,
    chexpert,
    chexpert_plus,
    mimic_cxr,
    ms_cxr,
    openi,
    padchest,
    padchest_gr,
    pairs,
    rexgradient,
    rsna_pneumonia,
    siim_acr,
    synthetic,
    vindr_cxr,
)
from .columns import SPLITS, check_split
from .prepared import is_prepared, load_prepared_set, preparation
from .record import DatasetRecord


__all__ = ["DATASETS", "PATH_OPTIONS", "SPLITS", "DatasetRecord", "check_options", "describe_datasets", "load_pairs"]

# A new data set is one file beside this one, with a RECORD, and its name here.
_MODULES = (
    *(synthetic, mimic_cxr, pairs, chexpert, chexlocalize, padchest, padchest_gr, chestxray14, chestxdet10, ms_cxr),
    *(openi, chexpert_plus, rexgradient, rsna_pneumonia, siim_acr, vindr_cxr),
)

DATASETS: dict[str, DatasetRecord] = {module.RECORD.name: module.RECORD for module in _MODULES}

# Options that name a file or a folder.
PATH_OPTIONS = tuple(dict.fromkeys(option for record in DATASETS.values() for option in record.path_options))


def load_pairs(name: str, split: str, **options) -> Dataset:
    """
    The image-report pairs of one split of a data set.

    Args:
        name: a key of `DATASETS`.
        split: "train", "validation" or "test". No subject is in two of them.
        **options: those of the data set's function, such as [`~data.synthetic.synthetic_pairs`].

    Raises:
        ValueError: for an unknown name, split or option, with the known ones.
    """
    check_options(name, options)
    check_split(name, split)
    folder = Path(options.get("data_dir") or "")
    if is_prepared(folder) and preparation(folder)["dataset"] != mimic_cxr.RECORD.name:
        return load_prepared_set(name, DATASETS[name].options, split, options)
    return DATASETS[name].load(split=split, **options)


def check_options(name: str, options: dict) -> None:
    """Raise ValueError for a data set, an option or a kind of value that does not exist, before anything is loaded."""
    if name not in DATASETS:
        raise ValueError(f"Unknown data set {name!r}; known are {sorted(DATASETS)}.")
    known = list(DATASETS[name].options)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"Unknown option {unknown[0]!r} of the data set {name!r}; known are {known}.")
    hints = typing.get_type_hints(DATASETS[name].load)
    for option, value in options.items():
        if not _fits(value, hints[option]):
            raise ValueError(f"{name}: {option} must be {_named(hints[option])}; got {value!r}.")


def _fits(value, hint) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_fits(value, kind) for kind in typing.get_args(hint))
    if typing.get_origin(hint) is Iterable:  # of texts
        return isinstance(value, (list, tuple)) and all(isinstance(text, str) for text in value)
    if typing.get_origin(hint) is Mapping:  # of texts; YAML makes whole numbers of some keys
        _, values = typing.get_args(hint)
        return isinstance(value, Mapping) and all(
            isinstance(key, str | int) and (isinstance(item, bool) or _fits(item, values))
            for key, item in value.items()
        )
    kinds = (int, float) if hint is float else hint
    return isinstance(value, kinds) and (hint is bool or not isinstance(value, bool))


def _named(hint) -> str:
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", types.NoneType: "null"}
    if isinstance(hint, types.UnionType):
        return " or ".join(dict.fromkeys(_named(kind) for kind in typing.get_args(hint)))
    if typing.get_origin(hint) is Iterable:
        return "a list of texts"
    if typing.get_origin(hint) is Mapping:
        return f"a mapping from texts to {_named(typing.get_args(hint)[1])}"
    return names.get(hint, "a path")


def describe_datasets() -> str:
    """Every data set with its options and their defaults, for the scripts' help."""
    lines = []
    for name, record in DATASETS.items():
        options = ", ".join(f"{o}{'' if d in (None, ()) else f' ({d})'}" for o, d in record.options.items())
        lines += textwrap.wrap(f"{name}: {options}", 116, initial_indent="  ", subsequent_indent="      ")
    return "\n".join(lines)
