# Licensed under the Apache License, Version 2.0.
"""What must not leave with a model: results and settings freed of it, and a last look at every file for its signs."""

import dataclasses
import re
import struct
from collections.abc import Iterable
from pathlib import Path

from ..data import DATASETS, PLACES
from ..data.chestxray14 import LABELS as CHESTXRAY14_LABELS
from ..data.columns import CHEXPERT_LABELS
from ..data.synthetic import FINDINGS as SYNTHETIC_FINDINGS
from ..evaluation import has_prompts
from ..training.configuration import TrainConfig


# Results

# Findings whose names are everybody's. The columns of somebody's own pairs may be called by other things.
KNOWN_FINDINGS = frozenset((*CHEXPERT_LABELS, *CHESTXRAY14_LABELS, *SYNTHETIC_FINDINGS))

# Paths; other models; people; words of the data set's sentences. Not among the names below, and no finding's either.
_NEVER = frozenset("unreadable notes model compared members by_reader localisation_tokens skipped image_ids".split())
# The names under which results may stand.
_KEYS = frozenset(
    """
    step epoch validation num_images dataset split name score labels uncertain blank protocol prompts source findings
    positive negative counts images studies subjects views regions texts fingerprints data versions settings batch_size
    dtype device processes resamples smooth_maps seed confidence fingerprint metrics options
    auroc mean undefined peak_spread loss contrastive_loss token_entropy patch_entropy max_token_entropy
    max_patch_entropy negative_share peak top10_share retrieval retrieval_intervals image_to_text text_to_image r@1 r@5
    r@10 localisation localisation_intervals localisation_maps pointing_game chance cnr iou miou num_outside text place
    resolution map num_maps classification image study_mean study_max num_positive num_negative few_subjects
    threshold_mcc threshold_f1 average_precision mcc sensitivity specificity f1 ece ece_calibrated value low high
    dropped readers unit mean_of_readers model_minus_readers num_read p_bootstrap sparsity without_padding with_padding
    effective_patches gini
    python torch transformers datasets accelerate evaluate safetensors tokenizers numpy scikit-learn pillow system
    machine num_processes
    PA AP LATERAL LL AP_horizontal COSTAL unknown
    """.split()
) | set(DATASETS)

# What is a text and not a number may stand under these alone, and reads like a word or a release, or like a reason.
_TEXTS = frozenset(
    """
    dataset split name uncertain blank source data fingerprint text place resolution map unit undefined dtype device
    python torch transformers datasets accelerate evaluate safetensors tokenizers numpy scikit-learn pillow system
    machine
    """.split()
)
_WORD = re.compile(r"[\w.+:-]{1,64}")
_REASON = re.compile(r"[\w =,+.()-]{1,80}")


def cleaned_results(results: dict, any_finding: bool = False) -> dict:
    """
    Numbers, and of texts and names only the known ones: whatever is added to the results one day stays at home until
    it is named above.

    Args:
        results: what `metrics.json` holds.
        any_finding: whether findings may have any name; else those of `KNOWN_FINDINGS` alone.
    """
    return _cleaned(results, any_finding, key="")


def _cleaned(value, any_finding: bool, key: str):
    if isinstance(value, dict):
        kept = {name: each for name, each in value.items() if name in _KEYS or _is_finding(name, each, any_finding)}
        # A reason stands under the finding's name.
        cleaned = {
            name: _cleaned(each, any_finding, "undefined" if key == "undefined" else name)
            for name, each in kept.items()
        }
        return {name: each for name, each in cleaned.items() if each is not _GONE}
    if isinstance(value, list):
        return [each for each in (_cleaned(each, any_finding, key) for each in value) if each is not _GONE]
    if isinstance(value, str):
        form = _REASON if key == "undefined" else _WORD
        return value if key in _TEXTS and form.fullmatch(value) else _GONE
    return value if value is None or isinstance(value, bool | int | float) else _GONE


_GONE = object()


def _is_finding(name: str, value, any_finding: bool) -> bool:
    """Whether it is a finding's name; one that is not known must look like one, and stand for numbers."""
    if not any_finding or name in _NEVER:
        return name in KNOWN_FINDINGS
    numbers = value.values() if isinstance(value, dict) else [value]
    return bool(re.fullmatch(r"[^\W_][\w /,()'-]{0,60}", name)) and not any(isinstance(n, list) for n in numbers)


