# Licensed under the Apache License, Version 2.0.
"""The records of the measures against what is computed, and against each place that shows them."""

import numpy as np
import pytest
import torch

from modeling_tier.data import load_pairs
from modeling_tier.evaluation import evaluate_zero_shot, load_prompts
from modeling_tier.evaluation.localisation import measure_maps
from modeling_tier.evaluation.measures import (
    BY_NAME,
    CALIBRATION,
    CARD,
    CONTRIBUTIONS,
    DECISION,
    DEMO,
    LATERALITY,
    LOCALISATION,
    MAIN,
    MEASURES,
    NEGATION,
    RANKING,
    RETRIEVAL,
    SCREEN,
    SEARCH,
    SEARCH_FIGURE,
    SEGMENTATION,
    SPARSITY,
    SUITE,
    SUMMARY,
    TOKENS,
    WHOLE_SET,
    group,
    shown_in,
)
from modeling_tier.evaluation.scored import Scored, cache_format
from modeling_tier.evaluation.sparsity import sparsity
from modeling_tier.evaluation.statistics import DECISIONS, Classification


PLACES = (MAIN, SCREEN, SUMMARY, SUITE, CARD, SEARCH, SEARCH_FIGURE, DEMO, TOKENS)


def names(measures):
    return {measure.name for measure in measures}


def test_a_record_is_complete():
    assert len(BY_NAME) == len(MEASURES)
    for measure in MEASURES:
        assert measure.title and measure.definition.endswith(".") and set(measure.shown) <= set(PLACES)
        assert not measure.chooses_best or measure.larger_is_better is not None
        assert bool(measure.reference) == bool(measure.reference_word)
        assert not measure.reference or measure.reference in BY_NAME
        assert bool(measure.of_map) == (measure.group in (LOCALISATION, CONTRIBUTIONS))
        assert bool(measure.threshold) == (measure.group == DECISION)
    for place in PLACES:
        groups = [
            RANKING,
            NEGATION,
            LATERALITY,
            DECISION,
            CALIBRATION,
            LOCALISATION,
            SEGMENTATION,
            SPARSITY,
            WHOLE_SET,
            RETRIEVAL,
        ]
        assert sum((shown_in(place, one) for one in groups), []) != [] and len(shown_in(place)) > 1


def test_what_is_recorded_is_what_is_computed():
    rng = np.random.default_rng(0)
    measured = measure_maps(rng.random((3, 9)), np.arange(27).reshape(3, 9) % 9 < 3)
    assert {measure.of_map for measure in group(LOCALISATION)} == set(measured) - {"cnr_absolute"}
    cosines, mask = torch.rand(2, 3, 4), torch.ones(2, 3)
    assert names(group(SPARSITY)) == set(sparsity(cosines, mask))
    assert names(group(DECISION)) == set(DECISIONS)
    labels, scores = np.array([[0.0], [1.0], [1.0]]), np.array([[0.1], [0.2], [0.3]])
    negation = {measure.name: scores for measure in group(NEGATION)}
    statistic = Classification(labels, scores, [0.15], [0.15], scores, scores, negation)
    assert set(statistic(np.ones((1, 3)))) == names(group(RANKING, NEGATION, DECISION, CALIBRATION))


def test_every_number_of_an_evaluation_is_a_measure(model, processor):
    pairs = load_pairs("synthetic", "test", num_images=20, image_size=40)
    options = {"no_finding": ["No finding."], "progress": False}
    metrics, _ = evaluate_zero_shot(model, processor, pairs, load_prompts("synthetic"), **options)
    structure = {"num_images", "undefined", "retrieval", "localisation"}
    assert set(metrics) - structure <= names(MEASURES) and names(group(WHOLE_SET)) <= set(metrics)
    assert set(metrics["localisation"]) == {*names(group(LOCALISATION, CONTRIBUTIONS)), "num_outside"}
    assert all(set(values) == names(group(RETRIEVAL)) for values in metrics["retrieval"].values())
    for measure in shown_in(DEMO):
        assert measure.mean_of(metrics) is not None
    assert BY_NAME["auroc"].mean_of({"auroc": {"mean": None}}) is None
    assert BY_NAME["cnr"].mean_of({}) is None and BY_NAME["loss"].mean_of({"loss": float("nan")}) is None


def test_scores_are_read_as_they_were_written_and_nothing_else_is(tmp_path):
    scored = Scored(unreadable=np.array(["a reason"]), unreadable_rows=np.array([3]))
    scored.save(tmp_path / "part.npz")
    read = Scored.load(tmp_path / "part.npz")
    assert read.images is read.pairs is read.maps is None
    assert (read.unreadable.tolist(), read.unreadable_rows.tolist()) == (["a reason"], [3])
    columns = {"images:rows": np.arange(3), "images:digests": np.arange(3), "images:embeds": np.zeros((3, 2))}
    for wrong in (
        {"rows": np.arange(3)},
        columns,
        columns | {"images:num_patches": np.zeros(2)},
        columns | {"images:num_patches": np.zeros(3), "images:colour": np.zeros(3)},
        columns | {"images:num_patches": np.array([None] * 3, dtype=object)},
        columns | {"images:num_patches": np.zeros(3), "maps:measured:a:b": np.zeros(3)},
    ):
        np.savez(tmp_path / "wrong.npz", **wrong)
        with pytest.raises(ValueError, match=r"wrong\.npz"):
            Scored.load(tmp_path / "wrong.npz")


def test_the_format_of_the_cache_knows_its_measures():
    assert set(cache_format()["localisation"]) == {measure.of_map for measure in group(LOCALISATION)}
    assert "rank_similarity" in cache_format()["PairScores"]
