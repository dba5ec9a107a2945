# Licensed under the Apache License, Version 2.0.
"""Do the maps of phrases point at the right region? A module for `evaluate`."""

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """
Pointing game, contrast-to-noise ratio, intersection over union, Dice and pixel AUROC of similarity maps against the
ground-truth regions that phrases name.
"""

_INPUTS = """
Args:
    predictions: maps, all of one size, of shape (height, width) or flat, row by row; higher where the phrase points.
    references: for each map a mask of the same size, 1 inside the ground-truth region and 0 outside.
    threshold: for iou and dice, one of 0.05, 0.10, ..., 0.95 that was chosen on other maps; by default that with the
        best iou of these maps.
    subjects: the id of each map's patient; by default every map is a patient of its own.
    resamples: how many times patients are drawn, with replacement, as many as there are; 0: no intervals.
    seed: seed of the draws.
    confidence: of the intervals, between 0 and 1.
Returns:
    pointing_game: fraction of maps whose maximum lies inside; of equal maxima each counts its part.
    chance: mean fraction of the picture that lies inside, the pointing game of a random map.
    cnr: mean over maps of (mean inside - mean outside) / sqrt(variance inside + variance outside); negative where the
        map points away.
    cnr_absolute: the same with |mean inside - mean outside|, as BioViL's authors publish it.
    miou: mean over maps, and over the thresholds 0.1, 0.2, 0.3, 0.4 and 0.5, of the intersection over union of the
        region and the pixels whose similarity itself is >= the threshold, as BioViL's authors do.
    mdice: the same of Dice, 2 |A and B| / (|A| + |B|).
    pixel_auroc: mean over maps of the AUROC of a map's similarities for its pixels inside and outside.
    iou: mean intersection over union of the region and the map, scaled to [0, 1] by its own extremes and cut (>=) at
        one threshold, the best of 0.05, 0.10, ..., 0.95 for all maps together, or that given.
    dice: mean Dice at that threshold.
    iou_threshold: that threshold.
    num_maps: count.
    pointing_game_interval, cnr_interval, miou_interval, mdice_interval, pixel_auroc_interval, iou_interval,
        dice_interval: [low, high], percentiles of the bootstrap over patients (the threshold of iou and dice stays).
"""

_CITATION = """
@inproceedings{boecking2022making,
  title = {Making the Most of Text Semantics to Improve Biomedical Vision--Language Processing},
  author = {Boecking, Benedikt and Usuyama, Naoto and Bannur, Shruthi and Castro, Daniel C. and Schwaighofer, Anton and
    Hyland, Stephanie and Wetscherek, Maria and Naumann, Tristan and Nori, Aditya and Alvarez-Valle, Javier and
    Poon, Hoifung and Oktay, Ozan},
  booktitle = {European Conference on Computer Vision},
  year = {2022},
  url = {https://arxiv.org/abs/2204.09817}
}
"""

SCALED_THRESHOLDS = np.arange(1, 20) / 20
_TIED = 1e-6  # of a map's range: larger than rounding, smaller than a step between pixels
_CHUNK = 2**17  # pixels at a time: more do not fit into a processor's cache


