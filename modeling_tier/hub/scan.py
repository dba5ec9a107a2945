# Licensed under the Apache License, Version 2.0.
"""
The last check of everything that would be sent: patients, secrets, addresses, pictures, paths of this machine.

What is sent is built from known fields (`known_fields.py`), so nothing should be found here. Secrets are found by
`detect-secrets` and by the patterns below, which know what it does not: tokens of the Hub, identifiers of the data
sets, and what identifies a person.
"""

import functools
import getpass
import io
import re
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
from detect_secrets.core.scan import scan_line
from detect_secrets.plugins.high_entropy_strings import Base64HighEntropyString, HexHighEntropyString
from detect_secrets.settings import transient_settings
from PIL import Image

from ..data import DATASETS
from ..data.record import ID_END, ID_START


Kind = Literal["text", "fields", "own words", "published words", "unrecorded words"]
"""
What a file holds: free text; fields whose names and values are known; or the vocabulary of a tokenizer, which was made
by `train.py` from complete words, is that of a published tokenizer, or is of unknown origin.
"""

_PATIENTS = {what: pattern for record in DATASETS.values() for what, pattern in record.id_patterns.items()} | {
    "a DICOM identifier": rf"(?<![0-9A-Za-z.])[12](\.\d+){{6,}}{ID_END}",
    "a record number": r"(?i)\b(MRN|DOB|SSN|NHS|(medical )?record|accession|patient|hospital|case)"
    r" ?(id|no|number|nr|#)?\.?\s*[:#=]?\s*[A-Z]{0,3}\d{4,}",
    "a social security number": r"(?<![\w.-])\d{3}-\d{2}-\d{4}(?![\w.-])",
    "a date of birth": r"(?i)\b(DOB|born|birth(date|day)?|date of birth)\b\W{0,5}(on )?"
    r"(\d{1,2}[./-]\d{1,2}[./-]\d{2,4}|\d{4}[./-]\d{1,2}[./-]\d{1,2})",
    "a telephone number": r"(?<![\w.,/+-])(?=([+( ).-]{0,3}\d){9})(\+\d{1,3}[ .-]?)?(\(\d{2,4}\) ?|\d{2,4}[ .-])"
    r"\d{3,4}[ .-]\d{3,4}"
    r"(?![\w-]|\.\d)"
    r"|(?<![\w.+-])\+\d{8,14}(?!\d)",
}
_SECRETS = {
    "a token of the Hub": r"(?<![0-9A-Za-z])(hf|api_org)_[0-9A-Za-z]{16,}",
    "an AWS key": rf"{ID_START}(A3T[A-Z0-9]|AKIA|ASIA|ABIA|ACCA|AGPA|AIDA|AROA|ANPA|ANVA|AIPA)[A-Z0-9]{{16}}{ID_END}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY|PuTTY-User-Key-File",
    "an SSH key": r"(ssh-(rsa|dss|ed25519)|ecdsa-sha2-nistp\d+)\s+AAAA",
    "an API key": rf"{ID_START}(github_pat_\w{{20,}}|AIza[\w-]{{30,}}|sk-(ant|proj)-[\w-]{{20,}}|npm_\w{{30,}}"
    r"|pypi-\w{20,})",
    "a password or key": r"(?i)(passw(or)?d|passphrase|pwd|secret|(api|access|secret|private|account)[_ -]?key"
    r"|(auth|access|api)[_ -]?token)[\"']?\s*[:=]\s*[\"']?(?=[^\s\"',]*[a-z])[^\s\"',]{6,}"
    r"|\bbearer\s+[\w.~+/=-]{16,}",
}
_ADDRESSES = {
    "an e-mail address": r"[\w.+-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}",
    # In a prompt or a copied path; or of a numbered computer, unless it is a measure at a number (recall@top5) or a
    # release (tier@v2). Other names of computers are known for this one alone, by `_this_computer`.
    "an account on a computer": r"(?<![\w./@+-])[a-z_][a-z0-9_.-]*[a-z0-9]@[A-Za-z][A-Za-z0-9-]*"
    r"(:[~/]|(?<=@localhost)\b)"
    r"|(?<![\w./@+-])(?!(recall|precision|hits?|acc(uracy)?|map|ndcg|pass|top|f1)@)[a-z_][a-z0-9_.-]*[a-z0-9]@"
    r"(?!(v|r|k|n|at|top|rank|run|part|step|epoch|iter|seed|fold|stage|level|layer|iou|res|px|rev|release|version|next"
    r"|laion|imagenet|cifar|commit)-?\d)(?![0-9a-f]{7,}\b)[a-z]+(-[a-z]+)*-?\d{1,4}(?![0-9A-Za-z@-]|\.\w)",
    # A release of four numbers looks the same: it is known by the word before it.
    "an IP address": r"(?i)(?<!cudnn )(?<!cuda )(?<!nccl )(?<!version )(?<!release )(?<![\w.+-])"
    r"((25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(25[0-5]|2[0-4]\d|1?\d?\d)(?![\w+-]|\.\w)"
    r"|(?<![\w:.])([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}(?![\w:])|(?<![\w:.])fe80::[0-9a-f:]+"
    r"|(?<![\w:.])(?=[a-f:]*\d)([0-9a-f]{1,4}:){2,6}(:[0-9a-f]{1,4}){1,5}(?![\w:])",
    "a hardware address": r"(?i)(?<![\w:])([0-9a-f]{2}:){5}[0-9a-f]{2}(?![\w:])",
    "a path of this machine": r"""(?<![\w/.:<>)\]}~*@-])(~|\.{1,2})?/([\w.@+ -]+/)*[\w@+-][\w.@+-]*/[\w.@+-]+"""
    r"|(?<![0-9A-Za-z])[A-Za-z]:\\+\w|(?<!\w)\\{2,4}\w+\\+\w|file://|(?<![\w/])~/\w",
    "a picture": r"data:image/|iVBORw0KGgo|/9j/4AAQ|R0lGODlh",
}
_SIGNS = {name: re.compile(pattern) for name, pattern in (_PATIENTS | _SECRETS | _ADDRESSES).items()}
# A published vocabulary holds numbers, slashes and pieces of addresses by itself; these signs it never holds.
_PUBLISHED_WORDS = (
    *(what for record in DATASETS.values() for what in record.distinctive_ids),
    *("a DICOM identifier", "a token of the Hub", "an AWS key", "a private key"),
)
_DATA_SET_ADDRESSES = [record.address for record in DATASETS.values() if record.address]
_LONG_NUMBER = re.compile(r"\d{5,}|\d{3}[-.]\d{4}")
_TOKEN_ID = re.compile(r'(?<="):\s*\d+')

