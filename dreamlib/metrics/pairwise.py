"""Euclidean distances between feature sets, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

ROWS = 1000  # of a block: 40 MB in float64 against 5,000 columns
MANY = 150  # more pairs than one in so many are sooner had as a product of all (2,048 features)


def checked(features: np.ndarray, least: int = 2) -> np.ndarray:
    """float64 [n,d], n >= least, finite; else ValueError naming what is wrong."""
    return seen(features, least).astype(np.float64, copy=False)


def seen(features: np.ndarray, least: int = 2) -> np.ndarray:
    """As `checked`, in whatever float type they come: for those who convert block by block, and
    spare a copy of all."""
    features = np.asarray(features)
    if features.ndim != 2 or not np.issubdtype(features.dtype, np.floating):
        raise ValueError(f"features are floats [n,d], got {features.dtype} {features.shape}")
    if len(features) < least:
        raise ValueError(f"at least {least} samples are needed, got {len(features)}")
    if not np.isfinite(features).all():
        bad = int((~np.isfinite(features).all(axis=1)).sum())
        raise ValueError(f"{bad} of {len(features)} feature rows hold NaN or infinite values")
    return features


def checked_pair(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as `checked` has them; ValueError where their widths differ, too."""
    a, b = checked(a), checked(b)
    check_same_width(a, b)
    return a, b


def check_same_width(a: np.ndarray, b: np.ndarray) -> None:
    """ValueError where the last axes of two arrays differ in length."""
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"feature widths differ: {a.shape[-1]} and {b.shape[-1]}")


def blocks(n: int, rows: int = ROWS) -> Iterator[slice]:
    """Slices that cover range(n)."""
    for start in range(0, n, rows):
        yield slice(start, min(start + rows, n))


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distances of all rows of a [n,d] to all of b [m,d], float64 [n,m].

    |x|^2 + |y|^2 - 2 xy is fast and loses digits far from the origin, so b's mean is taken off
    first.  Equal rows come out near 1e-7 of their norm, not at 0.
    """
    middle = b.mean(axis=0)
    squared = _squared(a - middle, b - middle)
    return np.sqrt(squared, out=squared)


class Near(NamedTuple):
    """Squared distances of some rows x [p,d] to all y [m,d]: fast ones, and exact where asked.

    Half the time of a product in float64: few comparisons are so close that float32 cannot
    decide them.  A limit is one value per row [p,1], or per column [m].
    """

    x: np.ndarray  # [p,d] float64
    y: np.ndarray  # [m,d] float64
    rough: np.ndarray  # [p,m] float32
    x_norm: np.ndarray  # [p,1]
    y_norm: np.ndarray  # [m]

    def slack(self, limit: np.ndarray) -> np.ndarray:
        """How far `rough` may be from the truth: [p,1] or [m], as limit is.

        A sum of d products rounds d times, at worst each time the same way (Higham, Accuracy and
        Stability of Numerical Algorithms, section 3.1); the squares a few times more.
        """
        unit = (self.x.shape[1] + 16) * float(np.finfo(np.float32).eps)
        if limit.ndim == 1:
            return unit * np.square(self.x_norm.max() + self.y_norm)
        return unit * np.square(self.x_norm + self.y_norm.max())

    def exact(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Squared distances in float64 of the pairs (rows[i], columns[i])."""
        if len(rows) > self.rough.size // MANY:
            return _squared(self.x, self.y)[rows, columns]
        found = np.empty(len(rows))
        for part in blocks(len(rows)):
            found[part] = np.square(self.x[rows[part]] - self.y[columns[part]]).sum(axis=1)
        return found

    def within(self, limit: np.ndarray) -> np.ndarray:
        """Whether each squared distance is at most its limit, as float64 has it: bool [p,m]."""
        slack = self.slack(limit)
        inside = self.rough <= (limit - slack).astype(np.float32)
        unsure = self.rough <= (limit + slack).astype(np.float32)
        unsure ^= inside
        rows, columns = pairs(unsure)
        own = limit[columns] if limit.ndim == 1 else limit[rows, 0]
        inside[rows, columns] = self.exact(rows, columns) <= own
        return inside


def pairs(where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of what a mask names: np.nonzero, ten times as fast where few are."""
    return np.divmod(np.flatnonzero(where), where.shape[1])


def near_blocks(x: np.ndarray, y: np.ndarray, rows: int = ROWS) -> Iterator[tuple[slice, Near]]:
    """Squared distances of rows of x [n,d] to all of y [m,d], which lie around the origin with
    norms of at most 1, so that float32 holds their squares: (slice of x, Near)."""
    x_norm, y_norm = lengths(x), lengths(y)
    # |x|^2 + |y|^2 - 2 xy as one product: two more columns on either side.
    width = x.shape[1]
    left, right = (np.ones((len(z), width + 2), np.float32) for z in (x, y))
    left[:, :width], left[:, width] = x, np.square(x_norm)
    np.multiply(y, -2, out=right[:, :width], casting="same_kind")
    right[:, width + 1] = np.square(y_norm)
    for part in blocks(len(x), rows):
        yield part, Near(x[part], y, left[part] @ right.T, x_norm[part, None], y_norm)


def lengths(x: np.ndarray) -> np.ndarray:
    """Norm of every row of x [n,d], without a second array of its size."""
    return np.sqrt(np.einsum("ij,ij->i", x, x))


def _squared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    found = -2 * (x @ y.T)
    found += np.square(y).sum(axis=1)
    found += np.square(x).sum(axis=1)[:, None]
    return np.maximum(found, 0, out=found)
