# Licensed under the Apache License, Version 2.0.
"""The exported folder against the model it came from: scores, maps, embeddings, and a process that has no torch."""

import copy
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import TEXT_CONFIGS, VISION_CONFIGS
from PIL import Image
from test_reading import FORMATS
from transformers import CLIPImageProcessor

from modeling_tier import TierConfig, TierModel, TierProcessor, TierZeroShotPipeline


pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from modeling_tier.convert.onnx_export import ImageEncoder, export_onnx  # noqa: E402
from modeling_tier.convert.run_onnx import Reader  # noqa: E402
from modeling_tier.export import main  # noqa: E402


FINDINGS = ["left pleural_effusion", "cardiomegaly", "small effusion of the right"]

WITHOUT_TORCH = """
import runpy, sys
sys.modules["torch"] = sys.modules["transformers"] = sys.modules["modeling_tier"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def make_model(text: str, vision: str, **options) -> TierModel:
    """Of weights so large that pictures and sentences differ well."""
    torch.manual_seed(3)
    wide = {"initializer_range": 0.3, "initializer_factor": 5.0}
    of_text, of_vision = (
        {**configs[name].to_dict(), **wide} for configs, name in ((TEXT_CONFIGS, text), (VISION_CONFIGS, vision))
    )
    if text in ("clip", "siglip"):
        of_text |= {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}  # the tokenizer's
    config = TierConfig(text_config=of_text, vision_config=of_vision, **{"projection_dim": 16, **options})
    return TierModel(config).eval()


ENCODERS = {
    "clip": ("clip", "clip", {}),
    "bert-resnet": ("bert", "resnet", {"image_pooling": "mean", "projection": "mlp"}),
    "bert-vit": ("bert", "vit", {}),
    "roberta-dinov2": ("roberta", "dinov2", {"projection": "mlp"}),
    "siglip": (
        "siglip",
        "siglip",
        {
            "image_pooling": "attention",
            "projection": "siglip",
            "projection_dim": 32,
            "logit_bias_init_value": -3.0,
        },
    ),
}


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(5).integers(0, 60000, (50, 70), dtype=np.uint16))


@pytest.fixture(
    scope="module",
    params=[name if name == "bert-resnet" else pytest.param(name, marks=pytest.mark.slow) for name in ENCODERS],
)
def exported(request, tokenizer, tmp_path_factory):
    """A model, its processor and the folder that was made of them."""
    text, vision, options = ENCODERS[request.param]
    model, folder = make_model(text, vision, **options), tmp_path_factory.mktemp("exported") / "onnx"
    width = 40 if vision == "resnet" else 32
    image_processor = CLIPImageProcessor(size={"shortest_edge": 42}, crop_size={"height": 32, "width": width})
    if text == "siglip":
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.model_input_names = ["input_ids"]  # as SigLIP's
    framing = {"stretch_contrast": True, "pad_to_square": True} if vision == "resnet" else {}
    processor = TierProcessor(image_processor, tokenizer, **framing)
    export_onnx(model, processor, folder)
    return model, processor, folder


def test_the_exported_encoders_compute_what_the_model_does(exported, picture):
    model, processor, folder = exported
    read = Reader(folder)
    rows = read(picture, FINDINGS)
    expected = TierZeroShotPipeline(model=model, processor=processor, device="cpu")(picture, findings=FINDINGS)
    for name in ("score", "difference"):
        assert [row[name] for row in rows] == pytest.approx([row[name] for row in expected], abs=1e-4)
    inputs = processor(images=picture, text=[f"{name.replace('_', ' ')}." for name in FINDINGS])
    maps = model.get_similarity_map(**inputs).text_to_patch.detach().numpy()
    np.testing.assert_allclose(np.stack([row["map"] for row in rows]), maps, atol=1e-4)
    assert np.ptp(maps) > 0.01 and np.ptp([row["difference"] for row in rows]) > 1e-3, "there is something to compare"

    # Other numbers of pictures and texts, and lengths, than those that were traced.
    texts = [
        "there is a small left pleural effusion , no large cardiomegaly . this is a photo of the right",
        *FINDINGS,
    ]
    inputs = processor(images=[picture] * 2, text=texts)
    with torch.no_grad():
        out = model(**inputs)
    for encoder, fed, names in (
        (read.image_encoder, ["pixel_values"], ["image_embeds", "patch_embeds"]),
        (read.text_encoder, [entry.name for entry in read.text_encoder.get_inputs()], ["text_embeds", "token_embeds"]),
    ):
        result = encoder.run(names, {name: inputs[name].numpy() for name in fed})
        for name, values in zip(names, result):
            np.testing.assert_allclose(values, out[name].numpy(), atol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("exported", ["bert-resnet"], indirect=True)
def test_the_example_runs_where_there_is_no_torch(exported, picture, tmp_path):
    model, processor, folder = exported
    (tmp_path / "any").mkdir()
    assert folder.stat().st_mode == (tmp_path / "any").stat().st_mode, "read by whom any folder is"
    picture.save(tmp_path / "radiograph.png")
    command = [sys.executable, "-c", WITHOUT_TORCH, folder / "run.py"]
    process = subprocess.run(
        [*command, tmp_path / "radiograph.png", *FINDINGS, "--maps", tmp_path / "maps.npz"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    printed = process.stdout.splitlines()
    lines = [re.fullmatch(r"(\S+)  (.+)  \(.* (\S+)\)", line).groups() for line in printed if line[0] != " "]
    assert printed[-1] == "        The tokenizer does not know: the. The score says little."
    expected = TierZeroShotPipeline(model=model, processor=processor, device="cpu")(picture, findings=FINDINGS)
    assert [finding for _, finding, _ in lines] == FINDINGS
    for i, name in ((0, "score"), (2, "difference")):
        assert [float(line[i]) for line in lines] == pytest.approx([row[name] for row in expected], abs=2e-4)
    notes = TierZeroShotPipeline(model=model, processor=processor)(
        np.asarray(picture)[:1, :1].repeat(9, axis=0), findings=["left effusion", "pneumonia"]
    )
    rows = Reader(folder)(np.asarray(picture)[:1, :1].repeat(9, axis=0), ["left effusion", "pneumonia"])
    assert [row["note"] for row in rows] == [row["note"] for row in notes]
    assert "one grey" in rows[0]["note"] and "pneumonia" in rows[1]["note"]
    with np.load(tmp_path / "maps.npz") as maps:
        assert maps["findings"].tolist() == FINDINGS
        expected = model.get_similarity_map(**processor(images=picture, text=["cardiomegaly."])).text_to_patch[0]
        np.testing.assert_allclose(maps["maps"][1], expected.detach().numpy(), atol=1e-4)


READ_ALL = """
import sys
from pathlib import Path
import numpy as np
sys.modules["torch"] = sys.modules["transformers"] = sys.modules["modeling_tier"] = None
folder, pictures, output = sys.argv[1:]
sys.path.insert(0, folder)
from run import Reader
reader = Reader(folder)
np.savez(output, **{path.name: reader.pixel_values(path) for path in Path(pictures).iterdir()})
try:
    reader.pixel_values(Path(pictures, "missing.png"))
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("exported", ["bert-resnet"], indirect=True)
def test_pictures_are_read_as_the_package_reads_them(exported, tmp_path):
    """In each format, by the files of the folder alone."""
    _, processor, folder = exported
    ramp = np.linspace(200, 3800, 48 * 64).reshape(64, 48).T.astype(np.uint16)
    (tmp_path / "pictures").mkdir()
    for kind, write in FORMATS.items():
        (tmp_path / "pictures" / kind).write_bytes(write(ramp))
    command = [sys.executable, "-c", READ_ALL, folder, tmp_path / "pictures", tmp_path / "read.npz"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "missing.png cannot be read: No such file" in process.stdout
    with np.load(tmp_path / "read.npz") as arrays:
        for kind in FORMATS:
            expected = processor(images=tmp_path / "pictures" / kind)["pixel_values"][0].numpy()
            np.testing.assert_allclose(arrays[kind], expected, atol=0.05, err_msg=kind)


@pytest.fixture
def resnet_model() -> TierModel:
    return make_model("bert", "resnet", image_pooling="mean")


def test_what_cannot_be_exported_is_named_and_nothing_is_written(resnet_model, processor, tmp_path, monkeypatch):
    from transformers.exporters import OnnxExporter

    def refuse(*_):
        raise NotImplementedError("no such operator\nand a long story")

    monkeypatch.setattr(OnnxExporter, "export", refuse)
    with pytest.raises(ValueError, match="'resnet' cannot be exported to ONNX: no such operator$"):
        export_onnx(resnet_model, processor, tmp_path / "onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_graph_with_other_numbers_is_refused(resnet_model, processor, tmp_path, monkeypatch):
    forward = ImageEncoder.forward

    def other(self, pixel_values):
        out = forward(self, pixel_values)
        return {**out, "patch_embeds": out["patch_embeds"] * 1.01}

    monkeypatch.setattr(ImageEncoder, "forward", other)
    with pytest.raises(ValueError, match="other patch_embeds than the model"):
        export_onnx(resnet_model, processor, tmp_path / "onnx")
    assert not list(tmp_path.iterdir())


def test_processors_that_the_example_cannot_follow(resnet_model, tokenizer, tmp_path):
    for options, message in (
        ({"size": {"shortest_edge": 32}, "do_center_crop": False}, "pictures of several sizes"),
        ({"size": {"shortest_edge": 32, "longest_edge": 64}}, "cannot follow"),
    ):
        processor = TierProcessor(CLIPImageProcessor(**options), tokenizer)
        with pytest.raises(ValueError, match=message):
            export_onnx(resnet_model, processor, tmp_path / "onnx")


def test_the_command_says_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["export", str(tmp_path / "nothing"), str(tmp_path / "onnx")])
    with pytest.raises(SystemExit, match="^error: .*nothing"):
        main()
