"""Images to rows of scores and to pictures: what features alone do not show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from dreamlib.evaluation.aggregate import Plan, cuts, row_of
from dreamlib.evaluation.results import Origin, Score
from dreamlib.metrics.estimate import Estimate
from dreamlib.metrics.lpips import Lpips, pair_diversity
from dreamlib.metrics.pixel_stats import FLOATS, memorisation, pixel_stats
from dreamlib.utils.errors import DataError
from dreamlib.utils.files import row_hashes
from dreamlib.utils.images import dequantise, quantise
from dreamlib.utils.rng import torch_rng

QUERIES = 1000  # images whose nearest training image is looked for
WORST, STRIP = 5, 10  # modes, and images of a mode, that are kept for figures

Images = Mapping[str, np.ndarray]  # name -> uint8 [N,H,W,C]


def check_apart(held_out: Sequence[np.ndarray], train: np.ndarray, share: float) -> int:
    """How many of the held-out uint8 images are training images too, pixel for pixel.

    DataError where it is more than `share` of them.
    """
    known = set(row_hashes(train))
    found = [each in known for images in held_out for each in row_hashes(images)]
    if sum(found) > share * len(found):
        raise DataError(
            f"{sum(found):,} of {len(found):,} images to compare with are training images: a model "
            "that learnt them by heart would look good; take images that it has not seen"
        )
    return sum(found)


def pixel_rows(plan: Plan, sets: Images, reference: np.ndarray) -> list[Score]:
    """Statistics of plain pixels, of whole sets; they catch what features are trained to ignore."""
    rows = []
    for images, pixels in sets.items():
        for metric, value in pixel_stats(pixels, reference).items():
            found = Estimate(value, None, "none: descriptive")
            row = row_of(f"pixels: {metric}", images, found, len(pixels), len(reference))
            rows.append(replace(row, origin=Origin("none: pixels")))
    return rows


def diversity_rows(plan: Plan, sets: Images, distance: Lpips) -> list[Score]:
    """LPIPS between disjoint pairs; higher than held-out real's is not better."""
    rows = []
    for size, images, (pixels, *_) in cuts(plan, sets):
        if size >= 4:
            found = pair_diversity(pixels, distance, plan.seed)
            row = row_of("LPIPS diversity", images, found, size, None, real="")
            rows.append(replace(row, origin=Origin(distance.identity)))
    return rows


def gaussian_images(train: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Images with the pixel mean and covariance of uint8 `train` [M,H,W,C] -> uint8 [n,H,W,C].

    mean + X' w / sqrt(M - 1), with w standard normal, has exactly the covariance of the centred
    rows X; the covariance itself, large for large images, is never formed.
    """
    rng, size = torch_rng("gaussian", seed), len(train)
    rows = max(1, min(4096, FLOATS // math.prod(train.shape[1:])))
    starts = range(0, size, rows)
    total = sum(train[start : start + rows].sum(axis=0, dtype=np.float64) for start in starts)
    mean = torch.from_numpy((total / size).astype(np.float32)) / 127.5 - 1
    drawn = torch.zeros(n, mean.numel())
    for start in starts:
        part = dequantise(train[start : start + rows]).permute(0, 2, 3, 1) - mean
        drawn += torch.randn(n, len(part), generator=rng) @ part.flatten(1)
    images = mean + drawn.view(n, *mean.shape) / (size - 1) ** 0.5
    return quantise(images.permute(0, 3, 1, 2))


def label_shares(
    attributes: Mapping[str, Sequence[str]], generated: np.ndarray, real: np.ndarray
) -> dict[str, dict[str, dict[str, float]]]:
    """Each attribute value's share among the answers for real and for generated images, [N,A]."""
    answers = {"real": real, "generated": generated}
    return {
        attribute: {
            value: {kind: float((of[:, column] == code).mean()) for kind, of in answers.items()}
            for code, value in enumerate(values)
        }
        for column, (attribute, values) in enumerate(attributes.items())
    }


def copies(
    generated: np.ndarray, held_out: np.ndarray, train: np.ndarray
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Are generated images nearer to training images than held-out ones are?  In pixels.

    uint8 [N,H,W,C] each; of the first two, QUERIES images.  The memorisation study, and pictures of
    the nearest pairs.
    """
    n = min(len(generated), len(held_out), QUERIES)
    study = memorisation(generated[:n], train, held_out[:n])
    record = asdict(study) | {"share": study.share.value, "share_se": study.share.se}
    record["closest"] = [list(pair) for pair in study.closest]
    queries = [query for query, _ in study.closest]
    found = [image for _, image in study.closest]
    return record, {"generated": generated[queries], "train": np.asarray(train[found])}


def strips(
    cells: np.ndarray, images: np.ndarray, wanted: Sequence[int], count: int = STRIP
) -> np.ndarray:
    """The first images of each wanted cell, black where they end: uint8 [K,count,H,W,C]."""
    found = np.zeros((len(wanted), count, *images.shape[1:]), np.uint8)
    for row, cell in enumerate(wanted):
        members = np.flatnonzero(cells == cell)[:count]
        found[row, : len(members)] = images[members]
    return found
