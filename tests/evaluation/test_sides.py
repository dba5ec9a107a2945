# Licensed under the Apache License, Version 2.0.
"""Left against right, from phrases to the AUROC."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from modeling_tier.data import load_pairs
from modeling_tier.evaluation import load_prompts
from modeling_tier.evaluation.evidence import compare, gather_evidence
from modeling_tier.evaluation.scored import join
from modeling_tier.evaluation.scoring import ScoringOptions, score
from modeling_tier.evaluation.sides import mirrored, one_sided, side_of
from modeling_tier.evaluation.zero_shot import summarise


@pytest.mark.parametrize(
    ("phrase", "side", "other"),
    [
        ("small left effusion", "left", "small right effusion"),
        ("Right-sided pneumothorax", "right", "Left-sided pneumothorax"),
        ("RIGHT apex", "right", "LEFT apex"),
        ("left and right lungs", None, "right and left lungs"),
        ("upright, leftover edema", None, "upright, leftover edema"),
        ("bilateral effusions", None, "bilateral effusions"),
    ],
)
def test_sides_of_phrases(phrase, side, other):
    assert side_of(phrase) == side and mirrored(phrase) == other and mirrored(other) == phrase


def test_findings_on_one_side():
    regions = [("Effusion", "left effusion"), ("Effusion", "small left effusion"), ("Edema", "edema")]
    regions += [("Nodule", "left nodule"), ("Nodule", "right nodule"), ("Mass", "mass"), ("Mass", "right mass")]
    regions = [{"finding": finding, "phrase": phrase} for finding, phrase in regions]
    assert one_sided(regions) == {"Effusion": "left effusion", "Mass": "right mass"}


@pytest.mark.parametrize("number", [60, 14])
def test_auroc_of_left_against_right_on_drawings(model, processor, number):
    pairs = load_pairs("synthetic", "test", num_images=number, image_size=40, seed=2)
    prompts = load_prompts("synthetic")
    options = ScoringOptions(batch_size=16, thorough=True, tokens=False, progress=False)
    scored = join(score(model, processor, pairs, prompts, options))
    metrics, details = summarise(scored, pairs, list(prompts))
    evidence = gather_evidence({"data": (metrics, details, scored)}, {"data": pairs}, 20)
    known = {}
    for i, row in enumerate(pairs):
        image = scored.images.embeds[i]
        for finding in {region["finding"] for region in row["regions"]}:
            phrases = [region["phrase"] for region in row["regions"] if region["finding"] == finding]
            if len({side_of(phrase) for phrase in phrases} - {None}) != 1:
                continue
            phrase = next(phrase for phrase in phrases if side_of(phrase))
            left = phrase if "left" in phrase.lower() else mirrored(phrase)
            texts = processor(text=[left, mirrored(left)])
            embeds = model.get_text_features(**texts).pooler_output.detach().numpy()
            a, b = embeds / np.linalg.norm(embeds, axis=1, keepdims=True)
            known.setdefault(finding, []).append((left == phrase, image @ a - image @ b, row["subject_id"]))
    assert len(known) > 2 and len(scored.sides.row) == sum(map(len, known.values()))
    values, some_alone = [], False
    for finding, answers in known.items():
        is_left, margin, subjects = zip(*answers)
        outcome = evidence.metrics["laterality"][finding]
        assert (outcome["num_left"], outcome["num_right"]) == (sum(is_left), len(is_left) - sum(is_left))
        sides = {bool(side): len({who for one, who in zip(is_left, subjects) if one == side}) for side in (0, 1)}
        alone = min(sides.values()) == 1
        assert (outcome["auroc_left_right"].get("no_interval", "").startswith("1 subject on the")) == alone
        some_alone |= alone
        if 0 < sum(is_left) < len(is_left):
            values.append(roc_auc_score(is_left, margin))
            assert outcome["auroc_left_right"]["value"] == pytest.approx(values[-1], abs=1e-6)
        else:
            assert outcome["auroc_left_right"]["value"] is None
    mean = evidence.metrics["laterality"]["mean"]["auroc_left_right"]
    assert mean["value"] == pytest.approx(np.mean(values), abs=1e-6) and mean["low"] <= mean["value"] <= mean["high"]
    assert compare(evidence, evidence)["laterality"]["mean"]["auroc_left_right"]["value"] == 0
    assert some_alone or number > 14, "a finding with one subject on a side"
