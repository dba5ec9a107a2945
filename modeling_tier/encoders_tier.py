# Licensed under the Apache License, Version 2.0.
"""The encoders of transformers: which can be used, how they are built, and how their states are arranged."""

import inspect
import json
import re
import warnings
from functools import cache

import torch
from torch import nn
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel, SiglipTextConfig, SiglipTextModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Text encoders whose global state stands at the end-of-text token, or at the last position of a text that is padded to
# full length; elsewhere it is the first one.
EOS_POOLED_TEXT = ("clip_text_model",)
LAST_POOLED_TEXT = ("siglip_text_model",)

# Vision encoders whose output is a grid of patches with no class token in front.
VISION_WITHOUT_CLASS_TOKEN = (
    "aimv2_vision_model",
    "bit",
    "convnext",
    "convnextv2",
    "donut-swin",
    "focalnet",
    "ijepa",
    "maskformer-swin",
    "poolformer",
    "pvt_v2",
    "regnet",
    "resnet",
    "sam3_vit_model",
    "siglip_vision_model",
    "swin",
    "swinv2",
    "textnet",
    "vitdet",
)

# Text encoders whose positions begin behind the padding token's id, and those that compute any position.
_POSITIONS_AFTER_PADDING = (
    "camembert",
    "data2vec-text",
    "ibert",
    "longformer",
    "luke",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)
_POSITIONS_WITHOUT_END = (
    "esmc",
    "eurobert",
    "gte",
    "jina_embeddings_v3",
    "modernbert",
    "neomme",
    "nomic_bert",
    "ultrabert",
)

# Encoders that look usable from outside and are not: why, and what works instead.
_IGNORES_MASK = "its states depend on the padding of the batch; use 'bert', 'roberta' or 'modernbert'"
_NO_GRID = "its states are no grid of patches as wide as its configuration says; use 'resnet', 'convnext' or 'vit'"
_UNUSABLE_TEXT = {
    "convbert": _IGNORES_MASK,
    "fnet": _IGNORES_MASK,
    "funnel": _IGNORES_MASK,
    "mobilebert": _IGNORES_MASK,
    "nystromformer": _IGNORES_MASK,
    "yoso": _IGNORES_MASK,
    "mra": "without its CUDA kernel its attention passes nothing on; use 'bert', 'roberta' or 'modernbert'",
    "reformer": "its attention hashes at random; use 'longformer' or 'modernbert' for long texts",
}
_UNUSABLE_VISION = {
    "siglip2_vision_model": "it takes packed patches instead of pixel_values; use 'siglip_vision_model'",
    "vit_mae": "it hides 75% of the patches at random; use 'vit', which loads the same weights",
    "glpn": "its states depend on the whole picture more than on their own patch; use 'pvt_v2' or 'swin'",
    "hiera": "it re-orders its patches; use 'vit' or 'swin'",
    "yolos": "its detection tokens stand where patches would; use 'vit' or 'deit'",
    "pixtral": "it packs the images of a batch into one row; use 'vit' or 'siglip_vision_model'",
    "dinat": "its attention needs the library natten; use 'swin'",
    "swin2sr": "it makes larger pictures; use 'swin' or 'swinv2'",
    "timm_backbone": "its states differ with the architecture; use 'resnet', 'convnext' or 'vit'",
    "timm_wrapper": "its states differ with the architecture; use 'resnet', 'convnext' or 'vit'",
    "gemma3n_vision": "its states differ with the architecture; use 'resnet', 'convnext' or 'vit'",
    "sam3_lite_text_text_model": "it reads texts; use 'vit' or 'resnet'",
} | dict.fromkeys(
    [
        "cvt",
        "dinov3_convnext",
        "efficientloftr",
        "efficientnet",
        "hgnet_v2",
        "levit",
        "mgp-str",
        "minicpm_ocr_vision",
        "minicpmv4_7_vision",
        "mobilenet_v1",
        "mobilenet_v2",
        "mobilevit",
        "mobilevitv2",
        "pvt",
        "sam2_hiera_det_model",
        "sam_hq_vision_model",
        "sam_vision_model",
        "segformer",
        "swiftformer",
    ],
    _NO_GRID,
)

MAX_LAYERS = 5_000  # some fifty times those of the deepest encoders that are published

# As reading_tier knows a clipped picture.
_CLIPPED_FRACTION, _SOME_WHITE, _HARDLY_GREY = 0.5, 0.1, 0.1
_NEARLY = 0.05  # some three of 256 greys, when normalised

# Norms that these encoders apply to their pooled state only; the patches take the same way into the joint space.
_POOLED_NORM = {
    "chinese_clip_vision_model": "post_layernorm",
    "clip_vision_model": "post_layernorm",
    "convnext": "layernorm",
    "convnextv2": "layernorm",
    "mlcd": "post_layernorm",
    "mlcd_vision_model": "post_layernorm",
}


