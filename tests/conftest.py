# Licensed under the Apache License, Version 2.0.
"""Offline, and small models of every kind that the tests share."""

import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from transformers import (
    BertConfig,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    ConvNextConfig,
    DeiTConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DistilBertConfig,
    PreTrainedTokenizerFast,
    ResNetConfig,
    RobertaConfig,
    SiglipTextConfig,
    SiglipVisionConfig,
    SwinConfig,
    ViTConfig,
)

from modeling_tier import TierConfig, TierModel, TierProcessor


EOS, VOCAB_SIZE, IMAGE_SIZE = 98, 99, 32

_TRANSFORMER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
_PATCHES = {"image_size": IMAGE_SIZE, "patch_size": 8}

TEXT_CONFIGS = {
    "clip": CLIPTextConfig(
        **_TRANSFORMER, vocab_size=VOCAB_SIZE, max_position_embeddings=24, bos_token_id=0, eos_token_id=EOS
    ),
    "siglip": SiglipTextConfig(
        **_TRANSFORMER, vocab_size=VOCAB_SIZE, max_position_embeddings=24, bos_token_id=0, eos_token_id=EOS
    ),
    "bert": BertConfig(**_TRANSFORMER, vocab_size=VOCAB_SIZE, max_position_embeddings=24),
    "roberta": RobertaConfig(**_TRANSFORMER, vocab_size=VOCAB_SIZE, max_position_embeddings=40),
    "distilbert": DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=37, vocab_size=VOCAB_SIZE),
}
VISION_CONFIGS = {
    "clip": CLIPVisionConfig(**_TRANSFORMER, **_PATCHES),
    "siglip": SiglipVisionConfig(**_TRANSFORMER, **_PATCHES),
    "vit": ViTConfig(**_TRANSFORMER, **_PATCHES),
    "deit": DeiTConfig(**_TRANSFORMER, **_PATCHES),
    "dinov2": Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, **_PATCHES),
    "dinov2_with_registers": Dinov2WithRegistersConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, **_PATCHES
    ),
    "resnet": ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
    "convnext": ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
    "swin": SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4),
}


def tier_config(text="clip", vision="clip", **options) -> TierConfig:
    return TierConfig(
        text_config=TEXT_CONFIGS[text].to_dict(),
        vision_config=VISION_CONFIGS[vision].to_dict(),
        **{"projection_dim": 16, **options},
    )


def make_inputs(num_pairs=4, num_tokens=7, seed=0) -> dict[str, torch.Tensor]:
    """Random pairs; the third text is two tokens shorter than the others and padded with the end token, as CLIP's."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(5, EOS, (num_pairs, num_tokens), generator=generator)
    input_ids[:, 0], input_ids[:, -1] = 0, EOS
    attention_mask = torch.ones_like(input_ids)
    if num_pairs > 2:
        input_ids[2, -3:] = EOS
        attention_mask[2, -2:] = 0
    pixel_values = torch.randn(num_pairs, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "pixel_values": pixel_values}


@pytest.fixture
def clip_model() -> CLIPModel:
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=TEXT_CONFIGS["clip"].to_dict(),
        vision_config=VISION_CONFIGS["clip"].to_dict(),
        projection_dim=16,
    )
    return CLIPModel(config).eval()


@pytest.fixture
def tier_model() -> TierModel:
    torch.manual_seed(0)
    return TierModel(tier_config()).eval()


@pytest.fixture
def model(tokenizer) -> TierModel:
    """Of a BERT with the tokenizer's vocabulary and a ResNet, for pictures of any size."""
    torch.manual_seed(3)
    text = BertConfig(**TEXT_CONFIGS["bert"].to_diff_dict() | {"vocab_size": len(tokenizer)})
    config = TierConfig(
        text_config=text, vision_config=VISION_CONFIGS["resnet"], image_pooling="mean", projection_dim=16
    )
    return TierModel(config).eval()


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    return make_inputs()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = "left right pleural effusion no there is a small large cardiomegaly this photo of .".split()
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    word_level = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    word_level.normalizer = normalizers.Lowercase()
    word_level.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    word_level.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=word_level,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=24,
    )


@pytest.fixture
def processor(tokenizer) -> TierProcessor:
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    return TierProcessor(image_processor=image_processor, tokenizer=tokenizer)
