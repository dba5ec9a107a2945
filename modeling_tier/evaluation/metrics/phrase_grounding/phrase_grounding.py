# Licensed under the Apache License, Version 2.0.
"""Do the maps of phrases point at the right place? A module for `evaluate`."""

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """
Pointing game, contrast-to-noise ratio and best-threshold intersection over union of similarity maps against the places
that the phrases name.
"""

_INPUTS = """
Args:
    predictions: maps, all of one size, row by row as flat lists; higher where the phrase points.
    references: for each map a flat list of 1 inside the place and 0 outside, of the same size.
Returns:
    pointing_game: share of maps whose (first) maximum lies inside.
    chance: mean share of the picture that lies inside, the pointing game of a random map.
    cnr: mean over maps of (mean inside - mean outside) / sqrt(variance inside + variance outside); negative where the
        map points away.
    iou: mean intersection over union of the place and the map, scaled to [0, 1] by its own extremes and cut at one
        threshold, the best of 0.05, 0.10, ..., 0.95 for all maps together.
    iou_threshold: that threshold.
    num_maps: count.
"""

_THRESHOLDS = np.arange(1, 20) / 20


class PhraseGrounding(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                    "references": datasets.Sequence(datasets.Value("int8")),
                }
            ),
        )

    def _compute(self, predictions, references):
        maps, inside = np.asarray(predictions, dtype=np.float64), np.asarray(references).astype(bool)
        if maps.ndim != 2 or maps.shape != inside.shape:
            raise ValueError("predictions and references must hold as many flat maps of one size.")
        if np.isnan(maps).any():
            raise ValueError(f"predictions[{int(np.flatnonzero(np.isnan(maps).any(axis=1))[0])}] holds NaN.")
        count = inside.sum(axis=1)
        if (count == 0).any() or (count == inside.shape[1]).any():
            raise ValueError("Every place needs pixels inside and outside; leave the others out.")
        hits = inside[np.arange(len(maps)), maps.argmax(axis=1)]

        mean_in, variance_in = _moments(maps, inside)
        mean_out, variance_out = _moments(maps, ~inside)
        cnr = (mean_in - mean_out) / np.sqrt(np.maximum(variance_in + variance_out, 1e-12))

        low, high = maps.min(axis=1, keepdims=True), maps.max(axis=1, keepdims=True)
        scaled = (maps - low) / np.maximum(high - low, 1e-12)
        ious = []
        for threshold in _THRESHOLDS:
            above = scaled >= threshold
            ious.append(((above & inside).sum(axis=1) / (above | inside).sum(axis=1)).mean())
        best = int(np.argmax(ious))
        return {
            "pointing_game": float(hits.mean()),
            "chance": float(inside.mean()),
            "cnr": float(cnr.mean()),
            "iou": float(ious[best]),
            "iou_threshold": float(_THRESHOLDS[best]),
            "num_maps": len(maps),
        }


def _moments(values, chosen):
    """Mean and variance of each row over the chosen places."""
    count = chosen.sum(axis=1)
    mean = (values * chosen).sum(axis=1) / count
    return mean, (((values - mean[:, None]) ** 2) * chosen).sum(axis=1) / count
