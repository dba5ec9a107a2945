# Licensed under the Apache License, Version 2.0.
"""
BioViL-T by its path for a single image.

There a picture's features of 256 channels are joined by a learned embedding of a missing previous image, the same at
every patch, and both go through the projector's first layer, which has no bias, and a batch norm. The layer over the
constant half adds a constant, and so the two linear layers become one, and the constant goes into the batch norm's
running mean.
"""

from PIL import Image

from .assemble import cropping_image_processor, shape_of
from .biovil import assemble_biovil
from .source import Converted, Source
from .weight_files import Record, Weights, add_weights, find_file, find_folder, folder_weights, read_torch, state_dict


BIOVIL_T = "microsoft/BiomedVLP-BioViL-T"
BIOVIL_T_IMAGE_FILE = "biovil_t_image_model_proj_size_128.pt"


def biovil_t(
    image_model: str = BIOVIL_T,
    text_model: str = BIOVIL_T,
    image_options: dict | None = None,
    record: Record | None = None,
) -> Converted:
    """
    BioViL-T for a single image, and its CXR-BERT.

    Args:
        image_model: the .pt file of the image model, or a folder or Hub id that holds it under its published name.
        text_model: folder or Hub id of its CXR-BERT.
        image_options: options that replace the image processor's (shorter side 512, the central 448 pixels, [0, 1]).
        record, returns, raises: as in [`~convert.clip.clip`].
    """
    record = record or Record()
    weights = _single_image(state_dict(read_torch(find_file(image_model, record, BIOVIL_T_IMAGE_FILE))), record)
    folder = find_folder(text_model, record)
    add_weights(weights, folder_weights(folder))
    record.initial["logit_scale"] = "BioViL-T's files have none"
    image_processor = cropping_image_processor(512, 448, Image.Resampling.BILINEAR, image_options, do_normalize=False)
    return assemble_biovil(weights, "", "", folder, image_processor, record, stretch_contrast=True)


def _single_image(weights: Weights, record: Record) -> Weights:
    """The weights of a model of single images under BioViL's names."""
    kind = "BioViL-T's image model"
    reduce, first = "encoder.backbone_to_vit.weight", "projector.model.0.weight"
    missing, mean = "encoder.missing_previous_emb", "projector.model.1.running_mean"
    channels = shape_of(weights, reduce, 4, kind)[0]
    shape_of(weights, mean, 1, kind)
    if shape_of(weights, missing, 4, kind) != (1, channels, 1, 1):
        raise ValueError(f"{missing} must have the shape {(1, channels, 1, 1)}: the weights are not those of {kind}.")
    if shape_of(weights, first, 4, kind)[1:] != (2 * channels, 1, 1):
        raise ValueError(f"{first} must take {2 * channels} channels: the weights are not those of {kind}.")
    of_image, of_previous = weights[first].flatten(1).double().split(channels, dim=1)
    constant = of_previous @ weights[missing].flatten().double()
    folded = dict(weights)
    folded[first] = (of_image @ weights[reduce].flatten(1).double()).to(weights[first].dtype)
    folded[mean] = (weights[mean].double() - constant).to(weights[mean].dtype)
    for key in (reduce, missing):
        del folded[key]
        record.unused[key] = f"a linear layer or a constant, folded into {first} and {mean}"
    for key in [key for key in folded if key.startswith("encoder.vit_pooler.")]:
        del folded[key]
        record.unused[key] = "compares with a previous image: TIER reads single ones"
    for key in [key for key in folded if key.startswith("classifier.")]:
        del folded[key]
        record.unused[key] = "a classifier beside the joint space"
    return folded


SOURCE = Source(
    name="biovil-t",
    convert=biovil_t,
    reads="BioViL-T's image model (.pt) and CXR-BERT, for single images",
    writes="ResNet-50 and BERT, the paper's projection heads",
    options={
        "image_model": f"a .pt file, or a folder or Hub id that holds {BIOVIL_T_IMAGE_FILE}",
        "text_model": "folder or Hub id of CXR-BERT",
    },
)
