# Licensed under the Apache License, Version 2.0.
"""
What is sent is built from known fields.

Of a file's content only the fields that this package and transformers know are sent. An unknown field is dropped, and
the user is told its name. A value may be a number, or a word that the code itself knows, such as the name of an
activation. Any other text is free text: it is shown, and goes only with the user's consent (`--accept_texts`).
"""

import ast
import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import json
import os
import pkgutil
import re
import typing
from collections.abc import Collection, Container, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.pipelines import PIPELINE_REGISTRY

from .. import data
from ..data import DATASETS, PATH_OPTIONS, SPLITS
from ..data.transforms import AUGMENTATIONS
from ..evaluation import DTYPES, LABEL_POLICIES, has_prompts
from ..modeling_tier import TierModel
from ..processing_tier import TierProcessor
from ..training.local_losses import LOCAL_LOSSES
from ..training.mixture import WEIGHT
from ..training.options import BEST_METRICS, OPTIMIZERS, SCHEDULES, TRACKERS, TrainConfig


MAX_FIELDS = 200_000
"""Of one file."""
MAX_TEXT = 1_000
"""Characters of a text that a user is asked to read."""


class FreeText(NamedTuple):
    """A text that nobody but the user can judge."""

    file: str
    key: str
    text: str


def consent_code(texts: Iterable[FreeText]) -> str:
    """Names exactly these texts: consent that was given for others does not hold for them."""
    return hashlib.sha256(json.dumps(sorted(set(texts))).encode()).hexdigest()[:8]


GONE = object()
"""Marks a value that is not sent."""


@dataclass
class Selection:
    """Goes through the content of one file, and remembers what is not sent."""

    file: str
    accepted: bool = False
    """Whether the user has agreed to send the free texts."""
    dropped: list[str] = field(default_factory=list)
    texts: list[FreeText] = field(default_factory=list)
    visited: int = 0

    def drop(self, key: str) -> object:
        self.dropped.append(key)
        return GONE

    def free_text(self, key: str, text: str) -> object:
        if len(text) > MAX_TEXT:
            return self.drop(f"{key} (a text of more than {MAX_TEXT:,} characters)")
        self.texts.append(FreeText(self.file, key, text))
        return text if self.accepted else GONE

    def count(self) -> None:
        self.visited += 1
        if self.visited > MAX_FIELDS:
            raise ValueError(
                f"{self.file} holds more than {MAX_FIELDS:,} values: it is not as this package writes it."
            )

    def plain(self, key: str, value, words: Container[str]) -> object:
        """Numbers, known words, and lists and mappings of these; the keys of a mapping are words too."""
        self.count()
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str):
            return value if value in words else self.free_text(key, value)
        if isinstance(value, list | tuple):
            return [part for part in (self.plain(key, part, words) for part in value) if part is not GONE]
        if isinstance(value, dict):
            kept = {
                name: self.plain(f"{key}.{name}", part, words)
                if str(name) in words or isinstance(name, int)
                else self.drop(f"{key}.{name}")
                for name, part in value.items()
            }
            return {name: part for name, part in kept.items() if part is not GONE}
        return self.drop(key)


def _without_gone(content: dict) -> dict:
    return {name: value for name, value in content.items() if value is not GONE}


# Words that the code knows


