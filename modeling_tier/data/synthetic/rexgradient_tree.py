# Licensed under the Apache License, Version 2.0.
"""The synthetic radiographs in the layout of ReXGradient-160K, so that its loader can be run without access to it."""

import json
import os

from PIL import Image

from .openi_tree import new_folder
from .pairs import draw_studies


_SPLITS = {"train": "train", "validation": "valid", "test": "test"}


def write_rexgradient_tree(
    root: str | os.PathLike, num_images: int = 60, image_size: int = 128, seed: int = 0, drawings: str = "simple"
) -> None:
    """
    Write drawings as `metadata/train_metadata_view_position.json`, its kin for "valid" and "test" (a tenth each), and
    `deid_png/PATIENT/STUDY/studies/1/series/1/instances/1.png`; every fifth study has a second image.

    Arguments and errors as for [`write_openi_tree`].
    """
    root = new_folder(root, "metadata")
    tenth = num_images // 10
    for (split, part), number in zip(_SPLITS.items(), (num_images - 2 * tenth, tenth, tenth)):
        content = {}
        for i, study in enumerate(draw_studies(split, number, image_size, seed, drawings), 1):
            patient, accession = f"GRDN{study.subject_id:012d}", f"GRDN{study.study_id:012d}"
            series = f"deid_png/{patient}/{accession}/studies/1.2.{i}/series/1.3.{i}/instances"
            (root / series).mkdir(parents=True)
            names = [f"{series}/1.4.{i}.{k}.png" for k in range(2 if i % 5 == 0 else 1)]
            for k, name in enumerate(names):
                Image.fromarray(study.pixels // (1 + k)).save(root / name)
            content[f"p{patient}_a{accession}_st1.2.{i}"] = {
                "PatientID": patient,
                "AccessionNumber": accession,
                "Findings": study.report.findings,
                "Impression": study.report.impression,
                "ImagePath": [f"../{name}" for name in names],
                "ImageViewPosition": [study.view] * len(names),
            }
        path = root / f"metadata/{part}_metadata_view_position.json"
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")
