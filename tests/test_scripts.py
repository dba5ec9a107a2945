# Licensed under the Apache License, Version 2.0.
"""What the scripts' `--help` says is true, and what they import is there."""

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import evaluate_zeroshot
import search_lambdas
import train
from modeling_tier import evaluation
from modeling_tier.data import SPLITS
from modeling_tier.training import search
from modeling_tier.training.configuration import load_config
from modeling_tier.training.options import TrainConfig


ROOT = Path(__file__).parents[1]


def test_the_options_that_help_shows_have_these_defaults():
    shown = re.findall(r"^    --(\S+) (\S+)  ", train.__doc__, re.MULTILINE)
    assert len(shown) > 10
    default = TrainConfig()
    given = load_config(ROOT / "configs" / "demo.yaml", [word for o, v in shown for word in (f"--{o}", v)])
    for option, _ in shown:
        values = []
        for config in (given, default):
            for name in option.split("."):
                config = getattr(config, name)
            values.append(config)
        assert values[0] == values[1], option


def test_choices_that_help_shows_are_those_of_the_package():
    assert search_lambdas.METHODS == search.METHODS
    assert evaluate_zeroshot.SPLITS == SPLITS
    for name in ("DTYPES", "LABEL_POLICIES", "PROTOCOLS"):
        assert getattr(evaluate_zeroshot, name) == tuple(getattr(evaluation, name))


@pytest.mark.parametrize("folder", ["benchmarks", "docs"])
def test_what_a_script_imports_of_this_project_is_there(folder):
    """Nothing else runs these for minutes, and a name that moved would be missed by whoever runs them next."""
    ours, checked = {"modeling_tier", "demo", "train", "evaluate_zeroshot", "search_lambdas", "page"}, 0
    for script in sorted((ROOT / folder).glob("*.py")):
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module.split(".")[0] in ours:
                module = importlib.import_module(node.module)
                for alias in node.names:
                    is_there = hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}")
                    assert is_there, f"{script.name}: {node.module} has no {alias.name}"
                    checked += 1
    assert checked


@pytest.mark.slow
def test_no_command_begins_with_advice_of_transformers():
    """Such as to install torchvision, which is not needed."""
    modules = "modeling_tier.training.building, modeling_tier.conversion, modeling_tier.evaluation.run, page.layout"
    done = subprocess.run([sys.executable, "-c", f"import {modules}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "transformers" not in done.stderr, done.stderr


@pytest.mark.parametrize("script", ["train.py", "evaluate_zeroshot.py"])
def test_a_script_names_what_it_needs_for_uv(script):
    """PEP 723: the dependencies are this project itself, so that pyproject.toml stays the one list of them."""
    lines = (ROOT / script).read_text(encoding="utf-8").splitlines()
    start = lines.index("# /// script")
    block = lines[start + 1 : lines.index("# ///", start)]
    header = tomllib.loads("\n".join(line.removeprefix("#").removeprefix(" ") for line in block))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (requirement,) = map(Requirement, header["dependencies"])
    assert requirement.name == project["name"] and requirement.extras <= set(project["optional-dependencies"])
    assert header["requires-python"] == project["requires-python"]
    assert (ROOT / header["tool"]["uv"]["sources"][project["name"]]["path"] / "pyproject.toml").is_file()
