# Licensed under the Apache License, Version 2.0.
"""ChestX-ray14 (NIH) with the boxes of its findings."""

import os
from collections import defaultdict
from pathlib import Path

from datasets import Dataset

from .columns import check_split, check_subjects, make_pairs, pair_features
from .pictures import picture_size, scaled_box
from .record import ID_END, ID_START, DatasetRecord
from .tables import find_table, good_rows, need_folder, read_table, skip_rows, to_numbers, warn_skipped


LABELS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Effusion",
    "Emphysema",
    "Fibrosis",
    "Hernia",
    "Infiltration",
    "Mass",
    "No Finding",
    "Nodule",
    "Pleural_Thickening",
    "Pneumonia",
    "Pneumothorax",
)

_TABLES = ["Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv"]
_BOXES = "BBox_List_2017.csv"
_BOX_COLUMNS = ("Bbox [x", "y", "w", "h]")
_BOX_NAMES = {"Infiltrate": "Infiltration"}
_SIDE = 1024  # pixels of the published pictures, in which boxes are given
_LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}


def chestxray14(split: str = "test", data_dir: str | os.PathLike | None = None, with_boxes: bool = False) -> Dataset:
    """
    Radiographs of ChestX-ray14 with its 14 labels and "No Finding", 1 or 0, and `regions` where boxes were drawn;
    there are no texts. The phrase of a box is the finding's name. Images that are missing are skipped with a warning
    that counts them.

    Args:
        split: "train" (`train_val_list.txt`) or "test" (`test_list.txt`).
        data_dir: folder with `Data_Entry_2017.csv`, `BBox_List_2017.csv`, the lists, and the images beside them, in
            `images`, or in `images_001/images` and so on.
        with_boxes: whether to take the images with boxes alone.

    Raises:
        ValueError: for an unknown option, a missing file or column, too many bad rows (file, line), or subjects in
            two splits.
    """
    check_split("chestxray14", split, _LISTS)
    folder = need_folder("chestxray14", data_dir, f"the folder with {_TABLES[0]} and the images")
    path = find_table(folder, _TABLES)
    table = read_table(path, ("Image Index", "Finding Labels", "Patient ID", "View Position"), ("Follow-up #",))
    table["line"] = table.index + 2
    table["names"] = table["Finding Labels"].map(lambda text: frozenset(name.strip() for name in text.split("|")))
    unknown = table["names"].map(lambda names: not names <= set(LABELS))
    expected = f"Finding Labels must be of {list(LABELS)}, joined by |"
    table = good_rows(table, unknown, path, lambda i: f"{expected}; got {table.loc[i, 'Finding Labels']!r}.")
    duplicate = table.duplicated("Image Index")
    table = skip_rows(table, duplicate, "chestxray14", f"an image twice in {path.name}", "line")
    lists = {name: _names(folder, file) for name, file in _LISTS.items() if name == split or (folder / file).is_file()}
    subject = table.set_index("Image Index")["Patient ID"]
    check_subjects(str(folder), {name: subject.reindex(list(images)).dropna() for name, images in lists.items()})
    unknown = lists[split] - set(table["Image Index"])
    warn_skipped("chestxray14", len(unknown), len(lists[split]), f"not in {path.name}", min(unknown, default=""))
    table = table[table["Image Index"].isin(lists[split])]
    boxes = _boxes(folder)
    if with_boxes:
        table = table[table["Image Index"].isin(boxes)]
    if table.empty:
        raise ValueError(f"chestxray14: no image of {path} is of the split {split!r} with with_boxes {with_boxes}.")
    paths = _pictures(folder)
    missing = ~table["Image Index"].isin(paths)
    if missing.all():
        raise ValueError(
            f"chestxray14: none of {len(table)} images was found; looked for {table['Image Index'].iloc[0]} in "
            f"{folder} and its folders images and images_*/images."
        )
    table = skip_rows(table, missing, "chestxray14", "the file is missing", "Image Index")
    columns = {
        "image": [paths[name] for name in table["Image Index"]],
        "subject_id": table["Patient ID"].tolist(),
        "study_id": [name.rsplit(".", 1)[0] for name in table["Image Index"]],
        "image_id": table["Image Index"].tolist(),
        "view": table["View Position"].tolist(),
        "labels": [{label: float(label in names) for label in LABELS} for names in table["names"]],
        "regions": [_regions(paths[name], boxes.get(name, ())) for name in table["Image Index"]],
    }
    return make_pairs(columns, pair_features(LABELS, ids="string", regions=True))


def _names(folder: Path, file: str) -> set[str]:
    if not (folder / file).is_file():
        raise ValueError(f"In the folder {folder} there is no {file}.")
    return set((folder / file).read_text().split())


def _boxes(folder: Path) -> dict[str, list[tuple[str, list[float]]]]:
    """For each image: finding, and x_min, y_min, x_max, y_max in published pixels."""
    path = find_table(folder, [_BOXES])
    table = read_table(path, ("Image Index", "Finding Label", *_BOX_COLUMNS))
    table["finding"] = table["Finding Label"].replace(_BOX_NAMES)
    unknown = ~table["finding"].isin(LABELS)
    known = f"known are {list(LABELS)}."
    table = good_rows(table, unknown, path, lambda i: f"unknown Finding Label {table.loc[i, 'finding']!r}; {known}")
    numbers = to_numbers(table, _BOX_COLUMNS, path)
    x, y, width, height = (numbers[name] for name in _BOX_COLUMNS)
    outside = (width <= 0) | (height <= 0) | (x <= -width) | (x >= _SIDE) | (y <= -height) | (y >= _SIDE)
    reason = f"the box lies outside of the {_SIDE} x {_SIDE} pixels, or is empty."
    numbers = good_rows(numbers, outside, path, lambda i: reason)
    boxes = defaultdict(list)
    names = table.loc[numbers.index]
    for image, name, box in zip(names["Image Index"], names["finding"], numbers.to_numpy().tolist()):
        x, y, width, height = box
        boxes[image].append((name, [x, y, x + width, y + height]))
    return dict(boxes)


def _pictures(folder: Path) -> dict[str, str]:
    """Paths of all pictures by name."""
    folders = [folder, folder / "images", *sorted(folder.glob("images_*/images"))]
    return {path.name: str(path) for part in folders if part.is_dir() for path in part.glob("*.png")}


def _regions(path: str, boxes) -> list[dict]:
    """In pixels of the picture on the disk, which may be smaller than the published one."""
    if not boxes:
        return []
    published = (_SIDE, _SIDE)
    size = picture_size({"bytes": None, "path": path}) or published
    return [
        {"finding": name, "phrase": name.replace("_", " "), "box": scaled_box(box, published, size)}
        for name, box in boxes
    ]


RECORD = DatasetRecord(
    name="chestxray14",
    load=chestxray14,
    title="ChestX-ray14",
    address="https://nihcc.app.box.com/v/ChestXray-NIHCC",
    licence="free use with the citation and the link that the NIH asks for",
    access="from the NIH Clinical Center, under its terms of use",
    id_patterns={"an image of ChestX-ray14": rf"{ID_START}\d{{8}}_\d{{3}}{ID_END}"},
    findings=LABELS,
)
