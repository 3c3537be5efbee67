"""Single images under the magnifier: their nearest neighbours, and what DREAM makes of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dreamlib.config.factory import make_denoiser, make_loss, make_schedule, total_steps
from dreamlib.data.dataset import Rows
from dreamlib.diffusion import losses
from dreamlib.diffusion.forward_process import q_sample, x0_from_eps
from dreamlib.metrics.pairwise import blocks
from dreamlib.metrics.pixel_stats import nearest
from dreamlib.notebook.playground.inference import Studio, check_seeds
from dreamlib.runs.run import Run
from dreamlib.utils.context import progress
from dreamlib.utils.errors import ConfigError
from dreamlib.utils.images import dequantise, quantise
from dreamlib.utils.rng import image_noise

GALLERY = 1000  # images that are compared at a time
SCALE = 64  # held-out images whose distances to the training set give the scale


@dataclass(frozen=True)
class Neighbours:
    """The nearest images of a split to one image, nearest first."""

    distances: np.ndarray  # float64 [k], Euclidean, in grey levels
    rows: np.ndarray  # int64 [k], positions in the split
    images: np.ndarray  # uint8 [k,H,W,C]
    among: int  # images in the split


def neighbours(studio: Studio, image: np.ndarray, k: int, split: str = "train") -> Neighbours:
    """The k images of a split that are nearest to one, uint8 [H,W,C], pixel by pixel.

    DataError when the split is empty.
    """
    gallery = studio.run.data.rows(split)
    distances = studio.once(f"near {split}", image.tobytes(), lambda: _distances(image, gallery))
    rows = np.argsort(distances, kind="stable")[:k]
    return Neighbours(distances[rows], rows, gallery[rows], len(distances))


def _distances(image: np.ndarray, gallery: Rows) -> np.ndarray:
    """Euclidean distances of an image [H,W,C] to a gallery [N,H,W,C]: float64 [N], exact."""
    ours, squared = image.astype(np.int32), np.empty(len(gallery))
    advance = progress("comparing", len(gallery))
    for part in blocks(len(gallery), GALLERY):
        apart = np.square(gallery[part] - ours)
        squared[part] = apart.sum(axis=(1, 2, 3), dtype=np.int64)
        advance(len(apart))
    return np.sqrt(squared)


def held_out_distance(studio: Studio) -> float:
    """How far new images are from their nearest training image: the median of the first held-out
    images, in grey levels."""
    data = studio.run.data
    held_out = data.rows("reference")[:SCALE]
    found = studio.once("scale", data.fingerprint, lambda: nearest(held_out, data.rows("train")))
    return float(np.median(found[0]))


def lambdas(run: Run, lam_max: float, p: float, done: float) -> dict[str, Tensor]:
    """lambda at every t, float64 [T], of each loss, when `done` of training (0 to 1) is over.

    `conservative` waits and grows as the run's settings say; `paper` is the same throughout.
    """
    changed = run.config.loss.model_copy(update={"name": "conservative", "lam_max": lam_max})
    config = run.config.model_copy(update={"loss": changed})
    epoch = len(run.data.indices("train")) / config.train.batch
    total, sched = total_steps(config, epoch), make_schedule(config)
    t = torch.arange(len(sched))
    return {
        "standard": torch.zeros(len(t), dtype=torch.float64),
        "conservative": make_loss(config, epoch, total).lam(sched, t, round(done * total)),
        "paper": losses.Paper(p).lam(sched, t, 0),
    }


@torch.inference_mode()
def rectified(
    studio: Studio, number: int, t: int, seed: int, lam: dict[str, Tensor]
) -> dict[str, np.ndarray]:
    """Training image `number`, noised to level t with the noise of `seed`: uint8 [H,W,C] under

    x0, x_t, x0_hat; conservative, paper: the network's input as that loss moves it by its lambda;
    conservative x0, paper x0: the clean image that such an input holds.  ConfigError for a
    training image, a t or a seed that does not exist.
    """
    count, sched = len(studio.run.data.indices("train")), studio.sched
    check_seeds(seed)
    if not (0 <= number < count and 0 <= t < len(sched)):
        raise ConfigError(
            f"there is no image {number} at t = {t}: training images are numbered 0 to "
            f"{count - 1}, and t goes from 0 to {len(sched) - 1}"
        )
    key = number, t, seed
    batch, x_t, eps_hat = studio.once("noised", key, lambda: _noised(studio, number, t, seed))
    amount = {name: values[t : t + 1] for name, values in lam.items()}
    pictures = {
        "x0": batch.x0,
        "x_t": x_t,
        "x0_hat": x0_from_eps(sched, x_t, batch.t, eps_hat),
        "conservative": losses.adapt(sched, batch, x_t, eps_hat, amount["conservative"]),
        "paper": losses.rectify(sched, batch, x_t, eps_hat, amount["paper"])[0],
    }
    for name in ("conservative", "paper"):
        pictures[f"{name} x0"] = x0_from_eps(sched, pictures[name], batch.t, batch.eps)
    return {name: quantise(x)[0] for name, x in pictures.items()}


def _noised(studio: Studio, number: int, t: int, seed: int) -> tuple[losses.Batch, Tensor, Tensor]:
    """A batch of one training image, its x_t, and the noise that the network sees in it."""
    run, device = studio.run, studio.run.device
    image, labels = run.data.take("train", 1, number)
    told = torch.from_numpy(labels.astype(np.int64)) if run.config.net.conditional else None
    noise = image_noise(studio.own.seed, [seed], studio.shape, len(studio.sched), device)
    x0, ts = dequantise(image).to(device), torch.tensor([t], device=device)
    batch = losses.Batch(x0, ts, noise, torch.zeros(1), y=told if told is None else told.to(device))
    x_t = q_sample(studio.sched, batch.x0, batch.t, batch.eps)
    denoiser = make_denoiser(run.config, studio.net, studio.sched, run.precision)
    return batch, x_t, losses.ask(denoiser, batch, x_t)
