# Licensed under the Apache License, Version 2.0.
"""What a local loss is given of a batch, and how it is computed in blocks and over processes."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from ..collectives_tier import gather_rows, mean_over_processes, sizes_of_processes
from ..modeling_tier import TierOutput


@dataclass
class Pairs:
    """N matched pairs, embedded; embeddings are of unit length."""

    text: torch.Tensor
    """(N, D)"""
    image: torch.Tensor
    """(N, D)"""
    tokens: torch.Tensor
    """(N, T, D)"""
    patches: torch.Tensor
    """(N, P, D)"""
    patch_weights: torch.Tensor | None
    """(N, P): a patch's contribution to the score is its cosine with the text times this; None where no loss asks."""
    mask: torch.Tensor
    """(N, T) the tokens that are no padding."""
    content: torch.Tensor
    """(N, T) those of them that are no special tokens; at least one of each text."""
    scale: torch.Tensor
    """The model's exp(logit_scale)."""
    sentences: torch.Tensor | None = None
    """(S, D), the sentences of all N texts, each by itself; None where the loss asks for none."""
    owners: torch.Tensor | None = None
    """(S,) the pair that each sentence is of, in ascending order; every pair has at least one."""
    chunk_size: int | None = None
    """Pairs of a block, of which alone the intermediate values are held in memory; None: as `max_values` allows."""
    max_values: int | None = None
    """Of the largest tensor over texts and images that a loss may make; None: of any size."""

    @classmethod
    def of(cls, out: TierOutput, mask: torch.Tensor, content: torch.Tensor, scale: torch.Tensor, **more) -> "Pairs":
        """Of the output of a [`TierModel`], in its dtype."""
        embeds = out.text_embeds, out.image_embeds, out.token_embeds, out.patch_embeds, out.patch_weights
        return cls(*embeds, mask.bool(), content.bool(), scale, **more)

    def __len__(self) -> int:
        return len(self.text)

    def rows(self) -> dict[str, torch.Tensor]:
        """What has a row for each pair, by name."""
        return {name: getattr(self, name) for name in _ROWS if getattr(self, name) is not None}

    def part(self, start: int, stop: int) -> "Pairs":
        """The pairs from `start` to before `stop`."""
        rows = {name: value[start:stop] for name, value in self.rows().items()}
        if self.sentences is not None:
            own = (self.owners >= start) & (self.owners < stop)
            rows |= {"sentences": self.sentences[own], "owners": self.owners[own] - start}
        return dataclasses.replace(self, **rows)

    def parts(self, size: int | None = None) -> list["Pairs"]:
        """Parts of that many pairs; without it of `chunk_size`, or one."""
        size = size or self.chunk_size or len(self)
        return [self.part(start, start + size) for start in range(0, len(self), size)]


_ROWS = ("text", "image", "tokens", "patches", "patch_weights", "mask", "content")

Score = Callable[[Pairs, Pairs], torch.Tensor]
"""Scores of all texts (or sentences) of the first with all images of the second."""


def scores_in_blocks(score: Score, texts: Pairs, images: Pairs, values: int) -> torch.Tensor:
    """
    All scores, made block by block where all at once are too many; a block is computed again for its gradient.

    Args:
        score: of texts with images.
        texts: their `chunk_size` and `max_values` hold.
        images: any number.
        values: of the largest tensor that `score` makes, for one text and one image.
    """
    rows, columns = block_shape(texts, images, values)
    if (rows, columns) == (len(texts), len(images)):
        return score(texts, images)
    image_parts = images.parts(columns)
    lines = []
    for part in texts.parts(rows):
        blocks = [checkpoint(score, part, others, use_reentrant=False) for others in image_parts]
        lines.append(torch.cat(blocks, dim=1))
    return torch.cat(lines)


def block_shape(texts: Pairs, images: Pairs, values: int) -> tuple[int, int]:
    """
    Texts and images of a block: `chunk_size` of each, else those of the fewest blocks of about equal size that
    `max_values` allows at `values` for each text with each image.
    """
    if texts.chunk_size is not None:
        return min(texts.chunk_size, len(texts)), min(texts.chunk_size, len(images))
    if texts.max_values is None or values * len(texts) * len(images) <= texts.max_values:
        return len(texts), len(images)
    shapes = []
    for parts in range(1, len(texts) + 1):
        rows = math.ceil(len(texts) / parts)
        columns = min(len(images), max(1, texts.max_values // values // rows))
        blocks_of_row = math.ceil(len(images) / columns)
        above = max(0, rows * columns * values - texts.max_values)  # one text and one image may have more
        shapes.append((above, parts * blocks_of_row, rows, math.ceil(len(images) / blocks_of_row)))
    return min(shapes)[2:]


def mean_of_pairs(values: Callable[[Pairs], torch.Tensor], pairs: Pairs) -> torch.Tensor:
    """The mean over all pairs, of all processes, of what `values` gives for each (N,) without looking at others."""
    if pairs.chunk_size is None:
        own = values(pairs)
    else:
        own = torch.cat([checkpoint(values, part, use_reentrant=False) for part in pairs.parts()])
    return over_processes(own.mean(), len(pairs))


def number_of_processes() -> int:
    initialized = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if initialized else 1


def over_processes(mean: torch.Tensor, weight: int) -> torch.Tensor:
    """A mean over `weight` pairs as one over those of all processes; the gradient as `mean_over_processes` has it."""
    return mean_over_processes([mean], weight)[0] if number_of_processes() > 1 else mean


def gathered(pairs: Pairs) -> tuple[Pairs, int]:
    """The pairs of all processes, with gradient, and the place of this process's first pair among them."""
    if number_of_processes() == 1:
        return pairs, 0
    device = pairs.text.device
    sizes = sizes_of_processes(len(pairs), device)
    missing = max(sizes_of_processes(pairs.tokens.shape[1], device)) - pairs.tokens.shape[1]
    rows = pairs.rows()
    rows["tokens"] = pad(pairs.tokens, (0, 0, 0, missing))
    rows |= {name: pad(rows[name], (0, missing)) for name in ("mask", "content")}
    together = {name: _gather(value, sizes) for name, value in rows.items()}
    first = sum(sizes[: torch.distributed.get_rank()])
    if pairs.sentences is not None:
        numbers = sizes_of_processes(len(pairs.sentences), device)
        together["sentences"] = _gather(pairs.sentences, numbers)
        together["owners"] = _gather(pairs.owners.unsqueeze(1) + first, numbers).squeeze(1)
    return dataclasses.replace(pairs, **together), first


def _gather(rows: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    flat = rows.flatten(1)
    flat = gather_rows(flat.float() if flat.dtype == torch.bool else flat, sizes)
    return flat.unflatten(1, rows.shape[1:]).to(rows.dtype)
