# Licensed under the Apache License, Version 2.0.
"""Checkpoints by the code of the authors of arXiv 2212.06710."""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .assemble import cropping_image_processor
from .biovil import CXR_BERT, assemble_biovil
from .source import Converted, Source
from .weight_files import Record, find_file, find_folder, read_torch, state_dict


# What the authors' files hold beside tensors: the command line, and losses as numbers of numpy 1 or 2.
_AUTHORS_GLOBALS = [argparse.Namespace, np.dtype, *(type(np.dtype(kind)) for kind in (np.float32, np.float64))]
_AUTHORS_GLOBALS += [(np.float32(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]


def tier_authors(
    model: str, text_model: str = CXR_BERT, image_options: dict | None = None, record: Record | None = None
) -> Converted:
    """
    A checkpoint by the code of the authors of arXiv 2212.06710.

    Args:
        model: its .pt file, on the disk or as "user/name/path/in/repository.pt".
        text_model: folder or Hub id of CXR-BERT, for its tokenizer and configuration.
        image_options: replace shorter side 256, the central 224 pixels, ImageNet's mean and standard deviation.
        record, returns, raises: as in [`~convert.clip.clip`].
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
    image_processor = cropping_image_processor(256, 224, Image.Resampling.BILINEAR, image_options, **normalisation)
    folder = find_folder(text_model, record, weights=())
    tier, processor = assemble_biovil(weights, "cnn.", "transformer.", folder, image_processor, record)
    processor.tokenizer.model_max_length = min(processor.tokenizer.model_max_length, 128)  # as in their training
    return tier, processor


SOURCE = Source(
    name="tier-authors",
    convert=tier_authors,
    reads="a checkpoint by the code of arXiv 2212.06710",
    writes="ResNet-50 and BERT, the paper's projection heads",
    options={
        "model": ".pt file, or user/name/file.pt on the Hub",
        "text_model": "folder or Hub id of CXR-BERT",
    },
)
