# Licensed under the Apache License, Version 2.0.
"""Bootstrap, DeLong's test, thresholds and calibration against scikit-learn, scipy and loops from the definitions."""

import math
import warnings
from pathlib import Path

import evaluate
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    f1_score,
    matthews_corrcoef,
    recall_score,
    roc_auc_score,
)

from modeling_tier.evaluation import statistics as tier
from modeling_tier.evaluation.metrics.zeroshot_auroc import zeroshot_auroc


def draw(number, seed=0, ties=True, prevalence=0.3):
    rng = np.random.default_rng(seed)
    labels = (rng.random(number) < prevalence).astype(float)
    labels[:2] = (0, 1)
    scores = rng.standard_normal(number) + labels
    return labels, np.round(scores, 1) if ties else scores


def weights_of(number, resamples=20, seed=0):
    return np.concatenate(list(tier.Resamples(np.arange(number), resamples, seed).blocks()))


def weighted_auroc(labels, scores, weights):
    return tier.Ranking(labels, scores)(weights)[0]


def weighted_average_precision(labels, scores, weights):
    return tier.Ranking(labels, scores)(weights)[1]


def calibration_error(labels, probabilities, weights):
    return tier.Reliability(labels, probabilities)(weights)


# Draws


def test_a_resample_has_as_many_subjects_with_all_of_their_rows():
    subjects = np.array(["b", "a", "b", "c", "b", "a"])
    weights = np.concatenate(list(tier.Resamples(subjects, 500).blocks()))
    assert weights.shape == (500, 6)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, 0], weights[:, 4])
    np.testing.assert_array_equal(weights[:, 1], weights[:, 5])
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    # With replacement: each count is binomial(3, 1/3).
    shares = np.bincount(weights[:, 3].astype(int), minlength=4) / 500
    np.testing.assert_allclose(shares, stats.binom(3, 1 / 3).pmf(range(4)), atol=0.07)


def test_draws_are_those_of_the_set_of_subjects_whatever_the_rows_are():
    images = np.concatenate(list(tier.Resamples([30, 10, 20, 10, 30], 50, seed=3).blocks()))
    studies = np.concatenate(list(tier.Resamples([10, 20, 30], 50, seed=3).blocks()))
    np.testing.assert_array_equal(images[:, [1, 2, 0]], studies)
    other = np.concatenate(list(tier.Resamples([10, 20, 30], 50, seed=4).blocks()))
    assert not np.array_equal(studies, other)


def test_the_size_of_a_block_changes_nothing(monkeypatch):
    labels, scores = (np.stack(columns, axis=1) for columns in zip(draw(300), draw(300, seed=1)))
    probabilities = 1 / (1 + np.exp(-scores))
    values = np.random.default_rng(0).standard_normal((300, 3))
    measures = tier.Classification(labels, scores, [0.1, 0.2], [0.3, 0.4], probabilities, probabilities)

    def statistic(weights):
        means = {"mean": tier.weighted_mean(values, weights), "one": tier.weighted_mean(values[:, 0], weights)}
        return measures(weights) | means

    resamples, results = tier.Resamples(np.arange(300) // 2, 30), []
    for size in (300, 7 * 300, 29 * 300, 10**6):
        monkeypatch.setattr(zeroshot_auroc, "_BLOCK", size)
        results.append(tier.distribution(resamples, statistic))
    for name, estimate in results[0].items():
        assert estimate.distribution.shape[0] == 30
        for other in results[1:]:
            np.testing.assert_array_equal(estimate.distribution, other[name].distribution, err_msg=name)


def test_bad_subjects_are_named():
    with pytest.raises(ValueError, match=r"subjects\[1\] is None"):
        tier.Resamples(["a", None])
    with pytest.raises(ValueError, match=r"subjects\[2\] is nan"):
        tier.Resamples([1.0, 2.0, math.nan])
    with pytest.raises(ValueError, match="not empty"):
        tier.Resamples([])
    with pytest.raises(ValueError, match="negative"):
        tier.Resamples([1, 2], -1)


# Ranking measures


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_and_average_precision_are_scikit_learns_on_the_repeated_rows(ties):
    labels, scores = draw(150, ties=ties)
    weights = weights_of(150)
    auroc = weighted_auroc(labels, scores, weights)
    precision = weighted_average_precision(labels, scores, weights)
    for i, counts in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(150), counts)
        assert auroc[i] == pytest.approx(roc_auc_score(labels[rows], scores[rows]), abs=1e-12)
        assert precision[i] == pytest.approx(average_precision_score(labels[rows], scores[rows]), abs=1e-12)


