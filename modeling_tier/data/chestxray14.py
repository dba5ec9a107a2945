# Licensed under the Apache License, Version 2.0.
"""ChestX-ray14 (NIH) with the boxes of its findings."""

import os
from collections import defaultdict
from pathlib import Path

from datasets import Dataset

from .columns import check_split, check_subjects, make_pairs, pair_features
from .pictures import picture_size, scaled_box
from .tables import file_line, find_table, leave_out, need_folder, read_table, to_numbers, warn_left_out


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
    there are no texts. The phrase of a box is the finding's name. Images that are not there are left out with a
    warning that counts them.

    Args:
        split: "train" (`train_val_list.txt`) or "test" (`test_list.txt`).
        data_dir: folder with `Data_Entry_2017.csv`, `BBox_List_2017.csv`, the lists, and the images beside them, in
            `images`, or in `images_001/images` and so on.
        with_boxes: whether to take the images with boxes alone.

    Raises:
        ValueError: for an unknown option, a missing file or column, an unknown finding or a bad box (file, line), or
            subjects in two splits.
    """
    check_split("chestxray14", split, _LISTS)
    folder = need_folder("chestxray14", data_dir, f"the folder with {_TABLES[0]} and the images")
    path = find_table(folder, _TABLES)
    table = read_table(path, ("Image Index", "Finding Labels", "Patient ID", "View Position"), ("Follow-up #",))
    table["line"] = table.index + 2
    named = table["Finding Labels"].map(lambda text: frozenset(name.strip() for name in text.split("|")))
    wrong = named.map(lambda names: not names <= set(LABELS))
    if wrong.any():
        row = table[wrong].iloc[0]
        raise ValueError(
            f"{path}, line {row['line']}: Finding Labels must be of {list(LABELS)}, joined by |; got "
            f"{row['Finding Labels']!r}."
        )
    table["names"] = named
    twice = table.duplicated("Image Index")
    table = leave_out(table, twice, "chestxray14", f"an image twice in {path.name}", "line")
    lists = {name: _names(folder, file) for name, file in _LISTS.items() if name == split or (folder / file).is_file()}
    subject = table.set_index("Image Index")["Patient ID"]
    check_subjects(str(folder), {name: subject.reindex(list(images)).dropna() for name, images in lists.items()})
    unknown = lists[split] - set(table["Image Index"])
    warn_left_out("chestxray14", len(unknown), len(lists[split]), f"not in {path.name}", min(unknown, default=""))
    table = table[table["Image Index"].isin(lists[split])]
    boxes = _boxes(folder)
    if with_boxes:
        table = table[table["Image Index"].isin(boxes)]
    if table.empty:
        raise ValueError(f"chestxray14: no image of {path} is of the split {split!r} with with_boxes {with_boxes}.")
    places = _pictures(folder)
    lost = ~table["Image Index"].isin(places)
    if lost.all():
        raise ValueError(
            f"none of {len(table)} images is there; looked for {table['Image Index'].iloc[0]} in {folder} "
            "and its folders images and images_*/images."
        )
    table = leave_out(table, lost, "chestxray14", "the file is missing", "Image Index")
    columns = {
        "image": [places[name] for name in table["Image Index"]],
        "subject_id": table["Patient ID"].tolist(),
        "study_id": [name.rsplit(".", 1)[0] for name in table["Image Index"]],
        "image_id": table["Image Index"].tolist(),
        "view": table["View Position"].tolist(),
        "labels": [{label: float(label in names) for label in LABELS} for names in table["names"]],
        "regions": [_regions(places[name], boxes.get(name, ())) for name in table["Image Index"]],
    }
    return make_pairs(columns, pair_features(LABELS, ids="string", regions=True))


def _names(folder: Path, file: str) -> set[str]:
    if not (folder / file).is_file():
        raise ValueError(f"In the folder {folder} there is no {file}.")
    return set((folder / file).read_text().split())


def _boxes(folder: Path) -> dict[str, list[tuple[str, list[float]]]]:
    """Of each image: finding, and x_min, y_min, x_max, y_max in published pixels."""
    path = find_table(folder, [_BOXES])
    table = read_table(path, ("Image Index", "Finding Label", *_BOX_COLUMNS))
    names = table["Finding Label"].replace(_BOX_NAMES)
    unknown = ~names.isin(LABELS)
    if unknown.any():
        row, line = file_line(table, unknown)
        raise ValueError(f"{path}, line {line}: unknown Finding Label {names.iloc[row]!r}; known are {list(LABELS)}.")
    boxes = defaultdict(list)
    numbers = to_numbers(table, _BOX_COLUMNS, path)
    rows = zip(table.index + 2, table["Image Index"], names, numbers.to_numpy().tolist())
    for line, image, name, (x, y, width, height) in rows:
        if width <= 0 or height <= 0 or not (-width < x < _SIDE and -height < y < _SIDE):
            raise ValueError(
                f"{path}, line {line}: the box lies outside of the {_SIDE} x {_SIDE} pixels, or is empty."
            )
        boxes[image].append((name, [x, y, x + width, y + height]))
    return dict(boxes)


def _pictures(folder: Path) -> dict[str, str]:
    """Paths of all pictures by name."""
    folders = [folder, folder / "images", *sorted(folder.glob("images_*/images"))]
    return {path.name: str(path) for place in folders if place.is_dir() for path in place.glob("*.png")}


def _regions(path: str, boxes) -> list[dict]:
    """In pixels of the picture as it is, which may have been made smaller."""
    if not boxes:
        return []
    whole = (_SIDE, _SIDE)
    size = picture_size({"bytes": None, "path": path}) or whole
    return [
        {"finding": name, "phrase": name.replace("_", " "), "box": scaled_box(box, whole, size)} for name, box in boxes
    ]
