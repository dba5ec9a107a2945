# Licensed under the Apache License, Version 2.0.
"""`python -m modeling_tier.data synthetic OUTPUT --layout ...`: draw synthetic radiographs to a disk."""

import argparse
import sys

from .synthetic import write_contact_sheet, write_mimic_tree


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m modeling_tier.data", description=__doc__)
    command = parser.add_subparsers(dest="command", required=True).add_parser(
        "synthetic", help="radiographs drawn by code, of no clinical meaning"
    )
    command.add_argument("output", help="folder of the tree, or PNG file of the contact sheet")
    command.add_argument("--layout", choices=("mimic_cxr", "contact_sheet"), required=True)
    command.add_argument("--num_images", type=int, default=18, help="of the sheet, or of the tree (80/10/10 by split)")
    command.add_argument("--image_size", type=int, default=128, help="pixels a side")
    command.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        if arguments.layout == "contact_sheet":
            write_contact_sheet(arguments.output, arguments.num_images, arguments.image_size, arguments.seed)
            return
        tenth = max(1, arguments.num_images // 10)
        splits = {"train": arguments.num_images - 2 * tenth, "validation": tenth, "test": tenth}
        write_mimic_tree(arguments.output, splits, arguments.image_size, arguments.seed)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
