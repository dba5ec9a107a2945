# Licensed under the Apache License, Version 2.0.
"""
Report text without its de-identification marks.

A mark stands for words that were removed: `___` in MIMIC-CXR, `XXXX` in Open-I, `[**Name**]` in MIMIC-III, `<unk>`,
`[REDACTED]` and their kin. Taking a mark out must leave whole words: "chest x-XXXX" becomes "chest", not "chest x-".
"""

import re


_MARK = re.compile(
    r"(?s:\[\*\*(?:(?!\[\*\*).){0,200}?\*\*\])"
    r"|_{2,}"
    r"|X{3,}"
    r"|<\s*>|<[A-Za-z_]+>"
    r"|(?i:\[\s*(?:unk|redacted|removed|deidentified|de-identified)\s*\])"
)

_MAX_PASSES = 10  # random texts made of marks need up to 4

# While the text is cleaned, one private character stands for each removed word.
_LOST = "\ue000"
_END = r"(?=[\s.,;:!?)\]]|$)"
_GLUED = r"[^\s/.,;:!?()\[\]\"]"
# The word that a mark is part of, with the digits that a decimal point joins to it. Bounds keep a match linear.
_WORD = re.compile(rf"(?:\d+[.,])*{_GLUED}{{0,40}}{_LOST}(?:'s\b)?{_GLUED}{{0,40}}(?:[.,]\d+)*")
_ALTERNATIVES = re.compile(rf"[\w{_LOST}-]{{0,40}}(?:/[\w{_LOST}-]{{0,40}})+")
_CONNECTED = re.compile(rf"{_LOST}(?:\s*(?:,|and|or|to|through)?\s*{_LOST})+")
_BRACKETS = re.compile(rf"\(\s*{_LOST}[\s.,;:{_LOST}]*\)|\[\s*{_LOST}[\s.,;:{_LOST}]*\]|\"\s*{_LOST}\s*\"")
_DASHES = re.compile(rf"(?:^|(?<=\s))[-–—/&+*]+\s+{_LOST}|{_LOST}\s+[-–—/&+]+{_END}")
_GLUED_SIGNS = re.compile(rf"[.,;:]{_LOST}[.,;:](?=\w)")
_LIST_ITEM = re.compile(rf"(?:^|(?<=[.;:] ))\d+[.)]\s*{_LOST}\s*[.;]?(?=\s|$)")


def clean(text: str) -> str:
    """
    One line without de-identification marks, and of the words around them only whole ones; "" without letters.

    A cleaned text stays as it is when it is cleaned again: where taking a mark out makes another one of its
    surroundings, that one goes as well. A text of marks within marks within marks, to no end, is no report: "".
    """
    for _ in range(_MAX_PASSES):
        cleaned = _clean_once(text)
        if cleaned == text:
            return cleaned
        text = cleaned
    return ""


def _clean_once(text: str) -> str:
    text = _MARK.sub(_LOST, text)
    text = re.sub(r"\s+", " ", text)
    if _LOST in text:
        text = _without_lost_words(text)
    text = re.sub(r"\(\s*\)|\[\s*\]", " ", text)
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r" (?=[.,;:])", "", text)
    # Of the punctuation around a removed word one sign stays, the full stop if there is one.
    text = re.sub(r"[.,;:]{2,}(?=\s|$)", _one_sign, text)
    text = text.lstrip(".,;:) ")
    return text if re.search(r"[A-Za-z]", text) else ""


def _without_lost_words(text: str) -> str:
    text = _WORD.sub(_rest_of_word, text)
    text = _ALTERNATIVES.sub(_rest_of_alternatives, text)
    for pattern in (_BRACKETS, _CONNECTED, _DASHES, _CONNECTED, _LIST_ITEM):
        text = pattern.sub(_LOST, text)
    text = _GLUED_SIGNS.sub(_one_sign, text)
    text = text.replace(_LOST, " ")
    return re.sub(r"(?<=[(\[])\s+|\s+(?=[)\]!?])", "", text)


def _rest_of_word(match: re.Match) -> str:
    """Behind a mark with a hyphen stands a word of its own, as in "___-year-old"; anything else is a fragment."""
    rest = re.fullmatch(rf"{_LOST}-([A-Za-z][A-Za-z-]+)", match[0])
    return rest[1] if rest else _LOST


def _rest_of_alternatives(match: re.Match) -> str:
    """Of "effusion/XXXX" the words of two letters and more; digits beside a mark are part of a removed date."""
    if _LOST not in match[0]:
        return match[0]
    words = [part for part in match[0].split("/") if _LOST not in part and re.search(r"[A-Za-z]{2}", part)]
    return "/".join(words) or _LOST


def _one_sign(run: re.Match) -> str:
    return "." if "." in run[0] else run[0][0]
