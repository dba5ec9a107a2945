# Licensed under the Apache License, Version 2.0.
"""The record of each data set: what the command line, the card and the scan before publishing rely on."""

import importlib
import pkgutil
import re

import pytest

from modeling_tier import data
from modeling_tier.data import DATASETS, PATH_OPTIONS, load_pairs


# Ids in the form in which each data set is published.
IDS = {
    "chexpert_plus": ("train/patient42142/study5/view1_frontal.jpg",),
    "rexgradient": ("GRDN000G7U5WRWQ4",),
    "mimic_cxr": ("p10000032", "s50414267", "02aa804e-bde0afdd-112c0b34-7bc16630-4e384014"),
    "ms_cxr": ("files/p10/p10000032/s50414267",),
    "chexpert": ("CheXpert-v1.0/valid/patient64541/study1/view1_frontal.jpg",),
    "padchest": ("216840111366964013076187734852011291090445391_00-196-188.png",),
    "chestxray14": ("00000001_000.png",),
    "chexlocalize": ("patient64541_study1_view1_frontal",),
    "padchest_gr": ("216840111366964013076187734852011291090445391_00-196-188.png",),
    "chestxdet10": ("36199.png",),
    "rsna_pneumonia": ("0004cfab-14fd-4e49-80ba-63a80b6bddd6.dcm",),
    "siim_acr": ("1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819",),
    "vindr_cxr": ("002a34c58c5b758217ed1f584ccbcfe9",),
    "openi": ("1_IM-0001-3001.dcm.png", "CXR1_1_IM-0001-4001"),
}


def test_every_record_is_registered():
    modules = [
        importlib.import_module(f"{data.__name__}.{module.name}") for module in pkgutil.iter_modules(data.__path__)
    ]
    records = [module.RECORD for module in modules if hasattr(module, "RECORD")]
    assert {record.name: record for record in records} == DATASETS and len(records) == len(DATASETS)


@pytest.mark.parametrize("name", DATASETS)
def test_a_record_says_who_may_have_it_and_what_its_ids_look_like(name):
    record = DATASETS[name]
    assert record.title and record.access and not record.access.endswith(".")
    assert (record.shareable is False) == (record.address is not None) == (name in IDS)
    assert set(record.distinctive_ids) <= set(record.id_patterns)
    for example in IDS.get(name, ()):
        assert any(re.search(pattern, example) for pattern in record.id_patterns.values())
        assert not any(
            re.search(pattern, "A small left effusion, 12.5 cm.") for pattern in record.id_patterns.values()
        )


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize("data_dir", [None, "nowhere/at/all"])
def test_a_missing_folder_is_an_error_that_says_where_the_data_set_is_published(name, data_dir):
    split = "validation" if name == "chexpert_plus" else "test"
    with pytest.raises(ValueError, match="data_dir") as error:
        load_pairs(name, split, data_dir=data_dir)
    assert str(error.value).endswith(f"{DATASETS[name].title} is published at {DATASETS[name].address}")
    assert (data_dir or "needs data_dir") in str(error.value)


def test_options_that_name_files_are_known_by_their_type():
    assert DATASETS["mimic_cxr"].path_options == ("data_dir", "reports_dir", "reports", "exclude_subjects")
    assert DATASETS["synthetic"].path_options == () and "split" not in DATASETS["synthetic"].options
    assert set(PATH_OPTIONS) == {"data_dir", "reports", "reports_dir", "exclude_subjects", "boxes", "reads_dir"}
