# Licensed under the Apache License, Version 2.0.
"""
Train a TIER model:

    accelerate launch train.py --config configs/demo.yaml [--section.option value ...]
    accelerate launch train.py --config configs/mimic_cxr.yaml --data_dir /data/mimic-cxr-320
"""

import argparse
import sys
import warnings

from modeling_tier.data import describe_datasets
from modeling_tier.training import load_config, train
from modeling_tier.training.configuration import describe_options


def main() -> None:
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="options (default): what they are\n"
        + describe_options()
        + "\n\ndata sets and what stands in data.options, data.train and data.validation (default)\n"
        + describe_datasets(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", help="YAML file with the options by section")
    parser.add_argument("--data_dir", help="where the data set lies; the same as --data.options.data_dir")
    arguments, overrides = parser.parse_known_args()
    if arguments.data_dir:
        overrides += ["--data.options.data_dir", arguments.data_dir]
    try:
        config = load_config(arguments.config, overrides)
        train(config)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
