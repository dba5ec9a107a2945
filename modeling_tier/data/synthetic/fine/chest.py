# Licensed under the Apache License, Version 2.0.
"""The fine drawing of a chest without findings: what all of them are drawn into."""

import math
from dataclasses import dataclass

import numpy as np

from ..phantom import SIDES
from ..shapes import rotate
from .canvas import Canvas


@dataclass(frozen=True)
class Anatomy:
    """What stays the same between the studies of one subject; lengths are fractions of the picture."""

    seed: int  # of the vessels
    lung: float  # half width of the rib cage at its base
    apex: float  # y of the lung tips
    base: float  # y below which the chest wall runs straight down
    diaphragm: dict[str, float]  # y of the highest point, by side
    dome: float  # how far the diaphragm falls to the costophrenic angle
    wall: float  # thickness of the soft tissue beside the ribs
    heart_ratio: float  # cardiothoracic ratio of the healthy heart
    heart_tilt: float
    mediastinum: float  # half width above the aortic knob
    knob: float  # radius of the aortic knob
    carina: float  # y
    hilum: dict[str, float]  # y, by side
    rib_spacing: float
    rib_phase: float
    rib_contrast: float
    clavicle: float  # y at the sternum
    breast: float  # brightness of the tissue in front of the lower lungs


def sample_anatomy(rng: np.random.Generator) -> Anatomy:
    apex, right = rng.uniform(0.12, 0.16), rng.uniform(0.68, 0.745)
    carina = apex + rng.uniform(0.20, 0.225)
    hilum = carina + rng.uniform(0.075, 0.095)
    spacing = rng.uniform(0.062, 0.07)
    return Anatomy(
        seed=int(rng.integers(2**32)),
        lung=rng.uniform(0.345, 0.41),
        apex=apex,
        base=rng.uniform(0.74, 0.80),
        diaphragm={"right": right, "left": right + rng.uniform(0.0, 0.035)},
        dome=rng.uniform(0.10, 0.14),
        wall=rng.uniform(0.02, 0.075),
        heart_ratio=rng.uniform(0.40, 0.48),
        heart_tilt=rng.uniform(0.45, 0.65),
        mediastinum=rng.uniform(0.045, 0.058),
        knob=rng.uniform(0.036, 0.046),
        carina=carina,
        hilum={"right": hilum, "left": hilum - rng.uniform(0.01, 0.03)},
        rib_spacing=spacing,
        rib_phase=rng.uniform(0, spacing),
        rib_contrast=rng.uniform(0.06, 0.095),
        clavicle=apex + rng.uniform(0.05, 0.07),
        breast=float(rng.choice([0.0, rng.uniform(0.02, 0.07)])),
    )


@dataclass
class Chest:
    """The parts of the chest that findings are drawn into; arrays are (size, size), by side where they have one."""

    canvas: Canvas
    anatomy: Anatomy
    wall: np.ndarray
    """Distance of the chest wall from the midline."""
    diaphragm: dict[str, np.ndarray]
    """y of the diaphragm."""
    lungs: dict[str, np.ndarray]
    """1 inside of the rib cage and above the diaphragm, also behind the heart."""
    heart: np.ndarray
    """Depth, positive inside."""
    mediastinum: np.ndarray
    """Depth, positive inside, of everything between the lungs with the heart."""
    covered: np.ndarray
    """1 where the heart or the mediastinum hides the lung."""
    ribs: np.ndarray
    vessels: np.ndarray

    def aerated(self, side: str, behind_heart: float = 0.3) -> np.ndarray:
        """A lung, `behind_heart` of it where the heart and the mediastinum hide it."""
        return self.lungs[side] * (1 - np.float32(1 - behind_heart) * self.covered)

    def point(self, side: str, across: float, down: float) -> tuple[float, float]:
        """
        Distance from the midline and y of a point of a lung: `across` from 0 at the mediastinum to 1 at the wall,
        `down` from 0 at the apex to 1 at the dome of the diaphragm.
        """
        a = self.anatomy
        y = a.apex + down * (a.diaphragm[side] - a.apex)
        inner, outer = 0.085, float(wall_at(a, y))
        return inner + across * (outer - inner), y


