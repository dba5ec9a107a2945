# Licensed under the Apache License, Version 2.0.
"""
Published models, converted and evaluated zero-shot on the same data by the same sentences: one command, one table.

    python benchmarks/model_zoo.py benchmarks/model_zoo.yaml --output_dir runs/zoo --suite carzero --data_root /data
    python benchmarks/model_zoo.py benchmarks/model_zoo.yaml --output_dir runs/zoo \\
        --dataset chexpert --data_dir /data/CheXpert-v1.0 --validation_split validation

The YAML file names the models: under each name a `source` of `python -m modeling_tier.conversion` and its options.
A folder `models/NAME` that is there already is taken as it is. All other options are those of evaluate_zeroshot.py;
the first model is the one that the others are compared with. OUTPUT_DIR gets `models/`, the evaluation with its
report (of a suite, `suite/suite.html` and a folder for each data set), and the table as `zoo.md`. A model that
cannot be read or converted is named at the end; the others are evaluated. So is a set of a suite that cannot be
evaluated, and the exit code is then 1.
"""

import argparse
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))
from evaluate_zeroshot import add_data_options, add_measuring_options, add_sentence_options
from tier_cli.options import option_parser
from tier_cli.section_options import check_data_options


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = option_parser(__doc__)
    parser.add_argument("zoo", type=Path, help="YAML file with the models")
    add_data_options(parser)
    add_sentence_options(parser)
    add_measuring_options(parser)
    for action in parser._actions:
        if action.dest == "model":
            action.help = argparse.SUPPRESS
        if action.dest == "output_dir":
            action.required, action.help = True, "folder to write"
    arguments, options = parser.parse_known_args()
    if arguments.model:
        parser.error("the models are those of the YAML file: leave --model out")
    check_data_options(parser, options, ("data", "validation"))
    return arguments, options


if __name__ == "__main__":
    parse_arguments()  # before torch is imported, which takes seconds: --help and mistakes are answered at once

import json

import yaml

from modeling_tier.conversion import SOURCES, convert
from modeling_tier.evaluation.command import configuration
from modeling_tier.evaluation.document import as_markdown
from modeling_tier.evaluation.measures import SCREEN, SUMMARY, shown_in
from modeling_tier.evaluation.run import run_evaluation
from modeling_tier.evaluation.suite import is_folder_name, run_suite
from modeling_tier.evaluation.suite_page import suite_sections
from modeling_tier.evaluation.tables import aligned, estimate, number
from modeling_tier.files import replace_text


_FOLDERS = {False: "evaluation", True: "suite"}  # of the results, by whether they are of a suite


def read_zoo(path: Path) -> dict[str, dict]:
    """By name of a model, its source and the options of that."""
    try:
        zoo = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(zoo, dict) or not zoo:
        raise ValueError(f"{path} must map names of models to their sources and options.")
    for name, entry in zoo.items():
        source = entry.get("source") if isinstance(entry, dict) else None
        if not is_folder_name(name) or source not in SOURCES:
            raise ValueError(f"{path}: {name} needs a source, one of {list(SOURCES)}.")
        unknown = sorted(set(entry) - {"source"} - set(SOURCES[source].defaults))
        if unknown:
            raise ValueError(f"{path}: {name} has an unknown option {unknown[0]!r} of the source {source!r}.")
    return zoo


def convert_all(zoo: dict[str, dict], folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The folders of the converted models, and by name of each other one the reason."""
    folders, failed = [], {}
    for name, entry in zoo.items():
        target = folder / name
        try:
            if not target.is_dir():
                print(f"converting {name}", flush=True)
                convert(output_dir=target, **entry)
            folders.append(target)
        except (ValueError, OSError, RuntimeError, ImportError, TypeError) as error:
            failed[name] = " ".join(str(error).split())
    return folders, failed


def zoo_table(result: dict) -> list[list[str]]:
    """One row per model: what was measured of classification, localisation and sparsity, over all findings."""
    models = {result["name"]: result["metrics"]}
    models |= {name: other["metrics"] for name, other in result["compared"].items()}
    rows = [{"model": name, **_measured(metrics)} for name, metrics in models.items()]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return [columns, *([row.get(column, "-") for column in columns] for row in rows)]


def _measured(metrics: dict) -> dict[str, str]:
    cells, localisation = {}, metrics.get("localisation", {})
    mean = metrics.get("classification", {}).get("image", {}).get("mean", {})
    for measure in shown_in(SCREEN):
        if measure.name in localisation:
            cells[measure.label] = number(localisation[measure.name].get("mean"))
        elif measure.name in mean:
            cells[measure.label] = estimate(mean[measure.name])
    cells |= {measure.label: number(metrics[measure.name]) for measure in shown_in(SUMMARY) if measure.name in metrics}
    return cells | {"images": str(metrics["num_images"])}


def evaluate(arguments: argparse.Namespace, options: list[str]) -> tuple[str, str] | None:
    """
    Evaluate the models on a data set or a suite; gives the table and which sets could not be evaluated, or None in all
    processes but the first.
    """
    if arguments.suite:
        done = run_suite(arguments, options)
        if done is None or not done.results:
            return done and ("", done.failure)
        # Links are relative to the folder of zoo.md, which is around that of the suite.
        sections = suite_sections(done, _FOLDERS[True])
        return as_markdown(done.title, sections, Path(arguments.output_dir).parent), done.failure
    result = run_evaluation(configuration(arguments, options))
    if result is None:
        return None
    protocol, data = result["protocol"], f"{result['dataset']}, {result['split']}"
    head = f"Zero-shot on {data}; protocol {protocol['name']!r}: {protocol['score']}."
    return f"{head}\n\n```\n{aligned(zoo_table(result))}\n```\n", ""


def main() -> None:
    arguments, options = parse_arguments()
    output_dir = Path(arguments.output_dir)
    failed: dict[str, str] = {}
    try:
        folders, failed = convert_all(read_zoo(arguments.zoo), output_dir / "models")
        if not folders:
            raise ValueError(f"No model could be converted: {json.dumps(failed, indent=2)}")
        arguments.model = [str(folder) for folder in folders]
        arguments.output_dir = str(output_dir / _FOLDERS[bool(arguments.suite)])
        evaluated = evaluate(arguments, options)
    except (ValueError, OSError) as error:
        sys.exit("\n".join([f"error: {error}", *_unconverted(failed)]))
    if evaluated is None:
        return
    table, failure = evaluated
    lines = [*_unconverted(failed), *([failure] if failure else [])]
    replace_text(output_dir / "zoo.md", table + "".join(f"\n- {line}\n" for line in lines))
    print("\n".join(["", *([] if arguments.suite else [table]), *_unconverted(failed)]))  # a suite has printed its own
    if failure:
        sys.exit(f"error: {failure}")


def _unconverted(failed: dict[str, str]) -> list[str]:
    return [f"{name}: not evaluated. {reason}" for name, reason in failed.items()]


if __name__ == "__main__":
    main()
