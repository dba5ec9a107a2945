# Licensed under the Apache License, Version 2.0.
"""Every option of `train.py`: nested dataclasses, read from one YAML file and from `--section.option value`."""

import copy
import dataclasses
import difflib
import importlib.util
import math
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import yaml
from transformers import AutoConfig, PreTrainedConfig

from ..configuration_tier import TERMS, TierConfig
from ..data import PATH_OPTIONS, SPLITS, check_options
from ..data.transforms import AUGMENTATIONS
from ..encoders_tier import max_text_length
from ..evaluation import LABEL_POLICIES, has_prompts, load_prompts
from ..evaluation.measures import MEASURES
from ..files import replace_text
from .option_values import parse_value, read_options


TRACKERS = ("tensorboard", "trackio", "wandb")
OPTIMIZERS = ("adamw", "adam")
SCHEDULES = ("cosine", "constant")
# The metrics by which a checkpoint can be the best, and whether more is better.
BEST_METRICS = {measure.name: measure.larger_is_better for measure in MEASURES if measure.chooses_best}


# Options of earlier versions, and what holds instead.
_REMOVED = {
    "optimizer.min_lr_share": "the cosine ends at 0.01 of optimizer.lr",
    "regulariser.warn_negative_share": "training warns as the report does, above 0.95",
}
MAX_IMAGE_SIZE = 4096
MAX_PROJECTION_DIM = 65_536
MAX_WORKERS = 1024


def option(default, help: str):
    kind = "default_factory" if callable(default) else "default"
    return field(**{kind: default}, metadata={"help": help})


@dataclass
class DataOptions:
    name: str = option("synthetic", "data set, a key of modeling_tier.data.DATASETS")
    options: dict = option(dict, "options of the data set for every split, e.g. data.options.image_size")
    train: dict = option(dict, "options of the data set for training alone, e.g. data.train.num_images")
    validation: dict = option(dict, "options of the data set for validation alone")
    augmentation: str = option("none", f"of training pictures: {' | '.join(['none', *AUGMENTATIONS])}")
    subject_share: float = option(1.0, "share of the training subjects to train on, drawn by the seed")
    one_image_per_study: bool = option(
        False, "whether an epoch takes each study once, with another one of its images each time"
    )
    shuffle_buffer: int = option(1000, "pairs among which a stream is shuffled")
    max_text_tokens: int = option(
        128, "texts are truncated to this many tokens, special ones included, or to what a pretrained model takes"
    )
    num_workers: int = option(0, "processes that prepare batches beside the training process")
    max_unreadable: float = option(0.01, "largest fraction of the training pictures that may be unreadable")


@dataclass
class ModelOptions:
    pretrained: str | None = option(None, "folder or Hub id of a TIER model or a CLIPModel to start from")
    image_size: int | None = option(None, "pixels a side of the input; needed unless a pretrained model says it")
    image_options: dict = option(
        dict, "options that replace the image processor's, e.g. model.image_options.image_mean"
    )
    vision_config: dict = option(dict, "configuration of a new vision encoder, with its model_type")
    text_config: dict = option(dict, "configuration of a new text encoder, with its model_type")
    projection_dim: int | None = option(None, "dimension of the joint space")
    projection: str | None = option(None, "heads of the joint space: linear | mlp")
    image_pooling: str | None = option(None, "global image embedding: cls | mean")
    lambda_token: float | None = option(None, "weight of the token term; null: TierConfig's or the model's own")
    lambda_patch: float | None = option(None, "weight of the patch term; null: TierConfig's or the model's own")
    entropy_temperature: float | None = option(None, "divides the cosines in the entropies")
    count_special_tokens: bool | None = option(None, "whether special tokens count in the entropies")
    logit_scale_init_value: float | None = option(None, "initial value of logit_scale")


@dataclass
class TokenizerOptions:
    pretrained: str | None = option(None, "folder or Hub id; null: the pretrained model's, or a new one is trained")
    vocab_size: int = option(2000, "largest vocabulary of a tokenizer made from the training texts")


@dataclass
class FreezeOptions:
    patterns: list = option(list, "names of modules or parameters that are not trained, with *, ? and [0-7]")
    text_layers: int | None = option(
        None, "so many first layers of the text encoder, and its embeddings; 0: these alone"
    )
    vision_layers: int | None = option(None, "the same for the vision encoder; of a convolutional one, so many stages")


