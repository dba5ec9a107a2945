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
import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ..data import DATASETS, SPLITS, DatasetRecord, check_options
from ..data.find_folder import find_folder
from ..data.parquet import is_hub_name
from ..data.prepared import NOT_KEPT, is_prepared, preparation
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
_OF_ONE_SET = (
    *("scores", "data_dir", "image_ids", "max_images", "prompts"),
    *("validation_split", "validation_dataset", "validation_data_dir", "validation_image_ids"),
)
_STOPPED = "the evaluation stopped before this set"


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
    `metrics.json` after each set. What was scored before is not scored again. A set that cannot be evaluated does not
    stop the others; with several processes, which wait for each other, it does, and what is done is written.

    Args:
        arguments: the options of `evaluate_zeroshot.py`, `suite` among them.
        given: options that would be of one data set, which must not be there.

    Returns the results, with the sets that could not be evaluated in `failed`; None in all processes but the first.

    Raises:
        ValueError: for a file that is not of the form above, options that do not exist, and in all processes but
            the first for a set that could not be evaluated.
    """
    _check(arguments, given)
    suite = read_suite(arguments.suite)
    _check_agreement(arguments, suite)
    plan = find_sets(suite, Path(arguments.data_root) if arguments.data_root else None)
    for name, options in plan.found.items():
        print(f"{name}: {options.get('data_dir', 'no folder')}")
    for name, reason in plan.skipped.items():
        print(f"{name} is skipped: {reason}.")
    if not plan.found:
        raise ValueError(f"{arguments.suite}: none of its data sets is there.")
    done = SuiteResults(
        suite=suite.name,
        protocol=suite.protocol or arguments.protocol,
        measures=suite.measures,
        results={},
        skipped=plan.skipped,
        command=_command(arguments, suite, plan),
    )
    configs = {name: _configuration(arguments, suite, name, options) for name, options in plan.found.items()}
    if not _evaluate(done, configs, Path(arguments.output_dir)):
        return None
    if done.results:
        _print(done, Path(arguments.output_dir))
    return done


def _check(arguments: argparse.Namespace, given: list[str]) -> None:
    if given or not arguments.output_dir:
        raise ValueError("--suite needs --output_dir; options of the data sets stand in its file.")
    if not arguments.model:
        raise ValueError("--suite needs --model.")
    explicit = getattr(arguments, "explicit", ())
    for name in (*_OF_ONE_SET, "dataset", "split"):
        if name in explicit or (name in _OF_ONE_SET and getattr(arguments, name)):
            raise ValueError(f"--{name} is of one data set: with --suite, options of the data sets stand in its file.")
    if arguments.data_root and not Path(arguments.data_root).is_dir():
        raise ValueError(f"There is no folder {arguments.data_root} (--data_root).")
    path = Path(arguments.output_dir) / METRICS_FILE
    if path.is_file() and not _is_of_a_suite(path):
        raise ValueError(f"{path} is not of a suite, but of an evaluation or a run: name another --output_dir.")


def _check_agreement(arguments: argparse.Namespace, suite: Suite) -> None:
    """Raise ValueError for another protocol than the suite's, and where another suite's results would be replaced."""
    if "protocol" in getattr(arguments, "explicit", ()) and suite.protocol not in (None, arguments.protocol):
        raise ValueError(
            f"--protocol {arguments.protocol}: {arguments.suite} is evaluated by the protocol {suite.protocol!r}. "
            "Leave the option out, or name a file without 'protocol'."
        )
    path = Path(arguments.output_dir) / METRICS_FILE
    earlier = _suite_of(path) if path.is_file() else None
    if earlier not in (None, suite.name):
        raise ValueError(f"{path} is of the suite {earlier!r}, not of {suite.name!r}: name another --output_dir.")


def _suite_of(path: Path) -> str | None:
    """The name of the suite that results are of; None if they cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["suite"]
    except (OSError, ValueError, RecursionError):  # cut off
        return None


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
    if protocol is not None and (not isinstance(protocol, str) or protocol not in PROTOCOLS):
        raise ValueError(f"{path}: protocol must be one of {list(PROTOCOLS)}; got {protocol!r}.")
    shown = [measure.name for measure in shown_in(SUITE)]
    if measures is not None and (
        not isinstance(measures, list) or not measures or not set(map(str, measures)) <= set(shown)
    ):
        raise ValueError(f"{path}: measures must be a list of {shown}; got {measures!r}.")
    for name, options in sets.items():
        _check_set(path, name, options)
    return Suite(path.stem, protocol, measures or shown, sets)


def _check_set(path: Path, name: object, options: object) -> None:
    """Raise ValueError for a name that cannot be a folder's, and for values of `_OWN` that do not exist."""
    if not is_folder_name(name) or name in (METRICS_FILE, f"{PAGE}.html", f"{PAGE}.md"):
        raise ValueError(
            f"{path}: the name of a set is that of its folder, of letters, digits, '_', '-' and '.'; got {name!r}."
        )
    if not isinstance(options, dict):
        raise ValueError(f"{path}: {name} must hold the options of a data set; got {options!r}.")
    dataset, split, image_ids = options.get("dataset", name), options.get("split", "test"), options.get("image_ids")
    if not isinstance(dataset, str) or dataset not in DATASETS:
        raise ValueError(f"{path}: {name}: {dataset!r} is no data set; known are {sorted(DATASETS)} (dataset: NAME).")
    if split not in SPLITS:
        raise ValueError(f"{path}: {name}: split must be one of {list(SPLITS)}; got {split!r}.")
    if not isinstance(image_ids, str | None):
        raise ValueError(f"{path}: {name}: image_ids must be the path of a file; got {image_ids!r}.")


