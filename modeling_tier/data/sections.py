# Licensed under the Apache License, Version 2.0.
"""
From a radiology report to the text of a pair.

The rules are those that MIT-LCP documents with its MIMIC-CXR code base: a line that begins with capitals and a colon
opens a section; headings are brought to one name (CONCLUSION, FINAL IMPRESSION, FINDINGS AND IMPRESSION and
misspellings are impressions; a heading that names the view, such as PORTABLE CHEST, opens the findings); empty
impressions and findings do not count; of several sections of one name the last is taken; a report without impression
and findings has a "last paragraph".

What goes beyond them: a known heading may be written in small letters where a sentence cannot be running on, or in
capitals without a colon alone on its line; FINAL REPORT ends what comes before it; a comparison is never taken for
the report; and headings within the findings or the impression (LUNGS, HEART) belong to that section.
"""

import difflib
import re

from .deidentification import clean
from .tables import is_missing


SECTIONS = ("impression", "findings", "impression_or_findings", "both")

_SPELLINGS = {
    "impression": (
        "impression",
        "impressions",
        "conclusion",
        "conclusions",
        "final impression",
        "preliminary impression",
        "findings and impression",
        "impression and findings",
        "findings/impression",
        "findings/ impression",
        "impression and recommendation",
        "impression and recommendations",
        "impression and recommendation(s)",
    ),
    "findings": ("findings", "finding", "reference findings", "chest findings", "findings (chest)"),
    "comparison": ("comparison", "comparisons", "comparison film", "comparison exam", "reference exam"),
    "indication": ("indication", "clinical indication", "reason for exam", "reason for examination"),
    "history": ("history", "clinical history", "patient history", "clinical information", "pfi"),
    "examination": ("examination", "exam", "type of examination", "study", "procedure"),
    "technique": ("technique",),
    "recommendations": ("recommendations", "recommendation", "recommendation(s)"),
    "notification": ("notification", "notifications"),
    "addendum": ("addendum",),
    "wet read": ("wet read", "wetread"),
    "date": ("date",),
    "comment": ("comment", "comments"),
    "note": ("note",),
}
_NAMES = {spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings}
_ANY_NAME = "|".join(re.escape(spelling) for spelling in sorted(_NAMES, key=len, reverse=True))
# Headings of several words are known by one of them; the first that matches counts.
_BY_WORD = (
    ("wet read", r"\bwet\W?read"),
    ("notification", r"\b(?:notif|communicat|discuss)"),
    ("impression", r"\b(?:impressions?|conclusions?)\b"),
    ("findings", r"\bfindings?\b"),
    ("history", r"\bhistory\b|\bclinical information\b"),
    ("indication", r"\bindications?\b|\breason for\b"),
    ("comparison", r"\bcomparisons?\b"),
    ("addendum", r"\baddend"),
    ("technique", r"\btechnique\b|\bradiation\b|\bdose\b|\bcontrast\b"),
    ("recommendations", r"\brecommendation"),
    ("note", r"\bnotes?\b|\bsigned\b|\bdictated\b|\battending\b|\bradiologist\b"),
)
_PART_OF_FINDINGS = re.compile(
    r"\b(?:lungs?|heart|cardi\w+|mediastin\w+|hil(?:a|um|ar)|pleura\w*|bon(?:es?|y)|osseous|ribs?|spine|skelet\w+|"
    r"soft tissues?|diaphragm\w*|airways?|trachea\w*|vascul\w*|vessels|pulmonary|parenchyma\w*|lines?|tubes?|"
    r"catheters?|(?:support )?devices?|hardware|abdom\w+|aort\w+|thora\w+|chest wall|lymph\w*|other)\b"
)
_VIEW = re.compile(
    r"\b(?:chest|portable|radiographs?|x-?rays?|cxr|views?|films?|(?:pa|ap|frontal) (?:and|&) lat\w*|"
    r"lat\w* (?:and|&) (?:pa|ap|frontal)|frontal|bone window\w*)\b"
)
_OUTSIDE = ("preamble", "body")

# A heading may hold a time ("AT 05:30") or a removed date; with those it must be one that is known.
_CAPITALS = re.compile(r"[ \t]*([A-Z](?:[A-Z0-9 ()/,&_-]|(?<=\d):(?=\d))*?)[ \t]*:(?:\s+(.*)|$)")
_CAPITALS_ALONE = re.compile(
    r"[ \t]*((?:FINAL |PRELIMINARY )?IMPRESSION|FINDINGS|CONCLUSION|FINDINGS AND IMPRESSION)[ \t]*$"
)
_SMALL = re.compile(rf"[ \t]*({_ANY_NAME})[ \t]*:(?:\s+(.*)|$)", re.IGNORECASE)
_FINAL = re.compile(r"[ \t]*FINAL (REPORT|ADDENDUM)[ \t]*$", re.IGNORECASE)


