# Licensed under the Apache License, Version 2.0.
"""
Time and peak memory of a training step (forward, backward, Adam) of ViT-B/32 and ViT-B/16 with CLIP's text encoder:
transformers' CLIPModel, TierModel with both lambdas 0 and with the regulariser, and open_clip where it can be
imported; bfloat16 autocast on a GPU, float32 on a CPU. The rows run in turn, step by step, in one process; ratios are
medians over the rounds. Memory is the allocator's peak, in a process of its own for each row. With --compile, each row
once more with compiled encoders. The model FLOPs (forward and backward of CLIPModel, counted by torch) over the time
are set against the rate of a large matrix product on the same device: the utilisation. The paper's pair of encoders is
in paper_step.py; there stands also what to set on a CPU.
"""

import argparse
import functools
import importlib
import json
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from paper_step import CLOCKS, DEVICE, adam, peak_of_two_steps, step, symmetric_cross_entropy
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig


sys.path.insert(0, str(Path(__file__).parents[1]))
from modeling_tier import TierConfig, TierModel
from modeling_tier.evaluation.tables import aligned


CLIP, ZERO, TIER, OPEN_CLIP = (
    "CLIPModel of transformers",
    "TierModel, both lambdas 0",
    "TierModel, 0.2 and 0.1",
    "open_clip",
)
PRECISION = "bfloat16" if DEVICE == "cuda" else "float32"
END = 49407


def encoders(patch_size: int, tokens: int) -> dict:
    """CLIP's own sizes; texts of more than 77 tokens get more positions."""
    text = CLIPTextConfig(bos_token_id=END - 1, eos_token_id=END, max_position_embeddings=max(77, tokens))
    return {"text_config": text.to_dict(), "vision_config": CLIPVisionConfig(patch_size=patch_size).to_dict()}


def build(name: str, patch_size: int, tokens: int) -> torch.nn.Module:
    torch.manual_seed(0)
    if name == CLIP:
        model = CLIPModel(CLIPConfig(**encoders(patch_size, tokens)))
    elif name == OPEN_CLIP:
        model = importlib.import_module("open_clip").create_model(f"ViT-B-{patch_size}")
    else:
        lambdas = {"lambda_token": 0.0, "lambda_patch": 0.0} if name == ZERO else {}
        model = TierModel(TierConfig(**encoders(patch_size, tokens), **lambdas))
    return model.to(DEVICE).train()


def compile_encoders(model: torch.nn.Module) -> None:
    for encoder in ("text_model", "vision_model", "transformer", "visual"):
        if hasattr(model, encoder):
            getattr(model, encoder).compile()


def loss_of(model: torch.nn.Module, **inputs) -> torch.Tensor:
    if isinstance(model, CLIPModel | TierModel):
        return model(**inputs, return_loss=True).loss
    image, text, scale = model(inputs["pixel_values"], inputs["input_ids"])[:3]
    return symmetric_cross_entropy(scale * image @ text.T)


def random_inputs(pairs: int, tokens: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(1000, 40000, (pairs, tokens), generator=generator)
    input_ids[:, -1] = END
    images = torch.randn(pairs, 3, 224, 224, generator=generator)
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "pixel_values": images}
    return {name: value.to(DEVICE) for name, value in inputs.items()}


def peak_memory(name: str, patch_size: int, pairs: int, tokens: int, compiled: bool) -> float | None:
    def make():
        model = build(name, patch_size, tokens)
        if compiled:
            compile_encoders(model)
        return functools.partial(loss_of, model), adam(model), random_inputs(pairs, tokens)

    try:
        return peak_of_two_steps(make, PRECISION)
    except torch.OutOfMemoryError:
        return None


def times(names: list[str], patch_size: int, pairs: int, tokens: int, rounds: int, compiled: bool) -> dict:
    rows, inputs = {}, random_inputs(pairs, tokens)
    for name in names:
        model = build(name, patch_size, tokens)
        if compiled:
            compile_encoders(model)
        rows[name] = functools.partial(loss_of, model), adam(model)
    seconds = {name: [] for name in names}
    for number in range(2 + rounds):
        shift = number % len(names)  # nobody is always the first
        for name in names[shift:] + names[:shift]:
            spent = step(*rows[name], inputs, PRECISION)
            if number >= 2:  # after the first ones, which allocate and compile
                seconds[name].append(spent)
    return seconds


