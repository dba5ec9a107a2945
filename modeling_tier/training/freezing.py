# Licensed under the Apache License, Version 2.0.
"""Parts of a model that stay as they are: without gradient, without optimiser state, and in eval mode."""

from fnmatch import fnmatchcase

from torch import nn

from ..modeling_tier import TierModel
from .options import FreezeOptions


def freeze(model: TierModel, options: FreezeOptions) -> None:
    """
    Take the gradient from what `options` name.

    Raises:
        ValueError: if a pattern matches nothing, an encoder has fewer layers, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    frozen = set()
    for pattern in options.patterns:
        matched = {name for name in names if any(fnmatchcase(part, pattern) for part in _parts(name))}
        if not matched:
            known = [name for name, _ in model.named_children()]
            raise ValueError(
                f"freeze.patterns: {pattern!r} matches no parameter or module. The model's parts are {known}; "
                f"a parameter is called {names[len(names) // 2]!r}."
            )
        frozen |= matched
    for encoder in ("text_model", "vision_model"):
        number = getattr(options, encoder.replace("_model", "_layers"))
        if number is not None:
            frozen |= {f"{encoder}.{name}" for name in _first_layers(getattr(model, encoder), encoder, number)}
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("freeze: nothing is left to train.")


def train_mode(model: nn.Module) -> None:
    """Training mode, except for modules all of whose parameters are frozen: no dropout, no new batch statistics."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def _parts(name: str) -> list[str]:
    """A parameter's name and those of the modules that contain it."""
    pieces = name.split(".")
    return [".".join(pieces[:end]) for end in range(1, len(pieces) + 1)]


def _first_layers(encoder: nn.Module, kind: str, number: int) -> set[str]:
    """Names of the parameters of the first layers and of all that comes before them, such as the embeddings."""
    config = encoder.config
    depth = getattr(config, "num_hidden_layers", None) or len(getattr(config, "depths", ()))
    lists = [(path, module) for path, module in encoder.named_modules() if isinstance(module, nn.ModuleList)]
    outer = [(path, module) for path, module in lists if not any(path.startswith(f"{other}.") for other, _ in lists)]
    layers = [path for path, module in outer if len(module) == depth]
    option = f"freeze.{kind.replace('_model', '_layers')}"
    if len(layers) != 1:  # kept in pieces, or shared
        raise ValueError(f"{option}: it is not known where {config.model_type} has its layers; use freeze.patterns.")
    if number > depth:
        raise ValueError(f"{option} is {number}, but the encoder has {depth} layers.")
    names = [name for name, _ in encoder.named_parameters()]
    start = next(i for i, name in enumerate(names) if name.startswith(f"{layers[0]}."))
    first = tuple(f"{layers[0]}.{i}." for i in range(number))
    return {*names[:start], *(name for name in names if name.startswith(first))}
