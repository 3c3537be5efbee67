"""What DREAM costs: a training step of each loss, in standard steps.

    python -m benchmarks dream_cost

Trainers of one preset that differ in `loss` alone take steps in turns.  "three passes" is the
original recipe's way: the estimate is a pass of its own, and both branches are one graph.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.timing import interleave, ratios, repeat, text
from benchmarks.training_step import CASES, SIZES, flops, trainer
from dreamlib.diffusion.forward_process import q_sample
from dreamlib.diffusion.losses import Batch, Conservative, Term, adapt, ask, mean_square
from dreamlib.diffusion.schedules import Schedule

STANDARD = "standard"
SAMPLED = "conservative, sampled"
BOTH = "conservative, both"
PAPER = "paper"
PASSES = "conservative, three passes"
FULL = ["loss.start=0", "loss.ramp=0"]  # at its full height from the first step
LOSSES = {
    STANDARD: ["loss.name=standard"],
    SAMPLED: ["loss.name=conservative", *FULL],
    BOTH: ["loss.name=conservative", "loss.estimator=both", *FULL],
    PAPER: ["loss.name=paper"],
    PASSES: ["loss.name=conservative", "loss.estimator=both", *FULL],
}
LIMITS = {SAMPLED: 1.15, BOTH: 2.05, PAPER: 1.40}
COUNTED = min(SIZES)
SMALL = 1.20  # `sampled` below 64 pixels


@dataclass(frozen=True)
class ThreePasses:
    """The conservative loss with an estimate of its own, as one graph."""

    own: Conservative

    def __call__(self, net: nn.Module, sched: Schedule, batch: Batch, step: int) -> Iterator[Term]:
        x_t = q_sample(sched, batch.x0, batch.t, batch.eps)
        plain = mean_square(ask(net, batch, x_t) - batch.eps)
        with torch.no_grad():
            eps_hat = ask(net, batch, x_t)
        lam = self.own.lam(sched, batch.t, step)
        x = adapt(sched, batch, x_t, eps_hat, lam)
        moved = mean_square(ask(net, batch, x) - batch.eps)
        error = (1 - self.own.weight) * plain + self.own.weight * moved
        yield Term(error, {"error": plain.detach()})


def measure(rounds: int, quick: bool) -> dict[str, Any]:
    """Seconds and FLOPs of a step with every loss, at every size."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as home:
        for size in (COUNTED,) if quick else SIZES:
            case = CASES[size]
            trainers = {
                name: trainer(Path(home) / str(number), case, size, *settings)
                for number, (name, settings) in enumerate(LOSSES.items())
            }
            trainers[PASSES].loss = ThreePasses(trainers[PASSES].loss)
            # `sampled` throws a coin for every image: many steps, for the mean.
            times = 3 if quick else {64: 6, 32: 12, 16: 40}[size]
            counted = 2 if quick else 20
            seconds = interleave(
                {name: partial(repeat, each.advance, times) for name, each in trainers.items()},
                rounds,
            )
            found[str(size)] = {
                name: {
                    "seconds": [turn / times for turn in seconds[name]],
                    # A coin per image again; counting is slow, and the shares are the same.
                    "flops": flops(partial(repeat, each.advance, counted), counted * case.batch)
                    if size == COUNTED
                    else None,
                }
                for name, each in trainers.items()
            }
            found[str(size)] |= {
                "batch": case.batch,
                "precision": trainers[STANDARD].run.precision.name,
            }
    return {"sizes": found}


def cost(size: dict[str, Any], name: str) -> dict[str, float]:
    """Seconds of a step in standard steps."""
    return ratios(size[name]["seconds"], size[STANDARD]["seconds"])


def table(found: dict[str, Any]) -> str:
    sizes = found["sizes"]
    heads = [f"{size} px, batch {each['batch']}" for size, each in sizes.items()]
    lines = [f"| loss | FLOPs | {' | '.join(heads)} | at most |", "|" + "---|" * (len(sizes) + 3)]
    first = sizes[str(COUNTED)]
    for name in LOSSES:
        work = first[name]["flops"] / first[STANDARD]["flops"]
        cells = [name, f"{work:.3f}", *(text(cost(each, name)) for each in sizes.values())]
        limit = LIMITS.get(name)
        cells.append(f"{limit:.2f}" if limit else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