def encoder_class(config: PreTrainedConfig):
    """The class of the bare encoder that a configuration describes, or None."""
    if isinstance(config, SiglipTextConfig):  # missing in AutoModel's mapping
        return SiglipTextModel
    try:
        model_class = MODEL_MAPPING[type(config)]
    except (KeyError, ValueError):  # ValueError: the mapping names a class that is not there
        return None
    return model_class[0] if isinstance(model_class, tuple) else model_class


def encoder_width(config: PreTrainedConfig) -> int:
    """Number of channels of an encoder's `last_hidden_state`."""
    width = getattr(config, "hidden_size", None)
    return width if width is not None else config.hidden_sizes[-1]


def max_text_length(config: PreTrainedConfig) -> int | None:
    """
    The most tokens, special ones included, that a text encoder takes; None if its positions have no end.

    RoBERTa and its kin number positions from the padding token's id + 1 on, and hold so many fewer.
    """
    if config.model_type in _POSITIONS_WITHOUT_END:
        return None
    if not getattr(config, "position_biased_input", True):  # DeBERTa with relative positions alone
        return None
    length = getattr(config, "max_position_embeddings", None)
    if length is not None and config.model_type in _POSITIONS_AFTER_PADDING:
        length -= config.pad_token_id + 1
    return length


def check_depth(name: str, options: dict) -> None:
    """Layers are built one by one: a damaged or hostile number of them would take hours and all memory."""
    for option, value in options.items():
        if not re.search("layer|depth|block", str(option)) or "vocab" in str(option):
            continue
        values = value if isinstance(value, (list, tuple)) else (value,)
        if sum(number for number in values if isinstance(number, int)) > MAX_LAYERS:
            raise ValueError(f"{name}: {option} must be at most {MAX_LAYERS:,}; got {str(value)[:40]}.")


def _single_encoder(name: str, config: PreTrainedConfig, unusable: dict[str, str], expected: tuple[str, str]):
    """
    The class of an encoder.

    Args:
        name: "text_config" or "vision_config".
        config: of the encoder.
        unusable: why some model types cannot be used.
        expected: what such a configuration must describe, and examples.
    """
    if config.model_type in unusable:
        raise ValueError(f"{name} {config.model_type!r} cannot be used: {unusable[config.model_type]}.")
    check_depth(name, config.to_dict())
    if config.sub_configs:
        towers = ", ".join(config.sub_configs)
        raise ValueError(
            f"{name} must describe a single encoder, but {config.model_type!r} is made of {towers}. Pass the one that "
            f"is meant, such as {type(config).__name__}(...).{name if name in config.sub_configs else towers}."
        )
    model_class = encoder_class(config)
    if model_class is None:
        raise ValueError(f"{name}: transformers has no plain encoder for the model_type {config.model_type!r}.")
    own_input = getattr(model_class, "main_input_name", "input_ids")
    if own_input != {"text_config": "input_ids", "vision_config": "pixel_values"}[name]:
        kind, examples = expected
        raise ValueError(
            f"{name} must describe {kind}, but {config.model_type!r} reads {own_input}. Use for example {examples}."
        )
    return model_class


def check_text_encoder(config: PreTrainedConfig) -> None:
    _single_encoder(
        "text_config", config, _UNUSABLE_TEXT, ("a text encoder", "'clip_text_model', 'bert' or 'roberta'")
    )
    name = config.model_type
    pools = name in (*EOS_POOLED_TEXT, *LAST_POOLED_TEXT, *MODEL_FOR_MASKED_LM_MAPPING_NAMES)
    if not pools or config.is_encoder_decoder or getattr(config, "is_decoder", False):
        raise ValueError(
            f"text_config {name!r} has no token that is known to sum up the whole text: it decodes, or is not one of "
            "CLIP's, SigLIP's and the masked-language encoders. Use for example 'clip_text_model' or 'bert'."
        )
    if name in LAST_POOLED_TEXT and config.pad_token_id is None:
        raise ValueError(f"text_config {name!r} needs a pad_token_id: its texts are padded to full length.")
    if name in EOS_POOLED_TEXT and config.eos_token_id is None:
        raise ValueError(f"text_config {name!r} needs an eos_token_id: its state stands for the whole text.")


