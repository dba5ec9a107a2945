# Licensed under the Apache License, Version 2.0.
"""From a source's weights and our configuration to a model with its processor: what all converters share."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from ..clip_images import CLIPImageProcessor
from ..configuration_tier import TierConfig
from ..encoders_tier import max_text_length
from ..modeling_tier import TierModel
from ..processing_tier import TierProcessor
from ..tokenizer_tier import check_tokenizer_files
from ..training.building import with_options
from .source import Converted
from .weight_files import Record, Weights, existing, find_folder, folder_weights


POSITIONS = {r".*\.position_ids": "the numbers 0, 1, 2, ...: counted here, not stored"}


# Patterns and their replacements that make the source's name from that of a parameter of ours, one after the other.
Names = Sequence[tuple[str, str | Callable[[re.Match], str]]]


@dataclass
class TransformersModel:
    """What a folder that transformers itself wrote holds."""

    config: PreTrainedConfig
    weights: Weights
    tokenizer: PreTrainedTokenizerBase
    image_processor: BaseImageProcessor


def read_transformers_model(
    name: str, model_type: str, image_options: dict | None, record: Record
) -> TransformersModel:
    """
    Args:
        name: folder or Hub id.
        model_type: the only one that its config.json may have.
        image_options: options that replace the image processor's.
    """
    folder = find_folder(name, record, images=True)
    config = load_config(folder)
    if config.model_type != model_type:
        raise ValueError(f"{folder.name} holds a model of type {config.model_type!r}; {model_type!r} is needed.")
    image_processor = with_options(_load(AutoImageProcessor, folder), image_options or {})
    return TransformersModel(config, folder_weights(folder), load_tokenizer(folder), image_processor)


def assemble(
    config: TierConfig,
    weights: Weights,
    source_name: Callable[[str], str],
    unused: dict[str, str],
    image_processor,
    tokenizer,
    record: Record,
    **reading_options,
) -> Converted:
    """
    A model with these weights, and its processor.

    Args:
        source_name: from the name of a parameter of ours to that in `weights`.
        unused: patterns of keys that TIER does not use, with the reasons.
        record: its `initial` names the parameters that the source does not have.
        **reading_options: options of [`TierProcessor`].

    Raises:
        ValueError: if weights are missing, surplus or of another shape, or do not work with the processor.
    """
    processor = _processor(image_processor, tokenizer, config, **reading_options)
    config.special_token_ids = sorted(set(tokenizer.all_special_ids))
    try:
        with torch.device("meta"):  # so that sizes of a damaged configuration take no memory
            shapes = TierModel(config).state_dict()
    except (RuntimeError, TypeError, OverflowError) as error:  # sizes that no tensor has
        raise ValueError(f"No model can be made of the source's configuration: {error}") from error
    keys = {name: source_name(name) for name in shapes if name not in record.initial}
    expected = {key: shapes[name] for name, key in keys.items()}
    surplus = [key for key in weights if key not in expected]
    known = {key: why for key in surplus for pattern, why in unused.items() if re.fullmatch(pattern, key)}
    _check_fit(weights, expected, [key for key in surplus if key not in known])
    model = TierModel(config).float().eval()
    state = model.state_dict()
    for name, key in keys.items():
        state[name].copy_(weights[key])
    record.unused |= known
    _try(model, processor)
    return model, processor


def renaming(names: Names) -> Callable[[str], str]:
    """The function that applies patterns to a name."""

    def source_name(name: str) -> str:
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        return name

    return source_name


def _check_fit(weights: Weights, expected: Weights, unexpected: list[str]) -> None:
    wrong, integers = [], []
    for key in (key for key in expected if key in weights):
        ours, theirs = tuple(expected[key].shape), tuple(weights[key].shape)
        if ours != theirs:
            wrong.append(f"{key} (expected {ours}, found {theirs})")
        if expected[key].is_floating_point() and not weights[key].is_floating_point():
            integers.append(f"{key} ({weights[key].dtype})")
    missing = [key for key in expected if key not in weights]
    problems = {"missing": missing, "unknown": unexpected, "of another shape": wrong}
    problems["of integers, as quantised ones are"] = integers
    if any(problems.values()):
        listed = "; ".join(f"{what}: {', '.join(keys)}" for what, keys in problems.items() if keys)
        raise ValueError(f"The weights do not fit the model. {listed}.")


@torch.inference_mode()
def _try(model: TierModel, processor: TierProcessor) -> None:
    """A picture of all greys and a word: the processor's inputs must suit the model, and the weights hold no NaN."""
    try:
        outputs = model(**processor(images=Image.linear_gradient("L").resize((640, 512)), text="effusion"))
    except Exception as error:  # whatever the image processor or the model says to a wrong option
        raise ValueError(f"The model cannot take what its processor makes: {error}") from error
    if not torch.isfinite(outputs.logits_per_image).all():
        raise ValueError("The weights give no finite similarity of a picture and a text.")


def _processor(image_processor, tokenizer, config: TierConfig, **reading_options) -> TierProcessor:
    text_config = config.text_config
    if len(tokenizer) > text_config.vocab_size:
        raise ValueError(f"The tokenizer has {len(tokenizer)} tokens, and the text encoder {text_config.vocab_size}.")
    word = tokenizer("effusion", add_special_tokens=False).input_ids
    if not set(word) - set(tokenizer.all_special_ids):  # transformers makes one without its vocabulary, too
        raise ValueError(f"The tokenizer in {tokenizer.name_or_path} does not know any word: its files are not there.")
    tokenizer.init_kwargs.pop("auto_map", None)  # names code of the source
    tokenizer.model_max_length = min(tokenizer.model_max_length, max_text_length(text_config))
    return TierProcessor(image_processor=image_processor, tokenizer=tokenizer, **reading_options)


def cropping_image_processor(
    shorter_side: int, crop: int, resample: Image.Resampling, image_options: dict | None, **options
) -> CLIPImageProcessor:
    """
    Args:
        shorter_side: pixels to which the shorter side is resized.
        crop: width and height of the part in the middle that is kept.
        image_options: options that replace those given here.
        **options: of the image processor; its mean and standard deviation are CLIP's unless said here.
    """
    sizes = {"size": {"shortest_edge": shorter_side}, "crop_size": {"height": crop, "width": crop}}
    return with_options(CLIPImageProcessor(**sizes, resample=resample, **options), image_options or {})


def _load(auto_class, folder: Path):
    return auto_class.from_pretrained(folder, trust_remote_code=False)


def load_tokenizer(folder: Path, tokenizer_class=AutoTokenizer):
    """
    Raises:
        ValueError: for more added tokens than can be loaded, and where a library is missing that the tokenizer needs.
    """
    check_tokenizer_files(folder)
    try:
        return _load(tokenizer_class, folder)
    except ImportError as error:
        if "sentencepiece" not in str(error).lower() and "protobuf" not in str(error).lower():
            raise
        raise ValueError(
            f"The tokenizer in {folder.name} is one of SentencePiece, whose library is not installed: "
            "pip install 'modeling-tier[sentencepiece]' (the converted model needs it too)."
        ) from error


def load_config(folder: Path) -> PreTrainedConfig:
    existing(folder / "config.json")
    return _load(AutoConfig, folder)


def shape_of(weights: Weights, key: str, ndim: int, kind: str) -> tuple[int, ...]:
    """The shape of a tensor from which the configuration is read."""
    if key not in weights or weights[key].ndim != ndim:
        state = f"has the shape {tuple(weights[key].shape)}" if key in weights else "is missing"
        raise ValueError(f"{key} {state}: the weights are not those of {kind}.")
    return tuple(weights[key].shape)
