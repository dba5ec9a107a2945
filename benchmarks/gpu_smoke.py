# Licensed under the Apache License, Version 2.0.
"""
Everything that touches a device, in small, with results held against the CPU's: training in float32, bfloat16 and
float16, compiled, with gradient caching, stopped and resumed; evaluation; the pipeline; the entropy term. Each check
stands for itself: one that fails is reported, and the next one runs. Without a GPU the same checks run on the CPU,
float16 excepted.

    python benchmarks/gpu_smoke.py --checks float32 entropy
"""

import argparse
import sys
from pathlib import Path


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from tier_cli.options import option_parser


CHECKS = ["float32", "bfloat16", "float16", "gradient_caching", "resumed", "waits", "evaluation"]
CHECKS += ["zero_shot_pipeline", "entropy", "compiled"]


def parse_arguments() -> argparse.Namespace:
    parser = option_parser(__doc__)
    parser.add_argument("--output", type=Path, help="file for the results as JSON")
    parser.add_argument("--dry_run", action="store_true", help="smaller pictures and batches")
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=CHECKS, metavar="CHECK", help="to be run")
    return parser.parse_args()


if __name__ == "__main__":
    parse_arguments()  # before torch is imported, which takes seconds: --help and mistakes are answered at once

import json
import os
import subprocess
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import AutoModel, pipeline
from transformers.utils import logging

from modeling_tier import text_image_entropy
from modeling_tier.data import load_pairs
from modeling_tier.evaluation import evaluate_zero_shot, load_model, load_prompts
from modeling_tier.evaluation.tables import aligned
from modeling_tier.training import load_config, train


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CONFIG = ROOT / "configs" / "demo.yaml"
STEPS = 8
OPTIONS = [
    "--data.validation.num_images=32",
    "--training.epochs=1",
    "--training.log_every=1",
    "--training.progress=false",
    "--evaluation.every_epochs=1",
]
SIZES = {"full": (32, 64), "dry run": (4, 32)}  # pairs a step, pixels a side


