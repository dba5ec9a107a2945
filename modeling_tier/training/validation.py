# Licensed under the Apache License, Version 2.0.
"""The evaluation after an epoch: its metrics, the number by which the best model is chosen, a line for the screen."""

import math
from functools import partial

from datasets import Dataset

from ..evaluation import evaluate_zero_shot
from ..evaluation.measures import BY_NAME
from ..modeling_tier import TierModel
from ..processing_tier import TierProcessor
from .configuration_checks import config_no_finding
from .options import TrainConfig


def validation_metrics(
    model: TierModel,
    processor: TierProcessor,
    validation_pairs: Dataset,
    zero_shot_set: Dataset,
    prompts: dict[str, dict[str, list[str]]],
    config: TrainConfig,
) -> dict:
    """
    The metrics of [`evaluate_zero_shot`] on the validation pairs; those of `evaluation.dataset`, if there is one,
    under its name.

    Raises:
        ValueError: if the loss is not finite.
    """
    evaluation = config.evaluation
    evaluate = partial(
        evaluate_zero_shot,
        model,
        processor,
        batch_size=evaluation.batch_size,
        progress=config.training.progress,
        uncertain=evaluation.uncertain,
        blank=evaluation.blank,
    )
    sentences = {"prompts": prompts, "no_finding": config_no_finding(config)}
    if evaluation.dataset:
        metrics, _ = evaluate(dataset=validation_pairs, prompts={}, localisation=False)
        metrics[evaluation.dataset], _ = evaluate(dataset=zero_shot_set, **sentences)
    else:
        metrics, _ = evaluate(dataset=validation_pairs, **sentences)
    if not math.isfinite(metrics["loss"]):
        raise ValueError(
            f"The validation loss is {metrics['loss']}. Likely causes: optimizer.lr too large; "
            "training.mixed_precision fp16 (try bf16); broken validation pictures."
        )
    return metrics


def metric_value(metrics: dict, name: str, dataset: str | None = None) -> float:
    """The number that `evaluation.best_metric` means, larger being better; `dataset` is `evaluation.dataset`."""
    measure = BY_NAME[name]
    value = measure.mean_of(metrics[dataset] if dataset and not measure.of_pairs else metrics)
    if value is None:
        return -math.inf
    return value if measure.larger_is_better else -value


def summary(epoch: int, metrics: dict, dataset: str | None) -> str:
    """One line on the metrics of an epoch."""
    recall = metrics["retrieval"]["image_to_text"]
    zero_shot = metrics[dataset] if dataset else metrics
    line = (
        f"epoch {epoch}: loss {metrics['loss']:.3f} "
        f"(contrastive {metrics['contrastive_loss']:.3f}), token entropy {metrics['token_entropy']:.3f}, "
        f"patch entropy {metrics['patch_entropy']:.3f}, "
        f"R@1/5/10 {recall['r@1']:.3f}/{recall['r@5']:.3f}/{recall['r@10']:.3f}"
    )
    line += f"; {dataset}" if dataset else ""
    if "auroc" in zero_shot:  # not without sentences
        line += f", AUROC {_number(zero_shot['auroc']['mean'])}"
    if "localisation" in zero_shot:
        localisation = zero_shot["localisation"]
        line += f", pointing {_number(localisation['pointing_game']['mean'])}"
        line += f", CNR {_number(localisation['cnr']['mean'])}"
    return line


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:z.3f}"
