# Licensed under the Apache License, Version 2.0.
"""An evaluation from beginning to end: score, measure, compare, report. `evaluate_zeroshot.py` calls it."""

import hashlib
import json
import platform
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset

from ..data import load_pairs
from .evidence import Evidence, compare, gather_evidence
from .figures import plot_patch_similarity, plot_reliability, plot_roc, plot_similarity_maps
from .prompts import has_prompts, load_no_finding, load_prompts
from .protocols import PROTOCOLS
from .report import UNITS, write_report
from .scoring import data_fingerprint, has_texts, model_fingerprint, read_parts, score, table_fingerprint
from .tables import metrics_tables
from .zero_shot import check_evaluation, combine_members, load_model, member_folders, summarise, temperature_of


CONFIDENCE = 0.95
SEED = 0  # of the bootstrap


class DataChoice(NamedTuple):
    dataset: str
    split: str
    options: dict


@dataclass
class EvaluationConfig:
    """The options of `evaluate_zeroshot.py`, where each is described."""

    models: list[str]
    output_dir: Path
    data: DataChoice
    validation: DataChoice | None = None
    protocol: str = "tier"
    prompts: str | None = None
    uncertain: str = "ignore"
    blank: str = "ignore"
    resamples: int = 1000
    batch_size: int = 64
    dtype: str = "float32"
    num_workers: int = 0
    device: str | None = None
    examples: int = 6

    def __post_init__(self):
        for name, least in (("resamples", 0), ("batch_size", 1), ("num_workers", 0), ("examples", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}; got {getattr(self, name)}.")


class Member(NamedTuple):
    """One model, or one of an ensemble, after scoring."""

    fingerprint: str
    temperature: float
    caches: dict[str, Path]
    """Of "data" and "validation"."""


def run_evaluation(config: EvaluationConfig) -> dict | None:
    """
    Evaluate, print the tables and write metrics.json, the report and the figures.

    Returns:
        what metrics.json holds; None in all processes but the first, which wait for nothing once their images are
        scored.
    """
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=2))
    sets = {"data": load_pairs(config.data.dataset, config.data.split, **config.data.options)}
    if config.validation:
        sets["validation"] = load_pairs(
            config.validation.dataset, config.validation.split, **config.validation.options
        )
    prompts, source = _prompts(config, sets["data"])
    for name, dataset in sets.items():
        try:
            check_evaluation(dataset, prompts, config.uncertain, config.blank)
        except ValueError as error:
            raise ValueError(f"{getattr(config, name).dataset}, {getattr(config, name).split}: {error}") from error
    models = {name: member_folders(path) for name, path in zip(model_names(config.models), config.models)}
    if not prompts and any(len(members) > 1 for members in models.values()):
        raise ValueError(
            f"An ensemble is the mean of scores, and {config.data.dataset} has no sentences: give --prompts."
        )
    if config.validation and not prompts:
        raise ValueError(f"--validation_split: {config.data.dataset} has no sentences for scores: give --prompts.")
    tables = {name: table_fingerprint(dataset) for name, dataset in sets.items()}
    scored = {
        name: {member: _score(path, sets, tables, prompts, source, config, state) for member, path in members.items()}
        for name, members in models.items()
    }
    state.wait_for_everyone()
    if not state.is_main_process:
        return None

    evidence = {name: _evidence(members, sets, prompts, config) for name, members in scored.items()}
    first, *others = models
    rows = evidence[first].details["rows"]
    result = {
        "model": config.models[0],
        "name": first,
        **config.data._asdict(),
        "labels": {"uncertain": config.uncertain, "blank": config.blank},
        "protocol": {"name": config.protocol, "score": PROTOCOLS[config.protocol].description},
        "prompts": {"source": source or "", "findings": prompts},
        "counts": count(sets["data"], rows, list(prompts), evidence[first].metrics.get("unreadable", [])),
        "fingerprints": {
            "data": data_fingerprint(sets["data"], evidence[first].scored),
            "models": {
                f"{name}/{member}" if len(members) > 1 else name: one.fingerprint
                for name, members in scored.items()
                for member, one in members.items()
            },
        },
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
        "settings": {
            **{name: getattr(config, name) for name in ("batch_size", "dtype")},
            "device": str(_device(config, state).type),
            "processes": state.num_processes,
            **{"resamples": config.resamples, "seed": SEED, "confidence": CONFIDENCE},
        },
        "metrics": evidence[first].metrics,
        "compared": {
            name: {
                "model": path,
                "metrics": evidence[name].metrics,
                "difference": compare(evidence[name], evidence[first]),
            }
            for name, path in zip(others, config.models[1:])
        },
    }
    if config.validation:
        validation = evidence[first].validation
        result["validation"] = config.validation._asdict() | {
            "num_images": len(validation["rows"]),
            "fingerprint": data_fingerprint(sets["validation"], validation),
        }
    config.output_dir.mkdir(parents=True, exist_ok=True)
    (config.output_dir / "metrics.json").write_text(json.dumps(result, indent=2))
    _draw(config, sets["data"], list(prompts), source, evidence, models)
    write_report(result, config.output_dir / "figures", config.output_dir)
    print(metrics_tables(result))
    if "labels" in sets["data"].features and not prompts:
        print("\nThere are no sentences for its labels, so no AUROC: give --prompts FILE.")
    print(f"\nreport.html, report.md, metrics.json and figures/ are in {config.output_dir}")
    return result


