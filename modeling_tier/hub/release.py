# Licensed under the Apache License, Version 2.0.
"""What of a model's folder may go to the Hub: a list of what goes and what stays, each with the reason."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import yaml

from ..data import DATASETS, SHAREABLE
from ..evaluation import PROTOCOLS, is_ensemble, load_prompts
from ..evaluation.run import METRICS_FILE
from ..evaluation.scoring import model_fingerprint
from ..modeling_tier import TierModel
from ..processing_tier import TierProcessor
from .card import Facts, fill_card
from .leaks import (
    KNOWN_FINDINGS,
    cleaned_results,
    cleaned_training_config,
    is_drawn_figure,
    is_packaged,
    local_source,
    picture_kind,
    scan,
    without_origins,
)


TRAINING_CONFIG = "training_config.yaml"

# A model's own files, as `save_pretrained` of the model and the processor write them.
_MODEL = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json", "config.json", "*_tier.py")
_WORDS = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "spiece.model",
    "*.bpe.model",
)
_PROCESSOR = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json", "special_tokens_map.json")
# Figures without pictures of a data set, and the one with them.
_FIGURES = ("roc_image", "roc_study_mean", "roc_study_max", "reliability", "patch_similarity")
_BY_FINDING = ("roc_", "reliability")
_MAPS = "similarity_maps"
# Everything that a release may consist of: an earlier one's files of these names are replaced or deleted.
_MANAGED = (
    *(*_MODEL, *_WORDS, *_PROCESSOR),
    *("README.md", "metrics.json", TRAINING_CONFIG, "environment.json"),
    *(f"evaluation/{name}" for name in (METRICS_FILE, *(f"figures/{each}.png" for each in (*_FIGURES, _MAPS)))),
)
# What `train_tokenizer` begins a vocabulary with; no published one does.
_MADE_HERE = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")

_WHY_NOT = {
    "checkpoints": "states of the training, with the optimiser's",
    "ensemble": "other models: publish each by itself",
    "cache": "embeddings and scores of single images",
    "log.jsonl": "may name images",
    "report.html": "may hold pictures and sentences of the data set",
    "report.md": "names places on this machine; the card says the same",
    "README.md": "the card is written anew",
}


def is_managed(path: str) -> bool:
    """Whether a file of a repository is one that a release consists of."""
    parts = Path(path).parts
    return any(len(parts) == len(Path(each).parts) and fnmatch(path, each) for each in _MANAGED)


class Entry(NamedTuple):
    """A line of the listing."""

    path: str
    size: int
    goes: bool
    why: str


@dataclass
class Release:
    """What would go to the Hub, and what was found in it."""

    files: dict[str, bytes | Path] = field(default_factory=dict)
    """Contents, or the files that hold them, by the path in the repository."""
    entries: list[Entry] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Why it must not go."""
    notes: list[str] = field(default_factory=list)

    def send(self, path: str, content: bytes | Path, why: str) -> None:
        self.files[path] = content
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        self.entries.append(Entry(path, size, True, why))

    def keep(self, path: str, source: Path, why: str) -> None:
        self.entries.append(Entry(path, _size(source), False, why))

    def listing(self) -> str:
        """Every file, its size, and why it goes or stays."""
        rows = [(each.path, _readable(each.size), each.why, each.goes) for each in self.entries]
        widths = [max((len(row[i]) for row in rows), default=0) for i in (0, 1)]
        lines = []
        for goes, title in ((True, "goes to the Hub:"), (False, "stays here:")):
            part = [
                f"  {path:<{widths[0]}}  {size:>{widths[1]}}  {why}"
                for path, size, why, where in rows
                if where == goes
            ]
            lines += [title, *part] if part else []
        lines += [f"note: {each}" for each in self.notes] + [f"STOP: {each}" for each in self.problems]
        return "\n".join(lines)


@dataclass
class Origin:
    """Where a model comes from, as far as the folders on this machine say it."""

    datasets: list[str]
    """Those that it was trained on; its pretrained model's included."""
    known: bool
    """Whether the whole line of ancestors is recorded."""
    words: str | None
    """The data set whose texts a vocabulary made here was made of, if that is known."""
    base_model: str | None
    """Name on the Hub of what it started from."""


