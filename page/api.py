# Licensed under the Apache License, Version 2.0.
"""The page's endpoints for programs. Nothing of a call is kept."""

from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import gradio as gr

from .answers import COSINE, Answers, Cell, Picture, read_upload, split_findings
from .painting import data_uri, encoded, painted_over, shown_map
from .uploads import Upload, Uploads, from_data_uri


class File(TypedDict):
    """A file: what `gradio_client.handle_file` gives, the path that an upload answers with, or a data URI."""

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
        Scores of findings in a chest radiograph. Not a medical device. A score lies in [0, 1], above 0.5 if the
        picture is nearer to the finding than to its denial; it is not a probability.

        Args:
            image: {"path": "data:image/png;base64,..."}, or an upload; PNG, JPEG, TIFF or DICOM of at most 100 MB.
            findings: at most 12 names, such as "left pleural effusion".

        Returns:
            for each finding and model its score, the difference of the cosines with both, and why it says little.
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
        Where a finding points in a chest radiograph. Not a medical device. Every map has a maximum, whether the
        finding is present or not. A contribution is what a patch adds to the cosine of the picture with the finding,
        times the number of patches; models that do not pool the patches by their mean have none, and give cosines.
        Overlays are orange where the value is positive, blue where it is negative, in full colour from 1 and -1 on; at
        most 1,024 pixels a side.

        Args:
            image: {"path": "data:image/png;base64,..."}, or an upload; PNG, JPEG, TIFF or DICOM of at most 100 MB.
            finding: a name, such as "left pleural effusion".
            kind: of map: "cosine" of each patch, its "contribution", or "contribution_minus_no_finding".

        Returns:
            for each model its score, kind of map, lowest and highest value, where that is (0 to 1), and the overlay.
        """
        picture, rows = self._answers(image, [finding], kind)
        return [_shown(picture, model, cell) for model, cell in rows[0].cells.items()]

    def _answers(self, image: File, findings: list[str], kind: str = COSINE) -> Answers:
        try:
            if not isinstance(image, dict) or not isinstance(image.get("path"), str):
                raise ValueError("image must be a file: gradio_client.handle_file('radiograph.png').")
            picture = read_upload(self._file(image["path"]))
            if not isinstance(findings, list) or not all(isinstance(finding, str) for finding in findings):
                raise ValueError("findings must be a list of texts, such as ['left pleural effusion'].")
            return self._read(picture, split_findings("\n".join(findings)), kind)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def _file(self, path: str) -> Upload | None:
        if path.startswith("data:"):
            return from_data_uri(path)
        return self._uploads.take(Path(path).parent.name)  # also of the address under which Gradio would serve it


def _shown(picture: Picture, model: str, cell: Cell) -> Overlay:
    return {
        "model": model,
        "score": cell.score,
        **shown_map(cell),
        "overlay": data_uri(encoded(painted_over(picture.small, cell), "PNG"), "image/png"),
    }
