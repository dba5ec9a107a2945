# Licensed under the Apache License, Version 2.0.
"""
Sentences for zero-shot classification: one YAML file per data set, named as the data set (and its kind of drawings),
or a file of the user's.

    no_finding: [sentences that deny everything, added to the negative ones of each finding]
    findings:
      Pleural Effusion:
        positive: [sentences]
        negative: [sentences]

Instead of `findings`, or beside it for those that it does not name, sentences for every label of the data set:

    templates:
      positive: ["{finding} is present."]
      negative: ["No {finding}."]

The protocols "chexzero", "pipeline" and "carzero" take the findings' names, in templates that a file may replace:

    chexzero: {positive: ["{finding}"], negative: ["no {finding}"]}
    pipeline: {positive: ["This is a photo of {finding}."]}
    carzero: {positive: ["There is {finding}"]}

"carzero" and the sentences of negation write names in small letters; where CARZero's papers call a finding otherwise
than the data set's label:

    names: {Calcification: tissue calcification}
"""

import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from ...maps_tier import NO_FINDING
from ..protocols import PROTOCOLS


# Of a file; PadChest's 192 findings with ten sentences each have 100 kB.
MAX_BYTES = 1_000_000
# With what YAML's aliases repeat: a small file can name the same list thousands of times.
MAX_SENTENCES, MAX_CHARACTERS = 20_000, 2_000

# A finding affirmed and denied; the prompts of CARZero, and its negation as Bi-MCQ has it (arXiv 2601.22696).
NEGATION = {"positive": ["There is {finding}"], "negative": ["There is no {finding}"]}


def has_prompts(name: str) -> bool:
    """Whether a data set has a file here."""
    return (Path(__file__).parent / f"{name}.yaml").is_file()


def own_prompts(dataset: str, options: Mapping[str, object]) -> str | None:
    """
    Name of the file here with a data set's own sentences, as its options load it; None where there is none. Drawings
    that are not the simple ones have other findings, and a file of their own: synthetic_fine.yaml.
    """
    drawings = options.get("drawings", "simple")
    name = dataset if drawings == "simple" else f"{dataset}_{drawings}"
    return name if has_prompts(name) else None


def load_prompts(
    name_or_path: str, labels: Iterable[str] | None = None, protocol: str = "tier"
) -> dict[str, dict[str, list[str]]]:
    """
    Read the prompts of a data set.

    Args:
        name_or_path: name of a data set that has a file beside this one, or the path of a YAML file.
        labels: names of the data set's findings, for which templates are filled in.
        protocol: a key of `PROTOCOLS`.

    Returns:
        for each finding `{"positive": sentences, "negative": sentences}`, the sentences of "no_finding" among the
        negative ones; for other protocols than "tier", the templates of the protocol (or the file's own) filled with
        the finding's name, for "pipeline" and "carzero" without "negative".

    Raises:
        ValueError: if there is no such file or protocol, or the file is not of the form above (the message names file
            and finding).
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"Unknown protocol {protocol!r}; known are {list(PROTOCOLS)}.")
    path, content = _read(name_or_path)
    by_finding = content.get("findings") or {}
    if not isinstance(by_finding, dict):
        raise ValueError(f"{path}: 'findings' must hold findings with their sentences.")
    if "templates" in content:
        _check_templates(path, "templates", content["templates"], ("positive", "negative"))
        names = [label for label in labels or () if label != "No Finding"]
        by_finding = {name: _filled(content["templates"], name) for name in names} | by_finding
    denials = content.get("no_finding", [])
    if denials:
        _check_sentences(path, "no_finding", denials)
    prompts, number = {}, 0
    for finding, lists in by_finding.items():
        if not isinstance(finding, str) or not finding:
            raise ValueError(f"{path}: the name of a finding must be a text; got {finding!r}.")
        if not isinstance(lists, dict) or set(lists) != {"positive", "negative"}:
            raise ValueError(f"{path}: {finding!r} needs the two lists 'positive' and 'negative', and nothing else.")
        for key, sentences in lists.items():
            _check_sentences(path, f"{finding}: {key}", sentences)
        prompts[finding] = {"positive": lists["positive"], "negative": denials + lists["negative"]}
        number += sum(map(len, prompts[finding].values()))
        if number > MAX_SENTENCES:
            raise ValueError(f"{path}: more than {MAX_SENTENCES:,} sentences, with those that stand several times.")
    if not prompts and labels is not None:
        raise ValueError(f"{path}: 'templates' are filled with the data set's labels, and it has none.")
    standard = PROTOCOLS[protocol].templates
    if standard is None:
        return prompts
    templates = content.get(protocol, standard)
    _check_templates(path, protocol, templates, tuple(standard))
    if protocol == "pipeline" and len(templates["positive"]) > 1:
        raise ValueError(f"{path}: 'pipeline' takes one positive sentence, as the pipeline does.")
    if PROTOCOLS[protocol].competing and len(prompts) == 1:
        raise ValueError(f"{path}: in the protocol {protocol!r} findings compete with each other: one is too few.")
    if not PROTOCOLS[protocol].lower_case:
        return {finding: _filled(templates, finding) for finding in prompts}
    names = _names(path, content)
    return {finding: _filled(templates, names.get(finding, finding).lower()) for finding in prompts}


def load_no_finding(name_or_path: str | None) -> list[str]:
    """The sentences of "no_finding" of a file as in [`load_prompts`]; `NO_FINDING` where it has none."""
    return list((_read(name_or_path)[1].get("no_finding") if name_or_path else None) or NO_FINDING)


def load_negation(name_or_path: str, findings: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """
    The sentences by which negation is measured, whatever the protocol: "There is {finding}" and "There is no
    {finding}", in small letters and with the `names` of the file, as "carzero" writes them.

    Args:
        name_or_path: as in [`load_prompts`].
        findings: those that [`load_prompts`] gives.

    Returns:
        for each finding `{"positive": [sentence], "negative": [sentence]}`.

    Raises:
        ValueError: if there is no such file, or its `names` are none.
    """
    names = _names(*_read(name_or_path))
    return {finding: _filled(NEGATION, names.get(finding, finding).lower()) for finding in findings}


def _names(path: Path, content: dict) -> dict[str, str]:
    """The names that sentences have for findings, where they are not the labels' own."""
    names = content.get("names", {})
    if not isinstance(names, dict) or not all(isinstance(text, str) for pair in names.items() for text in pair):
        raise ValueError(f"{path}: 'names' must hold findings with the names that the sentences have for them.")
    return names


