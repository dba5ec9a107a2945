# Licensed under the Apache License, Version 2.0.
"""What is known of a data set: one record beside its loader, from which everything else takes it."""

import inspect
import os
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from datasets import Dataset, IterableDataset


# Around the pattern of an id: it must not be part of a longer word or number.
ID_START, ID_END = r"(?<![0-9A-Za-z])", r"(?![0-9A-Za-z])"


@dataclass(frozen=True)
class DatasetRecord:
    """
    A data set.

    Attributes:
        name: in configurations and on the command line.
        load: gives the pairs of one split; its other parameters are the options of the data set.
        title: as people call it.
        address: web page, if it has one.
        licence: under which its owners publish it.
        licence_address: of the licence's text, where it is a public one.
        access: who may have it, as the end of a sentence of the model card.
        shareable: whether everybody may see its pictures and sentences. False: its terms forbid it, and nobody can
            allow it here. None: its owner decides, by `--shareable`.
        patients: name of the data set whose patients' ids are the same as its own; None: only its own are.
        data_use_agreement: whether its texts are de-identified and still under an agreement.
        id_patterns: regular expressions of its ids (patients, studies, images), each with the words for a message;
            nothing that matches one is published.
        distinctive_ids: keys of `id_patterns` that no published vocabulary of a tokenizer matches by chance.
        folders: names that people give its folder, in lower case and with hyphens for blanks and underscores; `*` is
            any text, and `.` the folder around all data sets. Its own name need not be listed.
        files: what its folder holds: of each tuple at least one, as patterns below the folder, with or without .gz.
        companions: options that name a file which may be in another folder, with patterns of that file like `folders`.
        findings: names of its findings. Empty: they are not known beforehand.
        public_findings: whether the names of its findings are published by its owners, so that they may be shown.
    """

    name: str
    load: Callable[..., Dataset | IterableDataset]
    title: str
    address: str | None
    licence: str | None
    access: str
    licence_address: str | None = None
    shareable: bool | None = False
    patients: str | None = None
    data_use_agreement: bool = False
    id_patterns: Mapping[str, str] = field(default_factory=dict)
    distinctive_ids: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    files: tuple[tuple[str, ...], ...] = ()
    companions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    findings: tuple[str, ...] = ()
    public_findings: bool = True

    @property
    def options(self) -> dict[str, object]:
        """Options with their defaults."""
        parameters = inspect.signature(self.load).parameters
        return {name: parameter.default for name, parameter in parameters.items() if name != "split"}

    @property
    def path_options(self) -> tuple[str, ...]:
        """Options that name a file or a folder: another machine has other ones for the same data."""
        hints = typing.get_type_hints(self.load)
        return tuple(name for name in self.options if os.PathLike in typing.get_args(hints[name]))
