"""A training step of each library at an equal number of parameters, 64, 32 and 16 pixels.

    python -m benchmarks training_step

`fp32` is ours in the peers' precision; `ours` is what a preset does on this machine.  Peers are as
their documentation has them (`peers`).  A step of ours is the trainer's own, with its keyed noise,
log means, clipping and averages.  FLOPs are counted; FLOP/s are those over the measured time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers import Diffusers, Lucidrains
from benchmarks.timing import interleave, repeat, spread, text
from dreamlib.runs.open import open_run
from dreamlib.training.diffusion import DiffusionTrainer

PARITY = 0.03  # parameter counts differ by at most this
SIZES = (64, 32, 16)
CHANNELS = 3
OURS, FP32 = "ours", "ours, fp32"


@dataclass(frozen=True)
class Case:
    """Networks of equal size for one image size."""

    preset: str
    batch: int
    lucidrains: tuple[int, tuple[int, ...]]
    widths: tuple[int, ...]  # of diffusers' UNet2DModel
    attention: tuple[int, ...]  # its levels that attend
    blocks: int = 2
    groups: int = 8  # its default, 32, does not divide narrow levels

    def diffusers(self, size: int) -> Diffusers:
        levels = range(len(self.widths))
        attends = ["Attn" if i in self.attention else "" for i in levels]
        return Diffusers(
            size,
            CHANNELS,
            block_out_channels=self.widths,
            layers_per_block=self.blocks,
            down_block_types=tuple(f"{a}DownBlock2D" for a in attends),
            up_block_types=tuple(f"{a}UpBlock2D" for a in reversed(attends)),
            norm_num_groups=self.groups,
        )


CASES = {
    64: Case("celeba64", 4, (80, (1, 2, 4, 8)), (128, 128, 256, 480), (2,), groups=32),
    32: Case("fashion32", 16, (38, (1, 2, 4, 8)), (32, 64, 128, 128, 200), (1, 2)),
    16: Case("faces16", 32, (12, (1, 2, 4, 8)), (48, 56, 80), (), blocks=1),
}


def trainer(home: Path, case: Case, size: int, *settings: str) -> DiffusionTrainer:
    """Ours for a case, on drawn faces: what the images show costs nothing."""
    data = ["data.name=faces", "data.train=256", "data.reference=8", "data.floor=8"]
    plain = ["loss.name=standard", "data.flip=false", "data.first=null"]
    quiet = ["train.log_every=1000000", "train.length=100000", f"train.batch={case.batch}"]
    overrides = [*data, *plain, *quiet, *settings]
    name = "-".join(["run", str(size), *(s.replace("=", "-") for s in settings)])
    return DiffusionTrainer(
        open_run(home / name, case.preset, overrides=overrides, say=lambda text: None)
    )


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def flops(step: Callable[[], Any], images: int) -> float:
    """FLOPs per image that a step multiplies (matrix products, convolutions, attention)."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / images


def arms(home: Path, size: int) -> dict[str, tuple[nn.Module, Callable[[], Any]]]:
    """Network and step of every library, by name."""
    case = CASES[size]
    x0 = torch.rand(case.batch, CHANNELS, size, size) * 2 - 1
    found: dict[str, tuple[nn.Module, Callable[[], Any]]] = {}
    for name, precision in ((OURS, "auto"), (FP32, "fp32")):
        own = trainer(home, case, size, f"train.precision={precision}")
        found[name] = own.net, own.advance
    dim, mults = case.lucidrains
    lucidrains = Lucidrains(size, CHANNELS, dim, mults)
    diffusers = case.diffusers(size)
    found["diffusers"] = diffusers.net, _bind(diffusers.step, x0)
    found["lucidrains"] = lucidrains.net.model, _bind(lucidrains.step, x0)
    return found


def _bind(step: Callable[[Tensor], Any], x0: Tensor) -> Callable[[], Any]:
    return lambda: step(x0)


def measure(rounds: int, quick: bool) -> dict[str, Any]:
    """Seconds per step of every library at every size, in turns, with its FLOPs and parameters."""
    found = {}
    with tempfile.TemporaryDirectory() as home:
        for size in SIZES[-1:] if quick else SIZES:  # the others take seconds a step
            case, libraries = CASES[size], arms(Path(home), size)
            # Turns of about two seconds: a step at 64 pixels, several where it takes less.
            times = 3 if quick else {64: 2, 32: 8, 16: 20}[size]
            seconds = interleave(
                {name: partial(repeat, step, times) for name, (_, step) in libraries.items()},
                rounds,
            )
            found[str(size)] = {
                name: {
                    "seconds": [turn / times for turn in seconds[name]],
                    "batch": case.batch,
                    "flops": flops(step, case.batch),
                    "parameters": parameters(net),
                }
                for name, (net, step) in libraries.items()
            }
    return {"sizes": found}


def rate_ratio(size: dict[str, Any], ours: str, peer: str) -> dict[str, float]:
    """Our FLOP/s over a peer's, round by round."""
    a, b = size[ours], size[peer]
    work = a["flops"] / b["flops"]
    return spread([work * t / s for t, s in zip(b["seconds"], a["seconds"])])


def image_ratio(size: dict[str, Any], ours: str, peer: str) -> dict[str, float]:
    """Our images per second over a peer's, round by round."""
    return spread([t / s for t, s in zip(size[peer]["seconds"], size[ours]["seconds"])])


def table(found: dict[str, Any]) -> str:
    lines = [
        "| pixels, batch | library | parameters | GFLOP per image | images/s | GFLOP/s "
        "| FLOP/s: fp32 / this | ours / this | images/s: fp32 / this | ours / this |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for size, each in found["sizes"].items():
        for name, arm in each.items():
            pace = arm["batch"] / median(arm["seconds"])
            cells = [f"{size}, {arm['batch']}", name, f"{arm['parameters']:,}"]
            cells += [
                f"{arm['flops'] / 1e9:.2f}",
                f"{pace:.3g}",
                f"{pace * arm['flops'] / 1e9:.0f}",
            ]
            for compare in (rate_ratio, image_ratio):
                for ours in (FP32, OURS):
                    cells.append("" if name == ours else text(compare(each, ours, name)))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
