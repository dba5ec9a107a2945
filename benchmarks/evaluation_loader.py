# Licensed under the Apache License, Version 2.0.
"""
Images per second that an evaluation reads from a prepared folder and from the raw pictures (2,500 x 3,000 pixels), for
each kind of row that the data sets have, beside the rate of the model alone and of the evaluation as a whole: a CLIP
ViT-B/32 with random weights at 224 pixels, CheXzero's pair of sentences, one process, on the CPU.

    OMP_NUM_THREADS=1 python benchmarks/evaluation_loader.py
"""

import argparse
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))
from tier_cli.options import option_parser


def parse_arguments() -> argparse.Namespace:
    parser = option_parser(__doc__)
    parser.add_argument("--num_images", type=int, default=256, help="in the prepared folder")
    parser.add_argument("--scored", type=int, default=64, help="by the model")
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement")
    parser.add_argument("--dry_run", action="store_true", help="a tiny model, to try the script")
    return parser.parse_args()


if __name__ == "__main__":
    parse_arguments()  # before torch is imported, which takes seconds: --help and mistakes are answered at once

import dataclasses
import itertools
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
from datasets import Dataset
from evaluation_speed import new_model
from large_tree import HEIGHT, WIDTH, large_pictures
from transformers.utils import logging

from modeling_tier.data import DATASETS
from modeling_tier.data.columns import make_pairs, pair_features
from modeling_tier.data.masks import mask_cell
from modeling_tier.data.prepare_set import prepare_dataset
from modeling_tier.data.prepared import load_prepared
from modeling_tier.evaluation.prompts import load_prompts
from modeling_tier.evaluation.scoring import Batches, Probes, ScoringOptions, has_texts, score, score_batch
from modeling_tier.evaluation.tables import aligned


BATCH_SIZE, SIZE = 32, 320


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a row holds beside its picture."""

    data_sets: str
    labels: int
    boxes: bool = False
    masks: bool = False
    text: bool = False


KINDS = {
    "14 labels": Kind("chexpert, chestxray14, openi", 14),
    "192 labels": Kind("padchest", 192),
    "14 labels, two boxes": Kind("chestxdet10, rsna_pneumonia, vindr_cxr, ms_cxr, chestxray14", 14, boxes=True),
    "14 labels, two masks": Kind("chexlocalize, siim_acr", 14, boxes=True, masks=True),
    "14 labels, two boxes, a text": Kind("padchest_gr", 14, boxes=True, text=True),
}


def pairs_of(kind: Kind, paths: list[str], number: int) -> Dataset:
    """Rows of a kind, over the pictures again and again."""
    names = [f"Finding {i}" for i in range(kind.labels)]
    region = {"finding": names[0], "phrase": "left pleural effusion", "box": [200.0, 300.0, 1200.0, 1500.0]}
    if kind.masks:
        mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
        mask[300:1500, 200:1200] = True
        region["mask"] = mask_cell(mask)
    columns = {
        "image": [paths[i % len(paths)] for i in range(number)],
        "image_id": [str(i) for i in range(number)],
        "labels": [{name: float(i % 2) for name in names} for i in range(number)],
        "regions": [[region, region] for _ in range(number)],
        "text": ["A small left pleural effusion." if kind.text else None] * number,
    }
    return make_pairs(columns, pair_features(names, ids="string", regions=kind.boxes, mask=kind.masks))


def rate(work: Callable[[], None], number: int, repeats: int) -> float:
    """Median over the repeats, after one that warms."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return number / float(np.median(times[1:]))


def read_all(rows: Dataset, processor) -> None:
    batches = Batches(rows, processor, BATCH_SIZE, has_texts(rows))
    for i in range(len(batches)):
        batches[i]


def measure(kind: Kind, paths: list[str], folder: Path, arguments: argparse.Namespace) -> list[float]:
    """Images per second: reading raw pictures, reading the prepared folder, the model alone, the evaluation."""
    raw = pairs_of(kind, paths, arguments.num_images)
    record = dataclasses.replace(DATASETS["chexpert"], load=lambda split, **_: raw)
    prepare_dataset(record, folder, {}, ["test"], size=SIZE, progress=False)
    prepared = load_prepared(folder, "test")
    model, processor = new_model(["A small left pleural effusion."] * 8, arguments.dry_run)
    prompts = load_prompts("synthetic", protocol="chexzero")
    options = ScoringOptions(batch_size=BATCH_SIZE, progress=False)
    few = prepared.select(range(min(len(prepared), arguments.scored)))
    batches = Batches(few, processor, BATCH_SIZE, has_texts(few))
    read = [batches[i] for i in range(len(batches))]
    probes = Probes(model, processor, prompts, [], options.autocast(model.device))

    @torch.inference_mode()
    def model_alone() -> None:
        for batch in read:
            score_batch(model, processor, batch, probes, options)

    some_raw = raw.select(range(min(len(raw), arguments.scored)))
    return [
        rate(lambda: read_all(some_raw, processor), len(some_raw), arguments.repeats),
        rate(lambda: read_all(prepared, processor), len(prepared), arguments.repeats),
        rate(model_alone, len(few), arguments.repeats),
        rate(lambda: score(model, processor, few, prompts, options), len(few), arguments.repeats),
    ]


def main() -> None:
    arguments = parse_arguments()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    rows = [
        ["a row holds", "read raw", "read prepared", "model alone", "evaluation", "prepared to model", "of the model"]
    ]
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder, f"{i}.jpg")) for i in range(8)]
        for path, content in zip(paths, large_pictures(len(paths))):
            Path(path).write_bytes(content)
        for number, (name, kind) in zip(itertools.count(), KINDS.items()):
            raw, prepared, model, evaluation = measure(kind, paths, Path(folder, f"prepared-{number}"), arguments)
            rates = [
                f"{value:.0f}" if value >= 100 else f"{value:.1f}" for value in (raw, prepared, model, evaluation)
            ]
            rows.append([f"{name} ({kind.data_sets})", *rates, f"{prepared / model:.0f}", f"{evaluation / model:.2f}"])
    print(aligned(rows))


if __name__ == "__main__":
    main()
