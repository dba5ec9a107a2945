# Licensed under the Apache License, Version 2.0.
"""Frozen parts: they keep their weights and statistics, stay in eval mode and take no optimiser memory."""

import pytest
import torch
from conftest import TEXT_CONFIGS, VISION_CONFIGS, make_inputs, tier_config
from torch import nn
from transformers import AlbertConfig, AlbertModel, PvtConfig, PvtModel, XLMConfig, XLMModel

from modeling_tier import TierModel
from modeling_tier.training.freezing import _first_layers, freeze, train_mode
from modeling_tier.training.optimization import build_optimizer
from modeling_tier.training.options import FreezeOptions, OptimizerOptions


def build(text="bert", vision="resnet", **options) -> TierModel:
    torch.manual_seed(0)
    options = {"image_pooling": "mean", "projection": "mlp", **options}
    return TierModel(tier_config(text, vision, **options))


def step(model: TierModel, name="adamw") -> tuple[dict, torch.optim.Optimizer]:
    """One step; returns the names of parameters and buffers that it changed."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = build_optimizer(model, OptimizerOptions(name=name, lr=1e-2))
    train_mode(model)
    model(**make_inputs(), return_loss=True).loss.backward()
    optimizer.step()
    return {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}, optimizer


@pytest.mark.parametrize("text", TEXT_CONFIGS)
def test_the_first_layers_of_every_text_encoder(text):
    model = build(text, "vit")
    freeze(model, FreezeOptions(text_layers=1))
    changed, _ = step(model)
    of_text = {name for name in changed if name.startswith("text_model.")}
    assert not any("embeddings" in name or ".0." in name for name in of_text)
    assert any(".1." in name for name in of_text)
    assert {name.split(".")[0] for name in changed} == {name for name, _ in model.named_children()} | {"logit_scale"}


@pytest.mark.parametrize("vision", VISION_CONFIGS)
def test_the_first_layers_of_every_vision_encoder(vision):
    model = build("bert", vision)
    freeze(model, FreezeOptions(vision_layers=1))
    changed, _ = step(model)
    parts = [name.split(".") for name in changed if name.startswith("vision_model.")]
    assert parts and not any(name[1].startswith("embed") for name in parts)
    outermost = {next(part for part in name if part.isdigit()) for name in parts if any(map(str.isdigit, name))}
    assert outermost == {"1"}


@pytest.mark.parametrize(
    ("kind", "encoder"),
    [
        ("text_model", XLMModel(XLMConfig(emb_dim=16, n_layers=2, n_heads=2, vocab_size=50))),
        ("vision_model", PvtModel(PvtConfig(depths=[1, 1, 1, 1]))),
        ("text_model", AlbertModel(AlbertConfig(hidden_size=16, num_attention_heads=2, vocab_size=50))),
    ],
)
def test_layers_in_pieces_or_shared_are_not_counted(kind, encoder):
    with pytest.raises(ValueError, match=rf"freeze\.{kind[:-6]}_layers.*freeze\.patterns"):
        _first_layers(encoder, kind, 1)


def test_zero_layers_are_the_embeddings_alone():
    model = build()
    freeze(model, FreezeOptions(text_layers=0))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {f"text_model.{name}" for name, _ in model.text_model.named_parameters() if "embeddings" in name}


def test_patterns_name_modules_and_parameters():
    model = build()
    freeze(model, FreezeOptions(patterns=["vision_model", "text_model.encoder.layer.[0-7]", "*.bias", "logit_scale"]))
    for name, parameter in model.named_parameters():
        named = name.startswith(("vision_model.", "text_model.encoder.layer.")) or name.endswith(".bias")
        assert parameter.requires_grad != (named or name == "logit_scale"), name


def test_frozen_modules_stay_in_eval_mode():
    model = build()
    freeze(model, FreezeOptions(text_layers=1, vision_layers=1))
    changed, _ = step(model)
    layers = model.text_model.encoder.layer
    assert not any(module.training for module in [*model.text_model.embeddings.modules(), *layers[0].modules()])
    assert all(module.training for module in layers[1].modules()) and model.training and model.text_model.training
    stages = model.vision_model.encoder.stages
    norms = [module for module in stages[0].modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and not any(norm.training for norm in norms)
    assert not any(name.startswith("vision_model.encoder.stages.0.") for name in changed), "batch statistics too"
    assert any(name.startswith("vision_model.encoder.stages.1.") and "running_mean" in name for name in changed)


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_frozen_parameters_take_no_optimiser_memory(name):
    model = build()
    freeze(model, FreezeOptions(patterns=["text_model", "vision_model"]))
    _, optimizer = step(model, name)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert held == trained == {id(parameter) for parameter in optimizer.state}
    assert all(parameter.grad is None for parameter in model.parameters() if id(parameter) not in held)


def test_adam_is_that_of_the_authors():
    models = [build(), build()]
    reference = torch.optim.Adam(models[1].parameters(), lr=1e-4, weight_decay=1e-2)
    options = OptimizerOptions(name="adam", lr=1e-4, weight_decay=1e-2, beta2=0.999)
    for model, optimizer in zip(models, (build_optimizer(models[0], options), reference)):
        for seed in range(3):
            optimizer.zero_grad()
            torch.manual_seed(seed)
            model(**make_inputs(seed=seed), return_loss=True).loss.backward()
            optimizer.step()
    for (name, ours), theirs in zip(models[0].named_parameters(), models[1].parameters()):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patterns": ["text_modell"]}, r"'text_modell' matches no.*text_model.*vision_model"),
        ({"text_layers": 3}, r"freeze\.text_layers is 3.*has 2 layers"),
        ({"vision_layers": 9}, r"freeze\.vision_layers is 9.*has 2 layers"),
        ({"patterns": ["*"]}, "nothing is left"),
    ],
)
def test_what_cannot_be_frozen_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        freeze(build(), FreezeOptions(**options))
