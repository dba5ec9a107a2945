# Licensed under the Apache License, Version 2.0.
"""An evaluation from beginning to end: score, measure, compare, report. `evaluate_zeroshot.py` calls it."""

import hashlib
import json
import math
import platform
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset

from ..data import PATH_OPTIONS, load_pairs
from ..data.image_list import images_fingerprint, read_image_list, select_images
from ..data.rejected import collect_rejected, write_rejected
from ..files import locked_folder, merged_folder, replace_json
from ..loading import load_model
from .evidence import Evidence, compare, gather_evidence, subject_names
from .figures import DRAWN, is_drawn, plot_patch_similarity, plot_reliability, plot_roc, plot_similarity_maps
from .fingerprints import data_fingerprint, model_fingerprint, table_fingerprint
from .given_scores import GIVEN, read_scores, scores_of, shared_findings
from .prompts import load_negation, load_no_finding, load_prompts, own_prompts
from .protocols import PROTOCOLS
from .report import write_report
from .report_findings import UNITS
from .scored import Scored, cache_format
from .scoring import ScoringOptions, has_texts, read_parts, score
from .tables import metrics_tables
from .zero_shot import check_evaluation, combine_members, member_folders, summarise, temperature_of


METRICS_FILE = "metrics.json"
IMAGES_FILE = "image_ids.txt"
FIGURES = (*(f"roc_{unit}" for unit in UNITS), "reliability", "patch_similarity", "similarity_maps")
CONFIDENCE = 0.95
MAX_SMOOTHING = 100.0  # patches: more than any grid has on a side
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
    smooth_maps: float = 0.0
    image_ids: str | None = None
    validation_image_ids: str | None = None
    sentence_retrieval: bool = False
    scores: list[str] = field(default_factory=list)

    @property
    def judged(self) -> list[str]:
        """Models, then files of scores; the others are compared with the first."""
        return [*self.models, *self.scores]

    def __post_init__(self):
        for name, least in (("resamples", 0), ("batch_size", 1), ("num_workers", 0), ("examples", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}; got {getattr(self, name)}.")
        if not 0 <= self.smooth_maps <= MAX_SMOOTHING:
            raise ValueError(f"--smooth_maps must lie between 0 and {MAX_SMOOTHING:g}; got {self.smooth_maps}.")


@dataclass(frozen=True)
class Member:
    """One model, or one of an ensemble, after scoring."""

    fingerprint: str
    temperature: float
    caches: dict[str, Path] = field(default_factory=dict)
    """Of "data" and "validation"."""
    given: dict[str, Scored] = field(default_factory=dict)
    """Likewise, if the scores are those of a file."""


@dataclass
class Inputs:
    """All that models are evaluated on, loaded and checked."""

    sets: dict[str, Dataset]
    """Of "data" and, if there is one, "validation"."""
    notes: dict[str, list[str]]
    """What the loaders of the sets have warned of."""
    prompts: dict[str, dict[str, list[str]]]
    source: str | None
    """Of the prompts: a data set's name or a file; None without prompts."""
    models: dict[str, dict[str, str]]
    """By name of a model, the folders of its members by theirs."""

    @property
    def findings(self) -> list[str]:
        return list(self.prompts)

    @property
    def negation(self) -> dict[str, dict[str, list[str]]]:
        return load_negation(self.source, self.findings) if self.source else {}


def run_evaluation(config: EvaluationConfig) -> dict | None:
    """
    Evaluate, print the tables and write metrics.json, the report and the figures.

    Returns:
        what metrics.json holds; None in all processes but the first, which wait for nothing once their images are
        scored.
    """
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=2))
    device = _device(config, state)
    _check_output(config)
    inputs = load_inputs(config, state)
    tables = {name: table_fingerprint(dataset) for name, dataset in inputs.sets.items()}
    scored = {
        name: {member: _score(path, inputs, tables, config, device, state) for member, path in members.items()}
        for name, members in inputs.models.items()
    }
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    evidence = {name: _evidence(members, inputs, config) for name, members in scored.items()}
    result = _result(config, inputs, scored, evidence, device, state)
    check_finite(result)
    with locked_folder(config.output_dir, timeout=600), _replacing(config.output_dir) as folder:
        _draw(config, inputs, evidence, folder / "figures")
        write_report(result, folder / "figures", folder)
        (folder / METRICS_FILE).write_text(json.dumps(result, indent=2, allow_nan=False))
        ids = _used_ids(inputs.sets["data"], evidence)
        (folder / IMAGES_FILE).write_text("".join(f"{name}\n" for name in ids), encoding="utf-8")
    print(metrics_tables(result))
    if "labels" in inputs.sets["data"].features and not inputs.prompts:
        print("\nThere are no sentences for its labels, so no AUROC: give --prompts FILE.")
    print(f"\nreport.html, report.md, metrics.json and figures/ are in {config.output_dir}")
    return result