def prepare_release(
    folder: Path,
    staging: Path,
    repo_id: str,
    evaluation: Path | None = None,
    shareable: bool = False,
    accept_vocabulary: bool = False,
    revision: str | None = None,
) -> Release:
    """
    Look through a model's folder and put together what would go to the Hub. Nothing in the folder is changed. The
    model's files are written anew from the loaded model into `staging`, so that nothing rides along in them.

    Args:
        folder: a complete model folder, such as a training run's.
        staging: an empty folder.
        repo_id: name on the Hub, for the card.
        evaluation: folder of an evaluation of this model; None: the folder "evaluation" in `folder`, if it is one.
        shareable: whether the owner of "pairs" lets everybody see them.
        accept_vocabulary: whether a vocabulary made from texts that may not be shown goes along.
        revision: branch, for the card.

    Raises:
        ValueError: if the folder is no complete model, the evaluation is of another one, or `shareable` is said of a
            data set that never is.
    """
    _check_folder(folder)
    config_file = folder / TRAINING_CONFIG
    config = _read_yaml(config_file) if config_file.is_file() else {}
    origin = find_origin(folder)
    model, processor = _load(folder)
    fingerprint = model_fingerprint(model, processor)
    results, results_folder, refused = _find_evaluation(folder, evaluation, fingerprint)
    used = [*origin.datasets, (config.get("evaluation") or {}).get("dataset")]
    if results is not None:
        used += [results["dataset"], results.get("validation", {}).get("dataset")]
    check_shareable([name for name in used if name], shareable)
    shown = {name: may_be_shown(name, shareable) for name in {*DATASETS, *filter(None, used)}}
    release = Release()

    # The model
    model.save_pretrained(staging)
    processor.save_pretrained(staging)
    for path in sorted(staging.iterdir()):
        _send_model_file(release, path)
    restricted = not origin.known or not all(shown[name] for name in origin.datasets)
    _check_vocabulary(release, processor, origin, shown, accept_vocabulary)

    # What the run says of itself
    bases = list(folder.resolve().parents)
    cleaned_config = cleaned_training_config(config, shown, bases)
    if config:
        content = yaml.safe_dump(cleaned_config, sort_keys=False, allow_unicode=True).encode()
        release.send(TRAINING_CONFIG, content, "without places on this machine")
    metrics = {}
    if (folder / METRICS_FILE).is_file():
        dataset = (config.get("evaluation") or {}).get("dataset") or (config.get("data") or {}).get("name")
        metrics = cleaned_results(_read_json(folder / METRICS_FILE), _any_finding(dataset, shown))
        release.send(METRICS_FILE, _json(metrics), "numbers alone")
    if (folder / "environment.json").is_file():
        environment = cleaned_results(_read_json(folder / "environment.json"))
        release.send("environment.json", _json(environment), "releases of the software")

    # An evaluation
    cleaned = {}
    if results is not None:
        cleaned = _cleaned_evaluation(results, fingerprint, shown)
        release.send(f"evaluation/{METRICS_FILE}", _json(cleaned), "numbers alone, of this model")
        _choose_figures(release, results_folder, results, shown)
    elif refused:
        release.notes.append(refused)

    _list_the_rest(release, folder, results_folder)
    facts = Facts(
        repo_id=repo_id,
        config=model.config,
        datasets=origin.datasets,
        restricted=restricted,
        training=cleaned_config,
        metrics=metrics,
        evaluation=cleaned,
        base_model=origin.base_model,
        revision=revision,
        has_pipeline="pipeline_tier.py" in release.files,
        has_environment="environment.json" in release.files,
        pictures=cleaned["dataset"] if f"evaluation/figures/{_MAPS}.png" in release.files else None,
    )
    release.send("README.md", fill_card(facts).encode(), "the model card")
    _scan(release, [folder.resolve(), Path.cwd(), Path.home()])
    return release


# Where it comes from


def find_origin(folder: Path, seen: tuple[Path, ...] = ()) -> Origin:
    """Follow a run, and the local folders that it started from, to the data sets behind it."""
    file, place = folder / TRAINING_CONFIG, folder.resolve()
    if not file.is_file() or place in seen:
        return Origin([], False, None, None)
    return origin_of(_read_yaml(file), place.parents, (*seen, place))


