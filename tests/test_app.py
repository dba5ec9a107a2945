# Licensed under the Apache License, Version 2.0.
"""The page to try a model: what it computes, and that a person can use it in a browser, without any network."""

import io
import json
import shutil
import socket
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import IMAGE_SIZE, TEXT_CONFIGS, VISION_CONFIGS
from PIL import Image
from transformers import BertConfig, BertModel, CLIPImageProcessor

from modeling_tier import TierConfig, TierModel, TierProcessor, TierZeroShotPipeline, load_radiograph, overlay_map


pytest.importorskip("gradio", reason="gradio is not installed")
import app  # noqa: E402


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FINDINGS = ["left pleural effusion", "large cardiomegaly"]


@pytest.fixture(scope="module")
def models(tokenizer) -> dict[str, TierZeroShotPipeline]:
    """Two small ones of random weights."""
    text = BertConfig(**TEXT_CONFIGS["bert"].to_diff_dict() | {"vocab_size": len(tokenizer)})
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    made = {}
    for seed, name in enumerate(("clip", "tier")):
        torch.manual_seed(seed)
        config = TierConfig(
            text_config=text, vision_config=VISION_CONFIGS["clip"], projection_dim=16, logit_scale_init_value=1.5
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


def test_scores_and_maps_are_those_of_the_pipeline(models, radiograph):
    rows = app.read_findings(models, app.Picture("a", load_radiograph(radiograph)), FINDINGS).rows
    assert [row.text for row in rows] == FINDINGS
    for name, read in models.items():
        for row, expected in zip(rows, read(str(radiograph), findings=FINDINGS, maps="array")):
            cell, cosines = row.cells[name], expected["map"]
            assert (cell.score, cell.difference) == (expected["score"], expected["difference"])
            np.testing.assert_array_equal(cell.cosines, cosines)
            assert (cell.low, cell.high) == (np.nanmin(cosines), np.nanmax(cosines))
            x, y = int(cell.peak[0] * 90), int(cell.peak[1] * 60)
            assert cosines[y, x] == cell.high


def test_a_large_picture_keeps_its_scores_and_gets_small_maps(models):
    noise = np.random.default_rng(0).integers(0, 200, (1400, 1300))
    picture = load_radiograph(noise + pixels(1400, 1300) // 1000)
    rows = app.read_findings(models, app.Picture("large", picture), FINDINGS).rows
    for name, read in models.items():
        for row, expected in zip(rows, read(picture, findings=FINDINGS, maps="array")):
            cell = row.cells[name]
            assert cell.score == expected["score"]
            assert max(cell.cosines.shape) <= 256
            assert (cell.low, cell.high) == pytest.approx(
                (np.nanmin(expected["map"]), np.nanmax(expected["map"])), abs=0.02
            )


def test_a_sentence_comes_first_and_then_its_words(models, radiograph):
    picture = app.Picture("a", load_radiograph(radiograph))
    rows = app.read_words(models, picture, " Large left effusion. ").rows
    assert [row.text for row in rows] == ["Large left effusion.", "Large", "left", "effusion"]
    for name, read in models.items():
        words = read.word_maps(str(radiograph), "Large left effusion.")["maps"]
        sentence = {"a": {"positive": ["Large left effusion."], "negative": ["no"]}}
        whole = read(str(radiograph), findings=sentence, maps="array")[0]["map"]
        for row, expected in zip(rows, [whole, *words]):
            np.testing.assert_allclose(row.cells[name].cosines, expected, atol=1e-6)


def test_findings_are_lines_without_repetition():
    assert app.split_findings(" left  effusion.\n\nEdema\nedema \nno change") == [
        "left effusion",
        "Edema",
        "no change",
    ]
    with pytest.raises(ValueError, match="at least one finding"):
        app.split_findings(" \n.\n")
    with pytest.raises(ValueError, match="At most 12 findings at a time; these are 13"):
        app.split_findings("\n".join(f"finding {i}" for i in range(13)))


def test_an_uploaded_file_is_read_and_deleted(radiograph, tmp_path):
    expected = load_radiograph(radiograph)
    upload = tmp_path / "upload" / "0123abcd" / "chest.png"
    upload.parent.mkdir(parents=True)
    shutil.copy(radiograph, upload)
    picture = app.take_file(str(upload))
    assert picture.name == "chest.png" and picture.places == ()
    np.testing.assert_array_equal(picture.image, expected)
    assert np.unique(picture.image).size > 50  # not white
    upload.parent.mkdir()
    for content in (b"nothing", bytes(128) + b"DICM" + bytes(range(200))):
        upload.parent.mkdir(exist_ok=True)
        upload.write_bytes(content)
        with pytest.raises(ValueError, match="chest.png cannot be read as PNG, JPEG or DICOM") as error:
            app.take_file(str(upload))
        assert str(tmp_path) not in str(error.value)
    assert not any((tmp_path / "upload").iterdir())


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
    grey = np.asarray(app.take_file(str(path)).image)[..., 0].astype(int)
    assert grey[0, 0] == 0 and grey[-1, -1] < grey[-1, 0] < grey[30, 50]  # large values are dark


def test_colours_are_those_of_the_pipelines_overlay():
    rng = np.random.default_rng(0)
    cosines = rng.uniform(-0.6, 0.4, (40, 50)).astype(np.float32)
    cosines[:, :5] = np.nan
    picture = Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    layer = app.map_layer(cosines, 0.6)
    alpha = layer.getchannel("A").point(lambda value: value * 0.7)
    shown = np.asarray(Image.composite(layer.convert("RGB"), picture, alpha), dtype=int)
    np.testing.assert_allclose(shown, np.asarray(overlay_map(picture, cosines, 0.6), dtype=int), atol=3)


def test_colours_are_alike_for_all_maps_of_a_model_or_stretched_for_each():
    def cell(low, high):
        return app.Cell(np.array([[low, high, np.nan]], dtype=np.float32), low, high, (0.5, 0.5))

    rows = [app.Row("a", {"x": cell(-0.2, 0.1), "y": cell(0.0, 0.5)}), app.Row("b", {"x": cell(0.1, 0.15)})]
    assert app.colour_limits(rows, app.BY_COSINE) == {"x": 0.2, "y": 0.5}
    assert app.colour_limits(rows, app.STRETCHED) == {"x": 1.0, "y": 1.0}
    np.testing.assert_array_equal(app.painted_values(rows[1].cells["x"], app.BY_COSINE), rows[1].cells["x"].cosines)
    np.testing.assert_allclose(app.painted_values(rows[1].cells["x"], app.STRETCHED), [[0, 1, np.nan]], atol=1e-6)


@pytest.mark.parametrize(
    "peak, words",
    [
        ((0.5, 0.4), "in the middle of the picture"),
        ((0.9, 0.5), "at the right edge of the picture"),
        ((0.5, 0.01), "at the upper edge of the picture"),
        ((0.1, 1.0), "at the lower left corner of the picture"),
    ],
)
def test_a_place_in_words(peak, words):
    assert app.place_in_words(peak) == words


def test_the_drawings_name_what_was_drawn():
    drawings = app.draw_pictures()
    named = [" ".join(phrase for phrase, _ in drawing.places).lower() for drawing in drawings]
    assert "cardiomegaly" in named[0] and "left pneumothorax" in named[0]
    assert "right pleural effusion" in named[1] and "consolidation" in named[1]
    assert named[2] == ""
    for drawing in drawings:
        for _, (x_min, y_min, x_max, y_max) in drawing.places:
            assert 0 <= x_min < x_max <= drawing.image.width and 0 <= y_min < y_max <= drawing.image.height


def test_the_archive_holds_all_numbers_and_maps(models, radiograph):
    picture = app.Picture("röntgen.png", load_radiograph(radiograph))
    findings = app.read_findings(models, picture, FINDINGS)
    words = app.read_words(models, picture, "left effusion")
    check_archive(app.archive(models, findings, words, app.BY_COSINE), models, radiograph, "röntgen.png")


def check_archive(content: bytes, models, radiograph: Path, name: str) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        results = json.loads(file.read("results.json"))
        sheets = {sheet: Image.open(io.BytesIO(file.read(sheet))) for sheet in ("findings.png", "words.png")}
    assert results["notice"].startswith("Not a medical device.")
    assert results["models"]["tier"]["lambda_token"] == models["tier"].model.config.lambda_token
    assert results["findings"]["picture"] == {"name": name, "width": 90, "height": 60}
    for label, read in models.items():
        for text, expected in zip(
            results["findings"]["texts"], read(str(radiograph), findings=FINDINGS, maps="array"), strict=True
        ):
            assert text["text"] == expected["finding"]
            assert text["models"][label]["score"] == pytest.approx(expected["score"], abs=1e-6)
            assert text["models"][label]["highest_cosine"] == pytest.approx(np.nanmax(expected["map"]), abs=1e-6)
    assert [text["text"] for text in results["words"]["texts"]] == ["left effusion", "left", "effusion"]
    for sheet, number in (("findings.png", 2), ("words.png", 3)):
        assert sheets[sheet].width > 3 * 320 and sheets[sheet].height > number * 200
        assert len(sheets[sheet].getcolors(1 << 20)) > 1000  # pictures, not an empty sheet


def test_models_are_named_by_the_end_of_their_names(models, tmp_path):
    folders = [tmp_path / "first" / "model", tmp_path / "second" / "model", tmp_path / "other"]
    for folder in folders:
        models["tier"].save_pretrained(folder)
    first, second, other = map(str, folders)
    assert list(app.load_models([first, other])) == ["model", "other"]
    loaded = app.load_models([first, second])
    assert list(loaded) == [first, second]
    assert isinstance(loaded[first], TierZeroShotPipeline)


def test_what_is_wrong_with_the_models_is_said(models, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="named twice"):
        app.load_models(["a", "a"])
    BertModel(TEXT_CONFIGS["bert"]).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="holds a model of type 'bert'"):
        app.load_models([str(tmp_path / "bert")])
    monkeypatch.delenv("TIER_MODELS", raising=False)
    monkeypatch.delenv("SPACE_ID", raising=False)
    for arguments, message in (([], "error: No model is given"), (["--model", str(tmp_path / "none")], "error: ")):
        monkeypatch.setattr(sys, "argv", ["app.py", *arguments])
        with pytest.raises(SystemExit, match=message):
            app.main()


@pytest.mark.parametrize("names, shown", [("", "No model is given"), ("{good}, {good}/none", "none")])
def test_a_space_shows_what_is_wrong(models, tmp_path, monkeypatch, names, shown):
    """A Space has no command line: its models stand in a variable, and its page must say what is amiss."""
    models["tier"].save_pretrained(tmp_path / "good")
    monkeypatch.setenv("TIER_MODELS", names.format(good=tmp_path / "good"))
    monkeypatch.setenv("SPACE_ID", "user/space")
    monkeypatch.setattr(sys, "argv", ["app.py"])
    pages = []
    monkeypatch.setattr(app.gr.Blocks, "block_thread", lambda page: None)
    monkeypatch.setattr(app, "launch", lambda page, **_: (pages.append(page), "address", None))
    app.main()
    text = "".join(str(block.value) for block in pages[0].blocks.values())
    assert "There is no model to show" in text and shown in text and "Not a medical device" in text


# In a browser.


@pytest.fixture(scope="module")
def server(models, tmp_path_factory):
    """The page, its address, the folder of uploads, and every address that this process connected to meanwhile."""
    uploads = tmp_path_factory.mktemp("uploads")
    connected, connect = [], socket.socket.connect

    def note(self, address):
        connected.append(address)
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(uploads))
        patch.setattr(socket.socket, "connect", note)
        page = app.build_page(models)
        _, address, _ = app.launch(page)
        yield page, address, uploads
        page.close()
    outside = [a for a in connected if isinstance(a, tuple) and a[0] not in ("127.0.0.1", "localhost", "::1")]
    assert not outside


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        instance = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield instance
        instance.close()


