# Licensed under the Apache License, Version 2.0.
"""
Published checkpoints as TIER models:

    python -m modeling_tier.conversion biovil runs/biovil
    python -m modeling_tier.conversion chexzero runs/chexzero --model CheXzero/best_64_0.0001_original_35000_0.864.pt

The embeddings of tokens, patches, texts and images stay those of the source, and so do its logits. Names and shapes
are checked, and what TIER does not use is listed with the reason. No code that comes with a file is run. Options of
each source: python -m modeling_tier.conversion biovil --help
"""

import argparse

from ..declarations import of_module
from ..options import HelpFormatter, option_parser
from . import work_of


_PACKAGE = "modeling_tier.convert"
_COMMAND = "python -m modeling_tier.conversion"
_NOT_OPTIONS = ("record", "reading_options")  # parameters of converters, of no use on a command line


def main() -> None:
    options = vars(_parser().parse_args())
    work_of(f"{_PACKAGE}.command").run(**options)


def _parser() -> argparse.ArgumentParser:
    parser = option_parser(__doc__, _COMMAND)
    commands = parser.add_subparsers(dest="source", metavar="SOURCE", required=True)
    for module in of_module(f"{_PACKAGE}.sources").names("_MODULES"):
        _add_source(commands, module)
    return parser


def _add_source(commands, module: str) -> None:
    declared = of_module(f"{_PACKAGE}.{module}")
    name, reads, writes = (declared.field("SOURCE", field) for field in ("name", "reads", "writes"))
    parameters = declared.parameters(declared.name_in("SOURCE", "convert"))
    options = {option: default for option, default in parameters.items() if option not in _NOT_OPTIONS}
    needed = "".join(f" --{option} FILE_OR_HUB_ID" for option, default in options.items() if default is ...)
    example = f"    {_COMMAND} {name} runs/{name}{needed}"
    command = commands.add_parser(
        name,
        help=reads,
        description=f"Reads {reads}. Writes {writes}.\n\n{example}",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    command.add_argument("output_dir", metavar="OUTPUT_DIR", help="folder to write; must be empty, if it is there")
    descriptions = declared.field("SOURCE", "options", {})
    descriptions["image_options"] = "options that replace the image processor's, as a mapping in YAML"
    for option, default in options.items():
        if default is ...:
            command.add_argument(f"--{option}", required=True, help=descriptions[option])
        else:
            command.add_argument(f"--{option}", default=default, help=descriptions[option])
