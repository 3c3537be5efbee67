"""Averaged weights, with a warm-up so that early averages are not the initial noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def warm_decay(step: int, decay: float) -> float:
    """min(decay, (1 + step) / (10 + step)), for the update after `step` earlier ones."""
    return min(decay, (1 + step) / (10 + step))


def averaged(net: nn.Module, decay: float) -> AveragedModel:
    """torch's AveragedModel with an exponential rule; `update_parameters(net)` once per step."""

    def towards(averages: list[Tensor], currents: list[Tensor], count: Tensor | int) -> None:
        # torch copies the first update and counts from there, so update k sees count = k.
        weight = 1 - warm_decay(int(count), decay)
        torch._foreach_lerp_(averages, currents, weight)

    return AveragedModel(net, multi_avg_fn=torch.no_grad()(towards))