def wall_at(anatomy: Anatomy, y, lung: float | None = None, apex: float | None = None):
    """Half width of the rib cage at a height; of a smaller lung where `lung` and `apex` are given."""
    a = anatomy
    lung, apex = a.lung if lung is None else lung, a.apex if apex is None else apex
    rise = np.clip((a.base - y) / (a.base - apex), 0, 1)
    return lung * np.clip(1 - rise**2.4, 0, 1) ** np.float32(0.40)


def draw_chest(canvas: Canvas, anatomy: Anatomy, heart_ratio: float, widening: float) -> Chest:
    """
    The chest without findings, but for the size of the heart and of the mediastinum, which are shapes of the normal
    chest: `heart_ratio` is the cardiothoracic ratio, `widening` is added to the half width of the mediastinum.
    """
    a, y, distance = anatomy, canvas.y, canvas.distance
    wall = wall_at(a, y)
    diaphragm = {side: _diaphragm(canvas, a, side) for side in SIDES}
    tips = canvas.edge(y - a.apex - 5 * np.clip(0.14 - distance, 0, 1) ** 2, 0.003)
    cage = canvas.edge(wall - distance, 0.003) * tips
    lungs = {side: cage * canvas.edge(diaphragm[side] - y) * canvas.half(side) for side in SIDES}
    heart = _heart(canvas, a, heart_ratio)
    mediastinum = _blended(heart, _upper_mediastinum(canvas, a, widening), 0.02)
    covered = canvas.edge(mediastinum, 0.004)
    chest = Chest(canvas, a, wall, diaphragm, lungs, heart, mediastinum, covered, *_ribs_and_vessels(canvas, a, wall))
    _draw_soft_tissue(chest)
    _draw_bones(chest)
    return chest


def _diaphragm(canvas: Canvas, a: Anatomy, side: str) -> np.ndarray:
    middle = 0.5 * a.lung
    lateral = np.clip((canvas.distance - middle) / (a.lung - middle), 0, 1.2)
    medial = np.clip((middle - canvas.distance) / middle, 0, 1)
    return a.diaphragm[side] + a.dome * lateral**2 * lateral + 0.045 * medial * medial


def _heart(canvas: Canvas, a: Anatomy, ratio: float) -> np.ndarray:
    """Two ellipses, the left ventricle towards the apex of the heart and the right atrium; depth in fractions."""
    width = 2 * a.lung * ratio
    long, short = 0.54 * width, (0.47 - 0.25 * ratio) * width
    tilt = a.heart_tilt
    u = canvas.u - np.float32(canvas.turn)
    half_height = math.hypot(long * math.sin(tilt), short * math.cos(tilt))
    bottom = a.diaphragm["left"] + 0.035
    reach = math.hypot(long * math.cos(tilt), short * math.sin(tilt))  # to the left of its centre
    x, y = 0.65 * width - reach, bottom - half_height
    along, across = rotate(u - np.float32(x), canvas.y - np.float32(y), tilt)
    ventricle = 1 - np.sqrt((along / long) ** 2 + (across / short) ** 2)
    radius = 0.25 * width
    atrium = 1 - np.sqrt(
        ((u + np.float32(0.35 * width - radius)) / radius) ** 2 + ((canvas.y - y - 0.01) / (0.06 + 0.12 * width)) ** 2
    )
    return _blended(short * ventricle, np.float32(0.8) * radius * atrium, 0.015)


def _blended(a: np.ndarray, b: np.ndarray, radius: float) -> np.ndarray:
    """The larger of two depths, with a rounded notch where they meet."""
    return np.float32(0.5) * (a + b + np.sqrt((a - b) ** 2 + np.float32(radius * radius)) - np.float32(radius))


