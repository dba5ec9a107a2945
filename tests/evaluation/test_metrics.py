# Licensed under the Apache License, Version 2.0.
"""The `evaluate` modules against scikit-learn and against loops written from their definitions."""

import json
import math
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import average_precision_score, f1_score, jaccard_score, roc_auc_score

import modeling_tier.evaluation
from modeling_tier.evaluation.metrics.phrase_grounding import phrase_grounding
from modeling_tier.evaluation.metrics.phrase_grounding.phrase_grounding import measure_maps


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


def loop_over_resamples(subjects, resamples, seed, measure, confidence=0.95):
    """The bootstrap written out: the rows of every resample are put together and measured anew."""
    names = sorted(set(subjects))
    generator, values = np.random.default_rng(seed), []
    for _ in range(resamples):
        drawn = generator.integers(len(names), size=len(names))
        rows = [row for i in drawn for row, subject in enumerate(subjects) if subject == names[i]]
        values.append(measure(rows))
    return np.percentile(values, [50 * (1 - confidence), 50 * (1 + confidence)]).tolist()


def test_auroc_and_average_precision_have_intervals_over_subjects():
    rng = np.random.default_rng(3)
    labels, subjects = rng.integers(0, 2, 60), rng.integers(0, 25, 60).tolist()
    scores = np.round(rng.standard_normal(60) + labels, 1)
    result = load("zeroshot_auroc").compute(
        predictions=scores, references=labels, subjects=subjects, resamples=100, seed=4, confidence=0.9
    )
    assert result["average_precision"] == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    for name, measure in (("roc_auc", roc_auc_score), ("average_precision", average_precision_score)):
        expected = loop_over_resamples(
            subjects, 100, 4, lambda rows, measure=measure: measure(labels[rows], scores[rows]), confidence=0.9
        )
        assert result[f"{name}_interval"] == pytest.approx(expected, abs=1e-12)


def iou_loop(values, place, threshold):
    return jaccard_score(place, [value >= threshold for value in values])


def dice_loop(values, place, threshold):
    return f1_score(place, [value >= threshold for value in values])


def map_loop(values, place):
    """A map against its place by the definitions, in Python's own float64."""
    values, place = [float(value) for value in values], [bool(p) for p in place]
    inside = [v for v, p in zip(values, place) if p]
    outside = [v for v, p in zip(values, place) if not p]

    def mean(numbers):
        return math.fsum(numbers) / len(numbers)

    def variance(numbers):
        return mean([(x - mean(numbers)) ** 2 for x in numbers])

    low, high = min(values), max(values)
    scaled = [(v - low) / (high - low) for v in values]
    return {
        "hit": mean([p for v, p in zip(values, place) if v >= high - 1e-6 * (high - low)]),
        "chance": mean(place),
        "cnr": (mean(inside) - mean(outside)) / math.sqrt(variance(inside) + variance(outside)),
        "ious": [iou_loop(scaled, place, step / 20) for step in range(1, 20)],
        "mious": mean([iou_loop(values, place, threshold) for threshold in (0.1, 0.2, 0.3, 0.4, 0.5)]),
        "mdices": mean([dice_loop(values, place, threshold) for threshold in (0.1, 0.2, 0.3, 0.4, 0.5)]),
        "dices": [dice_loop(scaled, place, step / 20) for step in range(1, 20)],
        "pixel_auroc": roc_auc_score(place, values),
    }


def random_maps(number, size, seed=1, dtype=np.float32):
    rng = np.random.default_rng(seed)
    inside = rng.random((number, size)) < 0.3
    inside[:, 0], inside[:, 1] = True, False
    return (0.3 * rng.standard_normal((number, size)) + 0.2 * inside).astype(dtype), inside


