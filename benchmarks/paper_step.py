# Licensed under the Apache License, Version 2.0.
"""
Time and peak memory of a training step (forward, backward, Adam) on the paper's architecture, ResNet-50 and BERT-base
with its eight lower layers frozen, random weights: CLIP's loss alone, TierModel without and with the regulariser, and
the way in which the authors' code computes the same loss. All rows share one set of weights. They run in turn, step by
step, in one process; the time ratios are medians over the rounds, with quartiles. Memory is the peak of what torch's
allocator has handed out, weights included, in a process of its own for each row; on the CPU it is read from the
profiler and lacks what oneDNN takes for itself (resident memory differs by 2% between two runs of the same row). On a
CPU with other work to do, set OMP_NUM_THREADS=1 (threads that wait for each other count as processor time) and, with
glibc, MALLOC_MMAP_MAX_=0, MALLOC_TRIM_THRESHOLD_=100000000000 and MALLOC_TOP_PAD_=268435456: memory is otherwise given
back and fetched anew in every step, a tenth of the time and much of the spread. Five rounds take a quarter of an hour.
On a GPU all rows run in one process, whose allocator gives each row's peak.

    OMP_NUM_THREADS=1 python benchmarks/paper_step.py --batch_sizes 32 --repeats 5
"""

import argparse
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))
from tier_cli.options import option_parser


def parse_arguments() -> argparse.Namespace:
    parser = option_parser(__doc__)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[32], help="pairs")
    parser.add_argument("--tokens", type=int, default=128, help="length of the longest text")
    parser.add_argument("--repeats", type=int, help="rounds that are timed; default: 20 on a GPU, else 8")
    parser.add_argument(
        "--precisions", nargs="+", choices=("float32", "bfloat16"), default=["float32"], help="of the step"
    )
    parser.add_argument("--channels_last", action="store_true", help="convolutions in the order of tensor cores")
    parser.add_argument("--dry_run", action="store_true", help="tiny encoders, to try the script")
    parser.add_argument("--output", type=Path, help="file for the results as JSON, to which this run's are added")
    return parser.parse_args()


if __name__ == "__main__":
    parse_arguments()  # before torch is imported, which takes seconds: --help and mistakes are answered at once

import json
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from itertools import product

import torch
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from transformers import BertConfig, BertForMaskedLM, ResNetConfig

from modeling_tier import TierConfig, TierModel
from modeling_tier.evaluation.tables import aligned


LAMBDA_TOKEN, LAMBDA_PATCH = 0.2, 0.1
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLIP, ZERO, TIER, AUTHORS = "CLIP loss alone", "TierModel, both lambdas 0", "TierModel, 0.2 and 0.1", "authors' way"
WARM_UP = 2
CLOCKS = {"wall": time.perf_counter} | ({"processor": time.process_time} if DEVICE == "cpu" else {})


def build(dry_run: bool = False, channels_last: bool = False) -> TierModel:
    """`dry_run`: two small encoders, to try this script; its numbers then mean nothing."""
    torch.manual_seed(0)
    # The defaults of the two are ResNet-50 (stride in the 3x3 convolutions, 224 px) and BERT-base.
    vision, text = ResNetConfig(), BertConfig()
    if dry_run:
        vision = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        text = BertConfig(hidden_size=32, num_hidden_layers=9, num_attention_heads=2, intermediate_size=32)
    encoders = {"vision_config": vision, "text_config": text}
    model = TierModel(TierConfig(**encoders, projection_dim=128, projection="mlp", image_pooling="mean"))
    for module in (model.text_model.embeddings, *model.text_model.encoder.layer[:8]):
        module.requires_grad_(False)
    model = model.to(DEVICE).train()
    return model.to(memory_format=torch.channels_last) if channels_last else model


