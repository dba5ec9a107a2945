# Licensed under the Apache License, Version 2.0.
"""benchmarks/model_zoo.py: thirteen small stand-ins of published models from a local endpoint, in one table."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import tier_config
from hub import Hub
from published import (
    DIMENSION,
    ROOT,
    BiomedClip,
    BiovilImage,
    BiovilTImage,
    CxrClip,
    Gloria,
    MedClip,
    OpenaiClip,
    clip_folder,
    cxr_bert,
    randomize,
    siglip_folder,
    word_tokenizer,
    write_bert,
    write_biomedclip,
    write_open_clip,
)

from modeling_tier import TierModel
from modeling_tier.convert.biovil import BIOVIL_IMAGE_FILE
from modeling_tier.convert.biovil_t import BIOVIL_T_IMAGE_FILE
from tests.data.small_sets import chestxdet10, chestxray14


ZOO = {
    "biovil": {"source": "biovil"},
    "biovil-t": {"source": "biovil-t"},
    "biomedclip": {"source": "open_clip", "model": "microsoft/biomedclip"},
    "whyxrayclip": {"source": "open_clip", "model": "yyupenn/whyxrayclip"},
    "xrayclip": {"source": "clip", "model": "StanfordAIMI/XrayCLIP"},
    "medsiglip": {"source": "siglip", "model": "google/medsiglip"},
    "chexzero": {"source": "chexzero", "model": "someone/chexzero/best.pt"},
    "openai": {"source": "openai", "model": "someone/chexzero/best.pt", "activation": "quick_gelu"},
    "gloria": {"source": "gloria", "model": "someone/gloria/chexpert_resnet50.ckpt"},
    "medclip-resnet": {"source": "medclip", "model": "someone/medclip-resnet"},
    "medclip-swin": {"source": "medclip", "model": "someone/medclip-swin"},
    "cxr-clip-resnet": {"source": "cxr-clip", "model": "someone/cxr-clip/r50_mcc.tar"},
    "cxr-clip-swin": {"source": "cxr-clip", "model": "someone/cxr-clip/swint_mcc.tar"},
    "carzero": {"source": "gloria", "model": "someone/gloria/carzero.ckpt"},
}


def stand_ins(folder: Path) -> dict[str, Path]:
    """By name of a repository, the folder with its files."""
    repositories = {
        "microsoft/BiomedVLP-CXR-BERT-specialized": folder / "cxr-bert",
        "microsoft/BiomedVLP-BioViL-T": folder / "biovil-t",
        "microsoft/biomedclip": folder / "biomedclip",
        "microsoft/pubmedbert": folder / "bert",
        "yyupenn/whyxrayclip": folder / "whyxrayclip",
        "StanfordAIMI/XrayCLIP": folder / "xrayclip",
        "google/medsiglip": folder / "medsiglip",
        "someone/chexzero": folder / "chexzero",
        "openai/clip-vit-base-patch32": folder / "clip",
        "someone/gloria": folder / "gloria",
        "emilyalsentzer/Bio_ClinicalBERT": folder / "bert",
        "someone/medclip-resnet": folder / "medclip-resnet",
        "someone/medclip-swin": folder / "medclip-swin",
        "someone/cxr-clip": folder / "cxr-clip",
    }
    for path in repositories.values():
        path.mkdir(exist_ok=True)
    cxr_bert(folder / "cxr-bert"), cxr_bert(folder / "biovil-t")
    torch.save(randomize(BiovilImage()).state_dict(), folder / "cxr-bert" / BIOVIL_IMAGE_FILE)
    torch.save(randomize(BiovilTImage()).state_dict(), folder / "biovil-t" / BIOVIL_T_IMAGE_FILE)
    bert = write_bert(folder / "bert")
    write_biomedclip(folder / "biomedclip", randomize(BiomedClip(bert)), "microsoft/pubmedbert")
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}
    text = {"context_length": 12, "vocab_size": 22, "width": 128, "heads": 2, "layers": 2}
    architecture = {"embed_dim": DIMENSION, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}
    chexzero = randomize(OpenaiClip())
    write_open_clip(folder / "whyxrayclip", chexzero, architecture, "open_clip_model.safetensors")
    torch.save(chexzero.state_dict(), folder / "chexzero" / "best.pt")
    word_tokenizer("<pad>", "<end>", model_max_length=77).save_pretrained(folder / "clip")
    clip_folder(folder / "xrayclip"), siglip_folder(folder / "medsiglip")
    torch.save({"state_dict": randomize(Gloria(bert)).state_dict()}, folder / "gloria" / "chexpert_resnet50.ckpt")
    torch.save({"state_dict": {"CARZero.fusion_module.w": torch.ones(1)}}, folder / "gloria" / "carzero.ckpt")
    for kind in ("resnet", "swin"):
        state = randomize(MedClip(bert, kind)).old_state_dict()
        torch.save(state, folder / f"medclip-{kind}" / "pytorch_model.bin")
    for kind, name in (("resnet", "r50_mcc.tar"), ("swin", "swint_mcc.tar")):
        torch.save(randomize(CxrClip(bert, kind)).checkpoint(), folder / "cxr-clip" / name)
    return repositories


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_zoo_in_one_table(tmp_path):
    (tmp_path / "published").mkdir()
    (tmp_path / "zoo.yaml").write_text(yaml.safe_dump(ZOO, sort_keys=False))
    output = tmp_path / "zoo"
    (tmp_path / "data/ChestX-Det10").mkdir(parents=True), chestxdet10(tmp_path / "data/ChestX-Det10")
    command = [sys.executable, str(ROOT / "benchmarks" / "model_zoo.py"), str(tmp_path / "zoo.yaml")]
    command += ["--output_dir", str(output)]
    drawn = ["--dataset", "synthetic", "--num_images", "24", "--resamples", "20"]
    suite = ["--suite", "carzero", "--data_root", str(tmp_path / "data"), "--examples", "0", "--resamples", "0"]
    with Hub(tmp_path / "home") as hub:
        for name, folder in stand_ins(tmp_path / "published").items():
            hub.make(name, private=False)
            hub.files(name).update({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
        hub.repositories["microsoft/BiomedVLP-CXR-BERT-specialized"]["tags"]["v1.1"] = "0" * 40
        runs = {"capture_output": True, "text": True, "env": hub.environment, "cwd": ROOT, "timeout": 700}
        done = subprocess.run([*command, *drawn], **runs)
        table = (output / "zoo.md").read_text() if done.returncode == 0 else ""
        some = ["xrayclip", "medclip-resnet", "cxr-clip-swin"]
        zoo = {name: ZOO[name] for name in [*some, "carzero"]}
        (tmp_path / "zoo.yaml").write_text(yaml.safe_dump(zoo, sort_keys=False))
        of_suite = subprocess.run([*command, *suite], **runs)
    assert done.returncode == 0, done.stderr[-3000:]
    evaluated = [name for name in ZOO if name != "carzero"]
    assert sorted(path.name for path in (output / "models").iterdir()) == sorted(evaluated)
    result = json.loads((output / "evaluation" / "metrics.json").read_text())
    assert [result["name"], *result["compared"]] == evaluated
    assert "carzero: not evaluated. These are weights of CARZero, which cannot be converted" in table
    rows = {line.split()[0]: line for line in table.splitlines() if line.split()[:1] and line.split()[0] in ZOO}
    assert list(rows) == evaluated and "AUROC" in table and "pointing game" in table
    auroc = result["metrics"]["classification"]["image"]["mean"]["auroc"]["value"]
    assert f"{auroc:.3f}" in rows["biovil"]

    # Some of the converted models, on the data sets of a suite.
    assert of_suite.returncode == 0, of_suite.stderr[-3000:]
    table = (output / "zoo.md").read_text()
    part = table.split("## AUROC")[1].split("## ")[0]
    rows = [line.split("|")[1].strip() for line in part.splitlines() if line.startswith("| ")]
    assert rows[2 : 2 + len(some)] == some and "CARZero" in rows[2 + len(some) :]
    assert "chestxdet10 (2 findings, 20 images)" in part
    assert "carzero: not evaluated. These are weights of CARZero" in table and "padchest was skipped" in table
    link = "suite/chestxdet10/report.html"
    assert f"]({link})" in table and (output / link).is_file() and (output / "suite/suite.html").is_file()


@pytest.mark.filterwarnings("ignore")
def test_what_failed_is_named_beside_what_did_not(tmp_path, processor, monkeypatch, capsys):
    """A model that cannot be converted, and a set that cannot be evaluated."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import model_zoo

    output, root = tmp_path / "out", tmp_path / "root"
    model = TierModel(tier_config(text="bert", vision="resnet", image_pooling="mean"))
    model.save_pretrained(output / "models/a"), processor.save_pretrained(output / "models/a")
    for name, write in {"chestxdet10": chestxdet10, "chestx-ray14": chestxray14}.items():
        (root / name).mkdir(parents=True), write(root / name)
    (root / "chestx-ray14/BBox_List_2017.csv").unlink()
    (tmp_path / "zoo.yaml").write_text("a: {source: clip}\nb: {source: clip, model: no/such-model}")
    (tmp_path / "mine.yaml").write_text("sets: {chestxray14: {}, chestxdet10: {}}")
    command = ["model_zoo.py", tmp_path / "zoo.yaml", "--output_dir", output, "--suite", tmp_path / "mine.yaml"]
    command += ["--data_root", root, "--resamples", "0", "--examples", "0"]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    with pytest.raises(SystemExit, match="error: chestxray14 could not be evaluated: In the folder"):
        model_zoo.main()
    table = (output / "zoo.md").read_text("utf-8")
    assert "suite/chestxdet10/report.html" in table and "- chestxray14 could not be evaluated" in table
    assert "- b: not evaluated. " in table and "b: not evaluated. " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "must map names"),
        ("'..': {source: clip}", "needs a source"),
        ("a: {source: clap}", "a needs a source, one of .*open_clip"),
        ("../a: {source: clip}", "needs a source"),
        ("a: {source: clip, modl: x}", "unknown option 'modl' of the source 'clip'"),
        ("a: {source: clip", "cannot be read"),
        ("a: {source: clip, model: no/such-model}", "No model could be converted"),
    ],
)
def test_wrong_files_are_named(tmp_path, monkeypatch, content, message):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import model_zoo

    (tmp_path / "zoo.yaml").write_text(content)
    monkeypatch.setattr(
        sys, "argv", ["model_zoo.py", str(tmp_path / "zoo.yaml"), "--output_dir", str(tmp_path / "out")]
    )
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        model_zoo.main()
