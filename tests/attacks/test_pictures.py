# Licensed under the Apache License, Version 2.0.
"""Hostile pictures, arrays and texts: a picture or a ValueError that names it, in bounded time and memory."""

import io
import json
import struct
import subprocess
import sys
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from modeling_tier import load_radiograph


sys.path.insert(0, str(Path(__file__).parents[1]))
from test_reading import FORMATS  # noqa: E402


pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

FUZZ = settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
RAMP = np.linspace(200, 3800, 24 * 32).reshape(32, 24).T.astype(np.uint16)


def holds(image, **options) -> bool:
    """A picture of 8 bits, or a ValueError with a message of one readable line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            picture = load_radiograph(image, **options)
        except ValueError as error:
            message = str(error)
            assert message.startswith(("The image", "frame", "max_", "dicom")) and len(message) < 2000, message
            return False
    assert picture.mode == "RGB" and min(picture.size) > 0
    return True


@st.composite
def damaged(draw, contents: list[bytes]) -> bytes:
    content = bytearray(draw(st.sampled_from(contents)))
    for _ in range(draw(st.integers(0, 6))):
        kind = draw(st.sampled_from(["flip", "cut", "insert", "repeat", "zero", "other"]))
        at = draw(st.integers(0, max(0, len(content) - 1)))
        length = draw(st.integers(1, 64))
        if kind == "flip" and content:
            content[at] ^= draw(st.integers(1, 255))
        elif kind == "cut":
            del content[at : at + length if draw(st.booleans()) else len(content)]
        elif kind == "insert":
            content[at:at] = draw(st.binary(max_size=64))
        elif kind == "repeat":
            content[at:at] = content[at : at + length]
        elif kind == "zero":
            content[at : at + length] = bytes(len(content[at : at + length]))
        else:
            other = draw(st.sampled_from(contents))
            content[at : at + length] = other[at : at + length]
    return bytes(content)


@pytest.mark.parametrize("kind", [*FORMATS, "JPEG", "JPEG 2000", "WebP", "AVIF", "GIF", "PPM", "MPO"])
def test_damaged_files(kind):
    if kind in FORMATS:
        content = FORMATS[kind](RAMP)
    else:
        file, picture = io.BytesIO(), Image.fromarray((RAMP // 16).astype(np.uint8))
        name = {"JPEG 2000": "JPEG2000"}.get(kind, kind)
        if name not in Image.SAVE and Image.init() and name not in Image.SAVE:
            pytest.skip(f"Pillow cannot write {kind}")
        picture.save(file, name)
        content = file.getvalue()

    @FUZZ
    @given(damaged([content]), st.sampled_from([None, 1, 2, 7]))
    def attack(damaged_content, frame):
        holds(damaged_content, frame=frame)

    attack()


def test_bytes_of_no_format_and_of_several():
    heads = [
        b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"II*\0", b"MM\0*", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"BM", b"P5 ",
        b"\0" * 128 + b"DICM", b"\x08\0\x05\0CS", b"\0\0\0\x0cjP  ",
    ]  # fmt: skip

    @FUZZ
    @given(st.sampled_from(heads), st.binary(max_size=300))
    def attack(head, rest):
        holds(head + rest)

    attack()


def test_arrays_of_every_type_and_shape():
    kinds = st.one_of(
        hnp.scalar_dtypes(), hnp.unicode_string_dtypes(), hnp.byte_string_dtypes(), hnp.datetime64_dtypes(),
        hnp.array_dtypes(max_size=3),
    )  # fmt: skip
    arrays = kinds.flatmap(
        lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=9))
    )

    @FUZZ
    @given(arrays)
    def attack(array):
        holds(array)
        if array.dtype.kind in "fiu" and array.dtype.isnative and array.dtype.itemsize <= 8:
            holds(torch.from_numpy(array.copy()))

    attack()


def test_things_that_are_no_pictures():
    things = st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=30), st.binary(max_size=30)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(st.sampled_from(["bytes", "path", "image", "x"]), inner, max_size=3),
        ),
    )

    @FUZZ
    @given(things)
    def attack(thing):
        holds(thing)

    attack()


def test_texts_and_options_of_the_processor(processor):
    words = st.text(st.characters(), max_size=40)  # surrogates among them
    things = st.one_of(
        words, st.lists(st.one_of(words, st.none(), st.integers()), max_size=4), st.binary(), st.floats()
    )

    @FUZZ
    @given(things)
    def attack(text):
        try:
            batch = processor(text=text)
        except ValueError as error:
            assert str(error)
        else:
            assert batch["input_ids"].shape[1] <= 24 and batch["input_ids"].max() < len(processor.tokenizer)

    attack()


def test_elements_of_dicom_files():
    pydicom = pytest.importorskip("pydicom")
    content = FORMATS["DICOM"](RAMP)
    names = ["Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel",
             "PhotometricInterpretation", "NumberOfFrames", "WindowCenter", "WindowWidth", "RescaleSlope", "Modality",
             "RescaleIntercept", "VOILUTFunction", "PresentationLUTShape", "PixelPaddingValue", "PlanarConfiguration",
             "VOILUTSequence", "ModalityLUTSequence", "PixelPaddingRangeLimit", "SOPClassUID"]  # fmt: skip
    values = st.one_of(
        st.none(), st.integers(-(2**15), 2**16), st.floats(-1e30, 1e30).map(lambda x: f"{x:.6g}"),
        st.sampled_from(["", "LINEAR", "SIGMOID", "MONOCHROME1", "RGB", "PALETTE COLOR", "YBR_FULL", "SEG", "1\\2"]),
        st.just([pydicom.Dataset()]),
    )  # fmt: skip

    @FUZZ
    @given(
        st.dictionaries(st.sampled_from(names), values, max_size=4),
        st.sampled_from(["window", "full_range", "equalized"]),
    )
    def attack(elements, contrast):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dicom_file = pydicom.dcmread(io.BytesIO(content))
            file = io.BytesIO()
            try:
                for name, value in elements.items():
                    setattr(dicom_file, name, value)
                dicom_file.save_as(file)
            except Exception:
                return  # no such file can be written
        holds(file.getvalue(), dicom_contrast=contrast)

    attack()


def png(width: int, height: int, chunks: list[tuple[bytes, bytes]]) -> bytes:
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunk(*item) for item in chunks) + chunk(b"IEND", b"")


def deflated_dicom() -> bytes:
    pydicom = pytest.importorskip("pydicom")
    dicom_file = pydicom.dcmread(io.BytesIO(FORMATS["DICOM"](RAMP)))
    dicom_file.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    dicom_file.PixelData = bytes(3 * 2**29)
    file = io.BytesIO()
    dicom_file.save_as(file, enforce_file_format=True)
    return file.getvalue()


def dicom_of_another_size() -> bytes:
    """It says 16 x 16, and its JPEG 2000 frame has 400 million pixels in 2 kB."""
    pydicom = pytest.importorskip("pydicom")
    dicom_file = pydicom.dcmread(io.BytesIO(FORMATS["DICOM"](np.zeros((16, 16), np.uint16))))
    dicom_file.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
    frame = saved(Image.new("L", (20_000, 20_000)), "JPEG2000", no_jp2=True)
    dicom_file.PixelData = pydicom.encaps.encapsulate([frame])
    dicom_file["PixelData"].VR = "OB"
    file = io.BytesIO()
    dicom_file.save_as(file, enforce_file_format=True)
    return file.getvalue()


def saved(picture: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


BOMBS = {
    "1 x 60,000": lambda: saved(Image.new("L", (1, 60_000)), "PNG"),
    "13,000 x 13,000": lambda: saved(Image.new("1", (13_000, 13_000)), "PNG"),
    "2^31 - 1 squared": lambda: png(2**31 - 1, 2**31 - 1, [(b"IDAT", zlib.compress(b"\0" * 99))]),
    "text that inflates": lambda: png(9, 9, [(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**28)))]),
    "profile that inflates": lambda: png(9, 9, [(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**28)))]),
    "GIF with a large screen": lambda: b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\0\0\0;",
    "GIF of many frames": lambda: saved(
        Image.new("L", (500, 500)),
        "GIF",
        save_all=True,
        append_images=[Image.new("L", (500, 500), i) for i in range(200)],
    ),
    "deflated DICOM": deflated_dicom,
    "compressed DICOM": dicom_of_another_size,
    "at the limit": lambda: saved(Image.new("L", (8000, 8000)), "PNG"),
}

MEASURED = """
import json, resource, sys, time
from modeling_tier import load_radiograph
content = open(sys.argv[1], "rb").read()
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
try:
    load_radiograph(content)
    answer = "read"
