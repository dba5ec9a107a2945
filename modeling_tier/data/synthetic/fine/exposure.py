# Licensed under the Apache License, Version 2.0.
"""From the densities of a fine drawing to its grey values: side marker, collimation, exposure, noise, 8 bits."""

import numpy as np

from ..shapes import grid
from .canvas import Canvas


def expose(canvas: Canvas, view: str) -> np.ndarray:
    """(size, size) uint8. What is done here depends on the exposure and its view alone, not on what was drawn."""
    rng, size = canvas.stream("exposure"), canvas.size
    picture = canvas.picture + np.float32(0.012) * canvas.coarse
    portable = view == "AP"
    contrast = rng.uniform(0.82, 1.0) if portable else rng.uniform(0.92, 1.15)
    brightness = rng.uniform(-0.03, 0.05)
    gamma = np.float32(rng.uniform(0.85, 1.2))
    picture = np.clip(picture, 0.004, 1.15) ** gamma * np.float32(contrast) + np.float32(brightness)
    if rng.random() < 0.25:  # collimation
        columns, rows = grid(size)
        left, right, top = rng.uniform(0, 0.035, 3)
        picture *= (columns > left) & (columns < 1 - right) & (rows > top)
    noise = np.float32(rng.uniform(0.006, 0.02) * (1.4 if portable else 1.0))
    grain = canvas.stream("noise").standard_normal((size, size), dtype=np.float32)
    picture += noise * grain
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8)
