# Licensed under the Apache License, Version 2.0.
"""Uploads: none is kept, none stops the page for others, and no answers are mixed."""

import io
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from page.answers import COSINE, Picture
from page.painting import BY_VALUE
from page.sessions import Session, Sessions
from page.uploads import MAX_BODY_BYTES, MAX_UPLOAD_BYTES, from_data_uri, safe_name
from tests.page.fixtures import Visitor, pixels


pytest_plugins = ["tests.page.fixtures"]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio")

ROOT = Path(__file__).parents[2]


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def empty_png(width: int, height: int) -> bytes:
    """A small file of a black picture of any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + check

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    compressor, rows = zlib.compressobj(9), []
    for _ in range(height):
        rows.append(compressor.compress(bytes(1 + width)))
    data = b"".join(rows) + compressor.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_an_upload_is_read_once_and_deleted(server, radiograph):
    visitor = Visitor(server)
    (path,) = visitor.upload(radiograph.read_bytes()).json()
    assert len(server.page.uploads) == 1 and not server.files()
    shown = visitor.take(path)
    assert shown["alert"] == "" and "Read “radiograph.png”" in shown["status"]
    assert server.is_empty()
    assert "no longer kept" in visitor.take(path)["alert"]


def test_twenty_users_send_the_same_picture_and_their_own_findings(server, radiograph):
    content, start = radiograph.read_bytes(), threading.Barrier(20)

    def visit(number: int) -> dict:
        visitor = Visitor(server)
        start.wait()
        (path,) = visitor.upload(content).json()
        return visitor.take(path, f"finding {number}", f"Sentence {number}.")

    with ThreadPoolExecutor(20) as pool:
        all_shown = list(pool.map(visit, range(20)))
    for number, shown in enumerate(all_shown):
        assert shown["alert"] == "" and "radiograph.png" in shown["status"]
        assert re.findall(r'scope="row">(.*?)<', shown["scores"]) == [f"finding {number}"]
        assert f"Sentence {number}." in shown["word_maps"]
    assert server.is_empty()


def test_an_upload_that_is_broken_off_leaves_nothing(server):
    host, port = server.address.removeprefix("http://").split(":")
    for sent in (b"", b"x" * 3_000_000):
        with socket.create_connection((host, int(port))) as connection:
            body = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + sent
            connection.sendall(
                b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
                b"Content-Length: 9000000\r\n\r\n" + body
            )
            time.sleep(0.3)
        assert server.is_empty()


def test_a_file_that_is_too_large_is_refused_and_leaves_nothing(server):
    def content():
        yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        for _ in range(MAX_UPLOAD_BYTES // 2**20 + 2):
            yield bytes(2**20)

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    try:
        response = httpx.post(f"{server.address}/gradio_api/upload", content=content(), headers=headers, timeout=60)
        assert response.status_code == 413
    except httpx.TransportError:  # the connection is closed while the client still writes
        pass
    assert server.is_empty()


def test_a_request_of_another_kind_is_limited_too(server):
    """A data URI stays in memory while its call waits."""
    address = f"{server.address}/gradio_api/queue/join"
    assert httpx.post(address, content=bytes(MAX_BODY_BYTES + 1), timeout=60).status_code == 413

    def content():
        for _ in range(MAX_BODY_BYTES // 2**20 + 2):
            yield bytes(2**20)

    try:
        assert httpx.post(address, content=content(), timeout=60).status_code >= 400
    except httpx.TransportError:  # the connection is closed while the client still writes
        pass
    with pytest.raises(ValueError, match="may have at most 10 MB: upload it"):
        from_data_uri("data:image/png;base64," + "A" * 14_000_000)
    assert server.is_empty()


def test_what_waits_too_long_or_is_too_much_is_not_kept(server, monkeypatch):
    visitor = Visitor(server)
    monkeypatch.setattr(server.page.uploads, "max_waiting_seconds", 0.1)
    visitor.upload(b"x" * 1000)
    assert server.is_empty()
    monkeypatch.setattr(server.page.uploads, "max_total_bytes", 10_000)
    assert visitor.upload(b"x" * 20_000).status_code == 503
    assert server.is_empty()


@pytest.mark.parametrize("width, height", [(1, 60_000), (60_000, 1), (13_000, 13_000)])
def test_a_picture_that_would_stop_the_page_is_refused_at_once(server, width, height):
    content, visitor, process = empty_png(width, height), Visitor(server), psutil.Process()
    (path,) = visitor.upload(content, "bomb.png").json()
    memory, begin = process.memory_info().rss, time.monotonic()
    shown = visitor.take(path)
    assert time.monotonic() - begin < 3 and process.memory_info().rss - memory < 100 * 2**20
    assert "bomb.png cannot be read" in shown["alert"] and f"{width} x {height}" in shown["alert"]
    assert server.is_empty()


@pytest.mark.parametrize(
    "name, shown",
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\Jane Doe\\chest.png", "chest.png"),
        ("a\u202egnp.exe", "agnp.exe"),
        ("\ud800.png", "\ufffd.png"),
        ("a" * 5000 + ".png", "a" * 96 + ".png"),
        ("", "unnamed"),
        ("...", "unnamed"),
        ("\x00\x1b[31m.png", "[31m.png"),
        ("röntgen 1.png", "röntgen 1.png"),
    ],
)
def test_a_hostile_name_is_shown_without_harm(name, shown):
    assert safe_name(name) == shown


def test_markup_in_a_name_is_text(server, radiograph):
    visitor = Visitor(server)
    (path,) = visitor.upload(radiograph.read_bytes(), "<img src=x onerror=alert(1)>.png").json()
    preview = visitor.take(path)["preview"]
    assert "&lt;img src=x onerror=alert(1)&gt;.png" in preview and "<img src=x" not in preview


def test_only_ones_own_token_opens_an_upload(server, radiograph, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(radiograph.read_bytes())
    visitor = Visitor(server)
    visitor.upload(radiograph.read_bytes())
    guess = server.folder / secrets.token_urlsafe(24) / "radiograph.png"
    for path in (str(guess), str(secret), str(server.folder / "x" / ".." / ".." / "secret.png"), "/etc/hostname"):
        shown = visitor.take(path)
        assert not shown or "no longer kept" in shown["alert"]
    assert len(server.page.uploads) == 1
    server.page.uploads.clear()


@pytest.mark.parametrize(
    "function, text, message",
    [
        ("read", "\n".join(f"finding {i}" for i in range(5000)), "The findings may have at most 2,412 characters"),
        ("read", "\n".join("abcdefghijklmnop"), "At most 12 findings at a time; these are 16"),
        ("read", "x" * 300, "A finding may have at most 200 characters; this text has 300"),
        ("read", "\x00 . \u200b", "Write at least one finding"),
        ("split", "x" * 401, "A sentence may have at most 400 characters"),
        ("split", "x " * 60, "at most 40 words; this one has 60"),
        ("split", " \x00", "Write a sentence"),
    ],
)
def test_a_text_that_is_too_much_or_nothing_is_refused(server, function, text, message):
    assert message in Visitor(server).call(function, 0, text, text, BY_VALUE, COSINE)[-1]


def test_a_surrogate_in_a_finding_is_replaced(server):
    visitor = Visitor(server)
    data = [0, "left EFFUSION", "Effusion.", BY_VALUE, COSINE]
    body = json.dumps({"data": data, "fn_index": server.functions["read"], "session_hash": visitor.key})
    visitor.http.post(
        "/queue/join",
        content=body.replace("EFFUSION", "\\ud800 effusion").encode(),  # half of a pair, which UTF-8 does not have
        headers={"Content-Type": "application/json"},
    ).raise_for_status()
    with visitor.http.stream("GET", "/queue/data", params={"session_hash": visitor.key}) as lines:
        answer = "".join(lines.iter_lines())
    assert "left \\ufffd effusion" in answer or "left \ufffd effusion" in answer


def test_pictures_are_forgotten_above_the_ceiling():
    sessions = Sessions(max_bytes=250_000, max_sessions=3)
    for key in "abc":
        sessions.put(key, Session(Picture(key, Image.new("L", (300, 300)))))
    assert sessions.get("a").own is None and sessions.get("c").own.name == "c" and len(sessions) == 2
    for key in "defg":
        sessions.put(key, Session())
    assert len(sessions) == 3 and sessions.get("c").own is None
    sessions.forget("g")
    sessions.put("g", Session(Picture("late", Image.new("L", (9, 9)))))  # an event that ends after its window
    assert sessions.get("g").own is None and len(sessions) == 2


@pytest.mark.slow
def test_a_crash_leaves_no_picture_and_the_page_starts_again(page_models, tmp_path):
    """Killed with an upload that waits and one that arrives; its folders are looked through while it is dead."""
    page_models["tier"].save_pretrained(tmp_path / "model")
    mark = b"THIS IS A PATIENT" * 100_000
    environment = os.environ | {"TMPDIR": str(tmp_path / "temporary"), "PYTHONPATH": str(ROOT)}
    (tmp_path / "temporary").mkdir()
    command = [sys.executable, str(ROOT / "app.py"), "--model", str(tmp_path / "model")]
    for _ in range(2):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        line = next(line for line in process.stdout if "The page is at" in line)
        address = line.split()[-1].rstrip("/")
        assert httpx.post(f"{address}/gradio_api/upload", files={"files": ("a.png", mark)}).status_code == 200
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=10)
        assert not [path for path in (tmp_path / "temporary").rglob("*") if path.is_file()]


@pytest.mark.slow
def test_a_large_picture_is_read(server):
    """Larger than any detector's, and still within seconds."""
    content, visitor = png(np.tile(pixels(500, 500), (9, 9))), Visitor(server)
    (path,) = visitor.upload(content).json()
    begin = time.monotonic()
    assert visitor.take(path)["alert"] == ""
    assert time.monotonic() - begin < 30