def test_phrase_grounding_against_loops():
    maps, inside = random_maps(9, 30)
    maps[0] *= -1  # one that points away
    result = load("phrase_grounding").compute(predictions=maps, references=inside.astype(np.int8), resamples=0)
    loops = [map_loop(values, place) for values, place in zip(maps, inside)]
    ious = np.mean([loop["ious"] for loop in loops], axis=0)
    expected = {
        "pointing_game": np.mean([loop["hit"] for loop in loops]),
        "chance": inside.mean(),
        "cnr": np.mean([loop["cnr"] for loop in loops]),
        "cnr_absolute": np.mean([abs(loop["cnr"]) for loop in loops]),
        "miou": np.mean([loop["mious"] for loop in loops]),
        "mdice": np.mean([loop["mdices"] for loop in loops]),
        "pixel_auroc": np.mean([loop["pixel_auroc"] for loop in loops]),
        "iou": ious.max(),
        "dice": np.mean([loop["dices"][ious.argmax()] for loop in loops]),
        "iou_threshold": (ious.argmax() + 1) / 20,
        "num_maps": 9,
    }
    assert result == pytest.approx(expected, abs=1e-12) and result["cnr"] < result["cnr_absolute"]
    given = load("phrase_grounding").compute(
        predictions=maps, references=inside.astype(np.int8), threshold=0.85, resamples=0
    )
    expected |= {
        "iou": np.mean([loop["ious"][16] for loop in loops]),
        "dice": np.mean([loop["dices"][16] for loop in loops]),
        "iou_threshold": 0.85,
    }
    assert given == pytest.approx(expected, abs=1e-12) and given["iou"] < result["iou"]
    with pytest.raises(ValueError, match=r"threshold must be one of 0\.05, .*got 0\.33"):
        load("phrase_grounding").compute(predictions=maps, references=inside.astype(np.int8), threshold=0.33)


@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)])
def test_each_map_is_measured_by_the_definitions_also_at_the_thresholds(dtype):
    """Maps of 0, 0.05, ..., 1: every pixel stands at a threshold, or at the number just below or above it."""
    rng = np.random.default_rng(2)
    steps = (rng.integers(0, 21, (12, 90)) / 20).astype(dtype)
    steps[:, :2] = 0, 1
    nudged = np.nextafter(steps, rng.choice([-1, 2], steps.shape).astype(dtype))
    nudged[:, :2] = 0, 1
    free, inside = random_maps(12, 90, seed=3, dtype=dtype)
    for maps in (steps, nudged, free, 2 * free):
        measured = measure_maps(maps, inside)
        loops = [map_loop(values, place) for values, place in zip(maps, inside)]
        assert measured["hit"].tolist() == [loop["hit"] for loop in loops]
        assert np.array_equal(measured["ious"], [loop["ious"] for loop in loops])
        np.testing.assert_allclose(measured["mious"], [loop["mious"] for loop in loops], rtol=1e-15)
        np.testing.assert_allclose(measured["mdices"], [loop["mdices"] for loop in loops], rtol=1e-15)
        np.testing.assert_allclose(measured["pixel_auroc"], [loop["pixel_auroc"] for loop in loops], rtol=1e-15)
        np.testing.assert_allclose(measured["cnr"], [loop["cnr"] for loop in loops], rtol=1e-12)
        np.testing.assert_allclose(measured["chance"], [loop["chance"] for loop in loops], rtol=1e-15)
        assert np.array_equal(measured["cnr_absolute"], np.abs(measured["cnr"]))


def test_maps_may_be_flat_or_not_and_any_number_of_them():
    maps, inside = random_maps(300, 600, seed=4)
    assert maps.size > phrase_grounding._CHUNK
    flat, rows = measure_maps(maps, inside), measure_maps(maps.reshape(300, 20, 30), inside.reshape(300, 20, 30))
    alone = [measure_maps(maps[i : i + 1], inside[i : i + 1]) for i in range(300)]
    for name, values in flat.items():
        assert len(values) == 300 and np.array_equal(values, rows[name])
        assert np.array_equal(values, np.concatenate([one[name] for one in alone]))
    maps[299, 7] = np.inf
    with pytest.raises(ValueError, match="Map 299: the map holds"):
        measure_maps(maps, inside)
    with pytest.raises(ValueError, match=r"\(299, 600\)"):
        measure_maps(maps[:299], inside)


def test_a_constant_map_points_nowhere():
    place = np.zeros((2, 49), bool)
    place[0, :7], place[1, 10:17] = True, True
    measured = measure_maps(np.full((2, 49), 0.3), place)
    np.testing.assert_allclose(measured["hit"], measured["chance"])
    assert not measured["cnr"].any() and not measured["ious"].any() and (measured["pixel_auroc"] == 0.5).all()
    np.testing.assert_allclose(measured["mious"], 3 / 5 / 7)  # at 0.1, 0.2 and 0.3 all pixels are chosen


def test_left_and_right_are_alike():
    """A peak in a border patch becomes a plateau of pixels when the map is scaled up."""
    patches = torch.zeros(1, 1, 7, 7)
    patches[0, 0, 3, 0] = 1
    fine = torch.nn.functional.interpolate(patches, (224, 224), mode="bilinear", align_corners=False)[0, 0].numpy()
    place = np.zeros((224, 224), bool)
    place[100:120, 8:40] = True
    hits = [measure_maps(m[None], p[None])["hit"][0] for m, p in ((fine, place), (fine[:, ::-1], place[:, ::-1]))]
    assert hits[0] == hits[1] == pytest.approx(0.5, abs=0.01)


