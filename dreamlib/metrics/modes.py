"""Mode coverage: are the images spread over cells of the image space as real ones are?

Three disjoint sets of real images are needed.  The cells are fitted on the first; they follow its
chance, so that counts of that same set are no fair sample (as a rule too quiet).  The second is
counted beside the generated images, and the third (another call, as `gen`) shows what a perfect
generator scores.  NDB: Richardson & Weiss 2018, "On GANs and GMMs".  Every test here is of counts
alone, so known classes serve as cells as well as k-means does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from dreamlib.utils.rng import numpy_rng

LOST = 0.25  # a mode is lost where the whole interval of its ratio lies below this
BISECTIONS = 80  # of an interval of 1e24: down to the last bits of a float
RATIOS = (1e-12, 1e12)


@dataclass(frozen=True)
class Mode:
    """One cell: how many images fell into it, and gen share / real share with its interval.

    [low, high] is `ratio_interval`'s.  None stands for infinity in `high`, and in `ratio` for a
    cell without real images (x/0).
    """

    cell: int
    real: int
    gen: int
    real_share: float
    gen_share: float
    ratio: float | None
    low: float
    high: float | None
    z: float  # below 0: too few generated images


@dataclass(frozen=True)
class ModeStudy:
    """Counts of real and generated images in k cells, and what they say; JSON through `asdict`.

    Cells that neither set reached hold no evidence: they count in `k` and in `table`, but not in
    `reached`, the number that shares of cells, Bonferroni and `js_null` are taken of.
    p-values are the share of permutations of the pooled images between the two sets, the observed
    split among them, with a statistic at least as large: P(p <= x) <= x at any n, and the least
    possible is 1 / (permutations + 1).  Near 1 everywhere, `gen` is closer than chance allows.
    """

    k: int
    n: int  # generated images
    m: int  # real images, as many
    alpha: float
    permutations: int
    reached: int
    ndb: float  # share of cells whose |z| is beyond alpha, "NDB/K"; about alpha by chance
    ndb_null: float  # its mean over the permutations: not alpha where cells hold few images
    ndb_p: float
    ndb_bonferroni: float  # the share beyond alpha / reached
    js: float  # Jensen-Shannon divergence of the shares, nats, 0 to ln 2
    js_null: float  # (reached - 1) / 8 (1/n + 1/m), by chance; 7 to 12 % low at 5 images a cell
    js_above_null: float  # the difference; below zero about every other time for a perfect one
    js_band: list[float]  # 2.5 and 97.5 % of js over the permutations
    js_p: float
    effective_real: float  # exp(entropy of the shares): how many equal modes are as diverse
    effective_gen: float
    lost: int  # cells whose whole interval lies below 1/4
    hit: int  # cells with a generated image or more.  Naive: noise hits nearly all of them
    table: list[Mode]


def study_of_cells(
    real_cells: np.ndarray,
    gen_cells: np.ndarray,
    k: int,
    seed: int,
    *,
    alpha: float = 0.05,
    permutations: int = 999,
) -> ModeStudy:
    """The study of cell numbers, each an integer [n] in 0..k-1, such as `kmeans.assign`'s; `seed`
    is of the permutations.

    ValueError where the two sets differ in size, as the power of NDB grows with n, for numbers
    out of range, k < 2, alpha outside (0, 1) and permutations < 1.
    """
    real, gen = count(real_cells, k), count(gen_cells, k)
    if len(real_cells) != len(gen_cells):
        raise ValueError(
            f"{len(real_cells):,} real and {len(gen_cells):,} generated images: the power of NDB "
            "grows with their number, so take as many of each"
        )
    if not 0 < alpha < 1 or permutations < 1:
        raise ValueError(
            f"alpha lies between 0 and 1 and permutations are at least 1, got {alpha} and "
            f"{permutations}"
        )
    return _study(real, gen, len(gen_cells), seed, alpha, permutations)


def _study(
    real: np.ndarray, gen: np.ndarray, n: int, seed: int, alpha: float, permutations: int
) -> ModeStudy:
    """Of counts [k], both of n images."""
    pooled = real + gen
    reached = int((pooled > 0).sum())
    # The observed split is row 0, computed by the same code: ties with it are then exact.
    rng = numpy_rng("mode permutations", seed)
    drawn = rng.multivariate_hypergeometric(pooled, n, size=permutations, method="marginals")
    splits = np.vstack([gen, drawn])
    different = (np.abs(_score(splits, n, pooled - splits, n)) > _z(alpha)).sum(axis=1)
    js = _js(splits / n, (pooled - splits) / n)
    js_null = (reached - 1) / 8 * (1 / n + 1 / n)
    table = _table(real, gen, n, alpha)
    return ModeStudy(
        k=len(real),
        n=n,
        m=n,
        alpha=alpha,
        permutations=permutations,
        reached=reached,
        ndb=int(different[0]) / reached,
        ndb_null=float(different[1:].mean()) / reached,
        ndb_p=_p_value(different),
        ndb_bonferroni=sum(abs(mode.z) > _z(alpha / reached) for mode in table) / reached,
        js=float(js[0]),
        js_null=js_null,
        js_above_null=float(js[0]) - js_null,
        js_band=np.quantile(js[1:], [0.025, 0.975]).tolist(),
        js_p=_p_value(js),
        effective_real=float(np.exp(_entropy(real / n))),
        effective_gen=float(np.exp(_entropy(gen / n))),
        lost=sum(mode.high is not None and mode.high < LOST for mode in table),
        hit=int((gen > 0).sum()),
        table=table,
    )


def count(cells: np.ndarray, k: int) -> np.ndarray:
    """How many of the numbers [n] are 0, 1, .. k-1: int64 [k].  ValueError for others."""
    cells = np.asarray(cells)
    if k < 2:
        raise ValueError(f"counting needs at least 2 cells, got {k}")
    if cells.ndim != 1 or not np.issubdtype(cells.dtype, np.integer) or len(cells) == 0:
        raise ValueError(f"cells are integers [n], n > 0, got {cells.dtype} {cells.shape}")
    if cells.min() < 0 or cells.max() >= k:
        raise ValueError(f"cells are 0 to {k - 1}, got {cells.min()} to {cells.max()}")
    return np.bincount(cells, minlength=k)


def worst(study: ModeStudy, count: int = 5) -> list[int]:
    """The cells that deviate most significantly, by |z|; of equals, too few images come first."""
    reached = [mode for mode in study.table if mode.real + mode.gen > 0]
    order = sorted(reached, key=lambda mode: (-abs(mode.z), mode.z, mode.cell))
    return [mode.cell for mode in order[:count]]


def ratio_interval(
    gen: np.ndarray, n: int, real: np.ndarray, m: int, alpha: float = 0.05
) -> tuple[np.ndarray, np.ndarray]:
    """Interval (low [k], high [k]) at level 1 - alpha of P(gen in cell) / P(real in cell).

    It covers the sampling noise of both counts, gen of n and real of m, of one cell by itself
    (not of all at once), and not the choice of cells.  Koopman 1984's score interval: the ratios
    that a score test accepts, as Wilson's is of one share.  So it holds 1 just where NDB finds no
    difference, and zero counts need no rule: gen = 0 gives (0, finite), real = 0 gives
    (positive, inf), both 0 give (0, inf).
    """
    gen, real = np.asarray(gen, np.float64), np.asarray(real, np.float64)
    low = np.where(gen > 0, _crossing(gen, n, real, m, _z(alpha)), 0.0)
    high = np.where(real > 0, _crossing(gen, n, real, m, -_z(alpha)), np.inf)
    return low, high


def _crossing(gen: np.ndarray, n: int, real: np.ndarray, m: int, edge: float) -> np.ndarray:
    """The ratios [k] where the score, which falls as the ratio grows, crosses an edge."""
    left, right = (np.full(gen.shape, np.log(ratio)) for ratio in RATIOS)
    for _ in range(BISECTIONS):
        middle = (left + right) / 2
        above = _score(gen, n, real, m, np.exp(middle)) > edge
        left, right = np.where(above, middle, left), np.where(above, right, middle)
    return np.exp((left + right) / 2)


def _score(
    gen: np.ndarray, n: int, real: np.ndarray, m: int, ratio: float | np.ndarray = 1.0
) -> np.ndarray:
    """Normal score of counts, gen of n and real of m, were P(gen) = ratio P(real).

    At ratio 1 this is the pooled two-proportion z.  p below is the real share that is most likely
    under the ratio, the smaller root of a quadratic (Miettinen & Nurminen 1985).  A cell that
    holds all images or none is no evidence: 0.
    """
    both = gen + real
    linear = n * ratio + gen + m + real * ratio
    root = np.sqrt(np.maximum(linear**2 - 4 * (n + m) * ratio * both, 0))
    p = 2 * both / (linear + root)
    variance = ratio * p * (1 - ratio * p) / n + ratio**2 * p * (1 - p) / m
    certain = variance <= 0
    return np.where(certain, 0.0, gen / n - ratio * real / m) / np.sqrt(
        np.where(certain, 1.0, variance)
    )


def _z(alpha: float) -> float:
    """|z| beyond which lies alpha of a normal law, both tails together."""
    return -NormalDist().inv_cdf(alpha / 2)


def _table(real: np.ndarray, gen: np.ndarray, n: int, alpha: float) -> list[Mode]:
    columns = real, gen, *ratio_interval(gen, n, real, n, alpha), _score(gen, n, real, n)
    table = []
    for cell, (x, y, low, high, z) in enumerate(zip(*(column.tolist() for column in columns))):
        ratio, limit = y / x if x else None, high if math.isfinite(high) else None
        table.append(Mode(cell, x, y, x / n, y / n, ratio, low, limit, z))
    return table


def _p_value(statistics: np.ndarray) -> float:
    """Share of [1 + permutations] values as large as the first, itself counted: never 0."""
    return int((statistics >= statistics[0]).sum()) / len(statistics)


def _js(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence [...] of shares [...,k], in nats; 0 log 0 is 0."""
    middle = (p + q) / 2
    return _entropy(middle) - (_entropy(p) + _entropy(q)) / 2


def _entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=-1)
