# Licensed under the Apache License, Version 2.0.
"""
MIMIC-CXR-JPG 2.0.0 and 2.1.0 with its reports, raw as they are published, or as `prepare` has written them.

    python -m modeling_tier.data prepare mimic_cxr --data_dir /data/mimic-cxr-jpg --output_dir /data/mimic-cxr-320
"""

import os
import re
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from datasets import Dataset
from sklearn.model_selection import GroupShuffleSplit

from .columns import (
    CHEXPERT_LABELS,
    SPLITS,
    VIEWS,
    check_choice,
    check_split,
    check_subjects,
    make_pairs,
    pair_features,
)
from .prepared import is_prepared, load_prepared, preparation
from .record import ID_END, ID_START, DatasetRecord
from .rejected import RejectedRow, note_rejected, reject
from .sections import SECTIONS, report_text, unknown_headings
from .tables import file_line, find_table, good_rows, label_dicts, need_folder, read_table, to_integers, to_labels


SPLIT_RULES = ("official", "paper")
LABELERS = ("chexpert", "negbio", "radiologist")

DEFAULTS = {"section": "impression", "split_by": "official", "views": "all", "labeler": "chexpert"}
FEATURES = pair_features(CHEXPERT_LABELS)

_VERSIONS = ("2.1.0", "2.0.0")
_OFFICIAL = {"train": "train", "validate": "validation", "test": "test"}
_DICOM_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]*")
# In the radiologists' table a finding has another name.
_RADIOLOGIST_NAMES = {"Airspace Opacity": "Lung Opacity"}
MAX_REPORT_BYTES = 1 << 20  # a hundred times the longest report


def mimic_cxr(
    split: str = "train",
    data_dir: str | os.PathLike | None = None,
    reports_dir: str | os.PathLike | None = None,
    reports: str | os.PathLike | None = None,
    section: str | None = None,
    split_by: str | None = None,
    views: str | None = None,
    labeler: str | None = None,
    exclude_subjects: str | os.PathLike | None = None,
) -> Dataset:
    """
    Radiographs of MIMIC-CXR-JPG with the text of their report. Rows without text are skipped, with a warning that
    counts them.

    Args:
        split: "train", "validation" or "test".
        data_dir: folder with `files/` and the tables `mimic-cxr-2.0.0-*.csv(.gz)`, or one that `prepare` has written,
            which is read much faster. What is chosen below must then be what it was prepared with, and is by default;
            only from all views one can still go to the frontal ones.
        reports_dir: folder of the reports (with `files/` or `p10/` in it), if they are not in `data_dir`.
        reports: or their zip file.
        section: as in [`~data.sections.report_text`]; default "impression".
        split_by: "official" (the default), or "paper": 10% of the subjects for validation by scikit-learn's
            GroupShuffleSplit with random_state 1, over the images that have labels, as the authors of arXiv 2212.06710
            did. It is the same for all `views` and labelers. Subjects without any label are of its training part; it
            has no test part.
        views: "all" (the default), or "frontal" (AP and PA).
        labeler: "chexpert" (the default), "negbio", or "radiologist" (2.1.0, the labelled part of the test set).
        exclude_subjects: csv file of an evaluation set, such as MS-CXR's, whose patients are skipped in "train" and
            "validation". It names them in a column `subject_id`, or in `path`, as files/p10/p10000032/...

    Raises:
        ValueError: for an unknown option, a missing file (what was looked for, and where), too many bad rows (file,
            line, column), or subjects in two splits.
    """
    check_split("mimic_cxr", split)
    chosen = {"section": section, "split_by": split_by, "views": views, "labeler": labeler}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    _check(data_dir, **DEFAULTS | chosen)
    folder = Path(data_dir)
    excluded = _subjects_of(Path(exclude_subjects)) if exclude_subjects and split != "test" else set()
    if is_prepared(folder):
        pairs = _prepared(folder, split, chosen, reports_dir or reports)
        if not excluded:
            return pairs
        out = np.isin(pairs["subject_id"][:], list(excluded))
        _warn_excluded(out, split, exclude_subjects)
        return pairs.select(np.flatnonzero(~out))
    return _raw(folder, split, DEFAULTS | chosen, (reports_dir, reports), (excluded, exclude_subjects))


