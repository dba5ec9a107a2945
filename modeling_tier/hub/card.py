# Licensed under the Apache License, Version 2.0.
"""The model card: `model_card.md`, filled from what a run and its evaluation have measured, and from nothing else."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..configuration_tier import TERMS, TierConfig
from ..data import DATASETS
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


TEMPLATE = Path(__file__).with_name("model_card.md")

# For each data set its title, where it is, and who may have it.
ACCESS = {name: (record.title, record.address, record.access) for name, record in DATASETS.items()}


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
        return f"{self.value:.3f}{self.note}"

    @property
    def interval(self) -> str:
        return "" if self.low is None else f"{self.low:.3f} to {self.high:.3f}"


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
    how: str
    metrics: dict
    confidence: str = ""
    groups: list[Group] = field(init=False)

    def __post_init__(self):
        self.groups = [group for group in measured(self.metrics) if group.rows]

    @property
    def title(self) -> str:
        return f"{ACCESS[self.dataset][0] if self.dataset in ACCESS else self.dataset}, {self.split} split"


class Facts(NamedTuple):
    """What is known of a model."""

    repo_id: str
    config: TierConfig
    datasets: list[str]
    """Those that it was trained on, the pretrained model's included; empty if nothing is recorded."""
    restricted: bool
    """Whether any of them may not be shown to everybody, or nothing is recorded."""
    training: dict
    """`training_config.yaml` without places; empty if there is none."""
    metrics: dict
    """The run's own `metrics.json`; empty if there is none."""
    evaluation: dict
    """An evaluation's `metrics.json` of this model; empty if there is none."""
    base_model: str | None = None
    revision: str | None = None
    has_pipeline: bool = False
    has_environment: bool = False
    pictures: str | None = None
    """The data set of which example pictures go along."""


def fill_card(facts: Facts) -> str:
    """
    The text of `README.md`.

    Raises:
        ValueError: if the card's metadata are not what the Hub takes.
    """
    results = all_results(facts)
    data = ModelCardData(
        license="other" if facts.restricted else "apache-2.0",
        license_name="code-apache-2.0-weights-by-the-terms-of-the-data" if facts.restricted else None,
        license_link=_terms(facts.datasets) if facts.restricted else None,
        language="en",
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=["tier", "clip", "radiology", "chest-x-ray", "custom_code", "arxiv:2212.06710"],
        datasets=[name for name in facts.datasets if name != "pairs"] or None,
        base_model=facts.base_model,
        model_name=facts.repo_id.rpartition("/")[2],
        eval_results=eval_results(results) or None,
    )
    data.metrics = list(dict.fromkeys(each.metric_type for each in data.eval_results or [])) or None
    card = ModelCard.from_template(
        data,
        template_str=_template(),
        title=data.model_name,
        repo_id=facts.repo_id,
        revision=facts.revision,
        has_pipeline=facts.has_pipeline,
        has_environment=facts.has_environment,
        regularised=any(facts.config.term_weights.values()),
        datasets=facts.datasets,
        access=[_access(name) for name in facts.datasets],
        base_model=facts.base_model,
        restricted=facts.restricted,
        pictures=facts.pictures,
        regulariser=_regulariser(facts),
        training=_training(facts.training),
        results=results,
        failures=failure_modes(results),
    )
    content = str(card)
    ModelCard(content, ignore_metadata_errors=False)
    return content


def _template() -> str:
    return TEMPLATE.read_text(encoding="utf-8")


def _terms(datasets: list[str]) -> str | None:
    links = [DATASETS[name].address for name in datasets if name in DATASETS and not DATASETS[name].shareable]
    return next((link for link in links if link), None)


def _access(name: str) -> str:
    title, link, rule = ACCESS.get(name, (name, None, "its access rules are not recorded"))
    return f"{f'[{title}]({link})' if link else title} (`{name}`): {rule}."


