"""Fréchet distance between feature sets, its floor, its standard error and its bias correction.

FD = |mu_1 - mu_2|^2 + Tr(S_1 + S_2 - 2 (S_1^.5 S_2 S_1^.5)^.5), Dowson & Landau 1982, Eq. 4, used
for images by Heusel et al. 2017, Eq. 6.  With Inception features it is called FID; with others,
FD[name].  Everything is float64 (float32 is wrong by percents) and covariances divide by n - 1.

With n samples FD is biased upwards by about c (1/n_1 + 1/n_2), and c differs between generators.
So a value is read beside its floor, and compared at equal n only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dreamlib.errors import NotEnoughSamples
from dreamlib.rng import numpy_rng

# Two-sided Richardson was measured to work where each half holds at least this many samples per
# feature; below, the bias is no longer linear in 1/n.
SAMPLES_PER_FEATURE = 1.2


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and centred second moment of a feature set, in float64; shards merge exactly."""

    n: int
    mean: np.ndarray  # [d]
    m2: np.ndarray  # [d,d], the sum of centred outer products

    @classmethod
    def of(cls, features: np.ndarray) -> Moments:
        """features [n,d], any float type.  ValueError for other shapes and non-finite values."""
        features = _checked(features, least=1)
        mean = features.mean(axis=0)
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred)

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets together.  Chan, Golub & LeVeque 1983, pairwise update."""
        _check_same_width(self.mean, other.mean)
        n = self.n + other.n
        step = other.mean - self.mean
        m2 = self.m2 + other.m2 + np.outer(step, step) * (self.n * other.n / n)
        return Moments(n, self.mean + step * (other.n / n), m2)

    @cached_property
    def cov(self) -> np.ndarray:
        """Unbiased covariance [d,d].  ValueError where n < 2."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {self.n}")
        return self.m2 / (self.n - 1)

    @cached_property
    def eigenvalues(self) -> np.ndarray:
        """Eigenvalues [d] of the covariance, ascending; rounding below zero is cut off."""
        return self._eigen[0]

    @cached_property
    def root(self) -> np.ndarray:
        """Symmetric square root [d,d] of the covariance; kept, as a reference is used often."""
        values, vectors = self._eigen
        return (vectors * np.sqrt(values)) @ vectors.T

    @cached_property
    def _eigen(self) -> tuple[np.ndarray, np.ndarray]:
        values, vectors = np.linalg.eigh(self.cov)
        return np.maximum(values, 0.0), vectors


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of two feature sets [n_a,d] and [n_b,d]; a float >= 0 up to rounding.

    With fewer samples than features the d x d route carries the noise of many zero eigenvalues
    (1e-4 relative at d = 2048) and is slow, so the nuclear norm of the samples is used instead.
    ValueError for NaN, for other shapes or widths that differ, and for n < 2.
    """
    a, b = _checked(a), _checked(b)
    _check_same_width(a[0], b[0])
    if min(len(a), len(b)) >= a.shape[1]:
        return frechet_from_moments(Moments.of(a), Moments.of(b))
    return _frechet_low_rank(a, b)


def frechet_from_moments(a: Moments, b: Moments) -> float:
    """Fréchet distance from moments alone; the square root of b, the reference, is kept in b.

    Tr (S_a S_b)^.5 is the sum of root eigenvalues of the symmetric S_b^.5 S_a S_b^.5.
    """
    _check_same_width(a.mean, b.mean)
    overlap = np.linalg.eigvalsh(b.root @ a.cov @ b.root)
    fidelity = np.sqrt(np.maximum(overlap, 0.0)).sum()
    shift = np.square(a.mean - b.mean).sum()
    return float(shift + np.trace(a.cov) + np.trace(b.cov) - 2 * fidelity)


def _frechet_low_rank(a: np.ndarray, b: np.ndarray) -> float:
    """With S = F^T F on both sides, Tr (S_a S_b)^.5 is the nuclear norm of F_a F_b^T."""
    factor_a, factor_b = _factor(a), _factor(b)
    fidelity = np.linalg.svd(factor_a @ factor_b.T, compute_uv=False).sum()
    shift = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    return float(shift + np.square(factor_a).sum() + np.square(factor_b).sum() - 2 * fidelity)


def _factor(features: np.ndarray) -> np.ndarray:
    """F [min(n,d),d] with F^T F the covariance; a tall set shrinks to the R of its QR."""
    factor = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    return np.linalg.qr(factor, mode="r") if len(factor) > factor.shape[1] else factor


def frechet_floor(eigenvalues: np.ndarray, n: float, m: float) -> float:
    """What a perfect generator scores: E[FD] of n against m samples of one Gaussian law.

    c (1/n + 1/m) with c = Tr S + [Tr S + sum_{i!=j} l_i l_j / (l_i + l_j)] / 2, second-order
    expansion at S_1 = S_2, l the eigenvalues [d] of the covariance.  Valid for n, m well above d;
    `math.inf` stands for a population.  ValueError for negative eigenvalues or n, m < 2.
    """
    values = np.asarray(eigenvalues, np.float64)
    if values.ndim != 1 or not np.isfinite(values).all() or (values < 0).any():
        raise ValueError("eigenvalues must be a vector of finite numbers, none below zero")
    if n < 2 or m < 2:
        raise ValueError(f"a floor needs at least 2 samples on each side, got {n} and {m}")
    sums = values[:, None] + values
    # Two dead features have no covariance to estimate: 0 * 0 / (0 + 0) counts as 0.
    pairs = np.outer(values, values) / np.where(sums > 0, sums, 1.0)
    np.fill_diagonal(pairs, 0.0)
    trace = values.sum()
    return float((trace + (trace + pairs.sum()) / 2) * (1 / n + 1 / m))


def frechet_se(gen: np.ndarray, real: np.ndarray) -> float:
    """Standard error of `frechet(gen, real)` by the delta method, both sides drawn at random.

    SE^2 = Var(IF_gen)/n + Var(IF_real)/m with the influence functions of `_influence`.  It covers
    sampling noise, not the bias, and is 1.3 to 1.6 times too wide where the laws are equal.
    Needs more samples than features on both sides, else NotEnoughSamples.
    """
    gen, real = _checked(gen), _checked(real)
    _check_same_width(gen[0], real[0])
    n, d = min(len(gen), len(real)), gen.shape[1]
    if n <= d:
        raise NotEnoughSamples(
            f"the delta standard error needs more samples than features on both sides, got {n} "
            f"samples of {d} features: use more images or report the spread over seeds"
        )
    a, b = Moments.of(gen), Moments.of(real)
    variances = (
        _influence(gen, a, b).var(ddof=1) / len(gen),
        _influence(real, b, a).var(ddof=1) / len(real),
    )
    return float(np.sqrt(sum(variances)))


def _influence(features: np.ndarray, own: Moments, other: Moments) -> np.ndarray:
    """Influence [n] of each sample on FD, up to a constant.

    IF(y) = 2 (mu - mu') . (y - mu) + (y - mu)^T (I - A) (y - mu) with the optimal transport map
    A = S'^.5 (S'^.5 S S'^.5)^-.5 S'^.5; directions without variance are left out of the inverse.
    """
    values, vectors = np.linalg.eigh(other.root @ own.cov @ other.root)
    alive = values > 0
    half = other.root @ (vectors[:, alive] * values[alive] ** -0.25)
    centred = features - own.mean
    moved = np.square(centred @ half).sum(axis=1)
    return 2 * centred @ (own.mean - other.mean) + np.square(centred).sum(axis=1) - moved


def frechet_corrected(gen: np.ndarray, real: np.ndarray, seed: int) -> float:
    """FD with its 1/n bias removed on both sides; may be slightly negative near zero.

    Two-sided Richardson extrapolation: 2 FD(n,m) - mean of FD over two disjoint pairs of halves,
    drawn by `seed`.  NotEnoughSamples where half a set holds fewer than 1.2 d samples.
    """
    gen, real = _checked(gen), _checked(real)
    _check_same_width(gen[0], real[0])
    n, d = min(len(gen), len(real)), gen.shape[1]
    if n / 2 < SAMPLES_PER_FEATURE * d:
        raise NotEnoughSamples(
            f"the bias correction halves {n} samples, but {d} features need at least "
            f"{SAMPLES_PER_FEATURE * d:.0f} in each half: report the raw value beside its floor"
        )
    gen_1, gen_2 = _halves(gen, numpy_rng("frechet halves", seed, 0))
    real_1, real_2 = _halves(real, numpy_rng("frechet halves", seed, 1))
    whole = frechet_from_moments(gen_1.merge(gen_2), real_1.merge(real_2))
    parts = frechet_from_moments(gen_1, real_1) + frechet_from_moments(gen_2, real_2)
    return 2 * whole - parts / 2


def _halves(features: np.ndarray, rng: np.random.Generator) -> tuple[Moments, Moments]:
    order = rng.permutation(len(features))
    middle = len(features) // 2
    return Moments.of(features[order[:middle]]), Moments.of(features[order[middle:]])


def _checked(features: np.ndarray, least: int = 2) -> np.ndarray:
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


def _check_same_width(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape:
        raise ValueError(f"feature widths differ: {a.shape[-1]} and {b.shape[-1]}")
