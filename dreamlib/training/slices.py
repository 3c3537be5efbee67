"""A step shared out on a CPU: fixed slices of the batch, each computed by one thread.

PyTorch's own threads wait for each other after every small operator, and the bits depend on how
many there are.  A slice is computed by one Python thread with one of PyTorch's, which works without
Python's lock; slices are summed in their order.  So the bits depend on their number alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

Part = TypeVar("Part")
Made = TypeVar("Made")


def parts_of(size: int, count: int) -> list[slice]:
    """`count` slices of a batch, or fewer where it is small; their sizes differ by one at most."""
    count = min(count, size)
    ends = [size * (i + 1) // count for i in range(count)]
    return [slice(begin, end) for begin, end in zip([0, *ends], ends)]


@contextmanager
def one_thread() -> Iterator[int]:
    """PyTorch computes on one thread; how many it had, which slices may use."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield before
    finally:
        torch.set_num_threads(before)


class Pool:
    """Threads with one of PyTorch's each, as many as there were; made when they are first used."""

    def __init__(self) -> None:
        self.threads: ThreadPoolExecutor | None = None
        self.count = 0

    def map(self, work: Callable[[Part], Made], parts: Sequence[Part], threads: int) -> list[Made]:
        """[work(part) for part in parts], side by side; an error is raised once all have ended."""
        threads = min(threads, len(parts))
        if threads < 2:
            return [work(part) for part in parts]
        if self.threads is None or self.count != threads:
            self.threads = ThreadPoolExecutor(threads, "slice", torch.set_num_threads, (1,))
            self.count = threads
        futures = [self.threads.submit(work, part) for part in parts]
        for future in futures:
            future.exception()
        return [future.result() for future in futures]


def summed(gradients: Sequence[Sequence[Tensor | None]]) -> list[Tensor | None]:
    """The slices' gradients of every parameter, added in the order of the slices."""
    total = list(gradients[0])
    for others in gradients[1:]:
        for i, other in enumerate(others):
            ours = total[i]
            total[i] = other if ours is None else ours if other is None else ours.add_(other)
    return total
