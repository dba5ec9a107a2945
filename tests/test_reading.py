# Licensed under the Apache License, Version 2.0.
"""load_radiograph: one picture in every form and format gives the same pixels; what cannot be read is named."""

import base64
import http.server
import io
import struct
import threading
import zlib
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from modeling_tier import load_radiograph
from modeling_tier.data.pictures import read_picture


SIZE = (48, 64)  # height, width


def scaled(pixels: np.ndarray) -> np.ndarray:
    """From its smallest and largest value to 0 and 255."""
    pixels = pixels.astype(np.float64)
    return np.round((pixels - pixels.min()) / (pixels.max() - pixels.min()) * 255)


@pytest.fixture
def ramp() -> np.ndarray:
    """A 12-bit radiograph as its detector gives it: values from 200 to 3800, smooth from left to right."""
    return np.linspace(200, 3800, SIZE[0] * SIZE[1]).reshape(SIZE[::-1]).T.astype(np.uint16)


def png_16(pixels: np.ndarray) -> bytes:
    """A PNG file of 16 bits a channel, which Pillow cannot write: (H, W, C) of grey, grey and alpha, RGB or RGBA."""
    height, width, channels = pixels.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff_16(pixels: np.ndarray, byte_order: str, photometric: int) -> bytes:
    """An uncompressed TIFF file of one strip, 16 bits a channel; `byte_order` is "<" or ">"."""
    height, width, channels = pixels.shape
    content = pixels.astype(f"{byte_order}u2").tobytes()
    bits_at, content_at = 8, 8 + 2 * channels
    bits = (channels, 16 if channels == 1 else bits_at)
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, *bits), (259, 3, 1, 1), (262, 3, 1, photometric),
        (273, 4, 1, content_at), (277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, len(content)),
    ]  # fmt: skip
    directory = struct.pack(f"{byte_order}H", len(entries))
    for tag, kind, count, value in entries:
        short = kind == 3 and count == 1
        directory += struct.pack(f"{byte_order}HHI", tag, kind, count)
        directory += struct.pack(f"{byte_order}H2x" if short else f"{byte_order}I", value)
    head = {"<": b"II*\0", ">": b"MM\0*"}[byte_order] + struct.pack(f"{byte_order}I", content_at + len(content))
    bits_values = struct.pack(f"{byte_order}{channels}H", *[16] * channels)
    return head + bits_values + content + directory + struct.pack(f"{byte_order}I", 0)


