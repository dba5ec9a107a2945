# Licensed under the Apache License, Version 2.0.
"""Published checkpoints as TIER models: what `python -m modeling_tier.conversion` does."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
import yaml

from ..files import new_folder
from .sources import SOURCES
from .weight_files import Record


def convert(source: str, output_dir: str | os.PathLike, **options) -> Record:
    """
    Convert, and write a folder that `AutoModel` and `AutoProcessor` load: all of it or nothing.

    Args:
        source: a name in `SOURCES`.
        output_dir: a folder that does not exist or is empty; gets the record too, as `conversion.json`.
        **options: of the source's converter.

    Raises:
        ValueError: if `output_dir` is not empty, which is seen first, or as the source's converter does.
    """
    output = Path(output_dir).resolve()
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ValueError(f"{output_dir} is not an empty folder.")
    record = Record()
    model, processor = SOURCES[source].convert(**options, record=record)
    with new_folder(output) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        content = {"source": source, **asdict(record), **versions}
        (folder / "conversion.json").write_text(json.dumps(content, indent=2) + "\n")
    return record


def _summary(record: Record, output_dir: str) -> str:
    lines = [f"wrote {output_dir}", "read:", *(f"  {file['sha256'][:12]}  {file['name']}" for file in record.files)]
    lines += [f"not used by TIER: {len(record.unused)} keys"]
    lines += [f"  {key}: {reason}" for key, reason in record.unused.items()]
    lines += [f"note: {note}" for note in record.notes]
    lines += [f"left at its initial value: {name}; {reason}" for name, reason in record.initial.items()]
    return "\n".join(lines)


def run(source: str, output_dir: str, image_options: str | None = None, **options) -> None:
    """The work of `python -m modeling_tier.conversion`, whose options are in `tier_cli/commands/conversion.py`."""
    try:
        replaced = None if image_options is None else yaml.safe_load(image_options)
        if replaced is not None and not isinstance(replaced, dict):
            raise ValueError("--image_options must be a mapping, such as '{image_mean: [0.4, 0.4, 0.4]}'.")
        print(_summary(convert(source, output_dir, image_options=replaced, **options), output_dir))
    except (ValueError, OSError, RuntimeError, ImportError, yaml.YAMLError) as error:
        sys.exit("error: " + " ".join(str(error).split()))
    except KeyboardInterrupt:
        sys.exit("\nstopped; nothing was written")
