# Licensed under the Apache License, Version 2.0.
"""Load a model of a folder or of the Hub completely, or say what is wrong with it."""

import difflib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer

from .encoders_tier import max_text_length
from .hub_access import hub_or_cache
from .modeling_tier import TierModel
from .processing_tier import TierProcessor
from .tokenizer_tier import check_tokenizer_files


Loaded = TypeVar("Loaded")
_MAX_NAMES = 10  # weights that a message lists


def check_model_name(name_or_path: str) -> None:
    """Raise ValueError if this is neither a folder nor a repository on the Hub; only its config.json is downloaded."""
    with hub_or_cache(name_or_path) as not_asked:
        _check_name(name_or_path, not_asked)


def _check_name(name_or_path: str, not_asked: str | None) -> None:
    """As [`check_model_name`]; `not_asked` says why the Hub is not asked."""
    path = Path(name_or_path)
    try:
        if path.is_dir():
            _check_weight_index(path)
            return
        if path.exists():
            raise ValueError(f"{name_or_path} is a file; a model is a folder or a repository on the Hub.")
    except OSError:  # a name too long for a file
        pass
    missing = f"There is no folder and no Hub repository named {name_or_path!r}"
    try:
        validate_repo_id(name_or_path)
        hf_hub_download(name_or_path, "config.json")
    except GatedRepoError as error:
        raise ValueError(
            f"The Hub repository {name_or_path!r} is gated: ask for access on its page, then run `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(f"{missing} (for a private one, run `hf auth login` first).{_near(path)}") from error
    except LocalEntryNotFoundError as error:  # an EntryNotFoundError, too
        if not_asked:
            raise ValueError(f"{missing} among those downloaded before; {not_asked}.{_near(path)}") from error
        raise ValueError(_not_given(name_or_path, error.__cause__ or error)) from error
    except EntryNotFoundError as error:
        raise ValueError(f"The Hub repository {name_or_path!r} has no config.json, so it holds no model.") from error
    except HfHubHTTPError as error:
        raise ValueError(_not_given(name_or_path, error)) from error
    except ValueError as error:  # no name that a repository could have
        raise ValueError(f"{missing}.") from error


def _not_given(name: str, error: BaseException) -> str:
    """What a Hub answered that neither gives a repository nor denies that it is there."""
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".:")
    refused = isinstance(error, HfHubHTTPError) and error.response.status_code == 401
    hint = " It refuses your token: run `hf auth login`." if refused else ""
    return f"{name!r} is not on this disk, and the Hub ({constants.ENDPOINT}) does not give it: {reason}.{hint}"


def _near(path: Path) -> str:
    """A folder of nearly this name, as the end of a message."""
    try:
        folders = [child.name for child in path.parent.iterdir() if child.is_dir()]
    except OSError:  # no folder, or one that may not be read
        folders = []
    near = difflib.get_close_matches(path.name, folders, n=1)
    return f" Did you mean the folder {path.with_name(near[0])}?" if near else ""


def load_model(name_or_path: str) -> tuple[TierModel, TierProcessor]:
    """
    A TIER model, or a CLIPModel read as one, with its processor. No code of the folder or repository is run.

    Args:
        name_or_path: a folder or the name of a repository on the Hub.

    Raises:
        ValueError: if there is no such model, it is of another type, its files are damaged, or weights are missing or
            surplus (with their names).
    """
    with hub_or_cache(name_or_path) as not_asked:
        _check_name(name_or_path, not_asked)
        return _load(name_or_path)


def _load(name_or_path: str) -> tuple[TierModel, TierProcessor]:
    with naming_damage(name_or_path, "config.json"):
        model_type = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False).model_type
    if model_type not in ("tier", "clip"):
        command = f"python -m modeling_tier.conversion {model_type} OUTPUT_DIR --model {name_or_path}"
        way_out = (
            f"Convert it: {command}" if model_type == "siglip" else "See python -m modeling_tier.conversion --help."
        )
        raise ValueError(
            f"{name_or_path} holds a model of type {model_type!r}; a TIER model or a CLIPModel can be evaluated. "
            + way_out
        )
    if model_type == "clip":
        with naming_damage(name_or_path, "the image processor"):
            image_processor = AutoImageProcessor.from_pretrained(name_or_path, trust_remote_code=False)
        with naming_damage(name_or_path, "the tokenizer"):
            check_tokenizer_files(name_or_path)
            processor = TierProcessor(image_processor, AutoTokenizer.from_pretrained(name_or_path))
        with naming_damage(name_or_path, "the weights"):
            model = TierModel.from_clip(name_or_path, lambda_token=0.0, lambda_patch=0.0)
    else:
        with naming_damage(name_or_path, "the processor"):
            processor = TierProcessor.from_pretrained(name_or_path, trust_remote_code=False)
        model = complete(TierModel.from_pretrained, name_or_path)
    longest, tokenizer = max_text_length(model.config.text_config), processor.tokenizer
    tokenizer.model_max_length = min(tokenizer.model_max_length, longest or tokenizer.model_max_length)
    return model.eval(), processor


def complete(from_pretrained: Callable[..., tuple[Loaded, dict]], name_or_path: str, **options) -> Loaded:
    """
    A model of `from_pretrained` with all of its weights and no others.

    Raises:
        ValueError: for missing or surplus weights, which transformers draws at random or drops, and for damaged files.
    """
    with naming_damage(name_or_path, "the weights"):
        model, info = from_pretrained(name_or_path, output_loading_info=True, **options)
    wrong = {"missing": info["missing_keys"], "surplus": info["unexpected_keys"]}
    texts = [f"{len(names)} are {kind} ({_listed(names)})" for kind, names in wrong.items() if names]
    if texts:
        raise ValueError(f"The weights in {name_or_path} are not those of its config.json: {' and '.join(texts)}.")
    return model


@contextmanager
def naming_damage(name_or_path: str, part: str) -> Iterator[None]:
    """Whatever a library raises over a damaged file becomes a ValueError that names the model and the part."""
    try:
        yield
    except Exception as error:  # SafetensorError, RuntimeError, OverflowError, KeyError: any, of any library
        if type(error) is ValueError and str(name_or_path) in str(error):  # it says so itself
            raise
        reason = " ".join(str(error).split())
        raise ValueError(f"{name_or_path}: {part} cannot be read: {type(error).__name__}: {reason[:500]}") from error


def _check_weight_index(folder: Path) -> None:
    """Raise ValueError if an index of the folder's weights is damaged, or names files outside of the folder."""
    for index in folder.glob("*.index.json"):
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{index} is no index of weights: {type(error).__name__}: {str(error)[:200]}") from error
        for name in names:
            if not isinstance(name, str) or Path(name).name != name:
                raise ValueError(f"{index} names {name!r}, which is no file of this folder.")


def _listed(names) -> str:
    names = sorted(names)
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more
