# Licensed under the Apache License, Version 2.0.
"""Which files of a model's folder are sent to the Hub: the list of those that go and stay, each with the reason."""

import json
import os
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import yaml
from PIL import Image

from ..configuration_tier import TERMS
from ..data import DATASETS
from ..evaluation import is_ensemble
from ..evaluation.fingerprints import model_fingerprint
from ..evaluation.run import METRICS_FILE
from ..modeling_tier import TierModel
from ..processing_tier import TierProcessor
from .card import Facts, fill_card
from .known_fields import (
    FreeText,
    Selection,
    config_fields,
    consent_code,
    environment_fields,
    processor_fields,
    texts_of_tokenizer,
    tokenizer_fields,
    training_fields,
)
from .known_results import KNOWN_FINDINGS, Results, any_finding, evaluation_fields, evaluation_problem
from .notebook import NOTEBOOK, RADIOGRAPH, example_radiograph, fill_notebook
from .origin import (
    TRAINING_CONFIG,
    Origin,
    check_shareable,
    find_origin,
    made_here,
    may_be_shown,
    number_of_words,
    option,
    read_json,
    read_yaml,
    vocabulary_problem,
)
from .scan import Kind, binary_kind, redrawn_figure, scan, scan_text


# A model's own files, as `save_pretrained` of the model and the processor write them.
_PACKAGE = Path(__file__).resolve().parents[1]
_CODE = tuple(path.name for path in _PACKAGE.glob("*_tier.py"))
_WEIGHTS = ("model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json")
_WORDS = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "added_tokens.json", "*.model")
_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json")
_PROCESSOR = ("processor_config.json", "preprocessor_config.json")
ENVIRONMENT = "environment.json"
EVALUATION = f"evaluation/{METRICS_FILE}"
# Figures without pictures of a data set, and the one with them.
_FIGURES = ("roc_image", "roc_study_mean", "roc_study_max", "reliability", "patch_similarity")
_BY_FINDING = ("roc_", "reliability")
_MAPS = "similarity_maps"
# Everything that a release may consist of: an earlier one's files of these names are replaced or deleted.
_MANAGED = (
    *(*_WEIGHTS, *_WORDS, *_TOKENIZER, *_PROCESSOR, "config.json", "*_tier.py"),
    *("README.md", METRICS_FILE, TRAINING_CONFIG, ENVIRONMENT, NOTEBOOK, RADIOGRAPH),
    *(EVALUATION, *(f"evaluation/figures/{name}.png" for name in (*_FIGURES, _MAPS))),
)

_WHY_NOT = {
    "checkpoints": "states of the training, with the optimiser's",
    "ensemble": "other models: publish each by itself",
    "cache": "embeddings and scores of single images",
    "log.jsonl": "may name images",
    "image_ids.txt": "names single images",
    "report.html": "may hold pictures and sentences of the data set",
    "report.md": "names paths of this machine; the card says the same",
    "README.md": "the card is written anew",
    "conversion.json": "names files on this machine",
}


def is_managed(path: str) -> bool:
    """Whether a file of a repository is one that a release consists of."""
    parts = Path(path).parts
    return any(len(parts) == len(Path(pattern).parts) and fnmatch(path, pattern) for pattern in _MANAGED)


class Entry(NamedTuple):
    """A line of the listing."""

    path: str
    size: int
    goes: bool
    why: str


