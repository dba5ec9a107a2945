# Licensed under the Apache License, Version 2.0.
"""Recall at k of retrieval between images and texts, as a module for `evaluate`."""

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """
Share of queries for which a relevant candidate is among the k most similar ones. Query i and candidate i belong
together, and so do all with the same group: where a text stands in the set twice, either copy is a hit.
"""

_INPUTS = """
Args:
    predictions: for each query the list of its similarities to all candidates.
    references: group of the i-th pair, an integer.
    ks: list of k, by default 1, 5, 10.
Returns:
    r@k for each k. Among equal similarities a wrong candidate counts as the earlier one.
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

    def _compute(self, predictions, references, ks=(1, 5, 10)):
        similarity, group = np.asarray(predictions, dtype=np.float64), np.asarray(references)
        if similarity.shape != (len(group), len(group)):
            raise ValueError(f"Each of the {len(group)} queries needs {len(group)} similarities.")
        if np.isnan(similarity).any():
            raise ValueError(f"predictions[{int(np.flatnonzero(np.isnan(similarity).any(axis=1))[0])}] holds NaN.")
        relevant = group[:, None] == group[None, :]
        best = np.where(relevant, similarity, -np.inf).max(axis=1)
        wrong_before = ((similarity >= best[:, None]) & ~relevant).sum(axis=1)
        return {f"r@{k}": float((wrong_before < k).mean()) for k in ks}
