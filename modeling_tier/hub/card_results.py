# Licensed under the Apache License, Version 2.0.
"""The numbers in the model card: tables, the results of the metadata, and failure modes."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from huggingface_hub import EvalResult

from ..evaluation.failure_modes import (
    MAX_NEGATIVE_FRACTION,
    MIN_PEAK,
    MIN_PEAK_SPREAD,
    has_collapsed,
    has_fixed_peaks,
)
from ..evaluation.measures import (
    BY_NAME,
    CALIBRATION,
    CARD,
    DECISION,
    LOCALISATION,
    RANKING,
    RETRIEVAL,
    SPARSITY,
    WHOLE_SET,
    Measure,
    shown_in,
)
from .origin import option


MAX_NUMBER = 1e12
"""No measure and no count is larger; JSON may hold integers too large for a float."""


class Row(NamedTuple):
    """One measured number."""

    title: str
    value: float
    low: float | None
    high: float | None
    metric: str | None = None
    """Its name in the card's metadata, where it is one of the main numbers."""
    note: str = ""

    @property
    def text(self) -> str:
        return f"{self.value:z.3f}{self.note}"

    @property
    def interval(self) -> str:
        return "" if self.low is None else f"{self.low:z.3f} to {self.high:z.3f}"


class Group(NamedTuple):
    title: str
    rows: list[Row]

    @property
    def intervals(self) -> bool:
        return any(row.low is not None for row in self.rows)


@dataclass
class Results:
    """What was measured on one split of a data set."""

    dataset: str
    split: str
    about: str
    metrics: dict
    confidence: str = ""
    name: str = ""
    """Of the data set, for readers."""
    groups: list[Group] = field(init=False)

    def __post_init__(self):
        self.groups = [group for group in measured(self.metrics) if group.rows]

    @property
    def title(self) -> str:
        return f"{self.name or self.dataset}, {self.split} split"


def at(content: object, *names: str) -> Any:
    """The value at this path of nested keys; None where a part is missing or no mapping."""
    for name in names:
        content = content.get(name) if isinstance(content, dict) else None
    return content


def _items(content: object) -> dict:
    return content if isinstance(content, dict) else {}


def all_results(evaluation: dict, validation: object, training: dict, titles: dict[str, str]) -> list[Results]:
    """
    The evaluation's first, then the run's own; those that hold a number. Parts that are not of the form in which this
    package writes them count as not measured.

    Args:
        evaluation: an evaluation's `metrics.json` of this model, with the names of a data set and a split; empty if
            there is none.
        validation: what the run has measured, "validation" in its own `metrics.json`.
        training: `training_config.yaml`.
        titles: of the data sets.
    """
    results = [_of_evaluation(evaluation, titles)] if evaluation else []
    other = option(training, "evaluation", "dataset")
    rest = {key: value for key, value in _items(validation).items() if key != other}
    for dataset, metrics, split in (
        (other, _items(at(validation, other or "")), option(training, "evaluation", "split") or "validation"),
        (option(training, "data", "name"), rest, "validation"),
    ):
        images = _number(metrics.get("num_images"))
        about = f"{f'{images:,.0f} images, measured' if images else 'Measured'} in training. "
        about += "The checkpoint was chosen by such numbers, which flatters them. Without intervals."
        title = titles.get(dataset or "", "")
        results.append(Results(dataset or "validation data", split, about, metrics, name=title))
    return [result for result in results if result.groups]


def _of_evaluation(evaluation: dict, titles: dict[str, str]) -> Results:
    counts = {name: _number(at(evaluation, "counts", name)) for name in ("images", "studies", "subjects")}
    number = ", ".join(f"{count:,.0f} {name}" for name, count in counts.items() if count is not None)
    about = f"Zero-shot{f', {number}' if number else ''}."
    if protocol := at(evaluation, "protocol", "name"):
        about += f" Protocol `{protocol}`."
    metrics = _items(evaluation.get("metrics"))
    if smoothing := _number(at(evaluation, "settings", "smooth_maps")):
        about += f" Before they were measured, maps were smoothed by a gaussian of {smoothing:g} patches, as BioViL's."
    elif metrics.get("localisation"):
        about += (
            " Maps were measured as they are. BioViL's published numbers are of maps smoothed by a gaussian of 1.5 "
            "patches, which raises the CNR: compare with `evaluate_zeroshot.py --smooth_maps 1.5`."
        )
    if resamples := _number(at(evaluation, "settings", "resamples")):
        about += (
            f" Intervals are percentiles of a bootstrap over subjects ({resamples:,.0f} resamples): they speak of "
            "this model on other subjects, not of other training runs."
        )
    confidence = _number(at(evaluation, "settings", "confidence")) or 0.95
    dataset = evaluation["dataset"]
    return Results(dataset, evaluation["split"], about, metrics, f"{confidence:.0%}", titles.get(dataset, ""))


def measured(metrics: dict) -> list[Group]:
    """Every number that a card shows, of an evaluation's metrics or of a run's."""
    groups = {
        "Classification": _classification(metrics),
        "Localisation": _localisation(metrics),
        "Sparsity of the maps": _sparsity(metrics),
        "Retrieval": _retrieval(metrics),
    }
    return [Group(title, [row for row in rows if row is not None]) for title, rows in groups.items()]


def _classification(metrics: dict) -> list[Row | None]:
    classes = _items(at(metrics, "classification", "image"))
    auroc = {name: at(values, "auroc") for name, values in classes.items()} or _items(metrics.get("auroc"))
    rows = []
    for measure in shown_in(CARD, RANKING, DECISION, CALIBRATION):
        title = measure.full or measure.title
        if measure.name == "auroc":
            rows.append(_row(f"{title}, mean over the findings", auroc.get("mean"), measure.hub_name))
            rows += [_row(f"{title}, {table_cell(name)}", value) for name, value in auroc.items() if name != "mean"]
        else:
            rows.append(_row(f"{title}, mean", at(classes, "mean", measure.name), measure.hub_name))
    return rows


