# Licensed under the Apache License, Version 2.0.
"""Left against right: does an image fit the sentence with its own side better than the same with the other?"""

import re
from collections import defaultdict


_SIDE = re.compile(r"\b(left|right)\b", re.IGNORECASE)
_OTHER = {"left": "right", "Left": "Right", "LEFT": "RIGHT"}
_OTHER |= {other: side for side, other in _OTHER.items()}


def side_of(phrase: str) -> str | None:
    """ "left" or "right"; None for a phrase that names neither, or both."""
    named = {word.lower() for word in _SIDE.findall(phrase)}
    return named.pop() if len(named) == 1 else None


def mirrored(phrase: str) -> str:
    """The same phrase with the other side."""
    return _SIDE.sub(lambda match: _OTHER.get(match[0], _OTHER[match[0].lower()]), phrase)


def one_sided(regions: list[dict]) -> dict[str, str]:
    """Of an image's ground-truth regions: by finding the first phrase, where all its phrases with a side name one."""
    phrases = defaultdict(dict)
    for region in regions:
        if side := side_of(region["phrase"]):
            phrases[region["finding"]].setdefault(side, region["phrase"])
    return {finding: next(iter(by_side.values())) for finding, by_side in phrases.items() if len(by_side) == 1}
