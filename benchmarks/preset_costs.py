"""What every preset costs: measured here, projected for GPUs.

    python -m benchmarks preset_costs

Steps of every diffusion preset are timed on this machine, at as many images as a small machine
likes, with DREAM at its full height, and their memory is measured.  Hours here are images seen /
images per second.  GPUs are arithmetic: FLOPs (counted by `dreamlib explain`) / an assumed share of
the peak.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from benchmarks.timing import apart, counted
from dreamlib.config.factory import total_steps
from dreamlib.config.load import load_config, preset_names
from dreamlib.config.schema import Config, span_steps
from dreamlib.training.cost import step_memory, step_seconds

IMAGES = {"celeba": 162_770, "fashion": 60_000, "mnist": 60_000}
FOLDER = 12_000  # training images of a folder of 15,000: a fifth is held out
# FLOP/s: the makers' figures for fp16 and bf16; for the H200 (989) what large products reach
PEAK = {"T4": 65e12, "A100": 312e12, "H200": 790e12}
DIFFUSION = [name for name in preset_names() if load_config(name).model == "diffusion"]
QUICK = ("smoke", "faces16")
SHARE = 0.4  # of the peak: assumed
PASSES = {"standard": 0.0, "sampled": 0.1, "both": 1.0}  # standard steps more while lambda > 0
BYTES = 16  # of a checkpoint per parameter: weights, averages and two moments, each float32
MUON_BYTES = 12  # nearly: it keeps one moment of most weights
FEW = 25  # steps of DPM-Solver++
TURN = 250e9  # FLOPs of a step that is timed: a second or so on two cores


@dataclass(frozen=True)
class Cost:
    preset: str
    images: int  # seen in training
    step: int  # FLOPs of a training step per image, standard loss
    work: float  # FLOPs of the training
    sampling: float  # FLOPs of 5,000 images as the preset samples
    few: float  # and in FEW steps
    checkpoint: int  # bytes


@cache
def cost(preset: str) -> Cost:
    config = load_config(preset)
    found = counted(config)
    per_epoch = (config.data.first or IMAGES.get(config.data.name, FOLDER)) / config.train.batch
    steps = total_steps(config, per_epoch)
    images = steps * config.train.batch
    work = images * found.step * _more(config, per_epoch, steps)
    sampling = 5000 * found.forward * config.sample.steps
    few = 5000 * found.forward * FEW
    kept = MUON_BYTES if config.train.optimizer == "muon" else BYTES
    return Cost(preset, images, found.step, work, sampling, few, kept * found.total)


def _more(config: Config, per_epoch: float, steps: int) -> float:
    """Mean cost of a step, in standard steps: DREAM's share begins at `loss.start`."""
    if config.loss.name == "standard":
        return 1.0
    start = span_steps(config.loss.start, epoch=per_epoch, total=steps)
    return 1 + PASSES[config.loss.estimator] * (1 - start / steps)


def batch_of(config: Config, work: int) -> int:
    """Images of the step that is timed."""
    return max(1, min(config.train.batch, int(TURN / work)))


def measure(rounds: int, quick: bool) -> dict[str, Any]:
    """Images per second and memory of every preset's training step on this machine."""
    found = {}
    for name in QUICK if quick else DIFFUSION:
        config = load_config(name)
        batch = batch_of(config, cost(name).step)
        seconds = apart(step_seconds, config, batch, rounds)
        found[name] = {
            "batch": batch,
            "images_per_s": batch / seconds,
            "bytes": step_memory(config, batch),
        }
    return {"presets": found}


def span_text(seconds: float) -> str:
    if seconds >= 3 * 86400:
        return f"{seconds / 86400:.0f} d"
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else "< 1 min"


def table(found: dict[str, Any]) -> str:
    return training_table(found["presets"]) + "\n\n" + sampling_table(found["presets"])


def training_table(measured: dict[str, Any]) -> str:
    lines = [
        "| preset | images seen | GFLOP per image, DREAM included | images/s here (at once) "
        "| memory of that step | here | T4 | A100 | H200 | checkpoint |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, here in measured.items():
        each = cost(name)
        cells = [f"{each.images / 1e6:.2f} M", f"{each.work / each.images / 1e9:.3g}"]
        cells += [f"{here['images_per_s']:.3g} ({here['batch']})"]
        cells += [
            f"{here['bytes'] / 2**20:,.0f} MiB",
            span_text(each.images / here["images_per_s"]),
        ]
        cells += [span_text(each.work / (SHARE * peak)) for peak in PEAK.values()]
        lines.append(f"| `{name}` | {' | '.join(cells)} | {each.checkpoint / 1e6:.0f} MB |")
    return "\n".join(lines)


def sampling_table(measured: dict[str, Any]) -> str:
    """5,000 images with the preset's own sampler, and in FEW steps."""
    lines = [
        f"| preset | steps | T4 | A100 | H200 | in {FEW} steps, T4 |",
        "|---|---|---|---|---|---|",
    ]
    for name in measured:
        each = cost(name)
        cells = [str(load_config(name).sample.steps)]
        cells += [span_text(each.sampling / (SHARE * peak)) for peak in PEAK.values()]
        lines.append(
            f"| `{name}` | {' | '.join(cells)} | {span_text(each.few / (SHARE * PEAK['T4']))} |"
        )
    return "\n".join(lines)
