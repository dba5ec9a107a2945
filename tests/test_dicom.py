# Licensed under the Apache License, Version 2.0.
"""DICOM files against pydicom's own pipeline and the formulas of the standard, and what is refused and why."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_tier import load_radiograph


pydicom = pytest.importorskip("pydicom")

REAL = Path(__file__).parents[2] / "shared" / "real"
DX = "1.2.840.10008.5.1.4.1.1.1.1"

needs_real_files = pytest.mark.skipif(not REAL.is_dir(), reason="the real files are not here")


@pytest.fixture
def ramp() -> np.ndarray:
    """12 bits: values from 200 to 3800, smooth from left to right."""
    return np.linspace(200, 3800, 48 * 64).reshape(64, 48).T.astype(np.uint16)


def dataset(pixels: np.ndarray, photometric="MONOCHROME2", sop_class=DX, **elements):
    """Grey (H, W), frames (F, H, W), or colours (H, W, 3) of 8 bits or of 12 in 16."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, pydicom.uid.generate_uid()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dicom_file = pydicom.dataset.FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dicom_file.SOPClassUID, dicom_file.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    colours = pixels.ndim == 3 and pixels.shape[2] == 3
    if pixels.ndim == 3 and not colours:
        dicom_file.NumberOfFrames = len(pixels)
    dicom_file.Rows, dicom_file.Columns = pixels.shape[:2] if colours else pixels.shape[-2:]
    dicom_file.SamplesPerPixel, dicom_file.PhotometricInterpretation = 3 if colours else 1, photometric
    if colours:
        dicom_file.PlanarConfiguration = 0
    dicom_file.BitsAllocated = 8 * pixels.dtype.itemsize
    dicom_file.BitsStored = 8 if dicom_file.BitsAllocated == 8 else 12
    dicom_file.HighBit, dicom_file.PixelRepresentation = dicom_file.BitsStored - 1, int(pixels.dtype.kind == "i")
    dicom_file.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    for name, value in elements.items():
        setattr(dicom_file, name, value)
    return dicom_file


def saved(dicom_file, **options) -> bytes:
    file = io.BytesIO()
    dicom_file.save_as(file, **options or {"enforce_file_format": True})
    return file.getvalue()


def read(dicom_file, **options) -> np.ndarray:
    return np.asarray(load_radiograph(saved(dicom_file), **options))[..., 0].astype(float)


def full_range(pixels: np.ndarray) -> np.ndarray:
    pixels = pixels.astype(float)
    return (pixels - pixels.min()) / (pixels.max() - pixels.min()) * 255


