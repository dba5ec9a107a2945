# Licensed under the Apache License, Version 2.0.
"""
Time and peak memory of the entropy term alone, forward and backward, over batches, texts and patches: whether both
are linear in each, and how they stand beside the plain formula, whose gradient is left to autograd. The two run in
turn, in one process; memory is the allocator's peak, in a process of its own for each. Embeddings of 512 dimensions,
bfloat16 on a GPU, float32 on a CPU. For a CPU, paper_step.py says what to set. On a GPU the peaks are read in this
process, and both are measured compiled, too.

    OMP_NUM_THREADS=1 python benchmarks/entropy_cost.py --batch_sizes 32 256 --tokens 77 --patches 49
"""

import argparse
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))
from tier_cli.options import option_parser


def parse_arguments() -> argparse.Namespace:
    parser = option_parser(__doc__)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[32, 256, 1024, 4096], help="pairs")
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 77, 256], help="of a text")
    parser.add_argument("--patches", type=int, nargs="+", default=[49, 196], help="of ViT-B/32 and ViT-B/16")
    parser.add_argument("--rounds", type=int, default=3, help="that are timed")
    parser.add_argument("--output", type=Path, help="file for the results as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    parse_arguments()  # before torch is imported, which takes seconds: --help and mistakes are answered at once

import json
import math
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from itertools import product

import psutil
import torch
from paper_step import CLOCKS, DEVICE, peak_of_two_steps, step
from torch.nn.functional import normalize

from modeling_tier import text_image_entropy
from modeling_tier.evaluation.tables import aligned


DIMENSIONS = 512
PRECISION = "bfloat16" if DEVICE == "cuda" else "float32"


def closed(token_embeds: torch.Tensor, patch_embeds: torch.Tensor) -> torch.Tensor:
    return sum(text_image_entropy(token_embeds, patch_embeds))


def plain(token_embeds: torch.Tensor, patch_embeds: torch.Tensor) -> torch.Tensor:
    cosines = normalize(token_embeds.float(), dim=2) @ normalize(patch_embeds.float(), dim=2).transpose(1, 2)
    log_q, log_r = cosines.log_softmax(dim=2), cosines.log_softmax(dim=1)
    return -(log_q.exp() * log_q).sum(dim=2).mean() - (log_r.exp() * log_r).sum(dim=1).mean()


ROWS = {"plain formula": plain, "text_image_entropy": closed}
if DEVICE == "cuda":
    ROWS |= {f"{name}, compiled": torch.compile(function, dynamic=False) for name, function in ROWS.items()}
# About what each holds at its peak: so many times the embeddings and their gradients, and so many float32 a score.
NEEDS = {"plain formula": (2.0, 16), "text_image_entropy": (1.5, 5)}


def inputs_of(pairs: int, tokens: int, patches: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, number in (("token_embeds", tokens), ("patch_embeds", patches)):
        embeds = torch.randn(pairs, number, DIMENSIONS, generator=generator)
        made[name] = embeds.to(DEVICE, getattr(torch, PRECISION)).requires_grad_()
    return made


def peak_memory(name: str, pairs: int, tokens: int, patches: int) -> float:
    def make():
        inputs = inputs_of(pairs, tokens, patches)
        return ROWS[name], torch.optim.SGD(inputs.values(), lr=0.0), inputs

    return peak_of_two_steps(make, "as they are")


def peak_here(function, inputs: dict) -> float:
    """MiB at the peak of a second step, the inputs and their gradients included."""
    optimizer = torch.optim.SGD(inputs.values(), lr=0.0)
    step(function, optimizer, inputs, "as they are")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() - 2 * sum(value.nbytes for value in inputs.values())
    step(function, optimizer, inputs, "as they are")
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def measure(pairs: int, tokens: int, patches: int, rounds: int) -> dict:
    """What does not fit into free memory is skipped."""
    scores = pairs * tokens * patches
    kept = 2 * pairs * (tokens + patches) * DIMENSIONS * (2 if DEVICE == "cuda" else 4)  # whatever the formula
    free = 0.6 * free_memory()  # an allocator takes more than it has handed out
    needed = {name: of_kept * kept + of_scores * 4 * scores for name, (of_kept, of_scores) in NEEDS.items()}
    names = [name for name in ROWS if needed[name.removesuffix(", compiled")] < free]
    if not names:
        return {}
    memory = {}
    for name in names:
        if DEVICE == "cuda":
            memory[name] = peak_here(ROWS[name], inputs_of(pairs, tokens, patches))
            continue
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            memory[name] = pool.submit(peak_memory, name, pairs, tokens, patches).result()
    inputs, seconds = inputs_of(pairs, tokens, patches), {name: [] for name in names}
    optimizer = torch.optim.SGD(inputs.values(), lr=0.0)
    clock = list(CLOCKS)[-1]  # processor time, where there is one: other work does not disturb it
    for number in range(1 + rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            spent = step(ROWS[name], optimizer, inputs, "as they are")[clock]
            if number:
                seconds[name].append(spent)
    rows = {}
    for name in names:
        rows[name] = {"seconds": statistics.median(seconds[name]), "peak_mib": memory[name]}
        rows[name] |= {"nanoseconds_per_score": rows[name]["seconds"] / scores * 1e9}
        rows[name] |= {"bytes_per_score": (memory[name] * 2**20 - kept) / scores}
    about = {"pairs": pairs, "tokens": tokens, "patches": patches, "scores": scores, "rounds": rounds}
    return about | {"embeddings_mib": kept / 2**20, "rows": rows}


def free_memory() -> int:
    if DEVICE == "cuda":
        return torch.cuda.mem_get_info()[0]
    return psutil.virtual_memory().available


def powers(results: list[dict], size: str, quantity: str) -> list[float]:
    """Slopes of the logarithm of a quantity of text_image_entropy over that of `of`, the rest being equal."""
    groups = {}
    for row in results:
        rest = tuple(row[name] for name in ("pairs", "tokens", "patches") if name != size)
        point = math.log(row[size]), math.log(row["rows"]["text_image_entropy"][quantity])
        groups.setdefault(rest, []).append(point)
    return [statistics.linear_regression(*zip(*points)).slope for points in groups.values() if len(points) > 1]


def table(results: list[dict]) -> str:
    lines = [
        ["pairs x tokens x patches", "scores", "s", "ns a score", "peak MiB", "to the plain formula: time", "peak"]
    ]
    for row in results:
        ours, plain = (row["rows"].get(name) for name in ("text_image_entropy", "plain formula"))
        cells = [f"{row['pairs']} x {row['tokens']} x {row['patches']}", f"{row['scores'] / 1e6:.1f} million"]
        cells += [f"{ours['seconds']:.3g}", f"{ours['nanoseconds_per_score']:.2f}", f"{ours['peak_mib']:.0f}"]
        ratios = [f"{ours[name] / plain[name]:.2f}" if plain else "" for name in ("seconds", "peak_mib")]
        lines.append(cells + ratios)
        for name in row["rows"]:
            if name.endswith("compiled"):
                other = row["rows"][name]
                lines.append([f"  {name}", "", f"{other['seconds']:.3g}", "", f"{other['peak_mib']:.0f}", "", ""])
    return aligned(lines)


def main() -> None:
    args = parse_arguments()
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    results = []
    for patches, pairs, tokens in product(args.patches, args.batch_sizes, args.tokens):
        row = measure(pairs, tokens, patches, args.rounds)
        if not row:
            print(f"{pairs} x {tokens} x {patches}: not enough free memory", flush=True)
            continue
        results.append(row)
        print(table([row]), flush=True)
    result = {"device": device, "precision": PRECISION, "torch": torch.__version__, "results": results}
    print(f"\n{device}, {PRECISION}. Time and peak grow as a power (1 is linear; median, and range over the rest) of:")
    for size, quantity in product(("pairs", "tokens", "patches"), ("seconds", "peak_mib")):
        if slopes := powers(results, size, quantity):
            result[f"power_of_{size}_in_{quantity}"] = slopes
            print(f"{size}, {quantity}: {statistics.median(slopes):.2f} ({min(slopes):.2f} to {max(slopes):.2f})")
    print(table(results))
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