def section_text(section: str, findings: str, impression: str) -> str:
    """The text of a pair, as [`report_text`] gives it, of a report whose sections are columns of a table."""
    findings, impression = ("" if is_missing(text) else clean(text) for text in (findings, impression))
    return {
        "findings": findings,
        "impression": impression,
        "impression_or_findings": impression or findings,
        "both": f"{findings} {impression}".strip(),
    }[section]


def report_text(report: str, section: str = "impression") -> str:
    """
    The text that a report gives to a pair, cleaned; "" if it has none.

    Args:
        report: the whole report.
        section: "impression" (as arXiv 2212.06710), "findings", "impression_or_findings" (the impression, else the
            findings, else the last paragraph), or "both" (findings, then impression, as far as they exist).

    Raises:
        ValueError: for another section.
    """
    if section not in SECTIONS:
        raise ValueError(f"section must be one of {list(SECTIONS)}; got {section!r}.")
    sections = split_report(report)
    texts = {}
    for name, text in sections:
        if name in ("impression", "findings") and clean(text):
            texts[name] = clean(text)
    if section == "both":
        return " ".join(texts[name] for name in ("findings", "impression") if name in texts)
    if section == "impression_or_findings":
        return texts.get("impression") or texts.get("findings") or clean(_last_paragraph(sections))
    return texts.get(section, "")


def split_report(report: str) -> list[tuple[str, str]]:
    """
    The sections of a report in their order, as (name, text with its line ends). What comes before the first heading
    is called "preamble", what follows FINAL REPORT without a heading "body". Names are in small letters, and one for
    all spellings.
    """
    sections, before = [("preamble", [])], ""
    for line in report.splitlines():
        heading = _heading(line, before)
        if _FINAL.match(line):
            sections.append(("body", []))
        elif heading and not _belongs(heading[0], *sections[-1]):
            name, rest = heading
            if name not in _SPELLINGS and _PART_OF_FINDINGS.search(name):
                name, rest = "findings", line  # its label is part of the text
            elif name not in _SPELLINGS and _VIEW.search(name):
                name = "view"
            sections.append((name, [rest]))
        else:
            sections[-1][1].append(line)
        before = line
    names = {"view": "findings"}
    return [
        (names.get(name, name), "\n".join(lines)) for name, lines in sections if name != "preamble" or _any_text(lines)
    ]


def unknown_headings(report: str) -> list[str]:
    """Names of the sections with a text that no rule knows: what they hold is in no pair."""
    return [
        name for name, text in split_report(report) if name not in _SPELLINGS and name not in _OUTSIDE and clean(text)
    ]


def _heading(line: str, before: str) -> tuple[str, str] | None:
    """Name and rest of the line, if it opens a section. A name that is not known is the heading in small letters."""
    match = _CAPITALS.match(line)
    if match:
        name = _normal(match[1])
        known = name in _SPELLINGS or _VIEW.search(name)
        return (name, match[2] or "") if known or not re.search(r"[\d_]", name) else None
    match = _CAPITALS_ALONE.match(line)
    if match:
        return _normal(match[1]), ""
    match = _SMALL.match(line)
    # After a line without a full stop, small letters are the rest of its sentence.
    if match and (not before.strip() or before.rstrip()[-1] in ".:_!?" or _FINAL.match(before)):
        return _normal(match[1]), match[2] or ""
    return None


def _belongs(name: str, section: str, lines: list[str]) -> bool:
    """Whether a heading is a part of the findings or the impression that it is found in."""
    if section not in ("impression", "findings", "view") or name in _SPELLINGS:
        return False
    if not _any_text(lines):  # directly below the section's own heading, as in "IMPRESSION:\n LUNGS: Clear."
        return True
    first = next(line for line in lines if line.strip())
    structured = _CAPITALS.match(first) is not None  # then every line may have a label of its own
    return structured or bool(_PART_OF_FINDINGS.search(name)) or (section == "findings" and bool(_VIEW.search(name)))


def _any_text(lines: list[str]) -> bool:
    return any(map(str.strip, lines))


def _normal(name: str) -> str:
    name = re.sub(r"\s+", " ", name.strip().lower())
    if name in _NAMES:
        return _NAMES[name]
    misspelt = difflib.get_close_matches(name, ("impression", "findings", "conclusion"), n=1, cutoff=0.82)
    if misspelt:
        return _NAMES[misspelt[0]]
    return next((section for section, words in _BY_WORD if re.search(words, name)), name)


def _last_paragraph(sections: list[tuple[str, str]]) -> str:
    """The text of a report that has neither impression nor findings."""
    if not sections:
        return ""
    name, text = sections[-1]
    paragraphs = re.split(r"\n\s*\n", text)
    if name not in _OUTSIDE:
        return "\n".join(paragraphs[1:])  # the first belongs to the heading
    paragraphs = [part for part in paragraphs if clean(part)]
    if len(paragraphs) > 1 and not paragraphs[0].rstrip().endswith("."):
        paragraphs = paragraphs[1:]  # a title
    return "\n".join(paragraphs)
