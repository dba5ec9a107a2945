# Licensed under the Apache License, Version 2.0.
"""CheXpert v1.0, full size or small, with the radiologists' reads of its test set."""

import os
import re
from pathlib import Path

import pandas as pd
from datasets import Dataset, Value

from .columns import CHEXPERT_LABELS, VIEWS, check_choice, check_split, check_subjects, make_pairs, pair_features
from .tables import (
    file_line,
    find_table,
    inside,
    label_dicts,
    leave_out,
    need_folder,
    read_table,
    to_labels,
    warn_left_out,
)


BY = ("image", "study")

_TABLES = {
    "train": ["train.csv"],
    "validation": ["valid.csv", "val_labels.csv"],
    "test": ["test_labels.csv", "groundtruth.csv"],
}
_ARCHIVES = ("", "CheXpert-v1.0", "CheXpert-v1.0-small", "CheXpert")
_READS = ("radiologists/benchmark_radiologists", "radiologists")
# The part of a path behind the archive's own name, which the user's folder need not have.
_PATH = re.compile(r"(?:^|/)((?:train|valid|val|test)/(patient\d+)/(study\d+))(/.*)?$")


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
        data_dir: folder of CheXpert, or the one around it.
        by: "image", or "study": each study that has a frontal image once, with the first one.
        views: "all", or "frontal".
        reads_dir: folder with the csv files of the radiologists who were compared with the truth, one a reader; by
            default `radiologists/benchmark_radiologists` or `radiologists` in `data_dir`, if it is there. Rows of the
            test set then have `reads`: a list of `reader` (the file's name) and `labels`.

    Raises:
        ValueError: for an unknown option, a missing file or column, a value that is no label (file, line, column), a
            test study that a reader has not read, or subjects in two splits.
    """
    check_split("chexpert", split, _TABLES)
    check_choice("chexpert", "by", by, BY)
    check_choice("chexpert", "views", views, VIEWS)
    folder = _root(need_folder("chexpert", data_dir, "the folder of CheXpert"), _TABLES[split])
    table = _images(folder, _TABLES[split])
    _check_subjects(folder)
    studies = set(table["study"])
    there = table["path"].map(lambda path: (folder / path).is_file())
    if not there.any():
        raise ValueError(f"None of the {len(table)} images is there; looked for {folder / table['path'].iloc[0]}.")
    table = leave_out(table, ~there, "chexpert", "the file is missing", "path")
    if views == "frontal" or by == "study":
        table = table[table["frontal"]]
    if by == "study":
        lateral = studies - set(table["study"])
        reason, example = "no frontal image of the study is there", min(lateral, default="")
        warn_left_out("chexpert", len(lateral), len(studies), reason, example)
        table = table.drop_duplicates("study")
    columns = {
        "image": [str(folder / path) for path in table["path"]],
        "subject_id": table["subject"].tolist(),
        "study_id": table["study"].tolist(),
        "image_id": table["path"].tolist(),
        "view": table["view"].tolist(),
        "labels": label_dicts(table[list(CHEXPERT_LABELS)]),
    }
    features = pair_features(CHEXPERT_LABELS, ids="string")
    reads = _reads(folder, reads_dir) if split == "test" else {}
    if reads:
        features["reads"] = [{"reader": Value("string"), "labels": features["labels"]}]
        for path, labels in reads.values():
            unread = set(columns["study_id"]) - set(labels)
            if unread:
                raise ValueError(f"{path} lacks {len(unread)} studies of the test set, such as {min(unread)}.")
        columns["reads"] = [
            [{"reader": reader, "labels": labels[study]} for reader, (_, labels) in reads.items()]
            for study in columns["study_id"]
        ]
    return make_pairs(columns, features)


def _root(folder: Path, names: list[str]) -> Path:
    """The folder itself or the archive's in it, whichever has the table."""
    for archive in _ARCHIVES:
        if any((folder / archive / f"{name}{end}").is_file() for name in names for end in ("", ".gz")):
            return folder / archive
    find_table(folder, names)  # raises, and says what was looked for
    raise AssertionError


def _images(folder: Path, names: list[str]) -> pd.DataFrame:
    """A row each: path, subject, study, view, frontal and the labels."""
    path = find_table(folder, names)
    table = read_table(path, CHEXPERT_LABELS, ("Path", "Study", "AP/PA"))
    column = next((name for name in ("Path", "Study") if name in table.columns), None)
    if column is None:
        raise ValueError(f"{path} has no column 'Path' or 'Study'; its columns are {list(table.columns)}.")
    parts = table[column].map(lambda text: _PATH.search(text.replace("\\", "/")))
    if parts.isna().any():
        row, line = file_line(table, parts.isna())
        raise ValueError(
            f"{path}, line {line}: {column} must be like CheXpert-v1.0/test/patient64741/study1/view1_frontal.jpg "
            f"(of a study without the file); got {table[column].iloc[row]!r}."
        )
    images = to_labels(table, CHEXPERT_LABELS, path)
    images["subject"] = [part[2] for part in parts]
    images["study"] = [f"{part[2]}/{part[3]}" for part in parts]
    images["path"] = [part[1] + (part[4] or "") for part in parts]
    images["view"] = table["AP/PA"] if "AP/PA" in table else ""
    if column == "Study":
        # Every image of a study has its labels.
        images["path"] = [sorted(_listed(folder, study)) or [f"{study}/view1_frontal.jpg"] for study in images["path"]]
        images = images.explode("path")
    else:
        for line, relative in zip(images.index + 2, images["path"]):
            inside(folder, relative, f"{path}, line {line}")
    images["frontal"] = images["path"].str.contains("frontal")
    unknown = images["view"] == ""
    images.loc[unknown, "view"] = images["frontal"][unknown].map({True: "FRONTAL", False: "LATERAL"})
    images = leave_out(images, images.duplicated("path"), "chexpert", f"an image twice in {path.name}", "path")
    return images.sort_values(["study", "path"], kind="stable", ignore_index=True)


def _listed(folder: Path, study: str) -> list[str]:
    return [f"{study}/{file.name}" for file in (folder / study).glob("*.jpg")]


def _check_subjects(folder: Path) -> None:
    """Over all the tables that are there."""
    subjects = {}
    for split, names in _TABLES.items():
        paths = [path for name in names for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
        if paths:
            table = read_table(paths[0], (), ("Path", "Study"))
            subjects[split] = table.iloc[:, 0].str.extract(r"(patient\d+)")[0].dropna()
    check_subjects(str(folder), subjects)


def _reads(folder: Path, reads_dir) -> dict[str, tuple[Path, dict]]:
    """By reader: file, and labels by study."""
    if reads_dir is None:
        found = [folder / name for name in _READS if list((folder / name).glob("*.csv"))]
        if not found:
            return {}
        reads_dir = found[0]
    files = sorted(Path(reads_dir).glob("*.csv"))
    if not files:
        raise ValueError(f"chexpert: there is no csv file in {reads_dir} (reads_dir).")
    reads = {}
    for file in files:
        table = read_table(file, ("Study", *CHEXPERT_LABELS))
        labels = label_dicts(to_labels(table, CHEXPERT_LABELS, file))
        studies = ["/".join(study.replace("\\", "/").split("/")[-2:]) for study in table["Study"]]
        reads[file.stem] = file, dict(zip(studies, labels))
    return reads
