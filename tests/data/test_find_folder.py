# Licensed under the Apache License, Version 2.0.
"""The folder of a data set among those of others."""

import os
import warnings

import pytest

from modeling_tier.data import DATASETS, load_pairs
from modeling_tier.data.find_folder import find_folder
from modeling_tier.data.prepare_set import prepare_dataset
from tests.data.small_sets import TREES


# By tree, names under which people have the data set.
FOLDERS = {
    "chexpert": ("CheXpert-v1.0", "chexpert", "CheXpert-v1.0-small", "CheXpert_v1.0"),
    "padchest": ("PadChest", "BIMCV-PadChest-FULL"),
    "chestxray14": ("ChestX-ray14", "nih-chest-xray-14", "CXR8"),
    "openi": ("Open-I", "iu_xray", "openi"),
    "openi_xml": ("NLMCXR",),
    "ms_cxr": ("mimic-cxr-jpg", "MIMIC-CXR-JPG/2.0.0", "physionet.org/files/mimic-cxr-jpg/2.1.0"),
    "rsna_pneumonia": ("rsna-pneumonia-detection-challenge", "RSNA Pneumonia"),
    "siim_acr": ("siim-acr-pneumothorax", "SIIM"),
    "vindr_cxr": ("vindr-cxr", "VinDr-CXR/1.0.0", "physionet.org/files/vindr-cxr/1.0.0"),
    "chestxdet10": ("ChestX-Det10-Dataset", "ChestX_Det10", "chestxdet10"),
    "chexlocalize": ("chexlocalize", "CheXlocalize", "."),
    "padchest_gr": ("PadChest-GR", "padchest_gr"),
}


@pytest.mark.parametrize(("tree", "folder"), [(tree, name) for tree, names in FOLDERS.items() for name in names])
def test_usual_names(tmp_path, tree, folder):
    for other in ("Downloads", "padchest-gr-notes", "chexpert", "mimic-cxr-notes"):  # nothing of it in there
        (tmp_path / other).mkdir()
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    written = TREES[tree](tmp_path / folder)
    found = find_folder(tmp_path, DATASETS[written.name], {})
    assert found.path is not None, found.reason
    assert found.path.resolve() == (tmp_path / folder).resolve()
    split, options = written.calls[0]
    if folder == FOLDERS[tree][0] and split == "test":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert len(load_pairs(written.name, split, data_dir=found.path, **options, **found.options))


@pytest.mark.parametrize("folder", ["CheXpert-v1.0 batch 1 (validate & csv)", "CheXpert-v1.0/CheXpert-v1.0"])
def test_an_archive_unpacked_in_parts_or_twice(tmp_path, folder):
    (tmp_path / folder).mkdir(parents=True)
    TREES["chexpert"](tmp_path / folder)
    found = find_folder(tmp_path, DATASETS["chexpert"], {})
    assert found.path and len(load_pairs("chexpert", "test", data_dir=found.path)) == 20


def test_nothing_there_says_what_was_looked_for(tmp_path):
    (tmp_path / "RSNA").mkdir()
    reason = find_folder(tmp_path, DATASETS["rsna_pneumonia"], {}).reason
    assert reason.startswith(f"no folder of it in {tmp_path} (looked for rsna-pneumonia, rsna*)")
    assert f"{tmp_path / 'RSNA'} holds none of stage_2_train_labels.csv" in reason


def test_a_prepared_folder_comes_first_and_must_have_the_same_options(tmp_path):
    (tmp_path / "ChestX-Det10").mkdir()
    TREES["chestxdet10"](tmp_path / "ChestX-Det10")
    record, raw = DATASETS["chestxdet10"], {"data_dir": tmp_path / "ChestX-Det10"}
    prepare_dataset(record, tmp_path / "chestxdet10", raw, ["test"], size=64, progress=False)
    assert find_folder(tmp_path, record, {}).path == tmp_path / "chestxdet10"
    assert find_folder(tmp_path, record, {"with_boxes": True}).path == tmp_path / "ChestX-Det10"
    (tmp_path / "ChestX-Det10/test.json").unlink()
    reason = find_folder(tmp_path, record, {"with_boxes": True}).reason
    assert "chestxdet10 was prepared with with_boxes False, not True" in reason
    assert (
        "was prepared from the data set 'chestxdet10'"
        in find_folder(tmp_path, DATASETS["siim_acr"], {}, "chestxdet10").reason
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_of_another_user_does_not_end_the_search(tmp_path):
    (tmp_path / "ChestX-Det10").mkdir(mode=0)
    found = find_folder(tmp_path, DATASETS["chestxdet10"], {})
    assert found.path is None and "ChestX-Det10 cannot be read (Permission denied)" in found.reason


def test_the_boxes_of_ms_cxr_in_a_folder_of_their_own(tmp_path):
    (tmp_path / "mimic-cxr-jpg").mkdir()
    TREES["ms_cxr"](tmp_path / "mimic-cxr-jpg")
    record, boxes = DATASETS["ms_cxr"], tmp_path / "physionet.org/files/ms-cxr/1.1.0/MS_CXR_Local_Alignment_v1.1.0.csv"
    assert find_folder(tmp_path, record, {}).options == {}
    boxes.parent.mkdir(parents=True)
    (tmp_path / "mimic-cxr-jpg/ms_cxr.csv").rename(boxes)
    found = find_folder(tmp_path, record, {})
    assert found.path == tmp_path / "mimic-cxr-jpg" and found.options == {"boxes": str(boxes)}
    with pytest.warns(UserWarning, match="training split"):
        assert len(load_pairs("ms_cxr", "test", data_dir=found.path, **found.options))
    boxes.unlink()
    assert "MS_CXR_Local_Alignment_v1.1.0.csv" in find_folder(tmp_path, record, {}).reason
