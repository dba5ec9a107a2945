# Licensed under the Apache License, Version 2.0.
"""TIER: CLIP-style models of radiographs and reports with text-image entropy regularisation (arXiv 2212.06710)."""

import sys
from typing import TYPE_CHECKING


__all__ = [
    "TextImageEntropy",
    "ReadingOptions",
    "TierConfig",
    "TierModel",
    "TierOutput",
    "TierProcessor",
    "TierSimilarityMap",
    "TierZeroShotPipeline",
    "load_radiograph",
    "overlay_map",
    "text_image_entropy",
]


def _command_is_located() -> bool:
    """
    Whether Python imports this package only to find the module of `python -m modeling_tier.NAME`: during that, and no
    longer, sys.argv[0] is "-m". A command imports `registration` itself, after it has parsed its options.
    """
    module = sys.orig_argv[-len(sys.argv)] if sys.argv[:1] == ["-m"] else ""
    return module.removeprefix("-m").startswith(f"{__name__}.")


if TYPE_CHECKING or not _command_is_located():
    from .registration import (
        ReadingOptions,
        TextImageEntropy,
        TierConfig,
        TierModel,
        TierOutput,
        TierProcessor,
        TierSimilarityMap,
        TierZeroShotPipeline,
        load_radiograph,
        overlay_map,
        text_image_entropy,
    )


if not TYPE_CHECKING:  # a type checker would take any name for one of the module

    def __getattr__(name: str):
        """The public names, where they were not imported above."""
        if name in __all__:
            from . import registration

            return getattr(registration, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
