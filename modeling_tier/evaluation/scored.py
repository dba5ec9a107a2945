# Licensed under the Apache License, Version 2.0.
"""
The numbers of a pass over a data set: of each image, of each image-text pair, of each map.

The fields are also the format of the cache: a file with other fields, or the numbers of other measures, is not read.
"""

import dataclasses
import io
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..files import replaced_file
from .measures import LOCALISATION, SPARSITY, group


FORMAT = 3  # of the cache, beside its fields; another one when numbers of the same name come about otherwise
_SEPARATOR = ":"


@dataclass
class ImageScores:
    """One row per image that was read; F is the number of findings with sentences."""

    rows: np.ndarray
    """(N,) row in the data set."""
    digests: np.ndarray
    """(N,) SHA-256 of the image's file."""
    embeds: np.ndarray
    """(N, D)"""
    num_patches: np.ndarray
    """(N,)"""
    positive: np.ndarray | None = None
    """(N, F) cosines with the positive sentences; None without sentences."""
    negative: np.ndarray | None = None
    """(N, F) likewise; None also where the findings compete with each other."""
    peaks: np.ndarray | None = None
    """(N, F) the patch that the positive sentences fit best."""
    affirmed: np.ndarray | None = None
    """(N, F) cosines with "There is {finding}", of [`~prompts.load_negation`]; None: negation is not measured."""
    negated: np.ndarray | None = None
    """(N, F) cosines with "There is no {finding}", likewise."""


@dataclass
class PairScores:
    """One row per image with its own text."""

    embeds: np.ndarray
    """(N, D) of the texts."""
    loss: np.ndarray
    """(N,) of the pair's batch."""
    contrastive_loss: np.ndarray
    """(N,) likewise."""
    rank_similarity: np.ndarray
    """(N, P) cosines of the patches with the text, from the largest to the smallest."""
    max_patch_entropy: np.ndarray
    """(N,) log of the number of counted tokens."""
    sparsity: dict[str, np.ndarray]
    """(N,) by measure, as [`~sparsity.sparsity`] gives them."""
    padded: dict[str, np.ndarray] = field(default_factory=dict)
    """(N,) by measure, with the positions of padding counted, up to the longest text of the batch."""


@dataclass
class SentenceScores:
    """One row per image and sentence of its text."""

    row: np.ndarray
    """(S,) row in the data set."""
    sentence: np.ndarray
    """(S,)"""
    embeds: np.ndarray
    """(S, D) of unit length."""


@dataclass
class SideScores:
    """One row per image and finding whose phrases name one side."""

    row: np.ndarray
    """(K,) row in the data set."""
    finding: np.ndarray
    """(K,)"""
    left: np.ndarray
    """(K,) whether the side is the left one."""
    margin: np.ndarray
    """(K,) cosine of the image with the phrase of the left side minus that with the same of the right."""


@dataclass
class MapScores:
    """One row per map: of each phrase that names a region, and of each of its tokens."""

    row: np.ndarray
    """(M,) row in the data set."""
    finding: np.ndarray
    """(M,)"""
    phrase: np.ndarray
    """(M,)"""
    token: np.ndarray
    """(M,) empty for a whole phrase."""
    measured: dict[str, dict[str, np.ndarray]]
    """By [`~localisation.variant_name`] and name in `measure_maps`: (M,), or (M, K) at K thresholds; NaN where the
    region is not there. Empty where no map was measured."""
    num_outside: int = 0
    """Phrases whose region lies outside the crop."""

    def of(self, variant: str, name: str) -> np.ndarray:
        return self.measured[variant][name]


