"""How cost grows: time and memory at 1, 2, 4 and 8 times the work.

    python -m benchmarks growth

Every point is measured in a process of its own: seconds are the least of the rounds, memory is
what the work added to the process's peak.  `power` is the slope of log seconds over log work: 1
where twice the work takes twice as long.  The quick way takes a fifth of the work, once, in one
process.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.sampling_cost import denoiser
from benchmarks.timing import apart, peak_growth
from benchmarks.training_step import CASES, trainer
from dreamlib.data.celeba import celeba_source
from dreamlib.data.prepare import pack
from dreamlib.diffusion.samplers import dpmpp_2m
from dreamlib.diffusion.sampling import draw_images
from dreamlib.evaluation.feature_scores import measure as measure_features
from dreamlib.evaluation.results import GENERATED, REAL, Plan
from dreamlib.report.figures.palette import BLUE, GREEN, GREY, ORANGE, PURPLE, TWO
from dreamlib.report.figures.style import footer, new_figure, style
from dreamlib.utils.rng import numpy_rng
from tests.crash.test_pack import synthetic_celeba

TIMES = (1, 2, 4, 8)
PRESET, CPU = "faces16", torch.device("cpu")
WORK = {  # name -> (the least work, its unit)
    "training step": (8, "images per step"),
    "generation": (125, "images, 25 steps"),
    "packing": (250, "JPEGs"),
    "evaluation": (625, "images per set, 64 features"),
}
FEATURES = 64
LESS = 5  # times less work the quick way


def training(amount: int, home: Path) -> Callable[[], Any]:
    case = CASES[16]
    return trainer(home, case, 16, f"train.batch={amount}").advance


def generation(amount: int, home: Path) -> Callable[[], Any]:
    net, sched, size = denoiser(PRESET, None)
    return partial(
        draw_images,
        *(net, sched, partial(dpmpp_2m, steps=25), range(amount)),
        seed=0,
        shape=(3, size, size),
        batch=min(amount, 125),
        device=CPU,
    )


def packing(amount: int, home: Path) -> Callable[[], Any]:
    folder, turns = synthetic_celeba(home / "jpegs", amount), iter(range(1000))

    def work() -> None:
        source = celeba_source(64, path=folder, downloads=home)
        pack(source, home / f"packed-{next(turns)}")

    return work


def evaluation(amount: int, home: Path) -> Callable[[], Any]:
    def features(key: int) -> np.ndarray:
        return numpy_rng("growth", key).standard_normal((amount, FEATURES)).astype(np.float32)

    sets, plan = {GENERATED: features(0), REAL: features(1)}, Plan("FD", (amount,))
    return partial(measure_features, plan, sets, features(2), features(3))


MAKERS = dict(zip(WORK, (training, generation, packing, evaluation)))


def point(name: str, amount: int, rounds: int) -> dict[str, float]:
    """Least seconds and the peak's growth of one amount of work, in this process."""
    with tempfile.TemporaryDirectory() as home:
        call = MAKERS[name](amount, Path(home))
        grown = peak_growth(call)
        seconds = []
        for _ in range(rounds):
            begun = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - begun)
    return {"amount": amount, "seconds": min(seconds), "bytes": grown}


def measure(rounds: int, quick: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    once = partial(point, rounds=1)
    measured = once if quick else partial(apart, partial(point, rounds=rounds))
    for name, (least, unit) in WORK.items():
        first, multiples = (least // LESS, TIMES[:3]) if quick else (least, TIMES)
        points = [measured(name, first * times) for times in multiples]
        found[name] = {"unit": unit, "points": points}
    return {"work": found}


def power(points: list[dict[str, float]]) -> float:
    """Slope of log seconds over log amount."""
    amounts, seconds = ([p[key] for p in points] for key in ("amount", "seconds"))
    return float(np.polyfit(np.log(amounts), np.log(seconds), 1)[0])


def table(found: dict[str, Any]) -> str:
    counts = len(next(iter(found["work"].values()))["points"])
    heads = " | ".join(f"{times}×" for times in TIMES[:counts])
    lines = [
        f"| work | 1× is | seconds: {heads} | power | memory, MiB: {heads} |",
        "|" + "---|" * (2 * counts + 3),
    ]
    for name, each in found["work"].items():
        points = each["points"]
        cells = [name, f"{points[0]['amount']} {each['unit']}"]
        cells += [f"{p['seconds']:.3g}" for p in points]
        cells.append(f"{power(points):.2f}")
        cells += [f"{p['bytes'] / 2**20:.0f}" for p in points]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@style()
def figure(found: dict[str, Any]) -> Figure:
    """Seconds and memory over the work, both in units of the smallest, on logarithmic axes."""
    fig, axes = new_figure(TWO, 3.0, 2)
    for (name, each), colour in zip(found["work"].items(), (BLUE, GREEN, PURPLE, ORANGE)):
        points = each["points"]
        times = [p["amount"] / points[0]["amount"] for p in points]
        for ax, key in zip(axes, ("seconds", "bytes")):
            values = [p[key] / points[0][key] for p in points]
            label = f"{name} ({power(points):.2f})" if key == "seconds" else name
            ax.plot(times, values, "o-", ms=4, color=colour, label=label)
    for ax, what in zip(axes, ("time", "added memory")):
        ax.plot(TIMES, TIMES, ":", color=GREY, label="in proportion")
        ax.set(xscale="log", yscale="log", xlabel="work, times the least", title=what)
        ax.set_xticks(TIMES, [f"{t}×" for t in TIMES])
        ax.set_yticks(TIMES, [f"{t}×" for t in TIMES])
        ax.minorticks_off()
        ax.legend()
    about = " · ".join(f"{n}: 1× is {WORK[n][0]} {WORK[n][1]}" for n in found["work"])
    footer(fig, f"{about} · in brackets: the power of the amount that time grows with")
    return fig
