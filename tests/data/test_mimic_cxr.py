# Licensed under the Apache License, Version 2.0.
"""MIMIC-CXR-JPG is read raw on a disk, from trees in exactly its form, awkward ones included."""

import csv
import warnings
import zipfile

import numpy as np
import pytest
from datasets import Image as ImageFeature
from sklearn.model_selection import GroupShuffleSplit
from trees import Row, drawing, encoded, study, write_pictures, write_reports, write_table, write_tables, write_tree

from modeling_tier.data import load_pairs
from modeling_tier.data.columns import CHEXPERT_LABELS
from modeling_tier.data.mimic_cxr import image_table
from modeling_tier.data.sections import report_text
from modeling_tier.data.synthetic import draw_studies, write_mimic_tree


FULL = "FINAL REPORT\n FINDINGS: Edema.\n IMPRESSION: Heart failure,\n worse.\n"
ROWS = [
    study(1, report=FULL, labels={"Edema": "1.0", "Pneumonia": "-1.0", "Fracture": "0.0"}, view="AP"),
    Row("lateral", 10000001, 50000001, view="LATERAL", report=FULL, labels={"Edema": "1.0"}),
    study(2, report="IMPRESSION: Clear.\n", labels=None, view=""),
    study(3, split="validate", view="LL"),
    study(4, split="test"),
]


