# Licensed under the Apache License, Version 2.0.
"""Published models of other code: built here from plain torch under their published names, and their files."""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
from conftest import TEXT_CONFIGS, VISION_CONFIGS
from safetensors.torch import save_file
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SwinConfig,
    SwinModel,
)

from modeling_tier import TierModel, TierProcessor, conversion


ROOT = Path(conversion.__file__).parents[1]
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


def with_plain_gelu(model: nn.Module) -> nn.Module:
    for block in model.modules():
        for name, child in block.named_children():
            if isinstance(child, QuickGelu):
                setattr(block, name, nn.GELU())
    return model


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
    def __init__(self, width=64, text_width=128, context=12, vocabulary=22, grid=4):
        super().__init__()
        self.visual = OpenaiVisual(width, patch=8, grid=grid, layers=2)
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


def save_authors(path: Path, model: AuthorsModel, state=None) -> None:
    """As their train.py saves: losses as numbers of numpy and tensors, the command line as a Namespace."""
    optimizer = torch.optim.Adam(model.parameters())
    loss = {"best_val_loss": 1000000000, "val_loss": 1.5, "train_loss": np.float64(2.5), "last": np.float32(0.5)}
    arguments = argparse.Namespace(model="clip_regularized", debug=False, lam_words=0.1, resume=0)
    content = {"epoch": 3, "model_state_dict": state or model.state_dict(), **loss, "args": arguments}
    content |= {"optimizer_state_dict": optimizer.state_dict(), "train_losses": torch.tensor([1.0, 2.0])}
    torch.save(content, path)


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


class TimmBlock(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        query, key, value = self.attn.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(dim=-1)
        x = x + self.attn.proj((weights @ value).transpose(1, 2).flatten(2))
        return x + self.mlp.fc2(nn.functional.gelu(self.mlp.fc1(self.norm2(x))))


class TimmViT(nn.Module):
    """timm's vit_tiny with two blocks and 16 patches of 8 pixels."""

    def __init__(self, width=192, heads=3):
        super().__init__()
        self.cls_token, self.pos_embed = (nn.Parameter(torch.zeros(1, n, width)) for n in (1, 17))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, 8, 8)
        self.blocks = nn.Sequential(TimmBlock(width, heads), TimmBlock(width, heads))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x):
        """The class token and the patches (N, 1 + P, width)."""
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.norm(self.blocks(x))


class BiomedClip(nn.Module):
    """open_clip's CustomTextCLIP of a ViT of timm and a BERT of transformers."""

    def __init__(self, bert: BertConfig):
        super().__init__()
        self.visual, self.text = nn.Module(), nn.Module()
        self.visual.trunk, self.visual.head = TimmViT(), nn.Module()
        self.visual.head.proj = nn.Linear(192, DIMENSION, bias=False)
        self.text.transformer = BertModel(bert)
        width, hidden = bert.hidden_size, (bert.hidden_size + DIMENSION) // 2
        self.text.proj = nn.Sequential(
            nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, DIMENSION, bias=False)
        )
        self.logit_scale = nn.Parameter(torch.tensor(3.4))

    def encode_image(self, pixels):
        """The image and its patches (N, 1 + P, D)."""
        return self.visual.head.proj(self.visual.trunk(pixels))

    def encode_text(self, ids):
        """Tokens (M, T, D); the first is the text's. Padding has the id 0."""
        return self.text.proj(self.text.transformer(ids, (ids != 0).long()).last_hidden_state)


def write_open_clip(folder: Path, model: nn.Module, architecture: dict, weights: str, **preprocessing) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"model_cfg": architecture, "preprocess_cfg": preprocessing}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save(state, folder / weights) if weights.endswith(".bin") else save_file(state, folder / weights)
    return folder


def write_biomedclip(folder: Path, model: BiomedClip, bert: str) -> Path:
    """With the configuration of BiomedCLIP's repository; `bert` is the folder or name of its text encoder."""
    text = {"hf_model_name": bert, "hf_tokenizer_name": bert, "context_length": 24}
    text |= {"hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler"}
    vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "timm_proj": "linear", "image_size": 32}
    architecture = {"embed_dim": DIMENSION, "vision_cfg": vision, "text_cfg": text}
    return write_open_clip(folder, model, architecture, "open_clip_pytorch_model.bin")


