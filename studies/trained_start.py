# Licensed under the Apache License, Version 2.0.
"""
What a local loss adds to a CLIP model that is trained already, as the paper's begins from BioViL: CLIP from random
weights, then two epochs more with each row of `rows.ROWS`, on drawings. One table over the seeds, and the
differences to CLIP's row, seed by seed.

    python studies/trained_start.py --output_dir runs/trained_start [--seeds 10 11 12 13 14] [--processes 2]
        [--rows CLIP "TIER 0.2, 0"] [--image_size 64] [--section impression]

A row of a seed is minutes on one core. The same command goes on where it was stopped; what is done is not run again.
With a GPU all processes share it.
"""

import argparse
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from setting import ALL_ROWS, START, Setting, add_arguments, setting_of

from tier_cli.options import option_parser


def parse_arguments() -> argparse.Namespace:
    parser = option_parser(__doc__)
    add_arguments(parser, ALL_ROWS)
    parser.add_argument("--cost_rounds", type=int, default=5, help="of steps that are timed at the end; 0: none")
    return parser.parse_args()


if __name__ == "__main__":
    parse_arguments()  # before torch is imported, which takes seconds: --help and mistakes are answered at once

import json
import multiprocessing
import shlex
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace

import numpy as np
import scipy.stats
import torch
from continued import check_setting, file_name, pretrain, run_rows

from modeling_tier.evaluation.tables import aligned
from modeling_tier.files import replace_json


def main() -> None:
    arguments = parse_arguments()
    if arguments.table:
        about = json.loads(arguments.table.read_text())
        print(table(about["rows"], about.get("costs", {})))
        return
    rows = [START, *arguments.rows]
    run(setting_of(arguments), arguments.seeds, rows, arguments.output_dir, arguments.processes)
    results = of_seeds(arguments.output_dir, arguments.seeds, rows)
    costs = {}
    if arguments.cost_rounds:
        from cost_of_losses import Case, measure_costs

        setting = replace(setting_of(arguments), num_pairs=Setting.batch_size)
        costs = measure_costs(Case(setting, setting.batch_size), arguments.rows, arguments.cost_rounds)
    print(table(results, costs))
    save(arguments, results, costs=costs)


def save(
    arguments: argparse.Namespace, results: dict[str, list[dict[str, float]]], name: str = "results.json", **more
) -> None:
    """The results, and what else there is, beside their setting, seeds and machine, in the output folder."""
    about = {
        "command": shlex.join(["python", f"studies/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "setting": asdict(setting_of(arguments)) | {"seed": None},
        "seeds": arguments.seeds,
        "machine": machine(),
    }
    replace_json(arguments.output_dir / name, about | {"rows": results} | more)


def machine() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}, float32 (convolutions in TF32)"
    return f"CPU, one thread a process, torch {torch.__version__}, float32"


def run(
    setting: Setting,
    seeds: list[int],
    rows: list[str],
    output_dir: Path,
    processes: int,
    run_part: Callable[[Setting, Path, list[str]], None] = run_rows,
    ending: str = "json",
) -> None:
    """First every seed's start, then the rows, dealt out so that a process has rows of few seeds."""
    settings = {output_dir / str(seed): replace(setting, seed=seed) for seed in seeds}
    for folder, own in settings.items():
        check_setting(own, folder)
    settings = {folder: own for folder, own in settings.items() if missing(folder, rows, ending)}
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(pretrain, settings.values(), settings))
        parts = max(1, processes // max(1, len(settings)))
        jobs = [(own, folder, rows[part::parts]) for part in range(parts) for folder, own in settings.items()]
        list(pool.map(run_part, *zip(*jobs)))


def missing(folder: Path, rows: list[str], ending: str = "json") -> list[str]:
    """The rows of a seed that are not done."""
    return [row for row in rows if not (folder / f"{file_name(row)}.{ending}").is_file()]


def of_seeds(
    output_dir: Path, seeds: list[int], rows: list[str], ending: str = "json"
) -> dict[str, list[dict[str, float]]]:
    """Measures of each row, in the order of the seeds."""
    files = {row: [output_dir / str(seed) / f"{file_name(row)}.{ending}" for seed in seeds] for row in rows}
    return {row: [json.loads(file.read_text())["measures"] for file in own] for row, own in files.items()}


def table(results: dict[str, list[dict[str, float]]], costs: dict[str, dict] | None = None) -> str:
    """The means over the seeds with the costs of a step, and the differences to CLIP's row, where there is one."""
    lines = means(results)
    if costs:
        lines[0] += ["time to CLIP's", "peak memory to CLIP's"]
        for line in lines[1:]:
            cost = costs.get(line[0])
            line += [f"{cost['time ratio'][1]:.2f}", f"{cost['peak ratio']:.2f}"] if cost else ["", ""]
    parts = [aligned(lines)]
    if "CLIP" in results:
        parts.append(aligned(differences(results)))
    return "\n\n".join(parts)


def means(results: dict[str, list[dict[str, float]]], measures: Sequence[str] = ()) -> list[list[str]]:
    """A heading, and for each row the mean (standard deviation) over the seeds; all measures unless some are named."""
    measures = list(measures or next(iter(results.values()))[0])
    lines = [["", *measures]]
    for row, values in _values(results, measures).items():
        spread = values.std(axis=0, ddof=min(1, len(values) - 1))
        lines.append([row, *(f"{mean:.3f} ({sd:.3f})" for mean, sd in zip(values.mean(axis=0), spread))])
    return lines


def differences(results: dict[str, list[dict[str, float]]], measures: Sequence[str] = ()) -> list[list[str]]:
    """
    A heading, and for each row but CLIP's the mean difference to it, seed by seed, its 95% interval over the seeds
    (Student's t), and in how many seeds it is above.
    """
    measures = list(measures or next(iter(results.values()))[0])
    values = _values(results, measures)
    base, lines = values.pop("CLIP"), [["minus CLIP's row", *measures]]
    for row, own in values.items():
        gain, number = own - base, len(own)
        half = [""] * len(measures)
        if number > 1:
            widths = scipy.stats.t.ppf(0.975, number - 1) * gain.std(axis=0, ddof=1) / number**0.5
            half = [f" ± {width:.3f}" for width in widths]
        cells = zip(gain.mean(axis=0), half, (gain > 0).sum(axis=0))
        lines.append([row, *(f"{mean:+.3f}{width}, {above}/{number}" for mean, width, above in cells)])
    return lines


def _values(results: dict[str, list[dict[str, float]]], measures: list[str]) -> dict[str, np.ndarray]:
    """Of each row (S, K) of S seeds and K measures."""
    return {row: np.array([[seed[name] for name in measures] for seed in own]) for row, own in results.items()}


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
