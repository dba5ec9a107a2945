# Licensed under the Apache License, Version 2.0.
"""That a person can use the page in a browser, without any network."""

import io
import json
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from page.answers import FINDINGS as FIRST_FINDINGS
from page.answers import draw_pictures
from page.painting import STRETCHED


pytest_plugins = ["tests.page.fixtures"]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio")


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FINDINGS = ["left pleural effusion", "large cardiomegaly"]


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
            window.goto(server.address)
        window.get_by_role("status").get_by_text("Read “").wait_for()
        return window

    yield open_page
    for context in contexts:
        context.close()
    assert asked and all(url.startswith((server.address, "data:", "blob:")) for url in asked)


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


def expected_scores(page_models, radiograph: Path, findings: list[str]) -> list[list[str]]:
    by_model = [read(str(radiograph), findings=findings) for read in page_models.values()]
    return [[answers[0]["finding"], *(f"{entry['score']:.2f}" for entry in answers)] for answers in zip(*by_model)]


def test_upload_type_run_and_switch_the_word(visit, server, page_models, radiograph, tmp_path):
    window = visit()
    upload(window, radiograph)
    window.get_by_role("status").get_by_text("Read “radiograph.png”: 6 findings, 2 models.").wait_for()
    assert not server.files() and len(server.page.uploads) == 0
    window.get_by_label("One finding on each line").fill("\n".join(FINDINGS))
    window.get_by_role("button", name="Read the radiograph").click()
    window.get_by_role("status").get_by_text("2 findings, 2 models.").wait_for()
    expected = expected_scores(page_models, radiograph, FINDINGS)
    assert soon(window, lambda: scores(window) == expected)
    maps = window.get_by_role("img", name="Map of “large cardiomegaly” by tier over the radiograph: cosines from")
    assert maps.count() == 1

    window.get_by_label("A sentence").fill("Large left effusion.")
    window.get_by_label("A sentence").press("Enter")
    window.get_by_role("radio", name="effusion", exact=True).check()
    shown = window.locator("#tier-word-maps")
    shown.get_by_role("heading", name="effusion", exact=True).wait_for()
    for label, read in page_models.items():
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
    assert tier["score"] == pytest.approx(
        page_models["tier"](str(radiograph), findings=FINDINGS)[1]["score"], abs=1e-6
    )


@pytest.mark.slow
def test_the_keyboard_is_enough(visit, page_models, tmp_path):
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
        "One finding on each line Each is a question: “left pleural effusion.” against “No left pleural effusion.”",
    )
    window.keyboard.press("Control+A")
    window.keyboard.type("left effusion")
    tab_to("button", "Read the radiograph")
    window.keyboard.press("Enter")
    window.get_by_role("status").get_by_text("Read “Right effusion and opacity”: 1 finding, 2 models.").wait_for()
    drawing = tmp_path / "drawing.png"
    draw_pictures()[1].image.save(drawing)
    expected = expected_scores(page_models, drawing, ["left effusion"])
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
    window.locator("#tier-word-maps").get_by_role("heading", name="Moderate", exact=True).wait_for()


@pytest.mark.slow
def test_strength_and_colours_can_be_set(visit):
    window = visit()
    layer = window.locator("#tier-maps .tier-map img").first
    assert layer.evaluate("image => getComputedStyle(image).opacity") == "0.7"
    window.get_by_label("range slider for Strength").focus()
    window.keyboard.press("Home")
    assert soon(window, lambda: layer.evaluate("image => getComputedStyle(image).opacity") == "0")
    before = layer.get_attribute("src")
    window.get_by_role("radio", name=STRETCHED).check()
    window.locator("#tier-maps").get_by_text("each map's smallest value").wait_for()
    assert soon(window, lambda: layer.get_attribute("src") != before)


