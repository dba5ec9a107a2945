# Licensed under the Apache License, Version 2.0.
"""
Time and peak memory of a training step (forward, backward, Adam) of ViT-B/32 and ViT-B/16 with CLIP's text encoder:
transformers' CLIPModel, TierModel with both lambdas 0 and with the regulariser, and open_clip where it can be
imported; bfloat16 autocast on a GPU, float32 on a CPU. The rows run in turn, step by step, in one process; ratios are
medians over the rounds. With --compile, each row once more with compiled layers. The model FLOPs (forward and backward
of CLIPModel, counted by torch) over the time are set against the rate of a large matrix product on the same device:
the utilisation. The paper's pair of encoders is in paper_step.py; there stands also what to set on a CPU.

Memory is the allocator's peak: on a CPU in a process of its own for each row; on a GPU in the same process, less what
the other rows hold. On a GPU a step of each row is also profiled: kernels, time in which the GPU was busy, and the
lines that make the host wait for it.

    OMP_NUM_THREADS=1 python benchmarks/step_cost.py --patch_sizes 32 --batch_sizes 32
"""

import argparse
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))
from tier_cli.options import option_parser


def parse_arguments() -> argparse.Namespace:
    parser = option_parser(__doc__)
    parser.add_argument("--patch_sizes", type=int, nargs="+", default=[32, 16], help="pixels a side")
    parser.add_argument("--batch_sizes", type=int, nargs="+", help="pairs; default: 256 1024 on a GPU, else 32")
    parser.add_argument("--tokens", type=int, nargs="+", default=[77], help="of a text")
    parser.add_argument("--rounds", type=int, help="that are timed; default: 4 on a GPU, else 5")
    parser.add_argument("--compile", action="store_true", help="each row once more with compiled layers")
    parser.add_argument("--in_one_process", action="store_true", help="as on a GPU, where it is always so")
    parser.add_argument("--dry_run", action="store_true", help="tiny encoders, to try the script")
    parser.add_argument("--output", type=Path, help="file for the results as JSON, to which this run's are added")
    return parser.parse_args()


if __name__ == "__main__":
    parse_arguments()  # before torch is imported, which takes seconds: --help and mistakes are answered at once

import functools
import importlib
import json
import multiprocessing
import statistics
import time
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import torch
from paper_step import CLOCKS, DEVICE, adam, peak_of_two_steps, step, symmetric_cross_entropy
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from modeling_tier import TierConfig, TierModel
from modeling_tier.evaluation.tables import aligned


CLIP, ZERO, TIER, OPEN_CLIP = (
    "CLIPModel of transformers",
    "TierModel, both lambdas 0",
    "TierModel, 0.2 and 0.1",
    "open_clip",
)
ON_GPU = DEVICE == "cuda"
PRECISION = "bfloat16" if ON_GPU else "float32"
END = 49407
# Width, layers and heads of the image and of the text encoder: CLIP's own, and tiny ones to try the script.
SIZES = {"full": ((768, 12, 12), (512, 12, 8)), "dry run": ((64, 2, 2), (32, 2, 2))}


@dataclass
class Case:
    """What the rows of one table have in common."""

    patch_size: int
    pairs: int
    tokens: int
    compiled: bool
    size: str = "full"


@dataclass
class Row:
    """A model in this process, ready to take steps."""

    loss_of: functools.partial
    optimizer: torch.optim.Optimizer
    held: int = 0
    """Bytes that it holds between two steps: weights and the optimiser's state."""
    peak: int = 0
    seconds: list[float] = field(default_factory=list)


