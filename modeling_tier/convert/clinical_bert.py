# Licensed under the Apache License, Version 2.0.
"""Bio_ClinicalBERT, the text encoder of GLoRIA and MedCLIP: its configuration and tokenizer; weights are theirs."""

from transformers import BertConfig, BertTokenizer, PreTrainedTokenizerBase

from .assemble import load_config, load_tokenizer
from .weight_files import Record, find_folder


CLINICAL_BERT = "emilyalsentzer/Bio_ClinicalBERT"


def clinical_bert(text_model: str, max_length: int, record: Record) -> tuple[BertConfig, PreTrainedTokenizerBase]:
    """
    Args:
        text_model: folder or Hub id.
        max_length: tokens of the longest text.
    """
    folder = find_folder(text_model, record, weights=())
    config = load_config(folder)
    if config.model_type != "bert":
        raise ValueError(f"{folder.name} holds a model of type {config.model_type!r}; 'bert' is needed.")
    tokenizer = load_tokenizer(folder, BertTokenizer)
    tokenizer.model_max_length = min(tokenizer.model_max_length, max_length)
    return config, tokenizer
