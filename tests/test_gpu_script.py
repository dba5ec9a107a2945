# Licensed under the Apache License, Version 2.0.
"""benchmarks/gpu.sh in small: on a GPU, minutes are scarce, and none may be lost to a typing error."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
FILES = {"step_cost", "smoke", "training_speed", "entropy_cost", "paper_step", "evaluation_speed"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_part_runs_and_leaves_its_numbers(tmp_path):
    command = [str(ROOT / "benchmarks" / "gpu.sh"), "--dry_run", "--output_dir", str(tmp_path), "--seconds", "1100"]
    done = subprocess.run(command, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert set(result) == FILES
    assert "FAILED" not in json.dumps(result["smoke"])
    rows = result["step_cost"][-1]["rows"]
    assert all(row["pairs_per_second"] > 0 for row in rows.values())
    assert result["training_speed"]["pairs_per_second"]["train.py"] > 0


def test_an_unknown_part_is_refused():
    done = subprocess.run([str(ROOT / "benchmarks" / "gpu.sh"), "speed"], capture_output=True, text=True)
    assert done.returncode == 2 and "speed" in done.stderr
