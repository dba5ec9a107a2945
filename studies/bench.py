# Licensed under the Apache License, Version 2.0.
r"""
Train CLIP, TIER and the local losses of other papers with one configuration of `train.py` (the same data, seeds and
budget), evaluate them side by side, and print one table for each data set, with the differences to CLIP's row:

    python studies/bench.py --config configs/openi.yaml --data_dir data/openi-320 --output_dir runs/bench \
        --seeds 0 1 2 --evaluate "--dataset openi --data_dir data/openi-320 --split test" \
        [--evaluate "--suite localisation --data_root /data"] [--launch "accelerate launch --num_processes 8"] \
        [--rows TIER vl_cabs] [--training.epochs 5 ...]

`--evaluate` has options of `evaluate_zeroshot.py`, two words at least; other options are those of `train.py`. What is
done is not run again: the same command goes on where it was stopped, and with more seeds or rows does those alone. A
row that fails is left out of the tables, and named at the end.
"""

import argparse
import hashlib
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(Path(__file__).parent))
from evaluate_zeroshot import add_data_options, add_measuring_options, add_sentence_options
from tier_cli.declarations import of_module
from tier_cli.options import option_parser
from tier_cli.section_options import check_data_options, check_training_options


# What each row adds to the options of train.py. TIER's lambdas are those of the configuration.
WITHOUT_TIER = ["--model.lambda_token", "0", "--model.lambda_patch", "0"]
WITHOUT_ANOTHER = ["--regulariser.local_loss", "null"]
LOCAL_LOSSES = of_module("modeling_tier.training.local_losses").keys("LOCAL_LOSSES")
ROWS = {"CLIP": [*WITHOUT_TIER, *WITHOUT_ANOTHER], "TIER": WITHOUT_ANOTHER} | {
    name: [*WITHOUT_TIER, "--regulariser.local_loss", name] for name in LOCAL_LOSSES
}


@dataclass
class Bench:
    """What is trained and evaluated, and where."""

    train_options: list[str]
    evaluations: list[list[str]]
    """Options of `evaluate_zeroshot.py`, a list for each evaluation."""
    launch: list[str]
    """The command that starts a script."""
    rows: list[str]
    seeds: list[int]
    output_dir: Path

    def run_folder(self, row: str, seed: int) -> Path:
        return self.output_dir / str(seed) / row

    def evaluation_folder(self, options: list[str], seed: int) -> Path:
        """One for each evaluation's options, whatever others there are."""
        digest = hashlib.sha256(json.dumps(options).encode()).hexdigest()[:8]
        return self.output_dir / str(seed) / f"evaluation-{digest}"


def read_arguments() -> Bench:
    parser = option_parser(__doc__)
    add = parser.add_argument
    add("--config", required=True, help="of train.py")
    add("--data_dir", help="of train.py")
    add("--output_dir", type=Path, default=Path("runs/bench"), help="folder of the bench")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the runs")
    add("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW", help="CLIP's is always there")
    add(
        "--evaluate",
        action="append",
        required=True,
        metavar="OPTIONS",
        help="of evaluate_zeroshot.py, in quotes",
    )
    add("--launch", default=shlex.quote(sys.executable), help="what starts both scripts")
    arguments, rest = parser.parse_known_args()
    if rest and not rest[0].startswith("--"):
        parser.error(f"what is {rest[0]!r}? Options of train.py begin with --section.option")
    check_training_options(parser, rest)
    if len(set(arguments.seeds)) < len(arguments.seeds):
        parser.error("a seed is named twice")
    given = ["--config", arguments.config, *(["--data_dir", arguments.data_dir] if arguments.data_dir else []), *rest]
    for fixed in ("--output_dir", "--seed", "--regulariser.local_loss", "--training.resume_from_checkpoint"):
        if any(option.split("=")[0] == fixed for option in rest):
            parser.error(f"{fixed} is set by the bench")
    rows = ["CLIP", *(row for row in arguments.rows if row != "CLIP")]  # what the others are compared with
    evaluations, launch = [shlex.split(own) for own in arguments.evaluate], shlex.split(arguments.launch)
    for own in evaluations:
        check_evaluation(parser, own)
    return Bench(given, evaluations, launch, rows, arguments.seeds, arguments.output_dir)


def check_evaluation(parser: argparse.ArgumentParser, options: list[str]) -> None:
    """End the program with a message for options that evaluate_zeroshot.py does not have, or that the bench sets."""
    own = argparse.ArgumentParser(prog="--evaluate", allow_abbrev=False)
    for add_options in (add_data_options, add_sentence_options, add_measuring_options):
        add_options(own)
    known, rest = own.parse_known_args(options)
    check_data_options(own, rest, ("data", "validation"))
    for name in ("model", "scores", "output_dir"):
        if getattr(known, name) != own.get_default(name):
            parser.error(f"--{name} in --evaluate is set by the bench")


if __name__ == "__main__":
    read_arguments()  # before torch is imported, which takes seconds: --help and mistakes are answered at once

import signal
import statistics
import subprocess

from trained_start import differences, machine, means

