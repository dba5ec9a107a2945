# Licensed under the Apache License, Version 2.0.
"""Checkpoints of the authors' code, against what comes of them."""

import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from published import assert_same, save_authors, tokens
from torch import nn

from modeling_tier import conversion


pytest_plugins = ["tests.convert.fixtures"]


def test_the_authors_checkpoint_gives_the_same_embeddings_and_logits(authors, pixels):
    theirs, files = authors
    record = conversion.Record()
    model, processor = conversion.tier_authors(**files, record=record)
    for training in (False, True):
        model.train(training), theirs.train(training)
        with torch.no_grad():
            texts = tokens(processor)
            (patches, image), (token_embeds, text) = theirs.cnn(pixels), theirs.transformer.embed(**texts)
            assert_same(model, texts, pixels, token_embeds, text, patches, image)
            cosines = nn.functional.cosine_similarity(image[:, None], text[None], dim=-1)
            logits = model.eval()(**texts, pixel_values=pixels).logits_per_image if not training else None
        if not training:
            torch.testing.assert_close(logits, cosines * np.exp(3.21), rtol=1e-5, atol=1e-4)
    assert record.unused["cls_projection_head.LayerNorm.bias"].startswith("the same parameter as transformer.")
    assert {"args", "optimizer_state_dict", "epoch", "cnn.encoder.encoder.fc.bias"} <= record.unused.keys()
    assert not record.initial
    size = processor(images=Image.new("L", (300, 400), 128))["pixel_values"]
    assert size.shape == (1, 3, 224, 224)
    torch.testing.assert_close(size[0, :, 0, 0], torch.tensor([0.0741, 0.2052, 0.4265]), rtol=0, atol=1e-3)
    assert processor.tokenizer.model_max_length == 24


def test_numbers_of_numpy_1_are_read(authors, tmp_path):
    """numpy 1 wrote another name into pickles."""
    old = tmp_path / "old.pt"
    with zipfile.ZipFile(authors[1]["model"]) as archive, zipfile.ZipFile(old, "w") as copy:
        for entry in archive.infolist():
            content = archive.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert b"cnumpy._core.multiarray\nscalar\n" in content
                content = content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
            copy.writestr(entry, content)
    conversion.tier_authors(str(old), authors[1]["text_model"])


def test_the_authors_two_heads_must_be_one(authors, tmp_path):
    theirs, files = authors
    state = theirs.state_dict()
    state["cls_projection_head.LayerNorm.bias"] = state["cls_projection_head.LayerNorm.bias"] + 1
    save_authors(tmp_path / "other.pt", theirs, state)
    with pytest.raises(ValueError, match="cls_projection_head.LayerNorm.bias and transformer.*not equal"):
        conversion.tier_authors(str(tmp_path / "other.pt"), files["text_model"])
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="model_state_dict"):
        conversion.tier_authors(str(tmp_path / "state.pt"), files["text_model"])