_PACKAGES = ("torch", "transformers", "datasets", "accelerate", "evaluate", "numpy", "scikit-learn", "pillow")


def model_names(paths: list[str]) -> list[str]:
    """Short names, no two alike: the last parts of the paths, as many as tell them apart."""
    parts = [[part for part in Path(path).parts if part not in ("/", "")] or [path] for path in paths]
    for number in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-number:]) for each in parts]
        if len(set(names)) == len(set(map(tuple, parts))):
            break
    seen: Counter = Counter()
    for i, name in enumerate(names):
        seen[name] += 1
        if seen[name] > 1:  # the same model again
            names[i] = f"{name} ({seen[name]})"
    return names


def _prompts(config: EvaluationConfig, dataset: Dataset) -> tuple[dict, str | None]:
    source = config.prompts or (config.data.dataset if has_prompts(config.data.dataset) else None)
    if source is None:
        return {}, None
    return load_prompts(source, dataset.features.get("labels", {}), config.protocol), source


def _device(config: EvaluationConfig, state: PartialState) -> torch.device:
    return torch.device(config.device) if config.device else state.device


def _score(
    path: str,
    sets: dict[str, Dataset],
    tables: dict[str, str],
    prompts: dict,
    source: str | None,
    config: EvaluationConfig,
    state: PartialState,
) -> Member:
    model, processor = load_model(path)
    model.to(_device(config, state))
    fingerprint, caches = model_fingerprint(model, processor), {}
    for name, dataset in sets.items():
        no_finding = load_no_finding(source) if name == "data" else []
        # Everything that the numbers of an image depend on.
        key = {
            "model": fingerprint,
            "data": tables[name],
            "prompts": prompts,
            "no_finding": no_finding,
            **{"batch_size": config.batch_size, "dtype": config.dtype, "device": model.device.type},
            **{package: version(package) for package in ("torch", "transformers", "pillow")},
        }
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        caches[name] = config.output_dir / "cache" / digest[:20]
        if state.is_main_process:
            caches[name].mkdir(parents=True, exist_ok=True)
            (caches[name] / "key.json").write_text(json.dumps(key, indent=2))
        score(
            model,
            processor,
            dataset,
            prompts,
            no_finding,
            batch_size=config.batch_size,
            localisation=name == "data",
            thorough=name == "data",
            dtype=config.dtype,
            num_workers=config.num_workers,
            progress=state.is_main_process,
            cache=caches[name],
            process=(state.process_index, state.num_processes),
        )
    return Member(fingerprint, temperature_of(model), caches)


