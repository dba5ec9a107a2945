# Licensed under the Apache License, Version 2.0.
"""Every kind of published weights that can be converted."""

from . import biovil, biovil_t, chexzero, clip, cxr_clip, gloria, medclip, open_clip, openai, siglip, tier_authors
from .source import Source


# A new kind is one file beside this one, with a SOURCE, and its name here.
_MODULES = (biovil, biovil_t, chexzero, clip, cxr_clip, gloria, medclip, open_clip, openai, siglip, tier_authors)

SOURCES: dict[str, Source] = {module.SOURCE.name: module.SOURCE for module in _MODULES}
