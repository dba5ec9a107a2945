# Licensed under the Apache License, Version 2.0.
"""Reports of the drawn radiographs: varied wording, laterality, severity, negations and irrelevant sentences."""

from typing import NamedTuple

import numpy as np

from .phantom import Finding


class Report(NamedTuple):
    findings: str
    impression: str


_SEVERITIES = {
    "Cardiomegaly": ("mild", "moderate", "marked"),
    "Pleural Effusion": ("small", "moderate", "large"),
    "Consolidation": ("faint", "patchy", "dense"),
    "Atelectasis": ("minimal", "mild", "moderate"),
    "Pneumothorax": ("small", "moderate", "large"),
    "Edema": ("mild", "moderate", "severe"),
    "Nodule": ("small", "rounded", "large"),
}

_POSITIVE = {
    "Cardiomegaly": (
        "There is {severity} cardiomegaly.",
        "The heart is {severity}ly enlarged.",
        "{severity} enlargement of the cardiac silhouette.",
        "The cardiac silhouette is {severity}ly enlarged.",
        "Cardiomegaly is present.",
        "Enlarged heart.",
    ),
    "Pleural Effusion": (
        "{severity} {side} pleural effusion.",
        "There is a {severity} {side} pleural effusion.",
        "{severity} {side} sided effusion.",
        "Blunting of the {side} costophrenic angle consistent with pleural effusion.",
        "{side} pleural fluid is present.",
        "Pleural effusion on the {side}.",
    ),
    "Consolidation": (
        "{severity} consolidation in the {side} {zone} zone.",
        "{side} {zone} lobe consolidation.",
        "There is a {severity} airspace opacity in the {side} {zone} lung.",
        "{severity} {side} {zone} lung opacity concerning for pneumonia.",
        "Focal consolidation in the {side} {zone} lobe suggesting pneumonia.",
    ),
    "Atelectasis": (
        "{severity} {side} basilar atelectasis.",
        "Linear atelectasis at the {side} base.",
        "{side} basal linear opacity consistent with atelectasis.",
        "There is {severity} atelectasis at the {side} lung base.",
        "Band like {side} basilar atelectasis.",
    ),
    "Pneumothorax": (
        "{severity} {side} {zone} pneumothorax.",
        "There is a {severity} {side} pneumothorax.",
        "{side} pneumothorax is present.",
        "{severity} pneumothorax on the {side}.",
        "{side} {zone} pneumothorax with visible pleural line.",
    ),
    "Edema": (
        "{severity} pulmonary edema.",
        "There is {severity} pulmonary edema.",
        "Bilateral perihilar haze consistent with edema.",
        "Perihilar opacities compatible with pulmonary edema.",
        "{severity} interstitial edema is present.",
    ),
    "Nodule": (
        "{severity} nodule in the {side} {zone} lung.",
        "There is a {severity} pulmonary nodule in the {side} {zone} zone.",
        "{side} {zone} lung nodule.",
        "Nodular density in the {side} {zone} zone.",
        "A {side} {zone} zone pulmonary nodule is seen.",
    ),
}

_BILATERAL_EFFUSION = (
    "{severity} bilateral pleural effusions.",
    "There are {severity} bilateral pleural effusions.",
    "Bilateral pleural fluid is present.",
    "Blunting of both costophrenic angles consistent with pleural effusions.",
)

_DEVICES = {
    "pacemaker": ("Left chest wall pacemaker in place.", "Pacemaker leads in standard position."),
    "line": ("Central venous catheter in place.", "Central line tip in the superior vena cava."),
    "tube": ("Endotracheal tube in satisfactory position.", "Endotracheal tube tip above the carina."),
}

# How often an absent finding is denied, and how.
_NEGATIVE = {
    "Cardiomegaly": (
        0.6,
        (
            "Heart size is normal.",
            "No cardiomegaly.",
            "The cardiac silhouette is within normal limits.",
            "Cardiomediastinal silhouette is unremarkable.",
            "The heart is not enlarged.",
        ),
    ),
    "Pleural Effusion": (
        0.6,
        (
            "No pleural effusion.",
            "There is no pleural effusion.",
            "Costophrenic angles are sharp.",
            "No evidence of pleural effusion.",
            "The pleural spaces are clear of fluid.",
        ),
    ),
    "Consolidation": (
        0.5,
        (
            "No focal consolidation.",
            "No evidence of pneumonia.",
            "There is no airspace consolidation.",
            "No focal airspace opacity.",
            "No consolidation is seen.",
        ),
    ),
    "Atelectasis": (0.35, ("No atelectasis.", "No evidence of atelectasis.", "No basilar atelectasis is seen.")),
    "Pneumothorax": (
        0.6,
        (
            "No pneumothorax.",
            "There is no pneumothorax.",
            "No evidence of pneumothorax.",
            "No pneumothorax is seen.",
        ),
    ),
    "Edema": (
        0.4,
        (
            "No pulmonary edema.",
            "No evidence of pulmonary edema.",
            "Pulmonary vasculature is normal.",
            "There is no edema.",
        ),
    ),
    "Nodule": (0.3, ("No pulmonary nodule.", "No suspicious nodule.", "No nodule or mass is seen.")),
}