def test_fractional_weights_are_scikit_learns_sample_weight():
    labels, scores = draw(100)
    weights = np.random.default_rng(1).random((5, 100))
    for i, item in enumerate(weights):
        reference = roc_auc_score(labels, scores, sample_weight=item)
        assert weighted_auroc(labels, scores, weights)[i] == pytest.approx(reference, abs=1e-12)
        reference = average_precision_score(labels, scores, sample_weight=item)
        assert weighted_average_precision(labels, scores, weights)[i] == pytest.approx(reference, abs=1e-12)


ROWS = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0, math.nan]), st.integers(-2, 2), st.integers(0, 3)), min_size=1, max_size=12
)


@settings(deadline=None, max_examples=200)
@given(rows=ROWS)
def test_ties_count_one_half(rows):
    labels, scores, weights = (np.array(column, dtype=float) for column in zip(*rows))
    pairs = won = precisions = positives = 0.0
    for label, score, weight in rows:
        if label != 1 or not weight:
            continue
        for other, below, count in rows:
            if other == 0:
                pairs += weight * count
                won += weight * count * (1.0 if score > below else 0.5 if score == below else 0.0)
        called = sum(w for y, s, w in rows if s >= score and not math.isnan(y))
        precisions += weight * sum(w for y, s, w in rows if s >= score and y == 1) / called
        positives += weight
    auroc = weighted_auroc(labels, scores, weights[None])[0]
    precision = weighted_average_precision(labels, scores, weights[None])[0]
    if pairs:
        assert auroc == pytest.approx(won / pairs, abs=1e-12)
        assert precision == pytest.approx(precisions / positives, abs=1e-12)
    else:
        assert math.isnan(auroc) and math.isnan(precision)


def test_a_resample_without_a_class_is_undefined():
    labels, scores = np.array([1.0, 0.0, 0.0]), np.array([0.3, 0.2, 0.1])
    weights = np.array([[0, 2, 1], [3, 0, 0], [1, 1, 1]], dtype=float)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(weighted_auroc(labels, scores, weights), [np.nan, np.nan, 1.0])
    with pytest.raises(ValueError, match="weights for 4 rows"):
        weighted_auroc(labels, scores, np.ones((1, 4)))


# Decisions


def test_decisions_are_scored_as_scikit_learn_scores_them():
    columns = [draw(80, seed) for seed in range(3)]
    labels, scores = (np.stack(item, axis=1) for item in zip(*columns))
    decisions = (scores > 0.5).astype(float)
    weights = weights_of(80)
    counts = tier.Confusion(labels, decisions)(weights)
    for f in range(3):
        for i, item in enumerate(weights):
            pair = (labels[:, f], decisions[:, f])
            (tn, fp), (fn, tp) = confusion_matrix(*pair, sample_weight=item)
            assert [count[i, f] for count in counts] == [tp, fp, fn, tn]
            reference = matthews_corrcoef(*pair, sample_weight=item)
            assert tier.matthews(counts)[i, f] == pytest.approx(reference, abs=1e-12)
            assert tier.f1(counts)[i, f] == pytest.approx(f1_score(*pair, sample_weight=item), abs=1e-12)
            assert tier.sensitivity(counts)[i, f] == pytest.approx(recall_score(*pair, sample_weight=item), abs=1e-12)
            reference = recall_score(*pair, sample_weight=item, pos_label=0)
            assert tier.specificity(counts)[i, f] == pytest.approx(reference, abs=1e-12)


def test_empty_margins():
    labels = np.array([[0, 1, 0, 1]] * 3, dtype=float)
    decisions = np.array([[0, 1, 1, 0]] * 3, dtype=float)
    counts = tier.Confusion(labels, decisions)(np.ones((1, 3)))
    assert np.isnan(tier.matthews(counts)).all() and np.isnan(tier.f1(counts)).all(), "a class is missing"
    both = tier.Confusion(np.array([[1.0, 1.0], [0.0, 0.0]]), np.array([[1.0, 0.0], [1.0, 0.0]]))(np.ones((1, 2)))
    np.testing.assert_array_equal(tier.matthews(both), [[0, 0]])
    np.testing.assert_allclose(tier.f1(both), [[2 / 3, 0]])
    unread = tier.Confusion(np.array([[1.0], [0.0]]), np.full((2, 1), np.nan))(np.ones((1, 2)))
    assert np.isnan(tier.matthews(unread)).all() and np.isnan(tier.f1(unread)).all()
    np.testing.assert_array_equal(tier.sensitivity(counts), [[np.nan, 1, np.nan, 0]])
    np.testing.assert_array_equal(tier.specificity(counts), [[1, np.nan, 0, np.nan]])


