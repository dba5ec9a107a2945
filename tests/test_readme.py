# Licensed under the Apache License, Version 2.0.
"""Every code block of the README is run: in a checkout, in this order, on small data, with a Hub of small models."""

import codeop
import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TEXT_CONFIGS, VISION_CONFIGS
from PIL import Image
from transformers import BertModel, Dinov2Model

from modeling_tier.data.columns import CHEXPERT_LABELS
from modeling_tier.data.synthetic import draw_studies, example_study
from tests.checkout import copy_checkout, model_files
from tests.data.trees import drawing, encoded, study, write_reports, write_table, write_tree
from tests.hub import Hub


pytestmark = [pytest.mark.xdist_group("readme"), pytest.mark.timeout(900)]  # one checkout for all

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
SHELL = [block for language, block in BLOCKS if language == "bash"]
PYTHON = [block for language, block in BLOCKS if language == "python"]

# What makes a command small or lets it end: (words of the README, words that are run). Each must be found.
TINY = "--training.epochs=1 --training.batch_size=4 --training.progress=false --training.mixed_precision=no"
SMALLER = [
    ("make demo", f'make demo ARGS="{TINY} --data.train.num_images=64 --data.validation.num_images=40"'),
    (
        "--evaluation.best_metric contrastive_loss",
        f"--evaluation.best_metric contrastive_loss {TINY} --data.num_workers=0",
    ),
    ("--num_images 300", "--num_images 60 --image_size 50"),
    ("runs/demo/comparison", "runs/demo/comparison --resamples 20 --data.options.num_images 60"),
    ("--num_processes 8 train.py", f"--num_processes 2 train.py {TINY} --data.num_workers=0"),
    ("--size 320 --num_proc 16", "--size 64 --num_proc 2"),
    ("/data/CheXpert-v1.0 \\\n", "/data/CheXpert-v1.0 --split test --resamples 20 \\\n"),
    ("hf auth login", "hf auth login --token hf_writer"),
    ("make test", "make --dry-run test"),
    ("make bench", "make --dry-run bench"),
    ("/data/", "data/"),  # no folder at the root of this machine
]
EPILOGUE = """
assert len(rows) == 1 and words["words"] == ["Small", "left", "pleural", "effusion"]
assert words["maps"].shape[0] == 4 and token_maps.shape[2:] == text_map.shape[1:]
assert combined.config.text_config.model_type == "bert"
assert clip_based.config.text_config.model_type == "clip_text_model"
own = text_image_entropy(
    out.token_embeds, out.patch_embeds, batch["attention_mask"], model.config.entropy_temperature
)
assert abs(float(out.loss) - float(out.contrastive_loss + 0.2 * own.token)) < 1e-5
assert abs(float(loss) - float(out.contrastive_loss + 0.2 * entropy.token + 0.1 * entropy.patch)) < 1e-5
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A checkout beside small data, whose .venv is the environment of these tests, and a Hub with three models."""
    folder = tmp_path_factory.mktemp("checkout")
    commands = copy_checkout(folder)
    write_mimic(folder / "data")
    write_chexpert(folder / "data/CheXpert-v1.0")
    with Hub(folder / "home") as hub:
        fill(hub, folder / "hub")
        checkout = folder, hub.environment | {"OMP_NUM_THREADS": "1", "PATH": f"{commands}:{os.environ['PATH']}"}
        run_block(SHELL[0], checkout)  # the demo, whose models the others use
        yield checkout


def write_mimic(folder: Path) -> None:
    rows = []
    for i in range(40):
        finding = ("Cardiomegaly", "Edema", "Pleural Effusion")[i % 3]
        report = f"FINAL REPORT\n IMPRESSION: {'No' if i % 2 else 'There is'} {finding.lower()}.\n"
        labels = {finding: "0.0" if i % 2 else "1.0"}
        split = "validate" if i % 4 == 0 else "train"
        rows.append(study(i, report=report, labels=labels, split=split, picture=drawing(60, 50, seed=i)))
    tree = write_tree(folder / "mimic-cxr-jpg", rows)
    reports = folder / "reports"
    write_reports(reports, rows)
    for report in tree.rglob("s*.txt"):
        report.unlink()
    shutil.make_archive(str(folder / "mimic-cxr-reports"), "zip", reports)


