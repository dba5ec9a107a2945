# Licensed under the Apache License, Version 2.0.
"""GLoRIA, MedCLIP and CXR-CLIP, built here from plain torch, against what comes of them; and what cannot be read."""

import sys
import tarfile
import types
from pathlib import Path

import pytest
import torch
from published import TEXTS, CxrClip, Gloria, Malicious, MedClip, randomize, tokens, write_bert
from torch import nn

from modeling_tier import conversion
from modeling_tier.evaluation import load_model


pytest_plugins = ["tests.convert.fixtures"]

close = {"rtol": 1e-5, "atol": 1e-5}


def unit(tensor: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(tensor, dim=-1)


class DictConfig:
    """As omegaconf's in a checkpoint: an object of a class that is not installed where it is read."""

    def __init__(self, **content):
        self.__dict__["_content"] = content


@pytest.fixture
def omegaconf(monkeypatch):
    module = types.ModuleType("omegaconf.dictconfig")
    monkeypatch.setattr(DictConfig, "__module__", "omegaconf.dictconfig")
    module.DictConfig = DictConfig
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    monkeypatch.setitem(sys.modules, "omegaconf.dictconfig", module)
    return DictConfig


def gloria_file(folder: Path, **more) -> tuple[Gloria, Path]:
    """As its Lightning trainer saves."""
    model = randomize(Gloria(write_bert(folder / "bert")))
    state = {f"gloria.{name}": tensor for name, tensor in model.state_dict().items()}
    state["gloria.text_encoder.model.embeddings.position_ids"] = torch.arange(24)[None]
    torch.save({"epoch": 3, "state_dict": state, "optimizer_states": [{}], **more}, folder / "chexpert_resnet50.ckpt")
    return model, folder / "chexpert_resnet50.ckpt"


def test_gloria_gives_the_same_embeddings_and_cosines(tmp_path, pixels, omegaconf):
    parameters = {"hyper_parameters": omegaconf(model={"norm": False}), "hparams_type": omegaconf}
    theirs, path = gloria_file(tmp_path, **parameters)
    del sys.modules["omegaconf.dictconfig"]
    record = conversion.convert("gloria", tmp_path / "tier", model=str(path), text_model=str(tmp_path / "bert"))
    model, processor = load_model(str(tmp_path / "tier"))
    texts = tokens(processor)
    with torch.no_grad():
        out = model(**texts, pixel_values=pixels)
        patches, image = theirs.encode_image(pixels)
        token_embeds, text = theirs.encode_text(**{"ids": texts["input_ids"], "mask": texts["attention_mask"]})
    torch.testing.assert_close(out.vision_model_output.pooler_output, image, **close)
    torch.testing.assert_close(out.patch_embeds, unit(patches), **close)
    torch.testing.assert_close(out.text_embeds, unit(text), **close)
    valid = texts["attention_mask"].bool()
    torch.testing.assert_close(out.token_embeds[valid], unit(token_embeds[valid]), **close)
    torch.testing.assert_close(out.logits_per_image, 10 * unit(image) @ unit(text).T, rtol=1e-5, atol=1e-4)
    expected = {"epoch", "optimizer_states", "hyper_parameters", "hparams_type", "img_encoder.local_embedder.weight"}
    pooler = {f"text_encoder.model.pooler.dense.{name}" for name in ("weight", "bias")}
    assert set(record.unused) == expected | pooler | {"text_encoder.model.embeddings.position_ids"}
    assert list(record.initial) == ["logit_scale"] and len(record.notes) == 2


@pytest.mark.parametrize("vision", ["swin", "resnet"])
def test_medclip_gives_the_same_embeddings_and_logits(tmp_path, vision):
    theirs = randomize(MedClip(write_bert(tmp_path / "bert"), vision))
    torch.save(theirs.old_state_dict(), tmp_path / "pytorch_model.bin")
    record = conversion.Record()
    model, processor = conversion.medclip(str(tmp_path), str(tmp_path / "bert"), record=record)
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        patches, image = theirs.encode_image(pixels)
        for text in TEXTS:  # one by one, since its code counts padding
            inputs = processor(text=text)
            out = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], pixel_values=pixels)
            token_embeds, expected = theirs.encode_text(inputs["input_ids"], inputs["attention_mask"])
            torch.testing.assert_close(out.text_model_output.pooler_output, expected, **close)
            torch.testing.assert_close(out.token_embeds, unit(token_embeds), **close)
            logits = unit(image) @ unit(expected).T * torch.tensor(2.9).exp()
            torch.testing.assert_close(out.logits_per_image, logits, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(out.vision_model_output.pooler_output, image, **close)
        torch.testing.assert_close(out.patch_embeds, unit(patches), **close)
        together = model.get_text_features(
            **{name: processor(text=TEXTS)[name] for name in ("input_ids", "attention_mask")}
        )
        torch.testing.assert_close(together.pooler_output[-1], out.text_model_output.pooler_output[0], **close)
    index = "vision_model.model.encoder.layers.0.blocks.0.attention.self.relative_position_index"
    assert {index, "text_model.model.embeddings.position_ids"} < set(record.unused)
    assert not record.initial and "padding" in record.notes[0]


@pytest.mark.parametrize("pooling", ["eos", "bos"])
@pytest.mark.parametrize("vision", ["swin", "resnet"])
def test_cxr_clip_gives_the_same_embeddings_and_logits(tmp_path, vision, pooling):
    theirs = randomize(CxrClip(write_bert(tmp_path / "bert"), vision))
    torch.save(theirs.checkpoint(pooling=pooling), tmp_path / "r50_mcc.tar")
    record = conversion.convert(
        "cxr-clip", tmp_path / "tier", model=str(tmp_path / "r50_mcc.tar"), text_model=str(tmp_path / "bert")
    )
    model, processor = load_model(str(tmp_path / "tier"))
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    texts = tokens(processor)
    assert len(set(texts["attention_mask"].sum(dim=1).tolist())) > 1, "texts of several lengths"
    with torch.no_grad():
        out = model(**texts, pixel_values=pixels)
        patches, image = theirs.encode_image(pixels)
        token_embeds, text = theirs.encode_text(texts["input_ids"], texts["attention_mask"])
    if pooling == "bos":
        text = token_embeds[:, 0]
    torch.testing.assert_close(out.vision_model_output.pooler_output, image, **close)
    torch.testing.assert_close(out.patch_embeds, unit(patches), **close)
    torch.testing.assert_close(out.text_model_output.pooler_output, text, **close)
    valid = texts["attention_mask"].bool()
    torch.testing.assert_close(out.token_embeds[valid], unit(token_embeds[valid]), **close)
    logits = unit(image) @ unit(text).T * torch.tensor(2.7).exp()
    torch.testing.assert_close(out.logits_per_image, logits, rtol=1e-5, atol=1e-4)
    assert {"optimizer", "scheduler", "config", "epoch"} < set(record.unused) and not record.initial
    if vision == "swin":
        with pytest.raises(ValueError, match="the first patch alone"):
            model.get_similarity_map(**texts, pixel_values=pixels[:1], kind="contribution")


def test_files_that_are_not_cxr_clips(tmp_path, omegaconf):
    theirs = randomize(CxrClip(write_bert(tmp_path / "bert"), "resnet"))
    content, path = theirs.checkpoint(), tmp_path / "model-best.tar"

    def convert(**changes) -> conversion.Record:
        torch.save(content | changes, path)
        record = conversion.Record()
        conversion.cxr_clip(str(path), str(tmp_path / "bert"), record=record)
        return record

    assert convert(config=omegaconf(model={})).notes[0].startswith("the file tells no pooling of texts: 'eos'")
    without = {name: tensor for name, tensor in content["model"].items() if name != "logit_scale"}
    assert "log(1 / 0.07)" in convert(model=without).initial["logit_scale"]
    with pytest.raises(ValueError, match="text pooling 'max' is none of CXR-CLIP's"):
        convert(config={"model": {"text_encoder": {"pooling": "max"}}})
    with pytest.raises(ValueError, match="unknown: image_projection.fc.weight"):  # of its head "mlp"
        convert(model=content["model"] | {"image_projection.fc.weight": torch.ones(2, 2)})
    with pytest.raises(ValueError, match="has no 'model'"):
        convert(model=None)
    with tarfile.open(tmp_path / "r50_m.tar", "w") as archive:
        archive.add(path, "model-best.tar")
    with pytest.raises(ValueError, match="r50_m.tar is an archive: unpack it"):
        conversion.cxr_clip(str(tmp_path / "r50_m.tar"), str(tmp_path / "bert"))


def test_a_checkpoint_that_runs_code_is_refused(tmp_path):
    _, path = gloria_file(tmp_path, hyper_parameters=Malicious(tmp_path / "it-ran"))
    with pytest.raises(ValueError, match="chexpert_resnet50.ckpt is refused: to read it could run code.*system"):
        conversion.gloria(str(path), str(tmp_path / "bert"))
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize(
    ("model", "content"),
    [
        ("CARZero", {"state_dict": {"CARZero.fusion_module.decoder.layers.0.norm.weight": torch.ones(2)}}),
        ("MedKLIP", {"model": {"module.disease_embedding_layer.weight": torch.ones(2)}}),
        ("KAD", {"image_encoder": {}, "model": {"decoder.layers.0.multihead_attn.in_proj_weight": torch.ones(2)}}),
        ("RadZero", {"align_transformer.layers.0.weight": torch.ones(2)}),
    ],
)
def test_models_of_cross_attention_are_recognised(tmp_path, model, content):
    torch.save(content, tmp_path / "model.pt")
    for source in ("gloria", "medclip", "openai", "chexzero", "tier-authors"):
        with pytest.raises(ValueError, match=f"weights of {model}, which cannot be converted.*attention"):
            conversion.SOURCES[source].convert(str(tmp_path / "model.pt"))


def test_other_files_are_refused(tmp_path):
    write_bert(tmp_path / "bert")
    torch.save({"state_dict": {"gloria.img_encoder.model.fc.weight": torch.ones(1)}}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="img_encoder.model.conv1.weight is missing"):
        conversion.gloria(str(tmp_path / "x.ckpt"), str(tmp_path / "bert"))
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no 'state_dict'.*GLoRIA"):
        conversion.gloria(str(tmp_path / "pytorch_model.bin"), str(tmp_path / "bert"))
    with pytest.raises(ValueError, match="not those of MedCLIP"):
        conversion.medclip(str(tmp_path), str(tmp_path / "bert"))
