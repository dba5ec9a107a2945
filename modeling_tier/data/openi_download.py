# Licensed under the Apache License, Version 2.0.
"""Open-I from the National Library of Medicine: its two archives, unpacked while they are downloaded."""

import io
import os
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from tqdm.auto import tqdm

from .rejected import short


ADDRESS = "https://openi.nlm.nih.gov/imgs/collections"

_ARCHIVES = {"NLMCXR_reports.tgz": ("ecgen-radiology", ".xml"), "NLMCXR_png.tgz": ("images", ".png")}
_CHUNK = 1 << 20
_TIMEOUT = 60  # seconds without a byte


def download_openi(output_dir: str | os.PathLike, max_images: int | None = None, address: str = ADDRESS) -> dict:
    """
    Write Open-I's reports to `ecgen-radiology` and its images to `images`, from 1.3 GB of archives. What was
    downloaded stays beside them as `NAME.part` until its archive is finished: a stopped download goes on by the same
    call.

    Args:
        output_dir: folder to write, created if it is missing; then the `data_dir` of the data set.
        max_images: the first so many images of the archive, for a first look; no more is downloaded than they need.
        address: of the folder with the archives, for a mirror.

    Returns the number of files in each folder.

    Raises:
        ValueError: if an archive cannot be downloaded, or is damaged.
    """
    if max_images is not None and max_images < 1:
        raise ValueError(f"openi: max_images must be at least 1; got {max_images}.")
    output_dir = Path(output_dir)
    counts = {}
    for archive, (name, suffix) in _ARCHIVES.items():
        folder = output_dir / name
        folder.mkdir(parents=True, exist_ok=True)
        done = output_dir / f"{archive}.done"
        limit = max_images if suffix == ".png" else None
        if not done.is_file() and (limit is None or _count(folder, suffix) < limit):
            part = output_dir / f"{archive}.part"
            if _unpack(f"{address.rstrip('/')}/{archive}", part, folder, suffix, limit):
                done.touch()
                part.unlink(missing_ok=True)
        counts[name] = _count(folder, suffix)
    return counts


def _count(folder: Path, suffix: str) -> int:
    return sum(1 for _ in folder.glob(f"*{suffix}"))


def _unpack(url: str, part: Path, folder: Path, suffix: str, limit: int | None) -> bool:
    """Write the files of an archive that end so; whether the whole archive was read."""
    try:
        with _download(url, part) as stream, tarfile.open(fileobj=stream, mode="r|gz") as archive:
            for number, member in enumerate(m for m in archive if m.isfile() and m.name.endswith(suffix)):
                if number == limit:
                    return False
                path = folder / Path(member.name).name  # whatever folder the archive names
                if not path.is_file():
                    temporary = path.with_name(f"{path.name}.part")
                    temporary.write_bytes(archive.extractfile(member).read())
                    temporary.replace(path)
            stream.drain()
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise ValueError(
            f"{url} is not an archive, or {part} is damaged ({short(str(error))}): delete that file and start again."
        ) from error
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        raise ValueError(f"{url} cannot be downloaded: {short(str(error))}. The same command goes on.") from error
    return True


@contextmanager
def _download(url: str, part: Path) -> Iterator["_Download"]:
    """The content of an address from its first byte on; what `part` has of it is not asked for again."""
    before = part.stat().st_size if part.is_file() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={before}-"} if before else {})
    with httpx2.stream("GET", url, headers=headers, timeout=_TIMEOUT, follow_redirects=True) as response:
        complete = response.status_code == 416  # all of it is there
        if not complete:
            response.raise_for_status()
        if response.status_code == httpx2.codes.OK:
            before = 0  # the server sends all of it again
        total = before if complete else before + int(response.headers.get("Content-Length", 0))
        chunks = iter(()) if complete else response.iter_raw(_CHUNK)
        with (
            part.open("r+b" if before else "wb") as file,
            tqdm(total=total or None, unit="B", unit_scale=True, desc=part.stem) as bar,
        ):
            yield _Download(file, chunks, before, bar)


class _Download(io.RawIOBase):
    """A stream that reads a file, then a response, of which it adds each piece to the file."""

    def __init__(self, file, chunks: Iterator[bytes], stored: int, bar: tqdm):
        self.file, self.chunks, self.left, self.bar = file, chunks, stored, bar
        self.rest = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        size = _CHUNK if size is None or size < 0 else size
        if self.left:
            content = self.file.read(min(size, self.left))
            self.left -= len(content)
        else:
            if not self.rest:
                self.rest = next(self.chunks, b"")
                self.file.write(self.rest)
            content, self.rest = self.rest[:size], self.rest[size:]
        self.bar.update(len(content))
        return content

    def drain(self) -> None:
        """Read to the end, behind the archive's last file."""
        while self.read(_CHUNK):
            pass
