# Licensed under the Apache License, Version 2.0.
"""`python -m modeling_tier.data`: draw synthetic radiographs to a disk, or make MIMIC-CXR ready for training."""

import argparse
import inspect
import sys

from .columns import VIEWS
from .mimic_cxr import LABELERS, SPLIT_RULES
from .prepare import prepare, summary_text
from .sections import SECTIONS
from .synthetic import write_contact_sheet, write_mimic_tree, write_pairs_folder


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m modeling_tier.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_synthetic(commands.add_parser("synthetic", help="radiographs drawn by code, of no clinical meaning"))
    _add_prepare(commands.add_parser("prepare", help="small pictures and texts, in shards that train fast"))
    arguments = vars(parser.parse_args())
    try:
        {"synthetic": _synthetic, "prepare": _prepare}[arguments.pop("command")](**arguments)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on from here")


def _add_synthetic(command: argparse.ArgumentParser) -> None:
    command.add_argument("output", help="folder of the tree or the pairs, or PNG file of the contact sheet")
    command.add_argument("--layout", choices=("mimic_cxr", "pairs", "contact_sheet"), required=True)
    command.add_argument(
        "--num_images", type=int, default=18, help="of the sheet, the pairs, or the tree (80/10/10 by split)"
    )
    command.add_argument("--image_size", type=int, default=128, help="pixels a side")
    command.add_argument("--seed", type=int, default=0)


def _add_prepare(command: argparse.ArgumentParser) -> None:
    command.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    defaults = {name: p.default for name, p in inspect.signature(prepare).parameters.items()}

    def add(name, help, **options):
        command.add_argument(f"--{name}", default=defaults[name], help=help, **options)

    command.add_argument("dataset", choices=("mimic_cxr",))
    command.add_argument("--data_dir", required=True, help="folder of MIMIC-CXR-JPG, with files/ and its tables")
    command.add_argument("--output_dir", required=True, help="folder to write")
    add("reports_dir", "folder of the reports, if they are not in data_dir")
    add("reports", "or their zip file, mimic-cxr-reports.zip")
    add("size", "pixels of the shorter side", type=int)
    add("section", "text of a pair; impression_or_findings: the first that exists", choices=SECTIONS)
    add("split_by", "paper: 10%% of the subjects for validation, as arXiv 2212.06710", choices=SPLIT_RULES)
    add("views", "frontal: AP and PA", choices=VIEWS)
    add("labeler", "whose labels; radiologist: part of the test set of 2.1.0 alone", choices=LABELERS)
    add("num_proc", "processes that decode pictures", type=int)
    add("max_failed", "largest fraction of pictures that may be missing or unreadable", type=float)
    command.add_argument("--retry_failed", action="store_true", help="write shards again in which something failed")


def _synthetic(output: str, layout: str, num_images: int, image_size: int, seed: int) -> None:
    if layout == "contact_sheet":
        write_contact_sheet(output, num_images, image_size, seed)
        return
    if layout == "pairs":
        write_pairs_folder(output, num_images, image_size, seed)
        return
    tenth = max(1, num_images // 10)
    splits = {"train": num_images - 2 * tenth, "validation": tenth, "test": tenth}
    write_mimic_tree(output, splits, image_size, seed)


def _prepare(dataset: str, **options) -> None:
    print(summary_text(prepare(**options)))


if __name__ == "__main__":
    main()
