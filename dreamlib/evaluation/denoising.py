"""How well a model denoises images that it has not seen, by noise level: no sampler in between."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dreamlib.config.factory import make_denoiser, make_schedule
from dreamlib.diffusion.forward_process import q_sample
from dreamlib.diffusion.losses import mean_square
from dreamlib.metrics.estimate import one_mean
from dreamlib.runs.run import Run
from dreamlib.sampling.image_store import Shards
from dreamlib.utils.images import dequantise
from dreamlib.utils.rng import image_noise, numpy_rng

BATCH = 125
RANGES = 8  # of t, in which training and held-out images are told apart


def denoising_errors(run: Run, images: np.ndarray, parts: int = 4) -> list[float]:
    """Root mean square of D = eps - eps_hat over uint8 images [N,H,W,C], in `parts` equal ranges
    of t, the least noise first.

    Every image is noised once, by noise of its own number, at one of N evenly spread timesteps in
    random order: the same ones for every model, so that differences between models are paired.
    ValueError for fewer images than parts; RunError without weights.
    """
    if len(images) < parts:
        raise ValueError(f"{parts} ranges of t need as many images, got {len(images)}")
    shares = numpy_rng("denoising", 0).permutation(len(images)) / len(images)
    steps = run.config.diffusion.steps
    t = (shares * steps).astype(np.int64)
    each, part = _errors(run, images, t), t * parts // steps
    return [float(np.sqrt(each[part == k].mean())) for k in range(parts)]


def memorised_by_noise(run: Run, train: np.ndarray, held_out: np.ndarray) -> dict[str, Any]:
    """Whether training images are denoised better than held-out ones, in RANGES equal ranges of t.

    Overfitting shows at middle noise levels, where samples need not (arXiv 2603.13419).  Image i of
    either uint8 set [N,H,W,C] is noised by the same noise at the same timestep of each range.
    `p` is of the range that differs most, by Student's test of these pairs' errors (logarithms),
    times the number of ranges; it does not say that samples are copies.  ValueError for fewer than
    2 images.
    """
    n = min(len(train), len(held_out))
    if n < 2:
        raise ValueError(f"training and held-out images are compared from 2 of each on, got {n}")
    steps, tests = run.config.diffusion.steps, []
    for k in range(RANGES):
        low, high = (steps * edge // RANGES for edge in (k, k + 1))
        t = numpy_rng("memorised", k).integers(low, max(high, low + 1), n)
        seen, new = (np.log(_errors(run, images[:n], t)) for images in (train, held_out))
        tests.append(one_mean(seen - new))
    ratios = [float(np.exp(test.value / 2)) for test in tests]  # of root mean squares
    p = min(1.0, RANGES * min(test.p for test in tests))
    return {"ratios": ratios, "p": p, "n": n}


@torch.inference_mode()
def _errors(run: Run, images: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Mean square of D of uint8 images [N,H,W,C] at timesteps [N], float64 [N]."""
    sched, shards = make_schedule(run.config), Shards(run)
    net = make_denoiser(run.config, shards.net, sched, run.precision)
    errors = []
    for start in range(0, len(images), BATCH):
        x0 = dequantise(images[start : start + BATCH]).to(run.device)
        numbers = range(start, start + len(x0))
        eps = image_noise(0, numbers, x0.shape[1:], len(sched), run.device)
        now = torch.from_numpy(t[start : start + len(x0)]).to(run.device)
        errors.append(mean_square(net(q_sample(sched, x0, now, eps), now) - eps).cpu())
    return torch.cat(errors).double().numpy()
