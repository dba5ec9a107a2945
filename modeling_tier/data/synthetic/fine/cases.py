# Licensed under the Apache License, Version 2.0.
"""Which findings and devices the studies of a subject have in the fine drawings."""

from dataclasses import replace

import numpy as np

from ..phantom import Finding
from .devices import DEVICES
from .findings import ZONES


def sample_findings(rng: np.random.Generator) -> list[Finding]:
    """
    Findings and devices that occur together as they would: heart failure brings a large heart, edema and effusions;
    infection brings consolidation; an effusion brings atelectasis; a trauma brings fractures with a pneumothorax; a
    patient in intensive care has tubes and lines, not all where they should be. Two in five have no finding.
    """
    if rng.random() < 0.22:
        return _devices(rng, intensive=False)
    failure, infection, trauma = rng.random() < 0.20, rng.random() < 0.25, rng.random() < 0.10
    intensive = rng.random() < 0.22
    found = []

    def add(name: str, chance: float, side: str | None = None, zone: str | None = None) -> bool:
        drawn = rng.random() < chance
        severity = float(rng.uniform())
        if drawn:
            found.append(Finding(name, severity, side, zone))
        return drawn

    add("Cardiomegaly", 0.70 if failure else 0.10)
    add("Edema", 0.65 if failure else 0.03, "bilateral")
    chances = [0.3, 0.3, 0.4] if failure else [0.45, 0.45, 0.1]
    side = str(rng.choice(["left", "right", "bilateral"], p=chances))
    layering = "layering" if rng.random() < (0.4 if intensive else 0.05) else None
    effusion = add("Pleural Effusion", 0.55 if failure else 0.30 if infection else 0.10, side, layering)
    side, zone = _side(rng), str(rng.choice(ZONES, p=[0.30, 0.30, 0.40]))
    if add("Consolidation", 0.80 if infection else 0.04, side, zone):
        other = "left" if side == "right" else "right"
        add("Consolidation", 0.2, other, str(rng.choice(ZONES, p=[0.30, 0.30, 0.40])))
    side = _side(rng)
    if add("Atelectasis", 0.35 if effusion else 0.14, side, "lower"):
        add("Atelectasis", 0.2, "left" if side == "right" else "right", "lower")
    side = _side(rng)
    fractured = add("Fracture", 0.65 if trauma else 0.03, side, str(rng.choice(ZONES)))
    side = side if fractured else _side(rng)
    add("Pneumothorax", 0.5 if trauma else 0.11, side, str(rng.choice(["apical", "basal"], p=[0.75, 0.25])))
    side, zone = _side(rng), str(rng.choice(ZONES))
    if add("Lung Lesion", 0.14, side, zone):
        add("Lung Lesion", 0.2, "left" if side == "right" else "right", str(rng.choice(ZONES)))
    add("Hernia", 0.07)
    add("Enlarged Cardiomediastinum", 0.20 if trauma else 0.06)
    devices = _devices(rng, intensive)
    if any(device.zone == "endotracheal tube" for device in devices):
        add("Malpositioned Tube", 0.4)
    return _apart(found) + devices


def follow_up(rng: np.random.Generator, before: list[Finding]) -> list[Finding]:
    """Half of the earlier findings stay where they were, with another severity; new ones may come."""
    staying = [finding for finding in before if finding.name not in _TUBES and rng.random() < 0.5]
    after = [replace(finding, severity=float(rng.uniform())) for finding in staying]
    names = {finding.name for finding in after}
    fresh = sample_findings(rng)
    new = [f for f in fresh if f.name in _TUBES or (f.name not in names and rng.random() < 0.7)]
    return _apart(after + new)


# What goes with each other is taken from one study.
_TUBES = ("Support Devices", "Malpositioned Tube")
_PARENCHYMAL = ("Consolidation", "Lung Lesion")


def _apart(findings: list[Finding]) -> list[Finding]:
    """
    No air at the base of a lung under an effusion of that side, and below air at its apex no consolidation or lesion
    of the upper zone: the air rises to the apex, the opacity lies in the mid zone.
    """
    fluid = {f.side for f in findings if f.name == "Pleural Effusion"}
    sides = {"left", "right"} if "bilateral" in fluid else fluid
    findings = [replace(f, zone="apical") if f.name == "Pneumothorax" and f.side in sides else f for f in findings]
    air = {f.side for f in findings if f.name == "Pneumothorax" and f.zone == "apical"}
    return [
        replace(f, zone="mid") if f.name in _PARENCHYMAL and f.zone == "upper" and f.side in air else f
        for f in findings
    ]


def _side(rng: np.random.Generator) -> str:
    return str(rng.choice(["left", "right"]))


def _devices(rng: np.random.Generator, intensive: bool) -> list[Finding]:
    chances = (0.65, 0.6, 0.08, 0.5) if intensive else (0.02, 0.06, 0.07, 0.02)
    drawn = [name for name, chance in zip(DEVICES, chances) if rng.random() < chance]
    return [Finding("Support Devices", zone=name) for name in drawn]
