# Licensed under the Apache License, Version 2.0.
"""The page to try models in a browser: `build_page` and `launch`; `write_space`."""

from .answers import load_models
from .layout import build_page, error_page, launch
from .space import write_space


__all__ = ["build_page", "error_page", "launch", "load_models", "write_space"]
