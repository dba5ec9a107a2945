# Licensed under the Apache License, Version 2.0.
"""Every option of `train.py`, as nested dataclasses."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ..configuration_tier import TierConfig
from ..data import PATH_OPTIONS, SPLITS
from ..data.transforms import AUGMENTATIONS
from ..evaluation import LABEL_POLICIES
from ..evaluation.measures import MEASURES
from ..files import replace_text
from .local_losses import LOCAL_LOSSES


TRACKERS = ("tensorboard", "trackio", "wandb")
OPTIMIZERS = ("adamw", "adam")
SCHEDULES = ("cosine", "constant")
# The metrics by which a checkpoint can be the best, and whether more is better.
BEST_METRICS = {measure.name: measure.larger_is_better for measure in MEASURES if measure.chooses_best}


def option(default, help: str):
    kind = "default_factory" if callable(default) else "default"
    return field(**{kind: default}, metadata={"help": help})


@dataclass
class DataOptions:
    name: str = option("synthetic", "data set, a key of modeling_tier.data.DATASETS")
    options: dict = option(dict, "options of the data set for every split, e.g. data.options.image_size")
    sets: dict = option(
        dict, "several data sets instead, each with its options and a weight: {openi: {weight: 2, data_dir: ...}, ...}"
    )
    train: dict = option(dict, "options of the data set for training alone, e.g. data.train.num_images")
    validation: dict = option(dict, "options of the data set for validation alone")
    template_reports: bool = option(
        False, "whether images without a text get sentences made from their labels, in training and validation"
    )
    augmentation: str = option("none", f"of training pictures: {' | '.join(['none', *AUGMENTATIONS])}")
    subject_share: float = option(1.0, "fraction of the training subjects to train on, drawn by the seed")
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
    image_pooling: str | None = option(None, "global image embedding: cls | mean | first")
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
        None, "number of first layers of the text encoder to freeze, with its embeddings; 0: the embeddings alone"
    )
    vision_layers: int | None = option(None, "the same of the vision encoder; of a convolutional one, stages")


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
    warmup_share: float = option(0.1, "fraction of all steps in which the learning rate rises linearly")
    max_grad_norm: float | None = option(1.0, "gradients are clipped to this norm; null: they are not")


@dataclass
class RegulariserOptions:
    ramp_start: float = option(0.0, "fraction of all steps before which the weights of all local terms are 0")
    ramp_end: float = option(0.0, "fraction of all steps after which they have their full weight; linear in between")
    local_loss: str | None = option(
        None, f"another paper's local loss beside these, to compare with: {' | '.join(LOCAL_LOSSES)}"
    )
    local_weight: float = option(0.1, "weight of regulariser.local_loss; the ramp holds for it, too")


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
    max_skipped_steps: int = option(20, "number of consecutive steps with non-finite gradients that end the run")
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
    keep_best: int = option(1, "number of best checkpoints to keep; more than one: as an ensemble")
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
    """
    Options in which two configurations (as dicts) differ, paths of the data and numbers of processes excepted. An
    option that `before` lacks is newer than it, and counts as its default.
    """
    before, now, defaults = flat(before), flat(now), flat(TrainConfig().to_dict())
    for options in (before, now):  # "runs/start" and "./runs/start" are one folder
        for name in ("model.pretrained", "tokenizer.pretrained"):
            options[name] = str(options.get(name) or "").removeprefix("./")
    names = dict.fromkeys([*now, *before])
    different = [name for name in names if before.get(name, defaults.get(name)) != now.get(name)]
    return [name for name in different if name.rpartition(".")[2] not in (*PATH_OPTIONS, "num_workers", "num_proc")]


def tier_options(model: ModelOptions) -> dict:
    """The options that go to [`TierConfig`] as they are; those left at null keep its defaults."""
    names = {f.name for f in dataclasses.fields(TierConfig)} - {"vision_config", "text_config"}
    return {k: v for k, v in dataclasses.asdict(model).items() if k in names and v is not None}