def _raw(folder: Path, split: str, chosen: dict[str, str], reports: tuple, excluded: tuple) -> Dataset:
    """
    The pairs of a folder as it is published.

    Args:
        reports: folder and zip file of the reports, or None.
        excluded: subjects, and the file that names them.
    """
    section, split_by, views, labeler = chosen.values()
    table, rejected = image_table(folder, split_by, views, labeler)
    _warn_rejected([row for row in rejected if row["split"] == split], split)
    warnings.warn(
        f"{folder} is read raw: every image is decoded at full size in each epoch. For more than a try, prepare it "
        "once: python -m modeling_tier.data prepare mimic_cxr --help",
        stacklevel=2,
    )
    table = table[table["split"] == split]
    out = table["subject_id"].isin(excluded[0])
    _warn_excluded(out, split, excluded[1])
    table = table[~out]
    if table.empty:
        raise ValueError(f"mimic_cxr: no image of {folder} is in the split {split!r} by split_by {split_by!r}.")
    source = find_reports(folder, *reports, table)
    texts, reasons = source.texts(table, section)
    _skip_without_text(table, texts, reasons, source, split, section)
    rows = table[table["study_id"].map(texts) != ""]
    images = [str(folder / path) for path in map(image_path, rows["subject_id"], rows["study_id"], rows["dicom_id"])]
    return make_pairs(pair_columns(rows.assign(text=rows["study_id"].map(texts)), images), FEATURES)


def _warn_rejected(rejected: list[dict], split: str) -> None:
    if rejected:
        warnings.warn(
            f"mimic_cxr: {len(rejected)} rows of {split} skipped, such as {rejected[0]['path']}: "
            f"{rejected[0]['reason']}.",
            stacklevel=3,
        )
        note_rejected([RejectedRow("mimic_cxr", row["path"], row["reason"]) for row in rejected])


def pair_columns(rows: pd.DataFrame, images: list) -> dict[str, list]:
    """The columns of `FEATURES` from rows of [`image_table`] with their `text`."""
    return {
        "image": images,
        "text": rows["text"].tolist(),
        "subject_id": rows["subject_id"].tolist(),
        "study_id": rows["study_id"].tolist(),
        "image_id": rows["dicom_id"].tolist(),
        "view": rows["view"].tolist(),
        "labels": label_dicts(rows[list(CHEXPERT_LABELS)]),
    }


def image_path(subject_id: int, study_id: int, dicom_id: str) -> str:
    """Of an image, from the folder of MIMIC-CXR-JPG."""
    return f"files/p{str(subject_id)[:2]}/p{subject_id}/s{study_id}/{dicom_id}.jpg"


def image_table(folder: Path, split_by: str, views: str, labeler: str) -> tuple[pd.DataFrame, list[dict]]:
    """
    All images, one row per image, those of a study beside each other: dicom_id, subject_id, study_id, split, view and
    the labels (NaN where nothing is said).

    Returns:
        the table, and what was rejected on the way, as dictionaries with the keys `split`, `path`, `reason`.

    Raises:
        ValueError: as [`mimic_cxr`].
    """
    table, split_path = _split_table(folder)
    table, rejected = _reject(table, split_path)

    metadata_path = find_table(folder, [f"mimic-cxr-{version}-metadata.csv" for version in _VERSIONS])
    metadata = read_table(metadata_path, ("dicom_id", "ViewPosition")).drop_duplicates("dicom_id")
    table["view"] = table["dicom_id"].map(metadata.set_index("dicom_id")["ViewPosition"])
    unknown = table["view"].isna()
    if unknown.any():
        warnings.warn(
            f"{metadata_path} lacks {unknown.sum()} of {len(table)} images, such as "
            f"{table['dicom_id'][unknown].iloc[0]}: their view is unknown.",
            stacklevel=2,
        )
    table["view"] = table["view"].fillna("")
    if split_by == "paper":
        table["split"] = _papers_split(folder, table)
    if views == "frontal":
        frontal = table["view"].isin(("AP", "PA"))
        if not frontal.any():
            raise ValueError(f"{metadata_path}: no image has the ViewPosition AP or PA, for views 'frontal'.")
        table = table[frontal]
    table = table.merge(_labels(folder, labeler), on="study_id", how="left", indicator="labelled")
    labelled = table.pop("labelled") == "both"
    if labeler == "radiologist":
        table = table[labelled]
    check_subjects(str(split_path), {s: table.loc[table["split"] == s, "subject_id"] for s in SPLITS})
    table = table.sort_values(["subject_id", "study_id", "dicom_id"], ignore_index=True)
    return table.drop(columns="line"), rejected


