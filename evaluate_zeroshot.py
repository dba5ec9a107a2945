# Licensed under the Apache License, Version 2.0.
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
from pathlib import Path

import yaml

from modeling_tier.data import PLACES, SPLITS, check_options, describe_datasets
from modeling_tier.evaluation import DTYPES, LABEL_POLICIES, PROTOCOLS, is_ensemble
from modeling_tier.evaluation.run import DataChoice, EvaluationConfig, run_evaluation
from modeling_tier.loading import check_model_name
from modeling_tier.training.configuration import merge_options


def main() -> None:
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="data sets and their options, --data.options.NAME VALUE (default)\n" + describe_datasets(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--model",
        required=True,
        action="append",
        help="folder or Hub id of a TIER model or a CLIPModel, or the folder of an ensemble (with an ensemble.json); "
        "may be given several times: each further model is compared with the first",
    )
    add("--dataset", default="synthetic", help="data set, a key of modeling_tier.data.DATASETS")
    add("--split", choices=SPLITS, default="test")
    add("--data_dir", help="where the data set lies, for those that lie on a disk")
    add("--num_images", type=int, default=1000, help="of a data set that is drawn")
    add("--seed", type=int, help="of a data set that is drawn; default: that of the first model's training")
    add("--protocol", choices=PROTOCOLS, default="tier", help="which sentences, and what the score of a finding is")
    add("--prompts", help="YAML file with sentences; default: the data set's own")
    add("--uncertain", choices=LABEL_POLICIES, default="ignore", help="what a label of -1 counts as")
    add("--blank", choices=LABEL_POLICIES, default="ignore", help="what a label not mentioned counts as")
    add(
        "--validation_split",
        choices=SPLITS,
        help="split on which thresholds (for MCC, F1, sensitivity, specificity) and calibration are chosen; default: "
        "none, and these numbers are left out",
    )
    add("--validation_dataset", help="its data set; default: that of --dataset, with the same options")
    add("--validation_data_dir", help="where that one lies; its other options are --validation.options.NAME VALUE")
    add("--resamples", type=int, default=1000, help="of the bootstrap over subjects; 0: no intervals")
    add("--batch_size", type=int, default=64, help="images a step, of each process")
    add("--dtype", choices=DTYPES, default="float32", help="bfloat16 or float16: by autocast")
    add("--num_workers", type=int, default=0, help="processes that read pictures, for each process of the evaluation")
    add("--device", help="torch device, such as cpu; default: the accelerator, where there is one")
    add(
        "--smooth_maps",
        type=float,
        default=0.0,
        metavar="SIGMA",
        help="filter maps by a gaussian of so many patches before they are measured, as BioViL's authors do with 1.5; "
        "0: maps as they are",
    )
    add(
        "--examples", type=int, default=6, help="findings whose maps are shown over a picture of the data set; 0: none"
    )
    add("--output_dir", help="default: the folder 'evaluation' in the first model's folder")
    arguments, options = parser.parse_known_args()
    try:
        run_evaluation(configuration(arguments, options))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def configuration(arguments: argparse.Namespace, given: list[str]) -> EvaluationConfig:
    """Everything checked, before anything is loaded."""
    first = Path(arguments.model[0])
    if arguments.output_dir is None and not first.is_dir():
        check_model_name(arguments.model[0])
        raise ValueError("--output_dir is needed for a model that is not a folder.")
    data, validation = data_options(arguments, given)
    return EvaluationConfig(
        models=arguments.model,
        output_dir=Path(arguments.output_dir or first / "evaluation"),
        data=data,
        validation=validation,
        **{
            name: getattr(arguments, name)
            for name in (
                *("protocol", "prompts", "uncertain", "blank", "resamples", "batch_size"),
                *("dtype", "num_workers", "device", "examples", "smooth_maps"),
            )
        },
    )


def data_options(arguments: argparse.Namespace, given: list[str]) -> tuple[DataChoice, DataChoice | None]:
    """The data set, with the options of the first model's own training on it and what the command line says."""
    given_options = _given_options(given)
    options = _training_options(Path(arguments.model[0]), arguments.dataset)
    drawn = {"num_images": arguments.num_images} if arguments.dataset == "synthetic" else {}
    drawn |= {} if arguments.seed is None else {"seed": arguments.seed}
    options = _placed(options, arguments.data_dir) | drawn | given_options["data"]
    choice = _checked(arguments.dataset, arguments.split, options)
    if arguments.validation_split is None:
        if arguments.validation_dataset or arguments.validation_data_dir or given_options["validation"]:
            raise ValueError("--validation_split is needed to say which split the thresholds are chosen on.")
        return choice, None
    name = arguments.validation_dataset or arguments.dataset
    options = dict(options) if name == arguments.dataset else {}
    options = _placed(options, arguments.validation_data_dir) | given_options["validation"]
    validation = _checked(name, arguments.validation_split, options)
    if validation == choice:
        raise ValueError("Thresholds must not be chosen on the images that they are judged on: another split or data.")
    return choice, validation


def _given_options(given: list[str]) -> dict[str, dict]:
    """What `--data.options...` and `--validation.options...` say, as train.py reads such options."""
    merged = merge_options({"data": {"options": {}}, "validation": {"options": {}}}, given)
    for name, section in merged.items():
        if name not in ("data", "validation"):
            raise ValueError(f"Unknown option --{name}; see --help.")
        if not isinstance(section, dict) or set(section) != {"options"}:
            raise ValueError(f"--{name} takes options of a data set, --{name}.options.NAME VALUE; got {section!r}.")
        if not isinstance(section["options"], dict):
            raise ValueError(f'--{name}.options must be like "{{image_size: 64}}"; got {section["options"]!r}.')
    return {name: section["options"] for name, section in merged.items()}


def _training_options(folder: Path, dataset: str) -> dict:
    """The options with which the model in a folder was trained on a data set; none if it was not, or is not known."""
    path = (folder.parent if is_ensemble(folder) else folder) / "training_config.yaml"
    if not path.is_file():
        return {}
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))["data"]
        return dict(data["options"]) if data["name"] == dataset else {}
    except (yaml.YAMLError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a training run's: {type(error).__name__}: {str(error)[:200]}. Move it away to evaluate "
            "the model without the options of its training."
        ) from error


def _placed(options: dict, data_dir: str | None) -> dict:
    """At another place; what lay beside the old one is not there."""
    if data_dir is None:
        return options
    return {name: value for name, value in options.items() if name not in PLACES} | {"data_dir": data_dir}


def _checked(name: str, split: str, options: dict) -> DataChoice:
    options = {option: value for option, value in options.items() if value is not None}  # null: the default
    check_options(name, options)
    return DataChoice(name, split, options)


if __name__ == "__main__":
    main()