@dataclass
class Release:
    """What would be sent to the Hub, and the problems that were found in it."""

    files: dict[str, bytes | Path] = field(default_factory=dict)
    """Contents, or the files that hold them, by the path in the repository."""
    entries: list[Entry] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Why it must not be sent."""
    notes: list[str] = field(default_factory=list)
    texts: list[FreeText] = field(default_factory=list)
    """Free texts that are sent only with the user's consent."""
    accepted: bool = False
    """Whether the user has agreed to send them."""
    summary: str = ""
    """What kind of model it is, in a few words."""

    def send(self, path: str, content: bytes | Path, why: str) -> None:
        self.files[path] = content
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        self.entries.append(Entry(path, size, True, why))

    def keep(self, path: str, source: Path, why: str) -> None:
        self.entries.append(Entry(path, _size(source), False, why))

    def selection(self, path: str) -> Selection:
        return Selection(path, self.accepted)

    def add(self, selection: Selection) -> None:
        """Record what was not sent of a file."""
        self.texts += selection.texts
        if selection.dropped:
            names = ", ".join(name[:60] for name in dict.fromkeys(selection.dropped))
            self.notes.append(f"{selection.file}: not sent, since nothing here knows these fields: {names[:600]}")

    def listing(self) -> str:
        """Every file, its size, and why it goes or stays; then the texts that wait for consent."""
        rows = [(entry.path, _readable(entry.size), entry.why, entry.goes) for entry in self.entries]
        widths = [max((len(str(row[i])) for row in rows), default=0) for i in (0, 1)]
        lines = []
        for goes, title in ((True, "goes to the Hub:"), (False, "stays here:")):
            part = [
                f"  {path:<{widths[0]}}  {size:>{widths[1]}}  {why}"
                for path, size, why, where in rows
                if where == goes
            ]
            lines += [title, *part] if part else []
        lines += self._texts()
        lines += [f"note: {line}" for line in self.notes] + [f"STOP: {line}" for line in self.problems]
        return "\n".join(map(_printable, lines))

    def card(self) -> str:
        """The text of the model card."""
        content = self.files["README.md"]
        return (content if isinstance(content, bytes) else content.read_bytes()).decode()

    def _texts(self) -> list[str]:
        texts = list(dict.fromkeys(self.texts))
        if not texts:
            return []
        lines = [f"  {text.file}, {text.key[:200]}: {text.text!r}" for text in texts]
        if self.accepted:
            return ["texts that go, since you have agreed (--accept_texts):", *lines]
        hint = f"  Read them. If everybody who sees the repository may read them: --accept_texts {consent_code(texts)}"
        return ["texts that stay here unless you agree:", *lines, hint]


@dataclass(frozen=True)
class ReleaseOptions:
    """The user's choices for a release."""

    repo_id: str
    """Name on the Hub, for the card."""
    evaluation: str | os.PathLike | None = None
    """Folder that `evaluate_zeroshot.py` has written for this model; None: the folder "evaluation" in the model's, if
    it is one."""
    shareable: bool = False
    """Whether the owner of "pairs" allows them to be public."""
    accept_vocabulary: bool = False
    """Whether a vocabulary made from texts that may not be shown is sent too."""
    accept_texts: str | None = None
    """The code under which the listing shows the free texts that may be sent."""
    revision: str | None = None
    """Branch of the commit, made if it is not there; None: main."""
    message: str | None = None
    """Message of the commit."""
    tag: str | None = None
    """Name of the release, by which it can be pulled; None: release-1, release-2, ..."""
    gated: Literal["auto", "manual"] | None = None
    """"auto" or "manual": who wants the files must first agree to the terms, and is let in by the Hub or by the
    owner."""
    new_version: str | None = None
    """Name on the Hub of a better model, which the Hub's page of this one then points at."""
    collection: str | None = None
    """Title of a Collection of this user or organisation that the model is added to, made if it is not
    there. One title for the models of a run (CLIP, TIER, the members of an ensemble) shows them together."""

    def __post_init__(self):
        if self.gated not in (None, "auto", "manual"):
            raise ValueError(f"gated must be 'auto' or 'manual'; got {self.gated!r}.")


def prepare_release(folder: Path, staging: Path, chosen: ReleaseOptions) -> Release:
    """
    Put together what would be sent to the Hub. Nothing in the model's folder is changed: its files are written anew
    from the loaded model into `staging`, so that they hold nothing else.

    Args:
        folder: a complete model folder, such as a training run's.
        staging: an empty folder.
        chosen: the user's choices.

    Raises:
        ValueError: if the message, the branch or the tag hold what must not be sent, the folder is no complete model,
            the evaluation is of another one, `shareable` is said of a data set that never is, or `accept_texts` is
            the code of other texts.
    """
    _check_named(chosen)
    run = _Run.read(folder, chosen)
    release = _build(run, chosen, staging, Release())
    code = chosen.accept_texts
    if code is not None:
        if not release.texts:
            release.notes.append("--accept_texts: there are no free texts.")
        elif code != consent_code(release.texts):
            raise ValueError(
                f"--accept_texts {code}: these are not the texts that were listed under this code. List them again "
                "with --dry_run."
            )
        else:
            release = _build(run, chosen, staging, Release(accepted=True))
    return release


