# Licensed under the Apache License, Version 2.0.
"""What is painted: the colours of maps, and all answers as files. They are those of `overlay_map`."""

import base64
import io
import json
import zipfile
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from modeling_tier import TierZeroShotPipeline, overlay_map
from modeling_tier.maps_tier import NEGATIVE_COLOUR, OVERLAY_OPACITY, POSITIVE_COLOUR

from .answers import NOTICE, WARNING, Answers, Cell, Row, describe_model


BY_VALUE, STRETCHED = "by value, alike for all maps of a model", "stretched, each map over its own range"

_SHEET_SIDE, _GAP, _HEAD, _FOOT = 320, 16, 90, 64


def colour_limits(rows: list[Row], colours: str) -> dict[str, float]:
    """For each model the value at which its maps are fully coloured."""
    limits: dict[str, float] = {}
    for row in rows:
        for label, cell in row.cells.items():
            largest = 1.0 if colours == STRETCHED else max(abs(cell.low), abs(cell.high), 1e-12)
            limits[label] = max(limits.get(label, 0.0), largest)
    return limits


def painted_values(cell: Cell, colours: str) -> np.ndarray:
    """What is painted of a map: its values, or where they lie between the smallest (0) and the largest (1)."""
    return (cell.values - cell.low) / max(cell.high - cell.low, 1e-12) if colours == STRETCHED else cell.values


def kind_in_words(kind: str) -> str:
    """What the numbers of a map are, as briefly as they are written below it."""
    return kind.partition("_")[0]


def map_layer(values: np.ndarray, limit: float) -> Image.Image:
    """The colours of a map alone, RGBA: laid over its picture at 70%, it gives `overlay_map`."""
    alpha = np.clip(np.nan_to_num(np.abs(values)) / limit, 0, 1)
    colour = np.where(values[..., None] > 0, np.uint8(POSITIVE_COLOUR), np.uint8(NEGATIVE_COLOUR))
    return Image.fromarray(np.dstack([colour, np.round(255 * alpha).astype(np.uint8)]))


def painted_over(image: Image.Image, cell: Cell, limit: float = 1.0) -> Image.Image:
    """An image under the colours of a map, as [`overlay_map`] paints them."""
    layer = map_layer(cell.values, limit).resize(image.size, Image.Resampling.BILINEAR)
    opacity = layer.getchannel("A").point(lambda alpha: round(OVERLAY_OPACITY * alpha))
    return Image.composite(layer.convert("RGB"), image.convert("RGB"), opacity)


def position_in_words(peak: tuple[float, float]) -> str:
    """A ninth of the picture, named by its own sides, which are not the patient's."""
    column, row = (min(int(3 * fraction), 2) for fraction in peak)
    if (column, row) == (1, 1):
        return "in the middle of the picture"
    names = [("upper", "", "lower")[row], ("left", "", "right")[column]]
    return f"at the {' '.join(name for name in names if name)} {'edge' if '' in names else 'corner'} of the picture"


def number(value: float) -> str:
    """Two digits, with a minus sign."""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")  # + 0.0: no minus before 0.00


def encoded(image: Image.Image, kind: str) -> bytes:
    """A picture as the content of a file, "PNG" or "WEBP"."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 90} if kind == "WEBP" else {}))
    return buffer.getvalue()


def data_uri(content: bytes, media_type: str) -> str:
    """The content itself as an address: no file is needed to show or download it."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


class _Sheet:
    """A white picture to write and draw on."""

    def __init__(self, width: int, height: int):
        self.image = Image.new("RGB", (width, height), "white")
        self.draw = ImageDraw.Draw(self.image)
        self.font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 13)

    def write(self, left: float, top: float, text: str, right: float | None = None, colour: str = "black") -> None:
        """One line, shortened where it would pass `right`."""
        right = self.image.width if right is None else right
        while self.draw.textlength(text, self.font) > right - left and len(text) > 1:
            text = text[:-2] + "…"
        self.draw.text((left, top), text, fill=colour, font=self.font)

    def ring(self, x: float, y: float) -> None:
        for width, colour in ((5, "black"), (2, "white")):
            self.draw.ellipse((x - 8, y - 8, x + 8, y + 8), outline=colour, width=width)


def contact_sheet(answers: Answers, colours: str) -> Image.Image:
    """All maps in one picture: one row per text, the radiograph on the left and a column for each model."""
    picture, rows = answers
    labels, limits = list(rows[0].cells), colour_limits(rows, colours)
    factor = _SHEET_SIDE / max(picture.image.size)
    size = tuple(max(1, round(length * factor)) for length in picture.image.size)
    height = size[1] + _FOOT
    column = _SHEET_SIDE + _GAP
    sheet = _Sheet(_GAP + (1 + len(labels)) * column, _HEAD + len(rows) * height)
    sheet.write(_GAP, 10, f"{picture.name}: where the words point")
    sheet.write(_GAP, 30, f"Colours {colours}. The ring is at the largest value.")
    sheet.write(_GAP, 50, WARNING, colour="#9a1c1c")
    small = picture.small.convert("RGB").resize(size)
    for top, row in zip(range(_HEAD, sheet.image.height, height), rows):
        sheet.write(_GAP, top, row.text)
        sheet.image.paste(small, (_GAP, top + 20))
        for left, label in zip(range(_GAP + column, sheet.image.width, column), labels):
            if label in row.cells:
                _add_map(sheet, (left, top + 20), small, label, row.cells[label], colours, limits[label])
    return sheet.image


def _add_map(
    sheet: _Sheet,
    corner: tuple[int, int],
    small: Image.Image,
    label: str,
    cell: Cell,
    colours: str,
    limit: float,
) -> None:
    left, top = corner
    below = small.resize(cell.values.shape[::-1])
    painted = overlay_map(below, painted_values(cell, colours), limit)
    sheet.image.paste(painted.resize(small.size), corner)
    sheet.ring(left + cell.peak[0] * small.width, top + cell.peak[1] * small.height)
    score = "" if cell.score is None else f"score {number(cell.score)}, "
    text = f"{label}: {score}{kind_in_words(cell.kind)} {number(cell.low)} to {number(cell.high)}"
    sheet.write(left, top + small.height + 4, text, left + _SHEET_SIDE)


def archive(models: dict[str, TierZeroShotPipeline], findings: Answers, words: Answers, colours: str) -> bytes:
    """A zip file: `results.json` with all numbers, `findings.png` and `words.png` with all maps."""
    results = {
        "notice": NOTICE,
        "models": {label: describe_model(pipeline) for label, pipeline in models.items()},
        "findings": _numbers(findings),
        "words": _numbers(words),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("results.json", json.dumps(results, indent=2, ensure_ascii=False))
        for name, answers in (("findings.png", findings), ("words.png", words)):
            file.writestr(name, encoded(contact_sheet(answers, colours), "PNG"))
    return buffer.getvalue()


def shown_map(cell: Cell) -> dict:
    """The numbers of a map."""
    return {"kind": cell.kind, "lowest": cell.low, "highest": cell.high, "highest_at": list(cell.peak)}


def _numbers(answers: Answers) -> dict:
    texts = []
    for row in answers.rows:
        models = {}
        for label, cell in row.cells.items():
            scores = {} if cell.score is None else {"score": cell.score, "difference": cell.difference}
            scores |= {"note": cell.note} if cell.note else {}
            models[label] = scores | shown_map(cell)
        texts.append({"text": row.text, "models": models})
    width, height = answers.picture.image.size
    return {"picture": {"name": answers.picture.name, "width": width, "height": height}, "texts": texts}
