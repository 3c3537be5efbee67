"""Averaged weights, with a warm-up so that early averages are not the initial noise."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


def warm_decay(step: int, decay: float) -> float:
    """min(decay, (1 + step) / (10 + step)), for the update after `step` earlier ones."""
    return min(decay, (1 + step) / (10 + step))


class Averaged(AveragedModel):
    """torch's AveragedModel with an exponential rule; `update_parameters(net)` once per step.

    The update is one call over all weights.  torch's own sorts them by device and type each time,
    and asks the device how many updates there were: half of the time on a CPU, a wait on a GPU.
    """

    def __init__(self, net: nn.Module, decay: float | Callable[[int], float]):
        """`decay`: the largest, after a warm-up; or the decay by the number of earlier updates."""
        super().__init__(net)
        self.decay = decay if callable(decay) else partial(warm_decay, decay=decay)
        self._count: int | None = 0  # updates so far; None when `n_averaged` knows better

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        count = int(self.n_averaged) if self._count is None else self._count
        weight = 1 - self.decay(count) if count else 1.0  # the first one is copied
        own, theirs = list(self.module.parameters()), list(model.parameters())
        torch._foreach_lerp_(own, theirs, weight)  # pyright: ignore  as AveragedModel itself does
        for buffer, current in zip(self.module.buffers(), model.buffers()):
            buffer.copy_(current)
        self.n_averaged += 1
        self._count = count + 1

    def load_state_dict(self, *arguments: Any, **more: Any) -> Any:
        self._count = None
        return super().load_state_dict(*arguments, **more)
