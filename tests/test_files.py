# Licensed under the Apache License, Version 2.0.
"""Files are complete or as before; a folder's lock ends with the process that holds it."""

import multiprocessing
import os
import signal
import time

import pytest

from modeling_tier.files import locked_folder, merged_folder, new_folder, replace_json, replace_text, replaced_file


def test_a_file_is_replaced_when_the_block_ends_and_not_after_an_error(tmp_path):
    path = tmp_path / "deeper" / "note.txt"
    with replaced_file(path) as file:
        file.write(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"
    with pytest.raises(RuntimeError), replaced_file(path) as file:
        file.write(b"half of tw")
        raise RuntimeError
    assert path.read_bytes() == b"one" and os.listdir(path.parent) == ["note.txt"]
    replace_text(path, "two, with an é")
    assert path.read_text(encoding="utf-8") == "two, with an é"
    replace_json(path, {"a": [1]})
    assert path.read_text() == '{\n  "a": [\n    1\n  ]\n}\n'


def test_a_folder_appears_complete_or_not_at_all(tmp_path):
    with new_folder(tmp_path / "model") as folder:
        (folder / "config.json").write_text("{}")
        assert not (tmp_path / "model").exists()
    assert os.listdir(tmp_path / "model") == ["config.json"]
    with pytest.raises(RuntimeError), new_folder(tmp_path / "other") as folder:
        (folder / "config.json").write_text("{}")
        raise RuntimeError
    with pytest.raises(OSError), new_folder(tmp_path / "model") as folder:
        (folder / "config.json").write_text("another")
    assert os.listdir(tmp_path) == ["model"] and (tmp_path / "model/config.json").read_text() == "{}"


def test_a_merged_folder_keeps_what_is_not_replaced_and_is_as_it_was_after_an_error(tmp_path):
    folder = tmp_path / "results"
    for name in ("metrics.json", "notes.txt", "figures/old.png"):
        replace_text(folder / name, "old")
    (folder / ".unfinished").mkdir()
    (folder / ".unfinished" / "cut.txt").write_text("of a process that was killed")

    def content():
        return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}

    with pytest.raises(RuntimeError), merged_folder(folder) as temporary:
        (temporary / "metrics.json").write_text("half")
        raise RuntimeError
    old = {"metrics.json": "old", "notes.txt": "old", "figures/old.png": "old"}
    assert content() == old
    with merged_folder(folder, last="metrics.json") as temporary:
        replace_text(temporary / "metrics.json", "new")
        replace_text(temporary / "figures" / "new.png", "new")
        (temporary / "empty").mkdir()
        assert {name: content()[name] for name in old} == old
    assert content() == old | {"metrics.json": "new", "figures/new.png": "new"}
    assert not (folder / ".unfinished").exists()


def test_the_last_file_of_a_merged_folder_is_there_only_with_all_others(tmp_path):
    (tmp_path / "report.html").mkdir()  # which no file can replace
    with pytest.raises(OSError), merged_folder(tmp_path, last="metrics.json") as temporary:
        for name in ("metrics.json", "report.html"):
            (temporary / name).write_text("new")
    assert os.listdir(tmp_path) == ["report.html"]
    with pytest.raises(RuntimeError), merged_folder(tmp_path / "new"):
        raise RuntimeError
    assert not (tmp_path / "new").exists()


def hold(folder, held):
    if os.fork() == 0:  # a child, such as a worker of a data loader, does not keep the lock
        time.sleep(20)
        os._exit(0)
    with locked_folder(folder):
        if os.fork() == 0:
            time.sleep(20)
            os._exit(0)
        held.set()
        time.sleep(20)


def test_a_lock_names_its_holder_and_dies_with_it(tmp_path):
    folder = tmp_path / "run"
    context = multiprocessing.get_context("fork")
    held = context.Event()
    process = context.Process(target=hold, args=(folder, held))
    process.start()
    assert held.wait(10)
    with pytest.raises(ValueError, match=f"run is in use by process {process.pid} on "), locked_folder(folder):
        pytest.fail("two hold it")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with locked_folder(folder, timeout=2):
        assert os.listdir(folder) == [".lock"]
    assert os.listdir(folder) == []
    with locked_folder(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists(), "it was made for the lock alone"


def test_a_lock_on_a_file_that_was_removed_meanwhile_is_none(tmp_path, monkeypatch):
    """Between the opening and the locking of the file its holder goes, and another process comes."""
    fcntl = pytest.importorskip("fcntl")
    lock, path, others = fcntl.flock, tmp_path / ".lock", []

    def late(descriptor, operation):
        if not others and operation & fcntl.LOCK_EX:
            path.unlink()
            others.append(path.open("w"))
            lock(others[0], fcntl.LOCK_EX)
        return lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(ValueError, match="is in use by"), locked_folder(tmp_path):
        pytest.fail("two hold it")
    assert path.exists()
    others[0].close()
    with locked_folder(tmp_path):
        pass


def test_a_folder_that_was_there_stays(tmp_path):
    with locked_folder(tmp_path):
        (tmp_path / "metrics.json").write_text("{}")
    assert os.listdir(tmp_path) == ["metrics.json"]