def random_inputs(pairs: int, tokens: int, padded: bool = True) -> dict[str, torch.Tensor]:
    """Texts of 12 tokens to the longest, or all of the same length."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(min(12, tokens), tokens + 1, (pairs,), generator=generator)
    lengths[0 if padded else slice(None)] = tokens
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    input_ids = torch.randint(1000, 30522, (pairs, tokens), generator=generator) * mask
    input_ids[:, 0] = 101
    input_ids[torch.arange(pairs), lengths - 1] = 102
    images = torch.randn(pairs, 3, 224, 224, generator=generator)
    inputs = {"input_ids": input_ids, "attention_mask": mask, "pixel_values": images}
    return {name: value.to(DEVICE) for name, value in inputs.items()}


def symmetric_cross_entropy(logits: torch.Tensor) -> torch.Tensor:
    targets = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.t(), targets)) / 2


def clip_loss(model: TierModel, input_ids, attention_mask, pixel_values) -> torch.Tensor:
    """Projects nothing but what the two global embeddings need."""
    states = model.text_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    text = functional.normalize(model.text_projection(states[:, 0]), dim=-1)
    patches = model.vision_model(pixel_values=pixel_values).last_hidden_state.flatten(2).transpose(1, 2)
    image = functional.normalize(model.visual_projection(patches).mean(dim=1), dim=-1)
    return symmetric_cross_entropy(model.logit_scale.exp() * image @ text.t())


def tier_loss(model: TierModel, lambda_token: float, lambda_patch: float, **inputs) -> torch.Tensor:
    model.config.lambda_token, model.config.lambda_patch = lambda_token, lambda_patch
    return model(**inputs, return_loss=True).loss


def masked_language_model(model: TierModel) -> BertForMaskedLM:
    """CXR-BERT is one; around the text encoder of the TierModel, its vocabulary matrix tied to the embeddings."""
    masked = BertForMaskedLM(model.config.text_config).to(DEVICE)
    masked.bert = model.text_model
    masked.tie_weights()
    assert masked.get_output_embeddings().weight is model.get_input_embeddings().weight
    return masked.train()


def authors_loss(masked: BertForMaskedLM, model: TierModel, input_ids, attention_mask, pixel_values) -> torch.Tensor:
    """Two passes over the text with vocabulary logits, the head token by token, 1x1 convolutions, log(p + 1e-7)."""
    tokens, text = _authors_text(masked, model.text_projection, input_ids, attention_mask)

    first, norm, _, last = model.visual_projection
    grid = model.vision_model(pixel_values=pixel_values).last_hidden_state
    hidden = functional.conv2d(grid, first.weight[:, :, None, None])
    state = (norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training, norm.momentum, norm.eps)
    hidden = functional.relu(functional.batch_norm(hidden, *state), inplace=True)
    patches = functional.conv2d(hidden, last.weight[:, :, None, None], last.bias)  # (N, D, h, w)
    image = patches.mean(dim=(2, 3))

    columns = patches.flatten(2)
    cosines = torch.bmm(tokens / tokens.norm(dim=2, keepdim=True), columns / columns.norm(dim=1, keepdim=True))
    entropies = []
    for scores in (cosines, cosines.transpose(1, 2)):
        shares = scores.softmax(dim=2) + 1e-7
        entropies.append((-shares * shares.log()).sum(dim=2).mean())
    image, text = (embeds / embeds.norm(dim=-1, keepdim=True) for embeds in (image, text))
    contrastive = symmetric_cross_entropy(model.logit_scale.exp() * image @ text.t())
    return contrastive + LAMBDA_TOKEN * entropies[0] + LAMBDA_PATCH * entropies[1]


def _authors_text(masked, head, input_ids, attention_mask) -> tuple[torch.Tensor, torch.Tensor]:
    arguments = {"input_ids": input_ids, "attention_mask": attention_mask, "output_hidden_states": True}
    output = masked(**arguments)  # with its logits it lives until the end of this function, as in their code
    text = functional.normalize(head(masked(**arguments).hidden_states[-1][:, 0]), dim=1)
    states = output.hidden_states[-1]
    return torch.cat([head(states[:, i])[:, None] for i in range(states.shape[1])], dim=1), text


def loss_function(model: TierModel, name: str):
    """The loss of a row as a function of the inputs."""
    if name == CLIP:
        return partial(clip_loss, model)
    if name == AUTHORS:
        return partial(authors_loss, masked_language_model(model), model)
    return partial(tier_loss, model, *((0.0, 0.0) if name == ZERO else (LAMBDA_TOKEN, LAMBDA_PATCH)))


def check_same_loss(model: TierModel, rows: dict, tokens: int) -> None:
    """Both must agree in value and gradient, once there is no padding (which the authors count) and no dropout."""
    inputs, results = random_inputs(8, tokens, padded=False), []
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.text_model.eval()
    with torch.backends.cudnn.flags(allow_tf32=False):  # it would round convolutions, but not linear layers
        for name in (TIER, AUTHORS):
            loss = rows[name](**inputs)
            gradient = torch.cat([part.flatten() for part in torch.autograd.grad(loss, trained)])
            results.append((loss.item(), gradient))
    model.text_model.train()
    (ours, gradient), (theirs, reference) = results
    error = ((gradient - reference).norm() / reference.norm()).item()
    print(f"Without padding: loss {ours:.6f}, authors' way {theirs:.6f}; gradients differ by {error:.1e} (relative).")
    if not (abs(ours - theirs) < 1e-4 and error < 1e-3):
        sys.exit("The two do not compute the same loss: nothing to compare.")


def step(loss_of, optimizer, inputs: dict, precision: str) -> dict[str, float]:
    """Seconds by the wall clock and, on the CPU, of processor time."""
    synchronize = torch.cuda.synchronize if DEVICE == "cuda" else lambda: None
    synchronize()
    started = {name: clock() for name, clock in CLOCKS.items()}
    optimizer.zero_grad()
    with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        loss = loss_of(**inputs)
    loss.backward()
    optimizer.step()
    synchronize()
    return {name: clock() - started[name] for name, clock in CLOCKS.items()}


def adam(model: TierModel) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=1e-4, weight_decay=1e-6)


def times(names, model: TierModel, pairs: int, tokens: int, repeats: int, precision: str) -> tuple[dict, dict]:
    """Seconds of each round by row, and (on a GPU, where the rows share one allocator) the peak of each in MiB."""
    rows = {name: loss_function(model, name) for name in names}
    optimizer, inputs = adam(model), random_inputs(pairs, tokens)
    if next(model.vision_model.parameters()).is_contiguous(memory_format=torch.channels_last):
        inputs["pixel_values"] = inputs["pixel_values"].contiguous(memory_format=torch.channels_last)
    check_same_loss(model, rows, tokens)
    seconds, memory = {name: [] for name in names}, {}
    for repeat in range(WARM_UP + repeats):
        shift = repeat % len(names)  # nobody is always the first
        for name in names[shift:] + names[:shift]:
            if DEVICE == "cuda":
                optimizer.zero_grad()  # of the row before
                torch.cuda.reset_peak_memory_stats()
            spent = step(rows[name], optimizer, inputs, precision)
            if repeat >= WARM_UP:
                seconds[name].append(spent)
                if DEVICE == "cuda":
                    memory[name] = torch.cuda.max_memory_allocated() / 2**20
    return seconds, memory


def peak_memory(name: str, pairs: int, tokens: int, precision: str, dry_run: bool) -> float:
    def make():
        model = build(dry_run)
        return loss_function(model, name), adam(model), random_inputs(pairs, tokens)

    return peak_of_two_steps(make, precision)


def peak_of_two_steps(make, precision: str) -> float:
    """MiB that torch's allocator has handed out at most: weights, gradients, Adam's states, activations."""
    on_gpu = DEVICE == "cuda"
    profiler = nullcontext() if on_gpu else profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with profiler:
        loss_of, optimizer, inputs = make()
        for _ in range(2):  # Adam's states are there from the end of the first step
            step(loss_of, optimizer, inputs, precision)
    if on_gpu:
        return torch.cuda.max_memory_allocated() / 2**20
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    return max(event["args"]["Total Allocated"] for event in events if event["name"] == "[memory]") / 2**20


def summary(seconds: dict, memory: dict) -> dict:
    result = {name: {"peak_mib": mib} for name, mib in memory.items()}
    for name, row in result.items():
        for key, other in (("clip", CLIP), ("authors", AUTHORS)):
            row[f"peak_to_{key}"] = memory[name] / memory[other]
            for clock in CLOCKS:
                ours, theirs = (torch.tensor([spent[clock] for spent in seconds[n]]) for n in (name, other))
                row[f"{clock}_to_{key}_quartiles"] = (ours / theirs).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
                row[f"{clock}_seconds"] = ours.tolist()
    return result


def table(title: str, result: dict) -> str:
    header, rows = [title], [[name] for name in result]
    for clock in CLOCKS:
        header += [f"{clock} s a step", "to CLIP's (quartiles)", "to authors'"]
        for cells, row in zip(rows, result.values()):
            low, middle, high = row[f"{clock}_to_clip_quartiles"]
            cells += [f"{statistics.median(row[f'{clock}_seconds']):.3f}", f"{middle:.3f} ({low:.3f} to {high:.3f})"]
            cells.append(f"{row[f'{clock}_to_authors_quartiles'][1]:.3f}")
    header += ["peak MiB", "to CLIP's", "to authors'"]
    for cells, row in zip(rows, result.values()):
        cells += [f"{row['peak_mib']:.0f}", f"{row['peak_to_clip']:.4f}", f"{row['peak_to_authors']:.3f}"]
    return aligned([header, *rows])


def measure(args, pairs: int, precision: str) -> dict:
    names, memory = (CLIP, ZERO, TIER, AUTHORS), {}
    for name in names if DEVICE == "cpu" else ():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            memory[name] = pool.submit(peak_memory, name, pairs, args.tokens, precision, args.dry_run).result()
    model = build(args.dry_run, args.channels_last)
    seconds, in_process = times(names, model, pairs, args.tokens, args.repeats, precision)
    return summary(seconds, memory or in_process)


def main() -> None:
    args = parse_arguments()
    args.repeats = args.repeats or (20 if DEVICE == "cuda" else 8)
    results = json.loads(args.output.read_text()) if args.output and args.output.exists() else []
    for pairs, precision in product(args.batch_sizes, args.precisions):
        row = measure(args, pairs, precision)
        order = ", channels_last" if args.channels_last else ""
        print(table(f"{DEVICE}, {precision}, {pairs} pairs, {args.tokens} tokens{order}", row), flush=True)
        options = {"device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu", "torch": torch.__version__}
        options |= {"batch_size": pairs, "precision": precision, "channels_last": args.channels_last}
        results.append(options | {"tokens": args.tokens, "repeats": args.repeats, "results": row})
        if args.output:
            args.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
