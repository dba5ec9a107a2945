# Licensed under the Apache License, Version 2.0.
"""BioViL: Microsoft's ResNet-50 for radiographs with CXR-BERT; its names are those of the authors' checkpoints too."""

import json
import re
from pathlib import Path

from PIL import Image
from transformers import BertConfig, BertTokenizer

from ..configuration_tier import TierConfig
from .assemble import POSITIONS, assemble, cropping_image_processor, load_tokenizer, renaming
from .resnet import resnet_config, resnet_names
from .source import Converted, Source
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
        record, returns, raises: as in [`~convert.clip.clip`].
    """
    record = record or Record()
    weights = state_dict(read_torch(find_file(image_model, record, BIOVIL_IMAGE_FILE)))
    folder = find_folder(text_model, record)
    resnet_config(weights, "encoder.encoder.")  # names another model's file before its weights are added
    add_weights(weights, folder_weights(folder))
    record.initial["logit_scale"] = "BioViL's files have none"
    image_processor = cropping_image_processor(512, 480, Image.Resampling.BILINEAR, image_options, do_normalize=False)
    return assemble_biovil(weights, "", "", folder, image_processor, record, stretch_contrast=True)


def assemble_biovil(
    weights: Weights, image: str, text: str, folder: Path, image_processor, record: Record, **reading_options
) -> Converted:
    """
    A model of weights under BioViL's names.

    Args:
        image, text: what the names of the two encoders begin with.
        folder: holds the text encoder's configuration and tokenizer.
        **reading_options: of [`TierProcessor`].
    """
    text_config, projection_dim = cxr_bert_config(folder)
    config = TierConfig(
        text_config=text_config,
        vision_config=resnet_config(weights, f"{image}encoder.encoder."),
        projection_dim=projection_dim,
        projection="mlp",
        image_pooling="mean",
    )
    for key in (f"{image}projector.model.{layer}.weight" for layer in (0, 3)):
        if key in weights and weights[key].shape[2:] == (1, 1):  # a 1x1 convolution is a linear layer
            weights[key] = weights[key].flatten(1)
    names = [
        *resnet_names(f"{image}encoder.encoder."),
        (r"^visual_projection", f"{image}projector.model"),
        (r"^text_model", f"{text}bert"),
        (r"^text_projection\.0", f"{text}cls_projection_head.dense_to_hidden"),
        (r"^text_projection\.2", f"{text}cls_projection_head.LayerNorm"),
        (r"^text_projection\.3", f"{text}cls_projection_head.dense_to_output"),
    ]
    unused = POSITIONS | {
        re.escape(f"{image}encoder.encoder.fc.") + ".*": "names the classes of ImageNet: no embedding needs it",
        re.escape(f"{text}cls.predictions.") + ".*": "guesses hidden words: no embedding needs it",
        re.escape(f"{text}bert.pooler.") + ".*": "BERT's own pooling: no embedding needs it",
    }
    # The published tokenizer names a class of the authors' own, which adds nothing to BERT's.
    tokenizer, source_name = load_tokenizer(folder, BertTokenizer), renaming(names)
    return assemble(config, weights, source_name, unused, image_processor, tokenizer, record, **reading_options)


def cxr_bert_config(folder: Path) -> tuple[BertConfig, int]:
    """BERT's configuration, and the dimension of the joint space."""
    content = json.loads(existing(folder / "config.json").read_text())
    if content.pop("model_type", None) != "cxr-bert":
        raise ValueError(f"{folder.name} does not hold a CXR-BERT: the model_type in its config.json is another one.")
    projection_dim = content.pop("projection_size", 128)
    foreign = ("architectures", "auto_map", "_name_or_path", "dtype", "torch_dtype", "transformers_version")
    return BertConfig(**{name: value for name, value in content.items() if name not in foreign}), projection_dim


SOURCE = Source(
    name="biovil",
    convert=biovil,
    reads="BioViL's image model (.pt) and CXR-BERT",
    writes="ResNet-50 and BERT, the paper's projection heads",
    options={
        "image_model": f"a .pt file, or a folder or Hub id that holds {BIOVIL_IMAGE_FILE}",
        "text_model": "folder or Hub id of CXR-BERT",
    },
)
