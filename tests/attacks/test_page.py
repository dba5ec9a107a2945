# Licensed under the Apache License, Version 2.0.
"""
Attacks on the page: files, names, texts, requests. After each of them the page answers others, nothing of an upload is
left, and no answer shows a path, a traceback or markup of the attacker's.

    pytest -s tests/attacks/test_page.py        # prints how many were tried, and which broke something
"""

import io
import json
import math
import random
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image, PngImagePlugin

from page.answers import COSINE
from page.painting import BY_VALUE
from tests.page.fixtures import Server, Visitor, pixels


pytest_plugins = ["tests.page.fixtures"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio"),
]

MAX_SECONDS, MAX_SECONDS_OF_MANY, MAX_MEMORY = 20, 120, 1500 * 2**20
SIGNS = ("Traceback", "site-packages", "/home/", "/root/", 'File "', "<script>alert", "onerror=alert(1)>", "root:x:0")
# What Gradio shows as text: names of radio buttons, and messages of its own.
NO_MARKUP = re.compile(r'"choices": *\[\[.*?\]\]|"error": *"(\\.|[^"\\])*"')

Attack = tuple[str, Callable[[Server], object]]


# Files


def encode(kind: str, array: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, data: bytes, depth: int = 8, colour: int = 0, more: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bomb(width: int, height: int) -> bytes:
    compressor = zlib.compressobj(9)
    rows = [compressor.compress(bytes(1 + width)) for _ in range(height)]
    return png(width, height, b"".join(rows) + compressor.flush())


def dicom(cut: int | None = None, **tags) -> bytes:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    plain = {"Rows": 60, "Columns": 90, "SamplesPerPixel": 1, "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15}
    plain |= {"PixelRepresentation": 0, "PhotometricInterpretation": "MONOCHROME2"}
    plain |= {"PixelData": pixels(60, 90).tobytes(), "PatientName": "Doe^Jane"}
    for name, value in (plain | tags).items():
        if value is not None:
            setattr(file, name, value)
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()[:cut]


def hostile_files() -> Iterator[tuple[str, bytes]]:
    grey = (pixels(60, 90) // 256).astype(np.uint8)
    plain = {kind: encode(kind, grey) for kind in ("PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP")}
    plain["16-bit PNG"] = encode("PNG", pixels(60, 90))
    plain["DICOM"] = dicom()
    rng = random.Random(0)
    for kind, content in plain.items():
        for fraction in (0.01, 0.1, 0.3, 0.5, 0.8, 0.99):
            yield f"{kind} cut at {fraction}", content[: int(fraction * len(content))]
        for i in range(6):
            damaged = bytearray(content)
            for _ in range(5):
                damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
            yield f"{kind} with flipped bits {i}", bytes(damaged)
    for width, height in ((1, 60_000), (60_000, 1), (13_000, 13_000), (30_000, 1_500), (7_000, 5_700), (3, 59)):
        yield f"PNG of {width} x {height}", bomb(width, height)
    yield "PNG that says 2 billion", png(2**31 - 1, 2**31 - 1, zlib.compress(b""))
    yield "PNG of no pixels", png(0, 0, zlib.compress(b""))
    yield "PNG without data", png(100, 100, zlib.compress(b""))
    yield "PNG of too much data", png(2, 2, zlib.compress(bytes(10**8)))
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))
    yield "PNG with a text of 100 MB", png(2, 2, zlib.compress(bytes(6)), more=text)
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**8)))
    yield "PNG with a profile of 100 MB", png(2, 2, zlib.compress(bytes(6)), more=profile)
    info = PngImagePlugin.PngInfo()
    info.add_text("<script>alert(1)</script>", "x")
    yield "PNG with markup inside", encode("PNG", grey, pnginfo=info)
    frames = [Image.fromarray(grey)] * 300
    for kind in ("PNG", "GIF", "TIFF", "WEBP"):
        buffer = io.BytesIO()
        frames[0].save(buffer, kind, save_all=True, append_images=[Image.fromarray(grey[::-1].copy()), *frames])
        yield f"{kind} of 300 frames", buffer.getvalue()
    yield "GIF that says 65535 x 65535", b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x00\x00\x00," + bytes(30)
    yield "TIFF whose directory is its own next", b"II*\0\x08\0\0\0\0\0\x08\0\0\0"
    for width, height in ((2**31 - 1, 2**31 - 1), (65535, 65535)):
        entries = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (279, 4, 1)]
        body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", t, k, 1, v) for t, k, v in entries)
        yield f"TIFF that says {width} x {height}", b"II*\0\x08\0\0\0" + body + bytes(4)
    yield (
        "BMP of negative height",
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 99, 0, 54, 40, 10, -(2**31), 1, 24, *[0] * 6),
    )
    for value in (math.nan, math.inf, -math.inf, 1e38):
        yield f"TIFF of {value}", encode("TIFF", np.full((50, 50), value, np.float32))
    yield "TIFF of one value", encode("TIFF", np.zeros((50, 50), np.float32))
    yield "one pixel", encode("PNG", grey[:1, :1])
    yield "EXIF that is none", plain["JPEG"][:2] + b"\xff\xe1\x00\x10Exif\0\0" + bytes(8) + plain["JPEG"][2:]
    yield "CMYK", encode("JPEG", np.zeros((50, 50, 4), np.uint8)[..., :3])
    for name, content in {
        "nothing": b"",
        "one byte": b"\x89",
        "a zip": b"PK\x03\x04" + bytes(100),
        "a pickle": b"cos\nsystem\n(S'touch /tmp/owned'\ntR.",
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touch /tmp/owned) system",
        "PDF": b"%PDF-1.4\n" + bytes(100),
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        "a web page": b"<!doctype html><script>alert(1)</script>",
        "a FIFO's name": b"/dev/zero",
        "noise": random.Random(1).randbytes(100_000),
        "zeros": bytes(10**6),
        "DICM and noise": bytes(128) + b"DICM" + random.Random(2).randbytes(5000),
        "DICM alone": bytes(128) + b"DICM",
    }.items():
        yield name, content
    for name, tags in {
        "Rows 65535": {"Rows": 65535, "Columns": 65535},
        "Rows 0": {"Rows": 0},
        "one column": {"Columns": 1, "Rows": 5400},
        "a million frames": {"NumberOfFrames": 1_000_000},
        "frames below zero": {"NumberOfFrames": -1},
        "no pixels": {"PixelData": None},
        "few pixels": {"PixelData": b"\0\0"},
        "no size": {"Rows": None, "Columns": None},
        "7 bits": {"BitsAllocated": 7},
        "more bits stored than there are": {"BitsStored": 32},
        "5 samples": {"SamplesPerPixel": 5},
        "an unknown interpretation": {"PhotometricInterpretation": "<b>x</b>"},
        "a slope of 1e308": {"RescaleSlope": "1e308", "RescaleIntercept": "-1e308"},
        "a slope of nan": {"RescaleSlope": "nan", "RescaleIntercept": "0"},
        "a window of no width": {"WindowCenter": "1000", "WindowWidth": "0"},
        "a palette that is not there": {"PhotometricInterpretation": "PALETTE COLOR"},
    }.items():
        try:
            yield f"DICOM with {name}", dicom(**tags)
        except Exception:  # pydicom does not write it
            continue