def load(root, split="train", **options):
    """The pairs, without the advice to prepare the folder."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is read raw")
        return load_pairs("mimic_cxr", split, data_dir=root, **options)


def named(labels: dict) -> dict:
    return dict.fromkeys(CHEXPERT_LABELS) | labels


@pytest.mark.parametrize("version", ["2.0.0", "2.1.0"])
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_both_versions_packed_or_not(tmp_path, version, suffix):
    root = write_tree(tmp_path / "mimic", ROWS, version=version, suffix=suffix)
    with pytest.warns(UserWarning, match="is read raw.*full size.*prepare mimic_cxr --help"):
        pairs = load_pairs("mimic_cxr", "train", data_dir=root)
    assert {name: pairs[name][:] for name in pairs.column_names if name not in ("image", "labels")} == {
        "text": ["Heart failure, worse.", "Heart failure, worse.", "Clear."],
        "subject_id": [10000001, 10000001, 10000002],
        "study_id": [50000001, 50000001, 50000002],
        "image_id": ["00000001-0", "lateral", "00000002-0"],
        "view": ["AP", "LATERAL", ""],
    }
    assert load(root, "validation")["image_id"][:] == ["00000003-0"]
    assert load(root, "test")["image_id"][:] == ["00000004-0"]


def test_the_same_drawings_that_were_written(tmp_path):
    write_mimic_tree(tmp_path / "tree", {"train": 12, "validation": 3, "test": 3}, image_size=48, seed=4)
    for split, number in (("train", 12), ("validation", 3), ("test", 3)):
        pairs = load(tmp_path / "tree", split, section="both")
        assert len(pairs) == number
        by_id = {row["image_id"]: row for row in pairs}
        for drawn in draw_studies(split, number, 48, seed=4):
            row = by_id[drawn.image_id]
            assert row["text"] == " ".join(drawn.report)
            assert (row["subject_id"], row["study_id"], row["view"]) == (drawn.subject_id, drawn.study_id, drawn.view)
            difference = np.abs(np.asarray(row["image"], dtype=float) - drawn.pixels)
            assert difference.mean() < 2, "JPEG of quality 95"
            for finding in drawn.findings:
                assert row["labels"][{"Nodule": "Lung Lesion"}.get(finding.name, finding.name)] == 1


# Labels


def test_positive_negative_uncertain_and_blank_are_kept_apart(tmp_path):
    pairs = load(write_tree(tmp_path, ROWS))
    assert pairs[0]["labels"] == named({"Edema": 1.0, "Pneumonia": -1.0, "Fracture": 0.0})
    assert all(isinstance(value, float | None) for value in pairs[0]["labels"].values())


def test_a_study_without_a_row_of_labels_has_none(tmp_path):
    assert load(write_tree(tmp_path, ROWS))[2]["labels"] == named({})


def test_negbio(tmp_path):
    root = write_tree(tmp_path, ROWS)
    columns = ("subject_id", "study_id", *CHEXPERT_LABELS)
    write_table(root / "mimic-cxr-2.0.0-negbio.csv", columns, [(10000001, 50000001, "0.0", *[""] * 13)])
    assert load(root, labeler="negbio")[0]["labels"] == named({"Atelectasis": 0.0})
    assert load(root)[0]["labels"]["Atelectasis"] is None


def test_radiologists_name_the_opacity_otherwise_and_read_a_part_of_the_test_set(tmp_path):
    rows = [study(i, split="test", labels={"Lung Opacity": "0.0"}) for i in (1, 2, 3)] + [study(4)]
    root = write_tree(tmp_path, rows, version="2.1.0")
    with pytest.raises(ValueError, match=r"mimic-cxr-2\.1\.0-test-set-labeled\.csv"):
        load(root, "test", labeler="radiologist")
    columns = ("study_id", "Airspace Opacity", "Edema", "Support Devices")
    lines = [(50000001, "1.0", "", "-1.0"), (50000003, "0", "1", "")]
    write_table(root / "mimic-cxr-2.1.0-test-set-labeled.csv", columns, lines)
    pairs = load(root, "test", labeler="radiologist")
    assert pairs["study_id"][:] == [50000001, 50000003]
    assert pairs[0]["labels"] == named({"Lung Opacity": 1.0, "Support Devices": -1.0})
    assert pairs[1]["labels"] == named({"Lung Opacity": 0.0, "Edema": 1.0})
    with pytest.raises(ValueError, match="no image of .* 'train'"):
        load(root, "train", labeler="radiologist")
    write_table(root / "mimic-cxr-2.1.0-test-set-labeled.csv", ("study_id", "reader"), [(50000001, 1)])
    with pytest.raises(ValueError, match=r"labeled\.csv has no column of a finding, such as 'Atelectasis'"):
        load(root, "test", labeler="radiologist")


@pytest.mark.parametrize("value", ["2.0", "yes", "nan", "0.5"])
def test_a_label_out_of_range_is_named_with_file_line_and_column(tmp_path, value):
    root = write_tree(tmp_path, [study(1), study(2, labels={"Edema": value})])
    with pytest.raises(ValueError, match=rf"chexpert\.csv, line 3: Edema must be .*got '{value}'"):
        load(root)


def test_a_study_labelled_twice_is_an_error(tmp_path):
    root = write_tree(tmp_path, [study(1)])
    columns, line = ("subject_id", "study_id", *CHEXPERT_LABELS), (10000001, 50000001, *[""] * 14)
    write_table(root / "mimic-cxr-2.0.0-chexpert.csv", columns, [line, line])
    with pytest.raises(ValueError, match=r"chexpert\.csv, line 3: the study 50000001 is also on an earlier line"):
        load(root)


# Reports


def zipped(path, rows, prefix):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, report in {f"{prefix}{row.patient}/s{row.study_id}.txt": row.report for row in rows}.items():
            archive.writestr(name, report)


PLACES = {
    "merged": lambda root, apart: write_reports(root, ROWS),
    "p10 beside files": lambda root, apart: write_reports(root, ROWS, ""),
    "a folder in the data": lambda root, apart: write_reports(root / "mimic-cxr-reports", ROWS),
    "apart": lambda root, apart: write_reports(apart, ROWS) or {"reports_dir": apart},
    "apart without files": lambda root, apart: write_reports(apart, ROWS, "") or {"reports_dir": apart},
    "zip beside": lambda root, apart: zipped(root / "mimic-cxr-reports.zip", ROWS, "files/"),
    "zip without files": lambda root, apart: zipped(root / "mimic-cxr-reports.zip", ROWS, ""),
    "zip apart": lambda root, apart: zipped(apart / "mimic-cxr-reports.zip", ROWS, "files/") or {"reports_dir": apart},
    "zip by its path": lambda root, apart: zipped(apart / "r.zip", ROWS, "a/files/") or {"reports": apart / "r.zip"},
}


@pytest.mark.parametrize("place", PLACES)
def test_reports_are_found_wherever_users_keep_them(tmp_path, place):
    root, apart = tmp_path / "mimic", tmp_path / "apart"
    apart.mkdir()
    write_tables(root, ROWS)
    write_pictures(root, ROWS)
    options = PLACES[place](root, apart) or {}
    assert load(root, **options)["text"][:] == ["Heart failure, worse.", "Heart failure, worse.", "Clear."]


def test_one_report_at_the_end_is_enough_to_find_the_folder(tmp_path):
    rows = [study(i, report=None, picture=None) for i in range(1, 402)] + [study(402)]
    with pytest.warns(UserWarning, match="401 of 402 images of train skipped"):
        assert load(write_tree(tmp_path, rows))["image_id"][:] == ["00000192-0"]


def test_no_reports_says_which_files_were_looked_for(tmp_path):
    root = write_tree(tmp_path / "mimic", [row._replace(report=None) for row in ROWS])
    with pytest.raises(ValueError) as error:
        load(root)
    for place in ("files/", "", "mimic-cxr-reports/files/", "mimic-cxr-reports/"):
        assert str(root / f"{place}p10/p10000001/s50000001.txt") in str(error.value)
    assert "reports_dir" in str(error.value) and "mimic-cxr-reports.zip" in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reports_dir": "nowhere"}, r"no folder .*nowhere \(reports_dir\)"),
        ({"reports": "nowhere.zip"}, "No file .*nowhere.zip"),
        ({"reports": "mimic-cxr-2.0.0-split.csv"}, "is not a zip file"),
        ({"reports": "r.zip", "reports_dir": "files"}, "either reports_dir .* or reports"),
    ],
)
def test_reports_that_are_not_there(tmp_path, options, message):
    root = write_tree(tmp_path, ROWS)
    with pytest.raises(ValueError, match=message):
        load(root, **{name: root / path for name, path in options.items()})


def test_a_broken_zip_is_named(tmp_path):
    root = write_tree(tmp_path, [ROWS[0]._replace(report=None)])
    path = root / "mimic-cxr-reports.zip"
    path.write_bytes(b"PK half of a download")
    with pytest.raises(ValueError, match="mimic-cxr-reports.zip cannot be read"):
        load(root)
    zipped(path, [ROWS[0]], "files/")
    content = bytearray(path.read_bytes())
    start = content.index(b".txt") + 4
    content[start : start + 30] = b"\xff" * 30
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"zip/files/p10/p10000001/s50000001\.txt cannot be read"):
        load(root)


def test_a_report_that_is_not_utf8_is_read_as_windows_1252(tmp_path):
    rows = [
        study(1, report="IMPRESSION: 5\u00b0 tilt \u2013 clear.".encode("cp1252")),
        study(2, report="\ufeffIMPRESSION: 5\u00b0 tilt.".encode()),
    ]
    assert load(write_tree(tmp_path, rows))["text"][:] == ["5\u00b0 tilt \u2013 clear.", "5\u00b0 tilt."]


def test_images_without_text_are_skipped_and_counted(tmp_path):
    rows = [
        study(1),
        study(2, report="FINDINGS: Edema.\n"),
        Row("second", 10000002, 50000002, report="FINDINGS: Edema.\n"),
        study(3, report=None),
        study(4, report=""),
        study(5, report="IMPRESSION: ___.\n"),
    ]
    with pytest.warns(
        UserWarning, match=r"5 of 6 images of train skipped: .* text for section impression.*p10000002/s50000002\.txt"
    ):
        pairs = load(write_tree(tmp_path, rows))
    assert pairs["image_id"][:] == ["00000001-0"]


@pytest.mark.filterwarnings("ignore:.*skipped")
@pytest.mark.parametrize("section", ["impression", "findings", "impression_or_findings", "both"])
def test_sections(tmp_path, section):
    reports = [FULL, "FINDINGS: Edema.\n", "FINAL REPORT\n Clear lungs.\n"]
    root = write_tree(tmp_path, [study(i, report=report) for i, report in enumerate(reports)])
    expected = [text for report in reports if (text := report_text(report, section))]
    assert 0 < len(expected) < 4 and load(root, section=section)["text"][:] == expected


# Tables


def test_a_wrong_folder_says_what_was_looked_for_and_where(tmp_path):
    with pytest.raises(ValueError, match=f"no folder {tmp_path}/nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=rf"{tmp_path} .*mimic-cxr-2\.1\.0-split\.csv.*2\.0\.0-split\.csv.*\.gz"):
        load(tmp_path)
    root = write_tree(tmp_path / "mimic", ROWS)
    for table in ("metadata", "chexpert"):
        (root / f"mimic-cxr-2.0.0-{table}.csv").rename(root / "elsewhere.csv")
        with pytest.raises(ValueError, match=rf"{root} .*mimic-cxr-2\.0\.0-{table}\.csv"):
            load(root)
        (root / "elsewhere.csv").rename(root / f"mimic-cxr-2.0.0-{table}.csv")


@pytest.mark.parametrize(
    ("table", "column"),
    [("split", "dicom_id"), ("split", "split"), ("metadata", "ViewPosition"), ("chexpert", "study_id")]
    + [("chexpert", "Pleural Other")],
)
def test_a_missing_column_names_file_column_and_those_that_are_there(tmp_path, table, column):
    path = write_tree(tmp_path, ROWS) / f"mimic-cxr-2.0.0-{table}.csv"
    path.write_text(path.read_text().replace(column, "other", 1))
    with pytest.raises(ValueError, match=rf"{path.name} has no column '{column}'; its columns are \[.*'other'"):
        load(tmp_path)


def test_a_file_without_any_known_column(tmp_path):
    path = write_tree(tmp_path, ROWS) / "mimic-cxr-2.0.0-split.csv"
    path.write_text("<html>\nlog in first\n")
    with pytest.raises(ValueError, match=r"split\.csv has no column 'dicom_id'; its columns are \['<html>'\]"):
        load(tmp_path)
    path.write_text("")
    with pytest.raises(ValueError, match=r"split\.csv has no rows"):
        load(tmp_path)


def test_a_truncated_archive_is_named(tmp_path):
    path = write_tree(tmp_path, ROWS, suffix=".csv.gz") / "mimic-cxr-2.0.0-metadata.csv.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(ValueError, match=r"metadata\.csv\.gz, line \d+: cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize(
    "form",
    [{"line_end": "\r\n"}, {"before": "\ufeff"}, {"line_end": "\r\n", "before": "\ufeff", "suffix": ".csv.gz"}],
)
def test_tables_that_windows_wrote(tmp_path, form):
    plain, windows = write_tree(tmp_path / "plain", ROWS), write_tree(tmp_path / "windows", ROWS, **form)
    for split in ("train", "validation", "test"):
        a, b = (load(root, split).remove_columns("image")[:] for root in (plain, windows))
        assert a == b and a["text"]


@pytest.mark.parametrize(("change", "fields"), [(lambda row: row + ",1.0", 17), (lambda row: row[:12], 2)])
def test_a_row_of_another_length_than_the_header_is_named(tmp_path, change, fields):
    root = write_tree(tmp_path, [study(1), study(2), study(3)])
    path = root / "mimic-cxr-2.0.0-chexpert.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], change(lines[2]), *lines[3:]]))
    with pytest.raises(ValueError, match=rf"chexpert\.csv, line 3: {fields} fields, but there are 16 columns"):
        load(root)


def test_an_encrypted_zip_of_reports_is_named(tmp_path, monkeypatch):
    root = write_tree(tmp_path, [ROWS[0]._replace(report=None)])
    zipped(root / "mimic-cxr-reports.zip", [ROWS[0]], "files/")

    def read(*args, **options):
        raise RuntimeError("File is encrypted, password required for extraction")

    monkeypatch.setattr(zipfile.ZipFile, "open", read)
    with pytest.raises(ValueError, match=r"s50000001\.txt cannot be read: File is encrypted"):
        load(root)


def test_a_comma_at_the_end_of_each_line_moves_no_column(tmp_path):
    root = write_tree(tmp_path, ROWS)
    before = load(root).remove_columns("image")[:]
    for path in root.glob("*.csv"):
        header, *lines = path.read_text().splitlines()
        path.write_text("\n".join([header, *(f"{line}," for line in lines)]) + "\n")
    assert load(root).remove_columns("image")[:] == before


def test_more_columns_in_another_order_are_tolerated(tmp_path):
    root = write_tree(tmp_path, ROWS)
    before = load(root).remove_columns("image")[:]
    for path in root.glob("*.csv"):
        rows = [["new", *reversed(row)] for row in csv.reader(path.open())]
        write_table(path, rows[0], rows[1:])
    assert load(root).remove_columns("image")[:] == before


@pytest.mark.parametrize("subject", ["p10000002", "10000002.5", "", "99999999999999999999"])
def test_a_subject_that_is_no_number_is_named_with_its_line(tmp_path, subject):
    root = write_tree(tmp_path, [study(1)])
    columns = ("dicom_id", "study_id", "subject_id", "split")
    lines = [("a", 50000001, 10000001, "train"), ("b", 50000002, subject, "train")]
    write_table(root / "mimic-cxr-2.0.0-split.csv", columns, lines)
    with pytest.raises(ValueError, match=rf"split\.csv, line 3: subject_id must be a whole number; got '{subject}'"):
        load(root)


def test_an_unknown_split_is_named_with_its_line(tmp_path):
    with pytest.raises(ValueError, match=r"split\.csv, line 3: split must be one of .*'validate'.*got 'dev'"):
        load(write_tree(tmp_path, [study(1), study(2, split="dev")]))


def test_a_row_that_stands_twice_counts_once(tmp_path):
    root = write_tree(tmp_path, [study(1), study(2), study(1)])
    table, rejected = image_table(root, "official", "all", "chexpert")
    with pytest.warns(UserWarning, match=r"1 rows of train skipped, such as .*00000001-0\.jpg: a duplicate row"):
        assert table["dicom_id"].tolist() == load(root)["image_id"][:] == ["00000001-0", "00000002-0"]
    assert rejected == [
        {
            "split": "train",
            "path": "files/p10/p10000001/s50000001/00000001-0.jpg",
            "reason": "a duplicate row of mimic-cxr-2.0.0-split.csv",
        }
    ]


@pytest.mark.parametrize("change", [{"study_id": 50000009}, {"subject_id": 10000009}, {"split": "test"}])
def test_a_row_that_contradicts_an_earlier_one_is_an_error(tmp_path, change):
    rows = [study(1), study(2), study(1)._replace(**change)]
    with pytest.raises(ValueError, match=r"split\.csv, line 4: the dicom_id 00000001-0 is also on an earlier line"):
        load(write_tree(tmp_path, rows))


def test_a_study_of_two_subjects_is_an_error(tmp_path):
    rows = [study(1), study(2, study_id=50000001)]
    with pytest.raises(ValueError, match=r"split\.csv, line 3: the study 50000001 .* another subject"):
        load(write_tree(tmp_path, rows))


@pytest.mark.parametrize("dicom_id", ["../../x", "/etc/x", "..", "a/b", "a\\b", ""])
def test_an_image_outside_of_the_folder_is_rejected_and_counted(tmp_path, dicom_id):
    root = write_tree(tmp_path / "mimic", [study(1), study(2, picture=None)._replace(dicom_id=dicom_id)])
    table, rejected = image_table(root, "official", "all", "chexpert")
    with pytest.warns(UserWarning, match="1 rows of train skipped.*leaves the data folder"):
        assert table["dicom_id"].tolist() == load(root)["image_id"][:] == ["00000001-0"]
    assert [row["reason"] for row in rejected] == ["path leaves the data folder"]


# Splits and views


def test_a_subject_in_two_splits_is_an_error(tmp_path):
    rows = [study(1), study(2), study(3, subject_id=10000002, split="test")]
    with pytest.raises(ValueError, match="1 subjects are in both train and test, such as 10000002"):
        load(write_tree(tmp_path, rows))


@pytest.mark.parametrize("views", ["all", "frontal"])
def test_the_papers_split_is_scikit_learns(tmp_path, views):
    rng = np.random.default_rng(0)
    rows = []
    for i in rng.permutation(60):
        for j in range(rng.integers(1, 4)):
            labels = {"Edema": "1.0"} if rng.random() < 0.8 else None
            options = {"labels": labels, "view": rng.choice(["PA", "AP", "LATERAL"]), "picture": None}
            split = ("train", "validate", "test")[i % 3]
            rows.append(Row(f"{i}-{j}", 10000000 + i, 50000000 + 10 * i + j, split=split, **options))
    root = write_tree(tmp_path, rows)

    wanted = [row for row in rows if views == "all" or row.view in ("PA", "AP")]
    labelled = [row for row in rows if row.labels is not None]  # whatever the views: nobody changes sides with them
    splitter = GroupShuffleSplit(test_size=0.1, random_state=1)
    train, validation = next(splitter.split(labelled, groups=[row.subject_id for row in labelled]))
    subjects = [{labelled[i].subject_id for i in part} for part in (train, validation)]
    expected = {"train": [], "validation": []}
    for row in wanted:
        expected["validation" if row.subject_id in subjects[1] else "train"].append(row.dicom_id)
    pairs = {split: load(root, split, split_by="paper", views=views) for split in expected}
    assert {split: sorted(part["image_id"]) for split, part in pairs.items()} == {
        split: sorted(ids) for split, ids in expected.items()
    }
    assert len(subjects[1]) == -(-len(subjects[0] | subjects[1]) // 10)
    got = [set(part["subject_id"]) for part in pairs.values()]
    in_table = {row.subject_id for row in wanted}
    assert not got[0] & got[1] and subjects[0] & in_table <= got[0] and subjects[1] & in_table == got[1]
    assert len(rows) > len(labelled) and set(got[0]) - subjects[0], "some subjects have no label at all"
    if views == "frontal":
        assert in_table < {row.subject_id for row in rows}, "and some no frontal view"
    with pytest.raises(ValueError, match="no image of .* 'test' by split_by 'paper'"):
        load(root, "test", split_by="paper")


def test_the_papers_split_needs_two_labelled_subjects(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"chexpert\.csv.*: split_by .* at least two subjects with labels; it has those of 1",
    ):
        load(write_tree(tmp_path, [study(1), study(2, labels=None)]), split_by="paper")


def test_an_image_that_is_missing_from_the_metadata_is_named(tmp_path):
    root = write_tree(tmp_path, [study(1), study(2)])
    path = root / "mimic-cxr-2.0.0-metadata.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    with pytest.warns(UserWarning, match=r"metadata\.csv lacks 1 of 2 images, such as 00000002-0"):
        assert load(root)["view"][:] == ["PA", ""]


def test_frontal_views(tmp_path):
    root = write_tree(tmp_path, [study(i, view=v) for i, v in enumerate(["AP", "LATERAL", "PA", "LL", "", "LAO"])])
    assert load(root, views="frontal")["view"][:] == ["AP", "PA"]
    assert load(root)["view"][:] == ["AP", "LATERAL", "PA", "LL", "", "LAO"]
    side = write_tree(tmp_path / "side", [study(1, view="LL")])
    with pytest.raises(ValueError, match=r"metadata\.csv: no image has the ViewPosition AP or PA"):
        load(side, views="frontal")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "validate"}, "no split 'validate'; use one of .*'validation'"),
        ({"section": "history"}, "section must be one of .*'impression'.*got 'history'"),
        ({"split_by": "random"}, "split_by must be one of .*'paper'.*got 'random'"),
        ({"views": "lateral"}, "views must be one of .*'frontal'.*got 'lateral'"),
        ({"labeler": "me"}, "labeler must be one of .*'radiologist'.*got 'me'"),
        ({"data_dir": None}, "needs data_dir"),
        ({"size": 320}, "Unknown option 'size' .*'section'"),
    ],
)
def test_unknown_options_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        load_pairs(**{"name": "mimic_cxr", "split": "train", "data_dir": tmp_path, **options})


def test_pictures_are_read_when_they_are_needed(tmp_path):
    root = write_tree(tmp_path, [study(1, picture=encoded(drawing(50, 40))), study(2, picture=None)])
    pairs = load(root)
    assert pairs[0]["image"].size == (50, 40)
    stored = pairs.cast_column("image", ImageFeature(decode=False))
    assert stored[1]["image"] == {"bytes": None, "path": f"{root}/files/p10/p10000002/s50000002/00000002-0.jpg"}
