"""Samplers: generators with one signature, yielding every step.

    sampler(net, sched, x_T, steps, noise, **own) -> Iterator[Step]

`noise(t)` returns the standard normal [B,C,H,W] to be used at timestep t; who draws it decides
how it is keyed.  Progress bars, previews and early stops belong to the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from dreamlib.diffusion.dream import Net
from dreamlib.diffusion.process import eps_from_x0, posterior, x0_from_eps
from dreamlib.diffusion.schedule import Schedule

Noise = Callable[[int], Tensor]

LEAST_SIGNAL = 0.01  # the a from which few-step samplers start


class Step(NamedTuple):
    """The state after the network was asked at timestep t."""

    t: int
    x_t: Tensor  # the state that the step arrives at
    x0_hat: Tensor  # the clean image that the network saw, clamped to [-1, 1]


def spaced(sched: Schedule, steps: int) -> list[int]:
    """`steps` timesteps falling evenly to 0 from the last one that still holds some signal.

    Starting from pure noise assumes a = 0.  Where a < LEAST_SIGNAL a prediction of x0 is the
    network's rounding error enlarged 1/a times (64,000 times at the end of a cosine schedule),
    and one long step would write it into the image; where a is much larger, the start lacks the
    image's large, strong modes, and colours come out too pale.  Taking all T steps is ancestral
    sampling as it was trained: those steps are short and harmless.
    """
    total = len(sched)
    if not 1 <= steps <= total:
        raise ValueError(f"sampling takes 1..{total} steps, got {steps}")
    top = int(torch.nonzero(sched.alpha_bar.sqrt() >= LEAST_SIGNAL).max())
    if steps > top + 1:
        top = total - 1
    if steps == 1:
        return [top]
    return [round(i * top / (steps - 1)) for i in reversed(range(steps))]


def _predict_x0(net: Net, sched: Schedule, x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
    """The network's clean image, clamped, and the timestep as a tensor [B]."""
    ts = torch.full((len(x_t),), t, dtype=torch.int64, device=x_t.device)
    return x0_from_eps(sched, x_t, ts, net(x_t, ts).float()).clamp(-1, 1), ts


def ddpm(
    net: Net,
    sched: Schedule,
    x: Tensor,
    steps: int,
    noise: Noise,
    *,
    temperature: float = 1.0,
) -> Iterator[Step]:
    """Ancestral sampling with the posterior variance.  Ho 2020, Alg. 2.

    x float [B,C,H,W], standard normal.  `temperature` scales the added noise.
    """
    for t, previous in pairwise([*spaced(sched, steps), -1]):
        x0_hat, _ = _predict_x0(net, sched, x, t)
        x, variance = posterior(sched, x0_hat, x, t, previous)
        if variance > 0:
            x = x + temperature * variance**0.5 * noise(t)
        yield Step(t, x, x0_hat)


def ddim(
    net: Net,
    sched: Schedule,
    x: Tensor,
    steps: int,
    noise: Noise,
    *,
    eta: float = 0.0,
) -> Iterator[Step]:
    """Song 2021 (DDIM), Eq. 12: deterministic at eta = 0, `ddpm` at eta = 1.  x as in `ddpm`."""
    bar = sched.alpha_bar
    for t, previous in pairwise([*spaced(sched, steps), -1]):
        x0_hat, ts = _predict_x0(net, sched, x, t)
        eps_hat = eps_from_x0(sched, x, ts, x0_hat)
        bar_prev = float(bar[previous]) if previous >= 0 else 1.0
        bar_t = float(bar[t])
        sigma = eta * ((1 - bar_prev) / (1 - bar_t) * (1 - bar_t / bar_prev)) ** 0.5
        x = bar_prev**0.5 * x0_hat + max(1 - bar_prev - sigma**2, 0.0) ** 0.5 * eps_hat
        if sigma > 0:
            x = x + sigma * noise(t)
        yield Step(t, x, x0_hat)
