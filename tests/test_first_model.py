# Licensed under the Apache License, Version 2.0.
"""docs/first_model.md and `make real`, beside stand-ins for the Hub and the National Library of Medicine."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image

from modeling_tier.data.synthetic import draw_studies, write_openi_tree
from modeling_tier.data.synthetic.pairs import mask_box
from tests.checkout import copy_checkout, model_files
from tests.data.nih_parquet import CLASSES, row, write
from tests.data.openi_archives import pack, serving
from tests.data.trees import encoded
from tests.hub import serve_all


pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("first_model"), pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/first_model.md").read_text("utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
IMAGES = 40  # of each data set
SMALL = "--training.epochs 1 --training.batch_size 8 --training.progress false --freeze.text_layers 1"
ON_A_PROCESSOR = "--data.num_workers 0 --training.mixed_precision no"
# What makes a command small, or lets it find the stand-ins; each must be in the page.
SMALLER = [
    ("download openi data/openi", "download openi data/openi --address $OPENI"),
    ("--num_proc 4", "--num_proc 2 --size 64"),
    (
        "--data_dir data/openi-320\n",
        f"--data_dir data/openi-320 {SMALL} --data.num_workers 0 --training.mixed_precision no\n",
    ),
    ("--num_workers 4", "--resamples 20"),
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A checkout, and the environment of commands that find two data sets and two models there."""
    folder = tmp_path_factory.mktemp("checkout")
    commands = copy_checkout(folder)
    torch.manual_seed(0)
    repositories = {
        ("models", f"openai/clip-vit-base-patch{size}"): model_files(folder / f"hub/clip{size}") for size in (16, 32)
    }
    write_openi_tree(folder / "hub/openi", IMAGES, 64)
    (folder / "hub/nlm").mkdir()
    for name, part, inside in (
        ("NLMCXR_reports.tgz", "ecgen-radiology", "ecgen-radiology/"),
        ("NLMCXR_png.tgz", "images", "./"),
    ):
        files = sorted((folder / "hub/openi" / part).iterdir())
        pack(folder / "hub/nlm" / name, {f"{inside}{path.name}": path.read_bytes() for path in files})
    repositories["datasets", "timm/nih-chest-xray-14"] = radiographs(folder / "hub/nih")
    with serving(folder / "hub/nlm") as (_, address), serve_all(repositories, folder / "home") as (environment, asked):
        places = {"OPENI": address, "PATH": f"{commands}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        yield folder, environment | places, asked


def radiographs(folder: Path) -> dict[str, bytes]:
    """Drawings as rows of timm/nih-chest-xray-14, in two splits."""
    for number, split in enumerate(("train", "test")):
        rows = []
        for i, study in enumerate(draw_studies("test" if number else "train", IMAGES, 128, 0)):
            names = [finding.name.removeprefix("Pleural ") for finding in study.findings]
            boxes = []
            for region in study.regions:
                x_min, y_min, x_max, y_max = (8.0 * float(corner) for corner in mask_box(region.mask))
                name = region.finding.name.removeprefix("Pleural ")
                if name in CLASSES:
                    boxes.append({"label": name, "bbox": [x_min, y_min, x_max - x_min, y_max - y_min]})
            picture = {"bytes": encoded(Image.fromarray(study.pixels)), "path": None}
            known = [name for name in dict.fromkeys(names) if name in CLASSES]
            rows.append(row(i, 10_000 * number + study.subject_id % 10_000, known, boxes, image=picture))
        write(folder, rows, split)
    return {f"data/{path.name}": path.read_bytes() for path in (folder / "data").iterdir()}


def run(command: str, checkout) -> str:
    folder, environment, _ = checkout
    process = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-3000:]
    return process.stdout


def check_report(folder: Path, images: int) -> None:
    numbers = json.loads((folder / "metrics.json").read_text())
    assert numbers["metrics"]["num_images"] == images and numbers["metrics"]["localisation"]["pointing_game"]
    assert {"Cardiomegaly", "Effusion"} <= set(numbers["metrics"]["auroc"])
    assert (folder / "report.html").stat().st_size > 100_000
    assert min(Image.open(folder / "figures/similarity_maps.png").size) > 500, "maps over pictures"
    assert len((folder / "image_ids.txt").read_text().split()) == images


def test_the_blocks_of_the_page(checkout):
    folder, _, asked = checkout
    for words, _ in SMALLER:
        assert sum(words in block for block in BLOCKS) == 1, words
    assert len(BLOCKS) == 4, "four commands"
    for block in BLOCKS:
        for words, instead in SMALLER:
            block = block.replace(words, instead)
        run(block, checkout)
    summary = json.loads((folder / "data/openi-320/summary.json").read_text())
    assert set(summary["shards"]) == {"train", "validation", "test"}
    check_report(folder / "runs/openi/chestxray14", IMAGES)
    assert not any(name.startswith("data/train") for name in asked), "of ChestX-ray14 the test split alone"


def test_make_real(checkout):
    folder, _, _ = checkout
    run(f'make real IMAGES=30 OPENI="--address $OPENI" ARGS="{SMALL}"', checkout)
    assert len(list((folder / "runs/real/openi/images").iterdir())) == 30
    check_report(folder / "runs/real/report", 30)
