"""What plain pixels say: statistics of whole sets, and nearest neighbours.

Features are trained to overlook brightness, contrast and grain; these numbers are not.  They are
descriptions, each read beside that of held-out real images at the same n, and never a score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from dreamlib.metrics.estimate import Estimate
from dreamlib.metrics.pairwise import blocks
from dreamlib.utils.context import progress, should_stop
from dreamlib.utils.errors import Interrupted
from dreamlib.utils.files import ArrayRows

PIXELS = 1 << 20  # of a block of images: 8 MB in float64
ROWS = 1000  # of a block of a gallery or of queries, fewer of large images
FLOATS = 1 << 26  # of a block, at most: 256 MB
ROUNDING = 1 / 12  # variance that rounding to grey levels adds; spectra below it are not seen
CANDIDATES = 4  # nearest neighbours by float32, among which float64 decides
SHARE = 0.01  # of held-out images that count as near to a training image
CLOSEST = 8  # pairs that `memorisation` names


class _Sums(NamedTuple):  # what one pass over a set leaves of it
    counts: np.ndarray  # [C,256], of each grey level
    mean: np.ndarray  # [H,W,C]
    variance: np.ndarray  # [H,W,C], unbiased
    spectrum: np.ndarray  # [R], power at 1..R cycles per shorter side


def pixel_stats(gen: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Differences between two sets of uint8 images [N,H,W,C] and [M,H,W,C], N, M >= 2.

    For each channel c (r, g, b, or grey): `mean_c` and `sd_c`, generated minus real, and `w1_c`,
    the Wasserstein-1 distance of the histograms, all in grey levels.  Over pixels and channels:
    `mean_image_mse` in squared grey levels and `variance_image_mse` in their fourth power.
    `log_spectrum`: mean over rings of |ln P_gen - ln P_real|, where P is the power |F|^2 / (HW)
    of a channel, averaged over images, channels and a ring of round(frequency) 1, 2, ... up to
    half the shorter side, plus 1/12 for the rounding to grey levels: halved contrast scores ln 4.
    A memmap is read in blocks.  TypeError for other images, ValueError for sizes that differ.
    """
    for images in (gen, real):
        if images.dtype != np.uint8 or images.ndim != 4:
            raise TypeError(f"images are uint8 [N,H,W,C], got {images.dtype} {images.shape}")
    if gen.shape[1:] != real.shape[1:]:
        raise ValueError(f"image sizes differ: {gen.shape[1:]} and {real.shape[1:]}")
    if min(len(gen), len(real), *gen.shape[1:3]) < 2:
        raise ValueError(f"sets of 2 images of 2 x 2 are needed, got {gen.shape}, {real.shape}")
    a, b, stats = _sums(gen), _sums(real), {}
    names = {1: ["grey"], 3: ["r", "g", "b"]}.get(len(a.counts), range(len(a.counts)))
    for name, p, q in zip(names, a.counts, b.counts):
        (mean_p, sd_p), (mean_q, sd_q) = _mean_sd(p), _mean_sd(q)
        stats[f"mean_{name}"], stats[f"sd_{name}"] = mean_p - mean_q, sd_p - sd_q
        stats[f"w1_{name}"] = np.abs(np.cumsum(p) / p.sum() - np.cumsum(q) / q.sum()).sum()
    stats["mean_image_mse"] = np.square(a.mean - b.mean).mean()
    stats["variance_image_mse"] = np.square(a.variance - b.variance).mean()
    ratios = (a.spectrum + ROUNDING) / (b.spectrum + ROUNDING)
    stats["log_spectrum"] = np.abs(np.log(ratios)).mean()
    return {name: float(value) for name, value in stats.items()}


