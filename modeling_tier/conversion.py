# Licensed under the Apache License, Version 2.0.
"""The command `python -m modeling_tier.conversion`; what it does is in `modeling_tier/convert/published.py`."""

from .convert.published import biovil, clip, convert, main, openai, siglip, tier_authors


__all__ = ["biovil", "clip", "convert", "main", "openai", "siglip", "tier_authors"]

if __name__ == "__main__":
    main()
