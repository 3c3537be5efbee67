"""Inception score: how sure and how varied a classifier finds the generated images.

IS = exp(mean over images of KL(p(class | image) || p(class))), Salimans et al. 2016, between 1 and
the number of classes, averaged over disjoint splits.  It never looks at real images.  With n
images in s splits it is biased downwards, the more the smaller n / s: compare it at equal n and
splits, beside the score of as many held-out real images.  Where the images are of none of
ImageNet's classes (faces), a lower value can be the better model.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from dreamlib.metrics.estimate import Estimate, mean_estimate
from dreamlib.metrics.pairwise import checked
from dreamlib.utils.errors import NotEnoughSamples
from dreamlib.utils.rng import numpy_rng


def inception_score(
    logits: np.ndarray, splits: int = 10, order: np.ndarray | None = None, seed: int = 0
) -> Estimate:
    """Mean score over `splits` disjoint parts of logits [n,classes], in [1, classes].

    Published values are of the 1008 logits of Inception-2015 without bias.  `order` is a
    permutation [n]; None draws one by `seed`, as neighbours may be alike.  The standard error is
    sd / sqrt(splits), as the splits share no image (other packages print the sd); one split has
    none.
    ValueError for NaN, other shapes, fewer than one split and an `order` that is no permutation;
    NotEnoughSamples for fewer than 2 images per split.
    """
    logits = checked(logits)
    n = len(logits)
    if splits < 1:
        raise ValueError(f"a score needs at least 1 split, got {splits}")
    if n < 2 * splits:
        raise NotEnoughSamples(
            f"{n} images in {splits} splits: take more images or at most {n // 2} splits"
        )
    if order is None:
        order = numpy_rng("inception score", seed).permutation(n)
    elif not np.array_equal(np.sort(order), np.arange(n)):
        raise ValueError(f"order must be a permutation of the {n} images")
    log_p = torch.from_numpy(logits[order]).log_softmax(dim=1)
    p = torch.from_numpy(logits[order]).softmax(dim=1)
    edges = [i * n // splits for i in range(splits + 1)]
    scores = []
    for i, j in pairwise(edges):
        terms = p[i:j] * (log_p[i:j] - p[i:j].mean(dim=0).log())
        # A class that no image of the split can be has log 0 in both; it adds nothing.
        scores.append(float(torch.where(p[i:j] > 0, terms, 0.0).sum(dim=1).mean().exp()))
    if splits == 1:
        return Estimate(scores[0], None, "one split has no spread")
    return mean_estimate(np.array(scores), "disjoint splits")