@dataclass
class OptimizerOptions:
    name: str = option(
        "adamw", f"{' | '.join(OPTIMIZERS)}; adam: weight decay is added to the gradients, of everything"
    )
    schedule: str = option("cosine", f"{' | '.join(SCHEDULES)}, after the warm-up")
    lr: float = option(1e-4, "largest learning rate; not scaled by the number of processes")
    weight_decay: float = option(0.05, "of matrices and convolutions; biases, norms, embeddings, logit_scale: none")
    beta1: float = option(0.9, "decay of the mean of the gradients")
    beta2: float = option(0.98, "decay of the mean of their squares")
    warmup_share: float = option(0.1, "share of all steps in which the learning rate rises linearly")
    max_grad_norm: float | None = option(1.0, "gradients are clipped to this norm; null: they are not")


@dataclass
class RegulariserOptions:
    ramp_start: float = option(0.0, "share of all steps before which both lambdas are 0")
    ramp_end: float = option(0.0, "share of all steps after which they have their full weight; linear in between")


@dataclass
class TrainingOptions:
    epochs: int = option(10, "passes over the training set")
    steps_per_epoch: int | None = option(None, "optimiser steps of an epoch; a stream needs it, best to read it all")
    batch_size: int = option(64, "pairs per process and step; negatives come from all processes")
    gradient_accumulation_steps: int = option(1, "batches per optimiser step; negatives stay within one batch")
    chunk_size: int | None = option(
        None, "pairs embedded at once; smaller than batch_size: the same step in less memory, by gradient caching"
    )
    gradient_checkpointing: bool = option(False, "whether activations are computed again in the backward pass")
    compile: bool = option(False, "whether the layers of both encoders are compiled (torch.compile)")
    mixed_precision: str = option("no", "no | bf16 | fp16")
    log_every: int = option(10, "optimiser steps between two lines of the log")
    save_every_steps: int | None = option(None, "optimiser steps between checkpoints; null: after each epoch")
    keep_checkpoints: int = option(1, "newest checkpoints to keep, beside the best; older than the last as step-N")
    resume_from_checkpoint: str | None = option(
        None, "'auto': where the last complete checkpoint is, else from the start; 'last'; or a checkpoint's folder"
    )
    max_skipped_steps: int = option(20, "so many steps in a row without a finite gradient end the run")
    overwrite: bool = option(False, "whether to replace an earlier run in output_dir")
    trackers: list = option(list, f"any of {list(TRACKERS)}; log.jsonl is always written")
    progress: bool = option(True, "whether to show progress bars")


@dataclass
class EvaluationOptions:
    every_epochs: int = option(1, "epochs between two evaluations; the last one is always evaluated")
    batch_size: int = option(128, "pairs a step")
    dataset: str | None = option(None, "data set of the zero-shot metrics; null: the validation part of data.name")
    split: str = option("validation", f"of evaluation.dataset: {' | '.join(SPLITS)}")
    options: dict = option(dict, "options of evaluation.dataset, e.g. evaluation.options.data_dir")
    best_metric: str = option("auroc", f"the best checkpoint's metric, of {list(BEST_METRICS)}")
    keep_best: int = option(1, "so many of the best checkpoints are kept; more than one: as an ensemble")
    prompts: str | None = option(None, "sentences for zero-shot: a YAML file; null: the data set's own, if any")
    uncertain: str = option("ignore", f"what a label of -1 counts as: {' | '.join(LABEL_POLICIES)}")
    blank: str = option("ignore", f"what a label that is not mentioned counts as: {' | '.join(LABEL_POLICIES)}")


@dataclass
class TrainConfig:
    output_dir: str = option("runs/tier", "folder of the run: in the end a complete model folder")
    seed: int = option(0, "of weights, data order and dropout")
    data: DataOptions = option(DataOptions, "")
    model: ModelOptions = option(ModelOptions, "")
    tokenizer: TokenizerOptions = option(TokenizerOptions, "")
    freeze: FreezeOptions = option(FreezeOptions, "")
    optimizer: OptimizerOptions = option(OptimizerOptions, "")
    regulariser: RegulariserOptions = option(RegulariserOptions, "")
    training: TrainingOptions = option(TrainingOptions, "")
    evaluation: EvaluationOptions = option(EvaluationOptions, "")

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    def save(self, path: Path) -> None:
        replace_text(path, yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True))


def load_config(path: str | Path | None, overrides: list[str] = ()) -> TrainConfig:
    """
    Read and check a configuration; nothing is loaded or written.

    Args:
        path: YAML file, or None for the defaults.
        overrides: `["--section.option", "value", ...]`, values in YAML's notation.

    Raises:
        ValueError: for an unknown key, a wrong type or an impossible combination, with the key and what is allowed.
    """
    content = {} if path is None else read_options(path)
    content = merge_options(content, overrides)
    for name in _REMOVED:
        section, option_name = name.split(".")
        if isinstance(content.get(section), dict) and option_name in content[section]:
            raise ValueError(f"{name} is no option any more: {_REMOVED[name]}. Delete its line.")
    config = _build(TrainConfig, content, "")
    if path is None and not (config.model.pretrained or config.model.vision_config or config.model.text_config):
        raise ValueError("No model is described: name a configuration, such as --config configs/demo.yaml.")
    check_config(config)
    return config


