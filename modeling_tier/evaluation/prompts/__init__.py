# Licensed under the Apache License, Version 2.0.
"""
Sentences for zero-shot classification: one YAML file per data set, named as the data set, or a file of the user's.

    no_finding: [sentences that deny everything, added to the negative ones of each finding]
    findings:
      Pleural Effusion:
        positive: [sentences]
        negative: [sentences]

Instead of `findings`, or beside it for those that it does not name, sentences for every label of the data set:

    templates:
      positive: ["{finding} is present."]
      negative: ["No {finding}."]
"""

from collections.abc import Iterable
from pathlib import Path

import yaml


def has_prompts(name: str) -> bool:
    """Whether a data set has a file here."""
    return (Path(__file__).parent / f"{name}.yaml").is_file()


def load_prompts(name_or_path: str, labels: Iterable[str] | None = None) -> dict[str, dict[str, list[str]]]:
    """
    Read the prompts of a data set.

    Args:
        name_or_path: name of a data set that has a file beside this one, or the path of a YAML file.
        labels: names of the data set's findings, for which templates are filled in.

    Returns:
        for each finding `{"positive": sentences, "negative": sentences}`, the sentences of "no_finding" among the
        negative ones.

    Raises:
        ValueError: if there is no such file, or it is not of the form above (the message names file and finding).
    """
    folder = Path(__file__).parent
    path = folder / f"{name_or_path}.yaml"
    if not path.is_file():
        path = Path(name_or_path)
    if not path.is_file():
        known = sorted(file.stem for file in folder.glob("*.yaml"))
        raise ValueError(f"No prompts called {name_or_path!r}: use one of {known} or the path of a YAML file.")
    content = yaml.safe_load(path.read_text())
    if not isinstance(content, dict) or not (content.get("findings") or content.get("templates")):
        raise ValueError(f"{path}: needs a key 'findings' with at least one finding under it, or 'templates'.")
    unknown = sorted(set(content) - {"findings", "no_finding", "templates"})
    if unknown:
        raise ValueError(f"{path}: unknown key {unknown[0]!r}; known are 'findings', 'no_finding' and 'templates'.")
    by_finding = content.get("findings") or {}
    if not isinstance(by_finding, dict):
        raise ValueError(f"{path}: 'findings' must hold findings with their sentences.")
    if "templates" in content:
        by_finding = _filled(path, content["templates"], labels or ()) | by_finding
    denials = content.get("no_finding", [])
    if denials:
        _check_sentences(path, "no_finding", denials)
    prompts = {}
    for finding, lists in by_finding.items():
        if not isinstance(lists, dict) or set(lists) != {"positive", "negative"}:
            raise ValueError(f"{path}: {finding!r} needs the two lists 'positive' and 'negative', and nothing else.")
        for key, sentences in lists.items():
            _check_sentences(path, f"{finding}: {key}", sentences)
        prompts[finding] = {"positive": lists["positive"], "negative": denials + lists["negative"]}
    if not prompts and labels is not None:
        raise ValueError(f"{path}: 'templates' are filled with the data set's labels, and it has none.")
    return prompts


def _filled(path: Path, templates, labels: Iterable[str]) -> dict:
    if not isinstance(templates, dict) or set(templates) != {"positive", "negative"}:
        raise ValueError(f"{path}: 'templates' needs the two lists 'positive' and 'negative', and nothing else.")
    for key, sentences in templates.items():
        _check_sentences(path, f"templates: {key}", sentences)
        if not all("{finding}" in sentence for sentence in sentences):
            raise ValueError(f"{path}: every sentence of 'templates' must have the place {{finding}}.")
    fill = lambda key, label: [s.replace("{finding}", label.replace("_", " ")) for s in templates[key]]  # noqa: E731
    return {label: {key: fill(key, label) for key in templates} for label in labels if label != "No Finding"}


def _check_sentences(path: Path, key: str, sentences) -> None:
    if not isinstance(sentences, list) or not sentences or not all(isinstance(s, str) and s for s in sentences):
        raise ValueError(f"{path}: '{key}' must be a list of at least one sentence; got {sentences!r}.")
