# Licensed under the Apache License, Version 2.0.
"""
The coordinates, random streams and line art of one fine drawing.

Shapes are described in the patient's coordinates: a unit square with `x` to the right of the picture, `y` down and
`u = x - 0.5` from the midline. As on a light box, the patient's right is on the left of the picture (u < 0). All
lengths are fractions of the side, so that the same case at another size is the same chest.
"""

import math
import zlib
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from ..phantom import SIDES, Region
from ..shapes import edge, grid, rotate, texture


# Line art is drawn on layers of at least so many pixels a side, twice the picture or more, and then reduced.
MIN_LAYER_SIDE = 256


@dataclass
class Canvas:
    """One exposure: where the patient stands, and what is drawn so far. All arrays are (size, size)."""

    seed: int
    """Of everything that differs between two exposures of one patient."""
    size: int
    picture: np.ndarray = field(init=False)
    """float32; about 0 for air outside of the patient, about 1 for the densest parts."""
    regions: list[Region] = field(default_factory=list)

    def __post_init__(self):
        rng = self.stream("position")
        self.scale, self.angle = float(rng.uniform(0.95, 1.04)), float(rng.normal(0, 0.022))
        self.shift = rng.normal(0, 0.012, 2)
        x, y = grid(self.size)
        shift = self.shift.astype(np.float32)
        x, y = rotate((x - 0.5 - shift[0]) / self.scale, (y - 0.5 - shift[1]) / self.scale, self.angle)
        self.y = y + np.float32(0.5)
        self.u = x
        self.distance = np.abs(x)
        # A patient who is turned a little: what lies in front moves against the rib cage.
        self.turn = float(np.clip(rng.normal(0, 0.006), -0.012, 0.012))
        rng = self.stream("texture")
        self.fine, self.middle, self.coarse = (texture(rng, self.size, cells) for cells in (48, 16, 6))
        self.picture = np.zeros((self.size, self.size), np.float32)

    def stream(self, *key) -> np.random.Generator:
        """Random numbers for one part alone: what else is drawn does not change them."""
        return np.random.default_rng([self.seed, zlib.crc32(repr(key).encode())])

    def outward(self, side: str) -> np.ndarray:
        """Distance from the midline towards one side; negative on the other."""
        return self.u * np.float32(SIDES[side])

    def half(self, side: str) -> np.ndarray:
        """1 on one side of the midline, 0 on the other."""
        return (self.outward(side) > 0).astype(np.float32)

    def edge(self, depth: np.ndarray, softness: float = 0.002) -> np.ndarray:
        """0 outside, 1 inside; never sharper than a pixel."""
        return edge(depth, max(softness, 0.25 / self.size))

    def layer(self) -> "Layer":
        return Layer(self)

    def to_picture(self, u, y) -> np.ndarray:
        """Points (N, 2) of the picture, as fractions of its side, from the patient's coordinates."""
        x, y = rotate(np.asarray(u, np.float32), np.asarray(y, np.float32) - np.float32(0.5), -self.angle)
        return np.stack([x, y], axis=-1) * self.scale + self.shift + 0.5


class Layer:
    """Lines and polygons, drawn large and reduced to the size of the picture."""

    def __init__(self, canvas: Canvas):
        self.canvas = canvas
        self.factor = max(2, math.ceil(MIN_LAYER_SIDE / canvas.size))
        self.side = self.factor * canvas.size
        self.image = Image.new("L", (self.side, self.side))
        self.draw = ImageDraw.Draw(self.image)

    def line(self, u, y, width: float, value: int = 255) -> None:
        """A line through points; what is thinner than a pixel of the layer is as much darker."""
        exact = width * self.side * self.canvas.scale
        pixels = max(1, round(exact))
        self.draw.line(self._pixels(u, y), fill=round(value * min(1, exact / pixels)), width=pixels, joint="curve")

    def curve(self, u, y, width: float, value: int = 255) -> None:
        """A line whose corners are cut twice (Chaikin's curve)."""
        points = np.stack([np.asarray(u, float), np.asarray(y, float)], axis=1)
        for _ in range(2):
            cut = np.stack([0.75 * points[:-1] + 0.25 * points[1:], 0.25 * points[:-1] + 0.75 * points[1:]], axis=1)
            points = np.concatenate([points[:1], cut.reshape(-1, 2), points[-1:]])
        self.line(points[:, 0], points[:, 1], width, value)

    def forks(self, tips: np.ndarray, width: float, value: int) -> None:
        """Lines of three points each, (N, 3, 2) in the patient's coordinates."""
        exact = width * self.side * self.canvas.scale
        pixels = max(1, round(exact))
        value = round(value * min(1, exact / pixels))
        points = self.canvas.to_picture(tips[..., 0], tips[..., 1]) * self.side
        for line in points.reshape(len(tips), 6).tolist():
            self.draw.line(line, fill=value, width=pixels)

    def polygon(self, u, y, value: int = 255) -> None:
        self.draw.polygon(self._pixels(u, y), fill=value)

    def disc(self, u: float, y: float, radius: float, value: int = 255) -> None:
        (x, y), radius = self.canvas.to_picture([u], [y])[0] * self.side, radius * self.side * self.canvas.scale
        self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=value)

    def _pixels(self, u, y) -> list[tuple[float, float]]:
        return [tuple(point) for point in (self.canvas.to_picture(u, y) * self.side).tolist()]

    def array(self) -> np.ndarray:
        """(size, size) float32 in [0, 1]."""
        return np.asarray(self.image.reduce(self.factor), np.float32) * np.float32(1 / 255)
