# Licensed under the Apache License, Version 2.0.
"""The finer drawings: one chest at all sizes, findings that are where their regions say, reports that agree."""

import csv
import hashlib
import re
import warnings
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from modeling_tier.data import load_pairs
from modeling_tier.data.columns import CHEXPERT_LABELS
from modeling_tier.data.synthetic import draw_studies, write_contact_sheet, write_mimic_tree
from modeling_tier.data.synthetic.fine.cases import follow_up, sample_findings
from modeling_tier.data.synthetic.fine.chest import sample_anatomy
from modeling_tier.data.synthetic.fine.devices import DEVICES
from modeling_tier.data.synthetic.fine.findings import FINDINGS, ZONES
from modeling_tier.data.synthetic.fine.phantom import render
from modeling_tier.data.synthetic.fine.reports import IRRELEVANT, write_report
from modeling_tier.data.synthetic.phantom import Finding
from modeling_tier.evaluation import load_no_finding, load_prompts, own_prompts


TUBE = Finding("Support Devices", zone="endotracheal tube")
# Where each finding may be.
PLACES = {
    "Atelectasis": [("left", "lower"), ("right", "lower")],
    "Consolidation": [(side, zone) for side in ("left", "right") for zone in ZONES],
    "Edema": [("bilateral", None)],
    "Fracture": [(side, zone) for side in ("left", "right") for zone in ZONES],
    "Lung Lesion": [(side, zone) for side in ("left", "right") for zone in ZONES],
    "Pleural Effusion": [(side, zone) for side in ("left", "right", "bilateral") for zone in (None, "layering")],
    "Pneumothorax": [(side, zone) for side in ("left", "right") for zone in ("apical", "basal")],
}
CASES = [(name, *place) for name in FINDINGS for place in PLACES.get(name, [(None, None)])]


@pytest.fixture(scope="module")
def studies():
    return list(draw_studies("train", 200, 64, seed=3, drawings="fine"))


@pytest.fixture(scope="module")
def cases():
    """Findings, with the sections of their reports."""
    rng = np.random.default_rng(0)
    sampled = [sample_findings(rng) for _ in range(2000)]
    return [(findings, write_report(rng, findings, "PA")) for findings in sampled]


def drawn(seed: int, findings: list[Finding], size: int = 128):
    """The picture (float), the union of the regions, and the masks of the organs."""
    anatomy = sample_anatomy(np.random.default_rng(seed))
    picture, regions, organs = render(np.random.default_rng([7, seed]), anatomy, findings, size)
    masks = [region.mask for region in regions]
    return picture.astype(float), np.any(masks, axis=0) if masks else np.zeros((size, size), bool), organs


def grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    for _ in range(pixels):
        padded = np.pad(mask, 1)
        mask = padded[1:-1, 1:-1] | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return mask


def with_and_without(name: str, side, zone, seed: int, severity: float, size: int = 96):
    """The change that a finding makes, and its region."""
    base = [TUBE] if name == "Malpositioned Tube" else []
    picture, region, _ = drawn(seed, [*base, Finding(name, severity, side, zone)], size)
    return picture - drawn(seed, base, size)[0], region


def test_the_simple_drawings_are_what_they_were():
    """Numbers in the README and in docs/study.md rest on them, bit for bit."""
    digest = hashlib.sha256()
    for study in draw_studies("train", 40, 64, 0):
        digest.update(study.pixels.tobytes() + " ".join(study.report).encode() + study.image_id.encode())
        for region in study.regions:
            digest.update(repr(region.finding).encode() + region.mask.tobytes())
    assert digest.hexdigest() == "bbad3383c0d4b071e2388f3de02dad3d871f4c22a207241f087d593eef2fa605"
    assert list(load_pairs("synthetic", "test", num_images=1, image_size=32).features["labels"]) == [
        *("Cardiomegaly", "Pleural Effusion", "Consolidation", "Atelectasis", "Pneumothorax", "Edema", "Nodule"),
        "Support Devices",
    ]


def test_the_seed_decides():
    first, again, other = ([s for s in draw_studies("train", 6, 64, seed, "fine")] for seed in (1, 1, 2))
    for a, b in zip(first, again, strict=True):
        assert (a.pixels == b.pixels).all() and a.report == b.report and a.findings == b.findings
    assert not all((a.pixels == b.pixels).all() for a, b in zip(first, other))


