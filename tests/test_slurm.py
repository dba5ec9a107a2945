# Licensed under the Apache License, Version 2.0.
"""configs/slurm.sh beside stand-ins for SLURM's commands: asked to stop, it leaves a checkpoint and is requeued."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
TINY = "--data.options.image_size=32 --data.train.num_images=48 --data.validation.num_images=40 --model.image_size=32"
TINY += " --model.text_config.num_hidden_layers=1 --training.batch_size=4 --training.log_every=1"
TINY += " --training.progress=false --evaluation.every_epochs=1000"
COMMANDS = {
    "scontrol": 'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "$CALLS"; fi',
    # As SLURM's own: a signal goes on to the processes of the step, and the end is waited for.
    "srun": 'SLURM_NODEID=0 "$@" & trap "kill -TERM $!" TERM; wait $!; '
    "while kill -0 $! 2>/dev/null; do wait $!; done; wait $!",
    "accelerate": f'exec "{sys.executable}" -m accelerate.commands.accelerate_cli "$@"',
}


@pytest.fixture
def job(tmp_path):
    for name, line in COMMANDS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CALLS": str(tmp_path / "calls")}
    environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "here", "SLURM_JOB_ID": "77"}
    environment |= {"SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2"}

    def submit(*options: str) -> subprocess.Popen:
        command = ["bash", "configs/slurm.sh", "--config", "configs/demo.yaml", *TINY.split(), *options]
        command.append(f"--output_dir={tmp_path / 'run'}")
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=ROOT, env=environment, **streams)

    return submit


@pytest.mark.slow
def test_a_job_that_is_asked_to_stop_is_queued_again_and_goes_on(job, tmp_path):
    process, log = job("--training.epochs=2000"), tmp_path / "run/log.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (log.is_file() and len(log.read_text().splitlines()) > 5):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert "Asked to stop" in output, output[-3000:]
    assert (tmp_path / "calls").read_text() == "requeue 77\n"
    state = json.loads((tmp_path / "run/checkpoints/last/trainer_state.json").read_text())
    assert state["step"] > 5


@pytest.mark.slow
def test_a_job_that_fails_is_not_queued_again(job, tmp_path):
    process = job("--training.epochs=0")
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and "training.epochs" in output
    assert not (tmp_path / "calls").exists()