def linear_window(values: np.ndarray, center: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1, from 0 to 255."""
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1) * 255


def lut(first: int, bits: int, entries) -> "pydicom.Dataset":
    item = pydicom.Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item["LUTData"] = pydicom.DataElement(0x00283006, "US", [int(entry) for entry in entries])
    return item


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize("contrast", ["window", "full_range"])
def test_without_a_window_the_full_range_is_shown(ramp, photometric, contrast):
    expected = full_range(ramp) if photometric == "MONOCHROME2" else 255 - full_range(ramp)
    np.testing.assert_allclose(read(dataset(ramp, photometric), dicom_contrast=contrast), expected, atol=0.51)


WINDOW = {"WindowCenter": 1500, "WindowWidth": 1000}


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        (WINDOW, lambda x: linear_window(x, 1500, 1000)),
        ({"WindowCenter": [1500, 900], "WindowWidth": [1000, 10]}, lambda x: linear_window(x, 1500, 1000)),
        (WINDOW | {"VOILUTFunction": "LINEAR_EXACT"}, lambda x: np.clip((x - 1500) / 1000 + 0.5, 0, 1) * 255),
        (WINDOW | {"VOILUTFunction": "SIGMOID"}, lambda x: 255 / (1 + np.exp(-4 * (x - 1500) / 1000))),
        (WINDOW | {"RescaleSlope": 2, "RescaleIntercept": -100}, lambda x: linear_window(2 * x - 100, 1500, 1000)),
        (
            {"WindowCenter": -1500, "WindowWidth": 1000, "RescaleSlope": -1, "RescaleIntercept": 0},
            lambda x: linear_window(-x, -1500, 1000),
        ),
        (WINDOW | {"RescaleSlope": None, "RescaleIntercept": None}, lambda x: linear_window(x, 1500, 1000)),
        (WINDOW | {"RescaleSlope": 0, "RescaleIntercept": 0}, lambda x: linear_window(x, 1500, 1000)),
        ({"WindowCenter": None, "WindowWidth": None}, full_range),
        ({"WindowCenter": 1500, "WindowWidth": 0}, full_range),
        (WINDOW | {"VOILUTFunction": ""}, lambda x: linear_window(x, 1500, 1000)),
        (
            {"VOILUTSequence": [lut(1000, 12, 4095 * (np.arange(1000) / 999) ** 2)]} | WINDOW,
            lambda x: np.clip((x - 1000.0) / 999, 0, 1) ** 2 * 255,
        ),
        (
            {"ModalityLUTSequence": [lut(0, 16, 65535 - 10 * np.arange(4096))], "WindowCenter": 50_000,
             "WindowWidth": 20_000},
            lambda x: linear_window(65535 - 10 * x.astype(float), 50_000, 20_000),
        ),
    ],
    ids=["linear", "the first of two", "exact", "sigmoid", "rescaled", "negative slope", "empty slope", "slope of 0",
         "empty window", "width of 0", "empty function", "table before window", "modality table"],
)  # fmt: skip
@pytest.mark.parametrize("inverted", [False, True])
def test_the_window_of_the_file(ramp, elements, expected, inverted):
    expected = expected(ramp.astype(float))
    dicom_file = dataset(ramp, "MONOCHROME1" if inverted else "MONOCHROME2", **elements)
    np.testing.assert_allclose(read(dicom_file), 255 - expected if inverted else expected, atol=0.6)


def test_the_pipeline_of_pydicom_gives_the_same(ramp):
    from pydicom.pixels import apply_modality_lut, apply_presentation_lut, apply_voi_lut

    elements = {"RescaleSlope": 1.5, "RescaleIntercept": -30, "WindowCenter": 2500, "WindowWidth": 3000}
    for shape in ("IDENTITY", "INVERSE"):
        dicom_file = dataset(ramp, PresentationLUTShape=shape, **elements)
        values = apply_presentation_lut(apply_voi_lut(apply_modality_lut(ramp, dicom_file), dicom_file), dicom_file)
        np.testing.assert_allclose(
            read(dicom_file), full_range(values), atol=0.51
        )  # the window ends within the picture


def test_inverse_twice_is_inverse_once(ramp):
    """A DX file with MONOCHROME1 has to say INVERSE too: it is the same inversion."""
    dicom_file = dataset(ramp, "MONOCHROME1", PresentationLUTShape="INVERSE")
    np.testing.assert_allclose(read(dicom_file), 255 - full_range(ramp), atol=0.51)


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize("contrast", ["window", "full_range", "equalized"])
def test_padding_is_black_and_does_not_count(ramp, photometric, contrast):
    padded = ramp.copy()
    padded[:, :9] = 4095
    padded[:, 9:12] = 4000
    dicom_file = dataset(padded, photometric, PixelPaddingValue=4095, PixelPaddingRangeLimit=4000)
    result = read(dicom_file, dicom_contrast=contrast)
    assert (result[:, :12] == 0).all()
    expected = read(dataset(ramp[:, 12:].copy(), photometric), dicom_contrast=contrast)
    np.testing.assert_array_equal(result[:, 12:], expected)


def test_a_padding_value_of_signed_pixels_that_is_written_as_unsigned(ramp):
    signed = ramp.astype(np.int16) - 2000
    signed[:5] = -2048
    dicom_file = dataset(signed, BitsStored=16, HighBit=15)
    dicom_file[0x00280120] = pydicom.DataElement(0x00280120, "US", 2**16 - 2048)
    result = read(dicom_file)
    assert (result[:5] == 0).all()
    np.testing.assert_allclose(result[5:], full_range(signed[5:]), atol=0.51)


def test_equalized_as_mimic_cxr_jpg_was_made(ramp):
    """Smallest value to 0, largest to 255, cut off; inverted; OpenCV's equalisation, written again pixel by pixel."""
    rng = np.random.default_rng(0)
    pixels = np.round(ramp * rng.beta(2, 5, ramp.shape)).astype(np.uint16)
    for photometric in ("MONOCHROME2", "MONOCHROME1"):
        greys = (full_range(pixels)).astype(np.uint8)
        greys = 255 - greys if photometric == "MONOCHROME1" else greys
        darkest = greys.min()
        num_darkest = (greys == darkest).sum()
        table = {
            grey: round(((greys <= grey).sum() - num_darkest) * 255 / (greys.size - num_darkest))
            for grey in set(greys.ravel().tolist())
        }
        expected = np.vectorize(table.get)(greys)
        dicom_file = dataset(pixels, photometric, **WINDOW)
        np.testing.assert_array_equal(read(dicom_file, dicom_contrast="equalized"), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colours(dtype):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 12, 3)).astype(dtype) * (16 if dtype == np.uint16 else 1)
    result = np.asarray(load_radiograph(saved(dataset(pixels, "RGB"))))
    np.testing.assert_allclose(result, pixels * (255 / (4095 if dtype == np.uint16 else 255)), atol=0.51)


