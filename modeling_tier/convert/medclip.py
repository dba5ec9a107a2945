# Licensed under the Apache License, Version 2.0.
"""MedCLIP (Wang et al., EMNLP 2022): a Swin transformer or a ResNet-50, and Bio_ClinicalBERT."""

from PIL import Image
from transformers import ResNetConfig

from ..configuration_tier import TierConfig
from .assemble import POSITIONS, Names, assemble, cropping_image_processor, renaming, shape_of
from .clinical_bert import CLINICAL_BERT, clinical_bert
from .resnet import resnet_config, resnet_names
from .source import Converted, Source
from .swin import UNUSED as UNUSED_OF_SWIN
from .swin import swin_config, swin_names
from .weight_files import Record, Weights, find_file, read_torch, state_dict


WEIGHTS_FILE = "pytorch_model.bin"

_TEXT_LAYERS = [1, 2, -1]  # of BERT, whose mean is a token's state
_MEAN, _STD = 0.5862785803043838, 0.27950088968644304


def medclip(
    model: str, text_model: str = CLINICAL_BERT, image_options: dict | None = None, record: Record | None = None
) -> Converted:
    """
    MedCLIP, with either image encoder.

    Args:
        model: the folder that its archive unpacks to, or its `pytorch_model.bin`, or "user/name" on the Hub.
        text_model: folder or Hub id of Bio_ClinicalBERT, for its tokenizer and configuration.
        image_options: replace shorter side 224, the central 224 pixels, MedCLIP's mean and standard deviation.
        record, returns, raises: as in [`~convert.clip.clip`].
    """
    record = record or Record()
    weights = state_dict(read_torch(find_file(model, record, WEIGHTS_FILE)))
    projection_dim = shape_of(weights, "text_model.projection_head.weight", 2, "MedCLIP")[0]
    text_config, tokenizer = clinical_bert(text_model, 77, record)
    with_swin = "vision_model.projection_head.weight" in weights
    config = TierConfig(
        text_config=text_config,
        vision_config=swin_config(weights, "vision_model.model.", "MedCLIP with a Swin transformer")
        if with_swin
        else _resnet_config(weights),
        projection_dim=projection_dim,
        image_pooling="mean",
        text_pooling="mean",
        text_layers=_TEXT_LAYERS,
    )
    vision_name = renaming(_swin_names() if with_swin else _resnet_names())
    text_name = renaming(
        [(r"^text_model\.", "text_model.model."), (r"^text_projection\.", "text_model.projection_head.")]
    )

    def source_name(name: str) -> str:
        return vision_name(name) if name.startswith("vis") else text_name(name)

    pooler = {r"text_model\.model\.pooler\..*": "BERT's own pooling: no embedding needs it"}
    unused = POSITIONS | UNUSED_OF_SWIN | pooler
    record.notes.append(
        "MedCLIP's own code counts the padding of a batch in a text's mean; here it never counts, so texts that are "
        "encoded one by one agree"
    )
    grey = {"image_mean": [_MEAN] * 3, "image_std": [_STD] * 3}
    image_processor = cropping_image_processor(224, 224, Image.Resampling.BICUBIC, image_options, **grey)
    return assemble(config, weights, source_name, unused, image_processor, tokenizer, record, pad_to_square=True)


def _resnet_config(weights: Weights) -> ResNetConfig:
    return resnet_config(weights, "vision_model.model.")


def _swin_names() -> Names:
    return [*swin_names("vision_model.model."), (r"^visual_projection\.", "vision_model.projection_head.")]


def _resnet_names() -> Names:
    return [*resnet_names("vision_model.model."), (r"^visual_projection\.", "vision_model.model.fc.")]


SOURCE = Source(
    name="medclip",
    convert=medclip,
    reads="MedCLIP's weights",
    writes="Swin or ResNet, and BERT; linear projections, means over patches and tokens",
    options={
        "model": f"folder or Hub id that holds {WEIGHTS_FILE}, or that file",
        "text_model": "folder or Hub id of Bio_ClinicalBERT",
    },
)
