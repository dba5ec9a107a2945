# Licensed under the Apache License, Version 2.0.
# ruff: noqa: F811 (fixtures are arguments)
"""The notebook that goes to the Hub with a model, run cell by cell against a Hub on this machine."""

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from modeling_tier.hub.notebook import fill_notebook
from modeling_tier.publish import publish
from tests.test_publish import NAME, hub, run, saved  # noqa: F401


def test_the_notebook_is_a_valid_one_of_this_repository_and_branch():
    notebook = nbformat.reads(fill_notebook(NAME, "sharper").decode(), as_version=4)
    nbformat.validate(notebook)
    assert {cell.cell_type for cell in notebook.cells} == {"markdown", "code"}
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert f'NAME, REVISION = "{NAME}", "sharper"' in code and "{{" not in code and "```" not in code
    assert 'REVISION = "user/tiny-tier", "main"' in fill_notebook(NAME).decode().replace('\\"', '"')


@pytest.mark.slow
@pytest.mark.parametrize("own_pairs", [False, True])
def test_the_notebook_runs_in_an_empty_folder(own_pairs, run, hub, tmp_path, monkeypatch):
    publish(run, NAME)
    folder = tmp_path / "empty"
    folder.mkdir()
    if own_pairs:
        (folder / "pairs.csv").write_text("image,text\n" + "own.png,Small left pleural effusion.\n" * 3)
        Image.effect_noise((60, 50), 64).save(folder / "own.png")
    for name, value in (hub.environment | {"HF_TOKEN": "hf_writer"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    notebook = nbformat.reads(hub.files(NAME)["notebook.ipynb"].decode(), as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "left pleural effusion" in printed and "epoch 1: loss" in printed and "largest cosine" in printed
    images = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(images) == 2  # the radiograph, and a map over it
    assert (folder / "fine-tuned" / "pipeline_tier.py").is_file()