def write_chexpert(folder: Path) -> None:
    columns = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_LABELS)
    for split, table, first in (("valid", "valid.csv", 64540), ("test", "test_labels.csv", 64740)):
        rows = []
        for i in range(8):
            name = f"{split}/patient{first + i}/study1/view1_frontal.jpg"
            (folder / name).parent.mkdir(parents=True)
            (folder / name).write_bytes(encoded(drawing(50, 60, seed=first + i)))
            values = [float((i + j) % 2) for j in range(14)]
            about = ["Male", "60", "Frontal", "AP"] if split == "valid" else []
            rows.append([f"CheXpert-v1.0/{name}" if split == "valid" else name, *about, *values])
        write_table(folder / table, columns if split == "valid" else ("Path", *CHEXPERT_LABELS), rows)


def fill(hub: Hub, folder: Path) -> None:
    torch.manual_seed(0)
    models = {
        "openai/clip-vit-base-patch32": None,  # a small CLIPModel
        "facebook/dinov2-base": Dinov2Model(VISION_CONFIGS["dinov2"]),
        "google-bert/bert-base-uncased": BertModel(TEXT_CONFIGS["bert"]),
    }
    for name, model in models.items():
        hub.make(name, private=False)
        hub.files(name).update(model_files(folder / name, model))


def smaller(block: str) -> str:
    for words, instead in SMALLER:
        block = block.replace(words, instead)
    return block


def run(command: list[str], checkout) -> str:
    folder, environment = checkout
    process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-3000:]
    return process.stdout


def run_block(block: str, checkout) -> None:
    block = smaller(block)
    run(["bash", "-euo", "pipefail", "-c", block], checkout)
    for output in re.findall(r"--output_dir (\S+)", block):
        assert any((checkout[0] / output).iterdir()), output


def test_everything_that_is_made_smaller_stands_in_the_readme():
    for words, _ in SMALLER:
        assert any(words in block for block in SHELL), words


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(SHELL)))
def test_a_block_of_commands(checkout, number):
    if number == 0:
        assert "make demo" in SHELL[0] and (checkout[0] / "runs/demo/tier/model.safetensors").stat().st_size
    elif "app.py" in SHELL[number]:
        check_page(smaller(SHELL[number]), checkout)
    else:
        run_block(SHELL[number], checkout)


def check_page(block: str, checkout) -> None:
    folder, environment = checkout
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", f"{block.strip()} --port {port}"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed = []
        for line in process.stdout:
            printed.append(line)
            if "The page is at" in line:
                break
        else:
            pytest.fail("".join(printed))
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


@pytest.mark.slow
def test_the_blocks_of_python_one_after_the_other(checkout):
    folder, _ = checkout
    (folder / "blocks.py").write_text("\n".join([*PYTHON, EPILOGUE]), "utf-8")
    run(["python", "blocks.py"], checkout)
    assert Image.open(folder / "cardiomegaly.png").size == Image.open(ROOT / "docs/radiograph.png").size


@pytest.mark.slow
@pytest.mark.parametrize("page", ["training.md", "evaluation.md"])
def test_the_blocks_of_python_in_a_document(checkout, page):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    (checkout[0] / "blocks_of_a_document.py").write_text("\n".join(blocks), "utf-8")
    run(["python", "blocks_of_a_document.py"], checkout)


def test_the_example_radiograph_is_one_of_the_drawings():
    """The first one of the finer test split with a large heart, a left effusion and no other finding."""
    wanted = {("Cardiomegaly", None), ("Pleural Effusion", "left")}
    studies = draw_studies("test", 1000, 64, 0, "fine")
    study = next(study for study in studies if wanted == {(r.finding.name, r.side) for r in study.regions})
    example = example_study()
    assert example.image_id == study.image_id and example.report == study.report
    assert (np.asarray(Image.open(ROOT / "docs/radiograph.png")) == example.pixels).all()


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_a_block_of_python_can_be_pasted_into_an_interactive_session(page):
    """There, a compound statement ends with a blank line and has none within."""
    text = page.read_text("utf-8")
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        lines = []
        for line in [*block.splitlines(), ""]:
            lines.append(line)
            try:
                if codeop.compile_command("\n".join(lines), symbol="single"):
                    lines = []
            except SyntaxError as error:
                pytest.fail(f"{page.name}: a blank line is missing before, or too much in: {line!r} ({error})")
        assert "".join(lines) == "", lines


def test_there_is_no_block_of_another_kind_and_every_link_is_there():
    assert {language for language, _ in BLOCKS} == {"bash", "python"}
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page.name}: {link}"
