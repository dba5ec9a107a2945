# Licensed under the Apache License, Version 2.0.
"""Retrieval with several sentences an image, against plain loops."""

import numpy as np
import pytest

from modeling_tier.data import load_pairs
from modeling_tier.evaluation.scored import ImageScores, SentenceScores, join
from modeling_tier.evaluation.scoring import ScoringOptions, score
from modeling_tier.evaluation.sentences import sentence_ranks, split_sentences, wrong_before_any
from modeling_tier.evaluation.zero_shot import recall, summarise


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Clear lungs.", ["Clear lungs."]),
        ("1. No effusion.  2. Tube 1.5 cm above\n the carina; no pneumothorax.", None),
        ("Edema. Edema. ___. 3.", ["Edema."]),
        ("- small nodule\n\nheart of normal size", ["small nodule", "heart of normal size"]),
        (" . ", []),
    ],
)
def test_sentences_of_a_report(text, expected):
    if expected is None:
        expected = ["No effusion.", "Tube 1.5 cm above the carina;", "no pneumothorax."]
    assert split_sentences(text) == expected


def unit(values):
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def drawn(seed=0, number=37, kinds=25):
    """Images with no sentence, or with up to five; equal sentences stand in several images."""
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(100, number, replace=False))  # some of the data set could not be read
    embeds = {f"sentence {k}": unit(rng.normal(size=(1, 8)))[0] for k in range(kinds)}
    own = {row: rng.choice(list(embeds), rng.integers(0, 6), replace=False).tolist() for row in rows.tolist()}
    pairs = [(row, text) for row, texts in own.items() for text in texts]
    images = ImageScores(rows, np.full(number, ""), unit(rng.normal(size=(number, 8))), np.full(number, 4))
    sentences = SentenceScores(
        np.array([row for row, _ in pairs]),
        np.array([text for _, text in pairs]),
        np.array([embeds[text] for _, text in pairs]),
    )
    return images, sentences, own, embeds


def test_any_sentence_of_an_image_is_right_and_any_image_of_a_sentence():
    images, sentences, own, embeds = drawn()
    ranks = sentence_ranks(images, sentences)
    known = sorted({text for texts in own.values() for text in texts})
    for k in (1, 5, 10):
        hits = []
        for row, vector in zip(images.rows.tolist(), images.embeds):
            if own[row]:
                first = sorted(known, key=lambda text: -(vector @ embeds[text]))[:k]
                hits.append(any(text in own[row] for text in first))
        assert len(hits) < len(images.rows)
        assert recall(ranks["image_to_sentence"][1])[f"r@{k}"] == pytest.approx(np.mean(hits))
        hits = []
        for text in sentences.sentence.tolist():
            order = np.argsort(-(images.embeds @ embeds[text]))[:k]
            hits.append(any(text in own[row] for row in images.rows[order].tolist()))
        assert recall(ranks["sentence_to_image"][1])[f"r@{k}"] == pytest.approx(np.mean(hits))
    queries, _ = ranks["image_to_sentence"]
    assert images.rows[queries].tolist() == [row for row, texts in own.items() if texts]
    np.testing.assert_array_equal(images.rows[ranks["sentence_to_image"][0]], sentences.row)


def test_blocks_change_nothing_and_ties_are_no_hits():
    rng = np.random.default_rng(1)
    queries, candidates = rng.normal(size=(23, 6)), rng.normal(size=(40, 6))
    query = rng.permutation(np.concatenate([np.arange(23), rng.integers(0, 23, 30)]))
    right = rng.integers(0, 40, 53)
    whole = wrong_before_any(queries, candidates, query, right)
    for block in (1, 4, 23):
        np.testing.assert_array_equal(wrong_before_any(queries, candidates, query, right, block), whole)
    same = wrong_before_any(np.ones((3, 2)), np.ones((5, 2)), np.arange(3), np.arange(3))
    assert same.tolist() == [4, 4, 4], "a model that embeds everything alike finds nothing"


def test_sentences_are_scored_where_they_are_asked_for(model, processor):
    pairs = load_pairs("synthetic", "test", num_images=20, image_size=40, section="findings")
    options = {"batch_size": 6, "progress": False, "localisation": False}
    scored = join(score(model, processor, pairs, {}, ScoringOptions(**options, sentences=True)))
    expected = [(row, text) for row, report in enumerate(pairs["text"]) for text in split_sentences(report)]
    assert list(zip(scored.sentences.row.tolist(), scored.sentences.sentence.tolist())) == expected
    assert len(expected) > len(pairs)
    embeds = model.get_text_features(**processor(text=[text for _, text in expected])).pooler_output.detach().numpy()
    np.testing.assert_allclose(scored.sentences.embeds, unit(embeds), atol=1e-5)
    metrics, details = summarise(scored, pairs, [])
    ways = ["image_to_text", "text_to_image", "image_to_sentence", "sentence_to_image"]
    assert list(metrics["retrieval"]) == ways and len(details["ranks"]["sentence_to_image"]) == len(expected)
    assert all(len(details["queries"][way]) == len(details["ranks"][way]) for way in ways)
    assert join(score(model, processor, pairs, {}, ScoringOptions(**options))).sentences is None
