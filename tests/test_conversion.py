# Licensed under the Apache License, Version 2.0.
"""Published checkpoints, built here in their own layout from plain torch, against what comes of them."""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TEXT_CONFIGS, VISION_CONFIGS
from hub import serve
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from modeling_tier import TierModel, TierProcessor
from modeling_tier.convert import published as conversion
from modeling_tier.evaluation import load_model


ROOT = Path(conversion.__file__).parents[2]
DIMENSION = 16
TEXTS = ["No pleural effusion.", "There is a small left effusion, large cardiomegaly.", "Cardiomegaly."]
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] left right pleural effusion no there is a small large cardiomegaly , . ##ly"
close = {"rtol": 1e-5, "atol": 1e-5}


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random numbers everywhere, in biases and running statistics too, of a size that deep networks stand."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda tensor: torch.randn(tensor.shape, generator=generator)  # noqa: E731
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point() or name.endswith(("logit_scale", "logit_bias")):
            continue
        if name.endswith("running_var"):
            tensor.copy_(draw(tensor).abs() + 0.5)
        elif tensor.ndim > 1:
            tensor.copy_(draw(tensor) * (1.5 / tensor[0].numel()) ** 0.5)
        else:
            tensor.copy_(draw(tensor) * 0.2 + (0.7 if name.endswith("weight") else 0.0))
    return module.eval()


# The sources, in plain torch under their published names


class Block(nn.Module):
    """torchvision's two residual blocks; the stride of a bottleneck is in its 3x3 convolution."""

    def __init__(self, before: int, width: int, stride: int, kernels: tuple[int, ...], growth: int):
        super().__init__()
        self.depth = len(kernels)
        widths = [before, *[width] * (self.depth - 1), width * growth]
        strided = kernels.index(3)
        for i, kernel in enumerate(kernels):
            step = stride if i == strided else 1
            conv = nn.Conv2d(widths[i], widths[i + 1], kernel, step, kernel // 2, bias=False)
            setattr(self, f"conv{i + 1}", conv)
            setattr(self, f"bn{i + 1}", nn.BatchNorm2d(widths[i + 1]))
        self.downsample = None
        if stride != 1 or before != widths[-1]:
            conv = nn.Conv2d(before, widths[-1], 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(widths[-1]))

    def forward(self, x):
        residual = x if self.downsample is None else self.downsample(x)
        for i in range(1, self.depth + 1):
            x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x))
            x = x.relu() if i < self.depth else x
        return (x + residual).relu()


class TorchvisionResNet(nn.Module):
    def __init__(self, kind: str, depths: tuple[int, ...], width: int):
        super().__init__()
        kernels, growth = {"basic": ((3, 3), 1), "bottleneck": ((1, 3, 1), 4)}[kind]
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        before = width
        for i, depth in enumerate(depths):
            blocks = []
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(Block(before, width * 2**i, stride, kernels, growth))
                before = width * 2**i * growth
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(before, 10)
        self.channels = before

    def forward(self, x):
        x = nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        for name, layer in self.named_children():
            x = layer(x) if name.startswith("layer") else x
        return x


class BiovilImage(nn.Module):
    def __init__(self, kind="bottleneck", depths=(1, 2, 1, 1), width=4):
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.encoder = TorchvisionResNet(kind, depths, width)
        self.projector = nn.Module()
        self.projector.model = nn.Sequential(
            nn.Conv2d(self.encoder.encoder.channels, DIMENSION, 1, bias=False),
            nn.BatchNorm2d(DIMENSION),
            nn.ReLU(),
            nn.Conv2d(DIMENSION, DIMENSION, 1),
        )

    def forward(self, x):
        """Patches (N, P, D) and their mean."""
        projected = self.projector.model(self.encoder.encoder(x))
        return projected.flatten(2).transpose(1, 2), projected.mean(dim=(2, 3))


