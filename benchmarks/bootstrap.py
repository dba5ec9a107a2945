# Licensed under the Apache License, Version 2.0.
"""
Time of a bootstrap of AUROC, average precision, and the measures at thresholds: 1,000 resamples over 10,000 images of
6,000 patients with 14 findings, prevalence 2% to 30%, a tenth of the labels missing. Beside it, in the same run, the
loop that everyone writes, which picks the rows of a resample and calls scikit-learn for each finding; it is run for
20 resamples, on the same draws, and its time is scaled. The values of these resamples must agree. One thread each.

    OMP_NUM_THREADS=1 python benchmarks/bootstrap.py
"""

import argparse
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))
from tier_cli.options import option_parser


def parse_arguments() -> argparse.Namespace:
    return option_parser(__doc__).parse_args()


if __name__ == "__main__":
    parse_arguments()  # before torch is imported, which takes seconds: --help and mistakes are answered at once

import time

import numpy as np
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    matthews_corrcoef,
    recall_score,
    roc_auc_score,
)

from modeling_tier.evaluation.statistics import Classification, Resamples, distribution, interval
from modeling_tier.evaluation.tables import aligned


IMAGES, SUBJECTS, FINDINGS, RESAMPLES, LOOPED = 10_000, 6_000, 14, 1000, 20
RANKED, DECIDED = ("auroc", "average_precision"), ("mcc", "sensitivity", "specificity", "f1")


def loop(labels, scores, thresholds, weights, names) -> dict[str, np.ndarray]:
    """Values (resamples, F) by name."""
    values = {name: np.empty((len(weights), FINDINGS)) for name in names}
    for i, counts in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(IMAGES), counts)
        for f in range(FINDINGS):
            drawn, score = labels[rows, f], scores[rows, f]
            known = ~np.isnan(drawn)
            drawn, score = drawn[known].astype(int), score[known]
            called = score > thresholds[f]
            measures = {
                "auroc": lambda y=drawn, s=score: roc_auc_score(y, s),
                "average_precision": lambda y=drawn, s=score: average_precision_score(y, s),
                "mcc": lambda y=drawn, c=called: matthews_corrcoef(y, c),
                "sensitivity": lambda y=drawn, c=called: recall_score(y, c),
                "specificity": lambda y=drawn, c=called: recall_score(y, c, pos_label=0),
                "f1": lambda y=drawn, c=called: f1_score(y, c),
            }
            for name in names:
                values[name][i, f] = measures[name]()
    return values


def main() -> None:
    parse_arguments()
    rng = np.random.default_rng(0)
    labels = (rng.random((IMAGES, FINDINGS)) < np.linspace(0.02, 0.3, FINDINGS)).astype(float)
    scores = rng.standard_normal((IMAGES, FINDINGS)) + labels
    labels[rng.random((IMAGES, FINDINGS)) < 0.1] = np.nan
    thresholds, subjects = np.full(FINDINGS, 1.0), rng.integers(0, SUBJECTS, IMAGES)
    few = Resamples(subjects, LOOPED)
    weights = np.concatenate(list(few.blocks()))

    rows = [["", "loop, s", "tier, s", "ratio", "largest difference of a bound"]]
    measured = {
        "AUROC, average precision": (RANKED, None),
        "and MCC, F1, sensitivity, specificity": (RANKED + DECIDED, thresholds),
    }
    for title, (names, chosen) in measured.items():
        started = time.perf_counter()
        plain = loop(labels, scores, thresholds, weights, names)
        plain_time = (time.perf_counter() - started) * RESAMPLES / LOOPED
        started = time.perf_counter()
        distribution(Resamples(subjects, RESAMPLES), Classification(labels, scores, chosen, chosen))
        our_time = time.perf_counter() - started
        ours = distribution(few, Classification(labels, scores, chosen, chosen))
        worst = 0.0
        for name in names:
            for f in range(FINDINGS):
                bounds = interval(ours[name].value[f], ours[name].distribution[:, f])
                expected = np.percentile(plain[name][:, f], [2.5, 97.5])
                worst = max(worst, *np.abs(expected - [bounds["low"], bounds["high"]]))
        assert worst < 1e-9, f"{title}: the intervals differ by {worst}."
        rows.append([title, f"{plain_time:.0f}", f"{our_time:.2f}", f"{plain_time / our_time:.0f}", f"{worst:.0e}"])
    print(
        f"{RESAMPLES:,} resamples, {IMAGES:,} images x {FINDINGS} findings; the loop scaled from {LOOPED} resamples\n"
    )
    print(aligned(rows))


if __name__ == "__main__":
    main()
