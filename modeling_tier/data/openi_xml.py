# Licensed under the Apache License, Version 2.0.
"""
Open-I's reports as the National Library of Medicine publishes them: one XML file per report.

`ecgen-radiology/1.xml` holds the report's number (`<uId id="CXR1"/>`), its sections
(`<AbstractText Label="FINDINGS">`, empty or absent where the report has none), the terms by which people
(`<MeSH><major>Opacity/lung/base/left</major>`) and a program (`<automatic>`) have indexed it, and its images
(`<parentImage id="CXR1_1_IM-0001-3001">`). It has neither the patient nor the view of an image: its caption, such as
"Xray Chest PA and Lateral", is that of the examination.
"""

import html
import re
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd

from .rejected import RejectedRow, reject, short
from .tables import warn_skipped


XML_FOLDERS = ("ecgen-radiology", "reports/ecgen-radiology", "NLMCXR_reports/ecgen-radiology", "reports", "")


def reports_folder(folder: Path) -> Path | None:
    """The folder of the XML files in that of the data set; None if there is none."""
    return next((folder / name for name in XML_FOLDERS if next((folder / name).glob("*.xml"), None)), None)


def images_of_reports(folder: Path) -> pd.DataFrame:
    """
    One row per image, with what its report says: `uid` (without "CXR"), `filename`, `findings`, `impression`,
    `problems` (a set of the headings of the major terms, as "Opacity" of "Opacity/lung/base/left") and `automatic`
    (a set of terms).

    Args:
        folder: that of the XML files.

    Raises:
        ValueError: if more than a tenth of the files cannot be read, or no report has an image.
    """
    paths = sorted(folder.glob("*.xml"), key=lambda path: (len(path.stem), path.stem))
    rows, bad, seen, without = [], [], set(), []
    for path in paths:
        try:
            report, images = _report(path)
            if report["uid"] in seen:
                raise ValueError(f"the report {report['uid']} is there twice")
        except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
            bad.append(RejectedRow(str(folder), path.name, str(error)))
            continue
        seen.add(report["uid"])
        if not images:
            without.append(path.name)
        rows += [report | {"filename": f"{image}.png"} for image in images]
    reject(bad, len(paths))
    warn_skipped("openi", len(without), len(paths), "the report has no image", without[0] if without else "")
    if not rows:
        raise ValueError(
            f"openi: none of the {len(paths)} XML files of {folder} names an image (<parentImage id=...>)."
        )
    return pd.DataFrame(rows)


def _report(path: Path) -> tuple[dict, list[str]]:
    """A report and the names of its images."""
    root = ElementTree.parse(path).getroot()
    uid = root.find("uId")
    if uid is None or not (number := uid.get("id", "").strip().removeprefix("CXR")):
        raise ValueError(f"not a report of Open-I: no <uId id=...> in <{short(root.tag, 40)}>")
    sections: dict[str, list[str]] = {}
    for part in root.iter("AbstractText"):
        sections.setdefault(part.get("Label", "").strip().upper(), []).append(_text(part))
    images = [image.get("id", "").strip() for image in root.iter("parentImage")]
    report = {
        "uid": number,
        "findings": " ".join(filter(None, sections.get("FINDINGS", []))),
        "impression": " ".join(filter(None, sections.get("IMPRESSION", []))),
        "problems": frozenset(term.split("/")[0].strip() for term in _terms(root, "major")) - {""},
        "automatic": frozenset(_terms(root, "automatic")),
    }
    return report, list(dict.fromkeys(filter(None, images)))


def _terms(root: ElementTree.Element, name: str) -> list[str]:
    return [text for node in root.iterfind(f".//MeSH/{name}") if (text := _text(node))]


def _text(node: ElementTree.Element) -> str:
    """The text of a node; some of it was escaped twice ("&amp;lt;")."""
    return re.sub(r"\s+", " ", html.unescape("".join(node.itertext()))).strip()