class Head(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.dense_to_hidden = nn.Linear(width, DIMENSION)
        self.LayerNorm = nn.LayerNorm(DIMENSION, eps=1e-12)
        self.dense_to_output = nn.Linear(DIMENSION, DIMENSION)

    def forward(self, x):
        return self.dense_to_output(self.LayerNorm(nn.functional.gelu(self.dense_to_hidden(x))))


class CxrBert(BertForMaskedLM):
    def __init__(self, config):
        super().__init__(config)
        self.cls_projection_head = Head(config.hidden_size)

    def embed(self, input_ids, attention_mask):
        """Tokens (M, T, D) and texts (M, D)."""
        outputs = self(input_ids, attention_mask, output_hidden_states=True)
        tokens = self.cls_projection_head(outputs.hidden_states[-1])
        return tokens, tokens[:, 0]


class AuthorsModel(nn.Module):
    def __init__(self, cnn: BiovilImage, transformer: CxrBert):
        super().__init__()
        self.cnn, self.transformer = cnn, transformer
        self.cls_projection_head = transformer.cls_projection_head
        self.logit_scale = nn.Parameter(torch.tensor(3.21))


class QuickGelu(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class ResidualAttentionBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", QuickGelu())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))

    def forward(self, x, mask: torch.Tensor | None = None):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int):
        super().__init__()
        self.resblocks = nn.Sequential(*(ResidualAttentionBlock(width) for _ in range(layers)))

    def forward(self, x, mask: torch.Tensor | None = None):
        x = x.permute(1, 0, 2)
        for block in self.resblocks:
            x = block(x, mask)
        return x.permute(1, 0, 2)


class OpenaiVisual(nn.Module):
    def __init__(self, width: int, patch: int, grid: int, layers: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(grid**2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, layers)
        self.proj = nn.Parameter(torch.zeros(width, DIMENSION))

    def forward(self, x):
        """The class token and the patches (N, 1 + P, D)."""
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], dim=1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))) @ self.proj


class OpenaiClip(nn.Module):
    def __init__(self, width=64, text_width=128, context=12, vocabulary=22):
        super().__init__()
        self.visual = OpenaiVisual(width, patch=8, grid=4, layers=2)
        self.transformer = Transformer(text_width, 2)
        self.token_embedding = nn.Embedding(vocabulary, text_width)
        self.positional_embedding = nn.Parameter(torch.zeros(context, text_width))
        self.ln_final = nn.LayerNorm(text_width)
        self.text_projection = nn.Parameter(torch.zeros(text_width, DIMENSION))
        self.logit_scale = nn.Parameter(torch.tensor(3.3))

    def encode_text(self, ids):
        """Tokens (M, T, D) and the texts (M, D)."""
        mask = torch.full((ids.shape[1], ids.shape[1]), float("-inf")).triu(1)
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        tokens = self.ln_final(self.transformer(x, mask)) @ self.text_projection
        return tokens, tokens[torch.arange(ids.shape[0]), ids.argmax(dim=-1)]

    def forward(self, pixels, ids):
        return self.visual(pixels)[:, 0], self.encode_text(ids)[1]


class PublishedOpenaiClip(OpenaiClip):
    """With the three numbers that OpenAI's archives carry."""

    def __init__(self):
        super().__init__()
        for name, value in {"input_resolution": 32, "context_length": 12, "vocab_size": 22}.items():
            self.register_buffer(name, torch.tensor(value))


# Their folders and files


def write_tokenizer_of_microsoft(folder: Path) -> Path:
    """As on the Hub: a vocabulary, a class of the authors' own, and the code of it."""
    folder.mkdir(parents=True, exist_ok=True)
    special = {name: f"[{name[:-6].upper()}]" for name in ("unk_token", "sep_token", "pad_token", "cls_token")}
    special["mask_token"] = "[MASK]"
    auto_map = {"AutoTokenizer": ["configuration_cxrbert.CXRBertTokenizer", None]}
    settings = {"do_lower_case": True, "tokenize_chinese_chars": True, "strip_accents": None, **special}
    settings |= {"tokenizer_class": "CXRBertTokenizer", "auto_map": auto_map, "name_or_path": "/home/someone/model"}
    (folder / "vocab.txt").write_text("\n".join(WORDS.split()) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    for name in ("configuration_cxrbert", "modeling_cxrbert"):
        (folder / f"{name}.py").write_text("raise SystemExit('the code of the folder was run')\n")
    return folder


def cxr_bert(folder: Path, weights="pytorch_model.bin") -> CxrBert:
    """A CXR-BERT, and its folder."""
    encoder = TEXT_CONFIGS["bert"].to_diff_dict() | {"vocab_size": len(WORDS.split()), "max_position_embeddings": 24}
    encoder |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = randomize(CxrBert(BertConfig(**encoder)), seed=1)
    classes = {"AutoConfig": "configuration_cxrbert.CXRBertConfig", "AutoModel": "modeling_cxrbert.CXRBertModel"}
    published = {"model_type": "cxr-bert", "projection_size": DIMENSION, "auto_map": classes, "torch_dtype": "float32"}
    write_tokenizer_of_microsoft(folder)
    config = encoder | published | {"architectures": ["CXRBertModel"], "transformers_version": "4.17.0"}
    (folder / "config.json").write_text(json.dumps(config))
    state = {**model.state_dict(), "bert.embeddings.position_ids": torch.arange(24)[None]}
    if weights.endswith(".bin"):
        torch.save(state, folder / weights)
    else:
        save_file({name: tensor.clone() for name, tensor in state.items()}, folder / weights, {"format": "pt"})
    return model


def word_tokenizer(pad: str, end: str, **options) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words that puts `end` behind each text; the end is the last of its 22 tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = ["<unk>", "<pad>", "<start>", *WORDS.split()[5:18], *(f"w{i}" for i in range(5)), "<end>"]
    word_level = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    word_level.normalizer, word_level.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    special = [(end, words.index(end)), ("<start>", 2)]
    single = f"$A {end}" if pad == end else f"<start> $A {end}"
    word_level.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    names = {"pad_token": pad, "eos_token": end, "unk_token": "<unk>", "bos_token": None if pad == end else "<start>"}
    return PreTrainedTokenizerFast(tokenizer_object=word_level, **names, **options)


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 96, 64, generator=torch.Generator().manual_seed(3))