def model_flops(patch_size: int, pairs: int, tokens: int) -> int:
    """Of a forward and a backward pass of CLIPModel, from one pair: everything but the logits is linear in them."""
    model = build(CLIP, patch_size, tokens).float()
    with FlopCounterMode(display=False) as counter:
        loss_of(model, **random_inputs(1, tokens)).backward()
    return counter.get_total_flops() * pairs


def product_rate(seconds: float = 2.0) -> float:
    """FLOP/s of a large matrix product."""
    size = 8192 if DEVICE == "cuda" else 2048
    one, other = (torch.randn(size, size, device=DEVICE, dtype=getattr(torch, PRECISION)) for _ in range(2))
    synchronize = torch.cuda.synchronize if DEVICE == "cuda" else lambda: None
    one @ other
    synchronize()
    number, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for _ in range(5):
            one @ other
        synchronize()
        number += 5
    return number * 2 * size**3 / (time.perf_counter() - started)


def main() -> None:
    on_gpu = DEVICE == "cuda"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patch_sizes", type=int, nargs="+", default=[32, 16])
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[32, 256, 1024, 4096] if on_gpu else [32])
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 77, 256] if on_gpu else [77])
    parser.add_argument("--rounds", type=int, default=20 if on_gpu else 5, help="that are timed")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--output", type=Path, help="file for the results as JSON, to which this run's are added")
    args = parser.parse_args()
    try:
        importlib.import_module("open_clip")
        names = [CLIP, OPEN_CLIP, ZERO, TIER]
    except Exception as error:
        names = [CLIP, ZERO, TIER]
        print(f"open_clip cannot be imported here: {error}")
    ceiling = product_rate()
    device = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    print(f"{device}, {PRECISION}: {ceiling / 1e12:.2f} TFLOP/s in a large matrix product")
    results = json.loads(args.output.read_text()) if args.output and args.output.exists() else []
    for patch_size in args.patch_sizes:
        for pairs in args.batch_sizes:
            for tokens in args.tokens:
                for compiled in (False, True) if args.compile else (False,):
                    chosen = [name for name in names if name != OPEN_CLIP or tokens == 77]
                    row = measure(chosen, patch_size, pairs, tokens, args.rounds, compiled, ceiling)
                    results.append(row | {"device": device, "precision": PRECISION, "torch": torch.__version__})
                    if args.output:
                        args.output.write_text(json.dumps(results, indent=1) + "\n")


def measure(names, patch_size, pairs, tokens, rounds, compiled, ceiling) -> dict:
    memory = {}
    for name in names:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            memory[name] = pool.submit(peak_memory, name, patch_size, pairs, tokens, compiled).result()
    fitting = [name for name in names if memory[name] is not None]
    seconds = times(fitting, patch_size, pairs, tokens, rounds, compiled) if fitting else {}
    flops = model_flops(patch_size, pairs, tokens)
    title = f"ViT-B/{patch_size}, {pairs} pairs, {tokens} tokens{', compiled' if compiled else ''}"
    lines = [
        [title, *(f"{clock} s a step" for clock in CLOCKS), "to CLIPModel's", "peak MiB", "to CLIPModel's", "use"]
    ]
    rows = {}
    for name in names:
        if name not in fitting:
            lines.append([name, *("" for _ in CLOCKS), "", "out of memory", "", ""])
            rows[name] = None
            continue
        middle = {clock: statistics.median(spent[clock] for spent in seconds[name]) for clock in CLOCKS}
        clock = list(CLOCKS)[-1]  # processor time, where there is one: other work does not disturb it
        row = {"seconds": middle, "peak_mib": memory[name], "use": flops / middle["wall"] / ceiling}
        cells = ["", f"{memory[name]:.0f}", "", f"{row['use']:.0%}"]
        if CLIP in fitting:
            pairs_of = zip(seconds[name], seconds[CLIP])
            row["time_ratio"] = statistics.median(ours[clock] / theirs[clock] for ours, theirs in pairs_of)
            row["memory_ratio"] = memory[name] / memory[CLIP]
            cells[0], cells[2] = f"{row['time_ratio']:.3f}", f"{row['memory_ratio']:.3f}"
        rows[name] = row
        lines.append([name, *(f"{value:.3f}" for value in middle.values()), *cells])
    print(aligned(lines), flush=True)
    about = {"patch_size": patch_size, "pairs": pairs, "tokens": tokens, "compiled": compiled, "rounds": rounds}
    return about | {"product_flops_per_second": ceiling, "model_flops": flops, "rows": rows}


if __name__ == "__main__":
    main()
