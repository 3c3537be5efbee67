"""Saving behind the back of training: a copy in host memory, then a thread that writes it."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NICE = 10  # training goes first


class Snapshot:
    """Copies of a state in host memory, in buffers that the next copy uses again."""

    def __init__(self) -> None:
        self.buffers: dict[str, Tensor] = {}

    def take(self, state: Any, name: str = "") -> Any:
        """The same tree of dicts and lists, its tensors copied; valid until the next take."""
        if isinstance(state, Tensor):
            return self._copy(state.detach(), name)
        if isinstance(state, dict):
            return {key: self.take(value, f"{name}.{key}") for key, value in state.items()}
        if isinstance(state, (list, tuple)):
            return type(state)(self.take(value, f"{name}.{i}") for i, value in enumerate(state))
        return state

    def _copy(self, value: Tensor, name: str) -> Tensor:
        buffer = self.buffers.get(name)
        if buffer is None or (buffer.shape, buffer.dtype) != (value.shape, value.dtype):
            # Like the original in layout (channels-last stays so), but on the host; pages that a
            # GPU copies into directly are pinned.
            buffer = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
            self.buffers[name] = buffer
        return buffer.copy_(value)


class Saver:
    """At most one save at a time, behind the caller's back.

    `blocked` and `cost` are the seconds that the last save kept the caller waiting, and took in
    all; `longest` is the largest cost so far.  An error of the thread is raised by the next call.
    """

    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None
        self.blocked = self.cost = self.longest = 0.0

    @property
    def busy(self) -> bool:
        return self.thread is not None and self.thread.is_alive()

    def save(self, state: Any, write: Callable[[Any], None]) -> None:
        """Copy `state`, then let a thread call `write(copy)`; waits for an earlier save first."""
        start = time.monotonic()
        self.wait()
        copy = self.snapshot.take(state)
        # Not a daemon: should the caller fail, the interpreter still lets this save end.
        self.thread = threading.Thread(target=self._run, args=(copy, write, start), name="save")
        self.thread.start()
        self.blocked = time.monotonic() - start

    def _run(self, copy: Any, write: Callable[[Any], None], start: float) -> None:
        try:
            if sys.platform == "linux":  # where a thread has a priority of its own
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
            write(copy)
        except BaseException as error:  # noqa: BLE001  handed to the caller, whole
            self.error = error
        self.cost = time.monotonic() - start
        self.longest = max(self.longest, self.cost)

    def check(self) -> None:
        """Raise what went wrong in the thread, once."""
        error, self.error = self.error, None
        if error is not None:
            raise error

    def wait(self) -> None:
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        self.check()
