"""How far a Fréchet distance can be trusted: floor, standard errors, bias correction, differences.

FD of n samples is biased upwards by about c (1/n + 1/m).  The floor is that bias where both laws
are equal; the correction and the fit estimate FD without it; the standard errors tell the spread
of FD over new samples, not its bias.  Percentiles of a bootstrap are not offered: resampled sets
repeat their samples, and their FD lies above the one that they should surround.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise, repeat
from typing import NamedTuple

import numpy as np

from dreamlib.metrics.estimate import Estimate, error_of_means, variance_of_mean
from dreamlib.metrics.frechet import Few, Moments, frechet, summary
from dreamlib.metrics.pairwise import blocks, checked_pair
from dreamlib.utils.errors import NotEnoughSamples
from dreamlib.utils.rng import numpy_rng

# Two-sided extrapolation was measured to work where each part holds at least this many samples
# per feature; below, the bias is no longer linear in 1/n.
SAMPLES_PER_FEATURE = 1.2
# The fewest sizes that tell a line from a curve and leave something to be wrong about.
FEWEST_POINTS = 4
# Below this many floors a raw value counts as near the null.
NEAR_NULL = 2.0


def frechet_floor(
    eigenvalues: np.ndarray, n: float, m: float, fourth: np.ndarray | None = None
) -> float:
    """What a perfect generator scores: E[FD] of n against m samples of one law.

    c (1/n + 1/m) with c = Tr S + sum_ij Var(z_i z_j) / (l_i + l_j) / 2, second-order expansion at
    S_1 = S_2, l the eigenvalues [d] of the covariance and z what is centred, along its
    eigenvectors.  `fourth` [d,d] holds E[z_i^2 z_j^2] (`fourth_moments`); without it those of a
    Gaussian law are taken.  Valid for n, m well above d; `math.inf` stands for a population.
    ValueError for negative eigenvalues or n, m < 2.
    """
    values = np.asarray(eigenvalues, np.float64)
    if values.ndim != 1 or not np.isfinite(values).all() or (values < 0).any():
        raise ValueError("eigenvalues must be a vector of finite numbers, none below zero")
    if n < 2 or m < 2:
        raise ValueError(f"a floor needs at least 2 samples on each side, got {n} and {m}")
    if fourth is None:
        fourth = np.outer(values, values) + 2 * np.diag(values**2)
    sums = values[:, None] + values
    # Two dead features have no covariance to estimate: 0 / (0 + 0) counts as 0.
    spread = (fourth - np.diag(values**2)) / np.where(sums > 0, sums, 1.0)
    return float((values.sum() + spread.sum() / 2) * (1 / n + 1 / m))


def fourth_moments(features: np.ndarray, own: Moments) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues [d] and E[z_i^2 z_j^2] [d,d] for `frechet_floor`; `own` sums up features."""
    values, vectors = np.linalg.eigh(own.cov)
    fourth = np.zeros_like(vectors)
    for part in blocks(len(features)):
        squares = np.square((features[part] - own.mean) @ vectors)
        fourth += squares.T @ squares
    return np.maximum(values, 0.0), fourth / len(features)


def frechet_se(gen: np.ndarray, real: np.ndarray) -> float:
    """Standard error of `frechet(gen, real)` by the delta method, both sides drawn at random.

    SE^2 = Var(IF_gen)/n + Var(IF_real)/m with the influence functions of `_influences`.  It covers
    sampling noise, not the bias, and is 1.3 to 1.6 times too wide where the laws are equal.
    Needs more samples than features on both sides, else NotEnoughSamples.
    """
    gen, real = checked_pair(gen, real)
    if min(len(gen), len(real)) <= gen.shape[1]:
        raise NotEnoughSamples(
            f"the delta standard error needs more samples than features on both sides, got "
            f"{min(len(gen), len(real))} samples of {gen.shape[1]} features: use more images, "
            f"`frechet_jackknife`, or the spread over seeds"
        )
    return math.sqrt(sum(frechet_variances([gen], [Moments.of(gen)], real, Moments.of(real))))


def frechet_variances(
    sets: Sequence[np.ndarray], sides: Sequence[Few | Moments], real: np.ndarray, kept: Moments
) -> tuple[float, float]:
    """Delta variances of the mean FD(set, real): by sampling of all sets, and of real [m,d], m > d.

    Sets need n > d for the first one alone: FD has a derivative by a covariance of full rank.
    """
    influences = [_influences(real, gen, kept, side) for gen, side in zip(sets, sides)]
    shared, own = zip(*influences)
    return variance_of_mean(np.concatenate(own)), variance_of_mean(np.mean(shared, axis=0))