@pytest.mark.parametrize("size", [64, 128])
def test_the_same_case_at_another_size_is_the_same_chest(size):
    for large, small in zip(draw_studies("test", 5, 224, 5, "fine"), draw_studies("test", 5, size, 5, "fine")):
        assert (large.findings, large.report, large.image_id) == (small.findings, small.report, small.image_id)
        reduced = Image.fromarray(large.pixels).resize((size, size), Image.Resampling.BOX)
        assert np.corrcoef(np.asarray(reduced).ravel(), small.pixels.ravel())[0, 1] > 0.985
        assert len(large.regions) == len(small.regions)
        for a, b in zip(large.regions, small.regions):
            centres = [np.argwhere(region.mask).mean(axis=0) / len(region.mask) for region in (a, b)]
            assert np.abs(centres[0] - centres[1]).max() < 0.03, a.finding


@pytest.mark.parametrize(("name", "side", "zone"), CASES)
def test_a_finding_changes_its_region_and_nothing_else(name, side, zone):
    inside, outside = [], []
    for seed, severity in enumerate((0.1, 0.9)):
        change, region = with_and_without(name, side, zone, seed, severity)
        assert region.sum() >= 12
        # A wider mediastinum pushes its soft edge, and a low tube all of itself below its old tip.
        near = grown(region, {"Malpositioned Tube": 11, "Enlarged Cardiomediastinum": 8, "Edema": 11}.get(name, 5))
        inside.append(np.abs(change[region]).mean())
        outside.append(np.abs(change[~near]).mean())
    assert np.mean(outside) < 0.6, "grey values of 255"
    assert np.mean(inside) > 8 and np.mean(inside) > 25 * np.mean(outside)


@pytest.mark.parametrize("name", [name for name in FINDINGS if name not in ("Fracture", "Malpositioned Tube")])
def test_air_darkens_and_the_rest_brightens(name):
    side, zone = PLACES.get(name, [(None, None)])[0]
    changes = []
    for seed in range(4):
        change, region = with_and_without(name, side, zone, seed, 0.5)
        changes.append(change[region].mean())
    assert np.mean(changes) < -6 if name in ("Pneumothorax", "Hernia") else np.mean(changes) > 6


@pytest.mark.parametrize("name", ["Consolidation", "Lung Lesion", "Atelectasis", "Edema", "Pleural Effusion"])
def test_an_opacity_is_brighter_than_the_lung_around_it(name):
    contrasts = []
    for seed in range(6):
        side, zone = PLACES[name][seed % len(PLACES[name])]
        picture, region, organs = drawn(seed, [Finding(name, 0.3, side, zone)])
        around = grown(region, 8) & ~grown(region, 2) & organs["lungs"]
        contrasts.append(picture[region & organs["lungs"]].mean() - picture[around].mean())
    assert np.mean(contrasts) > 10 and np.mean(np.array(contrasts) > 0) > 0.8


def test_a_mask_of_a_pneumothorax_is_darker_than_the_other_lung():
    for seed in range(6):
        picture, region, organs = drawn(seed, [Finding("Pneumothorax", 0.5, "left", "apical")])
        assert picture[region].mean() < picture[region[:, ::-1] & organs["lungs"]].mean() - 8


@pytest.mark.slow
def test_heart_and_mediastinum_are_brighter_than_lungs_and_severity_is_size():
    for seed in range(3):
        picture, _, organs = drawn(seed, [])
        assert picture[organs["heart"]].mean() > picture[organs["lungs"]].mean() + 50
    for seed in range(2):
        for name, side, zone in CASES:
            if name not in ("Malpositioned Tube", "Fracture"):
                small, large = (drawn(seed, [Finding(name, s, side, zone)], 64)[1].sum() for s in (0.1, 0.9))
                assert large > 1.1 * small, name


def test_left_is_on_the_right_of_the_picture_and_levels_are_thirds_of_the_lung(studies):
    sided, levels = 0, Counter()
    for study in studies:
        lungs = np.argwhere(study.organs["lungs"])[:, 0]
        top, bottom = lungs.min(), np.quantile(lungs, 0.97)  # without the costophrenic angles
        for region in study.regions:
            if region.side is None:
                continue
            y, x = np.argwhere(region.mask).mean(axis=0)
            assert (x > 32) == (region.side == "left"), region.finding
            phrase = study.phrase(region).lower()
            assert region.side in phrase or region.finding.name == "Edema"
            sided += 1
            for word, (low, high) in {"upper": (0, 0.45), "mid": (0.30, 0.75), "lower": (0.6, 1.1)}.items():
                if f" {word} " in f" {phrase} ":
                    assert low <= (y - top) / (bottom - top) <= high, (region.finding, (y - top) / (bottom - top))
                    levels[word] += 1
    assert sided > 150 and min(levels.values()) > 15