def is_folder_name(name: object) -> bool:
    """Whether a name can be that of a folder within the output folder."""
    return isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) is not None and name not in (".", "..")


def find_sets(suite: Suite, data_root: Path | None) -> Plan:
    """
    The folder of each set: what its options say, or what is found under `data_root`.

    Raises:
        ValueError: for an option that the loader of a set does not have, or a value that it does not take.
    """
    plan = Plan()
    for name, options in suite.sets.items():
        record = DATASETS[options.get("dataset", name)]
        loader = {key: value for key, value in options.items() if key not in _OWN and value is not None}
        try:
            check_options(record.name, loader)
        except ValueError as error:
            raise ValueError(f"{suite.name}, {name}: {error}") from error
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
            found = find_folder(data_root, record, loader, name)
            if found.path:
                plan.found[name] = options | found.options | {"data_dir": str(found.path)}
            else:
                plan.skipped[name] = found.reason
    return plan


def _configuration(arguments: argparse.Namespace, suite: Suite, name: str, options: dict) -> EvaluationConfig:
    record = DATASETS[options.get("dataset", name)]
    chosen = {key: value for key, value in options.items() if key not in _OWN and value is not None}
    # The report's command names all: an evaluation of its own takes others from the first model's training.
    chosen = _defaults(record, options, arguments) | chosen
    own = {"dataset": record.name, "split": options.get("split", "test")}
    own |= {"image_ids": options.get("image_ids"), "protocol": suite.protocol or arguments.protocol}
    own |= {"output_dir": str(Path(arguments.output_dir) / name)}
    try:
        return configuration(argparse.Namespace(**vars(arguments) | own), [f"--data.options={json.dumps(chosen)}"])
    except ValueError as error:
        raise ValueError(f"{arguments.suite}, {name}: {error}") from error


def _defaults(record: DatasetRecord, options: dict, arguments: argparse.Namespace) -> dict:
    """The options, paths not among them, that a data set is read with where nothing is said."""
    given = {"num_images"} | (set() if arguments.seed is None else {"seed"})  # by the command line
    defaults = {key: value for key, value in record.options.items() if value is not None}
    folder = Path(options.get("data_dir") or "")
    if is_prepared(folder):
        defaults = {key: value for key, value in defaults.items() if value != ()} | _prepared_with(folder, record)
    return {key: value for key, value in defaults.items() if key not in (*record.path_options, *given)}


def _prepared_with(folder: Path, record: DatasetRecord) -> dict:
    try:
        before = preparation(folder)
    except ValueError:  # said when the set is loaded
        return {}
    kept = before["options"] if before["dataset"] == record.name else {}
    return {key: value for key, value in kept.items() if value is not None and key not in NOT_KEPT}


def _evaluate(done: SuiteResults, configs: dict[str, EvaluationConfig], output: Path) -> bool:
    """
    Evaluate each set, put its results, or why it has none, into `done`, and write that.

    Returns whether this is the first process.
    """
    from accelerate import PartialState

    names = list(configs)
    for number, (name, config) in enumerate(configs.items()):
        print(f"=== {name}")
        try:
            result = run_evaluation(config)
        except (ValueError, OSError) as error:
            if not PartialState().is_main_process:
                raise ValueError(f"{name}: {error}") from error
            result, done.failed[name] = None, str(error)
            print(f"{name} could not be evaluated: {error}")
        if not PartialState().is_main_process:
            continue
        rest = dict.fromkeys(names[number + 1 :], _STOPPED)
        if result is not None:
            done.results[name] = result
        stopped = result is None and PartialState().num_processes > 1  # the others wait for this one, or have ended
        if stopped:
            done.failed |= rest
        if done.results:
            _write(dataclasses.replace(done, failed=done.failed | rest), output)
        if stopped:
            break
    return PartialState().is_main_process


def _write(done: SuiteResults, output: Path) -> None:
    title, sections = done.title, suite_sections(done)
    replace_text(output / f"{PAGE}.html", as_html(title, sections))
    replace_text(output / f"{PAGE}.md", as_markdown(title, sections, output))
    replace_json(output / METRICS_FILE, suite_summary(done))


def _print(done: SuiteResults, output: Path) -> None:
    table = as_markdown(done.title, suite_sections(done), output)
    print(f"\n{table}\n{PAGE}.html, {PAGE}.md and {METRICS_FILE} are in {output}")


def _command(arguments: argparse.Namespace, suite: Suite, plan: Plan) -> list[tuple[str, object]]:
    """The options that name what was evaluated, and those that differ from their defaults."""
    options: list[tuple[str, object]] = [("suite", arguments.suite)]
    options += [("data_root", arguments.data_root)] if arguments.data_root else []
    options += [("model", model) for model in arguments.model]
    for option in dataclasses.fields(EvaluationConfig):
        if option.name in ("models", "output_dir", "data", *_OF_ONE_SET) or option.default is dataclasses.MISSING:
            continue
        value = getattr(arguments, option.name, option.default)
        if value != option.default and (option.name != "protocol" or suite.protocol is None):
            options.append((option.name, value))
    drawn = [options for name, options in plan.found.items() if options.get("dataset", name) == "synthetic"]
    if any("num_images" not in options for options in drawn):
        options.append(("num_images", arguments.num_images))
    if arguments.seed is not None:
        options.append(("seed", arguments.seed))
    return [*options, ("output_dir", arguments.output_dir)]