def load_inputs(config: EvaluationConfig, state: PartialState) -> Inputs:
    """
    Load the data sets and the prompts; rows that were skipped are listed in the output folder.

    Raises:
        ValueError: for a model that is not there, and for data, prompts and models that do not go together.
    """
    models = {
        name: {name: path} if path in config.scores else member_folders(path)
        for name, path in zip(model_names(config.judged), config.judged)
    }
    choices = {"data": config.data} | ({"validation": config.validation} if config.validation else {})
    wanted = read_image_list(config.image_ids) if config.image_ids else None
    with collect_rejected() as rejected:
        loaded = {name: _load(choice) for name, choice in choices.items()}
    if wanted:
        chosen, note = select_images(loaded["data"][0], wanted, config.image_ids)
        loaded["data"] = chosen, [*loaded["data"][1], *([note] if note else [])]
    if config.validation_image_ids:
        loaded |= _listed_validation(config, loaded)
    if state.is_main_process:
        write_rejected(config.output_dir, rejected)
    sets = {name: dataset for name, (dataset, _) in loaded.items()}
    prompts, source = _prompts(config, sets["data"])
    for name, dataset in sets.items():
        try:
            check_evaluation(dataset, prompts, config.uncertain, config.blank)
        except ValueError as error:
            raise ValueError(f"{choices[name].dataset}, {choices[name].split}: {error}") from error
    if config.validation:
        _check_apart(config, sets)
    if not prompts and any(len(members) > 1 for members in models.values()):
        raise ValueError(
            f"An ensemble is the mean of its members' scores, and {config.data.dataset} has no sentences to score: "
            "evaluate a member, a folder in the ensemble's, or give --prompts."
        )
    if config.validation and not prompts:
        raise ValueError(f"--validation_split: {config.data.dataset} has no sentences for scores: give --prompts.")
    return Inputs(sets, {name: notes for name, (_, notes) in loaded.items()}, prompts, source, models)


def _listed_validation(
    config: EvaluationConfig, loaded: dict[str, tuple[Dataset, list[str]]]
) -> dict[str, tuple[Dataset, list[str]]]:
    """The sets, with the validation images that a list names; if it is of the split that is judged, without them."""
    path = config.validation_image_ids
    ids = read_image_list(path)
    chosen, note = select_images(loaded["validation"][0], ids, path)
    sets = {"validation": (chosen, [*loaded["validation"][1], *([note] if note else [])])}
    if config.validation != config.data or config.image_ids:
        return sets
    dataset, notes = loaded["data"]
    named = set(ids)
    others = [row for row, name in enumerate(dataset["image_id"][:]) if name not in named]
    if not others:
        raise ValueError(f"{path} names all images of {config.data.dataset}: none is left to be judged.")
    note = f"The {len(ids)} images of {path} are the validation set; the other {len(others)} are judged."
    return sets | {"data": (dataset.select(others), [*notes, note])}


def _result(
    config: EvaluationConfig,
    inputs: Inputs,
    scored: dict[str, dict[str, Member]],
    evidence: dict[str, Evidence],
    device: torch.device,
    state: PartialState,
) -> dict:
    """What metrics.json holds."""
    first, *others = inputs.models
    main, data = evidence[first], inputs.sets["data"]
    unreadable = main.metrics.get("unreadable", [])
    result = {
        "model": config.judged[0],
        "name": first,
        **config.data._asdict(),
        "labels": {"uncertain": config.uncertain, "blank": config.blank},
        "protocol": _protocol(config),
        "prompts": {"source": inputs.source or "", "findings": inputs.prompts, "negation": inputs.negation},
        "counts": count_data(data, main.details["rows"], inputs.findings, unreadable),
        "notes": inputs.notes["data"],
        "fingerprints": {
            "data": data_fingerprint(data, main.scored.images),
            "images": images_fingerprint(_used_ids(data, evidence)),
            "models": {
                f"{name}/{member}" if len(members) > 1 else name: one.fingerprint
                for name, members in scored.items()
                for member, one in members.items()
            },
        },
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
        "settings": {
            **{name: getattr(config, name) for name in ("batch_size", "dtype", "smooth_maps", "sentence_retrieval")},
            "device": device.type,
            "processes": state.num_processes,
            **{"resamples": config.resamples, "seed": SEED, "confidence": CONFIDENCE},
        },
        "metrics": main.metrics,
        "compared": {
            name: {
                "model": path,
                "metrics": evidence[name].metrics,
                "difference": compare(evidence[name], main),
            }
            for name, path in zip(others, config.judged[1:])
        },
    }
    result |= {name: getattr(config, name) for name in ("image_ids", "scores") if getattr(config, name)}
    return result | ({"validation": _validation_part(config, inputs, main)} if config.validation else {})