@dataclass
class _Run:
    """The contents of a model's folder."""

    folder: Path
    config: dict
    """Of `training_config.yaml`; empty if there is none."""
    origin: Origin
    model: TierModel
    processor: TierProcessor
    results: dict | None
    """An evaluation of this very model."""
    results_folder: Path | None
    why_no_results: str | None
    fingerprint: str
    shown: dict[str, bool]
    """For each data set, whether it may be public."""

    @classmethod
    def read(cls, folder: Path, chosen: ReleaseOptions) -> "_Run":
        check_folder(folder)
        config_file = folder / TRAINING_CONFIG
        config = read_yaml(config_file) if config_file.is_file() else {}
        origin = find_origin(folder)
        model, processor = _load(folder)
        fingerprint = model_fingerprint(model, processor)
        results, results_folder, why = _find_evaluation(folder, chosen.evaluation, fingerprint)
        used = [*origin.datasets, option(config, "evaluation", "dataset")]
        if results is not None:
            validation = results.get("validation", {}).get("dataset")
            used += [results["dataset"], validation if isinstance(validation, str) else None]
        check_shareable([name for name in used if name], chosen.shareable)
        shown = {name: may_be_shown(name, chosen.shareable) for name in {*DATASETS, *filter(None, used)}}
        return cls(folder, config, origin, model, processor, results, results_folder, why, fingerprint, shown)

    @property
    def restricted(self) -> bool:
        """Whether a data set that the model was trained on may not be public, or nothing is recorded."""
        return not self.origin.known or not all(self.shown[name] for name in self.origin.datasets)


def _build(run: _Run, chosen: ReleaseOptions, staging: Path, release: Release) -> Release:
    words = _add_model(release, run, chosen, staging)
    config, metrics = _add_run(release, run)
    results = _add_evaluation(release, run)
    _list_the_rest(release, run)
    facts = Facts(
        repo_id=chosen.repo_id,
        config=run.model.config,
        datasets=[name for name in run.origin.datasets if name in DATASETS],
        restricted=run.restricted,
        training=config,
        metrics=metrics,
        evaluation=results,
        base_model=run.origin.base_model,
        revision=chosen.revision,
        gated=chosen.gated is not None,
        new_version=chosen.new_version,
        has_pipeline="pipeline_tier.py" in release.files,
        has_environment=ENVIRONMENT in release.files,
        pictures=results["dataset"] if f"evaluation/figures/{_MAPS}.png" in release.files else None,
    )
    lambdas = {name: getattr(run.model.config, name) for name in TERMS.values()}
    regulariser = ", ".join(f"{name} {value:g}" for name, value in lambdas.items())
    release.summary = f"TIER: {regulariser}" if any(lambdas.values()) else "CLIP: without the regulariser"
    if local_loss := option(config, "regulariser", "local_loss"):
        release.summary += f", with the local loss {local_loss}"
    if facts.has_pipeline:
        release.send(NOTEBOOK, fill_notebook(chosen.repo_id, chosen.revision), "pull, findings, maps, fine-tuning")
    release.send(RADIOGRAPH, example_radiograph(), "a drawing made by code, for the examples")
    release.send("README.md", fill_card(facts).encode(), "the model card")
    _scan(release, words, [run.folder.resolve(), Path.cwd(), Path.home()])
    return release


# The parts


def _add_model(release: Release, run: _Run, chosen: ReleaseOptions, staging: Path) -> Kind:
    """The model's and the processor's files; returns what the tokenizer's words are."""
    run.model.save_pretrained(staging)
    run.processor.save_pretrained(staging)
    for path in sorted(staging.iterdir()):
        _add_model_file(release, run, path)
    _check_staged(run, staging)
    return _check_vocabulary(release, run, staging / "tokenizer.json", chosen.accept_vocabulary)


