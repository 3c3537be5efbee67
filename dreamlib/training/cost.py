"""What a preset's network is made of and what it costs: counted, measured, or projected."""

from __future__ import annotations

import itertools
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dreamlib.config import factory as build
from dreamlib.config.schema import Config
from dreamlib.data.faces import ATTRIBUTES
from dreamlib.diffusion.ema import Averaged
from dreamlib.diffusion.losses import Batch
from dreamlib.diffusion.unet import UNet
from dreamlib.gan import losses as gan_losses
from dreamlib.gan.augment import draw_maps
from dreamlib.gan.stylegan2 import GROUP, Discriminator, Generator
from dreamlib.training.base import is_out_of_memory
from dreamlib.training.slices import accumulate
from dreamlib.training.tasks import DiffusionTask, GanTask
from dreamlib.utils.errors import ConfigError
from dreamlib.utils.platform import choose_device, choose_precision
from dreamlib.utils.progress import duration
from dreamlib.utils.rng import torch_rng

GPUS = (4, 8, 12, 16, 24, 40, 80)  # GiB
P = 0.5  # of a GAN's augmentation in steps that are measured
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
        lines += [f"{'total':<{wide}}  {self.total:>12,}", ""]
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
    net = build.make_unet(config, channels, labels)
    x = torch.zeros(1, channels, config.data.size, config.data.size)
    t = torch.zeros(1, dtype=torch.int64)
    # MATH: not every torch counts what its fused attention does
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        answer = net(x, t)
        forward = counter.get_total_flops()
        answer.sum().backward()
    step = counter.get_total_flops()
    blocks = [(name, count_parameters(part)) for name, part in _parts(net, config.net.widths)]
    return Explanation(blocks, count_parameters(net), forward, step)


def _explain_gan(config: Config, channels: int) -> Explanation:
    net = build.make_generator(config, channels)
    discriminator = build.make_discriminator(config, channels)
    parts = _gan_parts(net, discriminator)
    blocks = [(name, sum(map(count_parameters, each))) for name, each in parts]
    blocks.insert(1, ("constant", net.synthesis.start.numel()))
    draws = _blank(net, 1)
    with torch.no_grad():
        forward = _flops(lambda: net(draws.z, draws.noise))
    total = count_parameters(net) + count_parameters(discriminator)
    what = "both players, with their regularisers"
    step = _gan_work(config, net, discriminator, channels)
    return Explanation(blocks, total, forward, step, what)


