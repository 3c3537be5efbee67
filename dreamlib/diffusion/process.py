"""The forward process and its algebra."""

from __future__ import annotations

import torch
from torch import Tensor

from dreamlib.diffusion.schedule import Schedule


def q_sample(sched: Schedule, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Noise images to level t.  x0, eps [B,C,H,W], t [B] -> x_t [B,C,H,W].  Ho 2020, Eq. 4."""
    a, s = sched.signal_noise(t)
    return a * x0 + s * eps


def x0_from_eps(sched: Schedule, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """The clean image that x_t and eps imply.  Shapes as in `q_sample`.  Ho 2020, Eq. 15."""
    a, s = sched.signal_noise(t)
    return (x_t - s * eps) / a


def eps_from_x0(sched: Schedule, x_t: Tensor, t: Tensor, x0: Tensor) -> Tensor:
    """The noise that x_t and x0 imply: the inverse of `x0_from_eps`."""
    a, s = sched.signal_noise(t)
    return (x_t - a * x0) / s


def eps_from_v(sched: Schedule, x_t: Tensor, t: Tensor, v: Tensor) -> Tensor:
    """eps = s x_t + a v, for v = a eps - s x0.  Shapes as in `q_sample`.  Salimans 2022, Sec. 4."""
    a, s = sched.signal_noise(t)
    return s * x_t + a * v


def posterior(
    sched: Schedule, x0: Tensor, x_t: Tensor, t: int, previous: int
) -> tuple[Tensor, float]:
    """Mean [B,C,H,W] and variance of q(x_previous | x_t, x0).  Ho 2020, Eqs. 6 and 7.

    `previous` may be any earlier timestep, as when fewer than T steps are taken; -1 stands for
    clean data, where the mean is x0 and the variance 0.
    """
    bar = sched.alpha_bar
    bar_t = bar[t]
    bar_prev = bar[previous] if previous >= 0 else torch.ones((), dtype=torch.float64)
    alpha = bar_t / bar_prev
    beta = 1 - alpha
    from_x0 = float(bar_prev.sqrt() * beta / (1 - bar_t))
    from_x_t = float(alpha.sqrt() * (1 - bar_prev) / (1 - bar_t))
    variance = float(beta * (1 - bar_prev) / (1 - bar_t))
    return from_x0 * x0 + from_x_t * x_t, variance
