# Licensed under the Apache License, Version 2.0.
"""A saved folder loads anywhere: with this package without further words, without it through trust_remote_code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TEXT_CONFIGS, VISION_CONFIGS
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    BertConfig,
    pipeline,
)

import modeling_tier
from modeling_tier import TierConfig, TierModel, TierProcessor


# Further interpreters, with other versions of transformers, that must load what is saved here (and save it again).
PYTHONS = [sys.executable, *os.environ.get("TIER_TEST_PYTHONS", "").split()]
LABELS = ["left pleural effusion", "no effusion", "large cardiomegaly"]

ELSEWHERE = """
import json, sys
from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor, pipeline

folder, image, labels = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
try:
    import modeling_tier
    sys.exit("the package must not be importable here")
except ModuleNotFoundError:
    pass
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
result = {"config": config.model_type, "processor": type(processor).__name__}
for auto_class in (AutoModel, AutoModelForZeroShotImageClassification):
    model = auto_class.from_pretrained(folder, trust_remote_code=True).eval()
    out = model(**processor(images=image, text=labels))
    result[auto_class.__name__] = out.logits_per_image[0].tolist()
classify = pipeline("zero-shot-image-classification", model=folder, trust_remote_code=True)
result["pipeline"] = classify(image, candidate_labels=labels, hypothesis_template="{}")
model.save_pretrained(sys.argv[4])
processor.save_pretrained(sys.argv[4])
print(json.dumps(result))
"""


@pytest.fixture(params=["clip", "resnet"])
def folder(request, tmp_path, tokenizer, processor):
    torch.manual_seed(0)
    if request.param == "clip":
        text = TEXT_CONFIGS["clip"].to_dict() | {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
        config = TierConfig(text_config=text, vision_config=VISION_CONFIGS["clip"], projection_dim=16)
    else:
        text = BertConfig(**TEXT_CONFIGS["bert"].to_diff_dict() | {"vocab_size": len(tokenizer)})
        config = TierConfig(
            text_config=text,
            vision_config=VISION_CONFIGS["resnet"],
            projection_dim=16,
            projection="mlp",
            image_pooling="mean",
        )
    path = tmp_path / "model"
    TierModel(config).save_pretrained(path)
    processor.save_pretrained(path)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "radiograph.png")
    return path


def logits_here(folder) -> torch.Tensor:
    model, processor = TierModel.from_pretrained(folder).eval(), TierProcessor.from_pretrained(folder)
    with torch.no_grad():
        return model(**processor(images=folder.parent / "radiograph.png", text=LABELS)).logits_per_image[0]


def test_with_the_package_no_remote_code_is_needed(folder):
    expected = logits_here(folder)
    assert type(AutoConfig.from_pretrained(folder)) is TierConfig
    processor = AutoProcessor.from_pretrained(folder)
    assert type(processor) is TierProcessor
    for auto_class in (AutoModel, AutoModelForZeroShotImageClassification):
        model = auto_class.from_pretrained(folder).eval()
        assert type(model) is TierModel
        inputs = processor(images=folder.parent / "radiograph.png", text=LABELS)
        torch.testing.assert_close(model(**inputs).logits_per_image[0], expected, rtol=0, atol=0)
    classify = pipeline("zero-shot-image-classification", model=str(folder))
    result = classify(str(folder.parent / "radiograph.png"), candidate_labels=LABELS, hypothesis_template="{}")
    scores = {answer["label"]: answer["score"] for answer in result}
    assert [scores[label] for label in LABELS] == pytest.approx(expected.softmax(-1).tolist(), abs=1e-6)


@pytest.mark.parametrize("folder", ["resnet", pytest.param("clip", marks=pytest.mark.slow)], indirect=True)
@pytest.mark.parametrize("python", PYTHONS, ids=lambda path: "here" if path == sys.executable else path)
def test_without_the_package(folder, tmp_path, python):
    expected = logits_here(folder)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    away = tmp_path / "elsewhere"
    away.mkdir()
    radiograph, again = tmp_path / "radiograph.png", away / "again"
    process = subprocess.run(
        [python, "-c", ELSEWHERE, str(folder), str(radiograph), json.dumps(LABELS), str(again)],
        capture_output=True,
        text=True,
        cwd=away,
        env=environment,
    )
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout.splitlines()[-1])
    assert result["config"] == "tier" and result["processor"] == "TierProcessor"
    for name in ("AutoModel", "AutoModelForZeroShotImageClassification"):
        assert result[name] == pytest.approx(expected.tolist(), abs=1e-6)
    scores = {answer["label"]: answer["score"] for answer in result["pipeline"]}
    assert [scores[label] for label in LABELS] == pytest.approx(expected.softmax(-1).tolist(), abs=1e-6)
    # What was saved there is again a complete folder.
    torch.testing.assert_close(logits_here(again.rename(tmp_path / "again")), expected, rtol=0, atol=0)
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    assert saved["auto_map"] == json.loads((folder / "config.json").read_text())["auto_map"]


def test_the_folder_needs_only_what_travels(folder):
    """They import nothing but each other, torch, transformers, numpy and Pillow (pydicom when it is met)."""
    import ast

    allowed = {"torch", "transformers", "numpy", "PIL", "pydicom"} | set(sys.stdlib_module_names)
    files = sorted(folder.glob("*.py"))
    assert {file.name for file in files} == {
        file.name for file in Path(modeling_tier.__file__).parent.glob("*_tier.py")
    }
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert (folder / f"{node.module}.py").exists(), f"{file.name} imports .{node.module}"
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert {name.split(".")[0] for name in names} <= allowed, file.name
