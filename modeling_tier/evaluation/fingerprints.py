# Licensed under the Apache License, Version 2.0.
"""Fingerprints (SHA-256) of what is evaluated: a model, the rows of a data set, the contents of its pictures."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import torch
from datasets import Dataset

from ..data.pictures import undecoded
from ..modeling_tier import TierModel
from ..processing_tier import TierProcessor
from .scored import ImageScores


def model_fingerprint(model: TierModel, processor: TierProcessor) -> str:
    """
    Of the weights, the configuration and all that makes inputs of pictures and texts; wherever it was loaded, and
    whatever the tokenizer was used for before: using it changes the lengths that are stored with it, and the processor
    sets them anew.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    settings = _own_settings(model.config.to_dict()), _own_settings(processor.image_processor.to_dict())
    tokenizer = processor.tokenizer
    vocabulary = sorted(tokenizer.get_vocab().items())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {}
    rules = {name: rule for name, rule in rules.items() if name not in ("padding", "truncation")}
    sides = tokenizer.padding_side, tokenizer.truncation_side
    settings += (vocabulary, tokenizer.model_max_length, sides, rules, dataclasses.asdict(processor.framing))
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _own_settings(settings):
    """Without what a library's release, the way of loading or a folder's path puts into a configuration."""
    foreign = ("_name_or_path", "transformers_version", "auto_map", "architectures", "dtype", "custom_pipelines")
    if not isinstance(settings, dict):
        return settings
    return {name: _own_settings(value) for name, value in settings.items() if name not in foreign}


def table_fingerprint(dataset: Dataset) -> str:
    """Of the rows of a data set before a picture is opened: their texts, labels and paths, and the files' state."""
    digest = hashlib.sha256()
    stored = undecoded(dataset)
    for row in stored.select_columns([name for name in stored.column_names if name != "regions"]):
        digest.update(json.dumps(row | {"image": _state(row["image"])}, sort_keys=True, default=str).encode())
    if "regions" in stored.column_names:
        digest.update(json.dumps(_plain_regions(stored), sort_keys=True).encode())
    return digest.hexdigest()


def data_fingerprint(dataset: Dataset, images: ImageScores) -> str:
    """Of what was evaluated: the contents of the pictures' files and their rows, not their paths."""
    digest = hashlib.sha256()
    columns = [name for name in dataset.column_names if name not in ("image", "regions")]
    rows = dataset.select_columns(columns).select(images.rows)
    for row, content in zip(rows, images.digests.tolist()):
        digest.update(json.dumps(row | {"image": content}, sort_keys=True, default=str).encode())
    if "regions" in dataset.column_names:
        digest.update(json.dumps(_plain_regions(dataset.select(images.rows)), sort_keys=True).encode())
    return digest.hexdigest()


def _plain_regions(dataset: Dataset) -> list:
    """Without their masks, which are drawn with the picture."""
    column = dataset.select_columns("regions").with_format("arrow")[:]["regions"].to_pylist()
    return [[{k: v for k, v in region.items() if k != "mask"} for region in regions or ()] for regions in column]


def _state(cell: dict | None) -> list:
    """Of a stored picture: a digest of its bytes, or its path, size and time of change."""
    if cell is None:
        return []
    if cell["bytes"] is not None:
        return [hashlib.sha256(cell["bytes"]).hexdigest()]
    try:
        status = os.stat(cell["path"])
    except OSError:
        return [cell["path"]]
    return [cell["path"], status.st_size, status.st_mtime_ns]


def content_digest(cell: dict) -> str:
    """Of a stored picture's file."""
    content = cell["bytes"]
    if content is None:
        try:
            content = Path(cell["path"]).read_bytes()
        except OSError:  # an address
            content = cell["path"].encode()
    return hashlib.sha256(content).hexdigest()
