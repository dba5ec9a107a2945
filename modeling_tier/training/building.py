# Licensed under the Apache License, Version 2.0.
"""The model and the processor that a configuration describes, from pretrained folders or from nothing."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, fields

import torch
from datasets import Dataset, IterableDataset
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, PreTrainedTokenizerFast

from ..clip_images import CLIPImageProcessor
from ..configuration_tier import TierConfig
from ..encoders_tier import max_text_length
from ..framing_tier import Framing
from ..modeling_tier import TierModel
from ..processing_tier import TierProcessor
from ..tokenizer_tier import check_max_length, check_tokenizer_files
from .options import ModelOptions, TrainConfig, tier_options


_SPECIAL_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def build_processor(config: TrainConfig, pairs: Dataset | IterableDataset) -> TierProcessor:
    """The pretrained model's processor; or one for `model.image_size`, with a tokenizer made from the pairs' texts."""
    pretrained, image_size = config.model.pretrained, config.model.image_size
    framing, image_options = {}, dict(config.model.image_options)
    if pretrained and image_size is None:
        image_processor = AutoImageProcessor.from_pretrained(pretrained)
        if AutoConfig.from_pretrained(pretrained).model_type == "tier":
            framing = asdict(TierProcessor.from_pretrained(pretrained).framing)
    else:
        image_processor = CLIPImageProcessor(
            size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
        )
    framing |= {field.name: image_options.pop(field.name) for field in fields(Framing) if field.name in image_options}
    image_processor = with_options(image_processor, image_options)
    tokenizer_source = config.tokenizer.pretrained or pretrained
    if tokenizer_source:
        check_tokenizer_files(tokenizer_source)
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_source)
    elif isinstance(pairs, IterableDataset):
        raise ValueError("tokenizer.pretrained is needed for a stream: a new tokenizer would read all of it first.")
    else:
        tokenizer = train_tokenizer(pairs["text"], config.tokenizer.vocab_size)
    if tokenizer.pad_token is None:
        raise ValueError(
            f"tokenizer.pretrained: the tokenizer of {tokenizer_source} has no padding token, which batches need: "
            "give it one (tokenizer.pad_token = ...), save it, and name that folder."
        )
    check_max_length(tokenizer)
    tokenizer.model_max_length = min(tokenizer.model_max_length, config.data.max_text_tokens)
    if pretrained:
        longest = max_text_length(AutoConfig.from_pretrained(pretrained).text_config)
        tokenizer.model_max_length = min(tokenizer.model_max_length, longest or tokenizer.model_max_length)
    return TierProcessor(image_processor=image_processor, tokenizer=tokenizer, **framing)


def with_options(image_processor, options: dict):
    """
    The same image processor with other options.

    Raises:
        ValueError: for an option that it does not have, with those that it has, and for pixel values of no use.
    """
    known = sorted(
        name for name in type(image_processor).valid_kwargs.__annotations__ if hasattr(image_processor, name)
    )
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"image_options: unknown option {unknown[0]!r} of the image processor; it has {known}.")
    if not options:
        return image_processor
    image_processor = type(image_processor)(**image_processor.to_dict() | options)
    values = image_processor(Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"]
    if isinstance(values, torch.Tensor) and not values.is_floating_point():
        raise ValueError("image_options: with neither do_rescale nor do_normalize, pixels stay whole numbers.")
    return image_processor


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """
    A lower-casing WordPiece tokenizer with BERT's special tokens. Its vocabulary is the characters of the texts and
    their most frequent words; a word outside of it is spelled. The trainers of `tokenizers` are not used: words of
    equal frequency come out of them in a different order each time, and a seed must decide everything.
    """
    normalizer, pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = Counter()
    for text in texts:
        words.update(word for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text)))
    characters = sorted(set("".join(words)))
    by_frequency = sorted(words, key=lambda word: (-words[word], word))
    vocabulary = [*_SPECIAL_TOKENS.values(), *characters, *(f"##{character}" for character in characters)]
    if len(vocabulary) > vocab_size:
        raise ValueError(f"tokenizer.vocab_size must be at least {len(vocabulary)} for the characters of the texts.")
    vocabulary = list(dict.fromkeys([*vocabulary, *by_frequency]))[:vocab_size]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_SPECIAL_TOKENS)


def build_model(config: TrainConfig, processor: TierProcessor) -> TierModel:
    """The pretrained model with this run's options of the regulariser, or a new one for the processor's tokenizer."""
    options, tokenizer = tier_options(config.model), processor.tokenizer
    special_token_ids = sorted(set(tokenizer.all_special_ids))
    if config.model.pretrained:
        tier_config = pretrained_config(config.model)
        if tier_config is None:
            return TierModel.from_clip(config.model.pretrained, special_token_ids=special_token_ids, **options)
        return TierModel.from_pretrained(config.model.pretrained, config=tier_config)
    text_config = config.model.text_config | {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    # Where the configuration has them, the ends of a text are the tokenizer's.
    text_config["bos_token_id"], text_config["eos_token_id"] = _ends(tokenizer)
    return TierModel(
        TierConfig(
            vision_config=config.model.vision_config,
            text_config=text_config,
            special_token_ids=special_token_ids,
            **options,
        )
    )


def _ends(tokenizer) -> tuple[int | None, int | None]:
    ids = tokenizer("").input_ids
    return (ids[0], ids[-1]) if len(ids) == 2 else (tokenizer.bos_token_id, tokenizer.eos_token_id)


def compile_encoders(model: TierModel) -> None:
    """
    torch.compile for both encoders. A transformer's layers are compiled one by one: they are alike and share one
    graph, which is made in seconds, where a graph of the whole encoder takes a minute, and another one for texts of
    another length. An encoder that is no single list of layers is compiled as a whole.
    """
    torch._dynamo.config.recompile_limit = 64  # of a layer's code, which both encoders, training and evaluation share
    for encoder in (model.text_model, model.vision_model):
        lists = [module for module in encoder.modules() if isinstance(module, torch.nn.ModuleList) and len(module)]
        alike = len(lists) == 1 and len({type(layer) for layer in lists[0]}) == 1
        for module in lists[0] if alike else [encoder]:
            module.compile()


def pretrained_config(model: ModelOptions) -> TierConfig | None:
    """The configuration of a pretrained TIER model with the options of this run; None for a CLIPModel."""
    if AutoConfig.from_pretrained(model.pretrained).model_type == "clip":
        return None
    return TierConfig.from_dict(TierConfig.from_pretrained(model.pretrained).to_dict() | tier_options(model))