def _papers_split(folder: Path, table: pd.DataFrame) -> pd.Series:
    """
    "train" or "validation" of each image. It is drawn from all images with CheXpert labels whatever else is chosen:
    otherwise a patient would be in one part for all views, and in the other for the frontal ones.
    """
    subjects = table["subject_id"][table["study_id"].isin(_labels(folder, "chexpert")["study_id"])]
    if subjects.nunique() < 2:
        raise ValueError(
            f"{find_table(folder, _label_tables('chexpert'))}: split_by 'paper' needs at least two subjects with "
            f"labels; it has those of {subjects.nunique()}. Use split_by 'official', or the published table."
        )
    splitter = GroupShuffleSplit(n_splits=1, test_size=0.1, random_state=1)
    _, held_out = next(splitter.split(subjects, groups=subjects))
    # Studies without labels go with their subject.
    return table["subject_id"].isin(subjects.iloc[held_out]).map({True: "validation", False: "train"})


def _split_table(folder: Path) -> tuple[pd.DataFrame, Path]:
    """The official split as its file has it, with the number of the line."""
    split_path = find_table(folder, [f"mimic-cxr-{version}-split.csv" for version in _VERSIONS])
    table = read_table(split_path, ("dicom_id", "study_id", "subject_id", "split"))
    ids = to_integers(table, ("subject_id", "study_id"), split_path)
    table = table.loc[ids.index].assign(**ids, line=ids.index + 2)
    known = list(_OFFICIAL)
    table = good_rows(
        table,
        ~table["split"].isin(known),
        split_path,
        lambda i: f"split must be one of {known}; got {table.loc[i, 'split']!r}.",
    ).copy()
    table["split"] = table["split"].map(_OFFICIAL)
    return table, split_path


def official_splits(folder: Path) -> dict[str, str]:
    """Our name of the official split by dicom_id; raises as [`mimic_cxr`]."""
    table, _ = _split_table(folder)
    return dict(zip(table["dicom_id"], table["split"]))


def _reject(table: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, list[dict]]:
    """Duplicate rows, and image names that could lead out of the folder. Contradictions are errors."""
    same = table.duplicated(["dicom_id", "study_id", "subject_id", "split"])
    twice = table[~same & table.duplicated("dicom_id")]
    if len(twice):
        row = twice.iloc[0]
        raise ValueError(
            f"{path}, line {row['line']}: the dicom_id {row['dicom_id']} is also on an earlier line, with another "
            "study, subject or split."
        )
    moved = table.groupby("study_id")["subject_id"].transform("first") != table["subject_id"]
    if moved.any():
        row = table[moved].iloc[0]
        raise ValueError(
            f"{path}, line {row['line']}: the study {row['study_id']} is also on an earlier line, with another "
            "subject."
        )
    outside = ~table["dicom_id"].str.fullmatch(_DICOM_ID.pattern)
    rejected = [
        {"split": row.split, "path": image_path(row.subject_id, row.study_id, row.dicom_id), "reason": reason}
        for bad, reason in (
            (same, f"a duplicate row of {path.name}"),
            (outside & ~same, "path leaves the data folder"),
        )
        for row in table[bad].itertuples()
    ]
    return table[~(same | outside)].copy(), rejected