def frechet_jackknife(
    gen: np.ndarray, real: np.ndarray, seed: int, groups: int = 20, both: bool = True
) -> float:
    """Standard error of `frechet(gen, real)` by leaving out a group of samples in turn.

    Works with fewer samples than features too.  Group k of gen and group k of real are left out
    together: the sides are independent, so their variances add, at half the cost.  `both=False`
    holds real fixed.  Groups are drawn by `seed`.  Like the delta method it covers sampling noise
    alone and is too wide where the laws are equal; with under 100 samples it is wide anyway, by a
    tenth and more.  Efron & Stein 1981.  NotEnoughSamples for fewer than two samples to a group.
    """
    gen, real = checked_pair(gen, real)
    left = _left_out(gen, groups, seed, 0)
    held = _left_out(real, groups, seed, 1) if both else repeat(summary(real))
    return _jackknife_error([frechet(a, b) for a, b in zip(left, held)])


def frechet_corrected(
    gen: np.ndarray, real: np.ndarray, seed: int, whole: float | None = None
) -> float:
    """FD with its 1/n bias removed on both sides; may be slightly negative near zero.

    Two-sided Richardson extrapolation: 2 FD(n,m) - mean of FD over two disjoint pairs of halves,
    drawn by `seed`.  `whole` is FD(n,m), where it is known already.  NotEnoughSamples where half a
    set holds fewer than 1.2 d samples.
    """
    gen, real = checked_pair(gen, real)
    n, d = min(len(gen), len(real)), gen.shape[1]
    if n / 2 < SAMPLES_PER_FEATURE * d:
        raise NotEnoughSamples(
            f"the bias correction halves {n} samples, but {d} features need at least "
            f"{SAMPLES_PER_FEATURE * d:.0f} in each half: report the raw value beside its floor"
        )
    gen_1, gen_2 = _halves(gen, numpy_rng("frechet halves", seed, 0))
    real_1, real_2 = _halves(real, numpy_rng("frechet halves", seed, 1))
    if whole is None:
        whole = frechet(gen_1.merge(gen_2), real_1.merge(real_2))
    parts = frechet(gen_1, real_1) + frechet(gen_2, real_2)
    return 2 * whole - parts / 2


def corrected_se(raw: float, floor: float, delta: float, jackknife: float | None = None) -> float:
    """Standard error of `frechet_corrected` from those of the raw value; all in units of FD.

    The larger of `delta` (`frechet_se`) and `jackknife`, None where that was too expensive.  Near
    the null, where raw is below twice its floor, the correction spreads up to 1.45 times as far as
    the delta method says, so delta counts 1.5 times.
    """
    wide = 1.5 * delta if raw < NEAR_NULL * floor else delta
    return wide if jackknife is None else max(wide, jackknife)


class Fit(NamedTuple):
    """FD against 1/n, and what it comes to at infinitely many samples."""

    sizes: list[int]
    values: list[float]  # FD of `sizes` samples on both sides
    linear: float  # intercept of a line in 1/n
    quadratic: float  # intercept of a parabola in 1/n
    curvature: float  # |linear - quadratic|: how far the two can be trusted


def frechet_fit(gen: np.ndarray, real: np.ndarray, seed: int, points: int = 5) -> Fit:
    """FD at several sizes, extrapolated in 1/n; a check of `frechet_corrected`, not its rival.

    As Chong & Forsyth 2020, but with both sides growing, so that the bias of either goes, and each
    size weighted as its variance falls.  Sizes are evenly spaced from 1.2 d, or a tenth of the
    smaller set if that is more, up to all of it; each holds the one before, ordered by `seed`.
    NotEnoughSamples where they would not span a factor of two or fewer than 4 differ; ValueError
    for fewer than 4 points.
    """
    gen, real = checked_pair(gen, real)
    if points < FEWEST_POINTS:
        raise ValueError(f"a fit needs at least {FEWEST_POINTS} points, got {points}")
    d, most = gen.shape[1], min(len(gen), len(real))
    least = max(math.ceil(SAMPLES_PER_FEATURE * d), math.ceil(most / 10), 2)
    sizes = sorted({round(size) for size in np.linspace(least, most, points)})
    if most < 2 * least or len(sizes) < FEWEST_POINTS:
        raise NotEnoughSamples(
            f"a fit for {d} features goes from {least} to at least {2 * least} samples at "
            f"{FEWEST_POINTS} or more sizes, got {most} samples: report the raw value and its floor"
        )
    grown_gen = _growing(gen, sizes, numpy_rng("frechet fit", seed, 0))
    grown_real = _growing(real, sizes, numpy_rng("frechet fit", seed, 1))
    values = [frechet(a, b) for a, b in zip(grown_gen, grown_real)]
    at, weights = 1 / np.array(sizes), np.sqrt(sizes)
    linear, quadratic = (
        float(np.polynomial.Polynomial.fit(at, values, degree, w=weights)(0.0)) for degree in (1, 2)
    )
    return Fit(sizes, values, linear, quadratic, abs(linear - quadratic))


