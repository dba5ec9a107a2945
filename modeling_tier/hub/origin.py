# Licensed under the Apache License, Version 2.0.
"""Where a model comes from: its training data, its pretrained model, and the source of its tokenizer's vocabulary."""

import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from ..data import DATASETS
from .known_fields import local_source


TRAINING_CONFIG = "training_config.yaml"
CONVERSION_RECORD = "conversion.json"
MAX_BYTES = 64 * 2**20
"""Size in bytes of a JSON or YAML file that is read."""
MAX_DEPTH = 64
"""Depth of nested lists and mappings in such a file."""
MAX_YAML_VALUES = 200_000
"""Number of values in a YAML file: by aliases, a file of a few lines can expand to billions."""

# The tokens at the start of a vocabulary made by `train_tokenizer`; no published one starts so.
_MADE_HERE = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


@dataclass(frozen=True)
class Words:
    """Where the vocabulary of a tokenizer comes from."""

    dataset: str | None = None
    """The data set whose texts it was made of, if it was made by a recorded run."""
    hub_name: str | None = None
    """The repository on the Hub that it was loaded from, as the records say."""
    converted: bool = False
    """Whether it came with weights that `modeling_tier.conversion` has converted."""
    missing: str | None = None
    """The folder that it was loaded from, if that is not there any more."""


@dataclass(frozen=True)
class Origin:
    """Where a model comes from, as far as the folders on this machine say it."""

    datasets: tuple[str, ...] = ()
    """Names of the data sets that it was trained on, those of its pretrained model included."""
    known: bool = False
    """Whether all its ancestors are recorded."""
    words: Words = Words()
    base_model: str | None = None
    """Name on the Hub of what it started from."""


def find_origin(folder: Path, seen: tuple[Path, ...] = ()) -> Origin:
    """Follow a run, and the local folders that it started from, to the data sets behind it."""
    resolved = folder.resolve()
    if resolved in seen:
        return Origin()
    if (folder / TRAINING_CONFIG).is_file():
        return origin_of(read_yaml(folder / TRAINING_CONFIG), resolved.parents, (*seen, resolved))
    if (folder / CONVERSION_RECORD).is_file():
        return _origin_of_conversion(read_json(folder / CONVERSION_RECORD))
    return Origin()


def origin_of(config: dict, bases: Iterable[Path], seen: tuple[Path, ...] = ()) -> Origin:
    """[`find_origin`] for the options of a run; relative paths are tried from each of the folders `bases`."""
    bases = list(bases)
    names = _datasets(config)
    dataset = " and ".join(names) or None
    pretrained, tokenizer = option(config, "model", "pretrained"), option(config, "tokenizer", "pretrained")
    source = local_source(pretrained, bases)
    if not pretrained:
        model = config.get("model")
        from_nothing = not (isinstance(model, dict) and model.get("pretrained"))  # else a value that is no name
        parent = Origin(known=from_nothing, words=Words(dataset=dataset))
    elif source is None:
        parent = Origin(words=Words(hub_name=pretrained), base_model=pretrained)
    elif not source.exists():
        parent = Origin(words=Words(missing=pretrained))
    else:
        parent = find_origin(source, seen)
    words = parent.words
    if tokenizer:
        source = local_source(tokenizer, bases)
        words = Words(hub_name=tokenizer) if source is None else find_origin(source, seen).words
    return Origin(
        datasets=tuple(dict.fromkeys((*names, *parent.datasets))),
        known=parent.known and bool(names),
        words=words,
        base_model=parent.base_model,
    )


def _datasets(config: dict) -> list[str]:
    """What a run was trained on: `data.sets`, where it names any, else `data.name`."""
    data = config.get("data")
    sets = data.get("sets") if isinstance(data, dict) else None
    if sets:
        return [name for name in sets if isinstance(name, str)] if isinstance(sets, dict) else []
    name = option(config, "data", "name")
    return [name] if name else []


def option(config: dict, section: str, name: str) -> str | None:
    """An option of a run that is a text; None for a value of another type."""
    part = config.get(section)
    value = part.get(name) if isinstance(part, dict) else None
    return value if isinstance(value, str) and value else None


def _origin_of_conversion(record: dict) -> Origin:
    """Files that came from the Hub are recorded as user/name/file; the first of them names the repository."""
    files = record.get("files")
    names = [str(file.get("name")) for file in files if isinstance(file, dict)] if isinstance(files, list) else []
    repositories = [m[1] for m in (re.match(r"([\w-][\w.-]*/[\w-][\w.-]*)/.", name) for name in names) if m]
    words = [m[1] for m in (re.match(r"(.*)/(tokenizer\.json|vocab\.(txt|json))$", name) for name in names) if m]
    return Origin(
        words=Words(hub_name=words[0] if words else None, converted=True),
        base_model=repositories[0] if repositories else None,
    )


# Terms


def may_be_shown(dataset: str, shareable: bool) -> bool:
    """Whether the pictures and texts of a data set may be public."""
    allowed = _shareable(dataset)
    return shareable if allowed is None else allowed


def _shareable(dataset: str) -> bool | None:
    return DATASETS[dataset].shareable if dataset in DATASETS else False


