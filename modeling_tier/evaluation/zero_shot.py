# Licensed under the Apache License, Version 2.0.
"""Zero-shot evaluation of a model on image-report pairs, by the protocol of arXiv 2212.06710."""

import json
import math
import reprlib
from pathlib import Path

import evaluate
import numpy as np
import torch
from datasets import Dataset

from ..loading import check_model_name
from ..modeling_tier import TierModel
from ..processing_tier import TierProcessor
from .localisation import MAPS, PLACES, RESOLUTIONS, variant_name
from .protocols import PROTOCOLS
from .scoring import join_parts, score
from .sparsity import peak_spread, top_share


# What an uncertain or a blank label counts as.
LABEL_POLICIES = {"ignore": math.nan, "zeros": 0.0, "ones": 1.0}

ENSEMBLE_FILE = "ensemble.json"

_METRICS = Path(__file__).parent / "metrics"


def is_ensemble(folder: Path) -> bool:
    """Whether a folder has an `ensemble.json`, which lists the folders of its models, relative to it."""
    return (folder / ENSEMBLE_FILE).is_file()


def member_folders(name_or_path: str) -> dict[str, str]:
    """The folders of an ensemble's models by name; else the model itself."""
    folder = Path(name_or_path)
    if is_ensemble(folder):
        return {name: str(folder / name) for name in _ensemble_names(folder)}
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is neither a model (no config.json) nor an ensemble (no {ENSEMBLE_FILE}).")
    check_model_name(name_or_path)
    return {folder.name: name_or_path}


def _ensemble_names(folder: Path) -> list[str]:
    file = folder / ENSEMBLE_FILE
    try:
        names = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON file: {error}") from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        start = reprlib.repr(names)[:200]
        raise ValueError(f"{file} must be a list of at least one name of a folder beside it; got {start}.")
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{file}: {name!r} leads out of the folder: its members must lie in it.")
        if names.count(name) > 1 or not (folder / name / "config.json").is_file():
            why = "stands twice" if names.count(name) > 1 else "is no model's folder (no config.json)"
            raise ValueError(f"{file}: {name!r} {why}.")
    return names


def evaluate_zero_shot(
    model: TierModel,
    processor: TierProcessor,
    dataset: Dataset,
    prompts: dict[str, dict[str, list[str]]],
    batch_size: int = 64,
    localisation: bool = True,
    progress: bool = True,
    uncertain: str = "ignore",
    blank: str = "ignore",
    protocol: str = "tier",
) -> tuple[dict, dict]:
    """
    Evaluate a model on pairs, on pictures with labels, or both: plain numbers, without intervals.

    Args:
        model: the model; its training mode is restored afterwards.
        processor: its processor.
        dataset: rows as [`~data.load_pairs`] gives them. Without texts, what needs a text is left out.
        prompts: sentences by finding, as [`load_prompts`] gives them for the protocol; each finding must be among the
            labels. Empty: no classification.
        batch_size: pairs a step.
        localisation: whether to compare maps with the places in `regions`, where the data set has them.
        progress: whether to show a bar.
        uncertain: what a label of -1 counts as: "ignore" (as the authors of arXiv 2212.06710 do), "zeros" or "ones".
        blank: likewise for a finding that is not mentioned.
        protocol: a key of `PROTOCOLS`, which says what the score of a finding is.

    Returns:
        what [`summarise`] gives.

    Raises:
        ValueError: if the data set is empty or a stream, a finding has no label, more than 1% of the images cannot be
            read, or the model gives NaN (with the image's id).
    """
    check_evaluation(dataset, prompts, uncertain, blank)
    temperature = temperature_of(model)
    parts = score(model, processor, dataset, prompts, (), batch_size, localisation, progress=progress)
    return summarise(
        join_parts(parts), dataset, list(prompts), protocol, temperature, uncertain=uncertain, blank=blank
    )


def check_evaluation(dataset: Dataset, prompts: dict, uncertain: str = "ignore", blank: str = "ignore") -> None:
    """Raise ValueError for what cannot be evaluated, as [`evaluate_zero_shot`] says."""
    if not isinstance(dataset, Dataset):
        raise ValueError("An evaluation goes through a data set more than once: it cannot be a stream.")
    if len(dataset) == 0:
        raise ValueError("The data set is empty.")
    for name, policy in (("uncertain", uncertain), ("blank", blank)):
        if policy not in LABEL_POLICIES:
            raise ValueError(f"{name} must be one of {list(LABEL_POLICIES)}; got {policy!r}.")
    known = list(dataset.features.get("labels", {}))
    missing = [finding for finding in prompts if finding not in known]
    if missing:
        raise ValueError(f"The prompts name {missing[0]!r}, which is not among the labels {known}.")


def temperature_of(model: TierModel) -> float:
    """
    exp(logit_scale), by which cosines are multiplied before a softmax.

    Raises:
        ValueError: if it is not finite, which makes every loss and probability NaN.
    """
    # Computed as float32, as the model does.
    if not torch.isfinite(model.logit_scale.detach().float().exp()).all():
        raise ValueError(f"The model's logit_scale is {model.logit_scale.item()}: its loss and probabilities are NaN.")
    return math.exp(model.logit_scale.item())


