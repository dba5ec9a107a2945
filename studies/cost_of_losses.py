# Licensed under the Apache License, Version 2.0.
"""
Time and peak memory of a training step (forward, backward, optimiser) of the study's model with each local loss,
beside CLIP's own step, whole and in chunks of pairs. The rows run in turn, step by step, in one process; ratios to
CLIP's step are medians over the rounds, with quartiles. On a CPU time is the processor's, so that other work disturbs
it little, and memory is the peak of torch's allocator in a process of its own for each row.

    python studies/cost_of_losses.py [--batch_sizes 64 128] [--chunk_size 16] [--output FILE]
"""

import argparse
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parent))
from setting import Setting

from tier_cli.options import option_parser


BASELINE = "CLIP"
# A row of each method; the weight of a loss costs nothing.
ROWS = (
    BASELINE,
    "TIER 0.2, 0.1",
    "entropy of contributions, 0.2",
    "entropy without the common map, 0.2 at temperature 0.5",
    "steep, 1",
    "FILIP, 1",
    "GLoRIA local, 1",
    "SPARC, 1",
    "VL-CABS, 1",
    "FLAIR-like, 1",
    "sentences as positives, 1",
    "VL-CABS over sentences, 0.1",
    "entropy of sentences, 0.2 at temperature 0.5",
    "TIER 0.2, 0 at temperature 0.5, patches over sentences 0.2",
    "TIER 0.2, 0 at temperature 0.5, unlike maps 0.5",
)


def parse_arguments() -> argparse.Namespace:
    parser = option_parser(__doc__)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[64, 128], help="pairs")
    parser.add_argument("--chunk_size", type=int, default=16, help="pairs of a block; 0: whole batches alone")
    parser.add_argument("--rounds", type=int, default=5, help="that are timed")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="ROW", help="losses")
    parser.add_argument("--output", type=Path, help="file for the results as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    parse_arguments()  # before torch is imported, which takes seconds: --help and mistakes are answered at once

import json
import multiprocessing
import shlex
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from continued import build, loss_of_row, training_pairs
from drawings import TrainingSet
from paper_step import CLOCKS, DEVICE, adam, peak_of_two_steps, step

from modeling_tier.evaluation.tables import aligned


@dataclass(frozen=True)
class Case:
    """A batch of the study's training drawings; weights are random."""

    setting: Setting
    batch_size: int
    chunk_size: int | None = None

    def make(self, row: str):
        """The loss of a row as a function, and the optimiser, for [`step`]."""
        pairs = training_pairs(self.setting)
        model, processor = build(self.setting, pairs)
        data = TrainingSet.of(pairs, processor)
        return self.loss(model.to(DEVICE).train(), data, row), adam(model), {}

    def loss(self, model, data: TrainingSet, row: str):
        return partial(loss_of_row, model, data, torch.arange(self.batch_size), row, self.chunk_size)


def seconds(case: Case, rows: list[str], rounds: int) -> dict[str, list[float]]:
    """Of each row and round; the first round does not count."""
    pairs = training_pairs(case.setting)
    model, processor = build(case.setting, pairs)
    data, optimizer = TrainingSet.of(pairs, processor), adam(model.to(DEVICE).train())
    clock, spent = list(CLOCKS)[-1], {row: [] for row in rows}
    for number in range(1 + rounds):
        for row in rows[number % len(rows) :] + rows[: number % len(rows)]:
            time = step(case.loss(model, data, row), optimizer, {}, "float32")[clock]
            if number:
                spent[row].append(time)
    return spent


def peak(case: Case, row: str) -> float:
    """MiB"""
    torch.set_num_threads(1)
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    return peak_of_two_steps(partial(case.make, row), "float32")


def measure_costs(case: Case, rows: list[str], rounds: int) -> dict[str, dict]:
    """Of each row the seconds of a step, their ratios to CLIP's (quartiles), and peaks likewise."""
    rows = [BASELINE, *(row for row in rows if row != BASELINE)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    peaks = {}
    for row in rows:
        if DEVICE == "cuda":
            peaks[row] = peak(case, row)
            continue
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
            peaks[row] = pool.submit(peak, case, row).result()
    spent = seconds(case, rows, rounds)
    torch.set_num_threads(threads)
    base = np.array(spent[BASELINE])
    return {
        row: {
            "seconds": float(np.median(own)),
            "time ratio": np.quantile(np.array(own) / base, [0.25, 0.5, 0.75]).tolist(),
            "peak MiB": peaks[row],
            "peak ratio": peaks[row] / peaks[BASELINE],
        }
        for row, own in spent.items()
    }


def lines(result: dict) -> list[list[str]]:
    """A heading that names the case, and a line for each row."""
    about = f"{result['batch_size']} pairs"
    if result["chunk_size"]:
        about += f" in chunks of {result['chunk_size']}"
    table = [[about, "ms a step", "to CLIP's (quartiles)", "peak MiB", "to CLIP's"]]
    for row, cost in result["rows"].items():
        low, middle, high = cost["time ratio"]
        cells = [f"{1000 * cost['seconds']:.0f}", f"{middle:.2f} ({low:.2f} to {high:.2f})"]
        table.append([row, *cells, f"{cost['peak MiB']:.0f}", f"{cost['peak ratio']:.2f}"])
    return table


def main() -> None:
    arguments = parse_arguments()
    results = []
    for batch_size in arguments.batch_sizes:
        for chunk_size in [None] + [arguments.chunk_size] * (arguments.chunk_size > 0):
            case = Case(Setting(seed=0, num_pairs=batch_size), batch_size, chunk_size)
            rows = measure_costs(case, arguments.rows, arguments.rounds)
            results.append({"batch_size": batch_size, "chunk_size": chunk_size, "rows": rows})
            print(aligned(lines(results[-1])), flush=True)
    machine = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU, one thread"
    if arguments.output:
        command = shlex.join(["python", "studies/cost_of_losses.py", *sys.argv[1:]])
        about = {
            "command": command,
            "machine": machine,
            "torch": torch.__version__,
            "rounds": arguments.rounds,
            "results": results,
        }
        arguments.output.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