def _label_tables(labeler: str) -> list[str]:
    return [f"mimic-cxr-{version}-{labeler}.csv" for version in _VERSIONS]


def _labels(folder: Path, labeler: str) -> pd.DataFrame:
    """Labels by study_id."""
    if labeler == "radiologist":  # who were not asked for everything
        path = find_table(folder, ["mimic-cxr-2.1.0-test-set-labeled.csv"])
        labels = read_table(path, ["study_id"], [*CHEXPERT_LABELS, *_RADIOLOGIST_NAMES])
        labels = labels.rename(columns=_RADIOLOGIST_NAMES)
    else:
        path = find_table(folder, _label_tables(labeler))
        labels = read_table(path, ["study_id", *CHEXPERT_LABELS])
    names = [name for name in CHEXPERT_LABELS if name in labels.columns]
    if not names:
        raise ValueError(f"{path} has no column of a finding, such as {CHEXPERT_LABELS[0]!r}.")
    studies = to_integers(labels, ["study_id"], path)["study_id"]
    duplicate = studies.duplicated()
    if duplicate.any():
        row, line = file_line(studies, duplicate)
        raise ValueError(f"{path}, line {line}: the study {studies.iloc[row]} is also on an earlier line.")
    values = to_labels(labels.loc[studies.index], names, path)
    values = values.reindex(columns=list(CHEXPERT_LABELS)).astype("float32")
    return values.assign(study_id=studies.loc[values.index])


def _subjects_of(path: Path) -> set[int]:
    """The patients that a csv file of an evaluation set names."""
    if not path.is_file():
        raise ValueError(f"There is no file {path} (exclude_subjects).")
    if path.suffix == ".json":
        raise ValueError(f"{path} (exclude_subjects) must be the csv file, which is published with the json file.")
    table = read_table(path, (), ("subject_id", "path"), limit=0)  # a skipped row would be trained on
    if "subject_id" in table:
        return set(to_integers(table, ["subject_id"], path, limit=0)["subject_id"])
    if "path" not in table:
        raise ValueError(f"{path} (exclude_subjects) has no column 'subject_id' or 'path'.")
    subjects = table["path"].str.extract(r"(?:^|[/\\])p(\d{8})(?:[/\\]|$)")[0]
    if subjects.isna().any():
        row, line = file_line(table, subjects.isna())
        raise ValueError(f"{path}, line {line}: no patient, as p10000032, in the path {table['path'].iloc[row]!r}.")
    return set(subjects.astype("int64"))


def _warn_excluded(out, split: str, path) -> None:
    if out.any():
        warnings.warn(
            f"mimic_cxr: {out.sum()} of {len(out)} images of {split} skipped, whose subjects {path} names.",
            stacklevel=3,
        )


NO_REPORT, UNREADABLE = "the report is missing", "the report cannot be read"


def no_text(section: str) -> str:
    return f"no text for section {section}"


def _skip_without_text(
    table: pd.DataFrame, texts: dict, reasons: dict, source: "Reports", split: str, section: str
) -> None:
    """Count the images whose report gives no text; those whose report cannot be read are bad rows."""
    ids = table[["subject_id", "study_id"]].itertuples(index=False)
    empty = [(source.where(subject, study), study) for subject, study in ids if study in reasons]
    unreadable = [
        RejectedRow("mimic_cxr", path, source.errors[study]) for path, study in empty if study in source.errors
    ]
    reject(unreadable, len(table))
    without = [RejectedRow("mimic_cxr", path, reasons[study]) for path, study in empty if study not in source.errors]
    if without:
        note_rejected(without)
        warnings.warn(
            f"mimic_cxr: {len(without)} of {len(table)} images of {split} skipped: the report is missing or has no "
            f"text for section {section}, such as {without[0].row}.",
            stacklevel=3,
        )