def test_miou_sees_the_scale_and_iou_does_not():
    maps, inside = random_maps(5, 40, seed=5)
    one, other = measure_maps(maps.astype(np.float64), inside), measure_maps(maps.astype(np.float64) / 64, inside)
    assert np.array_equal(one["ious"], other["ious"])
    assert one["mious"].min() > 0 and not other["mious"].any()  # no cosine reaches 0.1


@pytest.mark.parametrize("with_subjects", [False, True])
def test_intervals_of_maps_are_those_of_a_bootstrap_written_out(with_subjects):
    maps, inside = random_maps(14, 30, seed=6)
    subjects = [f"p{i}" for i in (3, 3, 1, 1, 1, 0, 2, 4, 4, 5, 6, 6, 7, 8)] if with_subjects else None
    result = load("phrase_grounding").compute(
        predictions=maps, references=inside.astype(np.int8), subjects=subjects, resamples=60, seed=7, confidence=0.8
    )
    loops = [map_loop(values, place) for values, place in zip(maps, inside)]
    best = round(result["iou_threshold"] * 20) - 1
    of_map = {
        "pointing_game": [loop["hit"] for loop in loops],
        "cnr": [loop["cnr"] for loop in loops],
        "miou": [loop["mious"] for loop in loops],
        "iou": [loop["ious"][best] for loop in loops],
        "dice": [loop["dices"][best] for loop in loops],
        "mdice": [loop["mdices"] for loop in loops],
        "pixel_auroc": [loop["pixel_auroc"] for loop in loops],
    }
    for name, values in of_map.items():
        expected = loop_over_resamples(
            subjects or range(14), 60, 7, lambda rows, values=values: np.mean([values[i] for i in rows]), 0.8
        )
        assert result[f"{name}_interval"] == pytest.approx(expected, abs=1e-12)
        assert result[f"{name}_interval"][0] < result[name] < result[f"{name}_interval"][1]
    json.dumps(result, allow_nan=False)


def test_copies_of_a_subjects_maps_do_not_make_an_interval_narrower():
    """400 subjects of four equal maps each: the normal interval of 400 draws, or of 1,600 if nobody knows of them."""
    hit = np.arange(400) % 4 == 0
    place = np.zeros((400, 4), np.int8)
    place[:, 0] = 1
    maps = np.where(hit[:, None], [1, 0, 0, 0], [0, 0, 0, 1]).astype(np.float32)
    copies = {"predictions": np.repeat(maps, 4, axis=0), "references": np.repeat(place, 4, axis=0)}
    known = load("phrase_grounding").compute(**copies, subjects=np.repeat(np.arange(400), 4))
    unknown = load("phrase_grounding").compute(**copies)
    for result, number in ((known, 400), (unknown, 1600)):
        low, high = result["pointing_game_interval"]
        half = norm.ppf(0.975) * math.sqrt(0.25 * 0.75 / number)
        assert (low, high) == pytest.approx((0.25 - half, 0.25 + half), abs=0.15 * half)


def test_phrase_grounding_of_a_perfect_and_of_a_wrong_map():
    place = np.zeros((1, 100), np.int8)
    place[0, 40:50] = 1
    perfect = load("phrase_grounding").compute(predictions=place.astype(np.float32), references=place)
    assert perfect["pointing_game"] == 1 and perfect["iou"] == 1 and perfect["cnr"] > 1000
    wrong = load("phrase_grounding").compute(predictions=-place.astype(np.float32), references=place)
    assert wrong["pointing_game"] == 0 and wrong["cnr"] < -1000


