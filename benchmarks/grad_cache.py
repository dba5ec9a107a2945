# Licensed under the Apache License, Version 2.0.
"""
Peak memory and time of a step with gradient caching, in chunks of 16 pairs, beside the plain step of the same batch:
a ViT-B/32 of a third of the width and depth, on the CPU. Memory is the allocator's peak over what is there before.

    OMP_NUM_THREADS=1 python benchmarks/grad_cache.py
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

import time

import torch
from accelerate import Accelerator
from step_cost import random_inputs
from torch.profiler import ProfilerActivity, profile
from transformers import CLIPTextConfig, CLIPVisionConfig

from modeling_tier import TierConfig, TierModel
from modeling_tier.evaluation.tables import aligned
from modeling_tier.training.grad_cache import cached_backward


CHUNK, TOKENS = 16, 77


def peak_over(step) -> float:
    """MiB that torch's allocator has handed out at most, over what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    held = most = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most / 2**20


def build() -> TierModel:
    torch.manual_seed(0)
    size = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}
    text = CLIPTextConfig(**size, bos_token_id=49406, eos_token_id=49407)
    return TierModel(TierConfig(text_config=text, vision_config=CLIPVisionConfig(**size, patch_size=32))).train()


def main() -> None:
    parse_arguments()
    accelerator = Accelerator(cpu=True)
    rows = [["pairs", "plain: peak MiB", "s", f"chunks of {CHUNK}: peak MiB", "s", "time ratio"]]
    for pairs in (16, 32, 64, 128, 256):
        model, inputs = build(), random_inputs(pairs, TOKENS)

        def plain(model=model, inputs=inputs):
            model(**inputs, return_loss=True).loss.backward()

        def cached(model=model, inputs=inputs):
            cached_backward(model, accelerator, inputs, CHUNK)

        plain()  # the gradients are there
        cells, seconds = [str(pairs)], []
        for step in (plain, cached):
            peak = peak_over(step)
            started = time.process_time()
            step()
            seconds.append(time.process_time() - started)
            cells += [f"{peak:.0f}", f"{seconds[-1]:.2f}"]
        rows.append([*cells, f"{seconds[1] / seconds[0]:.2f}"])
    print(aligned(rows))


if __name__ == "__main__":
    main()
