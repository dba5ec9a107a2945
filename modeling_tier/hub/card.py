# Licensed under the Apache License, Version 2.0.
"""The model card: `model_card.md`, filled from what a run and its evaluation have measured, and from nothing else."""

from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import ModelCard, ModelCardData

from ..configuration_tier import TERMS, TierConfig
from ..data import DATASETS
from .card_results import all_results, eval_results, failure_modes, table_cell


TEMPLATE = Path(__file__).with_name("model_card.md")

# For each data set its title, address and terms of access.
ACCESS = {name: (record.title, record.address, record.access) for name, record in DATASETS.items()}


class Facts(NamedTuple):
    """What is known of a model."""

    repo_id: str
    config: TierConfig
    datasets: list[str]
    """Names of the data sets that it was trained on, those of its pretrained model included; empty if not recorded."""
    restricted: bool
    """Whether any of them may not be shown to everybody, or nothing is recorded."""
    training: dict
    """`training_config.yaml` without paths; empty if there is none."""
    metrics: dict
    """The run's own `metrics.json`; empty if there is none."""
    evaluation: dict
    """An evaluation's `metrics.json` of this model; empty if there is none."""
    base_model: str | None = None
    revision: str | None = None
    has_pipeline: bool = False
    has_environment: bool = False
    pictures: str | None = None
    """The data set whose pictures are in the published figure; None without that figure."""
    gated: bool = False
    """Whether the Hub asks for an agreement before it gives the files."""
    new_version: str | None = None
    """Name on the Hub of a better model."""


def fill_card(facts: Facts) -> str:
    """
    The text of `README.md`.

    Raises:
        ValueError: if the card's metadata are not what the Hub takes.
    """
    titles = {name: title for name, (title, _, _) in ACCESS.items()}
    results = all_results(facts.evaluation, facts.metrics.get("validation"), facts.training, titles)
    optional: dict[str, Any] = {"new_version": facts.new_version} if facts.new_version else {}
    if facts.gated:
        optional |= _agreement(facts)
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
        base_model_relation="finetune" if facts.base_model else None,
        model_name=facts.repo_id.rpartition("/")[2],
        eval_results=eval_results(results) or None,
        **optional,
    )
    data.metrics = list(dict.fromkeys(result.metric_type for result in data.eval_results or [])) or None
    card = ModelCard.from_template(
        data,
        template_str=TEMPLATE.read_text(encoding="utf-8"),
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


def _agreement(facts: Facts) -> dict:
    """The form that the Hub shows to users who request access to a gated repository."""
    fields = {"Name": "text", "Affiliation": "text", "Intended use": "text"}
    for name in facts.datasets:
        if name not in DATASETS or not DATASETS[name].shareable:
            title, _, _ = ACCESS.get(name, (name, None, ""))
            fields[f"I am entitled to use {title} and keep to its terms"] = "checkbox"
    fields["I use this model for research alone, and not in the care of patients"] = "checkbox"
    return {"extra_gated_prompt": "The terms of the training data hold for this model.", "extra_gated_fields": fields}


def _terms(datasets: list[str]) -> str | None:
    records = [DATASETS[name] for name in datasets if name in DATASETS and not DATASETS[name].shareable]
    links = (record.licence_address or record.address for record in records)
    return next((link for link in links if link), None)


def _access(name: str) -> str:
    title, link, rule = ACCESS.get(name, (name, None, "its access rules are not recorded"))
    return f"{_linked(title, link)} (`{name}`): {rule}.{_licence(name)}"


def _licence(name: str) -> str:
    record = DATASETS.get(name)
    if record is None or record.licence is None:
        return ""
    return f" Licence: {_linked(record.licence, record.licence_address)}."


def _linked(words: str, address: str | None) -> str:
    return f"[{words}]({address})" if address else words


def _regulariser(facts: Facts) -> dict:
    names = (*TERMS.values(), "entropy_temperature", "count_special_tokens")
    settings = {name: getattr(facts.config, name) for name in names}
    ramp = facts.training.get("regulariser") or {}
    if ramp.get("local_loss"):
        settings["a further local loss"] = f"{ramp['local_loss']}, with weight {ramp.get('local_weight')}"
    named = {
        "ramp_start": "fraction of the steps before which both weights are 0",
        "ramp_end": "fraction of the steps from which they have their full value",
    }
    return settings | {title: ramp[name] for name, title in named.items() if ramp.get(name)}


_TRAINING = {
    "data": ("name", "template_reports", "augmentation", "subject_share"),
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
    return {name: table_cell(str(value)) for name, value in values.items() if value is not None}
