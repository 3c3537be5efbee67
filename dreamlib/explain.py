"""What a preset's network is made of and what it costs: counted or measured.

Only `micro_batches`, for GPUs that are not here, is a projection.
"""

from __future__ import annotations

import re
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dreamlib.build import (
    make_denoiser,
    make_loss,
    make_net,
    make_optimizer,
    make_schedule,
    total_steps,
)
from dreamlib.data.faces import ATTRIBUTES
from dreamlib.diffusion.dream import Batch
from dreamlib.diffusion.ema import Averaged
from dreamlib.errors import ConfigError
from dreamlib.explain_gan import forward_work, parts, players, step_work, steps
from dreamlib.host import choose_device, choose_precision
from dreamlib.progress import duration
from dreamlib.runtime.memory import is_out_of_memory
from dreamlib.sections import Config

GPUS = (4, 8, 12, 16, 24, 40, 80)  # GiB
SHARE = 0.85  # of the memory: the rest is the GPU's own and what fragments leave unused


@dataclass(frozen=True)
class Explanation:
    """Parameters by block, and the work of one image in FLOPs (a multiply-add counts two)."""

    blocks: list[tuple[str, int]]
    total: int
    forward: int
    step: int
    what: str = "standard loss"

    def text(self) -> str:
        wide = max(len(name) for name, _ in self.blocks)
        lines = [f"{name:<{wide}}  {count:>12,}" for name, count in self.blocks]
        lines.append(f"{'total':<{wide}}  {self.total:>12,}")
        lines.append("")
        lines.append(f"forward pass      {self.forward / 1e9:8.3f} GFLOP per image")
        lines.append(f"training step     {self.step / 1e9:8.3f} GFLOP per image ({self.what})")
        return "\n".join(lines)


def usual_images(config: Config) -> tuple[int, tuple[int, ...]]:
    """Channels and label counts of the images that the config names, without opening them.

    A folder's and CelebA's are taken for colour images without labels: only their files know.
    """
    if config.data.name == "faces":
        return 3, tuple(len(values) for values in ATTRIBUTES.values())
    if config.data.name in ("folder", "celeba"):
        return 3, ()
    return 3 if config.data.name == "cifar10" else 1, (10,)


def explain(config: Config) -> Explanation:
    """Count a network's parameters and FLOPs.  Needs no images."""
    channels, labels = usual_images(config)
    if config.model == "gan":
        return _explain_gan(config, channels)
    net = make_net(config, channels, labels)
    x = torch.zeros(1, channels, config.data.size, config.data.size)
    with sdpa_kernel(SDPBackend.MATH):  # not every torch counts what its fused attention does
        with FlopCounterMode(display=False) as forward:
            out = net(x, torch.zeros(1, dtype=torch.int64))
        with FlopCounterMode(display=False) as backward:
            out.sum().backward()
    blocks = [(name, count_parameters(part)) for name, part in _parts(net, config.net.widths)]
    total = count_parameters(net)
    work = forward.get_total_flops()
    return Explanation(blocks, total, work, work + backward.get_total_flops())


def _explain_gan(config: Config, channels: int) -> Explanation:
    net, judge = players(config, channels)
    blocks = [(name, sum(map(count_parameters, each))) for name, each in parts(net, judge)]
    start = net.synthesis.start.numel()
    blocks.insert(1, ("constant", start))
    work = step_work(config, net, judge, channels)
    total = count_parameters(net) + count_parameters(judge)
    what = "both players, with their regularisers"
    return Explanation(blocks, total, forward_work(net), work, what)


def step_memory(config: Config, batch: int) -> int:
    """Bytes at the peak of training steps of `batch` images at once, measured on this machine.

    Two steps run in a process of its own, because a process's peak only ever grows: on CUDA what
    torch allocated, else by how much the process grew.  Raises ConfigError when that is more than
    there is, and where the system does not tell.
    """
    device = choose_device(config.train.device)
    if device.type == "mps" or (device.type == "cpu" and sys.platform == "win32"):
        raise ConfigError(
            f"peak memory cannot be read on {device.type} under {sys.platform}: measure on CUDA, "
            "or on a CPU under Linux or macOS (--set train.device=cpu)"
        )
    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return pool.submit(_growth, config, batch, device).result()
    except RuntimeError as error:  # a killed process is one, too
        if not (isinstance(error, BrokenProcessPool) or is_out_of_memory(error)):
            raise
        raise ConfigError(
            f"{batch} images at once do not fit into the memory of {device}: try a smaller --batch"
        ) from error