def _flops(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def _blank(net: Generator, images: int) -> gan_losses.Draws:
    """Draws of zeros, on whichever device tensors are made: counting needs no numbers."""
    z, cut = torch.zeros(images, net.z_dim), torch.zeros(images, dtype=torch.int64)
    noise = [torch.zeros(images, 1, n, n) for n in net.synthesis.noise_sizes]
    return gan_losses.Draws(z, z, cut, noise)


def _gan_work(config: Config, net: Generator, discriminator: Discriminator, channels: int) -> int:
    """FLOPs of a step per image: both players, and their regularisers as often as they come."""
    gan, real = config.gan, torch.zeros(GROUP, channels, config.data.size, config.data.size)
    draws = _blank(net, GROUP)
    half = draws.rows(slice(GROUP // 2))

    def both() -> None:
        gan_losses.discriminator_losses(net, discriminator, real, draws)[0].sum().backward()
        made, _ = gan_losses.generator_losses(net, discriminator, draws)
        made.sum().backward(inputs=list(net.parameters()))

    def penalty() -> None:  # the counter does not like gradients of a leaf
        x = real.clone().requires_grad_()
        gan_losses.r1(discriminator(1 * x), x).sum().backward()

    def path() -> None:
        gan_losses.path_losses(net, half, real[: GROUP // 2], 1.0, 1.0)[0].sum().backward()

    total: float = _flops(both)
    if gan.r1 != 0:
        total += _flops(penalty) / gan.r1_every
    if gan.path != 0:
        total += _flops(path) / gan.path_every
    return round(total / GROUP)


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
        if not (isinstance(error, BrokenExecutor) or is_out_of_memory(error)):
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
    total = build.total_steps(config, epoch)
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
    for _ in training_steps(config, batch, device, 2):  # the second beside the optimizer's state
        pass
    return peak_bytes(device) - before


def peak_bytes(device: torch.device) -> int:
    """Most bytes held so far by this process, or by torch on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":  # where getrusage's peak would begin at the parent's
        found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
        return int(found[1]) * 1024  # pyright: ignore  every Linux has it
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def training_steps(config: Config, batch: int, device: torch.device, count: int) -> Iterator[None]:
    """Optimizer steps on noise, with DREAM fully ramped up: the dearest steps of a training."""
    channels, labels = usual_images(config)
    size, gan = config.data.size, config.model == "gan"
    precision = choose_precision("fp32" if gan else config.train.precision, device)
    build_task = GanTask if gan else DiffusionTask
    task = build_task(config, (channels, list(labels)), (1, 1), device, precision)
    ema = Averaged(task.net, config.train.ema)
    batch = max(task.least, batch // task.least * task.least)
    x = torch.randn(batch, channels, size, size, device=device)
    steps = _gan_step(config, task, x) if isinstance(task, GanTask) else _step(config, task, x)
    for _ in itertools.islice(steps, count):
        ema.update_parameters(task.net)
        yield


def _step(config: Config, task: DiffusionTask, x: Tensor) -> Iterator[None]:
    batch, optimizer = len(x), build.make_optimizer(config, task.net, x.device)
    t = torch.linspace(0, len(task.sched) - 1, batch).long()
    y = torch.zeros(batch, len(usual_images(config)[1])).long() if config.net.conditional else None
    data = Batch(x, t, x, torch.linspace(0, 1, batch), x, y)
    facts = {"size": batch, "seed": 0, "step": sys.maxsize, "scale": 1.0}
    while True:
        accumulate(task, "step", data, facts, batch)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield


def _gan_step(config: Config, task: GanTask, real: Tensor) -> Iterator[None]:
    """Augmented; each regulariser that the preset has once in as many steps as it comes."""
    gan, batch, channels, size = config.gan, *real.shape[:3]
    facts = {"size": batch, "weight": 1.0, "mean": 1.0}
    judge, maker = (
        torch.optim.Adam(each.parameters(), fused=True) for each in (task.discriminator, task.net)
    )
    optimizers = {"judge": judge, "r1": judge, "maker": maker, "path": maker}

    def take(what: str, *rows: Any) -> None:
        accumulate(task, what, rows, facts, batch)
        optimizers[what].step()
        optimizers[what].zero_grad(set_to_none=True)

    for number in itertools.count():
        rng = torch_rng("explain", number)
        draws = gan_losses.draw(task.net, batch, gan.mixing, rng)
        maps = draw_maps(batch, channels, size, P, rng) if gan.ada else None
        take("judge", real, draws, maps, maps)
        if gan.r1 != 0 and number % gan.r1_every == 0:
            take("r1", real, maps)
        take("maker", draws, maps)
        if gan.path != 0 and number % gan.path_every == 0:
            take("path", draws.rows(slice(batch // 2)), real[: batch // 2])
        yield


def count_parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def _parts(net: UNet, widths: tuple[int, ...]) -> list[tuple[str, nn.Module]]:
    """The network's blocks in the order in which an image passes them."""
    labels: list[tuple[str, nn.Module]] = [("labels", net.labels)] if net.labels else []
    parts: list[tuple[str, nn.Module]] = [("time", net.time), *labels, ("stem", net.stem)]
    for i in range(len(widths)):
        parts += [(f"down {i + 1} ({widths[i]})", net.down[i]), (f"shrink {i + 1}", net.shrink[i])]
    parts.append(("middle", net.middle))
    for i in reversed(range(len(widths))):
        parts += [(f"grow {i + 1}", net.grow[i]), (f"up {i + 1} ({widths[i]})", net.up[i])]
    return [*parts, ("norm", net.norm), ("head", net.head)]


def _gan_parts(net: Generator, discriminator: Discriminator) -> list[tuple[str, list[nn.Module]]]:
    """Both networks' blocks, in the order in which z, and an image, pass them."""
    draws, size = net.synthesis, 4
    found = [("mapping", [net.mapping]), ("generator 4", [draws.first, draws.images[0]])]
    for up, conv, image in zip(draws.ups, draws.convs, list(draws.images)[1:]):
        size *= 2
        found.append((f"generator {size}", [up, conv, image]))
    found.append((f"discriminator {size}", [discriminator.first]))
    for block in discriminator.blocks:
        found.append((f"discriminator {size} to {size // 2}", [block]))
        size //= 2
    last = [discriminator.last, discriminator.hidden, discriminator.logit]
    return [*found, ("discriminator 4", last)]
