# Licensed under the Apache License, Version 2.0.
"""CheXlocalize: radiologists' masks of ten findings on the validation and test images of CheXpert."""

import os
from pathlib import Path

from datasets import Dataset, List

from .chexlocalize_benchmark import ANSWER, HumanBenchmark, human_benchmark
from .chexpert import RECORD as CHEXPERT
from .chexpert import image_columns, image_rows, table_folder, with_files
from .columns import CHEXPERT_LABELS, VIEWS, check_choice, check_split, make_pairs, pair_features
from .masks import coco_mask, mask_box, mask_cell
from .pictures import picture_size, scaled_box
from .record import DatasetRecord
from .rejected import RejectedRow, reject
from .tables import find_table, need_folder, read_json, warn_skipped


# Its names of findings, by CheXpert's.
FINDINGS = {
    **{name: name for name in ("Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Lesion")},
    "Airspace Opacity": "Lung Opacity",
    **{name: name for name in ("Edema", "Consolidation", "Atelectasis", "Pneumothorax", "Pleural Effusion")},
    "Support Devices": "Support Devices",
}

_SPLITS = {"validation": "val", "test": "test"}
_IMAGES = ("CheXpert", "CheXpert-v1.0", "")
_MASKS = ("CheXlocalize", "")


def chexlocalize(
    split: str = "test",
    data_dir: str | os.PathLike | None = None,
    views: str = "all",
    with_masks: bool = False,
) -> Dataset:
    """
    CheXpert's validation and test images with its 14 labels, and `regions` with a mask and the box around it; there
    are no texts. The phrase of a region is the finding's name. A mask without pixels says that the finding is absent.
    `radiologist` has for each finding with a mask the other radiologist's `hit` and `iou`, as
    [`~chexlocalize_benchmark.HumanBenchmark`] gives them; it is empty without the files of the human benchmark.

    Args:
        split: "validation" (234 images) or "test" (668).
        data_dir: folder with `CheXlocalize/gt_segmentations_val.json` and `gt_segmentations_test.json`, and with
            `CheXpert/val_labels.csv` and `test_labels.csv`, whose images are in `CheXpert/val` and `CheXpert/test`;
            with `CheXlocalize/hb_segmentations_test.json` and `hb_salient_pt_test.json` if the radiologist is to be
            measured.
        views: "all", or "frontal".
        with_masks: whether to take the images with a mask alone.

    Raises:
        ValueError: for a missing file, one of another form, too many bad rows, or if no image is found.
    """
    check_split("chexlocalize", split, _SPLITS)
    check_choice("chexlocalize", "views", views, VIEWS)
    folder = need_folder(RECORD, data_dir, "the folder with CheXpert/ and CheXlocalize/")
    name = f"gt_segmentations_{_SPLITS[split]}.json"
    path = find_table(folder, [f"{part}/{name}" if part else name for part in _MASKS])
    labels = f"{_SPLITS[split]}_labels.csv"
    images = table_folder([folder / part for part in _IMAGES], [labels])
    table = with_files(image_rows(images, split, [labels]), "chexlocalize")
    if views == "frontal":
        table = table[table["frontal"]]
    keys = [_key(row.study, row.file) for row in table.itertuples()]
    content = _content(path)
    human = human_benchmark(folder, _MASKS) if split == "test" else None
    regions, answers = _regions(path, content, dict(zip(keys, table["path"])), human)
    if with_masks:
        table = table[[bool(regions.get(key)) for key in keys]]
        keys = [key for key in keys if regions.get(key)]
    if table.empty:
        raise ValueError(f"chexlocalize: no image is left with views {views!r} and with_masks {with_masks}.")
    by_key = {"regions": regions, "radiologist": answers}
    columns = image_columns(table) | {name: [values.get(key, []) for key in keys] for name, values in by_key.items()}
    features = pair_features(CHEXPERT_LABELS, ids="string", regions=True, mask=True)
    features["radiologist"] = List(ANSWER)
    return make_pairs(columns, features)


def _key(study: str, file: str) -> str:
    """As patient64741_study1_view1_frontal."""
    return f"{study}/{file}".removesuffix(".jpg").replace("/", "_")


def _content(path: Path) -> dict[str, dict]:
    """By image and finding an encoded mask."""
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(masks, dict) for masks in content.values()):
        raise ValueError(f'{path} must be like {{"patient64741_study1_view1_frontal": {{finding: mask}}}}.')
    return content


def _regions(
    path: Path, content: dict[str, dict], paths: dict[str, str], human: HumanBenchmark | None
) -> tuple[dict[str, list[dict]], dict[str, list[dict]]]:
    """By image regions and the radiologist's answers; masks that are damaged or of unknown findings are bad rows."""
    regions: dict[str, list[dict]] = {}
    answers: dict[str, list[dict]] = {}
    bad = []
    for key, masks in content.items():
        for finding, encoded in masks.items():
            try:
                if finding not in FINDINGS:
                    raise ValueError(f"unknown finding {finding!r}; known are {list(FINDINGS)}")
                mask = coco_mask(encoded)
            except ValueError as error:
                bad.append(RejectedRow(str(path), f"{key}, {finding}", str(error)))
            else:
                if mask.any() and key in paths:
                    regions.setdefault(key, []).append(_region(FINDINGS[finding], mask, paths[key]))
                    if human and (answer := human.judge(key, finding, mask)):
                        answers.setdefault(key, []).append({"finding": FINDINGS[finding]} | answer)
    reject(bad, sum(map(len, content.values())))
    if human:
        reject(human.bad, sum(map(len, regions.values())))
    absent = [key for key in content if key not in paths]
    warn_skipped("chexlocalize", len(absent), len(content), "no such image is used", absent[0] if absent else "")
    if content and len(absent) == len(content):
        raise ValueError(
            f"{path}: none of its images is in the table, such as {absent[0]}; the table has "
            f"{min(paths, default='none')}."
        )
    return regions, answers


def _region(finding: str, mask, path: str) -> dict:
    """In pixels of the stored picture, which may be a smaller copy."""
    published = mask.shape[::-1]
    size = picture_size({"bytes": None, "path": path}) or published
    box = scaled_box(mask_box(mask), published, size)
    return {"finding": finding, "phrase": finding.lower(), "box": box, "mask": mask_cell(mask, size)}


RECORD = DatasetRecord(
    name="chexlocalize",
    load=chexlocalize,
    title="CheXlocalize",
    folders=("chexlocalize*", "."),
    files=(
        tuple(f"{part}gt_segmentations_*.json" for part in ("CheXlocalize/", "")),
        tuple(f"{part}/{_SPLITS['test']}_labels.csv".lstrip("/") for part in _IMAGES),
    ),
    address="https://stanfordaimi.azurewebsites.net/datasets/23c56a0d-15de-405b-87c8-99c30138950c",
    licence="Stanford University Dataset Research Use Agreement",
    access="registration with Stanford AIMI, under a research use agreement",
    id_patterns=CHEXPERT.id_patterns,
    patients="chexpert",
    findings=CHEXPERT_LABELS,
)