def check_shareable(datasets: Iterable[str], shareable: bool) -> None:
    """Raise ValueError if `shareable` is set for a data set whose terms forbid it."""
    never = sorted({name for name in datasets if _shareable(name) is False})
    if shareable and never:
        raise ValueError(
            f"--shareable: {', '.join(never)} may never be shown: its terms of access also hold for its "
            "pictures and sentences. Leave --shareable out; the numbers of an evaluation go without it."
        )


# Vocabularies


def made_here(vocabulary: dict[str, int]) -> bool:
    """Whether a vocabulary is one that `train.py` has made from its texts: special tokens, characters, words."""
    words, number = sorted(vocabulary, key=vocabulary.__getitem__), len(_MADE_HERE)
    return tuple(words[:number]) == _MADE_HERE and all(len(word) == 1 for word in words[number : number + 3])


def number_of_words(vocabulary: dict[str, int]) -> int:
    return sum(len(word) > 1 and not word.startswith("##") and word not in _MADE_HERE for word in vocabulary)


def _unrecorded(words: Words) -> str:
    start = f" (it started from {words.missing}, which is not here: publish it where that is)" if words.missing else ""
    return f"texts of which nothing is recorded{start}"


def is_cached(name: str, vocabulary: Iterable[str]) -> bool:
    """Whether the cache of the Hub on this machine holds this vocabulary under the name of the repository."""
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model") / "snapshots"
    words = set(vocabulary)
    for file in (*folder.glob("*/tokenizer.json"), *folder.glob("*/vocab.txt"), *folder.glob("*/vocab.json")):
        known = _words_of_file(file)
        if known and len(words - known) <= 16:  # special tokens that were added
            return True
    return False


def _words_of_file(file: Path) -> set[str]:
    try:
        if file.suffix == ".txt":
            return set(file.read_text(encoding="utf-8").splitlines())
        content = json.loads(file.read_text(encoding="utf-8"))
        vocabulary = content["model"]["vocab"] if file.name == "tokenizer.json" else content
        return set(vocabulary) if isinstance(vocabulary, dict) else {word for word, _ in vocabulary}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def vocabulary_problem(
    words: Words, shown: dict[str, bool], restricted: bool, vocabulary: dict[str, int] | None
) -> str | None:
    """
    Why a vocabulary is not sent without the user's consent.

    Args:
        words: where it comes from.
        shown: for each data set, whether it may be shown to everybody.
        restricted: whether a data set behind the model may not be shown, or is not recorded.
        vocabulary: the words; None before there are any.
    """
    own = vocabulary is not None and made_here(vocabulary)
    if words.dataset is not None and (own or vocabulary is None):
        if shown.get(words.dataset, False):
            return None
        where = f"the texts of {words.dataset}"
    elif own:
        where = _unrecorded(words)
    elif words.hub_name and (not restricted or vocabulary is None or words.converted):
        return None
    elif words.hub_name and is_cached(words.hub_name, vocabulary or ()):
        return None
    elif words.hub_name:
        return (
            f"The tokenizer is said to be that of {words.hub_name}, and the cache of the Hub on this machine does not "
            f"hold its words, so they cannot be compared. Get them (hf download {words.hub_name}), or read the words "
            "in tokenizer.json, and if they may be passed on, say --accept_vocabulary."
        )
    elif words.converted:
        return None
    else:
        where = _unrecorded(words)
    number = "the most frequent words" if vocabulary is None else f"{number_of_words(vocabulary):,} words"
    text = f"The tokenizer's vocabulary holds {number} of {where}, and a rare one may be a name. "
    names = (words.dataset or "").split(" and ")  # of several sets
    if any(name in DATASETS and DATASETS[name].data_use_agreement for name in names):
        text += "The reports are de-identified, but under a data use agreement. "
    return text + (
        "Read the words (tokenizer.json), and if they may be passed on, say --accept_vocabulary; or train with a "
        "published tokenizer (tokenizer.pretrained)."
    )


# Files


def read_json(path: Path) -> dict:
    """
    The object that a JSON file holds.

    Raises:
        ValueError: for a file that is too large, too deep, or no object; the message names the file.
    """
    content = _read(path, json.loads, "an object")
    _check_size(path, content)
    return content


def read_yaml(path: Path) -> dict:
    """[`read_json`] for a YAML file with options by section, of at most `MAX_YAML_VALUES` values."""
    content = _read(path, yaml.safe_load, "options by section")
    _check_size(path, content, MAX_YAML_VALUES)
    return content


def _read(path: Path, parse: Callable[[str], object], form: str) -> dict:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES // 2**20} MiB")
        content = parse(path.read_text(encoding="utf-8"))
    except Exception as error:  # of a value with a tag, such as `!!bool x`, PyYAML raises KeyError and others
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold {form}; got {type(content).__name__}.")
    return {str(name): value for name, value in content.items()}


def _check_size(path: Path, content: dict, max_values: float = math.inf) -> None:
    """Raise ValueError for content that is nested too deeply, such as a list that contains itself, or too large."""
    level: list = [content]
    for _ in range(MAX_DEPTH):
        level = [
            value
            for part in level
            if isinstance(part, dict | list | set | tuple)
            for value in (part.values() if isinstance(part, dict) else part)
        ]
        max_values -= len(level)
        if max_values < 0:
            raise ValueError(f"{path} holds more values than this package writes.")
        if not level:
            return
    raise ValueError(f"{path} holds lists or mappings more than {MAX_DEPTH} deep.")
