# Licensed under the Apache License, Version 2.0.
"""
The console commands of an installed package. The scripts of the repository's root, `page/` and `configs/` are
installed in the folder `scripts` beside this file; nothing of torch is imported for `--help`.
"""

import contextlib
import importlib
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path


DISTRIBUTION = "modeling-tier"
SCRIPTS = Path(__file__).parent / "scripts"
if not SCRIPTS.is_dir():  # installed with --editable
    SCRIPTS = Path(__file__).parents[1]

# What stands in the help of a checkout's commands, and what is installed for it.
COMMANDS = {
    "train": "tier-train",
    "evaluate_zeroshot": "tier-evaluate",
    "search_lambdas": "tier-search",
    "demo": "tier-demo",
    "app": "tier-page",
    "data": "tier-data",
    "conversion": "tier-convert",
    "export": "tier-export",
    "publish": "tier-publish",
}


def train() -> None:
    _find_config()
    _run("train", "train")


def evaluate() -> None:
    _find_config("--suite")
    _run("evaluate_zeroshot", "evaluate")


def search() -> None:
    _find_config()
    _run("search_lambdas", "search")


def demo() -> None:
    _find_config()
    _run("demo", "train")


def page() -> None:
    _run("app", "page")


def prepare() -> None:
    sys.argv[:1] = [str(Path(sys.argv[0]).with_name("tier-data")), "prepare"]
    _run("tier_cli.commands.data", "train")


def data() -> None:
    _run("tier_cli.commands.data", "train")


def publish() -> None:
    _run("tier_cli.commands.publish", "train")


def convert() -> None:
    _run("tier_cli.commands.conversion", "train")


def export() -> None:
    _run("tier_cli.commands.export", "onnx")


def _find_config(option: str = "--config") -> None:
    """`--config mimic_cxr.yaml` means the file that was installed, unless there is one in the current folder."""
    arguments = sys.argv
    for i, argument in enumerate(arguments):
        own, value = argument.removeprefix(f"{option}="), None
        if own != argument:
            place, before, value = i, f"{option}=", own
        elif argument == option and i + 1 < len(arguments):
            place, before, value = i + 1, "", arguments[i + 1]
        path = Path(value or "")
        installed = SCRIPTS / "configs" / path.name
        if value and path.parent in (Path("."), Path("configs")) and not path.exists() and installed.is_file():
            arguments[place] = before + str(installed)


def _run(module: str, extra: str) -> None:
    """`module.main()`; where a package of an extra is missing, says how to install it."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        with _own_help() if {"-h", "--help"} & {*sys.argv[1:]} else contextlib.nullcontext():
            importlib.import_module(module).main()
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if not _optional(package):
            raise
        sys.exit(f"error: the package {package!r} is not installed: pip install '{DISTRIBUTION}[{extra}]'")


@contextlib.contextmanager
def _own_help() -> Iterator[None]:
    """What is printed names the installed commands instead of the files of a checkout."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        sys.stdout.write(_as_installed(printed.getvalue()))


def _as_installed(text: str) -> str:
    for name, command in COMMANDS.items():
        text = text.replace(f"python -m modeling_tier.{name}", command).replace(f"python {name}.py", command)
        launched = rf"(accelerate launch (?:--\S+ (?:\d+ )?)*){name}\.py"  # accelerate takes a file's path
        text = re.sub(launched, rf'\1"$(command -v {command})"', text)
    return text.replace("--config configs/", "--config ")


def _optional(module: str) -> bool:
    """Whether a module belongs to a package that only an extra asks for."""
    from importlib.metadata import PackageNotFoundError, requires  # slower than all else that --help needs

    names = {"yaml": "pyyaml", "sklearn": "scikit-learn"}
    try:
        needed = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return False
    return any(line.lower().startswith(names.get(module, module).lower()) and "extra ==" in line for line in needed)
