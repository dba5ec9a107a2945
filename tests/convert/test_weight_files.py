# Licensed under the Apache License, Version 2.0.
"""Files that are not what they should be."""

import json
import zipfile
from pathlib import Path

import pytest
import torch
from published import Malicious, OpenaiClip, clip_folder, randomize

from modeling_tier import conversion


pytest_plugins = ["tests.convert.fixtures"]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_not_run(authors, tmp_path, zipped):
    content = {"model_state_dict": authors[0].state_dict(), "args": Malicious(tmp_path / "it-ran")}
    torch.save(content, tmp_path / "evil.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"evil.pt is refused.*run code.*(posix|nt).system.*state_dict"):
        conversion.tier_authors(str(tmp_path / "evil.pt"), authors[1]["text_model"])
    assert not (tmp_path / "it-ran").exists()


def test_what_is_harmless_in_the_authors_files_is_refused_elsewhere(authors, openai_tokenizer):
    with pytest.raises(ValueError, match=r"refused.*(argparse.Namespace|numpy\.)"):
        conversion.openai(authors[1]["model"], openai_tokenizer)


def test_a_torchscript_archive_that_asks_for_more_is_refused(tmp_path, openai_tokenizer):
    """Its code is never read, and its pickle may name nothing but modules of its own and lists."""
    torch.save({"weights": Malicious(tmp_path / "it-ran")}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as archive, zipfile.ZipFile(tmp_path / "evil.pt", "w") as copy:
        for entry in archive.infolist():
            copy.writestr(entry, archive.read(entry))
        copy.writestr("plain/constants.pkl", b"")
        copy.writestr("plain/code/__torch__.py", b"not even code")
    with pytest.raises(ValueError, match="evil.pt is refused.*system"):
        conversion.openai(str(tmp_path / "evil.pt"), openai_tokenizer)
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"PK\x03\x04" + b"0" * 99])
def test_a_file_that_pytorch_did_not_write_is_named(tmp_path, openai_tokenizer, content):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(ValueError, match="model.pt cannot be read as a file of PyTorch"):
        conversion.openai(str(tmp_path / "model.pt"), openai_tokenizer)
    torch.save([torch.zeros(1)], tmp_path / "model.pt")
    with pytest.raises(ValueError, match="state dict"):
        conversion.openai(str(tmp_path / "model.pt"), openai_tokenizer)


def test_files_that_grow_are_refused_before_they_do(tmp_path, openai_tokenizer):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "plain.pt")
    for name, further in {"zeros": "plain/data/1", "torchscript": "plain/constants.pkl"}.items():
        path = tmp_path / f"{name}.pt"
        with (
            zipfile.ZipFile(tmp_path / "plain.pt") as archive,
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as copy,
        ):
            for entry in archive.infolist():
                copy.writestr(entry, archive.read(entry))
            copy.writestr(further, b"")
            copy.writestr("plain/data/2", bytes(100 * 2**20))
        with pytest.raises(ValueError, match=f"{name}.pt is refused: its .* bytes hold tensors of 10"):
            conversion.openai(str(path), openai_tokenizer)
    # One number that claims to be a large matrix, many times.
    many = {f"weight{i}": torch.zeros(1).expand(1000, 1000) for i in range(100)}
    torch.save(many, tmp_path / "views.pt")
    with pytest.raises(ValueError, match="views.pt is refused: its .* bytes hold tensors of 400,000,000 bytes"):
        conversion.openai(str(tmp_path / "views.pt"), openai_tokenizer)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json"])
def test_a_tokenizer_of_endless_added_tokens_is_refused(tmp_path, openai_tokenizer, name):
    torch.save(randomize(OpenaiClip()).state_dict(), tmp_path / "model.pt")
    path = Path(openai_tokenizer, name)
    content = json.loads(path.read_text()) if path.exists() else {}
    token = {"content": "x", "special": False}
    if name == "tokenizer.json":
        content["added_tokens"] = [token | {"id": 30 + i} for i in range(30_000)]
    elif name == "tokenizer_config.json":
        content["added_tokens_decoder"] = {str(30 + i): token for i in range(30_000)}
    else:
        content = {f"x{i}": 30 + i for i in range(30_000)}
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{name} adds 30,000 tokens to its vocabulary; at most 20,000"):
        conversion.openai(str(tmp_path / "model.pt"), openai_tokenizer)


def test_weights_indexed_outside_of_their_folder_are_refused(tmp_path):
    clip_folder(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.safetensors")
    index = {"weight_map": {"logit_scale": "../weights.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="must lie beside their index"):
        conversion.clip(str(tmp_path))


def test_a_name_that_is_nowhere(openai_tokenizer):
    with pytest.raises(ValueError, match="no file nothing.pt.*user/name/path"):
        conversion.openai("nothing.pt", openai_tokenizer)
    with pytest.raises(ValueError, match="someone/model is not on this disk, and the Hub"):
        conversion.openai("someone/model/best.pt", openai_tokenizer)
