# Licensed under the Apache License, Version 2.0.
"""
Pairs per second of the whole train.py (reading, collating, the step, clipping, the log) beside the bare step of the
same model on one batch that lies ready, in one run, in turn: configs/demo.yaml, and any other by --config.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch


sys.path.insert(0, str(Path(__file__).parents[1]))
from modeling_tier.data import load_pairs
from modeling_tier.evaluation.tables import aligned
from modeling_tier.training import load_config, train
from modeling_tier.training.building import build_model, build_processor
from modeling_tier.training.loop import build_optimizer


def bare_step(config, steps: int) -> float:
    """Pairs per second of forward, backward and optimiser alone; texts as long as those of an average batch."""
    pairs = load_pairs(config.data.name, "train", **config.data.options | config.data.train)
    processor = build_processor(config, pairs)
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    model = build_model(config, processor).to(device).train()
    optimizer = build_optimizer(model, config.optimizer)
    size = config.training.batch_size
    batches = []
    for start in range(0, 8 * size, size):
        rows = pairs[start : start + size]
        inputs = processor(images=rows["image"], text=rows["text"])
        batches.append({name: tensor.to(device) for name, tensor in inputs.items()})
    for number in range(steps + 10):
        if number == 10:
            started = time.perf_counter()
        model(**batches[number % 8], return_loss=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return steps * size / (time.perf_counter() - started)


def whole_run(config, folder: str) -> float:
    """Median over the lines of the log; the first, with the start of all, is left out."""
    config.output_dir, config.training.progress = folder, False
    train(config)
    lines = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    return statistics.median([line["pairs_per_second"] for line in lines if "pairs_per_second" in line][1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default=str(Path(__file__).parents[1] / "configs" / "demo.yaml"))
    parser.add_argument("--rounds", type=int, default=3)
    args, options = parser.parse_known_args()
    given = load_config(args.config, list(options)).training
    if given.mixed_precision != "no" or given.chunk_size or given.compile or given.gradient_accumulation_steps > 1:
        sys.exit(
            "error: the bare step is a plain float32 one; so must be the run's, by --training.NAME no|null|false|1"
        )
    options = ["--training.epochs=1", "--evaluation.every_epochs=1", *options]
    bare, whole = [], []
    for _ in range(args.rounds):
        bare.append(bare_step(load_config(args.config, options), 60))
        with tempfile.TemporaryDirectory() as folder:
            whole.append(whole_run(load_config(args.config, options), f"{folder}/run"))
    rows = [["pairs/s", *(f"round {i + 1}" for i in range(args.rounds)), "ratio (median)"]]
    rows.append(["bare step", *(f"{value:.0f}" for value in bare), "1"])
    ratio = statistics.median(ours / theirs for ours, theirs in zip(whole, bare))
    rows.append(["train.py", *(f"{value:.0f}" for value in whole), f"{ratio:.3f}"])
    print(aligned(rows))


if __name__ == "__main__":
    main()