def _add_model_file(release: Release, run: _Run, path: Path) -> None:
    name, selection = path.name, release.selection(path.name)
    if name in _CODE and path.read_bytes() == (_PACKAGE / name).read_bytes():
        release.send(name, path, "code of this package")
        return
    if any(fnmatch(name, pattern) for pattern in _WEIGHTS):
        release.send(name, path, "the model's")
        return
    if any(fnmatch(name, pattern) for pattern in _WORDS):
        if not name.endswith(".model") or not (path.parent / "tokenizer.json").is_file():
            release.send(name, path, "the tokenizer's vocabulary")
        return
    content = read_json(path) if path.suffix == ".json" else {}
    if name == "config.json":
        content = config_fields(content, run.model.config, selection)
    elif name in _PROCESSOR:
        content = processor_fields(content, run.processor, selection)
    elif name in _TOKENIZER:
        content = tokenizer_fields(content, run.processor, selection)
    else:
        release.keep(name, path, "not on the list of what may go")
        return
    path.write_bytes(_json(content))
    release.send(name, path.read_bytes(), "the model's, of known fields alone")
    release.add(selection)


def _check_staged(run: _Run, staging: Path) -> None:
    """Raise ValueError unless the folder that would go gives the scores of the folder that is there."""
    try:
        model, processor = _load(staging)
    except ValueError as error:
        raise ValueError(
            f"{run.folder}: without the fields that nothing here knows, it is no complete model: {error}"
        ) from error
    side = 64
    noise = Image.effect_noise((side, side), 64)
    with torch.no_grad():
        score, score_of_staged = (
            one(**own(images=noise, text=["Pleural effusion.", "No pleural effusion."])).logits_per_image
            for one, own in ((run.model.eval(), run.processor), (model.eval(), processor))
        )
    if not torch.equal(score.nan_to_num(), score_of_staged.nan_to_num()):
        raise ValueError(
            f"{run.folder}: it scores otherwise without the fields that nothing here knows. Find them in its "
            "config.json, processor_config.json and tokenizer_config.json."
        )


def _check_vocabulary(release: Release, run: _Run, file: Path, accepted: bool) -> Kind:
    vocabulary, words = run.processor.tokenizer.get_vocab(), run.origin.words
    number, own = number_of_words(vocabulary), made_here(vocabulary)
    problem = vocabulary_problem(words, run.shown, run.restricted, vocabulary)
    if problem and not accepted:
        release.problems.append(problem)
    elif problem:
        where = f"the texts of {words.dataset}" if words.dataset else "texts of which nothing is recorded"
        release.notes.append(f"the tokenizer's vocabulary holds {number:,} words of {where} (--accept_vocabulary)")
    elif words.dataset:
        release.notes.append(
            f"the tokenizer's vocabulary holds {number:,} words of the texts of {words.dataset}, which may be shown"
        )
    texts = texts_of_tokenizer(read_json(file), vocabulary) if file.is_file() else []
    if texts and not accepted:
        release.problems.append(
            f"tokenizer.json holds a text that is none of its tokens: {texts[0][:60]!r}. If it may be passed on, say "
            "--accept_vocabulary."
        )
    return "own words" if own else "unrecorded words" if problem else "published words"


def _add_run(release: Release, run: _Run) -> tuple[dict, dict]:
    """What the run says of itself: its options and its numbers."""
    bases, config, metrics = list(run.folder.resolve().parents), {}, {}
    if run.config:
        selection = release.selection(TRAINING_CONFIG)
        config = training_fields(run.config, selection, run.shown, run.model, bases)
        content = yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode()
        release.send(TRAINING_CONFIG, content, "without paths of this machine")
        release.add(selection)
    if (run.folder / METRICS_FILE).is_file():
        dataset = option(run.config, "evaluation", "dataset") or option(run.config, "data", "name")
        selection = release.selection(METRICS_FILE)
        walk = Results(selection, any_finding({"dataset": dataset}, run.shown))
        metrics = walk.fields(read_json(run.folder / METRICS_FILE))
        release.send(METRICS_FILE, _json(metrics), "numbers alone")
        _add_results(release, selection, walk)
    if (run.folder / ENVIRONMENT).is_file():
        selection = release.selection(ENVIRONMENT)
        environment = environment_fields(read_json(run.folder / ENVIRONMENT), selection)
        release.send(ENVIRONMENT, _json(environment), "releases of the software")
        release.add(selection)
    return config, metrics


def _add_results(release: Release, selection: Selection, walk: Results) -> None:
    release.add(selection)
    if walk.unknown_numbers:
        names = ", ".join(dict.fromkeys(walk.unknown_numbers))
        release.notes.append(
            f"{selection.file}: these numbers go, though nothing here knows their names: {names[:600]}"
        )


