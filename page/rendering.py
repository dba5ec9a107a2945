# Licensed under the Apache License, Version 2.0.
"""From answers to markup. Every text of a user goes through a template, which escapes it."""

from pathlib import Path

import jinja2

from .answers import NOTICE, Answers, Picture
from .painting import (
    STRETCHED,
    colour_limits,
    data_uri,
    encoded,
    kind_in_words,
    map_layer,
    number,
    painted_values,
    position_in_words,
)


_FOLDER = Path(__file__).parent

_TEMPLATES = jinja2.Environment(
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
    loader=jinja2.FileSystemLoader(_FOLDER / "templates", encoding="utf-8"),
)
_TEMPLATES.filters["number"] = number


def asset(name: str) -> str:
    """The text of a file of this folder: the style or the script."""
    return (_FOLDER / name).read_text(encoding="utf-8")


def head() -> str:
    return _rendered("head", notice=NOTICE)


def error(message: str) -> str:
    return _rendered("error", message=message)


def alert(message: str) -> str:
    return _rendered("alert", message=message)


def about(models: dict[str, dict]) -> str:
    """How to read the page, and its models as `describe_model` gives them."""
    return _rendered("about", models=models)


def status(answers: Answers, num_models: int) -> str:
    return _rendered("status", answers=answers, num_models=num_models)


def scores(answers: Answers, labels: list[str]) -> str:
    return _rendered("scores", rows=answers.rows, labels=labels)


def preview(picture: Picture) -> str:
    width, height = picture.image.size
    return _rendered("preview", picture=picture, shown=_shown(picture), width=width, height=height)


def maps(answers: Answers, colours: str, chosen: int | None = None) -> str:
    """The maps of all rows, or of the chosen one in the colours of all."""
    picture, rows = answers
    shown = rows if chosen is None else [rows[chosen]]
    limits = colour_limits(rows, colours)
    layers = {
        (index, label): data_uri(encoded(map_layer(painted_values(cell, colours), limits[label]), "PNG"), "image/png")
        for index, row in enumerate(shown)
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
        picture=_shown(picture),
        position=position_in_words,
        kind=kind_in_words,
        kinds={label: kind_in_words(cell.kind) for label, cell in rows[0].cells.items()},
    )


def kinds_explained(models: dict[str, dict]) -> str:
    """What the kinds of maps are good for, and which models have cosines alone; of `describe_model`."""
    text = (
        "Every model has cosines, and TIER's loss works on them. On drawings the contributions minus those of "
        "“no finding” point best."
    )
    without = {label: about["no_contributions"] for label, about in models.items() if about["no_contributions"]}
    for reason in dict.fromkeys(without.values()):
        labels = [label for label, own in without.items() if own == reason]
        text += f" {', '.join(labels)}: cosines alone; {reason}."
    return text


def _shown(picture: Picture) -> str:
    return data_uri(encoded(picture.small, "WEBP"), "image/webp")


def _rendered(template: str, **values) -> str:
    return _TEMPLATES.get_template(f"{template}.html").render(values)
