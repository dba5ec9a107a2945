# Licensed under the Apache License, Version 2.0.
"""
Bytes that the contrastive loss of all processes' pairs exchanges in a step, forward and backward, over 1, 2, 4 and 8
gloo processes on this machine: as reckoned in docs/scale.md, and as the loopback interface has counted them (Linux;
other traffic on it counts too). A process sends its n embeddings of both modalities to the P - 1 others, and the sum
of the gradients of all P n embeddings comes back: with rings 2 (P - 1) n D and 4 (P - 1) n D numbers of 4 bytes.

    python benchmarks/exchange.py [--pairs 256] [--steps 20] [--output FILE]
"""

import argparse
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))
from tier_cli.options import option_parser


def parse_arguments() -> argparse.Namespace:
    parser = option_parser(__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8], help="on this machine")
    parser.add_argument("--pairs", type=int, default=256, help="of each process")
    parser.add_argument("--steps", type=int, default=20, help="that are measured")
    parser.add_argument("--output", type=Path, help="file for the results as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    parse_arguments()  # before torch is imported, which takes seconds: --help and mistakes are answered at once

import json
import os
import tempfile
import time

import torch
import torch.distributed
import torch.multiprocessing
from transformers import CLIPTextConfig, CLIPVisionConfig

from modeling_tier import TierConfig, TierModel
from modeling_tier.evaluation.tables import aligned


DIMENSIONS = 512
TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def reckoned(processes: int, pairs: int) -> int:
    """Bytes that one process sends in a step."""
    return 6 * (processes - 1) * pairs * DIMENSIONS * 4


def loopback_bytes() -> int:
    """What this machine has sent to itself since it started."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[8])
    raise OSError("/proc/net/dev names no interface lo.")


def take_steps(rank: int, processes: int, folder: str, pairs: int, steps: int) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(os.path.join(folder, "store"), processes)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    torch.manual_seed(rank)
    config = TierConfig(
        text_config=CLIPTextConfig(**TINY), vision_config=CLIPVisionConfig(**TINY), projection_dim=DIMENSIONS
    )
    model = TierModel(config).train()
    embeds = [torch.nn.functional.normalize(torch.randn(pairs, DIMENSIONS), dim=1).requires_grad_() for _ in range(2)]
    model.contrastive_loss(*embeds).backward()  # connections are made
    torch.distributed.barrier()
    before, started = loopback_bytes(), time.perf_counter()
    torch.distributed.barrier()
    for _ in range(steps):
        model.contrastive_loss(*embeds).backward()
    torch.distributed.barrier()
    if rank == 0:
        result = {"seconds": (time.perf_counter() - started) / steps, "bytes": loopback_bytes() - before}
        Path(folder, "found.json").write_text(json.dumps(result))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def measure(processes: int, pairs: int, steps: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(take_steps, (processes, folder, pairs, steps), nprocs=processes)
        result = json.loads(Path(folder, "found.json").read_text())
    per_process = result["bytes"] / steps / processes
    return {
        "processes": processes,
        "pairs": pairs,
        "seconds": result["seconds"],
        "bytes": per_process,
        "reckoned_bytes": reckoned(processes, pairs),
    }


def main() -> None:
    arguments = parse_arguments()
    results = [measure(number, arguments.pairs, arguments.steps) for number in arguments.processes]
    rows = [["processes", "MB a process and step", "reckoned", "ratio", "s a step"]]
    for row in results:
        ratio = f"{row['bytes'] / row['reckoned_bytes']:.3f}" if row["reckoned_bytes"] else ""
        numbers = [f"{row['bytes'] / 1e6:.2f}", f"{row['reckoned_bytes'] / 1e6:.2f}", ratio, f"{row['seconds']:.3f}"]
        rows.append([str(row["processes"]), *numbers])
    print(aligned(rows))
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
