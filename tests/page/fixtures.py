# Licensed under the Apache License, Version 2.0.
"""For `pytest_plugins`: two small models, a radiograph of 16 bits, and the page that serves them."""

import json
import secrets
import socket
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertConfig, CLIPImageProcessor

from modeling_tier import TierConfig, TierModel, TierProcessor, TierZeroShotPipeline
from page import build_page, launch
from page.answers import COSINE
from page.painting import BY_VALUE


LOOPBACK = ("127.0.0.1", "localhost", "::1")


@pytest.fixture(scope="session")
def page_models(tokenizer) -> dict[str, TierZeroShotPipeline]:
    """Two small ones of random weights; the second has contributions."""
    from conftest import IMAGE_SIZE, TEXT_CONFIGS, VISION_CONFIGS

    text = BertConfig(**TEXT_CONFIGS["bert"].to_diff_dict() | {"vocab_size": len(tokenizer)})
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    made = {}
    for seed, name in enumerate(("clip", "tier")):
        torch.manual_seed(seed)
        config = TierConfig(
            text_config=text,
            vision_config=VISION_CONFIGS["clip"],
            projection_dim=16,
            logit_scale_init_value=1.5,
            image_pooling="mean" if name == "tier" else "cls",
        )
        processor = TierProcessor(image_processor=image_processor, tokenizer=tokenizer)
        made[name] = TierZeroShotPipeline(model=TierModel(config).eval(), processor=processor)
    return made


def pixels(height: int, width: int) -> np.ndarray:
    """A ramp with a bright square, of 16 bits that a reader of 8 bits would turn white."""
    ramp = np.linspace(1000, 30000, height * width).reshape(height, width)
    ramp[: height // 3, : width // 3] = 40000
    return ramp.astype(np.uint16)


@pytest.fixture
def radiograph(tmp_path) -> Path:
    path = tmp_path / "radiograph.png"
    Image.fromarray(pixels(60, 90)).save(path)
    return path


class Server:
    """A page that runs, and the folder in which Gradio would keep files."""

    def __init__(self, page, address: str, folder: Path):
        self.page, self.address, self.folder = page, address.rstrip("/"), folder
        self.functions = {d["api_name"]: d["id"] for d in page.config["dependencies"]}

    def files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file()]

    def pictures_of_sessions(self) -> set[str]:
        """Those among the inputs and outputs of calls that Gradio has kept with their sessions."""
        first = {str(component["props"].get("value")) for component in self.page.config["components"]}
        sessions = self.page.state_holder.session_data.values()
        values = {str(c.get("props", {}).get("value")) for one in sessions for c in one.config_values.values()}
        return {value for value in values - first if "data:image" in value}

    def is_empty(self) -> bool:
        """Whether nothing of an upload is left, on the disk or in memory; what is broken off takes a moment."""
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and (self.files() or self.page.uploads.num_bytes()):
            time.sleep(0.02)
        waiting = len(self.page.uploads) or self.page.uploads.num_bytes()
        return not self.files() and not waiting and not self.pictures_of_sessions()


class Visitor:
    """Speaks with the page as a browser does, by HTTP."""

    def __init__(self, server: Server, key: str | None = None):
        self.server, self.key = server, key or secrets.token_hex(8)
        self.http = httpx.Client(base_url=f"{server.address}/gradio_api", timeout=120)

    def upload(self, content: bytes, name: str = "radiograph.png") -> httpx.Response:
        return self.http.post("/upload", files={"files": (name, content)})

    def call(self, function: str, *data) -> list | None:
        """The new values that an event gives; None if it fails in another way than by a message on the page."""
        body = {"data": list(data), "fn_index": self.server.functions[function], "session_hash": self.key}
        self.http.post("/queue/join", json=body).raise_for_status()
        with self.http.stream("GET", "/queue/data", params={"session_hash": self.key}) as lines:
            for line in lines.iter_lines():
                if line.startswith("data:"):
                    message = json.loads(line[5:])
                    if message["msg"] == "process_completed":
                        return message["output"].get("data") if message["success"] else None
        return None

    def take(
        self, path: str, findings: str = "left effusion", sentence: str = "Left effusion.", kind: str = COSINE
    ) -> dict:
        """What the page shows of an upload: `alert`, `status`, `preview`, `scores`, ..."""
        file = {"path": path, "orig_name": Path(path).name, "meta": {"_type": "gradio.FileData"}}
        values = self.call("take", file, findings, sentence, BY_VALUE, kind)
        names = ("drawing", "preview", "status", "scores", "maps", "word", "word_maps", "alert")
        return dict(zip(names, values, strict=True)) if values else {}


@pytest.fixture(scope="module")
def server(page_models, tmp_path_factory):
    """The page; nothing outside of this machine may be connected to meanwhile."""
    folder = tmp_path_factory.mktemp("gradio")
    connected, connect = [], socket.socket.connect

    def note(self, address):
        connected.append(address)
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        patch.setattr(socket.socket, "connect", note)
        page = build_page(page_models)
        _, address, _ = launch(page)
        yield Server(page, address, folder)
        page.close()
    assert not [entry for entry in connected if isinstance(entry, tuple) and entry[0] not in LOOPBACK]
