# Licensed under the Apache License, Version 2.0.
"""The statistics on real scores: ten models and three radiologists on CheXpert's 500 test studies."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import matthews_corrcoef

from modeling_tier.data.columns import make_pairs, pair_features
from modeling_tier.evaluation.evidence import compare, gather_evidence
from modeling_tier.evaluation.scored import ImageScores, Scored


FOLDER = Path(__file__).parents[3] / "shared" / "chexpert_test_scores"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no {FOLDER}")

FINDINGS = ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"]
READERS = {  # Matthews correlation of each radiologist, as published with the scores
    "bc4": [0.557, 0.520, 0.365, 0.524, 0.759],
    "bc6": [0.522, 0.579, 0.292, 0.490, 0.573],
    "bc8": [0.560, 0.606, 0.414, 0.509, 0.675],
}
RESAMPLES, SEED = 100, 3


@pytest.fixture(scope="module")
def scores():
    return pd.read_csv(FOLDER / "scores.csv")


@pytest.fixture(scope="module")
def models():
    return pd.read_csv(FOLDER / "auroc.csv")["model"].tolist()


def columns_of(scores, name):
    return scores[[f"{name}:{finding}" for finding in FINDINGS]].to_numpy(dtype=np.float64)


@pytest.fixture(scope="module")
def evidence(scores, models):
    """Of each model, as the evaluation gathers it, with the radiologists as readers."""
    truth = columns_of(scores, "truth")
    answers = {reader: columns_of(scores, reader) for reader in READERS}
    columns = {
        "image": [None] * len(scores),
        "subject_id": [study.partition("/")[0] for study in scores["study"]],
        "study_id": scores["study"].tolist(),
        "image_id": scores["study"].tolist(),
        "labels": [dict(zip(FINDINGS, row)) for row in truth],
    }
    pairs = make_pairs(columns, pair_features(FINDINGS, ids="string")).add_column(
        "reads",
        [
            [{"reader": reader, "labels": dict(zip(FINDINGS, rows[i]))} for reader, rows in answers.items()]
            for i in range(len(scores))
        ],
    )

    def gather(model):
        values, rows = columns_of(scores, model), np.arange(len(scores))
        details = {"findings": FINDINGS, "rows": rows, "labels": truth, "scores": values}
        details["probabilities"] = stats.rankdata(values, axis=0) / len(values)
        parts = {"data": ({"num_images": len(rows)}, details, Scored(ImageScores(rows, rows, values, rows)))}
        return gather_evidence(parts, {"data": pairs}, RESAMPLES, SEED)

    return {model: gather(model) for model in models}


def auroc_by_ranks(labels, scores):
    """Mann and Whitney's U as a share of all pairs."""
    positive = labels == 1
    number = positive.sum()
    ranks = stats.rankdata(scores)
    return (ranks[positive].sum() - number * (number + 1) / 2) / (number * (len(labels) - number))


def delong_p(labels, a, b):
    """DeLong, DeLong & Clarke-Pearson (1988) from the kernel's whole matrix, for one row per subject."""
    positive, negative = labels == 1, labels == 0

    def components(scores):
        kernel = np.heaviside(scores[positive][:, None] - scores[negative][None, :], 0.5)
        return kernel.mean(axis=1), kernel.mean(axis=0)

    (a10, a01), (b10, b01) = components(a), components(b)
    variance = np.cov(a10 - b10, ddof=1) / positive.sum() + np.cov(a01 - b01, ddof=1) / negative.sum()
    gap = a10.mean() - b10.mean()
    return 1.0 if gap == variance == 0 else 2 * stats.norm.sf(abs(gap) / np.sqrt(variance))


def holm_by_definition(p_values):
    order = np.argsort(p_values)
    steps = [(len(order) - rank) * p_values[i] for rank, i in enumerate(order)]
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


def test_auroc_of_ten_models(evidence):
    published = pd.read_csv(FOLDER / "auroc.csv").set_index("model")
    for model, one in evidence.items():
        outcome = one.metrics["classification"]["image"]
        for finding in (*FINDINGS, "mean"):
            assert outcome[finding]["auroc"]["value"] == pytest.approx(published.loc[model, finding], abs=6e-7)


def test_delong_holm_and_bootstrap_of_all_pairs_of_models(evidence, scores, models):
    truth = columns_of(scores, "truth")
    subjects = scores["study"].str.partition("/")[0]
    assert subjects.is_unique, "a study per patient, so that no correction for clusters comes in"
    order = np.argsort([f"subject {subject}" for subject in subjects])
    generator = np.random.default_rng(SEED)
    draws = [order[generator.integers(len(order), size=len(order))] for _ in range(RESAMPLES)]
    values = {model: columns_of(scores, model) for model in models}
    resampled = {  # (resamples, findings)
        model: np.array(
            [[auroc_by_ranks(truth[rows, i], values[model][rows, i]) for i in range(len(FINDINGS))] for rows in draws]
        )
        for model in models
    }
    pairs = list(combinations(models, 2))
    assert len(pairs) == 45
    for a, b in pairs:
        outcome = compare(evidence[a], evidence[b])["classification"]["image"]
        p_values = [delong_p(truth[:, i], values[a][:, i], values[b][:, i]) for i in range(len(FINDINGS))]
        gaps = resampled[a] - resampled[b]
        for i, finding in enumerate(FINDINGS):
            auroc = outcome[finding]["auroc"]
            assert auroc["p_delong"] == pytest.approx(p_values[i], rel=1e-6, abs=1e-12)
            assert auroc["p_holm"] == pytest.approx(holm_by_definition(np.array(p_values))[i], rel=1e-6, abs=1e-12)
            assert [auroc["low"], auroc["high"]] == pytest.approx(np.percentile(gaps[:, i], [2.5, 97.5]), abs=1e-9)
        mean = outcome["mean"]["auroc"]
        expected = np.percentile(gaps.mean(axis=1), [2.5, 97.5])
        assert [mean["low"], mean["high"]] == pytest.approx(expected, abs=1e-9)


def test_the_radiologists_correlations(evidence, scores, models):
    readers = evidence[models[0]].metrics["readers"]["by_reader"]
    for reader, published in READERS.items():
        answers, truth = columns_of(scores, reader), columns_of(scores, "truth")
        for i, finding in enumerate(FINDINGS):
            value = readers[reader][finding]["mcc"]["value"]
            assert value == pytest.approx(published[i], abs=6e-4)
            assert value == pytest.approx(matthews_corrcoef(truth[:, i], answers[:, i]), abs=1e-12)