class Checks:
    """Runs checks on models that are trained into one folder."""

    def __init__(self, folder: Path, size: str):
        self.folder = folder
        pairs, self.pixels = SIZES[size]
        self.options = [*OPTIONS, f"--training.batch_size={pairs}", f"--data.train.num_images={STEPS * pairs}"]
        self.options += [f"--{name}.image_size={self.pixels}" for name in ("data.options", "model")]
        self.losses: dict[str, list[float]] = {}

    def run(self, name: str, *options: str, after_evaluation: Callable | None = None) -> list[float]:
        """Trains with these options; the loss of each step."""
        AcceleratorState._reset_state(reset_partial_state=True)
        output_dir = self.folder / name
        train(load_config(CONFIG, [*self.options, f"--output_dir={output_dir}", *options]), after_evaluation)
        self.losses[name] = step_losses(output_dir)
        return self.losses[name]

    def float32(self) -> dict:
        """Ours against a run of train.py in a process that sees no GPU."""
        options = [*self.options, f"--output_dir={self.folder / 'cpu'}"]
        command = [sys.executable, str(ROOT / "train.py"), "--config", str(CONFIG), *options]
        hidden = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "4"}
        with subprocess.Popen(command, env=os.environ | hidden, stdout=subprocess.DEVNULL) as process:
            ours = self.run("float32")
            process.wait()
        theirs = step_losses(self.folder / "cpu")
        worst = max(abs(a - b) / abs(b) for a, b in zip(ours[:4], theirs[:4]))
        assert len(ours) == len(theirs) and worst < 2e-3, (ours, theirs)
        return {"largest relative difference of the first four losses": worst}

    def _against_float32(self, name: str, *options: str) -> dict:
        ours, reference = self.run(name, *options), self.losses["float32"]
        worst = max(abs(a - b) / abs(b) for a, b in zip(ours[:4], reference[:4]))
        assert len(ours) == len(reference) and worst < 0.05, (ours, reference)
        return {"largest relative difference of the first four losses": worst}

    def bfloat16(self) -> dict:
        return self._against_float32("bfloat16", "--training.mixed_precision=bf16")

    def float16(self) -> dict:
        result = self._against_float32("float16", "--training.mixed_precision=fp16")
        return result | {"skipped steps": sum("skipped" in line for line in log_lines(self.folder / "float16"))}

    def gradient_caching(self) -> dict:
        return self._against_float32("cached", "--training.mixed_precision=bf16", "--training.chunk_size=8")

    def compiled(self) -> dict:
        started = time.perf_counter()
        result = self._against_float32("compiled", "--training.mixed_precision=bf16", "--training.compile=true")
        return result | {"seconds": time.perf_counter() - started}

    def resumed(self) -> dict:
        """Two epochs at once, twice, against one epoch and its continuation; on a GPU with loss scaling."""
        precision = "fp16" if DEVICE == "cuda" else "no"
        options = ["--training.epochs=2", f"--training.mixed_precision={precision}"]
        for name in ("once", "again"):
            self.run(name, *options)
        self.run("resumed", *options, after_evaluation=lambda epoch, metrics: True)
        self.run("resumed", *options, "--training.resume_from_checkpoint=last")
        weights = [load_file(self.folder / name / "model.safetensors") for name in ("once", "again", "resumed")]
        apart = [largest_difference(weights[0], other) for other in weights[1:]]
        losses = [abs(a - b) for a, b in zip(self.losses["once"], self.losses["resumed"])]
        assert len(losses) == 2 * STEPS and apart[1] <= max(1e-6, 4 * apart[0]), (apart, losses)
        return {"two equal runs differ by": apart[0], "resumed and uninterrupted by": apart[1]}

    def waits(self) -> dict:
        """Lines of the training loop at which the host waits for the GPU."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if DEVICE == "cuda":
                torch.cuda.set_sync_debug_mode("warn")
            try:
                self.run("waits", "--training.mixed_precision=bf16", "--training.log_every=100")
            finally:
                if DEVICE == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
        lines = Counter(
            f"{Path(w.filename).name}:{w.lineno}" for w in caught if "called a synchronizing" in str(w.message)
        )
        return dict(lines.most_common(20))

    def evaluation(self) -> dict:
        model, processor = load_model(str(self.folder / "float32"))
        pairs = load_pairs("synthetic", "test", num_images=64, image_size=self.pixels)
        result = []
        for device in ("cpu", DEVICE):
            metrics, _ = evaluate_zero_shot(
                model.to(device), processor, pairs, load_prompts("synthetic"), progress=False
            )
            result.append([metrics["loss"], metrics["token_entropy"], metrics["patch_entropy"]])
        worst = max(abs(a - b) for a, b in zip(*result))
        assert worst < 5e-3, result
        return {"largest difference of loss and entropies": worst}

    def zero_shot_pipeline(self) -> dict:
        picture = load_pairs("synthetic", "test", num_images=1, image_size=self.pixels)[0]["image"]
        findings, scores = ["left pleural effusion", "cardiomegaly"], []
        for device in ("cpu", DEVICE):
            read = pipeline(
                "tier-zero-shot", model=str(self.folder / "float32"), trust_remote_code=True, device=device
            )
            scores.append([row["score"] for row in read(picture, findings=findings, maps="overlay")])
        worst = max(abs(a - b) for a, b in zip(*scores))
        assert worst < 1e-3, scores
        model = AutoModel.from_pretrained(self.folder / "float32", trust_remote_code=True, device_map=DEVICE)
        assert model.device.type == DEVICE
        return {"largest difference of a score": worst}

    def entropy(self) -> dict:
        """Values and gradients against float64 on the CPU."""
        generator = torch.Generator().manual_seed(0)
        embeds = [torch.randn(8, size, 64, generator=generator) for size in (11, 49)]
        mask = torch.rand(8, 11, generator=generator) > 0.3
        reference = _value_and_gradient([entry.double() for entry in embeds], mask)
        errors = {}
        for dtype in (torch.float32, torch.bfloat16):
            ours = _value_and_gradient([entry.to(DEVICE, dtype) for entry in embeds], mask.to(DEVICE))
            rounded = _value_and_gradient([entry.to(dtype).double() for entry in embeds], mask)
            expected = reference if dtype == torch.float32 else rounded
            pairs = zip(ours, expected)
            errors[str(dtype)] = max(((a - b).norm() / b.norm()).item() for a, b in pairs)
        assert errors["torch.float32"] < 1e-4 and errors["torch.bfloat16"] < 1e-2, errors
        return errors


def _value_and_gradient(embeds: list[torch.Tensor], mask: torch.Tensor) -> list[torch.Tensor]:
    embeds = [entry.requires_grad_() for entry in embeds]
    value = sum(text_image_entropy(*embeds, mask))
    return [part.detach().double().cpu() for part in (value, *torch.autograd.grad(value, embeds))]


def log_lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def step_losses(folder: Path) -> list[float]:
    return [line["loss"] for line in log_lines(folder) if "loss" in line and "validation" not in line]


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


def main() -> None:
    arguments = parse_arguments()
    logging.set_verbosity_error()
    results, failed = {"device": DEVICE, "torch": torch.__version__}, False
    if DEVICE == "cuda":
        results["device"] = torch.cuda.get_device_name()
    with tempfile.TemporaryDirectory() as folder:
        checks = Checks(Path(folder), "dry run" if arguments.dry_run else "full")
        rows = [["check", "seconds", "result"]]
        for name in arguments.checks:
            if name == "float16" and DEVICE == "cpu":
                continue
            started = time.perf_counter()
            try:
                result = getattr(checks, name)()
            except Exception as error:
                failed, result = True, {"FAILED": f"{type(error).__name__}: {error}"[:2000]}
                traceback.print_exc()
            seconds = time.perf_counter() - started
            results[name] = {"seconds": seconds} | result
            rows.append([name, f"{seconds:.1f}", json.dumps(result)[:200]])
            if arguments.output:
                arguments.output.write_text(json.dumps(results, indent=1) + "\n")
    print(aligned(rows))
    sys.exit(failed)


if __name__ == "__main__":
    main()
