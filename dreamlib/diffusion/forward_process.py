"""The forward process and its algebra."""

from __future__ import annotations

import torch
from torch import Tensor

from dreamlib.diffusion.schedules import Schedule


def q_sample(sched: Schedule, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Noise images to level t.  x0, eps [B,C,H,W], t [B] -> x_t [B,C,H,W].  Ho 2020, Eq. 4."""
    a, s = sched.signal_noise(t, x0.dtype)
    return a * x0 + s * eps


def x0_from_eps(sched: Schedule, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """The clean image that x_t and eps imply.  Shapes as in `q_sample`.  Ho 2020, Eq. 15."""
    a, s = sched.signal_noise(t, x_t.dtype)
    return (x_t - s * eps) / a


def blend(p: float, x: Tensor, q: float, y: Tensor) -> Tensor:
    """p x + q y as a new tensor, in two passes over memory: a sampler's steps are made of it."""
    return (p * x).add_(y, alpha=q)


def conversion(
    prediction: str, sched: Schedule, t: Tensor, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """What a network's output means, as p and q in eps = p x_t + q output.  t [B] -> [B,1,1,1].

    The one table from which every use of a prediction type follows: reading the output, the
    weight of an error in eps, what a moved input does to the target.
    v = a eps - s x0 is Salimans 2022, Sec. 4; velocity = eps - x0 is flow matching's, along the
    straight way from image to noise (Lipman 2023, Eq. 23, with time the other way round).
    """
    a, s = sched.signal_noise(t, dtype)
    table = {
        "eps": (torch.zeros_like(a), torch.ones_like(a)),
        "v": (s, a),
        "x0": (1 / s, -a / s),
        "velocity": (1 / (a + s), a / (a + s)),
    }
    return table[prediction]


def eps_from_output(
    prediction: str, sched: Schedule, x_t: Tensor, t: Tensor, output: Tensor
) -> Tensor:
    """Read a network's output as noise.  Shapes as in `q_sample`."""
    if prediction == "eps":
        return output  # itself, so that not even rounding differs
    p, q = conversion(prediction, sched, t, x_t.dtype)
    return p * x_t + q * output


def loss_weight(
    prediction: str, sched: Schedule, t: Tensor, min_snr: float | None = None
) -> Tensor:
    """Weight of a squared error in eps, float32 [B].

    1/q^2 makes it the squared error in the network's own output.  With `min_snr` = gamma it is the
    squared error in x0 times min(SNR, gamma), the same for every prediction type: easy timesteps,
    where almost nothing is left to remove, count less.  Hang 2023 (min-SNR), Sec. 3.4.
    """
    if min_snr is None:
        return conversion(prediction, sched, t)[1].flatten() ** -2
    a, s = sched.signal_noise(t)
    snr = (a / s).flatten() ** 2
    return (min_snr / snr).clamp(max=1)


def posterior(
    sched: Schedule, x0: Tensor, x_t: Tensor, t: int, previous: int
) -> tuple[Tensor, float]:
    """Mean [B,C,H,W] and variance of q(x_previous | x_t, x0).  Ho 2020, Eqs. 6 and 7.

    `previous` may be any earlier timestep, as when fewer than T steps are taken; -1 stands for
    clean data, where the mean is x0 and the variance 0.
    """
    bar_t, bar_prev = sched.bar(t), sched.bar(previous)
    alpha = bar_t / bar_prev
    beta = 1 - alpha
    from_x0 = bar_prev**0.5 * beta / (1 - bar_t)
    from_x_t = alpha**0.5 * (1 - bar_prev) / (1 - bar_t)
    variance = beta * (1 - bar_prev) / (1 - bar_t)
    return blend(from_x0, x0, from_x_t, x_t), variance
