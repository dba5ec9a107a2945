# Licensed under the Apache License, Version 2.0.
"""The folder of a Space: its metadata, what it asks for, and that it starts and answers by itself."""

import ast
import os
import pickle
import re
import subprocess
import sys
import tomllib
import types
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from gradio_client import Client, handle_file
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import app
from page import build_page, launch, layout, write_space, zero_gpu
from tests.page.fixtures import Server, Visitor


pytest_plugins = ["tests.page.fixtures"]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio")

ROOT = Path(app.__file__).parent
REQUIREMENTS = [line for line in (ROOT / "page/requirements.txt").read_text().splitlines() if not line.startswith("#")]


def test_what_it_asks_for_are_ranges_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = [
        *project["dependencies"],
        *(line for lines in project["optional-dependencies"].values() for line in lines),
    ]
    assert set(REQUIREMENTS) <= set(known)
    names = {Requirement(line).name for line in REQUIREMENTS}
    assert {Requirement(line).name for line in project["dependencies"]} <= names
    assert not names & {"pytest", "ruff", "mypy", "gradio"}, "the Space's sdk_version installs gradio"


@pytest.mark.slow
def test_what_the_page_imports_is_asked_for():
    """In a process of its own: the modules of this repository that the page loads, and what stands at their tops."""
    code = "import sys, page; print(*(m.__file__ for n, m in sys.modules.items() if n.split('.')[0] in NAMES))"
    code = code.replace("NAMES", "('page', 'modeling_tier')")
    files = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    imported = set()
    for file in files.split():
        for node in ast.parse(Path(file).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
    distributions = packages_distributions()
    names = {canonicalize_name(name) for module in imported for name in distributions.get(module, [])}
    asked = {canonicalize_name(Requirement(line).name) for line in REQUIREMENTS}
    assert {"datasets", "matplotlib"} <= names and names - asked <= {
        "gradio",
        "starlette",
        "tokenizers",
        "modeling-tier",
    }


def test_the_readme_has_what_the_hub_reads(tmp_path):
    write_space(tmp_path / "space", ["user/clip", "user/tier"])
    text = (tmp_path / "space/README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["sdk"] == "gradio" and re.fullmatch(r"6\.\d+\.\d+", head["sdk_version"])
    assert head["python_version"] == "3.12" and head["app_file"] == "app.py"
    assert head["models"] == head["preload_from_hub"] == ["user/clip", "user/tier"]
    assert len(head["short_description"]) <= 60
    assert "Not a medical device" in text


@pytest.mark.parametrize(
    "models, message", [([], "No model is given"), (["runs/demo/tier/x"], "not the name"), (["tier"], "not the name")]
)
def test_only_models_of_the_hub_can_be_shown(tmp_path, models, message):
    with pytest.raises(ValueError, match=message):
        write_space(tmp_path / "space", models)
    assert not (tmp_path / "space").exists()


def test_a_folder_on_this_machine_is_not_a_model_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / "runs/tier").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="runs/tier is not the name of a model on the Hub: publish it"):
        write_space(tmp_path / "space", ["runs/tier"])


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="is not an empty folder"):
        write_space(tmp_path, ["user/tier"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_it_starts_and_answers_from_its_folder_alone(tmp_path, page_models, radiograph, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["app.py", "--model", "user/tier", "--write_space", str(tmp_path / "space")])
    app.main()
    assert f"hf upload user/space {tmp_path / 'space'} --repo-type space" in capsys.readouterr().out
    page_models["tier"].save_pretrained(tmp_path / "space/user/tier")  # stands for what the Hub would give
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TIER_MODELS")}
    environment |= {"SPACE_ID": "user/space", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "app.py"]
    with subprocess.Popen(
        command, cwd=tmp_path / "space", env=environment | {"PYTHONPATH": "."}, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            line = next(line for line in process.stdout if "The page is at" in line)
            client = Client(re.search(r"http://\S+", line)[0], verbose=False)
            rows = client.predict(image=handle_file(radiograph), findings=["left effusion"], api_name="/scores")
        finally:
            process.terminate()
    (expected,) = page_models["tier"](str(radiograph), findings=["left effusion"])
    assert [(row["model"], row["finding"]) for row in rows] == [("tier", "left effusion")]
    assert rows[0]["score"] == pytest.approx(expected["score"], abs=1e-6)


def test_on_zero_gpu_what_travels_to_the_gpu_is_pickled_and_the_models_are_not(
    page_models, radiograph, tmp_path, monkeypatch
):
    """A stand-in for the package `spaces`: arguments and results go through pickle, as between its processes."""
    calls = []

    def gpu(function, duration):
        def called(*arguments):
            sent = pickle.dumps(arguments)
            calls.append((function.__name__, duration, len(sent)))
            return pickle.loads(pickle.dumps(function(*pickle.loads(sent))))

        return called

    monkeypatch.setattr(zero_gpu, "ON_ZERO_GPU", True)
    monkeypatch.setattr(zero_gpu, "spaces", types.SimpleNamespace(GPU=gpu), raising=False)
    monkeypatch.setattr(layout, "move_to_gpu", lambda models: zero_gpu.move_to_gpu(models, "cpu"))
    page = build_page(page_models)
    assert not calls, "no GPU is asked for while the page is built: nobody has asked anything yet"
    _, address, _ = launch(page)
    try:
        client = Client(address, verbose=False)
        rows = client.predict(image=handle_file(radiograph), findings=["left effusion"], api_name="/scores")
        visitor = Visitor(Server(page, address, tmp_path))
        shown = visitor.take(visitor.upload(radiograph.read_bytes()).json()[0])
    finally:
        page.close()
    assert [row["score"] for row in rows] == pytest.approx(
        [read(str(radiograph), findings=["left effusion"])[0]["score"] for read in page_models.values()], abs=1e-6
    )
    assert shown["alert"] == "" and "left effusion" in shown["scores"]
    assert {name for name, *_ in calls} == {"findings_of", "words_of"}
    assert all(duration == zero_gpu.MAX_SECONDS and size < 100_000 for _, duration, size in calls)