def _localisation(metrics: dict) -> list[Row | None]:
    rows = []
    for measure in shown_in(CARD, LOCALISATION):
        value = at(metrics, "localisation_intervals", measure.name, "mean")
        value = at(metrics, "localisation", measure.name, "mean") if value is None else value
        rows.append(_row(f"{measure.title}, mean", value, measure.hub_name, _reference(measure, metrics)))
    return rows


def _sparsity(metrics: dict) -> list[Row | None]:
    sparsity = _items(at(metrics, "sparsity", "without_padding"))
    return [
        _row(m.title, sparsity.get(m.name, metrics.get(m.name)), m.hub_name or None, _reference(m, metrics))
        for m in shown_in(CARD, SPARSITY, WHOLE_SET)
    ]


def _retrieval(metrics: dict) -> list[Row | None]:
    recall = metrics.get("retrieval_intervals") or metrics.get("retrieval")
    ways = {"image_to_text": "text of an image", "text_to_image": "image of a text"}
    return [
        _row(f"{title}, {m.full}", at(recall, way, m.name), f"{m.hub_name}_{way}")
        for way, title in ways.items()
        for m in shown_in(CARD, RETRIEVAL)
    ]


def _reference(measure: Measure, metrics: dict) -> str:
    """The number that one is to be compared with, such as the chance level."""
    if not measure.reference:
        return ""
    part = metrics.get("localisation") if BY_NAME[measure.reference].group == LOCALISATION else metrics
    value = at(part, measure.reference)
    value = _number(value["mean"] if isinstance(value, dict) and "mean" in value else value)
    return "" if value is None else f" ({measure.reference_word} {value:.3f})"


def _row(title: str, measured: dict | float | None, metric: str | None = None, note: str = "") -> Row | None:
    """None for what was not measured, or has no value."""
    estimate = measured if isinstance(measured, dict) else {"value": measured}
    value = _number(estimate.get("value"))
    if value is None:
        return None
    low, high = _number(estimate.get("low")), _number(estimate.get("high"))
    if low is None or high is None:
        low = high = None
    return Row(title, value, low, high, metric, note)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < MAX_NUMBER else None  # None for NaN too


def table_cell(name: str) -> str:
    return name.replace("|", "/").replace("\n", " ")


def eval_results(results: Iterable[Results]) -> list[EvalResult]:
    """The main numbers, for the metadata."""
    return [
        EvalResult(
            task_type="zero-shot-image-classification",
            task_name="Zero-shot image classification",
            dataset_type=result.dataset,
            dataset_name=result.title,
            dataset_split=result.split,
            metric_type=row.metric,
            metric_name=row.title,
            metric_value=round(row.value, 4),
        )
        for result in results
        for group in result.groups
        for row in group.rows
        if row.metric
    ]


def failure_modes(results: Iterable[Results]) -> list[str]:
    """
    What the measured numbers say about the failure modes, each from the first results that measure it; failure modes
    that were not measured are omitted.
    """
    said: dict = {}
    for result in results:
        for judge in (_fixed_place, _collapse, _elsewhere, _uncalibrated):
            text = None if judge in said else judge(result.metrics)
            if text:
                said[judge] = f"{text} ({result.title})"
    return list(said.values())


def _fixed_place(metrics: dict) -> str | None:
    spread = _number(metrics.get("peak_spread"))
    if spread is None:
        return None
    verdict = (
        "**whatever the picture, every sentence points at one place, and the maps say nothing about the pictures**"
        if has_fixed_peaks(spread)
        else f"it would be near 0, below {MIN_PEAK_SPREAD}, if every sentence pointed at one fixed place"
    )
    return f"One fixed place: the spread of the peaks over the images is {spread:.3f} (0 to 1); {verdict}."


def _collapse(metrics: dict) -> str | None:
    negative, peak = _number(metrics.get("negative_share")), _number(metrics.get("peak"))
    if negative is None or peak is None:
        return None
    verdict = (
        "**the patches have turned against the tokens, and the maps are worthless**"
        if has_collapsed(negative, peak)
        else f"a collapse would show as more than {MAX_NEGATIVE_FRACTION:.0%} with a largest one below {MIN_PEAK}"
    )
    return (
        f"Collapse of the maps: {negative:.1%} of the token-to-patch cosines are negative, and a token's largest is "
        f"{peak:.3f} on average; {verdict}."
    )


def _elsewhere(metrics: dict) -> str | None:
    chance = _number(at(metrics, "localisation", "chance", "mean"))
    hit = _row("", at(metrics, "localisation_intervals", "pointing_game", "mean"))
    hit = hit or _row("", at(metrics, "localisation", "pointing_game", "mean"))
    if hit is None or chance is None:
        return None
    least, most = (hit.value, hit.value) if hit.low is None or hit.high is None else (hit.low, hit.high)
    verdict = "more than" if least > chance else "**less than**" if most < chance else "**not distinguishable from**"
    return (
        "Maps that point elsewhere, which an AUROC does not show: the largest value of a sentence's map lies in the "
        f"ground-truth region in {hit.value:.3f} of the cases, {verdict} what chance gives ({chance:.3f})."
    )


def _uncalibrated(metrics: dict) -> str | None:
    error = _row("", at(metrics, "classification", "image", "mean", "ece"))
    if error is None:
        return None
    return (
        f"Uncalibrated scores: the mean expected calibration error is {error.value:.3f}. Do not read a score as the "
        "probability of a finding."
    )