def _evidence(
    members: dict[str, Member], sets: dict[str, Dataset], prompts: dict, config: EvaluationConfig
) -> Evidence:
    results: dict[str, dict[str, tuple]] = {name: {} for name in sets}
    for name, dataset in sets.items():
        for member, one in members.items():
            scored = read_parts(one.caches[name], dataset, config.batch_size)
            metrics, details = summarise(
                scored, dataset, list(prompts), config.protocol, one.temperature, config.uncertain, config.blank
            )
            results[name][member] = metrics, details, scored
    combined = {}
    for name, by_member in results.items():
        if len(by_member) == 1:
            combined[name] = next(iter(by_member.values()))
        else:
            pairs = {member: (metrics, details) for member, (metrics, details, _) in by_member.items()}
            scored = next(iter(by_member.values()))[2]
            shared = {key: scored[key] for key in ("rows", "digests")}
            combined[name] = (*combine_members(pairs), shared)
    return gather_evidence(combined, sets, config.resamples, SEED, CONFIDENCE)


def count(dataset: Dataset, rows: np.ndarray, findings: list[str], unreadable: list[str]) -> dict:
    """How much there is of everything, among the rows that were read."""
    names = [name for name in dataset.column_names if name not in ("image", "regions", "reads")]
    table = dataset.select_columns(names).select(rows)[:]
    pairs = list(zip(table["subject_id"], table["study_id"]))
    alone = sum(study is None for study in table["study_id"]), sum(subject is None for subject in table["subject_id"])
    counts: dict = {
        "images": len(rows),
        "studies": len({pair for pair in pairs if pair[1] is not None}) + alone[0],
        "subjects": len({subject for subject in table["subject_id"] if subject is not None}) + alone[1],
        "unreadable": len(unreadable),
        "views": dict(Counter(view or "unknown" for view in table["view"]).most_common()),
    }
    if findings:
        words = {1.0: "positive", 0.0: "negative", -1.0: "uncertain", None: "blank"}
        counts["labels"] = {
            finding: dict.fromkeys(words.values(), 0) | Counter(words[row[finding]] for row in table["labels"])
            for finding in findings
        }
    if "regions" in dataset.features:
        regions = dataset.select_columns("regions").with_format("arrow").select(rows)[:]["regions"]
        counts["regions"] = sum(len(each) for each in regions.to_pylist() if each)
    if has_texts(dataset):
        counts["texts"] = len(set(table["text"]))
    return counts


def _draw(
    config: EvaluationConfig,
    dataset: Dataset,
    findings: list[str],
    source: str | None,
    evidence: dict[str, Evidence],
    models: dict[str, dict[str, str]],
) -> None:
    """The figures that there is something for."""
    folder = config.output_dir / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):  # of an earlier evaluation, which may have had more
        old.unlink()
    drawn = "\n(drawings made by code, of no clinical meaning)" if "drawn" in dataset.info.description else ""
    if findings:
        first = next(iter(evidence.values()))
        for unit in first.units:
            curves = {name: each.units[unit]._asdict() for name, each in evidence.items()}
            readers = first.reader_points if unit == first.reader_unit else None
            caption = f"Zero-shot classification {UNITS[unit]}{drawn}"
            plot_roc(curves, findings, folder / f"roc_{unit}.png", caption, readers)
        parts = {
            name: {
                "probabilities": each.units["image"].probabilities,
                "calibrated": each.calibrated.get("image"),
                "labels": each.units["image"].labels,
            }
            for name, each in evidence.items()
        }
        plot_reliability(parts, findings, folder / "reliability.png", f"Calibration by image{drawn}")
    ranked = {name: each.details for name, each in evidence.items() if "rank_similarity" in each.details}
    if ranked:
        plot_patch_similarity(ranked, dataset, folder / "patch_similarity.png")
    if "regions" in dataset.features and config.examples:
        # Of an ensemble the first member: only scores have a mean.
        first = {name: next(iter(of.items())) for name, of in models.items()}
        shown = {
            f"{name}/{member}" if len(models[name]) > 1 else name: load_model(path)
            for name, (member, path) in first.items()
        }
        chosen = (findings or list(dataset.features["labels"]))[: config.examples]
        plot_similarity_maps(shown, dataset, folder / "similarity_maps.png", chosen, load_no_finding(source))
