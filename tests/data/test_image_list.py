# Licensed under the Apache License, Version 2.0.
"""Lists of images: read in either form, and a data set cut down to one."""

import hashlib

import pytest
from datasets import Dataset

from modeling_tier.data.image_list import images_fingerprint, read_image_list, select_images


ROWS = Dataset.from_dict({"image_id": ["a.png", "b/1.png", "c"], "text": ["A", "B", "C"]})


@pytest.mark.parametrize(
    "content",
    [
        "c\nb/1.png\n",
        "\ufeffc\r\nb/1.png",
        "image_id,x\nc,1\nb/1.png,2\n",
        '"x";"image_id"\n1;c\n2;b/1.png\n',
        "\nc\n\nb/1.png\n",
    ],
)
def test_a_list_in_either_form(tmp_path, content):
    (tmp_path / "list.txt").write_text(content, encoding="utf-8")
    assert read_image_list(tmp_path / "list.txt") == ["c", "b/1.png"]


def test_a_bad_list_is_named(tmp_path):
    path = tmp_path / "list.txt"
    with pytest.raises(ValueError, match=rf"There is no file {path} \(image_ids\)"):
        read_image_list(path)
    for content, message in (
        ("", "names no image"),
        ("image_id\n", "names no image"),
        ("a\nb\na\n", "1 ids .* such as a"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=f"{path}.*{message}"):
            read_image_list(path)


def test_the_images_of_a_list():
    chosen, note = select_images(ROWS, ["c", "a.png"], "list.txt")
    assert chosen["text"][:] == ["A", "C"] and note == "list.txt names 2 of the 3 images; 1 others are not used."
    assert select_images(ROWS, ["a.png", "b/1.png", "c"], "list.txt")[1] is None
    with pytest.raises(
        ValueError, match=r"list\.txt: 2 of 3 images are not in the data set, such as d; .* like a\.png"
    ):
        select_images(ROWS, ["c", "d", "e"], "list.txt")


def test_the_fingerprint_is_of_the_set():
    assert images_fingerprint(["b", "a"]) == images_fingerprint(["a", "b"]) == hashlib.sha256(b"a\nb\n").hexdigest()
    assert images_fingerprint(["a"]) != images_fingerprint(["a", "b"])
