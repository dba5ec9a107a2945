# Licensed under the Apache License, Version 2.0.
"""
What all rows of the study have in common, and the options that its commands share. Nothing here imports torch, for
which `--help` need not wait.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))
from tier_cli.declarations import declarations, of_module


START = "start"  # the trained CLIP model before any of the rows
_LOSSES = declarations(Path(__file__).with_name("rows.py"))
ALL_ROWS = (*_LOSSES.keys("ROWS"), *_LOSSES.keys("SENTENCE_ROWS"))
DRAWINGS = of_module("modeling_tier.data.synthetic.pairs").keys("DRAWINGS")
SIZES = {
    "num_pairs": "drawings of the training set",
    "num_test": "held-out drawings",
    "image_size": "pixels a side",
    "stride": "pixels between two patches: 8, 16 or 32",
    "epochs": "of CLIP from random weights",
    "more_epochs": "of each row from there",
}


@dataclass(frozen=True)
class Setting:
    """What all rows of a table have in common."""

    seed: int
    """Of the drawings, the weights and the order of the batches."""
    num_pairs: int = 8000
    num_test: int = 2000
    image_size: int = 64
    section: str = "impression"
    epochs: int = 8
    """Of CLIP from random weights."""
    more_epochs: int = 2
    """Of each row from there."""
    batch_size: int = 64
    encoder: str = "resnet"
    """Of the images, one of `ENCODERS`."""
    stride: int = 8
    """Pixels between two patches: 8, 16 or 32."""
    drawings: str = "simple"
    """Option of the synthetic data set."""


# By name, what --model.vision_config is for a side of the pictures and a stride. The ResNet halves the picture twice
# and then once in each stage but the first; the smaller one, which is the demo's, once in each stage, so that 128
# pixels take little longer than 64 do with the other; the ViT has about as many weights as the ResNet of stride 8.
ENCODERS = {
    "resnet": lambda side, stride: {
        "model_type": "resnet",
        "layer_type": "basic",
        "embedding_size": 32,
        "hidden_sizes": [48, 96, 96, 96][: stride.bit_length() - 2],
        "depths": [2, 2, 2, 2][: stride.bit_length() - 2],
    },
    "small_resnet": lambda side, stride: {
        "model_type": "resnet",
        "layer_type": "basic",
        "embedding_size": 24,
        "hidden_sizes": [48, 96, 96][: stride.bit_length() - 3],
        "depths": [1, 2, 2][: stride.bit_length() - 3],
        "downsample_in_first_stage": True,
    },
    "vit": lambda side, stride: {
        "model_type": "vit",
        "image_size": side,
        "patch_size": stride,
        "hidden_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 192,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
}


def add_arguments(parser: argparse.ArgumentParser, rows: Sequence[str], with_start: bool = False) -> None:
    """What all commands of the study take. By default they run the rows `rows`."""
    choices = [START] * with_start + list(ALL_ROWS)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/trained_start"), help="folder of the study")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[10, 11, 12, 13, 14], help="of drawings, weights, order"
    )
    parser.add_argument("--rows", nargs="+", default=list(rows), choices=choices, metavar="ROW", help="losses")
    parser.add_argument("--processes", type=int, default=1, help="each with one thread")
    for name, about in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=getattr(Setting, name), help=about)
    parser.add_argument("--section", default=Setting.section, choices=["impression", "findings", "both"], help="texts")
    parser.add_argument("--drawings", default=Setting.drawings, choices=DRAWINGS, help="of the synthetic data set")
    parser.add_argument("--encoder", default=Setting.encoder, choices=list(ENCODERS), help="of the images")
    parser.add_argument("--table", type=Path, metavar="FILE", help="only print the tables of such a results file")


def setting_of(arguments: argparse.Namespace) -> Setting:
    """That of the arguments, with seed 0."""
    return Setting(seed=0, **{name: getattr(arguments, name) for name in (*SIZES, "section", "drawings", "encoder")})
