# Licensed under the Apache License, Version 2.0.
"""Zero-shot evaluation of a model on image-report pairs, by the protocol of arXiv 2212.06710."""

import json
import math
from collections import defaultdict
from pathlib import Path

import evaluate
import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer

from ..data.pictures import read_picture, undecoded
from ..entropy_tier import l2_normalize
from ..modeling_tier import TierModel
from ..processing_tier import TierProcessor
from .localisation import box_mask


# What an uncertain or a blank label counts as.
LABEL_POLICIES = {"ignore": math.nan, "zeros": 0.0, "ones": 1.0}

ENSEMBLE_FILE = "ensemble.json"

_METRICS = Path(__file__).parent / "metrics"
_MOST_UNREADABLE = 0.01


def load_model(name_or_path: str) -> tuple[TierModel, TierProcessor]:
    """A TIER model, or a CLIPModel read as one, with its processor, from a folder or the Hub."""
    if AutoConfig.from_pretrained(name_or_path).model_type == "clip":
        processor = TierProcessor(
            AutoImageProcessor.from_pretrained(name_or_path), AutoTokenizer.from_pretrained(name_or_path)
        )
        return TierModel.from_clip(name_or_path, lambda_token=0.0, lambda_patch=0.0).eval(), processor
    return TierModel.from_pretrained(name_or_path).eval(), TierProcessor.from_pretrained(name_or_path)


def is_ensemble(folder: Path) -> bool:
    """Whether a folder has an `ensemble.json`, which lists the folders of its models, relative to it."""
    return (folder / ENSEMBLE_FILE).is_file()


def member_folders(name_or_path: str) -> dict[str, str]:
    """The folders of an ensemble's models by name; else the model itself."""
    folder = Path(name_or_path)
    if is_ensemble(folder):
        return {name: str(folder / name) for name in json.loads((folder / ENSEMBLE_FILE).read_text())}
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is neither a model (no config.json) nor an ensemble (no {ENSEMBLE_FILE}).")
    return {folder.name: name_or_path}


