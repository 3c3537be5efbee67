"""Sets of features, checked; and Euclidean distances between them, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

ROWS = 1000  # of a block: 40 MB in float64 against 5,000 columns


def checked(features: np.ndarray, least: int = 2) -> np.ndarray:
    """float64 [n,d], n >= least, finite; else ValueError naming what is wrong."""
    return finite(features, least).astype(np.float64, copy=False)


def finite(features: np.ndarray, least: int = 2) -> np.ndarray:
    """As `checked`, in their own float type: for what converts block by block, to avoid a copy."""
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


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of all rows of a [n,d] to all of b [m,d], [n,m]: |x|^2 + |y|^2 - 2 xy, which loses digits
    far from the origin."""
    squared = -2 * (a @ b.T)
    squared += np.square(b).sum(axis=1)
    squared += np.square(a).sum(axis=1)[:, None]
    return np.maximum(squared, 0, out=squared)