def tokens(processor: TierProcessor) -> dict[str, torch.Tensor]:
    inputs = processor(text=TEXTS)
    assert inputs["attention_mask"].min() == 0, "padding is part of the test"
    return {name: inputs[name] for name in ("input_ids", "attention_mask")}


def assert_same(model: TierModel, texts: dict, pixel_values: torch.Tensor, token_embeds, text, patches, image) -> None:
    """All four embeddings before their normalisation, at the positions that hold a token."""
    out = model(**texts, pixel_values=pixel_values)
    torch.testing.assert_close(out.text_model_output.pooler_output, text, **close)
    torch.testing.assert_close(out.vision_model_output.pooler_output, image, **close)
    valid = texts["attention_mask"].bool()
    normalize = nn.functional.normalize
    torch.testing.assert_close(out.token_embeds[valid], normalize(token_embeds[valid], dim=-1), **close)
    torch.testing.assert_close(out.patch_embeds, normalize(patches, dim=-1), **close)


# BioViL


@pytest.fixture
def biovil_files(tmp_path) -> tuple[BiovilImage, CxrBert, dict[str, str]]:
    """Both models, and where they lie."""
    image, text = randomize(BiovilImage()), cxr_bert(tmp_path / "cxr-bert")
    torch.save(image.state_dict(), tmp_path / "image.pt")
    return image, text, {"image_model": str(tmp_path / "image.pt"), "text_model": str(tmp_path / "cxr-bert")}


@pytest.mark.parametrize(
    ("kind", "depths", "width", "weights"),
    [
        ("bottleneck", (3, 4, 6, 3), 4, "pytorch_model.bin"),
        ("bottleneck", (1, 2), 12, "model.safetensors"),
        ("basic", (2, 1, 2), 8, "model.safetensors"),
    ],
)
def test_biovil_gives_the_same_embeddings(tmp_path, pixels, kind, depths, width, weights):
    image, text = randomize(BiovilImage(kind, depths, width)), cxr_bert(tmp_path, weights)
    torch.save(image.state_dict(), tmp_path / conversion.BIOVIL_IMAGE_FILE)
    model, processor = conversion.biovil(str(tmp_path), str(tmp_path))
    assert not model.training and model.config.vision_config.depths == list(depths)
    for training in (False, True):
        for module in (model, image, text):
            module.train(training)
        with torch.no_grad():
            texts = tokens(processor)
            patches, whole = image(pixels)
            assert_same(model, texts, pixels, *text.embed(**texts), patches, whole)
    # In training mode both have moved their running statistics, by the same.
    moved, original = model.vision_model.embedder.embedder.normalization, image.encoder.encoder.bn1
    torch.testing.assert_close(moved.running_var, original.running_var, **close)
    torch.testing.assert_close(model.visual_projection[1].running_mean, image.projector.model[1].running_mean, **close)


def test_biovil_names_the_weights_that_are_not_used(biovil_files):
    _, text, files = biovil_files
    record = conversion.Record()
    conversion.biovil(**files, record=record)
    unused = {"encoder.encoder.fc.weight", "encoder.encoder.fc.bias", "bert.embeddings.position_ids"}
    assert record.unused.keys() == unused | {key for key in text.state_dict() if key.startswith("cls.predictions.")}
    assert "ImageNet" in record.unused["encoder.encoder.fc.bias"] and list(record.initial) == ["logit_scale"]
    expected = ["image.pt", "config.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"]
    assert [file["name"] for file in record.files] == [*expected, "pytorch_model.bin"]
    digest = hashlib.sha256(Path(files["image_model"]).read_bytes()).hexdigest()
    assert record.files[0]["sha256"] == digest


