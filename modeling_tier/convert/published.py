# Licensed under the Apache License, Version 2.0.
"""
Published checkpoints as TIER models: `python -m modeling_tier.conversion SOURCE OUTPUT_DIR [options]`.

The embeddings of tokens, patches, texts and images stay those of the source, and so do its logits. Names and shapes
are checked, and what TIER does not use is listed with the reason. No code that comes with a file is run.
"""

import argparse
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import transformers
import yaml
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    BertConfig,
    BertTokenizer,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPVisionConfig,
    ResNetConfig,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..configuration_tier import TierConfig
from ..encoders_tier import max_text_length
from ..files import new_folder
from ..loading import check_tokenizer_files
from ..modeling_tier import TierModel
from ..processing_tier import TierProcessor
from ..training.building import with_options
from .weight_files import (
    Record,
    Weights,
    add_weights,
    existing,
    find_file,
    find_folder,
    folder_weights,
    read_torch,
    state_dict,
)


CXR_BERT = "microsoft/BiomedVLP-CXR-BERT-specialized"
BIOVIL_IMAGE_FILE = "biovil_image_resnet50_proj_size_128.pt"
OPENAI_TOKENIZER = "openai/clip-vit-base-patch32"
ACTIVATIONS = ("quick_gelu", "gelu")

Converted = tuple[TierModel, TierProcessor]

