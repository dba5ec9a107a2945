# Licensed under the Apache License, Version 2.0.
"""
Draw synthetic radiographs to a disk, download a data set, or prepare one for training:

    python -m modeling_tier.data synthetic runs/sheet.png --layout contact_sheet
    python -m modeling_tier.data download openi runs/openi --max_images 300
    python -m modeling_tier.data prepare openi --data_dir runs/openi --output_dir runs/openi-320

Options of each: python -m modeling_tier.data prepare openi --help
"""

import argparse

from ..declarations import Declarations, of_module
from ..options import HelpFormatter, option_parser
from . import work_of


_PACKAGE = "modeling_tier.data"
_COMMAND = f"python -m {_PACKAGE}"
# Without files, so that there is nothing to prepare; and with an option of its own for each choice.
_DRAWN, _WITH_REPORTS = "synthetic", "mimic_cxr"


def main() -> None:
    arguments = vars(_parser().parse_args())
    try:
        work_of(f"{_PACKAGE}.command").run(**arguments)
    except KeyboardInterrupt:
        raise SystemExit("\nstopped; the same command goes on from here") from None


def _parser() -> argparse.ArgumentParser:
    parser = option_parser(__doc__, _COMMAND)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_synthetic(
        _add(
            commands,
            "synthetic",
            "radiographs drawn by code, of no clinical meaning",
            "synthetic runs/sheet.png --layout contact_sheet --num_images 18",
        )
    )
    _add_download(
        _add(commands, "download", "a data set that needs no account", "download openi runs/openi --max_images 300")
    )
    prepared = _add(
        commands,
        "prepare",
        "small pictures, texts and regions, in shards that are read fast",
        "prepare openi --data_dir runs/openi --output_dir runs/openi-320",
    )
    data_sets = prepared.add_subparsers(dest="dataset", required=True, metavar="dataset")
    for module in of_module(f"{_PACKAGE}.registry").names("_MODULES"):
        if module != _DRAWN:
            declared = of_module(f"{_PACKAGE}.{module}")
            name, title = declared.field("RECORD", "name"), declared.field("RECORD", "title")
            example = f"prepare {name} --data_dir FOLDER --output_dir FOLDER-320 --num_proc 4"
            command = _add(data_sets, name, title, example)
            (_add_mimic_cxr if name == _WITH_REPORTS else _add_data_set)(command, declared, title)
    return parser


def _add(commands, name: str, help: str, example: str) -> argparse.ArgumentParser:
    description = f"{help[0].upper()}{help[1:]}:\n\n    {_COMMAND} {example}"
    return commands.add_parser(
        name, help=help, description=description, formatter_class=HelpFormatter, allow_abbrev=False
    )


def _add_synthetic(command: argparse.ArgumentParser) -> None:
    layouts = [*of_module(f"{_PACKAGE}.command").keys("LAYOUTS"), "mimic_cxr"]
    command.add_argument("output", help="folder of the tree or the pairs, or PNG file of the contact sheet")
    command.add_argument("--layout", choices=layouts, required=True, help="what is written")
    command.add_argument(
        "--num_images", type=int, default=18, help="of the sheet, the pairs, or the tree (80/10/10 by split)"
    )
    command.add_argument("--image_size", type=int, default=128, help="pixels a side")
    command.add_argument("--seed", type=int, default=0, help="of the drawings")
    kinds = of_module(f"{_PACKAGE}.synthetic.pairs").keys("DRAWINGS")
    command.add_argument("--drawings", choices=kinds, default=kinds[0], help="fine: more findings, longer reports")


def _add_download(command: argparse.ArgumentParser) -> None:
    address = of_module(f"{_PACKAGE}.openi_download").value("ADDRESS")
    command.add_argument("dataset", choices=("openi",), help="Open-I: 1.3 GB, under CC BY-NC-ND 4.0")
    command.add_argument("output_dir", help="folder to write; it becomes the data_dir of the data set")
    command.add_argument(
        "--max_images",
        type=int,
        help="the first so many; no more is downloaded than they need (default: all)",
    )
    command.add_argument("--address", default=address, help="of the folder with the archives, for a mirror")


def _add_mimic_cxr(command: argparse.ArgumentParser, declared: Declarations, title: str) -> None:
    defaults = of_module(f"{_PACKAGE}.prepare").parameters("prepare")

    def add(name, help, **options):
        command.add_argument(f"--{name}", default=defaults[name], help=help, **options)

    command.add_argument("--data_dir", required=True, help="folder of MIMIC-CXR-JPG, with files/ and its tables")
    _add_output(command)
    add("reports_dir", "folder of the reports, if they are not in data_dir")
    add("reports", "or their zip file, mimic-cxr-reports.zip")
    sections = of_module(f"{_PACKAGE}.sections").value("SECTIONS")
    add("section", "text of a pair; impression_or_findings: the first that exists", choices=sections)
    rules = declared.value("SPLIT_RULES")
    add("split_by", "paper: 10%% of the subjects for validation, as arXiv 2212.06710", choices=rules)
    add("views", "frontal: AP and PA", choices=declared.value("VIEWS"))
    labelers = declared.value("LABELERS")
    add("labeler", "whose labels; radiologist: part of the test set of 2.1.0 alone", choices=labelers)


def _add_data_set(command: argparse.ArgumentParser, declared: Declarations, title: str) -> None:
    """The options of the data set's loader, which `python train.py --list_options` and docs/data.md describe."""
    command.epilog = "The options of its loader are those of --data.options, in YAML's notation."
    command.add_argument("--data_dir", required=True, help=f"folder of {title}")
    _add_output(command)
    splits = of_module(f"{_PACKAGE}.columns").value("SPLITS")
    command.add_argument("--splits", nargs="+", choices=splits, default=(), help="default: all that there are")
    for name, default in declared.parameters(declared.name_in("RECORD", "load")).items():
        if name not in ("split", "data_dir", "streaming"):
            shown = "none" if default in (None, ()) else default
            command.add_argument(
                f"--{name}", default=argparse.SUPPRESS, help=f"option of the loader (default: {shown})"
            )


def _add_output(command: argparse.ArgumentParser) -> None:
    defaults = of_module(f"{_PACKAGE}.prepare").parameters("prepare")

    def add(name, help, **options):
        command.add_argument(f"--{name}", default=defaults[name], help=help, **options)

    command.add_argument("--output_dir", required=True, help="folder to write")
    add("size", "pixels of the shorter side", type=int)
    add("num_proc", "processes that decode pictures", type=int)
    add("max_failed", "largest fraction of pictures that may be missing or unreadable", type=float)
    command.add_argument("--retry_failed", action="store_true", help="write shards again in which something failed")