def test_biovils_processor_is_theirs_without_their_code(biovil_files, tmp_path):
    model, processor = conversion.biovil(**biovil_files[2])
    pixels = np.random.default_rng(0).integers(0, 256, (700, 610), dtype=np.uint8)
    small = Image.fromarray(pixels).resize((512, int(512 * 700 / 610)), Image.Resampling.BILINEAR)
    left, top = (small.width - 480) // 2, (small.height - 480) // 2
    expected = torch.tensor(np.asarray(small)[top : top + 480, left : left + 480] / 255, dtype=torch.float32)
    found = processor(images=Image.fromarray(pixels))["pixel_values"]
    torch.testing.assert_close(found, expected.expand(1, 3, 480, 480), rtol=0, atol=1e-6)
    assert processor(text="No Effusion").input_ids.tolist() == [[2, 9, 8, 3]]
    assert model.config.special_token_ids == [0, 1, 2, 3, 4] and processor.tokenizer.model_max_length == 24
    processor.save_pretrained(tmp_path / "saved")
    saved = "".join(path.read_text() for path in (tmp_path / "saved").glob("*.json"))
    assert "cxrbert" not in saved.lower() and "/home/someone" not in saved and str(tmp_path) not in saved


def test_weights_that_do_not_fit_are_all_listed(biovil_files):
    image, _, files = biovil_files
    state = image.state_dict()
    del state["encoder.encoder.layer2.1.bn2.running_var"], state["projector.model.3.bias"]
    state["encoder.encoder.layer5"] = state["momentum"] = torch.zeros(1)
    state["projector.model.1.weight"] = torch.zeros(3)
    torch.save(state, files["image_model"])
    with pytest.raises(ValueError) as error:
        conversion.biovil(**files)
    assert str(error.value) == (
        "The weights do not fit the model. missing: encoder.encoder.layer2.1.bn2.running_var, projector.model.3.bias; "
        "unknown: encoder.encoder.layer5, momentum; "
        "of another shape: projector.model.1.weight (expected (16,), found (3,))."
    )


def test_no_weight_is_loaded_into_another(biovil_files):
    image, text, files = biovil_files
    key = "bert.embeddings.LayerNorm.bias"
    torch.save(image.state_dict() | {key: text.state_dict()[key]}, files["image_model"])
    with pytest.raises(ValueError, match=f"same name: {key}"):
        conversion.biovil(**files)
    state = image.state_dict()
    state["projector.model.0.weight"] = state["projector.model.0.weight"].to(torch.int8)
    torch.save(state, files["image_model"])
    with pytest.raises(ValueError, match=r"of integers.*projector\.model\.0\.weight \(torch\.int8\)"):
        conversion.biovil(**files)


def test_weights_of_a_distributed_model_are_read(biovil_files):
    image, _, files = biovil_files
    expected = conversion.biovil(**files)[0].state_dict()
    torch.save({f"module.{key}": tensor for key, tensor in image.state_dict().items()}, files["image_model"])
    found = conversion.biovil(**files)[0].state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


def test_a_tokenizer_without_its_vocabulary_is_refused(biovil_files, tmp_path):
    (tmp_path / "cxr-bert" / "vocab.txt").unlink()
    with pytest.raises(ValueError, match="does not know any word"):
        conversion.biovil(**biovil_files[2])
    clip_folder(tmp_path / "clip")
    for path in (tmp_path / "clip").glob("tokenizer*"):
        path.unlink()
    with pytest.raises((ValueError, OSError)):
        conversion.clip(str(tmp_path / "clip"))


def test_weights_that_give_nothing_are_refused(biovil_files):
    image, _, files = biovil_files
    state = image.state_dict()
    state["projector.model.3.bias"][0] = float("nan")
    torch.save(state, files["image_model"])
    with pytest.raises(ValueError, match="no finite similarity"):
        conversion.biovil(**files)


def test_other_models_are_refused_as_biovil(biovil_files, tmp_path):
    _, text, files = biovil_files
    torch.save(text.state_dict(), tmp_path / "text.pt")
    with pytest.raises(ValueError, match=r"encoder.encoder.conv1.weight is missing.*ResNet"):
        conversion.biovil(str(tmp_path / "text.pt"), files["text_model"])
    with pytest.raises(ValueError, match=f"no {conversion.BIOVIL_IMAGE_FILE} in"):
        conversion.biovil(files["text_model"], files["text_model"])
    with pytest.raises(ValueError, match="nothing-here is not on this disk.*Hub"):
        conversion.biovil(files["image_model"], str(tmp_path / "nothing-here"))
    with pytest.raises(ValueError, match="no file models/image.pt"):
        conversion.biovil("models/image.pt", files["text_model"])
    vocabulary = tmp_path / "cxr-bert" / "vocab.txt"
    vocabulary.write_text(vocabulary.read_text() + "more\n")
    with pytest.raises(ValueError, match="tokenizer has 20 tokens, and the text encoder 19"):
        conversion.biovil(**files)
    config = tmp_path / "cxr-bert" / "config.json"
    config.write_text(config.read_text().replace("cxr-bert", "bert"))
    with pytest.raises(ValueError, match="CXR-BERT"):
        conversion.biovil(**files)


# The authors' code


