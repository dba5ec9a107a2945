# Licensed under the Apache License, Version 2.0.
"""FSDP2 and DeepSpeed by the configuration files that we ship: two processes that share a model train as one does."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from test_training import ROOT, TINY, lines, tiny, weights

from modeling_tier import TierModel
from modeling_tier.training import train
from modeling_tier.training.sharding import prepare


COMMON = [
    "--model.text_config.hidden_dropout_prob=0",
    # Batch norm takes the statistics of a process's own pairs, so it must not take part in this comparison.
    "--model.vision_config={model_type: convnext, hidden_sizes: [8, 16], depths: [1, 1], num_stages: 2}",
    "--training.log_every=1",
    "--training.save_every_steps=2",
    "--training.keep_checkpoints=9",
]


def launch(configuration: str, folder: Path, *options: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=2"]
    command += [f"--config_file=configs/accelerate/{configuration}.yaml", "tests/training/engine.py"]
    command += ["--config=configs/demo.yaml", *TINY, *COMMON, f"--output_dir={folder}", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


def assert_not_rounded(log: list[dict]):
    losses = torch.tensor([line["loss"] for line in log if "loss" in line])
    assert (losses != losses.bfloat16().float()).any()


def assert_same_steps(one: list[dict], other: list[dict], rtol: float = 1e-4):
    one, other = ([line for line in entry if "loss" in line] for entry in (one, other))
    assert len(one) == 6
    for here, expected in zip(one, other, strict=True):
        for name in ("loss", "contrastive_loss", "token_entropy", "patch_entropy", "logit_scale", "lr"):
            assert here[name] == pytest.approx(expected[name], rel=rtol), name
        assert here["grad_norm"] == pytest.approx(expected["grad_norm"], rel=10 * rtol)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("configuration", "options"),
    [
        ("fsdp2", ["--training.chunk_size=3"]),
        ("fsdp2", ["--training.mixed_precision=bf16"]),
        pytest.param(
            "deepspeed_zero2",
            [],
            marks=pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="deepspeed is not installed"),
        ),
    ],
    ids=["fsdp2 with gradient caching", "fsdp2 in bf16", "deepspeed"],
)
def test_a_model_spread_over_two_processes_trains_as_one(tmp_path, configuration, options):
    AcceleratorState._reset_state(reset_partial_state=True)
    half = [option for option in options if "bf16" in option]
    train(tiny(tmp_path / "one", *COMMON, "--training.batch_size=16", *half))
    AcceleratorState._reset_state(reset_partial_state=True)
    process = launch(configuration, tmp_path / "two", *options)
    assert process.returncode == 0, process.stderr[-3000:]
    rtol = 5e-2 if half else 1e-4
    assert_same_steps(lines(tmp_path / "one"), lines(tmp_path / "two"), rtol)
    if half:  # in float32 the loss has more digits than bfloat16 can hold
        return assert_not_rounded(lines(tmp_path / "two"))
    for name, weight in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], weight, rtol=0, atol=3e-4, msg=name)
    assert TierModel.from_pretrained(tmp_path / "two").logit_scale.shape == ()

    resumed = f"--training.resume_from_checkpoint={tmp_path / 'two/checkpoints/step-4'}"
    process = launch(configuration, tmp_path / "two", *options, resumed)
    assert process.returncode == 0, process.stderr[-3000:]
    assert_same_steps(lines(tmp_path / "one"), lines(tmp_path / "two"))


@pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="deepspeed is not installed")
def test_deepspeed_stops_at_a_gradient_that_is_not_finite(tmp_path):
    process = launch("deepspeed_zero2", tmp_path / "run", "--optimizer.lr=1e30", "--optimizer.warmup_share=0")
    assert process.returncode != 0 and "DeepSpeed takes its steps inside" in process.stdout + process.stderr
    assert any("skipped" in line for line in lines(tmp_path / "run"))


@pytest.mark.parametrize(
    ("engine", "changed", "words"),
    [
        ("FSDP", {"fsdp_version": 1}, "fsdp_version"),
        ("FSDP", {"cpu_ram_efficient_loading": True}, "fsdp_cpu_ram_efficient_loading"),
        ("DEEPSPEED", {"gradient_accumulation_steps": 4}, "gradient_accumulation_steps is 1, and 4"),
        ("DEEPSPEED", {"chunk_size": 2}, r"training\.chunk_size"),
    ],
)
def test_what_an_engine_cannot_do_is_refused_by_name(tmp_path, engine, changed, words):
    fsdp = SimpleNamespace(**{"fsdp_version": 2, "cpu_ram_efficient_loading": False} | changed)
    deepspeed = SimpleNamespace(deepspeed_config={"gradient_accumulation_steps": "auto"} | changed)
    state = SimpleNamespace(fsdp_plugin=fsdp, deepspeed_plugin=deepspeed)
    accelerator = SimpleNamespace(state=state, distributed_type=DistributedType[engine], device="cpu")
    options = [f"--training.chunk_size={changed['chunk_size']}"] if "chunk_size" in changed else []
    with pytest.raises(ValueError, match=words):
        prepare(accelerator, None, None, tiny(tmp_path, *options))