def _add_evaluation(release: Release, run: _Run) -> dict:
    if run.results is None:
        if run.why_no_results:
            release.notes.append(run.why_no_results)
        return {}
    selection = release.selection(EVALUATION)
    cleaned, walk = evaluation_fields(run.results, run.fingerprint, selection, run.shown)
    release.send(EVALUATION, _json(cleaned), "numbers alone, of this model")
    _add_results(release, selection, walk)
    _choose_figures(release, run)
    return cleaned


def check_folder(folder: Path) -> None:
    """Raise ValueError for what is no complete model, with what is missing."""
    if folder.is_file():
        raise ValueError(f"{folder} is a file: name the model's folder, {folder.parent}.")
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}: name the folder of a model on this machine.")
    if is_ensemble(folder):
        raise ValueError(f"{folder} is an ensemble: publish its models, the folders in it, each by itself.")
    weights = ("model.safetensors", "model.safetensors.index.json")
    missing = [] if any((folder / name).is_file() for name in weights) else ["model.safetensors"]
    missing += [name for name in ("config.json", "processor_config.json") if not (folder / name).is_file()]
    if missing:
        run = (folder / TRAINING_CONFIG).is_file()
        hint = " Its training has not ended: go on with --training.resume_from_checkpoint auto." if run else ""
        raise ValueError(f"{folder} is no complete model: there is no {' and no '.join(missing)}.{hint}")
    if not (folder / weights[0]).is_file():
        shards = read_json(folder / weights[1]).get("weight_map")
        names = set(map(str, shards.values())) if isinstance(shards, dict) else {"nothing"}
        wrong = sorted(name for name in names if not fnmatch(name, "model-*.safetensors") or "/" in name)
        if wrong:
            raise ValueError(f"{folder / weights[1]} names {wrong[0]!r}, which is no part of this model's weights.")