def save_authors(path: Path, model: AuthorsModel, state=None) -> None:
    """As their train.py saves: losses as numbers of numpy and tensors, the command line as a Namespace."""
    optimizer = torch.optim.Adam(model.parameters())
    loss = {"best_val_loss": 1000000000, "val_loss": 1.5, "train_loss": np.float64(2.5), "last": np.float32(0.5)}
    arguments = argparse.Namespace(model="clip_regularized", debug=False, lam_words=0.1, resume=0)
    content = {"epoch": 3, "model_state_dict": state or model.state_dict(), **loss, "args": arguments}
    content |= {"optimizer_state_dict": optimizer.state_dict(), "train_losses": torch.tensor([1.0, 2.0])}
    torch.save(content, path)


@pytest.fixture
def authors(tmp_path) -> tuple[AuthorsModel, dict[str, str]]:
    model = AuthorsModel(randomize(BiovilImage()), cxr_bert(tmp_path / "cxr-bert"))
    (tmp_path / "cxr-bert" / "pytorch_model.bin").unlink()  # of this folder, only the tokenizer and the configuration
    save_authors(tmp_path / "best_model.pt", model)
    return model, {"model": str(tmp_path / "best_model.pt"), "text_model": str(tmp_path / "cxr-bert")}


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


# CLIP and SigLIP of transformers


def clip_folder(folder: Path) -> CLIPModel:
    ends = {"vocab_size": 22, "bos_token_id": 2, "eos_token_id": 21, "pad_token_id": 1}
    config = CLIPConfig(
        text_config=TEXT_CONFIGS["clip"].to_dict() | ends,
        vision_config=VISION_CONFIGS["clip"].to_dict(),
        projection_dim=DIMENSION,
    )
    model = randomize(CLIPModel(config))
    model.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    word_tokenizer("<pad>", "<end>", model_max_length=24).save_pretrained(folder)
    return model


