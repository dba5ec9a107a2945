# Licensed under the Apache License, Version 2.0.
"""
Results, built from what is known: all numbers go; the names of somebody's own findings and all other texts only with
the user's consent.
"""

import functools
import math
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from .. import evaluation
from ..data import DATASETS, SPLITS
from ..evaluation import DTYPES, LABEL_POLICIES, PROTOCOLS, load_prompts
from .known_fields import (
    DEVICES,
    GONE,
    MACHINES,
    PACKAGES,
    RELEASE,
    SYSTEMS,
    Selection,
    is_packaged,
    texts_of_module,
    words_of_module,
)


# Names of findings that are public. Columns of somebody's own pairs may have private names.
KNOWN_FINDINGS = frozenset(finding for record in DATASETS.values() for finding in record.findings)
VIEWS = frozenset("PA AP LATERAL LL AP_horizontal COSTAL unknown".split())

# What is never sent, even with consent: paths, other models, single images, people, words of the data set.
_NEVER = frozenset(
    "unreadable notes model compared members by_reader localisation_tokens skipped image_ids images_of".split()
)
# Keys of results that are not names of measures.
_STRUCTURE = frozenset(
    """
    step epoch validation num_images dataset split name score labels uncertain blank protocol prompts source findings
    positive negative counts images studies subjects views regions texts fingerprints data versions settings batch_size
    dtype device processes resamples seed confidence fingerprint metrics options mean undefined text place region
    resolution map unit value low high no_interval readers classification image study_mean study_max localisation
    retrieval sparsity without_padding with_padding image_to_text text_to_image r@1 r@5 r@10 dropped
    """.split()
)
_NUMBER_NAME = re.compile(r"(?!.*\d{4})[a-z][a-z0-9_]{0,39}(@\d{1,3})?")
_FINDING_NAME = re.compile(r"[^\W_][\w /,()'-]{0,60}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass
class Results:
    """Goes through one file of results."""

    selection: Selection
    any_finding: bool = False
    """Whether findings may have any name; else those of `KNOWN_FINDINGS`, or with the user's consent."""
    own_findings: frozenset[str] = frozenset()
    """Names of findings in these results."""
    unknown_numbers: list[str] = field(default_factory=list)
    """Names of numbers that are sent although they are not known here."""

    def fields(self, content: dict, key: str = "") -> dict:
        self.selection.count()
        kept = {}
        by_finding = self._is_by_finding(content)
        for name, value in content.items():
            path = f"{key}.{name}" if key else name
            if name in _NEVER:
                continue
            if key.endswith("counts.views"):
                sent = name in VIEWS or self.selection.free_text("the name of a view", name) is not GONE
            elif by_finding and name not in ("mean", *_STRUCTURE):
                sent = self._is_finding(name, value)
            else:
                sent = name in _STRUCTURE or name in PACKAGES or self._is_number(path, name, value)
            kept[name] = self._value(value, path) if sent else GONE
        return {name: value for name, value in kept.items() if value is not GONE}

    def _is_by_finding(self, content: dict) -> bool:
        findings = KNOWN_FINDINGS | self.own_findings
        return any(name == "mean" or name in findings for name in content)

    def _is_finding(self, name: str, value) -> bool:
        if name in KNOWN_FINDINGS:
            return True
        if self.any_finding and _FINDING_NAME.fullmatch(name) and not isinstance(value, str | list):
            return True
        return self.selection.free_text("the name of a finding", name) is not GONE

    def _is_number(self, path: str, name: str, value) -> bool:
        if not isinstance(value, int | float | dict | list) or not _NUMBER_NAME.fullmatch(name):
            self.selection.drop(path)
            return False
        if name not in _known_words():
            self.unknown_numbers.append(path)
        return True

    def _value(self, value, key: str):
        if isinstance(value, dict):
            return self.fields(value, key)
        if isinstance(value, list):
            return [part for part in (self._value(part, key) for part in value) if part is not GONE]
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, str):
            return value if _is_word(value, key) else self.selection.free_text(key, value)
        return value if value is None or isinstance(value, bool | int | float) else GONE


