# Licensed under the Apache License, Version 2.0.
"""train.py where accelerate takes the processor for a GPU: FSDP2 and DeepSpeed then run as they do there, by gloo."""

import runpy
import sys
from pathlib import Path

import accelerate
from accelerate.state import PartialState
from accelerate.utils import DistributedType


ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from modeling_tier.training import setup  # noqa: E402


PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
setup.Accelerator = lambda cpu, **options: accelerate.Accelerator(**options)

if __name__ == "__main__":
    sys.argv[0] = str(ROOT / "train.py")
    runpy.run_path(sys.argv[0], run_name="__main__")
