# Licensed under the Apache License, Version 2.0.
"""The processes of a run: one decides for all, waits have an end, and none outlives its launcher."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch.distributed.distributed_c10d import _set_pg_timeout


Result = TypeVar("Result")

# Of the rendezvous and of each step's collectives: where a process has died, the others end after these minutes.
STEP_TIMEOUT = timedelta(minutes=15)
# While the first process prepares data or evaluates, and the others wait for it.
WAIT_TIMEOUT = timedelta(hours=24)


@contextmanager
def long_wait() -> Iterator[None]:
    """A block, entered by all processes, in which they may wait for one of them for as long as `WAIT_TIMEOUT`."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        yield
        return
    _set_pg_timeout(WAIT_TIMEOUT)
    try:
        yield
    finally:
        _set_pg_timeout(STEP_TIMEOUT)


@contextmanager
def main_process_first() -> Iterator[None]:
    """The block runs in the main process first, so that the others find what it has cached on the disk."""
    with long_wait(), PartialState().main_process_first():
        yield


def main_process_decides(work: Callable[[], Result]) -> Result:
    """
    What `work` returns in the main process, in all processes.

    Raises:
        Exception: what `work` raised in the main process; in the others a ValueError with the same message.
    """
    state, result, error = PartialState(), [None, None], None
    if state.is_main_process:
        try:
            result[0] = work()
        except Exception as caught:  # raised below, when the others know of it
            result[1], error = f"{caught}", caught
    with long_wait():
        result = broadcast_object_list(result)
    if error is not None:
        raise error
    if result[1] is not None:
        raise ValueError(result[1])
    return result[0]


def end_with_launcher() -> None:
    """
    End this process within seconds when the launcher of several processes is gone: it was killed, nobody collects its
    processes any more, and they would go on training beside the run that takes their place.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # not started by such a launcher
        return
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        print("The launcher of this process was killed, so it ends too.", flush=True)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-launcher", daemon=True).start()
