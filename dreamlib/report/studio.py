"""What the playground draws: images, how they come about, and the way from one to another.

A Studio reads a run's averaged weights once, and keeps what it has drawn: asking again costs
nothing, so that a slider can move over it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from dreamlib.build import make_labels, make_sampler, make_schedule
from dreamlib.config import make_config
from dreamlib.diffusion.draw import BoundSampler, LabelsOf, draw_images, interpolate
from dreamlib.diffusion.samplers import Step
from dreamlib.errors import ConfigError
from dreamlib.generate import Shards
from dreamlib.images import quantise
from dreamlib.progress import Progress, silent
from dreamlib.rng import image_noise
from dreamlib.run import Run
from dreamlib.sections import Config, Sample

QUICK = 8  # images per batch under changed settings, where nobody waits for a whole shard
KEPT = 8  # results of each kind that are kept
TRACE_BYTES = 1 << 25  # of kept trajectories of a batch; above, only one image's is kept


@dataclass(frozen=True)
class Trajectory:
    """How one image came about: S steps have S + 1 states, from pure noise to the image."""

    t: tuple[int, ...]  # the timestep of each state; -1 stands for the finished image
    signal: tuple[float, ...]  # a, the share of the image in each state
    noise: tuple[float, ...]  # s, the share of noise
    x_t: np.ndarray  # uint8 [S+1,H,W,C]
    x0_hat: np.ndarray  # uint8 [S+1,H,W,C], the clean image that the network saw in x_t


@dataclass(frozen=True)
class _Block:
    """One batch, drawn."""

    images: np.ndarray  # uint8 [B,H,W,C]
    t: list[int]
    traces: dict[int, tuple[np.ndarray, np.ndarray]]  # row -> x_t [S+1,H,W,C], x0_hat [S,H,W,C]


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
        self.run, self.net = run, store.denoiser
        self.sched = make_schedule(run.config)
        self.own = run.config.sample
        self._kept: dict[str, OrderedDict[Any, Any]] = {}

    def once(self, kind: str, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` returned for this key: kept, or made now; a few of each kind are kept."""
        kept = self._kept.setdefault(kind, OrderedDict())
        if key not in kept:
            kept[key] = make()
        kept.move_to_end(key)
        while len(kept) > KEPT:
            kept.popitem(last=False)
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

    def images(
        self, seeds: Sequence[int], sample: Sample | None = None, progress: Progress = silent
    ) -> np.ndarray:
        """Images numbered `seeds` -> uint8 [N,H,W,C].  ConfigError for a negative seed."""
        sample = sample or self.own
        check_seeds(*seeds)
        size = sample.batch
        drawn = {k: self._block(sample, k, None, progress) for k in {s // size for s in seeds}}
        return np.stack([drawn[seed // size].images[seed % size] for seed in seeds])

    def trajectory(
        self, seed: int, sample: Sample | None = None, progress: Progress = silent
    ) -> Trajectory:
        """Every state on the way to image `seed`, and what the network saw in it."""
        sample = sample or self.own
        check_seeds(seed)
        number, row = divmod(seed, sample.batch)
        block = self._block(sample, number, row, progress)
        x_t, x0_hat = block.traces[row]
        times = (*block.t, -1)
        bars = [self.sched.bar(t) for t in times]
        return Trajectory(
            times,
            tuple(bar**0.5 for bar in bars),
            tuple((1 - bar) ** 0.5 for bar in bars),
            x_t,
            np.concatenate([x0_hat, x_t[-1:]]),
        )

    def _block(self, sample: Sample, number: int, row: int | None, progress: Progress) -> _Block:
        """Batch `number`: its rows cost together what one of them costs.

        The trajectories of all rows are kept if they are small, else that of `row` alone.
        """
        size, pixels = sample.batch, self.run.data.size**2 * self.run.data.channels
        small = 2 * sample.steps * size * pixels <= TRACE_BYTES
        rows = range(size) if small else [] if row is None else [row]
        key = sample.model_dump_json(), number, tuple(rows)
        return self.once("block", key, lambda: self._draw(sample, number, rows, progress))

    def _draw(self, sample: Sample, number: int, rows: Sequence[int], progress: Progress) -> _Block:
        wanted, shape, device = list(rows), self.shape, self.run.device
        numbers = range(number * sample.batch, (number + 1) * sample.batch)
        start = [numbers[row] for row in wanted]
        noise = image_noise(sample.seed, start, shape, len(self.sched), torch.device("cpu"))
        times: list[int] = []
        states, clean = [quantise(noise)], []
        advance = progress("drawing", sample.steps)

        def on_step(slots: list[int | None], step: Step) -> None:
            times.append(step.t)
            states.append(quantise(step.x_t[wanted]))
            clean.append(quantise(step.x0_hat[wanted]))
            advance(1)

        config = self._config(sample)
        images = draw_images(
            self.net,
            self.sched,
            make_sampler(config),
            numbers,
            seed=sample.seed,
            shape=shape,
            batch=sample.batch,
            device=device,
            labels_of=self._labels(config),
            guidance=sample.guidance,
            on_step=on_step,
        )
        x_t, x0_hat = np.stack(states, axis=1), np.stack(clean, axis=1)
        return _Block(images, times, dict(zip(wanted, zip(x_t, x0_hat))))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image inside the network: (C, H, W)."""
        return self.run.data.channels, self.run.data.size, self.run.data.size

    def _config(self, sample: Sample) -> Config:
        return self.run.config.model_copy(update={"sample": sample})

    def _labels(self, config: Config) -> LabelsOf | None:
        return make_labels(config, self.run.data)

    @cached_property
    def deterministic(self) -> Sample:
        """The run's own settings if they add no noise on the way, else DDIM in at most 50 steps."""
        if self.own.sampler == "dpmpp_2m" or (self.own.sampler == "ddim" and self.own.eta == 0):
            return self.own
        return self.settings(sampler="ddim", eta=0.0, steps=min(50, self.own.steps))

    def between(
        self, first: int, last: int, count: int = 11, progress: Progress = silent
    ) -> np.ndarray:
        """`count` images from seed `first` to seed `last` -> uint8 [count,H,W,C].

        Drawn with `deterministic` settings; all have the first one's labels.  ConfigError for
        equal or negative seeds.
        """
        check_seeds(first, last)
        if first == last:
            raise ConfigError(f"choose two different seeds: both are {first}")
        key = first, last, count
        return self.once("between", key, lambda: self._walk(first, last, count, progress))

    def _walk(self, first: int, last: int, count: int, progress: Progress) -> np.ndarray:
        sample = self.deterministic
        config, batch = self._config(sample), min(sample.batch, count)
        return interpolate(
            self.net,
            self.sched,
            _counted(make_sampler(config), progress("drawing", sample.steps * -(-count // batch))),
            (first, last),
            count,
            seed=sample.seed,
            shape=self.shape,
            batch=batch,
            device=self.run.device,
            labels_of=self._labels(config),
            guidance=sample.guidance,
        )


def check_seeds(*seeds: int) -> None:
    if min(seeds) < 0:
        raise ConfigError(f"seeds are whole numbers from 0 on, got {min(seeds)}")


def _counted(sampler: BoundSampler, advance: Callable[[int], None]) -> BoundSampler:
    """The same sampler, which reports its steps."""

    def counted(*args: Any, **named: Any) -> Iterator[Step]:
        for step in sampler(*args, **named):
            advance(1)
            yield step

    return counted


_latest: list[Studio] = []  # one network in memory, whatever is asked


def studio_of(run: Run) -> Studio:
    """The Studio of a run: the last one, unless folder, settings or weights have changed."""
    key = run.folder.absolute(), run.config, run.weights()[1]
    if not _latest or _latest[0].key != key:
        _latest[:] = [Studio(run)]
    return _latest[0]
