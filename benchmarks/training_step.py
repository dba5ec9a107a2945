# Licensed under the Apache License, Version 2.0.
"""
Time of a training step (forward, backward) of TIER beside the same model without the regulariser and beside
transformers' CLIPModel, in one run, the variants in turn. Small ViT-B/32-like encoders on the CPU, a larger batch on a
GPU in bfloat16.
"""

import sys
import time
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig


sys.path.insert(0, str(Path(__file__).parents[1]))
from modeling_tier import TierConfig, TierModel  # noqa: E402
from modeling_tier.evaluation.tables import aligned  # noqa: E402


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch, repeats = (256, 20) if device == "cuda" else (16, 12)
    tokens = 77
    size = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}
    text = CLIPTextConfig(**size, bos_token_id=49406, eos_token_id=49407)
    vision = CLIPVisionConfig(**size, image_size=224, patch_size=32)
    torch.manual_seed(0)
    input_ids = torch.randint(1000, 40000, (batch, tokens), device=device)
    input_ids[:, -1] = 49407
    inputs = {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "pixel_values": torch.randn(batch, 3, 224, 224, device=device),
    }
    encoders = {"text_config": text.to_dict(), "vision_config": vision.to_dict()}
    models = {
        "CLIPModel of transformers": CLIPModel(CLIPConfig(**encoders)),
        "TierModel, both lambdas 0": TierModel(TierConfig(**encoders, lambda_token=0.0, lambda_patch=0.0)),
        "TierModel, 0.2 and 0.1": TierModel(TierConfig(**encoders)),
    }
    times = {name: [] for name in models}
    for model in models.values():
        model.to(device).train()
    for repeat in range(repeats + 2):
        for name, model in models.items():
            model.zero_grad()
            if device == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
                loss = model(**inputs, return_loss=True).loss
            loss.backward()
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat >= 2:  # after the first ones, which allocate
                times[name].append(time.perf_counter() - started)
    medians = {name: sorted(values)[len(values) // 2] for name, values in times.items()}
    baseline = next(iter(medians.values()))
    rows = [[f"{device}, {batch} pairs, {tokens} tokens, 49 patches", "ms a step (median)", "ratio"]]
    rows += [[name, f"{1000 * value:.1f}", f"{value / baseline:.3f}"] for name, value in medians.items()]
    print(aligned(rows))


if __name__ == "__main__":
    main()
