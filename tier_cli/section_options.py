# Licensed under the Apache License, Version 2.0.
"""
Names of `--section.option value`, checked before torch is imported: a mistyped one is answered at once. Their values
are checked by `modeling_tier.training.load_config` and `modeling_tier.evaluation.command`, which know more of them.
"""

import argparse
import difflib
import sys
from collections.abc import Iterable, Iterator

from .declarations import of_module
from .names import check_model_names
from .options import is_console_command


_MODELS = ("model.pretrained", "tokenizer.pretrained")


def check_training_options(parser: argparse.ArgumentParser, given: list[str]) -> None:
    """End the program with a message if `given` has an option that train.py does not have."""
    options = of_module("modeling_tier.training.options")
    removed = of_module("modeling_tier.training.configuration").keys("_REMOVED")
    top = options.fields("TrainConfig")
    for name, value in _options(given):
        if name in _MODELS and value != "null":
            check_model_names(value)
        section, _, rest = name.partition(".")
        if name in removed:  # load_config says what holds instead
            continue
        if section not in top:
            sections = [f"{known}.{rest}" if rest else known for known in top]
            _unknown(name, sections if rest else [*_own_options(parser), *sections])
        if rest and top[section] in options.classes:
            known = options.fields(top[section])
            if rest.partition(".")[0] not in known:
                _unknown(name, [f"{section}.{option}" for option in known])


def check_data_options(parser: argparse.ArgumentParser, given: list[str], sections: tuple[str, ...]) -> None:
    """End the program with a message if `given` has an option of another section than these."""
    for name, _ in _options(given):
        if name.partition(".")[0] not in sections:
            _unknown(name, _own_options(parser))


def _options(given: list[str]) -> Iterator[tuple[str, str]]:
    words = iter(given)
    for word in words:
        if not word.startswith("--"):
            return  # load_config says what is wrong with it
        name, equals, value = word[2:].partition("=")
        yield name, value if equals else next(words, "")


def _own_options(parser: argparse.ArgumentParser) -> list[str]:
    return [name.removeprefix("--") for action in parser._actions for name in action.option_strings]


def _unknown(name: str, known: Iterable[str]) -> None:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean --{near[0]}?" if near else ""
    command = "tier-train" if is_console_command() else "python train.py"
    sys.exit(f"error: Unknown option --{name}.{hint} See --help, or {command} --list_options.")
