# Licensed under the Apache License, Version 2.0.
"""
Sentences for zero-shot classification: one YAML file per data set, named as the data set, or a file of the user's.

    no_finding: [sentences that deny everything, added to the negative ones of each finding]
    findings:
      Pleural Effusion:
        positive: [sentences]
        negative: [sentences]
"""

from pathlib import Path

import yaml


def load_prompts(name_or_path: str) -> dict[str, dict[str, list[str]]]:
    """
    Read the prompts of a data set.

    Args:
        name_or_path: name of a data set that has a file beside this one, or the path of a YAML file.

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
    if not isinstance(content, dict) or not isinstance(content.get("findings"), dict) or not content["findings"]:
        raise ValueError(f"{path}: needs a key 'findings' with at least one finding under it.")
    unknown = sorted(set(content) - {"findings", "no_finding"})
    if unknown:
        raise ValueError(f"{path}: unknown key {unknown[0]!r}; known are 'findings' and 'no_finding'.")
    denials = content.get("no_finding", [])
    if denials:
        _check_sentences(path, "no_finding", denials)
    prompts = {}
    for finding, lists in content["findings"].items():
        if not isinstance(lists, dict) or set(lists) != {"positive", "negative"}:
            raise ValueError(f"{path}: {finding!r} needs the two lists 'positive' and 'negative', and nothing else.")
        for key, sentences in lists.items():
            _check_sentences(path, f"{finding}: {key}", sentences)
        prompts[finding] = {"positive": lists["positive"], "negative": denials + lists["negative"]}
    return prompts


def _check_sentences(path: Path, key: str, sentences) -> None:
    if not isinstance(sentences, list) or not sentences or not all(isinstance(s, str) and s for s in sentences):
        raise ValueError(f"{path}: '{key}' must be a list of at least one sentence; got {sentences!r}.")