def _upper_mediastinum(canvas: Canvas, a: Anatomy, widening: float) -> np.ndarray:
    """Great vessels, the aortic knob and the pulmonary trunk; depth in fractions of the picture."""
    u, y = canvas.u - np.float32(canvas.turn), canvas.y
    wider = np.float32(widening) * np.exp(-(((y - a.carina + 0.02) / 0.10) ** 2))
    half = a.mediastinum + 0.02 * np.clip((y - a.apex) / 0.4, 0, 1) + wider
    knob = (a.knob + 0.008) * np.exp(-((np.abs(y - (a.carina - 0.035)) / 0.038) ** 3))
    trunk = 0.040 * np.exp(-((np.abs(y - (a.carina + 0.075)) / 0.062) ** 3))
    return np.where(u > 0, half + knob + trunk - u, half + u)


def _ribs_and_vessels(canvas: Canvas, a: Anatomy, wall: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y, distance = canvas.y, canvas.distance
    back = (y - a.rib_phase - 1.0 * (distance - 0.10) ** 2 + 0.02) / a.rib_spacing
    front = (y - a.rib_phase + 0.02 + 0.52 * (distance - 0.30) + 0.8 * (distance - 0.3) ** 2) / a.rib_spacing
    inside = canvas.edge(wall * 1.015 - distance, 0.003) * (y > a.apex - 0.03)
    ribs = _band(canvas, back, a.rib_spacing, 0.19) * (distance > 0.035)
    ribs = ribs + 0.6 * _band(canvas, front, a.rib_spacing, 0.21) * np.clip((distance - 0.13) / 0.1, 0, 1)
    return ribs * inside, _vessels(canvas, a)


def _band(canvas: Canvas, height: np.ndarray, spacing: float, half: float) -> np.ndarray:
    """Bands at each whole height, denser at their edges, as bones are."""
    off = np.abs(height - np.floor(height) - np.float32(0.5))
    band = canvas.edge((half - off) * spacing, 0.0015)
    return band * (0.6 + 0.4 * np.clip(off / half, 0, 1) ** 3)


def _vessels(canvas: Canvas, a: Anatomy) -> np.ndarray:
    """Trees that grow from both hila and halve at each branching."""
    rng, layer = np.random.default_rng(a.seed), canvas.layer()
    forks: list[list[np.ndarray]] = [[] for _ in range(5)]  # by level: (N, 3, 2) of a tip, the fork, the other tip
    for side, sign in SIDES.items():
        angles = np.linspace(-1.35, 1.45, 7) + rng.normal(0, 0.12, 7)
        lengths = rng.uniform(0.05, 0.085, 7) * (1 + 0.25 * np.abs(np.sin(angles)))
        starts = np.stack([0.078 + rng.uniform(-0.006, 0.012, 7), a.hilum[side] + 0.03 * np.sin(angles)], axis=1)
        ends = starts + lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        forks[0].append(np.stack([starts, (starts + ends) / 2, ends], axis=1) * [sign, 1])
        for level in range(1, 5):
            turns = rng.uniform(0.05, 0.62, (2, len(angles))) * np.array([[-1], [1]])
            angles, lengths = angles + turns, lengths * rng.uniform(0.68, 0.95, (2, len(angles)))
            tips = ends + lengths[..., None] * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
            forks[level].append(np.stack([tips[0], ends, tips[1]], axis=1) * [sign, 1])
            ends, angles, lengths = tips.reshape(-1, 2), angles.ravel(), lengths.ravel()
    for level in reversed(range(5)):  # the thick ones over the thin ones
        layer.forks(np.concatenate(forks[level]), 0.0125 * 0.7**level, 235 - 35 * level)
    return layer.array()


def _draw_soft_tissue(chest: Chest) -> None:
    canvas, a = chest.canvas, chest.anatomy
    y, distance, u = canvas.y, canvas.distance, canvas.u - np.float32(canvas.turn)
    neck = 0.115 + 0.50 * np.clip((y - 0.01) / 0.16, 0, 1) ** 1.3
    torso = np.maximum(chest.wall, 0.8 * a.lung) + a.wall + 0.22 * np.clip((0.46 - y) / 0.26, 0, 1) ** 2
    body = canvas.edge(np.minimum(neck, torso) - distance, 0.004)
    thickness = np.clip((np.minimum(neck, torso) - distance) / 0.05, 0, 1)
    air = (chest.lungs["left"] + chest.lungs["right"]) * (1 - 0.93 * chest.covered)
    below = sum(canvas.edge(y - chest.diaphragm[side]) * canvas.half(side) for side in SIDES)
    picture = body * (0.30 + 0.20 * thickness + 0.025 * canvas.coarse)
    picture += body * below * (0.22 + 0.06 * canvas.half("right")) * canvas.edge(chest.wall + 0.01 - distance, 0.008)
    picture -= air * (0.33 + 0.02 * canvas.coarse)
    deep = np.clip(chest.mediastinum / 0.06, 0, 1)
    picture += body * (0.15 * chest.covered + 0.12 * deep) * (1 - 0.75 * below)
    picture += air * (0.05 * np.clip((y - 0.45) / 0.3, 0, 1) + 0.008 * canvas.fine + 0.010 * canvas.middle)
    breast = 1 - np.hypot((distance - 0.22) / 0.19, (y - 0.60) / 0.17)
    picture += a.breast * canvas.edge(breast, 0.03) * body
    discs = np.abs((y / np.float32(0.047)) % 1 - 0.5)
    spine = canvas.edge(0.036 - np.abs(u), 0.004) * body
    picture += spine * (
        0.055 - 0.05 * canvas.edge(0.10 - discs, 0.03) + 0.03 * canvas.edge(0.007 - np.abs(np.abs(u) - 0.02))
    )
    for side in SIDES:
        hilum = ((canvas.outward(side) - 0.095) / 0.04) ** 2 + ((y - a.hilum[side]) / 0.06) ** 2
        picture += 0.07 * np.exp(-hilum) * air
    rng = canvas.stream("stomach")
    if rng.random() < 0.6:
        across, down = rng.uniform(0.14, 0.24), a.diaphragm["left"] + rng.uniform(0.055, 0.075)
        bubble = ((canvas.u - across) / rng.uniform(0.04, 0.08)) ** 2 + ((y - down) / rng.uniform(0.02, 0.035)) ** 2
        picture -= 0.20 * canvas.edge(1 - bubble, 0.3) * below
    canvas.picture += picture


def _draw_bones(chest: Chest) -> None:
    """Ribs, the tangent of the rib cage, clavicles, shoulder blades and upper arms; and the airway between them."""
    canvas, a = chest.canvas, chest.anatomy
    below = np.where(canvas.u < 0, chest.diaphragm["right"], chest.diaphragm["left"])
    visible = 1 - 0.75 * canvas.edge(canvas.y - below, 0.004)
    rim = np.exp(-(((canvas.distance - chest.wall) / 0.007) ** 2)) * (canvas.y > a.apex) * (canvas.y < a.base + 0.08)
    canvas.picture += (a.rib_contrast * chest.ribs + 0.09 * rim) * visible
    bones, airway = canvas.layer(), canvas.layer()
    for sign in SIDES.values():
        head = sign * 0.03 + 2 * canvas.turn
        u = np.array([head, head + sign * 0.09, head + sign * 0.20, head + sign * 0.30, head + sign * 0.40])
        y = a.clavicle + np.array([0.0, -0.018, -0.045, -0.052, -0.072])
        bones.polygon(
            sign * np.array([0.37, 0.45, 0.52, 0.47, 0.41]), a.apex + np.array([0.0, -0.02, 0.08, 0.20, 0.26]), 90
        )
        bones.disc(sign * 0.49, a.apex + 0.015, 0.05, 150)
        bones.line(u, y, 0.024, 255)
        bones.line(u, y, 0.014, 175)
    canvas.picture += 0.12 * bones.array()
    airway.line([0, 0.004, 0], [-0.05, 0.1, a.carina], 0.030)
    airway.line([0, -0.055], [a.carina - 0.006, a.carina + 0.05], 0.022)
    airway.line([0, 0.075], [a.carina - 0.006, a.carina + 0.045], 0.018)
    canvas.picture -= 0.13 * airway.array() * np.clip(canvas.picture - 0.3, 0, 1) * 2
