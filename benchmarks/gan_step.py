"""What a GAN costs beside a diffusion model of the same images: training and drawing.

Steps of each pair of presets in turns, on noise.  A diffusion model's with DREAM at its full
height; a GAN's with augmentation, and with its regularisers as often as they come: steps without
them, with R1 and with path length are timed apart, and added up in their shares.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.timing import counted, interleave, ratios, repeat, spread, text
from dreamlib.config.factory import make_drawing, make_net
from dreamlib.config.load import load_config
from dreamlib.config.schema import Config
from dreamlib.training.cost import training_steps, usual_images
from dreamlib.utils.platform import choose_precision

# GAN -> the diffusion model of the same images; images per step, steps of a turn
PAIRS = {
    "gan-faces16": ("faces16", 32, 8),
    "gan-fashion-cpu": ("fashion-cpu", 32, 8),
    "gan-cats64": ("cats64", 4, 1),
    "gan-cats128": ("cats128", 4, 1),
    "gan-cats256": ("cats256", 4, 1),
}
QUICK = ("gan-faces16",)
DRAWN = ("gan-faces16", "gan-fashion-cpu")  # the other's 50 passes take minutes
NEVER = 1_000_000  # steps: a regulariser comes with the first, which is not timed
CPU = torch.device("cpu")


def arms(gan: str) -> dict[str, Config]:
    """What is timed for a pair."""
    off = {"r1": NEVER, "path": NEVER}
    found = {"diffusion": load_config(PAIRS[gan][0], ["train.device=cpu"])}
    for name, own in (("plain", {}), ("r1", {"r1": 1}), ("path", {"path": 1})):
        every = [f"gan.{key}_every={value}" for key, value in (off | own).items()]
        config = load_config(gan, ["train.device=cpu", *every])
        if name != "path" or config.gan.path != 0:
            found[name] = config
    return found


def measure(rounds: int, quick: bool) -> dict[str, Any]:
    """Seconds of a step of every arm, and of drawing an image, by pair."""
    pairs = {gan: _pair(gan, rounds, quick) for gan in (QUICK if quick else PAIRS)}
    return {"pairs": pairs}


def _pair(gan: str, rounds: int, quick: bool) -> dict[str, Any]:
    other, batch, times = PAIRS[gan]
    times = min(times, 2) if quick else times
    calls: dict[str, Callable[[], None]] = {}
    for name, config in arms(gan).items():
        steps = training_steps(config, batch, CPU, NEVER)
        next(steps)
        calls[name] = partial(repeat, partial(next, steps), times)
    seconds = interleave(calls, rounds)
    configs = {"diffusion": load_config(other), "gan": load_config(gan)}
    found: dict[str, Any] = {
        "batch": batch,
        "seconds": {name: [turn / times for turn in turns] for name, turns in seconds.items()},
    }
    if gan in DRAWN and not quick:
        images = 125
        drawing = {name: partial(_drawing(each), range(images)) for name, each in configs.items()}
        drawn = interleave(drawing, rounds)
        found["drawing"] = {
            name: [turn / images for turn in turns] for name, turns in drawn.items()
        }
    return found


def _drawing(config: Config) -> Callable[..., Any]:
    channels, labels = usual_images(config)
    net = make_net(config, channels, labels)
    precision = choose_precision(config.train.precision, CPU)
    return make_drawing(config, SimpleNamespace(channels=channels), net, precision, CPU)


def gan_seconds(gan: str, seconds: dict[str, list[float]]) -> list[float]:
    """Of a step with its regularisers as often as they come, round by round."""
    own, plain = load_config(gan).gan, seconds["plain"]
    every = {"r1": own.r1_every, "path": own.path_every}
    found = list(plain)
    for name in every.keys() & seconds.keys():
        found = [
            sum_ + (step - bare) / every[name]
            for sum_, step, bare in zip(found, seconds[name], plain)
        ]
    return found


def table(found: dict[str, Any]) -> str:
    lines = [
        "| preset | parameters | GFLOP per image and step | images/s | GFLOP/s "
        "| a GAN's step, in steps of the other | GFLOP per image drawn | drawn images/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for gan, each in found["pairs"].items():
        other, batch, _ = PAIRS[gan]
        taken = {"diffusion": each["seconds"]["diffusion"]}
        taken["gan"] = gan_seconds(gan, each["seconds"])
        for name, kind in ((other, "diffusion"), (gan, "gan")):
            config = load_config(name)
            work = counted(config)
            rate = batch / spread(taken[kind])["median"]
            cells = [f"`{name}` ({batch})", f"{work.total:,}", f"{work.step / 1e9:.3g}"]
            cells += [f"{rate:.3g}", f"{rate * work.step / 1e9:.0f}"]
            cells.append(text(ratios(taken["gan"], taken["diffusion"])) if kind == "gan" else "")
            cells.append(f"{work.forward * config.sample.steps / 1e9:.3g}")
            drawn = each.get("drawing")
            cells.append(f"{1 / spread(drawn[kind])['median']:.3g}" if drawn else "")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
