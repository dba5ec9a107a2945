# Licensed under the Apache License, Version 2.0.
"""
Finer drawings of frontal chest radiographs, for pictures of 64 to 224 pixels and more. Of no clinical meaning.

One geometry for all sizes: the same case at another size is the same chest, with other noise.
"""

import numpy as np

from ..phantom import Finding, Region
from .canvas import Canvas
from .chest import Anatomy, draw_chest
from .devices import draw_devices
from .exposure import expose
from .findings import draw_findings, heart_ratio, widening


def render(
    rng: np.random.Generator, anatomy: Anatomy, findings: list[Finding], size: int, view: str = "PA"
) -> tuple[np.ndarray, list[Region], dict[str, np.ndarray]]:
    """
    Draw one exposure.

    Args:
        rng: source of one number, the seed of everything that differs between two exposures of one subject: position,
            texture, noise, and where in its zone a finding lies. Each part has random numbers of its own: with
            another finding more or less, the rest of the picture stays the same.
        anatomy: the subject's.
        findings: what to draw.
        size: pixels a side.
        view: "PA" or "AP"; AP has less contrast, more noise, and a heart that looks wider.

    Returns:
        the picture, (size, size) uint8, a region for each finding and side, and the masks (size, size) of the
        "heart" and of the "lungs" beside it.
    """
    canvas = Canvas(int(rng.integers(2**32)), size)
    chest = draw_chest(canvas, anatomy, heart_ratio(findings, anatomy.heart_ratio, view), widening(findings))
    draw_findings(chest, findings)
    draw_devices(chest, findings)
    lungs = chest.lungs["left"] + chest.lungs["right"]
    organs = {"heart": chest.heart > 0, "lungs": (lungs > 0.5) & (chest.covered < 0.5)}
    return expose(canvas, view), canvas.regions, organs