NAMES = [
    *("../../../etc/passwd", "/etc/passwd", "..\\..\\windows\\win.ini", "C:\\x.png", "~/x.png", ".", "..", "...", " "),
    *("\x00.png", "a\x00b.png", "a\r\nSet-Cookie: x=1", "\u202egnp.exe", "\ufeff.png", "x" * 10_000, "é" * 300),
    *("<img src=x onerror=alert(1)>.png", "{{7*7}}.png", "${7*7}", "'; DROP TABLE x; --", '"quoted".png', "a;b=c.png"),
    *("CON", "NUL.png", "-rf", "$(touch owned)", "`touch owned`", "|touch owned", "a/b/c.png", "http://x/y.png"),
]
TEXTS = [
    *(
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "</textarea><script>alert(1)</script>",
        "&lt;b&gt;",
    ),
    *("{{7*7}}", "{% for x in y %}", "${7*7}", "{}", "{0}", "%s%s%n", "javascript:alert(1)", "\\u003cscript\\u003e"),
    *(
        "\x00",
        "a\x00b",
        "\x1b[31m",
        "\u202e",
        "\u2066a",
        "\ufeff",
        "\u200b" * 50,
        "a" + "\u0301" * 150,
        "\uffff",
        "🩻",
    ),
    *("مرحبا بالعالم", "左側胸水", "ﷺ" * 30, "a\u2028b", "a\x0bb\x0cc\x85d", "\t\t\t", ".", "...", "No .", "-" * 199),
    *(
        "x" * 200,
        "x" * 201,
        "x" * 10**6,
        "a " * 100,
        "a " * 10**5,
        "\n" * 10**5,
        "a\n" * 13,
        "a\nA\na.\n a ",
        "[CLS] [SEP]",
    ),
    *(
        "[UNK] " * 20,
        "[PAD]" * 40,
        "NaN",
        "null",
        "true",
        "0",
        "../../etc/passwd",
        "http://169.254.169.254/",
        "' OR 1=1",
    ),
    *(
        "\n".join(f"f{i} " + "y" * 190 for i in range(12)),
        "\n".join("abcdefghijkl"),
        "\r\n".join("abc"),
        "\ud800",
        "\udfff a",
    ),
]


