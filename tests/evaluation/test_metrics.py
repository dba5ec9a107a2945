# Licensed under the Apache License, Version 2.0.
"""The `evaluate` modules against scikit-learn and against loops written from their definitions."""

import math
from pathlib import Path

import evaluate
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import modeling_tier.evaluation


def load(name):
    return evaluate.load(str(Path(modeling_tier.evaluation.__file__).parent / "metrics" / name), keep_in_memory=True)


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_is_scikit_learns(ties):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    scores = rng.standard_normal(200) + labels
    scores = np.round(scores) if ties else scores
    result = load("zeroshot_auroc").compute(predictions=scores, references=labels)
    assert result["roc_auc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert (result["num_positive"], result["num_negative"]) == (labels.sum(), 200 - labels.sum())


def test_auroc_of_one_class_is_undefined_and_nan_is_named():
    metric = load("zeroshot_auroc")
    assert metric.compute(predictions=[0.1, 0.2], references=[1, 1])["roc_auc"] is None
    with pytest.raises(ValueError, match=r"predictions\[1\]"):
        metric.compute(predictions=[0.1, float("nan")], references=[0, 1])
    with pytest.raises(ValueError, match="0 or 1"):
        load("zeroshot_auroc").compute(predictions=[0.1, 0.2], references=[-1, 1])


def test_phrase_grounding_against_loops():
    rng = np.random.default_rng(1)
    maps = rng.standard_normal((9, 30)).astype(np.float32)
    inside = rng.random((9, 30)) < 0.3
    maps[inside] += 0.7
    result = load("phrase_grounding").compute(predictions=maps, references=inside.astype(np.int8))

    hits, cnr, best = [], [], (0.0, None)
    for values, place in zip(maps.astype(np.float64), inside):
        peak = max(range(30), key=lambda p, v=values: v[p])
        hits.append(place[peak])
        a, b = values[place], values[~place]
        cnr.append((a.mean() - b.mean()) / math.sqrt(a.var() + b.var()))
    for step in range(1, 20):
        ious = []
        for values, place in zip(maps.astype(np.float64), inside):
            low, high = values.min(), values.max()
            above = [(v - low) / (high - low) >= step / 20 for v in values]
            both = sum(x and y for x, y in zip(above, place))
            ious.append(both / sum(x or y for x, y in zip(above, place)))
        if np.mean(ious) > best[0]:
            best = (np.mean(ious), step / 20)
    assert result["pointing_game"] == pytest.approx(np.mean(hits))
    assert result["cnr"] == pytest.approx(np.mean(cnr), abs=1e-9)
    assert (result["iou"], result["iou_threshold"]) == pytest.approx(best)
    assert result["chance"] == pytest.approx(inside.mean()) and result["num_maps"] == 9


def test_phrase_grounding_of_a_perfect_and_of_a_wrong_map():
    place = np.zeros((1, 100), np.int8)
    place[0, 40:50] = 1
    perfect = load("phrase_grounding").compute(predictions=place.astype(np.float32), references=place)
    assert perfect["pointing_game"] == 1 and perfect["iou"] == 1 and perfect["cnr"] > 1000
    wrong = load("phrase_grounding").compute(predictions=-place.astype(np.float32), references=place)
    assert wrong["pointing_game"] == 0 and wrong["cnr"] < -1000
    with pytest.raises(ValueError, match="inside and outside"):
        load("phrase_grounding").compute(predictions=place.astype(np.float32), references=np.zeros_like(place))


def test_retrieval_recall_against_a_loop():
    rng = np.random.default_rng(2)
    similarity = rng.standard_normal((40, 40)) + 1.5 * np.eye(40)
    groups = rng.integers(0, 30, 40)  # some texts stand twice
    result = load("retrieval_recall").compute(predictions=similarity, references=groups)
    for k in (1, 5, 10):
        hits = 0
        for i in range(40):
            best = np.argsort(-similarity[i].astype(np.float32), kind="stable")[:k]
            hits += any(groups[j] == groups[i] for j in best)
        assert result[f"r@{k}"] == pytest.approx(hits / 40)


def test_retrieval_gives_nothing_for_ties():
    """A model that embeds everything alike must not look as if it had found anything."""
    result = load("retrieval_recall").compute(predictions=np.ones((20, 20)), references=np.arange(20))
    assert result == {"r@1": 0.0, "r@5": 0.0, "r@10": 0.0}
