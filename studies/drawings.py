# Licensed under the Apache License, Version 2.0.
"""The study's drawings as tensors in memory, and what its models are measured by on those that they never saw."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from sklearn.metrics import average_precision_score, roc_auc_score
from torch.nn.functional import normalize

from modeling_tier import TierModel, TierProcessor
from modeling_tier.data import load_pairs
from modeling_tier.evaluation import load_no_finding, load_prompts, own_prompts
from modeling_tier.evaluation.localisation import box_mask, scale_maps
from modeling_tier.evaluation.metrics.phrase_grounding.phrase_grounding import measure_maps
from modeling_tier.evaluation.scoring import embed_sentences
from modeling_tier.evaluation.zero_shot import recall, wrong_before


TEST_SEED = 1_000_000  # of the drawings that all models are measured on
MAPS = ("cosine", "cosine - no finding", "contribution", "contribution - no finding")


@dataclass
class TrainingSet:
    """N pairs, ready for the model."""

    pixel_values: torch.Tensor
    """(N, 3, H, W)"""
    input_ids: torch.Tensor
    """(N, T), padded"""
    attention_mask: torch.Tensor
    """(N, T)"""
    sentence_ids: torch.Tensor
    """(U, T) of the different sentences of all texts."""
    sentence_mask: torch.Tensor
    """(U, T)"""
    sentences: list[list[int]]
    """For each pair the rows of its sentences."""

    @classmethod
    def of(cls, pairs: Dataset, processor: TierProcessor) -> "TrainingSet":
        texts, split = processor(text=pairs["text"][:]), [sentences_of(text) for text in pairs["text"][:]]
        unique = {sentence: row for row, sentence in enumerate(sorted({s for own in split for s in own}))}
        sentences = processor(text=list(unique))
        return cls(
            _pixels(pairs, processor),
            texts["input_ids"],
            texts["attention_mask"],
            sentences["input_ids"],
            sentences["attention_mask"],
            [[unique[sentence] for sentence in own] for own in split],
        )

    def __len__(self) -> int:
        return len(self.input_ids)

    def batch(self, rows: torch.Tensor, device: torch.device) -> dict[str, torch.Tensor]:
        """These rows, their texts no longer than the longest of them."""
        mask = self.attention_mask[rows]
        longest = int(mask.sum(dim=1).max())
        inputs = {
            "pixel_values": self.pixel_values[rows],
            "input_ids": self.input_ids[rows, :longest],
            "attention_mask": mask[:, :longest],
        }
        return {name: value.to(device, non_blocking=True) for name, value in inputs.items()}

    def batch_sentences(
        self, rows: torch.Tensor, device: torch.device
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The S sentences of these rows' texts, as inputs of the text encoder, and the row (S,) that each is of."""
        own = [self.sentences[row] for row in rows.tolist()]
        chosen = torch.tensor([sentence for sentences in own for sentence in sentences])
        owners = torch.repeat_interleave(torch.arange(len(own)), torch.tensor([len(sentences) for sentences in own]))
        mask = self.sentence_mask[chosen]
        longest = int(mask.sum(dim=1).max())
        inputs = {"input_ids": self.sentence_ids[chosen, :longest], "attention_mask": mask[:, :longest]}
        return {name: value.to(device, non_blocking=True) for name, value in inputs.items()}, owners.to(device)


def sentences_of(text: str) -> list[str]:
    """The different sentences of a report, without the numbers of a list."""
    text = re.sub(r"(?<!\S)\d+\. ", "", text)
    return list(dict.fromkeys(re.split(r"(?<=\.)\s+", text.strip())))


@dataclass
class HeldOutSet:
    """N drawings that no model was trained on, and the M phrases that name a region in one of them."""

    pixel_values: torch.Tensor
    """(N, 3, H, W)"""
    texts: list[str]
    labels: np.ndarray
    """(N, F) of the findings that have sentences."""
    rows: np.ndarray
    """(M,) the drawing of each phrase."""
    findings: np.ndarray
    """(M,)"""
    phrases: np.ndarray
    """(M,)"""
    masks: np.ndarray
    """(M, H, W) the boxes of each phrase."""
    prompts: str = "synthetic"
    """Name of the sentences of the evaluation."""

    @classmethod
    def of(cls, pairs: Dataset, processor: TierProcessor, drawings: str = "simple") -> "HeldOutSet":
        regions = []
        for row, (own, picture) in enumerate(zip(pairs["regions"], pairs["image"])):
            boxes = defaultdict(list)
            for region in own:
                boxes[region["finding"], region["phrase"]].append(region["box"])
            regions += [(row, *name, box_mask(same, picture.size, processor)) for name, same in boxes.items()]
        rows, findings, phrases, masks = (np.array(column) for column in zip(*regions))
        prompts = own_prompts("synthetic", {"drawings": drawings})
        names = list(load_prompts(prompts))
        labels = np.array([[row[name] for name in names] for row in pairs["labels"]])
        return cls(_pixels(pairs, processor), pairs["text"][:], labels, rows, findings, phrases, masks, prompts)


def _pixels(pairs: Dataset, processor: TierProcessor) -> torch.Tensor:
    parts = [processor(images=pairs[i : i + 500]["image"])["pixel_values"] for i in range(0, len(pairs), 500)]
    return torch.cat(parts)


