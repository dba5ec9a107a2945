# Licensed under the Apache License, Version 2.0.
"""The work of `python -m modeling_tier.data`, whose options are in `tier_cli/commands/data.py`."""

import sys
import types
import typing
from pathlib import Path

import yaml

from .openi_download import download_openi
from .prepare import prepare
from .prepare_set import prepare_dataset
from .record import DatasetRecord
from .registry import DATASETS, check_options
from .shards import summary_text
from .synthetic import (
    write_chexpert_plus_tree,
    write_contact_sheet,
    write_mimic_tree,
    write_openi_tree,
    write_pairs_folder,
    write_rexgradient_tree,
)


LAYOUTS = {
    "contact_sheet": write_contact_sheet,
    "pairs": write_pairs_folder,
    "openi": write_openi_tree,
    "chexpert_plus": write_chexpert_plus_tree,
    "rexgradient": write_rexgradient_tree,
}
"""Beside "mimic_cxr", which is written with its splits."""


def run(command: str, **options) -> None:
    """One of the commands with its options; a ValueError ends it with its message."""
    try:
        {"synthetic": _synthetic, "download": _download, "prepare": _prepare}[command](**options)
    except ValueError as error:
        sys.exit(f"error: {error}")


def _synthetic(output: str, layout: str, num_images: int, image_size: int, seed: int, drawings: str) -> None:
    if layout in LAYOUTS:
        LAYOUTS[layout](output, num_images, image_size, seed, drawings)
        return
    tenth = max(1, num_images // 10)
    splits = {"train": num_images - 2 * tenth, "validation": tenth, "test": tenth}
    write_mimic_tree(output, splits, image_size, seed, drawings)


def _download(dataset: str, **options) -> None:
    counts = download_openi(**options)
    print(", ".join(f"{number} files in {Path(options['output_dir'], name)}" for name, number in counts.items()))


def _prepare(dataset: str, **options) -> None:
    if dataset == "mimic_cxr":  # with an option of its own for each choice
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