from modeling_tier.evaluation.tables import aligned
from modeling_tier.files import replace_json
from modeling_tier.training import load_config
from modeling_tier.training.options import changed_options
from modeling_tier.training.stopping import EXIT_STOPPED


MAPS = {
    "plain": "cosine",
    "minus_no_finding": "cosine - no finding",
    "contribution": "contribution",
    "contribution_minus_no_finding": "contribution - no finding",
}
FINDINGS = {"auroc": "AUROC", "average_precision": "AP", "auroc_negated": "auroc_negated"}
POINTING = {"pointing_game": "pointing", "cnr": "CNR"}
SPEED, MEMORY = "pairs/s", "GPU MiB"


def main() -> None:
    bench = read_arguments()
    check_options(bench)
    sets: dict[str, dict[str, list[dict[str, float]]]] = {}
    patients: dict[str, dict[str, list[dict[str, float]]]] = {}
    failed: dict[str, ScriptFailed] = {}
    for done, seed in enumerate(bench.seeds, start=1):
        for row in [*bench.rows]:
            try:
                train(bench, row, seed)
            except ScriptFailed as error:
                if error.is_stop or row == "CLIP":
                    raise
                print(f"error: {error}\n{row} is left out.", file=sys.stderr)
                failed[row] = error
                bench.rows.remove(row)
                for results in (*sets.values(), *patients.values()):
                    results.pop(row, None)
        for name, folder in evaluate(bench, seed).items():
            results = json.loads((folder / "metrics.json").read_text())
            for row, values in measures_of(bench, results, seed).items():
                sets.setdefault(name, {}).setdefault(row, []).append(values)
            for row, values in beyond_patients(bench, results).items():
                patients.setdefault(name, {}).setdefault(row, []).append(values)
        about = {"command": shlex.join(["python", "studies/bench.py", *sys.argv[1:]]), "machine": machine()}
        replace_json(
            bench.output_dir / "bench.json",
            about | {"seeds": bench.seeds[:done], "sets": sets} | {"beyond the interval over patients": patients},
        )
    for name, results in sets.items():
        print(f"\n{name}\n\n{table(results, patients.get(name, {}))}")
    if failed:
        sys.exit("".join(f"\nerror: left out is {row}: {error}" for row, error in failed.items()))


class ScriptFailed(Exception):
    """train.py or evaluate_zeroshot.py has ended with another code than 0."""

    def __init__(self, code: int, command: list[str]):
        super().__init__(f"this ended with {code}: {shlex.join(command)}")
        signals = (signal.SIGINT, signal.SIGTERM)
        self.is_stop = code in (EXIT_STOPPED, *(-number for number in signals), *(128 + number for number in signals))


def check_options(bench: Bench) -> None:
    """
    Options of all rows are read before the first is trained. Rows of one bench are trained alike: its folder keeps the
    options that they share, and how they were started.
    """
    path, *rest = bench.train_options[1:]
    rest = [f"--data.options.{word[2:]}" if word == "--data_dir" else word for word in rest]
    try:
        for row in bench.rows:
            load_config(path, [*rest, *ROWS[row]])
        config = load_config(path, [*rest, *ROWS["TIER"]])
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    now = {"options": config.to_dict(), "launch": bench.launch}
    file = bench.output_dir / "options.json"
    if not file.is_file():
        bench.output_dir.mkdir(parents=True, exist_ok=True)
        replace_json(file, now)
    before = json.loads(file.read_text())
    changed = changed_options(before["options"], now["options"])
    if before["launch"] != bench.launch:
        changed.append(f"--launch {shlex.join(before['launch'])!r}")
    if changed:
        sys.exit(
            f"error: {changed[0]} is not what the runs in {bench.output_dir} were trained with: leave it as it "
            "was, or name another --output_dir."
        )


def train(bench: Bench, row: str, seed: int) -> None:
    folder = bench.run_folder(row, seed)
    if (folder / "metrics.json").is_file():
        return
    more = ["--seed", seed, "--output_dir", folder, "--training.resume_from_checkpoint", "auto"]
    run_script(bench, "train.py", *bench.train_options, *more, *ROWS[row])


def evaluate(bench: Bench, seed: int) -> dict[str, Path]:
    """The models of a seed side by side, by each evaluation; returns the folder of each data set's metrics.json."""
    folders = {}
    for number, options in enumerate(bench.evaluations, start=1):
        output = bench.evaluation_folder(options, seed)
        models = [part for row in bench.rows for part in ("--model", str(bench.run_folder(row, seed)))]
        done = output / "models.json"
        if not done.is_file() or json.loads(done.read_text()) != models:
            done.unlink(missing_ok=True)
            run_script(bench, "evaluate_zeroshot.py", *models, *options, "--output_dir", output)
            replace_json(done, models)
        content = json.loads((output / "metrics.json").read_text())
        of_suite = content.get("sets", {})
        found = {name: output / name for name in of_suite} if of_suite else {content["dataset"]: output}
        folders |= {name if name not in folders else f"{name} ({number})": own for name, own in found.items()}
    return folders