def test_maps_can_show_contributions(visit):
    window = visit()
    layers = window.locator("#tier-maps .tier-map img")
    clip, tier = (layers.nth(i) for i in range(2))
    before = clip.get_attribute("src"), tier.get_attribute("src")
    window.get_by_role("radio", name="contribution, minus that of “no finding”").check()
    window.locator("#tier-maps .tier-legend").get_by_text("contribution").wait_for()
    assert clip.get_attribute("src") == before[0] and tier.get_attribute("src") != before[1]
    assert "contributions from" in window.locator("#tier-word-maps img").nth(1).get_attribute("alt")
    window.get_by_role("radio", name="Moderate", exact=True).check()
    window.locator("#tier-word-maps").get_by_role("heading", name="Moderate", exact=True).wait_for()
    assert "contributions from" in window.locator("#tier-word-maps img").nth(1).get_attribute("alt")
    assert "class token" in window.locator("#tier-kind").inner_text()


def test_what_cannot_be_read_is_said_and_changes_nothing(visit, server, tmp_path):
    window = visit()
    before = scores(window)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    upload(window, broken)
    alert = window.get_by_role("alert")
    alert.get_by_text("The image broken.png cannot be read: it is of no known format").wait_for()
    assert not server.files() and len(server.page.uploads) == 0
    alert.get_by_role("button", name="Close this message").click()
    assert soon(window, lambda: alert.inner_text().strip() == "")
    window.get_by_label("One finding on each line").fill(" ")
    window.get_by_role("button", name="Read the radiograph").click()
    alert.get_by_text("Write at least one finding").wait_for()
    assert scores(window) == before
    assert "Large heart" in window.locator("#tier-status").inner_text()


def test_markup_in_a_finding_is_text(visit):
    window = visit()
    finding = "<img src=x onerror=alert(1)> {{7*7}} ${7*7} “&amp;”"
    window.get_by_label("One finding on each line").fill(finding)
    window.get_by_role("button", name="Read the radiograph").click()
    window.get_by_role("status").get_by_text(": 1 finding").wait_for()
    assert soon(window, lambda: scores(window)[0][0] == finding)
    window.locator("#tier-maps h3").get_by_text(finding, exact=True).wait_for()
    assert window.locator("#tier-maps img").first.get_attribute("alt").startswith(f"Map of “{finding}” by clip")


@pytest.mark.slow
def test_markup_in_a_sentence_is_text(visit):
    window = visit()
    window.get_by_label("A sentence").fill("left <img/src=x/onerror=alert(1)> effusion")
    window.get_by_role("button", name="Show its words").click()
    window.get_by_role("radio", name="img/src=x/onerror=alert(1", exact=True).check()
    window.locator("#tier-word-maps h3").get_by_text("img/src=x/onerror=alert(1", exact=True).wait_for()
    assert window.locator("img[src=x]").count() == 0


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


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
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
    assert len(pictures) == 1 + 2 * len(FIRST_FINDINGS) + 2  # the radiograph, findings, words; two models
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


@pytest.mark.slow
def test_a_closed_page_is_forgotten(visit, server, radiograph):
    window = visit()
    upload(window, radiograph)
    window.get_by_role("status").get_by_text("Read “radiograph.png”").wait_for()
    sessions = server.page.sessions
    before = len(sessions)
    window.context.close()
    deadline = time.monotonic() + 20
    while len(sessions) >= before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(sessions) < before


@pytest.mark.slow
def test_results_that_are_no_longer_kept_are_not_confused_with_others(visit, server, radiograph):
    window = visit()
    upload(window, radiograph)
    window.get_by_role("status").get_by_text("Read “radiograph.png”").wait_for()
    server.page.sessions.clear()
    window.get_by_role("radio", name=STRETCHED).check()
    window.get_by_role("alert").get_by_text("These results are no longer kept").wait_for()
    window.get_by_role("button", name="Read the radiograph").click()
    window.get_by_role("alert").get_by_text("The picture is no longer kept").wait_for()
    window.get_by_role("radio", name="Nothing found").check()
    window.get_by_role("status").get_by_text("Read “Nothing found”").wait_for()


def test_gradio_records_nothing(server):
    page = server.page
    assert not page.analytics_enabled and not page.run_history and not page.share