@torch.inference_mode()
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
) -> tuple[dict, dict]:
    """
    Evaluate a model on pairs, on pictures with labels, or both.

    The score of a finding is cos(image, positive) - cos(image, negative), with the embeddings of a list of sentences
    normalised, averaged and normalised again.

    Args:
        model: the model; its training mode is restored afterwards.
        processor: its processor.
        dataset: rows as [`~data.load_pairs`] gives them. Without texts, what needs a text is left out.
        prompts: sentences by finding, as [`load_prompts`] gives them; each finding must be among the labels. Empty:
            no classification.
        batch_size: pairs a step.
        localisation: whether to compare maps with the places in `regions`, where the data set has them.
        progress: whether to show a bar.
        uncertain: what a label of -1 counts as: "ignore" (as the authors of arXiv 2212.06710 do), "zeros" or "ones".
        blank: likewise for a finding that is not mentioned.

    Returns:
        `metrics`, ready for JSON, all means unweighted over findings:
            `num_images`, and `unreadable`: the reasons why images could not be read and were left out, if any were;
            `auroc` by finding and `mean` (None where a class is missing, with the reason in `undefined`); `loss` and
            `contrastive_loss` in batches of `batch_size`; `token_entropy` and `patch_entropy` of the matched pairs in
            nats, and their largest possible values `max_token_entropy` and `max_patch_entropy`; `negative_share`:
            share of the cosines of counted tokens and patches below 0; `peak`: mean over tokens of the largest
            cosine; `top10_share`: share held by the 10% largest (rounded up) of a pair's text-to-patch similarities,
            shifted so that the smallest is 0; `peak_spread`: for each finding the entropy of the place of the peak
            over all images, divided by log P, averaged: 0 if every image points at one fixed place; `retrieval`:
            recall at 1, 5, 10 both ways; `localisation`: `pointing_game`, `chance`, `cnr` and `iou` by finding and
            `mean` (definitions in `metrics/phrase_grounding`), and `num_outside`, regions that the crop leaves out.
        `details`, numpy arrays: `rows` (N,), the rows that were read, `scores` and `labels` (N, F), `findings`,
            `rank_similarity` (N, P), each pair's text-to-patch similarities from the largest to the smallest.

    Raises:
        ValueError: if the data set is empty or a stream, a finding has no label, more than 1% of the images cannot be
            read, or a score is NaN (with the image's id).
    """
    if not isinstance(dataset, Dataset):
        raise ValueError("An evaluation goes through a data set more than once: it cannot be a stream.")
    if len(dataset) == 0:
        raise ValueError("The data set is empty.")
    for name, policy in (("uncertain", uncertain), ("blank", blank)):
        if policy not in LABEL_POLICIES:
            raise ValueError(f"{name} must be one of {list(LABEL_POLICIES)}; got {policy!r}.")
    findings, known = list(prompts), list(dataset.features.get("labels", {}))
    missing = [finding for finding in findings if finding not in known]
    if missing:
        raise ValueError(f"The prompts name {missing[0]!r}, which is not among the labels {known}.")
    with_text = all(isinstance(text, str) and text for text in dataset["text"])
    training, device = model.training, model.device
    model.eval()
    localisation = localisation and "regions" in dataset.features
    embed = lambda sentences: embed_sentences(model, processor, sentences)  # noqa: E731
    if findings:
        positive = torch.stack([embed(prompts[finding]["positive"]) for finding in findings])  # (F, D)
        negative = torch.stack([embed(prompts[finding]["negative"]) for finding in findings])

    sums, parts = defaultdict(float), defaultdict(list)
    grounding = _Grounding(embed, processor.image_processor)
    stored, read, unreadable = undecoded(dataset), [], []
    for start in tqdm(range(0, len(dataset), batch_size), desc="evaluating", disable=not progress, leave=False):
        rows, good = _read(stored[start : start + batch_size], unreadable)
        if len(unreadable) > _MOST_UNREADABLE * len(dataset):
            raise ValueError(f"{unreadable[0]} ({len(unreadable)} of the first {start + batch_size} images).")
        if not good:
            continue
        read += [start + i for i in good]
        texts = rows["text"] if with_text else [""] * len(good)
        inputs = processor(images=rows["image"], text=texts).to(device)
        out = model(**inputs, return_loss=with_text, output_entropy=with_text)
        image_embeds, patch_embeds = out.image_embeds.float(), out.patch_embeds.float()
        number = len(image_embeds)
        bad = torch.isnan(image_embeds).any(dim=1)
        if bad.any():
            raise ValueError(f"The model gives NaN for the image {rows['image_id'][int(bad.nonzero()[0])]}.")
        if findings:
            parts["scores"].append(image_embeds @ (positive - negative).T)
            parts["peaks"].append((patch_embeds @ positive.T).argmax(dim=1))  # (N, F)
        if localisation:
            grounding.add(rows, patch_embeds, _grid(inputs["pixel_values"], patch_embeds))
        if not with_text:
            continue

        parts["image_embeds"].append(image_embeds)
        parts["text_embeds"].append(out.text_embeds.float())
        mask = model.entropy_mask(inputs["input_ids"], inputs["attention_mask"])
        cosines = (out.token_embeds.float() @ patch_embeds.transpose(1, 2))[mask]  # (tokens, P)
        for name in ("loss", "contrastive_loss", "token_entropy", "patch_entropy"):
            sums[name] += out[name].item() * number
        sums["max_patch_entropy"] += mask.sum(dim=1).clamp(min=1).log().sum().item()
        sums["tokens"] += len(cosines)
        sums["negative"] += (cosines < 0).float().mean(dim=1).sum().item()
        sums["peak"] += cosines.max(dim=1).values.sum().item()
        own = (patch_embeds @ out.text_embeds.float().unsqueeze(2)).squeeze(2)  # (N, P)
        parts["rank_similarity"].append(own.sort(dim=1, descending=True).values)
    model.train(training)

    stacked = {name: torch.cat(values).cpu().numpy() for name, values in parts.items()}
    number, num_patches = len(read), patch_embeds.shape[1]
    metrics: dict = {"num_images": number} | ({"unreadable": unreadable} if unreadable else {})
    details = {"findings": findings, "rows": np.array(read)}
    if findings:
        values = {-1.0: LABEL_POLICIES[uncertain], None: LABEL_POLICIES[blank], 0.0: 0.0, 1.0: 1.0}
        label_rows = dataset.select_columns("labels").select(read)["labels"]
        labels = np.array([[values[row[finding]] for finding in findings] for row in label_rows])
        metrics |= _auroc(findings, stacked["scores"], labels)
        metrics["peak_spread"] = peak_spread(stacked["peaks"], num_patches)
        details |= {"scores": stacked["scores"], "labels": labels}
    if with_text:
        texts = dataset.select_columns("text").select(read)["text"][:]
        metrics |= {
            **{name: sums[name] / number for name in ("loss", "contrastive_loss", "token_entropy", "patch_entropy")},
            "max_token_entropy": math.log(num_patches),
            "max_patch_entropy": sums["max_patch_entropy"] / number,
            "negative_share": sums["negative"] / sums["tokens"],
            "peak": sums["peak"] / sums["tokens"],
            "top10_share": top_share(stacked["rank_similarity"]),
            "retrieval": _retrieval(stacked["image_embeds"], stacked["text_embeds"], texts),
        }
        details["rank_similarity"] = stacked["rank_similarity"]
    if localisation:
        metrics["localisation"] = grounding.result(findings)
    return metrics, details


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
    scores = np.mean([each["scores"] for _, each in results.values()], axis=0)
    shared = {name: first[name] for name in ("num_images", "unreadable") if name in first}
    metrics = shared | _auroc(details["findings"], scores, details["labels"]) | {"members": members}
    return metrics, {name: details[name] for name in ("rows", "findings", "labels")} | {"scores": scores}


