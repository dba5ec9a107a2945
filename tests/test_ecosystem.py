# Licensed under the Apache License, Version 2.0.
"""The blocks of docs/ecosystem.md, one after the other, on a small model."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TEXT_CONFIGS, VISION_CONFIGS
from transformers import BertConfig, CLIPImageProcessor

from modeling_tier import TierConfig, TierModel, TierProcessor


pytest.importorskip("peft")

ROOT = Path(__file__).parents[1]
EPILOGUE = """
import math
first = on_the_fly[0]
assert set(first) >= {"pixel_values", "input_ids", "attention_mask"} and first["pixel_values"].shape == (3, 64, 64)
assert all(torch.equal(first[name], stored[0][name]) for name in ("pixel_values", "input_ids"))
assert math.isfinite(losses["eval_loss"]) and trainer.state.global_step == 4
before, trained = (TierModel.from_pretrained(name) for name in ("runs/demo/tier", "runs/trained"))
assert not torch.equal(before.visual_projection.weight, trained.visual_projection.weight)
assert not [name for name, p in lora.named_parameters() if p.requires_grad and p.grad is None]
again = TierModel.from_pretrained("runs/merged").eval()
batch = collate([stored[0], stored[1]])
with torch.no_grad():
    assert torch.allclose(again(**batch).logits_per_image, lora.eval()(**batch).logits_per_image, atol=1e-4)
TierProcessor.from_pretrained("runs/merged")
print("all of it ran")
"""


@pytest.mark.slow
def test_the_blocks_of_the_document(tokenizer, tmp_path):
    tokenizer.model_max_length = 128
    torch.manual_seed(0)
    text = BertConfig(**TEXT_CONFIGS["bert"].to_diff_dict() | {"max_position_embeddings": 128})
    config = TierConfig(
        text_config=text, vision_config=VISION_CONFIGS["resnet"], image_pooling="mean", projection_dim=16
    )
    folder = tmp_path / "runs/demo/tier"
    TierModel(config).save_pretrained(folder)
    size = {"height": 64, "width": 64}
    TierProcessor(CLIPImageProcessor(size=size, crop_size=size), tokenizer).save_pretrained(folder)
    document = (ROOT / "docs/ecosystem.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", document, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    (tmp_path / "blocks.py").write_text("\n".join([*blocks, EPILOGUE]), "utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    process = subprocess.run(
        [sys.executable, "blocks.py"], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.endswith("all of it ran\n")
