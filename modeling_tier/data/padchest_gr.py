# Licensed under the Apache License, Version 2.0.
"""PadChest-GR: frontal radiographs of PadChest whose reports are lists of sentences, with boxes."""

import os
from pathlib import Path

from datasets import Dataset

from .columns import check_split, check_subjects, make_pairs, pair_features
from .padchest import RECORD as PADCHEST
from .padchest import chosen_names
from .pictures import box_regions
from .record import DatasetRecord
from .rejected import RejectedRow, reject
from .tables import find_table, found_pictures, good_rows, is_missing, need_folder, read_json, read_table


SPLITS = ("train", "validation", "test")

_REPORTS = "grounded_reports_20240819.json"
_TABLE = "master_table.csv"
_FOLDERS = (
    *("Padchest_GR_files", "Padchest_GR_files/PadChest_GR", "PadChest_GR_files", "PadChest_GR", "images_grounding"),
    *("images", ""),
)
_OURS = {"valid": "validation", "val": "validation"}


def padchest_gr(
    split: str = "test",
    data_dir: str | os.PathLike | None = None,
    with_boxes: bool = False,
    min_count: int = 1,
) -> Dataset:
    """
    Radiographs of PadChest-GR. The text is the English sentences of the report in their order; a sentence with boxes
    is the phrase of `regions`, whose finding is the first of its labels. Labels are 1 where a sentence has them, else
    0. Missing images are skipped with a warning that counts them.

    Args:
        split: "train", "validation" or "test", as its `master_table.csv` divides the patients.
        data_dir: folder with `grounded_reports_20240819.json` and `master_table.csv`, and the images in
            `Padchest_GR_files`, `Padchest_GR_files/PadChest_GR`, or beside the tables.
        with_boxes: whether to take the images with boxes alone.
        min_count: labels of fewer studies, in all splits together, are dropped.

    Raises:
        ValueError: for a missing file or column, one of another form, too many bad rows, patients in two splits, or if
            no image is found.
    """
    check_split("padchest_gr", split, SPLITS)
    folder = need_folder(RECORD, data_dir, f"the folder with {_REPORTS} and the images")
    patients = _patients(find_table(folder, [_TABLE]))
    path = find_table(folder, [_REPORTS])
    studies = _studies(path, patients)
    names = chosen_names((study["labels"] for study in studies), min_count)
    chosen = [s for s in studies if s["split"] == split and (s["boxes"] or not with_boxes)]
    if not chosen:
        raise ValueError(f"padchest_gr: no image of {path} is of the split {split!r} with with_boxes {with_boxes}.")
    folders = [folder / name for name in _FOLDERS]
    paths = found_pictures((study["image_id"] for study in chosen), "padchest_gr", path, folders)
    chosen = [study for study in chosen if study["image_id"] in paths]
    columns = {name: [study[name] for study in chosen] for name in ("text", "subject_id", "study_id", "image_id")}
    columns["image"] = list(paths.values())
    columns["labels"] = [{name: float(name in study["labels"]) for name in names} for study in chosen]
    cells = [{"bytes": None, "path": file} for file in paths.values()]
    columns["regions"] = [box_regions(cell, study["boxes"]) for cell, study in zip(cells, chosen)]
    return make_pairs(columns, pair_features(names, ids="string", regions=True))


def _patients(path: Path) -> dict[str, tuple[str, str]]:
    """Patient and split of each study; the table has a row per study and label."""
    table = read_table(path, ("StudyID", "PatientID", "split"))
    table["split"] = table["split"].str.lower().replace(_OURS)
    bad = ~table["split"].isin(SPLITS)
    reason = f"split must be one of {list(SPLITS)}"
    table = good_rows(table, bad, path, lambda i: f"{reason}; got {table.loc[i, 'split']!r}.")
    check_subjects(str(path), {s: table.loc[table["split"] == s, "PatientID"] for s in SPLITS})
    first = table.drop_duplicates("StudyID")
    return dict(zip(first["StudyID"], zip(first["PatientID"], first["split"])))