def saved(picture: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def turned(pixels: np.ndarray) -> bytes:
    """A JPEG file whose EXIF orientation says that it has to be turned by a quarter to the right to be `pixels`."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(Image.fromarray(np.rot90(pixels).copy()), "TIFF", exif=exif)


def dicom(pixels: np.ndarray) -> bytes:
    pydicom = pytest.importorskip("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset = pydicom.dataset.FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = pixels.astype("<u2").tobytes()
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """(H, W, C): the alpha of 2 and 4 channels is the largest value of all."""
    colours = np.repeat(pixels[..., None], {1: 1, 2: 1, 3: 3, 4: 3}[channels], axis=2)
    alpha = np.full((*pixels.shape, 1), np.iinfo(pixels.dtype).max, pixels.dtype)
    return np.concatenate([colours, alpha], axis=2) if channels in (2, 4) else colours


FORMATS = {
    "8-bit PNG": lambda ramp: saved(Image.fromarray(scaled(ramp).astype(np.uint8)), "PNG"),
    "BMP": lambda ramp: saved(Image.fromarray(scaled(ramp).astype(np.uint8)), "BMP"),
    "grey and alpha": lambda ramp: saved(Image.fromarray(with_channels(scaled(ramp).astype(np.uint8), 2)), "PNG"),
    "RGBA": lambda ramp: saved(Image.fromarray(with_channels(scaled(ramp).astype(np.uint8), 4)), "PNG"),
    "palette": lambda ramp: saved(
        Image.fromarray(scaled(ramp).astype(np.uint8)).convert("RGB").quantize(256), "PNG", transparency=3
    ),
    "16-bit grey": lambda ramp: png_16(with_channels(ramp, 1)),
    "16-bit grey and alpha": lambda ramp: png_16(with_channels(ramp, 2)),
    "16-bit RGB": lambda ramp: png_16(with_channels(ramp, 3)),
    "16-bit RGBA": lambda ramp: png_16(with_channels(ramp, 4)),
    "16-bit TIFF": lambda ramp: tiff_16(with_channels(ramp, 1), "<", 1),
    "16-bit TIFF, big end first": lambda ramp: tiff_16(with_channels(ramp, 1), ">", 1),
    "16-bit TIFF, 0 is white": lambda ramp: tiff_16(65535 - with_channels(ramp, 1), "<", 0),
    "16-bit RGB TIFF": lambda ramp: tiff_16(with_channels(ramp, 3), "<", 2),
    "16-bit RGB TIFF, big end first": lambda ramp: tiff_16(with_channels(ramp, 3), ">", 2),
    "32-bit integer TIFF": lambda ramp: saved(Image.fromarray(ramp.astype(np.int32)), "TIFF"),
    "floating-point TIFF": lambda ramp: saved(Image.fromarray(ramp.astype(np.float32)), "TIFF"),
    "turned by EXIF": lambda ramp: turned(scaled(ramp).astype(np.uint8)),
    "16 bits, turned by EXIF": lambda ramp: turned(ramp),
    "DICOM": dicom,
}


@pytest.fixture(scope="module")
def server():
    """Serves `server.files` by name."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = self.server.files.get(self.path)
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/picture")
            elif content is None:
                self.send_error(404, "Not Found")
                return
            else:
                self.send_response(200)
                self.send_header("Content-Length", str(len(content) + 9 * (self.path == "/cut")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.files = {}
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def address(server, name: str) -> str:
    server_address = f"http://127.0.0.1:{server.server_address[1]}"
    return f"{server_address}/{name}"


def by_path(content, path, server):
    path.write_bytes(content)
    return path


def by_url(content, path, server):
    server.files["/picture"] = content
    return address(server, "moved")


def by_datasets(content, path, server):
    rows = datasets.Dataset.from_dict({"image": [{"bytes": content, "path": None}]})
    return rows.cast_column("image", datasets.Image(decode=False))[0]["image"]


WAYS = {
    "path": by_path,
    "text of a path": lambda *given: str(by_path(*given)),
    "file URL": lambda *given: by_path(*given).as_uri(),
    "URL": by_url,
    "bytes": lambda content, *_: content,
    "memoryview": lambda content, *_: memoryview(content),
    "open file": lambda content, *_: io.BytesIO(content),
    "data URI": lambda content, *_: "data:image/png;base64," + base64.b64encode(content).decode(),
    "cell with bytes": by_datasets,
    "cell with a path": lambda *given: {"bytes": None, "path": str(by_path(*given))},
    "PIL": lambda content, *_: Image.open(io.BytesIO(content)),
    "array": lambda content, *_: array_of(content),
    "tensor": lambda content, *_: torch.from_numpy(array_of(content)),
}


def array_of(content: bytes) -> np.ndarray:
    """The pixels as their owner has them in memory: upright, of all bits."""
    pixels = np.asarray(Image.open(io.BytesIO(content)))
    return pixels.astype(np.int32) if pixels.dtype == ">u2" else pixels


# Formats of which Pillow gives no more than 8 bits, or which it does not turn: there is no such array.
NOT_AS_ARRAYS = {"16-bit grey and alpha", "16-bit RGB", "16-bit RGBA", "16-bit RGB TIFF", "palette",
                 "16-bit RGB TIFF, big end first", "16-bit TIFF, 0 is white", "DICOM"}  # fmt: skip


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("way", WAYS)
def test_the_same_picture_whatever_way_it_comes(ramp, kind, way, server, tmp_path):
    if (way in ("array", "tensor") and kind in NOT_AS_ARRAYS) or (way == "PIL" and kind == "DICOM"):
        pytest.skip("there is no such picture")
    result = load_radiograph(WAYS[way](FORMATS[kind](ramp), tmp_path / "picture", server))
    assert result.mode == "RGB" and result.size == SIZE[::-1]
    pixels = np.asarray(result)
    expected = np.broadcast_to(scaled(ramp)[..., None], pixels.shape)
    np.testing.assert_allclose(pixels.astype(float), expected, atol=1)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_data_set_reads_what_load_radiograph_reads(ramp, kind, tmp_path):
    content = FORMATS[kind](ramp)
    (tmp_path / "picture").write_bytes(content)
    expected = np.asarray(load_radiograph(content))
    for cell in ({"bytes": content, "path": None}, {"bytes": None, "path": str(tmp_path / "picture")}):
        result = read_picture(cell, "a")
        assert result.mode in ("L", "RGB")
        np.testing.assert_array_equal(np.asarray(result.convert("RGB")), expected)


def test_what_a_plain_conversion_makes_of_16_bits(ramp):
    """Why all this: nearly white, or dark."""
    white = np.asarray(Image.open(io.BytesIO(FORMATS["16-bit grey"](ramp))).convert("RGB"))
    dark = np.asarray(Image.open(io.BytesIO(FORMATS["16-bit RGB"](ramp))).convert("RGB"))
    assert white.min() >= 200 and dark.max() <= 16


def test_colours_of_16_bits_are_scaled_together(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(300, 4000, (*SIZE, 4)).astype(np.uint16)
    expected = scaled(pixels[..., :3])
    np.testing.assert_allclose(np.asarray(load_radiograph(png_16(pixels))).astype(float), expected, atol=1)
    np.testing.assert_allclose(np.asarray(load_radiograph(pixels)).astype(float), expected, atol=1)


def test_a_dark_16_bit_array_is_stretched_too():
    pixels = np.arange(6, dtype=np.uint16).reshape(2, 3)
    np.testing.assert_array_equal(np.asarray(load_radiograph(pixels))[..., 0], scaled(pixels))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "1", "CMYK", "YCbCr", "La", "RGBa", "HSV"])
def test_8_bit_pictures_keep_their_values(mode, tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    if mode in ("La", "RGBa"):  # opaque: what is multiplied by alpha stays as it is
        picture = picture.convert("L" if mode == "La" else "RGB")
        premultiplied = picture.convert("LA" if mode == "La" else "RGBA").convert(mode)
        np.testing.assert_array_equal(np.asarray(load_radiograph(premultiplied)), np.asarray(picture.convert("RGB")))
        return
    picture = picture.convert(mode)
    forms = [picture]
    if mode not in ("CMYK", "YCbCr", "HSV"):  # PNG has none of these
        picture.save(tmp_path / "x.png")
        forms += [tmp_path / "x.png", str(tmp_path / "x.png")]
    for image in forms:
        np.testing.assert_array_equal(np.asarray(load_radiograph(image)), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 1), (1, 20, 30), (20, 30, 3), (3, 20, 30), (20, 30, 4),
                                   (20, 30, 2), (4, 20, 30)])  # fmt: skip
@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32", "float16", "unit float32", "bfloat16 tensor"])
def test_arrays(shape, dtype):
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    pixels.flat[:2] = 0, 255
    if dtype == "bfloat16 tensor":
        pixels &= 0xFE  # bfloat16 has 8 bits
        image = torch.from_numpy(pixels).bfloat16()
    elif dtype == "unit float32":
        image = (pixels / 255).astype(np.float32)
    else:
        image = pixels.astype(dtype)
    result = np.asarray(load_radiograph(image))
    expected = pixels.transpose(1, 2, 0) if shape[0] in (1, 3, 4) else pixels
    expected = expected[..., None] if expected.ndim == 2 else expected
    expected = expected[..., :1] if expected.shape[2] == 2 else expected[..., :3]
    np.testing.assert_array_equal(result, np.broadcast_to(expected, (20, 30, 3)))


def test_values_of_any_range_are_scaled():
    pixels = np.array([[-1.7e308, 0.0], [1.7e308, 8.5e307]])
    expected = np.round(np.array([[0.0, 0.5], [1.0, 0.75]]) * 255)
    np.testing.assert_allclose(np.asarray(load_radiograph(pixels))[..., 0], expected, atol=1)
    signed = np.array([[-(2**31), 0], [2**31 - 1, 2**30]], dtype=np.int64)
    np.testing.assert_allclose(np.asarray(load_radiograph(signed))[..., 0], expected, atol=1)
    assert (np.asarray(load_radiograph(np.full((4, 5), 3000, np.uint16))) == 0).all(), "one value becomes black"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({}, "dict must be a cell.*keys"),
        ({"image": "x.png"}, "dict must be a cell.*'image'"),
        ({"bytes": None, "path": None}, "neither bytes nor a path"),
        (7, "got int"),
        (b"", "empty"),
        (b"not a picture", "no known format"),
        (b"<!DOCTYPE html><html>", "web page"),
        (io.StringIO("text"), "mode 'rb'"),
        ("data:image/png;base64,@@@@", "not base64"),
        ("data:image/png", "no comma"),
        (np.zeros((4, 5, 6, 7)), r"\(H, W\)"),
        (np.zeros((0, 5)), "empty"),
        (Image.new("L", (0, 0)), "empty"),
        (np.full((4, 5), np.nan), "NaN"),
        (np.full((4, 5), np.inf), "NaN or infinite"),
        (np.zeros((4, 5), complex), "numbers.*complex128"),
        (np.array([["a", "b"]]), "numbers.*<U1"),
        (np.array([["2020-01-01"]], dtype="datetime64[D]"), "numbers.*datetime64"),
        (np.array([[None]]), "numbers.*object"),
        ("missing\0.png", "null"),
        (Image.new("LAB", (4, 4)), None),
    ],
)
def test_what_is_no_picture_is_refused_with_a_reason(image, message):
    if message is None:
        load_radiograph(image)
        return
    with pytest.raises(ValueError, match=message):
        load_radiograph(image)


