# Licensed under the Apache License, Version 2.0.
"""A wrong name of a model is answered at once, whether the Hub can be reached or not."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from modeling_tier import hub_access
from modeling_tier.data import load_pairs
from modeling_tier.hub_access import hub_or_cache
from modeling_tier.loading import check_model_name
from tier_cli.names import check_model_names, check_order


ROOT = Path(__file__).parents[1]
CLOSED = "http://127.0.0.1:9"  # the port "discard", on which nothing listens


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", CLOSED)


def test_a_hub_that_is_not_reached_is_said_without_retries(online, tmp_path, monkeypatch):
    started = time.monotonic()
    with pytest.raises(
        ValueError, match=rf"named 'user/model' among .*downloaded before; the Hub \({CLOSED}\) was not"
    ):
        check_model_name("user/model")
    (tmp_path / "user" / "models").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"was not reached\. Did you mean the folder user/models\?"):
        check_model_name("user/model")
    assert time.monotonic() - started < 10  # huggingface_hub's own retries take 24 s
    assert not constants.HF_HUB_OFFLINE


def test_a_hub_that_never_answers_is_not_waited_for(online, monkeypatch):
    monkeypatch.setattr(hub_access, "MAX_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        with hub_or_cache("user/model") as not_asked:
            assert "did not answer within 0.2 s (HF_HUB_ETAG_TIMEOUT)" in not_asked and constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


def test_a_data_set_of_a_hub_that_is_not_reached(online):
    with pytest.raises(ValueError, match=rf"user/data, split 'test', .*: the Hub \({CLOSED}\) was not reached"):
        load_pairs("chestxray14", "test", data_dir="user/data")


def test_the_hub_is_not_asked_for_folders(online, tmp_path):
    with hub_or_cache(str(tmp_path), None) as not_asked:
        assert not_asked is None and not constants.HF_HUB_OFFLINE


def test_offline_by_choice_is_said(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="downloaded before; HF_HUB_OFFLINE is set"):
        check_model_name("user/model")
    assert constants.HF_HUB_OFFLINE


def test_names_that_are_plainly_paths(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "tier").mkdir(parents=True)
    check_model_names("runs/tier", "./runs/tier", "user/model", "gpt2", str(tmp_path / "runs" / "tier"))
    for name, reason in {
        "./runs/teir": r"\. Did you mean runs/tier\?",
        "runs/demo/tier": r"runs has no demo\.",
        str(tmp_path / "nowhere" / "x"): f"{tmp_path} has no nowhere",
        "nowhere/": f"{tmp_path} has no nowhere",
    }.items():
        with pytest.raises(
            SystemExit, match=f"^error: There is no folder and no Hub repository named '{name}'.*{reason}"
        ):
            check_model_names("runs/tier", name)


def test_exchanged_arguments(tmp_path):
    model = tmp_path / "tier"
    model.mkdir()
    (model / "config.json").write_text("{}")
    check_order(str(model), str(tmp_path / "onnx"), "")
    check_order("user/model", str(tmp_path / "onnx"), "")
    with pytest.raises(SystemExit, match=r"onnx is no folder of a model, and .*tier is one: it comes first, as in: X"):
        check_order(str(tmp_path / "onnx"), str(model), "X")


@pytest.mark.slow
def test_what_was_downloaded_before_is_used_without_the_hub(tmp_path):
    repository = tmp_path / "hub" / "models--user--model"
    commit = "0" * 40
    shutil.copytree(ROOT / "configs" / "demo_start", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code = "from modeling_tier.loading import load_model; print(type(load_model('user/model')[0]).__name__)"
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": CLOSED, "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.stdout.strip() == "TierModel" and "Retrying" not in done.stderr, done.stderr


@pytest.mark.parametrize(("status", "message"), [(403, "403"), (401, r"It refuses your token: run `hf auth login`")])
def test_a_hub_that_refuses_is_not_said_to_be_silent(online, monkeypatch, status, message):
    class Refusing(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status if "resolve" in self.path else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        with pytest.raises(
            ValueError, match=rf"'user/model' is not on this disk, and the Hub .* does not give it: .*{message}"
        ):
            check_model_name("user/model")
        server.shutdown()


@pytest.mark.parametrize("name", ["./" + "a" * 300, "~nobody-of-this-name/tier", "~/models/not-there"])
def test_names_that_no_folder_can_have_are_no_traceback(name):
    with pytest.raises(SystemExit, match="There is no folder and no Hub repository named"):
        check_model_names(name)
