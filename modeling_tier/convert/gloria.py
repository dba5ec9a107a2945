# Licensed under the Apache License, Version 2.0.
"""
GLoRIA (Huang et al., ICCV 2021): a ResNet and Bio_ClinicalBERT, by their global embeddings.

GLoRIA's local image embeddings come from an earlier layer by a projection of their own. Here a patch's embedding is
the global projection of that patch in the last layer, so that the image's embedding is the mean of its patches'.
"""

import math
from pathlib import Path

import torch
from PIL import Image

from ..configuration_tier import TierConfig
from .assemble import POSITIONS, assemble, cropping_image_processor, renaming
from .clinical_bert import CLINICAL_BERT, clinical_bert
from .resnet import resnet_config, resnet_names
from .source import Converted, Source
from .weight_files import Record, find_file, read_torch, state_dict


# What a checkpoint of its trainer holds beside tensors, and what is read without these libraries.
_INERT = ("omegaconf.", "pytorch_lightning.", "typing.", "collections.defaultdict")
_INERT += tuple(f"builtins.{name}" for name in ("dict", "list", "tuple", "int", "float", "str", "bool", "object"))

_LAST_LAYERS = 4  # of BERT, whose sum is a token's state
_TEMPERATURE = 10.0  # temp3, by which its training multiplied global cosines
_INPUT_SIDE = 299  # to which its image encoder interpolates


def gloria(
    model: str, text_model: str = CLINICAL_BERT, image_options: dict | None = None, record: Record | None = None
) -> Converted:
    """
    A checkpoint of GLoRIA.

    Args:
        model: its .ckpt file, such as `chexpert_resnet50.ckpt`, on the disk or as "user/name/path/in/repository.ckpt".
        text_model: folder or Hub id of Bio_ClinicalBERT, for its tokenizer and configuration.
        image_options: replace shorter side 256, the central 224 pixels, mean and standard deviation 0.5.
        record, returns, raises: as in [`~convert.clip.clip`].
    """
    record = record or Record()
    content = read_torch(find_file(model, record), inert=_INERT)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise ValueError(f"{Path(model).name} has no 'state_dict': it is not a checkpoint of GLoRIA's trainer.")
    record.unused |= {str(key): "about the training, not the model" for key in content if key != "state_dict"}
    weights = {key.removeprefix("gloria."): tensor for key, tensor in state_dict(content["state_dict"]).items()}
    text_config, tokenizer = clinical_bert(text_model, 97, record)
    config = TierConfig(
        text_config=text_config,
        vision_config=resnet_config(weights, "img_encoder.model."),
        projection_dim=text_config.hidden_size,
        projection="affine",
        image_pooling="mean",
        text_pooling="mean",
        text_layers=list(range(-_LAST_LAYERS, 0)),
        input_side=_INPUT_SIDE,
        logit_scale_init_value=math.log(_TEMPERATURE),
    )
    weights["text_projection.weight"] = torch.eye(text_config.hidden_size)
    weights["text_projection.bias"] = torch.zeros(text_config.hidden_size)
    record.initial["logit_scale"] = "its files have none: log(10), by which its training multiplied global cosines"
    record.notes += [
        "text_projection is the identity: GLoRIA's text embeddings are BERT's own states",
        "GLoRIA's own code takes punctuation and capitals from texts, and drops sentences of one word",
    ]
    names = [
        *resnet_names("img_encoder.model."),
        (r"^visual_projection", "img_encoder.global_embedder"),
        (r"^text_model\.", "text_encoder.model."),
    ]
    unused = POSITIONS | {
        r"img_encoder\.local_embedder\..*": "projects an earlier layer: patches here are parts of the global one",
        r"img_encoder\.model\.fc\..*": "names the classes of ImageNet: no embedding needs it",
        r"text_encoder\.model\.pooler\..*": "BERT's own pooling: no embedding needs it",
    }
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    image_processor = cropping_image_processor(256, 224, Image.Resampling.BILINEAR, image_options, **half)
    framing = {"pad_to_square": True, "longer_side": 256, "longer_side_resample": Image.Resampling.BOX}
    return assemble(config, weights, renaming(names), unused, image_processor, tokenizer, record, **framing)


SOURCE = Source(
    name="gloria",
    convert=gloria,
    reads="a checkpoint of GLoRIA",
    writes="ResNet and BERT, affine projections, means over patches and tokens",
    options={
        "model": ".ckpt file, or user/name/file.ckpt on the Hub",
        "text_model": "folder or Hub id of Bio_ClinicalBERT",
    },
)