@pytest.mark.parametrize(
    ("maps", "masks", "message"),
    [
        ([[1, 0], [1, math.nan]], [[1, 0], [1, 0]], "Map 1: the map holds NaN"),
        ([[1, 0], [1, 0]], [[1, 0], [0, 0]], "Map 1: every mask needs pixels inside and outside"),
        ([[1, 0], [1, 0]], [[1, 0], [1, 1]], "Map 1: every mask needs pixels inside and outside"),
        ([[1, 0], [1, 0]], [[1, 0], [2, 0]], "Map 1: the mask holds other values than 0 and 1"),
        ([[1, 0], [1, 0, 2]], [[1, 0], [1, 0, 0]], r"predictions\[1\] has 3 pixels .* the first map has 2"),
        ([[1, 0], [1, 0]], [[1, 0], [1, 0, 0]], r"references\[1\] 3"),
        ([], [], "as many maps as masks"),
    ],
)
def test_maps_that_cannot_be_measured_are_named(maps, masks, message):
    with pytest.raises(ValueError, match=message):
        load("phrase_grounding").compute(predictions=maps, references=masks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subjects": ["a"]}, "1 subjects for 2 predictions"),
        ({"subjects": ["a", None]}, r"subjects\[1\] is None"),
        ({"subjects": [math.nan, 1.0]}, r"subjects\[0\] is nan"),
        ({"resamples": -1}, "resamples must be >= 0"),
        ({"confidence": 95}, r"confidence in \(0, 1\)"),
    ],
)
@pytest.mark.parametrize("name", ["phrase_grounding", "retrieval_recall"])
def test_options_of_the_bootstrap_that_make_no_sense_are_named(name, options, message):
    references = {"phrase_grounding": [[1, 0], [0, 1]], "retrieval_recall": [0, 1]}[name]
    with pytest.raises(ValueError, match=message):
        load(name).compute(predictions=[[1, 0], [0, 1]], references=references, **options)


@pytest.mark.parametrize("name", ["phrase_grounding", "retrieval_recall", "zeroshot_auroc"])
def test_no_resamples_no_intervals(name):
    predictions = [0.1, 0.2] if name == "zeroshot_auroc" else [[1, 0], [0, 1]]
    references = [[1, 0], [0, 1]] if name == "phrase_grounding" else [0, 1]
    without = load(name).compute(predictions=predictions, references=references, resamples=0)
    with_them = load(name).compute(predictions=predictions, references=references)
    assert without == {key: value for key, value in with_them.items() if not key.endswith("_interval")} != with_them


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


def test_intervals_of_recall_draw_queries_and_keep_the_candidates():
    rng = np.random.default_rng(8)
    similarity = (rng.standard_normal((30, 30)) + 1.5 * np.eye(30)).astype(np.float32)
    subjects = rng.integers(0, 12, 30).tolist()
    result = load("retrieval_recall").compute(
        predictions=similarity, references=np.arange(30), ks=[1, 3], subjects=subjects, resamples=80, seed=9
    )
    assert set(result) == {"r@1", "r@3", "r@1_interval", "r@3_interval"}
    ranks = [int((row > row[i]).sum()) for i, row in enumerate(similarity)]
    for k in (1, 3):
        assert result[f"r@{k}"] == pytest.approx(np.mean([rank < k for rank in ranks]))
        expected = loop_over_resamples(subjects, 80, 9, lambda rows, k=k: np.mean([ranks[i] < k for i in rows]))
        assert result[f"r@{k}_interval"] == pytest.approx(expected, abs=1e-12)


def test_queries_that_cannot_be_measured_are_named():
    with pytest.raises(ValueError, match=r"predictions\[1\] holds NaN"):
        load("retrieval_recall").compute(predictions=[[1, 0], [0, math.nan]], references=[0, 1])
    with pytest.raises(ValueError, match=r"predictions\[1\] holds 3 similarities; 2 are needed"):
        load("retrieval_recall").compute(predictions=[[1, 0], [0, 1, 2]], references=[0, 1])


def test_retrieval_gives_nothing_for_ties():
    """A model that embeds everything alike must not look as if it had found anything."""
    result = load("retrieval_recall").compute(predictions=np.ones((20, 20)), references=np.arange(20), resamples=0)
    assert result == {"r@1": 0.0, "r@5": 0.0, "r@10": 0.0}


def test_maps_have_two_dimensions_or_one():
    maps, inside = random_maps(4, 30, seed=8)
    flat = load("phrase_grounding").compute(predictions=maps, references=inside.astype(np.int8), resamples=20)
    square, masks = maps.reshape(4, 5, 6), inside.reshape(4, 5, 6).astype(np.int8)
    for values, places in ((square, masks), (square.tolist(), masks.tolist()), (torch.from_numpy(square), masks)):
        assert load("phrase_grounding").compute(predictions=values, references=places, resamples=20) == flat
    one_by_one = load("phrase_grounding")
    for values, place in zip(square, masks):
        one_by_one.add(prediction=values, reference=place)
    assert one_by_one.compute(resamples=20) == flat
    with pytest.raises(ValueError, match=r"predictions\[0\] is not a map of numbers"):
        load("phrase_grounding").compute(predictions=[[[1, 0], [1]]], references=[[[1, 0], [1]]])
