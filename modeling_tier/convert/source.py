# Licensed under the Apache License, Version 2.0.
"""A kind of published weights: one record beside its converter, from which the command takes everything."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..modeling_tier import TierModel
from ..processing_tier import TierProcessor


_NOT_OPTIONS = ("record", "reading_options")  # of the command

Converted = tuple[TierModel, TierProcessor]


@dataclass(frozen=True)
class Source:
    """
    A kind of published weights.

    Attributes:
        name: on the command line.
        convert: gives the model and its processor. Its parameters beside `record` are the options of the command.
        reads: what it takes.
        writes: the two encoders of the TIER model that it gives.
        options: a description of each option but `image_options`, which all sources have.
    """

    name: str
    convert: Callable[..., Converted]
    reads: str
    writes: str
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def defaults(self) -> dict[str, object]:
        """Options with their defaults; `inspect.Parameter.empty` for one that must be given."""
        parameters = inspect.signature(self.convert).parameters
        return {name: parameter.default for name, parameter in parameters.items() if name not in _NOT_OPTIONS}
