# Licensed under the Apache License, Version 2.0.
"""Options that cannot work, each with what is allowed; nothing is loaded or written."""

import dataclasses
import difflib
import importlib.util
import math
from collections.abc import Iterable

from transformers import PreTrainedConfig

from ..configuration_tier import TERMS, TierConfig
from ..data import DATASETS, SPLITS, check_options
from ..data.transforms import AUGMENTATIONS
from ..encoders_tier import max_text_length
from ..evaluation import LABEL_POLICIES, load_no_finding, load_prompts, own_prompts
from .local_losses import LOCAL_LOSSES, SENTENCE_LOSSES
from .mixture import check_sets
from .options import BEST_METRICS, OPTIMIZERS, SCHEDULES, TRACKERS, DataOptions, TrainConfig, tier_options


MAX_IMAGE_SIZE = 4096
MAX_PROJECTION_DIM = 65_536
MAX_WORKERS = 1024


def check_config(config: TrainConfig) -> None:
    """Raise ValueError for values and combinations that cannot work."""
    _check_ranges(config)
    _check_data(config.data)
    training, evaluation = config.training, config.evaluation
    if evaluation.dataset is not None:
        _one_of("evaluation.dataset", evaluation.dataset, DATASETS)
        try:
            check_options(evaluation.dataset, evaluation.options)
        except ValueError as error:
            raise ValueError(f"evaluation.options: {error}") from None
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
    _check_local_loss(config)
    if config.regulariser.ramp_end < config.regulariser.ramp_start:
        raise ValueError("regulariser.ramp_end must not be smaller than regulariser.ramp_start.")
    if config.model.image_size is not None and "crop_size" in config.model.image_options:
        raise ValueError("model.image_size and model.image_options.crop_size say the same: delete one of them.")
    if not config.model.pretrained:
        _check_new_model(config)
    elif config.model.vision_config or config.model.text_config:
        raise ValueError("model.pretrained has its own encoders: delete model.vision_config and model.text_config.")
    elif config.model.logit_scale_init_value is not None:
        raise ValueError("model.pretrained has its own logit_scale: delete model.logit_scale_init_value.")
    elif config.model.projection or config.model.projection_dim:
        raise ValueError("model.pretrained has its own projections: delete model.projection and model.projection_dim.")


def _check_local_loss(config: TrainConfig) -> None:
    name, training = config.regulariser.local_loss, config.training
    if name is None:
        return
    _one_of("regulariser.local_loss", name, LOCAL_LOSSES)
    if config.regulariser.local_weight == 0:
        raise ValueError("regulariser.local_weight must be positive; without a local loss leave local_loss at null.")
    in_chunks = training.chunk_size is not None and training.chunk_size < training.batch_size
    if in_chunks and name in SENTENCE_LOSSES:
        raise ValueError(
            f"regulariser.local_loss {name} embeds the sentences of the whole batch at once: delete "
            "training.chunk_size. Less memory takes training.gradient_checkpointing, or a smaller training.batch_size."
        )


def _check_data(data: DataOptions) -> None:
    if data.sets:
        check_sets(data)
        return
    _one_of("data.name", data.name, DATASETS)
    for split in ("train", "validation"):
        try:
            check_options(data.name, data.options | getattr(data, split))
        except ValueError as error:
            raise ValueError(f"data.options or data.{split}: {error}") from None


def config_prompts(config: TrainConfig, labels: Iterable[str] | None = None) -> dict[str, dict[str, list[str]]]:
    """
    The sentences of the evaluation; none for a data set that has none of its own.

    Args:
        config: a configuration.
        labels: names of the findings that the data set knows, where they are known already.
    """
    evaluation, (dataset, prompts) = config.evaluation, _source_of_prompts(config)
    if not prompts:
        if evaluation.best_metric == "auroc":
            raise ValueError(
                f"evaluation.best_metric: auroc needs sentences, and {dataset} has none: set evaluation.prompts, or "
                "best_metric to contrastive_loss."
            )
        return {}
    try:
        return load_prompts(prompts, labels)
    except ValueError as error:
        raise ValueError(f"evaluation.prompts: {error}") from None


def config_no_finding(config: TrainConfig) -> list[str]:
    """The sentences of the evaluation for the absence of any finding."""
    return load_no_finding(_source_of_prompts(config)[1])


def _source_of_prompts(config: TrainConfig) -> tuple[str, str | None]:
    """The data set of the evaluation, and the name or file of its sentences."""
    evaluation = config.evaluation
    dataset = evaluation.dataset or ("data.sets" if config.data.sets else config.data.name)
    options = evaluation.options if evaluation.dataset else config.data.options | config.data.validation
    return dataset, evaluation.prompts or own_prompts(dataset, options)


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
    ranges |= {"regulariser.local_weight": (0, None)}
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