def step_seconds(config: Config, batch: int, steps: int = 5) -> float:
    """Seconds of a training step of `batch` images on this machine: the median of `steps`, after
    one that warms up, with DREAM fully ramped up."""
    seconds, device = [], choose_device(config.train.device)
    begun = time.perf_counter()
    for _ in training_steps(config, batch, device, steps + 1):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begun)
        begun = time.perf_counter()
    return statistics.median(seconds[1:])


def forecast(config: Config, epoch: float, most: int = 16) -> str:
    """How long the training would take here, in a sentence; `epoch` is the steps of one epoch.

    A projection: from a few measured steps of at most `most` images, as if it took that long all
    the time and for every image.
    """
    batch = min(config.train.batch, most)
    seconds = step_seconds(config, batch)
    total = total_steps(config, epoch)
    whole = total * seconds * config.train.batch / batch
    return (
        f"Measured: a step of {batch} images takes {seconds:.3g} s here, {batch / seconds:,.3g} "
        f"images/s. Projected: {duration(whole)} for the {total:,} steps of "
        f"{config.train.batch} images of {config.preset}."
    )


def micro_batches(config: Config) -> dict[int, int]:
    """GiB of free GPU memory -> images per forward pass that fit into SHARE of it; 0 for none.

    A projection from two measurements (`step_memory`), at an eighth and a 32nd of the batch: memory
    grows by as much for every further image.  The batch itself is never touched.
    """
    batch = config.train.batch
    more = max(2, batch // 8)
    few = max(1, more // 4)
    low, high = step_memory(config, few), step_memory(config, more)
    each = max(1.0, (high - low) / (more - few))
    fixed = low - few * each
    fits = {gib: int((SHARE * gib * 2**30 - fixed) / each) for gib in GPUS}
    return {g: min(batch, 1 << (n.bit_length() - 1)) if n > 0 else 0 for g, n in fits.items()}


def _growth(config: Config, batch: int, device: torch.device) -> int:
    before = peak_bytes(device)
    # The second step stands beside the optimizer's state.
    for _ in training_steps(config, batch, device, 2):
        pass
    return peak_bytes(device) - before


def peak_bytes(device: torch.device) -> int:
    """Most bytes held so far by this process, or by torch on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":  # where getrusage's peak would begin at the parent's
        found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
        return int(found[1]) * 1024  # type: ignore[index]
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def training_steps(config: Config, batch: int, device: torch.device, count: int) -> Iterator[None]:
    """Optimizer steps on noise, with DREAM fully ramped up: the dearest steps of a training."""
    channels, labels = usual_images(config)
    if config.model == "gan":
        yield from steps(config, channels, batch, device, count)
        return
    net = make_net(config, channels, labels).to(device)
    ema = Averaged(net, config.train.ema)
    optimizer = make_optimizer(config, net, device)
    sched, loss = make_schedule(config), make_loss(config, epoch=1, total=1)
    precision = choose_precision(config.train.precision, device)
    denoiser = make_denoiser(config, net, sched, precision)
    x = torch.randn(batch, channels, config.data.size, config.data.size, device=device)
    t = torch.linspace(0, len(sched) - 1, batch, device=device).long()
    y = torch.zeros(batch, len(labels), dtype=torch.int64, device=device)
    told = y if config.net.conditional else None
    data = Batch(x, t, x, torch.linspace(0, 1, batch, device=device), x, told)
    for _ in range(count):
        for error, _ in loss(denoiser, sched, data, sys.maxsize):
            error.mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update_parameters(net)
        yield


def count_parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def _parts(net: nn.Module, widths: tuple[int, ...]) -> list[tuple[str, nn.Module]]:
    """The network's blocks in the order in which an image passes them."""
    levels = range(len(widths))
    labels = [("labels", net.labels)] if net.labels else []
    parts = [("time", net.time), *labels, ("stem", net.stem)]
    for i in levels:
        parts += [(f"down {i + 1} ({widths[i]})", net.down[i]), (f"shrink {i + 1}", net.shrink[i])]
    parts.append(("middle", net.middle))
    for i in reversed(levels):
        parts += [(f"grow {i + 1}", net.grow[i]), (f"up {i + 1} ({widths[i]})", net.up[i])]
    return [*parts, ("norm", net.norm), ("head", net.head)]
