# Licensed under the Apache License, Version 2.0.
"""The synthetic radiographs in the layout of MIMIC-CXR-JPG, so that its loader can be run without access to it."""

import csv
import gzip
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path

from PIL import Image as PILImage

from ..columns import CHEXPERT_LABELS
from .pairs import Study, draw_studies, mask_box


_METADATA = (
    "dicom_id",
    "subject_id",
    "study_id",
    "PerformedProcedureStepDescription",
    "ViewPosition",
    "Rows",
    "Columns",
    "StudyDate",
    "StudyTime",
    "ProcedureCodeSequence_CodeMeaning",
    "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)
_BOXES = (
    "category_name",
    "label_text",
    "x",
    "y",
    "w",
    "h",
    "image_width",
    "image_height",
    "dicom_id",
    "path",
    "split",
)


def write_mimic_tree(
    root: str | os.PathLike, num_images: dict[str, int], image_size: int = 96, seed: int = 0, drawings: str = "simple"
) -> None:
    """
    Write the drawings in the layout of MIMIC-CXR-JPG 2.0.0 and its reports, so that the real loader can be run.

    `files/p10/p10000032/s50414267/<dicom_id>.jpg` (JPEG, quality 95, 8-bit grey), the report beside the study's
    folder, the split, metadata, chexpert and negbio tables (.csv.gz), and the boxes in the form of MS-CXR
    (`ms_cxr.csv`).
    A nodule is a "Lung Lesion" there; a finding that no report names is blank, and one that CheXpert has no label for
    has no column.

    Args:
        root: folder to write, created if it is missing; must be empty.
        num_images: number of images by split, with the keys "train", "validation" and "test".
        image_size: pixels a side.
        seed: of everything.
        drawings: "simple" or "fine", as for [`synthetic_pairs`].

    Raises:
        ValueError: if the folder holds something, or a split is unknown.
    """
    root = Path(root)
    if root.exists() and any(root.iterdir()):
        raise ValueError(f"{root} is not empty; choose another folder or empty it.")
    splits, metadata, labels, boxes = [], [], [], []
    for split, number in num_images.items():
        split_name = "validate" if split == "validation" else split
        for study in draw_studies(split, number, image_size, seed, drawings):
            ids = {"subject_id": study.subject_id, "study_id": study.study_id}
            folder = root / "files" / f"p{str(study.subject_id)[:2]}" / f"p{study.subject_id}"
            image_path = folder / f"s{study.study_id}" / f"{study.image_id}.jpg"
            image_path.parent.mkdir(parents=True)
            PILImage.fromarray(study.pixels).save(image_path, quality=95)
            (folder / f"s{study.study_id}.txt").write_text(_report_file(study))
            splits.append({"dicom_id": study.image_id, "study_id": study.study_id, **ids, "split": split_name})
            metadata.append(_metadata_row(study))
            labels.append(ids | chexpert_labels(study))
            boxes += _box_rows(study, image_path.relative_to(root), split_name)
    prefix = "mimic-cxr-2.0.0"
    _write_csv(root / f"{prefix}-split.csv.gz", ("dicom_id", "study_id", "subject_id", "split"), splits)
    _write_csv(root / f"{prefix}-metadata.csv.gz", _METADATA, metadata)
    for labeler in ("chexpert", "negbio"):
        _write_csv(root / f"{prefix}-{labeler}.csv.gz", ("subject_id", "study_id", *CHEXPERT_LABELS), labels)
    _write_csv(root / "ms_cxr.csv", _BOXES, boxes)


def _report_file(study: Study) -> str:
    sections = {
        "EXAMINATION": "CHEST RADIOGRAPH (SYNTHETIC DRAWING)",
        "INDICATION": "___ year old with shortness of breath.",
        "COMPARISON": "___.",
        "FINDINGS": study.report.findings,
        "IMPRESSION": study.report.impression,
    }
    lines = [" " * 33 + "FINAL REPORT"]
    for heading, text in sections.items():
        lines += textwrap.wrap(f"{heading}:  {text}", 79, initial_indent=" ", subsequent_indent=" ") + [" "]
    return "\n".join(lines) + "\n"


def _metadata_row(study: Study) -> dict:
    meaning = {"PA": "postero-anterior", "AP": "antero-posterior"}[study.view]
    return {
        "dicom_id": study.image_id,
        "subject_id": study.subject_id,
        "study_id": study.study_id,
        "PerformedProcedureStepDescription": f"CHEST ({study.view})",
        "ViewPosition": study.view,
        "Rows": study.pixels.shape[0],
        "Columns": study.pixels.shape[1],
        "StudyDate": 21800101 + study.study_id % 28,
        "StudyTime": f"{study.study_id % 240000}.0",
        "ProcedureCodeSequence_CodeMeaning": f"CHEST ({study.view})",
        "ViewCodeSequence_CodeMeaning": meaning,
        "PatientOrientationCodeSequence_CodeMeaning": "Erect",
    }


def chexpert_labels(study: Study) -> dict:
    """CheXpert's labels of a drawing: 1 positive, 0 denied; others are not mentioned."""
    rename = {"Nodule": "Lung Lesion"}
    row = {rename.get(finding.name, finding.name): 1.0 for finding in study.findings}
    if not set(row) - {"Support Devices"}:
        row["No Finding"] = 1.0
    row = {label: value for label, value in row.items() if label in CHEXPERT_LABELS}
    text = " ".join(study.report).lower()
    for label, word in (("Pneumothorax", "pneumothorax"), ("Pleural Effusion", "pleural effusion")):
        if label not in row and word in text:
            row[label] = 0.0  # named, hence denied
    return row


def _box_rows(study: Study, path: Path, split: str) -> Iterator[dict]:
    height, width = study.pixels.shape
    for region in study.regions:
        x_min, y_min, x_max, y_max = (int(c) for c in mask_box(region.mask))
        yield {
            "category_name": region.finding.name,
            "label_text": study.phrase(region),
            "x": x_min,
            "y": y_min,
            "w": x_max - x_min,
            "h": y_max - y_min,
            "image_width": width,
            "image_height": height,
            "dicom_id": study.image_id,
            "path": path.as_posix(),
            "split": split,
        }


def _write_csv(path: Path, columns: tuple[str, ...], rows: list[dict]) -> None:
    with gzip.open(path, "wt", newline="") if path.suffix == ".gz" else open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
