# Licensed under the Apache License, Version 2.0.
"""
Reports of the fine drawings: FINDINGS of several sentences in varied order and wording (what is there, with side,
level and size; what is not; devices; and what does not depend on what is drawn), and a shorter IMPRESSION.
"""

import numpy as np

from ..phantom import Finding
from ..reports import Report


SIZES = {
    "Atelectasis": ("minimal", "mild", "moderate"),
    "Cardiomegaly": ("mild", "moderate", "severe"),
    "Consolidation": ("faint", "patchy", "dense"),
    "Edema": ("mild", "moderate", "severe"),
    "Enlarged Cardiomediastinum": ("mild", "moderate", "marked"),
    "Fracture": ("mildly displaced", "displaced", "markedly displaced"),
    "Hernia": ("small", "moderate", "large"),
    "Lung Lesion": ("small nodule", "nodule", "mass"),
    "Malpositioned Tube": ("just below the carina", "too low", "far too low"),
    "Pleural Effusion": ("small", "moderate", "large"),
    "Pneumothorax": ("small", "moderate", "large"),
}
_LOBES = {
    ("right", "upper"): "upper lobe",
    ("right", "mid"): "middle lobe",
    ("right", "lower"): "lower lobe",
    ("left", "upper"): "upper lobe",
    ("left", "mid"): "lingula",
    ("left", "lower"): "lower lobe",
}

# {size}, {side}, {zone} and {lobe} are those of the finding.
_POSITIVE = {
    "Atelectasis": (
        "{size} {side} basilar atelectasis.",
        "Linear atelectasis at the {side} lung base.",
        "Bandlike opacity at the {side} base, likely atelectasis.",
        "There is {size} atelectasis at the {side} base.",
        "Streaky {side} basal opacity reflects atelectasis.",
    ),
    "Cardiomegaly": (
        "There is {size} cardiomegaly.",
        "{size} enlargement of the cardiac silhouette.",
        "The heart is enlarged.",
        "Cardiac silhouette is enlarged.",
        "Heart size is increased, consistent with {size} cardiomegaly.",
    ),
    "Consolidation": (
        "{size} consolidation in the {side} {lobe}.",
        "{size} opacity in the {side} {zone} zone with air bronchograms, consistent with consolidation.",
        "There is {size} airspace consolidation in the {side} {zone} lung zone.",
        "Focal consolidation of the {side} {lobe}.",
        "{side} {zone} zone airspace opacity concerning for pneumonia.",
    ),
    "Edema": (
        "{size} pulmonary edema.",
        "There is {size} pulmonary edema.",
        "Bilateral perihilar opacities compatible with {size} pulmonary edema.",
        "Perihilar haze and septal lines consistent with edema.",
        "Vascular congestion with {size} interstitial edema.",
    ),
    "Enlarged Cardiomediastinum": (
        "{size} widening of the superior mediastinum.",
        "The mediastinum is widened.",
        "Widened mediastinal contour.",
        "There is {size} mediastinal widening.",
    ),
    "Fracture": (
        "{size} {side} {zone} rib fracture.",
        "Fracture of a {side} {zone} rib.",
        "There is a {size} fracture of a {side} {zone} rib.",
        "Displaced fracture of a lateral rib on the {side}, {zone} level.",
    ),
    "Hernia": (
        "{size} hiatal hernia.",
        "There is a {size} hiatal hernia.",
        "Retrocardiac lucency with an air fluid level, consistent with hiatal hernia.",
    ),
    "Lung Lesion": (
        "{size} in the {side} {zone} zone.",
        "There is a {size} in the {side} {zone} lung.",
        "{side} {zone} zone pulmonary {size}.",
        "A {size} projects over the {side} {zone} lung zone.",
    ),
    "Malpositioned Tube": (
        "Endotracheal tube tip lies in the right main bronchus.",
        "The endotracheal tube tip is {size} and should be withdrawn.",
        "Low endotracheal tube with its tip below the carina.",
    ),
    "Pleural Effusion": (
        "{size} {side} pleural effusion.",
        "There is a {size} {side} pleural effusion.",
        "Blunting of the {side} costophrenic angle, consistent with a {size} effusion.",
        "{side} sided {size} pleural effusion.",
        "{size} pleural fluid on the {side}.",
    ),
    "Pneumothorax": (
        "{size} {side} {zone} pneumothorax.",
        "There is a {size} {side} pneumothorax.",
        "{side} {zone} pneumothorax with a visible pleural line.",
        "{size} pneumothorax on the {side}.",
        "Absent lung markings at the {side} {place} consistent with {size} pneumothorax.",
    ),
}
_BILATERAL = (
    "{size} bilateral pleural effusions.",
    "There are {size} bilateral pleural effusions.",
    "Blunting of both costophrenic angles consistent with {size} effusions.",
    "Bilateral pleural fluid, {size} in amount.",
)
_LAYERING = (
    "Layering {size} {sides} pleural {effusion}.",
    "Hazy veil over the lung {bases} reflects {sides} layering effusion.",
)