def test_clip_is_from_clip_with_its_processor(tmp_path, pixels):
    theirs = clip_folder(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["text_model.embeddings.position_ids"] = torch.arange(24)[None]  # as in the files of OpenAI on the Hub
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    record = conversion.Record()
    model, processor = conversion.clip(str(tmp_path), record=record)
    assert list(record.unused) == ["text_model.embeddings.position_ids"]
    for name, tensor in TierModel.from_clip(str(tmp_path)).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    inputs = {**tokens(processor), "pixel_values": pixels[..., :32, :32]}
    with torch.no_grad():
        ours, expected = model(**inputs), theirs(**inputs)
    for name in ("logits_per_image", "text_embeds", "image_embeds"):
        torch.testing.assert_close(ours[name], expected[name], **close)
    assert model.config.special_token_ids == [0, 1, 2, 21]
    assert processor(images=Image.new("L", (50, 40)))["pixel_values"].shape == (1, 3, 32, 32)


def test_half_precision_becomes_single(tmp_path):
    clip_folder(tmp_path / "clip").half().save_pretrained(tmp_path / "clip", max_shard_size="50KB")
    (tmp_path / "clip" / "model.safetensors").unlink()
    assert len(list((tmp_path / "clip").glob("model-*.safetensors"))) > 1
    config = json.loads((tmp_path / "clip" / "config.json").read_text())
    config["text_config"]["dtype"] = config["vision_config"]["dtype"] = "float16"
    (tmp_path / "clip" / "config.json").write_text(json.dumps(config))
    conversion.convert("clip", tmp_path / "tier", model=str(tmp_path / "clip"))
    model, _ = load_model(str(tmp_path / "tier"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def siglip_folder(folder: Path) -> SiglipModel:
    config = SiglipConfig(
        text_config=TEXT_CONFIGS["siglip"].to_dict() | {"vocab_size": 22, "bos_token_id": None, "eos_token_id": 21},
        vision_config=VISION_CONFIGS["siglip"].to_dict(),
    )
    model = randomize(SiglipModel(config))
    model.logit_scale.data.fill_(2.5), model.logit_bias.data.fill_(-9.0)
    model.save_pretrained(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    # As published: the end of the text is its padding, and no mask is made.
    names = {"model_input_names": ["input_ids"], "padding_side": "left"}
    word_tokenizer("<end>", "<end>", model_max_length=64, **names).save_pretrained(folder)
    return model


def test_siglip_gives_the_same_embeddings_and_logits(tmp_path, pixels):
    theirs = siglip_folder(tmp_path)
    model, processor = conversion.siglip(str(tmp_path))
    inputs = {**tokens(processor), "pixel_values": pixels[..., :32, :32]}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, padding_side="right")
    full = tokenizer(TEXTS, padding="max_length", max_length=24, return_tensors="pt")
    assert list(full) == ["input_ids"] and (full["input_ids"][0, -1] == 21)
    with torch.no_grad():
        ours, expected = model(**inputs), theirs(**full, pixel_values=inputs["pixel_values"])
    for name in ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds"):
        torch.testing.assert_close(ours[name], expected[name], rtol=1e-5, atol=1e-4 if "logits" in name else 1e-5)
    states = expected.text_model_output.last_hidden_state[:, : inputs["input_ids"].shape[1]]
    token_embeds = nn.functional.normalize(theirs.text_model.head(states), dim=-1)
    torch.testing.assert_close(ours.token_embeds, token_embeds, **close)
    states = expected.vision_model_output.last_hidden_state
    patches = torch.stack([theirs.vision_model.head(states[:, [p]]) for p in range(16)], dim=1)
    torch.testing.assert_close(ours.patch_embeds, nn.functional.normalize(patches, dim=-1), **close)
    assert model.config.text_config.pad_token_id == 21 and processor.tokenizer.model_max_length == 24
    assert model.logit_bias.item() == -9 == model.config.logit_bias_init_value and not model.logit_bias.requires_grad
    assert model.config.special_token_ids == [0, 21]
    processor.save_pretrained(tmp_path / "processor")
    loaded = tokens(TierProcessor.from_pretrained(tmp_path / "processor"))
    assert all(torch.equal(loaded[name], inputs[name]) for name in loaded)


def test_another_kind_of_model_is_refused(tmp_path):
    siglip_folder(tmp_path)
    with pytest.raises(ValueError, match="type 'siglip'; 'clip' is needed"):
        conversion.clip(str(tmp_path))
    weights = load_file(tmp_path / "model.safetensors")
    del weights["vision_model.head.probe"]
    weights["text_model.head.bias"] = torch.zeros(5)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"missing: vision_model.head.probe; .*text_model.head.bias \(expected"):
        conversion.siglip(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no weights: neither model.safetensors nor pytorch_model.bin"):
        conversion.siglip(str(tmp_path))


# OpenAI's format


@pytest.fixture
def openai_tokenizer(tmp_path) -> str:
    """CLIP pads with its end token, but any padding does."""
    word_tokenizer("<pad>", "<end>", model_max_length=77).save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def as_published(model: nn.Module) -> nn.Module:
    """In half precision where OpenAI's archives are: convolutions, attention, linear layers and projections."""
    for name, parameter in model.named_parameters():
        if re.search(r"conv1|attn\.|mlp\.|proj$|text_projection", name):
            parameter.data = parameter.data.half()
    return model


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", ["state dict", "legacy state dict", "script", "trace"])
def test_openais_format_gives_the_same_embeddings_and_logits(tmp_path, pixels, openai_tokenizer, kind):
    path, pixels = tmp_path / "ViT-B-32.pt", pixels[..., :32, :32].contiguous()
    theirs = randomize(OpenaiClip())
    if kind.endswith("state dict"):
        torch.save(theirs.state_dict(), path, _use_new_zipfile_serialization="legacy" not in kind)
    else:
        published = PublishedOpenaiClip().eval()
        published.load_state_dict(theirs.state_dict(), strict=False)
        ids = torch.tensor([[2, 5, 21]])
        module = torch.jit.script(published) if kind == "script" else torch.jit.trace(published, (pixels, ids))
        as_published(module).save(path)
        theirs = as_published(theirs).float()
    record = conversion.Record()
    model, processor = conversion.openai(str(path), openai_tokenizer, record=record)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert len(record.unused) == (0 if kind.endswith("state dict") else 3)
    texts = tokens(processor)
    with torch.no_grad():
        image, (token_embeds, text) = theirs.visual(pixels), theirs.encode_text(texts["input_ids"])
        assert_same(model, texts, pixels, token_embeds, text, image[:, 1:], image[:, 0])
        logits = nn.functional.normalize(image[:, 0], dim=-1) @ nn.functional.normalize(text, dim=-1).T
        logits = logits * theirs.logit_scale.exp()
        torch.testing.assert_close(model(**texts, pixel_values=pixels).logits_per_image, logits, rtol=1e-5, atol=1e-4)
    assert processor.image_processor.resample == Image.Resampling.BICUBIC
    assert processor(images=Image.new("L", (50, 40)))["pixel_values"].shape == (1, 3, 32, 32)
    assert processor.tokenizer.model_max_length == 12


def with_plain_gelu(model: nn.Module) -> nn.Module:
    for block in model.modules():
        for name, child in block.named_children():
            if isinstance(child, QuickGelu):
                setattr(block, name, nn.GELU())
    return model


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_of_open_clips_trainer_needs_its_activation_said(tmp_path, pixels, openai_tokenizer, prefix):
    path, pixels = tmp_path / "epoch_32.pt", pixels[..., :32, :32].contiguous()
    theirs = with_plain_gelu(randomize(OpenaiClip()))
    weights = {prefix + name: tensor for name, tensor in theirs.state_dict().items()}
    torch.save({"epoch": 32, "name": "run", "state_dict": weights, "optimizer": {"state": {}}}, path)
    with pytest.raises(ValueError, match="epoch_32.pt is a checkpoint of a trainer.*--activation gelu"):
        conversion.openai(str(path), openai_tokenizer)
    with pytest.raises(ValueError, match="activation must be one of"):
        conversion.openai(str(path), openai_tokenizer, activation="relu")
    record = conversion.Record()
    model, processor = conversion.openai(str(path), openai_tokenizer, activation="gelu", record=record)
    with torch.no_grad():
        image, (_, text) = theirs.visual(pixels), theirs.encode_text(tokens(processor)["input_ids"])
        out = model(**tokens(processor), pixel_values=pixels)
    torch.testing.assert_close(out.image_embeds, nn.functional.normalize(image[:, 0], dim=-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.text_embeds, nn.functional.normalize(text, dim=-1), rtol=1e-5, atol=1e-5)
    assert record.unused.keys() == {"epoch", "name", "optimizer"} and not record.notes


def test_an_activation_that_was_taken_by_default_is_noted(tmp_path, openai_tokenizer):
    torch.save(randomize(OpenaiClip()).state_dict(), tmp_path / "model.pt")
    record = conversion.Record()
    conversion.openai(str(tmp_path / "model.pt"), openai_tokenizer, record=record)
    assert len(record.notes) == 1 and "--activation gelu" in record.notes[0]


def test_openai_lists_what_does_not_fit(tmp_path, openai_tokenizer):
    state = randomize(OpenaiClip()).state_dict()
    del state["transformer.resblocks.1.attn.in_proj_bias"]
    state["text_projection"] = torch.zeros(128, 9)
    state["visual.attn_pool"] = torch.zeros(1)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(ValueError) as error:
        conversion.openai(str(tmp_path / "model.pt"), openai_tokenizer)
    bias = "transformer.resblocks.1.attn.in_proj_bias"
    assert str(error.value) == (
        f"The weights do not fit the model. missing: {bias} (key), {bias} (value), {bias} (query); "
        "unknown: visual.attn_pool; "
        "of another shape: text_projection (transposed) (expected (16, 128), found (9, 128))."
    )
    with pytest.raises(ValueError, match="end token must be the last"):
        torch.save(randomize(OpenaiClip(vocabulary=30)).state_dict(), tmp_path / "model.pt")
        conversion.openai(str(tmp_path / "model.pt"), openai_tokenizer)
    torch.save({"visual.layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pt")
    with pytest.raises(ValueError, match="CLIP.s ResNet.*ViT"):
        conversion.openai(str(tmp_path / "resnet.pt"), openai_tokenizer)


# Files that are not what they should be


class Malicious:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


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


# Options of the image processor


def test_image_options_replace_the_image_processors(tmp_path, openai_tokenizer):
    torch.save(randomize(OpenaiClip()).state_dict(), tmp_path / "chexzero.pt")
    options = {"image_mean": [0.4, 0.4, 0.4], "image_std": [0.3, 0.3, 0.3]}
    _, processor = conversion.openai(str(tmp_path / "chexzero.pt"), openai_tokenizer, options)
    white = processor(images=Image.new("L", (40, 40), 255))["pixel_values"]
    torch.testing.assert_close(white, torch.full((1, 3, 32, 32), 2.0))
    with pytest.raises(ValueError, match="image_meen.*image_mean"):
        conversion.openai(str(tmp_path / "chexzero.pt"), openai_tokenizer, {"image_meen": 0.4})
    with pytest.raises(ValueError, match="cannot take what its processor makes"):
        conversion.openai(str(tmp_path / "chexzero.pt"), openai_tokenizer, {"crop_size": {"height": 48, "width": 48}})


# The command


def run(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["conversion", *map(str, arguments)])
    conversion.main()


def test_the_command_tells_what_it_did(biovil_files, tmp_path, monkeypatch, capsys):
    output, files = tmp_path / "deep" / "model", biovil_files[2]
    output.mkdir(parents=True)  # empty, so it may be used
    arguments = [f"--{name}={value}" for name, value in files.items()]
    run(monkeypatch, "biovil", output, *arguments, "--image_options", "{size: {shortest_edge: 256}, crop_size: 224}")
    told = capsys.readouterr().out
    assert re.search(r"encoder.encoder.fc.weight: .*ImageNet", told) and "cls.predictions.decoder.weight: " in told
    assert "logit_scale" in told and "image.pt" in told and str(tmp_path / "cxr-bert") not in told
    content = json.loads((output / "conversion.json").read_text())
    assert content["source"] == "biovil" and content["files"][0]["name"] == "image.pt"
    assert content["unused"].keys() >= {"encoder.encoder.fc.weight", "bert.embeddings.position_ids"}
    assert content["torch"] == torch.__version__ and "transformers" in content
    assert str(tmp_path) not in json.dumps(content)
    assert os.listdir(output.parent) == ["model"] and output.stat().st_mode & 0o777 == 0o777 & ~umask()
    model, processor = load_model(str(output))
    assert processor(images=Image.new("L", (300, 400)))["pixel_values"].shape == (1, 3, 224, 224)
    expected, _ = conversion.biovil(**files)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def test_a_folder_that_is_not_empty_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("keep me")
    monkeypatch.setattr(conversion, "find_file", lambda *_: pytest.fail("something was read"))
    for output in (tmp_path / "model", tmp_path / "model" / "notes.txt"):
        with pytest.raises(SystemExit, match="error: .* is not an empty folder"):
            run(monkeypatch, "openai", output, "--model", "model.pt")
    assert (tmp_path / "model" / "notes.txt").read_text() == "keep me"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image_options", "[1, 2]"], "must be a mapping"),
        (["--image_options", "{a: ]"], "expected"),
        (["--image_options", "{image_meen: 1}"], "image_meen"),
        (["--image_model", "/nowhere.pt"], "no file /nowhere.pt"),
    ],
)
def test_errors_of_the_command_are_one_line_and_leave_nothing(biovil_files, tmp_path, monkeypatch, options, message):
    before = sorted(os.listdir(tmp_path))
    arguments = [f"--{name}={value}" for name, value in biovil_files[2].items()]
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "biovil", tmp_path / "model", *arguments, *options)
    assert re.fullmatch(r"error: [^\n]*", stopped.value.code) and message in stopped.value.code
    assert sorted(os.listdir(tmp_path)) == before


def test_a_failure_while_writing_leaves_nothing(biovil_files, tmp_path, monkeypatch):
    before = sorted(os.listdir(tmp_path))
    full = lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device"))  # noqa: E731
    monkeypatch.setattr(TierProcessor, "save_pretrained", full)
    with pytest.raises(SystemExit, match="error: .*No space left"):
        arguments = [f"--{name}={value}" for name, value in biovil_files[2].items()]
        run(monkeypatch, "biovil", tmp_path / "model", *arguments)
    assert sorted(os.listdir(tmp_path)) == before


# From the Hub into another process


ELSEWHERE = """
import json, sys
from transformers import AutoModel, AutoProcessor

try:
    import modeling_tier
    sys.exit("the package must not be importable here")
except ModuleNotFoundError:
    pass
for folder in sys.argv[3:]:
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    out = model(**processor(images=sys.argv[1], text=json.loads(sys.argv[2])))
    print(json.dumps([type(model).__name__, out.logits_per_image[0].tolist()]))
"""


def run_elsewhere(command: list, folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_from_the_hub_to_a_process_without_the_package(tmp_path):
    """
    BioViL's two models lie in one repository. A server of this process stands in for the Hub; the command runs in
    another process, as this one is offline; and what it wrote, with a SigLIP beside it, is loaded in a third.
    """
    image, _ = randomize(BiovilImage()), cxr_bert(tmp_path / "repository")
    torch.save(image.state_dict(), tmp_path / "repository" / conversion.BIOVIL_IMAGE_FILE)
    files = {path.name: path.read_bytes() for path in (tmp_path / "repository").iterdir()}
    folders = [tmp_path / "biovil-tier", tmp_path / "siglip-tier"]
    with serve("models", conversion.CXR_BERT, files, tmp_path / "home", revision="v1.1") as (online, asked):
        told = run_elsewhere([sys.executable, "-m", "modeling_tier.conversion", "biovil", folders[0]], ROOT, online)
    offline = {name: value for name, value in online.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    assert f"{conversion.CXR_BERT}/{conversion.BIOVIL_IMAGE_FILE}" in told
    names = {file["name"] for file in json.loads((folders[0] / "conversion.json").read_text())["files"]}
    read = set(files) - {"configuration_cxrbert.py", "modeling_cxrbert.py"}
    assert names == {f"{conversion.CXR_BERT}/{name}" for name in read} and set(asked) == read

    siglip_folder(tmp_path / "siglip")
    conversion.convert("siglip", folders[1], model=str(tmp_path / "siglip"))
    radiograph = tmp_path / "radiograph.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)).save(radiograph)
    (tmp_path / "elsewhere").mkdir()
    command = [sys.executable, "-c", ELSEWHERE, radiograph, json.dumps(TEXTS), *folders]
    lines = run_elsewhere(command, tmp_path / "elsewhere", offline).splitlines()[-2:]
    for folder, line in zip(folders, lines):
        model, processor = load_model(str(folder))
        with torch.no_grad():
            expected = model(**processor(images=radiograph, text=TEXTS)).logits_per_image[0]
        assert json.loads(line) == ["TierModel", pytest.approx(expected.tolist(), abs=1e-4)]