def _is_word(text: str, key: str) -> bool:
    if _SHA256.fullmatch(text) or RELEASE.fullmatch(text) or text in _known_words():
        return True
    if re.search(r"(^|\.)(undefined|no_interval)(\.|$)", key):  # a reason, such as "n+ = 0, n- = 4"
        return len(text) <= 120 and all(word in _words_of_reasons() for word in re.findall(r"[^\W\d_]{3,}", text))
    return False


@functools.cache
def _known_words() -> frozenset[str]:
    """Words of the code of the evaluation, and the values of its options."""
    fixed = (*DATASETS, *SPLITS, *LABEL_POLICIES, *PROTOCOLS, *DTYPES, *DEVICES, *SYSTEMS, *MACHINES)
    return frozenset(fixed).union(*map(words_of_module, _modules()))


def _modules() -> list[str]:
    modules = pkgutil.walk_packages(evaluation.__path__, f"{evaluation.__name__}.")
    return [module.name for module in modules if ".metrics." not in module.name] + [
        "modeling_tier.training.loop",
        "modeling_tier.training.state",
    ]


@functools.cache
def _words_of_reasons() -> frozenset[str]:
    texts = frozenset().union(*map(texts_of_module, _modules()))
    return frozenset(word for text in texts for word in re.findall(r"[^\W\d_]{3,}", text))


def own_findings(results: dict) -> frozenset[str]:
    """The names of findings in results, in all the parts that list them."""
    prompts, counts = results.get("prompts"), results.get("counts")
    listed = [(prompts or {}).get("findings") if isinstance(prompts, dict) else None]
    listed.append((counts or {}).get("labels") if isinstance(counts, dict) else None)
    return frozenset(name for findings in listed if isinstance(findings, dict) for name in findings)


# Evaluations


_PARTS = {"dataset": str, "split": str, "name": str, "protocol": dict, "fingerprints": dict, "metrics": dict}
_OPTIONAL_PARTS = {"prompts": dict, "validation": dict, "compared": dict}


def evaluation_problem(results: dict) -> str | None:
    """Why a file was not written by `evaluate_zeroshot.py`, judged by the parts that are used here; else None."""
    wrong = [name for name, kind in _PARTS.items() if not isinstance(results.get(name), kind)]
    wrong += [name for name, kind in _OPTIONAL_PARTS.items() if not isinstance(results.get(name, {}), kind)]
    if wrong:
        return f"is not of evaluate_zeroshot.py (see {', '.join(map(repr, wrong))})"
    if not isinstance(results["fingerprints"].get("models"), dict):
        return "is not of evaluate_zeroshot.py (see 'fingerprints.models')"
    if not isinstance(results["protocol"].get("name"), str):
        return "is not of evaluate_zeroshot.py (see 'protocol.name')"
    compared = results.get("compared", {}).values()
    if not all(isinstance(model, dict) and isinstance(model.get("metrics"), dict) for model in compared):
        return "is not of evaluate_zeroshot.py (see 'compared')"
    if not isinstance(results.get("prompts", {}).get("findings") or {}, dict):
        return "is not of evaluate_zeroshot.py (see 'prompts.findings')"
    if results["dataset"] not in DATASETS:
        return f"is of a data set that is not known here, {results['dataset'][:60]!r}"
    if results["split"] not in SPLITS:
        return f"is of a split that is not known here, {results['split'][:60]!r}"
    return None


