"""A number with its standard error: what every metric that draws samples returns."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A value, its standard error (sampling noise alone, not bias), and how that was found."""

    value: float
    se: float | None  # None where there is no honest way to tell
    method: str  # of the standard error, or why there is none


def mean_estimate(values: np.ndarray, what: str) -> Estimate:
    """The mean of independent values [n], n >= 2, with its standard error; `what` they are."""
    values = np.asarray(values, np.float64)
    se = float(values.std(ddof=1) / np.sqrt(len(values)))
    return Estimate(float(values.mean()), se, f"sd over {len(values):,} {what} / sqrt(n)")


def variance_of_mean(values: np.ndarray) -> float:
    """Variance of the mean of independent values [n]."""
    return float(values.var(ddof=1) / len(values))


def error_of_means(*samples: np.ndarray) -> float:
    """Standard error of a sum of means of independent samples, [n] each."""
    return math.sqrt(sum(map(variance_of_mean, samples)))


class Tested(NamedTuple):
    """Student's t test of a mean, or of a difference of means, against 0."""

    value: float
    se: float
    df: float  # degrees of freedom
    p: float  # of a value at least so far from 0, two-sided

    @property
    def half_width(self) -> float:
        """Of the 95 % interval around the value."""
        low, high = 1.9, 13.0  # of 1 degree of freedom: 12.7
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if student_p(middle, self.df) > 0.05 else (low, middle)
        return high * self.se


def one_mean(values: np.ndarray) -> Tested:
    """Of independent values [n], or paired differences, n >= 2."""
    value, se = float(np.mean(values)), error_of_means(np.asarray(values, np.float64))
    return _tested(value, se, len(values) - 1)


def two_means(a: np.ndarray, b: np.ndarray, *, alike: bool = False) -> Tested:
    """mean(a) - mean(b) of independent values [n] and [m], whose spreads may differ (Welch), or are
    `alike`, as those of one law are (Student)."""
    own = [(variance_of_mean(x.astype(np.float64)), len(x) - 1) for x in (a, b)]
    variance = sum(part for part, _ in own)
    df = variance**2 / sum(part**2 / free for part, free in own) if variance else 1.0
    if alike:
        df = float(len(a) + len(b) - 2)
        squares = sum(part * free * (free + 1) for part, free in own)
        variance = squares / df * (1 / len(a) + 1 / len(b))
    return _tested(float(np.mean(a) - np.mean(b)), math.sqrt(variance), df)


def _tested(value: float, se: float, df: float) -> Tested:
    t = value / se if se else math.copysign(math.inf, value) if value else 0.0
    return Tested(value, se, df, student_p(t, df))


def student_p(t: float, df: float) -> float:
    """Two-sided tail of Student's distribution: with t = sqrt(df) tan(angle) its density is
    cos(angle)^(df - 1).  Beyond 10,000 degrees of freedom, the normal one."""
    if df > 1e4:
        return math.erfc(abs(t) / math.sqrt(2))
    angles = np.linspace(math.atan(abs(t) / math.sqrt(df)), math.pi / 2, 20_001)
    heights = np.cos(angles).clip(0) ** (df - 1)
    tail = (heights[1:] + heights[:-1]).sum() / 2 * (angles[1] - angles[0])
    whole = math.exp(math.lgamma(df / 2) - math.lgamma((df + 1) / 2)) * math.sqrt(math.pi) / 2
    return min(1.0, float(tail) / whole)
