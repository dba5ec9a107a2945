# Licensed under the Apache License, Version 2.0.
"""The page's endpoints for programs. Nothing of a call is kept."""

from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import gradio as gr

from .answers import COSINE, Answers, Cell, Picture, read_upload, split_findings
from .painting import data_uri, encoded, painted_over, shown_map
from .uploads import Uploads


class File(TypedDict):
    """An uploaded file, as `gradio_client.handle_file` gives it."""

    path: str


class Score(TypedDict):
    """What one model makes of one finding."""

    finding: str
    model: str
    score: float
    difference: float
    note: str | None


class Overlay(TypedDict):
    """The map of a finding by one model, over the radiograph."""

    model: str
    score: float
    kind: str
    lowest: float
    highest: float
    highest_at: list[float]
    overlay: str


class Endpoints:
    """
    The endpoints of a page, each a method. Their type hints and docstrings are the documentation that clients see.

    Args:
        read: gives the [`Answers`] of a picture, a list of findings and a kind of map.
        uploads: where the files of clients wait.
    """

    def __init__(self, read: Callable, uploads: Uploads):
        self._read, self._uploads = read, uploads

    def scores(self, image: File, findings: list[str]) -> list[Score]:
        """
        Scores of findings in a chest radiograph. Not a medical device.

        Args:
            image: a PNG, JPEG, TIFF or DICOM file of at most 100 MB.
            findings: at most 12 names, such as "left pleural effusion".

        Returns:
            for each finding and model `score`, in [0, 1] and above 0.5 if the picture is nearer to the finding than to
            its denial; `difference`, the cosine with the finding's sentence less that with its denial; and `note`, why
            the score says little, or null.
        """
        return [
            {
                "finding": row.text,
                "model": model,
                "score": cell.score,
                "difference": cell.difference,
                "note": cell.note,
            }
            for row in self._answers(image, findings).rows
            for model, cell in row.cells.items()
        ]

    def overlay(self, image: File, finding: str, kind: str = COSINE) -> list[Overlay]:
        """
        Where a finding points in a chest radiograph. Not a medical device.

        Args:
            image: a PNG, JPEG, TIFF or DICOM file of at most 100 MB.
            finding: a name, such as "left pleural effusion".
            kind: "cosine" of each patch with the finding, its "contribution" to the cosine of the picture times the
                number of patches, or "contribution_minus_no_finding". The last two are for models that pool the
                patches by their mean; the others give cosines, as `kind` in the answer says.

        Returns:
            for each model the score; the kind of its map, the smallest and the largest value; where the largest is, as
            fractions of the width and of the height; and the map over the radiograph, at most 1,024 pixels a side, as
            the data URI of a PNG file: orange where the value is positive, blue where negative, full colour at 1 and
            -1.
        """
        picture, rows = self._answers(image, [finding], kind)
        return [_shown(picture, model, cell) for model, cell in rows[0].cells.items()]

    def _answers(self, image: File, findings: list[str], kind: str = COSINE) -> Answers:
        try:
            if not isinstance(image, dict) or not isinstance(image.get("path"), str):
                raise ValueError("image must be a file: gradio_client.handle_file('radiograph.png').")
            picture = read_upload(self._uploads.take(Path(image["path"]).parent.name))
            if not isinstance(findings, list) or not all(isinstance(finding, str) for finding in findings):
                raise ValueError("findings must be a list of texts, such as ['left pleural effusion'].")
            return self._read(picture, split_findings("\n".join(findings)), kind)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error


def _shown(picture: Picture, model: str, cell: Cell) -> Overlay:
    return {
        "model": model,
        "score": cell.score,
        **shown_map(cell),
        "overlay": data_uri(encoded(painted_over(picture.small, cell), "PNG"), "image/png"),
    }