def run_script(bench: Bench, script: str, *options) -> None:
    command = [*bench.launch, str(ROOT / script), *map(str, options)]
    with subprocess.Popen(command) as process:
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        while process.returncode is None:
            try:
                process.wait()
            except KeyboardInterrupt:  # the script got it as well, and ends when its checkpoint is written
                print("waiting for the checkpoint", file=sys.stderr)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if process.returncode:
        raise ScriptFailed(process.returncode, command)


def measures_of(bench: Bench, results: dict, seed: int) -> dict[str, dict[str, float | None]]:
    """Of each row on one data set."""
    metrics = [results["metrics"], *(other["metrics"] for other in results["compared"].values())]
    return {row: _measures(own) | _costs(bench.run_folder(row, seed)) for row, own in zip(bench.rows, metrics)}


def _measures(metrics: dict) -> dict[str, float | None]:
    values = {name: entry.get("value") for name, entry in _numbers(metrics).items()}
    retrieval = metrics.get("retrieval") or {}
    ways = [retrieval[name]["r@10"] for name in ("image_to_text", "text_to_image") if name in retrieval]
    return values | {"R@10": statistics.mean(ways) if ways else None}


def _numbers(part: dict) -> dict[str, dict]:
    """The records of an evaluation, or of a difference, each with its value and interval, by the bench's names."""
    units = part.get("classification") or {}
    findings = next(iter(units.values()), {}).get("mean") or {}  # over the images, or over the studies
    sides = (part.get("laterality") or {}).get("mean") or {}
    records = {title: findings.get(name) for name, title in FINDINGS.items()}
    records |= {"left/right": sides.get("auroc_left_right")}
    for entry in _sentence_maps(part.get("localisation_maps")):
        records |= {f"{title}, {MAPS[entry['map']]}": entry.get(name) for name, title in POINTING.items()}
    return {title: record or {} for title, record in records.items()}


def _sentence_maps(entries: list[dict] | None) -> list[dict]:
    """The maps of sentences at the pixels, a record for each kind of map; masks where a set has masks and boxes."""
    chosen = {}
    for entry in entries or []:
        if (entry["text"], entry["resolution"]) == ("sentence", "pixel") and entry["map"] in MAPS:
            if entry["map"] not in chosen or entry["place"] == "mask":
                chosen[entry["map"]] = entry
    return list(chosen.values())


def _costs(run: Path) -> dict[str, float | None]:
    """Of the main process; the rates of the first tenth of the steps, which hold the start, do not count."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "pairs_per_second" in line]
    rates = [line["pairs_per_second"] for line in steps[len(steps) // 10 :]]
    peaks = [line["peak_memory_mib"] for line in steps if "peak_memory_mib" in line]
    return {SPEED: statistics.median(rates) if rates else None, MEMORY: max(peaks, default=None)}


def beyond_patients(bench: Bench, results: dict) -> dict[str, dict[str, int]]:
    """
    Of each row but CLIP's, for each measure that has one: 1 where the 95% interval over the patients of the
    difference to CLIP's row lies above 0, -1 where it lies below, else 0.
    """
    rows = {}
    for row, other in zip(bench.rows[1:], results["compared"].values()):
        numbers = _numbers(other["difference"])
        intervals = {name: entry for name, entry in numbers.items() if entry.get("low") is not None}
        rows[row] = {name: int(entry["low"] > 0) - int(entry["high"] < 0) for name, entry in intervals.items()}
    return rows


def table(results: dict[str, list[dict]], patients: dict[str, list[dict[str, int]]]) -> str:
    """Means over the seeds, differences to CLIP's row seed by seed, and what holds over the patients of each seed."""
    first = next(iter(results.values()))[0]
    measures = [name for name in first if all(seed.get(name) is not None for own in results.values() for seed in own)]
    of_maps = [[name for name in measures if name.startswith(title)] for title in POINTING.values()]
    others = [name for name in measures if not any(name in own for own in of_maps)]
    missing = [name for name in first if name not in measures]
    parts = [[[f"not measured in every row and seed: {', '.join(missing)}"]]] if missing else []
    for own in filter(None, (others, *of_maps)):
        compared = [name for name in own if name not in (SPEED, MEMORY)]
        parts.append(means(results, own))
        if len(results) > 1 and compared:
            parts += [differences(results, compared), over_patients(patients, compared)]
    return "\n\n".join(aligned(lines) for lines in parts)


def over_patients(patients: dict[str, list[dict[str, int]]], names: list[str]) -> list[list[str]]:
    lines = [["seeds whose interval over patients is above, below 0", *names]]
    for row, seeds in patients.items():
        counts = [[sum(seed.get(name) == sign for seed in seeds) for sign in (1, -1)] for name in names]
        known = [any(name in seed for seed in seeds) for name in names]
        cells = [f"{above}, {below} of {len(seeds)}" for above, below in counts]
        lines.append([row, *(cell if is_known else "" for cell, is_known in zip(cells, known))])
    return lines


if __name__ == "__main__":
    try:
        main()
    except ScriptFailed as error:
        sys.exit(
            f"error: {error}\nThe same command of the bench goes on there; without this row or data set it needs "
            "another choice of --rows or --evaluate."
        )
