"""Work by Python threads with one of PyTorch's each, which compute without Python's lock.

PyTorch's own threads wait for each other after every small operator, and beside another busy
process that wait is long; and the bits depend on how many there are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from functools import lru_cache
from typing import TypeVar

import torch

Part = TypeVar("Part")
Made = TypeVar("Made")


@contextmanager
def one_thread() -> Iterator[int]:
    """PyTorch computes on one thread; how many it had, for `side_by_side`."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield before
    finally:
        torch.set_num_threads(before)


def side_by_side(
    work: Callable[[Part], Made],
    parts: Sequence[Part],
    threads: int,
    done: Callable[[Part], None] = lambda part: None,
) -> list[Made]:
    """[work(part) for part in parts], several at once; an error is raised once all have ended.

    `done` is called here, in order, for every part.
    """
    threads, made = min(threads, len(parts)), []
    if threads < 2:
        for part in parts:
            made.append(work(part))
            done(part)
        return made
    pool = _pool(threads, os.getpid())
    futures = [pool.submit(copy_context().run, work, part) for part in parts]
    for part, future in zip(parts, futures):
        if future.exception() is None:
            done(part)
    return [future.result() for future in futures]


@lru_cache(maxsize=4)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Made when first used, and again in a child that was forked."""
    return ThreadPoolExecutor(threads, "dreamlib", torch.set_num_threads, (1,))
