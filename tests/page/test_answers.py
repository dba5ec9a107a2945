# Licensed under the Apache License, Version 2.0.
"""What the page computes and paints."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_tier import load_radiograph, overlay_map
from modeling_tier.evaluation import load_no_finding
from modeling_tier.maps_tier import NEGATIVE_COLOUR, OVERLAY_OPACITY, POSITIVE_COLOUR
from page.answers import (
    CONTRIBUTION,
    COSINE,
    MINUS_NO_FINDING,
    Cell,
    Picture,
    Row,
    describe_model,
    draw_pictures,
    read_findings,
    read_upload,
    read_words,
    split_findings,
)
from page.painting import (
    BY_VALUE,
    STRETCHED,
    archive,
    colour_limits,
    map_layer,
    painted_values,
    position_in_words,
)
from page.rendering import asset, kinds_explained, maps, scores
from page.uploads import Upload
from tests.page.fixtures import pixels


pytest_plugins = ["tests.page.fixtures"]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio")


FINDINGS = ["left pleural effusion", "large cardiomegaly"]


def test_scores_and_maps_are_those_of_the_pipeline(page_models, radiograph):
    rows = read_findings(page_models, Picture("a", load_radiograph(radiograph)), FINDINGS).rows
    assert [row.text for row in rows] == FINDINGS
    for name, read in page_models.items():
        for row, expected in zip(rows, read(str(radiograph), findings=FINDINGS, maps="array")):
            cell, cosines = row.cells[name], expected["map"]
            assert (cell.score, cell.difference) == (expected["score"], expected["difference"])
            np.testing.assert_array_equal(cell.values, cosines)
            assert (cell.low, cell.high) == (np.nanmin(cosines), np.nanmax(cosines))
            x, y = int(cell.peak[0] * 90), int(cell.peak[1] * 60)
            assert cosines[y, x] == cell.high


def test_a_large_picture_keeps_its_scores_and_gets_small_maps(page_models):
    noise = np.random.default_rng(0).integers(0, 200, (1400, 1300))
    picture = load_radiograph(noise + pixels(1400, 1300) // 1000)
    rows = read_findings(page_models, Picture("large", picture), FINDINGS).rows
    for name, read in page_models.items():
        for row, expected in zip(rows, read(picture, findings=FINDINGS, maps="array")):
            cell = row.cells[name]
            assert cell.score == expected["score"]
            assert max(cell.values.shape) <= 256
            assert (cell.low, cell.high) == pytest.approx(
                (np.nanmin(expected["map"]), np.nanmax(expected["map"])), abs=0.02
            )


def test_a_sentence_comes_first_and_then_its_words(page_models, radiograph):
    picture = Picture("a", load_radiograph(radiograph))
    rows = read_words(page_models, picture, " Large left effusion. ").rows
    assert [row.text for row in rows] == ["Large left effusion.", "Large", "left", "effusion"]
    for name, read in page_models.items():
        words = read.word_maps(str(radiograph), "Large left effusion.")["maps"]
        sentence = {"a": {"positive": ["Large left effusion."], "negative": ["no"]}}
        whole = read(str(radiograph), findings=sentence, maps="array")[0]["map"]
        for row, expected in zip(rows, [whole, *words]):
            np.testing.assert_allclose(row.cells[name].values, expected, atol=1e-6)


@pytest.mark.parametrize("kind", [CONTRIBUTION, MINUS_NO_FINDING])
def test_contributions_are_those_of_the_model(page_models, radiograph, kind):
    """By `get_similarity_map` itself; their mean over the patches is the cosine of the picture with the sentence."""
    picture = Picture("a", load_radiograph(radiograph))
    read = page_models["tier"]
    model, processor = read.model, read.processor
    pixel_values = processor(images=str(radiograph))["pixel_values"]

    def coarse(sentence: str) -> torch.Tensor:
        maps = model.get_similarity_map(pixel_values, **processor(text=sentence), kind="contribution").text_to_patch
        return maps[0] * maps[0].numel()

    with torch.no_grad():
        expected = coarse("left pleural effusion.")
        image, text = (
            torch.nn.functional.normalize(features.pooler_output, dim=-1)
            for features in (
                model.get_image_features(pixel_values),
                model.get_text_features(**processor(text=["left pleural effusion.", *load_no_finding(None)])),
            )
        )
        cosine = (image @ text[0]).item()
        assert expected.mean().item() == pytest.approx(cosine, abs=1e-5)
        if kind == MINUS_NO_FINDING:
            mean = text[1:].mean(dim=0)
            expected = expected - sum(map(coarse, load_no_finding(None))) / (len(text) - 1) / mean.norm()
    (row,) = read_findings(page_models, picture, FINDINGS[:1], kind).rows
    cell = row.cells["tier"]
    assert cell.kind == kind and cell.score == read(str(radiograph), findings=FINDINGS[:1])[0]["score"]
    # The picture is 60 by 90, of which the model sees the middle 60; a map is smooth between the centres of patches.
    size = 60 // expected.shape[0]
    at = size // 2 + size * torch.arange(expected.shape[0])
    shown = torch.from_numpy(cell.values)[at][:, 15 + at]
    np.testing.assert_allclose(shown, expected, atol=np.ptp(expected.numpy()) / size)


def test_a_model_without_contributions_keeps_its_cosines_and_the_page_says_why(page_models, radiograph):
    picture = Picture("a", load_radiograph(radiograph))
    for read, text in ((read_findings, FINDINGS), (read_words, "Left effusion.")):
        plain, other = (read(page_models, picture, text, kind) for kind in (COSINE, CONTRIBUTION))
        for row, changed in zip(plain.rows, other.rows, strict=True):
            assert {label: cell.kind for label, cell in changed.cells.items()} == {
                "clip": COSINE,
                "tier": CONTRIBUTION,
            }
            np.testing.assert_array_equal(changed.cells["clip"].values, row.cells["clip"].values)
            assert np.nanmax(np.abs(changed.cells["tier"].values - row.cells["tier"].values)) > 0.01
    page = maps(other, BY_VALUE)
    assert "<b>clip</b> cosine" in page and "<b>tier</b> contribution" in page
    about = kinds_explained({label: describe_model(read) for label, read in page_models.items()})
    assert "clip: cosines alone; this model's global embedding is that of a class token" in about
    with pytest.raises(ValueError, match="must be one of cosine, contribution, contribution_minus_no_finding"):
        read_findings(page_models, picture, FINDINGS, "plain")


def test_why_a_score_says_little_is_shown(page_models):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90), dtype=np.uint8))
    answers = read_findings(page_models, Picture("noise", noise), FINDINGS[:1])
    assert all("unlike a radiograph" in cell.note for cell in answers.rows[0].cells.values())
    assert scores(answers, list(page_models)).count("The picture is unlike a radiograph") == len(page_models)
    drawing = read_findings(page_models, draw_pictures()[0], FINDINGS[:1])
    assert "unlike a radiograph" not in scores(drawing, list(page_models))


def test_findings_are_lines_without_repetition():
    assert split_findings(" left  effusion.\n\nEdema\nedema \nno change") == [
        "left effusion",
        "Edema",
        "no change",
    ]
    with pytest.raises(ValueError, match="at least one finding"):
        split_findings(" \n.\n")
    with pytest.raises(ValueError, match="At most 12 findings at a time; these are 13"):
        split_findings("\n".join(f"finding {i}" for i in range(13)))


def test_a_dicom_file_is_read(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    file.Rows, file.Columns, file.SamplesPerPixel = 60, 90, 1
    file.BitsAllocated = file.BitsStored = 16
    file.HighBit, file.PixelRepresentation, file.PhotometricInterpretation = 15, 0, "MONOCHROME1"
    file.PatientName = "Doe^Jane"
    file.PixelData = pixels(60, 90).tobytes()
    path = tmp_path / "IM0001"
    file.save_as(path, enforce_file_format=True)
    grey = np.asarray(read_upload(Upload("IM0001", path.open("rb"), path.stat().st_size)).image).astype(int)
    assert grey[0, 0] == 0 and grey[-1, -1] < grey[-1, 0] < grey[30, 50]  # large values are dark


def test_colours_are_those_of_the_pipelines_overlay():
    rng = np.random.default_rng(0)
    cosines = rng.uniform(-0.6, 0.4, (40, 50)).astype(np.float32)
    cosines[:, :5] = np.nan
    picture = Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    layer = map_layer(cosines, 0.6)
    alpha = layer.getchannel("A").point(lambda value: value * 0.7)
    shown = np.asarray(Image.composite(layer.convert("RGB"), picture, alpha), dtype=int)
    np.testing.assert_allclose(shown, np.asarray(overlay_map(picture, cosines, 0.6), dtype=int), atol=3)


def test_the_style_has_the_colours_and_the_strength_of_the_overlay():
    style = asset("style.css")
    for name, colour in (("orange", POSITIVE_COLOUR), ("blue", NEGATIVE_COLOUR)):
        assert f"--tier-{name}: {' '.join(map(str, colour))};" in style
    assert f"--tier-strength: {str(OVERLAY_OPACITY).lstrip('0')};" in style


def test_colours_are_alike_for_all_maps_of_a_model_or_stretched_for_each():
    def cell(low, high):
        return Cell(np.array([[low, high, np.nan]], dtype=np.float32), low, high, (0.5, 0.5))

    rows = [Row("a", {"x": cell(-0.2, 0.1), "y": cell(0.0, 0.5)}), Row("b", {"x": cell(0.1, 0.15)})]
    assert colour_limits(rows, BY_VALUE) == {"x": 0.2, "y": 0.5}
    assert colour_limits(rows, STRETCHED) == {"x": 1.0, "y": 1.0}
    np.testing.assert_array_equal(painted_values(rows[1].cells["x"], BY_VALUE), rows[1].cells["x"].values)
    np.testing.assert_allclose(painted_values(rows[1].cells["x"], STRETCHED), [[0, 1, np.nan]], atol=1e-6)


@pytest.mark.parametrize(
    "peak, words",
    [
        ((0.5, 0.4), "in the middle of the picture"),
        ((0.9, 0.5), "at the right edge of the picture"),
        ((0.5, 0.01), "at the upper edge of the picture"),
        ((0.1, 1.0), "at the lower left corner of the picture"),
    ],
)
def test_a_position_in_words(peak, words):
    assert position_in_words(peak) == words


def test_the_drawings_name_what_was_drawn():
    drawings = draw_pictures()
    named = [" ".join(phrase for phrase, _ in drawing.regions).lower() for drawing in drawings]
    assert "cardiomegaly" in named[0] and "left apical pneumothorax" in named[0]
    assert "right pleural effusion" in named[1] and "consolidation" in named[1]
    assert named[2] == ""
    for drawing in drawings:
        for _, (x_min, y_min, x_max, y_max) in drawing.regions:
            assert 0 <= x_min < x_max <= drawing.image.width and 0 <= y_min < y_max <= drawing.image.height


def test_the_archive_holds_all_numbers_and_maps(page_models, radiograph):
    picture = Picture("röntgen.png", load_radiograph(radiograph))
    findings = read_findings(page_models, picture, FINDINGS)
    words = read_words(page_models, picture, "left effusion")
    check_archive(archive(page_models, findings, words, BY_VALUE), page_models, radiograph, "röntgen.png")


def check_archive(content: bytes, page_models, radiograph: Path, name: str) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        results = json.loads(file.read("results.json"))
        sheets = {sheet: Image.open(io.BytesIO(file.read(sheet))) for sheet in ("findings.png", "words.png")}
    assert results["notice"].startswith("Not a medical device.")
    assert results["models"]["tier"]["lambda_token"] == page_models["tier"].model.config.lambda_token
    assert results["findings"]["picture"] == {"name": name, "width": 90, "height": 60}
    for label, read in page_models.items():
        for text, expected in zip(
            results["findings"]["texts"], read(str(radiograph), findings=FINDINGS, maps="array"), strict=True
        ):
            assert text["text"] == expected["finding"]
            assert text["models"][label]["score"] == pytest.approx(expected["score"], abs=1e-6)
            assert text["models"][label]["highest"] == pytest.approx(np.nanmax(expected["map"]), abs=1e-6)
    assert [text["text"] for text in results["words"]["texts"]] == ["left effusion", "left", "effusion"]
    for sheet, number in (("findings.png", 2), ("words.png", 3)):
        assert sheets[sheet].width > 3 * 320 and sheets[sheet].height > number * 200
        assert len(sheets[sheet].getcolors(1 << 20)) > 1000  # pictures, not an empty sheet