WORDS = {
    "Atelectasis": "atelectasis|basilar",
    "Cardiomegaly": "cardiomegaly|cardiac silhouette|heart (is|size)|enlarged heart|not enlarged",
    "Consolidation": "consolidation|pneumonia|air bronchograms",
    "Edema": "edema|vasculature",
    "Enlarged Cardiomediastinum": "mediasti",
    "Fracture": "fracture|osseous",
    "Hernia": "hernia",
    "Lung Lesion": "nodule|mass",
    "Malpositioned Tube": "(low|malpositioned) endotracheal|endotracheal tube.*(low|below|main bronchus|withdrawn)",
    "Pleural Effusion": "effusion|pleural fluid|costophrenic",
    "Pneumothorax": "pneumothorax",
}
DENIAL = r"\b(no|not|normal|clear|sharp|intact|unremarkable)\b"
# What a drawing shows beside its findings, or might show.
SHOWN = r"electrode|tube|lead|wire|abdomen|spine|tissue|rotated|positioned|chin|quality|exposure|lung|chest (wall|is)"
LEVELS = {"upper": "upper", "mid": r"mid|middle|lingula", "lower": r"lower|basilar|basal|base|bases"}


def sentences(text: str) -> list[str]:
    return [s for s in re.split(r"(?<=\.)\s+", re.sub(r"\b\d\. ", "", text).lower()) if s]


def test_reports_name_what_is_drawn_with_its_side_and_level_and_deny_the_rest(cases):
    omitted = positives = 0
    for drawn_findings, report in cases:
        by_name = {}
        for finding in drawn_findings:
            by_name.setdefault(finding.name, []).append(finding)
        for part, text in report._asdict().items():
            for name, words in WORDS.items():
                own = [s for s in sentences(text) if re.search(words, s)]
                affirmed = [s for s in own if not re.search(DENIAL, s)]
                denied = [s for s in own if re.search(DENIAL, s)]
                if name not in by_name:
                    assert not affirmed, (name, affirmed)
                    continue
                assert not denied, (name, denied)
                positives += part == "findings"
                omitted += part == "findings" and not affirmed
                assert affirmed or part == "findings", (name, text)
                sides = {finding.side for finding in by_name[name]}
                for sentence in affirmed if name != "Malpositioned Tube" else ():
                    for side in ("left", "right"):
                        if re.search(rf"\b{side}\b", sentence):
                            assert side in sides, sentence
                            zones = {finding.zone for finding in by_name[name] if finding.side == side}
                            for level in zones & set(ZONES):
                                others = "|".join(w for z, w in LEVELS.items() if z not in zones)
                                assert not re.search(rf"\b({others})\b", sentence), (level, sentence)
    assert 0 < omitted < 0.12 * positives, "readers pass over a few findings"


def test_a_denial_speaks_of_its_finding_alone(cases):
    """Clear bases would deny effusions too, a normal radiograph everything: only said where nothing is drawn."""
    for drawn_findings, report in cases:
        assert not re.search("clear|normal chest|unremarkable", " ".join(report).lower()) or not drawn_findings


def test_air_fluid_and_opacity_have_places_of_their_own(studies):
    rng = np.random.default_rng(4)
    visits = [sample_findings(rng) for _ in range(1500)]
    for findings in [*visits, *(follow_up(rng, findings) for findings in visits), *(s.findings for s in studies)]:
        fluid = {f.side for f in findings if f.name == "Pleural Effusion"}
        fluid |= {"left", "right"} if "bilateral" in fluid else set()
        air = {(f.side, f.zone) for f in findings if f.name == "Pneumothorax"}
        assert not {(side, "basal") for side in fluid} & air
        opaque = {(f.side, f.zone) for f in findings if f.name in ("Consolidation", "Lung Lesion")}
        assert not {(side, "upper") for side, zone in air if zone == "apical"} & opaque


def test_sizes_at_which_the_small_findings_are_lost_are_warned_of():
    with pytest.warns(UserWarning, match="fine at image_size 48.*below 64 pixels"):
        load_pairs("synthetic", "test", num_images=1, image_size=48, drawings="fine")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_pairs("synthetic", "test", num_images=1, image_size=64, drawings="fine")
        load_pairs("synthetic", "test", num_images=1, image_size=48)