def check_config(config: TrainConfig) -> None:
    """Raise ValueError for values and combinations that cannot work."""
    _check_ranges(config)
    for split in ("train", "validation"):
        try:
            check_options(config.data.name, config.data.options | getattr(config.data, split))
        except ValueError as error:
            raise ValueError(f"data.options or data.{split}: {error}") from None
    training, evaluation = config.training, config.evaluation
    if evaluation.dataset is not None:
        try:
            check_options(evaluation.dataset, evaluation.options)
        except ValueError as error:
            raise ValueError(f"evaluation.dataset or evaluation.options: {error}") from None
    elif evaluation.options:
        raise ValueError("evaluation.options are those of evaluation.dataset, which is not set.")
    config_prompts(config)
    _one_of("data.augmentation", config.data.augmentation, ("none", *AUGMENTATIONS))
    _one_of("evaluation.split", evaluation.split, SPLITS)
    if evaluation.dataset is None and evaluation.split != "validation":
        raise ValueError("evaluation.split is that of evaluation.dataset, which is not set.")
    for name in ("uncertain", "blank"):
        _one_of(f"evaluation.{name}", getattr(evaluation, name), LABEL_POLICIES)
    _one_of("optimizer.name", config.optimizer.name, OPTIMIZERS)
    _one_of("optimizer.schedule", config.optimizer.schedule, SCHEDULES)
    if not all(isinstance(pattern, str) for pattern in config.freeze.patterns):
        raise ValueError(f"freeze.patterns must be a list of texts; got {config.freeze.patterns}.")
    _one_of("training.mixed_precision", training.mixed_precision, ("no", "bf16", "fp16"))
    _one_of("evaluation.best_metric", evaluation.best_metric, BEST_METRICS)
    for tracker in training.trackers:
        _one_of("training.trackers", tracker, TRACKERS)
        if importlib.util.find_spec(tracker) is None:
            raise ValueError(f"training.trackers: {tracker} is not installed; pip install {tracker}")
    if training.resume_from_checkpoint not in (None, "auto") and training.overwrite:
        raise ValueError(
            "training.overwrite replaces the run that training.resume_from_checkpoint names: set one of them, or the "
            "latter to auto, which goes on with a run of the same options and replaces any other."
        )
    if config.regulariser.ramp_end < config.regulariser.ramp_start:
        raise ValueError("regulariser.ramp_end must not be smaller than regulariser.ramp_start.")
    if config.model.image_size is not None and "crop_size" in config.model.image_options:
        raise ValueError("model.image_size and model.image_options.crop_size say the same: leave one out.")
    if not config.model.pretrained:
        _check_new_model(config)
    elif config.model.vision_config or config.model.text_config:
        raise ValueError("model.pretrained has its own encoders: leave out model.vision_config and model.text_config.")
    elif config.model.logit_scale_init_value is not None:
        raise ValueError("model.pretrained has its own logit_scale: leave out model.logit_scale_init_value.")
    elif config.model.projection or config.model.projection_dim:
        raise ValueError("model.pretrained has its own projections: leave out model.projection and projection_dim.")


def config_prompts(config: TrainConfig, labels: Iterable[str] | None = None) -> dict[str, dict[str, list[str]]]:
    """
    The sentences of the evaluation; none for a data set that has none of its own.

    Args:
        config: a configuration.
        labels: names of the findings that the data set knows, where they are known already.
    """
    evaluation = config.evaluation
    dataset = evaluation.dataset or config.data.name
    if not evaluation.prompts and not has_prompts(dataset):
        if evaluation.best_metric == "auroc":
            raise ValueError(
                f"evaluation.best_metric: auroc needs sentences, and {dataset} has none: set evaluation.prompts, or "
                "best_metric to contrastive_loss."
            )
        return {}
    try:
        return load_prompts(evaluation.prompts or dataset, labels)
    except ValueError as error:
        raise ValueError(f"evaluation.prompts: {error}") from None


def flat(content: dict, prefix: str = "") -> dict:
    """Nested keys joined by dots; what is not a number, a text or a flag becomes a text."""
    result = {}
    for key, value in content.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return result


