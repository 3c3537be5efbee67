"""What the playground draws: images, how they come about, and the way from one to another.

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

from dreamlib.config.factory import make_drawing, make_schedule
from dreamlib.config.load import make_config
from dreamlib.config.schema import Sample
from dreamlib.runs.run import Run
from dreamlib.sampling.generate import Shards, trace
from dreamlib.utils.context import progress
from dreamlib.utils.errors import ConfigError

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
            run = self._under(sample)
            advance = progress("drawing", sample.steps)
            drawing = partial(self._drawing(run), members)
            images, t, x_t, x0_hat = trace(run, drawing, traced, advance=advance)
            signal, noise = zip(*map(self.sched.roots, t))
            ways = zip(traced, x_t, x0_hat)
            return images, {seed: Trajectory(t, signal, noise, *way) for seed, *way in ways}

        return self.once("batch", (sample.model_dump_json(), number, tuple(traced)), draw)

    def _under(self, sample: Sample) -> Run:
        return replace(self.run, config=self.run.config.model_copy(update={"sample": sample}))

    def _drawing(self, run: Run, **kind: bool) -> Callable[..., np.ndarray]:
        return make_drawing(run.config, run.data, self.net, run.precision, run.device, **kind)

    @cached_property
    def deterministic(self) -> Sample:
        """The run's own settings if they add no noise on the way, else DDIM in at most 50 steps."""
        if self.own.sampler == "dpmpp_2m" or (self.own.sampler == "ddim" and self.own.eta == 0):
            return self.own
        return self.settings(sampler="ddim", eta=0.0, steps=min(50, self.own.steps))

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
            advance = progress("drawing", sample.steps * -(-count // batch))
            drawing = self._drawing(self._under(sample), between=True)
            return drawing((first, last), count, batch=batch, on_step=lambda step: advance(1))

        return self.once("between", (first, last, count), draw)


def check_seeds(*seeds: int) -> None:
    if min(seeds) < 0:
        raise ConfigError(f"seeds are whole numbers from 0 on, got {min(seeds)}")


_latest: list[Studio] = []  # one network in memory, whatever is asked


def studio_of(run: Run) -> Studio:
    """The Studio of a run: the last one, unless folder, settings or weights have changed."""
    key = run.folder.absolute(), run.config, run.weights()[1]
    if not _latest or _latest[0].key != key:
        _latest[:] = [Studio(run)]
    return _latest[0]