@functools.cache
def texts_of_module(name: str) -> frozenset[str]:
    """All string literals in the code of a module, docstrings included."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return frozenset()
    nodes = ast.walk(ast.parse(Path(spec.origin).read_text("utf-8")))
    return frozenset(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


def words_of_module(name: str) -> frozenset[str]:
    """The short string literals: names of layers, kinds of attention, options."""
    return frozenset(text for text in texts_of_module(name) if re.fullmatch(r"[\w.+@-]{1,40}", text))


@functools.cache
def _config_words(cls: type[PreTrainedConfig]) -> frozenset[str]:
    own = cls.__module__
    modules = [own, own.replace(".configuration_", ".modeling_"), "transformers.configuration_utils"]
    modules.append("transformers.modeling_rope_utils")
    words = frozenset().union(*map(words_of_module, modules))
    stages = {"stem", *(f"stage{number}" for number in range(1, 21))}
    return words | set(ACT2FN) | set(CONFIG_MAPPING) | set(DTYPES) | {"float64"} | stages


def _is_class_of_transformers(name: str) -> bool:
    return bool(re.fullmatch(r"[A-Z]\w{2,60}", name)) and hasattr(transformers, name)


RELEASE = re.compile(
    r"\d+(\.\d+){0,3}((a|b|rc|\.post|\.dev)\d+)?(\+(cpu|cu\d+|rocm[\d.]+|xpu|(git|g)[0-9a-f]{6,40}))?"
)
_OWN_CLASS = re.compile(r"(configuration|modeling|processing|pipeline)_tier\.Tier\w{1,40}")
# Written by every configuration, and of no use to whoever loads the model.
_NEVER_NEEDED = (
    "_name_or_path",
    "name_or_path",
    "id2label",
    "label2id",
    "problem_type",
    "is_local",
    "local_files_only",
)


# The model's own files


def config_fields(content: dict, config: PreTrainedConfig, selection: Selection, prefix: str = "") -> dict:
    """
    Args:
        content: what `config.json` holds.
        config: the configuration that was loaded from it.
    """
    cls = type(config)
    known, words = set(_defaults(cls)), _config_words(cls)
    if dataclasses.is_dataclass(cls):
        known |= {field.name for field in dataclasses.fields(cls)}
    kept: dict = {}
    for name, value in content.items():
        key = f"{prefix}{name}"
        if name in _NEVER_NEEDED:
            continue
        if name in config.sub_configs and isinstance(value, dict):
            kept[name] = config_fields(value, getattr(config, name), selection, f"{key}.")
        elif name in ("auto_map", "custom_pipelines"):
            kept[name] = selection.plain(key, value, _ClassNames())
        elif name == "architectures":
            kept[name] = selection.plain(key, value, _ClassNames())
        elif name == "transformers_version":
            kept[name] = value if RELEASE.fullmatch(str(value)) else selection.drop(key)
        elif name in known or name in ("model_type", "out_features", "out_indices", "stage_names"):
            kept[name] = selection.plain(key, value, words)
        else:
            selection.drop(key)
    return _without_gone(kept)


@functools.cache
def _defaults(cls: type[PreTrainedConfig]) -> frozenset[str]:
    return frozenset(cls().to_dict())


class _ClassNames:
    """The values allowed in `auto_map`, `architectures` and `custom_pipelines`, for the operator `in`."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (
            name in ("impl", "pt", "default", "model", "type")
            or name in (TierModel.__name__, TierProcessor.__name__)
            or bool(_OWN_CLASS.fullmatch(name))
            or _is_class_of_transformers(name)
            or name in PIPELINE_REGISTRY.get_supported_tasks()
        )


_IMAGE_SIZES = {"height", "width", "shortest_edge", "longest_edge", "max_height", "max_width"}


def processor_fields(content: dict, processor: TierProcessor, selection: Selection) -> dict:
    """The known fields of `processor_config.json`, or of `preprocessor_config.json`."""
    own = set(inspect.signature(TierProcessor.__init__).parameters) | {"auto_map", "processor_class"}
    image_processor = processor.image_processor
    known = set(image_processor.to_dict()) & set(_image_options(type(image_processor)))
    words = (
        words_of_module(type(image_processor).__module__) | words_of_module(TierProcessor.__module__) | _IMAGE_SIZES
    )
    names = {"auto_map", "processor_class", "image_processor_type", "feature_extractor_type"}
    kept: dict = {}
    for name, value in content.items():
        if name in _NEVER_NEEDED:
            continue
        if name == "image_processor" and isinstance(value, dict):
            kept[name] = processor_fields(value, processor, selection)
        elif name in names:
            kept[name] = selection.plain(name, value, _ClassNames())
        elif name in known or name in own:
            kept[name] = selection.plain(name, value, words)
        else:
            selection.drop(name)
    return _without_gone(kept)


def _image_options(cls: type) -> set[str]:
    """Names of the options of an image processor: those of its kind, and the attributes that its class defines."""
    kind = getattr(cls, "valid_kwargs", None)
    names = set(typing.get_type_hints(kind)) if kind is not None else set()
    return names | {name for base in cls.__mro__ for name in vars(base) if not name.startswith("_")}


_TOKENIZER_FIELDS = set(
    """
    add_bos_token add_eos_token add_prefix_space added_tokens_decoder additional_special_tokens auto_map backend
    bos_token clean_up_tokenization_spaces cls_token do_basic_tokenize do_lower_case eos_token errors
    extra_special_tokens legacy mask_token max_length model_input_names model_max_length never_split pad_to_multiple_of
    pad_token pad_token_type_id padding_side processor_class sep_token sp_model_kwargs split_special_tokens stride
    strip_accents tokenize_chinese_chars tokenizer_class trim_offsets truncation_side truncation_strategy unk_token
    use_default_system_prompt
    """.split()
)
_TOKENIZER_WORDS = set(
    """
    tokenizers sentencepiece left right replace strict ignore longest max_length longest_first only_first only_second
    do_not_pad input_ids attention_mask token_type_ids special_tokens_mask position_ids AddedToken __type content
    single_word lstrip rstrip normalized special
    """.split()
)


