# Licensed under the Apache License, Version 2.0.
"""
Export a model's two encoders as ONNX graphs, with a program that reads radiographs by them without torch:

    python -m modeling_tier.export runs/demo/tier runs/onnx
    python runs/onnx/run.py radiograph.png "pleural effusion" cardiomegaly
"""

import argparse

from ..options import option_parser
from . import work_of


def main() -> None:
    arguments = _parser().parse_args()
    work_of("modeling_tier.convert.onnx_export").run(arguments.model, arguments.output_dir)


def _parser() -> argparse.ArgumentParser:
    parser = option_parser(__doc__, "python -m modeling_tier.export")
    parser.add_argument("model", help="folder or Hub id of a TIER model or a CLIPModel")
    parser.add_argument("output_dir", help="folder to write; must be empty, if it is there")
    return parser
