"""Training a GAN: one step of both players."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from dreamlib.gan import losses as gan_losses
from dreamlib.gan.augment import Adaptive, Maps, draw_maps
from dreamlib.gan.losses import Draws, Stats
from dreamlib.gan.stylegan2 import Generator
from dreamlib.runs.run import Run
from dreamlib.training.base import BaseTrainer, gradient_norm
from dreamlib.training.ranks import Ranks
from dreamlib.training.tasks import GanTask
from dreamlib.utils.errors import Collapsed
from dreamlib.utils.rng import torch_rng

BETAS = (0.0, 0.99)  # Karras 2019, App. C
W_DECAY = 0.995  # of the mean style
FLAT = 1e-3  # standard deviation, in [-1, 1], below which images are one image, or one colour


class Means:
    """Means over the steps since the last log row, by name; part of the state."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, stats: Stats) -> None:
        for name, values in stats.items():
            total = values.double().sum() if values.device.type != "mps" else values.sum()
            self.sums[name] = self.sums[name] + total if name in self.sums else total
            self.counts[name] = self.counts.get(name, 0) + values.numel()

    def row(self) -> dict[str, float]:
        return {name: float(total) / self.counts[name] for name, total in self.sums.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"sums": dict(self.sums), "counts": dict(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])


class GanTrainer(BaseTrainer[Generator]):
    """Generator, discriminator, averages, optimizers, augmentation; one step of each at a time."""

    PARTS: ClassVar[dict[str, str]] = {
        "net": "net",
        "judge": "discriminator",
        "ema": "ema",
        "optimizer": "optimizer",
        "judge_optimizer": "discriminator_optimizer",
        "ada": "ada",
        "meter": "meter",
    }

    def __init__(self, run: Run, ranks: Ranks | None = None):
        super().__init__(run, GanTask, self.decay, ranks)
        gan, size = self.config.gan, self.config.data.size
        self.discriminator = self.task.discriminator
        r1 = gan_losses.r1_weight(size, self.batch) if gan.r1 is None else gan.r1
        path = gan_losses.path_weight(size) if gan.path is None else gan.path
        self.r1, self.path = gan.r1_every * r1, gan.path_every * path
        self.rates = {}
        self.optimizer = self._adam("optimizer", self.net, gan.path_every if self.path else 0)
        self.discriminator_optimizer = self._adam(
            "discriminator_optimizer", self.discriminator, gan.r1_every if self.r1 else 0
        )
        self.ada = Adaptive(gan.ada or 0.0, gan.ada_images)
        self.path_mean = torch.zeros((), device=self.device)

    def _adam(self, name: str, player: nn.Module, every: int) -> Adam:
        self.rates[name], betas = gan_losses.lazy(every, self.config.train.lr, BETAS)
        fused = self.device.type in ("cpu", "cuda")
        return Adam(player.parameters(), self.rates[name], betas, eps=1e-8, fused=fused)

    def decay(self, updates: int) -> float:
        """Of the averaged weights, after so many steps."""
        gan = self.config.gan
        images = gan_losses.half_life(updates * self.batch, gan.half_life, gan.ramp)
        return gan_losses.decay(self.batch, images)

    def new_meter(self) -> Means:
        return Means()

    # ------------------------------------------------------------------ one step

    def take_step(self) -> dict[str, Any] | None:
        """One step of the discriminator, one of the generator, each with its regulariser when it is
        due."""
        self.set_lr()
        stats = self.discriminator_step(self.stream[self.step]) | self.generator_step()
        self.ema.update_parameters(self.net)
        if self.config.gan.ada is not None:
            self.ada.update(stats["sign_real"].sum(), self.batch)
        self.meter.add(stats)
        return self.count_step()

    def discriminator_step(self, real: Tensor) -> Stats:
        player, optimizer = self.discriminator, self.discriminator_optimizer
        maps = self.maps("real")
        stats = self.gradients(
            "judge", real, self.draws("judge", self.batch), maps, self.maps("fake")
        )
        stats["judge_norm"] = gradient_norm(player)[None]
        self.move(optimizer)
        if self.r1 and self.step % self.config.gan.r1_every == 0:
            stats |= self.gradients("r1", real, maps, weight=self.r1)
            self.move(optimizer)
        return stats

    def generator_step(self) -> Stats:
        stats = self.gradients("maker", self.draws("maker", self.batch), self.maps("made"))
        stats["grad_norm"] = gradient_norm(self.net)[None]
        self.move(self.optimizer)
        self.net.w_mean.lerp_(stats.pop("style").mean(0), 1 - W_DECAY)
        if self.path and self.step % self.config.gan.path_every == 0:
            stats |= self.path_step()
        return stats

    def path_step(self) -> Stats:
        """On half of the batch; the first one measures the mean length only."""
        images = max(1, self.batch // 2)
        draws, rng = self.draws("path", images), torch_rng("path", self.seed, self.step)
        size = self.config.data.size
        y = torch.randn(images, self.data.channels, size, size, generator=rng)
        weight = self.path if self.path_mean > 0 else 0.0
        stats = self.gradients("path", draws, y, weight=weight, mean=float(self.path_mean))
        mean = stats["path"].mean()
        self.path_mean = self.path_mean.lerp(mean, 1 - gan_losses.PATH_DECAY) if weight else mean
        if weight:
            self.move(self.optimizer)
        return stats

    def gradients(self, what: str, *rows: Any, **facts: float) -> Stats:
        """Of the whole batch, `micro` images at a time."""
        return self.micro.redo_smaller(
            lambda micro: self.sharing.gradients(what, rows, micro, facts)
        )

    def move(self, optimizer: Optimizer) -> None:
        self.whole = False
        optimizer.step()

    def draws(self, purpose: str, images: int) -> Draws:
        rng = torch_rng(purpose, self.seed, self.step)
        return gan_losses.draw(self.net, images, self.config.gan.mixing, rng)

    def maps(self, purpose: str) -> Maps | None:
        if self.ada.p <= 0:
            return None
        rng, size = torch_rng(f"ada {purpose}", self.seed, self.step), self.config.data.size
        return draw_maps(self.batch, self.data.channels, size, self.ada.p, rng)

    def means(self) -> dict[str, Any]:
        """Collapsed when all is lost."""
        means = self.meter.row()
        self.check_alive(means)
        return means | {"p": self.ada.p}

    def check_alive(self, means: dict[str, float]) -> None:
        """Collapsed, with its name, when the generator makes one image, or one colour, or learns
        nothing."""
        what = ""
        if means["spread"] < FLAT:
            what = f"all generated images are one image (pixels differ by {means['spread']:.1e})"
        elif means["contrast"] < FLAT:
            what = f"every generated image is of one colour (contrast {means['contrast']:.1e})"
        elif means["grad_norm"] == 0:
            what = "the discriminator is so sure that the generator has no gradient left"
        if what:
            raise Collapsed(
                f"the GAN collapsed by step {self.step:,}: {what}.  Begin a new run, or fork this "
                "one from an earlier checkpoint (dreamlib run fork), with a larger gan.r1 (ten "
                "times) or a smaller train.lr"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "path_mean": self.path_mean} | super().state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.path_mean = state["path_mean"].to(self.device)
        super().load_state_dict(state)
