# Licensed under the Apache License, Version 2.0.
"""
Models on several data sets, in one table beside published numbers: `evaluate_zeroshot.py --suite NAME_OR_FILE`.

    protocol: carzero
    measures: [auroc, pointing_game]
    sets:
      chestxray14: {data_dir: timm/nih-chest-xray-14}
      padchest20: {dataset: padchest, findings: rarest}

Each set has the options of its loader, its `split` (test), its `image_ids` (a file with the images to take), and its
`dataset`, where the column is called otherwise. One without `data_dir` is looked for under --data_root. `measures`:
those that the tables show; by default all.
"""

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ..data import DATASETS
from ..data.find_folder import find_folder
from ..data.parquet import is_hub_name
from ..files import replace_json, replace_text
from .command import configuration
from .document import as_html, as_markdown
from .measures import SUITE, shown_in
from .protocols import PROTOCOLS
from .run import METRICS_FILE, EvaluationConfig, run_evaluation
from .suite_page import SuiteResults, suite_sections, suite_summary


PAGE = "suite"
_SUITES = Path(__file__).with_name("suites")
_OWN = ("dataset", "split", "image_ids")
_KEYS = ("sets", "protocol", "measures")
# Options of evaluate_zeroshot.py that are of one data set.
_OF_ONE_SET = ("scores", "data_dir", "image_ids", "max_images", "prompts", "validation_split", "validation_dataset")


@dataclass(frozen=True)
class Suite:
    """What is evaluated, and how."""

    name: str
    protocol: str | None
    measures: list[str]
    sets: dict[str, dict]
    """Options of each data set, those of `_OWN` among them."""


@dataclass
class Plan:
    """The data sets of a suite that are there."""

    found: dict[str, dict] = field(default_factory=dict)
    """By name, the options with the folder."""
    skipped: dict[str, str] = field(default_factory=dict)
    """By name, why."""


def suite_names() -> list[str]:
    """The suites that come along."""
    return sorted(path.stem for path in _SUITES.glob("*.yaml"))


def run_suite(arguments: argparse.Namespace, given: list[str]) -> SuiteResults | None:
    """
    Evaluate every set of a suite that is there, each in a folder of its own, and write `suite.html`, `suite.md` and
    `metrics.json`. What was scored before is not scored again. A set that cannot be evaluated does not stop the
    others.

    Args:
        arguments: the options of `evaluate_zeroshot.py`, `suite` among them.
        given: options that would be of one data set, which must not be there.

    Returns the results; None in all processes but the first.

    Raises:
        ValueError: for a file that is not of the form above, options that do not exist, or, when the others are
            done, a set that could not be evaluated.
    """
    _check(arguments, given)
    suite = read_suite(arguments.suite)
    plan = find_sets(suite, Path(arguments.data_root) if arguments.data_root else None)
    for name, options in plan.found.items():
        print(f"{name}: {options.get('data_dir', 'no folder')}")
    for name, reason in plan.skipped.items():
        print(f"{name} is skipped: {reason}.")
    if not plan.found:
        raise ValueError(f"{arguments.suite}: none of its data sets is there.")
    output = Path(arguments.output_dir)
    configs = {name: _configuration(arguments, suite, name, options) for name, options in plan.found.items()}
    results, failed = _evaluate(configs)
    if None in results.values():
        return None
    done = SuiteResults(
        suite=suite.name,
        protocol=suite.protocol or arguments.protocol,
        measures=suite.measures,
        results=results,
        skipped=plan.skipped,
        failed=failed,
        command=_command(arguments),
    )
    if results:
        _write(done, output)
    if failed:
        raise ValueError(" ".join(f"{name} could not be evaluated: {reason}" for name, reason in failed.items()))
    return done


def _check(arguments: argparse.Namespace, given: list[str]) -> None:
    if given or not arguments.output_dir:
        raise ValueError("--suite needs --output_dir; options of the data sets stand in its file.")
    if not arguments.model:
        raise ValueError("--suite needs --model.")
    for name in _OF_ONE_SET:
        if getattr(arguments, name):
            raise ValueError(f"--{name} is of one data set: with --suite, options of the data sets stand in its file.")
    if arguments.data_root and not Path(arguments.data_root).is_dir():
        raise ValueError(f"There is no folder {arguments.data_root} (--data_root).")
    path = Path(arguments.output_dir) / METRICS_FILE
    if path.is_file() and not _is_of_a_suite(path):
        raise ValueError(f"{path} is not of a suite, but of an evaluation or a run: name another --output_dir.")


