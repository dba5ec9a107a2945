# Licensed under the Apache License, Version 2.0.
"""
Synthetic radiographs with reports: the data set that needs no access and no download.

Drawings made by code, of no clinical meaning: they show what a method does, not what it is worth on patients.

    python -m modeling_tier.data synthetic OUTPUT --layout contact_sheet
    python -m modeling_tier.data synthetic OUTPUT --layout mimic_cxr --num_images 1000
"""

import copy
import functools
import io
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import numpy as np
from datasets import Dataset, DatasetInfo
from PIL import Image as PILImage

from ..columns import SPLITS, check_choice, pair_features
from ..processes import follow_parent
from ..record import DatasetRecord
from . import phantom, reports
from .fine import cases as fine_cases
from .fine import chest as fine_chest
from .fine import phantom as fine_phantom
from .fine import reports as fine_reports
from .fine.findings import FINDINGS as FINE_FINDINGS
from .phantom import FINDINGS, Finding, Region
from .reports import Report


SECTIONS = ("findings", "impression", "both")
MIN_FINE_SIZE = 64  # pixels a side at which the small findings of the fine drawings are seen

_STUDIES = (1, 2, 3)
_STUDIES_CHANCE = (0.6, 0.25, 0.15)


class Study(NamedTuple):
    """One exposure with everything that is known of it."""

    drawings: str
    """A key of [`DRAWINGS`]."""
    subject_id: int
    study_id: int
    image_id: str
    view: str
    findings: list[Finding]
    report: Report
    pixels: np.ndarray
    regions: list[Region]
    organs: dict[str, np.ndarray]
    """Masks (size, size) of the "heart" and of the "lungs" beside it."""

    def phrase(self, region: Region) -> str:
        """A sentence that names one of the regions."""
        return DRAWINGS[self.drawings].region_phrase(region.finding, region.side)


class Drawings(NamedTuple):
    """What makes up one kind of drawings; the functions take the subject's generator of random numbers first."""

    findings: tuple[str, ...]
    sample_anatomy: Callable
    sample_findings: Callable
    follow_up: Callable
    render: Callable
    write_report: Callable
    region_phrase: Callable

    @property
    def labels(self) -> tuple[str, ...]:
        return (*self.findings, "Support Devices")


def synthetic_pairs(
    split: str = "train",
    num_images: int = 4000,
    image_size: int = 96,
    seed: int = 0,
    section: str = "both",
    num_proc: int = 1,
    drawings: str = "simple",
) -> Dataset:
    """
    Drawn radiographs with written reports. Drawings, of no clinical meaning.

    The first images of a longer data set are those of a shorter one, whatever the number of processes. The last few
    data sets are kept in memory: the next run of a demo, or the next trial of a search, does not draw them again.

    Args:
        split: "train", "validation" or "test"; each has subjects of its own.
        num_images: number of images; a subject has one to three studies of one image.
        image_size: pixels a side, at least 32.
        seed: of everything.
        section: text of a pair: "findings", "impression" or "both" (findings, then impression).
        num_proc: processes that draw.
        drawings: "simple" (seven findings, short reports) or "fine" (eleven findings with side, level and size;
            devices; reports of several sentences, some of them irrelevant; the same chest at each size, for 64 to 224
            pixels a side and more: below 64 the small findings cannot be seen, and a warning says so).

    Raises:
        ValueError: for a value outside of what is said above.
    """
    if section not in SECTIONS:
        raise ValueError(f"section must be one of {list(SECTIONS)}; got {section!r}.")
    subjects = _subjects(split, num_images, image_size, seed, drawings)
    chunks = _chunks(subjects, num_proc)
    # Shallow: the drawings are shared, what a caller sets in place is not.
    return copy.copy(_drawn(split, num_images, image_size, seed, section, tuple(map(tuple, chunks)), drawings))


@functools.lru_cache(maxsize=3)
def _drawn(
    split: str,
    num_images: int,
    image_size: int,
    seed: int,
    section: str,
    chunks: tuple[tuple[int, ...], ...],
    drawings: str,
) -> Dataset:
    """The pairs of [`synthetic_pairs`]; each chunk of subjects is drawn by a process of its own."""
    jobs = [(split, chunk, image_size, seed, drawings, section) for chunk in chunks]
    if len(jobs) == 1:
        parts = [_rows(job) for job in jobs]
    else:
        try:
            with ProcessPoolExecutor(len(jobs), initializer=follow_parent) as pool:
                parts = list(pool.map(_rows, jobs))
        except BrokenProcessPool as error:
            raise ValueError(
                "A process that draws ended too soon: killed, perhaps for want of memory, or started by a script "
                'without if __name__ == "__main__". num_proc: 1 draws in this process.'
            ) from error
    rows = [row for part in parts for row in part][:num_images]
    features = pair_features(DRAWINGS[drawings].labels, regions=True, mask=True)
    columns = {name: [row[name] for row in rows] for name in features}
    info = DatasetInfo(description="Radiographs drawn by code. Of no clinical meaning.", features=features)
    return Dataset.from_dict(columns, features=features, info=info)


def draw_studies(split: str, num_images: int, image_size: int, seed: int, drawings: str = "simple") -> Iterator[Study]:
    """The studies of [`synthetic_pairs`], one after the other, in its order."""
    drawn = 0
    for subject in _subjects(split, num_images, image_size, seed, drawings):
        for study in draw_subject(split, subject, image_size, seed, drawings):
            if drawn == num_images:
                return
            drawn += 1
            yield study