_DEVICES = {
    "endotracheal tube": (
        "Endotracheal tube tip is above the carina.",
        "Endotracheal tube in satisfactory position.",
        "An endotracheal tube is present.",
    ),
    "central line": (
        "Central venous catheter tip in the superior vena cava.",
        "Central line in standard position.",
        "A central venous line is present.",
    ),
    "pacemaker": (
        "Left chest wall pacemaker with leads in standard position.",
        "A cardiac pacemaker is present.",
        "Left sided pacer in place.",
    ),
    "enteric tube": (
        "Enteric tube extends below the diaphragm.",
        "Nasogastric tube with its tip in the stomach.",
        "Enteric tube in place.",
    ),
}

# How often an absent finding is denied, and how. A denial speaks of its finding alone, as others may be there.
_NEGATIVE = {
    "Atelectasis": (0.25, ("No atelectasis.", "No evidence of atelectasis.", "No basilar atelectasis.")),
    "Cardiomegaly": (
        0.55,
        (
            "Heart size is normal.",
            "No cardiomegaly.",
            "The heart is not enlarged.",
            "Cardiac silhouette is within normal limits.",
        ),
    ),
    "Consolidation": (
        0.5,
        (
            "No focal consolidation.",
            "No evidence of pneumonia.",
            "There is no airspace consolidation.",
            "No consolidation is seen.",
        ),
    ),
    "Edema": (
        0.35,
        ("No pulmonary edema.", "There is no edema.", "Pulmonary vasculature is normal.", "No evidence of edema."),
    ),
    "Enlarged Cardiomediastinum": (
        0.35,
        ("Mediastinal contours are normal.", "The mediastinum is not widened.", "No mediastinal widening."),
    ),
    "Fracture": (
        0.30,
        (
            "No rib fracture.",
            "Osseous structures are intact.",
            "No acute osseous abnormality.",
            "No displaced fracture.",
        ),
    ),
    "Hernia": (0.06, ("No hiatal hernia.", "No evidence of hiatal hernia.")),
    "Lung Lesion": (0.25, ("No pulmonary nodule.", "No suspicious nodule or mass.", "No nodule or mass is seen.")),
    "Malpositioned Tube": (0.06, ("No low endotracheal tube.", "There is no malpositioned endotracheal tube.")),
    "Pleural Effusion": (
        0.6,
        (
            "No pleural effusion.",
            "There is no pleural effusion.",
            "Costophrenic angles are sharp.",
            "No evidence of pleural effusion.",
        ),
    ),
    "Pneumothorax": (
        0.6,
        ("No pneumothorax.", "There is no pneumothorax.", "No evidence of pneumothorax.", "No pneumothorax is seen."),
    ),
}

# Sentences that do not depend on what is drawn; from each group at most one, at a rate that no finding changes.
IRRELEVANT = {
    "history": (
        0.35,
        (
            "History of shortness of breath.",
            "Clinical history of chest pain.",
            "The patient presents with cough.",
            "Preoperative evaluation.",
            "Indication is follow up.",
        ),
    ),
    "comparison": (
        0.35,
        (
            "Comparison is made to the prior study.",
            "No prior studies are available.",
            "Compared with the previous radiograph.",
        ),
    ),
    "technique": (
        0.30,
        (
            "Frontal view of the chest was obtained.",
            "Digital radiography was used.",
            "Lateral view was not obtained.",
            "Further views were not requested.",
        ),
    ),
    "request": (
        0.25,
        (
            "This is a routine examination.",
            "Requested by the emergency department.",
            "Requested by the treating physician.",
        ),
    ),
    "record": (
        0.25,
        (
            "Images were sent to the archive.",
            "The report was dictated with speech recognition.",
            "A preliminary report was given by telephone.",
            "The request form was reviewed.",
        ),
    ),
    "message": (
        0.20,
        (
            "Findings were discussed with the referring team.",
            "Clinical correlation is recommended.",
            "Follow up as clinically indicated.",
        ),
    ),
}

_NOTHING_ACUTE = (
    "No acute cardiopulmonary process.",
    "No acute cardiopulmonary abnormality.",
    "No acute findings.",
)
_NORMAL = (*_NOTHING_ACUTE, "Normal chest radiograph.")

_SUMMARY = {
    "Atelectasis": ("{side} basilar atelectasis.", "Atelectasis at the {side} base."),
    "Cardiomegaly": ("{size} cardiomegaly.", "Enlarged heart."),
    "Consolidation": ("{side} {lobe} pneumonia.", "{side} {zone} zone consolidation."),
    "Edema": ("{size} pulmonary edema.", "Pulmonary edema."),
    "Enlarged Cardiomediastinum": ("Widened mediastinum.", "{size} mediastinal widening."),
    "Fracture": ("{side} {zone} rib fracture.", "Fracture of a {side} {zone} rib."),
    "Hernia": ("Hiatal hernia.", "{size} hiatal hernia."),
    "Lung Lesion": ("{side} {zone} zone {size}.", "{size} in the {side} {zone} lung."),
    "Malpositioned Tube": ("Low endotracheal tube.", "Endotracheal tube tip is too low."),
    "Pleural Effusion": ("{size} {side} pleural effusion.", "{side} pleural effusion."),
    "Pneumothorax": ("{size} {side} pneumothorax.", "{side} {zone} pneumothorax."),
}