def test_ybr_becomes_rgb():
    from PIL import Image

    rgb = np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    ybr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    result = np.asarray(load_radiograph(saved(dataset(ybr, "YBR_FULL")))).astype(int)
    assert np.abs(result - rgb).max() <= 3  # the way there and back is rounded


def test_a_frame_by_its_number(ramp, tmp_path):
    frames = np.stack([ramp, ramp[::-1], ramp // 2])
    path = tmp_path / "cine.dcm"
    path.write_bytes(saved(dataset(frames)))
    with pytest.raises(ValueError, match=r"cine.dcm cannot be read: it holds 3 frames: choose one with frame=1"):
        load_radiograph(path)
    with pytest.raises(ValueError, match="cine.dcm cannot be read: it has no frame 4"):
        load_radiograph(path, frame=4)
    result = np.asarray(load_radiograph(path, frame=2))[..., 0]
    np.testing.assert_allclose(result, full_range(ramp[::-1]), atol=0.51)


def test_a_frame_has_a_window_of_its_own(ramp):
    dicom_file = dataset(np.stack([ramp, ramp]), sop_class="1.2.840.10008.5.1.4.1.1.2.1")

    def group(center):
        window, rescale, item = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        window.WindowCenter, window.WindowWidth = center, 1000
        rescale.RescaleSlope, rescale.RescaleIntercept = 1, -10
        item.FrameVOILUTSequence, item.PixelValueTransformationSequence = [window], [rescale]
        return item

    dicom_file.SharedFunctionalGroupsSequence = [group(3000)]
    dicom_file.PerFrameFunctionalGroupsSequence = [group(1500), pydicom.Dataset()]
    for frame, center in ((1, 1500), (2, 3000)):
        expected = linear_window(ramp.astype(float) - 10, center, 1000)
        np.testing.assert_allclose(read(dicom_file, frame=frame), expected, atol=0.51)


@pytest.mark.parametrize("syntax", ["ImplicitVRLittleEndian", "ExplicitVRLittleEndian"])
def test_files_without_preamble(ramp, syntax):
    dicom_file = dataset(ramp)
    dicom_file.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
    writer = pydicom.filebase.DicomBytesIO()
    writer.is_little_endian, writer.is_implicit_VR = True, syntax.startswith("Implicit")
    pydicom.filewriter.write_dataset(writer, dicom_file)
    content = writer.getvalue()
    assert b"DICM" not in content[:200]
    np.testing.assert_allclose(np.asarray(load_radiograph(content))[..., 0], full_range(ramp), atol=0.51)


@pytest.mark.parametrize(
    ("sop_class", "name"),
    [
        ("1.2.840.10008.5.1.4.1.1.66.4", "Segmentation"),
        ("1.2.840.10008.5.1.4.1.1.481.2", "RT Dose"),
        ("1.2.840.10008.5.1.4.1.1.30", "Parametric Map"),
    ],
)
def test_what_is_no_radiograph_is_refused(ramp, sop_class, name, tmp_path):
    path = tmp_path / "other.dcm"
    path.write_bytes(saved(dataset(np.stack([ramp] * 3), sop_class=sop_class)))
    with pytest.raises(ValueError, match=f"other.dcm cannot be read: it is a DICOM {name}, not a radiograph"):
        load_radiograph(path)


def test_a_report_has_no_picture(ramp):
    dicom_file = dataset(ramp, sop_class="1.2.840.10008.5.1.4.1.1.88.11")
    for name in ("Rows", "Columns", "PixelData"):
        del dicom_file[name]
    with pytest.raises(ValueError, match=r"without a picture \(Basic Text SR Storage\)"):
        load_radiograph(saved(dicom_file))
    dicom_file = dataset(ramp)
    del dicom_file.PixelData
    with pytest.raises(ValueError, match="without pixels"):
        load_radiograph(saved(dicom_file))


def test_sizes_are_looked_at_before_pixels(ramp):
    dicom_file = dataset(ramp, Rows=40_000, Columns=40_000)
    with pytest.raises(ValueError, match="40000 x 40000.*max_pixels"):
        load_radiograph(saved(dicom_file))
    with pytest.raises(ValueError, match="cannot be read"):  # says more than it holds
        load_radiograph(saved(dataset(ramp, Rows=4_000)))


def test_a_deflated_file(ramp):
    dicom_file = dataset(ramp)
    dicom_file.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    np.testing.assert_allclose(read(dicom_file), full_range(ramp), atol=0.51)
    with pytest.raises(ValueError, match="its deflated content is cut off"):
        load_radiograph(saved(dicom_file)[:-20])


def compressed(frame: bytes, syntax, pixels: np.ndarray) -> bytes:
    """A file that says it has the size of `pixels`, with a frame that may be of another."""
    dicom_file = dataset(pixels)
    dicom_file.file_meta.TransferSyntaxUID = syntax
    dicom_file.PixelData = pydicom.encaps.encapsulate([frame])
    dicom_file["PixelData"].VR = "OB"
    return saved(dicom_file)


@pytest.mark.parametrize(
    ("syntax", "kind", "options"),
    [
        (pydicom.uid.JPEGBaseline8Bit, "JPEG", {}),
        (pydicom.uid.JPEGBaseline8Bit, "JPEG", {"progressive": True}),
        (pydicom.uid.JPEG2000Lossless, "JPEG2000", {"no_jp2": True}),
        (pydicom.uid.JPEG2000Lossless, "JPEG2000", {}),
    ],
)
def test_a_compressed_frame_larger_than_the_file_says_is_not_decoded(syntax, kind, options):
    small, picture = np.zeros((16, 16), np.uint8), io.BytesIO()
    Image.new("L", (900, 700)).save(picture, kind, **options)
    with pytest.raises(ValueError, match="frame has 900 x 700 pixels of 1 components, while the file says 16 x 16"):
        load_radiograph(compressed(picture.getvalue(), syntax, small))


def test_a_run_length_frame_larger_than_the_file_says_is_not_decoded():
    frame = np.array([1, 64, *[0] * 14], "<u4").tobytes() + b"\x81\0" * 5_000
    with pytest.raises(ValueError, match="frame of 10064 bytes is more than 16 x 16 pixels need"):
        load_radiograph(compressed(frame, pydicom.uid.RLELossless, np.zeros((16, 16), np.uint8)))


@needs_real_files
def test_the_window_of_a_real_radiograph():
    """CR with MONOCHROME1, a rescaling and a window: the formulas of the standard."""
    path = REAL / "CR_16x16_MONOCHROME1_window_6154.dcm"
    stored = pydicom.dcmread(path).pixel_array.astype(float)
    expected = 255 - linear_window(stored * 0.684 + 200, 1600, 2800)
    np.testing.assert_allclose(np.asarray(load_radiograph(path))[..., 0], expected, atol=0.51)
    np.testing.assert_allclose(
        np.asarray(load_radiograph(path, dicom_contrast="full_range"))[..., 0], 255 - full_range(stored), atol=0.51
    )


@needs_real_files
def test_a_real_palette_without_preamble():
    path = REAL / "OT-PAL-8-face.dcm"
    dicom_file = pydicom.dcmread(path, force=True)
    tables = [
        np.frombuffer(getattr(dicom_file, f"{colour}PaletteColorLookupTableData"), "<u2")
        for colour in ("Red", "Green", "Blue")
    ]
    stored = np.frombuffer(dicom_file.PixelData, np.uint8)[: dicom_file.Rows * dicom_file.Columns].reshape(
        dicom_file.Rows, dicom_file.Columns
    )
    expected = np.stack([table[np.minimum(stored, len(table) - 1)] for table in tables], axis=2) / 65535 * 255
    np.testing.assert_allclose(np.asarray(load_radiograph(path)), expected, atol=0.51)


@needs_real_files
def test_real_frames():
    path = REAL / "emri_small.dcm"
    with pytest.raises(ValueError, match="emri_small.dcm cannot be read: it holds 10 frames"):
        load_radiograph(path)
    assert np.ptp(np.asarray(load_radiograph(path, frame=5))) > 100


WITHOUT_DECODERS = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("pylibjpeg", "libjpeg", "openjpeg", "gdcm"):
            raise ImportError(name)

sys.meta_path.insert(0, Missing())
from modeling_tier import load_radiograph
try:
    load_radiograph(sys.argv[1])
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
@needs_real_files
def test_jpeg_lossless_with_and_without_its_decoder():
    path = REAL / "JPEG-LL.dcm"
    run = subprocess.run([sys.executable, "-c", WITHOUT_DECODERS, path], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "JPEG-LL.dcm cannot be read: it is compressed as JPEG Lossless" in run.stdout
    assert "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg" in run.stdout and "`dicom`" in run.stdout
    pytest.importorskip("libjpeg")
    stored = pydicom.dcmread(path).pixel_array
    np.testing.assert_allclose(np.asarray(load_radiograph(path))[..., 0], full_range(stored), atol=0.51)
