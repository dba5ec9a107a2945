# Licensed under the Apache License, Version 2.0.
"""
Every measure of an evaluation as one record. Tables, report, model card, figures, the search, the demo and the choice
of the best checkpoint go over these records: a new measure is computed in one place and described here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


# Groups: measures that are computed and shown together.
RANKING = "ranking"
NEGATION = "negation"
LATERALITY = "laterality"
DECISION = "decision"
CALIBRATION = "calibration"
LOCALISATION = "localisation"
CONTRIBUTIONS = "localisation by contributions"
SEGMENTATION = "segmentation"
SPARSITY = "sparsity"
WHOLE_SET = "data set"
RETRIEVAL = "retrieval"

# Views that show measures, each in an order of its own.
MAIN = "main numbers of the report, and differences on the screen"
SCREEN = "table of the findings on the screen"
SUMMARY = "numbers of the data set on the screen"
CARD = "model card"
SEARCH = "table of a search"
SEARCH_FIGURE = "figure of a search"
DEMO = "table of the demo"
TOKENS = "table of single tokens"
SUITE = "tables of a suite"


@dataclass(frozen=True)
class Measure:
    """One number that is measured of a model on a data set."""

    name: str
    """In metrics.json."""
    title: str
    """In the report."""
    definition: str
    group: str
    larger_is_better: bool | None
    """None: neither is."""
    unit: str = ""
    short: str = ""
    """Where there is little room; by default the title."""
    full: str = ""
    """Where there is no definition beside it; by default the title."""
    of_map: str = ""
    """Of localisation: its name in what `measure_maps` gives, one number per map, or one per map and threshold."""
    reference: str = ""
    """Name of the metric that it is to be read beside, such as the largest possible value."""
    reference_word: str = ""
    hub_name: str = ""
    """In the metadata of a model card; without one it is not there."""
    of_pairs: bool = False
    """Whether it needs the texts: in training it is measured on the validation pairs, not on `evaluation.dataset`."""
    chooses_best: bool = False
    """Whether `evaluation.best_metric` may name it."""
    threshold: str = ""
    """Of decisions: the name of the threshold at which it is taken."""
    shown: Mapping[str, int] = field(default_factory=dict)
    """Rank in each view that shows it."""

    @property
    def label(self) -> str:
        return self.short or self.title

    @property
    def term(self) -> str:
        """The title at the beginning of a definition."""
        return self.title.capitalize() if self.title.islower() else self.title

    def mean_of(self, metrics: dict) -> float | None:
        """The number, or its mean over the findings, in plain metrics as [`evaluate_zero_shot`] gives them."""
        part = (metrics.get("localisation") or {}) if self.group in (LOCALISATION, CONTRIBUTIONS) else metrics
        value = part.get(self.name)
        value = value.get("mean") if isinstance(value, dict) else value
        return None if value is None or math.isnan(value) else value


MEASURES = [
    Measure(
        "auroc",
        "AUROC",
        "area under the ROC curve: the fraction of the pairs of a positive and a negative image in which the positive "
        "one scores higher, ties as one half.",
        RANKING,
        larger_is_better=True,
        hub_name="roc_auc",
        chooses_best=True,
        shown={MAIN: 1, SCREEN: 1, CARD: 1, SEARCH: 1, SEARCH_FIGURE: 1, DEMO: 1, SUITE: 1},
    ),
    Measure(
        "average_precision",
        "average precision",
        "the precision at each positive image's score, averaged over the positive images; it depends on how frequent "
        "a finding is.",
        RANKING,
        larger_is_better=True,
        short="AP",
        hub_name="average_precision",
        shown={MAIN: 2, SCREEN: 2, CARD: 2},
    ),
    Measure(
        "auroc_negated",
        "AUROC of the negated sentence",
        "of the cosine with “There is no {finding}”, by which images without the finding should score higher than "
        "those with it. It is below 0.5 where a model takes the denial for the finding.",
        NEGATION,
        larger_is_better=True,
        short="AUROC, negated",
        shown={MAIN: 5, SUMMARY: 1, SUITE: 6},
    ),
    Measure(
        "auroc_pair",
        "AUROC of the pair of sentences",
        "of the cosine with “There is {finding}” minus that with “There is no {finding}”, for the finding.",
        NEGATION,
        larger_is_better=True,
        short="AUROC, pair",
        shown={MAIN: 6, SUMMARY: 2},
    ),
    Measure(
        "auroc_left_right",
        "AUROC of left against right",
        "of the cosine with a ground-truth region's phrase where it names the left side minus that where it names the "
        "right, for telling the side, among the images in which the finding is on one side.",
        LATERALITY,
        larger_is_better=True,
        short="left/right",
        shown={MAIN: 13, SUMMARY: 9},
    ),
    Measure(
        "mcc",
        "MCC",
        "Matthews correlation coefficient of the decisions with the labels.",
        DECISION,
        larger_is_better=True,
        hub_name="mcc",
        threshold="threshold_mcc",
        shown={MAIN: 3, SCREEN: 3, CARD: 3},
    ),
    Measure(
        "f1",
        "F1",
        "harmonic mean of precision and sensitivity.",
        DECISION,
        larger_is_better=True,
        hub_name="f1",
        threshold="threshold_f1",
        shown={MAIN: 4, SCREEN: 4, CARD: 4},
    ),
    Measure(
        "sensitivity",
        "sensitivity",
        "fraction of the positive images that are called positive.",
        DECISION,
        larger_is_better=True,
        hub_name="sensitivity",
        threshold="threshold_mcc",
        shown={CARD: 6},
    ),
    Measure(
        "specificity",
        "specificity",
        "fraction of the negative images that are called negative.",
        DECISION,
        larger_is_better=True,
        hub_name="specificity",
        threshold="threshold_mcc",
        shown={CARD: 7},
    ),
    Measure(
        "ece",
        "ECE",
        "expected calibration error: the mean distance, over ten bins, of the mean probability from the fraction of "
        "positives.",
        CALIBRATION,
        larger_is_better=False,
        full="expected calibration error",
        hub_name="ece",
        shown={CARD: 5},
    ),
    Measure(
        "ece_calibrated",
        "ECE, calibrated",
        "the same after a logistic regression of the score on the validation set.",
        CALIBRATION,
        larger_is_better=False,
    ),
    Measure(
        "pointing_game",
        "pointing game",
        "fraction of the maps whose largest value lies inside the ground-truth region.",
        LOCALISATION,
        larger_is_better=True,
        of_map="hit",
        reference="chance",
        reference_word="chance",
        hub_name="pointing_game",
        chooses_best=True,
        shown={MAIN: 7, SCREEN: 5, CARD: 1, SEARCH: 2, SEARCH_FIGURE: 2, DEMO: 4, TOKENS: 1, SUITE: 2},
    ),
    Measure(
        "chance",
        "(chance)",
        "mean fraction of the picture that lies inside the ground-truth region: the pointing game of a random map.",
        LOCALISATION,
        larger_is_better=None,
        of_map="chance",
        shown={SCREEN: 6, TOKENS: 2},
    ),
    Measure(
        "cnr",
        "CNR",
        "contrast-to-noise ratio, (mean inside - mean outside) / sqrt(variance inside + variance outside); negative "
        "where a map points away.",
        LOCALISATION,
        larger_is_better=True,
        of_map="cnr",
        hub_name="cnr",
        chooses_best=True,
        shown={MAIN: 8, SCREEN: 7, CARD: 2, SEARCH: 3, SEARCH_FIGURE: 3, DEMO: 5, TOKENS: 3, SUITE: 4},
    ),
    Measure(
        "miou",
        "mIoU",
        "intersection over union of the ground-truth region and the pixels whose cosine (or difference of cosines) is "
        "at least 0.1, 0.2, 0.3, 0.4 and 0.5, mean of the five, as BioViL's authors have it.",
        LOCALISATION,
        larger_is_better=True,
        of_map="mious",
        hub_name="miou",
        shown={MAIN: 9, SCREEN: 8, CARD: 3, TOKENS: 4, SUITE: 5},
    ),
    Measure(
        "mdice",
        "mDice",
        "Dice, 2 |A and B| / (|A| + |B|), of the same two sets of pixels, mean of the same five thresholds.",
        LOCALISATION,
        larger_is_better=True,
        of_map="mdices",
        shown={SCREEN: 9, SUITE: 3},
    ),
    Measure(
        "pixel_auroc",
        "pixel AUROC",
        "AUROC of a map's values for the pixels inside and outside the ground-truth region, of each map alone, then "
        "averaged: one half for a random or a constant map, and no threshold.",
        LOCALISATION,
        larger_is_better=True,
        of_map="pixel_auroc",
        shown={MAIN: 10, SCREEN: 10, SUITE: 7},
    ),
    Measure(
        "iou",
        "IoU",
        "intersection over union for the map scaled to [0, 1] by its own extremes, at the one threshold that is best "
        "for all maps of the finding together. It is chosen on the maps that it is judged by, which flatters it.",
        LOCALISATION,
        larger_is_better=True,
        of_map="ious",
        shown={SCREEN: 11},
    ),
    Measure(
        "contribution_pointing_game",
        "pointing game by contributions minus “no finding”",
        "the pointing game, against boxes, of the map of what each patch contributes to the score of the phrase, "
        "minus what it contributes to that of “no finding”.",
        CONTRIBUTIONS,
        larger_is_better=True,
        short="pointing, contributions",
        of_map="hit",
        shown={SEARCH: 7, DEMO: 6},
    ),
    Measure(
        "contribution_cnr",
        "CNR by contributions minus “no finding”",
        "CNR, against boxes, of the same map of contributions.",
        CONTRIBUTIONS,
        larger_is_better=True,
        short="CNR, contributions",
        of_map="cnr",
        shown={SEARCH: 8, DEMO: 7},
    ),
    Measure(
        "dice_at_threshold",
        "Dice at the validation set's threshold",
        "of the ground-truth region and the map scaled to [0, 1] by its own extremes, where it is at least the one of "
        "0.05, 0.10, ..., 0.95 that has the best Dice, mean over the findings, for maps of the same kind of the "
        "validation set.",
        SEGMENTATION,
        larger_is_better=True,
        short="Dice (val.)",
        shown={MAIN: 11, SCREEN: 12},
    ),
    Measure(
        "iou_at_threshold",
        "IoU at the validation set's threshold",
        "intersection over union at the same threshold.",
        SEGMENTATION,
        larger_is_better=True,
        short="IoU (val.)",
        shown={SCREEN: 13},
    ),
    Measure(
        "token_entropy",
        "token entropy",
        "of the softmax over the patches of a token's cosines. The softmax is of bare cosines, so the value stays "
        "close to the largest possible one, log of the number of patches: look at differences, and only between "
        "models with as many patches and the same tokens.",
        SPARSITY,
        larger_is_better=None,
        unit="nats",
        reference="max_token_entropy",
        reference_word="at most",
        hub_name="token_entropy",
        of_pairs=True,
        shown={MAIN: 12, SUMMARY: 3, CARD: 1, DEMO: 2},
    ),
    Measure(
        "patch_entropy",
        "patch entropy",
        "likewise, of the softmax over the tokens of a patch's cosines.",
        SPARSITY,
        larger_is_better=None,
        unit="nats",
        reference="max_patch_entropy",
        reference_word="at most",
        hub_name="patch_entropy",
        of_pairs=True,
        shown={SUMMARY: 4, CARD: 2, DEMO: 3},
    ),
    Measure(
        "effective_patches",
        "effective patches",
        "exp(token entropy): the number of patches over which a uniform distribution has that entropy.",
        SPARSITY,
        larger_is_better=None,
        of_pairs=True,
    ),
    Measure(
        "gini",
        "Gini coefficient",
        "of a token's cosines, shifted so that the smallest is 0: 0 if all patches are alike, near 1 if one patch "
        "holds all.",
        SPARSITY,
        larger_is_better=None,
        of_pairs=True,
    ),
    Measure(
        "negative_share",
        "fraction of negative cosines",
        "fraction of the cosines of tokens and patches below 0.",
        SPARSITY,
        larger_is_better=None,
        of_pairs=True,
        shown={SUMMARY: 6, SEARCH: 6},
    ),
    Measure(
        "peak",
        "peak",
        "a token's largest cosine, mean over the tokens.",
        SPARSITY,
        larger_is_better=None,
        full="mean of a token's largest cosine",
        of_pairs=True,
        shown={SUMMARY: 7},
    ),
    Measure(
        "max_token_entropy",
        "token entropy, largest possible",
        "log of the number of patches.",
        WHOLE_SET,
        larger_is_better=None,
        unit="nats",
        of_pairs=True,
    ),
    Measure(
        "max_patch_entropy",
        "patch entropy, largest possible",
        "mean log of the number of a text's counted tokens.",
        WHOLE_SET,
        larger_is_better=None,
        unit="nats",
        of_pairs=True,
    ),
    Measure(
        "top10_share",
        "fraction of the similarity in the top 10% of the patches",
        "of a pair's text-to-patch similarities, shifted so that the smallest is 0, the fraction that the largest 10% "
        "hold.",
        WHOLE_SET,
        larger_is_better=None,
        short="top 10% fraction",
        of_pairs=True,
        shown={SUMMARY: 5, CARD: 3},
    ),
    Measure(
        "peak_spread",
        "spread of the peaks over the images (0 to 1)",
        "entropy, over the images, of the patch that a finding's sentences fit best, divided by its largest possible "
        "value: 0 if every image points at one fixed place.",
        WHOLE_SET,
        larger_is_better=None,
        shown={SUMMARY: 8, SEARCH: 5},
    ),
    Measure(
        "loss",
        "loss",
        "with the terms of the regulariser.",
        WHOLE_SET,
        larger_is_better=False,
        of_pairs=True,
        chooses_best=True,
    ),
    Measure(
        "contrastive_loss",
        "contrastive loss",
        "the symmetric cross-entropy alone, in batches of the evaluation's size.",
        WHOLE_SET,
        larger_is_better=False,
        of_pairs=True,
        chooses_best=True,
        shown={SEARCH: 4},
    ),
]
MEASURES += [
    Measure(
        f"r@{k}",
        f"among the first {k}",
        f"fraction of the queries with their partner, or one of equal text, among the {k} most similar candidates.",
        RETRIEVAL,
        larger_is_better=True,
        full=f"recall at {k}",
        hub_name=f"recall_at_{k}",
        of_pairs=True,
        shown={CARD: k},
    )
    for k in (1, 5, 10)
]

BY_NAME = {measure.name: measure for measure in MEASURES}


def group(*names: str) -> list[Measure]:
    """The measures of one or several groups, in the order of the records."""
    return [measure for measure in MEASURES if measure.group in names]


def shown_in(view: str, *groups: str) -> list[Measure]:
    """The measures that a view shows, in its order; only those of some groups, if any are given."""
    measures = [measure for measure in (group(*groups) if groups else MEASURES) if view in measure.shown]
    return sorted(measures, key=lambda measure: measure.shown[view])
