# Licensed under the Apache License, Version 2.0.
"""The command that starts the page."""

import sys

import pytest
from conftest import TEXT_CONFIGS
from transformers import BertModel

import app
import page
from modeling_tier import TierZeroShotPipeline


pytest_plugins = ["tests.page.fixtures"]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio")


def test_models_are_named_by_the_end_of_their_names(page_models, tmp_path):
    folders = [tmp_path / "first" / "model", tmp_path / "second" / "model", tmp_path / "other"]
    for folder in folders:
        page_models["tier"].save_pretrained(folder)
    first, second, other = map(str, folders)
    assert list(page.load_models([first, other])) == ["model", "other"]
    loaded = page.load_models([first, second])
    assert list(loaded) == [first, second]
    assert isinstance(loaded[first], TierZeroShotPipeline)


def test_what_is_wrong_with_the_models_is_said(page_models, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="named twice"):
        page.load_models(["a", "a"])
    BertModel(TEXT_CONFIGS["bert"]).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="holds a model of type 'bert'"):
        page.load_models([str(tmp_path / "bert")])
    monkeypatch.delenv("TIER_MODELS", raising=False)
    monkeypatch.delenv("SPACE_ID", raising=False)
    for arguments, message in (([], "error: No model is given"), (["--model", str(tmp_path / "none")], "error: ")):
        monkeypatch.setattr(sys, "argv", ["app.py", *arguments])
        with pytest.raises(SystemExit, match=message):
            app.main()


@pytest.mark.parametrize("names, shown", [("", "No model is given"), ("{good}, {good}/none", "none")])
def test_a_space_shows_what_is_wrong(page_models, tmp_path, monkeypatch, names, shown):
    """A Space has no command line: its models stand in a variable, and its page must say what is amiss."""
    page_models["tier"].save_pretrained(tmp_path / "good")
    monkeypatch.setenv("TIER_MODELS", names.format(good=tmp_path / "good"))
    monkeypatch.setenv("SPACE_ID", "user/space")
    monkeypatch.setattr(sys, "argv", ["app.py"])
    pages = []
    monkeypatch.setattr("gradio.Blocks.block_thread", lambda page: None)
    monkeypatch.setattr(page, "launch", lambda shown, **_: (pages.append(shown), "address", None))
    app.main()
    text = "".join(str(block.value) for block in pages[0].blocks.values())
    assert "There is no model to show" in text and shown in text and "Not a medical device" in text
