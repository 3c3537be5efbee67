"""Who computes a step's gradients: one pass, threads, or the processes that torchrun started.

A batch is cut into a fixed number of slices (train.slices), whoever computes them, and their
gradients are summed in the order of the slices: so the bits depend on that number alone.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch

from dreamlib.training.ranks import Ranks
from dreamlib.training.slices import Job, accumulate, added, compute_all, joined, parts_of, size_of
from dreamlib.training.tasks import Facts, Stats, Task
from dreamlib.utils.context import say
from dreamlib.utils.nest import each_tensor


class Sharing:
    """Gradients of a task's batches, by `slices` and, where there are any, `ranks`."""

    def __init__(self, task: Task, slices: int, ranks: Ranks | None = None):
        self.task, self.ranks = task, ranks
        # a GPU computes a batch at once, and a part of it for every process
        self.slices = slices if task.device.type == "cpu" else ranks.count if ranks else 1
        self.threads = torch.get_num_threads()
        if ranks and ranks.count > self.slices:
            say(
                f"{ranks.count - self.slices} of {ranks.count} processes have nothing to do: the "
                f"batch of this run has train.slices={self.slices}; a run begun with "
                f"train.slices={ranks.count} uses all"
            )

    @property
    def sliced(self) -> bool:
        """Whether bits are the same by any number of threads and processes."""
        return self.slices > 1 or self.ranks is not None

    def gradients(self, what: str, rows: Any, micro: int, facts: Facts) -> Stats:
        """Put the gradients of a batch where its optimizer looks, `micro` rows at a time."""
        task, size = self.task, size_of(rows)
        parameters, facts = task.parameters(what), {"size": size, **facts}
        for parameter in parameters:
            parameter.grad = None
        if not self.sliced:
            return accumulate(task, what, rows, facts, micro)
        jobs = [
            Job(number, each_tensor(rows, lambda tensor: tensor[part]))  # noqa: B023  used at once
            for number, part in enumerate(parts_of(size, self.slices, task.least))
        ]
        if self.ranks:
            done = self.ranks.share(task, what, jobs, facts, micro, self.threads)
        else:
            done = compute_all(task, what, jobs, facts, micro, self.threads)
        for parameter, gradient in zip(
            parameters, reduce(added, [each.gradients for each in done])
        ):
            parameter.grad = gradient
        return joined([each.stats for each in done])
