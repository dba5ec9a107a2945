# Licensed under the Apache License, Version 2.0.
"""The folder of a Space that shows models of the Hub by this page."""

import shutil
from importlib.metadata import version
from pathlib import Path

import jinja2
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

import modeling_tier


MODELS_FILE = "models.txt"

_ROOT = Path(__file__).resolve().parents[1]
_NOT_COPIED = shutil.ignore_patterns("__pycache__", "*.pyc")


def write_space(folder: Path, models: list[str]) -> None:
    """
    Write a folder that can be pushed to a Space as it is: the page, this package, what it needs, and a README with the
    Space's metadata.

    Args:
        folder: a new or empty folder.
        models: names on the Hub.

    Raises:
        ValueError: if there is no model, one is not a name on the Hub, or the folder holds something.
    """
    if not models:
        raise ValueError("No model is given: name those that the Space shows, --model user/name.")
    for name in models:
        _check_name(name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not an empty folder: remove it, or name another one.")
    shutil.copytree(_ROOT / "page", folder / "page", ignore=_NOT_COPIED)
    shutil.copytree(Path(modeling_tier.__file__).parent, folder / "modeling_tier", ignore=_NOT_COPIED)
    shutil.copy(_ROOT / "app.py", folder)
    shutil.move(folder / "page" / "requirements.txt", folder)
    (folder / MODELS_FILE).write_text("".join(f"{name}\n" for name in models), encoding="utf-8")
    readme = jinja2.Template((_ROOT / "page" / "space.md").read_text(encoding="utf-8"), trim_blocks=True)
    (folder / "README.md").write_text(readme.render(gradio=version("gradio"), models=models) + "\n", encoding="utf-8")


def _check_name(name: str) -> None:
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"{name} is not the name of a model on the Hub: publish it, then use user/name.") from error
    if name.count("/") != 1 or Path(name).exists():
        raise ValueError(f"{name} is not the name of a model on the Hub: publish it, then use user/name.")
