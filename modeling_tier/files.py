# Licensed under the Apache License, Version 2.0.
"""Files and folders that appear complete or not at all, and a lock against a second process in a folder."""

import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout


LOCK_FILE = ".lock"


@contextmanager
def replaced_file(path: str | Path, shared: bool = False) -> Iterator[BinaryIO]:
    """
    A file opened for writing that gets the name `path` when the block ends, its content being on the disk by then.
    After an error, or a kill at any moment, `path` is what it was before.

    Args:
        path: its folder is made if needed.
        shared: whether other processes may write the same file at the same time; the last one to finish wins.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp" if shared else f"{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_text(path: str | Path, text: str) -> None:
    """Write a text file by [`replaced_file`]."""
    with replaced_file(path) as file:
        file.write(text.encode())


def replace_json(path: str | Path, content) -> None:
    """Write indented JSON by [`replaced_file`]."""
    replace_text(path, json.dumps(content, indent=2) + "\n")


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """
    An empty folder to fill, which gets the name `folder` when the block ends; nothing remains of it after an error.

    Raises:
        OSError: if `folder` exists by then and is not empty.
    """
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        sync_folder(temporary)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def merged_folder(folder: str | Path, last: str = "") -> Iterator[Path]:
    """
    An empty folder to fill, whose files move into `folder` when the block ends, each in place of an earlier file of
    its name; what else is in `folder` stays. After an error it is as it was.

    Args:
        folder: made if needed.
        last: name of the file that is moved last: where it is new, the others are.
    """
    folder = Path(folder)
    existed, temporary = folder.is_dir(), folder / ".unfinished"
    try:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.mkdir(parents=True)
        yield temporary
        sync_folder(temporary)
        paths = sorted(path for path in temporary.rglob("*") if path.is_file())
        for path in sorted(paths, key=lambda path: path.name == last):
            target = folder / path.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if not existed and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def move_contents(source: Path, target: Path, skipped: tuple[str, ...] = (), last: str = "") -> None:
    """Rename all that a folder holds into another one on the same disk, except `skipped`, and `last` at the end."""
    for path in sorted(source.iterdir(), key=lambda path: path.name == last):
        if path.name not in skipped:
            path.rename(target / path.name)


def sync_folder(folder: Path) -> None:
    """Return when the content of every file of a folder is on the disk, so that a power failure does not empty it."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


@contextmanager
def locked_folder(folder: str | Path, timeout: float = 0) -> Iterator[None]:
    """
    Keep every other process out of a folder, which is made if needed. The operating system drops the lock when this
    process ends, however it ends; a file `.lock` in the folder says meanwhile who holds it.

    Args:
        folder: any folder.
        timeout: seconds to wait for another process to leave it.

    Raises:
        ValueError: if another process holds it, with that process's id and machine.
    """
    folder = Path(folder)
    existed = folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    lock = FileLock(path)
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        raise ValueError(
            f"{folder} is in use by {_holder(path)}: wait until it ends, end it, or choose another folder."
        ) from None
    try:
        _write_holder(path)
        yield
    finally:
        # A process that opened the file before this and locks it afterwards is refused by filelock, from 3.21 on.
        with suppress(OSError):  # Windows removes no open file
            path.unlink(missing_ok=True)
        lock.release()
        if not existed:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def _write_holder(path: Path) -> None:
    try:
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
    except OSError:  # a full disk, or Windows, where a locked file cannot be written by its name
        pass


def _holder(path: Path) -> str:
    try:
        return path.read_text() or "another process"
    except (OSError, ValueError):
        return "another process"
