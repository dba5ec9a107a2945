# Licensed under the Apache License, Version 2.0.
"""Zero-shot evaluation of a model on image-report pairs, by the protocol of arXiv 2212.06710."""

import json
import math
import reprlib
from collections.abc import Sequence
from pathlib import Path

import evaluate
import numpy as np
import torch
from datasets import Dataset

from ..loading import check_model_name
from ..modeling_tier import TierModel
from ..processing_tier import TierProcessor
from .localisation import BY_CONTRIBUTIONS, PLAIN
from .measures import CONTRIBUTIONS, LOCALISATION, group
from .protocols import PROTOCOLS, Protocol
from .scored import ImageScores, MapScores, PairScores, Scored, join
from .scoring import ScoringOptions, score
from .sentences import sentence_ranks
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
        if (folder / "training_config.yaml").is_file():
            raise ValueError(
                f"the training run in {folder} has left no model (no config.json): it has not ended. Start it again "
                "with --training.resume_from_checkpoint auto; it goes on from its last checkpoint, if there is one."
            )
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
            raise ValueError(f"{file}: {name!r} is outside of the folder: its members must be in it.")
        if names.count(name) > 1 or not (folder / name / "config.json").is_file():
            why = "is listed twice" if names.count(name) > 1 else "is not a model folder (it has no config.json)"
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
    no_finding: Sequence[str] = (),
) -> tuple[dict, dict]:
    """
    Evaluate a model on pairs, on pictures with labels, or both: plain numbers, without intervals.

    Args:
        model: the model; its training mode is restored afterwards.
        processor: its processor.
        dataset: rows as [`~data.load_pairs`] gives them. Without texts, what needs a text is not measured.
        prompts: sentences by finding, as [`load_prompts`] gives them for the protocol; each finding must be among the
            labels. Empty: no classification.
        batch_size: pairs a step.
        localisation: whether to compare maps with the ground-truth `regions`, where the data set has them.
        progress: whether to show a bar.
        uncertain: what a label of -1 counts as: "ignore" (as the authors of arXiv 2212.06710 do), "zeros" or "ones".
        blank: likewise for a finding that is not mentioned.
        protocol: a key of `PROTOCOLS`, which says what the score of a finding is.
        no_finding: sentences for the absence of any finding, as [`load_no_finding`] gives them; with them maps of
            contributions are measured, too, where the model has such.

    Returns:
        what [`summarise`] gives.

    Raises:
        ValueError: if the data set is empty or a stream, a finding has no label, more than 1% of the images cannot be
            read, or the model gives NaN (with the image's id).
    """
    check_evaluation(dataset, prompts, uncertain, blank)
    temperature = temperature_of(model)
    options = ScoringOptions(batch_size, localisation, no_finding=no_finding, progress=progress)
    parts = score(model, processor, dataset, prompts, options)
    return summarise(join(parts), dataset, list(prompts), protocol, temperature, uncertain=uncertain, blank=blank)


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
        way_out = "" if known else " Which columns are labels, data.options.label_columns says for your own pairs."
        raise ValueError(f"The prompts name {missing[0]!r}, which is not among the labels {known}.{way_out}")


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
    scored: Scored,
    dataset: Dataset,
    findings: list[str],
    protocol: str | Protocol = "tier",
    temperature: float = 1.0,
    uncertain: str = "ignore",
    blank: str = "ignore",
) -> tuple[dict, dict]:
    """
    From the numbers of each image to the metrics of the data set.

    Args:
        scored: the numbers of all images, joined.
        dataset: what was scored.
        findings: names of the prompts, in their order.
        protocol: a key of `PROTOCOLS`, or another protocol.
        temperature: of the model, exp(logit_scale).
        uncertain, blank: as in [`evaluate_zero_shot`].

    Returns:
        `metrics`, ready for JSON, named and defined as in `measures.MEASURES`, all means unweighted over findings:
            `num_images`, and `unreadable`: the reasons why images could not be read, if any could not; `auroc` by
            finding and `mean` (None where a class is missing, with the reason in `undefined`), and `peak_spread`; with
            texts the losses, the entropies of the matched pairs (of bare cosines, whatever the model's
            `entropy_temperature`) and their largest possible values, `negative_share`, `peak`, `top10_share`, and
            `retrieval` both ways; with regions `localisation`: by measure, then finding and `mean`, of the plain maps
            of the phrases (and of contributions minus "no finding", if they were measured) against boxes at the
            resolution of the input, and `num_outside`, regions that the crop cuts off.
        `details`, numpy arrays: `rows` (N,), the rows that were read, `scores`, `probabilities` and `labels` (N, F),
            `findings`; where negation was scored `affirmed` and `negated` (N, F), the cosines with "There is
            {finding}" and "There is no {finding}"; with texts `rank_similarity` (N, P), each pair's text-to-patch
            similarities from the largest to the smallest, and `ranks`: for each query of each way of retrieval, how
            many wrong candidates come before the first right one, and `queries`: its position among the rows that
            were read. Where sentences were scored there are two ways more, those of [`sentence_ranks`].
    """
    images = scored.images
    metrics: dict = {"num_images": len(images.rows)}
    if len(scored.unreadable):
        metrics["unreadable"] = scored.unreadable.tolist()
    details = {"findings": findings, "rows": images.rows}
    if findings:
        labels = known_labels(dataset, images.rows, findings, uncertain, blank)
        rule = PROTOCOLS[protocol] if isinstance(protocol, str) else protocol
        details |= _judged(images, rule, temperature) | {"labels": labels}
        metrics |= _auroc(findings, details["scores"], labels)
        if images.peaks is not None:
            metrics["peak_spread"] = peak_spread(images.peaks.astype(np.int64), int(images.num_patches[0]))
    if scored.pairs is not None:
        details["ranks"] = _ranks(images, scored.pairs, dataset)
        details["queries"] = {way: np.arange(len(ranks)) for way, ranks in details["ranks"].items()}
        for way, (queries, ranks) in sentence_ranks(images, scored.sentences).items() if scored.sentences else ():
            details["queries"][way], details["ranks"][way] = queries, ranks
        details["rank_similarity"] = scored.pairs.rank_similarity
        metrics |= _of_pairs(scored.pairs)
        metrics["retrieval"] = {way: recall(ranks) for way, ranks in details["ranks"].items()}
    if scored.maps is not None:
        metrics["localisation"] = _localisation(scored.maps, findings)
    return metrics, details


