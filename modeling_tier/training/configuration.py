# Licensed under the Apache License, Version 2.0.
"""The configuration of a run, from one YAML file and from `--section.option value`."""

import copy
import dataclasses
import difflib
import types
import typing
import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from ..data import PATH_OPTIONS
from .configuration_checks import check_config
from .option_values import parse_value, read_options
from .options import TrainConfig


# What a trained model has of its own.
_OF_A_NEW_MODEL = (
    *("vision_config", "text_config", "image_size", "image_pooling", "projection", "projection_dim"),
    "logit_scale_init_value",
)

# Options of earlier versions, and what holds instead.
_REMOVED = {
    "optimizer.min_lr_share": "the cosine ends at 0.01 of optimizer.lr",
    "regulariser.warn_negative_share": "training warns as the report does, above 0.95",
}


def load_config(path: str | Path | None, overrides: list[str] = ()) -> TrainConfig:
    """
    Read and check a configuration; nothing is loaded or written.

    Args:
        path: YAML file, or None for the defaults.
        overrides: `["--section.option", "value", ...]`, values in YAML's notation.

    Raises:
        ValueError: for an unknown key, a wrong type or an impossible combination, with the key and what is allowed.
    """
    content = {} if path is None else read_options(path)
    content = merge_options(_without_new_model(content, path, overrides), overrides)
    for name in _REMOVED:
        section, option_name = name.split(".")
        if isinstance(content.get(section), dict) and option_name in content[section]:
            raise ValueError(f"{name} is no option any more: {_REMOVED[name]}. Delete its line.")
    config = _build(TrainConfig, content, "")
    for options in (config.model, config.tokenizer):
        options.pretrained = _local_path(options.pretrained)
    if path is None and not (config.model.pretrained or config.model.vision_config or config.model.text_config):
        raise ValueError("No model is described: name a configuration, such as --config configs/demo.yaml.")
    check_config(config)
    return config


def _local_path(name: str | None) -> str | None:
    """With "./" in front, where a local folder could be taken for a name on the Hub: a run is read elsewhere, too."""
    if not name or Path(name).is_absolute() or name.startswith((".", "~")) or not Path(name).exists():
        return name
    return f"./{name}"


def _without_new_model(content: dict, path: str | Path | None, overrides: list[str]) -> dict:
    """A file's options without the new model that it describes, where the command line names a trained one."""
    model = content.get("model")
    replaced = any(key == "model.pretrained" and value is not None for key, value in parse_options(list(overrides)))
    if not replaced or not isinstance(model, dict) or not {"vision_config", "text_config"} & set(model):
        return content
    dropped = [name for name in _OF_A_NEW_MODEL if name in model]
    warnings.warn(
        f"--model.pretrained replaces {', '.join(f'model.{name}' for name in dropped)} of {path}.", stacklevel=2
    )
    return content | {"model": {name: value for name, value in model.items() if name not in dropped}}


def merge_options(content: dict, arguments: Iterable[str]) -> dict:
    """
    Nested options with those of a command line, later ones first: the one way in which all our commands read them.

    Args:
        content: options by section, such as a YAML file's; not changed.
        arguments: `["--section.option", "value", ...]` as for [`parse_options`]. A value may itself hold options, such
            as `--data.options "{image_size: 64}"`, and replaces all that stood there before.
    """
    merged = copy.deepcopy(content)
    for key, value in parse_options(list(arguments)):
        *parents, last = key.split(".")
        target = merged
        for name in parents:
            target = target.setdefault(name, {})
            if not isinstance(target, dict):
                raise ValueError(f"--{key}: {name!r} is an option, not a section.")
        target[last] = value
    return merged


def parse_options(arguments: list[str]) -> list[tuple[str, object]]:
    """`--name value` or `--name=value`; texts such as paths as they are, other values in YAML's notation."""
    pairs = []
    while arguments:
        key = arguments.pop(0)
        if not key.startswith("--"):
            raise ValueError(f"Expected --section.option, got {key!r}.")
        key, equals, value = key[2:].partition("=")
        if not equals:
            if not arguments:
                raise ValueError(f"--{key} needs a value.")
            value = arguments.pop(0)
        hint = _text_options().get(key)
        is_text = hint is not None or key.rpartition(".")[2] in PATH_OPTIONS
        pairs.append((key, parse_value(value, is_text, may_be_null=hint is not str)))
    return pairs


@cache
def _text_options() -> dict[str, object]:
    """The options that are texts, with their type: `str`, or with null for none."""
    options = {}
    for section, hint in typing.get_type_hints(TrainConfig).items():
        entries = typing.get_type_hints(hint).items() if dataclasses.is_dataclass(hint) else [("", hint)]
        names = {f"{section}.{name}".rstrip("."): kind for name, kind in entries}
        options |= {name: kind for name, kind in names.items() if kind in (str, str | None)}
    return options


def _build(cls, content: dict, prefix: str):
    known = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    values = {}
    for name, value in content.items():
        key = f"{prefix}{name}"
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {prefix}{near[0]!s}?" if near else ""
            raise ValueError(f"Unknown option {key!r}.{hint} Known here: {list(known)}.")
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, dict):
                raise ValueError(
                    f"{key!r} is a section with the options {[f.name for f in dataclasses.fields(hints[name])]}."
                )
            values[name] = _build(hints[name], value, f"{key}.")
        else:
            values[name] = _typed(key, value, hints[name])
    return cls(**values)


def _typed(key: str, value, hint):
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in allowed:
        return None
    if float in allowed and not isinstance(value, bool):
        try:
            return float(value)  # YAML takes 1e-4 for a text
        except (TypeError, ValueError):
            pass
    if key == "training.mixed_precision" and value is False:
        return "no"  # which YAML takes for false
    for kind in allowed:
        if kind is not float and type(value) is kind:
            return value
    names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in allowed)
    raise ValueError(f"{key} must be {names}; got {value!r}.")
