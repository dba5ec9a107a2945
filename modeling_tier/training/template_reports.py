# Licensed under the Apache License, Version 2.0.
"""Texts made from labels (`data.template_reports`), so that a data set without reports can be trained on."""

import warnings
import zlib
from collections.abc import Mapping

from datasets import Dataset, IterableDataset, Value

from ..evaluation import load_no_finding, load_prompts, own_prompts


NO_FINDING = "No Finding"
MAX_NEGATIVES = 3


def with_template_reports(pairs: Dataset, name: str, options: Mapping[str, object] | None = None) -> Dataset:
    """
    The pairs of a data set, with a text made from the labels where there is none: sentences of the data set's prompts,
    of which the image's id draws some and their order. `options` are those that the data set was loaded with.

    - For each label of 1 one of its positive sentences (without prompts: "There is {finding}.").
    - Without any, a sentence of "no finding" where the label "No Finding" is 1; else negative sentences of up to three
      of the labels of 0 (without prompts: "No {finding}."), as a data set may have labelled but one finding.

    Uncertain labels (-1) and those not mentioned (null) say nothing. Images without a label of 1 or 0 are skipped,
    with a warning that counts them. Texts that are there are kept.

    Raises:
        ValueError: for a stream, or a data set without labels.
    """
    if isinstance(pairs, IterableDataset):
        raise ValueError("data.template_reports cannot make the texts of a stream: set streaming to false.")
    texts = pairs["text"][:]
    if all(text is not None for text in texts):
        return pairs
    if "labels" not in pairs.features:
        raise ValueError(f"data.template_reports makes texts from labels, and {name} has none.")
    write = TemplateReports(own_prompts(name, options or {}), list(pairs.features["labels"]))
    rows = zip(texts, pairs["labels"][:], pairs["image_id"][:])
    texts = [write(labels, str(image_id)) if text is None else text for text, labels, image_id in rows]
    kept = [i for i, text in enumerate(texts) if text is not None]
    if not kept:
        raise ValueError(f"data.template_reports: no image of {name} has a label of 1 or 0.")
    if len(kept) < len(texts):
        warnings.warn(
            f"data.template_reports: {len(texts) - len(kept):,} of {len(texts):,} images of {name} have neither a "
            "text nor a label of 1 or 0: skipped.",
            stacklevel=2,
        )
    with_texts = pairs.remove_columns("text").add_column("text", texts, feature=Value("string"))
    return with_texts if len(kept) == len(texts) else with_texts.select(kept)


class TemplateReports:
    """The text that the labels of an image make, from the prompts of one data set (None: it has none)."""

    def __init__(self, source: str | None, findings: list[str]):
        self.no_finding = load_no_finding(source)
        self.sentences = {
            finding: {"positive": [f"There is {_spoken(finding)}."], "negative": [f"No {_spoken(finding)}."]}
            for finding in findings
            if finding != NO_FINDING
        }
        prompts = load_prompts(source, findings) if source else {}
        for finding in self.sentences.keys() & prompts.keys():
            negative = [text for text in prompts[finding]["negative"] if text not in self.no_finding]
            self.sentences[finding] = prompts[finding] | {"negative": negative or self.sentences[finding]["negative"]}

    def __call__(self, labels: Mapping[str, float | None], image_id: str) -> str | None:
        """None if the labels say nothing."""
        present = [finding for finding in self.sentences if labels[finding] == 1]
        absent = [finding for finding in self.sentences if labels[finding] == 0]
        if present:
            kind, named = "positive", _drawn(present, image_id)
        elif labels.get(NO_FINDING) == 1:
            return _drawn(self.no_finding, image_id)[0]
        else:
            kind, named = "negative", _drawn(absent, image_id)[:MAX_NEGATIVES]
        return " ".join(_drawn(self.sentences[finding][kind], image_id)[0] for finding in named) or None


def _spoken(finding: str) -> str:
    return finding.replace("_", " ").lower()


def _drawn(items: list[str], image_id: str) -> list[str]:
    """In an order that the image's id draws: the same in every process and at every start."""
    return sorted(items, key=lambda item: zlib.crc32(f"{image_id}/{item}".encode()))
