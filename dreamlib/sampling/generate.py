"""Run and seeds to images: shards on disk, resumable, and PNG files for people."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dreamlib.config.factory import make_schedule
from dreamlib.diffusion.samplers import Step, spaced
from dreamlib.runs.run import Run
from dreamlib.sampling.image_store import Shards
from dreamlib.utils.arguments import listed
from dreamlib.utils.context import Stop, current, progress, using
from dreamlib.utils.errors import ConfigError
from dreamlib.utils.files import read_npz, write_atomic
from dreamlib.utils.images import quantise, to_rgb
from dreamlib.utils.progress import Advance, Progress
from dreamlib.utils.rng import image_noise


def generate(
    run: Run,
    seeds: Sequence[int] | int,
    *,
    untrained: bool = False,
    progress: Progress | None = None,
    should_stop: Stop | None = None,
) -> np.ndarray:
    """Images numbered `seeds` -> uint8 [N,H,W,C].  Seed k is image k, always.

    Whole shards are kept under generated/ and read again next time; interrupted work continues
    at the first missing shard.  `untrained` draws from the network's initial weights, as an
    anchor for scores.  Raises RunError when there are no weights, Interrupted when asked to stop
    (by `should_stop`, a signal, or the end of the session's time budget).
    """
    if not (seeds := listed(seeds)) or min(seeds) < 0:
        raise ConfigError("seeds are whole numbers from 0 on, and at least one: range(64), say")
    store = Shards(run, untrained)
    drawn: dict[int, np.ndarray] = {}
    with using(progress=progress, should_stop=should_stop), run.session() as keep:
        advance = current().progress(f"generating ({store.name})", len(seeds))
        for shard, wanted in store.plan(seeds):
            images, first = store.read(shard), shard * store.size
            if images is None and len(wanted) == store.size:
                images = store.draw(range(first, first + store.size))
                store.write(shard, images)
                keep()
            if images is None:
                drawn |= zip(wanted, store.draw(wanted))
            else:
                drawn |= {seed: images[seed - first] for seed in wanted}
            advance(len(wanted))
    store.check_versions(seeds)
    return np.stack([drawn[seed] for seed in seeds])


def interpolate(run: Run, first: int, last: int, count: int = 10) -> np.ndarray:
    """`count` images from seed `first` to seed `last` -> uint8 [count,H,W,C].

    Noise added on the way would leave neighbours nothing in common: eta counts as 0, so where it
    is above 0 the ends are what these seeds give without fresh noise.  ConfigError for ddpm.
    """
    if run.config.sample.sampler == "ddpm":
        raise ConfigError(
            "interpolation needs a sampler that can do without fresh noise, which leaves "
            "neighbours nothing in common: --set sample.sampler=ddim"
        )
    if count < 2 or min(first, last) < 0 or first == last:
        raise ConfigError(
            "an interpolation has at least 2 frames and two different seeds from 0 on, got "
            f"{count} frames from {first} to {last}"
        )
    return Shards(run).draw((first, last), count, between=True)


def process(run: Run, images: int = 8, moments: int = 8) -> Path:
    """samples/process.npz: x_t and x0_hat, uint8 [images, moments, H,W,C], and their t.

    x_t is the state in which the network is asked at t, pure noise at the first one, and x0_hat the
    clean image that it sees there.  The last moment is the finished image, with t = -1; the others
    are the steps nearest to an even spread over t, first and last included, fewer where a spacing
    takes few steps.  Kept with them: the sampler's settings (JSON) and the weights' step.
    """
    if run.config.model == "gan":
        raise ConfigError("a GAN draws an image at once: there is no process to show")
    path = run.dir.samples / "process.npz"
    store, sample = Shards(run), run.config.sample
    images = min(images, sample.batch)
    what = f"entering {store.fingerprint} {images} {moments}"
    if str(read_npz(path).get("what")) == what:
        return path
    taken = torch.tensor(
        spaced(make_schedule(run.config), sample.steps, sample.spacing, sample.sigma_min)
    )
    wanted = torch.linspace(float(taken[0]), float(taken[-1]), moments - 1)
    chosen = {int(taken[(taken - t).abs().argmin()]) for t in wanted}
    with run.session():
        draw = partial(store.draw, range(images))
        _, times, x_t, x0_hat = trace(run, draw, range(images), chosen)
    arrays: dict[str, Any] = {
        "x_t": x_t,
        "x0_hat": x0_hat,
        "t": np.array(times),
        "what": np.array(what),
        "step": np.array(store.weights[1]["step"]),
        "sample": np.array(sample.model_dump_json()),
    }
    write_atomic(path, lambda file: np.savez_compressed(file, **arrays))
    return path


def trace(
    run: Run,
    draw: Callable[..., np.ndarray],
    numbers: Sequence[int],
    chosen: Container[int] | None = None,
    advance: Advance = lambda count: None,
) -> tuple[np.ndarray, tuple[int, ...], np.ndarray, np.ndarray]:
    """What `draw` draws, one batch, and how the images `numbers` of it come about:
    (all its images, t [M], x_t and x0_hat uint8 [N,M,H,W,C]).

    At the `chosen` timesteps, None for all; x_t is the state in which the network is asked at t,
    and the last moment, with t = -1, is the finished image.  `advance` counts steps.
    """
    sample, shape = run.config.sample, (run.data.channels, run.data.size, run.data.size)
    cpu, rows = torch.device("cpu"), [number % sample.batch for number in numbers]
    state = quantise(image_noise(sample.seed, numbers, shape, run.config.diffusion.steps, cpu))
    states: list[tuple[int, np.ndarray, np.ndarray]] = []

    def on_step(slots: list[int | None], step: Step) -> None:
        nonlocal state
        if chosen is None or step.t in chosen:
            states.append((step.t, state, quantise(step.x0_hat[rows])))
        state = quantise(step.x_t[rows])
        advance(1)

    images = draw(on_step=on_step)
    t, x_t, x0_hat = zip(*states, (-1, state, state))
    return images, t, np.stack(x_t, axis=1), np.stack(x0_hat, axis=1)


def export_png(images: np.ndarray, folder: Path) -> None:
    """00001.png, 00002.png, ... in one flat folder: RGB, exactly these pixels.

    Raises ConfigError when the folder holds PNG files that these would not replace: whoever reads
    the folder next would take them for images of this model.
    """
    names = [f"{number:05d}.png" for number in range(1, len(images) + 1)]
    if strangers := {path.name for path in folder.glob("*.png")} - set(names):
        raise ConfigError(
            f"{folder} holds {len(strangers)} other PNG files ({min(strangers)}, ...): name an "
            "empty folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    advance = progress("writing PNG files", len(images))
    for name, image in zip(names, to_rgb(images)):
        Image.fromarray(image).save(folder / name)
        advance(1)
