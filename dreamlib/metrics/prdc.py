"""Precision, recall, density and coverage: are generated images realistic, and varied?

Each set stands for the union of balls around its points, that of x reaching to the k-th nearest
other point of its set.  Precision and recall: Kynkaanniemi et al. 2019, Eqs. 1 and 2.  Density and
coverage: Naeem et al. 2020.  Clipped density and coverage: Salvy et al. 2025, arXiv 2507.01761:
shares of good images, which fall in a straight line as bad ones are mixed in.

All of them but density depend on both sizes and on k even for a perfect generator: with k = 5
coverage is .97 for 500 against 500 and .38 for 500 against 5,000.  So sizes are equal, values are
compared at equal n and k, and read beside DENSITY_NULL and `coverage_null`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dreamlib.metrics.estimate import Estimate
from dreamlib.metrics.pairwise import blocks, checked_pair, squared_distances
from dreamlib.utils.errors import NotEnoughSamples

DENSITY_NULL = 1.0  # expected of a perfect generator at any sizes and any k

ROWS = 1000  # of a block of distances
MANY = 150  # more pairs than one in so many are faster as a product of all (2,048 features)

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
    # How many good generated images would do as well, as a share; about 1 for a perfect generator
    clipped_density: Estimate
    clipped_coverage: Estimate


def prdc(
    gen: np.ndarray,
    real: np.ndarray,
    k: int = 5,
    *,
    closed: bool = False,
    allow_unequal: bool = False,
) -> Manifold:
    """Precision, recall, density and coverage of gen [n,d] against real [m,d], and the clipped two.

    Clipped density: balls no wider than the median one, no image counting for more than k of them,
    over what real images score among themselves.  Clipped coverage: k images fill a ball, and
    `covered_share` reads how full they are.  Neither is cut at 1.

    A ball is open (distance < radius) but always holds its centre, so that a copy counts as near
    its original even where radii are 0; distances equal up to rounding count as equal.  With
    k = 3 and `closed` balls, precision and recall are those of the original code and of
    torch-fidelity.  ValueError for NaN, for other shapes or widths that differ, for k < 1, and for
    n != m unless `allow_unequal`; NotEnoughSamples where a set has no k-th neighbour.
    """
    gen, real = _comparable(gen, real, k, allow_unequal)
    reaches = _reach(gen, k), _reach(real, k)
    reach_gen, reach_real = (reach[int(closed)] for reach in reaches)
    clipped, edge = (np.minimum(reach, np.median(reach)) for reach in (reach_real, reaches[1][1]))
    holders, near_it = np.empty((2, len(gen)), np.int64)  # real balls around it; clipped ones
    held = np.zeros(len(real), np.int64)  # generated images in each real ball
    recalled = np.zeros(len(real), bool)  # whether any generated ball holds the real image
    for part, near in _near_blocks(gen, real):
        inside = near.within(reach_real)
        holders[part] = np.count_nonzero(inside, axis=1)
        held += np.count_nonzero(inside, axis=0)
        near_it[part] = np.count_nonzero(near.within(clipped), axis=1)
        recalled |= near.within(reach_gen[part, None]).any(axis=0)
    dense = np.minimum(near_it / k, 1).mean() / _own_density(real, edge, k)
    share = covered_share(float(np.minimum(held / k, 1).mean()), len(gen), len(real), k)
    values = np.mean(holders > 0), np.mean(recalled), np.mean(holders) / k, np.mean(held > 0)
    values = (*values, dense, share)
    return Manifold(*(Estimate(float(value), None, NO_ERROR) for value in values))


def _own_density(real: np.ndarray, reach: np.ndarray, k: int) -> float:
    """What real images score among themselves, whose closed balls hold k of them."""
    others = np.empty(len(real), np.int64)  # balls of others around each
    for part, near in _near_blocks(real, real):
        others[part] = np.count_nonzero(near.within(reach), axis=1) - 1
    return float(np.minimum(others / k, 1).mean())


def coverage_null(n: int, m: int, k: int = 5) -> float:
    """Expected coverage of a perfect generator: n generated images against m real ones, exact.

    1 - prod_{i<k} (m-1-i) / (n+m-1-i): that the k nearest of a real image's n + m - 1 neighbours
    are all real.  ValueError unless n >= 1 and 1 <= k < m.
    """
    if n < 1 or not 1 <= k < m:
        raise ValueError(f"coverage needs n >= 1 and 1 <= k < m, got n={n}, m={m}, k={k}")
    i = np.arange(k)
    return float(1 - np.prod((m - 1 - i) / (n + m - 1 - i)))


def covered_share(value: float, n: int, m: int, k: int = 5) -> float:
    """The share of n images that, being good, would fill real balls as far as `value` says: the
    mean of min(images inside / k, 1) over the balls of m real ones.

    Of r good images c lie in a ball with the chance of a beta-binomial (r; k, m - k): the k-th
    nearest of a real image holds a Beta(k, m - k) part of the law.  That is inverted, and goes on
    straight above what n good images are expected to fill.
    """
    steps = np.linspace(0, n, 65).round().astype(int)
    expected = np.array([_filled(int(r), m, k) for r in steps])
    if value <= expected[-1]:
        return float(np.interp(value, expected, steps / n))
    return float(value / expected[-1])


def _filled(r: int, m: int, k: int = 5) -> float:
    """Expected min(c / k, 1) of a real ball, c of r good images in it."""

    def log_beta(a: float, b: float) -> float:
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

    missing, ways = 0.0, 0.0  # log of r over c
    for c in range(min(k, r + 1)):
        missing += (1 - c / k) * math.exp(
            ways + log_beta(c + k, r - c + m - k) - log_beta(k, m - k)
        )
        ways += math.log((r - c) / (c + 1)) if r > c else 0.0
    return 1 - missing


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
    largest = max(_norms(points).max() for points in (gen, real))
    for points in (gen, real):
        points /= largest or 1.0
    return gen, real


def _norms(x: np.ndarray) -> np.ndarray:
    """Of every row of x [n,d], without a second array of its size."""
    return np.sqrt(np.einsum("ij,ij->i", x, x))


class Near(NamedTuple):
    """Squared distances of some rows x [p,d] to all y [m,d], whose norms are at most 1.

    In float32, which takes half the time, and in float64 where that cannot decide a comparison.
    A limit is one value per row [p,1], or per column [m].
    """

    x: np.ndarray  # [p,d] float64
    y: np.ndarray  # [m,d] float64
    rough: np.ndarray  # [p,m] float32
    x_norm: np.ndarray  # [p,1]
    y_norm: np.ndarray  # [m]

    def edges(self, limit: np.ndarray, times: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """The float32 values below and above which `rough` surely is on that side of the limit.

        A sum of d products rounds d times, at worst each time the same way (Higham, Accuracy and
        Stability of Numerical Algorithms, section 3.1); the squares a few times more.
        """
        unit = (self.x.shape[1] + 16) * float(np.finfo(np.float32).eps)
        by_column = limit.ndim == 1
        norms = self.x_norm.max() + self.y_norm if by_column else self.x_norm + self.y_norm.max()
        slack = times * unit * np.square(norms)
        return (limit - slack).astype(np.float32), (limit + slack).astype(np.float32)

    def exact(self, unsure: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows and columns where a mask [p,m] is true, and their squared distances in float64."""
        # np.nonzero, ten times as fast where few are true
        rows, columns = np.divmod(np.flatnonzero(unsure), unsure.shape[1])
        if len(rows) > self.rough.size // MANY:
            return rows, columns, squared_distances(self.x, self.y)[rows, columns]
        squared = np.empty(len(rows))
        for part in blocks(len(rows)):
            squared[part] = np.square(self.x[rows[part]] - self.y[columns[part]]).sum(axis=1)
        return rows, columns, squared

    def within(self, limit: np.ndarray) -> np.ndarray:
        """Whether each squared distance is at most its limit, as float64 has it: bool [p,m]."""
        low, high = self.edges(limit)
        inside, unsure = self.rough <= low, self.rough <= high
        unsure ^= inside
        rows, columns, squared = self.exact(unsure)
        inside[rows, columns] = squared <= np.broadcast_to(limit, inside.shape)[rows, columns]
        return inside