def _read(name_or_path: str) -> tuple[Path, dict]:
    folder = Path(__file__).parent
    path = folder / f"{name_or_path}.yaml"
    if not path.is_file():
        path = Path(name_or_path)
    if not path.is_file():
        known = sorted(file.stem for file in folder.glob("*.yaml"))
        raise ValueError(f"No prompts called {name_or_path!r}: use one of {known} or the path of a YAML file.")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path} has {size:,} bytes; prompts are sentences by finding, at most {MAX_BYTES:,} bytes.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML file: {str(error) or type(error).__name__}") from error
    if not isinstance(content, dict) or not (content.get("findings") or content.get("templates")):
        raise ValueError(f"{path}: needs a key 'findings' with at least one finding under it, or 'templates'.")
    with_templates = [name for name, protocol in PROTOCOLS.items() if protocol.templates]
    known = ["findings", "no_finding", "templates", "names", *with_templates]
    unknown = [key for key in content if key not in known]
    if unknown:
        raise ValueError(f"{path}: unknown key {unknown[0]!r}; known are {known}.")
    return path, content


def _check_templates(path: Path, key: str, templates, wanted: tuple[str, ...]) -> None:
    if not isinstance(templates, dict) or set(templates) != set(wanted):
        raise ValueError(f"{path}: {key!r} needs the lists {list(wanted)}, and nothing else.")
    for name, sentences in templates.items():
        _check_sentences(path, f"{key}: {name}", sentences)
        if not all("{finding}" in sentence for sentence in sentences):
            raise ValueError(f"{path}: every sentence of {key!r} must contain {{finding}}.")


def _filled(templates: dict[str, list[str]], finding: str) -> dict[str, list[str]]:
    name = finding.replace("_", " ")
    return {key: [text.replace("{finding}", name) for text in sentences] for key, sentences in templates.items()}


def _check_sentences(path: Path, key: str, sentences) -> None:
    if isinstance(sentences, list) and len(sentences) > MAX_SENTENCES:
        raise ValueError(f"{path}: '{key}' has {len(sentences):,} sentences; at most {MAX_SENTENCES:,} are read.")
    if not isinstance(sentences, list) or not sentences or not all(isinstance(s, str) and s for s in sentences):
        start = reprlib.repr(sentences)[:200]
        raise ValueError(f"{path}: '{key}' must be a list of at least one sentence; got {start}.")
    longest = max(sentences, key=len)
    if len(longest) > MAX_CHARACTERS:
        raise ValueError(f"{path}: '{key}' has a sentence of {len(longest):,} characters, {longest[:40]!r}...")
