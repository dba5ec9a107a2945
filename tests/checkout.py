# Licensed under the Apache License, Version 2.0.
"""A checkout of this project, and small models in the files of the Hub, for the tests of what the documents say."""

import shutil
import subprocess
import sys
from pathlib import Path

from conftest import IMAGE_SIZE, TEXT_CONFIGS, VISION_CONFIGS
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedModel

from modeling_tier.training.building import train_tokenizer


ROOT = Path(__file__).parents[1]


def copy_checkout(folder: Path) -> Path:
    """The folder of the commands of its .venv, which is the environment of these tests."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    commands = folder / ".venv/bin"
    commands.mkdir(parents=True)
    for name, words in {
        "python": "",
        "accelerate": "-m accelerate.commands.accelerate_cli",
        "hf": "-m huggingface_hub.cli.hf",
    }.items():
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (commands / name).chmod(0o755)
    (commands / "activate").write_text(f'PATH="{commands}:$PATH"\n')
    (folder / ".venv/.installed").touch()
    return commands


def model_files(folder: Path, model: PreTrainedModel | None = None) -> dict[str, bytes]:
    """The files of a model with a tokenizer and an image processor; by default of a small CLIPModel."""
    tokenizer = train_tokenizer(["There is no finding 0 1 2 3 4 5 6 7 8 9. Cardiomegaly, edema, effusion"], 200)
    if model is None:
        ids = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
        text = TEXT_CONFIGS["clip"].to_dict() | ids | {"vocab_size": len(tokenizer), "max_position_embeddings": 77}
        vision = VISION_CONFIGS["clip"].to_dict()
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=size).save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}
