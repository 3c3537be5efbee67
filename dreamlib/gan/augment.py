"""Adaptive discriminator augmentation: what the discriminator sees is moved and coloured at random.

Every transform is drawn per image with probability p, for real and generated images alike, and can
be differentiated.  p rises while the discriminator is too sure of the training images.
Karras 2020 (arXiv 2006.06676), Sec. 2 and 3, App. B for the transforms and their strengths.

Flips, quarter turns, shifts, scalings and turns of an image are one affine map, applied once by
bilinear interpolation with mirrored borders (the paper filters with wavelets); colours are one
matrix.  An image for which nothing is drawn passes unchanged, bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

LN2 = math.log(2)
SHIFT = 0.125  # of the image's side: whole pixels uniformly, fractions normally distributed
SCALE = 0.2 * LN2  # standard deviation of the logarithm
BRIGHTNESS, CONTRAST, SATURATION = 0.2, 0.5 * LN2, LN2


class Draw:
    """Random numbers of one batch: every transform is there with probability p, else neutral."""

    def __init__(self, images: int, p: float, rng: torch.Generator):
        self.images, self.p, self.rng = images, p, rng

    def uniform(self) -> Tensor:
        return torch.rand(self.images, generator=self.rng, dtype=torch.float64)

    def normal(self) -> Tensor:
        return torch.randn(self.images, generator=self.rng, dtype=torch.float64)

    def sometimes(self, value: Tensor, neutral: float, p: float | None = None) -> Tensor:
        """value [B] with probability p, else neutral."""
        chosen = self.uniform() < (self.p if p is None else p)
        return torch.where(chosen, value, torch.full_like(value, neutral))


def _matrices(rows: list[list[Tensor | float]], like: Tensor) -> Tensor:
    """[B,n,n] out of entries that are numbers or [B]."""
    entries = [[torch.as_tensor(e).to(like).expand_as(like) for e in row] for row in rows]
    return torch.stack([torch.stack(row, dim=-1) for row in entries], dim=-2)


def _scale(x: Tensor, y: Tensor) -> Tensor:
    return _matrices([[x, 0, 0], [0, y, 0], [0, 0, 1]], x)


def _turn(angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return _matrices([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], angle)


def _move(x: Tensor, y: Tensor) -> Tensor:
    return _matrices([[1, 0, x], [0, 1, y], [0, 0, 1]], x)


def geometry(draw: Draw, size: int) -> Tensor:
    """Affine maps of the plane, float64 [B,3,3]; the image is the square from -1 to 1."""
    flip = draw.sometimes((draw.uniform() * 2).floor(), 0)
    quarter = draw.sometimes((draw.uniform() * 4).floor(), 0)
    map_ = _turn(quarter * math.pi / 2) @ _scale(1 - 2 * flip, torch.ones_like(flip))
    # All draws below of one transform share a coin: x and y move together or not at all.
    coin = draw.sometimes(torch.ones_like(flip), 0)
    whole = [((2 * draw.uniform() - 1) * SHIFT * size).round() / size for _ in "xy"]
    map_ = _move(*(2 * coin * each for each in whole)) @ map_
    even = draw.sometimes((draw.normal() * SCALE).exp(), 1)
    map_ = _scale(even, even) @ map_
    # Turned before and after being stretched: each with a p that makes it p for either.
    rarer = 1 - math.sqrt(1 - draw.p)
    for stretch in (draw.sometimes((draw.normal() * SCALE).exp(), 1), None):
        map_ = _turn(draw.sometimes((2 * draw.uniform() - 1) * math.pi, 0, rarer)) @ map_
        if stretch is not None:
            map_ = _scale(stretch, 1 / stretch) @ map_
    coin = draw.sometimes(torch.ones_like(flip), 0)
    part = [draw.normal() * SHIFT for _ in "xy"]
    return _move(*(2 * coin * each for each in part)) @ map_


def colours(draw: Draw, channels: int) -> Tensor:
    """Affine maps of a pixel's colours, float64 [B,C,C+1]; images are in [-1, 1]."""
    identity = torch.eye(4, dtype=torch.float64)
    grey = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64) / math.sqrt(3)
    axis = torch.outer(grey, grey)  # projects onto grey
    across = torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)) - axis
    homogeneous = identity - axis - across
    cross = torch.zeros(4, 4, dtype=torch.float64)  # grey x colour, for turns of the hue
    a = 1 / math.sqrt(3)
    cross[:3, :3] = torch.tensor([[0, -a, a], [a, 0, -a], [-a, a, 0]], dtype=torch.float64)

    def factors(value: Tensor, neutral: float) -> Tensor:
        return draw.sometimes(value, neutral).view(-1, 1, 1)

    brightness = draw.sometimes(draw.normal() * BRIGHTNESS, 0)
    map_ = identity.repeat(draw.images, 1, 1)
    map_[:, :3, 3] = brightness[:, None]
    contrast = factors((draw.normal() * CONTRAST).exp(), 1)
    map_ = (contrast * (identity - homogeneous) + homogeneous) @ map_
    map_ = (identity - 2 * factors((draw.uniform() * 2).floor(), 0) * axis) @ map_
    if channels == 1:  # all three are equal: the middle of the first row's sum
        return torch.stack([map_[:, 0, :3].sum(1), map_[:, 0, 3]], dim=1)[:, None]
    angle = factors((2 * draw.uniform() - 1) * math.pi, 0)
    map_ = (axis + homogeneous + (angle.cos() * across + angle.sin() * cross)) @ map_
    saturation = factors((draw.normal() * SATURATION).exp(), 1)
    map_ = (axis + homogeneous + saturation * across) @ map_
    return map_[:, :3]


