# Licensed under the Apache License, Version 2.0.
"""
When a score says little: words that the tokenizer does not know, and pictures unlike a radiograph. Nothing of torch is
imported: the exported encoders use a copy of this file.
"""

import numpy as np
from PIL import Image

from .maps_tier import words_of


_SIDE = 128  # to which a picture is reduced before neighbouring pixels are compared
_MIN_SIDE = 64  # of a smaller picture a fine structure may look like noise
_MAX_COLOURED_FRACTION, _COLOURED = 0.1, 32  # of the pixels, and how far apart their channels are then
_MIN_CORRELATION = 0.5  # of neighbours: of noise it is 0, of radiographs above 0.8


def unknown_words(sentence: str, ids: list[int], offsets: list[tuple[int, int]], unknown_id: int | None) -> list[str]:
    """
    Words of which a tokenizer makes its unknown token, or single characters alone.

    Args:
        sentence: what was tokenised.
        ids, offsets: its tokens, and where each begins and ends in the sentence.
        unknown_id: id of the unknown token, if the tokenizer has one.
    """
    words: dict[str, None] = {}
    for word, positions in words_of(sentence, offsets):
        spelled = len(word) > 3 and all(offsets[i][1] - offsets[i][0] <= 1 for i in positions)
        if spelled or any(ids[i] == unknown_id for i in positions):
            words[word] = None
    return list(words)


def unlike_radiograph(picture: Image.Image) -> str | None:
    """What of an 8-bit picture no radiograph has, where a cheap look shows it: its colours, noise, a single grey."""
    if picture.mode != "L":
        sample = np.asarray(picture.convert("RGB").resize((_MIN_SIDE, _MIN_SIDE), Image.Resampling.NEAREST), np.int16)
        coloured = np.ptp(sample, axis=2) > _COLOURED
        if coloured.mean() > _MAX_COLOURED_FRACTION:
            return "it is coloured"
    size = [min(side, _SIDE) for side in picture.size]
    greys = np.asarray(picture.convert("L").resize(size, Image.Resampling.BOX), np.float32)
    if not greys.std() > 0:
        return "it is of one grey"
    if min(picture.size) < _MIN_SIDE:
        return None
    correlation = np.corrcoef(greys[:, :-1].ravel(), greys[:, 1:].ravel())[0, 1]
    return "its neighbouring pixels have nothing to do with each other" if correlation < _MIN_CORRELATION else None


def note(unlike: str | None, unknown: list[str] | tuple[str, ...]) -> str | None:
    """The sentences to show with a score, or None."""
    reasons = [f"The picture is unlike a radiograph: {unlike}."] if unlike else []
    reasons += [f"The tokenizer does not know: {', '.join(unknown)}."] if unknown else []
    return " ".join([*reasons, "The score says little."]) if reasons else None
