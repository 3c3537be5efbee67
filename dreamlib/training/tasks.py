"""What any process can compute of a batch: networks, and the losses of some of its rows.

A task knows nothing of runs, images or optimizers, so that a process that holds none of them takes
part in a step (`ranks`).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dreamlib.config.factory import (
    make_denoiser,
    make_discriminator,
    make_generator,
    make_loss,
    make_schedule,
    make_unet,
)
from dreamlib.config.schema import Config
from dreamlib.diffusion.forward_process import loss_weight
from dreamlib.diffusion.unet import Dropout
from dreamlib.gan import losses as gan_losses
from dreamlib.gan.stylegan2 import GROUP
from dreamlib.utils.platform import Precision

Facts = dict[str, Any]  # plain numbers that a step's rows share; "size" is the whole batch's
Stats = dict[str, Tensor]  # what the log should know, a value per row
STATS = ("loss", "error", "shift", "lam")  # of a diffusion model


@dataclass
class Task(ABC):
    """Networks, and what is asked of them by a word: "step" of diffusion, a GAN's four parts.

    `images`: channels, and the values of each label; `steps`: of an epoch, and in all.
    """

    config: Config
    images: tuple[int, list[int]]
    steps: tuple[float, int]
    device: torch.device
    precision: Precision
    nets: list[nn.Module] = field(init=False)
    dropout: bool = field(default=False, init=False)  # whether a step draws any
    least: ClassVar[int] = 1  # rows that go through the networks together

    @abstractmethod
    def __post_init__(self) -> None:
        """Make the networks."""

    @abstractmethod
    def reads(self, what: str) -> list[nn.Module]:
        """The networks whose weights are needed."""

    @abstractmethod
    def parameters(self, what: str) -> list[nn.Parameter]:
        """Those that get a gradient; others of the task get none meanwhile."""

    @abstractmethod
    def losses(self, what: str, rows: Any, facts: Facts, stats: Stats) -> Iterator[Tensor]:
        """Of some rows of a batch, whose sum over all rows is the batch's; fills `stats`."""

    def drawing(self, rng: torch.Generator) -> Task:
        """The same weights, for a thread beside others: its dropout draws from `rng`."""
        return self


class DiffusionTask(Task):
    """A U-Net and a DREAM loss, unweighted in the log: the error in eps, comparable everywhere."""

    def __post_init__(self) -> None:
        config = self.config
        self.net = make_unet(config, *self.images).to(self.device)
        self.nets = [self.net]
        self.sched, self.loss = make_schedule(config), make_loss(config, *self.steps)
        self.denoiser = make_denoiser(config, self.net, self.sched, self.precision)
        self.dropout = config.net.dropout > 0

    def drawing(self, rng: torch.Generator) -> DiffusionTask:
        task, weights = copy.copy(self), {id(p): p for p in self.net.parameters()}
        task.denoiser = copy.deepcopy(self.denoiser, weights)  # modules, which know their mode
        for module in task.denoiser.modules():
            if isinstance(module, Dropout):
                module.generator = rng
        return task

    def reads(self, what: str) -> list[nn.Module]:
        return self.nets

    def parameters(self, what: str) -> list[nn.Parameter]:
        return [p for p in self.net.parameters() if p.requires_grad]

    def losses(self, what: str, rows: Any, facts: Facts, stats: Stats) -> Iterator[Tensor]:
        """rows: a losses.Batch; facts: step, and the loss scale."""
        config, rows = self.config, rows.to(self.device)
        weight = loss_weight(config.diffusion.prediction, self.sched, rows.t, config.loss.min_snr)
        stats |= {name: torch.zeros(len(rows.x0), device=self.device) for name in STATS}
        for error, found in self.loss(self.denoiser, self.sched, rows, facts["step"]):
            stats["loss"] += error.detach()
            stats |= {k: value.to(self.device, torch.float32) for k, value in found.items()}
            yield facts["scale"] * ((weight * error).sum() / facts["size"])


class GanTask(Task):
    """Both players of a StyleGAN2; a slice is whole groups (`stylegan2.minibatch_std`)."""

    least = GROUP

    def __post_init__(self) -> None:
        channels = self.images[0]
        self.net = make_generator(self.config, channels).to(self.device)
        self.discriminator = make_discriminator(self.config, channels).to(self.device)
        self.nets = [self.net, self.discriminator]

    def reads(self, what: str) -> list[nn.Module]:
        return {"r1": self.nets[1:], "path": self.nets[:1]}.get(what, self.nets)

    def parameters(self, what: str) -> list[nn.Parameter]:
        judges = what in ("judge", "r1")
        self.discriminator.requires_grad_(judges)
        player = self.discriminator if judges else self.net
        return [p for p in player.parameters() if p.requires_grad]

    def losses(self, what: str, rows: Any, facts: Facts, stats: Stats) -> Iterator[Tensor]:
        """rows: the arguments of the four functions of gan/losses.py, a row per image; facts:
        weight and mean, where they take them."""
        first, *others = rows
        first, net, judge = first.to(self.device), self.net, self.discriminator
        if what == "judge":
            draws, real_maps, fake_maps = others
            draws = draws.to(self.device)
            loss, found = gan_losses.discriminator_losses(
                net, judge, first, draws, real_maps, fake_maps
            )
        elif what == "r1":
            loss, found = gan_losses.r1_losses(judge, first, others[0], facts["weight"])
        elif what == "maker":
            loss, found = gan_losses.generator_losses(net, judge, first, others[0])
        else:
            y, mean = others[0].to(self.device), facts["mean"]
            loss, found = gan_losses.path_losses(net, first, y, mean, facts["weight"])
        stats |= {name: value.detach() for name, value in found.items()}
        yield loss.sum() / facts["size"]