def _protocol(config: EvaluationConfig) -> dict[str, str]:
    if not config.models:
        return {"name": "scores", "score": GIVEN.description}
    return {"name": config.protocol, "score": PROTOCOLS[config.protocol].description}


def _used_ids(dataset: Dataset, evidence: dict[str, Evidence]) -> list[str]:
    """The ids of the images that were read, in the data set's order."""
    rows = next(iter(evidence.values())).details["rows"]
    return [str(name) for name in dataset.select_columns("image_id").select(rows)["image_id"]]


def _validation_part(config: EvaluationConfig, inputs: Inputs, main: Evidence) -> dict:
    """
    What metrics.json holds of the validation set.

    Raises:
        ValueError: if a picture is in both sets.
    """
    images = main.validation.images
    shared = set(main.scored.images.digests.tolist()) & set(images.digests.tolist())
    if shared:
        raise ValueError(
            f"{len(shared)} pictures of {config.data.dataset}, {config.data.split}, are also in the validation "
            f"set {config.validation.dataset}, {config.validation.split}: thresholds must be chosen on others."
        )
    listed = {"image_ids": config.validation_image_ids} if config.validation_image_ids else {}
    return (
        config.validation._asdict()
        | listed
        | {
            "num_images": len(images.rows),
            "fingerprint": data_fingerprint(inputs.sets["validation"], images),
            "notes": inputs.notes["validation"],
        }
    )


def check_finite(result, key: str = "") -> None:
    """Raise ValueError, with its key, for a number that is NaN or infinite: such results are never written."""
    if isinstance(result, float) and not math.isfinite(result):
        raise ValueError(f"{key} is {result}: the model's numbers are not finite, and nothing was written.")
    items = result.items() if isinstance(result, dict) else enumerate(result) if isinstance(result, list) else ()
    for name, value in items:
        check_finite(value, f"{key}.{name}" if key else str(name))


def _load(choice: DataChoice) -> tuple[Dataset, list[str]]:
    """A data set, and what its loader has warned of: rows that were skipped, for instance."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = load_pairs(choice.dataset, choice.split, **choice.options)
    for warning in caught:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return dataset, [str(warning.message) for warning in caught if warning.category is UserWarning]


def _device(config: EvaluationConfig, state: PartialState) -> torch.device:
    if config.device is None:
        return state.device
    try:
        return torch.empty(0, device=config.device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {config.device}: {str(error).splitlines()[0]}") from error


def _check_output(config: EvaluationConfig) -> None:
    """Raise ValueError if the results would replace a training run's."""
    path = config.output_dir / METRICS_FILE
    if path.is_file() and _described(path) == "":
        raise ValueError(f"{path} is not of an evaluation, but perhaps of a training run: name another --output_dir.")


def _described(path: Path) -> str | None:
    """What the results of an evaluation are of; empty if the file is of something else, None if it cannot be read."""
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):  # missing, or cut off
        return None
    try:
        return _about(result)
    except (KeyError, TypeError, AttributeError):  # results of something else, or of no form that is known
        return ""


def _about(result: dict) -> str:
    if not isinstance(result["fingerprints"], dict):
        raise TypeError("fingerprints are those of data and models")
    models = [result["model"], *(other["model"] for other in result["compared"].values())]
    about = f"{', '.join(models)} on {result['dataset']}, {result['split']}, protocol {result['protocol']['name']}"
    options = {
        name: value for name, value in (result.get("options") or {}).items() if name not in (*PATH_OPTIONS, "num_proc")
    }
    about += f", {json.dumps(options, sort_keys=True)}" if options else ""
    about += f", images of {result['image_ids']}" if result.get("image_ids") else ""
    smoothing = result.get("settings", {}).get("smooth_maps")
    return about + (f", maps smoothed over {smoothing} patches" if smoothing else "")