def _judged(images: ImageScores, protocol: Protocol, temperature: float) -> dict[str, np.ndarray]:
    """By name (N, F): scores and probabilities of the findings, and cosines with the sentences of negation."""
    negative = images.negative.astype(np.float64) if images.negative is not None else None
    cosines = images.positive.astype(np.float64), negative, temperature
    judged = {"scores": protocol.score(*cosines), "probabilities": protocol.probability(*cosines)}
    if images.negated is not None:
        judged |= {"affirmed": images.affirmed.astype(np.float64), "negated": images.negated.astype(np.float64)}
    return judged


def _ranks(images: ImageScores, pairs: PairScores, dataset: Dataset) -> dict[str, np.ndarray]:
    """For both ways of retrieval, as [`summarise`] says; equal texts are one."""
    texts = dataset.select_columns("text").select(images.rows)["text"][:]
    groups = np.unique(texts, return_inverse=True)[1]
    return {
        "image_to_text": wrong_before(images.embeds, pairs.embeds, groups),
        "text_to_image": wrong_before(pairs.embeds, images.embeds, groups),
    }


def _of_pairs(pairs: PairScores) -> dict:
    """Means over the pairs; of the sparsity over those with a counted token."""
    means = {name: float(getattr(pairs, name).mean(dtype=np.float64)) for name in ("loss", "contrastive_loss")}
    sparse = {name: float(np.nanmean(values, dtype=np.float64)) for name, values in pairs.sparsity.items()}
    return means | {
        "token_entropy": sparse["token_entropy"],
        "patch_entropy": sparse["patch_entropy"],
        "max_token_entropy": math.log(pairs.rank_similarity.shape[1]),
        "max_patch_entropy": float(pairs.max_patch_entropy.mean(dtype=np.float64)),
        "negative_share": sparse["negative_share"],
        "peak": sparse["peak"],
        "top10_share": top_share(pairs.rank_similarity),
    }


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
        name: np.mean([member[name] for _, member in results.values()], axis=0)
        for name in ("scores", "probabilities", "affirmed", "negated")
        if name in details
    }
    shared = {name: first[name] for name in ("num_images", "unreadable") if name in first}
    metrics = shared | _auroc(details["findings"], means["scores"], details["labels"]) | {"members": members}
    return metrics, {name: details[name] for name in ("rows", "findings", "labels")} | means


def map_rows(maps: MapScores, text: str = "sentence") -> np.ndarray:
    """The maps of whole sentences, or of single tokens, among all maps: bool."""
    return (maps.token == "") == (text == "sentence")


def finding_order(maps: MapScores, findings: list[str]) -> list[str]:
    """The findings of the maps: those of the prompts first, the others in alphabetical order."""
    present = set(maps.finding.tolist())
    return [finding for finding in dict.fromkeys((*findings, *sorted(present))) if finding in present]


def _localisation(maps: MapScores, findings: list[str]) -> dict:
    """Of the maps of sentences, by measure and finding; at the best threshold where there are several."""
    variants = {LOCALISATION: PLAIN, CONTRIBUTIONS: BY_CONTRIBUTIONS}
    measures = group(LOCALISATION, *[CONTRIBUTIONS] * (BY_CONTRIBUTIONS in maps.measured))
    result: dict = {measure.name: {} for measure in measures}
    for finding in finding_order(maps, findings):
        chosen = (maps.finding == finding) & map_rows(maps)
        for measure in measures:
            values = maps.of(variants[measure.group], measure.of_map)[chosen]
            result[measure.name][finding] = float(values.mean(axis=0).max())
    for values in result.values():
        values["mean"] = _mean(values.values())
    return result | {"num_outside": maps.num_outside}


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


def _mean(values) -> float | None:
    values = [value for value in values if value is not None]
    return float(np.mean(values)) if values else None
