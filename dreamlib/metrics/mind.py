"""Monge Inception distance (MIND): how far images must be moved, seen along random directions.

3 d times the mean, over directions u, of the squared Wasserstein distance between u . x and u . y
(Berthet et al. 2026, arXiv 2605.06797).  In one dimension the best plan pairs values in their
order, so nothing is estimated but quantiles: no covariance, and no least number of images for so
many features.  With other features than Inception's it is MIND[name].

The paper and torch-fidelity take as many real images as generated ones.  Here all of them count,
each generated image meeting its share of them; at equal sizes both are the same.  MIND of samples
is too large, by about c (1/n + 1/m): the corrected value is twice it minus that of halves.  Where
features fall into clumps with nothing between them, errors were measured up to a third too small.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dreamlib.metrics.estimate import (
    Estimate,
    error_of_means,
    one_mean,
    two_means,
    variance_of_mean,
)
from dreamlib.metrics.pairwise import blocks, check_same_width, finite
from dreamlib.utils.rng import numpy_rng

DIRECTIONS = 1000
AT_ONCE = 50  # directions, so that 5,000 images take 2 MB
HALVINGS = 2  # of both sets, for the correction
METHOD = "plans of both sides, direction by direction"


class Plan(NamedTuple):
    """The best plan between n and m sorted values: pieces of both that hold equal mass."""

    x: np.ndarray  # [p] which of the n values
    y: np.ndarray  # [p] which of the m values
    mass: np.ndarray  # [p], sums to 1

    @classmethod
    def between(cls, n: int, m: int) -> Plan:
        ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)  # in units of 1/(n m)
        starts = np.concatenate([[0], ends[:-1]])
        return cls(starts // m, starts // n, (ends - starts) / (n * m))

    def cost(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Squared distance along each direction: sorted [b,n] and [b,m] -> [b]."""
        return np.square(x[:, self.x] - y[:, self.y]) @ self.mass


class Sorted(NamedTuple):
    """Values along some directions, in their order."""

    values: np.ndarray  # [b,n]
    order: np.ndarray  # [b,n] whose they are

    @classmethod
    def along(cls, directions: np.ndarray, features: np.ndarray) -> Sorted:
        values = directions @ features.T
        order = np.argsort(values, axis=1)
        return cls(np.take_along_axis(values, order, axis=1), order)

    def some(self, chosen: np.ndarray) -> np.ndarray:
        """The values of the chosen images, a mask [n], in their order."""
        return self.values[chosen[self.order]].reshape(len(self.values), -1)

    def pulls(self, met: np.ndarray) -> np.ndarray:
        """How much each image adds to the cost, summed over directions [n]: its potential.

        `met` [b,n] is the mean of what each value is paired with.  The potential's slope is twice
        the way to it, so between neighbours it grows by their mean way times their distance.
        """
        way = self.values - met
        grown = (way[:, 1:] + way[:, :-1]) * np.diff(self.values, axis=1)
        potential = np.zeros_like(way)
        np.cumsum(grown, axis=1, out=potential[:, 1:])
        return np.bincount(self.order.ravel(), potential.ravel(), way.shape[1])


class Moved(NamedTuple):
    """MIND of one generated set."""

    value: float
    corrected: float
    gen: np.ndarray  # [n] how each generated image moves it
    real: np.ndarray  # [m] and each real one

    def estimate(self, corrected: bool = False) -> Estimate:
        """With its standard error: images of both sides; directions are the same for everybody."""
        value = self.corrected if corrected else self.value
        return Estimate(value, error_of_means(self.gen, self.real), METHOD)


def minds(
    gens: Sequence[np.ndarray], real: np.ndarray, seed: int = 0, directions: int | None = None
) -> list[Moved]:
    """MIND of several generated sets [n,d] against one real set [m,d], along the same directions.

    ValueError for NaN, for other shapes or widths that differ, and for fewer than 4 images.
    """
    real, gens = finite(real, 4), [finite(gen, 4) for gen in gens]
    for gen in gens:
        check_same_width(gen, real)
    middle = real.mean(axis=0, dtype=np.float64)  # so that rounding is of the spread
    real, *gens = (features - middle for features in (real, *gens))
    directions = directions or DIRECTIONS
    works, halves = [_Work(len(gen), len(real), seed) for gen in gens], _halves(len(real), seed)
    for along in _directions(real.shape[1], directions, seed):
        theirs = Sorted.along(along, real)
        theirs_halved = [theirs.some(half) for half in halves]
        for gen, work in zip(gens, works):
            work.add(Sorted.along(along, gen), theirs, theirs_halved)
    return [work.moved(3 * real.shape[1] / directions) for work in works]


def mind(gen: np.ndarray, real: np.ndarray, seed: int = 0) -> Estimate:
    """MIND of a generated set [n,d] against real images [m,d]; errors as `minds` has them."""
    return minds([gen], real, seed)[0].estimate()