def _is_of_a_suite(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # cut off: nothing is lost with it
        return True
    return isinstance(content, dict) and {"suite", "sets"} <= set(content)


def read_suite(name_or_path: str | Path) -> Suite:
    """
    Read a suite that comes along, or one of the user's.

    Raises:
        ValueError: if there is none of that name, or the file is not of the form above.
    """
    known = suite_names()
    path = _SUITES / f"{name_or_path}.yaml" if name_or_path in known else Path(name_or_path)
    if not path.is_file():
        raise ValueError(f"There is no suite {name_or_path}: name one of {known}, or the path of a YAML file.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {str(error).splitlines()[0]}") from error
    sets = content.get("sets") if isinstance(content, dict) else None
    if not isinstance(sets, dict) or not sets or set(content) - set(_KEYS):
        raise ValueError(
            f"{path} must have the keys 'sets' (data sets with their options), 'protocol' and 'measures' alone."
        )
    protocol, measures = content.get("protocol"), content.get("measures")
    if protocol is not None and protocol not in PROTOCOLS:
        raise ValueError(f"{path}: protocol must be one of {list(PROTOCOLS)}; got {protocol!r}.")
    shown = [measure.name for measure in shown_in(SUITE)]
    if measures is not None and (
        not isinstance(measures, list) or not measures or not set(map(str, measures)) <= set(shown)
    ):
        raise ValueError(f"{path}: measures must be a list of {shown}; got {measures!r}.")
    for name, options in sets.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{path}: the name of a set is that of its folder; got {name!r}.")
        if not isinstance(options, dict):
            raise ValueError(f"{path}: {name} must hold the options of a data set; got {options!r}.")
        if options.get("dataset", name) not in DATASETS:
            raise ValueError(f"{path}: {name} is no data set; known are {sorted(DATASETS)} (dataset: NAME).")
    return Suite(path.stem, protocol, measures or shown, sets)


def find_sets(suite: Suite, data_root: Path | None) -> Plan:
    """The folder of each set: what its options say, or what is found under `data_root`."""
    plan = Plan()
    for name, options in suite.sets.items():
        record = DATASETS[options.get("dataset", name)]
        folder = str(options.get("data_dir") or "")
        if folder:
            if Path(folder).exists() or is_hub_name(folder):
                plan.found[name] = options
            else:
                plan.skipped[name] = f"there is no {folder}"
        elif not record.folders:  # drawn
            plan.found[name] = options
        elif data_root is None:
            plan.skipped[name] = "it has no data_dir, and there is no --data_root"
        else:
            loader = {option: value for option, value in options.items() if option not in _OWN}
            found = find_folder(data_root, record, loader, name)
            if found.path:
                plan.found[name] = options | found.options | {"data_dir": str(found.path)}
            else:
                plan.skipped[name] = found.reason
    return plan


def _configuration(arguments: argparse.Namespace, suite: Suite, name: str, options: dict) -> EvaluationConfig:
    chosen = {key: value for key, value in options.items() if key not in _OWN}
    own = {"dataset": options.get("dataset", name), "split": options.get("split", "test")}
    own |= {"image_ids": options.get("image_ids"), "protocol": suite.protocol or arguments.protocol}
    own |= {"output_dir": str(Path(arguments.output_dir) / name)}
    try:
        return configuration(argparse.Namespace(**vars(arguments) | own), [f"--data.options={json.dumps(chosen)}"])
    except ValueError as error:
        raise ValueError(f"{arguments.suite}, {name}: {error}") from error


def _evaluate(configs: dict[str, EvaluationConfig]) -> tuple[dict[str, dict | None], dict[str, str]]:
    """The results of each set, and why others have none."""
    from accelerate import PartialState

    results, failed = {}, {}
    for name, config in configs.items():
        print(f"=== {name}")
        try:
            results[name] = run_evaluation(config)
        except (ValueError, OSError) as error:
            if PartialState().num_processes > 1:  # the others wait for this one
                raise ValueError(f"{name}: {error}") from error
            failed[name] = str(error)
            print(f"{name} could not be evaluated: {error}")
    return results, failed


def _write(done: SuiteResults, output: Path) -> None:
    title, sections = done.title, suite_sections(done)
    replace_text(output / f"{PAGE}.html", as_html(title, sections))
    table = as_markdown(title, sections, output)
    replace_text(output / f"{PAGE}.md", table)
    replace_json(output / METRICS_FILE, suite_summary(done))
    print(f"\n{table}\n{PAGE}.html, {PAGE}.md and {METRICS_FILE} are in {output}")


def _command(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """The options that name what was evaluated."""
    options = [("suite", arguments.suite), *([("data_root", arguments.data_root)] if arguments.data_root else [])]
    options += [("model", model) for model in arguments.model]
    return [*options, ("output_dir", arguments.output_dir)]
