# Licensed under the Apache License, Version 2.0.
"""
CheXlocalize's human benchmark: another radiologist's masks and most representative points of the test images, judged
against the ground-truth masks as the data set's own code does it (rajpurkarlab/cheXlocalize, `eval.py`).
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import Value

from .masks import coco_mask
from .rejected import RejectedRow
from .tables import find_table, read_json


MASKS, POINTS = "hb_segmentations_test.json", "hb_salient_pt_test.json"
# An answer of the column `radiologist`.
ANSWER = {"finding": Value("string"), "hit": Value("float32"), "iou": Value("float32")}


@dataclass
class HumanBenchmark:
    """The two files, each by image and finding; None of one that is not there."""

    folder: Path
    masks: dict[str, dict] | None
    points: dict[str, dict] | None
    bad: list[RejectedRow] = field(default_factory=list)
    """Entries that could not be read."""

    def judge(self, image: str, finding: str, inside: np.ndarray) -> dict | None:
        """
        How the radiologist did on one image and finding.

        Args:
            inside: the ground-truth mask (height, width), not empty.

        Returns:
            `hit`: 1 where one of the points lies inside the mask, 0 where none does or none was given; `iou`:
            intersection over union of the two masks, None where the radiologist drew none. Both over the whole
            picture, and None without their file. None for an entry that cannot be read.
        """
        try:
            return {
                "hit": None if self.points is None else _hit(self.points.get(image, {}).get(finding, []), inside),
                "iou": None if self.masks is None else _iou(self.masks.get(image, {}).get(finding), inside),
            }
        except ValueError as error:
            self.bad.append(RejectedRow(str(self.folder), f"human benchmark of {image}, {finding}", str(error)))
            return None


def human_benchmark(folder: Path, parts: Iterable[str]) -> HumanBenchmark | None:
    """
    Read the benchmark of a folder; a warning says which file is missing.

    Args:
        folder: of the data set.
        parts: folders in it that may hold the files.

    Returns:
        the benchmark; None where neither file is there.

    Raises:
        ValueError: if a file is not of the form {image: {finding: ...}}.
    """
    masks, points = (_content(folder, parts, name) for name in (MASKS, POINTS))
    missing = [name for name, content in ((MASKS, masks), (POINTS, points)) if content is None]
    if missing:
        what = "numbers are" if len(missing) == 2 else "IoU is" if masks is None else "hit rate is"
        warnings.warn(
            f"chexlocalize: {' and '.join(missing)} not found in {folder}: the radiologist's {what} not measured.",
            stacklevel=3,
        )
    return None if len(missing) == 2 else HumanBenchmark(folder, masks, points)


def _content(folder: Path, parts: Iterable[str], name: str) -> dict | None:
    try:
        path = find_table(folder, [f"{part}/{name}" if part else name for part in parts])
    except ValueError:
        return None
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(findings, dict) for findings in content.values()):
        raise ValueError(f'{path} must be like {{"patient64741_study1_view1_frontal": {{finding: ...}}}}.')
    return content


def _hit(points, inside: np.ndarray) -> float:
    """Whether a point [x, y], cut to whole pixels, lies inside."""
    if not isinstance(points, list):
        raise ValueError(f"points must be a list of [x, y]; got {str(points)[:80]!r}")
    hit = 0.0
    for point in points:
        if not (isinstance(point, list) and len(point) == 2 and all(type(n) in (int, float) for n in point)):
            raise ValueError(f"a point must be [x, y]; got {str(point)[:80]!r}")
        x, y = point
        if not (0 <= x < inside.shape[1] and 0 <= y < inside.shape[0]):
            raise ValueError(f"the point {point} lies outside of the picture of {inside.shape[1]} x {inside.shape[0]}")
        hit = max(hit, float(inside[int(y), int(x)]))
    return hit


def _iou(encoded, inside: np.ndarray) -> float | None:
    if encoded is None:
        return None
    drawn = coco_mask(encoded)
    if drawn.shape != inside.shape:
        raise ValueError(f"the mask has {drawn.shape} pixels, and the ground truth {inside.shape}")
    return float((drawn & inside).sum() / (drawn | inside).sum()) if drawn.any() else None
