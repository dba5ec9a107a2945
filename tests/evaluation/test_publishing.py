# Licensed under the Apache License, Version 2.0.
"""The metrics as other people get them: one file from a Space of the Hub, or from a folder without a network."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import SpaceCard

import modeling_tier.evaluation
from tests.hub import serve


METRICS = Path(modeling_tier.evaluation.__file__).parent / "metrics"
NAMES = ["phrase_grounding", "retrieval_recall", "zeroshot_auroc"]
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}  # those that a Space may have

# Runs an example where there is no package but what the metric may need, and no network but this machine (or none).
RUN = """
import doctest
import socket
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in ("modeling_tier", "sklearn", "torch", "transformers"):
            raise ModuleNotFoundError(name)


sys.meta_path.insert(0, Missing())
connect = socket.socket.connect


def connect_here(self, address):
    if sys.argv[2] == "nowhere" or address[0] != "127.0.0.1":
        raise OSError(f"a connection to {address}")
    return connect(self, address)


socket.socket.connect = connect_here
failed, attempted = doctest.testfile(sys.argv[1], module_relative=False)
sys.exit(failed or not attempted)
"""


def run_example(example, folder, environment, connections):
    """The example of a card in a process of its own, in an empty folder."""
    (folder / "example.txt").write_text(example, encoding="utf-8")
    environment = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(folder / "home"), "HF_UPDATE_DOWNLOAD_COUNTS": "0", "USE_TORCH": "0"}
    return subprocess.run(
        [sys.executable, "-c", RUN, "example.txt", connections],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


def example_of(name):
    (example,) = re.findall(r"```python\n(.*?)```", (METRICS / name / "README.md").read_text("utf-8"), re.DOTALL)
    assert f'evaluate.load("user/{name}")' in example
    return example


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_the_card_is_true_of_a_space_of_the_hub(name, tmp_path):
    files = {path.name: path.read_bytes() for path in (METRICS / name).iterdir() if path.is_file()}
    with serve("spaces", f"user/{name}", files, tmp_path / "home") as (environment, asked):
        result = run_example(example_of(name), tmp_path, environment, "here")
    assert result.returncode == 0, result.stdout + result.stderr
    assert set(asked) == {f"{name}.py"}


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_the_card_is_true_of_the_folder_without_a_network(name, tmp_path):
    example = example_of(name).replace(f"user/{name}", str(METRICS / name))
    result = run_example(example, tmp_path, os.environ | {"HF_EVALUATE_OFFLINE": "1"}, "nowhere")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_one_of_a_space(name):
    data = SpaceCard.load(METRICS / name / "README.md", ignore_metadata_errors=False).data
    assert data.sdk == "static" and data.pinned is False and data.license == "apache-2.0"
    assert data.title and data.emoji and {data.colorFrom, data.colorTo} <= COLOURS
    assert data.tags == ["evaluate", "metric"] and data.to_dict()["description"].endswith(".")


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_needs_no_more_than_evaluate_and_numpy(name):
    """`evaluate` reads the imports of a file line by line: one name a line, and nothing beside the file itself."""
    tree = ast.parse((METRICS / name / f"{name}.py").read_text("utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert all(isinstance(node, ast.Import) and len(node.names) == 1 for node in imports)
    assert {node.names[0].name for node in imports} <= {"datasets", "evaluate", "numpy"}


@pytest.mark.parametrize("name", NAMES)
def test_a_card_names_everything_that_its_metric_takes_and_gives(name):
    module = (METRICS / name / f"{name}.py").read_text("utf-8")
    card = (METRICS / name / "README.md").read_text("utf-8")
    inputs, outputs = re.search(r'_INPUTS = """\nArgs:\n(.*?)Returns:\n(.*?)"""', module, re.DOTALL).groups()
    for argument in re.findall(r"^    (\w+):", inputs, re.MULTILINE):
        assert f"`{argument}`" in card or f"{argument}=" in example_of(name), argument
    for line in re.findall(r"^    (\S.*?)(?: for each k)?: |^    (r@k) for", outputs, re.MULTILINE):
        for result in "".join(line).split(", "):
            assert f"`{result}`" in card or (result.endswith("_interval") and "`*_interval`" in card), result


def test_code_of_two_metrics_is_the_same_in_both():
    """Each is one file without a package, so that the bootstrap of means stands in both."""
    sources = []
    for name in ("phrase_grounding", "retrieval_recall"):
        module = (METRICS / name / f"{name}.py").read_text("utf-8")
        functions = {node.name: node for node in ast.parse(module).body if isinstance(node, ast.FunctionDef)}
        sources.append(ast.get_source_segment(module, functions["_intervals"]))
    assert sources[0] == sources[1]