def _read(rows: dict, unreadable: list[str]) -> tuple[dict, list[int]]:
    """The rows whose picture can be read, with it, and their places; the reasons of the others are appended."""
    pictures = {}
    for i, (cell, image_id) in enumerate(zip(rows["image"], rows["image_id"])):
        try:
            pictures[i] = read_picture(cell, image_id)
        except ValueError as error:
            unreadable.append(str(error))
    rows = {name: [values[i] for i in pictures] for name, values in rows.items()}
    return rows | {"image": list(pictures.values())}, list(pictures)


@torch.inference_mode()
def embed_sentences(model: TierModel, processor: TierProcessor, sentences: list[str]) -> torch.Tensor:
    """One embedding (D,) for a list of sentences: each normalised, then their mean normalised."""
    embeds = model.get_text_features(**processor(text=sentences).to(model.device)).pooler_output.float()
    return l2_normalize(l2_normalize(embeds).mean(dim=0))


def top_share(rank_similarity: np.ndarray, share: float = 0.1) -> float:
    """Share of a map's similarity, shifted so that its smallest is 0, in its largest patches; rows are sorted."""
    shifted = rank_similarity - rank_similarity[:, -1:]
    top = math.ceil(share * shifted.shape[1])
    return float((shifted[:, :top].sum(axis=1) / np.maximum(shifted.sum(axis=1), 1e-12)).mean())


def peak_spread(peaks: np.ndarray, num_patches: int) -> float:
    """Entropy of the peak's patch over the images (rows), divided by log P and averaged over sentences (columns)."""
    if num_patches == 1:
        return 0.0
    entropies = []
    for column in peaks.T:
        share = np.bincount(column, minlength=num_patches) / len(column)
        share = share[share > 0]
        entropies.append(-(share * np.log(share)).sum() / math.log(num_patches))
    return float(np.mean(entropies))


