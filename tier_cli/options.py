# Licensed under the Apache License, Version 2.0.
"""
The option parser that commands share. Nothing here, and nothing that a command imports before it has parsed its
options, imports torch, transformers or datasets: they take seconds, for which `--help` and a mistyped option need not
wait.
"""

import argparse
import shlex
import sys
from pathlib import Path


def is_console_command() -> bool:
    """Whether this is one of the commands that an installed package has."""
    return Path(sys.argv[0]).name.startswith("tier-")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description, and adds its default to the help of each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help
        if text is None or "%(default)" in text or "default:" in text or not action.option_strings:
            return text
        if action.default in (None, False, (), []) or action.default is argparse.SUPPRESS:
            return text
        shown = shlex.join(map(str, action.default)) if isinstance(action.default, list | tuple) else action.default
        return f"{text} (default: {str(shown).replace('%', '%%')})"


def option_parser(description: str, prog: str | None = None) -> argparse.ArgumentParser:
    """
    A parser whose help is `description`, usually a module's docstring, then the options with their defaults. `prog` is
    for modules that are started by `python -m`; an installed command has its own name.
    """
    if is_console_command():
        prog = None
    return argparse.ArgumentParser(
        prog=prog, description=description.strip("\n"), formatter_class=HelpFormatter, allow_abbrev=False
    )
