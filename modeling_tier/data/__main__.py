# Licensed under the Apache License, Version 2.0.
"""`python -m modeling_tier.data`: draw synthetic radiographs to a disk, download a data set, or prepare one."""

import argparse
import inspect
import sys
import types
import typing
from pathlib import Path

import yaml

from . import DATASETS, check_options
from .columns import SPLITS, VIEWS
from .mimic_cxr import LABELERS, SPLIT_RULES
from .openi_download import ADDRESS, download_openi
from .prepare import prepare
from .prepare_set import prepare_dataset
from .record import DatasetRecord
from .sections import SECTIONS
from .shards import summary_text
from .synthetic import (
    write_chexpert_plus_tree,
    write_contact_sheet,
    write_mimic_tree,
    write_openi_tree,
    write_pairs_folder,
    write_rexgradient_tree,
)


# Without files, so that there is nothing to prepare; and with an option of its own for each choice.
_DRAWN, _WITH_REPORTS = "synthetic", "mimic_cxr"
_LAYOUTS = {
    "pairs": write_pairs_folder,
    "openi": write_openi_tree,
    "chexpert_plus": write_chexpert_plus_tree,
    "rexgradient": write_rexgradient_tree,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m modeling_tier.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_synthetic(commands.add_parser("synthetic", help="radiographs drawn by code, of no clinical meaning"))
    _add_download(commands.add_parser("download", help="a data set that needs no account"))
    prepared = commands.add_parser("prepare", help="small pictures, texts and regions, in shards that are read fast")
    data_sets = prepared.add_subparsers(dest="dataset", required=True, metavar="dataset")
    for name, record in DATASETS.items():
        if name != _DRAWN:
            command = data_sets.add_parser(name, help=record.title)
            (_add_mimic_cxr if name == _WITH_REPORTS else _add_data_set)(command, record)
    arguments = vars(parser.parse_args())
    try:
        {"synthetic": _synthetic, "download": _download, "prepare": _prepare}[arguments.pop("command")](**arguments)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on from here")


def _add_synthetic(command: argparse.ArgumentParser) -> None:
    command.add_argument("output", help="folder of the tree or the pairs, or PNG file of the contact sheet")
    command.add_argument("--layout", choices=("contact_sheet", *_LAYOUTS, "mimic_cxr"), required=True)
    command.add_argument(
        "--num_images", type=int, default=18, help="of the sheet, the pairs, or the tree (80/10/10 by split)"
    )
    command.add_argument("--image_size", type=int, default=128, help="pixels a side")
    command.add_argument("--seed", type=int, default=0)


def _add_download(command: argparse.ArgumentParser) -> None:
    command.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    command.add_argument("dataset", choices=("openi",), help="Open-I: 1.3 GB, under CC BY-NC-ND 4.0")
    command.add_argument("output_dir", help="folder to write; it becomes the data_dir of the data set")
    command.add_argument("--max_images", type=int, help="the first so many; no more is downloaded than they need")
    command.add_argument("--address", default=ADDRESS, help="of the folder with the archives, for a mirror")


def _add_mimic_cxr(command: argparse.ArgumentParser, record: DatasetRecord) -> None:
    command.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    defaults = _defaults(prepare)

    def add(name, help, **options):
        command.add_argument(f"--{name}", default=defaults[name], help=help, **options)

    command.add_argument("--data_dir", required=True, help="folder of MIMIC-CXR-JPG, with files/ and its tables")
    _add_output(command)
    add("reports_dir", "folder of the reports, if they are not in data_dir")
    add("reports", "or their zip file, mimic-cxr-reports.zip")
    add("section", "text of a pair; impression_or_findings: the first that exists", choices=SECTIONS)
    add("split_by", "paper: 10%% of the subjects for validation, as arXiv 2212.06710", choices=SPLIT_RULES)
    add("views", "frontal: AP and PA", choices=VIEWS)
    add("labeler", "whose labels; radiologist: part of the test set of 2.1.0 alone", choices=LABELERS)


def _add_data_set(command: argparse.ArgumentParser, record: DatasetRecord) -> None:
    """The options of the data set's loader, which `python train.py --list_options` and docs/data.md describe."""
    command.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    command.description = f"{record.title}. The options of its loader are those of --data.options, in YAML's notation."
    command.add_argument("--data_dir", required=True, help=f"folder of {record.title}")
    _add_output(command)
    command.add_argument("--splits", nargs="+", choices=SPLITS, default=(), help="default: all that there are")
    for name, default in record.options.items():
        if name not in ("data_dir", "streaming"):
            shown = "none" if default in (None, ()) else default
            command.add_argument(
                f"--{name}", default=argparse.SUPPRESS, help=f"option of the loader (default: {shown})"
            )


def _add_output(command: argparse.ArgumentParser) -> None:
    defaults = _defaults(prepare)

    def add(name, help, **options):
        command.add_argument(f"--{name}", default=defaults[name], help=help, **options)

    command.add_argument("--output_dir", required=True, help="folder to write")
    add("size", "pixels of the shorter side", type=int)
    add("num_proc", "processes that decode pictures", type=int)
    add("max_failed", "largest fraction of pictures that may be missing or unreadable", type=float)
    command.add_argument("--retry_failed", action="store_true", help="write shards again in which something failed")


def _defaults(function) -> dict:
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}


def _synthetic(output: str, layout: str, num_images: int, image_size: int, seed: int) -> None:
    if layout == "contact_sheet":
        write_contact_sheet(output, num_images, image_size, seed)
        return
    if layout in _LAYOUTS:
        _LAYOUTS[layout](output, num_images, image_size, seed)
        return
    tenth = max(1, num_images // 10)
    splits = {"train": num_images - 2 * tenth, "validation": tenth, "test": tenth}
    write_mimic_tree(output, splits, image_size, seed)


def _download(dataset: str, **options) -> None:
    counts = download_openi(**options)
    print(", ".join(f"{number} files in {Path(options['output_dir'], name)}" for name, number in counts.items()))


def _prepare(dataset: str, **options) -> None:
    if dataset == _WITH_REPORTS:
        print(summary_text(prepare(**options)))
        return
    record = DATASETS[dataset]
    given = {name: options.pop(name) for name in record.options if name in options}
    loader = {name: _value(record, name, text) for name, text in given.items()}
    check_options(dataset, loader)
    print(summary_text(prepare_dataset(record, options=loader, **options)))


def _value(record: DatasetRecord, name: str, text: str):
    """What an option's text means: YAML, unless the option takes a text."""
    hint = typing.get_type_hints(record.load)[name]
    if hint is str or (isinstance(hint, types.UnionType) and str in typing.get_args(hint)):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"--{name} {text!r} is not YAML: {str(error).splitlines()[0]}.") from None


if __name__ == "__main__":
    main()
