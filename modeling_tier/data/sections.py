# Licensed under the Apache License, Version 2.0.
"""
From a radiology report to the text of a pair.

The rules are those that MIT-LCP documents with its MIMIC-CXR code base: a line that begins with capitals and a colon
opens a section; names are brought to one spelling (CONCLUSION, FINDINGS AND IMPRESSION and misspellings are
impressions); empty impressions and findings do not count; of several sections of one name the last is taken; a report
without impression and findings has a "last paragraph". What goes beyond them: a known heading may be written in small
letters where a sentence cannot be running on, or stand in capitals without a colon alone on its line; FINAL REPORT
ends what stands before it; and a comparison is never taken for the report.
"""

import difflib
import re


SECTIONS = ("impression", "findings", "impression_or_findings", "both")

_SPELLINGS = {
    "impression": (
        "impression",
        "impressions",
        "conclusion",
        "conclusions",
        "findings and impression",
        "impression and findings",
        "findings/impression",
        "findings/ impression",
        "impression and recommendation",
        "impression and recommendations",
    ),
    "findings": ("findings", "finding", "reference findings", "chest, two views"),
    "comparison": ("comparison", "comparisons", "comparison film", "comparison exam", "reference exam"),
    "indication": ("indication", "clinical indication", "reason for exam", "reason for examination"),
    "history": ("history", "clinical history", "patient history", "clinical information"),
    "examination": ("examination", "exam", "type of examination"),
    "technique": ("technique",),
    "recommendations": ("recommendations", "recommendation", "recommendation(s)"),
    "notification": ("notification", "notifications"),
    "addendum": ("addendum",),
    "wet read": ("wet read", "wetread"),
}
_NAMES = {spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings}
_ANY_NAME = "|".join(re.escape(spelling) for spelling in sorted(_NAMES, key=len, reverse=True))

_CAPITALS = re.compile(r"[ \t]*([A-Z][A-Z ()/,&-]*?)[ \t]*:(?:\s+(.*)|$)")
_CAPITALS_ALONE = re.compile(r"[ \t]*(IMPRESSION|FINDINGS|CONCLUSION|FINDINGS AND IMPRESSION)[ \t]*$")
_SMALL = re.compile(rf"[ \t]*({_ANY_NAME})[ \t]*:(?:\s+(.*)|$)", re.IGNORECASE)
_FINAL = re.compile(r"[ \t]*FINAL (REPORT|ADDENDUM)[ \t]*$", re.IGNORECASE)


def report_text(report: str, section: str = "impression") -> str:
    """
    The text that a report gives to a pair, cleaned; "" if it has none.

    Args:
        report: the whole report.
        section: "impression" (as arXiv 2212.06710), "findings", "impression_or_findings" (the impression, else the
            findings, else the last paragraph), or "both" (findings, then impression, as far as they are there).

    Raises:
        ValueError: for another section.
    """
    if section not in SECTIONS:
        raise ValueError(f"section must be one of {list(SECTIONS)}; got {section!r}.")
    sections = split_report(report)
    found = {}
    for name, text in sections:
        if name in ("impression", "findings") and clean(text):
            found[name] = clean(text)
    if section == "both":
        return " ".join(found[name] for name in ("findings", "impression") if name in found)
    if section == "impression_or_findings":
        return found.get("impression") or found.get("findings") or clean(_last_paragraph(sections))
    return found.get(section, "")


def split_report(report: str) -> list[tuple[str, str]]:
    """
    The sections of a report in their order, as (name, text with its line ends). What stands before the first heading
    is called "preamble", what follows FINAL REPORT without a heading "body". Names are in small letters, and one for
    all spellings.
    """
    sections, before = [("preamble", [])], ""
    for line in report.splitlines():
        if _FINAL.match(line):
            sections.append(("body", []))
        elif heading := _heading(line, before):
            name, rest = heading
            sections.append((name, [rest]))
        else:
            sections[-1][1].append(line)
        before = line
    return [(name, "\n".join(lines)) for name, lines in sections if name != "preamble" or any(map(str.strip, lines))]


def clean(text: str) -> str:
    """One line, without the underscores of de-identification; "" if no letter is left."""
    text = re.sub(r"_{2,}(?:-(?=\w)|'s\b)?", " ", text)
    text = re.sub(r"\(\s*\)|\[\s*\]", " ", text)
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r" (?=[.,;:])", "", text)
    # A sign that lost its word to de-identification goes; the end of the sentence stays.
    text = re.sub(r"[.,;:]{2,}(?=\s|$)", lambda run: "." if "." in run[0] else run[0][0], text)
    text = text.lstrip(".,;:) ")
    return text if re.search(r"[A-Za-z]", text) else ""


def _heading(line: str, before: str) -> tuple[str, str] | None:
    """Name and rest of the line, if it opens a section."""
    match = _CAPITALS.match(line)
    if match:
        return _normal(match[1]), match[2] or ""
    match = _CAPITALS_ALONE.match(line)
    if match:
        return _normal(match[1]), ""
    match = _SMALL.match(line)
    # After a line without a full stop, small letters are the rest of its sentence.
    if match and (not before.strip() or before.rstrip()[-1] in ".:_!?" or _FINAL.match(before)):
        return _normal(match[1]), match[2] or ""
    return None


def _normal(name: str) -> str:
    name = re.sub(r"\s+", " ", name.strip().lower())
    if name in _NAMES:
        return _NAMES[name]
    misspelt = difflib.get_close_matches(name, ("impression", "findings", "conclusion"), n=1, cutoff=0.82)
    return _NAMES[misspelt[0]] if misspelt else name


def _last_paragraph(sections: list[tuple[str, str]]) -> str:
    """The text of a report that has neither impression nor findings."""
    if not sections:
        return ""
    name, text = sections[-1]
    paragraphs = re.split(r"\n\s*\n", text)
    if name not in ("preamble", "body"):
        return "\n".join(paragraphs[1:])  # the first belongs to the heading
    paragraphs = [part for part in paragraphs if clean(part)]
    if len(paragraphs) > 1 and not paragraphs[0].rstrip().endswith("."):
        paragraphs = paragraphs[1:]  # a title
    return "\n".join(paragraphs)