class PhraseGrounding(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                    "references": datasets.Sequence(datasets.Value("int8")),
                }
            ),
        )

    def add(self, *, prediction=None, reference=None, **kwargs):
        """Add one map and its mask, of shape (height, width) or flat."""
        super().add(prediction=_flat("prediction", prediction), reference=_flat("reference", reference), **kwargs)

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Add maps and their masks, each of shape (height, width) or flat."""
        predictions, references = (
            None if maps is None else [_flat(f"{name}[{i}]", values) for i, values in enumerate(maps)]
            for name, maps in (("predictions", predictions), ("references", references))
        )
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def _compute(
        self, predictions, references, threshold=None, subjects=None, resamples=1000, seed=0, confidence=0.95
    ):
        for i, (values, mask) in enumerate(zip(predictions, references)):
            if not len(values) == len(mask) == len(predictions[0]):
                raise ValueError(
                    f"predictions[{i}] has {len(values)} pixels and references[{i}] {len(mask)}; the first map has "
                    f"{len(predictions[0])}. predictions and references must hold as many flat maps of one size."
                )
        measured = measure_maps(predictions, references)
        chosen = _position(threshold, measured["ious"].mean(axis=0))
        by_map = {
            "pointing_game": measured["hit"],
            "cnr": measured["cnr"],
            "miou": measured["mious"],
            "mdice": measured["mdices"],
            "pixel_auroc": measured["pixel_auroc"],
            "iou": measured["ious"][:, chosen],
            "dice": dice(measured["ious"][:, chosen]),
        }
        means = {name: float(values.mean()) for name, values in by_map.items()}
        return {
            "pointing_game": means["pointing_game"],
            "chance": float(measured["chance"].mean()),
            "cnr": means["cnr"],
            "cnr_absolute": float(measured["cnr_absolute"].mean()),
            **{name: means[name] for name in ("miou", "mdice", "pixel_auroc", "iou", "dice")},
            "iou_threshold": float(SCALED_THRESHOLDS[chosen]),
            "num_maps": len(predictions),
            **_intervals(by_map, subjects, resamples, seed, confidence),
        }


def _position(threshold, mean_ious):
    """Of a threshold among the 19; without one, of the best mean (19,)."""
    if threshold is None:
        return int(np.argmax(mean_ious))
    near = np.flatnonzero(np.isclose(SCALED_THRESHOLDS, threshold))
    if not len(near):
        raise ValueError(f"threshold must be one of 0.05, 0.10, ..., 0.95; got {threshold}.")
    return int(near[0])


def dice(iou: np.ndarray) -> np.ndarray:
    """Dice, 2 |A and B| / (|A| + |B|), of two masks from their intersection over union."""
    return 2 * iou / (1 + iou)


def _flat(name, values):
    """A map of shape (height, width) row by row, as the table of `evaluate` stores it; None stays None."""
    if values is None:
        return None
    try:
        return np.asarray(values).ravel()
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{name} is not a map of numbers, of shape (height, width) or flat: {error}") from error


def measure_maps(maps: np.ndarray, inside: np.ndarray) -> dict[str, np.ndarray]:
    """
    Measure each map against its ground-truth region.

    Args:
        maps: (M, P), or (M, H, W): similarities, higher where the phrase points; float32 or float64.
        inside: bool or 0/1 of the same shape: True inside the region.

    Returns:
        arrays in the order of the maps, float64:
            `hit` (M,): 1 where the maximum lies inside; of equal maxima (to 1e-6 of the map's range) the fraction
            that does;
            `chance` (M,): fraction of the pixels that lie inside;
            `cnr` (M,): (mean inside - mean outside) / sqrt(variance inside + variance outside), of which the sum of
            the variances is at least 1e-12, so that it is finite; `cnr_absolute` (M,): its absolute value, the one of
            Boecking et al. (2022, arXiv 2204.09817);
            `ious` (M, 19): intersection over union of the region and of the map, scaled to [0, 1] by its own extremes,
            where it is >= 0.05, 0.10, ..., 0.95;
            `mious` (M,): the mean of that over 0.1, 0.2, 0.3, 0.4, 0.5 without scaling (Boecking et al.); `mdices`
            (M,): likewise of Dice;
            `pixel_auroc` (M,): the fraction of the pairs of a pixel inside and one outside in which the one inside has
            the larger similarity, ties as one half.
        Of a constant map every pixel is the maximum, `hit` is `chance`, `cnr` and `ious` are 0, `pixel_auroc` 0.5.

    Raises:
        ValueError: if the shapes differ, there is no map, a map is not finite (with its row), or a region is not 0/1,
            empty or the whole picture (with its row).
    """
    maps, inside = np.asarray(maps), np.asarray(inside)
    if maps.ndim < 2 or maps.shape != inside.shape or maps.size == 0:
        raise ValueError(f"There must be as many maps as masks, all of one size; got {maps.shape} and {inside.shape}.")
    maps, inside = maps.reshape(len(maps), -1), inside.reshape(len(maps), -1)
    step = max(1, _CHUNK // maps.shape[1])
    parts = [_measure(maps[i : i + step], inside[i : i + step], i) for i in range(0, len(maps), step)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _measure(maps, masks, first):
    values, inside = maps.astype(np.float64), masks.astype(bool)
    count = np.count_nonzero(inside, axis=1)
    low, high = values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True)
    _name_row(~np.isfinite(low + high).ravel(), first, "the map holds NaN or infinity")
    _name_row((masks != inside).any(axis=1), first, "the mask holds other values than 0 and 1")
    _name_row(
        (count == 0) | (count == values.shape[1]),
        first,
        "every mask needs pixels inside and outside; skip the others",
    )
    # A peak in a border patch becomes a plateau when the map is scaled up: with the first of its pixels alone, left
    # and right would not be alike.
    top = values >= high - _TIED * (high - low)
    hit = np.count_nonzero(top & inside, axis=1) / np.count_nonzero(top, axis=1)

    shifted, weight = values - low, inside.astype(np.float64)
    outside_count = values.shape[1] - count
    total_inside = np.einsum("mp,mp->m", shifted, weight)
    mean_inside, mean_outside = total_inside / count, (shifted.sum(axis=1) - total_inside) / outside_count
    squares = (shifted - np.where(inside, mean_inside[:, None], mean_outside[:, None])) ** 2
    squares_inside = np.einsum("mp,mp->m", squares, weight)
    variance = squares_inside / count + (squares.sum(axis=1) - squares_inside) / outside_count
    cnr = (mean_inside - mean_outside) / np.sqrt(np.maximum(variance, 1e-12))

    # How many thresholds a pixel reaches, of both kinds; one histogram of the pairs, inside and outside, then counts
    # each threshold's pixels without comparing the map with every one of them.
    scaled = _num_reached(shifted / np.maximum(high - low, 1e-12), 20)  # 0 to 20
    plain = _num_reached(values.clip(0.0, 0.5), 10)  # 0 to 5
    shape = (len(values), 21, 6, 2)
    code = scaled * 12  # in place from here on: new arrays of this size cost more than the arithmetic
    code += np.multiply(plain, 2, out=plain)
    code += inside
    code += np.arange(len(values))[:, None] * np.prod(shape[1:])
    histogram = np.bincount(code.ravel(), minlength=np.prod(shape)).reshape(shape)
    plain_ious = _ious(histogram.sum(axis=1))[:, 1:6]
    return {
        "hit": hit,
        "chance": count / values.shape[1],
        "cnr": cnr,
        "cnr_absolute": np.abs(cnr),
        "ious": _ious(histogram.sum(axis=2))[:, 1:20],
        "mious": plain_ious.mean(axis=1),
        "mdices": dice(plain_ious).mean(axis=1),
        "pixel_auroc": np.array([_auroc(values, mask) for values, mask in zip(maps, inside)]),
    }


def _auroc(values, inside):
    """Of one map (P,), exact: for each pixel inside the number outside that are smaller, and equal."""
    ours, others = np.sort(values[inside]), np.sort(values[~inside])
    below = sum(np.searchsorted(others, ours, side).sum(dtype=np.int64) for side in ("left", "right"))
    return below / (2 * len(ours) * len(others))


def _num_reached(values, steps):
    """The largest integer k with value >= k / steps, for values from 0 to 1 and 10 or 20 steps."""
    reached = (values * steps).astype(np.int64)
    reached -= values < reached / steps  # rounding can lift the product to the next integer, never below its own
    return reached


def _ious(histogram):
    """Intersection over union of region and pixels that reach k, (M, K), from the number with k outside and inside."""
    reached = histogram[:, ::-1].cumsum(axis=1)[:, ::-1]
    return reached[..., 1] / (reached[..., 0] + reached[:, :1, 1])


def _name_row(bad, first, reason):
    if bad.any():
        raise ValueError(f"Map {first + int(np.flatnonzero(bad)[0])}: {reason}.")


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
