# Licensed under the Apache License, Version 2.0.
"""
What becomes of the difference between TIER and CLIP when the study grows: more pairs, larger pictures, more patches,
a ViT, the finer drawings. For each size the rows of `trained_start.py`, and one table of differences to CLIP's row,
seed by seed.

    python studies/growth.py --sizes "1,000 pairs" "4,000 pairs" --seeds 0 1 [--rows CLIP "VL-CABS, 0.1"]
    python studies/growth.py --table studies/results/growth_cpu.json --figure growth.png

What is done is not run again. `growth.json` has, of each size, the seeds in the folder that have all rows of the last
call, and the rows that all of these have. Pictures of 224 pixels take some 6 GB of memory a process.
"""

import argparse
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from setting import ALL_ROWS, START, Setting

from tier_cli.options import option_parser


# What differs from the study's own size: 8,000 pairs, 64 pixels, 8 x 8 patches, a ResNet. Each is to be compared with
# as many pairs of 64 pixels. The ResNet has a stage more for 16 pixels between two patches than for 8, and two for 32.
# The one of 8,000 finer drawings is the demo's, whose ResNet is smaller.
SIZES = {
    "1,000 pairs": {"num_pairs": 1_000},
    "2,000 pairs": {"num_pairs": 2_000},
    "4,000 pairs": {"num_pairs": 4_000},
    "8,000 pairs": {},
    "16,000 pairs": {"num_pairs": 16_000},
    "2,000 pairs, 16 patches": {"num_pairs": 2_000, "stride": 16},
    "4,000 pairs, 128 px, 64 patches": {"num_pairs": 4_000, "image_size": 128, "stride": 16},
    "4,000 pairs, 128 px, 256 patches": {"num_pairs": 4_000, "image_size": 128, "stride": 8},
    "4,000 pairs, 224 px, 49 patches": {"num_pairs": 4_000, "image_size": 224, "stride": 32},
    "4,000 pairs, 224 px, 196 patches": {"num_pairs": 4_000, "image_size": 224, "stride": 16},
    "2,000 pairs, ViT": {"num_pairs": 2_000, "encoder": "vit"},
    "8,000 pairs, ViT": {"encoder": "vit"},
    "2,000 pairs, fine": {"num_pairs": 2_000, "drawings": "fine"},
    "8,000 pairs, fine, 128 px, 64 patches": {
        "drawings": "fine",
        "image_size": 128,
        "stride": 16,
        "encoder": "small_resnet",
    },
}
ROWS = ("CLIP", "TIER 0.2, 0 at temperature 0.5", "VL-CABS, 0.1")


def parse_arguments() -> argparse.Namespace:
    parser = option_parser(__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/growth"), help="folder of the study")
    parser.add_argument(
        "--sizes", nargs="+", default=list(SIZES), choices=list(SIZES), metavar="SIZE", help="of the study"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12], help="of drawings, weights, order")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ALL_ROWS, metavar="ROW", help="losses")
    parser.add_argument("--processes", type=int, default=1, help="each with one thread")
    parser.add_argument("--epochs", type=int, default=Setting.epochs, help="of CLIP from random weights")
    parser.add_argument("--num_test", type=int, default=Setting.num_test, help="held-out drawings")
    parser.add_argument("--table", type=Path, nargs="+", metavar="FILE", help="only print the table of results files")
    parser.add_argument("--figure", type=Path, metavar="PNG", help="draw the differences over the sizes")
    return parser.parse_args()


if __name__ == "__main__":
    parse_arguments()  # before torch is imported, which takes seconds: --help and mistakes are answered at once

import json
import multiprocessing
import shlex
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace

import torch
from continued import check_setting, file_name, pretrain, run_rows
from trained_start import differences, machine, means, missing

from modeling_tier.evaluation.tables import aligned
from modeling_tier.files import replace_json


MEASURES = (
    "AUROC",
    "pointing, cosine",
    "pointing, cosine - no finding",
    "pointing, contribution",
    "pointing, contribution - no finding",
    "CNR, cosine",
    "CNR, cosine - no finding",
    "CNR, contribution",
    "CNR, contribution - no finding",
    "AUROC of negated",
)


