"""Losses of the two players, and the regularisers that are computed every few steps only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

LN2 = math.log(2)
PATH_DECAY = 0.99  # of the running mean length: Karras 2020 (arXiv 1912.04958), App. B


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Logits [B] of real and generated images -> [B].  Goodfellow 2014, logistic."""
    return F.softplus(-real) + F.softplus(fake)


def generator_loss(fake: Tensor) -> Tensor:
    """Logits [B] -> [B]; non-saturating: where D is sure, it still has a gradient."""
    return F.softplus(-fake)


def r1(logits: Tensor, x: Tensor) -> Tensor:
    """Squared norm of the discriminator's gradient at the images it saw, [B].

    x [B,C,H,W] must require a gradient, and `logits` [B] come from it.  The penalty is gamma/2
    times this.  Mescheder 2018 (arXiv 1801.04406), Eq. 9.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return gradient.square().sum((1, 2, 3))


def r1_weight(size: int, batch: int) -> float:
    """A first guess of gamma: 0.0002 pixels / batch.  Karras 2020 (arXiv 2006.06676), App. C."""
    return 0.0002 * size**2 / batch


def path_length(images: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """|J^T y| per image, [B]: how far the image moves when w does, along y [B,C,H,W].

    w [B,W] must require a gradient, and `images` come from it.  Karras 2020, Eq. 4.
    """
    (gradient,) = torch.autograd.grad((images * y).sum(), w, create_graph=True)
    return gradient.norm(dim=1)


def path_weight(size: int) -> float:
    """Weight of (|J^T y| - mean)^2 for y of unit normals: the same for every size.  App. B."""
    return LN2 / (size**2 * (math.log(size) - LN2))


def lazy(every: int, lr: float, betas: Sequence[float]) -> tuple[float, tuple[float, ...]]:
    """Adam's settings for a player whose regulariser comes every so many steps as one step more.

    lr c and betas^c with c = k/(k+1).  Karras 2020 (arXiv 1912.04958), App. B.
    """
    if every < 1:
        return lr, tuple(betas)
    c = every / (every + 1)
    return lr * c, tuple(beta**c for beta in betas)


def mix(first: Tensor, second: Tensor, cut: Tensor) -> Tensor:
    """Styles of two images: `first` up to layer cut [B], `second` from there on.  [B,L,W] each.

    Style mixing, Karras 2019, Sec. 3.1.
    """
    layers = torch.arange(first.shape[1], device=first.device)
    return torch.where((layers < cut[:, None])[:, :, None], first, second)


def half_life(images_seen: int, images: float, ramp: float | None) -> float:
    """Half-life of the averaged weights, in images: shorter at first, in proportion to what was
    seen."""
    return images if ramp is None else min(images, ramp * images_seen)


def decay(batch: int, images: float) -> float:
    """The share of an average that stays after a batch, for a half-life in images."""
    return 0.5 ** (batch / images) if images > 0 else 0.0
