# Licensed under the Apache License, Version 2.0.
"""
Image-report pairs as `datasets.Dataset`, every data set with the same columns:

`image` (`datasets.Image`), `text`, `subject_id`, `study_id`, `image_id`, `view`, `labels` (finding -> 1 positive,
0 negative, -1 uncertain, null not mentioned) and, where the places of the findings are known, `regions` (list of
`finding`, `phrase`, `box` as x_min, y_min, x_max, y_max in pixels of the image, and `mask`). `text` is null where a
data set has none; `reads` are the answers of CheXpert's radiologists.
"""

import inspect
import textwrap
import types
import typing
from collections.abc import Iterable

from datasets import Dataset

from .chestxray14 import chestxray14
from .chexpert import chexpert
from .columns import SPLITS, check_split
from .mimic_cxr import mimic_cxr
from .ms_cxr import ms_cxr
from .openi import openi
from .padchest import padchest
from .pairs import pairs
from .synthetic import synthetic_pairs


__all__ = ["DATASETS", "PLACES", "SHAREABLE", "SPLITS", "check_options", "describe_datasets", "load_pairs"]

# Options that say where something lies: another disk has other ones for the same data.
PLACES = ("data_dir", "reports", "reports_dir", "exclude_subjects", "boxes", "reads_dir")

# A new data set is one file beside this one, and one line here.
DATASETS = {
    "synthetic": synthetic_pairs,
    "mimic_cxr": mimic_cxr,
    "pairs": pairs,
    "chexpert": chexpert,
    "padchest": padchest,
    "chestxray14": chestxray14,
    "ms_cxr": ms_cxr,
    "openi": openi,
}

# Whether a data set's pictures, sentences and words may be shown to everybody. False: it has terms of access or use of
# its own, and nobody can set them aside here. None: its owner says so, by --shareable.
SHAREABLE = {
    "synthetic": True,
    "mimic_cxr": False,
    "pairs": None,
    "chexpert": False,
    "padchest": False,
    "chestxray14": False,
    "ms_cxr": False,
    "openi": False,
}


def load_pairs(name: str, split: str, **options) -> Dataset:
    """
    The image-report pairs of one split of a data set.

    Args:
        name: a key of `DATASETS`.
        split: "train", "validation" or "test". No subject stands in two of them.
        **options: those of the data set's function, such as [`~data.synthetic.synthetic_pairs`].

    Raises:
        ValueError: for an unknown name, split or option, with the known ones.
    """
    check_options(name, options)
    check_split(name, split)
    return DATASETS[name](split=split, **options)


def check_options(name: str, options: dict) -> None:
    """Raise ValueError for a data set, an option or a kind of value that does not exist, before anything is loaded."""
    if name not in DATASETS:
        raise ValueError(f"Unknown data set {name!r}; known are {sorted(DATASETS)}.")
    known = list(_options(name))
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"Unknown option {unknown[0]!r} of the data set {name!r}; known are {known}.")
    hints = typing.get_type_hints(DATASETS[name])
    for option, value in options.items():
        if not _fits(value, hints[option]):
            raise ValueError(f"{name}: {option} must be {_named(hints[option])}; got {value!r}.")


def _fits(value, hint) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_fits(value, one) for one in typing.get_args(hint))
    if typing.get_origin(hint) is Iterable:  # of texts
        return isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value)
    kinds = (int, float) if hint is float else hint
    return isinstance(value, kinds) and (hint is bool or not isinstance(value, bool))


def _named(hint) -> str:
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", types.NoneType: "null"}
    if isinstance(hint, types.UnionType):
        return " or ".join(dict.fromkeys(_named(one) for one in typing.get_args(hint)))
    if typing.get_origin(hint) is Iterable:
        return "a list of texts"
    return names.get(hint, "a path")


def _options(name: str) -> dict:
    """Options of a data set with their defaults."""
    parameters = inspect.signature(DATASETS[name]).parameters
    return {option: parameter.default for option, parameter in parameters.items() if option != "split"}


def describe_datasets() -> str:
    """Every data set with its options and their defaults, for the scripts' help."""
    lines = []
    for name in DATASETS:
        options = ", ".join(f"{o}{'' if d in (None, ()) else f' ({d})'}" for o, d in _options(name).items())
        lines += textwrap.wrap(f"{name}: {options}", 116, initial_indent="  ", subsequent_indent="      ")
    return "\n".join(lines)