def write_bert(folder: Path) -> BertConfig:
    """Tokenizer and configuration of a BERT, without weights."""
    write_tokenizer_of_microsoft(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"tokenizer_class": "BertTokenizer"}
    path.write_text(json.dumps({name: value for name, value in settings.items() if name != "auto_map"}))
    options = TEXT_CONFIGS["bert"].to_diff_dict() | {"vocab_size": len(WORDS.split()), "hidden_dropout_prob": 0.0}
    config = BertConfig(**options | {"attention_probs_dropout_prob": 0.0, "num_hidden_layers": 3})
    config.save_pretrained(folder)
    return config


class BiovilTImage(BiovilImage):
    """BioViL-T's image model for a single image: at each patch its reduced features and a constant."""

    def __init__(self, channels=6):
        super().__init__()
        width = self.encoder.encoder.channels
        self.encoder.backbone_to_vit = nn.Conv2d(width, channels, 1, bias=False)
        self.encoder.missing_previous_emb = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.encoder.vit_pooler = nn.Module()
        self.encoder.vit_pooler.type_embed = nn.Parameter(torch.zeros(2, 1, channels))
        self.encoder.vit_pooler.norm_post = nn.LayerNorm(channels)
        self.projector.model[0] = nn.Conv2d(2 * channels, DIMENSION, 1, bias=False)

    def forward(self, x):
        """Patches (N, P, D) and their mean."""
        features = self.encoder.backbone_to_vit(self.encoder.encoder(x))
        constant = self.encoder.missing_previous_emb.expand(len(x), -1, *features.shape[2:])
        projected = self.projector.model(torch.cat([features, constant], dim=1))
        return projected.flatten(2).transpose(1, 2), projected.mean(dim=(2, 3))


class Gloria(nn.Module):
    def __init__(self, bert: BertConfig):
        super().__init__()
        self.text_encoder, self.img_encoder = nn.Module(), nn.Module()
        self.text_encoder.model = BertModel(bert)
        self.img_encoder.model = TorchvisionResNet("bottleneck", (1, 1, 1, 1), 4)
        self.img_encoder.model.fc = nn.Identity()
        self.img_encoder.global_embedder = nn.Linear(self.img_encoder.model.channels, bert.hidden_size)
        self.img_encoder.local_embedder = nn.Conv2d(64, bert.hidden_size, 1, bias=False)

    def encode_image(self, x):
        """Patches (N, P, D) of the last layer by the global projection, and the image (N, D)."""
        x = nn.Upsample(size=(299, 299), mode="bilinear", align_corners=True)(x)
        features = self.img_encoder.model(x)
        pooled = nn.functional.adaptive_avg_pool2d(features, 1).flatten(1)
        patches = self.img_encoder.global_embedder(features.flatten(2).transpose(1, 2))
        return patches, self.img_encoder.global_embedder(pooled)

    def encode_text(self, ids, mask):
        """Tokens (M, T, D) and the texts (M, D): padding is 0 in the sum over all 97 positions."""
        hidden = self.text_encoder.model(ids, mask, output_hidden_states=True).hidden_states
        states = torch.stack(hidden[-4:]).sum(dim=0) * mask[..., None]
        return states, states.sum(dim=1) / 97


def small_swin() -> SwinModel:
    return SwinModel(SwinConfig(image_size=224, embed_dim=32, depths=[1, 2], num_heads=[1, 2], window_size=7))


