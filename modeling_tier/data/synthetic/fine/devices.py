# Licensed under the Apache License, Version 2.0.
"""Tubes, lines, pacemakers and what else lies on or in the chest of the fine drawings."""

import numpy as np

from ..phantom import SIDES, Finding, Region
from .canvas import Layer
from .chest import Chest


DEVICES = ("endotracheal tube", "central line", "pacemaker", "enteric tube")


def draw_devices(chest: Chest, findings: list[Finding]) -> None:
    """The devices among the findings, then what reports pass over: electrodes, sternal wires, a side marker."""
    canvas, layer, thin = chest.canvas, chest.canvas.layer(), chest.canvas.layer()
    low = next((finding for finding in findings if finding.name == "Malpositioned Tube"), None)
    for finding in findings:
        if finding.name == "Support Devices":
            rng = canvas.stream("device", finding.zone)
            if finding.zone == "endotracheal tube":
                _endotracheal_tube(chest, thin, low, rng)
            else:
                _DRAW[finding.zone](chest, thin if finding.zone != "pacemaker" else layer, rng)
    _draw_distractors(chest, thin, layer)
    canvas.picture += np.float32(0.30) * thin.array() + np.float32(0.55) * layer.array()


def _endotracheal_tube(chest: Chest, layer: Layer, low: Finding | None, rng: np.random.Generator) -> None:
    """Two walls and a marker line down to its tip: well above the carina, or in the right main bronchus."""
    carina = chest.anatomy.carina
    u, y = np.array([0.0, 0.003, 0.0]), np.array([-0.05, 0.1, carina - rng.uniform(0.06, 0.085)])
    if low is not None:
        depth = 0.020 + 0.03 * low.severity
        u, y = np.array([0.0, 0.003, -0.003, -0.004 - depth]), np.array([-0.05, 0.1, carina - 0.005, carina + depth])
        far = np.hypot(chest.canvas.u - u[-1], chest.canvas.y - (y[-1] - 0.005))
        chest.canvas.regions.append(Region(low, None, far < 0.042))
    layer.line(u, y, 0.024, 190)
    layer.line(u, y, 0.013, 70)
    layer.line(u + 0.004, y, 0.005, 255)


def _central_line(chest: Chest, layer: Layer, rng: np.random.Generator) -> None:
    """From the neck or under the clavicle to its tip in the superior vena cava."""
    a, tip = chest.anatomy, chest.anatomy.carina + rng.uniform(0.03, 0.07)
    if rng.random() < 0.5:  # jugular
        u, y = [-0.085, -0.075, -0.05, -0.042, -0.042], [-0.03, a.apex - 0.02, a.apex + 0.08, a.carina, tip]
    elif rng.random() < 0.6:
        u, y = [-0.30, -0.20, -0.09, -0.045, -0.042], np.array([0.03, -0.01, 0.0, 0.06, 0.0]) + a.clavicle
        y[-1] = tip
    else:
        u, y = [0.28, 0.18, 0.08, -0.02, -0.042, -0.042], np.array([0.03, -0.01, 0.0, 0.05, 0.09, 0.0]) + a.clavicle
        y[-1] = tip
    layer.curve(u, y, 0.008)
    layer.disc(u[-1], tip, 0.007, 255)


def _pacemaker(chest: Chest, layer: Layer, rng: np.random.Generator) -> None:
    """A generator below the left clavicle, one lead in the right ventricle, often one in the right atrium."""
    a = chest.anatomy
    u, y = rng.uniform(0.24, 0.29), a.clavicle + rng.uniform(0.05, 0.08)
    bottom = a.diaphragm["left"]
    leads = [
        (
            np.array([u, 0.16, 0.05, -0.04, -0.045, 0.0, 0.085]),
            np.array(
                [y, y - 0.075, a.clavicle + 0.02, a.clavicle + 0.09, bottom - 0.15, bottom - 0.02, bottom - 0.015]
            ),
        )
    ]
    if rng.random() < 0.6:
        leads.append(
            (
                np.array([u, 0.17, 0.05, -0.035, -0.055, -0.075]),
                np.array([y, y - 0.06, a.clavicle + 0.03, a.clavicle + 0.10, bottom - 0.17, bottom - 0.20]),
            )
        )
    for points in leads:
        layer.curve(*points, 0.006, 140)
        layer.disc(points[0][-1], points[1][-1], 0.007, 200)
    box_u, box_y = (
        np.array([-0.045, 0.03, 0.045, 0.045, 0.02, -0.045]),
        np.array([-0.038, -0.04, -0.02, 0.02, 0.04, 0.03]),
    )
    layer.polygon(u + box_u, y + box_y, 255)
    layer.polygon(u + 0.6 * box_u, y + 0.6 * box_y - 0.004, 195)


def _enteric_tube(chest: Chest, layer: Layer, rng: np.random.Generator) -> None:
    """Along the oesophagus into the stomach."""
    bottom = chest.anatomy.diaphragm["left"]
    u = np.array([0.008, 0.012, 0.015, 0.02, 0.05, 0.11, 0.16])
    y = np.array([-0.05, 0.2, 0.5, bottom, bottom + 0.07, bottom + 0.12, bottom + 0.13])
    layer.curve(u, y, 0.007, 230)


def _draw_distractors(chest: Chest, thin: Layer, layer: Layer) -> None:
    canvas, a = chest.canvas, chest.anatomy
    rng = canvas.stream("electrodes")
    if rng.random() < 0.35:
        for side in rng.permutation(["left", "right", "left"])[: rng.integers(1, 4)]:
            u, y = SIDES[str(side)] * rng.uniform(0.20, 0.36), rng.uniform(0.22, 0.75)
            end = np.array([u, u + SIDES[str(side)] * rng.uniform(0.02, 0.10), SIDES[str(side)] * 0.6])
            thin.line(end, np.array([y, y + rng.uniform(0.03, 0.10), y + rng.uniform(0.05, 0.3)]), 0.004, 130)
            layer.disc(u, y, 0.013, 150)
            layer.disc(u, y, 0.006, 230)
    rng = canvas.stream("sternal wires")
    if rng.random() < 0.10:
        for y in np.linspace(a.carina - 0.06, a.carina + 0.22, 5):
            turn, slant = canvas.turn, rng.uniform(-0.006, 0.006)
            thin.line(np.array([-0.014, 0.0, 0.014]) + turn, np.array([y, y - 0.009 + slant, y]), 0.005, 255)
    rng = canvas.stream("marker")
    if rng.random() < 0.6:
        _side_marker(layer, str(rng.choice(["left", "right"])), rng.uniform(0.37, 0.43), rng.uniform(0.035, 0.07))


def _side_marker(layer: Layer, side: str, across: float, y: float) -> None:
    """The letter of the patient's side, on that side."""
    u, s = SIDES[side] * across, 0.022
    if side == "left":
        layer.line(u + s * np.array([-0.4, -0.4, 0.5]), y + s * np.array([-1.0, 1.0, 1.0]), 0.011)
    else:
        points = np.array([[-0.5, 1.0], [-0.5, -1.0], [0.4, -0.9], [0.4, 0.0], [-0.5, 0.0], [0.1, 0.0], [0.6, 1.0]])
        layer.line(u + s * points[:, 0], y + s * points[:, 1], 0.009)


_DRAW = {"central line": _central_line, "pacemaker": _pacemaker, "enteric tube": _enteric_tube}