def _regulariser(facts: Facts) -> dict:
    names = (*TERMS.values(), "entropy_temperature", "count_special_tokens")
    settings = {name: getattr(facts.config, name) for name in names}
    ramp = facts.training.get("regulariser") or {}
    named = {"ramp_start": "share of the steps before which both are 0", "ramp_end": "from which they are whole"}
    return settings | {title: ramp[name] for name, title in named.items() if ramp.get(name)}


_TRAINING = {
    "data": ("name", "augmentation", "subject_share"),
    "training": ("epochs", "batch_size", "gradient_accumulation_steps", "mixed_precision"),
    "optimizer": ("name", "schedule", "lr", "weight_decay"),
    "evaluation": ("best_metric",),
}


def _training(config: dict) -> dict:
    values = {
        f"{section}.{name}": (config.get(section) or {}).get(name)
        for section, names in _TRAINING.items()
        for name in names
    }
    values |= {f"data.options.{name}": value for name, value in (config.get("data", {}).get("options") or {}).items()}
    values["seed"] = config.get("seed")
    return {name: value for name, value in values.items() if value is not None}


# Results


def all_results(facts: Facts) -> list[Results]:
    """The evaluation's first, then the run's own; those that hold a number."""
    found = []
    evaluation = facts.evaluation
    if evaluation:
        settings, counts = evaluation.get("settings", {}), evaluation.get("counts", {})
        number = ", ".join(f"{counts[name]:,} {name}" for name in ("images", "studies", "subjects") if name in counts)
        how = f"Zero-shot{f', {number}' if number else ''}."
        if protocol := evaluation.get("protocol", {}).get("name"):
            how += f" Protocol `{protocol}`."
        if settings.get("smooth_maps"):
            how += (
                f" Before they were measured, maps were smoothed by a gaussian of {settings['smooth_maps']:g} patches."
            )
        confidence = f"{settings.get('confidence', 0.95):.0%}"
        if settings.get("resamples"):
            how += (
                f" Intervals are percentiles of a bootstrap over subjects ({settings['resamples']:,} resamples): they "
                "speak of this model on other subjects, not of other training runs."
            )
        found.append(Results(evaluation["dataset"], evaluation["split"], how, evaluation["metrics"], confidence))
    validation = facts.metrics.get("validation") or {}
    data, own = facts.training.get("data") or {}, facts.training.get("evaluation") or {}
    chosen = "The checkpoint was chosen by such numbers, which flatters them. Without intervals."
    for name, metrics, split in (
        (own.get("dataset"), validation.get(own.get("dataset")), own.get("split", "validation")),
        (
            data.get("name"),
            {key: value for key, value in validation.items() if key != own.get("dataset")},
            "validation",
        ),
    ):
        if metrics:
            images = metrics.get("num_images")
            how = f"{f'{images:,} images, ' if images else ''}measured in training. {chosen}"
            found.append(Results(name or "validation data", split, how[0].upper() + how[1:], metrics))
    return [results for results in found if results.groups]


def measured(metrics: dict) -> list[Group]:
    """Every number that a card shows, of an evaluation's metrics or of a run's."""
    classes = (metrics.get("classification") or {}).get("image") or {}
    auroc = {name: values.get("auroc") for name, values in classes.items()} or metrics.get("auroc") or {}
    ranking = []
    for measure in shown_in(CARD, RANKING, DECISION, CALIBRATION):
        title = measure.full or measure.title
        if measure.name == "auroc":
            ranking.append(_row(f"{title}, mean over the findings", auroc.get("mean"), measure.hub_name))
            ranking += [_row(f"{title}, {_cell(name)}", value) for name, value in auroc.items() if name != "mean"]
        else:
            value = (classes.get("mean") or {}).get(measure.name)
            ranking.append(_row(f"{title}, mean", value, measure.hub_name))

    plain, with_intervals = metrics.get("localisation") or {}, metrics.get("localisation_intervals") or {}
    localisation = []
    for measure in shown_in(CARD, LOCALISATION):
        value = (with_intervals.get(measure.name) or plain.get(measure.name) or {}).get("mean")
        localisation.append(_row(f"{measure.title}, mean", value, measure.hub_name, _reference(measure, metrics)))

    sparsity = (metrics.get("sparsity") or {}).get("without_padding") or {}
    sparse = [
        _row(m.title, sparsity.get(m.name, metrics.get(m.name)), m.hub_name or None, _reference(m, metrics))
        for m in shown_in(CARD, SPARSITY, WHOLE_SET)
    ]

    recall = metrics.get("retrieval_intervals") or metrics.get("retrieval") or {}
    ways = {"image_to_text": "text of an image", "text_to_image": "image of a text"}
    retrieval = [
        _row(f"{title}, {m.full}", (recall.get(way) or {}).get(m.name), f"{m.hub_name}_{way}")
        for way, title in ways.items()
        for m in shown_in(CARD, RETRIEVAL)
    ]
    groups = {
        "Classification": ranking,
        "Localisation": localisation,
        "Sparsity of the maps": sparse,
        "Retrieval": retrieval,
    }
    return [Group(title, [row for row in rows if row is not None]) for title, rows in groups.items()]