# The detectors of randomness name every word of a line that has no quotes: they are asked for long words alone. Those
# that look for words such as "token" find much in a model's files: they are used on free text alone.
_RANDOMNESS = {
    "Base64HighEntropyString": Base64HighEntropyString(4.5),
    "HexHighEntropyString": HexHighEntropyString(3.0),
}
_LONG_WORD = re.compile(r"[0-9A-Za-z+/=_-]{20,}")
_MIN_RUN = 16
"""Letters and digits without a separator in a random word; the names of models have shorter parts."""
_NOT_RANDOM = re.compile(
    r"(?<![\w.])[+-]?\d+(\.\d*)?(e[+-]?\d+)?(?![\w.])"  # a number
    r"|\+g(it)?[0-9a-f]{6,40}\b"  # the end of a release
    r"|(?i:\b(commit|revision|sha-?\d*|fingerprint|checksum)\W{1,4}[0-9a-f]{40,64}\b)"
)
_CHECKSUM = re.compile(r"(?<!\w)[0-9a-f]{64}(?!\w)")
_GUESSING_DETECTORS = ("KeywordDetector",)
_REPLACED_DETECTORS = ("IPPublicDetector", *_RANDOMNESS)  # the first takes releases of software for addresses

_BINARY_KINDS = {
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
    "PDF": b"%PDF",
}


def scan(path: str, content: bytes, kind: Kind = "fields", local_paths: Iterable[Path] = ()) -> list[str]:
    """
    Signs of what must not be sent.

    Args:
        path: the file's name in the repository, for the messages; it is checked as well.
        content: of the complete file.
        kind: what it holds.
        local_paths: folders of this machine that must not be named.

    Returns:
        one line for each sign, with file and line.
    """
    messages = [f"the name {path!r}: looks like {what}" for what, _ in _signs(path, _SIGNS)]
    if binary := binary_kind(content):
        return [*messages, f"{path}: is a file of the kind {binary}, which may hold pictures"]
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return [*messages, f"{path}: is not a text, so it cannot be checked"]
    signs = {name: _SIGNS[name] for name in _PUBLISHED_WORDS} if kind == "published words" else dict(_SIGNS)
    if kind == "own words":
        signs["a number among the words"] = _LONG_NUMBER
    if kind == "unrecorded words":  # pieces of words, among them slashes
        signs.pop("a path of this machine")
    if path.endswith(".safetensors.index.json"):  # sizes in bytes
        signs.pop("a number like a subject or study of MIMIC")
    if kind in ("text", "fields"):
        signs["an account on this computer"] = _this_computer()
    folders = [(path, _literal(path)) for path in map(str, local_paths) if len(Path(path).parts) > 1]
    for address in _DATA_SET_ADDRESSES:  # one of them holds a number like an image's
        text = text.replace(address, " ")
    lines = (_TOKEN_ID.sub("", text) if kind == "own words" else text).splitlines()
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        spellings = _with_separate_words(line) if kind == "text" else [line]
        seen = {what: match for spelling in spellings for what, match in _signs(spelling, signs)}
        messages += [f"{where}: looks like {what}: {match[:60]!r}" for what, match in seen.items()]
        messages += [
            f"{where}: names the folder {folder!r} of this machine" for folder, sign in folders if sign.search(line)
        ]
    messages += [f"{path}, line {number}: looks like a secret ({what})" for number, what in _secrets(lines, kind)]
    return messages


