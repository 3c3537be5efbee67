"""One training step of a GAN: what is drawn for it, and the losses of both players.

Everything random is drawn for the whole batch first, so that its rows can be computed apart.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dreamlib.gan.augment import Maps
from dreamlib.gan.stylegan2 import Discriminator, Generator
from dreamlib.utils.nest import each_tensor

LN2 = math.log(2)
PATH_DECAY = 0.99  # of the running mean length: Karras 2020 (arXiv 1912.04958), App. B
Stats = dict[str, Tensor]  # what the log should know, a value per image


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


def lazy(every: int, lr: float, betas: tuple[float, float]) -> tuple[float, tuple[float, float]]:
    """Adam's settings for a player whose regulariser is a step of its own, once in `every` steps.

    lr c and betas^c with c = k/(k+1).  Karras 2020 (arXiv 1912.04958), App. B.
    """
    if every < 1:
        return lr, betas
    c = every / (every + 1)
    return lr * c, (betas[0] ** c, betas[1] ** c)


def half_life(images_seen: int, images: float, ramp: float | None) -> float:
    """Half-life of the averaged weights, in images: at first in proportion to those seen."""
    return images if ramp is None else min(images, ramp * images_seen)


def decay(batch: int, images: float) -> float:
    """The share of an average that stays after a batch, for a half-life in images."""
    return 0.5 ** (batch / images) if images > 0 else 0.0


class Draws(NamedTuple):
    """All that is random in a batch of generated images."""

    z: Tensor  # [B,Z]
    other: Tensor  # [B,Z], of the style from layer `cut` on
    cut: Tensor  # int64 [B]
    noise: list[Tensor]  # of every layer, [B,1,H,W]

    def rows(self, which: slice) -> Draws:
        return each_tensor(self, lambda drawn: drawn[which])

    def to(self, device: torch.device) -> Draws:
        return each_tensor(self, lambda drawn: drawn.to(device))


def draw(net: Generator, images: int, mixing: float, rng: torch.Generator) -> Draws:
    """Draws for a whole batch, on the CPU.  `mixing` is the share of images with two styles."""
    layers = net.synthesis.count
    z, other = (torch.randn(images, net.z_dim, generator=rng) for _ in range(2))
    cut = torch.randint(1, layers, (images,), generator=rng)
    cut[torch.rand(images, generator=rng) >= mixing] = layers
    sizes = net.synthesis.noise_sizes
    return Draws(z, other, cut, [torch.randn(images, 1, n, n, generator=rng) for n in sizes])


def mix(first: Tensor, second: Tensor, cut: Tensor) -> Tensor:
    """`first` up to layer cut [B], then `second`; styles [B,L,W].  Karras 2019, Sec. 3.1."""
    layers = torch.arange(first.shape[1], device=first.device)
    return torch.where((layers < cut[:, None])[:, :, None], first, second)


def make(net: Generator, draws: Draws) -> tuple[Tensor, Tensor]:
    """Images [B,C,H,W] and the first style w [B,W] of each."""
    w = net.mapping(draws.z)
    ws = mix(net.spread(w), net.spread(net.mapping(draws.other)), draws.cut)
    return net.synthesis(ws, draws.noise), w


def augmented(x: Tensor, maps: Maps | None) -> Tensor:
    """Images by their maps."""
    return x if maps is None else maps(x)


def discriminator_losses(
    net: Generator,
    discriminator: Discriminator,
    real: Tensor,
    draws: Draws,
    real_maps: Maps | None = None,
    fake_maps: Maps | None = None,
) -> tuple[Tensor, Stats]:
    """The discriminator's loss [B], and what was seen."""
    with torch.no_grad():
        fake, _ = make(net, draws)
    logits = discriminator(augmented(real, real_maps))
    false = discriminator(augmented(fake, fake_maps))
    loss = discriminator_loss(logits, false)
    signs = {"sign_real": logits.sign(), "sign_fake": false.sign()}
    return loss, {"loss": loss, "logit_real": logits, "logit_fake": false, **signs}


def r1_losses(
    discriminator: Discriminator, real: Tensor, maps: Maps | None, weight: float
) -> tuple[Tensor, Stats]:
    """weight/2 times R1 [B], at the images as the discriminator sees them."""
    x = augmented(real, maps).detach().requires_grad_()
    penalty = r1(discriminator(x), x)
    return weight / 2 * penalty, {"r1": penalty}


def generator_losses(
    net: Generator, discriminator: Discriminator, draws: Draws, maps: Maps | None = None
) -> tuple[Tensor, Stats]:
    """The generator's loss [B]; "style" is every image's, [B,W].

    "spread" is the standard deviation of a pixel among these images, "contrast" that of an image
    among its pixels: 0 where all images, or all pixels, are the same.
    """
    fake, w = make(net, draws)
    pixels = fake.detach()
    loss = generator_loss(discriminator(augmented(fake, maps)))
    spread = pixels.std(0).mean().expand(len(pixels))
    contrast = pixels.flatten(1).std(1)
    return loss, {"generator_loss": loss, "spread": spread, "contrast": contrast, "style": w}


def path_losses(
    net: Generator, draws: Draws, y: Tensor, mean: float | Tensor, weight: float
) -> tuple[Tensor, Stats]:
    """weight times (path length - mean)^2 [B], for directions y [B,C,H,W]."""
    w = net.mapping(draws.z)
    images = net.synthesis(net.spread(w), draws.noise)
    length = path_length(images, w, y)
    return weight * (length - mean).square(), {"path": length}