def test_rows_without_a_label_or_a_decision_are_skipped_for_that_finding_alone():
    labels = np.array([[1, 0], [math.nan, 1], [0, 1], [1, 0]])
    decisions = np.array([[1, 0], [1, 0], [math.nan, 1], [0, 1]], dtype=float)
    counts = tier.Confusion(labels, decisions)(np.array([[1.0, 2.0, 3.0, 4.0]]))
    assert [count[0].tolist() for count in counts] == [[1, 3], [0, 4], [4, 2], [0, 1]]
    with pytest.raises(ValueError, match="row 1 is 0.5"):
        tier.Confusion(labels, np.array([[1, 0], [0.5, 0], [1, 1], [0, 1]]))


# Calibration


def test_calibration_error_against_a_loop():
    rng = np.random.default_rng(0)
    probabilities = np.concatenate([rng.random(200) ** 2, [0.0, 0.1, 0.2, 1.0]])
    labels = (rng.random(204) < probabilities**0.5).astype(float)
    labels[5] = math.nan
    weights = weights_of(204, 10)
    for error, item in zip(calibration_error(labels, probabilities, weights), weights):
        expected, total = 0.0, sum(w for w, y in zip(item, labels) if y == y)
        for k in range(10):
            inside = [
                (w, p, y)
                for w, p, y in zip(item, probabilities, labels)
                if y == y and w and (k / 10 < p <= (k + 1) / 10 or (k == 0 and p == 0))
            ]
            weight = sum(w for w, _, _ in inside)
            if weight:
                gap = sum(w * p for w, p, _ in inside) / weight - sum(w * y for w, _, y in inside) / weight
                expected += weight / total * abs(gap)
        assert error == pytest.approx(expected, abs=1e-12)


def test_a_reliability_diagram_is_scikit_learns():
    rng = np.random.default_rng(0)
    probabilities = rng.random(100) * 0.6  # the last bins are empty
    labels = (rng.random(100) < probabilities).astype(float)
    result = tier.reliability(labels, probabilities)
    share, mean = calibration_curve(labels, probabilities, n_bins=10)
    assert result["count"].sum() == 100 and (result["count"][6:] == 0).all()
    np.testing.assert_allclose(result["mean_probability"][:6], mean, atol=1e-12)
    np.testing.assert_allclose(result["fraction_positive"][:6], share, atol=1e-12)
    assert np.isnan(result["fraction_positive"][6:]).all()
    error = (result["count"][:6] * np.abs(share - mean)).sum() / 100
    assert calibration_error(labels, probabilities, np.ones((1, 100)))[0] == pytest.approx(error)
    with pytest.raises(ValueError, match=r"probabilities\[1\]"):
        tier.reliability([0, 1], [0.5, 1.5])


