# Licensed under the Apache License, Version 2.0.
"""
The findings of the fine drawings. Each changes the picture and notes its ground-truth region.

How each looks follows public descriptions of frontal radiographs: fluid with a meniscus that rises to the wall and
blunts the costophrenic angle first; air without vessels outside of a thin pleural line; airspace opacity that ends at
a fissure and leaves air in the bronchi; perihilar haze on both sides with lines at the bases.
"""

import math

import numpy as np

from ..phantom import SIDES, Finding, Region
from ..shapes import rotate
from .chest import Chest, wall_at


FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Hernia",
    "Lung Lesion",
    "Malpositioned Tube",
    "Pleural Effusion",
    "Pneumothorax",
)
"""In the words of CheXpert, where it has one; "Hernia" is ChestX-ray14's, "Malpositioned Tube" ours."""

ZONES = ("upper", "mid", "lower")
# Where the centre of a finding in a zone lies, as a fraction of the height from the apex to the diaphragm.
_HEIGHTS = {"upper": (0.16, 0.27), "mid": (0.44, 0.56), "lower": (0.76, 0.86)}


def heart_ratio(findings: list[Finding], normal: float, view: str) -> float:
    """Cardiothoracic ratio. A heart that is nearer to the tube looks wider."""
    large = [0.56 + 0.11 * finding.severity for finding in findings if finding.name == "Cardiomegaly"]
    return max(large, default=normal) + (0.015 if view == "AP" else 0.0)


def widening(findings: list[Finding]) -> float:
    """By how much the upper mediastinum is wider than normal, on each side."""
    wide = [0.035 + 0.035 * finding.severity for finding in findings if finding.name == "Enlarged Cardiomediastinum"]
    return max(wide, default=0.0)


def draw_findings(chest: Chest, findings: list[Finding]) -> None:
    """All but those that the chest was drawn with, whose regions are noted, and the tubes."""
    by_name: dict[str, list[Finding]] = {}
    for finding in findings:
        by_name.setdefault(finding.name, []).append(finding)
    vessels = chest.vessels * (chest.aerated("left", 0.25) + chest.aerated("right", 0.25))
    for finding in by_name.get("Pneumothorax", ()):
        vessels *= 1 - _pneumothorax(chest, finding)
    chest.canvas.picture += np.float32(0.15) * vessels
    for name, draw in _DRAW.items():
        for finding in by_name.get(name, ()):
            draw(chest, finding, chest.canvas.stream(finding.name, finding.side, finding.zone))


def _note(chest: Chest, finding: Finding, side: str | None, mask: np.ndarray) -> None:
    if mask.any():
        chest.canvas.regions.append(Region(finding, side, mask))


