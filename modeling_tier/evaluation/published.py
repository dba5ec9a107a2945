# Licensed under the Apache License, Version 2.0.
"""Published numbers, from `published.yaml`: each with its protocol and its source."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import yaml

from .measures import BY_NAME, LOCALISATION


_FILE = Path(__file__).with_suffix(".yaml")


@dataclass(frozen=True)
class Note:
    """A protocol or a source, in words."""

    text: str
    short: str = ""
    """Where there is little room."""
    address: str | None = None
    unknown: str = ""
    """What is not stated, or was not checked."""


@dataclass(frozen=True)
class PublishedRow:
    """What one source reports of one model by one protocol."""

    model: str
    measure: str
    protocol: str
    source: str
    values: dict[str, float]
    """By data set, as the suites call it."""


@dataclass(frozen=True)
class Published:
    """All of it."""

    rows: list[PublishedRow]
    protocols: dict[str, Note]
    sources: dict[str, Note]
    counts: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    """By measure and data set, how many `findings` and `images` the numbers are of, as far as it is known."""

    def of(self, measure: str, protocol: str, sets: list[str]) -> list[PublishedRow]:
        """
        The rows that may stand beside numbers of a measure. Of classification, those by the same protocol alone; maps
        are of phrases, whatever the protocol.
        """
        rows = [row for row in self.rows if row.measure == measure and set(row.values) & set(sets)]
        return [
            row for row in rows if BY_NAME[measure].group == LOCALISATION or row.protocol.split(",")[0] == protocol
        ]


@cache
def published() -> Published:
    content = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return Published(
        [PublishedRow(**row) for row in content["rows"]],
        {name: Note(**note) for name, note in content["protocols"].items()},
        {name: Note(**note) for name, note in content["sources"].items()},
        content["counts"],
    )