@contextmanager
def _replacing(output_dir: Path) -> Iterator[Path]:
    """
    A folder for all that is written. When it is complete, it replaces the same evaluation's earlier results;
    those of another evaluation are moved into a folder of their own.
    """
    try:
        with merged_folder(output_dir, last=METRICS_FILE) as folder:
            (folder / "figures").mkdir()
            yield folder
            earlier = _described(output_dir / METRICS_FILE)
            if earlier not in (None, _described(folder / METRICS_FILE)):
                aside = next(path for i in count(1) if not (path := output_dir / f"earlier-{i}").exists())
                _move_results(output_dir, aside)
                print(f"The earlier results in {output_dir}, of {earlier}, are now in {aside}.\n")
            for name in FIGURES:
                (output_dir / "figures" / f"{name}.png").unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f"{error} (while the results were written to {output_dir})") from error


def _move_results(old: Path, new: Path) -> None:
    """The results from one folder to a new one, and nothing else."""
    (new / "figures").mkdir(parents=True)
    names = (*(f"figures/{figure}.png" for figure in FIGURES), "report.html", "report.md", METRICS_FILE, IMAGES_FILE)
    for name in names:
        if (old / name).is_file():
            (old / name).replace(new / name)


def _check_apart(config: EvaluationConfig, sets: dict[str, Dataset]) -> None:
    """Raise ValueError if patients of the test are among those that thresholds are chosen on, as far as ids say it."""
    data, validation = config.data, config.validation
    if (data.dataset, data.options.get("data_dir")) != (validation.dataset, validation.options.get("data_dir")):
        return  # other ids; equal pictures are found when they have been read
    # Without an id column, own pairs are numbered by the loader: equal numbers are not the same picture.
    numbered = data.dataset == "pairs" and not data.options.get("id_column")
    for column in ("subject_id",) if numbered else ("subject_id", "image_id"):
        known = [set(dataset[column][:]) - {None} for dataset in sets.values()]
        shared = known[0] & known[1]
        if shared:
            raise ValueError(
                f"{len(shared)} of {column} stand both in the images that are judged and in the validation set, such "
                f"as {min(shared)}. Thresholds must be chosen on other patients: name another --validation_split."
            )


_PACKAGES = ("torch", "transformers", "datasets", "accelerate", "evaluate", "numpy", "scikit-learn", "pillow")


def model_names(paths: list[str]) -> list[str]:
    """Short names, no two alike: the last parts of the paths, as many as distinguish them."""
    parts = [[part for part in Path(path).parts if part not in ("/", "")] or [path] for path in paths]
    for number in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path_parts[-number:]) for path_parts in parts]
        if len(set(names)) == len(set(map(tuple, parts))):
            break
    seen: Counter = Counter()
    for i, name in enumerate(names):
        seen[name] += 1
        if seen[name] > 1:  # the same model again
            names[i] = f"{name} ({seen[name]})"
    return names


def _prompts(config: EvaluationConfig, dataset: Dataset) -> tuple[dict, str | None]:
    if not config.models:  # files of scores need no sentences
        labels = list(dataset.features.get("labels", {}))
        return {finding: {"positive": [], "negative": []} for finding in shared_findings(config.scores, labels)}, None
    source = config.prompts or own_prompts(config.data.dataset, config.data.options)
    if source is None:
        return {}, None
    return load_prompts(source, dataset.features.get("labels", {}), config.protocol), source


def _score(
    path: str,
    inputs: Inputs,
    tables: dict[str, str],
    config: EvaluationConfig,
    device: torch.device,
    state: PartialState,
) -> Member:
    """Score this process's images of each set with one model; `tables`: fingerprints of the sets."""
    if path in config.scores:
        given = read_scores(path)
        scored = {name: scores_of(given, dataset, inputs.findings) for name, dataset in inputs.sets.items()}
        return Member(given.fingerprint, 1.0, given=scored)
    model, processor = load_model(path)
    try:
        temperature = temperature_of(model)  # before any image is scored
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    model.to(device)
    fingerprint, caches = model_fingerprint(model, processor), {}
    for name, dataset in inputs.sets.items():
        is_test = name == "data"  # of the validation set nothing but scores and sentences' maps is needed
        no_finding = load_no_finding(inputs.source)
        negation = inputs.negation if is_test else {}
        sentences = {"prompts": inputs.prompts, "no_finding": no_finding, "negation": negation, "tokens": is_test}
        sentences["findings"] = inputs.findings  # the order of the columns, which keys of a dict do not keep
        sentences["sentence_retrieval"] = is_test and config.sentence_retrieval
        key = _cache_key(config, fingerprint, tables[name], sentences, device)
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        caches[name] = config.output_dir / "cache" / digest[:20]
        if state.is_main_process:
            replace_json(caches[name] / "key.json", key)
        options = ScoringOptions(
            batch_size=config.batch_size,
            thorough=True,
            tokens=is_test,
            no_finding=no_finding,
            negation=negation,
            sentences=is_test and config.sentence_retrieval,
            smoothing=config.smooth_maps,
            dtype=config.dtype,
            num_workers=config.num_workers,
            progress=state.is_main_process,
        )
        process = state.process_index, state.num_processes
        score(model, processor, dataset, inputs.prompts, options, cache=caches[name], process=process)
    return Member(fingerprint, temperature, caches)