# Settings


def cleaned_options(options: dict, words: bool = True) -> dict:
    """
    Options of a data set without those that say where something lies.

    Args:
        words: whether texts may stay; the names of the columns of somebody's own pairs are theirs.
    """
    kept = {name: value for name, value in options.items() if name not in PLACES}
    return {
        name: value
        for name, value in kept.items()
        if value is None or isinstance(value, bool | int | float) or (words and _plain(value))
    }


def _plain(value) -> bool:
    values = value if isinstance(value, list | tuple) else [value]
    return all(isinstance(each, str) and re.fullmatch(r"[\w .,()-]{1,60}", each) for each in values)


def cleaned_training_config(config: dict, shown: dict[str, bool], bases: Iterable[Path] = ()) -> dict:
    """
    The options that `train.py` knows, without places on this machine.

    Args:
        config: what `training_config.yaml` holds.
        shown: for each data set of the run, whether it may be shown.
        bases: folders from which a relative path may have been meant.
    """
    result: dict = {}
    for section in dataclasses.fields(TrainConfig):
        value = config.get(section.name)
        if section.name == "output_dir" or value is None:
            continue
        if not dataclasses.is_dataclass(section.type):
            result[section.name] = value
            continue
        known = {field.name for field in dataclasses.fields(section.type)}
        result[section.name] = {name: each for name, each in value.items() if name in known}
    data, evaluation = result.get("data", {}), result.get("evaluation", {})
    for part, names in ((data, ("options", "train", "validation")), (evaluation, ("options",))):
        dataset = part.get("name") or part.get("dataset")
        words = dataset != "pairs" or shown.get(dataset, False)
        part |= {name: cleaned_options(part[name] or {}, words) for name in names if name in part}
    for section in ("model", "tokenizer"):
        part = result.get(section, {})
        if local_source(part.get("pretrained"), bases) is not None:
            part["pretrained"] = None
    if not is_packaged(evaluation.get("prompts")):
        evaluation["prompts"] = None
    result.get("training", {}).pop("resume_from_checkpoint", None)
    return without_origins(result)


def is_packaged(prompts: str | None) -> bool:
    """Whether sentences are those of a file of this package, and not of a file somewhere."""
    return bool(prompts and re.fullmatch(r"\w+", prompts) and has_prompts(prompts))


def local_source(name: str | None, bases: Iterable[Path] = ()) -> Path | None:
    """The place on this machine that a model's name means, there or not; None for the name of a model on the Hub."""
    if not name:
        return None
    for base in (Path(), *bases):
        if (base / name).exists():
            return base / name
    return None if re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) else Path(name)


def without_origins(settings):
    """Settings without the names under which a library remembers where it has loaded them from."""
    if isinstance(settings, dict):
        origins = ("_name_or_path", "name_or_path")
        return {name: without_origins(value) for name, value in settings.items() if name not in origins}
    return [without_origins(value) for value in settings] if isinstance(settings, list) else settings


# The last look

