"""A batch in fixed slices: their gradients, and what the log should know of their rows.

A slice is computed by one Python thread with one of PyTorch's (utils/threads.py), and slices are
summed in their order.  So the bits depend on their number alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dreamlib.training.tasks import Facts, Stats, Task
from dreamlib.utils.nest import each_tensor
from dreamlib.utils.rng import seeded, torch_rng
from dreamlib.utils.threads import side_by_side


def parts_of(size: int, count: int, least: int = 1) -> list[slice]:
    """`count` slices of a batch, or fewer where it is small; of whole groups of `least` rows, but
    for the last row's; their sizes differ by one group at most."""
    groups = -(-size // least)
    count = min(count, groups)
    ends = [min(size, groups * (i + 1) // count * least) for i in range(count)]
    return [slice(begin, end) for begin, end in zip([0, *ends], ends)]


Gradients = Sequence[Tensor | None]  # of every parameter


class Job(NamedTuple):
    """A slice of a batch."""

    number: int
    rows: Any


class Slice(NamedTuple):
    """What came of a slice: its gradients, and what the log should know of its rows."""

    gradients: Gradients
    stats: Stats


def compute_all(
    task: Task, what: str, jobs: Sequence[Job], facts: Facts, micro: int, threads: int
) -> list[Slice]:
    """Slices side by side, in their order."""
    recomputes = task.dropout and task.config.train.recompute  # torch draws again, from its own
    if recomputes or task.device.type != "cpu":
        threads = 1

    def one(job: Job) -> Slice:
        if not task.dropout or threads == 1:
            with _dropout(task, facts, job.number):
                return compute(task, what, job, facts, micro)
        rng = torch_rng("dropout", facts["seed"], facts["step"], job.number)
        return compute(task.drawing(rng), what, job, facts, micro)

    return side_by_side(one, jobs, threads)


def compute(task: Task, what: str, job: Job, facts: Facts, micro: int) -> Slice:
    """Gradients of a slice's rows, `micro` at a time."""
    parameters = task.parameters(what)

    def one(losses: Iterator[Tensor]) -> Gradients:
        each = (torch.autograd.grad(loss, parameters, allow_unused=True) for loss in losses)
        return reduce(added, each)

    parts = _micro_batches(task, what, job.rows, facts, micro)
    done = [(one(losses), stats) for losses, stats in parts]
    return Slice(reduce(added, (each for each, _ in done)), joined([stats for _, stats in done]))


def accumulate(task: Task, what: str, rows: Any, facts: Facts, micro: int) -> Stats:
    """The whole batch as one slice, whose gradients torch adds up where they belong."""
    parameters, seen = task.parameters(what), []
    with _dropout(task, facts):
        for losses, stats in _micro_batches(task, what, rows, facts, micro):
            for loss in losses:
                loss.backward(inputs=parameters)
            seen.append(stats)
    return joined(seen)


def _micro_batches(
    task: Task, what: str, rows: Any, facts: Facts, micro: int
) -> Iterator[tuple[Iterator[Tensor], Stats]]:
    """Losses of some rows, and the stats that they fill as they are taken."""
    for start in range(0, size_of(rows), micro):
        some = slice(start, start + micro)
        stats: Stats = {}
        part = each_tensor(rows, lambda rows: rows[some])  # noqa: B023  used at once
        yield task.losses(what, part, facts, stats), stats


def _dropout(task: Task, facts: Facts, *number: int) -> AbstractContextManager[None]:
    """Its draws keyed by the step, and by the slice where there are several."""
    if not task.dropout:
        return nullcontext()
    return seeded("dropout", facts["seed"], facts["step"], *number)


def size_of(rows: Any) -> int:
    """Rows of a nest of tensors."""
    sizes: list[int] = []
    each_tensor(rows, lambda tensor: (sizes.append(len(tensor)), tensor)[1])
    return sizes[0]


def added(total: Gradients, others: Gradients) -> Gradients:
    """Two slices' gradients of every parameter, the first ones' memory used again."""
    return [b if a is None else a if b is None else a.add_(b) for a, b in zip(total, others)]


def joined(stats: Sequence[Stats]) -> Stats:
    return {name: torch.cat([each[name] for each in stats]) for name in stats[0]}