class Reports:
    """The reports of the studies, from a folder or a zip file."""

    def __init__(self, root: Path, prefix: str, archive: zipfile.ZipFile | None = None):
        self.root, self.prefix, self.archive = root, prefix, archive
        self.forget()

    def forget(self) -> None:
        """Begin anew with what is remembered of the reports that were read."""
        self.not_utf8: set[int] = set()  # studies
        self.errors: dict[int, str] = {}  # of studies whose report cannot be read
        self.unknown_headings: Counter[str] = Counter()

    def description(self) -> str:
        """Without the path on this machine; another zip file has another size."""
        return f"{self.root.name}, {self.root.stat().st_size} bytes" if self.archive else "folder"

    def where(self, subject_id: int, study_id: int) -> str:
        return str(self.root / self._name(subject_id, study_id))

    def has(self, subject_id: int, study_id: int) -> bool:
        name = self._name(subject_id, study_id)
        return name in self.archive.NameToInfo if self.archive else (self.root / name).is_file()

    def read(self, subject_id: int, study_id: int) -> str | None:
        """
        The report, or None if there is none. One that is not UTF-8 is read as Windows-1252, and remembered.

        Raises:
            ValueError: if it cannot be read, or is longer than any report.
        """
        name = self._name(subject_id, study_id)
        try:
            # No more than this is unpacked: what the archive says of its sizes need not be true.
            with self.archive.open(name) if self.archive else (self.root / name).open("rb") as file:
                content = file.read(MAX_REPORT_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError, KeyError):
            return None
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:  # RuntimeError: encrypted
            raise ValueError(f"The report {self.where(subject_id, study_id)} cannot be read: {error}") from error
        if len(content) > MAX_REPORT_BYTES:
            raise ValueError(
                f"The report {self.where(subject_id, study_id)} cannot be read: it has more than {MAX_REPORT_BYTES:,} "
                "bytes."
            )
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError:
            self.not_utf8.add(study_id)
            return content.decode("cp1252", errors="replace")

    def texts(self, table: pd.DataFrame, section: str) -> tuple[dict[int, str], dict[int, str]]:
        """For each study its text, "" where there is none; and for those the reason."""
        texts, reasons = {}, {}
        for subject, study in table[["subject_id", "study_id"]].drop_duplicates().itertuples(index=False):
            try:
                report = self.read(subject, study)
            except ValueError as error:
                report, reasons[study], self.errors[study] = "", UNREADABLE, str(error)
            texts[study] = report_text(report, section) if report else ""
            self.unknown_headings.update(unknown_headings(report or ""))
            if not texts[study]:
                reasons.setdefault(study, NO_REPORT if report is None else no_text(section))
        return texts, reasons

    def _name(self, subject_id: int, study_id: int) -> str:
        return f"{self.prefix}p{str(subject_id)[:2]}/p{subject_id}/s{study_id}.txt"