def _near_blocks(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, Near]]:
    """A slice of x [n,d], and its distances to all of y [m,d], in turn."""
    x_norm, y_norm = _norms(x), _norms(y)
    # |x|^2 + |y|^2 - 2 xy as one product: two more columns on either side.
    width = x.shape[1]
    left, right = (np.ones((len(z), width + 2), np.float32) for z in (x, y))
    left[:, :width], left[:, width] = x, np.square(x_norm)
    np.multiply(y, -2, out=right[:, :width], casting="same_kind")
    right[:, width + 1] = np.square(y_norm)
    for part in blocks(len(x), ROWS):
        yield part, Near(x[part], y, left[part] @ right.T, x_norm[part, None], y_norm)


def _reach(points: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Largest squared distance [n] that counts as inside the open, and inside the closed ball of
    each of points [n,d].

    An open ball ends a tie's width before its radius, a closed one as much behind it; neither is
    smaller than the distance that rounding puts between a point and its copy.
    """
    radius = np.empty(len(points))
    for part, near in _near_blocks(points, points):
        rows = np.arange(len(near.rough))
        near.rough[rows, rows + part.start] = np.inf
        least = np.partition(near.rough, k - 1, axis=1)[:, :k]
        low, high = near.edges(least[:, -1:], times=2)
        # The k-th is one of those that float32 cannot tell from it; surely nearer ones are counted.
        nearer = np.count_nonzero(least < low, axis=1)
        row, _, squared = near.exact((near.rough >= low) & (near.rough <= high))
        order = np.lexsort((squared, row))  # by row, the nearest first
        radius[part] = squared[order][np.searchsorted(row, rows) + k - 1 - nearer]
    # Who is at the ball's edge has a norm of at most norm + radius.
    tie = 2 * TIE * np.square(_norms(points) + np.sqrt(radius))
    return np.maximum(radius - tie, tie), np.maximum(radius + tie, tie)
