# Licensed under the Apache License, Version 2.0.
"""
A page to try a model: findings as yes/no questions, their maps over the radiograph, and where single words point.

    python app.py --model runs/demo/clip --model runs/demo/tier

Models are folders or names on the Hub; several stand side by side. As a Space it is started without options, and the
variable TIER_MODELS names the models, separated by commas. Not a medical device.
"""

import argparse
import base64
import contextlib
import io
import json
import os
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import gradio as gr
import jinja2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from transformers.utils import logging

from modeling_tier import load_radiograph
from modeling_tier.data.synthetic import draw_studies, region_phrase
from modeling_tier.evaluation import load_model
from modeling_tier.pipeline_tier import TierZeroShotPipeline, overlay_map


WARNING = "Not a medical device. Not for diagnosis, and not for any decision about a patient."
NOTICE = (
    f"{WARNING} A score is not a probability, and a coloured place is no proof of a finding: there the model finds "
    "the picture most like the words."
)
FINDINGS = (
    "cardiomegaly",
    "left pneumothorax",
    "right pneumothorax",
    "left pleural effusion",
    "right pleural effusion",
    "right upper lobe consolidation",
)
SENTENCE = "Large left pneumothorax with cardiomegaly."
WHOLE = "the whole sentence"
BY_COSINE, STRETCHED = "by cosine, alike for all maps of a model", "stretched, each map over its own range"

# Of the drawn test set: a large heart with a pneumothorax; an effusion, a consolidation and a line; nothing at all.
_DRAWINGS = {"Large heart, left pneumothorax": 12, "Right effusion and opacity": 10, "Nothing found": 2}
_MOST_FINDINGS = 12
_PICTURE_SIDE, _MAP_SIDE, _SHEET_SIDE = 1024, 256, 320


class Picture(NamedTuple):
    """The radiograph that is looked at."""

    name: str
    image: Image.Image
    places: tuple[tuple[str, list[float]], ...] = ()
    """Of a drawing: what was drawn, and the box around it (x_min, y_min, x_max, y_max in pixels)."""


class Cell(NamedTuple):
    """What one model makes of one text."""

    cosines: np.ndarray
    """float32 (H, W) over the picture, at most 256 pixels a side; NaN where the model does not look."""
    low: float
    high: float
    peak: tuple[float, float]
    """Where the largest cosine is, as shares of the width and of the height."""
    score: float | None = None
    difference: float | None = None


class Row(NamedTuple):
    """One text, and what each model makes of it, by the model's name."""

    text: str
    cells: dict[str, Cell]


class Answers(NamedTuple):
    """What is shown: a picture, and a row for each text."""

    picture: Picture
    rows: list[Row]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--model",
        action="append",
        help="folder or Hub id of a TIER model or a CLIPModel; may be given several times. Default: TIER_MODELS",
    )
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    names = arguments.model or [name.strip() for name in os.environ.get("TIER_MODELS", "").split(",") if name.strip()]
    try:
        page = build_page(load_models(names))
    except (ValueError, OSError) as error:
        if "SPACE_ID" not in os.environ:
            sys.exit(f"error: {error}")
        page = error_page(str(error))  # a Space that ends shows its visitors nothing of this
    _, address, _ = launch(page, server_port=arguments.port)
    print(f"The page is at {address}", flush=True)
    page.block_thread()


def launch(page: gr.Blocks, **options) -> tuple:
    """
    Start a page of [`build_page`], and return as soon as it answers.

    Args:
        page: the page.
        **options: of `gr.Blocks.launch`.

    Returns:
        its application, its address, and None.
    """
    return page.launch(
        theme=_theme(),
        css=_STYLE,
        head=_SCRIPT,
        footer_links=[],
        run_history=False,  # it would keep pictures and findings in the browser
        ssr_mode=False,
        share=False,
        state_session_capacity=50,
        max_file_size="100mb",
        quiet=True,  # it would advise to share the page with the world
        prevent_thread_lock=True,
        **options,
    )


def load_models(names: list[str]) -> dict[str, TierZeroShotPipeline]:
    """
    Load models for [`build_page`].

    Args:
        names: folders or Hub ids of TIER models, or of CLIPModels.

    Returns:
        pipelines by the last part of each name (by the whole name, where two end alike).

    Raises:
        ValueError: if there is none, one is named twice, or one is another kind of model.
        OSError: if one is not there.
    """
    if not names:
        raise ValueError(
            "No model is given: use --model FOLDER_OR_HUB_ID, or set TIER_MODELS to a list of them separated by "
            "commas (on a Space under Settings, Variables)."
        )
    if len(set(names)) < len(names):
        raise ValueError(f"A model is named twice in {names}.")
    last = [Path(name).name for name in names]
    labels = last if len(set(last)) == len(last) else names
    models = {}
    for label, name in zip(labels, names):
        model, processor = load_model(name)
        models[label] = TierZeroShotPipeline(model=model, processor=processor)
    return models


