# Licensed under the Apache License, Version 2.0.
"""
Export a model's two encoders as ONNX graphs, with a program that reads radiographs by them without torch:

    python -m modeling_tier.export runs/demo/tier runs/onnx
    python runs/onnx/run.py radiograph.png "pleural effusion" cardiomegaly
"""

import argparse

from ..names import check_model_names, check_order
from ..options import option_parser
from . import work_of


_COMMAND = "python -m modeling_tier.export"


def main() -> None:
    arguments = _parser().parse_args()
    check_order(arguments.model, arguments.output_dir, f"{_COMMAND} {arguments.output_dir} {arguments.model}")
    check_model_names(arguments.model)
    work_of("modeling_tier.convert.onnx_export").run(arguments.model, arguments.output_dir)


def _parser() -> argparse.ArgumentParser:
    parser = option_parser(__doc__, _COMMAND)
    parser.add_argument("model", help="folder or Hub id of a TIER model or a CLIPModel")
    parser.add_argument("output_dir", help="folder to write")
    return parser