def _subjects(split: str, num_images: int, image_size: int, seed: int, drawings: str) -> list[int]:
    """Numbers of the subjects whose studies make up `num_images` images."""
    check_choice("synthetic", "drawings", drawings, DRAWINGS)
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}; use one of {list(SPLITS)}.")
    for name, value, least in (("num_images", num_images, 1), ("image_size", image_size, 32), ("seed", seed, 0)):
        if type(value) is not int or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}.")
    if drawings == "fine" and image_size < MIN_FINE_SIZE:
        warnings.warn(
            f"drawings: fine at image_size {image_size}: small findings cannot be seen below {MIN_FINE_SIZE} pixels.",
            stacklevel=3,
        )
    subjects, images = [], 0
    while images < num_images:
        images += _number_of_studies(_generator(split, len(subjects), seed))
        subjects.append(len(subjects))
    return subjects


def _chunks(items: list, number: int) -> list[list]:
    if type(number) is not int or number < 1:
        raise ValueError(f"num_proc must be an integer of at least 1; got {number!r}.")
    return [[items[i] for i in part] for part in np.array_split(np.arange(len(items)), number)]


def _generator(split: str, subject: int, seed: int) -> np.random.Generator:
    """A stream of random numbers of the subject's own: no process and no other subject has a part in it."""
    return np.random.default_rng([seed, SPLITS.index(split), subject])


def _number_of_studies(rng: np.random.Generator) -> int:
    return int(rng.choice(_STUDIES, p=_STUDIES_CHANCE))


def draw_subject(split: str, subject: int, size: int, seed: int, drawings: str) -> Iterator[Study]:
    """The studies of one subject, in their order."""
    kind, rng = DRAWINGS[drawings], _generator(split, subject, seed)
    number_of_studies = _number_of_studies(rng)
    anatomy = kind.sample_anatomy(rng)
    number = subject * len(SPLITS) + SPLITS.index(split)
    findings: list[Finding] = []
    for visit in range(number_of_studies):
        findings = kind.follow_up(rng, findings) if visit else kind.sample_findings(rng)
        view = "AP" if rng.random() < 0.3 else "PA"
        pixels, regions, organs = kind.render(rng, anatomy, findings, size, view)
        yield Study(
            drawings=drawings,
            subject_id=_spread(number, 10_000_000),
            study_id=_spread(number * max(_STUDIES) + visit, 50_000_000),
            image_id="-".join(f"{part:08x}" for part in rng.integers(0, 2**32, 5)),
            view=view,
            findings=findings,
            report=kind.write_report(rng, findings, view),
            pixels=pixels,
            regions=regions,
            organs=organs,
        )


def _follow_up(rng: np.random.Generator, before: list[Finding]) -> list[Finding]:
    """Half of the earlier findings persist, with another severity; new ones may come."""
    persisting = {f.name: f for f in before if rng.random() < 0.5}
    new = {f.name: f for f in phantom.sample_findings(rng) if rng.random() < 0.7}
    merged = new | {name: _with_severity(f, rng.uniform()) for name, f in persisting.items()}
    return list(merged.values())


def _with_severity(finding: Finding, severity: float) -> Finding:
    return Finding(finding.name, float(severity), finding.side, finding.zone)


def _spread(number: int, start: int) -> int:
    """Scatter consecutive numbers over the eight-digit range that begins at `start`, no two on the same."""
    return start + number * 7_654_321 % 9_999_991  # a prime


def _rows(job: tuple) -> list[dict]:
    split, subjects, size, seed, drawings, section = job
    studies = (study for subject in subjects for study in draw_subject(split, subject, size, seed, drawings))
    return [_row(study, section) for study in studies]


def _row(study: Study, section: str) -> dict:
    report = study.report
    present = {finding.name for finding in study.findings}
    return {
        "image": {"bytes": _encoded(study.pixels, "PPM"), "path": None},
        "text": " ".join(report) if section == "both" else getattr(report, section),
        "subject_id": study.subject_id,
        "study_id": study.study_id,
        "image_id": study.image_id,
        "view": study.view,
        "labels": {name: float(name in present) for name in DRAWINGS[study.drawings].labels},
        "regions": [
            {
                "finding": region.finding.name,
                "phrase": study.phrase(region),
                "box": mask_box(region.mask),
                "mask": {"bytes": _encoded(region.mask, "PNG", compress_level=1), "path": None},
            }
            for region in study.regions
        ],
    }


def _encoded(pixels: np.ndarray, kind: str, **options) -> bytes:
    """Pictures are kept as PPM: noise does not compress, and every epoch opens them; masks do, as PNG."""
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def mask_box(mask: np.ndarray) -> list[float]:
    """Smallest box around a mask: x_min, y_min, x_max, y_max, the last two exclusive."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]


DRAWINGS = {
    "simple": Drawings(
        FINDINGS,
        phantom.sample_anatomy,
        phantom.sample_findings,
        _follow_up,
        phantom.render,
        reports.write_report,
        reports.region_phrase,
    ),
    "fine": Drawings(
        FINE_FINDINGS,
        fine_chest.sample_anatomy,
        fine_cases.sample_findings,
        fine_cases.follow_up,
        fine_phantom.render,
        fine_reports.write_report,
        fine_reports.region_phrase,
    ),
}

RECORD = DatasetRecord(
    name="synthetic",
    load=synthetic_pairs,
    title="synthetic radiographs",
    address=None,
    licence="Apache-2.0, as this project",
    access="drawn by code, without patients: anyone may have them",
    shareable=True,
    findings=tuple(dict.fromkeys(label for kind in DRAWINGS.values() for label in kind.labels)),
)
