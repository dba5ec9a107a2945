# Licensed under the Apache License, Version 2.0.
"""The notebook that goes to the Hub with a model, and the drawing of a radiograph that its examples read."""

import functools
import io
import json
import re
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from PIL import Image

from ..data.synthetic import example_study


NOTEBOOK = "notebook.ipynb"
RADIOGRAPH = "radiograph.png"
TEMPLATE = Path(__file__).with_name("notebook.md")


def fill_notebook(repo_id: str, revision: str | None = None) -> bytes:
    """
    `notebook.ipynb`: pull the model, findings, maps, fine-tuning. In the template, blocks of Python become cells of
    code, and the text between them cells of Markdown.
    """
    template = Environment(undefined=StrictUndefined).from_string(TEMPLATE.read_text(encoding="utf-8"))
    text = template.render(repo_id=repo_id, title=repo_id.rpartition("/")[2], revision=json.dumps(revision or "main"))
    parts = re.split(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)  # Markdown and Python by turns
    cells = [_cell("code" if i % 2 else "markdown", part.strip("\n"), f"cell-{i}") for i, part in enumerate(parts)]
    cells = [cell for cell in cells if cell["source"]]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    notebook = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return (json.dumps(notebook, indent=1, ensure_ascii=False) + "\n").encode()


def _cell(kind: str, text: str, name: str) -> dict:
    cell = {"cell_type": kind, "id": name, "metadata": {}, "source": text.splitlines(keepends=True)}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


@functools.cache
def example_radiograph() -> bytes:
    """A PNG file: [`example_study`]."""
    file = io.BytesIO()
    Image.fromarray(example_study().pixels).save(file, "PNG")
    return file.getvalue()
