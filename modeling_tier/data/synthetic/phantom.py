# Licensed under the Apache License, Version 2.0.
"""
Frontal chest radiographs drawn by code, with findings in known regions. Drawings, of no clinical meaning.

The picture is a sum of soft-edged shapes over a unit square: `x` to the right, `y` down, `u = x - 0.5` from the
midline. As on a light box, the patient's right is on the left of the picture (u < 0). Grey values are in [0, 1] until
the end.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .shapes import edge, grid, rotate, texture


FINDINGS = (
    "Cardiomegaly",
    "Pleural Effusion",
    "Consolidation",
    "Atelectasis",
    "Pneumothorax",
    "Edema",
    "Nodule",
)
SIDES = {"right": -1, "left": 1}
ZONES = ("upper", "mid", "lower")
DEVICES = ("pacemaker", "line", "tube")


@dataclass(frozen=True)
class Finding:
    """One finding of a study: where it is and how severe."""

    name: str
    severity: float = 0.0
    """In [0, 1]."""
    side: str | None = None
    """`left`, `right` or `bilateral` (the patient's), where the finding has a side."""
    zone: str | None = None
    """`upper`, `mid` or `lower`; for a pneumothorax `apical` or `basal`; for a device its kind."""


@dataclass(frozen=True)
class Anatomy:
    """What stays the same between the studies of one subject; lengths are fractions of the picture."""

    chest: float  # half width of the rib cage
    lung: float  # half width of both lungs together
    apex: float  # y of the lung tips
    widest: float  # y below which the chest wall runs straight down
    mediastinum: float  # half width
    diaphragm: dict[str, float]  # y of the highest point, by side
    dome: float  # how far the diaphragm falls to its ends
    heart_ratio: float  # cardiothoracic ratio of the healthy heart
    heart_shift: float  # fraction of the heart's width by which its centre lies to the left
    heart_aspect: float  # height over width
    rib_spacing: float
    rib_phase: float
    rib_slope: float
    rib_contrast: float
    clavicle: float  # y at the sternum


class Region(NamedTuple):
    """The region of one finding, or of one side of it."""

    finding: Finding
    side: str | None
    mask: np.ndarray  # (size, size), bool


@dataclass
class _Canvas:
    """Coordinates of one exposure and the fields that several shapes share; all arrays are (size, size) float32."""

    rng: np.random.Generator
    x: np.ndarray
    y: np.ndarray
    anatomy: Anatomy
    regions: list[Region] = field(default_factory=list)

    def __post_init__(self):
        self.u = self.x - 0.5
        self.distance = np.abs(self.u)  # from the midline
        self.fine, self.middle, self.coarse = (texture(self.rng, len(self.x), cells) for cells in (32, 14, 6))

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def outward(self, side: str) -> np.ndarray:
        """Distance from the midline towards one side; negative on the other."""
        return self.u * np.float32(SIDES[side])


def sample_anatomy(rng: np.random.Generator) -> Anatomy:
    chest = rng.uniform(0.40, 0.46)
    right_diaphragm = rng.uniform(0.70, 0.78)
    rib_spacing = rng.uniform(0.078, 0.09)
    apex = rng.uniform(0.09, 0.15)
    return Anatomy(
        chest=chest,
        lung=chest * rng.uniform(0.86, 0.93),
        apex=apex,
        widest=rng.uniform(0.56, 0.66),
        mediastinum=rng.uniform(0.055, 0.08),
        diaphragm={"right": right_diaphragm, "left": right_diaphragm + rng.uniform(0, 0.035)},
        dome=rng.uniform(0.07, 0.12),
        heart_ratio=rng.uniform(0.385, 0.49),
        heart_shift=rng.uniform(0.10, 0.17),
        heart_aspect=rng.uniform(0.80, 0.98),
        rib_spacing=rib_spacing,
        rib_phase=rng.uniform(0, rib_spacing),
        rib_slope=rng.uniform(0.25, 0.45),
        rib_contrast=rng.uniform(0.03, 0.07),
        clavicle=apex + 0.075 + rng.uniform(-0.01, 0.01),
    )


def sample_findings(rng: np.random.Generator) -> list[Finding]:
    """
    Findings that occur together as they would: heart failure brings cardiomegaly, edema and effusions, infection
    brings consolidation, an effusion brings atelectasis. A quarter of all studies is strictly normal.
    """
    if rng.random() < 0.25:
        return []
    failure, infection = rng.random() < 0.22, rng.random() < 0.25

    def one_side() -> str:
        return str(rng.choice(["left", "right"]))

    def severity() -> float:
        return float(rng.uniform())

    findings = []
    if rng.random() < (0.75 if failure else 0.12):
        findings.append(Finding("Cardiomegaly", severity()))
    if rng.random() < (0.65 if failure else 0.04):
        findings.append(Finding("Edema", severity(), "bilateral"))
    effusion = rng.random() < (0.55 if failure else 0.30 if infection else 0.12)
    if effusion:
        chances = [0.3, 0.3, 0.4] if failure else [0.45, 0.45, 0.1]
        side = str(rng.choice(["left", "right", "bilateral"], p=chances))
        findings.append(Finding("Pleural Effusion", severity(), side))
    if rng.random() < (0.80 if infection else 0.06):
        zone = str(rng.choice(ZONES, p=[0.30, 0.25, 0.45]))
        findings.append(Finding("Consolidation", severity(), one_side(), zone))
    if rng.random() < (0.35 if effusion else 0.17):
        findings.append(Finding("Atelectasis", severity(), one_side(), "lower"))
    if rng.random() < 0.15:
        zone = str(rng.choice(["apical", "basal"], p=[0.75, 0.25]))
        findings.append(Finding("Pneumothorax", severity(), one_side(), zone))
    if rng.random() < 0.17:
        findings.append(Finding("Nodule", severity(), one_side(), str(rng.choice(ZONES))))
    if rng.random() < 0.18:
        findings.append(Finding("Support Devices", zone=str(rng.choice(DEVICES))))
    return findings


def render(
    rng: np.random.Generator, anatomy: Anatomy, findings: list[Finding], size: int, view: str = "PA"
) -> tuple[np.ndarray, list[Region], dict[str, np.ndarray]]:
    """
    Draw one exposure.

    Args:
        rng: source of everything that differs between two exposures of one subject: position, texture, noise.
        anatomy: the subject's.
        findings: what to draw.
        size: pixels a side.
        view: "PA" or "AP"; the heart is nearer to the tube and looks wider on AP.

    Returns:
        the picture, (size, size) uint8, a region for each finding and side, and the masks (size, size) of the
        "heart" and of the "lungs" beside it.
    """
    canvas = _place(rng, anatomy, size)
    by_name = {finding.name: finding for finding in findings}
    lungs = _lungs(canvas, anatomy)
    heart_depth, heart_centre = _heart(canvas, by_name.get("Cardiomegaly"), view)
    heart = edge(heart_depth, 0.045)
    picture, vessels, ribs = _normal_chest(canvas, anatomy, lungs, heart)
    if finding := by_name.get("Cardiomegaly"):
        canvas.regions.append(Region(finding, None, heart_depth > 0))
    if finding := by_name.get("Pneumothorax"):
        vessels *= _pneumothorax(canvas, picture, finding, lungs[finding.side], ribs)
    picture += vessels
    # What fills the lung stays visible behind the heart, faintly.
    seen = {side: lung * (1 - 0.65 * heart) for side, lung in lungs.items()}
    if finding := by_name.get("Edema"):
        _edema(canvas, picture, finding, seen)
    if finding := by_name.get("Consolidation"):
        _consolidation(canvas, picture, finding, seen[finding.side])
    if finding := by_name.get("Atelectasis"):
        _atelectasis(canvas, picture, finding, lungs[finding.side])
    if finding := by_name.get("Nodule"):
        _nodule(canvas, picture, finding, lungs[finding.side])
    if finding := by_name.get("Pleural Effusion"):
        _effusion(canvas, picture, finding, lungs, heart)
    if finding := by_name.get("Support Devices"):
        _device(canvas, picture, finding.zone, heart_centre)
    organs = {"heart": heart_depth > 0, "lungs": (lungs["left"] + lungs["right"] > 0.5) & (heart_depth <= 0)}
    return _expose(canvas, picture), canvas.regions, organs


def _lungs(canvas: _Canvas, anatomy: Anatomy) -> dict[str, np.ndarray]:
    a, y, distance = anatomy, canvas.y, canvas.distance
    # Lungs: between the mediastinum, a wall that closes to the apex, and two domes.
    rise = np.clip((a.widest - y) / (a.widest - a.apex), 0, 1)
    wall = a.lung * np.sqrt(1 - rise * rise) ** np.float32(0.85)
    cage = edge(wall - distance, 0.008) * edge(distance - a.mediastinum, 0.008) * edge(y - a.apex, 0.008)
    middle, half = (a.mediastinum + a.lung) / 2, (a.lung - a.mediastinum) / 2
    fall = a.dome * ((distance - middle) / half) ** 2
    return {side: cage * (canvas.outward(side) > 0) * edge(a.diaphragm[side] + fall - y, 0.008) for side in SIDES}


def _normal_chest(
    canvas: _Canvas, anatomy: Anatomy, lungs: dict[str, np.ndarray], heart: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The chest without findings and vessels, the vessels of the lungs, and the ribs."""
    a, y, distance = anatomy, canvas.y, canvas.distance
    air = (lungs["left"] + lungs["right"]) * (1 - 0.93 * heart)
    body = edge(a.chest + 0.05 - distance - np.clip(0.16 - y, 0, 1) * (distance > 0.1), 0.012)
    body *= edge(y - 0.02, 0.01)
    picture = 0.03 + body * (0.60 + 0.05 * canvas.coarse) - 0.42 * air * body
    picture += body * (0.10 * edge(0.075 - distance, 0.012) + 0.05 * heart)
    picture += body * edge(0.035 - distance, 0.008) * (0.05 + 0.025 * np.sin(y * canvas.uniform(82, 100)))  # spine
    picture -= 0.08 * body * edge(0.018 - distance, 0.004) * (y < 0.36)  # trachea
    ribs = _ribs(canvas)
    picture += a.rib_contrast * ribs * body
    _clavicles(canvas, picture, body)
    hilum = np.exp(-(((distance - 0.13) / 0.11) ** 2) - ((y - 0.43) / 0.15) ** 2)
    vessels = air * (hilum * (0.05 + 0.035 * np.clip(canvas.fine, 0, 3)) + 0.010 * canvas.fine)
    if canvas.rng.random() < 0.4:  # gastric bubble
        bubble = ((canvas.u - 0.6 * a.lung) / 0.06) ** 2 + ((y - a.diaphragm["left"] - 0.09) / 0.035) ** 2
        picture -= 0.12 * np.exp(-bubble)
    return picture, vessels, ribs


# Findings. Each brightens or darkens the picture in place and notes its region.


def _heart(canvas: _Canvas, cardiomegaly: Finding | None, view: str) -> tuple[np.ndarray, tuple[float, float]]:
    """Depth inside a tilted ellipse (positive inside, 1 at its centre), and the centre."""
    a = canvas.anatomy
    ratio = a.heart_ratio if cardiomegaly is None else 0.545 + 0.12 * cardiomegaly.severity
    width = 2 * a.lung * (ratio + (0.02 if view == "AP" else 0.0))
    radius_x, radius_y = width / 2, width / 2 * a.heart_aspect
    centre = (0.5 + width * a.heart_shift, a.diaphragm["left"] + 0.02 - 0.75 * radius_y)
    along, across = rotate(canvas.x - centre[0], canvas.y - centre[1], 0.35)
    return 1 - np.sqrt((along / radius_x) ** 2 + (across / radius_y) ** 2), centre


def _pneumothorax(canvas: _Canvas, picture: np.ndarray, finding: Finding, lung: np.ndarray, ribs) -> np.ndarray:
    """Air between the lung and the wall: dark and without vessels, bounded by a thin bright line. Returns what
    remains of the vessels."""
    a, y = canvas.anatomy, canvas.y
    depth = 0.04 + 0.065 * finding.severity
    rise = np.clip((a.widest - y) / (a.widest - a.apex - 1.2 * depth), 0, 1.2)
    inner = (a.lung - depth) * np.sqrt(np.clip(1 - rise * rise, 0, 1)) ** np.float32(0.85) - canvas.distance
    if finding.zone == "apical":
        reach = edge(a.apex + 0.20 + 0.25 * finding.severity - y, 0.03)
    else:
        reach = edge(y - (a.diaphragm[finding.side] - 0.14 - 0.15 * finding.severity), 0.03)
    space = edge(-inner, 0.006) * lung * reach
    picture -= canvas.uniform(0.09, 0.14) * space + 0.05 * ribs * space
    picture += canvas.uniform(0.11, 0.18) * np.exp(-((inner / 0.007) ** 2)) * lung * reach
    canvas.regions.append(Region(finding, finding.side, space > 0.5))
    return 1 - space


def _edema(canvas: _Canvas, picture: np.ndarray, finding: Finding, seen: dict[str, np.ndarray]) -> None:
    """Perihilar haze on both sides."""
    strength = 0.10 + 0.13 * finding.severity
    radius = canvas.uniform(0.10, 0.14), canvas.uniform(0.13, 0.19)
    grain = 1 + 0.45 * canvas.middle + 0.35 * canvas.fine
    for side, lung in seen.items():
        spread = ((canvas.outward(side) - 0.15) / radius[0]) ** 2 + ((canvas.y - 0.45) / radius[1]) ** 2
        picture += strength * np.exp(-spread) * grain * lung
        canvas.regions.append(Region(finding, side, (spread < 0.8) & (lung > 0.3)))


def _consolidation(canvas: _Canvas, picture: np.ndarray, finding: Finding, lung: np.ndarray) -> None:
    """A patch with an uneven border."""
    heights = {"upper": (0.24, 0.33), "mid": (0.42, 0.50), "lower": (0.57, 0.65)}
    x, y = canvas.uniform(0.19, 0.27), canvas.uniform(*heights[finding.zone])
    radius = (
        canvas.uniform(0.065, 0.085) + 0.035 * finding.severity,
        canvas.uniform(0.06, 0.08) + 0.03 * finding.severity,
    )
    out, down = canvas.outward(finding.side) - x, canvas.y - y
    ragged = (out / radius[0]) ** 2 + (down / radius[1]) ** 2 + 0.30 * canvas.middle
    shape = edge(1 - ragged, 0.30)
    picture += (0.14 + 0.16 * finding.severity) * shape * (1 + 0.25 * canvas.fine) * lung
    mask = (ragged < 1) & (lung > 0.3) & (out * out + down * down < 0.04)
    canvas.regions.append(Region(finding, finding.side, mask))


def _atelectasis(canvas: _Canvas, picture: np.ndarray, finding: Finding, lung: np.ndarray) -> None:
    """One or two bands at the base."""
    x, y = canvas.uniform(0.19, 0.27), canvas.anatomy.diaphragm[finding.side] - canvas.uniform(0.04, 0.10)
    length = canvas.uniform(0.065, 0.085) + 0.03 * finding.severity
    thickness = canvas.uniform(0.009, 0.013) + 0.006 * finding.severity
    along, across = rotate(canvas.outward(finding.side) - x, canvas.y - y, canvas.uniform(-0.35, 0.35))
    second = 0.035 if finding.severity > 0.6 else 0.0
    strength = 0.16 + 0.13 * finding.severity
    for offset in {0.0, second}:
        band = edge(length - np.abs(along), 0.01) * np.exp(-(((across + offset) / thickness) ** 2))
        picture += strength * band * lung
    near = (across < thickness + 0.006) & (across > -thickness - 0.006 - second)
    canvas.regions.append(Region(finding, finding.side, (np.abs(along) < length) & near & (lung > 0.3)))


def _nodule(canvas: _Canvas, picture: np.ndarray, finding: Finding, lung: np.ndarray) -> None:
    """A round spot."""
    heights = {"upper": (0.24, 0.34), "mid": (0.40, 0.50), "lower": (0.54, 0.63)}
    radius = 0.028 + 0.026 * finding.severity
    x, y = canvas.uniform(0.17, 0.28), canvas.uniform(*heights[finding.zone])
    distance = np.sqrt((canvas.outward(finding.side) - x) ** 2 + (canvas.y - y) ** 2)
    picture += canvas.uniform(0.20, 0.32) * edge(radius - distance, 0.006) * np.maximum(lung, 0.6)
    canvas.regions.append(Region(finding, finding.side, distance < radius))


def _effusion(canvas: _Canvas, picture: np.ndarray, finding: Finding, lungs, heart: np.ndarray) -> None:
    """Fluid with a meniscus that rises to the wall; on the right a trace of it may run into the fissure."""
    a = canvas.anatomy
    towards_wall = np.clip((canvas.distance - a.mediastinum) / (a.lung - a.mediastinum), 0, 1)
    for side in SIDES if finding.side == "bilateral" else (finding.side,):
        severity = np.clip(finding.severity + canvas.rng.normal(0, 0.1), 0, 1)
        level = a.diaphragm[side] + a.dome - 0.05 - 0.20 * severity
        fluid = edge(canvas.y - (level + 0.05 - 0.10 * towards_wall**2), 0.012) * lungs[side]
        picture += (0.25 + 0.13 * severity) * fluid * (1 - 0.6 * heart)
        if side == "right" and severity > 0.5:
            fissure = np.abs(canvas.y - 0.50 - 0.1 * (canvas.distance - 0.2))
            picture += 0.07 * edge(0.006 - fissure, 0.003) * lungs[side]
        canvas.regions.append(Region(finding, side, (fluid > 0.5) & (heart < 0.6)))


# Everything else.


def _place(rng: np.random.Generator, anatomy: Anatomy, size: int) -> _Canvas:
    """A random position in front of the detector: rotation, scale, shift."""
    x, y = grid(size)
    scale, angle = np.float32(rng.uniform(0.94, 1.08)), rng.normal(0, 0.03)
    shift = rng.normal(0, 0.02, 2).astype(np.float32)
    x, y = rotate((x - 0.5 - shift[0]) / scale, (y - 0.5 - shift[1]) / scale, angle)
    return _Canvas(rng, x + np.float32(0.5), y + np.float32(0.5), anatomy)


def _ribs(canvas: _Canvas) -> np.ndarray:
    a, distance = canvas.anatomy, canvas.distance
    height = (canvas.y - a.rib_phase + 2.2 * a.rib_slope * (distance - 0.1) ** 2 - 0.18 * distance) / a.rib_spacing
    within = (distance < 1.03 * a.lung) & (distance > a.mediastinum) & (canvas.y < 0.86)
    return np.exp(-(((height - np.floor(height) - 0.5) / 0.16) ** 2)) * within


def _clavicles(canvas: _Canvas, picture: np.ndarray, body: np.ndarray) -> None:
    a, distance = canvas.anatomy, canvas.distance
    bar = edge(0.010 - np.abs(canvas.y - a.clavicle + 0.22 * (distance - 0.05)), 0.004)
    picture += 0.08 * bar * ((distance > 0.04) & (distance < 0.95 * a.lung)) * body


def _device(canvas: _Canvas, picture: np.ndarray, kind: str, heart_centre: tuple[float, float]) -> None:
    """A pacemaker, a central venous line or an endotracheal tube, drawn over everything."""
    size, t = len(picture), np.linspace(0, 1, 24)
    if kind == "pacemaker":
        x, y = 0.5 + canvas.uniform(0.20, 0.28), canvas.uniform(0.20, 0.27)
        box = np.maximum(np.abs(canvas.x - x), 1.2 * np.abs(canvas.y - y))
        picture += 0.45 * edge(0.045 - box, 0.004)
        path = np.stack([x + (0.55 - x) * t - 0.05 * np.sin(3.1 * t), y + (heart_centre[1] - y) * t**1.3], axis=1)
        width, strength = 0.012, 0.35
    elif kind == "line":
        side = -1 if canvas.rng.random() < 0.75 else 1
        path = np.stack([0.5 + side * (0.20 * (1 - t) ** 2 + 0.035), 0.13 + 0.28 * t], axis=1)
        width, strength = 0.013, 0.28
    else:
        path = np.stack([np.full_like(t, 0.504), canvas.uniform(0.30, 0.36) * t], axis=1)
        width, strength = 0.014, 0.22
    layer = Image.new("L", (size, size))
    ImageDraw.Draw(layer).line([tuple(p) for p in path * size], fill=255, width=max(1, round(width * size)))
    layer = layer.filter(ImageFilter.GaussianBlur(size / 256))
    picture += np.float32(strength / 255) * np.asarray(layer)


def _expose(canvas: _Canvas, picture: np.ndarray) -> np.ndarray:
    """Leads and a side marker on the skin, then exposure, contrast and noise, to 8 bits."""
    rng, size = canvas.rng, len(picture)
    if rng.random() < 0.25:  # electrodes
        for _ in range(rng.integers(1, 4)):
            x, y = rng.uniform(0.15, 0.85), rng.uniform(0.2, 0.8)
            rows, columns = (slice(max(0, int((c - 0.012) * size)), int((c + 0.012) * size) + 1) for c in (y, x))
            picture[rows, columns] += 0.3
    if rng.random() < 0.5:  # side marker
        picture[int(0.05 * size) : int(0.09 * size), int(0.04 * size) : int(0.075 * size)] += 0.6
    gamma, gain, offset = rng.uniform(0.8, 1.25), rng.uniform(0.8, 1.15), rng.uniform(-0.05, 0.06)
    picture = np.clip(picture, 0, 1.2) ** np.float32(gamma) * np.float32(gain) + np.float32(offset)
    picture += np.float32(0.03 * rng.uniform()) * canvas.coarse
    noise = np.float32(rng.uniform(0.012, 0.04))
    picture += noise * rng.standard_normal(picture.shape, dtype=np.float32)
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8)
