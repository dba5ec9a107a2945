# Licensed under the Apache License, Version 2.0.
"""
Published checkpoints as TIER models: `python -m modeling_tier.conversion SOURCE OUTPUT_DIR [options]`.

The embeddings of tokens, patches, texts and images stay those of the source, and so do its logits. Names and shapes
are checked, and what TIER does not use is listed with the reason. No code that comes with a file is run.
"""

import argparse
import inspect
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m modeling_tier.conversion", description=__doc__.split("\n\n")[1])
    commands = parser.add_subparsers(dest="source", metavar="SOURCE", required=True)
    shared = {"image_options": "options that replace the image processor's, as a mapping in YAML"}
    for name, source in SOURCES.items():
        command = commands.add_parser(
            name, help=source.reads, description=f"Reads {source.reads}. Writes {source.writes}."
        )
        command.add_argument("output_dir", metavar="OUTPUT_DIR", help="folder to write; must be empty, if it is there")
        descriptions = {**source.options, **shared}
        for option, default in source.defaults.items():
            about = descriptions[option]
            if default is inspect.Parameter.empty:
                command.add_argument(f"--{option}", required=True, help=about)
            else:
                command.add_argument(f"--{option}", default=default, help=about + (f" ({default})" if default else ""))
    return parser


def main() -> None:
    options = vars(_parser().parse_args())
    try:
        if options["image_options"] is not None:
            options["image_options"] = yaml.safe_load(options["image_options"])
            if not isinstance(options["image_options"], dict):
                raise ValueError("--image_options must be a mapping, such as '{image_mean: [0.4, 0.4, 0.4]}'.")
        print(_summary(convert(**options), options["output_dir"]))
    except (ValueError, OSError, RuntimeError, ImportError, yaml.YAMLError) as error:
        sys.exit("error: " + " ".join(str(error).split()))
    except KeyboardInterrupt:
        sys.exit("\nstopped; nothing was written")


if __name__ == "__main__":
    main()