def take_file(content: bytes, name: str = "x.png") -> Callable[[Server], object]:
    def attack(server: Server):
        visitor = Visitor(server)
        response = visitor.upload(content, name)
        if response.status_code != 200:
            return response.text
        shown = visitor.take(response.json()[0])
        assert shown, "the event failed without a message"
        return json.dumps(shown)

    return attack


def join(server: Server, function: str, data: list) -> list | None:
    """As `Visitor.call`, of data that JSON's UTF-8 may not have."""
    visitor = Visitor(server)
    body = {"data": data, "fn_index": server.functions[function], "session_hash": visitor.key}
    response = visitor.http.post(
        "/queue/join", content=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    assert response.status_code < 500, f"the answer is {response.status_code}"
    with visitor.http.stream("GET", "/queue/data", params={"session_hash": visitor.key}) as lines:
        return "".join(lines.iter_lines())


def ask(text: str) -> Callable[[Server], object]:
    def attack(server: Server):
        answers = "".join(join(server, name, [0, text, text, BY_VALUE, COSINE]) for name in ("read", "split"))
        assert answers.count('"success":true') == 2, "an event failed without a message"
        return answers

    return attack


# Requests


def raw(request: bytes, wait: float = 0.5) -> Callable[[Server], object]:
    def attack(server: Server):
        host, port = server.address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=wait) as connection:
            connection.sendall(request)
            try:
                return connection.recv(100_000).decode("latin-1")
            except TimeoutError:
                return ""

    return attack


def http(method: str, path: str, **options) -> Callable[[Server], object]:
    def attack(server: Server):
        with httpx.stream(method, server.address + path, timeout=5, **options) as response:
            if "event-stream" in response.headers.get("content-type", ""):
                return ""
            text = response.read().decode("utf-8", "replace")
        assert response.status_code < 500 or response.status_code == 503, f"{response.status_code}: {text[:200]}"
        return "" if path == "/" else text

    return attack


