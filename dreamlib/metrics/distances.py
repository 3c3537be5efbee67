"""Euclidean distances between feature sets, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

ROWS = 1000  # of a block: 40 MB in float64 against 5,000 columns


def checked(features: np.ndarray, least: int = 2) -> np.ndarray:
    """float64 [n,d], n >= least, finite; else ValueError naming what is wrong."""
    features = np.asarray(features)
    if features.ndim != 2 or not np.issubdtype(features.dtype, np.floating):
        raise ValueError(f"features are floats [n,d], got {features.dtype} {features.shape}")
    if len(features) < least:
        raise ValueError(f"at least {least} samples are needed, got {len(features)}")
    if not np.isfinite(features).all():
        bad = int((~np.isfinite(features).all(axis=1)).sum())
        raise ValueError(f"{bad} of {len(features)} feature rows hold NaN or infinite values")
    return features.astype(np.float64, copy=False)


def check_same_width(a: np.ndarray, b: np.ndarray) -> None:
    """ValueError where the last axes of two arrays differ in length."""
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"feature widths differ: {a.shape[-1]} and {b.shape[-1]}")


def blocks(n: int, rows: int = ROWS) -> Iterator[slice]:
    """Slices that cover range(n)."""
    for start in range(0, n, rows):
        yield slice(start, min(start + rows, n))


def distance_blocks(
    a: np.ndarray, b: np.ndarray, rows: int = ROWS
) -> Iterator[tuple[slice, np.ndarray]]:
    """Distances of rows of a [n,d] to all of b [m,d], float64: (slice of a, [rows,m]).

    |x|^2 + |y|^2 - 2 xy is fast and loses digits far from the origin, so b's mean is taken off
    first.  Equal rows come out near 1e-7 of their norm, not at 0.
    """
    middle = b.mean(axis=0)
    a, b = a - middle, b - middle
    norms = np.square(b).sum(axis=1)
    for part in blocks(len(a), rows):
        squared = a[part] @ b.T
        squared *= -2
        squared += norms
        squared += np.square(a[part]).sum(axis=1)[:, None]
        np.maximum(squared, 0, out=squared)
        yield part, np.sqrt(squared, out=squared)
