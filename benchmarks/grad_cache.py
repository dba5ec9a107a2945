# Licensed under the Apache License, Version 2.0.
"""
Peak memory and time of a step with gradient caching, in chunks of 16 pairs, beside the plain step of the same batch:
the small ViT of the tests' size times eight. Memory is the allocator's peak over what is there before the step.
"""

import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from paper_step import peak_of_two_steps
from step_cost import random_inputs
from transformers import CLIPTextConfig, CLIPVisionConfig


sys.path.insert(0, str(Path(__file__).parents[1]))
from modeling_tier import TierConfig, TierModel
from modeling_tier.evaluation.tables import aligned
from modeling_tier.training.grad_cache import cached_backward


CHUNK, TOKENS = 16, 77


class Loss:
    """Looks like the loss of a step, and goes backward chunk by chunk."""

    def __init__(self, model, inputs, chunk_size):
        self.of = model, Accelerator(cpu=not torch.accelerator.is_available()), inputs, chunk_size

    def backward(self) -> None:
        cached_backward(*self.of)


def build() -> TierModel:
    torch.manual_seed(0)
    size = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}
    text = CLIPTextConfig(**size, bos_token_id=49406, eos_token_id=49407)
    return TierModel(TierConfig(text_config=text, vision_config=CLIPVisionConfig(**size, patch_size=32))).train()


def main() -> None:
    rows = [["pairs", "plain: peak MiB", "s", f"chunks of {CHUNK}: peak MiB", "s", "time ratio"]]
    for pairs in (16, 32, 64, 128, 256):
        cells, seconds = [str(pairs)], []
        for chunk_size in (None, CHUNK):
            model, inputs = build(), random_inputs(pairs, TOKENS)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

            def loss_of(model=model, chunk_size=chunk_size, **inputs):
                return Loss(model, inputs, chunk_size) if chunk_size else model(**inputs, return_loss=True).loss

            peak = peak_of_two_steps(lambda: (loss_of, optimizer, inputs), "float32")  # noqa: B023
            started = time.process_time()
            loss_of(**inputs).backward()
            seconds.append(time.process_time() - started)
            cells += [f"{peak:.0f}", f"{seconds[-1]:.2f}"]
        rows.append([*cells, f"{seconds[1] / seconds[0]:.2f}"])
    print(aligned(rows))


if __name__ == "__main__":
    main()