def summarise(
    scored: dict[str, np.ndarray],
    dataset: Dataset,
    findings: list[str],
    protocol: str = "tier",
    temperature: float = 1.0,
    uncertain: str = "ignore",
    blank: str = "ignore",
) -> tuple[dict, dict]:
    """
    From the numbers of each image to the metrics of the data set.

    Args:
        scored: what [`~evaluation.scoring.score`] gives, joined.
        dataset: what was scored.
        findings: names of the prompts, in their order.
        protocol: a key of `PROTOCOLS`.
        temperature: of the model, exp(logit_scale).
        uncertain, blank: as in [`evaluate_zero_shot`].

    Returns:
        `metrics`, ready for JSON, all means unweighted over findings:
            `num_images`, and `unreadable`: the reasons why images could not be read and were left out, if any were;
            `auroc` by finding and `mean` (None where a class is missing, with the reason in `undefined`); `loss` and
            `contrastive_loss` in batches of `batch_size`; `token_entropy` and `patch_entropy` of the matched pairs in
            nats, of bare cosines whatever the model's `entropy_temperature`, and their largest possible values
            `max_token_entropy` and `max_patch_entropy`; `negative_share`: share of the cosines of counted tokens and
            patches below 0, and `peak`: a token's largest cosine, both averaged over a pair's tokens, then over the
            pairs; `top10_share`: share held by the 10% largest (rounded up) of a pair's text-to-patch similarities,
            shifted so that the smallest is 0; `peak_spread`: for each finding the entropy of the place of the peak
            over all images, divided by log P, averaged: 0 if every image points at one fixed place; `retrieval`:
            recall at 1, 5, 10 both ways; `localisation`: `pointing_game`, `chance`, `cnr`, `iou` and `miou` by
            finding and `mean` (definitions in `metrics/phrase_grounding`; plain maps of the phrases against boxes, at
            the resolution of the input), and `num_outside`, places that the crop leaves out.
        `details`, numpy arrays: `rows` (N,), the rows that were read, `scores`, `probabilities` and `labels` (N, F),
            `findings`; with texts `rank_similarity` (N, P), each pair's text-to-patch similarities from the largest
            to the smallest, and `ranks`: for each query of both ways of retrieval, how many wrong candidates come
            before the first right one.
    """
    rows = scored["rows"]
    metrics: dict = {"num_images": len(rows)}
    if len(scored["unreadable"]):
        metrics["unreadable"] = scored["unreadable"].tolist()
    details = {"findings": findings, "rows": rows}
    if findings:
        negative = scored["negative"].astype(np.float64) if "negative" in scored else None
        cosines = scored["positive"].astype(np.float64), negative, temperature
        scores = PROTOCOLS[protocol].score(*cosines)
        labels = known_labels(dataset, rows, findings, uncertain, blank)
        metrics |= _auroc(findings, scores, labels)
        metrics["peak_spread"] = peak_spread(scored["peaks"].astype(np.int64), int(scored["num_patches"][0]))
        details |= {
            "scores": scores,
            "probabilities": PROTOCOLS[protocol].probability(*cosines),
            "labels": labels,
        }
    if "text_embeds" in scored:
        texts = dataset.select_columns("text").select(rows)["text"][:]
        groups = np.unique(texts, return_inverse=True)[1]
        images, of_texts = scored["image_embeds"], scored["text_embeds"]
        details["ranks"] = {
            "image_to_text": wrong_before(images, of_texts, groups),
            "text_to_image": wrong_before(of_texts, images, groups),
        }
        means = {name: float(scored[name].mean(dtype=np.float64)) for name in ("loss", "contrastive_loss")}
        for name in ("token_entropy", "patch_entropy"):
            means[name] = _mean_of(scored[f"sparsity/{name}"])
        metrics |= means | {
            "max_token_entropy": math.log(scored["rank_similarity"].shape[1]),
            "max_patch_entropy": float(scored["max_patch_entropy"].mean(dtype=np.float64)),
            **{name: _mean_of(scored[f"sparsity/{name}"]) for name in ("negative_share", "peak")},
            "top10_share": top_share(scored["rank_similarity"]),
            "retrieval": {way: recall(ranks) for way, ranks in details["ranks"].items()},
        }
        details["rank_similarity"] = scored["rank_similarity"]
    if "num_outside" in scored:
        metrics["localisation"] = _localisation(scored, findings)
    return metrics, details


def known_labels(dataset: Dataset, rows: np.ndarray, findings: list[str], uncertain: str, blank: str) -> np.ndarray:
    """Labels (N, F) of 1, 0, and NaN where they say nothing."""
    values = {-1.0: LABEL_POLICIES[uncertain], None: LABEL_POLICIES[blank], 0.0: 0.0, 1.0: 1.0}
    column = dataset.select_columns("labels").select(rows)["labels"]
    return np.array([[values[row[finding]] for finding in findings] for row in column])


