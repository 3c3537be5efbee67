"""Seeds to images: image i of seed s has the same bytes however the work is split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dreamlib.gan.stylegan2 import Generator
from dreamlib.utils.batches import drawn_by
from dreamlib.utils.context import should_stop
from dreamlib.utils.errors import Interrupted
from dreamlib.utils.images import quantise
from dreamlib.utils.rng import image_noise


def draws(net: Generator, seed: int, slots: Sequence[int | None], device: torch.device):
    """z [B,Z] and every layer's noise, keyed by (seed, image, layer), where z is layer 0."""
    shapes = [(net.z_dim,), *((1, n, n) for n in net.synthesis.noise_sizes)]
    z, *own = (image_noise(seed, slots, shape, k, device) for k, shape in enumerate(shapes))
    return z, own


def draw_images(
    net: Generator,
    images: Sequence[int],
    *,
    seed: int,
    batch: int,
    device: torch.device,
    truncation: float = 1.0,
) -> np.ndarray:
    """Generate images numbered `images` of `seed` -> uint8 [N,H,W,C], in the order asked.

    `should_stop` is asked after every batch, and ends the drawing by raising Interrupted.
    """

    @torch.inference_mode()
    def draw(slots: list[int | None]) -> np.ndarray:
        z, own = draws(net, seed, slots, device)
        pixels = quantise(net(z, own, truncation))
        if should_stop():
            raise Interrupted("asked to stop while drawing images")
        return pixels

    return drawn_by(draw, images, batch, device)


@torch.inference_mode()
def interpolate(
    net: Generator,
    ends: tuple[int, int],
    count: int,
    *,
    seed: int,
    batch: int,
    device: torch.device,
    truncation: float = 1.0,
) -> np.ndarray:
    """`count` images between two of `seed`, ends included -> uint8 [count,H,W,C].

    In a straight line in w, where distances mean more than in z (Karras 2019, Sec. 4); with the
    first end's noise.  ValueError for fewer than 2 images, or equal ends.
    """
    if count < 2 or ends[0] == ends[1]:
        raise ValueError(f"interpolation needs 2 images or more and two ends, got {count}, {ends}")
    z, _ = draws(net, seed, [*ends, *[None] * max(0, batch - 2)], device)
    first, last = net.truncated(z, truncation)[:2]
    _, own = draws(net, seed, [ends[0]] * batch, device)
    share = torch.linspace(0, 1, count, device=device)[:, None]
    ws = first + share * (last - first)
    frames = []
    for part in ws.split(batch):
        full = torch.cat([part, part[-1:].expand(batch - len(part), -1)])
        frames.append(quantise(net.synthesis(net.spread(full), own))[: len(part)])
    return np.concatenate(frames)