@pytest.fixture
def visit(server, browser):
    """Open the page in a window of its own; in the end, nothing else must have been asked for."""
    asked, contexts = [], []

    def open_page(width=1280, height=900, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        context.set_default_timeout(15_000)
        contexts.append(context)
        window = context.new_page()
        window.on("request", lambda request: asked.append(request.url))
        window.on("pageerror", lambda error: pytest.fail(f"JavaScript: {error}"))
        with window.expect_response(lambda response: response.request.method == "POST"):  # the page's load event
            window.goto(server[1])
        window.get_by_role("status").get_by_text("Read “").wait_for()
        return window

    yield open_page
    for context in contexts:
        context.close()
    assert asked and all(url.startswith((server[1], "data:", "blob:")) for url in asked)


def upload(window, path: Path) -> None:
    with window.expect_file_chooser() as chooser:
        window.get_by_role("button", name="Click to upload").click()
    chooser.value.set_files(path)


def soon(window, condition) -> bool:
    """Whether it is so within a few seconds: the browser paints when it likes."""
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        window.wait_for_timeout(50)
    return condition()


def scores(window) -> list[list[str]]:
    """The table: the finding, then each model's score, row by row."""
    return window.locator("#tier-scores tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.querySelectorAll('th, td b')].map(cell => cell.innerText))"
    )


def expected_scores(models, radiograph: Path, findings: list[str]) -> list[list[str]]:
    by_model = [read(str(radiograph), findings=findings) for read in models.values()]
    return [[answers[0]["finding"], *(f"{each['score']:.2f}" for each in answers)] for answers in zip(*by_model)]


def test_upload_type_run_and_switch_the_word(visit, server, models, radiograph, tmp_path):
    window = visit()
    upload(window, radiograph)
    window.get_by_role("status").get_by_text("Read “radiograph.png”: 6 findings, 2 models.").wait_for()
    assert not [file for file in server[2].rglob("*") if file.is_file() and file.stat().st_size]
    window.get_by_label("One finding a line").fill("\n".join(FINDINGS))
    window.get_by_role("button", name="Read the radiograph").click()
    window.get_by_role("status").get_by_text("2 findings, 2 models.").wait_for()
    expected = expected_scores(models, radiograph, FINDINGS)
    assert soon(window, lambda: scores(window) == expected)
    maps = window.get_by_role("img", name="Map of “large cardiomegaly” by tier over the radiograph: cosines from")
    assert maps.count() == 1

    window.get_by_label("A sentence").fill("Large left effusion.")
    window.get_by_label("A sentence").press("Enter")
    window.get_by_role("radio", name="effusion", exact=True).check()
    shown = window.locator("#tier-word-maps")
    shown.get_by_role("heading", name="effusion", exact=True).wait_for()
    for label, read in models.items():
        cosines = read.word_maps(str(radiograph), "Large left effusion.")["maps"][2]
        alternative = shown.get_by_role("img", name=f"by {label} over the radiograph").get_attribute("alt")
        numbers = [f"{value:.2f}".replace("-", "−") for value in (np.nanmin(cosines), np.nanmax(cosines))]
        assert f"cosines from\n{' to '.join(numbers)}, the largest" in alternative
    screenshot = Image.open(io.BytesIO(window.screenshot(path=tmp_path / "page.png", full_page=True)))
    assert screenshot.width == 1280 and len(screenshot.convert("RGB").getcolors(1 << 24)) > 5000

    with window.expect_download() as download:
        window.get_by_role("button", name="Download").click()
    check = download.value.path().read_bytes()
    with zipfile.ZipFile(io.BytesIO(check)) as file:
        results = json.loads(file.read("results.json"))
    assert [text["text"] for text in results["words"]["texts"]] == [
        "Large left effusion.",
        "Large",
        "left",
        "effusion",
    ]
    tier = results["findings"]["texts"][1]["models"]["tier"]
    assert tier["score"] == pytest.approx(models["tier"](str(radiograph), findings=FINDINGS)[1]["score"], abs=1e-6)


def test_the_keyboard_is_enough(visit, models, tmp_path):
    window = visit()

    def tab_to(role: str, name: str) -> None:
        wanted = window.get_by_role(role, name=name, exact=True).first
        for _ in range(40):
            if wanted.evaluate("element => element === document.activeElement"):
                return
            window.keyboard.press("Tab")
        pytest.fail(f"Tab does not lead to {name}")

    tab_to("radio", "Large heart, left pneumothorax")
    window.keyboard.press("ArrowDown")
    window.get_by_role("status").get_by_text("Read “Right effusion and opacity”").wait_for()
    window.keyboard.press("Tab")
    tab_to(
        "textbox",
        "One finding a line Each is a question: “left pleural effusion.” against “No left pleural effusion.”",
    )
    window.keyboard.press("Control+A")
    window.keyboard.type("left effusion")
    tab_to("button", "Read the radiograph")
    window.keyboard.press("Enter")
    window.get_by_role("status").get_by_text("Read “Right effusion and opacity”: 1 finding, 2 models.").wait_for()
    drawing = tmp_path / "drawing.png"
    app.draw_pictures()[1].image.save(drawing)
    expected = expected_scores(models, drawing, ["left effusion"])
    assert soon(window, lambda: scores(window) == expected)
    tab_to("button", "Enlarge the map of “left effusion” by tier")
    window.keyboard.press("Enter")
    dialog = window.get_by_role("dialog", name="Map of “left effusion” by tier")
    dialog.get_by_role("button", name="Close").wait_for()
    box = dialog.bounding_box()
    assert box["x"] >= 0 and box["y"] >= 0 and box["y"] + box["height"] <= 900
    window.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    tab_to("radio", "the whole sentence")
    window.keyboard.press("ArrowRight")
    window.locator("#tier-word-maps").get_by_role("heading", name="Large", exact=True).wait_for()


def test_strength_and_colours_can_be_set(visit):
    window = visit()
    layer = window.locator("#tier-maps .tier-map img").first
    assert layer.evaluate("image => getComputedStyle(image).opacity") == "0.7"
    window.get_by_label("range slider for Strength").focus()
    window.keyboard.press("Home")
    assert soon(window, lambda: layer.evaluate("image => getComputedStyle(image).opacity") == "0")
    before = layer.get_attribute("src")
    window.get_by_role("radio", name=app.STRETCHED).check()
    window.locator("#tier-maps").get_by_text("each map's smallest cosine").wait_for()
    assert soon(window, lambda: layer.get_attribute("src") != before)


def test_what_cannot_be_read_is_said_and_changes_nothing(visit, server, tmp_path):
    window = visit()
    before = scores(window)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    upload(window, broken)
    alert = window.get_by_role("alert")
    alert.get_by_text("broken.png cannot be read as PNG, JPEG or DICOM").wait_for()
    assert not [file for file in server[2].rglob("*") if file.is_file() and file.stat().st_size]
    alert.get_by_role("button", name="Close this message").click()
    assert soon(window, lambda: alert.inner_text().strip() == "")
    window.get_by_label("One finding a line").fill(" ")
    window.get_by_role("button", name="Read the radiograph").click()
    alert.get_by_text("Write at least one finding").wait_for()
    assert scores(window) == before
    assert "Large heart" in window.locator("#tier-status").inner_text()


def test_markup_in_a_finding_is_text(visit):
    window = visit()
    finding = "<img src=x onerror=alert(1)> {{7*7}} ${7*7} “&amp;”"
    window.get_by_label("One finding a line").fill(finding)
    window.get_by_role("button", name="Read the radiograph").click()
    window.get_by_role("status").get_by_text(": 1 finding").wait_for()
    assert soon(window, lambda: scores(window)[0][0] == finding)
    window.locator("#tier-maps h3").get_by_text(finding, exact=True).wait_for()
    assert window.locator("#tier-maps img").first.get_attribute("alt").startswith(f"Map of “{finding}” by clip")


# For every text, the contrast of its colour with the first background behind it that is not transparent.
CONTRASTS = """() => {
    const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
    const light = c => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {
        const s = c[i] / 255;
        return sum + weight * (s <= 0.04045 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4);
    }, 0);
    const found = [];
    for (const element of document.querySelectorAll("main *")) {
        const text = [...element.childNodes].filter(n => n.nodeType === 3).map(n => n.data.trim()).join("");
        if (!text || !element.checkVisibility({opacityProperty: true}) || element.closest(".tier-map")) continue;
        let behind = element;
        while (behind && (numbers(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0)
            behind = behind.parentElement;
        const pair = [getComputedStyle(element).color, getComputedStyle(behind ?? document.body).backgroundColor];
        const [high, low] = pair.map(c => light(numbers(c)) + 0.05).sort((a, b) => b - a);
        found.push([high / low, text]);
    }
    return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_it_is_readable_on_every_screen(visit, width, scheme):
    window = visit(width, 740, scheme)
    window.get_by_text("How to read this page").click()
    assert window.evaluate("document.documentElement.scrollWidth") <= width
    beyond = window.evaluate(
        "[...document.querySelectorAll('main *')].filter(e => e.checkVisibility() && "
        "e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 200))"
    )
    assert not beyond
    contrasts = window.evaluate(CONTRASTS)
    assert len(contrasts) > 60
    assert not [pair for pair in contrasts if pair[0] < 4.5]
    body = window.evaluate("getComputedStyle(document.body).backgroundColor.match(/[\\d.]+/g).map(Number)")
    assert (sum(body[:3]) > 3 * 128) == (scheme == "light")
    notice = window.get_by_role("note")
    assert notice.inner_text().startswith("Not a medical device.")
    assert notice.bounding_box()["y"] < 740  # seen without scrolling


def test_everything_has_a_name(visit):
    window = visit()
    pictures = window.locator("main img").evaluate_all("images => images.map(image => image.alt)")
    assert len(pictures) == 1 + 2 * len(app.FINDINGS) + 2  # the radiograph, findings, words; two models
    assert all(len(alternative) > 20 for alternative in pictures)
    unnamed = window.locator("main").evaluate(
        "main => [...main.querySelectorAll('button, input:not([type=file]), textarea')].filter(e => !("
        "e.getAttribute('aria-label') || [...(e.labels ?? [])].map(l => l.innerText).join('') || e.innerText)"
        ").map(e => e.outerHTML)"
    )
    assert not unnamed
    levels = window.locator("main").evaluate("main => [...main.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:]))
    assert window.locator("html").get_attribute("lang") == "en"


def test_a_closed_page_is_forgotten(visit, server, radiograph):
    window = visit()
    upload(window, radiograph)
    window.get_by_role("status").get_by_text("Read “radiograph.png”").wait_for()
    kept = server[0].app.state_holder.session_data
    sessions = set(kept)
    assert sessions
    window.context.close()
    deadline = time.monotonic() + 20
    while sessions & set(kept) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not sessions & set(kept)


def test_results_that_are_no_longer_kept_are_not_confused_with_others(visit, server, radiograph):
    window = visit()
    upload(window, radiograph)
    window.get_by_role("status").get_by_text("Read “radiograph.png”").wait_for()
    server[0].app.state_holder.session_data.clear()
    window.get_by_role("radio", name=app.STRETCHED).check()
    window.get_by_role("alert").get_by_text("These results are no longer kept").wait_for()
    window.get_by_role("button", name="Read the radiograph").click()
    window.get_by_role("alert").get_by_text("The picture is no longer kept").wait_for()
    window.get_by_role("radio", name="Nothing found").check()
    window.get_by_role("status").get_by_text("Read “Nothing found”").wait_for()


def test_gradio_records_nothing(server):
    page = server[0]
    assert not page.analytics_enabled and not page.run_history and not page.share