def mind_null(real: np.ndarray, n: int, seed: int = 0, parts: int = 3) -> float:
    """What n images of the real law are expected to score against these [m,d]: parts of them are
    scored against the rest, and the bias brought to these sizes."""
    m = len(real)
    size, order = min(n, m // 2), numpy_rng("mind-null", seed, m).permutation(m)
    found = []
    for start in range(0, size * min(parts, m // size), size):
        chosen = np.isin(np.arange(m), order[start : start + size])
        found += minds([real[chosen]], real[~chosen], seed, DIRECTIONS // 4)
    mean = float(np.mean([each.value for each in found]))
    return mean * (1 / n + 1 / m) / (1 / size + 1 / (m - size))


class Told(NamedTuple):
    """How two generated sets differ."""

    minus: Estimate  # corrected MIND of a minus that of b: below 0 where a is nearer
    p: float  # of so large a difference in `pooled`, where both sets are of one law
    own: float  # variance of `minus` that more generated images would make smaller
    pooled: tuple[np.ndarray, ...]  # how each image of a, and of b, moves MIND of all of them


def mind_difference(
    gen_a: np.ndarray, gen_b: np.ndarray, real: np.ndarray, paired: bool, seed: int = 0
) -> Told:
    """Which of two generated sets is nearer to the real images, and whether they differ at all.

    p is of a t test between what the images of either set add to MIND of both together: which set
    an image belongs to plays no part in that, so equal laws are told apart in 5 % of cases at 5 %.
    The standard error of `minus` holds the reference's noise, too, and is too wide where laws are
    equal.  `paired`: image i of both was drawn from the same noise.  ValueError as for `minds`, and
    for paired sets of different sizes.
    """
    if paired and len(gen_a) != len(gen_b):
        raise ValueError(
            f"paired sets need equal sizes, got {len(gen_a)} and {len(gen_b)}: cut both to the "
            "same seeds or pass paired=False"
        )
    a, b, both = minds([gen_a, gen_b, np.concatenate([gen_a, gen_b])], real, seed)
    own = variance_of_mean(a.gen - b.gen) if paired else sum(map(variance_of_mean, (a.gen, b.gen)))
    se = math.sqrt(own + variance_of_mean(a.real - b.real))
    how = "paired image by image" if paired else "of independent generated sets"
    minus = Estimate(a.corrected - b.corrected, se, f"{METHOD}, {how}, one shared reference")
    pooled = both.gen[: len(gen_a)], both.gen[len(gen_a) :]
    p = (one_mean(pooled[0] - pooled[1]) if paired else two_means(*pooled)).p
    return Told(minus, p, own, pooled)


class _Work:
    """Sums over directions."""

    def __init__(self, n: int, m: int, seed: int):
        self.plan, self.halves = Plan.between(n, m), _halves(n, seed)
        self.firsts = [np.flatnonzero(np.diff(of, prepend=-1)) for of in self.plan[:2]]
        sizes = [(int(a.sum()), int(b.sum())) for a, b in zip(self.halves, _halves(m, seed))]
        self.plans = [Plan.between(*pair) for pair in sizes]
        self.whole, self.half, self.gen, self.real = 0.0, 0.0, np.zeros(n), np.zeros(m)

    def add(self, gen: Sorted, real: Sorted, real_halved: list[np.ndarray]) -> None:
        plan = self.plan
        self.whole += plan.cost(gen.values, real.values).sum()
        for half, theirs, pairs in zip(self.halves, real_halved, self.plans):
            self.half += pairs.cost(gen.some(half), theirs).sum() / len(self.halves)
        pieces = (real.values[:, plan.y], gen.values[:, plan.x])
        sums = [np.add.reduceat(p * plan.mass, f, axis=1) for p, f in zip(pieces, self.firsts)]
        self.gen += gen.pulls(sums[0] * len(self.gen))
        self.real += real.pulls(sums[1] * len(self.real))

    def moved(self, scale: float) -> Moved:
        corrected = 2 * self.whole - self.half
        pulls = scale * self.gen, scale * self.real
        return Moved(float(scale * self.whole), float(scale * corrected), *pulls)


def _halves(n: int, seed: int) -> list[np.ndarray]:
    """Masks [n] of random halves, each followed by what it leaves."""
    rng = numpy_rng("mind-halves", seed, n)
    firsts = [rng.permutation(n) < n // 2 for _ in range(HALVINGS)]
    return [half for first in firsts for half in (first, ~first)]


def _directions(d: int, count: int, seed: int) -> Iterator[np.ndarray]:
    """Unit vectors [b,d], `count` in all."""
    rng = numpy_rng("mind-directions", seed)
    for part in blocks(count, AT_ONCE):
        directions = rng.standard_normal((part.stop - part.start, d))
        yield directions / np.linalg.norm(directions, axis=1, keepdims=True)
