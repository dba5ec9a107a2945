# Licensed under the Apache License, Version 2.0.
"""
The demo over several seeds: mean and standard deviation of each model, and TIER minus CLIP seed by seed.

    python benchmarks/demo_seeds.py --seeds 0 1 2 3 4 [--output_dir runs/demo_seeds] [--section.option value ...]
    python benchmarks/demo_seeds.py --config configs/demo.yaml --output_dir runs/from_nothing

A seed that is finished is not run again, so several of these can share the seeds, and the last one prints the table
of all. What was trained with other options is refused: it needs another --output_dir.
"""

import argparse
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))
from demo import CONFIG, is_finished, run_demo
from tier_cli.options import option_parser
from tier_cli.section_options import check_training_options


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = option_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="of weights and drawings")
    parser.add_argument("--output_dir", default="runs/demo_seeds", help="with a folder for each seed")
    parser.add_argument("--config", type=Path, default=CONFIG, help="as demo.py's")
    arguments, options = parser.parse_known_args()
    check_training_options(parser, options)
    return arguments, options


if __name__ == "__main__":
    parse_arguments()  # before torch is imported, which takes seconds: --help and mistakes are answered at once

import json

import numpy as np
from transformers.utils import logging

from modeling_tier.evaluation.measures import DEMO, shown_in
from modeling_tier.evaluation.tables import aligned


def main() -> None:
    arguments, overrides = parse_arguments()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    results = []
    for seed in arguments.seeds:
        folder = Path(arguments.output_dir) / str(seed)
        options = ["--training.progress", "false", *overrides, "--seed", str(seed)]
        if not is_finished(folder, options, arguments.config):
            run_demo(folder, options, arguments.config)
        results.append(json.loads((folder / "metrics.json").read_text()))
    print(f"{len(results)} seeds, mean (standard deviation)\n")
    print(seeds_table(results))


def seeds_table(results: list[dict]) -> str:
    measures = shown_in(DEMO)
    numbers = {
        name: np.array([[measure.mean_of(result[name]) for measure in measures] for result in results], dtype=float)
        for name in results[0]
    }  # NaN where a model has no maps of contributions
    numbers["TIER - CLIP"] = numbers["TIER"] - numbers["CLIP"]
    rows = [["", *(measure.label for measure in measures)]]
    for name, values in numbers.items():
        pairs = zip(values.mean(axis=0), values.std(axis=0, ddof=min(1, len(values) - 1)))
        rows.append([name, *(f"{mean:.3f} ({spread:.3f})" for mean, spread in pairs)])
    rows.append(["seeds in which TIER > CLIP", *(str(n) for n in (numbers["TIER - CLIP"] > 0).sum(axis=0))])
    return aligned(rows)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
