# Licensed under the Apache License, Version 2.0.
"""
Search for the weights of the regulariser: short training runs over the plane of lambda_token and lambda_patch.

    python search_lambdas.py --config configs/demo.yaml --output_dir runs/search
    accelerate launch search_lambdas.py --config configs/mimic_cxr_paper.yaml --data_dir /data/mimic-cxr-paper \\
        --evaluation.options.data_dir /data/CheXpert-v1.0 --output_dir runs/search --method tpe --training.epochs 3

The same command again goes on where it was stopped; a larger --trials extends the search.
"""

import argparse
import sys
import warnings

from tier_cli.section_options import check_training_options


METHODS = ("random", "tpe")
_SET_HERE = ("model.lambda_token", "model.lambda_patch", "training.overwrite", "training.resume_from_checkpoint")


def main() -> None:
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    parser = build_parser()
    arguments, overrides = parser.parse_known_args()
    check_training_options(parser, overrides)
    if arguments.data_dir:
        overrides += ["--data.options.data_dir", arguments.data_dir]
    defaults = ["--training.epochs", "1", "--data.subject_share", "0.3", "--evaluation.every_epochs", "1"]
    defaults += ["--evaluation.keep_best", "1"]
    # Not at the top of the file: torch and transformers take seconds, which --help does not need.
    from accelerate import PartialState
    from transformers.utils import logging

    from modeling_tier.training import load_config
    from modeling_tier.training.configuration import parse_options

    try:
        from modeling_tier.training.search import search_lambdas, search_table
    except ModuleNotFoundError as error:
        sys.exit(f"error: the search needs {error.name}: pip install {error.name}")
    logging.disable_progress_bar()
    try:
        for name, _ in parse_options(list(overrides)):
            if name in _SET_HERE:
                raise ValueError(f"--{name} is set by the search itself: leave it out.")
        config = load_config(arguments.config, [*defaults, *overrides, "--output_dir", arguments.output_dir])
        trials = search_lambdas(config, arguments.method, arguments.trials, arguments.largest)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if PartialState().is_main_process:
        print(f"\n{search_table(trials)}\n\nThe table, search.png and trials.jsonl are in {arguments.output_dir}.")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="All options of train.py may follow, as --section.option value. Unless they say otherwise, a trial is "
        "one epoch over 30% of the subjects, as in arXiv 2212.06710, and trials are compared by "
        "evaluation.best_metric. AUROC does not show when maps collapse: look at the other columns too.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", help="YAML file with the options of each trial")
    parser.add_argument("--data_dir", help="folder of the data set; the same as --data.options.data_dir")
    parser.add_argument("--output_dir", default="runs/search", help="folder of the search (default: %(default)s)")
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="random",
        help="random draws, or tpe with early stopping (default: %(default)s)",
    )
    parser.add_argument(
        "--trials", type=int, default=30, help="number of pairs, the first being 0 and 0 (default: %(default)s)"
    )
    parser.add_argument(
        "--largest", type=float, default=0.5, help="both are searched from 0 to here (default: %(default)s)"
    )
    return parser


if __name__ == "__main__":
    main()
