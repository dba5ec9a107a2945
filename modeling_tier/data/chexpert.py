# Licensed under the Apache License, Version 2.0.
"""CheXpert v1.0, full size or small, with the radiologists' annotations of its test set."""

import os
import re
from pathlib import Path

import pandas as pd
from datasets import Dataset, Value

from .columns import CHEXPERT_LABELS, VIEWS, check_choice, check_split, check_subjects, make_pairs, pair_features
from .record import ID_START, DatasetRecord
from .tables import (
    find_table,
    good_rows,
    inside,
    label_dicts,
    listed,
    need_folder,
    read_table,
    skip_rows,
    to_labels,
    warn_skipped,
)


BY = ("image", "study")

_TABLES = {
    "train": ["train.csv"],
    "validation": ["valid.csv", "val_labels.csv"],
    "test": ["test_labels.csv", "groundtruth.csv"],
}
_IMAGE_FOLDERS = {"train": ("train",), "validation": ("valid", "val"), "test": ("test",)}
# Folders of the download: in one archive, or in parts, all in one folder.
_ARCHIVES = ("", "CheXpert-v1.0", "CheXpert-v1.0-small", "CheXpert")
_PARTS = "CheXpert-v1.0 batch *"
_READERS = ("radiologists/benchmark_radiologists", "radiologists")
# Split, patient, study and file. Before them is the archive's own name, which the user's folder need not have.
_PATH = re.compile(r"^(?!.*\.\.)(?:.*/)?(?:(train|valid|val|test)/)?(patient\d+)/(study\d+)(?:/(.*))?$")


def chexpert(
    split: str = "test",
    data_dir: str | os.PathLike | None = None,
    by: str = "image",
    views: str = "all",
    reads_dir: str | os.PathLike | None = None,
) -> Dataset:
    """
    Radiographs of CheXpert with its 14 labels; there are no texts.

    Args:
        split: "train", "validation" (`valid.csv`, 200 studies) or "test" (500 studies; `test_labels.csv` by image, or
            `groundtruth.csv` by study).
        data_dir: folder of CheXpert, or the one around it; or the folder with the parts of the download,
            "CheXpert-v1.0 batch 1 (validate & csv)", "CheXpert-v1.0 batch 2 (train 1)" and so on.
        by: "image", or "study": each study that has a frontal image once, with the first one.
        views: "all", or "frontal".
        reads_dir: folder with the csv files of the radiologists who were compared with the ground truth, one per
            reader; by default `radiologists/benchmark_radiologists` or `radiologists` in `data_dir`, if it exists.
            Rows of the test set then have `reads`: a list of `reader` (the file's name) and `labels`.

    Raises:
        ValueError: for an unknown option, a missing file or column, too many bad rows (file, line, column), a test
            study that a reader has not annotated, or subjects in two splits.
    """
    check_split("chexpert", split, _TABLES)
    check_choice("chexpert", "by", by, BY)
    check_choice("chexpert", "views", views, VIEWS)
    folder = need_folder(RECORD, data_dir, "the folder of CheXpert")
    folder = table_folder([*(folder / name for name in _ARCHIVES), *sorted(folder.glob(_PARTS))], _TABLES[split])
    table = image_rows(folder, split, _TABLES[split])
    _check_subjects(folder)
    columns = image_columns(_chosen(table, by, views))
    features = pair_features(CHEXPERT_LABELS, ids="string")
    readers = _readers(folder, reads_dir) if split == "test" else {}
    if readers:
        features["reads"] = [{"reader": Value("string"), "labels": features["labels"]}]
        columns["reads"] = _annotations(readers, columns["study_id"])
    return make_pairs(columns, features)


def table_folder(candidates: list[Path], names: list[str]) -> Path:
    """The first of the folders that has one of the tables; if none has, the first, where reading them then fails."""
    files = [name + end for name in names for end in ("", ".gz")]
    return next((folder for folder in candidates if any((folder / file).is_file() for file in files)), candidates[0])


def image_rows(folder: Path, split: str, tables: list[str]) -> pd.DataFrame:
    """
    One row per image of the first of the tables that exists: path, image_id, subject, study, file, view, frontal and
    the labels.
    """
    path = find_table(folder, tables)
    table = read_table(path, CHEXPERT_LABELS, ("Path", "Study", "AP/PA"))
    column = next((name for name in ("Path", "Study") if name in table.columns), None)
    if column is None:
        raise ValueError(f"{path} has no column 'Path' or 'Study'; its columns are {listed(table.columns)}.")
    parts = table[column].map(lambda text: _PATH.match(text.replace("\\", "/")))
    expected = (
        f"{column} must be like CheXpert-v1.0/test/patient64741/study1/view1_frontal.jpg (of a study without the file)"
    )
    table = good_rows(table, parts.isna(), path, lambda i: f"{expected}; got {table.loc[i, column]!r}.")
    if table.empty:
        raise ValueError(f"{path} has no rows.")
    images = to_labels(table, CHEXPERT_LABELS, path)
    table, parts = table.loc[images.index], parts.loc[images.index]
    images["view"] = table["AP/PA"] if "AP/PA" in table else ""
    images["subject"] = [part[2] for part in parts]
    images["study"] = [f"{part[2]}/{part[3]}" for part in parts]
    patients = _patient_folders(folder, _IMAGE_FOLDERS[split])
    names = [part[1] or _IMAGE_FOLDERS[split][0] for part in parts]
    images["folder"] = [patients.get(part[2], folder / name / part[2]) / part[3] for name, part in zip(names, parts)]
    images["split"] = names
    if column == "Study":
        # Every image of a study has its labels.
        images["file"] = [_files(study) or ["view1_frontal.jpg"] for study in images["folder"]]
        images = images.explode("file")
    else:
        images["file"] = [part[4] or "" for part in parts]
        for line, file in zip(images.index + 2, images["file"]):
            inside(folder, file or ".", f"{path}, line {line}")
    images["image_id"] = images["split"] + "/" + images["study"] + "/" + images["file"]
    images["path"] = [str(study / file) for study, file in zip(images["folder"], images["file"])]
    images["frontal"] = images["file"].str.contains("frontal")
    unknown = images["view"] == ""
    images.loc[unknown, "view"] = images["frontal"][unknown].map({True: "FRONTAL", False: "LATERAL"})
    duplicate = images.duplicated("image_id")
    images = skip_rows(images, duplicate, "chexpert", f"an image twice in {path.name}", "image_id")
    return images.sort_values(["study", "image_id"], kind="stable", ignore_index=True)