def main() -> None:
    arguments = parse_arguments()
    if arguments.table:
        sizes = {}
        for file in arguments.table:  # the first file that has a size counts
            about = json.loads(file.read_text())
            sizes = (about.get("sizes") or {"8,000 pairs": about["rows"]}) | sizes  # or the study's own results
        show(ordered(sizes), arguments.figure)
        return
    common = Setting(seed=0, epochs=arguments.epochs, num_test=arguments.num_test)
    results = Results.of(arguments.output_dir / "growth.json", asdict(common) | {"seed": None})
    results.commands.append(shlex.join(["python", "studies/growth.py", *sys.argv[1:]]))
    rows, jobs = [START, *arguments.rows], []
    for size in arguments.sizes:
        folder = folder_of(arguments.output_dir, size)
        for seed in seeds_in(folder):  # those of earlier calls, too: growth.json will have them
            check_setting(replace(common, seed=seed, **SIZES[size]), folder / str(seed))
        jobs += [(replace(common, seed=seed, **SIZES[size]), folder / str(seed), rows) for seed in arguments.seeds]
    with ProcessPoolExecutor(arguments.processes, multiprocessing.get_context("spawn")) as pool:
        done = pool.map(run_seed, *zip(*jobs))
        for size in arguments.sizes:
            for _ in arguments.seeds:
                next(done)
            results.add(size, folder_of(arguments.output_dir, size), rows)
            replace_json(arguments.output_dir / "growth.json", asdict(results))  # after each, should it stop
    show({size: results.sizes[size] for size in arguments.sizes}, arguments.figure)


@dataclass
class Results:
    """Of all calls that share a folder."""

    commands: list[str]
    machine: str
    setting: dict
    seeds: dict[str, list[int]]
    """Of each size."""
    sizes: dict[str, dict[str, list[dict[str, float]]]]
    """Of each size and row the measures of each seed."""

    @classmethod
    def of(cls, file: Path, setting: dict) -> "Results":
        """What earlier calls left in the file; ValueError if it is of another setting, machine or version."""
        new = cls([], machine(), setting, {}, {})
        if not file.is_file():
            return new
        earlier = json.loads(file.read_text())
        if earlier.keys() != asdict(new).keys() or (earlier["machine"], earlier["setting"]) != (new.machine, setting):
            raise ValueError(f"{file} is of another setting, machine or version: name another --output_dir.")
        return cls(**earlier)

    def add(self, size: str, folder: Path, rows: list[str]) -> None:
        """All seeds in the folder of a size that have these rows, and its earlier rows that all these seeds have."""
        self.seeds[size] = [seed for seed in seeds_in(folder) if not missing(folder / str(seed), rows)]
        folders = [folder / str(seed) for seed in self.seeds[size]]
        known = dict.fromkeys([*rows, *self.sizes.get(size, {})])
        rows = [row for row in known if not any(missing(own, [row]) for own in folders)]
        self.sizes[size] = {row: [measures_of(own, row) for own in folders] for row in rows}


def folder_of(output_dir: Path, size: str) -> Path:
    return output_dir / size.replace(", ", "_").replace(",", "").replace(" ", "_")


def seeds_in(folder: Path) -> list[int]:
    """That were begun in the folder of a size."""
    return sorted(int(own.name) for own in folder.glob("*") if own.name.isdigit())


def measures_of(folder: Path, row: str) -> dict[str, float]:
    return json.loads((folder / f"{file_name(row)}.json").read_text())["measures"]


def show(sizes: dict[str, dict[str, list[dict[str, float]]]], figure: Path | None) -> None:
    print(table(sizes))
    left_out = {row for own in sizes.values() for row in own} - {START, "CLIP", *rows_of_all(sizes)}
    if left_out:
        print(f"\nnot in every size: {', '.join(sorted(left_out))}")
    if figure:
        from curves import plot_growth

        plot_growth(sizes, figure)


def ordered(sizes: dict) -> dict:
    """As in `SIZES`, others last."""
    known = [size for size in SIZES if size in sizes]
    return {size: sizes[size] for size in dict.fromkeys([*known, *sizes])}


def run_seed(setting: Setting, folder: Path, rows: list[str]) -> None:
    """The start of a seed and the rows from there."""
    check_setting(setting, folder)
    if missing(folder, rows):
        pretrain(setting, folder)
        run_rows(setting, folder, rows)


def table(sizes: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    return "\n\n".join(aligned(lines) for lines in tables(sizes))


def tables(sizes: dict[str, dict[str, list[dict[str, float]]]]) -> list[list[list[str]]]:
    """CLIP's row of each size; then, for each other row, its differences to CLIP's at each size."""
    rows = rows_of_all(sizes)
    of_clip, gains = [], {row: [] for row in rows}
    for size, results in sizes.items():
        lines = {line[0]: line[1:] for line in means(results, MEASURES)}
        of_clip.append([size, *lines["CLIP"]])
        lines = {line[0]: line[1:] for line in differences(results, MEASURES)}
        for row in rows:
            gains[row].append([size, *lines[row]])
    return [[["CLIP", *MEASURES], *of_clip]] + [[[f"{row}, minus CLIP", *MEASURES], *gains[row]] for row in rows]


def rows_of_all(sizes: dict[str, dict[str, list]]) -> list[str]:
    """Those that every size has, and that are compared with CLIP's."""
    shared = set.intersection(*map(set, sizes.values()))
    return [row for row in next(iter(sizes.values())) if row in shared - {START, "CLIP"}]


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