def platt(labels, scores):
    """Maximum likelihood with Platt's targets, by a general optimiser."""
    positive, negative = (labels == 1).sum(), (labels == 0).sum()
    targets = np.where(labels == 1, (positive + 1) / (positive + 2), 1 / (negative + 2))
    scale = scores.std()

    def loss(parameters):
        logits = parameters[0] * scores / scale + parameters[1]
        return (np.logaddexp(0, logits) - targets * logits).sum()

    outcome = optimize.minimize(loss, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    return outcome.x[0] / scale, outcome.x[1]


@pytest.mark.parametrize("separable", [False, True])
def test_calibration_is_platts_maximum_likelihood(separable):
    labels, scores = draw(120, ties=False)
    scores = 0.3 + 0.02 * (labels if separable else scores)
    fitted = tier.fit_calibration(labels, scores)
    slope, intercept = platt(labels, scores)
    assert fitted.slope == pytest.approx(slope, rel=1e-4)
    assert fitted.intercept == pytest.approx(intercept, rel=1e-4)
    expected = 1 / (1 + np.exp(-(fitted.slope * scores + fitted.intercept)))
    np.testing.assert_allclose(tier.calibrated(scores, fitted), expected, atol=1e-12)


def test_calibration_of_odd_data():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        constant = tier.fit_calibration([0, 0, 1, 0], [0.2, 0.2, 0.2, 0.2])
        assert constant.slope == pytest.approx(0, abs=1e-9)
        np.testing.assert_array_equal(tier.calibrated([-1e6, 1e6], tier.Calibration(1e3, 0.0)), [0.0, 1.0])
    assert tier.fit_calibration([0, 0, math.nan], [0.1, 0.2, 0.3]) is None
    assert np.isnan(tier.calibrated([0.1, 0.2], None)).all()
    left_out = tier.fit_calibration([0, 1, 0, 1, math.nan], [0.1, 0.2, 0.3, 0.4, 9.0])
    assert left_out == tier.fit_calibration([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4])


# Thresholds


@settings(deadline=None, max_examples=200)
@given(rows=st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=1, max_size=12))
# Two thresholds have the same MCC but for rounding.
@example(rows=[*[(0, -1)] * 3, (0, 0), (0, 0), (0, 1), (1, 0), (1, 1), (1, 1)])
@pytest.mark.parametrize(("criterion", "measure"), [("mcc", matthews_corrcoef), ("f1", f1_score)])
def test_a_threshold_is_the_best_of_all(criterion, measure, rows):
    labels, scores = (np.array(column, dtype=float) for column in zip(*rows))
    threshold = tier.choose_threshold(labels, scores, criterion)
    if len(set(labels)) < 2:
        assert threshold is None
        return
    levels = sorted(set(scores))
    candidates = [levels[0] - 1, *((a + b) / 2 for a, b in zip(levels, levels[1:])), levels[-1]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = [measure(labels, scores > candidate, **zero_division(measure)) for candidate in candidates]
        best = max(values)
        assert measure(labels, scores > threshold, **zero_division(measure)) == pytest.approx(best, abs=1e-12)
    # Among equals the highest; the candidates rise.
    highest = [c for c, value in zip(candidates, values) if value == pytest.approx(best, abs=1e-12)][-1]
    if highest >= levels[0]:
        assert threshold == highest
    else:
        assert threshold < levels[0]


def zero_division(measure):
    return {"zero_division": 0.0} if measure is f1_score else {}


def test_a_threshold_between_neighbouring_floats_still_separates_them():
    for low in (0.1, np.nextafter(0.1, 1)):  # the midpoint is rounded down, then up
        high = np.nextafter(low, 1)
        threshold = tier.choose_threshold([0, 1], [low, high], "mcc")
        assert low <= threshold < high
    single = np.float32([0.1, np.nextafter(np.float32(0.1), np.float32(1))])
    threshold = tier.choose_threshold([0, 1], single, "f1")
    assert (single.astype(np.float64) > threshold).tolist() == [False, True]
    assert tier.choose_threshold([1, 1, 0], [0.3, 0.2, 0.1], "f1") == pytest.approx(0.15)
    with pytest.raises(ValueError, match="criterion"):
        tier.choose_threshold([0, 1], [0.1, 0.2], "accuracy")
    with pytest.raises(ValueError, match="row 1 is nan"):
        tier.choose_threshold([0, 1], [0.1, math.nan], "mcc")
    with pytest.raises(ValueError, match="label of row 0 is -1"):
        tier.choose_threshold([-1, 1], [0.1, 0.2], "mcc")


# Means


def test_means_of_rows_and_of_groups_against_numpy():
    rng = np.random.default_rng(0)
    values, weights = rng.standard_normal((40, 2)), weights_of(40, 6)
    values[3, 0] = math.nan
    groups = rng.choice(["edema", "nodule", "rare"], 40, p=[0.5, 0.45, 0.05])
    names = ["nodule", "edema", "rare", "absent"]
    means = tier.group_means(values, groups, names, weights)
    assert means.shape == (6, 4, 2)
    for i, item in enumerate(weights):
        kept = ~np.isnan(values[:, 0])
        mean = np.average(values[kept, 0], weights=item[kept])
        assert tier.weighted_mean(values, weights)[i, 0] == pytest.approx(mean)
        for g, name in enumerate(names):
            rows = (groups == name) & kept
            if item[rows].sum():
                mean = np.average(values[rows, 0], weights=item[rows])
                assert means[i, g, 0] == pytest.approx(mean)
                assert tier.group_means(values[:, 0], groups, names, weights)[i, g] == pytest.approx(mean)
            else:
                assert math.isnan(means[i, g, 0])
    assert np.isnan(means[:, 3]).all()
    macro = tier.macro_mean(np.array([[1.0, math.nan, 3.0], [math.nan] * 3]))
    assert macro[0] == 2 and math.isnan(macro[1])


# Intervals


def test_an_interval_is_that_of_the_percentiles():
    samples = np.random.default_rng(0).standard_normal(999)
    result = tier.interval(0.5, samples, 0.9)
    bounds = np.percentile(samples, [5, 95])
    assert result == pytest.approx({"value": 0.5, "low": bounds[0], "high": bounds[1]})
    with_nan = tier.interval(0.5, np.append(samples, [math.nan] * 7), 0.9)
    assert with_nan == result | {"undefined_resamples": 7}
    assert tier.interval(0.5, np.empty(0)) == {"value": 0.5}
    everything = {"value": 0.5, "low": None, "high": None, "undefined_resamples": 2}
    assert tier.interval(0.5, np.array([math.nan] * 2)) == everything
    assert tier.interval(math.nan, samples, undefined="n+ = 0, n- = 60") == {
        "value": None,
        "undefined": "n+ = 0, n- = 60",
    }
    with pytest.raises(ValueError, match="confidence"):
        tier.interval(0.5, samples, 95)


def test_a_difference_counts_resamples_on_the_wrong_side():
    a, b = np.array([1.0, 2.0, 3.0, 4.0, math.nan]), np.array([0.0, 3.0, 1.0, 1.0, 0.0])
    result = tier.difference(0.25, a, b)
    assert result["p_bootstrap"] == pytest.approx(2 * (1 + 1) / (4 + 1))  # differences 1, -1, 2, 3
    assert result["undefined_resamples"] == 1
    assert tier.difference(-0.25, b, a)["p_bootstrap"] == result["p_bootstrap"]
    assert tier.difference(3.0, np.full(999, 3.0), np.zeros(999))["p_bootstrap"] == pytest.approx(2 / 1000)
    with pytest.raises(ValueError, match="draw both alike"):
        tier.difference(0.0, a, b[:3])


def test_a_model_does_not_differ_from_itself():
    labels, scores = (np.stack(columns, axis=1) for columns in zip(draw(60), draw(60, seed=1)))
    probabilities = 1 / (1 + np.exp(-scores))
    measures = tier.Classification(labels, scores, [0.1, 0.2], [0.3, 0.4], probabilities, probabilities)
    estimates = tier.distribution(tier.Resamples(np.arange(60) // 3, 100), measures)
    again = tier.distribution(tier.Resamples(np.arange(60) // 3, 100), measures)
    for name, estimate in estimates.items():
        for result in tier.differences(estimate, again[name], ["edema", "nodule"]).values():
            assert (result["value"], result["low"], result["high"], result["p_bootstrap"]) == (0, 0, 0, 1), name


def test_differences_are_the_first_minus_the_second():
    rng = np.random.default_rng(0)
    a, b = (tier.Estimate(rng.random(3), rng.random((200, 3))) for _ in range(2))
    a.value[1] = a.distribution[:, 1] = math.nan
    results = tier.differences(a, b, ["x", "y", "z"], 0.9, [None, "n+ = 0, n- = 9", None])
    assert results["y"] == {"value": None, "undefined": "n+ = 0, n- = 9"}
    for f, name in ((0, "x"), (2, "z")):
        alone = tier.difference(a.value[f] - b.value[f], a.distribution[:, f], b.distribution[:, f], 0.9)
        assert results[name] == alone
        bounds = np.percentile(a.distribution[:, f] - b.distribution[:, f], [5, 95])
        assert (alone["low"], alone["high"]) == pytest.approx(bounds)
    assert results["mean"]["value"] == pytest.approx((a.value - b.value)[[0, 2]].mean())
    bounds = np.percentile((a.distribution - b.distribution)[:, [0, 2]].mean(axis=1), [5, 95])
    assert (results["mean"]["low"], results["mean"]["high"]) == pytest.approx(bounds)
    with pytest.raises(ValueError, match="2 names"):
        tier.differences(a, b, ["x", "y"])


def test_a_classification_has_all_measures_and_says_what_is_undefined():
    labels, scores = (np.stack(columns, axis=1) for columns in zip(*(draw(90, seed) for seed in range(3))))
    labels[:, 1] = 0
    labels[:30, 1] = math.nan
    probabilities = 1 / (1 + np.exp(-scores))
    recalibrated = np.where([True, True, False], probabilities**2, math.nan)
    measures = tier.Classification(labels, scores, [0.1, 0.2, None], [0.3, 0.4, None], probabilities, recalibrated)
    estimates = tier.distribution(tier.Resamples(np.arange(90), 200), measures)
    names, results = ["a", "b", "c"], {}
    for name, estimate in estimates.items():
        assert estimate.distribution.shape == (200, 3)
        results[name] = tier.intervals(estimate, names, undefined=measures.undefined[name])
    assert list(results["auroc"]) == ["a", "b", "c", "mean"]
    assert results["auroc"]["b"] == {"value": None, "undefined": "n+ = 0, n- = 60"}
    references = [roc_auc_score(labels[:, f], scores[:, f]) for f in (0, 2)]
    assert results["auroc"]["mean"]["value"] == pytest.approx(np.mean(references), abs=1e-12)
    samples = estimates["auroc"].distribution[:, [0, 2]].mean(axis=1)
    assert results["auroc"]["mean"]["low"] == pytest.approx(np.percentile(samples, 2.5))
    reference = average_precision_score(labels[:, 2], scores[:, 2])
    assert results["average_precision"]["c"]["value"] == pytest.approx(reference)
    assert results["mcc"]["a"]["value"] == pytest.approx(matthews_corrcoef(labels[:, 0], scores[:, 0] > 0.1))
    assert results["f1"]["a"]["value"] == pytest.approx(f1_score(labels[:, 0], scores[:, 0] > 0.3))
    assert results["sensitivity"]["a"]["value"] == pytest.approx(recall_score(labels[:, 0], scores[:, 0] > 0.1))
    assert results["specificity"]["b"]["undefined"] == "n+ = 0, n- = 60"
    assert results["mcc"]["c"] == results["f1"]["c"] == {"value": None, "undefined": "no threshold"}
    assert results["mcc"]["mean"]["value"] == results["mcc"]["a"]["value"]
    error = calibration_error(labels[:, 1], probabilities[:, 1], np.ones((1, 90)))[0]
    assert results["ece"]["b"]["value"] == error
    assert results["ece_calibrated"]["c"] == {"value": None, "undefined": "no probabilities"}
    nothing = tier.Classification(np.full((4, 1), math.nan), np.zeros((4, 1)), probabilities=np.zeros((4, 1)))
    assert all(math.isnan(value[0, 0]) for value in nothing(np.ones((1, 4))).values())


def test_five_equal_images_a_subject_widen_the_interval_by_the_root_of_five():
    labels, scores = draw(150, ties=False)
    labels, scores = np.repeat(labels, 5)[:, None], np.repeat(scores, 5)[:, None]
    measures, widths = tier.Classification(labels, scores), []
    for subjects in (np.arange(750) // 5, np.arange(750)):
        result = tier.distribution(tier.Resamples(subjects, 2000), measures)["auroc"]
        bounds = tier.intervals(result, ["finding"])["finding"]
        widths.append(bounds["high"] - bounds["low"])
    assert widths[0] / widths[1] == pytest.approx(math.sqrt(5), rel=0.1)


def test_intervals_cover_the_truth():
    """The AUROC of normal scores a standard deviation apart is Phi(1 / sqrt(2)); three correlated images a patient."""
    truth, covered, number = stats.norm.cdf(1 / math.sqrt(2)), 0, 200
    rng = np.random.default_rng(0)
    subjects = np.repeat(np.arange(100), 3)
    for _ in range(number):
        labels = (np.arange(100) < 40).astype(float)
        common = math.sqrt(0.7) * rng.standard_normal(100) + labels
        scores = common[subjects] + math.sqrt(0.3) * rng.standard_normal(300)
        measures = tier.Classification(labels[subjects][:, None], scores[:, None])
        result = tier.distribution(tier.Resamples(subjects, 200), measures)["auroc"]
        bounds = tier.intervals(result, ["finding"])["finding"]
        covered += bounds["low"] <= truth <= bounds["high"]
    assert 0.88 <= covered / number <= 0.99


# DeLong


def kernel(positive, negative):
    return np.array([[1.0 if x > y else 0.5 if x == y else 0.0 for y in negative] for x in positive])


def delong_by_definition(labels, models):
    """AUROCs and their covariance (2, 2), equations of DeLong et al. 1988 with the whole m x n kernel."""
    kernels = [kernel(scores[labels == 1], scores[labels == 0]) for scores in models]
    m, n = kernels[0].shape
    theta = [item.sum() / (m * n) for item in kernels]
    v10, v01 = [item.sum(axis=1) / n for item in kernels], [item.sum(axis=0) / m for item in kernels]
    covariance = np.zeros((2, 2))
    for r in range(2):
        for s in range(2):
            s10 = sum((v10[r][i] - theta[r]) * (v10[s][i] - theta[s]) for i in range(m)) / (m - 1)
            s01 = sum((v01[r][j] - theta[r]) * (v01[s][j] - theta[s]) for j in range(n)) / (n - 1)
            covariance[r, s] = s10 / m + s01 / n
    return theta, covariance


def obuchowski_by_definition(labels, models, subjects):
    """AUROCs and their covariance for clustered data, by loops over clusters (Obuchowski 1997)."""
    kernels = [kernel(scores[labels == 1], scores[labels == 0]) for scores in models]
    m, n = kernels[0].shape
    theta = [item.mean() for item in kernels]
    clusters = sorted(set(subjects))
    owner_positive, owner_negative = subjects[labels == 1], subjects[labels == 0]
    with_positive, with_negative = len(set(owner_positive)), len(set(owner_negative))
    covariance = np.zeros((2, 2))
    for r in range(2):
        for s in range(2):
            s10 = s01 = s11 = s11_turned = 0.0
            for cluster in clusters:
                p, q = owner_positive == cluster, owner_negative == cluster
                positive = [kernels[k].mean(axis=1)[p].sum() - p.sum() * theta[k] for k in (r, s)]
                negative = [kernels[k].mean(axis=0)[q].sum() - q.sum() * theta[k] for k in (r, s)]
                s10 += positive[0] * positive[1]
                s01 += negative[0] * negative[1]
                s11 += positive[0] * negative[1]
                s11_turned += negative[0] * positive[1]
            s10 *= with_positive / ((with_positive - 1) * m)
            s01 *= with_negative / ((with_negative - 1) * n)
            factor = len(clusters) / (len(clusters) - 1)
            covariance[r, s] = s10 / m + s01 / n + factor * (s11 + s11_turned) / (m * n)
    return theta, covariance


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("clustered", [False, True])
def test_delong_is_the_papers_formula(ties, clustered):
    rng = np.random.default_rng(2)
    labels, a = draw(90, ties=ties)
    b = a + rng.standard_normal(90)
    b = np.round(b) if ties else b
    subjects = rng.integers(0, 25, 90) if clustered else None
    if clustered:
        theta, covariance = obuchowski_by_definition(labels, (a, b), subjects)
    else:
        theta, covariance = delong_by_definition(labels, (a, b))
    error = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    result = tier.delong(labels, a, b, subjects)
    assert (result["auroc_a"], result["auroc_b"]) == pytest.approx(theta, abs=1e-12)
    assert result["auroc_a"] == pytest.approx(roc_auc_score(labels, a), abs=1e-12)
    assert result["difference"] == pytest.approx(theta[0] - theta[1], abs=1e-12)
    assert result["standard_error"] == pytest.approx(error, rel=1e-9)
    assert result["p"] == pytest.approx(2 * stats.norm.sf(abs(theta[0] - theta[1]) / error), rel=1e-9)
    bounds = stats.norm(theta[0] - theta[1], error).interval(0.95)
    assert (result["low"], result["high"]) == pytest.approx(bounds, rel=1e-9)


def test_clusters_of_one_row_are_delongs():
    labels, a = draw(60)
    b = np.random.default_rng(1).permutation(a)
    alone = tier.delong(labels, a, b)
    assert tier.delong(labels, a, b, subjects=[f"p{i}" for i in range(60)]) == pytest.approx(alone, rel=1e-12)
    # Twice the same image of everyone says nothing new: about the same error, not one smaller by the root of two.
    twice = tier.delong(*(np.repeat(item, 2) for item in (labels, a, b)), subjects=np.arange(120) // 2)
    assert twice["standard_error"] == pytest.approx(alone["standard_error"], rel=0.02)


def test_delong_agrees_with_the_bootstrap():
    labels, a = draw(400, ties=False)
    b = a + np.random.default_rng(1).standard_normal(400)
    weights = weights_of(400, 2000)
    samples = weighted_auroc(labels, a, weights) - weighted_auroc(labels, b, weights)
    assert tier.delong(labels, a, b)["standard_error"] == pytest.approx(samples.std(), rel=0.08)


def test_delongs_p_is_uniform_where_there_is_no_difference():
    rng, p_values = np.random.default_rng(0), []
    for _ in range(300):
        labels, common = draw(80, seed=rng.integers(2**31))
        a, b = common + rng.standard_normal((2, 80))
        p_values.append(tier.delong(labels, a, b)["p"])
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_delong_of_a_model_and_itself_is_one():
    labels, scores = draw(50)
    for other in (scores, scores * 3 + 1):
        result = tier.delong(labels, scores, other, subjects=np.arange(50) // 2)
        assert (result["difference"], result["standard_error"], result["p"]) == (0, 0, 1)
    # As good on average, but different: no difference, with an error.
    mirrored = tier.delong([1, 1, 0, 0], [2, 0, 1, 1], [0, 2, 1, 1])
    assert mirrored["p"] == 1 and mirrored["standard_error"] > 0
    # One that is perfect and one that says nothing: the variance of four rows is 0, which is no certainty.
    for other in ([0, 0, 1, 1], [1, 1, 1, 1]):
        result = tier.delong([1, 1, 0, 0], [1, 1, 0, 0], other)
        assert result["standard_error"] == 0 < result["difference"]
        assert result["p"] is result["low"] is result["high"] is None


def test_delong_of_too_little_is_undefined():
    result = tier.delong([0, 0, math.nan], [0.1, 0.2, 0.3], [0.3, 0.2, 0.1])
    assert result.pop("undefined") == "n+ = 0, n- = 2" and set(result.values()) == {None}
    single = tier.delong([1, 0, 0], [0.3, 0.2, 0.4], [0.5, 0.4, 0.3])
    assert single["difference"] == -0.5 and single["p"] is single["low"] is single["standard_error"] is None
    labels, scores = draw(40)
    left_out = tier.delong(np.append(labels, math.nan), np.append(scores, 9), np.append(scores[::-1], -9))
    assert left_out == tier.delong(labels, scores, scores[::-1])
    with pytest.raises(ValueError, match="3 subjects for 4 labels"):
        tier.delong([1, 1, 0, 0], [1, 2, 3, 4], [1, 2, 3, 4], subjects=[1, 2, 3])


def test_holms_correction_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.2 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.2.
    assert tier.holm([0.03, None, 0.01, 0.2, 0.02]) == [0.06, None, 0.04, 0.2, pytest.approx(0.06)]
    # 0.011 times 2 is less than 0.01 times 3: adjusted values never fall.
    assert tier.holm([0.011, 0.01, 0.5]) == pytest.approx([0.03, 0.03, 0.5])
    assert tier.holm([0.9, 0.8, 1.0]) == [1.0, 1.0, 1.0]
    assert tier.holm([None]) == [None] and tier.holm([]) == []


# The module for `evaluate`


def module():
    return evaluate.load(str(Path(zeroshot_auroc.__file__).parent), keep_in_memory=True)


def test_the_module_gives_the_intervals_of_a_loop_over_patients():
    labels, scores = draw(60)
    subjects = [f"patient {i // 3}" for i in range(60)]
    result = module().compute(
        predictions=scores, references=labels.astype(int), subjects=subjects, resamples=100, seed=5, confidence=0.9
    )
    names = sorted(set(subjects))
    rng, auroc, precision = np.random.default_rng(5), [], []
    for _ in range(100):
        chosen = [names[i] for i in rng.integers(20, size=20)]
        rows = [row for name in chosen for row in range(60) if subjects[row] == name]
        auroc.append(roc_auc_score(labels[rows], scores[rows]))
        precision.append(average_precision_score(labels[rows], scores[rows]))
    assert result["roc_auc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert result["average_precision"] == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert result["roc_auc_interval"] == pytest.approx(np.percentile(auroc, [5, 95]), abs=1e-12)
    assert result["average_precision_interval"] == pytest.approx(np.percentile(precision, [5, 95]), abs=1e-12)


def test_the_module_without_resamples_subjects_or_a_class():
    labels, scores = draw(40)
    images = module().compute(predictions=scores, references=labels.astype(int), resamples=50)
    own = module().compute(predictions=scores, references=labels.astype(int), subjects=np.arange(40), resamples=50)
    assert images == own
    none = module().compute(predictions=scores, references=labels.astype(int), resamples=0)
    assert set(none) == {"roc_auc", "average_precision", "num_positive", "num_negative"}
    single = module().compute(predictions=scores, references=np.ones(40, dtype=int), resamples=10)
    undefined = ("roc_auc", "average_precision", "roc_auc_interval", "average_precision_interval")
    assert [single[name] for name in undefined] == [None] * 4 and single["num_positive"] == 40
    with pytest.raises(ValueError, match="3 subjects for 40 predictions"):
        module().compute(predictions=scores, references=labels.astype(int), subjects=[1, 2, 3])