# What the authors' files hold beside tensors: the command line, and losses as numbers of numpy 1 or 2.
_AUTHORS_GLOBALS = [argparse.Namespace, np.dtype, *(type(np.dtype(kind)) for kind in (np.float32, np.float64))]
_AUTHORS_GLOBALS += [(np.float32(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]

_POSITIONS = {r".*\.position_ids": "the numbers 0, 1, 2, ...: counted here, not stored"}


# The sources


def biovil(
    image_model: str = CXR_BERT,
    text_model: str = CXR_BERT,
    image_options: dict | None = None,
    record: Record | None = None,
) -> Converted:
    """
    BioViL: Microsoft's ResNet-50 for radiographs, and CXR-BERT.

    Args:
        image_model: the .pt file of the image model, or a folder or Hub id that holds it under its published name.
        text_model: folder or Hub id of CXR-BERT.
        image_options: options that replace the image processor's (shorter side 512, the central 480 pixels, [0, 1]).
        record: filled with what was read and what was not used.

    Returns:
        the model, in evaluation mode, and its processor.

    Raises:
        ValueError: if a file is missing, unreadable or refused, or weights are missing, left over or of another shape.
    """
    record = record or Record()
    weights = state_dict(read_torch(find_file(image_model, record, BIOVIL_IMAGE_FILE)))
    folder = find_folder(text_model, record)
    _resnet_config(weights, "encoder.encoder.")  # names another model's file before its weights are added
    add_weights(weights, folder_weights(folder))
    record.initial["logit_scale"] = "BioViL's files have none"
    image_processor = _image_processor(512, 480, Image.Resampling.BILINEAR, image_options, do_normalize=False)
    return _convert_biovil(weights, "", "", folder, image_processor, record)


def tier_authors(
    model: str, text_model: str = CXR_BERT, image_options: dict | None = None, record: Record | None = None
) -> Converted:
    """
    A checkpoint by the code of the authors of arXiv 2212.06710.

    Args:
        model: its .pt file, on the disk or as "user/name/path/in/repository.pt".
        text_model: folder or Hub id of CXR-BERT, for its tokenizer and configuration.
        image_options: replace shorter side 256, the central 224 pixels, ImageNet's mean and standard deviation.
        record, returns, raises: as in [`biovil`].
    """
    record = record or Record()
    checkpoint = read_torch(find_file(model, record), _AUTHORS_GLOBALS)
    if not isinstance(checkpoint, dict) or "model_state_dict" not in checkpoint:
        raise ValueError(f"{Path(model).name} has no 'model_state_dict': it is not by the code of arXiv 2212.06710.")
    weights = state_dict(checkpoint["model_state_dict"])
    record.unused |= {key: "about the training, not the model" for key in checkpoint if key != "model_state_dict"}
    for key in [key for key in weights if key.startswith("cls_projection_head.")]:
        tensor, twin = weights.pop(key), weights.get(f"transformer.{key}")
        if twin is None or not torch.equal(tensor, twin):
            raise ValueError(f"{key} and transformer.{key} must be one parameter, and are not equal.")
        record.unused[key] = f"the same parameter as transformer.{key}"
    normalisation = {"image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}
    image_processor = _image_processor(256, 224, Image.Resampling.BILINEAR, image_options, **normalisation)
    folder = find_folder(text_model, record, weights=False)
    tier, processor = _convert_biovil(weights, "cnn.", "transformer.", folder, image_processor, record)
    processor.tokenizer.model_max_length = min(processor.tokenizer.model_max_length, 128)  # as in their training
    return tier, processor


def clip(model: str, image_options: dict | None = None, record: Record | None = None) -> Converted:
    """
    Any CLIPModel of transformers.

    Args:
        model: its folder or Hub id.
        image_options, record, returns, raises: as in [`biovil`]; the image processor is the model's own.
    """
    record = record or Record()
    folder = find_folder(model, record, images=True)
    source = _source_config(folder, "clip")
    config = TierConfig(
        text_config=source.text_config,
        vision_config=source.vision_config,
        projection_dim=source.projection_dim,
        logit_scale_init_value=source.logit_scale_init_value,
    )
    image_processor = with_options(_load(AutoImageProcessor, folder), image_options or {})
    processor = _processor(image_processor, _load_tokenizer(folder), config)
    return _convert(config, folder_weights(folder), [], _POSITIONS, processor, record)


def siglip(model: str, image_options: dict | None = None, record: Record | None = None) -> Converted:
    """
    Any SiglipModel of transformers.

    Args:
        model: its folder or Hub id.
        image_options, record, returns, raises: as in [`biovil`]; the image processor is the model's own.
    """
    record = record or Record()
    folder = find_folder(model, record, images=True)
    source, weights = _source_config(folder, "siglip"), folder_weights(folder)
    for name in ("logit_scale", "logit_bias"):
        _shape(weights, name, 1, "a SiglipModel")
    weights["logit_scale"] = weights["logit_scale"].squeeze()
    tokenizer = _load_tokenizer(folder)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]  # the mask tells TIER what is a token
    tokenizer.padding_side = "right"
    source.text_config.pad_token_id = tokenizer.pad_token_id
    config = TierConfig(
        text_config=source.text_config,
        vision_config=source.vision_config,
        projection_dim=source.vision_config.hidden_size,
        projection="siglip",
        image_pooling="attention",
        logit_scale_init_value=weights["logit_scale"].item(),
        logit_bias_init_value=weights["logit_bias"].item(),
    )
    names = [(r"^text_projection", "text_model.head"), (r"^visual_projection", "vision_model.head")]
    image_processor = with_options(_load(AutoImageProcessor, folder), image_options or {})
    processor = _processor(image_processor, tokenizer, config)
    return _convert(config, weights, names, _POSITIONS, processor, record)


def openai(
    model: str,
    tokenizer: str = OPENAI_TOKENIZER,
    image_options: dict | None = None,
    record: Record | None = None,
    activation: str | None = None,
) -> Converted:
    """
    A vision transformer in the format of OpenAI's CLIP, such as CheXzero.

    Args:
        model: the .pt file, on the disk or as "user/name/path/in/repository.pt": a state dict, a TorchScript archive
            as OpenAI published them, or a checkpoint of open_clip's trainer.
        tokenizer: folder or Hub id of CLIP's tokenizer.
        activation: "quick_gelu", as OpenAI's models and open_clip's of a name with "-quickgelu" compute, or "gelu", as
            open_clip's others do. The weights do not tell. "quick_gelu" by default; a checkpoint of open_clip's
            trainer needs it said.
        image_options: replace CLIP's mean and standard deviation, and the size that the weights tell.
        record, returns, raises: as in [`biovil`].
    """
    record = record or Record()
    if activation not in (None, *ACTIVATIONS):
        raise ValueError(f"activation must be one of {list(ACTIVATIONS)}; got {activation!r}.")
    content = read_torch(find_file(model, record))
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        if activation is None:
            raise ValueError(
                f"{Path(model).name} is a checkpoint of a trainer, such as open_clip's ('state_dict'), whose models "
                "compute with either activation: say --activation gelu, or quick_gelu if the name of its architecture "
                "ends in -quickgelu."
            )
        record.unused |= {key: "about the training, not the model" for key in content if key != "state_dict"}
        content = content["state_dict"]
    weights = state_dict(content)
    tokenizer = _load_tokenizer(find_folder(tokenizer, record, weights=False))
    config = _openai_config(weights, tokenizer, activation or ACTIVATIONS[0])
    if activation is None:
        record.notes.append(
            "computed with quick_gelu, as OpenAI's models are: the weights do not tell; open_clip's models without "
            "-quickgelu in their name need --activation gelu"
        )
    size = config.vision_config.image_size
    image_processor = _image_processor(size, size, Image.Resampling.BICUBIC, image_options)
    processor = _processor(image_processor, tokenizer, config)
    unused = dict.fromkeys(("input_resolution", "context_length", "vocab_size"), "read from the shapes of the weights")
    return _convert(config, _openai_weights(weights), _OPENAI_NAMES, unused, processor, record)


SOURCES = {"biovil": biovil, "clip": clip, "openai": openai, "siglip": siglip, "tier-authors": tier_authors}


# BioViL's names, which the authors' checkpoints have too


def _convert_biovil(
    weights: Weights, image: str, text: str, folder: Path, image_processor, record: Record
) -> Converted:
    """From names that begin with `image` and `text`; the text encoder's configuration and tokenizer from `folder`."""
    text_config, projection_dim = _cxr_bert_config(folder)
    config = TierConfig(
        text_config=text_config,
        vision_config=_resnet_config(weights, f"{image}encoder.encoder."),
        projection_dim=projection_dim,
        projection="mlp",
        image_pooling="mean",
    )
    for key in (f"{image}projector.model.{layer}.weight" for layer in (0, 3)):
        if key in weights and weights[key].shape[2:] == (1, 1):  # a 1x1 convolution is a linear layer
            weights[key] = weights[key].flatten(1)
    names = [
        (r"^vision_model\.embedder\.embedder\.convolution", f"{image}encoder.encoder.conv1"),
        (r"^vision_model\.embedder\.embedder\.normalization", f"{image}encoder.encoder.bn1"),
        (r"^vision_model\.encoder\.stages\.(\d)\.layers", lambda m: f"{image}encoder.encoder.layer{int(m[1]) + 1}"),
        (r"\.layer\.(\d)\.convolution", lambda m: f".conv{int(m[1]) + 1}"),
        (r"\.layer\.(\d)\.normalization", lambda m: f".bn{int(m[1]) + 1}"),
        (r"\.shortcut\.convolution", ".downsample.0"),
        (r"\.shortcut\.normalization", ".downsample.1"),
        (r"^visual_projection", f"{image}projector.model"),
        (r"^text_model", f"{text}bert"),
        (r"^text_projection\.0", f"{text}cls_projection_head.dense_to_hidden"),
        (r"^text_projection\.2", f"{text}cls_projection_head.LayerNorm"),
        (r"^text_projection\.3", f"{text}cls_projection_head.dense_to_output"),
    ]
    unused = _POSITIONS | {
        re.escape(f"{image}encoder.encoder.fc.") + ".*": "names the classes of ImageNet: no embedding needs it",
        re.escape(f"{text}cls.predictions.") + ".*": "guesses hidden words: no embedding needs it",
        re.escape(f"{text}bert.pooler.") + ".*": "BERT's own pooling: no embedding needs it",
    }
    # The published tokenizer names a class of the authors' own, which adds nothing to BERT's.
    processor = _processor(image_processor, _load_tokenizer(folder, BertTokenizer), config)
    return _convert(config, weights, names, unused, processor, record)


def _cxr_bert_config(folder: Path) -> tuple[BertConfig, int]:
    """BERT's configuration, and the dimension of the joint space."""
    content = json.loads(existing(folder / "config.json").read_text())
    if content.pop("model_type", None) != "cxr-bert":
        raise ValueError(f"{folder.name} does not hold a CXR-BERT: the model_type in its config.json is another one.")
    projection_dim = content.pop("projection_size", 128)
    foreign = ("architectures", "auto_map", "_name_or_path", "dtype", "torch_dtype", "transformers_version")
    return BertConfig(**{name: value for name, value in content.items() if name not in foreign}), projection_dim


def _resnet_config(weights: Weights, prefix: str) -> ResNetConfig:
    """Depths and widths by torchvision's names; its stride is in the 3x3 convolution."""
    kind = "a ResNet with torchvision's names"
    blocks = {m.groups() for m in (re.match(rf"{re.escape(prefix)}layer(\d)\.(\d+)\.", key) for key in weights) if m}
    stages = sorted({stage for stage, _ in blocks} | {"1"})
    last = "conv3" if f"{prefix}layer1.0.conv3.weight" in weights else "conv2"
    embedding_size, num_channels, _, _ = _shape(weights, f"{prefix}conv1.weight", 4, kind)
    return ResNetConfig(
        num_channels=num_channels,
        embedding_size=embedding_size,
        hidden_sizes=[_shape(weights, f"{prefix}layer{stage}.0.{last}.weight", 4, kind)[0] for stage in stages],
        depths=[sum(stage == other for other, _ in blocks) for stage in stages],
        layer_type="bottleneck" if last == "conv3" else "basic",
        downsample_in_bottleneck=False,
    )


# OpenAI's format

_OPENAI_NAMES = [
    (r"self_attn\.q_proj\.(weight|bias)", r"attn.in_proj_\1 (query)"),
    (r"self_attn\.k_proj\.(weight|bias)", r"attn.in_proj_\1 (key)"),
    (r"self_attn\.v_proj\.(weight|bias)", r"attn.in_proj_\1 (value)"),
    (r"self_attn\.out_proj", "attn.out_proj"),
    (r"layer_norm(\d)", r"ln_\1"),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
    (r"encoder\.layers", "transformer.resblocks"),
    (r"embeddings\.patch_embedding", "conv1"),
    (r"embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"embeddings\.(class|token)_embedding", r"\1_embedding"),
    (r"pre_layrnorm", "ln_pre"),
    (r"post_layernorm", "ln_post"),
    (r"final_layer_norm", "ln_final"),
    (r"^vision_model\.", "visual."),
    (r"^text_model\.", ""),
    (r"^visual_projection\.weight", "visual.proj (transposed)"),
    (r"^text_projection\.weight", "text_projection (transposed)"),
]


def _openai_config(weights: Weights, tokenizer, activation: str) -> TierConfig:
    """What the shapes tell, and the tokenizer's special tokens."""
    if any(key.startswith(("visual.layer1.", "visual.attnpool.")) for key in weights):
        raise ValueError("Its image encoder is CLIP's ResNet, which transformers does not have: use one with a ViT.")
    kind = "a CLIP with a vision transformer in OpenAI's format"
    width, _, _, patch_size = _shape(weights, "visual.conv1.weight", 4, kind)
    num_positions, _ = _shape(weights, "visual.positional_embedding", 2, kind)
    vocab_size, text_width = _shape(weights, "token_embedding.weight", 2, kind)
    context_length, _ = _shape(weights, "positional_embedding", 2, kind)
    if tokenizer.eos_token_id != vocab_size - 1:
        raise ValueError(
            f"The tokenizer's end token must be the last of the model's {vocab_size} tokens, as CLIP's is: "
            f"{vocab_size - 1}, not {tokenizer.eos_token_id}."
        )
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = _openai_tower(weights, "", text_width, activation)
    vision = _openai_tower(weights, "visual.", width, activation)
    return TierConfig(
        text_config=CLIPTextConfig(**text, **ends, vocab_size=vocab_size, max_position_embeddings=context_length),
        vision_config=CLIPVisionConfig(
            **vision, patch_size=patch_size, image_size=patch_size * round((num_positions - 1) ** 0.5)
        ),
        projection_dim=_shape(weights, "visual.proj", 2, kind)[1],
    )


def _openai_tower(weights: Weights, prefix: str, width: int, activation: str) -> dict:
    if width % 64:
        raise ValueError(f"The heads of OpenAI's format have 64 channels, and {prefix}transformer is {width} wide.")
    pattern = rf"{re.escape(prefix)}transformer\.resblocks\.(\d+)\."
    layers = {m[1] for m in (re.match(pattern, key) for key in weights) if m}
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 64}
    return {**sizes, "num_hidden_layers": len(layers), "hidden_act": activation}


def _openai_weights(weights: Weights) -> Weights:
    """Queries, keys and values apart, and projections as linear layers have them."""
    result = {}
    for key, tensor in weights.items():
        if key.endswith(("attn.in_proj_weight", "attn.in_proj_bias")):
            result |= {f"{key} ({part})": third for part, third in zip(("query", "key", "value"), tensor.chunk(3))}
        elif key in ("visual.proj", "text_projection"):
            result[f"{key} (transposed)"] = tensor.transpose(0, -1)
        else:
            result[key] = tensor
    return result


# Any source


def _convert(
    config: TierConfig,
    weights: Weights,
    names: Sequence[tuple[str, str | Callable]],
    unused: dict[str, str],
    processor: TierProcessor,
    record: Record,
) -> Converted:
    """
    A model with these weights, and its processor.

    Args:
        names: patterns, and what to put in their place, that make the source's name from that of a parameter of ours.
        unused: patterns of keys that TIER does not use, with the reasons.
        record: its `initial` names the parameters that the source does not have.
    """
    config.special_token_ids = sorted(set(processor.tokenizer.all_special_ids))
    model, state = TierModel(config).float().eval(), {}
    for name, tensor in model.state_dict().items():
        key = name
        for pattern, replacement in names:
            key = re.sub(pattern, replacement, key)
        if name not in record.initial:
            state[key] = tensor
    left = [key for key in weights if key not in state]
    known = {key: why for key in left for pattern, why in unused.items() if re.fullmatch(pattern, key)}
    _check_fit(weights, state, [key for key in left if key not in known])
    for key, tensor in state.items():
        tensor.copy_(weights[key])
    record.unused |= known
    _try(model, processor)
    return model, processor


def _check_fit(weights: Weights, state: Weights, unexpected: list[str]) -> None:
    wrong, integers = [], []
    for key in (key for key in state if key in weights):
        ours, theirs = tuple(state[key].shape), tuple(weights[key].shape)
        if ours != theirs:
            wrong.append(f"{key} (expected {ours}, found {theirs})")
        if state[key].is_floating_point() and not weights[key].is_floating_point():
            integers.append(f"{key} ({weights[key].dtype})")
    missing = [key for key in state if key not in weights]
    problems = {"missing": missing, "unknown": unexpected, "of another shape": wrong}
    problems["of integers, as quantised ones are"] = integers
    if any(problems.values()):
        listed = "; ".join(f"{what}: {', '.join(keys)}" for what, keys in problems.items() if keys)
        raise ValueError(f"The weights do not fit the model. {listed}.")


@torch.inference_mode()
def _try(model: TierModel, processor: TierProcessor) -> None:
    """One grey picture and one word: the processor's inputs must suit the model, and the weights hold no NaN."""
    try:
        outputs = model(**processor(images=Image.new("L", (640, 512), 128), text="effusion"))
    except Exception as error:  # whatever the image processor or the model says to a wrong option
        raise ValueError(f"The model cannot take what its processor makes: {error}") from error
    if not torch.isfinite(outputs.logits_per_image).all():
        raise ValueError("The weights give no finite similarity of a picture and a text.")


def _processor(image_processor, tokenizer, config: TierConfig) -> TierProcessor:
    text_config = config.text_config
    if len(tokenizer) > text_config.vocab_size:
        raise ValueError(f"The tokenizer has {len(tokenizer)} tokens, and the text encoder {text_config.vocab_size}.")
    word = tokenizer("effusion", add_special_tokens=False).input_ids
    if not set(word) - set(tokenizer.all_special_ids):  # transformers makes one without its vocabulary, too
        raise ValueError(f"The tokenizer in {tokenizer.name_or_path} does not know any word: its files are not there.")
    tokenizer.init_kwargs.pop("auto_map", None)  # names code of the source
    tokenizer.model_max_length = min(tokenizer.model_max_length, max_text_length(text_config))
    return TierProcessor(image_processor=image_processor, tokenizer=tokenizer)


def _image_processor(shorter_side: int, crop: int, resample: Image.Resampling, image_options: dict | None, **options):
    sizes = {"size": {"shortest_edge": shorter_side}, "crop_size": {"height": crop, "width": crop}}
    return with_options(CLIPImageProcessor(**sizes, resample=resample, **options), image_options or {})


def _load(auto_class, folder: Path):
    return auto_class.from_pretrained(folder, trust_remote_code=False)


def _load_tokenizer(folder: Path, tokenizer_class=AutoTokenizer):
    check_tokenizer_files(folder)
    return _load(tokenizer_class, folder)


def _source_config(folder: Path, model_type: str):
    existing(folder / "config.json")
    config = _load(AutoConfig, folder)
    if config.model_type != model_type:
        raise ValueError(f"{folder.name} holds a model of type {config.model_type!r}; {model_type!r} is needed.")
    return config


def _shape(weights: Weights, key: str, ndim: int, kind: str) -> tuple[int, ...]:
    """The shape of a tensor from which the configuration is read."""
    if key not in weights or weights[key].ndim != ndim:
        found = f"has the shape {tuple(weights[key].shape)}" if key in weights else "is missing"
        raise ValueError(f"{key} {found}: the weights are not those of {kind}.")
    return tuple(weights[key].shape)


# The command


def convert(source: str, output_dir: str | os.PathLike, **options) -> Record:
    """
    Convert, and write a folder that `AutoModel` and `AutoProcessor` load: all of it or nothing.

    Args:
        source: one of `SOURCES`.
        output_dir: a folder that does not exist or is empty; gets the record too, as `conversion.json`.
        **options: arguments of the source's function.

    Raises:
        ValueError: if `output_dir` is not empty, which is seen first, or as the source's function does.
    """
    output = Path(output_dir).resolve()
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ValueError(f"{output_dir} is not an empty folder.")
    record = Record()
    model, processor = SOURCES[source](**options, record=record)
    with new_folder(output) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        content = {"source": source, **asdict(record), **versions}
        (folder / "conversion.json").write_text(json.dumps(content, indent=2) + "\n")
    return record


def _summary(record: Record, output_dir: str) -> str:
    lines = [f"wrote {output_dir}", "read:", *(f"  {file['sha256'][:12]}  {file['name']}" for file in record.files)]
    lines += [f"not used by TIER: {len(record.unused)} keys"]
    lines += [f"  {key}: {reason}" for key, reason in record.unused.items()]
    lines += [f"note: {note}" for note in record.notes]
    lines += [f"left at its initial value: {name}; {reason}" for name, reason in record.initial.items()]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m modeling_tier.conversion", description=__doc__.split("\n\n")[1])
    commands = parser.add_subparsers(dest="source", metavar="SOURCE", required=True)
    descriptions = {
        "model": "clip, siglip: folder or Hub id; openai, tier-authors: .pt file, or user/name/file.pt on the Hub",
        "image_model": f"a .pt file, or a folder or Hub id that holds {BIOVIL_IMAGE_FILE}",
        "text_model": "folder or Hub id of CXR-BERT",
        "tokenizer": "folder or Hub id of CLIP's tokenizer",
        "activation": f"{' or '.join(ACTIVATIONS)}: what the weights do not tell",
        "image_options": "options that replace the image processor's, as a mapping in YAML",
    }
    for source, function in SOURCES.items():
        about = inspect.getdoc(function).partition("\n")[0]
        command = commands.add_parser(source, help=about, description=about)
        command.add_argument("output_dir", metavar="OUTPUT_DIR", help="folder to write; must be empty, if it is there")
        defaults = {
            name: p.default for name, p in inspect.signature(function).parameters.items() if name in descriptions
        }
        for name, default in defaults.items():
            if default is inspect.Parameter.empty:
                command.add_argument(f"--{name}", required=True, help=descriptions[name])
            else:
                command.add_argument(
                    f"--{name}", default=default, help=descriptions[name] + (f" ({default})" if default else "")
                )
    return parser


def main() -> None:
    options = vars(_parser().parse_args())
    try:
        if options["image_options"] is not None:
            options["image_options"] = yaml.safe_load(options["image_options"])
            if not isinstance(options["image_options"], dict):
                raise ValueError("--image_options must be a mapping, such as '{image_mean: [0.4, 0.4, 0.4]}'.")
        print(_summary(convert(**options), options["output_dir"]))
    except (ValueError, OSError, RuntimeError, ImportError, yaml.YAMLError) as error:
        sys.exit("error: " + " ".join(str(error).split()))
    except KeyboardInterrupt:
        sys.exit("\nstopped; nothing was written")


if __name__ == "__main__":
    main()