def draw_pictures() -> list[Picture]:
    """The three drawings that the page offers."""
    studies = list(draw_studies("test", max(_DRAWINGS.values()) + 1, 512, 0))
    pictures = []
    for name, i in _DRAWINGS.items():
        places = []
        for region in studies[i].regions:
            rows, columns = (np.flatnonzero(region.mask.any(axis=axis)).tolist() for axis in (1, 0))
            box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            places.append((region_phrase(region.finding, region.side), box))
        pictures.append(Picture(name, load_radiograph(studies[i].pixels), tuple(places)))
    return pictures


def take_file(path: str) -> Picture:
    """Read an uploaded file and delete it, whether it can be read or not."""
    file = Path(path)
    try:
        return Picture(file.name, load_radiograph(path))
    except Exception as error:  # a broken DICOM file can raise anything
        reason = str(error).replace(path, file.name)
        raise ValueError(f"{file.name} cannot be read as PNG, JPEG or DICOM. {reason}") from error
    finally:
        file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            file.parent.rmdir()  # Gradio names it after the file's content


def split_findings(text: str) -> list[str]:
    """The findings of a text with one a line, each once, without the full stop."""
    lines = (re.sub(r"\s+", " ", line).strip(" .") for line in text.splitlines())
    findings = list({line.lower(): line for line in reversed(list(lines)) if line}.values())[::-1]
    if not findings:
        raise ValueError("Write at least one finding, such as: left pleural effusion")
    if len(findings) > _MOST_FINDINGS:
        raise ValueError(f"At most {_MOST_FINDINGS} findings at a time; these are {len(findings)}.")
    return findings


def read_findings(models: dict[str, TierZeroShotPipeline], picture: Picture, findings: list[str]) -> Answers:
    """Scores and maps of the findings, as the pipelines give them."""
    small = _reduced(picture.image)
    cells = {finding: {} for finding in findings}
    for label, read in models.items():
        answers = read(small, findings=findings, maps="array")
        # The scores are always of the picture as it is. Maps of thousands of pixels a side nobody sees.
        exact = answers if small is picture.image else read(picture.image, findings=findings)
        for answer, scored in zip(answers, exact):
            cell = _cell(answer["map"])._replace(score=scored["score"], difference=scored["difference"])
            cells[answer["finding"]][label] = cell
    return Answers(picture, [Row(finding, by_model) for finding, by_model in cells.items()])


def read_words(models: dict[str, TierZeroShotPipeline], picture: Picture, sentence: str) -> Answers:
    """The map of a sentence, then of each of its words. A word that a model's tokenizer cuts off has no cell of it."""
    sentence = sentence.strip()
    if not sentence:
        raise ValueError("Write a sentence, such as: Large left pleural effusion.")
    small = _reduced(picture.image)
    # The pipeline wants both kinds of sentences; only the map is used, which is of the positive ones.
    whole = {sentence: {"positive": [sentence], "negative": [sentence]}}
    rows = [Row(sentence, {name: _cell(read(small, whole, maps="array")[0]["map"]) for name, read in models.items()})]
    for label, read in models.items():
        found = read.word_maps(small, sentence)
        for i, (word, cosines) in enumerate(zip(found["words"], found["maps"]), start=1):
            if i == len(rows):
                rows.append(Row(word, {}))
            rows[i].cells[label] = _cell(cosines)
    return Answers(picture, rows)


def _reduced(image: Image.Image) -> Image.Image:
    """The same picture, if it is not too large."""
    factor = _PICTURE_SIDE / max(image.size)
    if factor >= 1:
        return image
    return image.resize([max(1, round(side * factor)) for side in image.size], Image.Resampling.LANCZOS)


