# Licensed under the Apache License, Version 2.0.
"""
Pairs per second of the whole train.py (reading, collating, the step, clipping, the log) beside the bare step of the
same model on the same batches, when they lie ready: configs/demo.yaml, and any other by --config. One process does
some steps of the one, then of the other, and so on, so that a slow minute of the machine is a slow minute for both.

    python benchmarks/training_speed.py --turns 4
"""

import argparse
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))
from tier_cli.options import option_parser
from tier_cli.section_options import check_training_options


CONFIG = Path(__file__).parents[1] / "configs" / "demo.yaml"


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = option_parser(__doc__)
    parser.add_argument("--config", default=str(CONFIG), help="of the run")
    parser.add_argument("--lines", type=int, default=1, help="of the log in each turn")
    parser.add_argument("--turns", type=int, help="that are measured, and then the run ends; default: all of the run")
    parser.add_argument("--copies", type=int, default=1, help="of the training set, one after the other")
    parser.add_argument("--output", type=Path, help="file for the results as JSON")
    arguments, options = parser.parse_known_args()
    check_training_options(parser, options)
    return arguments, options


if __name__ == "__main__":
    parse_arguments()  # before torch is imported, which takes seconds: --help and mistakes are answered at once

import json
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from datasets import concatenate_datasets

from modeling_tier.data import load_pairs
from modeling_tier.evaluation.tables import aligned
from modeling_tier.training import load_config, setup, train
from modeling_tier.training.batches import Batches
from modeling_tier.training.building import build_model, build_processor, compile_encoders
from modeling_tier.training.optimization import build_optimizer


DEVICE = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


class Enough(Exception):
    """Ends the run when all turns are measured."""


def bare_step(config) -> Callable[[dict], None]:
    """Forward, backward and optimiser, and nothing else."""
    processor = build_processor(
        config, load_pairs(config.data.name, "train", **config.data.options | config.data.train)
    )
    model = build_model(config, processor).to(DEVICE).train()
    optimizer, bfloat16 = build_optimizer(model, config.optimizer), config.training.mixed_precision == "bf16"
    if config.training.compile:
        compile_encoders(model)

    def step(batch):
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bfloat16):
            loss = model(**batch, return_loss=True).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def now() -> float:
    if DEVICE.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def seconds_in_turn(config, steps: int, turns: int | None, copies: int) -> list[tuple[float, float]]:
    """
    Seconds of so many bare steps and of as many of a whole run, on the same batches, over and over.

    Args:
        turns: after which the run ends; None: at its own end.
        copies: of the training set, one after the other: a small prepared set then fills long epochs.
    """
    step, seconds = bare_step(config), []
    ready = 1 + 2 * config.data.num_workers  # batches that the workers made meanwhile; their steps are not timed

    class InTurn(Batches):
        def __init__(self, pairs, *args, **kwargs):
            super().__init__(concatenate_datasets([pairs] * copies), *args, **kwargs)

        def of_epoch(self, epoch, first_step=0):
            batches = super().of_epoch(epoch, first_step)
            for _ in range(self.steps_per_epoch // (ready + steps)):
                for _ in range(ready):
                    yield next(batches)
                seen, started = [], now()
                for _ in range(steps):
                    seen.append(next(batches))
                    yield seen[-1]
                whole = now() - started
                seen = [self.to_device(batch) for batch in seen]
                started = now()
                for batch in seen:
                    step(batch)
                seconds.append((now() - started, whole))
                if turns is not None and len(seconds) > turns:
                    raise Enough
            yield from batches

    setup.Batches = InTurn
    try:
        with tempfile.TemporaryDirectory() as folder:
            config.output_dir, config.training.progress = f"{folder}/run", False
            train(config)
    except Enough:
        pass
    finally:
        setup.Batches = Batches
    return seconds[1:]  # without the first, which has the start of all in it


def main() -> None:
    args, options = parse_arguments()
    config = load_config(args.config, ["--training.epochs=4", "--evaluation.every_epochs=4", *options])
    given = config.training
    if given.mixed_precision == "fp16" or given.chunk_size or given.gradient_accumulation_steps > 1:
        sys.exit("error: the bare step has no loss scaling, no chunks and no accumulation; nor may the run have them")
    steps = args.lines * given.log_every
    seconds = seconds_in_turn(config, steps, args.turns, args.copies)
    if not seconds:
        sys.exit("error: the run has not steps enough for two turns: more --training.epochs or --copies")
    ratios = sorted(bare / whole for bare, whole in seconds)
    quarter = len(ratios) // 4
    rates = [steps * given.batch_size / statistics.median(values) for values in zip(*seconds)]
    result = {"ratio": statistics.median(ratios), "middle_half": [ratios[quarter], ratios[-1 - quarter]]}
    result |= {"pairs_per_second": dict(zip(("bare step", "train.py"), rates)), "turns": len(seconds), "steps": steps}
    result |= {"precision": given.mixed_precision, "compiled": given.compile, "batch_size": given.batch_size}
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else DEVICE.type
    result |= {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}
    result |= {"augmentation": config.data.augmentation, "num_workers": config.data.num_workers}
    low, high = result["middle_half"]
    rows = [["", "pairs/s, median", "ratio, median (middle half)"], ["bare step", f"{rates[0]:.0f}", "1"]]
    rows.append(["train.py", f"{rates[1]:.0f}", f"{result['ratio']:.3f} ({low:.3f} to {high:.3f})"])
    print(aligned(rows))
    print(f"{len(seconds)} turns of {steps} steps each; {name}, {torch.get_num_threads()} threads")
    if args.output:
        args.output.write_text(json.dumps(result | {"seconds": seconds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
