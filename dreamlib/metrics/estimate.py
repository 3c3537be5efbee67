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
