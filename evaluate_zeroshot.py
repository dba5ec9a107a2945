# Licensed under the Apache License, Version 2.0.
# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = ["modeling-tier[train]"]
# [tool.uv.sources]
# modeling-tier = { path = ".", editable = true }
# ///
"""
Evaluate one model zero-shot, or several side by side: tables on the screen; metrics.json, report.html, report.md and
figures in a folder. Models are folders or names on the Hub.

    python evaluate_zeroshot.py --model runs/tier --dataset synthetic --output_dir runs/tier/evaluation
    python evaluate_zeroshot.py --model runs/clip --model runs/tier --dataset chexpert --data_dir /data/CheXpert \\
        --validation_split validation --output_dir runs/comparison
    accelerate launch --num_processes 8 evaluate_zeroshot.py --model runs/tier --dataset mimic_cxr ...

Several processes share the images and give the same numbers as one. What was scored stays in the folder's `cache`: an
evaluation that was stopped goes on from there, by the same command.
"""

import argparse
import sys
import warnings

from tier_cli.names import check_model_names
from tier_cli.section_options import check_data_options


# Those of modeling_tier, which takes seconds to import: --help does not need it.
SPLITS = ("train", "validation", "test")
PROTOCOLS = ("tier", "chexzero", "pipeline", "carzero")
LABEL_POLICIES = ("ignore", "zeros", "ones")
DTYPES = ("float32", "bfloat16", "float16")


def main() -> None:
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Options of the data set follow as --data.options.NAME VALUE; see python train.py --list_options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_data_options(parser)
    add_sentence_options(parser)
    add_measuring_options(parser)
    arguments, options = parser.parse_known_args()
    check_data_options(parser, options, ("data", "validation"))
    check_model_names(*arguments.model)
    # Not at the top of the file: torch and transformers take seconds, which --help does not need.
    from modeling_tier.evaluation.command import configuration
    from modeling_tier.evaluation.run import run_evaluation
    from modeling_tier.evaluation.suite import run_suite

    try:
        if arguments.suite:
            done = run_suite(arguments, options)
            if done and done.failed:
                raise ValueError(done.failure)
        else:
            run_evaluation(configuration(arguments, options))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


class _Explicit(argparse.Action):
    """Stores a value, and notes in `explicit` that it was given: a suite takes no other one than its own."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, values)
        namespace.explicit = {*getattr(namespace, "explicit", ()), self.dest}


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """What is evaluated, and on what."""
    add = parser.add_argument
    add(
        "--model",
        default=[],
        action="append",
        help="folder or Hub id of a TIER model or a CLIPModel, or the folder of an ensemble (with an ensemble.json); "
        "may be given several times: each further model is compared with the first",
    )
    add(
        "--scores",
        default=[],
        action="append",
        metavar="FILE",
        help="csv file of another classifier's scores, in place of a model or beside models: a column image_id (or "
        "study_id) and a column of numbers per finding; may be given several times",
    )
    add(
        "--suite",
        metavar="NAME",
        help="evaluate on several data sets, in one table beside published numbers: carzero, localisation or tier, or "
        "a YAML file such as configs/suite.yaml",
    )
    add(
        "--data_root",
        metavar="DIR",
        help="folder that holds the data sets of a suite, raw or prepared, in folders of their usual names",
    )
    add(
        "--dataset",
        action=_Explicit,
        default="synthetic",
        help="data set, a key of modeling_tier.data.DATASETS (default: %(default)s)",
    )
    add("--split", action=_Explicit, choices=SPLITS, default="test", help="(default: %(default)s)")
    add("--data_dir", help="folder of the data set, for those that are on a disk")
    add("--num_images", type=int, default=1000, help="of a data set that is drawn (default: %(default)s)")
    add("--seed", type=int, help="of a data set that is drawn; default: that of the first model's training")
    add(
        "--image_ids",
        metavar="FILE",
        help="evaluate exactly these images: one id per line, or a csv file with a column image_id; every evaluation "
        "writes the list that it used, image_ids.txt",
    )
    add(
        "--max_images",
        type=int,
        help="number of images from the first on, for a first look; of data sets that have this option (chestxray14)",
    )
    add(
        "--validation_split",
        choices=SPLITS,
        help="split on which thresholds (for MCC, F1, sensitivity, specificity, and of maps for IoU and Dice) and "
        "calibration are chosen; default: none, and these numbers are not measured",
    )
    add(
        "--validation_image_ids",
        metavar="FILE",
        help="choose them on these images of the validation split alone, a list as for --image_ids; where that is the "
        "split that is evaluated, the other images are judged",
    )
    add("--validation_dataset", help="its data set; default: that of --dataset, with the same options")
    add("--validation_data_dir", help="folder of that one; its other options are --validation.options.NAME VALUE")


def add_sentence_options(parser: argparse.ArgumentParser) -> None:
    """By which sentences, and against which labels."""
    add = parser.add_argument
    add(
        "--protocol",
        action=_Explicit,
        choices=PROTOCOLS,
        default="tier",
        help="which sentences, and what the score of a finding is (default: %(default)s)",
    )
    add("--prompts", help="YAML file with sentences; default: the data set's own")
    for name, label in {"uncertain": "of -1", "blank": "not mentioned"}.items():
        text = f"what a label {label} counts as (default: %(default)s)"
        add(f"--{name}", choices=LABEL_POLICIES, default="ignore", help=text)


def add_measuring_options(parser: argparse.ArgumentParser) -> None:
    """How numbers are computed, and where they are written."""
    add = parser.add_argument
    add(
        "--resamples",
        type=int,
        default=1000,
        help="of the bootstrap over subjects; 0: no intervals (default: %(default)s)",
    )
    add("--batch_size", type=int, default=64, help="images per step and process (default: %(default)s)")
    add("--dtype", choices=DTYPES, default="float32", help="bfloat16 or float16: by autocast (default: %(default)s)")
    add(
        "--num_workers",
        type=int,
        default=0,
        help="processes that read pictures, for each process of the evaluation (default: %(default)s)",
    )
    add("--device", help="torch device, such as cpu; default: the accelerator, where there is one")
    add(
        "--smooth_maps",
        type=float,
        default=0.0,
        metavar="SIGMA",
        help="filter maps by a gaussian of SIGMA patches before they are measured, as BioViL's authors do with 1.5; "
        "0: maps as they are (default: %(default)s)",
    )
    add(
        "--sentence_retrieval",
        action="store_true",
        help="retrieval between images and the single sentences of all texts, too, any sentence of its own text being "
        "right for an image; it encodes each sentence",
    )
    add(
        "--examples",
        type=int,
        default=6,
        help="findings whose maps are shown over a picture of the data set; 0: none (default: %(default)s)",
    )
    add("--output_dir", help="default: the folder 'evaluation' in the first model's folder")


if __name__ == "__main__":
    main()
