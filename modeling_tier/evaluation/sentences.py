# Licensed under the Apache License, Version 2.0.
"""Retrieval with several sentences an image: each sentence of a report is a text, and any of its own is right."""

import re

import numpy as np

from .scored import ImageScores, SentenceScores


_END = re.compile(r"(?<=[.!?;])\s+|\s*\n\s*\n\s*")
_NUMBER = re.compile(r"^\s*(\d+[.)]|[-*•])\s+")
_WORD = re.compile(r"[^\W\d_]{2,}")


def split_sentences(text: str) -> list[str]:
    """
    The distinct sentences of a report, in order: what ends in ".", "!", "?" or ";" before a blank, or before an empty
    line. Numbers of lists are dropped, and so is what holds no word. "Dr. " ends a sentence, too.
    """
    parts = (_NUMBER.sub("", " ".join(part.split())) for part in _END.split(text))
    return list(dict.fromkeys(part for part in parts if _WORD.search(part)))


def sentence_ranks(images: ImageScores, sentences: SentenceScores) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """
    Both ways of retrieval between the N images and all sentences, of which equal ones are one candidate.

    Returns:
        by way, for each query its position among the images, and how many wrong candidates are at least as similar as
        its best right one: `image_to_sentence`: a query per image with a sentence; right is any of its sentences;
        `sentence_to_image`: a query per image and sentence; right is every image that has that sentence.
    """
    positions = np.searchsorted(images.rows, sentences.row)
    _, first, codes = np.unique(sentences.sentence, return_index=True, return_inverse=True)
    candidates = sentences.embeds[first]
    with_sentence = np.unique(positions)
    queries = np.searchsorted(with_sentence, positions)
    towards_images = wrong_before_any(candidates, images.embeds, codes, positions)
    return {
        "image_to_sentence": (
            with_sentence,
            wrong_before_any(images.embeds[with_sentence], candidates, queries, codes),
        ),
        "sentence_to_image": (positions, towards_images[codes]),
    }


def wrong_before_any(
    queries: np.ndarray, candidates: np.ndarray, query: np.ndarray, right: np.ndarray, block: int = 512
) -> np.ndarray:
    """
    For each query how many wrong candidates are at least as similar as its best right one; a block at a time.

    Args:
        queries: (Q, D)
        candidates: (C, D)
        query, right: (R,) the pairs that belong together: the number of a query, and of a candidate that is right for
            it. Each query has at least one.
    """
    order = np.argsort(query, kind="stable")
    query, right = query[order], right[order]
    before = []
    for start in range(0, len(queries), block):
        similarity = queries[start : start + block] @ candidates.T
        here = slice(*np.searchsorted(query, (start, start + block)))
        relevant = np.zeros(similarity.shape, dtype=bool)
        relevant[query[here] - start, right[here]] = True
        best = np.where(relevant, similarity, -np.inf).max(axis=1, keepdims=True)
        before.append(((similarity >= best) & ~relevant).sum(axis=1))
    return np.concatenate(before)
