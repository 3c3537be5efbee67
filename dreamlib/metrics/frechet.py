"""Fréchet distance between feature sets, from samples or from stored moments.

FD = |mu_1 - mu_2|^2 + Tr(S_1 + S_2 - 2 (S_1^.5 S_2 S_1^.5)^.5), Dowson & Landau 1982, Eq. 4, used
for images by Heusel et al. 2017, Eq. 6.  With Inception features it is called FID; with others,
FD[name].  Everything is float64 (float32 is wrong by percents) and covariances divide by n - 1.

For any factors with F^T F = S the last trace is the nuclear norm of F_1 F_2^T, so each side brings
the factor that is cheapest for it: few samples their own centred rows, moments a Cholesky factor.

With n samples FD is biased upwards by about c (1/n_1 + 1/n_2), and c differs between generators.
So a value is read beside its floor (`frechet_stats`), and compared at equal n only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from dreamlib.metrics.pairwise import ROWS, blocks, check_same_width, checked, finite

# A covariance may have eigenvalues below zero by the rounding of whoever stored it, in float32 at
# worst; more than this share of the largest is no covariance.
ROUNDING = 1e-4


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and centred second moment of a feature set, in float64; shards merge exactly."""

    n: int | None  # None: stored without its count
    mean: np.ndarray  # [d]
    m2: np.ndarray  # [d,d], the sum of centred outer products; the covariance where n is None

    @classmethod
    def of(cls, features: np.ndarray) -> Moments:
        """features [n,d], any float type.  ValueError for other shapes and non-finite values."""
        features = finite(features, least=1)
        mean = features.mean(axis=0, dtype=np.float64)
        m2 = np.zeros((len(mean), len(mean)))
        centred, product = np.empty((min(len(features), ROWS), len(mean))), np.empty_like(m2)
        for part in blocks(len(features)):
            rows = np.subtract(features[part], mean, out=centred[: part.stop - part.start])
            m2 += np.matmul(rows.T, rows, out=product)
        return cls(len(features), mean, m2)

    @classmethod
    def from_stats(cls, mean: np.ndarray, cov: np.ndarray, n: int | None = None) -> Moments:
        """Stored statistics: mean [d], covariance [d,d] (divided by n - 1), count where known.

        Without its count a set has a distance, but it cannot be merged and its bias is unknown.
        ValueError for other shapes, non-finite values, an asymmetric covariance and n < 2.
        """
        if np.iscomplexobj(mean) or np.iscomplexobj(cov):
            raise ValueError("stored moments are real numbers, not complex ones")
        mean, cov = np.asarray(mean, np.float64), np.asarray(cov, np.float64)
        if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
            raise ValueError(f"stored moments are [d] and [d,d], got {mean.shape} and {cov.shape}")
        if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
            raise ValueError("stored moments hold NaN or infinite values")
        if not np.allclose(cov, cov.T, rtol=0, atol=1e-6 * np.abs(cov).max(initial=0)):
            raise ValueError("the stored covariance is not symmetric: is it a factor or a root?")
        kept = cls(n, mean, (cov + cov.T) / 2)
        return kept if n is None else cls(n, mean, kept.m2 * kept._divisor)

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets together.  Chan, Golub & LeVeque 1983, pairwise update."""
        n, m = self._counts(other)
        step = other.mean - self.mean
        m2 = self.m2 + other.m2 + np.outer(step, step) * (n * m / (n + m))
        return Moments(n + m, self.mean + step * (m / (n + m)), m2)

    def without(self, part: Moments) -> Moments:
        """The rest of this set: the inverse of `merge`; digits are lost where `part` is nearly all.
        ValueError where it is all."""
        n, m = self._counts(part)
        if m >= n:
            raise ValueError(f"{m} samples cannot be taken out of {n}: something must remain")
        step = part.mean - self.mean
        m2 = self.m2 - part.m2 - np.outer(step, step) * (n * m / (n - m))
        return Moments(n - m, self.mean - step * (m / (n - m)), m2)

    def _counts(self, other: Moments) -> tuple[int, int]:
        check_same_width(self.mean, other.mean)
        if self.n is None or other.n is None:
            raise ValueError("moments stored without their count cannot be merged or taken apart")
        return self.n, other.n

    @property
    def _divisor(self) -> int:
        if self.n is None:
            return 1
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {self.n}")
        return self.n - 1

    @property
    def cov(self) -> np.ndarray:
        """Unbiased covariance [d,d].  ValueError where n < 2."""
        return self.m2 / self._divisor

    @property
    def trace(self) -> float:
        """Trace of the covariance."""
        return float(np.trace(self.m2)) / self._divisor

    @cached_property
    def eigenvalues(self) -> np.ndarray:
        """Eigenvalues [d] of the covariance, ascending; rounding below zero is cut off."""
        return _without_rounding(np.linalg.eigvalsh(self.cov), self.mean)

    @cached_property
    def factor(self) -> np.ndarray:
        """F [k,d] with F^T F the covariance; kept, as a reference is used often.

        Cholesky where the covariance is positive definite, then k = d.  Otherwise eigenvectors,
        and k the rank, so that directions without variance add no noise.
        """
        if self.n is None or self.n > len(self.mean):
            # Dead, repeated or dependent features have no Cholesky factor, but the one below.
            # torch's takes one copy less than NumPy's: 129 MiB for a distance, not 150.
            upper, failed = torch.linalg.cholesky_ex(torch.from_numpy(self.m2), upper=True)
            if not failed:
                return upper.div_(self._divisor**0.5).numpy()
        cov = self.cov.T
        values, vectors = np.linalg.eigh(cov)
        values = _without_rounding(values, self.mean)
        alive = values > len(cov) * np.finfo(np.float64).eps * values.max(initial=0)
        return np.sqrt(values[alive])[:, None] * vectors[:, alive].T


@dataclass(frozen=True, eq=False)
class Few:
    """A set with fewer samples than features: its centred, scaled rows are the factor."""

    n: int
    mean: np.ndarray  # [d]
    factor: np.ndarray  # [n,d]

    @classmethod
    def of(cls, features: np.ndarray) -> Few:
        """features [n,d], n >= 2, any float type; ValueError as in `Moments.of`."""
        features = checked(features)
        mean = features.mean(axis=0)
        return cls(len(features), mean, (features - mean) / np.sqrt(len(features) - 1))

    @property
    def trace(self) -> float:
        """Trace of the covariance."""
        return float(np.square(self.factor).sum())


def summary(features: np.ndarray) -> Few | Moments:
    """What a distance needs of features [n,d], in its smallest form."""
    features = finite(features)
    return Few.of(features) if len(features) < features.shape[1] else Moments.of(features)


def frechet(a: np.ndarray | Few | Moments, b: np.ndarray | Few | Moments) -> float:
    """Fréchet distance of two sets, each as features [n,d] or as moments; >= 0 up to rounding.

    Moments keep what was computed for them, so a reference is best given as `Moments`.
    ValueError for NaN, for other shapes or widths that differ, and for n < 2.
    """
    rest, product, width = _meet(a, b)
    if min(product.shape) < width:
        # Zeros are likely here (centred rows are dependent), and an SVD gives them as 1e-16.
        return rest - 2 * float(np.linalg.svd(product, compute_uv=False).sum())
    # At full rank the roots of the Gram matrix are as good, and twice as fast.
    values = np.linalg.eigvalsh((product @ product.T).T)
    return rest - 2 * float(np.sqrt(np.maximum(values, 0.0)).sum())


def _meet(
    a: np.ndarray | Few | Moments, b: np.ndarray | Few | Moments
) -> tuple[float, np.ndarray, int]:
    """All of the distance but the nuclear norm; F_1 F_2^T, whose norm that is; the features' width.

    A function of its own, at whose end the factors are let go before the norm needs memory.
    """
    one, other = (x if isinstance(x, (Few, Moments)) else summary(x) for x in (a, b))
    check_same_width(one.mean, other.mean)
    shift = float(np.square(one.mean - other.mean).sum())
    return shift + one.trace + other.trace, one.factor @ other.factor.T, len(one.mean)


def _without_rounding(values: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Ascending eigenvalues, none below zero; ValueError where one is by more than rounding.

    Rounding is that of the largest, or, where all features are constant, that of centring them.
    """
    centring = len(mean) * (np.finfo(np.float64).eps * (1 + np.linalg.norm(mean))) ** 2
    if len(values) and values[0] < -max(ROUNDING * values[-1], 100 * centring):
        raise ValueError(
            f"not a covariance: its eigenvalues go from {values[0]:.3g} to {values[-1]:.3g}"
        )
    return np.maximum(values, 0.0)
