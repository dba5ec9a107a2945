# Licensed under the Apache License, Version 2.0.
"""The command `python -m modeling_tier.conversion`, and the converters of `modeling_tier/convert` as functions."""

from tier_cli.commands.conversion import main


if __name__ == "__main__":
    main()
else:  # the command does without them until it has parsed its options
    from .convert.biovil import biovil
    from .convert.biovil_t import biovil_t
    from .convert.chexzero import chexzero
    from .convert.clip import clip
    from .convert.command import convert
    from .convert.cxr_clip import cxr_clip
    from .convert.gloria import gloria
    from .convert.medclip import medclip
    from .convert.open_clip import open_clip
    from .convert.openai import openai
    from .convert.siglip import siglip
    from .convert.sources import SOURCES
    from .convert.tier_authors import tier_authors
    from .convert.weight_files import Record

__all__ = [
    "SOURCES",
    "Record",
    "biovil",
    "biovil_t",
    "chexzero",
    "clip",
    "convert",
    "cxr_clip",
    "gloria",
    "main",
    "medclip",
    "open_clip",
    "openai",
    "siglip",
    "tier_authors",
]