def _reference(measure: Measure, metrics: dict) -> str:
    """What a number is to be read beside, such as the chance level."""
    value = BY_NAME[measure.reference].mean_of(metrics) if measure.reference else None
    return "" if _number(value) is None else f" ({measure.reference_word} {value:.3f})"


def _row(title: str, measured: dict | float | None, metric: str | None = None, note: str = "") -> Row | None:
    """None for what was not measured, or has no value."""
    estimate = measured if isinstance(measured, dict) else {"value": measured}
    value = _number(estimate.get("value"))
    if value is None:
        return None
    low, high = _number(estimate.get("low")), _number(estimate.get("high"))
    return Row(title, value, *((None, None) if low is None or high is None else (low, high)), metric, note)


def _number(value) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def _cell(name: str) -> str:
    return name.replace("|", "/").replace("\n", " ")


def eval_results(results: Iterable[Results]) -> list[EvalResult]:
    """The main numbers, for the metadata."""
    return [
        EvalResult(
            task_type="zero-shot-image-classification",
            task_name="Zero-shot image classification",
            dataset_type=each.dataset,
            dataset_name=each.title,
            dataset_split=each.split,
            metric_type=row.metric,
            metric_name=row.title,
            metric_value=round(row.value, 4),
        )
        for each in results
        for group in each.groups
        for row in group.rows
        if row.metric
    ]


def failure_modes(results: Iterable[Results]) -> list[str]:
    """
    What the measured numbers say about the ways to fail, each by the first results that tell; nothing about what was
    not measured.
    """
    said: dict = {}
    for each in results:
        for judge in (_fixed_place, _collapse, _elsewhere, _uncalibrated):
            text = None if judge in said else judge(each.metrics)
            if text:
                said[judge] = f"{text} ({each.title})"
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
    plain, intervals = metrics.get("localisation") or {}, metrics.get("localisation_intervals") or {}
    chance = _number((plain.get("chance") or {}).get("mean"))
    hit = _row("", ((intervals if "pointing_game" in intervals else plain).get("pointing_game") or {}).get("mean"))
    if hit is None or chance is None:
        return None
    least, most = (hit.value, hit.value) if hit.low is None else (hit.low, hit.high)
    verdict = "more than" if least > chance else "**less than**" if most < chance else "**not told apart from**"
    return (
        "Maps that point elsewhere, which an AUROC does not show: the largest value of a sentence's map lies in the "
        f"true place in {hit.value:.3f} of the cases, {verdict} what chance gives ({chance:.3f})."
    )


def _uncalibrated(metrics: dict) -> str | None:
    mean = ((metrics.get("classification") or {}).get("image") or {}).get("mean") or {}
    error = _row("", mean.get("ece"))
    if error is None:
        return None
    return (
        f"Uncalibrated scores: the mean expected calibration error is {error.value:.3f}. Do not read a score as the "
        "probability of a finding."
    )
