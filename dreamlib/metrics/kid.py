"""Kernel distance (KID): an unbiased distance between feature sets, with its standard error.

MMD^2 with the kernel k(x, y) = (x . y / d + 1)^3, Binkowski et al. 2018, as the U-statistic over
all pairs (Gretton et al. 2012): two samples of one law score 0 on average at any n, so a value
may be slightly negative and is never clipped.  With other features than Inception's it is
KD[name].  Everything is float64, in blocks of 500 by 500 images.

Other packages print the spread over random subsets, which belongs to the subsets' size: the whole
sets' error, which stands beside the value here, can be several times smaller.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dreamlib.metrics.estimate import Estimate, error_of_means
from dreamlib.metrics.pairwise import blocks, check_same_width, finite

ROWS = 500  # and columns of a block, 2 MB; larger blocks take more memory and no less time
METHOD = (
    "first-order projections of generated and real images; up to twice too wide where the laws "
    "are equal"
)


class KernelReference(NamedTuple):
    """Real features with what their own pairs come to: most of the work where m is much above n."""

    features: np.ndarray  # [m,d]
    rows: np.ndarray  # [m], sums of k(y_j, y_l) over all l != j


def kernel_reference(features: np.ndarray) -> KernelReference:
    """A reference [m,d] for many sets.  ValueError for NaN, other shapes and m < 2."""
    features = finite(features)
    return KernelReference(features, _own_sums(features))


def kid(gen: np.ndarray, real: np.ndarray | KernelReference) -> Estimate:
    """Unbiased squared MMD of two feature sets [n,d] and [m,d], and its standard error.

    SE^2 = 4 Var(a_i - c_i) / n + 4 Var(b_j - c_j) / m, where a, b are the mean kernels of a row
    with the others of its set and c those with the other set.  It covers sampling of both sides.
    ValueError for NaN, for other shapes or widths that differ, and for n or m < 2.
    """
    return kid_and_pulls(gen, real)[0]


def kid_and_pulls(
    gen: np.ndarray, real: np.ndarray | KernelReference
) -> tuple[Estimate, np.ndarray, np.ndarray]:
    """`kid`, and how each generated [n] and each real image [m] moves it, for the error of a mean
    over several sets: the reference's part is one for all of them."""
    gen = finite(gen)
    reference = real if isinstance(real, KernelReference) else kernel_reference(real)
    check_same_width(gen, reference.features)
    within_gen = _own_sums(gen) / (len(gen) - 1)
    within_real = reference.rows / (len(reference.rows) - 1)
    gen_to_real, real_to_gen = _cross_means(gen, reference.features)
    value = within_gen.mean() + within_real.mean() - 2 * gen_to_real.mean()
    pulls = 2 * (within_gen - gen_to_real), 2 * (within_real - real_to_gen)
    return Estimate(float(value), error_of_means(*pulls), METHOD), *pulls


def kid_difference(
    gen_a: np.ndarray, gen_b: np.ndarray, real: np.ndarray, paired: bool
) -> Estimate:
    """kid(gen_a, real) - kid(gen_b, real) and its standard error; below 0 where a is nearer.

    The reference's own pairs cancel and what is left of its sampling noise is shared, so this
    error is smaller than that of two separate values.  `paired`: image i of both sets was drawn
    from the same noise, and their projections are subtracted one by one.  Sets [n_a,d], [n_b,d]
    and [m,d]; ValueError as for `kid`, and for paired sets of different sizes.
    """
    gen_a, gen_b, real = finite(gen_a), finite(gen_b), finite(real)
    for gen in (gen_a, gen_b):
        check_same_width(gen, real)
    if paired and len(gen_a) != len(gen_b):
        raise ValueError(
            f"paired sets need equal sizes, got {len(gen_a)} and {len(gen_b)}: cut both to the "
            "same seeds or pass paired=False"
        )
    within_a, within_b = (_own_sums(gen) / (len(gen) - 1) for gen in (gen_a, gen_b))
    a_to_real, real_to_a = _cross_means(gen_a, real)
    b_to_real, real_to_b = _cross_means(gen_b, real)
    value = within_a.mean() - within_b.mean() - 2 * (a_to_real.mean() - b_to_real.mean())
    pull_a, pull_b = 2 * (within_a - a_to_real), 2 * (within_b - b_to_real)
    pull_real = 2 * (real_to_b - real_to_a)
    if paired:
        se, how = error_of_means(pull_a - pull_b, pull_real), "paired image by image"
    else:
        se, how = error_of_means(pull_a, pull_b, pull_real), "of independent generated sets"
    return Estimate(float(value), se, f"first-order projections {how}, one shared reference")


def _own_sums(features: np.ndarray) -> np.ndarray:
    """Row sums [n] of the kernel matrix without its diagonal; only its upper half is computed."""
    sums = np.zeros(len(features))
    for a in blocks(len(features), ROWS):
        rows = features[a].astype(np.float64, copy=False)
        for b in blocks(len(features), ROWS):
            if b.start < a.start:
                continue
            kernel = _kernel(rows, features[b])
            if a == b:
                np.fill_diagonal(kernel, 0.0)
            else:
                sums[b] += kernel.sum(axis=0)
            sums[a] += kernel.sum(axis=1)
    return sums


def _cross_means(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean kernels of each row of a [n,d] with b [m,d], and of each row of b with a: [n], [m]."""
    of_a, of_b = np.zeros(len(a)), np.zeros(len(b))
    for part in blocks(len(a), ROWS):
        rows = a[part].astype(np.float64, copy=False)
        for other in blocks(len(b), ROWS):
            kernel = _kernel(rows, b[other])
            of_a[part] += kernel.sum(axis=1)
            of_b[other] += kernel.sum(axis=0)
    return of_a / len(b), of_b / len(a)


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    kernel = a @ b.astype(np.float64, copy=False).T
    kernel /= a.shape[1]
    kernel += 1
    return np.multiply(np.square(kernel), kernel, out=kernel)
