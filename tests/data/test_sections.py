# Licensed under the Apache License, Version 2.0.
# ruff: noqa: E501
"""The text that a report gives, over the shapes that reports have."""

import pytest

from modeling_tier.data.sections import SECTIONS, clean, report_text, split_report


FULL = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old woman with cough.

 TECHNIQUE:  Chest PA and lateral

 COMPARISON:  ___

 FINDINGS:

 The lungs are clear.  There is no pleural effusion
 or pneumothorax.

 IMPRESSION:

 No acute cardiopulmonary process.
"""

# (what it is, report, impression, findings, impression_or_findings, both)
SHAPES = [
    (
        "all sections",
        FULL,
        "No acute cardiopulmonary process.",
        "The lungs are clear. There is no pleural effusion or pneumothorax.",
        "No acute cardiopulmonary process.",
        "The lungs are clear. There is no pleural effusion or pneumothorax. No acute cardiopulmonary process.",
    ),
    ("text on the heading's line", " IMPRESSION:  Clear lungs.\n", "Clear lungs.", "", "Clear lungs.", "Clear lungs."),
    ("findings alone", " FINDINGS:  Clear lungs.\n", "", "Clear lungs.", "Clear lungs.", "Clear lungs."),
    ("no headings", "                FINAL REPORT\n Portable chest.\n Clear lungs.\n", "", "", "Portable chest. Clear lungs.", ""),
    ("nothing but a body", "Clear lungs, no effusion.", "", "", "Clear lungs, no effusion.", ""),
    ("a title and a body", "   FINAL REPORT\n CHEST RADIOGRAPH\n \n Clear lungs.\n", "", "", "Clear lungs.", ""),
    (
        "two paragraphs without a title",
        "   FINAL REPORT\n A tube is seen.\n \n Clear lungs.\n",
        "",
        "",
        "A tube is seen. Clear lungs.",
        "",
    ),
    ("last paragraph after a heading", " COMPARISON:  ___.\n \n Clear lungs.\n", "", "", "Clear lungs.", ""),
    ("last paragraph after two headings", " HISTORY: Cough.\n COMPARISON: None.\n \n Effusion.\n Left.\n", "", "", "Effusion. Left.", ""),
    ("only an indication", " INDICATION:  Cough.\n", "", "", "", ""),
    ("a comparison is not the report", " COMPARISON:  Chest radiograph of ___.\n", "", "", "", ""),
    ("findings and impression", " FINDINGS AND IMPRESSION:  Clear.\n", "Clear.", "", "Clear.", "Clear."),
    ("findings/impression", " FINDINGS/IMPRESSION: Clear.\n", "Clear.", "", "Clear.", "Clear."),
    ("impression and recommendation", " IMPRESSION AND RECOMMENDATION: Repeat film.\n", "Repeat film.", "", "Repeat film.", "Repeat film."),
    ("conclusion", " FINDINGS: Edema.\n CONCLUSION: Heart failure.\n", "Heart failure.", "Edema.", "Heart failure.", "Edema. Heart failure."),
    ("impressions", " IMPRESSIONS: Edema.\n", "Edema.", "", "Edema.", "Edema."),
    ("finding", " FINDING: Edema.\n", "", "Edema.", "Edema.", "Edema."),
    ("chest, two views", " CHEST, TWO VIEWS: Edema.\n", "", "Edema.", "Edema.", "Edema."),
    ("misspelt impression", " IMPRESSON: Edema.\n", "Edema.", "", "Edema.", "Edema."),
    ("misspelt findings", " FINDNGS: Edema.\n", "", "Edema.", "Edema.", "Edema."),
    ("first letter lost", " MPRESSION: Edema.\n", "Edema.", "", "Edema.", "Edema."),
    ("empty impression", " FINDINGS:  Edema.\n\n IMPRESSION:\n\n", "", "Edema.", "Edema.", "Edema."),
    ("impression of underscores", " FINDINGS:  Edema.\n IMPRESSION: ___.\n", "", "Edema.", "Edema.", "Edema."),
    ("empty findings first", " FINDINGS:\n\n FINDINGS: Edema.\n", "", "Edema.", "Edema.", "Edema."),
    ("an empty one after a full one", " IMPRESSION: Edema.\n IMPRESSION:\n", "Edema.", "", "Edema.", "Edema."),
    ("the last of two", " IMPRESSION: Edema.\n NOTIFICATION: Dr. ___.\n IMPRESSION: Edema, worse.\n", "Edema, worse.", "", "Edema, worse.", "Edema, worse."),
    (
        "addendum before the final report",
        "      FINAL ADDENDUM\n ADDENDUM:  The tube was moved.\n ______________\n         FINAL REPORT\n FINDINGS: Tube.\n IMPRESSION: Tube in place.\n",
        "Tube in place.",
        "Tube.",
        "Tube in place.",
        "Tube. Tube in place.",
    ),
    ("addendum and a body", " ADDENDUM: Moved.\n         FINAL REPORT\n Tube in place.\n", "", "", "Tube in place.", ""),
    (
        "addendum with an impression of its own at the end",
        " IMPRESSION: Edema.\n ADDENDUM:\n IMPRESSION: No edema.\n",
        "No edema.",
        "",
        "No edema.",
        "No edema.",
    ),
    (
        "wet read",
        " WET READ: ___ ___ ___ 10:11 PM\n  No acute process.\n ______________________\n      FINAL REPORT\n IMPRESSION:  Pneumonia.\n",
        "Pneumonia.",
        "",
        "Pneumonia.",
        "Pneumonia.",
    ),
    ("wet read alone", " WET READ: ___ 10:11 PM\n No acute process.\n", "", "", "", ""),
    ("small headings", " findings: Edema.\n impression: Worse edema.\n", "Worse edema.", "Edema.", "Worse edema.", "Edema. Worse edema."),
    ("capitalised headings", "Findings: Edema.\n\nImpression: Worse edema.\n", "Worse edema.", "Edema.", "Worse edema.", "Edema. Worse edema."),
    ("numbered impression", " IMPRESSION:\n 1. Edema.\n 2. Effusion,\n    left.\n", "1. Edema. 2. Effusion, left.", "", "1. Edema. 2. Effusion, left.", "1. Edema. 2. Effusion, left."),
    ("a heading inside a sentence", " FINDINGS: The clinical impression: edema, is confirmed.\n", "", "The clinical impression: edema, is confirmed.", "The clinical impression: edema, is confirmed.", "The clinical impression: edema, is confirmed."),
    ("a small heading where a sentence is wrapped", " FINDINGS: This confirms the clinical\n impression: edema of the lung.\n", "", "This confirms the clinical impression: edema of the lung.", "This confirms the clinical impression: edema of the lung.", "This confirms the clinical impression: edema of the lung."),
    ("capitals inside a sentence", " FINDINGS: See IMPRESSION: below.\n", "", "See IMPRESSION: below.", "See IMPRESSION: below.", "See IMPRESSION: below."),
    ("heading without a colon", " FINDINGS\n Edema.\n IMPRESSION\n Worse.\n", "Worse.", "Edema.", "Worse.", "Edema. Worse."),
    ("the word findings at the end of a wrapped line", " IMPRESSION: No acute\n findings\n today.\n", "No acute findings today.", "", "No acute findings today.", "No acute findings today."),
    ("other sections follow", " IMPRESSION: Edema.\n RECOMMENDATION(S): Diuretics.\n NOTIFICATION: Called.\n", "Edema.", "", "Edema.", "Edema."),
    ("headings that nobody knows", " IMPRESSION: Edema.\n DR. DID NOT READ\n PHYSICIST NOTE: Dose low.\n", "Edema. DR. DID NOT READ", "", "Edema. DR. DID NOT READ", "Edema. DR. DID NOT READ"),
    ("findings before history", " FINDINGS: Edema.\n HISTORY: Cough.\n", "", "Edema.", "Edema.", "Edema."),
    ("Windows line ends", " FINDINGS:\r\n Edema.\r\n IMPRESSION:\r\n Worse\r\n edema.\r\n", "Worse edema.", "Edema.", "Worse edema.", "Edema. Worse edema."),
    ("a small title", " final report\n impression: Edema.\n", "Edema.", "", "Edema.", "Edema."),
    ("tabs and no indent", "FINDINGS:\tEdema.\nIMPRESSION:\tWorse.", "Worse.", "Edema.", "Worse.", "Edema. Worse."),
    ("de-identified words", " IMPRESSION: Compared to ___, Dr. ___'s ___-year-old patient (___) is worse .\n", "Compared to, Dr. year-old patient is worse.", "", "Compared to, Dr. year-old patient is worse.", "Compared to, Dr. year-old patient is worse."),
    ("a time in the text", " IMPRESSION: Reported at 10:30 a.m. Edema.\n", "Reported at 10:30 a.m. Edema.", "", "Reported at 10:30 a.m. Edema.", "Reported at 10:30 a.m. Edema."),
    ("a ratio at the start of a line", " IMPRESSION: Cardiothoracic\n ratio: 0.6.\n", "Cardiothoracic ratio: 0.6.", "", "Cardiothoracic ratio: 0.6.", "Cardiothoracic ratio: 0.6."),
    ("an empty report", "", "", "", "", ""),
    ("white space", " \n \n", "", "", "", ""),
]  # fmt: skip


@pytest.mark.parametrize(("report", "expected"), [(s[1], s[2:]) for s in SHAPES], ids=[s[0] for s in SHAPES])
def test_shapes(report, expected):
    assert tuple(report_text(report, section) for section in SECTIONS) == expected


def test_enough_shapes():
    assert len(SHAPES) >= 40 and len({shape[1] for shape in SHAPES}) == len(SHAPES)


def test_sections_in_order():
    names = [name for name, _ in split_report(FULL)]
    assert names == ["body", "examination", "indication", "technique", "comparison", "findings", "impression"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Clear, ___.", "Clear."), ("Worse; ___, as before.", "Worse; as before."), ("1. ___, edema", "1. edema")],
)
def test_the_signs_around_a_lost_word(text, expected):
    assert clean(text) == expected


@pytest.mark.parametrize("text", ["___", "1. ___.", "", " . ", "____ ____"])
def test_nothing_left(text):
    assert clean(text) == ""


def test_unknown_section():
    with pytest.raises(ValueError, match="history.*|impression"):
        report_text(FULL, "history")