def image_columns(table: pd.DataFrame) -> dict[str, list]:
    """The columns of the pairs, from rows of [`image_rows`]."""
    return {
        "image": table["path"].tolist(),
        "subject_id": table["subject"].tolist(),
        "study_id": table["study"].tolist(),
        "image_id": table["image_id"].tolist(),
        "view": table["view"].tolist(),
        "labels": label_dicts(table[list(CHEXPERT_LABELS)]),
    }


def with_files(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of [`image_rows`] whose file exists; the others are skipped, unless there is no other."""
    missing = ~table["path"].map(os.path.isfile)
    if missing.all():
        looked = f"; looked for {table['path'].iloc[0]}" if len(table) else ""
        raise ValueError(f"{name}: none of the {len(table)} images was found{looked}.")
    return skip_rows(table, missing, name, "the file is missing", "image_id")


def _chosen(table: pd.DataFrame, by: str, views: str) -> pd.DataFrame:
    """The rows of [`image_rows`] whose file exists, of the views that are wanted, each or one per study."""
    studies = set(table["study"])
    table = with_files(table, "chexpert")
    if views == "frontal" or by == "study":
        table = table[table["frontal"]]
    if by == "study":
        lateral = studies - set(table["study"])
        reason, example = "no frontal image of the study was found", min(lateral, default="")
        warn_skipped("chexpert", len(lateral), len(studies), reason, example)
        table = table.drop_duplicates("study")
    return table


def _files(study: Path) -> list[str]:
    return sorted(file.name for file in study.glob("*.jpg"))


def _patient_folders(root: Path, names: tuple[str, ...]) -> dict[str, Path]:
    """
    Where each patient's studies are: in a folder called after the split, in the root or in a part of the download. The
    parts with training images have no such folder.
    """
    parts = sorted({*root.glob(_PARTS), *(root.parent.glob(_PARTS) if root.name.startswith(_PARTS[:-1]) else ())})
    patients: dict[str, Path] = {}
    for part in (root, *parts):
        for folder in (*(part / name for name in names), *([part] if part in parts else [])):
            if folder.is_dir():
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.name.startswith("patient"):
                            patients.setdefault(entry.name, folder / entry.name)
    return patients


def _check_subjects(folder: Path) -> None:
    """Over all the tables that exist."""
    subjects = {}
    for split, names in _TABLES.items():
        paths = [path for name in names for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
        if paths:
            table = read_table(paths[0], (), ("Path", "Study"))
            if not len(table.columns):
                raise ValueError(f"{paths[0]} has no column 'Path' or 'Study'.")
            subjects[split] = table.iloc[:, 0].str.extract(r"(patient\d+)")[0].dropna()
    check_subjects(str(folder), subjects)


def _readers(folder: Path, reads_dir) -> dict[str, tuple[Path, dict]]:
    """For each reader: file, and labels by study."""
    if reads_dir is None:
        folders = [folder / name for name in _READERS if list((folder / name).glob("*.csv"))]
        if not folders:
            return {}
        reads_dir = folders[0]
    files = sorted(file for file in Path(reads_dir).glob("*.csv") if file.is_file())
    if not files:
        raise ValueError(f"chexpert: there is no csv file in {reads_dir} (reads_dir).")
    readers = {}
    for file in files:
        table = read_table(file, ("Study", *CHEXPERT_LABELS))
        labels = to_labels(table, CHEXPERT_LABELS, file)
        studies = ["/".join(study.replace("\\", "/").split("/")[-2:]) for study in table.loc[labels.index, "Study"]]
        readers[file.stem] = file, dict(zip(studies, label_dicts(labels)))
    return readers


def _annotations(readers: dict[str, tuple[Path, dict]], studies: list[str]) -> list[list[dict]]:
    """For each study what each reader says of it."""
    for path, labels in readers.values():
        unread = set(studies) - set(labels)
        if unread:
            raise ValueError(f"{path} lacks {len(unread)} studies of the test set, such as {min(unread)}.")
    return [
        [{"reader": reader, "labels": labels[study]} for reader, (_, labels) in readers.items()] for study in studies
    ]


RECORD = DatasetRecord(
    name="chexpert",
    load=chexpert,
    title="CheXpert",
    folders=("chexpert*", "chexlocalize*", "."),
    files=(tuple(f"{part}{name}" for part in ("", "CheXpert*/") for name in _TABLES["test"]),),
    address="https://stanfordmlgroup.github.io/competitions/chexpert/",
    licence="Stanford University Dataset Research Use Agreement",
    access="registration with Stanford AIMI, under a research use agreement",
    id_patterns={"a patient of CheXpert": rf"(?i){ID_START}patient_?\d{{4,}}"},
    findings=CHEXPERT_LABELS,
)