except ValueError as error:
    answer = str(error)
mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(json.dumps({"answer": answer, "seconds": time.process_time() - start, "mib": mib, "bytes": len(content)}))
"""


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_bounded(kind, tmp_path):
    (tmp_path / "bomb").write_bytes(BOMBS[kind]())
    run = subprocess.run([sys.executable, "-c", MEASURED, tmp_path / "bomb"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    print(kind, result)
    assert result["seconds"] < 10 and result["mib"] < 2300, result
    assert (result["answer"] == "read") == (kind == "at the limit") or "inflates" in kind, result


def test_a_server_without_end_is_given_up(monkeypatch):
    """It sends a byte now and then, for ever."""
    import http.server
    import threading

    from modeling_tier import reading_tier

    class Slow(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"x" * (2**20 if self.path == "/fast" else 1))
                    time.sleep(0 if self.path == "/fast" else 0.05)
            except OSError:
                pass

        def log_message(self, *arguments):
            pass

    monkeypatch.setattr(reading_tier, "MAX_DOWNLOAD_SECONDS", 2.0)
    monkeypatch.setattr(reading_tier, "MAX_DOWNLOAD_BYTES", 2**25)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for path, message in (("slow", "more than 2 seconds"), ("fast", "more than 32 MiB")):
            start = time.monotonic()
            with pytest.raises(ValueError, match=message):
                load_radiograph(f"http://127.0.0.1:{server.server_address[1]}/{path}")
            assert time.monotonic() - start < 20
        server.shutdown()