def find_reports(folder: Path, reports_dir, reports, table: pd.DataFrame) -> Reports:
    """
    Where the reports of the table's studies are.

    Raises:
        ValueError: if no study has one in any of the usual folders.
    """
    if reports_dir and reports:
        raise ValueError("Give either reports_dir (a folder) or reports (a zip file).")
    if reports_dir and not Path(reports_dir).is_dir():
        raise ValueError(f"There is no folder {reports_dir} (reports_dir).")
    if reports and not zipfile.is_zipfile(reports):
        raise ValueError(
            f"{reports} (reports) is not a zip file." if Path(reports).exists() else f"No file {reports}."
        )
    studies = table[["subject_id", "study_id"]].drop_duplicates().to_numpy().tolist()
    sources = list(_sources(folder, reports_dir, reports))
    for some in (studies[:: -(-len(studies) // 200)], studies):  # all of them only if there is need
        for source in sources:
            if any(source.has(*study) for study in some):
                return source
    raise ValueError(
        "No reports were found. Looked for "
        + ", ".join(source.where(*studies[0]) for source in sources)
        + ". Say where they are with reports_dir (a folder) or "
        "reports (mimic-cxr-reports.zip)."
    )


def _sources(folder: Path, reports_dir, reports) -> Iterator[Reports]:
    if reports:
        yield from _in_zip(Path(reports))
        return
    roots = [Path(reports_dir)] if reports_dir else [folder, folder / "mimic-cxr-reports"]
    for root in roots:
        yield Reports(root, "files/")
        yield Reports(root, "")
    archive = roots[0] / "mimic-cxr-reports.zip"
    if archive.is_file():
        yield from _in_zip(archive)


def _in_zip(path: Path) -> Iterator[Reports]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"The reports {path} cannot be read: {error}") from error
    first = next((name for name in archive.namelist() if re.search(r"p\d+/p\d+/s\d+\.txt$", name)), "files/")
    prefix = str(PurePosixPath(first).parents[2]) + "/" if first.endswith(".txt") else first
    yield Reports(path, "" if prefix == "./" else prefix, archive)


def _prepared(folder: Path, split: str, chosen: dict, reports) -> Dataset:
    if reports:
        raise ValueError(f"{folder} is a prepared folder: it has its texts, leave out reports_dir and reports.")
    before = preparation(folder)
    frontal = chosen.get("views") == "frontal" and before["views"] == "all"
    for name, value in chosen.items():
        if value != before[name] and not (name == "views" and frontal):
            raise ValueError(
                f"{folder} was prepared with {name} {before[name]!r}, not {value!r}: prepare another folder, or leave "
                "the option out."
            )
    pairs = load_prepared(folder, split)
    return pairs.select(np.flatnonzero(np.isin(pairs["view"][:], ("AP", "PA")))) if frontal else pairs


def _check(data_dir, section: str, split_by: str, views: str, labeler: str) -> None:
    need_folder(RECORD, data_dir, "the folder of MIMIC-CXR-JPG, or one that prepare has written")
    options = (
        ("section", section, SECTIONS),
        ("split_by", split_by, SPLIT_RULES),
        ("views", views, VIEWS),
        ("labeler", labeler, LABELERS),
    )
    for name, value, known in options:
        check_choice("mimic_cxr", name, value, known)


def plan(data_dir, reports_dir, reports, **choices: str) -> tuple[pd.DataFrame, list[dict], Reports]:
    """For `prepare`: the images to write, what was rejected already, and the reports."""
    _check(data_dir, **choices)
    folder = Path(data_dir)
    table, rejected = image_table(folder, choices["split_by"], choices["views"], choices["labeler"])
    if table.empty:
        raise ValueError(f"mimic_cxr: no image of {folder} is left by {choices}.")
    return table, rejected, find_reports(folder, reports_dir, reports, table)


ID_PATTERNS = {
    "a subject of MIMIC": rf"{ID_START}p1\d(/|\d{{6}}{ID_END})",
    "a study of MIMIC": rf"{ID_START}s5\d{{7}}{ID_END}",
    "a number like a subject or study of MIMIC": rf"(?<![0-9A-Za-z.])[15]\d{{7}}{ID_END}(?!\.\d)",
    "an image of MIMIC-CXR": rf"(?i){ID_START}[0-9a-f]{{8}}(-[0-9a-f]{{8}}){{4}}{ID_END}",
}
DISTINCTIVE_IDS = ("a subject of MIMIC", "a study of MIMIC", "an image of MIMIC-CXR")

RECORD = DatasetRecord(
    name="mimic_cxr",
    load=mimic_cxr,
    title="MIMIC-CXR",
    address="https://physionet.org/content/mimic-cxr-jpg/",
    licence="PhysioNet Credentialed Health Data License 1.5.0",
    access="credentialed access at PhysioNet, under a data use agreement: neither pictures nor reports may be passed "
    "on",
    folders=("mimic-cxr*", "physionet.org/files/mimic-cxr-jpg"),
    files=(tuple(f"mimic-cxr-{version}-split.csv" for version in _VERSIONS),),
    data_use_agreement=True,
    id_patterns=ID_PATTERNS,
    distinctive_ids=DISTINCTIVE_IDS,
    findings=CHEXPERT_LABELS,
)
