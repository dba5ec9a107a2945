# Licensed under the Apache License, Version 2.0.
"""Published weights, from a disk or the Hub: found, read and recorded by their sums. No code of theirs is run."""

import hashlib
import inspect
import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.jit._pickle as torchscript_lists
from huggingface_hub import hf_hub_download, snapshot_download
from safetensors.torch import load_file

from ..hub_access import hub_or_cache
from ..modeling_tier import check_weight_index
from .unsupported import check_supported


Weights = dict[str, torch.Tensor]

# What a file may grow to when it is read, in multiples of its size; honest files are not compressed.
MAX_EXPANSION = 10
_ALWAYS_ALLOWED = 64 * 2**20  # bytes

# The only revision that is known to hold what is expected.
REVISIONS = {"microsoft/BiomedVLP-CXR-BERT-specialized": "v1.1"}

_TEXT_FILES = ["config.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "vocab.json"]
_TEXT_FILES += ["added_tokens.json", "vocab.txt", "merges.txt", "spiece.model", "tokenizer.model"]
_IMAGE_FILES = ["preprocessor_config.json", "processor_config.json"]
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # or their shards, with an index


@dataclass
class Record:
    """What a conversion read, and what of it TIER does not use."""

    files: list[dict[str, str]] = field(default_factory=list)  # name and sha256 of each
    unused: dict[str, str] = field(default_factory=dict)  # a key of the source: why TIER does not use it
    initial: dict[str, str] = field(default_factory=dict)  # a parameter of TIER: why it is not from the source
    notes: list[str] = field(default_factory=list)  # what the source's files do not tell

    def add_file(self, path: Path, name: str) -> Path:
        with path.open("rb") as file:
            self.files.append({"name": name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()})
        return path


def existing(path: Path) -> Path:
    """The path of a file that must be there."""
    if not path.is_file():
        raise ValueError(f"There is no {path.name} in {path.parent}.")
    return path


def find_file(name: str, record: Record, inside: str | None = None) -> Path:
    """A file on the disk or on the Hub; of a folder or a repository, the file `inside` it."""
    path, parts = Path(name), name.split("/")
    if path.is_dir() and inside:
        path = existing(path / inside)
    if path.is_file():
        return record.add_file(path, path.name)
    repository, file = "/".join(parts[:2]), "/".join(parts[2:]) or inside
    local = path.is_absolute() or parts[0] in (".", "..", "~") or (len(parts) == 2 and path.suffix == ".pt")
    if local or path.is_dir() or len(parts) < 2 or not file:
        raise ValueError(f"There is no file {name}; one on the Hub is written user/name/path/in/repository.pt.")
    return record.add_file(_from_hub(hf_hub_download, repository, filename=file), f"{repository}/{file}")


def find_folder(
    name: str,
    record: Record,
    weights: Sequence[str] = WEIGHT_FILES,
    images: bool = False,
    more_files: Sequence[str] = (),
) -> Path:
    """
    A folder on the disk, or one with the needed files of a repository on the Hub.

    Args:
        weights: the names that its weights may have, the preferred one first; none, if they are not needed.
        images: whether the files of its image processor are needed.
        more_files: names of further files.
    """
    files, path, prefix = [*_TEXT_FILES, *(_IMAGE_FILES if images else ()), *more_files], Path(name), ""
    if not path.is_dir():
        prefix = f"{name}/"
        patterns = [f"{Path(file).stem}*{Path(file).suffix}*" for file in weights]  # with shards and their index
        path = _from_hub(snapshot_download, name, allow_patterns=files + patterns[:1])
        for pattern in patterns[1:]:
            if not _weight_files(path, weights):
                _from_hub(snapshot_download, name, allow_patterns=[pattern])
    for file in files + _weight_files(path, weights):
        if (path / file).is_file():
            record.add_file(path / file, prefix + file)
    return path


def _from_hub(download: Callable, repository: str, **options) -> Path:
    with hub_or_cache(repository) as not_asked:
        try:
            return Path(download(repository, revision=REVISIONS.get(repository), **options))
        except Exception as error:  # whatever goes wrong between here and the Hub
            reason = f"{not_asked}." if not_asked else error
            raise ValueError(f"{repository} is not on this disk, and the Hub does not give it: {reason}") from error


def _weight_files(folder: Path, names: Sequence[str]) -> list[str]:
    """Those of the first name that is there: one file, or the shards that an index names."""
    check_weight_index(folder)
    for name in names:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [name]
        if index.is_file():
            return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    return []


def folder_weights(folder: Path, names: Sequence[str] = WEIGHT_FILES) -> Weights:
    """All tensors of a folder under the first of `names` that is there, in one file or in shards."""
    weights, files = {}, _weight_files(folder, names)
    if not files:
        raise ValueError(f"{folder.name} has no weights: neither {' nor '.join(names)}.")
    for path in (existing(folder / file) for file in files):
        add_weights(weights, load_file(path) if path.suffix == ".safetensors" else state_dict(read_torch(path)))
    check_supported(weights)
    return weights


def add_weights(weights: Weights, more: Weights) -> None:
    """Add `more`, of which none may be there already."""
    twice = sorted(set(weights) & set(more))
    if twice:
        raise ValueError(f"Two files hold weights of the same name: {', '.join(twice)}.")
    weights |= more


def state_dict(content) -> Weights:
    """Check that a file's content is names and tensors."""
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError("The file does not hold a state dict, names and tensors and nothing else.")
    wrapped = content and all(key.startswith("module.") for key in content)  # by DistributedDataParallel
    return {key.removeprefix("module.") if wrapped else key: tensor for key, tensor in content.items()}


def read_torch(path: Path, allowed: Sequence = (), inert: tuple[str, ...] = ()):
    """
    What torch.save wrote, or the weights that torch.jit.save wrote, for the CPU.

    A pickle can have any function called. torch's restricted reader calls only those that make tensors and plain
    containers, and the `allowed` ones.

    Args:
        allowed: functions and classes that may be called.
        inert: classes that are read as empty containers, without code of theirs: their libraries need not be there.
            A name that ends in "." stands for all of a library.

    Raises:
        ValueError: if the file asks for anything else, grows to many times its size, or cannot be read.
    """
    if zipfile.is_zipfile(path):
        _check_expansion(path, _unpacked_size(path))
    try:
        if _is_torchscript(path):
            content = _read_torchscript(path)
        else:
            with torch.serialization.safe_globals([*allowed, *_containers(path, inert)]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, for whatever may be in a file
        asked = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if asked is None:
            raise ValueError(f"{path.name} cannot be read as a file of PyTorch ({type(error).__name__}).") from error
        raise ValueError(
            f"{path.name} is refused: to read it could run code, for it asks for {asked[1]}. If you trust it, load it "
            "yourself and save the tensors alone: torch.save(model.state_dict(), ...)."
        ) from error
    _check_expansion(path, _size_of_tensors(content))
    check_supported(content)
    return content


def _containers(path: Path, inert: tuple[str, ...]) -> list[tuple[type, str]]:
    """A class without code for each of the `inert` names that a file asks for."""
    if not inert or not zipfile.is_zipfile(path):
        return []
    asked = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    libraries = tuple(name for name in inert if name.endswith("."))
    names = [name for name in asked if name in inert or name.startswith(libraries)]
    return [
        (type("_Container", (_Container,), {}), name) for name in names
    ]  # a class each: a dict may have two as keys


def _check_expansion(path: Path, size: int) -> None:
    file_size = path.stat().st_size
    if size > MAX_EXPANSION * file_size + _ALWAYS_ALLOWED:
        raise ValueError(
            f"{path.name} is refused: its {file_size:,} bytes hold tensors of {size:,} bytes, more than weights that "
            "are saved as they are."
        )


def _unpacked_size(path: Path) -> int:
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{path.name} cannot be read as a file of PyTorch ({type(error).__name__}).") from error


def _size_of_tensors(content) -> int:
    """Bytes of all tensors in nested containers if each were copied; a view may claim more than its file holds."""
    size, seen, waiting = 0, set(), [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            size += value.numel() * value.element_size()
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value
    return size


class _Module:
    """A module of a TorchScript archive: attributes without code."""


class _Container:
    """An object of a class that is not loaded: its attributes without code."""

    def __new__(cls, *arguments):
        return super().__new__(cls)

    def __init__(self, *arguments):
        pass


def _is_torchscript(path: Path) -> bool:
    return zipfile.is_zipfile(path) and "constants.pkl" in _entries(path)


def _entries(path: Path) -> dict[str, zipfile.ZipInfo]:
    """The entries of an archive of torch by their names within its one folder."""
    with zipfile.ZipFile(path) as archive:
        return {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}


def _read_torchscript(path: Path) -> Weights:
    """
    The tensors of an archive by their names, without torch.jit.load, which compiles and runs the code in it.

    Without code and constants an archive is one of torch.save's, and its modules are read as empty containers.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(content, "w") as copy:
        for name, entry in _entries(path).items():
            if not name.startswith(("code/", "constants")):
                copy.writestr(entry, archive.read(entry))
    content.seek(0)
    asked = torch.serialization.get_unsafe_globals_in_checkpoint(content)
    modules = [(_Module, name) for name in asked if name.startswith("__torch__.")]
    lists = [function for _, function in inspect.getmembers(torchscript_lists, inspect.isfunction)]  # they do nothing
    content.seek(0)
    with torch.serialization.safe_globals([*modules, *lists]):
        return _tensors(torch.load(content, map_location="cpu", weights_only=True))


def _tensors(module: _Module, prefix: str = "") -> Weights:
    weights = {}
    for name, value in vars(module).items():
        if isinstance(value, torch.Tensor):
            weights[prefix + name] = value
        elif isinstance(value, _Module):
            weights |= _tensors(value, f"{prefix}{name}.")
    return weights