_PHRASE = {
    "Atelectasis": "{side} basilar atelectasis.",
    "Cardiomegaly": "There is cardiomegaly.",
    "Consolidation": "{side} {zone} zone consolidation.",
    "Edema": "There is pulmonary edema.",
    "Enlarged Cardiomediastinum": "Widened mediastinum.",
    "Fracture": "{side} {zone} rib fracture.",
    "Hernia": "Hiatal hernia.",
    "Lung Lesion": "{side} {zone} zone {kind}.",
    "Malpositioned Tube": "Endotracheal tube tip is too low.",
    "Pleural Effusion": "{side} pleural effusion.",
    "Pneumothorax": "{side} {zone} pneumothorax.",
}


def write_report(rng: np.random.Generator, findings: list[Finding], view: str, omission: float = 0.05) -> Report:
    """
    The report of one study.

    Args:
        rng: source of the choice and the order of the sentences.
        findings: what was drawn, devices among them.
        view: "PA" or "AP", sometimes named.
        omission: chance that the FINDINGS section passes over a finding, as readers do.
    """
    names = {finding.name for finding in findings}
    drawn = [finding for finding in findings if finding.name in _POSITIVE]
    sentences = [_pick(rng, positive_sentences(finding), finding) for finding in drawn if rng.random() >= omission]
    for name, (chance, denials) in _NEGATIVE.items():
        if name not in names and rng.random() < chance:
            sentences.append(_pick(rng, denials))
    for device in findings:
        if device.name == "Support Devices" and rng.random() < 0.9:
            if device.zone != "endotracheal tube" or "Malpositioned Tube" not in names:
                sentences.append(_pick(rng, _DEVICES[device.zone]))
    if rng.random() < 0.5:  # else in the order of a list to work through
        rng.shuffle(sentences)
    before, after = _irrelevant(rng)
    if rng.random() < 0.2 or not (before or sentences or after):
        before.append(f"Single {view} view of the chest.")
    return Report(" ".join([*before, *sentences, *after]), _impression(rng, drawn, len(drawn) < len(findings)))


def region_phrase(finding: Finding, side: str | None) -> str:
    """A sentence that names one region of a finding, for grounding."""
    return _fill(_PHRASE[finding.name], finding, side)


def positive_sentences(finding: Finding) -> tuple[str, ...]:
    """Templates of the sentences that state a finding."""
    if finding.name != "Pleural Effusion":
        return _POSITIVE[finding.name]
    both = finding.side == "bilateral"
    if finding.zone == "layering":
        words = {"sides": "bilateral" if both else finding.side, "effusion": "effusions" if both else "effusion"}
        words |= {"bases": "bases" if both else "base", "size": "{size}"}
        return tuple(template.format(**words) for template in _LAYERING)
    return _BILATERAL if both else _POSITIVE[finding.name]


def _irrelevant(rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """What stands before and after the sentences about the picture."""
    drawn = {name: _pick(rng, sentences) for name, (chance, sentences) in IRRELEVANT.items() if rng.random() < chance}
    before = [drawn[name] for name in ("history", "comparison", "technique", "request") if name in drawn]
    return before, [drawn[name] for name in ("record", "message") if name in drawn]


def _impression(rng: np.random.Generator, findings: list[Finding], with_devices: bool) -> str:
    if not findings:
        return _pick(rng, _NOTHING_ACUTE if with_devices else _NORMAL)
    sentences = [_pick(rng, _SUMMARY[finding.name], finding) for finding in findings]
    rng.shuffle(sentences)
    if len(sentences) > 1 and rng.random() < 0.5:
        return " ".join(f"{i}. {sentence}" for i, sentence in enumerate(sentences, 1))
    return " ".join(sentences)


def _pick(rng: np.random.Generator, templates: tuple[str, ...], finding: Finding | None = None) -> str:
    template = str(templates[rng.integers(len(templates))])
    return template if finding is None else _fill(template, finding)


def _fill(template: str, finding: Finding, side: str | None = None) -> str:
    words = SIZES[finding.name]
    size = words[min(int(finding.severity * len(words)), len(words) - 1)]
    side, zone = side or finding.side, finding.zone
    sentence = template.format(
        size=size,
        side=side,
        zone=zone,
        lobe=_LOBES.get((side, zone)),
        kind=size.split()[-1],  # of a lesion: nodule or mass
        place={"apical": "apex", "basal": "base"}.get(zone),
    )
    return sentence[0].upper() + sentence[1:]
