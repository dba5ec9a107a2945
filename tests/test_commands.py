# Licensed under the Apache License, Version 2.0.
"""Every command answers `--help` and a mistyped option before it imports torch, transformers or datasets."""

import argparse
import inspect
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from modeling_tier.convert.sources import SOURCES
from modeling_tier.data import DATASETS, SPLITS, columns, mimic_cxr, openi_download, prepare, sections
from modeling_tier.data.command import LAYOUTS
from tier_cli.commands import conversion, data


ROOT = Path(__file__).parents[1]
SLOW = {"torch", "torchvision", "transformers", "datasets", "accelerate", "gradio", "onnxruntime"}

# run.py of an exported folder, which needs onnxruntime to be a command at all
NO_COMMANDS = {"modeling_tier/convert/run_onnx.py"}


def commands() -> dict[str, list[str]]:
    """By the words that a person types, the arguments of Python."""
    found = {}
    for path in [*ROOT.glob("*.py"), *ROOT.glob("[!.t]*/**/*.py")]:
        name = path.relative_to(ROOT).as_posix()
        if 'if __name__ == "__main__":' not in path.read_text(encoding="utf-8") or name in NO_COMMANDS:
            continue
        if name.startswith(("modeling_tier/", "docs/")):
            module = name.removesuffix(".py").removesuffix("/__main__").replace("/", ".")
            found[f"python -m {module}"] = ["-m", module]
        else:
            found[f"python {name}"] = [name]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name, target in project["scripts"].items():
        module, function = target.split(":")
        found[name] = ["-c", f"import sys, {module}; sys.argv[0] = {name!r}; {module}.{function}()"]
    return found


COMMANDS = commands()
SUBCOMMANDS = {
    f"python -m modeling_tier.{words}": ["-m", *f"modeling_tier.{words}".split()]
    for words in ("data synthetic", "data prepare openi", "conversion biovil")
}
OF_DEVELOPERS = ("python benchmarks/", "python studies/")