def encoders(case: Case) -> dict:
    """CLIP's own sizes; texts of more than 77 tokens get more positions."""
    configs = []
    for width, layers, heads in SIZES[case.size]:
        configs.append({"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads})
        configs[-1] |= {"intermediate_size": 4 * width, "projection_dim": 512}
    ends = {"bos_token_id": END - 1, "eos_token_id": END, "max_position_embeddings": max(77, case.tokens)}
    text, vision = CLIPTextConfig(**configs[1], **ends), CLIPVisionConfig(**configs[0], patch_size=case.patch_size)
    return {"text_config": text.to_dict(), "vision_config": vision.to_dict()}


def open_clip_model(case: Case) -> torch.nn.Module:
    """The same function as CLIPModel's, OpenAI's activation included."""
    (width, layers, heads), (text_width, text_layers, text_heads) = SIZES[case.size]
    vision = {"image_size": 224, "patch_size": case.patch_size, "width": width, "layers": layers}
    vision["head_width"] = width // heads
    text = {"context_length": 77, "vocab_size": END + 1, "width": text_width, "layers": text_layers}
    text["heads"] = text_heads
    return importlib.import_module("open_clip.model").CLIP(512, vision, text, quick_gelu=True)


def build(name: str, case: Case) -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.device(DEVICE):
        if name == CLIP:
            model = CLIPModel(CLIPConfig(**encoders(case)))
        elif name == OPEN_CLIP:
            model = open_clip_model(case)
        else:
            lambdas = {"lambda_token": 0.0, "lambda_patch": 0.0} if name == ZERO else {}
            model = TierModel(TierConfig(**encoders(case), **lambdas))
    return model.to(DEVICE).train()


def compile_layers(model: torch.nn.Module) -> None:
    """Each layer of the encoders; all layers of one encoder, and all models with such layers, share one graph."""
    torch._dynamo.config.recompile_limit = 64
    for layers in model.modules():
        if isinstance(layers, torch.nn.ModuleList):
            for layer in layers:
                layer.compile(dynamic=False)


def loss_of(model: torch.nn.Module, **inputs) -> torch.Tensor:
    if isinstance(model, CLIPModel | TierModel):
        return model(**inputs, return_loss=True).loss
    image, text, scale = model(inputs["pixel_values"], inputs["input_ids"])[:3]
    return symmetric_cross_entropy(scale * image @ text.T)


def random_inputs(pairs: int, tokens: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator(DEVICE).manual_seed(0)
    input_ids = torch.randint(1000, 40000, (pairs, tokens), generator=generator, device=DEVICE)
    input_ids[:, -1] = END
    images = torch.randn(pairs, 3, 224, 224, generator=generator, device=DEVICE)
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "pixel_values": images}


def peak_memory(name: str, case: Case) -> float | None:
    def make():
        model = build(name, case)
        if case.compiled:
            compile_layers(model)
        return functools.partial(loss_of, model), adam(model), random_inputs(case.pairs, case.tokens)

    return peak_of_two_steps(make, PRECISION)


def times(names: list[str], case: Case, rounds: int) -> dict:
    rows, inputs = {}, random_inputs(case.pairs, case.tokens)
    for name in names:
        model = build(name, case)
        if case.compiled:
            compile_layers(model)
        rows[name] = functools.partial(loss_of, model), adam(model)
    seconds = {name: [] for name in names}
    for number in range(2 + rounds):
        shift = number % len(names)  # nobody is always the first
        for name in names[shift:] + names[:shift]:
            spent = step(*rows[name], inputs, PRECISION)
            if number >= 2:  # after the first ones, which allocate and compile
                seconds[name].append(spent)
    return seconds


def synchronize() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def allocated() -> int:
    return torch.cuda.memory_allocated() if ON_GPU else 0


def take_steps(row: Row, inputs: dict, number: int = 1) -> float:
    """Seconds of a step, without a wait of the host between them; no gradients are left behind."""
    synchronize()
    started = time.perf_counter()
    for _ in range(number):
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=PRECISION == "bfloat16"):
            loss = row.loss_of(**inputs)
        loss.backward()
        row.optimizer.step()
        row.optimizer.zero_grad()
    synchronize()
    return (time.perf_counter() - started) / number


def make_row(name: str, case: Case, inputs: dict) -> Row:
    before = allocated()
    model = build(name, case)
    if case.compiled:
        compile_layers(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.1, fused=ON_GPU or None)
    row = Row(functools.partial(loss_of, model), optimizer)
    take_steps(row, inputs)
    row.held = allocated() - before
    return row


def fits(row: Row, inputs: dict) -> bool:
    """Warms a row up on these inputs and measures its peak; False if it does not fit into the memory."""
    try:
        take_steps(row, inputs, 2)
        before = allocated() - row.held - sum(value.nbytes for value in inputs.values())
        if ON_GPU:
            torch.cuda.reset_peak_memory_stats()
        row.seconds = [take_steps(row, inputs)]
        row.peak = torch.cuda.max_memory_allocated() - before if ON_GPU else 0
        return True
    except torch.OutOfMemoryError:
        row.optimizer.zero_grad()
        torch.cuda.empty_cache()
        return False


def profiled(row: Row, inputs: dict) -> dict:
    """Of one step: kernels, seconds in which one ran, the longest by name, and lines at which the host waited."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if ON_GPU:
            torch.cuda.set_sync_debug_mode("warn")
        take_steps(row, inputs)
        if ON_GPU:
            torch.cuda.set_sync_debug_mode("default")
    places = (f"{Path(w.filename).name}:{w.lineno}" for w in caught if "called a synchronizing" in str(w.message))
    with profile(activities=[ProfilerActivity.CUDA if ON_GPU else ProfilerActivity.CPU]) as profiler:
        take_steps(row, inputs)
    on_device = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    annotations = ("Optimizer.", "##", "ProfilerStep", "Torch-Compiled Region")  # stretches of time, not kernels
    on_device = [event for event in on_device if not event.name.startswith(annotations)]
    spent = Counter()
    for event in on_device:
        spent[event.name[:90]] += event.time_range.elapsed_us()
    longest = [[name, round(value)] for name, value in spent.most_common(25)]
    result = {"kernels": len(on_device), "busy_seconds": sum(spent.values()) / 1e6, "longest_us": longest}
    return result | {"waits": dict(Counter(places))}


@functools.cache
def flops_of_a_pair(patch_size: int, tokens: int, size: str) -> int:
    """Of a forward and a backward pass of CLIPModel: everything but the logits is linear in the pairs."""
    model = build(CLIP, Case(patch_size, 1, tokens, False, size)).float()
    with FlopCounterMode(display=False) as counter:
        loss_of(model, **random_inputs(1, tokens)).backward()
    return counter.get_total_flops()


def product_rate(seconds: float = 2.0) -> float:
    """FLOP/s of a large matrix product."""
    size = 8192 if ON_GPU else 2048
    one, other = (torch.randn(size, size, device=DEVICE, dtype=getattr(torch, PRECISION)) for _ in range(2))
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
    args = parse_arguments()
    args.batch_sizes = args.batch_sizes or ([256, 1024] if ON_GPU else [32])
    args.rounds = args.rounds or (4 if ON_GPU else 5)
    args.in_one_process |= ON_GPU
    names = [CLIP, OPEN_CLIP, ZERO, TIER]
    try:
        importlib.import_module("open_clip.model")
    except Exception as error:
        names.remove(OPEN_CLIP)
        print(f"open_clip cannot be imported here: {error}")
    ceiling = product_rate(0.1 if args.dry_run else 2.0)
    device = torch.cuda.get_device_name() if ON_GPU else f"CPU, {torch.get_num_threads()} threads"
    print(f"{device}, {PRECISION}: {ceiling / 1e12:.2f} TFLOP/s in a large matrix product")
    results = json.loads(args.output.read_text()) if args.output and args.output.exists() else []
    for patch_size in args.patch_sizes:
        for tokens in args.tokens:
            chosen = [name for name in names if name != OPEN_CLIP or tokens == 77]
            for compiled in (False, True) if args.compile else (False,):
                size = "dry run" if args.dry_run else "full"
                cases = [Case(patch_size, pairs, tokens, compiled, size) for pairs in args.batch_sizes]
                measure = measure_in_one_process if args.in_one_process else measure_apart
                for result in measure(chosen, cases, args.rounds, ceiling):
                    results.append(result | {"device": device, "precision": PRECISION, "torch": torch.__version__})
                    if args.output:
                        args.output.write_text(json.dumps(results, indent=1) + "\n")


def measure_apart(names: list[str], cases: list[Case], rounds: int, ceiling: float):
    """The peak of each row in a process of its own, then the times of all in this one."""
    for case in cases:
        memory = {}
        for name in names:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                memory[name] = pool.submit(peak_memory, name, case).result()
        yield report(names, case, memory, times(names, case, rounds), ceiling)


def measure_in_one_process(names: list[str], cases: list[Case], rounds: int, ceiling: float):
    """The models are built once for all batch sizes; those that do not fit into the memory are skipped."""
    started = time.perf_counter()
    inputs = random_inputs(cases[0].pairs, cases[0].tokens)
    rows = {name: make_row(name, cases[0], inputs) for name in names}
    for case in cases:
        if ON_GPU:
            torch.cuda.empty_cache()
        inputs = random_inputs(case.pairs, case.tokens)
        fitting = [name for name in names if fits(rows[name], inputs)]
        print(f"{time.perf_counter() - started:.0f} s to build, compile and warm up", flush=True)
        times_of = {name: [] for name in fitting}
        for number in range(rounds):
            shift = number % max(1, len(fitting))
            for name in fitting[shift:] + fitting[:shift]:
                spent = take_steps(rows[name], inputs, 3)
                times_of[name].append({clock: spent for clock in CLOCKS})
        memory = {name: rows[name].peak / 2**20 if name in fitting else None for name in names}
        result = report(names, case, memory, times_of, ceiling)
        if case is cases[0]:
            result["profile"] = {name: profiled(rows[name], inputs) for name in fitting}
            for name, values in result["profile"].items():
                print(f"{name}: {values['kernels']} kernels, {values['busy_seconds']:.4f} s; {values['waits']}")
        yield result
        started = time.perf_counter()
    rows.clear()
    if ON_GPU:
        torch.cuda.empty_cache()


def report(names: list[str], case: Case, memory: dict, seconds: dict, ceiling: float) -> dict:
    flops = case.pairs * flops_of_a_pair(case.patch_size, case.tokens, case.size)
    title = f"ViT-B/{case.patch_size}, {case.pairs} pairs, {case.tokens} tokens{', compiled' if case.compiled else ''}"
    header = [title, *(f"{clock} s a step" for clock in CLOCKS), "pairs/s", "to CLIPModel's"]
    lines, rows = [[*header, "peak MiB", "to CLIPModel's", "use"]], {}
    for name in names:
        if name not in seconds:
            lines.append([name, *("" for _ in CLOCKS), "", "", "out of memory", "", ""])
            rows[name] = None
            continue
        middle = {clock: statistics.median(spent[clock] for spent in seconds[name]) for clock in CLOCKS}
        clock = list(CLOCKS)[-1]  # processor time, where there is one: other work does not disturb it
        row = {"seconds": middle, "peak_mib": memory[name], "use": flops / middle["wall"] / ceiling}
        row["pairs_per_second"] = case.pairs / middle["wall"]
        cells = [f"{row['pairs_per_second']:.0f}", "", f"{memory[name]:.0f}", "", f"{row['use']:.1%}"]
        if CLIP in seconds:
            ratios = [ours[clock] / theirs[clock] for ours, theirs in zip(seconds[name], seconds[CLIP])]
            row["time_ratio"] = statistics.median(ratios)
            row["time_ratios"] = ratios
            row["memory_ratio"] = memory[name] / memory[CLIP] if memory[CLIP] else None
            cells[1] = f"{row['time_ratio']:.3f}"
            cells[3] = f"{row['memory_ratio']:.3f}" if memory[CLIP] else ""
        rows[name] = row
        lines.append([name, *(f"{value:.3f}" for value in middle.values()), *cells])
    print(aligned(lines), flush=True)
    about = {"patch_size": case.patch_size, "pairs": case.pairs, "tokens": case.tokens, "compiled": case.compiled}
    return about | {"product_flops_per_second": ceiling, "model_flops": flops, "rows": rows}


if __name__ == "__main__":
    main()
