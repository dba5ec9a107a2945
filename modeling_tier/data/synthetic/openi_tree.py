# Licensed under the Apache License, Version 2.0.
"""The synthetic radiographs in the layout of Open-I's archives, so that its loader can be run without a download."""

import os
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image

from ..columns import SPLITS
from .pairs import Study, draw_studies


LICENCE = "http://creativecommons.org/licenses/by-nc-nd/4.0/"


def write_openi_tree(
    root: str | os.PathLike, num_images: int = 60, image_size: int = 128, seed: int = 0, drawings: str = "simple"
) -> None:
    """
    Write drawings as the National Library of Medicine's archives are unpacked: `ecgen-radiology/1.xml` and so on, and
    `images/CXR1_IM-0001-1001.png`. The findings of a drawing are the major terms of its report, in small letters the
    automatic ones; every fifth report has a second image, of half the brightness.

    Args:
        root: folder to write, created if it is missing; must be empty.
        num_images: number of reports.
        image_size: pixels a side.
        seed: of everything.
        drawings: "simple" or "fine", as for [`synthetic_pairs`].

    Raises:
        ValueError: if the folder holds anything.
    """
    root = new_folder(root, "ecgen-radiology", "images")
    for number, study in enumerate(draw_studies(SPLITS[0], num_images, image_size, seed, drawings), 1):
        names = [f"CXR{number}_IM-{number:04d}-{1001 + 1000 * i}" for i in range(2 if number % 5 == 0 else 1)]
        for i, name in enumerate(names):
            Image.fromarray(study.pixels // (1 + i)).save(root / "images" / f"{name}.png")
        tree = ElementTree.ElementTree(_report(number, study, names))
        ElementTree.indent(tree)
        tree.write(root / "ecgen-radiology" / f"{number}.xml", encoding="utf-8", xml_declaration=True)


def new_folder(root: str | os.PathLike, *names: str) -> Path:
    """A folder with others in it; it must not hold anything yet."""
    root = Path(root)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(f"{root} is not an empty folder.")
    for name in names:
        (root / name).mkdir(parents=True)
    return root


def _report(number: int, study: Study, images: list[str]) -> ElementTree.Element:
    root = ElementTree.Element("eCitation")
    for tag, attributes in (("meta", {"type": "rr"}), ("uId", {"id": f"CXR{number}"}), ("pmcId", {"id": f"{number}"})):
        ElementTree.SubElement(root, tag, attributes)
    for tag, text in (("licenseType", "open-access"), ("licenseURL", LICENCE), ("ccLicense", "byncnd")):
        ElementTree.SubElement(root, tag).text = text
    article = ElementTree.SubElement(ElementTree.SubElement(root, "MedlineCitation"), "Article")
    abstract = ElementTree.SubElement(article, "Abstract")
    sections = {
        "COMPARISON": "None.",
        "INDICATION": "XXXX-year-old with dyspnea.",
        "FINDINGS": study.report.findings,
        "IMPRESSION": study.report.impression,
    }
    for label, text in sections.items():
        ElementTree.SubElement(abstract, "AbstractText", {"Label": label}).text = text
    terms = ElementTree.SubElement(root, "MeSH")
    names = list(dict.fromkeys(finding.name for finding in study.findings))
    for name in names or ["normal"]:
        ElementTree.SubElement(terms, "major").text = name
    for name in names:
        ElementTree.SubElement(terms, "automatic").text = name.lower()
    for i, name in enumerate(images, 1):
        image = ElementTree.SubElement(root, "parentImage", {"id": name})
        ElementTree.SubElement(image, "figureId").text = f"F{i}"
        ElementTree.SubElement(image, "caption").text = "Xray Chest PA and Lateral"
    return root
