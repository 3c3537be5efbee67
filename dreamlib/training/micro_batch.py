"""Memory pressure changes slices, never the mathematics."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from dreamlib.utils.errors import RunError

T = TypeVar("T")


def is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA and MPS raise their own kinds; the CPU allocator a RuntimeError with this text."""
    kinds = (torch.cuda.OutOfMemoryError,)
    texts = ("out of memory", "alloc_failed", "can't allocate memory", "not enough memory")
    return isinstance(error, kinds) or any(text in str(error).lower() for text in texts)


class MicroBatch:
    """Images per forward pass, a multiple of `least`; halved when memory runs out."""

    def __init__(self, size: int, on_change: Callable[[int], None], least: int = 1):
        self.size, self.on_change, self.least = size, on_change, least

    def redo_smaller(self, work: Callable[[int], T]) -> T:
        """work(size), again from its beginning with half the size after running out of memory."""
        while True:
            try:
                return work(self.size)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the except block: the traceback no longer holds the step's tensors.
            if self.size <= self.least:
                many = "a single image" if self.size == 1 else f"{self.size} images"
                raise RunError(
                    f"out of memory with {many}: take a smaller network (net.widths, "
                    "net.patch) or a GPU with more memory"
                )
            self.size = max(self.least, self.size // 2 // self.least * self.least)
            gc.collect()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            self.on_change(self.size)