@dataclass
class Scored:
    """Of a data set, or of a part of it."""

    images: ImageScores | None = None
    """None if no image could be read."""
    pairs: PairScores | None = None
    """None without texts."""
    maps: MapScores | None = None
    """None without regions."""
    sentences: SentenceScores | None = None
    """None without texts, or if they were not asked for."""
    sides: SideScores | None = None
    """None where no phrase names one side."""
    unreadable: np.ndarray = field(default_factory=lambda: np.array([], dtype=str))
    """Why an image could not be read."""
    unreadable_rows: np.ndarray = field(default_factory=lambda: np.array([], dtype=np.int64))

    @property
    def rows(self) -> np.ndarray:
        return self.images.rows if self.images is not None else np.array([], dtype=np.int64)

    def save(self, path: Path) -> None:
        """Write a file that appears complete or not at all; other processes may write the same."""
        buffer = io.BytesIO()
        np.savez(buffer, **dict(_arrays(self)))
        with replaced_file(path, shared=True) as file:
            file.write(buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> "Scored":
        """
        Read what [`save`] has written.

        Raises:
            ValueError: if the file is damaged, or has not just the fields above, with one row per image, pair and map.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                scored = _rebuilt(cls, {tuple(name.split(_SEPARATOR)): arrays[name] for name in arrays.files})
        except (OSError, ValueError, TypeError, KeyError, EOFError, MemoryError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} holds no scores of this format: {error}") from error
        for part in (scored.images, scored.pairs, scored.maps, scored.sentences, scored.sides):
            lengths = {len(values) for _, values in _arrays(part) if values.ndim} if part is not None else {0}
            if len(lengths) > 1:
                raise ValueError(f"{path}: {type(part).__name__} has columns of different lengths {sorted(lengths)}.")
        return scored


def join(parts: list[Scored]) -> Scored:
    """All the parts' rows, one part below the other."""
    return _joined(parts)


def cache_format() -> dict:
    """The fields and the measures that are stored: caches of another format are not looked at."""
    kinds = (Scored, ImageScores, PairScores, MapScores, SentenceScores, SideScores)
    fields = {kind.__name__: [f.name for f in dataclasses.fields(kind)] for kind in kinds}
    measures = {name: sorted(m.of_map or m.name for m in group(name)) for name in (LOCALISATION, SPARSITY)}
    return {"number": FORMAT} | fields | measures


def _arrays(part, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, np.ndarray]]:
    """Name and array of everything in a dataclass or dict."""
    content = part if isinstance(part, dict) else {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
    for name, value in content.items():
        path = (*prefix, name)
        if isinstance(value, dict) or dataclasses.is_dataclass(value):
            yield from _arrays(value, path)
        elif value is not None:
            yield _SEPARATOR.join(path), np.asarray(value)


_NESTED: dict[str, Callable] = {
    "images": ImageScores,
    "pairs": PairScores,
    "maps": MapScores,
    "sentences": SentenceScores,
    "sides": SideScores,
}


def _rebuilt(kind: Callable, arrays: dict[tuple[str, ...], np.ndarray]):
    """A dataclass from the arrays below its fields; `kind` may be dict."""
    by_field: dict[str, dict] = {}
    for (name, *rest), values in arrays.items():
        by_field.setdefault(name, {})[tuple(rest)] = values
    content = {}
    for name, below in by_field.items():
        if set(below) == {()}:
            content[name] = below[()]
        else:
            content[name] = _rebuilt(_NESTED[name] if kind is Scored else dict, below)
    if kind is MapScores:
        content["num_outside"] = int(content["num_outside"])
        content.setdefault("measured", {})
    return kind(**content)


def _joined(parts: list):
    """Dataclasses, dicts, arrays or counts of one kind; None is skipped."""
    parts = [part for part in parts if part is not None]
    if not parts:
        return None
    first = parts[0]
    if dataclasses.is_dataclass(first):
        names = [f.name for f in dataclasses.fields(first)]
        return type(first)(**{name: _joined([getattr(part, name) for part in parts]) for name in names})
    if isinstance(first, dict):
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: _joined([part[name] for part in parts if name in part]) for name in names}
    return sum(parts) if isinstance(first, int) else np.concatenate(parts)