def held_out_pairs(num_images: int, image_size: int, section: str, drawings: str = "simple") -> Dataset:
    options = {"image_size": image_size, "section": section, "seed": TEST_SEED, "drawings": drawings}
    return load_pairs("synthetic", "test", num_images=num_images, **options)


@torch.inference_mode()
def measure(model: TierModel, processor: TierProcessor, test: HeldOutSet) -> dict[str, float]:
    """
    AUROC and average precision (mean over the findings, positive minus negative sentences); AUROC of the negated
    sentences alone, which a model that understands them keeps below 0.5; AUROC of "left" against "right" among the
    findings on one side; recall at 10; and for each kind of map the pointing game and the contrast-to-noise ratio of
    the phrases that name a region, mean over the findings.
    """
    model.eval()
    prompts = load_prompts(test.prompts)
    embedded = [embed_images(model, pixels) for pixels in test.pixel_values.split(250)]
    images, patches, weights = (torch.cat(part) for part in zip(*embedded))
    sides = {
        side: torch.stack([embed_sentences(model, processor, lists[side]) for lists in prompts.values()])
        for side in ("positive", "negative")
    }
    scores = {side: (images @ embeds.T).cpu().numpy() for side, embeds in sides.items()}
    difference = scores["positive"] - scores["negative"]
    texts = embed_texts(model, processor, test.texts)
    ranks = wrong_before(images.cpu().numpy(), texts.cpu().numpy(), np.unique(test.texts, return_inverse=True)[1])
    return {
        "AUROC": _mean_over_findings(roc_auc_score, test.labels, difference),
        "AP": _mean_over_findings(average_precision_score, test.labels, difference),
        "AUROC of negated": _mean_over_findings(roc_auc_score, test.labels, scores["negative"]),
        "AUROC left/right": _laterality(model, processor, test, images),
        "R@10": recall(ranks)["r@10"],
    } | _maps(model, processor, test, patches, weights)


def embed_images(model: TierModel, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of n pictures the embeddings (n, D), those of the patches (n, P, D), both of unit length, and weights (n, P)."""
    image = model.encode_image(pixels.to(model.device))
    return normalize(image.embeds, dim=-1), normalize(image.local_embeds, dim=-1), model.patch_weights(image)


def embed_texts(model: TierModel, processor: TierProcessor, texts: list[str]) -> torch.Tensor:
    parts = [processor(text=texts[i : i + 250]).to(model.device) for i in range(0, len(texts), 250)]
    return normalize(torch.cat([model.encode_text(**part).embeds for part in parts]), dim=-1)


def _mean_over_findings(metric: Callable, labels: np.ndarray, scores: np.ndarray) -> float:
    return float(np.mean([metric(labels[:, i], scores[:, i]) for i in range(labels.shape[1])]))


def _laterality(model: TierModel, processor: TierProcessor, test: HeldOutSet, images: torch.Tensor) -> float:
    """A phrase against the same with the other side; mean over the findings that have a side."""
    sided = np.array([("left" in phrase.lower()) != ("right" in phrase.lower()) for phrase in test.phrases])
    counts = Counter(zip(test.rows[sided], test.findings[sided]))
    chosen = [i for i in np.flatnonzero(sided) if counts[test.rows[i], test.findings[i]] == 1]  # not on both sides
    own = [test.phrases[i].lower() for i in chosen]
    other = [phrase.replace("left", "?").replace("right", "left") for phrase in own]
    other = [phrase.replace("?", "right") for phrase in other]
    unique = sorted({*own, *other})
    embeds = dict(zip(unique, embed_texts(model, processor, [phrase.capitalize() for phrase in unique])))
    is_left = np.array(["left" in phrase for phrase in own])
    towards_own = [float(images[test.rows[i]] @ (embeds[a] - embeds[b])) for i, a, b in zip(chosen, own, other)]
    scores, findings = np.where(is_left, towards_own, -np.array(towards_own)), test.findings[chosen]
    return float(np.mean([roc_auc_score(is_left[findings == f], scores[findings == f]) for f in np.unique(findings)]))


def _maps(
    model: TierModel, processor: TierProcessor, test: HeldOutSet, patches: torch.Tensor, weights: torch.Tensor
) -> dict[str, float]:
    grid, size = int(patches.shape[1] ** 0.5), test.masks.shape[1:]
    no_finding = embed_sentences(model, processor, load_no_finding(test.prompts))
    unique, index = np.unique(test.phrases, return_inverse=True)
    embeds = embed_texts(model, processor, unique.tolist())[index]  # (M, D)
    numbers = defaultdict(list)
    for chosen in torch.arange(len(embeds)).split(256):
        rows = test.rows[chosen]
        cosines = torch.einsum("md,mpd->mp", embeds[chosen], patches[rows])
        subtracted = cosines - patches[rows] @ no_finding
        scale = weights[rows] * weights.shape[1]
        for kind, maps in zip(MAPS, (cosines, subtracted, cosines * scale, subtracted * scale)):
            scaled = scale_maps(maps, (grid, grid), size).cpu().numpy()
            measured = measure_maps(scaled, test.masks[chosen])
            numbers[f"pointing, {kind}"].append(measured["hit"])
            numbers[f"CNR, {kind}"].append(measured["cnr"])
    return {name: _mean_of_means(np.concatenate(parts), test.findings) for name, parts in numbers.items()}


def _mean_of_means(values: np.ndarray, findings: np.ndarray) -> float:
    return float(np.mean([values[findings == finding].mean() for finding in np.unique(findings)]))