_NORMAL = ("No acute cardiopulmonary abnormality.", "Normal chest radiograph.", "The lungs are clear.")

_NORMAL_IMPRESSION = (
    "No acute cardiopulmonary process.",
    "No acute cardiopulmonary abnormality.",
    "Normal chest radiograph.",
    "No acute findings.",
)

_IRRELEVANT = (
    "Comparison is made to the prior study.",
    "Osseous structures are intact.",
    "The patient is rotated.",
    "Clinical correlation is recommended.",
    "Upper abdomen is unremarkable.",
    "No displaced rib fracture.",
    "Findings were discussed with the referring team.",
)

_SUMMARY = {
    "Cardiomegaly": "{severity} cardiomegaly.",
    "Pleural Effusion": "{severity} {side} pleural effusion.",
    "Consolidation": "{side} {zone} lung consolidation, concerning for pneumonia.",
    "Atelectasis": "{side} basilar atelectasis.",
    "Pneumothorax": "{severity} {side} pneumothorax.",
    "Edema": "{severity} pulmonary edema.",
    "Nodule": "{side} {zone} lung nodule.",
}

_PHRASE = {
    "Cardiomegaly": "There is cardiomegaly.",
    "Pleural Effusion": "{side} pleural effusion.",
    "Consolidation": "{side} {zone} lobe consolidation.",
    "Atelectasis": "{side} basilar atelectasis.",
    "Pneumothorax": "{side} pneumothorax.",
    "Edema": "There is pulmonary edema.",
    "Nodule": "{side} {zone} lung nodule.",
}


def write_report(rng: np.random.Generator, findings: list[Finding], view: str, omission: float = 0.05) -> Report:
    """
    The report of one study.

    Args:
        rng: source of the choice and the order of the sentences.
        findings: what was drawn.
        view: "PA" or "AP", sometimes named.
        omission: chance that the FINDINGS section passes over a finding, as readers do.
    """

    def pick(sentences: tuple[str, ...]) -> str:
        return str(sentences[rng.integers(len(sentences))])

    by_name = {finding.name: finding for finding in findings}
    sentences = []
    for name, templates in _POSITIVE.items():
        finding = by_name.get(name)
        chance, denials = _NEGATIVE[name]
        if finding is None and rng.random() < chance:
            sentences.append(pick(denials))
        elif finding is not None and rng.random() >= omission:
            both = name == "Pleural Effusion" and finding.side == "bilateral"
            sentences.append(_fill(pick(_BILATERAL_EFFUSION if both else templates), finding))
    if "Support Devices" in by_name:
        sentences.append(pick(_DEVICES[by_name["Support Devices"].zone]))
    drawn = [finding for finding in findings if finding.name in _POSITIVE]
    if not drawn and rng.random() < 0.6:
        sentences.append(pick(_NORMAL))
    if rng.random() < 0.4:
        sentences.append(pick(_IRRELEVANT))
    if rng.random() < 0.2 or not sentences:
        sentences.append(f"Single {view} view of the chest.")
    rng.shuffle(sentences)
    return Report(findings=" ".join(sentences), impression=_impression(rng, drawn))


def region_phrase(finding: Finding, side: str | None) -> str:
    """A sentence that names one region of a finding, for grounding."""
    return _fill(_PHRASE[finding.name], finding, side)


def _impression(rng: np.random.Generator, findings: list[Finding]) -> str:
    if not findings:
        return str(_NORMAL_IMPRESSION[rng.integers(len(_NORMAL_IMPRESSION))])
    sentences = [_fill(_SUMMARY[finding.name], finding) for finding in findings]
    rng.shuffle(sentences)
    if len(sentences) > 1 and rng.random() < 0.5:
        return " ".join(f"{i}. {sentence}" for i, sentence in enumerate(sentences, 1))
    return " ".join(sentences)


def _fill(template: str, finding: Finding, side: str | None = None) -> str:
    words = _SEVERITIES[finding.name]
    severity = words[min(int(finding.severity * len(words)), len(words) - 1)]
    sentence = template.format(severity=severity, side=side or finding.side, zone=finding.zone)
    return sentence[0].upper() + sentence[1:]