def event(function: str | object, data: object, **more) -> Callable[[Server], object]:
    """An event that the page never sends: it may fail, but must harm nobody."""

    def attack(server: Server):
        visitor = Visitor(server)
        index = server.functions.get(function, function) if isinstance(function, str) else function
        body = {"data": data, "fn_index": index, "session_hash": visitor.key} | more
        response = visitor.http.post(
            "/queue/join", content=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
        )
        if response.status_code != 200 or more:
            return response.text
        with visitor.http.stream("GET", "/queue/data", params={"session_hash": visitor.key}, timeout=15) as lines:
            return "".join(lines.iter_lines())

    return attack


def uploads() -> Iterator[Attack]:
    part = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    address = "/gradio_api/upload"
    for method in ("GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"):
        yield f"upload by {method}", http(method, address)
    for path in (
        address + "/",
        address + "//",
        "/upload",
        "/gradio_api//upload",
        "/GRADIO_API/UPLOAD",
        address + "?x=1",
    ):
        yield f"upload to {path}", http("POST", path, files={"files": b"x" * 5000})
    for name, headers, content in (
        ("no type", {}, b"x"),
        ("JSON", {"Content-Type": "application/json"}, b"{}"),
        ("no boundary", {"Content-Type": "multipart/form-data"}, part),
        ("another boundary", {"Content-Type": "multipart/form-data; boundary=c"}, part + b"x\r\n--b--\r\n"),
        ("a boundary of 10,000", {"Content-Type": "multipart/form-data; boundary=" + "b" * 10_000}, part),
        ("no end", form, part + b"x" * 100_000),
        ("no file", form, b'--b\r\nContent-Disposition: form-data; name="files"\r\n\r\nx\r\n--b--\r\n'),
        ("another field", form, part.replace(b'"files"', b'"other"') + b"x\r\n--b--\r\n"),
        ("no name", form, b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n"),
        ("no disposition", form, b"--b\r\n\r\nx\r\n--b--\r\n"),
        ("a long header", form, b"--b\r\nX: " + b"y" * 10**6 + b"\r\n\r\nx\r\n--b--\r\n"),
        ("many headers", form, b"--b\r\n" + b"X: y\r\n" * 50_000 + b"\r\nx\r\n--b--\r\n"),
        ("two files", form, part + b"x\r\n" + part + b"x\r\n--b--\r\n"),
        ("1,000 files", form, (part + b"x\r\n") * 1000 + b"--b--\r\n"),
        ("1,000 fields", form, b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n' * 1000 + b"--b--\r\n"),
        ("a field of 1 MB", form, b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + b"x" * 10**6),
        (
            "a bad charset",
            {"Content-Type": "multipart/form-data; boundary=b; charset=utf-99"},
            part + b"x\r\n--b--\r\n",
        ),
        ("nothing", form, b""),
    ):
        yield f"upload with {name}", http("POST", address, headers=headers, content=content)
    head = b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    yield "upload of less than it says", raw(head + b"Content-Length: 1000000\r\n\r\n" + part)
    yield "upload of more than it says", raw(head + b"Content-Length: 10\r\n\r\n" + part + b"x" * 1000)
    yield "upload of a length below zero", raw(head + b"Content-Length: -1\r\n\r\n" + part)
    yield "upload in chunks without an end", raw(head + b"Transfer-Encoding: chunked\r\n\r\n5\r\n--b\r\n\r\n")
    yield "upload in chunks of nonsense", raw(head + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n")
    yield (
        "a smuggled request",
        raw(head + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n"),
    )
    yield "upload_id of another kind", http("POST", address + "?upload_id=../../x", files={"files": b"x" * 100})


def requests() -> Iterator[Attack]:
    for path in (
        *(
            "/etc/passwd",
            "../../../etc/passwd",
            "..%2f..%2fetc/passwd",
            "/proc/self/environ",
            "app.py",
            "page/uploads.py",
        ),
        *("README.md", ".", "", "%00", "/dev/zero", "http://127.0.0.1/", "file:///etc/passwd", "\\\\x\\y"),
    ):
        yield f"file={path}", http("GET", f"/gradio_api/file={path}")
    for path in (
        *("proxy=http://169.254.169.254/", "proxy=http://127.0.0.1:1/", "stream/x/y/z", "upload_progress?upload_id=x"),
        *("heartbeat/x", "component_server", "deep_link", "queue/status", "info", "api/take", "run/take", "call/take"),
        *(
            "reset",
            "monitoring",
            "theme.css",
            "static/../../app.py",
            "assets/../../../app.py",
            "custom_component/a/b/c/d",
        ),
        *("login", "logout", "token", "app_id", "dev/reload", "cancel", "process_recording", "vibe-editor"),
    ):
        yield f"GET {path}", http("GET", f"/gradio_api/{path}")
        yield f"POST {path}", http("POST", f"/gradio_api/{path}", json={"data": []})
    for name, index in (
        ("-1", -1),
        ("99999", 99_999),
        ("a text", "take"),
        ("null", None),
        ("a list", [1]),
        ("1e400", 1e308),
    ):
        yield f"function {name}", event(index, [])
    for data in (
        [],
        [0],
        [0] * 50,
        {},
        "x",
        None,
        [None] * 5,
        [[]] * 5,
        [{"a": 1}] * 5,
        [10**30] * 5,
        [-1] * 5,
        [1.5] * 5,
    ):
        for function in ("read", "take"):
            yield f"{function} of {str(data)[:30]}", event(function, data)
    for function, data in {
        "switch_word": [BY_VALUE, 99],
        "recolour": [0, "another"],
        "pack": [BY_VALUE],
        "choose": [99, "a", "a", BY_VALUE, COSINE],
        "split": [0, "a", "a", "<script>alert(1)</script>", COSINE],
        "read": [0, "a", "a", BY_VALUE, "<script>alert(1)</script>"],
        "switch_kind": [0, BY_VALUE, "plain"],
    }.items():
        yield f"{function} of {data}", event(function, data)
    for path in (
        *(
            "/etc/passwd",
            "../../../etc/passwd",
            "http://127.0.0.1:1/x.png",
            "http://169.254.169.254/",
            "ftp://x/y",
            "",
        ),
        *(
            "file:///etc/passwd",
            "data:image/png;base64,AAAA",
            "\\\\host\\share",
            "/dev/zero",
            "/proc/self/mem",
            "x" * 10**5,
        ),
    ):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        yield f"take of {path[:40]}", event("take", [file, "a", "a", BY_VALUE, COSINE])
        url = {"path": "x", "url": path, "meta": {"_type": "gradio.FileData"}}
        yield f"take with the url {path[:40]}", event("take", [url, "a", "a", BY_VALUE, COSINE])
    for key in ("", "x" * 10**5, "../../x", "<script>alert(1)</script>", None, 5, ["a"], {"a": 1}):
        yield f"session {str(key)[:30]}", event("read", [0, "a", "a", BY_VALUE, COSINE], session_hash=key)
    yield "JSON of 10,000 lists", http("POST", "/gradio_api/queue/join", content=b"[" * 10_000)
    yield "JSON that is none", http("POST", "/gradio_api/queue/join", content=b"{")
    yield "a body of 50 MB", http("POST", "/gradio_api/queue/join", content=b'{"data": ["' + b"x" * 5 * 10**7 + b'"]}')
    yield "a header of 100 KB", http("GET", "/", headers={"X": "y" * 100_000})
    yield "another host", http("GET", "/", headers={"Host": "evil.example"})
    yield "another origin", http("POST", "/gradio_api/upload", headers={"Origin": "http://evil.example"}, content=b"x")
    yield "no HTTP", raw(b"\x16\x03\x01" + bytes(500))


# Many at once


def at_once(number: int, visit: Callable[[Server, int], object]) -> Callable[[Server], object]:
    def attack(server: Server):
        start = threading.Barrier(number)

        def one(i: int):
            start.wait()
            return visit(server, i)

        with ThreadPoolExecutor(number) as pool:
            return " ".join(str(answer) for answer in pool.map(one, range(number)))

    return attack


def own_findings(server: Server, i: int) -> str:
    visitor = Visitor(server)
    content = encode("PNG", pixels(60, 90) if i % 2 else pixels(60 + i, 90))
    (path,) = visitor.upload(content).json()
    shown = visitor.take(path, f"finding {i}")
    assert f'scope="row">finding {i}<' in shown["scores"] and shown["scores"].count('<th scope="row">') == 1
    return ""


def broken_off(server: Server, i: int) -> str:
    part = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + bytes(10**6)
    head = b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    return raw(head + b"Content-Length: 9000000\r\n\r\n" + part, wait=0.1 + i / 50)(server)


def slow_upload(server: Server, i: int) -> str:
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n")
        connection.sendall(b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n")
        begin = time.monotonic()
        if i == 0:
            own_findings(server, 1)
            assert time.monotonic() - begin < 10, "slow uploads hold others up"
        time.sleep(2)
    return ""


def many() -> Iterator[Attack]:
    yield "20 users", at_once(20, own_findings)
    yield "20 users again", at_once(20, own_findings)
    yield "40 uploads broken off", at_once(40, broken_off)
    yield "60 slow uploads", at_once(60, slow_upload)
    yield "30 bombs", at_once(30, lambda server, i: take_file(bomb(1, 60_000))(server))
    yield "4 pictures of 36 megapixels", at_once(4, lambda server, i: take_file(bomb(6_000, 6_000))(server))


def attacks() -> Iterator[Attack]:
    for name, content in hostile_files():
        yield f"file: {name}", take_file(content)
    good = encode("PNG", pixels(60, 90))
    for name in NAMES:
        yield f"name: {name[:40]!r}", take_file(good, name)
    for text in TEXTS:
        yield f"text: {text[:40]!r}", ask(text)
    yield from uploads()
    yield from requests()
    yield from many()


def what_broke(
    server: Server, attack: Callable[[Server], object], process: psutil.Process, max_seconds: int
) -> str | None:
    """None, if it did no harm."""
    before, begin = process.memory_info().rss, time.monotonic()
    try:
        answer = str(attack(server) or "")
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, ValueError, OSError) as error:
        answer = str(error)  # the attacker's own trouble
    except AssertionError as error:
        return str(error)
    answer = NO_MARKUP.sub("", answer)
    seconds, memory = time.monotonic() - begin, process.memory_info().rss - before
    signs = [sign for sign in SIGNS if sign in answer]
    if signs:
        return f"the answer shows {signs}: {answer[max(0, answer.find(signs[0]) - 100) :][:300]}"
    if seconds > max_seconds or memory > MAX_MEMORY:
        return f"it took {seconds:.0f} s and {memory / 2**20:.0f} MB"
    server.page.uploads.clear()  # those that no event asked for wait ten minutes
    if not server.is_empty():
        return f"left: {server.files()}, {server.page.uploads.num_bytes()} bytes"
    try:
        shown = Visitor(server).call("read", 0, "cardiomegaly", "a", BY_VALUE, COSINE)
    except httpx.HTTPError as error:
        return f"the page does not answer: {error!r}"
    return None if shown and "cardiomegaly" in shown[1] else "the page does not answer others"


def test_attacks(server):
    process, tried, broke = psutil.Process(), 0, {}
    for name, attack in attacks():
        tried += 1
        why = what_broke(server, attack, process, MAX_SECONDS_OF_MANY if name[0].isdigit() else MAX_SECONDS)
        if why:
            broke[name] = why
            print(f"BROKE {name}: {why}", flush=True)
    print(f"\n{tried} tried, {tried - len(broke)} held, {len(broke)} broke")
    assert not broke