def _load(folder: Path) -> tuple[TierModel, TierProcessor]:
    """Load a model by the code of this package, not by the folder's, from safetensors alone."""
    try:
        if read_json(folder / "config.json").get("model_type") != "tier":
            raise ValueError("its config.json is not of a TIER model (convert it: python -m modeling_tier.conversion)")
        model, info = TierModel.from_pretrained(
            str(folder), use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        processor = TierProcessor.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # whatever is wrong with the files, from three libraries
        raise ValueError(f"{folder} cannot be loaded: {' '.join(str(error).split())[:500]}") from error
    wrong = sorted(map(str, [*info["missing_keys"], *info["unexpected_keys"], *(info.get("mismatched_keys") or [])]))
    if wrong:
        raise ValueError(f"{folder}: {len(wrong)} weights are missing or too many, such as {wrong[0]}.")
    return model, processor


# An evaluation


def _find_evaluation(
    folder: Path, evaluation: str | os.PathLike | None, fingerprint: str
) -> tuple[dict | None, Path | None, str | None]:
    """Results of this very model, with their folder; else why those that were found are not sent."""
    where = Path(evaluation or folder / "evaluation")
    file = where / METRICS_FILE
    if not file.is_file():
        if evaluation and where.is_file():
            raise ValueError(f"--evaluation: {where} is a file: name its folder, {where.parent}.")
        if evaluation and not where.is_dir():
            raise ValueError(f"--evaluation: there is no folder {where}.")
        if evaluation:
            raise ValueError(f"--evaluation: there is no {file}: name a folder that evaluate_zeroshot.py has written.")
        return None, None, None
    problem = None
    try:
        results = read_json(file)
    except ValueError as error:
        problem = str(error).rstrip(".")
    else:
        if problem := evaluation_problem(results):
            problem = f"{file} {problem}"
        elif fingerprint not in results["fingerprints"]["models"].values():
            problem = f"{file} is of another model, or of this one before it was trained further"
    if problem is None:
        return results, where, None
    if evaluation:
        raise ValueError(f"--evaluation: {problem}.")
    return None, where, f"{problem}: it stays here"


def _choose_figures(release: Release, run: _Run) -> None:
    results, shown = run.results or {}, run.shown
    dataset, names = results["dataset"], [results["name"], *results.get("compared", {})]
    plain = all(len(name) <= 40 and not scan_text("", name) and "/" not in name for name in names)
    findings = set((results.get("prompts") or {}).get("findings") or {})
    known = findings <= KNOWN_FINDINGS or any_finding(results, shown) or release.accepted
    for path in sorted(((run.results_folder or run.folder) / "figures").glob("*")):
        name, why = f"evaluation/figures/{path.name}", None
        pictures = path.stem == _MAPS
        figure = _figure(path, pictures)
        if path.suffix != ".png" or path.stem not in (*_FIGURES, _MAPS):
            why = "not on the list of what may go"
        elif pictures and not shown.get(dataset, False):
            why = f"holds pictures of {dataset}, which may not be shown"
        elif figure is None:
            why = "is not as the evaluation draws it"
        elif not plain:
            why = "names the models by paths of this machine"
        elif path.stem.startswith((*_BY_FINDING, _MAPS)) and not known:
            why = "names findings that are not generally known"
        if why or figure is None:
            release.keep(name, path, why or "")
        else:
            holds = f"holds pictures of {dataset}, which may be shown" if pictures else "curves alone"
            release.send(name, figure, f"{holds}; names the models: {', '.join(names)[:80]}")


def _figure(path: Path, pictures: bool) -> bytes | None:
    regular = path.is_file() and not path.is_symlink() and path.stat().st_size < 50 * 2**20
    return redrawn_figure(path.read_bytes(), pictures) if regular else None


# The rest


def _list_the_rest(release: Release, run: _Run) -> None:
    """List the other files of the folder, and of the evaluation's."""
    handled = {name for name in release.files} | {"model.safetensors"}
    for path in sorted(run.folder.iterdir()):
        if path.name in handled:
            continue
        if run.results_folder is not None and path.resolve() == run.results_folder.resolve():
            continue
        release.keep(path.name + ("/" if path.is_dir() else ""), path, _reason(path))
    if run.results_folder is None:
        return
    for path in sorted(run.results_folder.iterdir()):
        if path.name not in ("figures", METRICS_FILE) or EVALUATION not in release.files:
            release.keep(f"evaluation/{path.name}" + ("/" if path.is_dir() else ""), path, _reason(path))


def _reason(path: Path) -> str:
    return _WHY_NOT.get(path.name, "not on the list of what may go")


def _scan(release: Release, words: Kind, local_paths: list[Path]) -> None:
    for name, content in release.files.items():
        if name.endswith((".safetensors", ".png")) or name in _CODE:  # written anew from numbers, pixels, this package
            continue
        data = content if isinstance(content, bytes) else content.read_bytes()
        if name.endswith(".model"):  # no text; of a published tokenizer, or the user has agreed
            release.problems += [f"{name}: is a file of the kind {binary_kind(data)}"] if binary_kind(data) else []
            continue
        kind: Kind = words if any(fnmatch(name, pattern) for pattern in _WORDS) else "fields"
        release.problems += scan(name, data, kind, local_paths)
    if release.accepted:
        for text in dict.fromkeys(release.texts):
            release.problems += scan_text(f"{text.file}, {text.key}", text.text, local_paths)


def _check_named(chosen: ReleaseOptions) -> None:
    """Raise ValueError for a message, a branch, a tag or a name of the repository that must not be sent."""
    named = {"--message": chosen.message, "--revision": chosen.revision, "--tag": chosen.tag}
    named |= {"--collection": chosen.collection, "--new_version": (chosen.new_version or "").partition("/")[2]}
    named["the name on the Hub"] = chosen.repo_id.partition("/")[2]
    signs = [sign for name, text in named.items() if text for sign in scan_text(name, text, [Path.cwd(), Path.home()])]
    if signs:
        raise ValueError(f"{signs[0]}. Everybody who sees the repository sees it: say it in other words.")


# Files


def _json(content: dict) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _size(path: Path) -> int:
    try:
        if path.is_dir() and not path.is_symlink():
            return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return path.stat().st_size if path.exists() else 0
    except OSError:  # may not be read, or is being changed
        return 0


def _printable(line: str) -> str:
    """Without what would end the line or control the terminal: names of files and fields may hold anything."""
    return "".join(character if character.isprintable() else "\ufffd" for character in line)


def _readable(size: int) -> str:
    if size < 1000:
        return f"{size} B"
    power = 1 if size < 1e6 else 2 if size < 1e9 else 3
    return f"{size / 1000**power:.1f} {('kB', 'MB', 'GB')[power - 1]}"