def test_what_is_irrelevant_says_nothing_of_the_findings(cases):
    """A sentence of each group is in as many reports of pictures with a finding as without."""
    lengths = []
    counts = {kind: Counter() for kind in IRRELEVANT}
    number = Counter()
    for drawn_findings, report in cases:
        found = bool({finding.name for finding in drawn_findings} - {"Support Devices"})
        number[found] += 1
        lengths.append((len(sentences(report.findings)), len(sentences(report.impression))))
        if "no prior" in report.findings.lower():
            assert not re.search("unchanged|stable|compar|previous|interval", report.findings.lower())
        for kind, (_, texts) in IRRELEVANT.items():
            counts[kind][found] += any(text in report.findings for text in texts)
    for kind, (chance, texts) in IRRELEVANT.items():
        rates = [counts[kind][found] / number[found] for found in (True, False)]
        assert rates == pytest.approx([chance] * 2, abs=0.05), kind
        assert not any(re.search(words, text.lower()) for text in texts for words in (*WORDS.values(), SHOWN))
    findings, impression = np.mean(lengths, axis=0)
    assert findings > 5 and impression < 0.5 * findings


def test_what_a_picture_may_hold(cases, studies):
    findings = [finding for drawn_findings, _ in cases for finding in drawn_findings]
    names = Counter(finding.name for finding in findings)
    assert set(names) == {*FINDINGS, "Support Devices"} and min(names.values()) > 0.02 * len(cases)
    assert {finding.zone for finding in findings if finding.name == "Support Devices"} == {*DEVICES}
    without = np.mean([not {f.name for f in own} - {"Support Devices"} for own, _ in cases])
    assert 0.15 < without < 0.45
    for study in studies:
        found = {finding.name for finding in study.findings}
        assert {region.finding.name for region in study.regions} == found - {"Support Devices"}
        if "Malpositioned Tube" in found:
            assert TUBE in study.findings


def test_devices_are_seen():
    for seed in range(4):
        picture = drawn(seed, [])[0]
        for device in DEVICES:
            change = drawn(seed, [Finding("Support Devices", zone=device)])[0] - picture
            bright = np.abs(change) > 25
            assert 20 < bright.sum() < 1500, device


def test_as_pairs():
    rows = load_pairs("synthetic", "train", num_images=40, image_size=64, drawings="fine", section="impression")
    assert list(rows.features["labels"]) == [*FINDINGS, "Support Devices"]
    for row, study in zip(rows, draw_studies("train", 40, 64, 0, "fine")):
        assert row["text"] == study.report.impression
        assert {n for n, value in row["labels"].items() if value} == {f.name for f in study.findings}
        for region, own in zip(row["regions"], study.regions, strict=True):
            assert region["phrase"] == study.phrase(own) and (np.asarray(region["mask"]) == own.mask).all()
    with pytest.raises(ValueError, match=r"drawings must be one of \['simple', 'fine'\]; got 'coarse'"):
        load_pairs("synthetic", "train", num_images=4, drawings="coarse")


@pytest.mark.slow
def test_on_a_disk(tmp_path):
    write_mimic_tree(tmp_path / "mimic", {"train": 40, "validation": 2, "test": 2}, 64, drawings="fine")
    rows = load_pairs("mimic_cxr", "train", data_dir=str(tmp_path / "mimic"))
    studies = {study.study_id: study for study in draw_studies("train", 40, 64, 0, "fine")}
    assert len(rows) == 40
    for row in rows:
        own = {finding.name for finding in studies[row["study_id"]].findings} & set(CHEXPERT_LABELS)
        assert own <= {name for name, value in row["labels"].items() if value == 1} <= own | {"No Finding"}
    boxes = list(csv.DictReader(open(tmp_path / "mimic" / "ms_cxr.csv")))
    named = {(study.phrase(region), region.finding.name) for study in studies.values() for region in study.regions}
    assert named <= {(box["label_text"], box["category_name"]) for box in boxes}
    write_contact_sheet(tmp_path / "sheet.png", num_images=7, image_size=64, drawings="fine")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (6 * 256, 2 * 256)


def test_sentences_of_the_evaluation_are_those_of_the_drawings(cases):
    assert (
        own_prompts("synthetic", {}) == "synthetic" and own_prompts("synthetic", {"drawings": "simple"}) == "synthetic"
    )
    prompts = load_prompts(own_prompts("synthetic", {"drawings": "fine", "image_size": 64}))
    assert list(prompts) == list(FINDINGS)
    known = {word for _, report in cases for word in re.findall(r"\w+", " ".join(report).lower())}
    for name, lists in prompts.items():
        for sentence in lists["positive"]:
            assert re.search(WORDS[name], sentence.lower()) and not re.search(DENIAL, sentence.lower()), sentence
        for sentence in set(lists["negative"]) - set(load_no_finding("synthetic_fine")):
            assert re.search(WORDS[name], sentence.lower()) and re.search(DENIAL, sentence.lower()), sentence
        for sentence in sum(lists.values(), []):
            assert set(re.findall(r"\w+", sentence.lower())) <= known, sentence