class Maps(NamedTuple):
    """What is done to every image of a batch."""

    moves: Tensor  # float64 [B,3,3], of the plane
    paints: Tensor  # float64 [B,C,C+1], of the colours

    def __call__(self, x: Tensor) -> Tensor:
        """Images [B,C,H,W] in [-1, 1] as the discriminator sees them."""
        return paint(move(x, self.moves), self.paints)


def draw_maps(images: int, channels: int, size: int, p: float, rng: torch.Generator) -> Maps:
    """Maps for a whole batch; `rng` is a CPU generator, so that every device gets the same."""
    draw = Draw(images, p, rng)
    return Maps(geometry(draw, size), colours(draw, channels))


def move(x: Tensor, maps: Tensor) -> Tensor:
    """x [B,C,H,W] moved by maps [B,3,3] of the plane: a pixel goes where the map takes it."""
    identity = torch.eye(3, dtype=maps.dtype)
    moved = (maps != identity).flatten(1).any(1).nonzero().squeeze(1)
    if not len(moved):
        return x
    # The sampler asks where a pixel comes from: the inverse.
    back = torch.linalg.inv(maps[moved])[:, :2].to(x.device, x.dtype)
    moved = moved.to(x.device)
    grid = F.affine_grid(back, [len(moved), *x.shape[1:]], align_corners=False)
    taken = F.grid_sample(x[moved], grid, padding_mode="reflection", align_corners=False)
    return x.index_copy(0, moved, taken)


def paint(x: Tensor, maps: Tensor) -> Tensor:
    """x [B,C,H,W] with every pixel's colours mapped by maps [B,C,C+1]."""
    identity = torch.eye(*maps.shape[1:], dtype=maps.dtype)
    painted = (maps != identity).flatten(1).any(1).nonzero().squeeze(1)
    if not len(painted):
        return x
    own = maps[painted].to(x.device, x.dtype)
    painted = painted.to(x.device)
    chosen = x[painted]
    mixed = torch.einsum("bij,bjhw->bihw", own[:, :, :-1], chosen) + own[:, :, -1, None, None]
    return x.index_copy(0, painted, mixed)


@dataclass
class Adaptive:
    """p, by the share of training images that the discriminator calls real.

    r = E[sign D(real)] is 0 for a discriminator that guesses and 1 for one that has learned the
    training images by heart.  p moves towards r = target at a pace that takes it from 0 to 1 in
    `images` images, once every EVERY batches.  Karras 2020 (arXiv 2006.06676), Sec. 3.1.
    """

    target: float = 0.6
    images: int = 500_000
    p: float = 0.0
    signs: float | Tensor = 0.0  # sum over the images since p last moved
    seen: int = 0
    batches: int = 0

    EVERY = 4

    def update(self, signs: float | Tensor, images: int) -> None:
        """One batch's sum of sign D(real), over so many images; a GPU is asked once in EVERY."""
        self.signs = self.signs + signs
        self.seen += images
        self.batches += 1
        if self.batches < self.EVERY:
            return
        r = float(self.signs) / self.seen
        step = math.copysign(self.seen / self.images, r - self.target) if r != self.target else 0.0
        self.p = min(1.0, max(0.0, self.p + step))
        self.signs, self.seen, self.batches = 0.0, 0, 0

    def state_dict(self) -> dict[str, float]:
        return {name: float(getattr(self, name)) for name in ("p", "signs", "seen", "batches")}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.p, self.signs = state["p"], state["signs"]
        self.seen, self.batches = int(state["seen"]), int(state["batches"])
