# Licensed under the Apache License, Version 2.0.
"""What the page computes: pictures, texts as a person writes them, and what each model makes of both."""

import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from modeling_tier import TierZeroShotPipeline
from modeling_tier.data.synthetic import draw_subject
from modeling_tier.loading import load_model
from modeling_tier.reading_tier import MAX_ASPECT_RATIO, ReadingOptions, open_radiograph

from .uploads import Upload


WARNING = "Not a medical device. Not for diagnosis, and not for any decision about a patient."
NOTICE = (
    f"{WARNING} A score is not a probability, and a coloured region is no proof of a finding: it is where the picture "
    "is most like the words."
)
COSINE, CONTRIBUTION, MINUS_NO_FINDING = "cosine", "contribution", "contribution_minus_no_finding"
MAP_KINDS = {
    COSINE: "cosine of each patch",
    CONTRIBUTION: "contribution of each patch to the score",
    MINUS_NO_FINDING: "contribution, minus that of “no finding”",
}
FINDINGS = (
    "cardiomegaly",
    "left pneumothorax",
    "right pneumothorax",
    "left pleural effusion",
    "right pleural effusion",
    "right upper lobe consolidation",
)
SENTENCE = "Moderate left apical pneumothorax with cardiomegaly."

# Of the finer test set: a large heart, a left pneumothorax and more; an effusion, a consolidation and an atelectasis;
# nothing at all. Each by its subject and the number of the visit.
DRAWINGS = {
    "Large heart, left pneumothorax": (4, 1),
    "Right effusion and opacity": (6, 0),
    "Nothing found": (8, 0),
}

# The largest chest detectors make 19 megapixels.
MAX_PIXELS = 40_000_000
MAX_FINDINGS, MAX_FINDING_LENGTH = 12, 200
MAX_SENTENCE_LENGTH, MAX_WORDS = 400, 40
MAX_SHOWN_SIDE, MAX_MAP_SIDE = 1024, 256


@dataclass(frozen=True, eq=False)
class Picture:
    """The radiograph that is looked at."""

    name: str
    image: Image.Image
    regions: tuple[tuple[str, list[float]], ...] = ()
    """Of a drawing: what was drawn, and the box around it (x_min, y_min, x_max, y_max in pixels)."""

    @cached_property
    def small(self) -> Image.Image:
        """The image itself, or reduced where it is too large to be shown as it is."""
        factor = MAX_SHOWN_SIDE / max(self.image.size)
        if factor >= 1:
            return self.image
        size = [max(1, round(side * factor)) for side in self.image.size]
        return self.image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3)


class Cell(NamedTuple):
    """What one model makes of one text."""

    values: np.ndarray
    """
    The map, float32 (H, W) over the picture, at most 256 pixels a side; NaN where the model does not look.
    Contributions are multiplied by the number of patches: their mean is the cosine of the picture with the text.
    """
    low: float
    high: float
    peak: tuple[float, float]
    """Where the largest value is, as fractions of the width and of the height."""
    kind: str = COSINE
    """One of `MAP_KINDS`."""
    score: float | None = None
    difference: float | None = None
    note: str | None = None
    """Why the score says little, if it does."""


class Row(NamedTuple):
    """One text, and what each model makes of it, by the model's name."""

    text: str
    cells: dict[str, Cell]


class Answers(NamedTuple):
    """What is shown: a picture, and one row per text."""

    picture: Picture
    rows: list[Row]


