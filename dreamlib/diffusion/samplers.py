"""Samplers: generators with one signature, yielding every step.

    sampler(net, sched, x_T, steps, noise, *, spacing, sigma_min, clamp, **own) -> Iterator[Step]

x_T float [B,C,H,W] is standard normal.  `noise(t)` returns the standard normal [B,C,H,W] to be
used at timestep t; who draws it decides how it is keyed.  `clamp` holds the network's clean image
inside [-1, 1], for every sampler, and DDIM's eps is taken from the image so held.  Progress bars,
previews and early stops belong to the caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from dreamlib.diffusion.forward_process import blend, posterior
from dreamlib.diffusion.losses import Net
from dreamlib.diffusion.schedules import Schedule

Noise = Callable[[int], Tensor]

CLEAN = -1  # the timestep of clean data, where the last step goes
LEAST_SIGNAL = 0.01  # the a from which few-step samplers start
LEAST_NOISE = 0.02  # s/a of the last step with karras spacing: under 3 of 256 grey levels
RHO = 3  # 7 in Karras 2022, App. D.1; with 25 steps 3 scored a tenth better on both demo models


class Step(NamedTuple):
    """The state after the network was asked at timestep t."""

    t: int
    x_t: Tensor  # the state that the step arrives at
    x0_hat: Tensor  # the clean image that the network saw, clamped to [-1, 1] if asked


def spaced(
    sched: Schedule, steps: int, spacing: str = "uniform", sigma_min: float = LEAST_NOISE
) -> list[int]:
    """`steps` falling timesteps of 0..T-1.

    uniform     evenly from the last one that still holds some signal to 0
    quadratic   the same ends, denser near 0.  Song 2021, App. D.2
    karras      evenly in (s/a)^(1/rho), denser at both ends, the last at s/a = sigma_min, which
                that step takes away in one go.  Karras 2022, Eq. 5
    trailing    evenly from T-1, ending one stride above 0.  Lin 2024, Table 2

    Starting from pure noise assumes a = 0.  Where a < LEAST_SIGNAL a prediction of x0 is the
    network's rounding error enlarged 1/a times (64,000 times at the end of a cosine schedule),
    and one long step would write it into the image; where a is much larger, the start lacks the
    image's large, strong modes, and colours come out too pale.  Taking all T steps is ancestral
    sampling as it was trained: those steps are short and harmless.
    """
    total = len(sched)
    if not 1 <= steps <= total:
        raise ValueError(f"sampling takes 1..{total} steps, got {steps}")
    if spacing == "trailing":
        return [round(total - i * total / steps) - 1 for i in range(steps)]
    top = int(torch.nonzero(sched.alpha_bar.sqrt() >= LEAST_SIGNAL).max())
    if steps > top + 1:
        top = total - 1
    if steps == 1:
        return [top]
    shares = torch.linspace(0, 1, steps, dtype=torch.float64)
    if spacing == "karras":
        rising = _karras(sched, top, shares, sigma_min)
    else:
        rising = [round(top * float(u) ** (2 if spacing == "quadratic" else 1)) for u in shares]
    for i in range(1, steps):  # where two coincide, the later one goes up,
        rising[i] = max(rising[i], rising[i - 1] + 1)
    for i in range(steps):  # but never beyond the top
        rising[i] = min(rising[i], top - (steps - 1 - i))
    return rising[::-1]


def _karras(sched: Schedule, top: int, shares: Tensor, sigma_min: float) -> list[int]:
    """The timesteps nearest to sigma = s/a at `shares` of the way from sigma_min to the top."""
    sigma = ((1 - sched.alpha_bar) / sched.alpha_bar).sqrt()
    low, high = max(sigma_min, float(sigma[0])) ** (1 / RHO), float(sigma[top]) ** (1 / RHO)
    wanted = (low + shares * (high - low)) ** RHO
    return [int((sigma.log() - w.log()).abs().argmin()) for w in wanted]


def _predict_x0(net: Net, sched: Schedule, x_t: Tensor, t: int, clamp: bool) -> Tensor:
    """The network's clean image at timestep t.

    Its coefficients are numbers, not gathered per image: all images are at the same t.
    """
    ts = torch.full((len(x_t),), t, dtype=torch.int64, device=x_t.device)
    a, s = sched.roots(t)
    x0_hat = blend(1 / a, x_t, -s / a, net(x_t, ts))
    return x0_hat.clamp_(-1, 1) if clamp else x0_hat


def ddpm(
    net: Net,
    sched: Schedule,
    x: Tensor,
    steps: int,
    noise: Noise,
    *,
    spacing: str = "uniform",
    sigma_min: float = LEAST_NOISE,
    clamp: bool = True,
    variance: str = "posterior",
    temperature: float = 1.0,
) -> Iterator[Step]:
    """Ancestral sampling.  Ho 2020, Alg. 2.

    `variance` is the posterior's (right for an image known exactly) or fixed_large, beta_t (right
    for images that are pure noise).  `temperature` scales the added noise.
    """
    for t, previous in pairwise([*spaced(sched, steps, spacing, sigma_min), CLEAN]):
        x0_hat = _predict_x0(net, sched, x, t, clamp)
        x, var = posterior(sched, x0_hat, x, t, previous)
        if variance == "fixed_large" and previous >= 0:
            var = 1 - sched.bar(t) / sched.bar(previous)
        if var > 0:
            x = x.add_(noise(t), alpha=temperature * var**0.5)
        yield Step(t, x, x0_hat)


def ddim(
    net: Net,
    sched: Schedule,
    x: Tensor,
    steps: int,
    noise: Noise,
    *,
    spacing: str = "uniform",
    sigma_min: float = LEAST_NOISE,
    clamp: bool = True,
    eta: float = 0.0,
) -> Iterator[Step]:
    """Song 2021 (DDIM), Eq. 12: deterministic at eta = 0, `ddpm` at eta = 1."""
    for t, previous in pairwise([*spaced(sched, steps, spacing, sigma_min), CLEAN]):
        x0_hat = _predict_x0(net, sched, x, t, clamp)
        bar_t, bar_prev = sched.bar(t), sched.bar(previous)
        sigma = eta * ((1 - bar_prev) / (1 - bar_t) * (1 - bar_t / bar_prev)) ** 0.5
        # sqrt(bar_prev) x0_hat + pull eps_hat, with eps_hat = (x - a x0_hat) / s put in
        pull = max(1 - bar_prev - sigma**2, 0.0) ** 0.5
        a, s = sched.roots(t)
        x = blend(pull / s, x, bar_prev**0.5 - pull * a / s, x0_hat)
        if sigma > 0:
            x = x.add_(noise(t), alpha=sigma)
        yield Step(t, x, x0_hat)


def dpmpp_2m(
    net: Net,
    sched: Schedule,
    x: Tensor,
    steps: int,
    noise: Noise,
    *,
    spacing: str = "uniform",
    sigma_min: float = LEAST_NOISE,
    clamp: bool = True,
    eta: float = 0.0,
) -> Iterator[Step]:
    """DPM-Solver++(2M): the last two clean images, extrapolated to the middle of the step in
    lam = log(a/s).  First and final step are of first order.

    Deterministic at eta = 0.  At eta = 1 it solves the reverse SDE: every step takes away more than
    it has to and adds fresh noise, in which errors of earlier steps are drowned; between them,
    eta of the SDE's noise.  Lu 2022 (DPM-Solver++), Alg. 2 and Eq. 18; eta in h as Karras' library
    k-diffusion has it.
    """

    def half_log_snr(t: int) -> float:
        return 0.5 * math.log(sched.bar(t) / (1 - sched.bar(t)))

    before: tuple[Tensor, float] | None = None  # the last step's x0_hat and its h
    for t, previous in pairwise([*spaced(sched, steps, spacing, sigma_min), CLEAN]):
        x0_hat = _predict_x0(net, sched, x, t, clamp)
        if previous < 0:
            x = x0_hat
        else:
            h = half_log_snr(previous) - half_log_snr(t)
            beyond = h / (2 * before[1]) if before else 0.0
            (_, s), (a_prev, s_prev) = sched.roots(t), sched.roots(previous)
            # of x0_hat + beyond (x0_hat - x0_hat before); what is left of x, and the noise in it
            weight = -a_prev * math.expm1(-(1 + eta) * h)
            x = blend(s_prev / s * math.exp(-eta * h), x, weight * (1 + beyond), x0_hat)
            if before:
                x = x.add_(before[0], alpha=-weight * beyond)
            if eta > 0:
                x = x.add_(noise(t), alpha=s_prev * math.sqrt(-math.expm1(-2 * eta * h)))
            before = x0_hat, h
        yield Step(t, x, x0_hat)