def frechet_difference(
    gen_a: np.ndarray,
    gen_b: np.ndarray,
    real: np.ndarray,
    seed: int,
    paired: bool = False,
    groups: int = 20,
) -> Estimate:
    """FD(gen_a, real) - FD(gen_b, real) and its standard error; below zero, a is nearer.

    The reference is shared, so most of its noise cancels.  With `paired`, image i of both sets came
    from the same noise, and what they share cancels too.  The delta method is used where all sets
    hold more samples than features, else a jackknife that leaves a group out of all three at once,
    drawn by `seed`.  Each FD keeps its bias, and the two biases need not be equal: sizes should be.
    ValueError where paired sets differ in size.
    """
    (gen_a, real), (gen_b, _) = checked_pair(gen_a, real), checked_pair(gen_b, real)
    if paired and len(gen_a) != len(gen_b):
        raise ValueError(f"paired sets have equal sizes, got {len(gen_a)} and {len(gen_b)}")

    def difference(a: Few | Moments, b: Few | Moments, reference: Few | Moments) -> float:
        return frechet(a, reference) - frechet(b, reference)

    how = f"{'paired' if paired else 'independent'} images, one reference"
    a, b, reference = summary(gen_a), summary(gen_b), summary(real)
    value = difference(a, b, reference)
    if isinstance(a, Few) or isinstance(b, Few) or isinstance(reference, Few):
        keyed = (gen_a, 0), (gen_b, 0 if paired else 2), (real, 1)
        left = (_left_out(features, groups, seed, key) for features, key in keyed)
        se = _jackknife_error([difference(*three) for three in zip(*left)])
        return Estimate(value, se, f"jackknife of {groups} groups, {how}")
    own_a, real_a = _influences(gen_a, real, a, reference)
    own_b, real_b = _influences(gen_b, real, b, reference)
    own = [own_a - own_b] if paired else [own_a, own_b]
    return Estimate(value, error_of_means(*own, real_a - real_b), f"delta method, {how}")


def _influences(
    gen: np.ndarray, real: np.ndarray, a: Moments, b: Few | Moments
) -> tuple[np.ndarray, np.ndarray]:
    """Influence [n] and [m] of each sample on FD, up to a constant; a, b the moments of gen, real.

    IF(y) = 2 (mu - mu') . (y - mu) + (y - mu)^T (I - A) (y - mu), A the optimal transport map from
    the sample's own Gaussian to the other.  With S = F^T F and the singular values U s V^T of
    F_b F_a^T it is H H^T, where H [d,k] is F_b^T U s^-.5, and F_a^T V s^-.5 for the map back.
    """
    product = b.factor @ a.factor.T
    values, left = np.linalg.eigh((product @ product.T).T)
    # Directions without variance on either side are left out of the inverse.
    alive = values > len(a.mean) * np.finfo(np.float64).eps * values.max(initial=0)
    left, root = left[:, alive], np.sqrt(values[alive])
    half_a = b.factor.T @ (left * root**-0.5)
    half_b = a.factor.T @ (product.T @ (left * root**-1.5))
    return _influence(gen, a, b, half_a), _influence(real, b, a, half_b)


def _influence(
    features: np.ndarray, own: Few | Moments, other: Few | Moments, half: np.ndarray
) -> np.ndarray:
    influence = np.empty(len(features))
    for part in blocks(len(features)):
        centred = features[part] - own.mean
        moved = np.square(centred @ half).sum(axis=1)
        shift = 2 * centred @ (own.mean - other.mean)
        influence[part] = shift + np.square(centred).sum(axis=1) - moved
    return influence


def _groups(features: np.ndarray, groups: int, seed: int, key: int) -> list[np.ndarray]:
    """Row numbers of each group, drawn at random; sizes differ by one at most."""
    n = len(features)
    if groups < 2:
        raise ValueError(f"a jackknife needs at least 2 groups, got {groups}")
    if n < 2 * groups:
        raise NotEnoughSamples(
            f"a jackknife of {groups} groups needs at least {2 * groups} samples on each side, "
            f"got {n}: use more images or fewer groups"
        )
    return np.array_split(numpy_rng("frechet groups", seed, key).permutation(n), groups)


def _left_out(features: np.ndarray, groups: int, seed: int, key: int) -> Iterator[Few | Moments]:
    """The set without each group in turn; moments are taken off, not summed again."""
    whole = summary(features)
    for group in _groups(features, groups, seed, key):
        if isinstance(whole, Moments):
            yield whole.without(Moments.of(features[group]))
        else:
            yield Few.of(np.delete(features, group, axis=0))


def _jackknife_error(values: list[float]) -> float:
    return float(np.sqrt((len(values) - 1) * np.var(values)))


def _halves(features: np.ndarray, rng: np.random.Generator) -> tuple[Moments, Moments]:
    order = rng.permutation(len(features))
    middle = len(features) // 2
    return Moments.of(features[order[:middle]]), Moments.of(features[order[middle:]])


def _growing(features: np.ndarray, sizes: list[int], rng: np.random.Generator) -> Iterator[Moments]:
    """Moments of ever more of the set, each holding the samples before."""
    order = rng.permutation(len(features))
    grown = Moments.of(features[order[: sizes[0]]])
    yield grown
    for start, end in pairwise(sizes):
        grown = grown.merge(Moments.of(features[order[start:end]]))
        yield grown
