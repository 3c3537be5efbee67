"""Precision, recall, density and coverage: are generated images realistic, and varied?

Each set stands for the union of balls around its points, that of x reaching to the k-th nearest
other point of its set.  Precision and recall: Kynkaanniemi et al. 2019, Eqs. 1 and 2.  Density and
coverage: Naeem et al. 2020.

All of them but density depend on both sizes and on k even for a perfect generator: with k = 5
coverage is .97 for 500 against 500 and .38 for 500 against 5,000.  So sizes are equal, values are
compared at equal n and k, and read beside DENSITY_NULL and `coverage_null`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dreamlib.metrics.estimate import Estimate
from dreamlib.metrics.pairwise import checked_pair, lengths, near_blocks, pairs
from dreamlib.utils.errors import NotEnoughSamples

DENSITY_NULL = 1.0  # expected of a perfect generator at any sizes and any k

# Squared distances carry rounding of some 1e-15 of the squared norms; within this they are equal.
TIE = 1e-12

# A binomial error was measured up to a quarter too small: images share their neighbours.
NO_ERROR = "none: the images share neighbours, so compare several seeds or disjoint parts"


class Manifold(NamedTuple):
    """Each in [0, 1], density in [0, m / k]; without standard errors, see NO_ERROR."""

    precision: Estimate  # share of generated images inside any real ball
    recall: Estimate  # share of real images inside any generated ball
    density: Estimate  # mean number of real balls around a generated image, over k
    coverage: Estimate  # share of real balls that hold any generated image


def prdc(
    gen: np.ndarray,
    real: np.ndarray,
    k: int = 5,
    *,
    closed: bool = False,
    allow_unequal: bool = False,
) -> Manifold:
    """Precision, recall, density and coverage of gen [n,d] against real [m,d].

    A ball is open (distance < radius) but always holds its centre, so that a copy counts as near
    its original even where radii are 0; distances equal up to rounding count as equal.  With
    k = 3 and `closed` balls, precision and recall are those of the original code and of
    torch-fidelity.  ValueError for NaN, for other shapes or widths that differ, for k < 1, and for
    n != m unless `allow_unequal`; NotEnoughSamples where a set has no k-th neighbour.
    """
    gen, real = _comparable(gen, real, k, allow_unequal)
    reach_gen, reach_real = _reach(gen, k, closed), _reach(real, k, closed)
    holders = np.empty(len(gen), np.int64)  # how many real balls hold each generated image
    # Whether any generated ball holds the real image, and its ball any generated image
    recalled, covered = np.zeros((2, len(real)), bool)
    for part, near in near_blocks(gen, real):
        inside = near.within(reach_real)
        holders[part] = np.count_nonzero(inside, axis=1)
        covered |= inside.any(axis=0)
        recalled |= near.within(reach_gen[part, None]).any(axis=0)
    density = np.mean(holders) / k
    values = np.mean(holders > 0), np.mean(recalled), density, np.mean(covered)
    return Manifold(*(Estimate(float(value), None, NO_ERROR) for value in values))


def coverage_null(n: int, m: int, k: int = 5) -> float:
    """Expected coverage of a perfect generator: n generated images against m real ones, exact.

    1 - prod_{i<k} (m-1-i) / (n+m-1-i): that the k nearest of a real image's n + m - 1 neighbours
    are all real.  ValueError unless n >= 1 and 1 <= k < m.
    """
    if n < 1 or not 1 <= k < m:
        raise ValueError(f"coverage needs n >= 1 and 1 <= k < m, got n={n}, m={m}, k={k}")
    i = np.arange(k)
    return float(1 - np.prod((m - 1 - i) / (n + m - 1 - i)))


def _comparable(
    gen: np.ndarray, real: np.ndarray, k: int, allow_unequal: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Both sets around the origin, with norms of at most 1; errors as `prdc` has them."""
    gen, real = checked_pair(gen, real)
    if k < 1:
        raise ValueError(f"k counts neighbours and is at least 1, got {k}")
    if min(len(gen), len(real)) <= k:
        raise NotEnoughSamples(
            f"{k} neighbours need at least {k + 1} images on each side, got {len(gen)} and "
            f"{len(real)}: take more images or a smaller k"
        )
    if len(gen) != len(real) and not allow_unequal:
        raise ValueError(
            f"{len(gen)} generated against {len(real)} real images: cut both to equal n, or pass "
            "allow_unequal=True and read the values beside coverage_null(n, m, k)"
        )
    middle = real.mean(axis=0)  # far from the origin, distances lose digits
    gen, real = gen - middle, real - middle
    largest = max(lengths(points).max() for points in (gen, real))
    for points in (gen, real):
        points /= largest or 1.0
    return gen, real


def _reach(points: np.ndarray, k: int, closed: bool) -> np.ndarray:
    """Largest squared distance [n] that counts as inside the ball of each of points [n,d].

    An open ball ends a tie's width before its radius, a closed one as much behind it; neither is
    smaller than the distance that rounding puts between a point and its copy.
    """
    squared = np.empty(len(points))
    for part, near in near_blocks(points, points):
        own = np.arange(len(near.rough))
        near.rough[own, own + part.start] = np.inf
        least = np.partition(near.rough, k - 1, axis=1)[:, :k]
        kth, slack = least[:, -1:], 2 * near.slack(least[:, -1:])
        low, high = (kth - slack).astype(np.float32), (kth + slack).astype(np.float32)
        # The k-th is one of those that float32 cannot tell from it; surely nearer ones are counted.
        nearer = np.count_nonzero(least < low, axis=1)
        rows, columns = pairs((near.rough >= low) & (near.rough <= high))
        found = near.exact(rows, columns)
        order = np.lexsort((found, rows))  # by row, the nearest first
        squared[part] = found[order][np.searchsorted(rows, own) + k - 1 - nearer]
    # Who is at the ball's edge has a norm of at most norm + radius.
    tie = 2 * TIE * np.square(lengths(points) + np.sqrt(squared))
    return np.maximum(squared + (tie if closed else -tie), tie)