def check_vision_encoder(config: PreTrainedConfig, image_pooling: str) -> None:
    examples = "'clip_vision_model', 'vit', 'dinov2' or 'resnet'"
    model_class = _single_encoder("vision_config", config, _UNUSABLE_VISION, ("an image encoder", examples))
    required = [
        name
        for name, parameter in inspect.signature(model_class.forward).parameters.items()
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    if set(required) - {"self", "pixel_values"} or hasattr(config, "num_frames"):
        what = "videos" if hasattr(config, "num_frames") else "more than pixel_values"
        raise ValueError(
            f"vision_config {config.model_type!r} cannot be used: it reads {what}. Use for example {examples}."
        )
    if image_pooling == "cls" and config.model_type in VISION_WITHOUT_CLASS_TOKEN:
        raise ValueError(
            f"image_pooling='cls' needs a class token, and {config.model_type!r} has none. Use image_pooling='mean'."
        )


def unreached_parameters(config: PreTrainedConfig) -> list[str]:
    """
    Names of the parameters of an encoder that do not train: those that it fixes itself, and those that its states do
    not depend on, such as a mask token's embedding or a head for another task. The latter are found by a backward
    pass, without data on torch's meta device; an encoder that looks at its data on the way gets zeros.
    """
    return _unreached_parameters(encoder_class(config), config.to_json_string())


@cache
def _unreached_parameters(model_class: type[PreTrainedModel], options: str) -> list[str]:
    config = model_class.config_class(**json.loads(options))
    config._attn_implementation = "eager"
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        with torch.device("meta"):
            encoder = build_encoder(config).eval()
        try:
            return _without_gradient(encoder, "meta")
        except (RuntimeError, NotImplementedError):  # .item() and its kind
            encoder.to_empty(device="cpu")
            for tensor in (*encoder.parameters(), *encoder.buffers()):
                tensor.data.zero_()
            return _without_gradient(encoder, "cpu")


def _without_gradient(encoder: PreTrainedModel, device: str) -> list[str]:
    config = encoder.config
    with torch.device(device):
        if encoder.main_input_name == "pixel_values":
            size = getattr(config, "image_size", None) or 224
            height, width = size if isinstance(size, (list, tuple)) else (size, size)
            outputs = encoder(pixel_values=torch.zeros(1, getattr(config, "num_channels", 3), height, width))
        else:
            ids = torch.zeros(1, 4, dtype=torch.int64)
            outputs = encoder(input_ids=ids, attention_mask=torch.ones_like(ids))
        states = with_pooled_norm(encoder, outputs.last_hidden_state)
    fixed = [name for name, parameter in encoder.named_parameters() if not parameter.requires_grad]
    trained = {name: parameter for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(states.sum(), list(trained.values()), allow_unused=True)
    return fixed + [name for name, gradient in zip(trained, gradients) if gradient is None]


def with_pooled_norm(encoder: PreTrainedModel, hidden_states: torch.Tensor) -> torch.Tensor:
    """States (N, P, D), or of shape (N, D, h, w), by the norm that the encoder has for its pooled state, if any."""
    norm = _POOLED_NORM.get(encoder.config.model_type)
    if norm is None:
        return hidden_states
    if hidden_states.ndim == 4:
        hidden_states = hidden_states.flatten(2).transpose(1, 2)
    return getattr(encoder, norm)(hidden_states)


def build_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """An encoder without the pooling head it may have: the global state is pooled and projected by TierModel."""
    model_class = encoder_class(config)
    _choose_attention(model_class, config)
    has_pooling_layer = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    encoder = model_class._from_config(config, **({"add_pooling_layer": False} if has_pooling_layer else {}))
    if config.model_type == "siglip_text_model":
        encoder.head = nn.Identity()
    elif config.model_type == "siglip_vision_model" and encoder.use_head:
        encoder.use_head = False
        del encoder.head
    return encoder


def _choose_attention(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> None:
    """One of the two encoders may lack the attention that was asked for; the other still gets it."""
    asked = config._attn_implementation
    kind = next((kind for kind in ("sdpa", "flash_attn", "flex_attn") if asked and kind.split("_")[0] in asked), None)
    if kind and not getattr(model_class, f"_supports_{kind}", False):
        logger.warning(f"{config.model_type!r} has no attention by {asked!r}, and uses 'eager'.")
        config._attn_implementation = "eager"


def pad_to_full_length(
    config: PreTrainedConfig, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
) -> torch.Tensor:
    """Token ids (M, max_position_embeddings), with the padding token wherever `input_ids` (M, T) have no token."""
    if attention_mask is not None:
        input_ids = input_ids.masked_fill(attention_mask == 0, config.pad_token_id)
    missing = config.max_position_embeddings - input_ids.shape[1]
    return nn.functional.pad(input_ids, (0, missing), value=config.pad_token_id)


def global_token_position(
    config: PreTrainedConfig, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
) -> torch.Tensor:
    """Position (M,) of the token whose state stands for the whole text."""
    num_tokens = input_ids.shape[1]
    if config.model_type in EOS_POOLED_TEXT:
        return _end_token_position(config, input_ids, attention_mask)
    if attention_mask is None:
        position = num_tokens - 1 if config.model_type in LAST_POOLED_TEXT else 0
        return torch.full((input_ids.shape[0],), position, device=input_ids.device)
    return attention_mask.to(torch.int).argmax(dim=-1)


def last_token_position(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Position (M,) of the last token that is not padding."""
    numbers = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
    valid = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(input_ids.device)
    return (valid.to(torch.bool) * numbers).argmax(dim=-1)


def _end_token_position(
    config: PreTrainedConfig, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
) -> torch.Tensor:
    """
    Position (M,) of the first end token, as CLIPTextModel takes it; of a text that was cut before it, of the last
    token, which alone has seen all others.

    The configurations of CLIP's first checkpoints say that the end token has the id 2, while it is the last of the
    vocabulary, and CLIPTextModel looks for the highest id in a text if it reads a 2. Some tokenizers, in RoBERTa's
    order, do end with 2. A text tells which is true: after a true end token there is only padding.
    """
    end_ids = config.eos_token_id if isinstance(config.eos_token_id, (list, tuple)) else [config.eos_token_id]
    # Not made on the device, which the host would wait for.
    ends = torch.isin(input_ids, torch.tensor(end_ids).to(input_ids.device, non_blocking=True))
    first_end = ends.to(torch.int).argmax(dim=-1)
    if min(end_ids) >= config.vocab_size:  # it cannot occur; CLIPTextModel takes the first token
        return first_end
    last = last_token_position(input_ids, attention_mask)
    if end_ids != [2]:
        return torch.where(ends.any(dim=-1), first_end, last)
    numbers = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
    valid = torch.ones_like(ends) if attention_mask is None else attention_mask.to(torch.bool)
    after_end = (ends * numbers).amax(dim=-1, keepdim=True)  # 0 where there is none
    only_padding = ~valid | (input_ids == config.pad_token_id) | (numbers <= after_end)
    ends_with_2 = (after_end.squeeze(-1) > 0) & only_padding.all(dim=-1)
    highest, highest_position = input_ids.amax(dim=-1), input_ids.to(torch.int).argmax(dim=-1)
    is_highest = (highest == config.vocab_size - 1) | (highest == input_ids.gather(1, last[:, None])[:, 0])
    return torch.where(ends_with_2, first_end, torch.where(is_highest, highest_position, last))


def patch_grid(config: PreTrainedConfig, pixel_values: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of the patches of a vision transformer; a hierarchical one halves them after every stage."""
    patch_size = config.patch_size if isinstance(config.patch_size, (list, tuple)) else (config.patch_size,) * 2
    stages = len(getattr(config, "depths", [None]))
    height, width = (size // (patch * 2 ** (stages - 1)) for size, patch in zip(pixel_values.shape[-2:], patch_size))
    return height, width


def check_pixels(config: PreTrainedConfig, pixel_values: torch.Tensor) -> None:
    shape, channels = tuple(pixel_values.shape), getattr(config, "num_channels", 3)
    if pixel_values.ndim != 4 or 0 in shape or shape[1] != channels:
        raise ValueError(f"pixel_values must have shape (N, {channels}, H, W), at least one image; got {shape}.")
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"pixel_values must be floating point, got {pixel_values.dtype}: let the processor rescale and normalise "
            "the pictures."
        )


@torch.no_grad()
def warn_if_clipped(pixel_values: torch.Tensor) -> None:
    """
    Warn of pictures (N, C, H, W) that are mostly pure white, or black and white, as one of 16 bits is that was
    converted to 8 without scaling: by then nothing else shows it. Black pixels, which most radiographs have, are below
    0 when normalised.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or pixel_values.is_meta:
        return
    sample = pixel_values[:, :, ::4, ::4]
    highest = sample.amax(dim=(2, 3), keepdim=True)
    fraction = (sample > highest - _NEARLY).all(dim=1).float().mean(dim=(1, 2))
    lowest = sample.amin(dim=(2, 3), keepdim=True)
    margin = (highest - lowest) / 16
    grey = ((sample > lowest + margin) & (sample < highest - margin)).any(dim=1).float().mean(dim=(1, 2))
    clipped = (fraction > _CLIPPED_FRACTION) | ((fraction > _SOME_WHITE) & (grey < _HARDLY_GREY))
    clipped &= (highest > 0).flatten(1).all(dim=1)
    if clipped.any():
        warnings.warn(
            f"{int(clipped.sum())} of {len(clipped)} pictures are mostly pure white, or black and white. A picture of "
            "16 bits that was converted to 8 without scaling looks so: its scores are worth nothing. Read it with "
            "load_radiograph, TierProcessor or pipeline('tier-zero-shot').",
            stacklevel=3,
        )
