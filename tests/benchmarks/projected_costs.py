"""What the presets that nobody has trained here would cost: the projections in docs/HARDWARE.md.

    python -m tests.benchmarks.projected_costs

Arithmetic only: images x FLOPs per image (counted by `dreamlib explain`) / an assumed rate.  The
processor's rate alone is measured: by tests/benchmarks/save_stall.json.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

import torch

from dreamlib.build import total_steps
from dreamlib.config import load_config
from dreamlib.explain import Explanation, explain
from dreamlib.sections import Config, span_steps

PRESETS = [
    *["fashion32", "mnist28", "celeba64", "celeba64-original"],
    *["cats64", "cats128-fast", "cats128", "cats256"],
]
IMAGES = {"celeba": 162_770, "fashion": 60_000, "mnist": 60_000}
FOLDER = 12_000  # training images of a folder of 15,000: a fifth is held out
PEAK = {"T4": 65e12, "A100": 312e12}  # the makers' figures for fp16 and bf16, FLOP/s
SHARE = 0.4  # of the peak: assumed
PASSES = {"standard": 0.0, "sampled": 0.1, "both": 1.0}  # standard steps more while lambda > 0
BYTES = 16  # of a checkpoint per parameter: weights, averages and two moments, each float32
FEW = 25  # steps of DPM-Solver++
STALL = Path(__file__).parent / "save_stall.json"


@dataclass(frozen=True)
class Cost:
    preset: str
    images: int  # seen in training
    work: float  # FLOPs of the training
    sampling: float  # FLOPs of 5,000 images as the preset samples
    few: float  # and in FEW steps
    checkpoint: int  # bytes


@cache
def cost(preset: str) -> Cost:
    config = load_config(preset)
    with torch.device("meta"):  # counted, not computed
        found: Explanation = explain(config)
    per_epoch = (config.data.first or IMAGES.get(config.data.name, FOLDER)) / config.train.batch
    steps = total_steps(config, per_epoch)
    images = steps * config.train.batch
    work = images * found.step * _more(config, per_epoch, steps)
    sampling = 5000 * found.forward * config.sample.steps
    few = 5000 * found.forward * FEW
    return Cost(preset, images, work, sampling, few, BYTES * found.total)


def _more(config: Config, per_epoch: float, steps: int) -> float:
    """Mean cost of a step, in standard steps: DREAM's share begins at `loss.start`."""
    if config.loss.name == "standard":
        return 1.0
    start = span_steps(config.loss.start, epoch=per_epoch, total=steps)
    return 1 + PASSES[config.loss.estimator] * (1 - start / steps)


def cpu_rate() -> float:
    """FLOP/s of the 54.85M network's training on two cores, as measured for the table of saves."""
    measured = json.loads(STALL.read_text("utf-8"))
    plain = median(turn["plain"]["wall"] for turn in measured["rounds"])
    with torch.device("meta"):
        step = explain(load_config("celeba64")).step
    return 20 * measured["batch"] * step / plain


def span_text(seconds: float) -> str:
    if seconds >= 3 * 86400:
        return f"{seconds / 86400:.0f} d"
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else "< 1 min"


def table() -> str:
    rate, cpu = {name: SHARE * peak for name, peak in PEAK.items()}, cpu_rate()
    lines = [
        "| preset | images seen | PFLOP | T4 | A100 | two CPU cores | 5,000 images, T4 "
        f"| in {FEW} steps | checkpoint |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for found in map(cost, PRESETS):
        times = [found.work / rate["T4"], found.work / rate["A100"], found.work / cpu]
        drawn = [found.sampling / rate["T4"], found.few / rate["T4"]]
        cells = [f"{found.images / 1e6:.2f} M", f"{found.work / 1e15:,.0f}"]
        cells += [*map(span_text, times), *map(span_text, drawn)]
        lines.append(
            f"| `{found.preset}` | {' | '.join(cells)} | {found.checkpoint / 1e6:.0f} MB |"
        )
    return "\n".join(lines)


def main() -> None:
    print(table())
    print(f"\ntwo CPU cores: {cpu_rate() / 1e9:.0f} GFLOP/s, measured")


if __name__ == "__main__":
    main()
