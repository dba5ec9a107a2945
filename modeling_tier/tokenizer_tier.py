# Licensed under the Apache License, Version 2.0.
"""A limit on the files of a tokenizer, of a folder or of the Hub, before they are loaded."""

import json
from os import PathLike
from typing import Any

from transformers.utils import cached_file


MAX_ADDED_TOKENS = 20_000  # they are added one by one; published tokenizers have up to some 6,400
# Where added tokens are listed, and under which key.
_LISTS = (
    ("tokenizer.json", "added_tokens"),
    ("tokenizer_config.json", "added_tokens_decoder"),
    ("added_tokens.json", ""),
)
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


def check_tokenizer_files(name_or_path: str | PathLike, **options: Any) -> None:
    """
    Raise ValueError if a tokenizer has so many added tokens that loading it would take hours.

    Args:
        name_or_path: a folder or the name of a repository on the Hub.
        **options: of `from_pretrained`. Those that choose files on the Hub, such as `revision`, are used.
    """
    hub_options = {name: options[name] for name in _HUB_OPTIONS if options.get(name) is not None}
    for name, key in _LISTS:
        try:
            path = cached_file(name_or_path, name, **hub_options)
        except OSError:  # not there, or the Hub cannot be asked: loading says so if it matters
            continue
        try:
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
            number = len(content.get(key, ()) if key else content)
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{name_or_path}: {name} is no file of a tokenizer: {str(error)[:200]}") from error
        if number > MAX_ADDED_TOKENS:
            raise ValueError(
                f"{name_or_path}: {name} adds {number:,} tokens to its vocabulary; at most {MAX_ADDED_TOKENS:,} are "
                "read."
            )


def check_max_length(tokenizer: Any) -> None:
    """Raise ValueError if a tokenizer's model_max_length is no number of tokens, as damaged files have it."""
    length = tokenizer.model_max_length
    if isinstance(length, bool) or not isinstance(length, (int, float)) or not length >= 1:
        raise ValueError(
            f"The tokenizer's model_max_length must be a number of tokens, at least 1; got {str(length)[:80]!r}. It "
            "stands in tokenizer_config.json."
        )