class _Grounding:
    """Collects the maps of the phrases that name a place, beside the places."""

    def __init__(self, embed, image_processor):
        self.embed, self.image_processor = embed, image_processor
        self.phrases, self.num_outside = {}, 0
        self.maps, self.masks = defaultdict(list), defaultdict(list)

    def add(self, rows: dict, patch_embeds: torch.Tensor, grid: tuple[int, int]) -> None:
        for image, regions, patches in zip(rows["image"], rows["regions"], patch_embeds):
            places = defaultdict(list)  # boxes with the same phrase are one place
            for region in regions:
                places[region["finding"], region["phrase"]].append(region["box"])
            for (finding, phrase), boxes in places.items():
                mask = box_mask(boxes, image.size, self.image_processor)
                if not mask.any() or mask.all():
                    self.num_outside += 1
                    continue
                if phrase not in self.phrases:
                    self.phrases[phrase] = self.embed([phrase])
                coarse = (patches @ self.phrases[phrase]).view(1, 1, *grid)
                fine = torch.nn.functional.interpolate(coarse, mask.shape, mode="bilinear", align_corners=False)
                self.maps[finding].append(fine.flatten().cpu().numpy())
                self.masks[finding].append(mask.ravel())

    def result(self, findings: list[str]) -> dict:
        """Results by finding, those of the prompts first, the others in alphabetical order."""
        metric = _load_metric("phrase_grounding")
        by_finding = {}
        for finding in dict.fromkeys((*findings, *sorted(self.maps))):
            if finding in self.maps:
                maps, masks = np.stack(self.maps[finding]), np.stack(self.masks[finding]).astype(np.int8)
                by_finding[finding] = metric.compute(predictions=maps, references=masks)
        names = ("pointing_game", "chance", "cnr", "iou")
        result = {name: {finding: values[name] for finding, values in by_finding.items()} for name in names}
        for values in result.values():
            values["mean"] = _mean(values.values())
        return result | {"num_outside": self.num_outside}


def _auroc(findings: list[str], scores: np.ndarray, labels: np.ndarray) -> dict:
    metric, auroc, undefined = _load_metric("zeroshot_auroc"), {}, {}
    for i, finding in enumerate(findings):
        known = ~np.isnan(labels[:, i])
        result = {"roc_auc": None, "num_positive": 0, "num_negative": 0}
        if known.any():
            result = metric.compute(predictions=scores[known, i], references=labels[known, i].astype(np.int32))
        auroc[finding] = result["roc_auc"]
        if result["roc_auc"] is None:
            undefined[finding] = f"n+ = {result['num_positive']}, n- = {result['num_negative']}"
    auroc["mean"] = _mean(value for value in auroc.values() if value is not None)
    return {"auroc": auroc} | ({"undefined": undefined} if undefined else {})


def _retrieval(image_embeds: np.ndarray, text_embeds: np.ndarray, texts: list[str]) -> dict:
    groups = np.unique(texts, return_inverse=True)[1]
    return {
        "image_to_text": recall(image_embeds, text_embeds, groups),
        "text_to_image": recall(text_embeds, image_embeds, groups),
    }


def recall(queries: np.ndarray, candidates: np.ndarray, groups: np.ndarray, block: int = 512) -> dict[str, float]:
    """
    As `metrics/retrieval_recall` defines it, a block of queries at a time: the similarities of the paper's validation
    set, some 30,000 by 30,000, do not fit into memory.
    """
    before = []  # wrong candidates that are at least as similar as the best right one
    for start in range(0, len(queries), block):
        similarity = queries[start : start + block] @ candidates.T
        relevant = groups[start : start + block, None] == groups[None, :]
        best = np.where(relevant, similarity, -np.inf).max(axis=1, keepdims=True)
        before.append(((similarity >= best) & ~relevant).sum(axis=1))
    return {f"r@{k}": float((np.concatenate(before) < k).mean()) for k in (1, 5, 10)}


def _load_metric(name: str) -> evaluate.Metric:
    # In memory: several evaluations at a time must not share a cache file.
    return evaluate.load(str(_METRICS / name), keep_in_memory=True)


def _mean(values) -> float | None:
    values = list(values)
    return float(np.mean(values)) if values else None


def _grid(pixel_values: torch.Tensor, patch_embeds: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of the patches, in the proportions of the input."""
    height, width = pixel_values.shape[-2:]
    rows = round(math.sqrt(patch_embeds.shape[1] * height / width))
    return rows, patch_embeds.shape[1] // rows