def _cardiomegaly(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    _note(chest, finding, None, chest.heart > 0)


def _mediastinum(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    carina, y = chest.anatomy.carina, chest.canvas.y
    _note(chest, finding, None, (chest.mediastinum > 0) & (np.abs(y - carina + 0.02) < 0.125))


def _pneumothorax(chest: Chest, finding: Finding) -> np.ndarray:
    """Air between the lung and the wall: darker, without vessels, inside of it a thin line. Returns where it is."""
    canvas, a, y = chest.canvas, chest.anatomy, chest.canvas.y
    rng = canvas.stream(finding.name, finding.side, finding.zone)
    depth = 0.035 + 0.085 * finding.severity
    if finding.zone == "apical":
        inner = wall_at(a, y, a.lung - 0.8 * depth, a.apex + 1.3 * depth)
        reach = canvas.edge(a.apex + 0.20 + 0.25 * finding.severity - y, 0.02)
    else:
        inner = chest.wall - depth * np.clip((y - a.apex - 0.20 + 0.1 * finding.severity) / 0.25, 0, 1)
        reach = canvas.edge(y - a.apex - 0.25, 0.02)
    lung = chest.lungs[finding.side] * reach * (1 - chest.covered)
    space = canvas.edge(chest.canvas.distance - inner) * lung
    line = np.exp(-(((canvas.distance - inner) / max(0.0045, 0.4 / canvas.size)) ** 2)) * lung
    canvas.picture -= np.float32(rng.uniform(0.07, 0.10)) * space + np.float32(0.03) * chest.ribs * space
    canvas.picture += np.float32(rng.uniform(0.16, 0.22)) * line
    _note(chest, finding, finding.side, space > 0.5)
    return space


def _edema(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Haze around both hila, spreading with severity, and short lines at the lateral bases."""
    canvas, a = chest.canvas, chest.anatomy
    strength = 0.13 + 0.12 * finding.severity
    across, down = 0.095 + 0.05 * finding.severity, 0.13 + 0.05 * finding.severity
    grain = 1 + 0.30 * canvas.middle + 0.30 * canvas.fine
    lines = canvas.layer()
    for side, sign in SIDES.items():
        spread = ((canvas.outward(side) - 0.16) / across) ** 2 + ((canvas.y - a.hilum[side] - 0.02) / down) ** 2
        canvas.picture += strength * np.exp(-0.7 * spread * spread) * grain * chest.aerated(side)
        for y in np.arange(a.base - 0.10, a.base - 0.01, 0.014) + rng.uniform(-0.003, 0.003):
            outer = float(wall_at(a, y)) - 0.004
            lines.line(sign * np.array([outer, outer - rng.uniform(0.02, 0.035)]), np.array([y, y - 0.004]), 0.004)
        _note(chest, finding, side, (spread < 1.0) & (chest.aerated(side) > 0.5))
    canvas.picture += (0.06 + 0.08 * finding.severity) * lines.array()


def _consolidation(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Opacity with an uneven border that ends at the fissure of its lobe, with dark bronchi in it."""
    canvas, side = chest.canvas, finding.side
    across, y = chest.point(side, rng.uniform(0.35, 0.65), rng.uniform(*_HEIGHTS[finding.zone]))
    wide = rng.uniform(0.075, 0.10) + 0.03 * finding.severity
    high = rng.uniform(0.065, 0.085) + 0.02 * finding.severity
    out, down = canvas.outward(side) - across, canvas.y - y
    ragged = (out / wide) ** 2 + (down / high) ** 2 + np.float32(0.28) * canvas.middle
    lung = chest.aerated(side, 0.4) * _zone(chest, side, finding.zone)
    shape = canvas.edge(1 - ragged, 0.20) * lung
    bronchi = np.clip(1 - 0.8 * chest.vessels, 0, 1)
    canvas.picture += (0.17 + 0.15 * finding.severity) * shape * bronchi * (1 + 0.15 * canvas.fine)
    _note(chest, finding, side, (ragged < 1) & (lung > 0.35) & (out * out + down * down < 0.04))


def _zone(chest: Chest, side: str, zone: str) -> np.ndarray:
    """1 within a third of the height of a lung; the border of upper and middle lobe is as sharp as a fissure."""
    a, y = chest.anatomy, chest.canvas.y
    height = a.diaphragm[side] - a.apex
    upper, lower = a.apex + 0.36 * height, a.apex + 0.64 * height
    slope = 0.15 * (chest.canvas.distance - 0.2)
    if zone == "upper":
        return chest.canvas.edge(upper + slope - y)
    if zone == "mid":
        return chest.canvas.edge(y - upper - slope) * chest.canvas.edge(lower + slope - y, 0.01)
    return chest.canvas.edge(y - lower - slope, 0.01)


def _atelectasis(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Flat bands at the base of a lung; the more severe, the more and the thicker."""
    canvas, side = chest.canvas, finding.side
    number = 1 + round(1.4 * finding.severity)
    across, y = chest.point(side, rng.uniform(0.40, 0.6), rng.uniform(0.86, 0.92))
    length = 0.075 + 0.035 * finding.severity
    thickness = 0.010 + 0.005 * finding.severity
    along, over = rotate(canvas.outward(side) - across, canvas.y - y, float(rng.uniform(-0.25, 0.30)))
    over = over + 1.5 * along * along
    lung = chest.aerated(side, 0.5)
    near = np.zeros(over.shape, bool)
    for i in range(number):
        apart = over + np.float32(i * (0.030 + 1.2 * thickness))
        tapered = thickness * np.sqrt(np.clip(1 - (along / length) ** 2, 0, 1)) + 0.0005
        band = canvas.edge(tapered - np.abs(apart), 0.002) * canvas.edge(length - np.abs(along), 0.004)
        canvas.picture += np.float32(0.19 + 0.09 * finding.severity) * band * lung
        near |= (np.abs(apart) < thickness + 0.008) & (np.abs(along) < length)
    if number > 1:  # one region around all
        near |= (np.abs(along) < 0.8 * length) & (over < 0) & (over > -(number - 1) * (0.030 + 1.2 * thickness))
    _note(chest, finding, side, near & (lung > 0.3))


def _lesion(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """A nodule, or from two thirds of the severity on a mass with a lobed border."""
    canvas, side = chest.canvas, finding.side
    radius = 0.024 + 0.030 * finding.severity if finding.severity < 2 / 3 else 0.030 + 0.05 * finding.severity
    across, y = chest.point(side, rng.uniform(0.40, 0.75), rng.uniform(*_HEIGHTS[finding.zone]))
    out, down = canvas.outward(side) - np.float32(across), canvas.y - np.float32(y)
    far = np.hypot(out, down)
    if finding.severity >= 2 / 3:
        angle = np.arctan2(down, out)
        far = far * (1 + 0.05 * np.sin(3 * angle + rng.uniform(0, 6)) + 0.025 * np.sin(5 * angle + rng.uniform(0, 6)))
    depth = np.sqrt(np.clip(1 - (far / radius) ** 2, 0, 1))
    shape = canvas.edge(radius - far, 0.0025) * (0.75 + 0.25 * depth)
    canvas.picture += np.float32(rng.uniform(0.22, 0.30)) * shape * np.maximum(chest.aerated(side), 0.5)
    _note(chest, finding, side, far < radius)


def _effusion(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Fluid: from a blunted costophrenic angle to half of the lung; or lying flat behind it, a veil over the base."""
    canvas, a = chest.canvas, chest.anatomy
    for side in SIDES if finding.side == "bilateral" else (finding.side,):
        severity = float(np.clip(finding.severity + (rng.normal(0, 0.06) if finding.side == "bilateral" else 0), 0, 1))
        lung = chest.lungs[side] * (1 - 0.92 * chest.covered)
        lateral = np.clip((canvas.distance - 0.08) / (a.lung - 0.08), 0, 1)
        if finding.zone == "layering":
            top = a.hilum[side] + 0.05 - 0.10 * severity
            veil = np.clip((canvas.y - top) / 0.20, 0, 1) * lung
            canvas.picture += np.float32(0.20 + 0.12 * severity) * veil
            _note(chest, finding, side, veil > 0.33)
            continue
        angle = a.diaphragm[side] + a.dome
        level = angle - 0.10 - 0.32 * severity**1.2
        surface = level + (0.05 + 0.05 * severity) * (1 - lateral**3)
        fluid = canvas.edge(canvas.y - surface, 0.004) * lung
        canvas.picture += np.float32(0.38 + 0.05 * severity) * fluid
        if side == "right" and severity > 0.5:  # a trace in the fissure
            fissure = np.abs(canvas.y - a.hilum[side] - 0.03 - 0.12 * (canvas.distance - 0.2))
            trace = canvas.edge(0.005 - fissure) * lung * (canvas.y < surface)
            canvas.picture += np.float32(0.07) * trace
        _note(chest, finding, side, (fluid > 0.3) & (chest.lungs[side] > 0.5) & (chest.covered < 0.5))


def _fracture(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """A gap and a step in the lateral part of a rib."""
    canvas, a, side = chest.canvas, chest.anatomy, finding.side
    _, y = chest.point(side, 0.5, rng.uniform(*_HEIGHTS[finding.zone]))
    across = float(wall_at(a, y)) - rng.uniform(0.05, 0.07)
    # The posterior rib that is next to this height.
    curve = (across - 0.10) ** 2 - 0.02 + a.rib_phase
    y = (math.floor((y - curve) / a.rib_spacing) + 0.5) * a.rib_spacing + curve
    along, over = rotate(canvas.outward(side) - np.float32(across), canvas.y - np.float32(y), 2 * (across - 0.10))
    half = 0.19 * a.rib_spacing
    step = 0.022 + 0.010 * finding.severity
    window = canvas.edge(0.055 - np.abs(along), 0.004)
    whole = canvas.edge(half - np.abs(over), 0.0015) * window
    side_of_gap = (along > 0).astype(np.float32) - np.float32(0.5)
    broken = canvas.edge(half - np.abs(over - np.float32(step) * side_of_gap), 0.0015) * window
    broken *= canvas.edge(np.abs(along) - 0.007, 0.0015)
    canvas.picture += np.float32(0.26) * broken - np.float32(0.9 * a.rib_contrast) * whole
    _note(chest, finding, side, (np.abs(along) < 0.06) & (np.abs(over) < half + 0.5 * step + 0.006))


def _hernia(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """The stomach behind the heart: a ring with air above a level."""
    canvas, a = chest.canvas, chest.anatomy
    radius = 0.055 + 0.025 * finding.severity
    u, y = rng.uniform(0.01, 0.035), a.diaphragm["left"] + 0.01 - radius * rng.uniform(0.6, 0.9)
    far = np.hypot((canvas.u - np.float32(u)) / 1.15, canvas.y - np.float32(y))
    inside = canvas.edge(radius - far, 0.0025)
    wall = np.exp(-(((far - radius) / 0.006) ** 2))
    air = canvas.edge(radius - 0.006 - far, 0.0025) * canvas.edge(y + 0.25 * radius - canvas.y)
    canvas.picture += np.float32(0.07) * wall - np.float32(0.27) * air + np.float32(0.03) * (inside - air)
    _note(chest, finding, None, far < radius)


_DRAW = {
    "Cardiomegaly": _cardiomegaly,
    "Enlarged Cardiomediastinum": _mediastinum,
    "Edema": _edema,
    "Consolidation": _consolidation,
    "Atelectasis": _atelectasis,
    "Lung Lesion": _lesion,
    "Pleural Effusion": _effusion,
    "Hernia": _hernia,
    "Fracture": _fracture,
}