def changed_options(before: dict, now: dict) -> list[str]:
    """Options in which two configurations (as dicts) differ, whatever the folders of the data and its workers."""
    before, now = flat(before), flat(now)
    different = [name for name in dict.fromkeys([*now, *before]) if before.get(name) != now.get(name)]
    return [name for name in different if name.rpartition(".")[2] not in (*PATH_OPTIONS, "num_workers")]


def tier_options(model: ModelOptions) -> dict:
    """The options that go to [`TierConfig`] as they are; those left at null keep its defaults."""
    names = {f.name for f in dataclasses.fields(TierConfig)} - {"vision_config", "text_config"}
    return {k: v for k, v in dataclasses.asdict(model).items() if k in names and v is not None}


def describe_options() -> str:
    """Every option with its default and what it is, for `train.py --list_options`."""
    lines = []
    for section in dataclasses.fields(TrainConfig):
        if not dataclasses.is_dataclass(section.type):
            lines.append(f"  --{section.name} ({section.default}): {section.metadata['help']}")
            continue
        for entry in dataclasses.fields(section.type):
            default = entry.default_factory() if entry.default is dataclasses.MISSING else entry.default
            default = "null" if default is None else default
            lines.append(f"  --{section.name}.{entry.name} ({default}): {entry.metadata['help']}")
    return "\n".join(lines)


def parse_options(arguments: list[str]) -> list[tuple[str, object]]:
    """`--name value` or `--name=value`; texts such as paths as they are, other values in YAML's notation."""
    pairs = []
    while arguments:
        key = arguments.pop(0)
        if not key.startswith("--"):
            raise ValueError(f"Expected --section.option, got {key!r}.")
        key, equals, value = key[2:].partition("=")
        if not equals:
            if not arguments:
                raise ValueError(f"--{key} needs a value.")
            value = arguments.pop(0)
        hint = _text_options().get(key)
        is_text = hint is not None or key.rpartition(".")[2] in PATH_OPTIONS
        pairs.append((key, parse_value(value, is_text, may_be_null=hint is not str)))
    return pairs


@cache
def _text_options() -> dict[str, object]:
    """The options that are texts, with their type: `str`, or with null for none."""
    options = {}
    for section, hint in typing.get_type_hints(TrainConfig).items():
        entries = typing.get_type_hints(hint).items() if dataclasses.is_dataclass(hint) else [("", hint)]
        names = {f"{section}.{name}".rstrip("."): kind for name, kind in entries}
        options |= {name: kind for name, kind in names.items() if kind in (str, str | None)}
    return options


def merge_options(content: dict, arguments: Iterable[str]) -> dict:
    """
    Nested options with those of a command line, later ones first: the one way in which all our commands read them.

    Args:
        content: options by section, such as a YAML file's; not changed.
        arguments: `["--section.option", "value", ...]` as for [`parse_options`]. A value may itself hold options, such
            as `--data.options "{image_size: 64}"`, and replaces all that stood there before.
    """
    merged = copy.deepcopy(content)
    for key, value in parse_options(list(arguments)):
        *parents, last = key.split(".")
        target = merged
        for name in parents:
            target = target.setdefault(name, {})
            if not isinstance(target, dict):
                raise ValueError(f"--{key}: {name!r} is an option, not a section.")
        target[last] = value
    return merged


def _build(cls, content: dict, prefix: str):
    known = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    values = {}
    for name, value in content.items():
        key = f"{prefix}{name}"
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {prefix}{near[0]!s}?" if near else ""
            raise ValueError(f"Unknown option {key!r}.{hint} Known here: {list(known)}.")
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, dict):
                raise ValueError(
                    f"{key!r} is a section with the options {[f.name for f in dataclasses.fields(hints[name])]}."
                )
            values[name] = _build(hints[name], value, f"{key}.")
        else:
            values[name] = _typed(key, value, hints[name])
    return cls(**values)


def _typed(key: str, value, hint):
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in allowed:
        return None
    if float in allowed and not isinstance(value, bool):
        try:
            return float(value)  # YAML takes 1e-4 for a text
        except (TypeError, ValueError):
            pass
    if key == "training.mixed_precision" and value is False:
        return "no"  # which YAML takes for false
    for kind in allowed:
        if kind is not float and type(value) is kind:
            return value
    names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in allowed)
    raise ValueError(f"{key} must be {names}; got {value!r}.")


def _one_of(key: str, value, allowed) -> None:
    if value not in allowed:
        raise ValueError(f"{key} must be one of {list(allowed)}; got {value!r}.")


