# Licensed under the Apache License, Version 2.0.
"""
Samples per second of the training loader, augmentation and tokenizer included, from a prepared folder beside the raw
tree decoded anew each epoch, in one run; without worker processes (one core), and with two.

    python benchmarks/loader.py
"""

import argparse
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))
from tier_cli.options import option_parser


def parse_arguments() -> argparse.Namespace:
    return option_parser(__doc__).parse_args()


if __name__ == "__main__":
    parse_arguments()  # before torch is imported, which takes seconds: --help and mistakes are answered at once

import tempfile
import time
import warnings

import torch
from datasets import concatenate_datasets
from large_tree import write_large_tree
from transformers import CLIPImageProcessor
from transformers.utils import logging

from modeling_tier import TierProcessor
from modeling_tier.data import load_pairs
from modeling_tier.data.prepare import prepare
from modeling_tier.evaluation.tables import aligned
from modeling_tier.training.batches import Batches
from modeling_tier.training.building import train_tokenizer
from modeling_tier.training.options import DataOptions, TrainConfig, TrainingOptions


NUM_IMAGES, BATCH_SIZE = 256, 32


class OneProcess:
    num_processes, process_index, device = 1, 0, torch.device("cpu")


def rate(pairs, processor: TierProcessor, augmentation: str, workers: int) -> float:
    """Over one epoch, from its second batch: the start of the workers is not the loader's speed."""
    data = DataOptions(augmentation=augmentation, num_workers=workers)
    batches = Batches(
        pairs, processor, TrainConfig(data=data, training=TrainingOptions(batch_size=BATCH_SIZE)), OneProcess()
    )
    epoch = batches.of_epoch(0)
    next(epoch)
    started = time.perf_counter()
    samples = sum(len(batch["input_ids"]) for batch in epoch)
    return samples / (time.perf_counter() - started)


def main() -> None:
    parse_arguments()
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        tree, prepared = Path(folder) / "tree", Path(folder) / "prepared"
        write_large_tree(tree, NUM_IMAGES)
        prepare(tree, prepared, size=320, num_proc=2, progress=False)
        sets = {"raw tree": load_pairs("mimic_cxr", "train", data_dir=tree)}
        # Many times: an epoch is long enough to be timed, and the set too large for its texts to be tokenised before.
        sets["prepared"] = concatenate_datasets([load_pairs("mimic_cxr", "train", data_dir=prepared)] * 40)
        tokenizer = train_tokenizer(sets["prepared"]["text"], 2000)
        tokenizer.model_max_length = 77
        processor = TierProcessor(CLIPImageProcessor(), tokenizer)
        rows = [["samples/s, 224 px", "one core", "two workers", "ratio to raw, one core"]]
        for augmentation in ("none", "paper", "vit"):
            baseline = None
            for name, pairs in sets.items():
                one, two = (rate(pairs, processor, augmentation, workers) for workers in (0, 2))
                baseline = baseline or one
                rows.append(
                    [f"{name}, augmentation {augmentation}", f"{one:.0f}", f"{two:.0f}", f"{one / baseline:.1f}"]
                )
        print(aligned(rows))


if __name__ == "__main__":
    main()