def load_models(names: list[str]) -> dict[str, TierZeroShotPipeline]:
    """
    Load models for the page.

    Args:
        names: folders or Hub ids of TIER models, or of CLIPModels.

    Returns:
        pipelines by the last part of each name (by the full name, where two end alike).

    Raises:
        ValueError: if there is none, one is named twice, or one cannot be loaded as such a model.
        OSError: if one does not exist.
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


def describe_model(pipeline: TierZeroShotPipeline) -> dict:
    """What of a model a reader of its maps wants to know."""
    config = pipeline.model.config
    return {
        "lambda_token": config.lambda_token,
        "lambda_patch": config.lambda_patch,
        "vision": config.vision_config.model_type,
        "text": config.text_config.model_type,
        "no_contributions": pipeline.model.no_contributions,
    }


def draw_pictures() -> list[Picture]:
    """The three drawings that the page offers."""
    pictures = []
    for name, (subject, visit) in DRAWINGS.items():
        study, regions = [*draw_subject("test", subject, 512, 0, "fine")][visit], []
        for region in study.regions:
            rows, columns = (np.flatnonzero(region.mask.any(axis=axis)).tolist() for axis in (1, 0))
            box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            regions.append((study.phrase(region), box))
        pictures.append(Picture(name, open_radiograph(study.pixels), tuple(regions)))
    return pictures


def read_upload(upload: Upload | None) -> Picture:
    """Read an uploaded file and close it, which deletes it, whether it can be read or not."""
    if upload is None:
        raise ValueError("The uploaded file is no longer kept. Choose it again.")
    with upload.file:
        try:
            options = ReadingOptions(max_pixels=MAX_PIXELS, max_aspect_ratio=MAX_ASPECT_RATIO)
            return Picture(upload.name, open_radiograph(upload.file, options, name=upload.name))
        except MemoryError as error:
            raise ValueError(f"{upload.name} needs more memory than there is.") from error
        except ImportError as error:
            raise ValueError(str(error)) from error


def clean_text(text: str) -> str:
    """One line without control characters; half of a UTF-16 pair, which no encoder takes, becomes U+FFFD."""
    text = str(text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = "".join(" " if character.isspace() else character for character in text)
    text = "".join(character for character in text if character.isprintable())
    return re.sub(r" +", " ", text).strip()


def split_findings(text: str) -> list[str]:
    """The findings of a text with one on each line, without duplicates and without the full stop."""
    check_length("The findings", text, MAX_FINDINGS * (MAX_FINDING_LENGTH + 1))
    lines = (clean_text(line).strip(" .") for line in text.splitlines())
    findings = list({line.lower(): line for line in reversed(list(lines)) if line}.values())[::-1]
    if not findings:
        raise ValueError("Write at least one finding, such as: left pleural effusion")
    if len(findings) > MAX_FINDINGS:
        raise ValueError(f"At most {MAX_FINDINGS} findings at a time; these are {len(findings)}.")
    for finding in findings:
        check_length("A finding", finding, MAX_FINDING_LENGTH)
    return findings


def check_length(subject: str, text: str, limit: int) -> None:
    """Raise ValueError for a text that is too long."""
    if len(text) > limit:
        raise ValueError(f"{subject} may have at most {limit:,} characters; this text has {len(text):,}.")


def check_map_kind(kind: str) -> None:
    """Raise ValueError for a kind of map that there is not."""
    if kind not in MAP_KINDS:
        raise ValueError(f"The kind of map must be one of {', '.join(MAP_KINDS)}; got {kind!r}.")


def read_findings(
    models: dict[str, TierZeroShotPipeline], picture: Picture, findings: list[str], kind: str = COSINE
) -> Answers:
    """
    Scores and maps of the findings, as the pipelines give them.

    Args:
        models: as [`load_models`] gives them.
        picture: the radiograph.
        findings: as [`split_findings`] gives them.
        kind: one of `MAP_KINDS`; a model that has no contributions gives cosines, as its cells say.
    """
    check_map_kind(kind)
    small = picture.small
    cells: dict[str, dict[str, Cell]] = {finding: {} for finding in findings}
    for label, pipeline in models.items():
        answers, maps = _maps(pipeline, small, findings, kind)
        # Scores are always of the picture as it is. Maps of thousands of pixels a side nobody sees.
        exact = answers if small is picture.image else pipeline(picture.image, findings=findings)
        for finding, values, scored in zip(findings, maps, exact):
            cell = _cell(values, _kind_of(pipeline, kind))._replace(
                score=scored["score"], difference=scored["difference"], note=scored.get("note")
            )
            cells[finding][label] = cell
    return Answers(picture, [Row(finding, by_model) for finding, by_model in cells.items()])


def read_words(
    models: dict[str, TierZeroShotPipeline], picture: Picture, sentence: str, kind: str = COSINE
) -> Answers:
    """
    The map of a sentence, then of each of its words, of a kind as for [`read_findings`]. A word that a tokenizer
    truncates has no cell.
    """
    check_map_kind(kind)
    check_length("A sentence", sentence, MAX_SENTENCE_LENGTH)
    sentence = clean_text(sentence)
    if not sentence:
        raise ValueError("Write a sentence, such as: Large left pleural effusion.")
    if len(sentence.split()) > MAX_WORDS:
        raise ValueError(f"A sentence may have at most {MAX_WORDS} words; this one has {len(sentence.split())}.")
    small = picture.small
    rows = [Row(sentence, {})]
    for label, pipeline in models.items():
        _, (whole,) = _maps(pipeline, small, _only_positive(sentence, [sentence]), kind)
        words, maps = _word_maps(pipeline, small, sentence, kind)
        for i, (word, values) in enumerate(zip([sentence, *words], [whole, *maps])):
            if i == len(rows):
                rows.append(Row(word, {}))
            rows[i].cells[label] = _cell(values, _kind_of(pipeline, kind))
    return Answers(picture, rows)


def _kind_of(pipeline: TierZeroShotPipeline, kind: str) -> str:
    """The kind of map that a model shows where this one is asked for."""
    return COSINE if pipeline.model.no_contributions else kind


def _only_positive(name: str, sentences: list[str]) -> dict[str, dict[str, list[str]]]:
    """The pipeline wants both kinds of sentences; only the map is used, which is of the positive ones."""
    return {name: {"positive": sentences, "negative": sentences}}


def _maps(
    pipeline: TierZeroShotPipeline, image: Image.Image, findings: list[str] | dict, kind: str
) -> tuple[list[dict], np.ndarray]:
    """The pipeline's rows, and their maps (F, H, W), scaled as the values of a [`Cell`]."""
    if _kind_of(pipeline, kind) == COSINE:
        rows = pipeline(image, findings=findings, maps="array")
        return rows, np.stack([row["map"] for row in rows])
    rows = pipeline(image, findings=findings, maps="array", map_kind=kind)
    return rows, np.stack([row["map"] for row in rows]) * math.prod(rows[0]["grid"])


def _word_maps(
    pipeline: TierZeroShotPipeline, image: Image.Image, sentence: str, kind: str
) -> tuple[list[str], np.ndarray]:
    if _kind_of(pipeline, kind) == COSINE:
        words = pipeline.word_maps(image, sentence)
        return words["words"], words["maps"]
    words = pipeline.word_maps(image, sentence, map_kind=kind)
    return words["words"], words["maps"] * math.prod(words["grid"])


def _cell(values: np.ndarray, kind: str) -> Cell:
    row, column = np.unravel_index(np.nanargmax(values), values.shape)
    peak = (column + 0.5) / values.shape[1], (row + 0.5) / values.shape[0]
    step = -(-max(values.shape) // MAX_MAP_SIDE)  # a map is smooth: every n-th pixel shows it
    kept = values[step // 2 :: step, step // 2 :: step] if min(values.shape) > step // 2 else values[:, :1]
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    return Cell(np.array(kept, dtype=np.float32), low, high, (float(peak[0]), float(peak[1])), kind)
