"""How well a model denoises images that it has not seen, by noise level: no sampler in between."""

from __future__ import annotations

import numpy as np
import torch

from dreamlib.config.factory import make_denoiser, make_schedule
from dreamlib.diffusion.forward_process import q_sample
from dreamlib.diffusion.losses import mean_square
from dreamlib.runs.run import Run
from dreamlib.sampling.image_store import Shards
from dreamlib.utils.images import dequantise
from dreamlib.utils.rng import image_noise, numpy_rng

BATCH = 125


@torch.inference_mode()
def denoising_errors(run: Run, images: np.ndarray, parts: int = 4) -> list[float]:
    """Root mean square of D = eps - eps_hat over uint8 images [N,H,W,C], in `parts` equal ranges
    of t, the least noise first.

    Every image is noised once, by noise of its own number, at one of N evenly spread timesteps in
    random order: the same ones for every model, so that differences between models are paired.
    ValueError for fewer images than parts; RunError without weights.
    """
    if len(images) < parts:
        raise ValueError(f"{parts} ranges of t need as many images, got {len(images)}")
    sched, shards = make_schedule(run.config), Shards(run)
    net = make_denoiser(run.config, shards.net, sched, run.precision)
    shares = numpy_rng("denoising", 0).permutation(len(images)) / len(images)
    t = torch.from_numpy((shares * len(sched)).astype(np.int64))
    errors = []
    for start in range(0, len(images), BATCH):
        x0 = dequantise(images[start : start + BATCH]).to(run.device)
        numbers = range(start, start + len(x0))
        eps = image_noise(0, numbers, x0.shape[1:], len(sched), run.device)
        now = t[start : start + len(x0)].to(run.device)
        errors.append(mean_square(net(q_sample(sched, x0, now, eps), now) - eps).cpu())
    each, part = torch.cat(errors).double(), t * parts // len(sched)
    return [float(each[part == k].mean().sqrt()) for k in range(parts)]