def tokenizer_fields(content: dict, processor: TierProcessor, selection: Selection) -> dict:
    """The known fields of `tokenizer_config.json` and `special_tokens_map.json`, with tokens of the vocabulary."""
    tokens = _TokenizerWords(set(processor.tokenizer.get_vocab()))
    kept: dict = {}
    for name, value in content.items():
        if name in _NEVER_NEEDED:
            continue
        if name in ("auto_map", "processor_class", "tokenizer_class"):
            kept[name] = selection.plain(name, value, _ClassNames())
        elif name in _TOKENIZER_FIELDS:
            kept[name] = selection.plain(name, value, tokens)
        else:
            selection.drop(name)
    return _without_gone(kept)


@dataclass(frozen=True)
class _TokenizerWords:
    vocabulary: set[str]

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and self._is_known(text)

    def _is_known(self, text: str) -> bool:
        return text in self.vocabulary or text in _TOKENIZER_WORDS or bool(re.fullmatch(r"\d{1,7}|\w+_token", text))


# Keys under which a tokenizer.json holds one of a few words; the library refuses any other.
_TOKENIZER_CHOICES = ("type", "behavior", "prepend_scheme", "direction", "strategy", "mode", "version")


def texts_of_tokenizer(content, vocabulary: Collection[str]) -> list[str]:
    """
    What a `tokenizer.json` says beside its vocabulary in words that are none of its tokens: a text that is replaced
    or split at, for instance.
    """
    tokens = {token.lower() for token in vocabulary}
    texts, waiting = [], [(name, value) for name, value in content.items() if name not in ("added_tokens",)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [item for item in value.items() if item[0] not in ("vocab", "merges")]
        elif isinstance(value, list):
            waiting += [(name, item) for item in value]
        elif isinstance(value, str) and name not in _TOKENIZER_CHOICES and value.lower() not in tokens:
            words = re.findall(r"[^\W\d_]{4,}|\d{4,}", value.lower())
            if not all(any(word in token for token in tokens) for word in words):
                texts.append(value)
    return texts


# The records of a run

SYSTEMS = ("Linux", "Darwin", "Windows")
MACHINES = ("x86_64", "AMD64", "amd64", "aarch64", "arm64", "ppc64le", "riscv64")
DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "npu", "mlu")
PACKAGES = set(
    """
    python torch transformers datasets accelerate evaluate safetensors tokenizers numpy scikit-learn pillow
    huggingface_hub
    """.split()
)


def environment_fields(content: dict, selection: Selection) -> dict:
    """The known fields of `environment.json`: software versions, and the kind of machine."""
    kinds = {"system": SYSTEMS, "machine": MACHINES, "device": DEVICES}
    kept: dict = {}
    for name, value in content.items():
        known = (
            (name in PACKAGES and isinstance(value, str) and RELEASE.fullmatch(value))
            or (name in kinds and value in kinds[name])
            or (name == "num_processes" and type(value) is int)
        )
        kept[name] = value if known else selection.drop(name)
    return _without_gone(kept)


# Known options that are not sent: paths of this machine, and how a run is resumed on it.
_LOCAL_OPTIONS = ("output_dir", "training.resume_from_checkpoint", "training.progress", "training.overwrite")
_CHOICES = {
    *DATASETS,
    *SPLITS,
    *LABEL_POLICIES,
    *AUGMENTATIONS,
    *OPTIMIZERS,
    *SCHEDULES,
    *BEST_METRICS,
    *TRACKERS,
    *LOCAL_LOSSES,
    *("no", "none", "bf16", "fp16", "linear", "mlp", "siglip", "cls", "mean", "attention"),
}
_MODEL_ID = re.compile(r"[\w-][\w.-]{0,95}(/[\w-][\w.-]{0,95})?")


def training_fields(
    content: dict, selection: Selection, shown: dict[str, bool], model: TierModel, bases: Iterable[Path] = ()
) -> dict:
    """
    The known fields of `training_config.yaml`: the options of `train.py`, without paths of this machine.

    Args:
        content: what the file holds.
        selection: remembers what is not sent.
        shown: for each data set of the run, whether it may be shown to everybody.
        model: the trained model, whose parameters `freeze.patterns` name.
        bases: folders from which a relative path may have been meant.
    """
    hints, kept = typing.get_type_hints(TrainConfig), {}
    for name, value in content.items():
        if name not in hints:
            selection.drop(name)
        elif dataclasses.is_dataclass(hints[name]):
            section = _Section(name, hints[name], content, selection, shown, model, list(bases))
            kept[name] = section.fields(value) if isinstance(value, dict) else selection.drop(name)
        elif name not in _LOCAL_OPTIONS:
            kept[name] = selection.plain(name, value, _CHOICES)
    return _without_gone(kept)


