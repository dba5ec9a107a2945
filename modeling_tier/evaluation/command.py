# Licensed under the Apache License, Version 2.0.
"""From the command line of `evaluate_zeroshot.py` to the configuration of an evaluation."""

import argparse
from pathlib import Path

import yaml

from ..data import PATH_OPTIONS, check_options
from ..loading import check_model_name
from ..training.configuration import merge_options
from .run import DataChoice, EvaluationConfig
from .zero_shot import is_ensemble


def configuration(arguments: argparse.Namespace, given: list[str]) -> EvaluationConfig:
    """
    The configuration of an evaluation, with everything checked before anything is loaded.

    Args:
        arguments: the options of `evaluate_zeroshot.py`.
        given: the other ones, `["--data.options.NAME", "value", ...]`.

    Raises:
        ValueError: for a model, an option or a data set that does not exist.
    """
    if not arguments.model:
        if not arguments.scores:
            raise ValueError("--model or --scores is needed: what is evaluated.")
        if arguments.output_dir is None:
            raise ValueError("--output_dir is needed for scores of a file.")
    first = Path((arguments.model or arguments.scores)[0])
    if arguments.output_dir is None and not first.is_dir():
        check_model_name(arguments.model[0])
        raise ValueError("--output_dir is needed for a model that is not a folder.")
    data, validation = data_options(arguments, given)
    return EvaluationConfig(
        models=arguments.model,
        scores=arguments.scores,
        output_dir=Path(arguments.output_dir or first / "evaluation"),
        data=data,
        validation=validation,
        **{
            name: getattr(arguments, name)
            for name in (
                *("protocol", "prompts", "uncertain", "blank", "resamples", "batch_size"),
                *("dtype", "num_workers", "device", "examples", "smooth_maps", "image_ids", "validation_image_ids"),
                "sentence_retrieval",
            )
        },
    )


def data_options(arguments: argparse.Namespace, given: list[str]) -> tuple[DataChoice, DataChoice | None]:
    """The data set, with the options of the first model's own training on it and what the command line says."""
    given_options = _given_options(given)
    options = {}
    if arguments.model and not arguments.suite:  # a suite has the same images whatever a model was trained on
        options = _training_options(Path(arguments.model[0]), arguments.dataset)
    drawn = {"num_images": arguments.num_images} if arguments.dataset == "synthetic" else {}
    drawn |= {} if arguments.seed is None else {"seed": arguments.seed}
    drawn |= {} if arguments.max_images is None else {"max_images": arguments.max_images}
    options = _placed(options, arguments.data_dir) | drawn | given_options["data"]
    choice = _checked(arguments.dataset, arguments.split, options)
    if arguments.validation_split is None:
        given = arguments.validation_dataset, arguments.validation_data_dir, arguments.validation_image_ids
        if any(given) or given_options["validation"]:
            raise ValueError("--validation_split is needed to say which split the thresholds are chosen on.")
        return choice, None
    name = arguments.validation_dataset or arguments.dataset
    options = dict(options) if name == arguments.dataset else {}
    options = _placed(options, arguments.validation_data_dir) | given_options["validation"]
    validation = _checked(name, arguments.validation_split, options)
    if validation == choice and not arguments.validation_image_ids:
        raise ValueError("Thresholds must not be chosen on the images that they are judged on: another split or data.")
    return choice, validation


def _given_options(given: list[str]) -> dict[str, dict]:
    """What `--data.options...` and `--validation.options...` say, as train.py reads such options."""
    merged = merge_options({"data": {"options": {}}, "validation": {"options": {}}}, given)
    for name, section in merged.items():
        if name not in ("data", "validation"):
            raise ValueError(f"Unknown option --{name}; see --help.")
        if not isinstance(section, dict):
            raise ValueError(f"--{name} takes options of a data set, --{name}.options.NAME VALUE; got {section!r}.")
        for unknown in section.keys() - {"options"}:
            raise ValueError(
                f"Unknown option --{name}.{unknown}; options of the data set are given as --{name}.options.NAME VALUE."
            )
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
    """In another folder: paths of files beside the old one do not hold there."""
    if data_dir is None:
        return options
    return {name: value for name, value in options.items() if name not in PATH_OPTIONS} | {"data_dir": data_dir}


def _checked(name: str, split: str, options: dict) -> DataChoice:
    options = {option: value for option, value in options.items() if value is not None}  # null: the default
    check_options(name, options)
    return DataChoice(name, split, options)
