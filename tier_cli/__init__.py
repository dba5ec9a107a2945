# Licensed under the Apache License, Version 2.0.
"""
The console commands of an installed package. The scripts of the repository's root are installed as `tier_cli.scripts`
with `configs/` beside them; nothing of torch is imported for `--help`.
"""

import importlib
import sys
from importlib.metadata import PackageNotFoundError, requires


DISTRIBUTION = "modeling-tier"


def train() -> None:
    _run("tier_cli.scripts.train", "train")


def evaluate() -> None:
    _run("tier_cli.scripts.evaluate_zeroshot", "evaluate")


def search() -> None:
    _run("tier_cli.scripts.search_lambdas", "search")


def demo() -> None:
    _run("tier_cli.scripts.demo", "train")


def page() -> None:
    _run("tier_cli.scripts.app", "page")


def prepare() -> None:
    sys.argv.insert(1, "prepare")
    _run("modeling_tier.data.__main__", "train")


def data() -> None:
    _run("modeling_tier.data.__main__", "train")


def publish() -> None:
    _run("modeling_tier.publish", "train")


def convert() -> None:
    _run("modeling_tier.conversion", "train")


def export() -> None:
    _run("modeling_tier.export", "onnx")


def _run(module: str, extra: str) -> None:
    """`module.main()`; where a package of an extra is missing, says how to install it."""
    try:
        importlib.import_module(module).main()
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in ("modeling_tier", "tier_cli") or not _optional(package):
            raise
        sys.exit(f"error: the package {package!r} is not installed: pip install '{DISTRIBUTION}[{extra}]'")


def _optional(module: str) -> bool:
    """Whether a module belongs to a package that only an extra asks for."""
    names = {"yaml": "pyyaml", "sklearn": "scikit-learn"}
    try:
        needed = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return False
    return any(line.lower().startswith(names.get(module, module).lower()) and "extra ==" in line for line in needed)
