# Licensed under the Apache License, Version 2.0.
"""The command: what it writes, says and refuses, and what comes of it in another process."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hub import serve
from PIL import Image
from published import (
    ROOT,
    TEXTS,
    BiomedClip,
    BiovilImage,
    Gloria,
    cxr_bert,
    randomize,
    siglip_folder,
    write_bert,
    write_biomedclip,
)

from modeling_tier import TierProcessor, conversion
from modeling_tier.convert.biovil import BIOVIL_IMAGE_FILE, CXR_BERT
from modeling_tier.evaluation import load_model


pytest_plugins = ["tests.convert.fixtures"]


def run(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["conversion", *map(str, arguments)])
    conversion.main()


def test_the_command_tells_what_it_did(biovil_files, tmp_path, monkeypatch, capsys):
    output, files = tmp_path / "deep" / "model", biovil_files[2]
    output.mkdir(parents=True)  # empty, so it may be used
    arguments = [f"--{name}={value}" for name, value in files.items()]
    run(monkeypatch, "biovil", output, *arguments, "--image_options", "{size: {shortest_edge: 256}, crop_size: 224}")
    printed = capsys.readouterr().out
    assert (
        re.search(r"encoder.encoder.fc.weight: .*ImageNet", printed) and "cls.predictions.decoder.weight: " in printed
    )
    assert "logit_scale" in printed and "image.pt" in printed and str(tmp_path / "cxr-bert") not in printed
    content = json.loads((output / "conversion.json").read_text())
    assert content["source"] == "biovil" and content["files"][0]["name"] == "image.pt"
    assert content["unused"].keys() >= {"encoder.encoder.fc.weight", "bert.embeddings.position_ids"}
    assert content["torch"] == torch.__version__ and "transformers" in content
    assert str(tmp_path) not in json.dumps(content)
    assert os.listdir(output.parent) == ["model"] and output.stat().st_mode & 0o777 == 0o777 & ~umask()
    model, processor = load_model(str(output))
    assert processor(images=Image.new("L", (300, 400)))["pixel_values"].shape == (1, 3, 224, 224)
    expected, _ = conversion.biovil(**files)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def test_a_folder_that_is_not_empty_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("keep me")
    for output in (tmp_path / "model", tmp_path / "model" / "notes.txt"):
        with pytest.raises(SystemExit, match="error: .* is not an empty folder"):
            run(monkeypatch, "openai", output, "--model", "model.pt")
    assert (tmp_path / "model" / "notes.txt").read_text() == "keep me"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image_options", "[1, 2]"], "must be a mapping"),
        (["--image_options", "{a: ]"], "expected"),
        (["--image_options", "{image_meen: 1}"], "image_meen"),
        (["--image_model", "/nowhere.pt"], "no file /nowhere.pt"),
    ],
)
def test_errors_of_the_command_are_one_line_and_leave_nothing(biovil_files, tmp_path, monkeypatch, options, message):
    before = sorted(os.listdir(tmp_path))
    arguments = [f"--{name}={value}" for name, value in biovil_files[2].items()]
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "biovil", tmp_path / "model", *arguments, *options)
    assert re.fullmatch(r"error: [^\n]*", stopped.value.code) and message in stopped.value.code
    assert sorted(os.listdir(tmp_path)) == before


def test_a_failure_while_writing_leaves_nothing(biovil_files, tmp_path, monkeypatch):
    before = sorted(os.listdir(tmp_path))
    full = lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device"))  # noqa: E731
    monkeypatch.setattr(TierProcessor, "save_pretrained", full)
    with pytest.raises(SystemExit, match="error: .*No space left"):
        arguments = [f"--{name}={value}" for name, value in biovil_files[2].items()]
        run(monkeypatch, "biovil", tmp_path / "model", *arguments)
    assert sorted(os.listdir(tmp_path)) == before


ELSEWHERE = """
import json, sys
from transformers import AutoModel, AutoProcessor

try:
    import modeling_tier
    sys.exit("the package must not be importable here")
except ModuleNotFoundError:
    pass
for folder in sys.argv[3:]:
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    out = model(**processor(images=sys.argv[1], text=json.loads(sys.argv[2])))
    print(json.dumps([type(model).__name__, out.logits_per_image[0].tolist()]))
"""


def run_elsewhere(command: list, folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_from_the_hub_to_a_process_without_the_package(tmp_path):
    """
    BioViL's two models lie in one repository. A server of this process stands in for the Hub; the command runs in
    another process, as this one is offline; and what it wrote is loaded in a third, with a SigLIP, a GLoRIA and a
    BiomedCLIP, which have further options of the model and of its processor.
    """
    image, _ = randomize(BiovilImage()), cxr_bert(tmp_path / "repository")
    torch.save(image.state_dict(), tmp_path / "repository" / BIOVIL_IMAGE_FILE)
    files = {path.name: path.read_bytes() for path in (tmp_path / "repository").iterdir()}
    folders = [tmp_path / f"{name}-tier" for name in ("biovil", "siglip", "gloria", "open_clip")]
    with serve("models", CXR_BERT, files, tmp_path / "home", revision="v1.1") as (online, asked):
        printed = run_elsewhere([sys.executable, "-m", "modeling_tier.conversion", "biovil", folders[0]], ROOT, online)
    offline = {name: value for name, value in online.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    assert f"{CXR_BERT}/{BIOVIL_IMAGE_FILE}" in printed
    names = {file["name"] for file in json.loads((folders[0] / "conversion.json").read_text())["files"]}
    read = set(files) - {"configuration_cxrbert.py", "modeling_cxrbert.py"}
    assert names == {f"{CXR_BERT}/{name}" for name in read} and set(asked) == read

    siglip_folder(tmp_path / "siglip")
    conversion.convert("siglip", folders[1], model=str(tmp_path / "siglip"))
    bert = write_bert(tmp_path / "bert")
    torch.save({"state_dict": randomize(Gloria(bert)).state_dict()}, tmp_path / "gloria.ckpt")
    text_model = str(tmp_path / "bert")
    conversion.convert("gloria", folders[2], model=str(tmp_path / "gloria.ckpt"), text_model=text_model)
    write_biomedclip(tmp_path / "biomedclip", randomize(BiomedClip(bert)), text_model)
    conversion.convert("open_clip", folders[3], model=str(tmp_path / "biomedclip"))
    radiograph = tmp_path / "radiograph.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)).save(radiograph)
    (tmp_path / "elsewhere").mkdir()
    command = [sys.executable, "-c", ELSEWHERE, radiograph, json.dumps(TEXTS), *folders]
    lines = run_elsewhere(command, tmp_path / "elsewhere", offline).splitlines()[-len(folders) :]
    for folder, line in zip(folders, lines):
        model, processor = load_model(str(folder))
        with torch.no_grad():
            expected = model(**processor(images=radiograph, text=TEXTS)).logits_per_image[0]
        assert json.loads(line) == ["TierModel", pytest.approx(expected.tolist(), abs=1e-4)]
