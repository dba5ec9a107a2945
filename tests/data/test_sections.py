# Licensed under the Apache License, Version 2.0.
# ruff: noqa: E501
"""The text that a report gives, over the shapes that reports have."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_tier.data.deidentification import clean
from modeling_tier.data.sections import SECTIONS, report_text, split_report, unknown_headings


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
    ("a view as the heading", " FINAL REPORT\n INDICATION: Cough.\n \n PORTABLE CHEST:  Small left effusion.\n", "", "Small left effusion.", "Small left effusion.", "Small left effusion."),
    ("views as the heading", " PA AND LATERAL VIEWS OF THE CHEST: Clear.\n", "", "Clear.", "Clear.", "Clear."),
    ("view and kind as the heading", " AP PORTABLE CHEST RADIOGRAPH:\n\n Clear.\n", "", "Clear.", "Clear.", "Clear."),
    ("a view with a removed date and a time", " AP PORTABLE CHEST, ___ AT 05:30 HOURS: Clear.\n", "", "Clear.", "Clear.", "Clear."),
    ("the last of two views", " PORTABLE CHEST: Tube high.\n PORTABLE CHEST, 2 HOURS LATER: Tube low.\n", "", "Tube low.", "Tube low.", "Tube low."),
    ("a title that names the view", " CHEST, PA LATERAL:\n\n INDICATION: Cough.\n\n FINDINGS: Clear.\n", "", "Clear.", "Clear.", "Clear."),
    ("final impression", " FINDINGS: Edema.\n FINAL IMPRESSION: Worse.\n", "Worse.", "Edema.", "Worse.", "Edema. Worse."),
    ("preliminary impression", " PRELIMINARY IMPRESSION: Worse.\n", "Worse.", "", "Worse.", "Worse."),
    ("impression in small letters with another word", " Final impression: Worse.\n", "Worse.", "", "Worse.", "Worse."),
    ("impression and recommendations in brackets", " IMPRESSION AND RECOMMENDATION(S): Worse.\n", "Worse.", "", "Worse.", "Worse."),
    ("chest findings", " CHEST FINDINGS: Edema.\n", "", "Edema.", "Edema.", "Edema."),
    ("findings of the chest", " FINDINGS (CHEST): Edema.\n", "", "Edema.", "Edema.", "Edema."),
    ("labels below the impression", " IMPRESSION:\n LUNGS: Clear.\n HEART: Normal.\n", "LUNGS: Clear. HEART: Normal.", "", "LUNGS: Clear. HEART: Normal.", "LUNGS: Clear. HEART: Normal."),
    ("labels within the findings", " FINDINGS: Stable.\n LUNGS: Clear.\n WIDGET: Lost.\n", "", "Stable. LUNGS: Clear.", "Stable. LUNGS: Clear.", "Stable. LUNGS: Clear."),
    ("any label where each line has one", " FINDINGS:\n\n LUNGS: Clear.\n WIDGET: Kept.\n NOTIFICATION: Called.\n", "", "LUNGS: Clear. WIDGET: Kept.", "LUNGS: Clear. WIDGET: Kept.", "LUNGS: Clear. WIDGET: Kept."),
    ("labels without a heading above them", " HEART: Normal.\n LUNGS: Clear.\n IMPRESSION: Healthy.\n", "Healthy.", "HEART: Normal. LUNGS: Clear.", "Healthy.", "HEART: Normal. LUNGS: Clear. Healthy."),
    ("a view below the impression", " IMPRESSION:\n CHEST: Clear.\n", "CHEST: Clear.", "", "CHEST: Clear.", "CHEST: Clear."),
    ("a known heading below an empty impression", " FINDINGS: Edema.\n IMPRESSION:\n COMPARISON: Earlier film.\n", "", "Edema.", "Edema.", "Edema."),
    ("findings that were told", " IMPRESSION: Edema.\n COMMUNICATION OF FINDINGS: Called.\n", "Edema.", "", "Edema.", "Edema."),
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


def test_headings_that_no_rule_knows_are_named():
    report = (
        " PROVISIONAL: Edema.\n WIDGET COUNT:\n\n FINDINGS: Clear.\n LUNGS: Clear.\n COMMENT: None.\n WIDGET: Two.\n"
    )
    assert unknown_headings(report) == ["provisional", "widget"], "with a text, and outside of the findings"


# De-identification marks

MARKS = [
    "___",
    "_______",
    "XXXX",
    "[**2151-7-16**]",
    "[**First Name8 (NamePattern2) **]",
    "<unk>",
    "< >",
    "[REDACTED]",
]
PIECES = ["[", "]", "(", ")", "<", ">", "/", "-", ".", ",", ";", ":", " ", "\n", '"', "_", "X", "**", "12", "3.", "'s"]
PIECES += ["chest", "x-", "effusion", "and", "to"]
POSITIONS = [
    ("alone", "M", ""),
    ("a sentence", "M. Edema.", "Edema."),
    ("repeated", "M M, M and M. Edema.", "Edema."),
    ("start of a sentence", "M edema is seen.", "edema is seen."),
    ("within a sentence", "Compared to M the edema is worse.", "Compared to the edema is worse."),
    ("end of a sentence", "Edema since M. Clear.", "Edema since. Clear."),
    ("before a comma", "Edema, M, is worse.", "Edema, is worse."),
    ("before a question mark", "Is it M?", "Is it?"),
    ("before a semicolon", "Edema; M; effusion.", "Edema; effusion."),
    ("in brackets", "Edema (M) is seen.", "Edema is seen."),
    ("in brackets with words", "Edema (seen on M).", "Edema (seen on)."),
    ("in quotation marks", 'A "M" is seen.', "A is seen."),
    ("behind a hyphen", "Normal chest x-M.", "Normal chest."),
    ("before a hyphen", "A M-sided effusion.", "A sided effusion."),
    ("between hyphens", "A post-M-operative chest.", "A chest."),
    ("an age", "M-year-old woman.", "year-old woman."),
    ("of somebody", "M's chest is clear.", "chest is clear."),
    ("within a word", "The aMb is clear.", "The is clear."),
    ("end of a word", "The preM is clear.", "The is clear."),
    ("behind a slash", "Effusion/M.", "Effusion."),
    ("before a slash", "M/effusion.", "effusion."),
    ("between slashes", "Edema/M/effusion.", "Edema/effusion."),
    ("slashes alone", "Clear. M/M.", "Clear."),
    ("a lost date", "Compared to M/12/M.", "Compared to."),
    ("behind a decimal point", "A 3.M nodule.", "A nodule."),
    ("item of a list", "1. M. 2. Edema.", "2. Edema."),
    ("last item of a list", "1. Edema. 2. M.", "1. Edema."),
    ("start of an item", "1. M, edema.", "1. edema."),
    ("behind a dash", "Edema - M.", "Edema."),
    ("without spaces", "Edema,M,effusion.", "Edema,effusion."),
]


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize(("text", "expected"), [p[1:] for p in POSITIONS], ids=[p[0] for p in POSITIONS])
def test_removed_words_leave_complete_words(text, expected, mark):
    assert clean(text.replace("M", mark)) == expected


def test_text_without_marks_is_kept():
    text = "T11/T12 fracture, 3.5 cm (X-ray), size <5 mm and >3 mm; A/P diameter - normal? xxx"
    assert clean(text) == text


@settings(max_examples=1500, deadline=None, derandomize=True, database=None)
@given(st.lists(st.sampled_from([*MARKS, *PIECES]) | st.text(max_size=3), max_size=14).map("".join))
def test_a_cleaned_text_is_not_changed_by_cleaning(text):
    cleaned = clean(text)
    assert clean(cleaned) == cleaned
    assert not re.search(r"__|XXX|<\s*>|\[\*\*[^*\[\]]*\*\*\]|\[(unk|REDACTED)\]", cleaned)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Clear ((___)) lungs.", "Clear lungs."),
        ("Clear [(___)].", "Clear."),
        ("Clear lungs: [**[**Name**]**].", "Clear lungs."),
        ("Clear lungs <<unk>>.", "Clear lungs."),
    ],
)
def test_marks_that_stand_in_what_another_leaves(text, expected):
    assert clean(text) == expected


def test_a_long_line_takes_no_long_time():
    for text in ("a" * 50_000 + " ___", "[**" * 20_000 + " ___", "_/" * 100_000, "1/" * 100_000 + "___"):
        clean(text)
    assert clean("a " + "([" * 5_000 + "___" + "])" * 5_000) == ""
