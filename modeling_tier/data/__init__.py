# Licensed under the Apache License, Version 2.0.
"""
Image-report pairs as `datasets.Dataset`, every data set with the same columns:

`image` (`datasets.Image`), `text`, `subject_id`, `study_id`, `image_id`, `view`, `labels` (finding -> 1 positive,
0 negative, -1 uncertain, null not mentioned) and, where ground-truth regions of the findings are known, `regions`
(list of `finding`, `phrase`, `box` as x_min, y_min, x_max, y_max in pixels of the image, and `mask`). `text` is null
where a data set has none; `reads` are the annotations of CheXpert's radiologists, `radiologist` says how
CheXlocalize's other radiologist does against the ground-truth masks.
"""

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .registry import DATASETS, PATH_OPTIONS, SPLITS, DatasetRecord, check_options, describe_datasets, load_pairs

__all__ = ["DATASETS", "PATH_OPTIONS", "SPLITS", "DatasetRecord", "check_options", "describe_datasets", "load_pairs"]


if not TYPE_CHECKING:  # a type checker would take any name for one of the module

    def __getattr__(name: str):
        """The public names, imported when they are first used: `python -m modeling_tier.data --help` needs none."""
        if name in __all__:
            from . import registry

            return getattr(registry, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
