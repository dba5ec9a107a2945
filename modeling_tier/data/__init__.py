# Licensed under the Apache License, Version 2.0.
"""
Image-report pairs as `datasets.Dataset`, every data set with the same columns:

`image` (`datasets.Image`), `text`, `subject_id`, `study_id`, `image_id`, `view`, `labels` (finding -> 1 positive,
0 negative, -1 uncertain, null not mentioned) and, where the places of the findings are known, `regions` (list of
`finding`, `phrase`, `box` as x_min, y_min, x_max, y_max in pixels of the image, and `mask`).
"""

import inspect

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


__all__ = ["DATASETS", "SPLITS", "check_options", "load_pairs"]

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
    """Raise ValueError for a data set or an option of it that does not exist, before anything is loaded."""
    if name not in DATASETS:
        raise ValueError(f"Unknown data set {name!r}; known are {sorted(DATASETS)}.")
    known = [parameter for parameter in inspect.signature(DATASETS[name]).parameters if parameter != "split"]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"Unknown option {unknown[0]!r} of the data set {name!r}; known are {known}.")