def _cache_key(
    config: EvaluationConfig,
    model: str,
    table: str,
    sentences: dict,
    device: torch.device,
) -> dict:
    """Everything that the numbers of an image depend on; `sentences` by what they are for, single tokens included."""
    return {
        "format": cache_format(),
        "model": model,
        "data": table,
        **sentences,
        "smooth_maps": config.smooth_maps,
        **{"batch_size": config.batch_size, "dtype": config.dtype, "device": device.type},
        **{package: version(package) for package in ("torch", "transformers", "pillow")},
    }


def _evidence(members: dict[str, Member], inputs: Inputs, config: EvaluationConfig) -> Evidence:
    """Of a model, or of an ensemble's mean scores."""
    combined = {}
    for name, dataset in inputs.sets.items():
        results, images = {}, None
        for member, one in members.items():
            scored = one.given.get(name) or read_parts(one.caches[name], dataset, config.batch_size)
            protocol = GIVEN if one.given else PROTOCOLS[config.protocol]
            metrics, details = summarise(
                scored, dataset, inputs.findings, protocol, one.temperature, config.uncertain, config.blank
            )
            results[member] = metrics, details
            images = images or scored.images
        if len(members) == 1:
            combined[name] = metrics, details, scored
        else:
            combined[name] = (*combine_members(results), Scored(images))
    return gather_evidence(combined, inputs.sets, config.resamples, SEED, CONFIDENCE)


def count_data(dataset: Dataset, rows: np.ndarray, findings: list[str], unreadable: list[str]) -> dict:
    """How much there is of everything, among the rows that were read."""
    names = [name for name in dataset.column_names if name not in ("image", "regions", "reads", "radiologist")]
    table = dataset.select_columns(names).select(rows)[:]
    pairs = list(zip(table["subject_id"], table["study_id"]))
    counts: dict = {
        "images": len(rows),
        "studies": len({row if pair[1] is None else pair for row, pair in enumerate(pairs)}),
        "subjects": len(set(subject_names(dataset, rows).tolist())),
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
        counts["regions"] = sum(len(cell) for cell in regions.to_pylist() if cell)
    if has_texts(dataset):
        counts["texts"] = len(set(table["text"]))
    return counts


def _draw(config: EvaluationConfig, inputs: Inputs, evidence: dict[str, Evidence], folder: Path) -> None:
    """The figures that there is something for."""
    first = next(iter(evidence.values()))
    dataset = inputs.sets["data"].select(first.details["rows"])  # the images that were read
    if inputs.findings:
        _draw_classification(inputs.findings, evidence, folder, drawn=is_drawn(dataset))
    ranked = {name: one.details for name, one in evidence.items() if "rank_similarity" in one.details}
    if ranked:
        plot_patch_similarity(ranked, dataset, folder / "patch_similarity.png")
    if "regions" in dataset.features and config.examples and config.models:
        # Of an ensemble the first member: only scores have a mean. Files of scores have no maps.
        folders = dict(list(inputs.models.items())[: len(config.models)])
        members = {name: next(iter(members.items())) for name, members in folders.items()}
        shown = {
            f"{name}/{member}" if len(inputs.models[name]) > 1 else name: load_model(path)
            for name, (member, path) in members.items()
        }
        chosen = (inputs.findings or list(dataset.features["labels"]))[: config.examples]
        path, no_finding = folder / "similarity_maps.png", load_no_finding(inputs.source)
        plot_similarity_maps(shown, dataset, path, chosen, no_finding, config.smooth_maps)


def _draw_classification(findings: list[str], evidence: dict[str, Evidence], folder: Path, drawn: bool) -> None:
    note = DRAWN if drawn else ""
    first = next(iter(evidence.values()))
    for unit in first.units:
        curves = {name: one.units[unit]._asdict() for name, one in evidence.items()}
        readers = first.reader_points if unit == first.reader_unit else None
        caption = f"Zero-shot classification {UNITS[unit]}{note}"
        plot_roc(curves, findings, folder / f"roc_{unit}.png", caption, readers)
    parts = {
        name: {
            "probabilities": one.units["image"].probabilities,
            "calibrated": one.calibrated.get("image"),
            "labels": one.units["image"].labels,
        }
        for name, one in evidence.items()
    }
    plot_reliability(parts, findings, folder / "reliability.png", f"Calibration by image{note}")