def run(*arguments: str) -> tuple[subprocess.CompletedProcess, set[str]]:
    """What Python did, and which of the slow packages it imported."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    lines = done.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    done.stderr = "\n".join(line for line in lines if not line.startswith("import time:"))
    return done, imported & SLOW


def test_every_command_is_found():
    assert {"python train.py", "python -m modeling_tier.data", "tier-prepare", "python studies/growth.py"} <= set(
        COMMANDS
    )
    assert {"python benchmarks/model_zoo.py", "python -m modeling_tier.publish"} <= set(COMMANDS)
    assert len(COMMANDS) > 35


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, marks=pytest.mark.slow if words.startswith(OF_DEVELOPERS) else ())
        for words in (*COMMANDS, *SUBCOMMANDS)
    ],
)
def test_help_imports_nothing_slow_and_shows_an_example(words):
    done, imported = run(*(COMMANDS | SUBCOMMANDS)[words], "--help")
    assert (done.returncode, done.stderr, imported) == (0, "", set())
    command = re.escape(words.removeprefix("python "))
    started = r"(\w+=\d+ )?(accelerate launch|python) " if words.startswith("python") else ""
    command = command.replace("tier\\-prepare", "tier\\-data prepare")  # which is the same
    assert re.search(rf"^ +{started}{command}\b", done.stdout, re.MULTILINE)
    if words.startswith("tier-"):  # no file of a checkout
        assert not re.search(r"python -m|(python|launch) \w+\.py|--config configs/", done.stdout)
    assert "default: None" not in done.stdout and "%(" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.py", "--training.epoch", "3"], "Unknown option --training.epoch. Did you mean --training.epochs?"),
        (["train.py", "--optimiser.lr", "3"], "Unknown option --optimiser.lr. Did you mean --optimizer.lr?"),
        (["demo.py", "--outputdir", "x"], "Unknown option --outputdir. Did you mean --output_dir?"),
        (["evaluate_zeroshot.py", "--batchsize", "3"], "Unknown option --batchsize. Did you mean --batch_size?"),
        (["search_lambdas.py", "--trails", "3"], "Unknown option --trails. Did you mean --trials?"),
        (["app.py", "--prot", "1"], "unrecognized arguments: --prot 1"),
        (["-m", "modeling_tier.data", "synthetic", "x", "--layout", "tree"], "invalid choice: 'tree'"),
        (["-m", "modeling_tier.data", "prepare", "opem"], "invalid choice: 'opem'"),
        (["-m", "modeling_tier.export", "runs/tier"], "required: output_dir"),
        (["-m", "modeling_tier.conversion", "clip", "x"], "required: --model"),
        (["-m", "modeling_tier.publish", "runs/tier"], "name a model's folder and its name on the Hub"),
        (["benchmarks/loader.py", "--num"], "unrecognized arguments: --num"),
        (["studies/growth.py", "--rows", "CLIPP"], "invalid choice: 'CLIPP'"),
    ],
)
def test_a_mistyped_option_is_answered_before_anything_slow_is_imported(arguments, message):
    done, imported = run(*arguments)
    assert done.returncode in (1, 2) and message in done.stderr and not imported


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (action,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return action.choices


def shown_options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {action.dest: action for action in parser._actions if action.option_strings and action.dest != "help"}


def test_options_of_conversion_are_those_of_the_converters():
    parsers = subparsers(conversion._parser())
    assert list(parsers) == list(SOURCES)
    for name, source in SOURCES.items():
        options = shown_options(parsers[name])
        assert list(options) == list(source.defaults)
        for option, default in source.defaults.items():
            assert options[option].required == (default is inspect.Parameter.empty)
            assert options[option].required or options[option].default == default
            assert option == "image_options" or options[option].help == source.options[option]
        assert f"Reads {source.reads}. Writes {source.writes}." in parsers[name].description


def test_options_of_prepare_are_those_of_the_loaders():
    commands = subparsers(data._parser())
    layouts = shown_options(commands["synthetic"])["layout"].choices
    assert layouts == [*LAYOUTS, "mimic_cxr"]
    assert shown_options(commands["download"])["address"].default == openi_download.ADDRESS
    parsers = subparsers(commands["prepare"])
    assert set(parsers) == set(DATASETS) - {"synthetic"}
    for name in set(parsers) - {"mimic_cxr"}:
        options, record = shown_options(parsers[name]), DATASETS[name]
        for option, default in record.options.items():
            if option not in ("data_dir", "streaming"):
                assert options[option].help.endswith(f"(default: {'none' if default in (None, ()) else default})")
        assert tuple(options["splits"].choices) == SPLITS and record.title.lower() in parsers[name].description.lower()
    of_mimic = shown_options(parsers["mimic_cxr"])
    choices = {"section": sections.SECTIONS, "split_by": mimic_cxr.SPLIT_RULES, "views": columns.VIEWS}
    for option, allowed in (choices | {"labeler": mimic_cxr.LABELERS}).items():
        assert tuple(of_mimic[option].choices) == allowed
    signature = inspect.signature(prepare.prepare).parameters
    assert all(
        of_mimic[name].default == signature[name].default for name in set(of_mimic) - {"data_dir", "output_dir"}
    )


REGISTERED = """
import sys
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
print("tier" in CONFIG_MAPPING, sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "package.registered", "modeling_tier.data"],  # its __init__.py imports modeling_tier
        ["-mpackage.registered"],
        ["-m", "runpy", "package.registered"],
        ["-m", "accelerate.commands.launch", "--cpu", "-m", "package.registered"],
        ["-c", "import modeling_tier.data, package.registered"],
    ],
)
def test_import_registers_tier_in_programs_of_others(arguments, tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("import modeling_tier\n")
    (tmp_path / "package" / "registered.py").write_text(REGISTERED)
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0 and done.stdout.startswith("True"), done.stderr


@pytest.mark.slow
def test_a_command_registers_tier_before_it_works():
    code = (
        "import sys; from tier_cli.commands import work_of; work_of('modeling_tier.files');"
        "from transformers.models.auto.configuration_auto import CONFIG_MAPPING; assert 'tier' in CONFIG_MAPPING"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=200).returncode == 0


@pytest.mark.parametrize(
    "words", [["--suite=suite.yaml"], ["--suite", "configs/suite.yaml"], ["--suite", "none.yaml"]]
)
def test_an_installed_command_finds_the_suite_that_was_installed(words, tmp_path):
    """From a folder without it: the data are looked for next, which are not there."""
    script = "import sys, tier_cli; sys.argv[0] = 'tier-evaluate'; tier_cli.evaluate()"
    more = ["--model", "nothing", "--data_root", str(tmp_path), "--output_dir", str(tmp_path / "report")]
    done = subprocess.run(
        [sys.executable, "-c", script, *words, *more],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert ("There is no suite none.yaml" in done.stderr) == (words[-1] == "none.yaml")
    assert ("could not be evaluated" in done.stderr) == (words[-1] != "none.yaml")
