# Licensed under the Apache License, Version 2.0.
"""The command `python -m modeling_tier.conversion`, and the converters of `modeling_tier/convert` as functions."""

from .convert.biovil import biovil
from .convert.clip import clip
from .convert.command import convert, main
from .convert.openai import openai
from .convert.siglip import siglip
from .convert.sources import SOURCES
from .convert.tier_authors import tier_authors
from .convert.weight_files import Record


__all__ = ["SOURCES", "Record", "biovil", "clip", "convert", "main", "openai", "siglip", "tier_authors"]

if __name__ == "__main__":
    main()
