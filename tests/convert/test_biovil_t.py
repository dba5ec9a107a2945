# Licensed under the Apache License, Version 2.0.
"""BioViL-T's path for a single image, in plain torch, against what comes of it."""

import pytest
import torch
from published import BiovilTImage, assert_same, close, cxr_bert, randomize, tokens

from modeling_tier import conversion
from modeling_tier.convert.biovil_t import BIOVIL_T_IMAGE_FILE


pytest_plugins = ["tests.convert.fixtures"]


def test_biovil_t_gives_the_same_embeddings(tmp_path, pixels):
    image, text = randomize(BiovilTImage()), cxr_bert(tmp_path)
    torch.save(image.state_dict(), tmp_path / BIOVIL_T_IMAGE_FILE)
    record = conversion.Record()
    model, processor = conversion.biovil_t(str(tmp_path), str(tmp_path), record=record)
    constant = image.encoder.missing_previous_emb
    assert constant.abs().max() > 0.1, "it matters"
    for training in (False, True):
        for module in (model, image, text):
            module.train(training)
        with torch.no_grad():
            texts = tokens(processor)
            patches, whole = image(pixels)
            assert_same(model, texts, pixels, *text.embed(**texts), patches, whole)
    batch_norm = model.visual_projection[1], image.projector.model[1]
    torch.testing.assert_close(*(norm.running_var for norm in batch_norm), **close)
    pooler = {f"encoder.vit_pooler.{name}" for name in ("type_embed", "norm_post.weight", "norm_post.bias")}
    folded = {"encoder.backbone_to_vit.weight", "encoder.missing_previous_emb"}
    assert pooler | folded < set(record.unused) and list(record.initial) == ["logit_scale"]


def test_biovils_own_file_is_refused(tmp_path, biovil_files):
    with pytest.raises(ValueError, match="backbone_to_vit.weight is missing.*BioViL-T"):
        conversion.biovil_t(**biovil_files[2])
    state = BiovilTImage().state_dict()
    state["encoder.missing_previous_emb"] = torch.zeros(1, 5, 1, 1)
    torch.save(state, tmp_path / "wrong.pt")
    with pytest.raises(ValueError, match="missing_previous_emb must have the shape"):
        conversion.biovil_t(str(tmp_path / "wrong.pt"), biovil_files[2]["text_model"])
