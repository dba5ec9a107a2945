# Licensed under the Apache License, Version 2.0.
"""
Models on several data sets, in one table beside published numbers: `evaluate_zeroshot.py --suite FILE`.

    protocol: carzero
    sets:
      chestxray14: {data_dir: timm/nih-chest-xray-14}
      padchest20: {dataset: padchest, data_dir: /data/padchest, findings: rarest}

Each set has the options of its loader, its `split` (test), and its `dataset`, where the column is called otherwise.
"""

import argparse
import json
from pathlib import Path

import yaml

from ..data import DATASETS
from ..data.parquet import is_hub_name
from ..files import replace_text
from .command import configuration
from .protocols import PROTOCOLS
from .run import run_evaluation


TABLE = "suite.md"
_PUBLISHED = Path(__file__).with_name("published.yaml")
_MEASURES = {"auroc": "AUROC", "pointing_game": "Pointing game"}
_OWN = ("dataset", "split")


def run_suite(arguments: argparse.Namespace, given: list[str]) -> str | None:
    """
    Evaluate every set of a suite that is there, each in a folder of its own, and write `suite.md`. What was scored
    before is not scored again.

    Args:
        arguments: the options of `evaluate_zeroshot.py`, `suite` among them.
        given: options that would be of one data set, which must not be there.

    Returns the table; None in all processes but the first.

    Raises:
        ValueError: for a file that is not of the form above, or a set of which something is wrong.
    """
    if given or not arguments.output_dir:
        raise ValueError("--suite needs --output_dir; options of the data sets stand in its file.")
    protocol, sets = read_suite(Path(arguments.suite))
    results, absent = {}, {}
    for name, options in sets.items():
        folder = str(options.get("data_dir") or "")
        if folder and not Path(folder).exists() and not is_hub_name(folder):
            absent[name] = f"there is no {folder}"
            print(f"{name}: {absent[name]}: skipped.")
            continue
        print(f"=== {name}")
        chosen = {key: value for key, value in options.items() if key not in _OWN}
        own = {"dataset": options.get("dataset", name), "split": options.get("split", "test"), "data_dir": None}
        own |= {"output_dir": str(Path(arguments.output_dir) / name), "protocol": protocol or arguments.protocol}
        try:
            config = configuration(
                argparse.Namespace(**vars(arguments) | own), [f"--data.options={json.dumps(chosen)}"]
            )
            results[name] = run_evaluation(config)
        except ValueError as error:
            raise ValueError(f"{arguments.suite}, {name}: {error}") from error
    if not results:
        raise ValueError(f"{arguments.suite}: none of its data sets is there.")
    if None in results.values():
        return None
    table = suite_table(results, absent)
    replace_text(Path(arguments.output_dir) / TABLE, table)
    print(f"\n{table}\nIt is also in {Path(arguments.output_dir) / TABLE}")
    return table


def read_suite(path: Path) -> tuple[str | None, dict[str, dict]]:
    """The protocol, if the file names one, and the options of each set."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {str(error).splitlines()[0]}") from error
    sets = content.get("sets") if isinstance(content, dict) else None
    if not isinstance(sets, dict) or not sets or set(content) - {"sets", "protocol"}:
        raise ValueError(f"{path} must have the keys 'sets' (data sets with their options) and 'protocol' alone.")
    protocol = content.get("protocol")
    if protocol is not None and protocol not in PROTOCOLS:
        raise ValueError(f"{path}: protocol must be one of {list(PROTOCOLS)}; got {protocol!r}.")
    for name, options in sets.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{path}: the name of a set is that of its folder; got {name!r}.")
        if not isinstance(options, dict):
            raise ValueError(f"{path}: {name} must hold the options of a data set; got {options!r}.")
        if options.get("dataset", name) not in DATASETS:
            raise ValueError(f"{path}: {name} is no data set; known are {sorted(DATASETS)} (dataset: NAME).")
    return protocol, sets


def suite_table(results: dict[str, dict], absent: dict[str, str] | None = None) -> str:
    """
    Of what metrics.json holds for each set: a table per measure in Markdown, with published rows.

    A cell of ours has the 95% interval, the number of findings and images, and from the second model on the p of a
    paired bootstrap against the first. A published number with another number of findings or images is in brackets:
    it is of another task.
    """
    published = yaml.safe_load(_PUBLISHED.read_text(encoding="utf-8"))
    first = next(iter(results.values()))
    protocol = first["protocol"]["name"]
    blocks = [f"# {', '.join([first['name'], *first['compared']])}, protocol {protocol}"]
    for measure, title in _MEASURES.items():
        measured = {
            name: [_cell(result, model, measure) for model in _models(result)] for name, result in results.items()
        }
        columns = [name for name, cells in measured.items() if set(cells) != {"-"}]
        if columns:
            rows = [["", *columns], ["---"] * (len(columns) + 1)]
            rows += [[model, *(measured[name][i] for name in columns)] for i, model in enumerate(_models(first))]
            rows += [
                [f"{model} (published)", *(_published(published, values, name, results[name]) for name in columns)]
                for model, values in published[measure].items()
                if protocol == published["protocol"] and set(values) & set(columns)
            ]
            blocks += [f"## {title}", "\n".join(f"| {' | '.join(row)} |" for row in rows)]
    blocks.append(
        f"Published: {published['source']}, protocol {published['protocol']}, not measured here; in brackets where "
        "the number of findings or images is not ours. Under another protocol there are no published rows."
    )
    blocks += [f"{name} was skipped: {reason}." for name, reason in (absent or {}).items()]
    return "\n\n".join(blocks) + "\n"


def _models(result: dict) -> list[str]:
    return [result["name"], *result["compared"]]


def _value(metrics: dict, measure: str) -> dict | None:
    """Mean over the findings, with its interval."""
    if measure == "auroc":
        return metrics.get("classification", {}).get("image", {}).get("mean", {}).get("auroc")
    return metrics.get("localisation_intervals", {}).get("pointing_game", {}).get("mean")


def _number_of_findings(metrics: dict, measure: str) -> int:
    values = metrics["auroc"] if measure == "auroc" else metrics["localisation"][measure]
    return sum(value is not None for name, value in values.items() if name != "mean")


def _cell(result: dict, model: str, measure: str) -> str:
    other = result["compared"].get(model)
    metrics = other["metrics"] if other else result["metrics"]
    value = _value(metrics, measure)
    if not value or value["value"] is None:
        return "-"
    interval = f" ({value['low']:.3f} to {value['high']:.3f})" if value.get("low") is not None else ""
    about = f"{_number_of_findings(metrics, measure)} findings, {metrics['num_images']:,} images"
    p = None
    if other and measure == "auroc":
        p = (_value(other["difference"], measure) or {}).get("p_bootstrap")
    return f"{value['value']:.3f}{interval}, {about}" + ("" if p is None else f", p = {p:.3g}")


def _published(published: dict, values: dict, name: str, result: dict) -> str:
    if name not in values:
        return "-"
    known, metrics = published["sets"][name], result["metrics"]
    measure = "auroc" if values in published["auroc"].values() else "pointing_game"
    ours = {"findings": _number_of_findings(metrics, measure), "images": metrics["num_images"]}
    text = f"{values[name]:.3f}, " + ", ".join(f"{number:,} {key}" for key, number in known.items())
    return text if all(ours[key] == number for key, number in known.items()) else f"[{text}]"
