# Licensed under the Apache License, Version 2.0.
"""
One pass of a model over a data set: numbers for each image, from which all results are computed afterwards.

The batches of an evaluation are fixed by the data set and the batch size alone. Whoever scores them, one process or
several, at once or after an interruption, the numbers are the same.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..cosines_tier import l2_normalize
from ..data.grey_pictures import GreyPictures
from ..data.pictures import read_picture, undecoded
from ..modeling_tier import TierModel, TierOutput
from ..processing_tier import TierProcessor
from .fingerprints import content_digest
from .localisation import MapOptions, Probe, ground
from .scored import ImageScores, PairScores, Scored, SentenceScores, SideScores, join
from .sentences import split_sentences
from .sides import mirrored, one_sided, side_of
from .sparsity import sparsity


DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}

MAX_PARTS = 1024
MAX_UNREADABLE = 0.01


class Probes:
    """The texts that images are compared with, embedded once."""

    def __init__(
        self,
        model: TierModel,
        processor: TierProcessor,
        prompts: dict[str, dict[str, list[str]]],
        no_finding: list[str],
        autocast: torch.autocast,
        negation: dict[str, dict[str, list[str]]] | None = None,
    ):
        self.model, self.processor, self.autocast = model, processor, autocast
        self._phrases: dict[str, Probe] = {}
        self.positive = self._stacked(prompts, "positive")  # (F, D), None without prompts
        self.negative = self._stacked(prompts, "negative")  # (F, D), None if the findings compete with each other
        self.no_finding = self._embed(no_finding) if no_finding else None
        self.affirmed = self._stacked(negation or {}, "positive")  # (F, D), None where negation is not measured
        self.negated = self._stacked(negation or {}, "negative")

    def _stacked(self, prompts: dict[str, dict[str, list[str]]], key: str) -> torch.Tensor | None:
        if not prompts or any(key not in lists for lists in prompts.values()):
            return None
        return torch.stack([self._embed(lists[key]) for lists in prompts.values()])

    def _embed(self, sentences: list[str]) -> torch.Tensor:
        with self.autocast:
            return _finite(embed_sentences(self.model, self.processor, sentences), " / ".join(sentences))

    def sentences(self, texts: list[str]) -> torch.Tensor:
        """Embeddings (S, D) of unit length, made in one batch: the same numbers whoever scores it."""
        with self.autocast:
            embeds = self.model.get_text_features(**self.processor(text=texts).to(self.model.device)).pooler_output
        return _finite(l2_normalize(embeds.float()), " / ".join(texts)[:200])

    def phrase(self, phrase: str) -> Probe:
        if phrase not in self._phrases:
            tokenizer = self.processor.tokenizer
            inputs = self.processor(text=[phrase]).to(self.model.device)
            ids = inputs["input_ids"]  # (1, T)
            with self.autocast:
                text = self.model.encode_text(**inputs)
                tokens = text.local_embeds[0].float()
            # An unknown word is a word: not all_special_ids.
            special = [getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "cls", "sep", "pad")]
            special = torch.tensor([token for token in special if token is not None], device=ids.device)
            counts = ~torch.isin(ids[0], special)
            names = tokenizer.convert_ids_to_tokens(ids[0].tolist())
            # Nor does a full stop describe anything.
            chosen = [i for i in counts.nonzero().ravel().tolist() if any(map(str.isalnum, names[i]))]
            embeds = l2_normalize(torch.cat([text.embeds.float(), tokens[chosen]]))
            self._phrases[phrase] = Probe(_finite(embeds, phrase), [names[i] for i in chosen])
        return self._phrases[phrase]


def _finite(embeds: torch.Tensor, text: str) -> torch.Tensor:
    if torch.isnan(embeds).any():
        raise ValueError(f"The model gives NaN for the sentence {text!r}.")
    return embeds


@torch.inference_mode()
def embed_sentences(model: TierModel, processor: TierProcessor, sentences: list[str]) -> torch.Tensor:
    """One embedding (D,) for a list of sentences: each normalised, then their mean normalised."""
    embeds = model.get_text_features(**processor(text=sentences).to(model.device)).pooler_output.float()
    return l2_normalize(l2_normalize(embeds).mean(dim=0))


class Batches(torch.utils.data.Dataset):
    """Batch i of a data set: what is known of its rows, and the inputs of the model."""

    def __init__(self, dataset: Dataset, processor: TierProcessor, batch_size: int, with_text: bool):
        self.stored, self.processor = undecoded(dataset), processor
        self.batch_size, self.with_text = batch_size, with_text
        self.to_pixels = GreyPictures(processor)

    def __len__(self) -> int:
        return math.ceil(len(self.stored) / self.batch_size)

    def __getitem__(self, i: int) -> dict:
        start = i * self.batch_size
        rows = self.stored[start : start + self.batch_size]
        pictures, digests, unreadable = {}, [], {}
        for k, (cell, image_id) in enumerate(zip(rows["image"], rows["image_id"])):
            try:
                pictures[k] = read_picture(cell, image_id)
                digests.append(content_digest(cell))
            except ValueError as error:
                unreadable[start + k] = str(error)

        def readable(name: str) -> list:
            return [rows[name][k] for k in pictures]

        batch = {
            "rows": [start + k for k in pictures],
            "digests": digests,
            "image_ids": readable("image_id"),
            "sizes": [picture.size for picture in pictures.values()],
            "regions": readable("regions") if "regions" in rows else None,
            "unreadable": unreadable,
            "with_text": self.with_text,
            "texts": readable("text") if self.with_text else [],
        }
        if pictures:
            # Where there are no texts, one empty text: the model asks for one.
            text = batch["texts"] if self.with_text else [""]
            batch["inputs"] = dict(self.processor(text=text)) | self.to_pixels(list(pictures.values()))
        return batch


@dataclass(frozen=True)
class ScoringOptions:
    """How the images of a data set are scored."""

    batch_size: int = 64
    """Images a step."""
    localisation: bool = True
    """Whether to measure maps of the phrases in `regions`, where the data set has them."""
    thorough: bool = False
    """Every way of looking at a map, and both entropies with padding counted (as [`~localisation.MapOptions`] and
    [`PairScores`] say)."""
    tokens: bool = True
    """Whether `thorough` includes the maps of single tokens."""
    no_finding: Sequence[str] = ()
    """Sentences whose map is subtracted from others; empty: there are no such maps."""
    negation: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """Sentences of the prompts' findings, as [`~prompts.load_negation`] gives them; empty: negation is not measured.
    They cost two texts per finding, and nothing per image but two cosines."""
    sentences: bool = False
    """Whether to embed each sentence of the texts, for retrieval: as many texts more as there are sentences."""
    smoothing: float = 0.0
    """Sigma, in patches, of the gaussian that maps are filtered by before they are measured; 0: none."""
    dtype: str = "float32"
    """Or "bfloat16" or "float16" for the encoders, by autocast; what comes after them is float32."""
    num_workers: int = 0
    """Worker processes that read and prepare pictures."""
    progress: bool = True
    """Whether to show a bar."""

    def autocast(self, device: torch.device) -> torch.autocast:
        dtype = DTYPES[self.dtype]
        return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def score(
    model: TierModel,
    processor: TierProcessor,
    dataset: Dataset,
    prompts: dict[str, dict[str, list[str]]],
    options: ScoringOptions,
    cache: Path | None = None,
    process: tuple[int, int] = (0, 1),
) -> list[Scored]:
    """
    Score the parts of a data set that belong to this process.

    Args:
        model: the model; its training mode is restored afterwards.
        processor: its processor.
        dataset: rows as [`~data.load_pairs`] gives them.
        prompts: sentences by finding, as [`load_prompts`] gives them.
        options: how.
        cache: folder of finished parts; those that are there are not computed again. None: everything in memory.
        process: number of this process, and how many there are.

    Returns:
        without a cache the parts, in order, for [`join`]; with one nothing: [`read_parts`] reads it.

    Raises:
        ValueError: if more than 1% of the images cannot be read, or the model gives NaN (with the image's id).
    """
    batches = Batches(dataset, processor, options.batch_size, has_texts(dataset))
    parts = dict(enumerate(_parts(len(batches))))
    mine = {number: parts[number] for number in list(parts)[process[0] :: process[1]]}
    if cache is not None:
        mine = {
            number: part
            for number, part in mine.items()
            if not _is_complete(_part_file(cache, number), _rows_of(part, options.batch_size, dataset))
        }
    if not mine:
        return []
    results, training = [], model.training
    model.eval()
    try:
        for number, scored in _scored_parts(model, processor, batches, mine, prompts, options):
            if cache is None:
                results.append(scored)
            else:
                scored.save(_part_file(cache, number))
    finally:
        model.train(training)
    return results


@torch.inference_mode()
def _scored_parts(
    model: TierModel,
    processor: TierProcessor,
    batches: Batches,
    parts: dict[int, range],
    prompts: dict[str, dict[str, list[str]]],
    options: ScoringOptions,
) -> Iterator[tuple[int, Scored]]:
    """Number and scores of each part, given as the numbers of its batches."""
    autocast = options.autocast(model.device)
    probes = Probes(model, processor, prompts, list(options.no_finding), autocast, options.negation)
    loaded = _loaded(batches, [i for part in parts.values() for i in part], options)
    unreadable = 0
    for number, part in parts.items():
        scored = []
        for batch in itertools.islice(loaded, len(part)):
            unreadable += len(batch["unreadable"])
            _check_unreadable(list(batch["unreadable"].values()), unreadable, len(batches.stored))
            scored.append(score_batch(model, processor, batch, probes, options))
        yield number, join(scored)


def _loaded(batches: Batches, numbers: list[int], options: ScoringOptions) -> Iterator[dict]:
    """The batches of these numbers, in order."""
    loader = DataLoader(
        torch.utils.data.Subset(batches, numbers),
        batch_size=None,
        num_workers=options.num_workers,
        generator=torch.Generator(),  # the workers' seeds must not take from the model's random numbers
    )
    return iter(tqdm(loader, desc="evaluating", disable=not options.progress, leave=False))


def _rows_of(batch_numbers: range, batch_size: int, dataset: Dataset) -> range:
    """The rows of consecutive batches."""
    return range(batch_numbers.start * batch_size, min(batch_numbers.stop * batch_size, len(dataset)))


def score_batch(
    model: TierModel, processor: TierProcessor, batch: dict, probes: Probes, options: ScoringOptions
) -> Scored:
    """The numbers of one batch's images."""
    with_text = batch["with_text"]
    scored = Scored(
        unreadable=np.array(list(batch["unreadable"].values()), dtype=str),
        unreadable_rows=np.array(list(batch["unreadable"]), dtype=np.int64),
    )
    if not batch["rows"]:
        return scored
    inputs = {name: tensor.to(model.device) for name, tensor in batch["inputs"].items()}
    with probes.autocast:
        has_maps = options.localisation and batch["regions"] is not None
        with_weights = has_maps and model.no_contributions is None
        out = model(**inputs, return_loss=with_text, output_patch_weights=with_weights)
    image_embeds, patch_embeds = out.image_embeds.float(), out.patch_embeds.float()
    _check_numbers("image", batch, image_embeds, patch_embeds)
    scored.images = _image_scores(batch, image_embeds, patch_embeds, probes)
    if with_text:
        _check_numbers("text of", batch, out.text_embeds)
        mask = model.entropy_mask(inputs["input_ids"], inputs.get("attention_mask"))
        scored.pairs = _pair_scores(out, mask, options.thorough)
        if options.sentences:
            scored.sentences = _sentence_scores(batch, probes)
    if has_maps:
        maps = MapOptions(
            processor=processor,
            grid=_grid(inputs["pixel_values"], patch_embeds),
            probe=probes.phrase,
            no_finding=probes.no_finding,
            thorough=options.thorough,
            tokens=options.tokens,
            smoothing=options.smoothing,
        )
        weights = out.patch_weights if with_weights else [None] * len(patch_embeds)
        images = zip(batch["rows"], patch_embeds, weights, batch["regions"], batch["sizes"])
        scored.maps = join([ground(*image, maps) for image in images])
        if options.thorough:
            scored.sides = _side_scores(batch, image_embeds, probes)
    return scored


def _check_numbers(what: str, batch: dict, *embeds: torch.Tensor) -> None:
    bad = torch.stack([torch.isnan(part.float()).flatten(1).any(dim=1) for part in embeds]).any(dim=0)
    if bad.any():
        image_id = batch["image_ids"][int(bad.nonzero()[0])]
        raise ValueError(f"The model gives NaN for the {what} {image_id}.")


def _image_scores(batch: dict, image_embeds: torch.Tensor, patch_embeds: torch.Tensor, probes: Probes) -> ImageScores:
    numbers = {"num_patches": torch.full((len(image_embeds),), patch_embeds.shape[1], device=image_embeds.device)}
    if probes.positive is not None:
        numbers["positive"] = image_embeds @ probes.positive.T
        numbers["peaks"] = (patch_embeds @ probes.positive.T).argmax(dim=1)
        if probes.negative is not None:
            numbers["negative"] = image_embeds @ probes.negative.T
    if probes.negated is not None:
        numbers["affirmed"] = image_embeds @ probes.affirmed.T
        numbers["negated"] = image_embeds @ probes.negated.T
    numbers["embeds"] = image_embeds
    return ImageScores(rows=np.array(batch["rows"]), digests=np.array(batch["digests"]), **_on_cpu(numbers))


def _side_scores(batch: dict, image_embeds: torch.Tensor, probes: Probes) -> SideScores | None:
    """None where no phrase of the images names one side."""
    rows = []
    for row, embed, regions in zip(batch["rows"], image_embeds, batch["regions"]):
        for finding, phrase in one_sided(regions or []).items():
            own, other = (probes.phrase(text).embeds[0] for text in (phrase, mirrored(phrase)))
            towards_own = float(embed @ (own - other))
            is_left = side_of(phrase) == "left"
            rows.append((row, finding, is_left, towards_own if is_left else -towards_own))
    return SideScores(*map(np.array, zip(*rows))) if rows else None


def _sentence_scores(batch: dict, probes: Probes) -> SentenceScores | None:
    """None where no text holds a sentence."""
    own = [(row, part) for row, text in zip(batch["rows"], batch["texts"]) for part in split_sentences(text)]
    if not own:
        return None
    rows, parts = zip(*own)
    embeds = probes.sentences(list(parts))
    return SentenceScores(np.array(rows), np.array(parts, dtype=str), embeds.cpu().numpy())


def _pair_scores(out: TierOutput, mask: torch.Tensor | None, thorough: bool) -> PairScores:
    """
    Args:
        out: of a batch with its loss.
        mask: (N, T) the tokens that count in the entropies; None: all.
        thorough: whether to measure them with the positions of padding counted, too.
    """
    text_embeds, patch_embeds = out.text_embeds.float(), out.patch_embeds.float()
    cosines = out.token_embeds.float() @ patch_embeds.transpose(1, 2)  # (N, T, P)
    everything = torch.ones(cosines.shape[:2], dtype=torch.bool, device=cosines.device)
    mask = everything if mask is None else mask
    own = (patch_embeds @ text_embeds.unsqueeze(2)).squeeze(2)  # (N, P)
    numbers = {
        "embeds": text_embeds,
        "loss": out.loss.expand(len(own)),
        "contrastive_loss": out.contrastive_loss.expand(len(own)),
        "rank_similarity": own.sort(dim=1, descending=True).values,
        "max_patch_entropy": mask.sum(dim=1).clamp(min=1).log(),
    }
    # Of bare cosines, as the paper's, whatever temperature a model was trained with: one measure for all.
    return PairScores(
        **_on_cpu(numbers),
        sparsity=_on_cpu(sparsity(cosines, mask)),
        padded=_on_cpu(sparsity(cosines, everything)) if thorough else {},
    )


def _on_cpu(numbers: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.float().cpu().numpy() for name, tensor in numbers.items()}


def read_parts(cache: Path, dataset: Dataset, batch_size: int) -> Scored:
    """All that [`score`] has put into a cache, whoever wrote it."""
    parts = _parts(math.ceil(len(dataset) / batch_size))
    joined = join([Scored.load(_part_file(cache, number)) for number in range(len(parts))])
    _check_unreadable(joined.unreadable.tolist(), len(joined.unreadable), len(dataset))
    return joined


def _parts(num_batches: int) -> list[range]:
    """The batches of each part: one, so that the work is spread evenly and little is lost; more in a large set."""
    size = math.ceil(num_batches / MAX_PARTS)
    return [range(i, min(i + size, num_batches)) for i in range(0, num_batches, size)]


def has_texts(dataset: Dataset) -> bool:
    return all(isinstance(text, str) and text for text in dataset["text"])


def _check_unreadable(reasons: list[str], number: int, total: int) -> None:
    if reasons and number > max(1, MAX_UNREADABLE * total):  # a single picture ends no evaluation
        raise ValueError(f"{reasons[0]} ({number} of the {total} images could not be read: more than 1%.)")


def _part_file(cache: Path, number: int) -> Path:
    return cache / f"part-{number:05d}.npz"


def _is_complete(path: Path, rows: Iterable[int]) -> bool:
    """Whether a part is there, undamaged, and of these rows of the data set."""
    try:
        part = Scored.load(path)
    except ValueError:
        return False
    return sorted([*part.rows.tolist(), *part.unreadable_rows.tolist()]) == list(rows)


def _grid(pixel_values: torch.Tensor, patch_embeds: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of the patches, in the proportions of the input."""
    height, width = pixel_values.shape[-2:]
    rows = round(math.sqrt(patch_embeds.shape[1] * height / width))
    return rows, patch_embeds.shape[1] // rows