def scan_text(name: str, text: str, local_paths: Iterable[Path] = ()) -> list[str]:
    """[`scan`] for a text that is not a file, such as the message of a commit."""
    return [f"{name}: {message.partition(': ')[2]}" for message in scan("", text.encode(), "text", local_paths)]


def _signs(line: str, signs: dict[str, re.Pattern]) -> Iterator[tuple[str, str]]:
    for what, sign in signs.items():
        if match := sign.search(line):
            yield what, match.group()


def _with_separate_words(line: str) -> list[str]:
    """
    The line, and spellings of it in which words and numbers joined by hyphens and underscores are separate: in the
    name of a branch, a telephone number may follow a word and a hyphen.
    """
    apart = re.sub(r"(?<=[^\W\d])[-_]|[-_](?=[^\W\d])", " ", line)
    joints = [match.start() for match in re.finditer(r"[-_]", apart)]
    return [line, apart, *(f"{apart[:i]} {apart[i + 1 :]}" for i in joints)]


@functools.cache
def _this_computer() -> re.Pattern:
    """This user at any computer, and any user at this one; nothing where they have no name."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        user = ""
    host = socket.gethostname().partition(".")[0]
    named = [rf"(?<![\w./@-]){re.escape(user)}@(?=[a-z])"] if len(user) > 1 else []
    named += [rf"\w@{re.escape(host)}(?![0-9A-Za-z-])"] if len(host) > 1 else []
    return re.compile("|".join(named) or "(?!)", re.IGNORECASE)


def _literal(path: str) -> re.Pattern:
    return re.compile(rf"(?<![\w.-]){re.escape(path)}(?![\w.-])")


def _secrets(lines: list[str], kind: Kind) -> Iterator[tuple[int, str]]:
    """Line numbers and kinds of what `detect-secrets` finds."""
    left_aside = _REPLACED_DETECTORS if kind == "text" else (*_REPLACED_DETECTORS, *_GUESSING_DETECTORS)
    names = {detector.__name__ for detector in get_mapping_from_secret_type_to_class().values()} - set(left_aside)
    least = 12 if kind.endswith("words") else 8  # no secret is shorter
    with transient_settings({"plugins_used": [{"name": name} for name in sorted(names)]}):
        for number, line in enumerate(lines, 1):
            if len(line.strip()) < least:
                continue
            for secret in scan_line(line):
                yield number, secret.type
            if kind in ("text", "fields") and _has_random_word(line, kind):
                yield number, "random characters"


def _has_random_word(line: str, kind: Kind) -> bool:
    rest = _NOT_RANDOM.sub(" ", line)
    if kind == "fields":  # of models and data, with which results are told apart
        rest = _CHECKSUM.sub(" ", rest)
    return any(_is_random(word) for word in _LONG_WORD.findall(rest))


def _is_random(word: str) -> bool:
    detectors = _RANDOMNESS.values()
    mixed = bool(re.search(r"\d", word) and re.search(r"[A-Za-z]", word))
    mixed = mixed and max(map(len, re.split(r"[-_/+=]", word))) >= _MIN_RUN
    return mixed and any(detector.calculate_shannon_entropy(word) > detector.entropy_limit for detector in detectors)


def binary_kind(content: bytes) -> str | None:
    """The kind of a file that is a picture, or an archive that may hold some."""
    if content[128:132] == b"DICM":
        return "DICOM"
    return next((kind for kind, magic in _BINARY_KINDS.items() if content.startswith(magic)), None)


# Figures

_MIN_BACKGROUND = 0.3
"""Fraction of a drawn figure's pixels that have one colour; a radiograph has hundreds of greys."""


def redrawn_figure(content: bytes, with_pictures: bool = False) -> bytes | None:
    """
    The pixels of a PNG file that `matplotlib` has drawn, as a new PNG file with nothing else in it: no text, no time,
    no profile.

    Args:
        content: the file.
        with_pictures: whether it may hold radiographs; else one that looks like a picture is refused.

    Returns:
        None for what is not as matplotlib writes it.
    """
    if not _is_matplotlibs(content):
        return None
    try:
        with Image.open(io.BytesIO(content)) as figure:
            pixels = figure.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    if not with_pictures:
        size = pixels.width * pixels.height
        if max(number for number, _ in pixels.getcolors(size)) < _MIN_BACKGROUND * size:
            return None
    new = io.BytesIO()
    Image.frombytes("RGB", pixels.size, pixels.tobytes()).save(new, "PNG", optimize=True)
    return new.getvalue()


def _is_matplotlibs(content: bytes) -> bool:
    """Whether a PNG file consists of the parts that matplotlib writes, to its end."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return False
    position, kinds, texts = 8, [], []
    while position + 12 <= len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        kinds.append(content[position + 4 : position + 8])
        if kinds[-1] == b"tEXt":
            texts.append(content[position + 8 : position + 8 + length])
        position += 12 + length
    complete = position == len(content) and kinds[-1:] == [b"IEND"]
    known = set(kinds) <= {b"IHDR", b"tEXt", b"pHYs", b"IDAT", b"IEND"}
    return complete and known and len(texts) == 1 and texts[0].startswith(b"Software\0Matplotlib")