_ALONE, _END = r"(?<![0-9A-Za-z])", r"(?![0-9A-Za-z])"
_SIGNS = {
    "a subject of MIMIC": re.compile(rf"{_ALONE}p1\d(/|\d{{6}}{_END})"),
    "a study of MIMIC": re.compile(rf"{_ALONE}s5\d{{7}}{_END}"),
    "a number like a subject or study of MIMIC": re.compile(rf"(?<![0-9A-Za-z.])[15]\d{{7}}{_END}(?!\.\d)"),
    "an image of MIMIC-CXR": re.compile(rf"{_ALONE}[0-9a-f]{{8}}(-[0-9a-f]{{8}}){{4}}{_END}", re.IGNORECASE),
    "a DICOM identifier": re.compile(rf"(?<![0-9A-Za-z.])[12](\.\d+){{6,}}{_END}"),
    "a patient of CheXpert": re.compile(rf"{_ALONE}patient_?\d{{4,}}", re.IGNORECASE),
    "an image of ChestX-ray14": re.compile(rf"{_ALONE}\d{{8}}_\d{{3}}{_END}"),
    # The number that is let through is what a tokenizer without a limit has for one.
    "an image of PadChest": re.compile(rf"{_ALONE}(?!1000000000000000019884624838656{_END})\d{{25,}}"),
    "an image of Open-I": re.compile(rf"{_ALONE}(CXR)?\d+_IM-\d{{4}}", re.IGNORECASE),
    "a place on this machine": re.compile(
        r"""(?<![\w/.:<>)\]}~*@-])(~|\.{1,2})?/([\w.@+ -]+/)*[\w@+-][\w.@+-]*/[\w.@+-]+"""
        r"|(?<![0-9A-Za-z])[A-Za-z]:\\+\w|(?<!\w)\\{2,4}\w+\\+\w|file://|(?<![\w/])~/\w"
    ),
    "a picture": re.compile(r"data:image/|iVBORw0KGgo|/9j/4AAQ|R0lGODlh"),
}
# In a vocabulary that comes with published weights numbers and slashes are no signs; in one made here numbers are.
_OF_PUBLISHED_WORDS = ("a subject of MIMIC", "a study of MIMIC", "an image of MIMIC-CXR", "a DICOM identifier")
_LONG_NUMBER = re.compile(r"\d{5,}")

_PICTURES = {
    "PNG": b"\x89PNG",
    "JPEG": b"\xff\xd8\xff",
    "GIF": b"GIF8",
    "BMP": b"BM",
    "TIFF": b"II*\0",
    "TIFF (big endian)": b"MM\0*",
    "WebP": b"RIFF",
    "JPEG 2000": b"\0\0\0\x0cjP  ",
    "zip": b"PK\x03\x04",
    "gzip": b"\x1f\x8b",
}


def scan(path: str, content: bytes, words: str | None = None, places: Iterable[Path] = ()) -> list[str]:
    """
    Signs of a picture, a patient or a place on this machine in what would leave.

    Args:
        path: the file's name there, for the messages.
        content: a whole file.
        words: for the file of a vocabulary "made here" or "published".
        places: folders of this machine that must not be named.

    Returns:
        one line for each sign, with file and line.
    """
    if kind := picture_kind(content):
        return [f"{path}: is a file of the kind {kind}, which may hold pictures"]
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return [f"{path}: is not a text, so it cannot be looked through"]
    signs = {name: _SIGNS[name] for name in _OF_PUBLISHED_WORDS} if words == "published" else dict(_SIGNS)
    if words == "made here":
        signs["a number among the words"] = _LONG_NUMBER
    if path.endswith(".safetensors.index.json"):  # sizes in bytes
        signs.pop("a number like a subject or study of MIMIC")
    literal = [str(place) for place in places if len(place.parts) > 1]
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        for what, sign in signs.items():
            if match := sign.search(line):
                found.append(f"{path}, line {number}: looks like {what}: {match.group()[:60]!r}")
        for place in literal:
            if re.search(rf"{re.escape(place)}(?![\w.-])", line):
                found.append(f"{path}, line {number}: names the place {place!r} on this machine")
    return found


def picture_kind(content: bytes) -> str | None:
    """The kind of a file that is a picture, or an archive that may hold some."""
    if content[128:132] == b"DICM":
        return "DICOM"
    return next((kind for kind, magic in _PICTURES.items() if content.startswith(magic)), None)


def is_drawn_figure(content: bytes) -> bool:
    """Whether a PNG file is as `matplotlib` writes it, with nothing in it but the picture and matplotlib's name."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return False
    place, kinds, texts = 8, [], []
    while place + 12 <= len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        kinds.append(content[place + 4 : place + 8])
        if kinds[-1] == b"tEXt":
            texts.append(content[place + 8 : place + 8 + length])
        place += 12 + length
    whole = (
        place == len(content)
        and kinds[-1:] == [b"IEND"]
        and set(kinds) <= {b"IHDR", b"tEXt", b"pHYs", b"IDAT", b"IEND"}
    )
    return whole and len(texts) == 1 and texts[0].startswith(b"Software\0Matplotlib")