def with_old_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a Swin transformer under the names of transformers of 2022."""
    state = {}
    for name, tensor in weights.items():
        for new, old in {"q_proj": "self.query", "k_proj": "self.key", "v_proj": "self.value"}.items():
            name = name.replace(f"attention.{new}.", f"attention.{old}.")
        name = name.replace(".attention.o_proj.", ".attention.output.dense.")
        name = name.replace("attention.relative_position_bias.", "attention.self.")
        state[name.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")] = tensor
    return state


class MedClip(nn.Module):
    def __init__(self, bert: BertConfig, vision: str):
        super().__init__()
        self.text_model, self.vision_model = nn.Module(), nn.Module()
        self.text_model.model = BertModel(bert)
        self.text_model.projection_head = nn.Linear(bert.hidden_size, DIMENSION, bias=False)
        if vision == "swin":
            self.vision_model.model = small_swin()
            self.vision_model.projection_head = nn.Linear(64, DIMENSION, bias=False)
        else:
            self.vision_model.model = TorchvisionResNet("bottleneck", (1, 1, 1, 1), 4)
            self.vision_model.model.fc = nn.Linear(self.vision_model.model.channels, DIMENSION, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.9))

    def encode_image(self, x):
        """Patches (N, P, D) and the image (N, D)."""
        if hasattr(self.vision_model, "projection_head"):
            output, head = self.vision_model.model(x), self.vision_model.projection_head
            return head(output.last_hidden_state), head(output.pooler_output)
        features, head = self.vision_model.model(x), self.vision_model.model.fc
        return head(features.flatten(2).transpose(1, 2)), head(features.mean(dim=(2, 3)))

    def encode_text(self, ids, mask):
        """Tokens (M, T, D) and texts (M, D); as in its code, padding counts."""
        hidden = self.text_model.model(ids, mask, output_hidden_states=True).hidden_states
        states = torch.stack([hidden[1], hidden[2], hidden[-1]], dim=1)  # (M, layers, T, width)
        tokens, texts = states.mean(dim=1), states.mean(dim=2).mean(dim=1)
        return self.text_model.projection_head(tokens), self.text_model.projection_head(texts)

    def old_state_dict(self) -> dict[str, torch.Tensor]:
        """Under the names of transformers of its time, with the buffers that it stored."""
        state = with_old_names(self.state_dict())
        state["text_model.model.embeddings.position_ids"] = torch.arange(24)[None]
        block = "vision_model.model.encoder.layers.0.blocks.0.attention.self."
        state[f"{block}relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
        return state


class CxrClip(nn.Module):
    def __init__(self, bert: BertConfig, vision: str):
        super().__init__()
        self.image_encoder, self.text_encoder = nn.Module(), nn.Module()
        if vision == "swin":
            self.image_encoder.image_encoder, width = small_swin(), 64
        else:
            self.image_encoder.resnet = TorchvisionResNet("bottleneck", (1, 1, 1, 1), 4)
            width, self.image_encoder.resnet.fc = self.image_encoder.resnet.channels, nn.Identity()
        self.text_encoder.text_encoder = BertModel(bert)
        self.image_projection, self.text_projection = nn.Module(), nn.Module()
        self.image_projection.projection = nn.Linear(width, DIMENSION)
        self.text_projection.projection = nn.Linear(bert.hidden_size, DIMENSION)
        self.logit_scale = nn.Parameter(torch.tensor(2.7))

    def encode_image(self, x):
        """Patches (N, P, D) and the image (N, D), the first of all states where there might be a class token."""
        if hasattr(self.image_encoder, "resnet"):
            features = self.image_encoder.resnet(x)
            states, pooled = features.flatten(2).transpose(1, 2), features.mean(dim=(2, 3))
        else:
            states = self.image_encoder.image_encoder(x).last_hidden_state
            pooled = states[:, 0]
        return self.image_projection.projection(states), self.image_projection.projection(pooled)

    def encode_text(self, ids, mask):
        """Tokens (M, T, D) and texts (M, D)."""
        states = self.text_encoder.text_encoder(ids, mask).last_hidden_state
        last = states[torch.arange(len(states)), mask.sum(dim=1) - 1]
        return self.text_projection.projection(states), self.text_projection.projection(last)

    def checkpoint(self, **config) -> dict:
        """As its trainer saves."""
        state = with_old_names(self.state_dict())
        if not hasattr(self.image_encoder, "resnet"):
            block = "image_encoder.image_encoder.encoder.layers.0.blocks.0.attention.self."
            state[f"{block}relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
        state["text_encoder.text_encoder.embeddings.position_ids"] = torch.arange(24)[None]
        text = {"text_encoder": {"pooling": "eos"} | config}
        return {"model": state, "optimizer": {"state": {}}, "scheduler": {}, "config": {"model": text}, "epoch": 15}


class Malicious:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))