def origin_of(config: dict, bases: Iterable[Path], seen: tuple[Path, ...] = ()) -> Origin:
    """The same for the options of a run; `bases`: folders from which a relative path may have been meant."""
    dataset = (config.get("data") or {}).get("name")
    pretrained, tokenizer = ((config.get(part) or {}).get("pretrained") for part in ("model", "tokenizer"))
    source = local_source(pretrained, bases)
    if not pretrained:
        parent = Origin([], True, dataset, None)
    elif source is None:
        parent = Origin([], False, None, pretrained)
    else:
        parent = find_origin(source, seen)
    return Origin(
        datasets=list(dict.fromkeys(name for name in (dataset, *parent.datasets) if name)),
        known=parent.known and dataset is not None,
        words=None if tokenizer else parent.words,
        base_model=parent.base_model,
    )


def may_be_shown(dataset: str, shareable: bool) -> bool:
    mark = SHAREABLE.get(dataset, False)
    return shareable if mark is None else mark


def check_shareable(datasets: Iterable[str], shareable: bool) -> None:
    """Raise ValueError if `shareable` is said although a data set is among these that never is."""
    never = sorted({name for name in datasets if SHAREABLE.get(name, False) is False})
    if shareable and never:
        raise ValueError(
            f"--shareable: {', '.join(never)} may never be shown, whoever says so: its terms of access hold for its "
            "pictures and sentences. Leave --shareable out; the numbers of an evaluation go without it."
        )


def vocabulary_problem(dataset: str | None, number: int | None = None) -> str:
    """Why a vocabulary that was made from texts which may not be shown does not simply go along."""
    where = f"the texts of {dataset}" if dataset else "texts of which nothing is recorded"
    how_many = f"{number:,} words" if number is not None else "the most frequent words"
    text = f"The tokenizer's vocabulary holds {how_many} of {where}, and a rare one may be a name. "
    if dataset in ("mimic_cxr", "ms_cxr"):
        text += "The reports are de-identified, but under a data use agreement. "
    return text + (
        "Read the words (tokenizer.json), and if they may be passed on, say --accept_vocabulary; or train with a "
        "published tokenizer (tokenizer.pretrained)."
    )


def _check_vocabulary(release: Release, processor: TierProcessor, origin: Origin, shown: dict, accepted: bool) -> None:
    vocabulary = processor.tokenizer.get_vocab()
    if not made_here(vocabulary):
        return
    number = sum(len(word) > 1 and not word.startswith("##") and word not in _MADE_HERE for word in vocabulary)
    where = f"the texts of {origin.words}" if origin.words else "texts of which nothing is recorded"
    if origin.words and shown[origin.words]:
        release.notes.append(f"the tokenizer's vocabulary holds {number:,} words of {where}, which may be shown")
    elif accepted:
        release.notes.append(f"the tokenizer's vocabulary holds {number:,} words of {where} (--accept_vocabulary)")
    else:
        release.problems.append(vocabulary_problem(origin.words, number))


def check_vocabulary_before(config: dict, shareable: bool, accepted: bool) -> None:
    """Raise ValueError if the vocabulary of a run that is to come will not go along, as far as its options tell."""
    origin = origin_of(config, [])
    pretrained, tokenizer = ((config.get(part) or {}).get("pretrained") for part in ("model", "tokenizer"))
    source = local_source(tokenizer or pretrained)
    if tokenizer or pretrained:
        file = source / "tokenizer.json" if source else None
        if file is None or not file.is_file() or not _words_made_here(file.name, file.read_bytes()):
            return
    if not accepted and not (origin.words and may_be_shown(origin.words, shareable)):
        raise ValueError(vocabulary_problem(origin.words))


def made_here(vocabulary: dict[str, int]) -> bool:
    """Whether a vocabulary is one that `train.py` has made from its texts: special tokens, characters, words."""
    words, number = sorted(vocabulary, key=vocabulary.get), len(_MADE_HERE)
    return tuple(words[:number]) == _MADE_HERE and all(len(word) == 1 for word in words[number : number + 3])