def _cell(cosines: np.ndarray) -> Cell:
    row, column = np.unravel_index(np.nanargmax(cosines), cosines.shape)
    peak = (column + 0.5) / cosines.shape[1], (row + 0.5) / cosines.shape[0]
    step = -(-max(cosines.shape) // _MAP_SIDE)  # a map is smooth: every n-th pixel shows it
    kept = np.ascontiguousarray(cosines[step // 2 :: step, step // 2 :: step] if step > 1 else cosines)
    return Cell(kept, float(np.nanmin(cosines)), float(np.nanmax(cosines)), (float(peak[0]), float(peak[1])))


# What is painted. Orange and blue are those of `overlay_map`.

_ORANGE, _BLUE = (255, 140, 0), (0, 114, 255)


def colour_limits(rows: list[Row], colours: str) -> dict[str, float]:
    """For each model the value at which its maps are fully coloured."""
    limits = {}
    for row in rows:
        for label, cell in row.cells.items():
            largest = 1.0 if colours == STRETCHED else max(abs(cell.low), abs(cell.high), 1e-12)
            limits[label] = max(limits.get(label, 0.0), largest)
    return limits


def painted_values(cell: Cell, colours: str) -> np.ndarray:
    """What is painted of a map: its cosines, or where they lie between the smallest (0) and the largest (1)."""
    return (cell.cosines - cell.low) / max(cell.high - cell.low, 1e-12) if colours == STRETCHED else cell.cosines


def map_layer(values: np.ndarray, limit: float) -> Image.Image:
    """The colours of a map alone, RGBA: laid over its picture at 70%, it gives `overlay_map`."""
    alpha = np.clip(np.nan_to_num(np.abs(values)) / limit, 0, 1)
    colour = np.where(values[..., None] > 0, np.uint8(_ORANGE), np.uint8(_BLUE))
    return Image.fromarray(np.dstack([colour, np.round(255 * alpha).astype(np.uint8)]))


def place_in_words(peak: tuple[float, float]) -> str:
    """A ninth of the picture, named by its own sides, which are not the patient's."""
    across, down = (min(int(3 * share), 2) for share in peak)
    if (across, down) == (1, 1):
        return "in the middle of the picture"
    names = [("upper", "", "lower")[down], ("left", "", "right")[across]]
    return f"at the {' '.join(name for name in names if name)} {'edge' if '' in names else 'corner'} of the picture"


def _number(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")  # + 0.0: no minus before 0.00


def contact_sheet(answers: Answers, colours: str) -> Image.Image:
    """All maps in one picture: one row a text, the radiograph on the left and a column for each model."""
    picture, rows = answers
    labels, limits = list(rows[0].cells), colour_limits(rows, colours)
    side, gap, head = _SHEET_SIDE, 16, 90
    factor = side / max(picture.image.size)
    size = tuple(max(1, round(length * factor)) for length in picture.image.size)
    height = size[1] + 64
    sheet = Image.new("RGB", (gap + (1 + len(labels)) * (side + gap), head + len(rows) * height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 13)

    def write(left: int, top: int, text: str, right: int = sheet.width, colour: str = "black") -> None:
        while draw.textlength(text, font) > right - left and len(text) > 1:
            text = text[:-2] + "…"
        draw.text((left, top), text, fill=colour, font=font)

    write(gap, 10, f"{picture.name}: where the words point")
    write(gap, 30, f"Colours {colours}. The ring is at the largest cosine.")
    write(gap, 50, WARNING, colour="#9a1c1c")
    for top, row in zip(range(head, sheet.height, height), rows):
        write(gap, top, row.text)
        sheet.paste(picture.image.resize(size), (gap, top + 20))
        for left, label in zip(range(gap + side + gap, sheet.width, side + gap), labels):
            if label not in row.cells:
                continue
            cell = row.cells[label]
            under = picture.image.resize(cell.cosines.shape[::-1])
            painted = overlay_map(under, painted_values(cell, colours), limits[label])
            sheet.paste(painted.resize(size), (left, top + 20))
            x, y = left + cell.peak[0] * size[0], top + 20 + cell.peak[1] * size[1]
            for width, colour in ((5, "black"), (2, "white")):
                draw.ellipse((x - 8, y - 8, x + 8, y + 8), outline=colour, width=width)
            score = "" if cell.score is None else f"score {_number(cell.score)}, "
            text = f"{label}: {score}cosine {_number(cell.low)} to {_number(cell.high)}"
            write(left, top + size[1] + 24, text, left + side)
    return sheet


def archive(models: dict[str, TierZeroShotPipeline], findings: Answers, words: Answers, colours: str) -> bytes:
    """A zip file: `results.json` with all numbers, `findings.png` and `words.png` with all maps."""
    results = {
        "notice": NOTICE,
        "models": {label: describe_model(read) for label, read in models.items()},
        "findings": _numbers(findings),
        "words": _numbers(words),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("results.json", json.dumps(results, indent=2, ensure_ascii=False))
        for name, answers in (("findings.png", findings), ("words.png", words)):
            file.writestr(name, _encoded(contact_sheet(answers, colours), "PNG"))
    return buffer.getvalue()


def _numbers(answers: Answers) -> dict:
    texts = []
    for row in answers.rows:
        models = {}
        for label, cell in row.cells.items():
            scores = {} if cell.score is None else {"score": cell.score, "difference": cell.difference}
            models[label] = scores | {"lowest_cosine": cell.low, "highest_cosine": cell.high, "highest_at": cell.peak}
        texts.append({"text": row.text, "models": models})
    name, image, _ = answers.picture
    return {"picture": {"name": name, "width": image.width, "height": image.height}, "texts": texts}


def describe_model(read: TierZeroShotPipeline) -> dict:
    """What of a model a reader of its maps wants to know."""
    config = read.model.config
    return {
        "lambda_token": config.lambda_token,
        "lambda_patch": config.lambda_patch,
        "vision": config.vision_config.model_type,
        "text": config.text_config.model_type,
    }


def _encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 90} if kind == "WEBP" else {}))
    return buffer.getvalue()


def _address(content: bytes, kind: str) -> str:
    """The content itself as an address: nothing has to lie on the disk to be shown or downloaded."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


# The page. Every text of a user goes through a template, which escapes it.


def build_page(models: dict[str, TierZeroShotPipeline]) -> gr.Blocks:
    """The page, with the first drawing already read. Start it by [`launch`]."""
    drawings = draw_pictures()

    def present(drawing: int | None, own: Picture | None) -> Picture:
        if drawing is None and own is None:
            raise ValueError("The picture is no longer kept. Drop it again, or choose a drawing.")
        return own if drawing is None else drawings[drawing]

    def choose(drawing: int, findings: str, sentence: str, colours: str):
        return None, _preview(drawings[drawing]), *look(drawings[drawing], findings, sentence, colours)

    def take(path: str, findings: str, sentence: str, colours: str):
        picture = take_file(path)
        return None, picture, _preview(picture), *look(picture, findings, sentence, colours)

    def look(picture: Picture, findings: str, sentence: str, colours: str):
        return *look_findings(picture, findings, colours), *look_words(picture, sentence, colours)

    def look_findings(picture: Picture, findings: str, colours: str):
        answers = read_findings(models, picture, split_findings(findings))
        status = _rendered("status", answers=answers, number=len(models))
        return answers, status, _rendered("scores", rows=answers.rows, labels=list(models)), _maps(answers, colours)

    def look_words(picture: Picture, sentence: str, colours: str):
        answers = read_words(models, picture, sentence)
        choices = [(row.text if i else WHOLE, i) for i, row in enumerate(answers.rows)]
        return answers, gr.Radio(choices=choices, value=0), _maps(answers, colours, 0)

    def again(drawing: int | None, own: Picture | None, findings: str, colours: str):
        return look_findings(present(drawing, own), findings, colours)

    def split_again(drawing: int | None, own: Picture | None, sentence: str, colours: str):
        return look_words(present(drawing, own), sentence, colours)

    def switch(words: Answers | None, colours: str, word: int):
        return (_maps(words, colours, word),)

    def recolour(findings: Answers | None, words: Answers | None, word: int, colours: str):
        return _maps(findings, colours), _maps(words, colours, word)

    def pack(findings: Answers | None, words: Answers | None, colours: str):
        _check_kept(findings)
        return (_address(archive(models, findings, words, colours), "application/zip"),)

    def forget(request: gr.Request) -> None:
        # Gradio itself keeps a closed page's pictures in memory until fifty other pages have been opened.
        page.app.state_holder.session_data.pop(request.session_hash, None)

    findings_now, status_now, scores_now, maps_now = look_findings(drawings[0], "\n".join(FINDINGS), BY_COSINE)
    words_now, word_now, word_maps_now = look_words(drawings[0], SENTENCE, BY_COSINE)

    with _blocks() as page:
        gr.HTML(_rendered("head", notice=NOTICE))
        alert = gr.HTML(js_on_load="element.setAttribute('role', 'alert')", elem_id="tier-alert")
        own, finding_answers, word_answers = gr.State(), gr.State(), gr.State()
        with gr.Row(elem_id="tier-columns"):
            with gr.Column(scale=3, min_width=300, elem_id="tier-questions"):
                gr.HTML("<h2>Radiograph</h2>")
                drawing = gr.Radio(
                    [(each.name, i) for i, each in enumerate(drawings)],
                    value=0,
                    label="Drawn by code, of no clinical meaning",
                    elem_id="tier-drawings",
                )
                file = gr.File(label="Your own: PNG, JPEG or DICOM", height=120, elem_id="tier-file")
                preview = gr.HTML(_preview(drawings[0]), elem_id="tier-preview")
                gr.HTML("<h2>Findings</h2>")
                findings = gr.Textbox(
                    "\n".join(FINDINGS),
                    lines=6,
                    max_lines=_MOST_FINDINGS,
                    max_length=2000,
                    label="One finding a line",
                    info="Each is a question: “left pleural effusion.” against “No left pleural effusion.”",
                    elem_id="tier-findings",
                )
                run = gr.Button("Read the radiograph", variant="primary", elem_id="tier-run")
            with gr.Column(scale=8, min_width=300, elem_id="tier-answers"):
                gr.HTML('<h2 id="tier-scores-title">Scores</h2>')
                status = gr.HTML(
                    status_now, js_on_load="element.setAttribute('role', 'status')", elem_id="tier-status"
                )
                scores = gr.HTML(scores_now, elem_id="tier-scores")
                gr.HTML("<h2>Maps</h2>")
                with gr.Row():
                    strength = gr.Slider(
                        0,
                        100,
                        70,
                        step=5,
                        label="Strength of the colours, %",
                        min_width=260,
                        elem_id="tier-strength",
                    )
                    colours = gr.Radio(
                        [BY_COSINE, STRETCHED],
                        value=BY_COSINE,
                        label="Colours",
                        min_width=260,
                        elem_id="tier-colours",
                    )
                maps = gr.HTML(maps_now, elem_id="tier-maps")
                gr.HTML("<h2>Single words</h2>")
                with gr.Row(equal_height=True):
                    sentence = gr.Textbox(
                        SENTENCE,
                        label="A sentence",
                        max_length=400,
                        scale=4,
                        min_width=260,
                        elem_id="tier-sentence",
                    )
                    split = gr.Button("Show its words", scale=1, min_width=140, elem_id="tier-split")
                word = gr.Radio(word_now.choices, value=word_now.value, label="Show the map of", elem_id="tier-words")
                word_maps = gr.HTML(word_maps_now, elem_id="tier-word-maps")
                download = gr.Button("Download these results (zip)", elem_id="tier-download")
                packed = gr.Textbox(visible="hidden")
        gr.HTML(_rendered("about", models={label: describe_model(read) for label, read in models.items()}))

        shown = [finding_answers, status, scores, maps, word_answers, word, word_maps]
        asked = [findings, sentence, colours]

        def on(events, function: Callable, inputs: list, outputs: list):
            """Run it on any of the events; a ValueError is read on the page, and leaves everything else as it is."""

            def told(*arguments):
                try:
                    return *function(*arguments), ""
                except ValueError as error:
                    return *[gr.skip()] * len(outputs), _rendered("alert", message=str(error))

            return gr.on(
                events,
                told,
                inputs,
                [*outputs, alert],
                show_progress="minimal",
                api_visibility="private",
                concurrency_id="models",  # one at a time, whoever asks
            )

        on(drawing.input, choose, [drawing, *asked], [own, preview, *shown])
        on(file.upload, take, [file, *asked], [drawing, own, preview, *shown]).then(lambda: None, None, file)
        on(run.click, again, [drawing, own, findings, colours], shown[:4]).then(None, alert, None, js=_TO_SCORES)
        on([split.click, sentence.submit], split_again, [drawing, own, sentence, colours], shown[4:])
        on(word.input, switch, [word_answers, colours, word], [word_maps])
        on(colours.input, recolour, [finding_answers, word_answers, word, colours], [maps, word_maps])
        on(download.click, pack, [finding_answers, word_answers, colours], [packed]).then(
            None, packed, None, js=_DOWNLOAD
        )
        strength.input(None, strength, None, js=_SET_STRENGTH)
        page.load(
            lambda: (findings_now, words_now),
            None,
            [finding_answers, word_answers],
            queue=False,
            api_visibility="private",
        )
        page.unload(forget)
    return page


def error_page(message: str) -> gr.Blocks:
    """A page that says why there is none."""
    with _blocks() as page:
        gr.HTML(_rendered("head", notice=NOTICE) + _rendered("error", message=message))
    return page


def _blocks() -> gr.Blocks:
    return gr.Blocks(title="TIER: where the words point", analytics_enabled=False, delete_cache=(60, 600))


def _preview(picture: Picture) -> str:
    width, height = picture.image.size
    shown = _address(_encoded(_reduced(picture.image), "WEBP"), "image/webp")
    return _rendered("preview", picture=picture, shown=shown, width=width, height=height)


def _check_kept(answers: Answers | None) -> None:
    if answers is None:
        raise ValueError("These results are no longer kept. Read the radiograph again.")


def _maps(answers: Answers | None, colours: str, chosen: int | None = None) -> str:
    """The maps of all rows, or of the chosen one in the colours of all."""
    _check_kept(answers)
    picture, rows = answers
    shown = rows if chosen is None else [rows[chosen]]
    limits = colour_limits(rows, colours)
    layers = {
        (row.text, label): _address(
            _encoded(map_layer(painted_values(cell, colours), limits[label]), "PNG"), "image/png"
        )
        for row in shown
        for label, cell in row.cells.items()
    }
    return _rendered(
        "maps",
        rows=shown,
        labels=list(rows[0].cells),
        layers=layers,
        limits=limits,
        stretched=colours == STRETCHED,
        width=picture.image.width,
        height=picture.image.height,
        under=_address(_encoded(_reduced(picture.image), "WEBP"), "image/webp"),
        place=place_in_words,
    )


def _rendered(template: str, **values) -> str:
    return _TEMPLATES.get_template(template).render(values)


_TEMPLATES = jinja2.Environment(
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
    loader=jinja2.DictLoader(
        {
            "head": """
<header>
<h1>Where do the words point?</h1>
<p>Write findings and see what image-text models make of a chest radiograph: a score for each finding, and the places
in the picture that are most like its words. TIER is CLIP with a term that makes a word answer to few places.</p>
<p class="tier-notice" role="note"><strong>{{ notice.partition(".")[0] }}.</strong>{{ notice.partition(".")[2] }}</p>
</header>""",
            "error": """
<p role="alert"><strong>There is no model to show.</strong> {{ message }}</p>""",
            "alert": """
<p>{{ message }} <button type="button" aria-label="Close this message">×</button></p>""",
            "preview": """
<figure>
<div class="tier-picture" style="aspect-ratio: {{ width }} / {{ height }}">
<img src="{{ shown }}" alt="The radiograph “{{ picture.name }}”, {{ width }} by {{ height }} pixels
{%- if picture.places %}, with {{ picture.places | length }} places outlined{% endif %}">
{% for phrase, box in picture.places %}
<span class="tier-place" style="left: {{ 100 * box[0] / width }}%; top: {{ 100 * box[1] / height }}%;
width: {{ 100 * (box[2] - box[0]) / width }}%; height: {{ 100 * (box[3] - box[1]) / height }}%">
<b aria-hidden="true">{{ loop.index }}</b></span>
{% endfor %}
</div>
<figcaption><strong>{{ picture.name }}</strong>, <span>{{ width }} × {{ height }} pixels</span>
{% if picture.places %}
<br>Outlined is what was drawn:
{% for phrase, _ in picture.places %}
{{ loop.index }} {{ phrase | trim(".") }}{{ "." if loop.last else "; " }}
{% endfor %}
{% endif %}
</figcaption>
</figure>""",
            "status": """
<p>Read “{{ answers.picture.name }}”: {{ answers.rows | length }} finding{{ "s" if answers.rows | length > 1 }},
{{ number }} model{{ "s" if number > 1 }}.</p>""",
            "scores": """
<p>Above 0.5 (the line) the picture is nearer to the finding than to its denial. Not a probability.</p>
<table aria-labelledby="tier-scores-title">
<thead><tr><th scope="col">Finding</th>
{% for label in labels %}<th scope="col">{{ label }}</th>{% endfor %}
</tr></thead>
<tbody>
{% for row in rows %}
<tr><th scope="row">{{ row.text }}</th>
{% for label in labels %}{% set cell = row.cells[label] %}
<td><div><span class="tier-bar" aria-hidden="true"><i style="width: {{ 100 * cell.score }}%"></i></span>
<span class="tier-numbers"><b>{{ cell.score | number }}</b>
<small>{{ "+" if cell.difference > 0 }}{{ cell.difference | number }}</small></span></div></td>
{% endfor %}</tr>
{% endfor %}
</tbody></table>
<p><small>Bold: the score. Small: the cosine with the finding's sentence less that with its denial.</small></p>
""",
            "maps": """
<div class="tier-root" style="--tier-picture: url('{{ under }}'); --tier-ratio: {{ width / height }}">
<ul class="tier-legend">
{% if stretched %}
<li>each map's smallest cosine <span class="tier-scale tier-stretched"><i></i></span> its largest</li>
{% else %}
{% for label in labels %}
<li><b>{{ label }}</b> cosine {{ -limits[label] | number }} <span class="tier-scale"><i></i></span>
{{ limits[label] | number }}</li>
{% endfor %}
{% endif %}
</ul>
<div class="tier-grid" style="--tier-models: {{ labels | length }}">
{% for row in rows %}
<section><h3>{{ row.text }}</h3>
<div class="tier-models">
{% for label in labels %}
<figure>
{% if label in row.cells %}{% set cell = row.cells[label] %}
<div class="tier-map">
<img src="{{ layers[row.text, label] }}" alt="Map of “{{ row.text }}” by {{ label }} over the radiograph: cosines from
{{ cell.low | number }} to {{ cell.high | number }}, the largest {{ place(cell.peak) }}">
<span class="tier-peak" style="left: {{ 100 * cell.peak[0] }}%; top: {{ 100 * cell.peak[1] }}%"></span>
<button type="button" aria-label="Enlarge the map of “{{ row.text }}” by {{ label }}">
<svg viewBox="0 0 16 16" aria-hidden="true"><path d="M9 2h5v5M14 2 9 7M7 14H2V9M2 14l5-5"/></svg></button>
</div>
<figcaption><b>{{ label }}</b>
{% if cell.score is not none %}
<span>score {{ cell.score | number }}</span>
{% endif %}
<span>cosine {{ cell.low | number }} to {{ cell.high | number }}</span></figcaption>
{% else %}
<p>The tokenizer of {{ label }} cuts this word off.</p>
{% endif %}
</figure>
{% endfor %}
</div></section>
{% endfor %}
</div></div>""",
            "about": """
<details><summary>How to read this page</summary>
<p><strong>Score.</strong> A finding is asked as two sentences, such as “left pleural effusion.” and “No left pleural
effusion.” The difference is that of the picture's cosines with both; the score is their softmax with the model's own
temperature. Each finding is asked by itself. Scores are not calibrated: do not compare them between models.</p>
<p><strong>Map.</strong> The cosine of the words with each patch of the picture, smoothed in between: orange where it
is positive, blue where it is negative, bare at 0 and where the model does not look (it may crop the picture). The ring
marks the largest cosine. Every map has a largest place, whether the finding is there or not: read the cosines below
it, and the score. “Stretched” colours each map from its own smallest to its own largest cosine: faint maps show their
form, and absent findings look like present ones.</p>
<p><strong>Sides.</strong> Left and right in a finding are the patient's; the patient's left is usually on the right of
the picture.</p>
<p><strong>What becomes of a picture.</strong> It goes to the machine that runs this page and nowhere else. The file is
deleted as soon as it is read; the picture and what is shown of it stay in that machine's memory until you close this
page. No picture, text or result is recorded. Even so, do not give pictures of patients to a machine that is not
yours.</p>
<p><strong>Models.</strong> With both lambdas 0 a model is plain CLIP.</p>
<ul>
{% for label, about in models.items() %}
<li><b>{{ label }}</b>: {{ about.vision }} and {{ about.text }}, lambda_token {{ about.lambda_token }}, lambda_patch
{{ about.lambda_patch }}</li>
{% endfor %}
</ul>
</details>""",
        }
    ),
)

_TEMPLATES.filters["number"] = _number

_SET_STRENGTH = "value => { document.documentElement.style.setProperty('--tier-strength', value / 100); }"

# On a narrow screen the answers are far below the button that asks for them.
_TO_SCORES = """message => {
    if (!message && innerWidth < 700) document.getElementById("tier-scores-title").scrollIntoView();
}"""

_DOWNLOAD = """content => {
    if (!content) return;
    const link = document.createElement("a");
    link.href = content;
    link.download = "tier-result.zip";
    link.click();
}"""

# A click on a map, or its button, shows it as large as the window allows; Escape, or a click, closes it.
_SCRIPT = """<script>
addEventListener("click", event => {
    event.target.closest("#tier-alert button")?.parentElement.remove();
    const map = event.target.closest(".tier-map");
    if (!map || map.closest("dialog")) return;
    const dialog = document.createElement("dialog");
    dialog.setAttribute("aria-label", map.querySelector("img").alt);
    dialog.append(map.closest("figure").cloneNode(true));
    dialog.querySelector("figcaption").prepend(map.closest("section").querySelector("h3").cloneNode(true));
    const button = dialog.querySelector("button");
    button.setAttribute("aria-label", "Close");
    button.textContent = "×";
    dialog.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => dialog.remove());
    map.closest(".tier-root").append(dialog);
    dialog.showModal();
});
// Gradio's radio buttons have no group: no arrow keys, and no name that a screen reader would say.
addEventListener("keydown", event => {
    const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
    if (!step || event.target.type !== "radio") return;
    const buttons = [...event.target.closest("fieldset").querySelectorAll("[type=radio]")];
    const next = buttons.at((buttons.indexOf(event.target) + step) % buttons.length);
    next.focus();
    next.click();
    event.preventDefault();
});
addEventListener("focusin", event => {
    const group = event.target.closest?.("fieldset");
    const name = group?.querySelector("[data-testid=block-info]");
    if (name) group.setAttribute("aria-label", name.textContent.trim());
});
</script>"""


def _theme() -> gr.themes.Base:
    """System fonts, quiet colours; contrasts of at least 4.5 to 1 for text in both modes."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.sky,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_sm,
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        input_border_width="1px",
        input_border_width_dark="1px",
        input_border_color="*neutral_500",
        input_border_color_dark="*neutral_400",
        checkbox_border_color="*neutral_500",
        checkbox_border_color_dark="*neutral_400",
        checkbox_background_color_selected="*primary_700",
        checkbox_background_color_selected_dark="*primary_600",
        color_accent="*primary_700",
        slider_color="*primary_700",
        slider_color_dark="*primary_500",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
    )


_STYLE = """
:root { --tier-strength: .7; --tier-orange: 255 140 0; --tier-blue: 0 114 255; }
.gradio-container { max-width: 1480px !important; }
.gradio-container .html-container { padding: 0 !important; }
.gradio-container .main { padding: 16px clamp(12px, 3vw, 32px) !important; }
.gradio-container h1 { font-size: 1.6rem; font-weight: 650; margin: 0 0 .3rem; }
.gradio-container h2 { font-size: 1.15rem; font-weight: 650; margin: .4rem 0 0; }
.gradio-container h3 { font-size: 1rem; font-weight: 600; margin: 0 0 .35rem; overflow-wrap: anywhere; }
.gradio-container header p { max-width: 75ch; margin: 0 0 .6rem; }
.gradio-container :focus-visible { outline: 3px solid var(--color-accent) !important; outline-offset: 2px; }
.tier-notice { border-left: 4px solid #b45309; background: #fef3c7; color: #451a03; padding: .6rem .8rem;
    max-width: none !important; margin: 0 0 .8rem; border-radius: 3px; }
.dark .tier-notice { background: #33240a; color: #fde9bf; border-color: #f0a530; }
.tier-notice strong { color: inherit; }
#tier-columns { align-items: flex-start; gap: 2.5rem; }
#tier-file { border: 1.5px dashed var(--input-border-color); }
#tier-file .wrap { padding-top: 1.2rem; }
#tier-file [data-testid=upload-icon] { display: none; }
#tier-drawings label, #tier-words label { border: 1px solid transparent; }
#tier-drawings label.selected, #tier-words label.selected, #tier-colours label.selected {
    border-color: var(--color-accent); }
#tier-drawings .wrap, #tier-words .wrap { gap: .4rem; }
figure { margin: 0; }
figcaption { font-size: .85rem; color: var(--body-text-color-subdued); margin-top: .3rem; overflow-wrap: anywhere; }
.tier-picture, .tier-map { position: relative; background: black center / 100% 100% no-repeat; overflow: hidden;
    border-radius: 3px; }
.tier-picture { max-height: 70vh; margin: 0 auto; }
.tier-picture img, .tier-map img { display: block; width: 100%; height: 100%; margin: 0; }
.tier-place { position: absolute; border: 2px dashed #fff; box-shadow: 0 0 0 1px #000a; }
.tier-place b { position: absolute; left: 0; top: 0; background: #000b; color: #fff; font-size: .75rem;
    padding: 0 .35em; }
.tier-map { aspect-ratio: var(--tier-ratio); background-image: var(--tier-picture); cursor: zoom-in;
    print-color-adjust: exact; }
.tier-map img { opacity: var(--tier-strength); }
.tier-peak { position: absolute; width: 18px; height: 18px; margin: -9px 0 0 -9px; border: 2px solid #fff;
    border-radius: 50%; box-shadow: 0 0 0 1.5px #000, inset 0 0 0 1.5px #000; }
.tier-map button { position: absolute; right: 4px; top: 4px; width: 28px; height: 28px; padding: 5px; border: 0;
    border-radius: 3px; background: #000b !important; color: #fff !important; font-size: 1.2rem;
    line-height: 1; cursor: pointer; }
.tier-map svg { width: 100%; height: 100%; fill: none; stroke: #fff; stroke-width: 1.8; }
.tier-grid { display: grid; gap: 1.4rem 1.6rem;
    grid-template-columns: repeat(auto-fill, minmax(min(100%, calc(120px + 130px * var(--tier-models))), 1fr)); }
.tier-models { display: grid; grid-template-columns: repeat(var(--tier-models), 1fr); gap: .5rem; }
.tier-models figcaption { display: flex; flex-wrap: wrap; column-gap: .7em; }
.tier-models figcaption b { flex-basis: 100%; color: var(--body-text-color); }
figcaption span { white-space: nowrap; }
#tier-word-maps .tier-grid { grid-template-columns: minmax(0, calc(400px * var(--tier-models))); }
.tier-legend { list-style: none; display: flex; flex-wrap: wrap; gap: .3rem 1.6rem; padding: 0; margin: 0 0 .9rem;
    font-size: .85rem; }
.tier-legend li { display: flex; align-items: center; gap: .45rem; margin: 0; }
.tier-scale { display: inline-block; width: 7rem; height: .9rem; background: #777; border-radius: 2px; }
.tier-scale i { display: block; height: 100%; border-radius: 2px; opacity: var(--tier-strength); background:
    linear-gradient(90deg, rgb(var(--tier-blue)), rgb(var(--tier-blue) / 0) 50%, rgb(var(--tier-orange) / 0) 50%,
    rgb(var(--tier-orange))); }
.tier-stretched i { background: linear-gradient(90deg, rgb(var(--tier-orange) / 0), rgb(var(--tier-orange))); }
#tier-scores table * { border-color: var(--border-color-primary); }
#tier-scores tr { border: 0 !important; }
#tier-scores table { width: 100%; border-collapse: collapse; border: 0 !important; margin: .5rem 0; }
#tier-scores th, #tier-scores td { text-align: left; padding: .4rem 1rem .4rem 0; border: 0 !important;
    border-bottom: 1px solid var(--border-color-primary) !important; font-weight: 400; vertical-align: middle; }
#tier-scores th { overflow-wrap: break-word; hyphens: auto; }
#tier-scores thead th { font-weight: 600; }
#tier-scores td div { display: flex; flex-wrap: wrap; align-items: center; gap: .1rem .7rem; }
#tier-status { margin-bottom: -12px; }
#tier-scores p, #tier-status p { margin: .2rem 0; }
#tier-scores small { color: var(--body-text-color-subdued); }
.tier-bar { display: block; position: relative; flex: 1 1 4.5rem; max-width: 12rem; height: .7rem; border-radius: 2px;
    background: var(--border-color-primary); }
.tier-bar i { display: block; height: 100%; border-radius: 2px; background: #0369a1; }
.dark .tier-bar i { background: #38bdf8; }
.tier-bar::after { content: ""; position: absolute; left: 50%; top: -2px; bottom: -2px; width: 1px;
    background: var(--body-text-color); }
.tier-numbers { min-width: 5.4em; white-space: nowrap; font-variant-numeric: tabular-nums; }
details { margin-top: 1rem; }
summary { cursor: pointer; font-weight: 600; }
details p { max-width: 75ch; margin: .5rem 0; }
dialog { position: fixed; inset: 0; margin: auto !important; padding: 12px; border: 0; border-radius: 4px;
    width: fit-content; height: fit-content; max-width: none; max-height: none; background: #0b1220; }
dialog::backdrop { background: #000c; }
dialog .tier-map { width: min(94vw - 24px, 82vh * var(--tier-ratio)); cursor: zoom-out; }
dialog figcaption, dialog figcaption * { color: #e2e8f0 !important; font-size: 1rem; }
#tier-alert { position: fixed; z-index: 50; inset: auto 12px 12px; width: auto; margin: auto; max-width: 640px; }
#tier-alert p { display: flex; justify-content: space-between; gap: 1rem; margin: 0; padding: .7rem 1rem;
    border: 2px solid #b91c1c; border-radius: 4px; background: #fef2f2; color: #7f1d1d; overflow-wrap: anywhere; }
#tier-alert button { font-size: 1.3rem; line-height: 1; padding: 0 .3rem; color: #7f1d1d; cursor: pointer; }
"""


if __name__ == "__main__":
    main()
