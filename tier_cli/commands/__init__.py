# Licensed under the Apache License, Version 2.0.
"""
The options of `python -m modeling_tier.data|conversion|export|publish`. They are here and not in `modeling_tier`
because importing any module of that package imports torch and transformers; each `main` does so after it has parsed
its options.
"""

import importlib
from types import ModuleType


def work_of(module: str) -> ModuleType:
    """The module that does a command's work, after TIER's classes were registered with transformers."""
    importlib.import_module("modeling_tier.registration")
    return importlib.import_module(module)
