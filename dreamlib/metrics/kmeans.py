"""K-means: the cells in which `modes` counts images."""

from __future__ import annotations

import numpy as np

from dreamlib.metrics.pairwise import blocks, check_same_width, checked, squared_distances
from dreamlib.utils.rng import numpy_rng

# Where all squared distances to the seeds sum to less of the spread, what is left is rounding.
ROUNDING = 1e-12


def kmeans(features: np.ndarray, k: int, seed: int, iterations: int = 25) -> np.ndarray:
    """Centres [k,d] float64 of k cells of features [n,d]; the same for the same seed and machine.

    Seeds by k-means++ (Arthur & Vassilvitskii 2007), then at most `iterations` of Lloyd's; a cell
    that runs empty starts anew at the row farthest from its centre.  Cells are places to count in,
    so one start is enough.  ValueError for k < 2 or more cells than distinct rows.
    """
    features = checked(features)
    if k < 2:
        raise ValueError(f"k-means needs at least 2 cells, got {k}")
    if iterations < 1:
        raise ValueError(f"k-means needs at least 1 iteration, got {iterations}")
    middle = features.mean(axis=0)
    centred = features - middle
    return _lloyd(centred, centred[_seeds(centred, k, seed)], iterations) + middle


def assign(features: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The nearest centre of each row, the lower number where two are as near: int64 [n].

    features [n,d], centres [k,d].  ValueError for NaN, other shapes and widths that differ.
    """
    features, centres = checked(features, least=1), checked(centres, least=1)
    check_same_width(features, centres)
    return _nearest(features, centres)[0]


def _seeds(centred: np.ndarray, k: int, seed: int) -> list[int]:
    """Row numbers, each drawn in proportion to its squared distance from those before it."""
    rng = numpy_rng("k-means seeds", seed)
    norms = np.square(centred).sum(axis=1)
    chosen = [int(rng.integers(len(centred)))]
    squared = np.full(len(centred), np.inf)
    while len(chosen) < k:
        new = chosen[-1]
        # One product per seed: `squared_distances` would square all features for each of them.
        to_new = norms + norms[new] - 2 * (centred @ centred[new])
        squared = np.minimum(squared, np.maximum(to_new, 0))
        total = np.cumsum(squared)
        if total[-1] <= ROUNDING * norms.sum():
            raise ValueError(
                f"{len(centred):,} rows hold {len(chosen)} distinct points, too few for {k} "
                "cells: lower k, or look why the features are all alike"
            )
        chosen.append(int(np.searchsorted(total, rng.random() * total[-1], side="right")))
    return chosen


def _lloyd(features: np.ndarray, centres: np.ndarray, iterations: int) -> np.ndarray:
    """Centres after Lloyd's iterations from given ones, fewer where no row changes its cell."""
    cells = np.full(len(features), -1)
    for _ in range(iterations):
        before, (cells, far) = cells, _nearest(features, centres)
        if np.array_equal(cells, before):
            break
        counts = np.bincount(cells, minlength=len(centres))
        members = np.split(np.argsort(cells, kind="stable"), np.cumsum(counts)[:-1])
        sums = np.stack([features[rows].sum(axis=0) for rows in members])
        centres, empty = sums / np.maximum(counts, 1)[:, None], np.flatnonzero(counts == 0)
        centres[empty] = features[np.argsort(-far, kind="stable")[: len(empty)]]
    return centres


def _nearest(features: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centre of each row, int64 [n], and the distance to it [n]."""
    cells, nearest = np.empty(len(features), np.int64), np.empty(len(features))
    middle = centres.mean(axis=0)  # far from the origin, distances lose digits
    for part in blocks(len(features)):
        distances = np.sqrt(squared_distances(features[part] - middle, centres - middle))
        cells[part], nearest[part] = distances.argmin(axis=1), distances.min(axis=1)
    return cells, nearest