# The parts


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")
    if is_ensemble(folder):
        raise ValueError(f"{folder} is an ensemble: publish its models, the folders in it, each by itself.")
    weights = ("model.safetensors", "model.safetensors.index.json")
    missing = [] if any((folder / name).is_file() for name in weights) else ["model.safetensors"]
    missing += [name for name in ("config.json", "processor_config.json") if not (folder / name).is_file()]
    if missing:
        run = (folder / TRAINING_CONFIG).is_file()
        hint = " Its training has not ended: go on with --training.resume_from_checkpoint auto." if run else ""
        raise ValueError(f"{folder} is no complete model: there is no {' and no '.join(missing)}.{hint}")


def _load(folder: Path) -> tuple[TierModel, TierProcessor]:
    """By the code of this package, whatever code lies in the folder; from safetensors alone."""
    try:
        if _read_json(folder / "config.json").get("model_type") != "tier":
            raise ValueError("its config.json is not of a TIER model (convert it: python -m modeling_tier.conversion)")
        model, info = TierModel.from_pretrained(
            str(folder), use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        processor = TierProcessor.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # whatever is wrong with the files, from three libraries
        raise ValueError(f"{folder} cannot be loaded: {error}") from error
    wrong = sorted(map(str, [*info["missing_keys"], *info["unexpected_keys"], *(info.get("mismatched_keys") or [])]))
    if wrong:
        raise ValueError(f"{folder}: {len(wrong)} weights are missing or too many, such as {wrong[0]}.")
    return model, processor


def _send_model_file(release: Release, path: Path) -> None:
    name = path.name
    if any(fnmatch(name, each) for each in (*_PROCESSOR, "config.json")):
        release.send(name, _json(without_origins(_read_json(path))), "the model's, without where it was loaded from")
    elif any(fnmatch(name, each) for each in _MODEL):
        release.send(name, path, "code of this package" if path.suffix == ".py" else "the model's")
    elif any(fnmatch(name, each) for each in _WORDS):
        release.send(name, path, "the tokenizer's vocabulary")
    else:
        release.keep(name, path, "not on the list of what may go")


def _any_finding(dataset: str | None, shown: dict) -> bool:
    """
    Public data sets with more findings than are known here may name any; the columns of somebody's own pairs are
    called what their owner likes.
    """
    return dataset in ("padchest", "openi") or (dataset == "pairs" and shown["pairs"])


def _find_evaluation(
    folder: Path, evaluation: Path | None, fingerprint: str
) -> tuple[dict | None, Path | None, str | None]:
    """Results of this very model, with their folder; else why those that were found are not sent."""
    where = evaluation or folder / "evaluation"
    file = where / METRICS_FILE
    if not file.is_file():
        if evaluation:
            raise ValueError(f"--evaluation: there is no {file}.")
        return None, None, None
    results = _read_json(file)
    if "fingerprints" not in results:
        problem = f"{file} is not of evaluate_zeroshot.py"
    elif fingerprint not in results["fingerprints"].get("models", {}).values():
        problem = f"{file} is of another model, or of this one before it was trained further"
    else:
        return results, where, None
    if evaluation:
        raise ValueError(f"--evaluation: {problem}.")
    return None, where, f"{problem}: it stays here"


def _cleaned_evaluation(results: dict, fingerprint: str, shown: dict) -> dict:
    """The part of an evaluation that is of this model, without what belongs to the data set."""
    dataset, protocol = results["dataset"], results["protocol"]["name"]
    models = {results["name"]: results["metrics"]}
    models |= {name: each["metrics"] for name, each in results.get("compared", {}).items()}
    name = next(name for name, print in results["fingerprints"]["models"].items() if print == fingerprint)
    own = models[name] if name in models else _member(models, name)
    kept = ("dataset", "split", "labels", "counts", "versions", "settings")
    cleaned = cleaned_results({key: results[key] for key in kept if key in results}, _any_finding(dataset, shown))
    cleaned["protocol"] = {"name": protocol} | (
        {"score": PROTOCOLS[protocol].description} if protocol in PROTOCOLS else {}
    )
    if _prompts_are_public(results) or shown[dataset]:
        source = results["prompts"]["source"]
        cleaned["prompts"] = {"source": source} if local_source(source or None) is None else {}
        cleaned["prompts"]["findings"] = results["prompts"]["findings"]
    if "validation" in results:
        parts = ("dataset", "split", "num_images", "fingerprint")
        cleaned["validation"] = cleaned_results({key: results["validation"].get(key) for key in parts})
    cleaned["fingerprints"] = {"data": results["fingerprints"]["data"], "model": fingerprint}
    return cleaned | {"metrics": cleaned_results(own, _any_finding(dataset, shown))}


def _member(models: dict, name: str) -> dict:
    ensemble, _, member = name.rpartition("/")
    return models[ensemble]["members"][member]


def _prompts_are_public(results: dict) -> bool:
    """Whether the sentences are those of this package."""
    prompts = results.get("prompts") or {}
    findings = prompts.get("findings") or {}
    if not findings or not is_packaged(prompts.get("source")):
        return False
    if results["dataset"] == "pairs" and not set(findings) <= KNOWN_FINDINGS:
        return False  # templates of the package, filled with somebody's own names
    own = load_prompts(prompts["source"], list(findings), results["protocol"]["name"])
    return all(own.get(finding) == sentences for finding, sentences in findings.items())


def _choose_figures(release: Release, folder: Path, results: dict, shown: dict) -> None:
    dataset = results["dataset"]
    names = [results["name"], *results.get("compared", {})]
    plain = all(re.fullmatch(r"[\w. -]{1,40}", name) and not scan("", name.encode()) for name in names)
    findings = set((results.get("prompts") or {}).get("findings") or {})
    own_names = dataset == "pairs" and not shown[dataset] and not findings <= KNOWN_FINDINGS
    for path in sorted((folder / "figures").glob("*")):
        name, why = f"evaluation/figures/{path.name}", None
        if path.suffix != ".png" or path.stem not in (*_FIGURES, _MAPS):
            why = "not on the list of what may go"
        elif path.stem == _MAPS and not shown[dataset]:
            why = f"holds pictures of {dataset}, which may not be shown"
        elif path.is_symlink() or not is_drawn_figure(path.read_bytes()):
            why = "is not as the evaluation draws it"
        elif not plain:
            why = "names the models by places on this machine"
        elif path.stem.startswith(_BY_FINDING) and own_names:
            why = "names findings that are not generally known"
        if why:
            release.keep(name, path, why)
        else:
            holds = f"holds pictures of {dataset}, which may be shown" if path.stem == _MAPS else "curves alone"
            release.send(name, path.read_bytes(), holds)


def _list_the_rest(release: Release, folder: Path, results_folder: Path | None) -> None:
    """What else lies in the folder, and in the evaluation's."""
    handled = {name for name in release.files} | {"model.safetensors"}
    own = [path for path in sorted(folder.iterdir()) if path.name not in handled]
    for path in own:
        if results_folder is not None and path.resolve() == results_folder.resolve():
            continue
        release.keep(path.name + ("/" if path.is_dir() else ""), path, _reason(path))
    if results_folder is None:
        return
    for path in sorted(results_folder.iterdir()):
        if path.name not in ("figures", METRICS_FILE) or f"evaluation/{METRICS_FILE}" not in release.files:
            release.keep(f"evaluation/{path.name}" + ("/" if path.is_dir() else ""), path, _reason(path))


def _reason(path: Path) -> str:
    return _WHY_NOT.get(path.name, "not on the list of what may go")


def _scan(release: Release, places: list[Path]) -> None:
    for name, content in release.files.items():
        if name.endswith((".safetensors", ".png")):  # written from the loaded weights; looked through when chosen
            continue
        data = content if isinstance(content, bytes) else content.read_bytes()
        if name.endswith(".model"):  # of a published tokenizer, and no text
            release.problems += [f"{name}: is a file of the kind {picture_kind(data)}"] if picture_kind(data) else []
            continue
        words = None
        if any(fnmatch(name, each) for each in _WORDS):
            words = "made here" if _words_made_here(name, data) else "published"
        release.problems += scan(name, data, words, places)


def _words_made_here(name: str, data: bytes) -> bool:
    if name != "tokenizer.json":
        return False
    vocabulary = json.loads(data).get("model", {}).get("vocab", {})
    return isinstance(vocabulary, dict) and made_here(vocabulary)


# Files


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold an object; got {type(content).__name__}.")
    return content


def _read_yaml(path: Path) -> dict:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold options by section; got {type(content).__name__}.")
    return content


def _json(content: dict) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
    return path.stat().st_size if path.exists() else 0


def _readable(size: int) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