def combine_members(results: dict[str, tuple[dict, dict]]) -> tuple[dict, dict]:
    """
    An ensemble as in arXiv 2212.06710: the mean of its members' scores.

    Args:
        results: what [`evaluate_zero_shot`] gave for each member, on the same data set.

    Returns:
        `metrics`: those of the mean scores, and `members`: each member's own. `details` as for a single model.
    """
    members = {name: metrics for name, (metrics, _) in results.items()}
    first, details = next(iter(results.values()))
    if "scores" not in details:
        raise ValueError("An ensemble needs sentences for the labels of the data set: it is the mean of their scores.")
    means = {
        name: np.mean([each[name] for _, each in results.values()], axis=0)
        for name in ("scores", "probabilities")
        if name in details
    }
    shared = {name: first[name] for name in ("num_images", "unreadable") if name in first}
    metrics = shared | _auroc(details["findings"], means["scores"], details["labels"]) | {"members": members}
    return metrics, {name: details[name] for name in ("rows", "findings", "labels")} | means


def map_rows(scored: dict[str, np.ndarray], text: str = "sentence") -> np.ndarray:
    """The maps of whole sentences, or of single tokens, among all maps: bool."""
    return (scored["map/token"] == "") == (text == "sentence")


def finding_order(scored: dict[str, np.ndarray], findings: list[str]) -> list[str]:
    """The findings of the maps: those of the prompts first, the others in alphabetical order."""
    there = set(scored.get("map/finding", np.array([])).tolist())
    return [finding for finding in dict.fromkeys((*findings, *sorted(there))) if finding in there]


def _localisation(scored: dict[str, np.ndarray], findings: list[str]) -> dict:
    variant = variant_name(PLACES[0], RESOLUTIONS[0], MAPS[0])
    result: dict = {"pointing_game": {}, "chance": {}, "cnr": {}, "iou": {}, "miou": {}}
    for finding in finding_order(scored, findings):
        chosen = (scored["map/finding"] == finding) & map_rows(scored)
        number = {name: scored[f"map/{variant}:{name}"][chosen] for name in ("hit", "chance", "cnr", "ious", "mious")}
        result["pointing_game"][finding] = float(number["hit"].mean())
        result["chance"][finding] = float(number["chance"].mean())
        result["cnr"][finding] = float(number["cnr"].mean())
        result["iou"][finding] = float(number["ious"].mean(axis=0).max())
        result["miou"][finding] = float(number["mious"].mean())
    for values in result.values():
        values["mean"] = _mean(values.values())
    return result | {"num_outside": int(scored["num_outside"][0])}


def _auroc(findings: list[str], scores: np.ndarray, labels: np.ndarray) -> dict:
    metric, auroc, undefined = _load_metric("zeroshot_auroc"), {}, {}
    for i, finding in enumerate(findings):
        known = ~np.isnan(labels[:, i])
        result = {"roc_auc": None, "num_positive": 0, "num_negative": 0}
        if known.any():
            result = metric.compute(
                predictions=scores[known, i], references=labels[known, i].astype(np.int32), resamples=0
            )
        auroc[finding] = result["roc_auc"]
        if result["roc_auc"] is None:
            undefined[finding] = f"n+ = {result['num_positive']}, n- = {result['num_negative']}"
    auroc["mean"] = _mean(value for value in auroc.values() if value is not None)
    return {"auroc": auroc} | ({"undefined": undefined} if undefined else {})


def wrong_before(queries: np.ndarray, candidates: np.ndarray, groups: np.ndarray, block: int = 512) -> np.ndarray:
    """
    For each query (N,) how many wrong candidates are at least as similar as the best right one. Right is every
    candidate of the query's group: another copy of its text is a hit. A block of queries at a time: the similarities
    of the paper's validation set, some 30,000 by 30,000, do not fit into memory.
    """
    before = []
    for start in range(0, len(queries), block):
        similarity = queries[start : start + block] @ candidates.T
        relevant = groups[start : start + block, None] == groups[None, :]
        best = np.where(relevant, similarity, -np.inf).max(axis=1, keepdims=True)
        before.append(((similarity >= best) & ~relevant).sum(axis=1))
    return np.concatenate(before)


def recall(ranks: np.ndarray) -> dict[str, float]:
    """Recall at 1, 5 and 10 from [`wrong_before`]; as `metrics/retrieval_recall` defines it."""
    return {f"r@{k}": float((ranks < k).mean()) for k in (1, 5, 10)}


def _load_metric(name: str) -> evaluate.Metric:
    # In memory: several evaluations at a time must not share a cache file.
    return evaluate.load(str(_METRICS / name), keep_in_memory=True)


def _mean_of(values: np.ndarray) -> float:
    """Over the pairs that have a counted token."""
    return float(np.nanmean(values, dtype=np.float64))


def _mean(values) -> float | None:
    values = [value for value in values if value is not None]
    return float(np.mean(values)) if values else None