def test_bad_files_are_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    Image.new("L", (64, 64), 7).save(tmp_path / "full.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "full.jpg").read_bytes()[:300])
    (tmp_path / "folder.png").mkdir()
    for name in ("missing.png", "broken.png", "cut.jpg", "folder.png"):
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            load_radiograph(tmp_path / name)
        with pytest.raises(ValueError, match=f"study 7 cannot be read.*{name}"):
            read_picture({"bytes": None, "path": str(tmp_path / name)}, "study 7")


def test_a_postscript_file_starts_no_other_program(tmp_path):
    (tmp_path / "x.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(ValueError, match="no known format"):
        load_radiograph(tmp_path / "x.eps")


def test_servers_that_do_not_give_the_picture(server):
    with pytest.raises(ValueError, match=r"/nowhere cannot be read: the server answers 404 \(Not Found\)"):
        load_radiograph(address(server, "nowhere"))
    server.files["/cut"] = FORMATS["8-bit PNG"](np.arange(12.0).reshape(3, 4))
    with pytest.raises(ValueError, match="/cut cannot be read"):
        load_radiograph(address(server, "cut"))
    with pytest.raises(ValueError, match="cannot be reached"):
        load_radiograph("http://127.0.0.1:1/x.png")


def test_files_of_several_frames_need_a_number(tmp_path):
    frames = [np.full((8, 9), grey, np.uint8) for grey in (10, 20, 30)]
    pictures = [Image.fromarray(frame) for frame in frames]
    for name in ("x.tiff", "x.gif"):
        path = tmp_path / name
        pictures[0].save(path, save_all=True, append_images=pictures[1:])
        with pytest.raises(ValueError, match=f"{name} cannot be read: it holds several frames.*frame=1"):
            load_radiograph(path)
        assert np.asarray(load_radiograph(path, frame=2)).mean() == 20
        with pytest.raises(ValueError, match="no frame 4"):
            load_radiograph(path, frame=4)
    pictures[0].save(tmp_path / "x.png")
    assert np.asarray(load_radiograph(tmp_path / "x.png", frame=1)).mean() == 10


@pytest.mark.parametrize("form", ["file", "PIL", "array"])
def test_pictures_too_large_or_too_narrow_are_refused_before_they_are_decoded(form, tmp_path):
    Image.new("L", (1, 60_000)).save(tmp_path / "narrow.png")
    Image.new("1", (9000, 9000)).save(tmp_path / "large.png")
    for name, message in (("narrow.png", "max_aspect_ratio=20"), ("large.png", "9000 x 9000.*max_pixels=64000000")):
        path: Path | Image.Image | np.ndarray = tmp_path / name
        if form == "PIL":
            path = Image.open(path)
        elif form == "array":
            path = np.asarray(Image.open(path)).view(np.uint8)
        with pytest.raises(ValueError, match=message):
            load_radiograph(path)
    Image.new("L", (10, 30)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match="max_pixels=299"):
        load_radiograph(tmp_path / "small.png", max_pixels=299)
    assert load_radiograph(tmp_path / "small.png", max_pixels=300, max_aspect_ratio=3).size == (10, 30)


@pytest.mark.parametrize(
    "options", [{"max_pixels": 0}, {"max_pixels": "many"}, {"max_aspect_ratio": 0.5}, {"max_aspect_ratio": np.nan},
                {"frame": 0}, {"frame": 1.5}, {"dicom_contrast": "none"}]
)  # fmt: skip
def test_wrong_options_are_named(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        load_radiograph(np.zeros((4, 4), np.uint8), **options)


def test_a_clipped_picture_gets_a_warning(ramp, recwarn):
    clipped = Image.open(io.BytesIO(FORMATS["16-bit grey"](ramp))).convert("RGB")
    with pytest.warns(UserWarning, match=r"9\d% of the pixels.*pure white.*16 bits"):
        load_radiograph(clipped)
    with pytest.warns(UserWarning, match="100% of the pixels.*pure white"):
        load_radiograph(Image.fromarray(ramp + 256).convert("RGB"))
    framed = np.pad(ramp, ramp.shape[0] // 2)  # a black border, three quarters of the picture
    with pytest.warns(UserWarning, match="2[0-9]% of the pixels.*pure white, [0-9]% are grey"):
        load_radiograph(Image.fromarray(framed).convert("RGB"))
    recwarn.clear()
    load_radiograph(Image.fromarray(scaled(ramp).astype(np.uint8)))
    load_radiograph(Image.fromarray(scaled(framed).astype(np.uint8)))
    white_background = np.pad(scaled(ramp).astype(np.uint8), ramp.shape[0] // 6, constant_values=255)
    load_radiograph(Image.fromarray(white_background))
    assert not recwarn.list