def _sums(images: np.ndarray) -> _Sums:
    n, height, width, channels = images.shape
    counts = np.zeros((channels, 256), np.int64)
    total = np.zeros((height, width, channels), np.int64)
    squares, power = np.zeros_like(total), np.zeros((height, width))
    for part in blocks(n, max(1, PIXELS // max(1, math.prod(images.shape[1:])))):
        pixels = np.asarray(images[part])
        for channel in range(channels):
            counts[channel] += np.bincount(pixels[..., channel].ravel(), minlength=256)
        total += pixels.sum(axis=0, dtype=np.int64)
        squares += np.square(pixels, dtype=np.int64).sum(axis=0)
        waves = np.fft.fft2(pixels.astype(np.float64), axes=(1, 2))
        power += (np.square(waves.real) + np.square(waves.imag)).sum(axis=(0, 3))
    variance = (n * squares - total**2) / (n * (n - 1))  # exact: integers up to the division
    return _Sums(counts, total / n, variance, _rings(power / (n * channels * height * width)))


def _rings(power: np.ndarray) -> np.ndarray:
    """Azimuthal mean of a spectrum [H,W]: [R], R = half the shorter side.  The mean brightness and
    the corners beyond the last whole ring are left out."""
    short = min(power.shape)
    down, across = map(np.fft.fftfreq, power.shape)
    ring = np.rint(np.hypot(down[:, None], across) * short).astype(int).ravel()
    inside = slice(1, short // 2 + 1)
    return np.bincount(ring, power.ravel())[inside] / np.bincount(ring)[inside]


def _mean_sd(counts: np.ndarray) -> tuple[float, float]:
    levels = np.arange(256)
    mean = (counts * levels).sum() / counts.sum()
    return mean, math.sqrt((counts * np.square(levels - mean)).sum() / counts.sum())


def nearest(
    queries: np.ndarray, gallery: ArrayRows, *, of: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """Each query's nearest row of the gallery: (distance float64 [n], index int64 [n]).

    Features, floats [n,d] and [m,d], or images, uint8 [n,H,W,C] and [m,H,W,C], in grey levels;
    the gallery may be a memmap larger than memory.  Euclidean, in float32 by blocks; the best 4 of
    each query are measured again in float64, so that equal rows are at 0 exactly.  `of` tells
    `progress` whose they are.  TypeError for other arrays, ValueError for widths that differ, NaN
    and empty sets, Interrupted when `should_stop` asks for it between two blocks.
    """
    if queries.ndim != gallery.ndim:
        raise TypeError(f"features or images, not both: {queries.shape} and {gallery.shape}")
    _check_kind(gallery)  # it is read by blocks, and may be no array
    queries, width = _flat(queries), math.prod(gallery.shape[1:])
    if queries.shape[1] != width:
        raise ValueError(f"feature widths differ: {queries.shape[1]} and {width}")
    if min(len(queries), len(gallery)) == 0:
        raise ValueError(f"nothing to compare: {len(queries)} queries, {len(gallery)} in gallery")
    # |x|^2 + |y|^2 - 2 xy loses digits far from the origin.
    middle = queries.mean(axis=0, dtype=np.float64).astype(np.result_type(queries, np.float32))
    advance = progress(f"nearest neighbours{of}", len(gallery))
    scores = np.full((len(queries), CANDIDATES), np.inf, np.float32)
    best = np.zeros((len(queries), CANDIDATES), np.int64)
    rows = max(1, min(ROWS, FLOATS // width))
    for part in blocks(len(gallery), rows):
        if should_stop():
            raise Interrupted(f"stopped after {part.start} of {len(gallery)} possible neighbours")
        y = _centred(_flat(gallery[part]), middle)
        half = np.square(y).sum(axis=1) / 2
        for these in blocks(len(queries), rows):
            block = half - _centred(queries[these], middle) @ y.T  # the query's norm cannot decide
            index = np.broadcast_to(np.arange(part.start, part.stop), block.shape)
            both, names = np.hstack([scores[these], block]), np.hstack([best[these], index])
            lowest = np.argpartition(both, CANDIDATES - 1, axis=1)[:, :CANDIDATES]
            scores[these] = np.take_along_axis(both, lowest, axis=1)
            best[these] = np.take_along_axis(names, lowest, axis=1)
        advance(len(y))
    return _exact(queries, gallery, np.sort(best, axis=1))


def _exact(
    queries: np.ndarray, gallery: ArrayRows, best: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(distance [n], index [n]) of the nearest candidate in float64; of equal ones the first."""
    squared = np.empty(best.shape)
    for row, query in enumerate(queries):
        near = _flat(gallery[best[row]]).astype(np.float64)
        squared[row] = np.square(near - query).sum(axis=1)
    least = squared.argmin(axis=1)[:, None]
    distances = np.sqrt(np.take_along_axis(squared, least, axis=1))
    return distances[:, 0], np.take_along_axis(best, least, axis=1)[:, 0]


def _check_kind(array: ArrayRows) -> None:
    images = array.ndim == 4 and array.dtype == np.uint8
    if not images and not (array.ndim == 2 and np.issubdtype(array.dtype, np.floating)):
        raise TypeError(
            f"give floats [n,d] or uint8 images [n,H,W,C], not {array.dtype} {array.shape}"
        )


def _flat(array: np.ndarray) -> np.ndarray:
    _check_kind(array)
    return array.reshape(len(array), math.prod(array.shape[1:]))


def _centred(rows: np.ndarray, middle: np.ndarray) -> np.ndarray:
    centred = (rows - middle).astype(np.float32, copy=False)
    if not np.isfinite(centred).all():
        raise ValueError("features hold NaN or infinite values: no row is nearest to them")
    return centred


@dataclass(frozen=True)
class Memorisation:
    """How near generated images come to training images, beside held-out images."""

    n: int  # generated, and as many held-out images
    n_train: int
    generated: float  # median distance to the nearest training image
    held_out: float  # the same of held-out images
    ratio: float  # generated / held_out; below 1: nearer to the training set than new images are
    share: Estimate  # of generated images that are nearer than the nearest 1 % of held-out ones
    null: float  # share of a generator that draws new images, exactly: k / (n + 1)
    p_value: float  # one-sided Mann-Whitney: that new images are as near as the generated ones
    closest: tuple[tuple[int, int], ...]  # (generated, training) indices, nearest first


def memorisation(gen: np.ndarray, train: ArrayRows, held_out: np.ndarray) -> Memorisation:
    """Are generated images nearer to the training set than other real images are?

    Features [n,d], [m,d], [n,d], or uint8 images; none of the held-out ones is in the training
    set.  Near is what lies below the k-th smallest held-out distance, k = 1 % of n + 1 but at
    least 1: new images do so with probability k / (n + 1).  The share's error counts that of this
    threshold too.  ValueError for unequal n.
    """
    n = len(gen)
    if n != len(held_out):
        raise ValueError(f"{n} generated, {len(held_out)} held-out images: give as many of each")
    search = partial(nearest, gallery=train)
    ours, partner = search(gen, of=" of generated images")
    others, _ = search(held_out, of=" of held-out images")
    generated, real = float(np.median(ours)), float(np.median(others))
    if real == 0:
        raise ValueError("most held-out images are training images: take others")
    rank = max(1, int(SHARE * (n + 1)))
    share, null = float((ours < np.sort(others)[rank - 1]).mean()), rank / (n + 1)
    error = math.sqrt((share * (1 - share) + null * (1 - null)) / n)
    method = "binomial, of the share and of the held-out share that sets its threshold"
    nearest_ones = np.argsort(ours, kind="stable")[:CLOSEST]
    return Memorisation(
        *(n, len(train), generated, real, generated / real),
        share=Estimate(share, error, method),
        null=null,
        p_value=_smaller(ours, others),
        closest=tuple(zip(nearest_ones.tolist(), partner[nearest_ones].tolist())),
    )


def _smaller(a: np.ndarray, b: np.ndarray) -> float:
    """One-sided p-value that values a are not smaller than b.  Mann & Whitney 1947, in the normal
    approximation; left uncorrected for ties, which makes it cautious."""
    order = np.sort(b)
    u = sum(float(np.searchsorted(order, a, side).sum()) for side in ("left", "right")) / 2
    n, m = len(a), len(b)  # u: pairs in which a is the larger, a tie being half of one
    z = (u + 0.5 - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)
    return 0.5 * math.erfc(-z / math.sqrt(2))