def _check_ranges(config: TrainConfig) -> None:
    least_one = (
        "steps_per_epoch",
        "epochs",
        "batch_size",
        "gradient_accumulation_steps",
        "chunk_size",
        "log_every",
        "save_every_steps",
        "keep_checkpoints",
        "max_skipped_steps",
    )
    ranges = {f"training.{name}": (1, None) for name in least_one}
    ranges |= {f"evaluation.{name}": (1, None) for name in ("every_epochs", "batch_size", "keep_best")}
    ranges |= {f"freeze.{name}": (0, None) for name in ("text_layers", "vision_layers")}
    ranges |= {"data.subject_share": (0, 1), "data.max_unreadable": (0, 1)}
    ranges |= {"data.shuffle_buffer": (1, None)}
    ranges |= {
        "data.max_text_tokens": (3, None),
        "data.num_workers": (0, MAX_WORKERS),
        "tokenizer.vocab_size": (10, None),
    }
    ranges |= {"seed": (0, 2**32 - 1), "model.image_size": (1, MAX_IMAGE_SIZE)}
    ranges |= {"model.projection_dim": (1, MAX_PROJECTION_DIM), "model.logit_scale_init_value": (-100, 100)}
    ranges |= {f"model.{weight}": (0, None) for weight in TERMS.values()}
    ranges |= {f"regulariser.{name}": (0, 1) for name in ("ramp_start", "ramp_end")}
    ranges |= {f"optimizer.{name}": (0, 1) for name in ("beta1", "beta2", "warmup_share")}
    ranges |= {"optimizer.weight_decay": (0, None), "optimizer.lr": (0, None), "optimizer.max_grad_norm": (0, None)}
    for key, (low, high) in ranges.items():
        value = config
        for name in key.split("."):
            value = getattr(value, name)
        if value is not None and not (value >= low and (value < math.inf if high is None else value <= high)):
            above = " and finite" if value == math.inf else "" if high is None else f" and at most {high}"
            raise ValueError(f"{key} must be at least {low}{above}; got {value}.")
    for name in ("beta1", "beta2"):
        if getattr(config.optimizer, name) == 1:
            raise ValueError(f"optimizer.{name} must be less than 1.")
    for key in ("optimizer.lr", "optimizer.max_grad_norm", "data.subject_share"):
        section, name = key.split(".")
        if getattr(getattr(config, section), name) == 0:
            raise ValueError(f"{key} must be positive.")


def _check_new_model(config: TrainConfig) -> None:
    model = config.model
    for name in ("vision_config", "text_config"):
        if "model_type" not in getattr(model, name):
            raise ValueError(f"model.{name} needs its model_type (or set model.pretrained), e.g. model_type: bert.")
    if model.image_size is None:
        raise ValueError("model.image_size is needed for a new model.")
    own_size = model.vision_config.get("image_size")
    if own_size not in (None, model.image_size):
        raise ValueError(f"model.image_size is {model.image_size} but model.vision_config.image_size {own_size}.")
    try:
        # Special tokens are known only when there is a tokenizer.
        built = TierConfig(
            vision_config=model.vision_config,
            text_config=model.text_config,
            special_token_ids=[0],
            **tier_options(model),
        )
    except Exception as error:  # transformers has errors of its own for a wrong type
        raise ValueError(f"model: {' '.join(str(error).split())}") from None
    for name, encoder in (("vision_config", built.vision_config), ("text_config", built.text_config)):
        _check_encoder_options(f"model.{name}", getattr(model, name), encoder)
    longest = max_text_length(built.text_config)
    if longest is not None and config.data.max_text_tokens > longest:
        raise ValueError(
            f"data.max_text_tokens is {config.data.max_text_tokens}, but model.text_config takes at most {longest} "
            f"(max_position_embeddings {built.text_config.max_position_embeddings})."
        )


def _check_encoder_options(section: str, options: dict, encoder: PreTrainedConfig) -> None:
    """transformers takes every name, so that a misspelt one would change nothing, in silence."""
    known = {"model_type", *(entry.name for entry in dataclasses.fields(encoder)), *encoder.attribute_map}
    known |= {name for name in encoder.to_dict() if name not in options}
    for name in options:
        if name not in known and not hasattr(type(encoder), name):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {section}.{near[0]}?" if near else ""
            raise ValueError(f"Unknown option '{section}.{name}' of {encoder.model_type}.{hint}")


def pretrained_config(model: ModelOptions) -> TierConfig | None:
    """The configuration of a pretrained TIER model with the options of this run; None for a CLIPModel."""
    if AutoConfig.from_pretrained(model.pretrained).model_type == "clip":
        return None
    return TierConfig.from_dict(TierConfig.from_pretrained(model.pretrained).to_dict() | tier_options(model))
