"""What the playground draws of a trained run: images, how they come about, and what is near them.

A Studio reads a run's averaged weights once, and keeps what it has drawn: asking again costs
nothing, so that a slider can move over it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dreamlib.config.factory import (
    make_denoiser,
    make_drawing,
    make_loss,
    make_schedule,
    total_steps,
)
from dreamlib.config.load import make_config
from dreamlib.config.schema import Sample
from dreamlib.data.dataset import Rows
from dreamlib.diffusion import losses
from dreamlib.diffusion.forward_process import q_sample, x0_from_eps
from dreamlib.metrics.pairwise import blocks
from dreamlib.metrics.pixel_stats import nearest
from dreamlib.runs.run import Run
from dreamlib.sampling.generate import Shards, trace
from dreamlib.utils.context import progress
from dreamlib.utils.errors import ConfigError
from dreamlib.utils.images import dequantise, quantise
from dreamlib.utils.rng import image_noise

QUICK = 8  # images per batch under changed settings, where nobody waits for a whole shard
KEPT = 8  # results of each kind that are kept
TRACE_BYTES = 1 << 25  # of kept trajectories of a batch; above, only one image's is kept
GALLERY = 1000  # images that are compared at a time
SCALE = 64  # held-out images whose distances to the training set give the scale


@dataclass(frozen=True)
class Trajectory:
    """How one image came about: S steps have S + 1 states, from pure noise to the image."""

    t: tuple[int, ...]  # the timestep of each state; -1 stands for the finished image
    signal: tuple[float, ...]  # a, the share of the image in each state
    noise: tuple[float, ...]  # s, the share of noise
    x_t: np.ndarray  # uint8 [S+1,H,W,C]
    x0_hat: np.ndarray  # uint8 [S+1,H,W,C], the clean image that the network saw in x_t


@dataclass(frozen=True)
class Neighbours:
    """The nearest images of a split to one image, nearest first."""

    distances: np.ndarray  # float64 [k], Euclidean, in grey levels
    indices: np.ndarray  # int64 [k], positions in the split
    images: np.ndarray  # uint8 [k,H,W,C]
    among: int  # images in the split


class Studio:
    """Everything the playground shows of one trained run.  RunError when it has no weights."""

    def __init__(self, run: Run):
        if run.config.model != "diffusion":
            raise ConfigError(
                "the playground shows denoising: name a run of a diffusion model (a GAN is shown "
                "by 08_gan_baseline)"
            )
        store = Shards(run, untrained=False)
        self.key = run.folder.absolute(), run.config, store.weights[1]
        self.run, self.net = run, store.net
        self.sched = make_schedule(run.config)
        self.own = run.config.sample
        self.shape = run.data.channels, run.data.size, run.data.size  # of an image in the network
        self._kept: dict[str, dict[Any, Any]] = defaultdict(dict)

    def once(self, kind: str, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` returned for this key: kept, or made now; a few of each kind are kept."""
        kept = self._kept[kind]
        kept[key] = kept.pop(key) if key in kept else make()  # the last one asked for stands last
        if len(kept) > KEPT:
            del kept[next(iter(kept))]
        return kept[key]

    # ------------------------------------------------------------------ sampling

    def settings(self, **changes: Any) -> Sample:
        """The run's sample settings with some changed; the run keeps its own.

        Unchanged they are the run's own, batch included, and images are those of `generate`, bit
        for bit.  Changed ones are drawn in small batches.  ConfigError names a wrong setting.
        """
        if all(getattr(self.own, name) == value for name, value in changes.items()):
            return self.own
        values = self.run.config.model_dump(mode="json")
        values["sample"] |= {"batch": min(QUICK, self.own.batch)} | changes
        return make_config(values, "these settings").sample

    @cached_property
    def deterministic(self) -> Sample:
        """The run's own settings if they add no noise on the way, else DDIM in at most 50 steps."""
        if self.own.sampler in ("dpmpp_2m", "ddim"):
            return self.own if self.own.eta == 0 else self.settings(eta=0.0)
        return self.settings(sampler="ddim", eta=0.0, steps=min(50, self.own.steps))

    def images(self, seeds: Sequence[int], sample: Sample | None = None) -> np.ndarray:
        """Images numbered `seeds` -> uint8 [N,H,W,C].  ConfigError for a negative seed."""
        sample = sample or self.own
        check_seeds(*seeds)
        size = sample.batch
        drawn = {k: self._batch(sample, k, None)[0] for k in {s // size for s in seeds}}
        return np.stack([drawn[seed // size][seed % size] for seed in seeds])

    def trajectory(self, seed: int) -> Trajectory:
        """Every state on the way to image `seed`, and what the network saw in it."""
        check_seeds(seed)
        return self._batch(self.own, seed // self.own.batch, seed)[1][seed]

    def _batch(
        self, sample: Sample, number: int, seed: int | None
    ) -> tuple[np.ndarray, dict[int, Trajectory]]:
        """Batch `number`, uint8 [B,H,W,C]: its images cost together what one of them costs.

        The trajectories of all are kept if they are small, else that of `seed` alone.
        """
        members = range(number * sample.batch, (number + 1) * sample.batch)
        small = 2 * sample.steps * len(members) * math.prod(self.shape) <= TRACE_BYTES
        traced = members if small else [] if seed is None else [seed]

        def draw() -> tuple[np.ndarray, dict[int, Trajectory]]:
            run, drawing = self._drawing(sample)
            advance = progress("drawing", sample.steps)
            images, t, x_t, x0_hat = trace(run, partial(drawing, members), traced, advance=advance)
            signal, noise = zip(*map(self.sched.roots, t))
            ways = zip(traced, x_t, x0_hat)
            return images, {seed: Trajectory(t, signal, noise, *way) for seed, *way in ways}

        return self.once("batch", (sample.model_dump_json(), number, tuple(traced)), draw)

    def between(self, first: int, last: int, count: int = 11) -> np.ndarray:
        """`count` images from seed `first` to seed `last` -> uint8 [count,H,W,C].

        Drawn with `deterministic` settings; all have the first one's labels.  ConfigError for
        equal or negative seeds.
        """
        check_seeds(first, last)
        if first == last:
            raise ConfigError(f"choose two different seeds: both are {first}")
        sample, batch = self.deterministic, min(self.deterministic.batch, count)

        def draw() -> np.ndarray:
            _, drawing = self._drawing(sample, between=True)
            advance = progress("drawing", sample.steps * -(-count // batch))
            return drawing((first, last), count, batch=batch, on_step=lambda step: advance(1))

        return self.once("between", (first, last, count), draw)

    def _drawing(self, sample: Sample, **kind: bool) -> tuple[Run, Callable[..., np.ndarray]]:
        """The run under some settings, and what draws its images."""
        run = replace(self.run, config=self.run.config.model_copy(update={"sample": sample}))
        how = run.drawing_precision, run.device
        return run, make_drawing(run.config, run.data, self.net, *how, **kind)

    # ------------------------------------------------------------------ real images

    def neighbours(self, image: np.ndarray, k: int, split: str = "train") -> Neighbours:
        """The k images of a split that are nearest to one, uint8 [H,W,C], pixel by pixel.

        DataError when the split is empty.
        """
        gallery = self.run.data.rows(split)
        key = f"near {split}", image.tobytes()
        distances = self.once(*key, lambda: _distances(image, gallery))
        indices = np.argsort(distances, kind="stable")[:k]
        return Neighbours(distances[indices], indices, gallery[indices], len(distances))

    def held_out_distance(self) -> float:
        """How far new images are from their nearest training image: the median of the first
        held-out images, in grey levels."""
        data = self.run.data
        new, train = data.rows("reference")[:SCALE], data.rows("train")
        return self.once("scale", (), lambda: float(np.median(nearest(new, train)[0])))

    @torch.inference_mode()
    def rectified(
        self, number: int, t: int, seed: int, lam: dict[str, Tensor]
    ) -> dict[str, np.ndarray]:
        """Training image `number`, noised to level t with the noise of `seed`: uint8 [H,W,C] under

        x0, x_t, x0_hat; conservative, paper: the network's input as that loss moves it by its
        lambda; conservative x0, paper x0: the clean image that such an input holds.  ConfigError
        for a training image, a t or a seed that does not exist.
        """
        count, sched = len(self.run.data.indices("train")), self.sched
        check_seeds(seed)
        if not (0 <= number < count and 0 <= t < len(sched)):
            raise ConfigError(
                f"there is no image {number} at t = {t}: training images are numbered 0 to "
                f"{count - 1}, and t goes from 0 to {len(sched) - 1}"
            )
        noised = self.once("noised", (number, t, seed), lambda: self._noised(number, t, seed))
        batch, x_t, eps_hat = noised
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

    def _noised(self, number: int, t: int, seed: int) -> tuple[losses.Batch, Tensor, Tensor]:
        """A batch of one training image, its x_t, and the noise that the network sees in it."""
        run, device = self.run, self.run.device
        image, labels = run.data.take("train", 1, number)
        y = torch.from_numpy(labels.astype(np.int64)) if run.config.net.conditional else None
        eps = image_noise(self.own.seed, [seed], self.shape, len(self.sched), device)
        batch = losses.Batch(dequantise(image), torch.tensor([t]), eps, torch.zeros(1), y=y)
        batch = batch.to(device)
        x_t = q_sample(self.sched, batch.x0, batch.t, batch.eps)
        denoiser = make_denoiser(run.config, self.net, self.sched, run.precision)
        return batch, x_t, losses.ask(denoiser, batch, x_t)


def check_seeds(*seeds: int) -> None:
    if min(seeds) < 0:
        raise ConfigError(f"seeds are whole numbers from 0 on, got {min(seeds)}")


def _distances(image: np.ndarray, gallery: Rows) -> np.ndarray:
    """Euclidean distances of an image [H,W,C] to a gallery [N,H,W,C]: float64 [N], exact."""
    ours, squared = image.astype(np.int32), np.empty(len(gallery))
    advance = progress("comparing", len(gallery))
    for part in blocks(len(gallery), GALLERY):
        apart = np.square(gallery[part] - ours)
        squared[part] = apart.sum(axis=(1, 2, 3), dtype=np.int64)
        advance(len(apart))
    return np.sqrt(squared)


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


_latest: list[Studio] = []  # one network in memory, whatever is asked


def studio_of(run: Run) -> Studio:
    """The Studio of a run: the last one, unless folder, settings or weights have changed."""
    key = run.folder.absolute(), run.config, run.weights()[1]
    if not _latest or _latest[0].key != key:
        _latest[:] = [Studio(run)]
    return _latest[0]
