# Licensed under the Apache License, Version 2.0.
# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = ["modeling-tier[train]"]
# [tool.uv.sources]
# modeling-tier = { path = ".", editable = true }
# ///
"""
Train a TIER model:

    accelerate launch train.py --config configs/demo.yaml [--section.option value ...]
    accelerate launch train.py --config configs/mimic_cxr.yaml --data_dir /data/mimic-cxr-320
    python train.py --config configs/demo.yaml --push_to_hub --hub_model_id user/name

Every option of a configuration file can be given as --section.option value. The most used, with their defaults:

    --output_dir runs/tier                        folder of the run; in the end a complete model folder
    --seed 0                                      of weights, data order and dropout
    --data.name synthetic                         data set
    --data.max_text_tokens 128                    longer texts are truncated
    --model.pretrained null                       folder or Hub id of a TIER model or a CLIPModel to start from
    --model.lambda_token null                     weight of the token term; null: 0.2, or the pretrained model's own
    --model.lambda_patch null                     weight of the patch term; null: 0.1, or the pretrained model's own
    --optimizer.lr 0.0001                         largest learning rate
    --training.epochs 10                          passes over the training set
    --training.batch_size 64                      pairs per process and step
    --training.mixed_precision no                 no | bf16 | fp16
    --training.resume_from_checkpoint null        auto: go on from the last checkpoint, if there is one
    --training.overwrite false                    replace an earlier run in output_dir
    --evaluation.best_metric auroc                how the best checkpoint is chosen

All of them, and the data sets: python train.py --list_options
"""

import argparse
import os
import sys
import warnings

from tier_cli.section_options import check_training_options


def main() -> None:
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--config", help="YAML file with the options by section")
    add("--data_dir", help="folder of the data set; the same as --data.options.data_dir")
    add("--list_options", action="store_true", help="print every --section.option and every data set, and exit")
    add("--push_to_hub", action="store_true", help="publish the model when its training has ended")
    add("--hub_model_id", metavar="user/name", help="repository on the Hub; made before the training starts")
    add("--hub_private", action=argparse.BooleanOptionalAction, default=True, help="whether only you can see it")
    add(
        "--hub_shareable",
        action="store_true",
        help="the pictures and sentences of your own `pairs` may be seen by all",
    )
    add(
        "--hub_accept_vocabulary",
        action="store_true",
        help="send a tokenizer made from texts that may not be shown; see python -m modeling_tier.publish --help",
    )
    arguments, overrides = parser.parse_known_args()
    check_training_options(parser, overrides)
    if arguments.list_options:
        list_options()
        return
    # Not at the top of the file: torch and transformers take seconds, which --help does not need.
    from modeling_tier.publish import check_before_training, publish
    from modeling_tier.training import load_config, train

    if arguments.data_dir:
        overrides += ["--data.options.data_dir", arguments.data_dir]
    target = {
        "repo_id": arguments.hub_model_id,
        "private": arguments.hub_private,
        "shareable": arguments.hub_shareable,
        "accept_vocabulary": arguments.hub_accept_vocabulary,
    }
    first_process = os.environ.get("RANK", "0") == "0"
    try:
        config = load_config(arguments.config, overrides)
        if arguments.push_to_hub != bool(arguments.hub_model_id):
            raise ValueError("--push_to_hub and --hub_model_id user/name go together.")
        if arguments.push_to_hub and first_process:
            check_before_training(config, **target)
        train(config)
        if arguments.push_to_hub and first_process:
            publish(config.output_dir, **target)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def list_options() -> None:
    """Print every option of a configuration with its default, and every data set with its own."""
    from modeling_tier.data import describe_datasets
    from modeling_tier.training.options import describe_options

    print("options (default): what they are")
    print(describe_options())
    print("\ndata sets and the options of data.options, data.train and data.validation (default)")
    print(describe_datasets())


if __name__ == "__main__":
    main()
