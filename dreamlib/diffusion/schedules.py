"""Noise schedules, held in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """A variance-preserving schedule: alpha_bar float64 [T], decreasing, inside (0, 1)."""

    alpha_bar: Tensor
    _tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        bar = self.alpha_bar
        if bar.dtype != torch.float64 or bar.ndim != 1:
            raise ValueError("alpha_bar is a float64 vector")
        falls = bool((bar[1:] < bar[:-1]).all())
        if not (falls and bar[-1] > 0 and bar[0] < 1):
            raise ValueError("alpha_bar must decrease inside (0, 1)")

    def __len__(self) -> int:
        return len(self.alpha_bar)

    def bar(self, t: int) -> float:
        """alpha_bar at t; t = -1 stands for clean data, where it is 1."""
        return float(self.alpha_bar[t]) if t >= 0 else 1.0

    def roots(self, t: int) -> tuple[float, float]:
        """a and s at t: what image and noise are multiplied by.  `signal_noise` of one t."""
        bar = self.bar(t)
        return bar**0.5, (1 - bar) ** 0.5

    def signal_noise(self, t: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """a_t and s_t, ready to broadcast over images: t [B] -> 2 x [B,1,1,1].

        Rounded once from float64; kept per device and dtype, so that no copy is made on the way.
        """
        key = t.device, dtype
        if key not in self._tables:
            with torch.inference_mode(False):  # a table made while sampling serves training too
                roots = self.alpha_bar.sqrt(), (1 - self.alpha_bar).sqrt()
                a, s = (root.to(dtype).view(-1, 1, 1, 1).to(t.device) for root in roots)
            self._tables[key] = a, s
        a, s = self._tables[key]
        return a[t], s[t]


def draw_times(kind: str, steps: int, count: int, rng: torch.Generator) -> Tensor:
    """Timesteps to train at, int64 [count] in 0 .. steps - 1.

    uniform       as Ho 2020
    logit_normal  the sigmoid of a standard normal: the middle more often.  Esser 2024, Sec. 3.1
    """
    if kind == "uniform":
        return torch.randint(steps, (count,), generator=rng)
    share = torch.randn(count, generator=rng, dtype=torch.float64).sigmoid()
    return (share * steps).long().clamp(max=steps - 1)


def from_betas(betas: Tensor) -> Schedule:
    """Ho 2020, Sec. 2: alpha_bar_t is the product of 1 - beta up to t.  betas float64 [T]."""
    return Schedule(torch.cumprod(1 - betas, dim=0))


def linear(steps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """Ho 2020, Sec. 4: betas rise linearly."""
    return from_betas(torch.linspace(beta_start, beta_end, steps, dtype=torch.float64))


def flow(steps: int) -> Schedule:
    """Flow matching's straight way x_tau = (1 - tau) x0 + tau eps, scaled to unit variance.

    Its a and s are in the ratio (1 - tau) to tau; tau = 1/(T+1) ... T/(T+1).  Lipman 2023
    (arXiv 2210.02747), Eq. 20; Liu 2023 (arXiv 2209.03003), Eq. 1.
    """
    tau = torch.arange(1, steps + 1, dtype=torch.float64) / (steps + 1)
    return Schedule((1 - tau) ** 2 / ((1 - tau) ** 2 + tau**2))


def cosine(
    steps: int, s: float = 0.008, beta_min: float = 1e-4, beta_max: float = 0.9999
) -> Schedule:
    """Nichol 2021, Eq. 17: alpha_bar follows cos^2; betas clipped to [beta_min, beta_max].

    Both clips are the original recipe's (Nichol's is 0.999, and no lower one); the lower one
    changes the first 13 of 1000 betas.
    """
    grid = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    bar = torch.cos((grid + s) / (1 + s) * math.pi / 2) ** 2
    return from_betas((1 - bar[1:] / bar[:-1]).clamp(beta_min, beta_max))