class _Section(NamedTuple):
    """The known fields of one section of the options."""

    name: str
    options: type
    content: dict
    selection: Selection
    shown: dict[str, bool]
    model: TierModel
    bases: list[Path]

    def fields(self, values: dict) -> dict:
        known = {field.name for field in dataclasses.fields(self.options)}
        kept = {}
        for name, value in values.items():
            key = f"{self.name}.{name}"
            if name not in known:
                self.selection.drop(key)
            elif key not in _LOCAL_OPTIONS:
                kept[name] = self._field(key, name, value)
        return _without_gone(kept)

    def _field(self, key: str, name: str, value):
        if key in ("model.pretrained", "tokenizer.pretrained"):
            hub = isinstance(value, str) and local_source(value, self.bases) is None and _MODEL_ID.fullmatch(value)
            return value if hub else None
        if key == "evaluation.prompts":
            return value if is_packaged(value) else None
        if value is None:
            return None
        if key == "freeze.patterns":
            patterns = value if isinstance(value, list) else [value]
            return [pattern for pattern in (self._pattern(key, one) for one in patterns) if pattern is not GONE]
        if key in ("model.vision_config", "model.text_config"):
            config = getattr(self.model.config, name)
            known = isinstance(value, dict)
            return config_fields(value, config, self.selection, f"{key}.") if known else self.selection.drop(key)
        if key == "model.image_options":
            return self.selection.plain(key, value, words_of_module("transformers.processing_utils") | _IMAGE_SIZES)
        if key in ("data.options", "data.train", "data.validation", "evaluation.options"):
            return self._own_data_options(key, value) if isinstance(value, dict) else self.selection.drop(key)
        if key == "data.sets":
            return self._sets(key, value) if isinstance(value, dict) else self.selection.drop(key)
        return self.selection.plain(key, value, _CHOICES)

    def _pattern(self, key: str, pattern):
        parameters = [name for name, _ in self.model.named_parameters()]
        parents = {name.rsplit(".", depth)[0] for name in parameters for depth in range(name.count(".") + 1)}
        names_something = isinstance(pattern, str) and any(fnmatchcase(name, pattern) for name in parents)
        return pattern if names_something else self.selection.free_text(key, str(pattern))

    def _sets(self, key: str, sets: dict) -> dict:
        """Of each data set the options and the weight."""
        kept = {}
        for name, options in sets.items():
            if name not in DATASETS or not isinstance(options, dict):
                self.selection.drop(f"{key}.{name}")
                continue
            weight = options.get(WEIGHT)
            others = {option: value for option, value in options.items() if option != WEIGHT}
            kept[name] = self._data_options(f"{key}.{name}", others, name)
            if isinstance(weight, int | float):
                kept[name][WEIGHT] = weight
        return kept

    def _own_data_options(self, key: str, options: dict) -> dict:
        parts = [self.content.get(self.name), self.content.get("data")]
        names = [part.get(name) for part in parts if isinstance(part, dict) for name in ("name", "dataset")]
        dataset = next((name for name in names if isinstance(name, str) and name), "")
        return self._data_options(key, options, dataset)

    def _data_options(self, key: str, options: dict, dataset: str) -> dict:
        record = DATASETS.get(dataset)
        if record is None:
            return {}
        options_of_data = {"split", *record.options}
        words = _words_of_data()
        kept = {}
        for name, value in options.items():
            if name not in options_of_data:
                self.selection.drop(f"{key}.{name}")
            elif name not in PATH_OPTIONS:
                free = dataset == "pairs" and self.shown.get("pairs", False)
                kept[name] = value if free else self.selection.plain(f"{key}.{name}", value, words)
        return _without_gone(kept)


@functools.cache
def _words_of_data() -> frozenset[str]:
    names = [module.name for module in pkgutil.walk_packages(data.__path__, f"{data.__name__}.")]
    return frozenset().union(*map(words_of_module, names))


def is_packaged(prompts: str | None) -> bool:
    """Whether sentences are those of a file of this package, and not of a file somewhere."""
    return isinstance(prompts, str) and bool(re.fullmatch(r"\w+", prompts)) and has_prompts(prompts)


def local_source(name: str | None, bases: Iterable[Path] = ()) -> Path | None:
    """The path that a model's name refers to, whether it exists or not; None for the name of a model on the Hub."""
    if not name or not isinstance(name, str):
        return None
    for base in (Path(), *bases):
        if os.path.exists(base / name):  # False too for a name that no file can have
            return base / name
    return None if _MODEL_ID.fullmatch(name) else Path(name)
