# Licensed under the Apache License, Version 2.0.
"""ChestX-ray14 (NIH) with the boxes of its findings."""

import os
from collections import defaultdict
from pathlib import Path

import pandas as pd
from datasets import Dataset

from .chestxray14_parquet import BOX_NAMES, LABELS, SIDE, chestxray14_from_parquet, regions
from .columns import check_split, check_subjects, make_pairs, pair_features
from .parquet import has_parquet, is_hub_name
from .record import ID_END, ID_START, DatasetRecord
from .tables import (
    FALLBACK,
    find_table,
    good_rows,
    need_folder,
    read_table,
    skip_rows,
    text_lines,
    to_numbers,
    warn_skipped,
)


_TABLES = ["Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv"]
_BOXES = "BBox_List_2017.csv"
_BOX_COLUMNS = ("Bbox [x", "y", "w", "h]")
_LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}


def chestxray14(
    split: str = "test",
    data_dir: str | os.PathLike | None = None,
    with_boxes: bool = False,
    max_images: int | None = None,
) -> Dataset:
    """
    Radiographs of ChestX-ray14 with its 14 labels and "No Finding", 1 or 0, and `regions` where boxes were drawn;
    there are no texts. The phrase of a box is the finding's name. Images that are missing are skipped with a warning
    that counts them.

    Args:
        split: "train" (`train_val_list.txt`) or "test" (`test_list.txt`).
        data_dir: folder with `Data_Entry_2017.csv`, `BBox_List_2017.csv`, the lists, and the images beside them, in
            `images`, or in `images_001/images` and so on; or a folder with Parquet files; or the name of such a data
            set on the Hub, "timm/nih-chest-xray-14".
        with_boxes: whether to take the images with boxes alone.
        max_images: the first so many images of the split, for a first look; from the Hub, no more is downloaded.

    Raises:
        ValueError: for an unknown option, a missing file or column, too many bad rows (file, line), or subjects in
            two splits.
    """
    check_split("chestxray14", split, _LISTS)
    if max_images is not None and max_images < 1:
        raise ValueError(f"chestxray14: max_images must be at least 1; got {max_images}.")
    source = os.fspath(data_dir or "")
    if is_hub_name(source) or (os.path.isdir(source) and has_parquet(Path(source))):
        return chestxray14_from_parquet(source, split, with_boxes, max_images)
    what = f"the folder with {_TABLES[0]} and the images, or with Parquet files, or timm/nih-chest-xray-14"
    folder = need_folder(RECORD, data_dir, what)
    table = _listed(folder, split)
    boxes = _boxes(folder)
    if with_boxes:
        table = table[table["Image Index"].isin(boxes)]
    if table.empty:
        raise ValueError(f"chestxray14: no image of {folder} is of the split {split!r} with with_boxes {with_boxes}.")
    table = _with_paths(folder, table.iloc[:max_images])
    columns = {
        "image": table["path"].tolist(),
        "subject_id": table["Patient ID"].tolist(),
        "study_id": [name.rsplit(".", 1)[0] for name in table["Image Index"]],
        "image_id": table["Image Index"].tolist(),
        "view": table["View Position"].tolist(),
        "labels": [{label: float(label in names) for label in LABELS} for names in table["names"]],
        "regions": [_regions(path, boxes.get(name, [])) for name, path in zip(table["Image Index"], table["path"])],
    }
    return make_pairs(columns, pair_features(LABELS, ids="string", regions=True))


def _listed(folder: Path, split: str) -> pd.DataFrame:
    """The rows of the images that the list of the split names, with the set of their `names`."""
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
    return table[table["Image Index"].isin(lists[split])]


def _with_paths(folder: Path, table: pd.DataFrame) -> pd.DataFrame:
    """The rows whose picture exists, with its `path`."""
    paths = _pictures(folder)
    table = table.assign(path=table["Image Index"].map(paths))
    missing = table["path"].isna()
    if missing.all():
        raise ValueError(
            f"chestxray14: none of {len(table)} images was found; looked for {table['Image Index'].iloc[0]} in "
            f"{folder} and its folders images and images_*/images."
        )
    return skip_rows(table, missing, "chestxray14", "the file is missing", "Image Index")


def _names(folder: Path, file: str) -> set[str]:
    if not (folder / file).is_file():
        raise ValueError(f"In the folder {folder} there is no {file}.")
    return {name for line in text_lines(folder / file, fallback=FALLBACK) for name in line.split()}


def _boxes(folder: Path) -> dict[str, list[tuple[str, list[float]]]]:
    """For each image: finding, and x_min, y_min, x_max, y_max in published pixels."""
    path = find_table(folder, [_BOXES])
    table = read_table(path, ("Image Index", "Finding Label", *_BOX_COLUMNS))
    table["finding"] = table["Finding Label"].replace(BOX_NAMES)
    unknown = ~table["finding"].isin(LABELS)
    known = f"known are {list(LABELS)}."
    table = good_rows(table, unknown, path, lambda i: f"unknown Finding Label {table.loc[i, 'finding']!r}; {known}")
    numbers = to_numbers(table, _BOX_COLUMNS, path)
    x, y, width, height = (numbers[name] for name in _BOX_COLUMNS)
    outside = (width <= 0) | (height <= 0) | (x <= -width) | (x >= SIDE) | (y <= -height) | (y >= SIDE)
    reason = f"the box lies outside of the {SIDE} x {SIDE} pixels, or is empty."
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


def _regions(path: str, boxes: list) -> list[dict]:
    return regions({"bytes": None, "path": path}, boxes)


RECORD = DatasetRecord(
    name="chestxray14",
    load=chestxray14,
    title="ChestX-ray14",
    folders=("chestx-ray14*", "chestx-ray8*", "chestxray*", "nih-chest*", "cxr8", "nih"),
    files=((*_TABLES, "*.parquet", "data/*.parquet", "default/*.parquet"),),
    address="https://nihcc.app.box.com/v/ChestXray-NIHCC",
    licence="free use with the citation and the link that the NIH asks for",
    access="from the NIH Clinical Center, under its terms of use",
    id_patterns={"an image of ChestX-ray14": rf"{ID_START}\d{{8}}_\d{{3}}{ID_END}"},
    findings=LABELS,
)