def evaluation_fields(
    results: dict, fingerprint: str, selection: Selection, shown: dict[str, bool]
) -> tuple[dict, Results]:
    """
    The part of an evaluation about one model, without what belongs to the data set.

    Args:
        results: what `metrics.json` of an evaluation holds.
        fingerprint: the model's.
        selection: remembers what is not sent.
        shown: for each data set, whether it may be shown to everybody.
    """
    dataset, protocol = results["dataset"], results["protocol"]["name"]
    walk = Results(selection, any_finding(results, shown), own_findings(results))
    kept = ("dataset", "split", "labels", "counts", "versions", "settings")
    cleaned = walk.fields({name: results[name] for name in kept if name in results})
    known = protocol in PROTOCOLS
    cleaned["protocol"] = {"name": protocol, "score": PROTOCOLS[protocol].description} if known else {}
    if prompts := _prompt_fields(results, selection, shown.get(dataset, False) and dataset == "pairs"):
        cleaned["prompts"] = prompts
    if results.get("validation"):
        parts = ("dataset", "split", "num_images", "fingerprint")
        cleaned["validation"] = walk.fields({name: results["validation"].get(name) for name in parts})
    data = results["fingerprints"].get("data")
    cleaned["fingerprints"] = {"data": data if _SHA256.fullmatch(str(data)) else None, "model": fingerprint}
    return cleaned | {"metrics": walk.fields(_metrics_of(results, fingerprint), "metrics")}, walk


def _metrics_of(results: dict, fingerprint: str) -> dict:
    """The metrics of the model, or of the member of an ensemble, with this fingerprint."""
    models = {results["name"]: results["metrics"]}
    models |= {name: model["metrics"] for name, model in results.get("compared", {}).items()}
    name = next(name for name, one in results["fingerprints"]["models"].items() if one == fingerprint)
    if name in models:
        return models[name]
    ensemble, _, member = name.rpartition("/")
    members = models.get(ensemble, {}).get("members")
    metrics = members.get(member) if isinstance(members, dict) else None
    if not isinstance(metrics, dict):
        raise ValueError(
            f"The evaluation names the model {name!r}, and holds no metrics of it: evaluate the model again."
        )
    return metrics


def any_finding(results: dict, shown: dict[str, bool]) -> bool:
    """
    Whether findings may have any name: those of public data sets with more findings than are known here, if the
    sentences are not somebody's own, and those of somebody's own pairs, if the owner says so.
    """
    dataset = results.get("dataset") or ""
    if dataset == "pairs":
        return shown.get("pairs", False)
    prompts = results.get("prompts") or {}
    record = DATASETS.get(dataset)
    unlisted = record is not None and record.public_findings and not record.findings
    return unlisted and (not prompts.get("findings") or is_packaged(prompts.get("source")))


def _prompt_fields(results: dict, selection: Selection, shown: bool) -> dict:
    prompts = results.get("prompts") or {}
    findings = prompts.get("findings")
    if not isinstance(findings, dict) or not findings:
        return {}
    if are_packaged(results):
        return {"source": prompts["source"], "findings": findings}
    if shown:
        return {"findings": findings}
    consents = [
        selection.free_text(key, text) is not GONE
        for key, text in _texts_within("prompts.findings", findings)
        if text not in KNOWN_FINDINGS and text not in ("positive", "negative")
    ]
    return {"findings": findings} if all(consents) else {}


def _texts_within(key: str, value) -> Iterator[tuple[str, str]]:
    """All texts in a value, keys included, each with its path."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, part in value.items():
            yield f"{key}, a name", str(name)
            yield from _texts_within(f"{key}.{name}", part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts_within(key, part)


def are_packaged(results: dict) -> bool:
    """Whether the sentences of an evaluation are those of this package."""
    prompts = results.get("prompts") or {}
    findings = prompts.get("findings")
    if not isinstance(findings, dict) or not findings or not is_packaged(prompts.get("source")):
        return False
    if results["dataset"] == "pairs" and not set(findings) <= KNOWN_FINDINGS:
        return False  # templates of the package, filled with somebody's own names
    try:
        own = load_prompts(prompts["source"], list(findings), results["protocol"]["name"])
    except ValueError:
        return False
    return all(own.get(finding) == sentences for finding, sentences in findings.items())
