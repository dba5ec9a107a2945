# Licensed under the Apache License, Version 2.0.
"""
CXR-CLIP (You et al., MICCAI 2023): a ResNet-50 or a Swin transformer, and Bio_ClinicalBERT, with linear projections.

A text's embedding is that of its last token, [SEP]. An image's is the mean over the patches of the ResNet; of the Swin
transformer, which has no class token, it is the first patch.
"""

import math
import tarfile

from PIL import Image
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..configuration_tier import TierConfig
from .assemble import POSITIONS, assemble, cropping_image_processor, renaming, shape_of
from .clinical_bert import CLINICAL_BERT, clinical_bert
from .resnet import resnet_config, resnet_names
from .source import Converted, Source
from .swin import UNUSED as UNUSED_OF_SWIN
from .swin import swin_config, swin_names
from .weight_files import Record, find_file, read_torch, state_dict


_RESNET, _SWIN = "image_encoder.resnet.", "image_encoder.image_encoder."
_TEMPERATURE = 0.07
_MAX_TOKENS = 256  # text_max_length of its configurations
_POOLINGS = {"eos": "last", "bos": "token", "mean": "mean"}
# What its trainer may have saved beside tensors, read without these libraries.
_INERT = ("omegaconf.", "numpy.", "typing.", "collections.defaultdict")


def cxr_clip(
    model: str, text_model: str = CLINICAL_BERT, image_options: dict | None = None, record: Record | None = None
) -> Converted:
    """
    A checkpoint of CXR-CLIP, with either image encoder.

    Args:
        model: its file, such as `r50_mcc.tar` (a file of PyTorch in spite of its name), on the disk or as
            "user/name/path/in/repository.tar".
        text_model: folder or Hub id of Bio_ClinicalBERT, for its tokenizer and configuration.
        image_options: replace shorter side 224, the central 224 pixels, mean and standard deviation of ImageNet with
            the ResNet and 0.5 with the Swin transformer.
        record, returns, raises: as in [`~convert.clip.clip`].
    """
    record = record or Record()
    path = find_file(model, record)
    if tarfile.is_tarfile(path):
        raise ValueError(f"{path.name} is an archive: unpack it, and name the file of PyTorch in it.")
    content = read_torch(path, inert=_INERT)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ValueError(f"{path.name} has no 'model': it is not a checkpoint of CXR-CLIP's trainer.")
    record.unused |= {str(key): "about the training, not the model" for key in content if key != "model"}
    weights = state_dict(content["model"])
    projection_dim, _ = shape_of(weights, "text_projection.projection.weight", 2, "CXR-CLIP with linear projections")
    text_config, tokenizer = clinical_bert(text_model, _MAX_TOKENS, record)
    with_resnet = f"{_RESNET}conv1.weight" in weights
    config = TierConfig(
        text_config=text_config,
        vision_config=resnet_config(weights, _RESNET)
        if with_resnet
        else swin_config(weights, _SWIN, "CXR-CLIP with a Swin transformer"),
        projection_dim=projection_dim,
        projection="affine",
        image_pooling="mean" if with_resnet else "first",
        text_pooling=_text_pooling(content.get("config"), record),
        logit_scale_init_value=math.log(1 / _TEMPERATURE),
    )
    names = [
        *(resnet_names(_RESNET) if with_resnet else swin_names(_SWIN)),
        (r"^visual_projection\.", "image_projection.projection."),
        (r"^text_projection\.", "text_projection.projection."),
        (r"^text_model\.", "text_encoder.text_encoder."),
    ]
    pooler = {r"text_encoder\.text_encoder\.pooler\..*": "BERT's own pooling: no embedding needs it"}
    unused = POSITIONS | UNUSED_OF_SWIN | pooler
    if "logit_scale" not in weights:
        record.initial["logit_scale"] = "the file has none: log(1 / 0.07), with which its training begins"
    mean, std = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD) if with_resnet else ([0.5] * 3, [0.5] * 3)
    image_processor = cropping_image_processor(
        224, 224, Image.Resampling.BILINEAR, image_options, image_mean=mean, image_std=std
    )
    return assemble(config, weights, renaming(names), unused, image_processor, tokenizer, record)


def _text_pooling(config, record: Record) -> str:
    """Of the configuration in the checkpoint; of its published configurations if there is none that can be read."""
    try:
        pooling = config["model"]["text_encoder"]["pooling"]
    except (TypeError, KeyError):
        record.notes.append("the file tells no pooling of texts: 'eos' was taken, as in CXR-CLIP's configurations")
        return _POOLINGS["eos"]
    if not isinstance(pooling, str) or pooling not in _POOLINGS:
        raise ValueError(f"The text pooling {pooling!r} is none of CXR-CLIP's: {list(_POOLINGS)}.")
    return _POOLINGS[pooling]


SOURCE = Source(
    name="cxr-clip",
    convert=cxr_clip,
    reads="a checkpoint of CXR-CLIP",
    writes="ResNet or Swin, and BERT; affine projections; the last token; mean or first patch",
    options={
        "model": "file of PyTorch, such as r50_mcc.tar, or user/name/file.tar on the Hub",
        "text_model": "folder or Hub id of Bio_ClinicalBERT",
    },
)
