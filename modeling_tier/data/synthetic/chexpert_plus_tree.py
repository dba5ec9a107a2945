# Licensed under the Apache License, Version 2.0.
"""The synthetic radiographs in the layout of CheXpert Plus, so that its loader can be run without access to it."""

import csv
import json
import os

from PIL import Image

from ..columns import CHEXPERT_LABELS
from .mimic_tree import chexpert_labels
from .openi_tree import new_folder
from .pairs import draw_studies


_COLUMNS = (
    *("path_to_image", "path_to_dcm", "frontal_lateral", "ap_pa", "deid_patient_id", "patient_report_date_order"),
    *("report", "section_narrative", "section_clinical_history", "section_findings", "section_impression", "split"),
)


def write_chexpert_plus_tree(
    root: str | os.PathLike, num_images: int = 60, image_size: int = 128, seed: int = 0, drawings: str = "simple"
) -> None:
    """
    Write drawings as `df_chexpert_plus_240401.csv` (whose paths end in .jpg), `PNG/train/patient.../study1/
    view1_frontal.png` and `chexbert_labels/report_fixed.json`; a tenth of them in the part "valid".

    Arguments and errors as for [`write_openi_tree`].
    """
    root = new_folder(root, "chexbert_labels")
    rows, labels = [], []
    tenth = num_images // 10
    for split, part, number in (("train", "train", num_images - tenth), ("validation", "valid", tenth)):
        orders: dict[int, int] = {}
        for study in draw_studies(split, number, image_size, seed, drawings):
            orders[study.subject_id] = order = orders.get(study.subject_id, 0) + 1
            patient = f"patient{study.subject_id}"
            path = f"{part}/{patient}/study{order}/view1_frontal"
            (root / "PNG" / path).parent.mkdir(parents=True)
            Image.fromarray(study.pixels).save(root / "PNG" / f"{path}.png")
            report = f"FINDINGS: {study.report.findings}\nIMPRESSION: {study.report.impression}"
            sections = ("", "", study.report.findings, study.report.impression)
            about = ("Frontal", study.view, patient, order, report, *sections, part)
            rows.append((f"{path}.jpg", f"{path}.dcm", *about))
            known = chexpert_labels(study)
            labels.append({"path_to_image": f"{path}.jpg"} | {name: known.get(name) for name in CHEXPERT_LABELS})
    with open(root / "df_chexpert_plus_240401.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([_COLUMNS, *rows])
    lines = "".join(json.dumps(row) + "\n" for row in labels)
    (root / "chexbert_labels/report_fixed.json").write_text(lines, encoding="utf-8")
