# Licensed under the Apache License, Version 2.0.
"""Area under the ROC curve of one finding's zero-shot scores, as a module for `evaluate`."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import roc_auc_score


_DESCRIPTION = """
Area under the ROC curve: the chance that a random positive image scores higher than a random negative one, ties
counted as one half. Computed by scikit-learn.
"""

_INPUTS = """
Args:
    predictions: a score for each image, higher for the finding.
    references: 1 where the finding is present, 0 where it is absent.
Returns:
    roc_auc: in [0, 1], or None if one class is missing.
    num_positive, num_negative: counts.
"""


class ZeroShotAUROC(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int32")}
            ),
        )

    def _compute(self, predictions, references):
        scores, labels = np.asarray(predictions, dtype=np.float64), np.asarray(references)
        if not np.isin(labels, (0, 1)).all():
            raise ValueError("references must be 0 or 1; leave images out whose label is unknown.")
        if np.isnan(scores).any():
            raise ValueError(f"predictions[{int(np.flatnonzero(np.isnan(scores))[0])}] is NaN.")
        positive = int(labels.sum())
        defined = 0 < positive < len(labels)
        return {
            "roc_auc": float(roc_auc_score(labels, scores)) if defined else None,
            "num_positive": positive,
            "num_negative": len(labels) - positive,
        }
