# Licensed under the Apache License, Version 2.0.
"""
Train a TIER model:

    accelerate launch train.py --config configs/demo.yaml [--section.option value ...]
"""

import argparse
import sys

from modeling_tier.training import load_config, train
from modeling_tier.training.configuration import describe_options


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="options (default): what they are\n" + describe_options(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", help="YAML file with the options by section")
    arguments, overrides = parser.parse_known_args()
    try:
        config = load_config(arguments.config, overrides)
        train(config)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
