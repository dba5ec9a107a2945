# Licensed under the Apache License, Version 2.0.
"""Recall at k of retrieval between images and texts, as a module for `evaluate`."""

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """
Fraction of queries for which a relevant candidate is among the k most similar ones. Query i and candidate i belong
together, and so do all with the same group: of a text that is in the set twice, either copy is a hit.
"""

_INPUTS = """
Args:
    predictions: for each query the list of its similarities to all candidates.
    references: group of the i-th pair, an integer.
    ks: list of k, by default 1, 5, 10.
    subjects: the id of each query's patient; by default every query is a patient of its own.
    resamples: how many times patients are drawn, with replacement, as many as there are; 0: no intervals.
    seed: seed of the draws.
    confidence: of the intervals, between 0 and 1.
Returns:
    r@k for each k, in [0, 1]. Among equal similarities a wrong candidate counts as the earlier one.
    r@k_interval for each k: [low, high], percentiles of the bootstrap over the patients of the queries; the candidates
        stay, because with fewer of them the task would be an easier one.
"""


class RetrievalRecall(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references, ks=(1, 5, 10), subjects=None, resamples=1000, seed=0, confidence=0.95):
        number = len(references)
        for row, similarities in enumerate(predictions):
            if len(similarities) != number:
                raise ValueError(f"predictions[{row}] holds {len(similarities)} similarities; {number} are needed.")
        similarity, group = np.asarray(predictions, dtype=np.float64), np.asarray(references)
        if np.isnan(similarity).any():
            raise ValueError(f"predictions[{int(np.flatnonzero(np.isnan(similarity).any(axis=1))[0])}] holds NaN.")
        relevant = group[:, None] == group[None, :]
        best = np.where(relevant, similarity, -np.inf).max(axis=1)
        wrong_before = ((similarity >= best[:, None]) & ~relevant).sum(axis=1)
        hits = {f"r@{k}": wrong_before < k for k in ks}
        recall = {name: float(hit.mean()) for name, hit in hits.items()}
        return recall | _intervals(hits, subjects, resamples, seed, confidence)


def _intervals(by_row, subjects, resamples, seed, confidence):
    """Percentile intervals of the means of rows, by name, when the rows' subjects are drawn with replacement."""
    if resamples == 0:
        return {}
    number = len(next(iter(by_row.values())))
    subjects = range(number) if subjects is None else subjects
    if len(subjects) != number:
        raise ValueError(f"There are {len(subjects)} subjects for {number} predictions: one each is needed.")
    for row, subject in enumerate(subjects):
        if subject is None or subject != subject:
            raise ValueError(f"subjects[{row}] is {subject}: give every prediction the id of its subject.")
    if not resamples > 0 or not 0 < confidence < 1:
        raise ValueError(f"resamples must be >= 0 and confidence in (0, 1); got {resamples} and {confidence}.")
    unique, codes = np.unique(np.asarray(subjects), return_inverse=True)
    columns = [*by_row.values(), np.ones(number)]
    sums = np.stack([np.bincount(codes, weights=column) for column in columns], axis=1)  # (subjects, columns)
    generator, means = np.random.default_rng(seed), []
    for _ in range(resamples):
        drawn = np.bincount(generator.integers(len(unique), size=len(unique)), minlength=len(unique)) @ sums
        means.append(drawn[:-1] / drawn[-1])
    ends = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return {f"{name}_interval": ends[:, i].tolist() for i, name in enumerate(by_row)}
