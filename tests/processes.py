# Licensed under the Apache License, Version 2.0.
"""Run a function in several processes that talk through gloo, forked from this one, which has everything imported."""

import os
import tempfile
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed
import torch.multiprocessing


def in_processes(number: int, function: Callable, *arguments) -> list:
    """What `function(rank, *arguments)` returns in each of `number` processes; it may be anything that torch saves."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _run, (number, folder, function, arguments), nprocs=number, start_method="fork"
        )
        return [torch.load(os.path.join(folder, f"{rank}.pt")) for rank in range(number)]


def _run(rank: int, number: int, folder: str, function: Callable, arguments: tuple) -> None:
    torch.set_num_threads(1)
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # accelerate wants to know, and uses the group below
    os.environ |= places | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number)}
    store = torch.distributed.FileStore(os.path.join(folder, "store"), number)
    torch.distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=number, timeout=timedelta(seconds=60)
    )
    torch.save(function(rank, *arguments), os.path.join(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()