def _studies(path: Path, patients: dict[str, tuple[str, str]]) -> list[dict]:
    """Each image once; studies of another form, and those that the table does not have, are bad rows."""
    content = read_json(path)
    if not isinstance(content, list):
        raise ValueError(f'{path} must be a list of {{"StudyID": ..., "ImageID": ..., "findings": [...]}}.')
    studies, bad = {}, []
    for i, item in enumerate(content):
        try:
            study = _study(item, patients)
            if study["image_id"] in studies:
                raise ValueError(f"{study['image_id']} is a duplicate")
            studies[study["image_id"]] = study
        except (ValueError, TypeError, OverflowError) as error:
            bad.append(RejectedRow(str(path), f"study {i + 1}", str(error)))
    reject(bad, len(content))
    return list(studies.values())


def _study(item, patients: dict[str, tuple[str, str]]) -> dict:
    if not isinstance(item, dict) or not isinstance(item.get("findings"), list):
        raise ValueError(f"a study must have a StudyID, an ImageID and a list of findings; got {str(item)[:80]!r}")
    study_id, image_id = item.get("StudyID"), item.get("ImageID")
    if not isinstance(study_id, str) or not isinstance(image_id, str):
        raise ValueError("StudyID and ImageID must be texts")
    if study_id not in patients:
        raise ValueError(f"the study {study_id} is not in {_TABLE}")
    sentences, labels, boxes = [], set(), []
    for finding in item["findings"]:
        sentence, names, marked = _finding(finding)
        sentences.append(sentence)
        labels.update(names)
        # Shares of the picture: corners of a picture of 1 x 1.
        boxes += [(names[0] if names else "finding", sentence, box, (1, 1)) for box in marked if sentence]
    subject_id, split = patients[study_id]
    about = {"subject_id": subject_id, "study_id": study_id, "image_id": image_id, "split": split}
    return about | {"text": " ".join(filter(None, sentences)) or None, "labels": labels, "boxes": boxes}


def _finding(finding) -> tuple[str, list[str], list[list[float]]]:
    """Sentence, labels and boxes, which an ordinary finding has not."""
    if not isinstance(finding, dict):
        raise ValueError(f"a finding must be an object; got {str(finding)[:80]!r}")
    sentence = finding.get("sentence_en")
    if sentence is not None and not isinstance(sentence, str):
        raise ValueError(f"sentence_en must be a text; got {str(sentence)[:80]!r}")
    labels = finding.get("labels") or []
    boxes = [*(finding.get("boxes") or []), *(finding.get("extra_boxes") or [])]
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"labels must be a list of texts; got {str(labels)[:80]!r}")
    text = "" if is_missing(sentence) else sentence.strip()
    return text, [label.strip() for label in labels if label.strip()], [_corners(box) for box in boxes]


def _corners(box) -> list[float]:
    if not isinstance(box, list) or len(box) != 4:
        raise ValueError(f"a box must be [x_min, y_min, x_max, y_max]; got {str(box)[:80]!r}")
    x_min, y_min, x_max, y_max = map(float, box)
    if not (-0.1 <= x_min < x_max <= 1.1 and -0.1 <= y_min < y_max <= 1.1):
        raise ValueError(f"the box {box} must have corners between 0 and 1")
    return [x_min, y_min, x_max, y_max]


RECORD = DatasetRecord(
    name="padchest_gr",
    load=padchest_gr,
    title="PadChest-GR",
    folders=("padchest-gr*", "bimcv-padchest-gr*"),
    files=((_REPORTS,),),
    address="https://bimcv.cipf.es/bimcv-projects/padchest-gr/",
    licence="PadChest-GR Dataset Research Use Agreement",
    access="registration with BIMCV, under its terms of use",
    id_patterns=PADCHEST.id_patterns,
    patients="padchest",
)
