"""Seeds to images: image i of seed s has the same bytes however the work is split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from dreamlib.diffusion.denoiser import NO_LABEL, Denoiser, Guided
from dreamlib.diffusion.losses import Net
from dreamlib.diffusion.samplers import Step
from dreamlib.diffusion.schedules import Schedule
from dreamlib.utils.batches import drawn_by
from dreamlib.utils.context import should_stop
from dreamlib.utils.errors import Interrupted
from dreamlib.utils.images import quantise
from dreamlib.utils.rng import image_noise

LabelsOf = Callable[[int], Sequence[int]]  # image number -> a label per attribute
# A sampler with its steps and options filled in: (net, sched, x, noise=) -> its steps
BoundSampler = Callable[..., Iterator[Step]]


def guide(
    net: Net | Denoiser,
    slots: Sequence[int | None],
    labels_of: LabelsOf | None,
    scale: float,
    device: torch.device,
) -> Net:
    """The network as a sampler calls it: told each row's labels, if there are any."""
    if labels_of is None:
        if scale != 1:
            raise ValueError(f"guidance {scale} needs a network that is told labels, and labels_of")
        return net
    told = [None if image is None else tuple(labels_of(image)) for image in slots]
    width = next(len(labels) for labels in told if labels is not None)
    rows = [(NO_LABEL,) * width if labels is None else labels for labels in told]
    return Guided(net, torch.tensor(rows, device=device), scale)


def draw_images(
    net: Net | Denoiser,
    sched: Schedule,
    sampler: BoundSampler,
    images: Sequence[int],
    *,
    seed: int,
    shape: Sequence[int],
    batch: int,
    device: torch.device,
    labels_of: LabelsOf | None = None,
    guidance: float = 1.0,
    on_step: Callable[[list[int | None], Step], None] | None = None,
) -> np.ndarray:
    """Generate images numbered `images` of `seed` -> uint8 [N,H,W,C], in the order asked.

    shape is (C, H, W).  `labels_of` tells a conditional network what to draw, `guidance` is the
    scale of classifier-free guidance, 1 for none.  `on_step` sees every step of every batch (for
    figures); `should_stop` is asked after every step, and ends the drawing by raising Interrupted.
    On a CPU several batches are drawn side by side, each by one thread.
    """

    @torch.inference_mode()
    def draw(slots: list[int | None]) -> np.ndarray:
        def noise(t: int) -> Tensor:
            return image_noise(seed, slots, shape, t, device)

        # The start is the noise of timestep T, one beyond the last that a sampler asks for.
        x = noise(len(sched))
        guided = guide(net, slots, labels_of, guidance, device)
        for step in sampler(guided, sched, x, noise=noise):
            x = step.x_t
            if on_step:
                on_step(slots, step)
            if should_stop():
                raise Interrupted("asked to stop while drawing images")
        return quantise(x)

    return drawn_by(draw, images, batch, device, ordered=on_step is not None)


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """From a to b [C,H,W] along the great circle, so that norms stay those of Gaussian noise."""
    angle = torch.arccos(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0).double())
    near, far = torch.sin((1 - share) * angle), torch.sin(share * angle)
    return ((near * a + far * b) / torch.sin(angle)).float()


@torch.inference_mode()
def interpolate(
    net: Net | Denoiser,
    sched: Schedule,
    sampler: BoundSampler,
    ends: tuple[int, int],
    count: int,
    *,
    seed: int,
    shape: Sequence[int],
    batch: int,
    device: torch.device,
    labels_of: LabelsOf | None = None,
    guidance: float = 1.0,
    on_step: Callable[[Step], None] = lambda step: None,
) -> np.ndarray:
    """`count` images between two of `seed`, ends included -> uint8 [count,H,W,C].

    Starts are interpolated spherically; all have the first end's labels.  `on_step` sees every step
    of every batch.  ValueError for an ancestral sampler, fewer than 2 images, or equal ends.
    """
    if count < 2 or ends[0] == ends[1]:
        raise ValueError(f"interpolation needs 2 images or more and two ends, got {count}, {ends}")
    cpu = torch.device("cpu")
    first, last = (image_noise(seed, [end], shape, len(sched), cpu)[0] for end in ends)
    starts = torch.stack([slerp(first, last, i / (count - 1)) for i in range(count)])
    guided = guide(net, [ends[0]] * batch, labels_of, guidance, device)
    frames = []
    for part in starts.split(batch):
        x = torch.zeros(batch, *shape, device=device)
        x[: len(part)] = part.to(device)
        for step in sampler(guided, sched, x, noise=_no_noise):
            x = step.x_t
            on_step(step)
        frames.append(quantise(x)[: len(part)])
    return np.concatenate(frames)


def _no_noise(t: int) -> Tensor:
    raise ValueError(
        "interpolation needs a deterministic sampler (dpmpp_2m, or ddim with eta 0): noise added "
        "on the way would leave neighbours nothing in common"
    )
