# Licensed under the Apache License, Version 2.0.
"""
From a folder that has nothing of this repository: train, evaluate, publish and show a model by the installed commands,
which are those beside the Python that runs this file. `installed_package.sh` makes such an environment.
"""

import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx2 as httpx
from hub import Hub
from PIL import Image


BIN = Path(sys.executable).parent
TINY = (
    "--config demo.yaml --output_dir runs/tiny --data.options.image_size 32 --data.train.num_images 48 "
    "--data.validation.num_images 40 --model.image_size 32 --model.vision_config.embedding_size 8 "
    "--model.projection_dim 16 --training.epochs 1 --training.batch_size 8 --training.progress false"
).split() + [
    "--model.vision_config.hidden_sizes=[8, 16]",
    "--model.vision_config.depths=[1, 1]",
    "--model.text_config.hidden_size=32",
    "--model.text_config.num_hidden_layers=1",
    "--model.text_config.intermediate_size=37",
]
EVALUATE = "--dataset synthetic --num_images 40 --resamples 20 --examples 1 --batch_size 8".split()


def run(*words, folder: Path, environment: dict | None = None, expected: int = 0) -> str:
    command = [str(word) for word in words]
    print("$", Path(command[0]).name, *command[1:], flush=True)
    process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    if process.returncode != expected:
        sys.exit(f"{process.stdout}\n{process.stderr}\nended with {process.returncode}")
    return process.stdout.strip()


def ask_page(address: str, picture: Path) -> str:
    """What the page shows of the scores of an uploaded picture."""
    with httpx.Client(base_url=address, timeout=120) as http:
        config = http.get("/config").json()
        functions = {entry["api_name"]: entry["id"] for entry in config["dependencies"]}
        upload = http.post("/gradio_api/upload", files={"files": ("radiograph.png", picture.read_bytes())})
        file = {"path": upload.json()[0], "orig_name": picture.name, "meta": {"_type": "gradio.FileData"}}
        session = secrets.token_hex(8)
        colours = next(
            c["props"]["value"] for c in config["components"] if c["props"].get("elem_id") == "tier-colours"
        )
        data = [file, "left effusion", "Left effusion.", colours]
        body = {"data": data, "fn_index": functions["take"], "session_hash": session}
        http.post("/gradio_api/queue/join", json=body).raise_for_status()
        with http.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as lines:
            for line in lines.iter_lines():
                message = json.loads(line[5:]) if line.startswith("data:") else {"msg": ""}
                if message["msg"] == "process_completed":
                    return message["output"]["data"][3]
    sys.exit("The page gave no answer.")


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run(BIN / "tier-train", *TINY, folder=folder)
        launch = [BIN / "accelerate", "launch", "--cpu", "--num_processes", 2, "--num_machines", 1]
        launch += ["--mixed_precision", "no", "--dynamo_backend", "no", BIN / "tier-train"]
        run(*launch, *[word.replace("runs/tiny", "runs/two") for word in TINY], folder=folder)
        run(BIN / "tier-evaluate", "--model", "runs/tiny", *EVALUATE, folder=folder)
        metrics = json.loads((folder / "runs/tiny/evaluation/metrics.json").read_text())
        print("  mean AUROC", metrics["metrics"]["classification"]["image"]["mean"]["auroc"]["value"])
        with Hub(folder / "home") as hub:
            environment = hub.environment | {"HF_TOKEN": "hf_writer"}
            run(BIN / "tier-publish", "runs/tiny", "user/tiny", folder=folder, environment=environment)
            print("  files of the repository:", ", ".join(sorted(hub.files("user/tiny"))))
            pull = "from transformers import pipeline; p = pipeline('tier-zero-shot', model='user/tiny', "
            pull += "trust_remote_code=True); print(type(p).__module__)"
            print(" ", run(sys.executable, "-c", pull, folder=folder, environment=environment))
        picture = folder / "radiograph.png"
        Image.linear_gradient("L").save(picture)
        command = [str(BIN / "tier-page"), "--model", "runs/tiny"]
        print("$ tier-page", *command[1:], flush=True)
        environment = os.environ | {"GRADIO_ANALYTICS_ENABLED": "False"}
        with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as page:
            try:
                line = next(line for line in page.stdout if "The page is at" in line)
                shown = ask_page(re.search(r"http://\S+", line).group().rstrip("/"), picture)
            finally:
                page.terminate()
        text = " ".join(re.sub(r"<[^>]*>", " ", shown).split())
        print("  scores:", text[:200])
        assert "left effusion" in text.lower()


if __name__ == "__main__":
    main()
