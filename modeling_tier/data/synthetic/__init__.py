# Licensed under the Apache License, Version 2.0.
"""Radiographs drawn by code, with reports: the data set that needs no access and no download."""

from .chexpert_plus_tree import write_chexpert_plus_tree
from .contact_sheet import write_contact_sheet
from .example import example_study
from .mimic_tree import write_mimic_tree
from .openi_tree import write_openi_tree
from .pairs import DRAWINGS, RECORD, Study, draw_studies, draw_subject, synthetic_pairs
from .pairs_folder import write_pairs_folder
from .phantom import FINDINGS
from .reports import region_phrase
from .rexgradient_tree import write_rexgradient_tree


__all__ = [
    "DRAWINGS",
    "FINDINGS",
    "RECORD",
    "Study",
    "draw_studies",
    "draw_subject",
    "example_study",
    "region_phrase",
    "synthetic_pairs",
    "write_chexpert_plus_tree",
    "write_contact_sheet",
    "write_mimic_tree",
    "write_openi_tree",
    "write_pairs_folder",
    "write_rexgradient_tree",
]
