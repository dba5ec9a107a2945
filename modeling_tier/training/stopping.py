# Licensed under the Apache License, Version 2.0.
"""Reasons to stop a run before its end: a signal, and non-finite gradients."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader

from .state import RunState


EXIT_STOPPED = 75  # of a run that was asked to stop and has left a checkpoint to go on from

_SAME_SIGNAL_SECONDS = 5


class _Interrupted(BaseException):
    """Ends the work of [`StopRequest.interruptible`]."""


class StopRequest:
    """
    SIGTERM (as SLURM sends before it preempts a job) or SIGINT (Ctrl-C), kept in mind until the step is done. A second
    one has its usual effect at once, unless it comes within seconds: what goes to all processes of a job reaches each
    of them twice, directly and through the launcher.
    """

    def __init__(self):
        self.received, self._first, self._before, self._at_once = False, 0.0, {}, False

    def listen(self) -> None:
        if threading.current_thread() is threading.main_thread():  # no other may
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._remember)

    def _remember(self, number, frame) -> None:
        if self.received:
            if time.monotonic() - self._first > _SAME_SIGNAL_SECONDS:
                self.leave()
                signal.raise_signal(number)
            return
        self.received, self._first = True, time.monotonic()
        if self._at_once:
            raise _Interrupted

    def leave(self) -> None:
        """Signals have their usual effect again."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def interruptible(self, work: Callable[[], dict]) -> dict | None:
        """What `work` returns; None if a signal ends it. It must leave nothing half done, and is done again later."""
        try:
            try:
                self._at_once = True
                return None if self.received else work()
            finally:
                self._at_once = False
        except _Interrupted:
            return None

    def came(self, accelerator: Accelerator) -> bool:
        """Whether a process was asked. All of them must call this."""
        if accelerator.num_processes == 1:
            return self.received
        received = torch.tensor(int(self.received), device=accelerator.device)
        return bool(accelerator.reduce(received, reduction="sum").item())


def started(loader: DataLoader) -> Iterator:
    """
    An iterator over a loader whose workers outlive SIGTERM from their first moment. SLURM signals all processes of a
    job, and a worker that died of it would end the run before its checkpoint is written.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows, which sends no such signals
        return iter(loader)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # the workers inherit it
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def outlive_sigterm(worker: int) -> None:
    """For the workers of [`started`]. After a minute they die all the same, if the run has not ended them before."""
    if hasattr(signal, "pthread_sigmask"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(60))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


class NonFiniteSteps:
    """
    Skips optimiser steps with non-finite gradients.

    Every process sees the same norm of the same, averaged gradient, so all decide alike. The statistics that the
    forward pass has written into the model's buffers (BatchNorm's) are put back: one such batch would spoil them for
    good.
    """

    def __init__(self, model: torch.nn.Module, state: RunState, max_in_a_row: int):
        self.state, self.max_in_a_row = state, max_in_a_row
        self._buffers = batch_statistics(model)
        self._saved = [buffer.clone() for buffer in self._buffers]
        self._image_ids: list[str] = []

    def begin(self, image_ids: list[str]) -> None:
        """Before each forward pass: its images."""
        if not self._image_ids and self._buffers:  # the first of a step
            torch._foreach_copy_(self._saved, self._buffers)
        self._image_ids += image_ids

    def skip(self, grad_norm: torch.Tensor) -> list[str] | None:
        """After the backward pass of a step: None, or the images of all processes if the step must not be taken."""
        image_ids, self._image_ids = self._image_ids, []
        if math.isfinite(grad_norm):
            self.state.skipped_in_a_row = 0
            return None
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._saved)
        self.state.skipped += 1
        self.state.skipped_in_a_row += 1
        return gather_object(image_ids)

    def too_many(self) -> bool:
        return self.state.skipped_in_a_row >= self.max_in_a_row

    def message(self, output_dir) -> str:
        return (
            f"Non-finite gradients in {self.state.skipped_in_a_row} consecutive steps "
            "(training.max_skipped_steps), so the run stopped. None of them was taken: "
            f"{output_dir}/checkpoints/last is as before them, and log.jsonl names their images under 'skipped'. "
            "Likely causes: optimizer.lr too large or optimizer.warmup_share too small; training.mixed_precision fp16 "
            "(try bf16); a model.pretrained that gives NaN; broken pictures."
        )


def batch_statistics(model: torch.nn.Module) -> list[torch.Tensor]:
    """Buffers of BatchNorm and its kind, which a forward pass in training mode changes; all others are constant."""
    norms = (module for module in model.modules() if getattr(module, "track_running_stats", False))
    return [buffer for module in norms for buffer in module.buffers()]
