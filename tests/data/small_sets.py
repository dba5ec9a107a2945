# Licensed under the Apache License, Version 2.0.
"""Each data set in small, in the form in which it is published, for tests that treat them all alike."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import Dataset
from PIL import Image

from modeling_tier.data.columns import CHEXPERT_LABELS
from modeling_tier.data.synthetic import write_chexpert_plus_tree, write_openi_tree, write_rexgradient_tree
from modeling_tier.data.vindr_cxr import LABELS as VINDR_LABELS
from tests.data.trees import study, write_tree


ROWS = 20  # so that one bad row is less than a tenth


@dataclass
class Tree:
    """A data set on a disk, and how it is loaded."""

    name: str
    tables: list[str]
    """Files whose content decides which pictures are read."""
    picture: str
    """One of the pictures."""
    calls: list[tuple[str, dict]] = field(default_factory=lambda: [("test", {})])
    """Splits with the options of the loader."""


def picture(path: Path, size: tuple[int, int] = (48, 36)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.linspace(0, 255, size[0] * size[1]).reshape(size[::-1])
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def write_csv(path: Path, columns, rows) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    path.write_text(text.getvalue(), encoding="utf-8")


def chexpert(root: Path) -> Tree:
    labels = ["0.0"] * 12 + ["1.0", ""]
    for table, split, first in (("valid.csv", "valid", 100), ("test_labels.csv", "test", 200)):
        paths = [f"{split}/patient{first + i:05d}/study1/view1_frontal.jpg" for i in range(ROWS)]
        rows = [[f"CheXpert-v1.0/{path}", "Female", "60", "Frontal", "AP", *labels] for path in paths]
        write_csv(root / table, ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_LABELS), rows)
        for path in paths:
            picture(root / path)
    readers = root / "radiologists"
    readers.mkdir()
    studies = [[f"CheXpert-v1.0/test/patient{200 + i:05d}/study1", *labels] for i in range(ROWS)]
    write_csv(readers / "bc4.csv", ("Study", *CHEXPERT_LABELS), studies)
    calls = [("test", {"by": "study"}), ("validation", {})]
    return Tree("chexpert", ["test_labels.csv", "radiologists/bc4.csv"], paths[0], calls)


def padchest(root: Path) -> Tree:
    table = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
    columns = ("ImageID", "ImageDir", "StudyID", "PatientID", "Projection", "MethodLabel", "Labels")
    rows = [(f"{i}.png", "0", f"s{i}", f"p{i}", "PA", "Physician", "['cardiomegaly']") for i in range(ROWS)]
    write_csv(root / table, columns, rows)
    for name, *_ in rows:
        picture(root / "0" / name)
    return Tree("padchest", [table], "0/0.png")


def chestxray14(root: Path) -> Tree:
    names = [f"{i:08d}_000.png" for i in range(ROWS)]
    columns = ("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "View Position", "Height]", "")
    rows = [(name, "Cardiomegaly|Effusion", "0", str(i), "PA", "2749", "") for i, name in enumerate(names)]
    write_csv(root / "Data_Entry_2017.csv", columns, rows)
    boxes = [(name, "Cardiomegaly", "100.5", "200", "300", "400") for name in names]
    header = ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]", "", "", "")
    write_csv(root / "BBox_List_2017.csv", header, boxes)
    (root / "test_list.txt").write_text("\n".join(names))
    for name in names:
        picture(root / "images" / name)
    return Tree("chestxray14", ["Data_Entry_2017.csv", "BBox_List_2017.csv", "test_list.txt"], f"images/{names[0]}")


def openi(root: Path) -> Tree:
    reports = [(i, "normal", "", "Clear.", "No disease.") for i in range(ROWS)]
    write_csv(root / "indiana_reports.csv", ("uid", "Problems", "comparison", "findings", "impression"), reports)
    rows = [(i, f"{i}_IM-0001-3001.dcm.png", "Frontal") for i in range(ROWS)]
    write_csv(root / "indiana_projections.csv", ("uid", "filename", "projection"), rows)
    for _, name, _ in rows:
        picture(root / "images" / name)
    return Tree("openi", ["indiana_reports.csv", "indiana_projections.csv"], "images/0_IM-0001-3001.dcm.png")


def mimic_rows() -> list:
    return [study(i, split=("train", "validate", "test")[i // 20]) for i in range(60)]


def mimic_cxr(root: Path) -> Tree:
    rows = mimic_rows()
    write_tree(root, rows)
    tables = [f"mimic-cxr-2.0.0-{name}.csv" for name in ("split", "metadata", "chexpert")]
    report = f"files/{rows[0].patient}/s{rows[0].study_id}.txt"
    path = f"files/{rows[0].patient}/s{rows[0].study_id}/{rows[0].dicom_id}.jpg"
    calls = [("train", {}), ("train", {"split_by": "paper", "views": "frontal"})]
    return Tree("mimic_cxr", [*tables, report], path, calls)


def ms_cxr(root: Path) -> Tree:
    mimic = mimic_cxr(root)
    columns = ("category_name", "label_text", "x", "y", "w", "h", "image_width", "image_height", "dicom_id", "path")
    rows = [
        ("Edema", "mild edema", 3, 4, 10, 12, 40, 40, row.dicom_id, f"files/{row.patient}/s{row.study_id}/{name}")
        for row in mimic_rows()
        for name in [f"{row.dicom_id}.jpg"]
    ]
    write_csv(root / "ms_cxr.csv", columns, rows)
    return Tree("ms_cxr", ["ms_cxr.csv", "mimic-cxr-2.0.0-split.csv"], mimic.picture)


def ms_cxr_json(root: Path) -> Tree:
    mimic = mimic_cxr(root)
    content = {"categories": [{"id": 1, "name": "Edema"}], "images": [], "annotations": []}
    for i, row in enumerate(mimic_rows()):
        path = f"files/{row.patient}/s{row.study_id}/{row.dicom_id}.jpg"
        content["images"].append({"id": i, "file_name": Path(path).name, "path": path, "width": 40, "height": 40})
        box = {"id": i, "image_id": i, "category_id": 1, "bbox": [3, 4, 10, 12], "label_text": "mild edema"}
        content["annotations"].append(box)
    (root / "MS_CXR_Local_Alignment_v1.1.0.json").write_text(json.dumps(content))
    return Tree("ms_cxr", ["MS_CXR_Local_Alignment_v1.1.0.json"], mimic.picture)


PAIRS = {
    "image_column": "file",
    "text_column": "text",
    "subject_column": "patient",
    "study_column": "visit",
    "folder_column": "dir",
    "view_column": "view",
    "label_columns": ["Edema"],
    "label_values": {"yes": 1},
    "validation_share": 1e-9,
}


def pairs_rows(root: Path) -> list[dict]:
    rows = []
    for i in range(ROWS):
        picture(root / "p" / f"{i}.png")
        ids = {"patient": f"p{i}", "visit": str(i), "view": "PA"}
        rows.append({"file": f"{i}.png", "dir": "p", "text": f"Text {i}.", **ids, "Edema": "1"})
    return rows


def pairs_csv(root: Path) -> Tree:
    rows = pairs_rows(root)
    write_csv(root / "a.csv", rows[0], [row.values() for row in rows])
    return Tree("pairs", ["a.csv"], "p/0.png", [("train", PAIRS), ("train", PAIRS | {"streaming": True})])


def pairs_jsonl(root: Path) -> Tree:
    (root / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs_rows(root)))
    return Tree("pairs", ["a.jsonl"], "p/0.png", [("train", PAIRS)])


def pairs_parquet(root: Path) -> Tree:
    Dataset.from_list(pairs_rows(root)).to_parquet(root / "a.parquet")
    return Tree("pairs", ["a.parquet"], "p/0.png", [("train", PAIRS), ("train", PAIRS | {"streaming": True})])


def dicom(path: Path, size: tuple[int, int] = (48, 36)) -> None:
    """8-bit grey, as the challenges publish them, of a width and height."""
    import pydicom
    from pydicom.dataset import FileMetaDataset

    path.parent.mkdir(parents=True, exist_ok=True)
    about = pydicom.Dataset()
    about.file_meta = FileMetaDataset()
    about.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    about.file_meta.MediaStorageSOPClassUID = about.SOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    about.file_meta.MediaStorageSOPInstanceUID = about.SOPInstanceUID = "1.2.3"
    about.Columns, about.Rows = size
    about.SamplesPerPixel, about.PhotometricInterpretation = 1, "MONOCHROME2"
    about.BitsAllocated = about.BitsStored = 8
    about.HighBit, about.PixelRepresentation = 7, 0
    about.PixelData = np.linspace(0, 255, size[0] * size[1]).astype(np.uint8).tobytes()
    about.save_as(path, enforce_file_format=True)


def rsna_pneumonia(root: Path) -> Tree:
    """Several rows for a patient with several boxes; blank numbers without a box."""
    names = [f"{i:08x}-14fd-4e49-80ba-63a80b6bddd6" for i in range(ROWS)]
    rows = [(name, "264.0", "152.0", "213.0", "379.0", "1") for name in names[:8]]
    rows += [(names[0], "562.0", "152.0", "256.0", "453.0", "1"), *((name, "", "", "", "", "0") for name in names[8:])]
    write_csv(root / "stage_2_train_labels.csv", ("patientId", "x", "y", "width", "height", "Target"), rows)
    classes = [(name, "Lung Opacity" if i < 8 else "Normal") for i, name in enumerate(names)]
    write_csv(root / "stage_2_detailed_class_info.csv", ("patientId", "class"), classes)
    for name in names:
        dicom(root / "stage_2_train_images" / f"{name}.dcm", (64, 64))
    return Tree("rsna_pneumonia", ["stage_2_train_labels.csv"], f"stage_2_train_images/{names[0]}.dcm")


def vindr_cxr(root: Path) -> Tree:
    """Blank boxes of "No finding"; "Other disease" in the test table; pictures of any size, with .dicom."""
    names = [f"{i:032x}" for i in range(ROWS)]
    folder = root / "annotations"
    folder.mkdir()
    rows = [
        (name, *(int(label == ("Cardiomegaly" if i < 8 else "No finding")) for label in VINDR_LABELS))
        for i, name in enumerate(names)
    ]
    write_csv(folder / "image_labels_test.csv", ("image_id", *VINDR_LABELS), rows)
    boxes = [(name, "Cardiomegaly", "10.5", "20", "40", "30") for name in names[:8]]
    boxes += [(names[0], "Nodule/Mass", "1", "2", "3", "4"), *((n, "No finding", "", "", "", "") for n in names[8:])]
    write_csv(folder / "annotations_test.csv", ("image_id", "class_name", "x_min", "y_min", "x_max", "y_max"), boxes)
    for name in names:
        dicom(root / "test" / f"{name}.dicom", (64, 48))
    tables = ["annotations/image_labels_test.csv", "annotations/annotations_test.csv"]
    return Tree("vindr_cxr", tables, f"test/{names[0]}.dicom")


def siim_acr(root: Path) -> Tree:
    """A blank before the name of the second column and before its values; "-1"; several rows of an image."""
    names = [f"1.2.276.0.7230010.3.1.4.8323329.{i}.1517875201.850819" for i in range(ROWS)]
    rows = [(name, " 102500 100 924 50" if i < 8 else " -1") for i, name in enumerate(names)]
    rows.append((names[0], " 0 10"))
    write_csv(root / "train-rle.csv", ("ImageId", " EncodedPixels"), rows)
    for i, name in enumerate(names):
        dicom(root / f"dicom-images-train/1.2.{i}/1.3.{i}/{name}.dcm", (64, 64))
    return Tree("siim_acr", ["train-rle.csv"], f"dicom-images-train/1.2.0/1.3.0/{names[0]}.dcm")


def chestxdet10(root: Path) -> Tree:
    names = [f"{36200 + i}.png" for i in range(ROWS)]
    content = [
        {"file_name": name, "syms": ["Mass", "Effusion"], "boxes": [[512, 0, 1024, 256], [10, 20, 30, 40]]}
        if i < 8
        else {"file_name": name, "syms": [], "boxes": []}
        for i, name in enumerate(names)
    ]
    (root / "test.json").write_text(json.dumps(content))
    for name in names:
        picture(root / "test_data" / name, (64, 64))
    return Tree("chestxdet10", ["test.json"], f"test_data/{names[0]}")


def chexlocalize(root: Path) -> Tree:
    """
    Masks of some findings of some images, one without pixels; a lateral image. The other radiologist's mask overlaps
    by half in four images, is empty in two, equal in one, and the last image is not in the files.
    """
    from pycocotools import mask as coco

    order = sorted(CHEXPERT_LABELS)  # not MIMIC-CXR's
    paths = [f"test/patient{64740 + i}/study1/view1_frontal.jpg" for i in range(ROWS - 1)]
    paths.append("test/patient64740/study1/view2_lateral.jpg")
    rows = [(path, *("1.0" if label == "Lung Opacity" else "0.0" for label in order)) for path in paths]
    (root / "CheXpert").mkdir(), (root / "CheXlocalize").mkdir()
    write_csv(root / "CheXpert/test_labels.csv", ("Path", *order), rows)
    filled, empty = np.zeros((36, 48), np.uint8, order="F"), np.zeros((36, 48), np.uint8, order="F")
    filled[10:20, 30:40] = 1
    encoded = [coco.encode(mask) for mask in (filled, empty)]
    full, none = ({"size": e["size"], "counts": e["counts"].decode()} for e in encoded)
    content = {
        path.removeprefix("test/").removesuffix(".jpg").replace("/", "_"): {"Airspace Opacity": full, "Edema": none}
        for path in paths[:8]
    }
    (root / "CheXlocalize/gt_segmentations_test.json").write_text(json.dumps(content))
    moved = np.zeros((36, 48), np.uint8, order="F")
    moved[10:20, 35:45] = 1
    half = coco.encode(moved)
    half = {"size": half["size"], "counts": half["counts"].decode()}
    drawn = [half, half, half, half, none, none, full]
    human = {key: {"Airspace Opacity": mask, "Edema": none} for key, mask in zip(content, drawn)}
    (root / "CheXlocalize/hb_segmentations_test.json").write_text(json.dumps(human))
    inside, outside = [[35.2, 19.9]], [[29.9, 19.9]]  # x, y in the picture's pixels
    points = [inside, inside, inside, [*outside, *inside], outside]
    human = {key: {"img_size": [36, 48], "Airspace Opacity": given} for key, given in zip(content, points)}
    human |= {list(content)[5]: {"Edema": inside}}
    (root / "CheXlocalize/hb_salient_pt_test.json").write_text(json.dumps(human))
    for path in paths:
        picture(root / "CheXpert" / path)
    return Tree("chexlocalize", ["CheXlocalize/gt_segmentations_test.json"], f"CheXpert/{paths[0]}")


def padchest_gr(root: Path) -> Tree:
    """A row of the table per study and label; no boxes, labels or locations where a sentence is normal."""
    content, rows = [], []
    for i in range(ROWS):
        about = {"StudyID": f"{i:025d}", "ImageID": f"{i:025d}_abc.png", "PreviousStudyID": None}
        abnormal = {"sentence_en": "Small left effusion.", "sentence_es": "Derrame.", "abnormal": True}
        abnormal |= {"boxes": [[0.5, 0.5, 0.75, 1.0]], "extra_boxes": [], "labels": ["pleural effusion"]}
        abnormal |= {"locations": [["left"]], "progression": None}
        normal = {"sentence_en": "Heart of normal size.", "sentence_es": "Corazón normal.", "abnormal": False}
        content.append(about | {"findings": [normal, abnormal] if i < 8 else [normal]})
        split = "test" if i < 18 else ("train", "validation")[i - 18]
        labels = ["pleural effusion", "Normal"] if i < 8 else ["Normal"]
        rows += [(about["StudyID"], about["ImageID"], f"p{i}", label, "group", split) for label in labels]
    (root / "grounded_reports_20240819.json").write_text(json.dumps(content))
    columns = ("StudyID", "ImageID", "PatientID", "label", "label_group", "split")
    write_csv(root / "master_table.csv", columns, rows)
    for about in content:
        deep = np.linspace(0, 4000, 36 * 48).reshape(36, 48).astype(np.uint16)
        path = root / "Padchest_GR_files" / about["ImageID"]
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(deep).save(path)
    tables = ["grounded_reports_20240819.json", "master_table.csv"]
    return Tree("padchest_gr", tables, f"Padchest_GR_files/{content[0]['ImageID']}")


def openi_xml(root: Path) -> Tree:
    write_openi_tree(root / "drawn", ROWS, 48)
    for path in (root / "drawn").iterdir():
        path.rename(root / path.name)
    return Tree("openi", ["ecgen-radiology/1.xml", "ecgen-radiology/2.xml"], "images/CXR1_IM-0001-1001.png")


def chexpert_plus(root: Path) -> Tree:
    write_chexpert_plus_tree(root / "drawn", ROWS, 48)
    for path in (root / "drawn").iterdir():
        path.rename(root / path.name)
    path = next((root / "PNG/train").rglob("*.png")).relative_to(root)
    tables = ["df_chexpert_plus_240401.csv", "chexbert_labels/report_fixed.json"]
    return Tree("chexpert_plus", tables, str(path), [("train", {})])


def rexgradient(root: Path) -> Tree:
    write_rexgradient_tree(root / "drawn", ROWS, 48)
    for path in (root / "drawn").iterdir():
        path.rename(root / path.name)
    path = next((root / "deid_png").rglob("*.png")).relative_to(root)
    return Tree("rexgradient", ["metadata/train_metadata_view_position.json"], str(path), [("train", {})])


TREES: dict[str, Callable[[Path], Tree]] = {
    f.__name__: f
    for f in (
        *(chexpert, padchest, chestxray14, openi, mimic_cxr, ms_cxr, ms_cxr_json),
        *(pairs_csv, pairs_jsonl, pairs_parquet),
        *(openi_xml, chexpert_plus, rexgradient),
        *(rsna_pneumonia, vindr_cxr, siim_acr, chestxdet10, chexlocalize, padchest_gr),
    )
}
