"""Training a diffusion model: one optimizer step."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from dreamlib.config.factory import make_optimizer
from dreamlib.diffusion.denoiser import NO_LABEL
from dreamlib.diffusion.losses import Batch, Perturb
from dreamlib.diffusion.schedules import draw_times
from dreamlib.diffusion.unet import UNet
from dreamlib.runs.run import Run
from dreamlib.training.base import BaseTrainer, gradient_norm
from dreamlib.training.ranks import Ranks
from dreamlib.training.tasks import STATS, DiffusionTask
from dreamlib.utils.rng import torch_rng

QUARTILES = 4  # of the timesteps


def clip_gradients(net: nn.Module, most: float) -> Tensor:
    """Scale the gradients down to a norm of at most `most`; returns the norm before.

    torch multiplies by 1 where nothing is to be done, so that a GPU need not be waited for; on a
    CPU there is nobody to wait for, and the pass over the gradients is spared.
    """
    if next(net.parameters()).device.type == "cpu":
        norm = gradient_norm(net)
        if norm + 1e-6 <= most:  # where its factor is 1
            return norm
    return nn.utils.clip_grad_norm_(net.parameters(), most)


class Meter:
    """Means over the steps since the last log row; part of the state, so that a resumed run's
    log equals an undisturbed one's."""

    def __init__(self, device: torch.device):
        exact = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self.sums = torch.zeros(len(STATS), QUARTILES, dtype=exact, device=device)
        self.counts = torch.zeros(QUARTILES, dtype=exact, device=device)
        self.norm = torch.zeros((), dtype=exact, device=device)
        self.skipped = torch.zeros_like(self.norm)
        self.steps = 0

    def add(self, quartile: Tensor, stats: dict[str, Tensor], norm: Tensor) -> None:
        """quartile int64 [B], every value of `stats` [B]: one per image."""
        values = torch.stack([stats[name] for name in STATS]).to(self.sums.dtype)
        self.sums.index_add_(1, quartile, values)
        self.counts.index_add_(0, quartile, torch.ones_like(values[0]))
        # Loss scaling finds its scale by overflowing now and then; such a step is not taken.
        taken = torch.isfinite(norm)
        self.norm += torch.where(taken, norm, 0)
        self.skipped += ~taken
        self.steps += 1

    def row(self) -> dict[str, Any]:
        """The means, as plain numbers; a quartile that no image fell into is None."""
        counts = self.counts.tolist()
        sums = dict(zip(STATS, self.sums.tolist()))
        means = {k: [s / n if n else None for s, n in zip(v, counts)] for k, v in sums.items()}
        return {
            "loss": sum(sums["loss"]) / sum(counts),
            "loss_by_quartile": means["loss"],
            "error_by_quartile": [_root(x) for x in means["error"]],  # rms of D = eps - eps_hat
            "shift_by_quartile": [_root(x) for x in means["shift"]],  # rms of input - x_t
            "lam": sum(sums["lam"]) / sum(counts),
            "lam_by_quartile": means["lam"],
            "grad_norm": float(self.norm) / max(self.steps - float(self.skipped), 1),
            "skipped_steps": int(self.skipped),
        }

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            is_tensor = isinstance(value, Tensor)
            setattr(self, name, value.to(self.sums) if is_tensor else value)


def _root(mean_square: float | None) -> float | None:
    return None if mean_square is None else mean_square**0.5


class DiffusionTrainer(BaseTrainer[UNet]):
    """Net, averaged weights, optimizer, loss scaler and log means; one step at a time."""

    PARTS: ClassVar[dict[str, str]] = {
        name: name for name in ("net", "ema", "optimizer", "scaler", "meter")
    }

    def __init__(self, run: Run, ranks: Ranks | None = None):
        config = run.config
        super().__init__(run, DiffusionTask, config.train.ema, ranks)
        self.optimizer = make_optimizer(config, self.net, self.device)
        self.rates = {"optimizer": config.train.lr}
        group = self.optimizer.param_groups[0]
        self.own = {name: group[name] for name in ("fused", "weight_decay")}
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=run.precision.scale)
        self.calmed = 0  # times, in this session

    def new_meter(self) -> Meter:
        return Meter(self.device)

    # ------------------------------------------------------------------ one step

    def take_step(self) -> dict[str, Any] | None:
        batch = self.draw(self.step)
        self.set_lr()
        stats = self.micro.redo_smaller(lambda micro: self.accumulate(batch, micro))
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.net, self.config.train.clip)
        self.whole = False
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.ema.update_parameters(self.net)
        quartile = (batch.t * QUARTILES // len(self.task.sched)).to(self.device)
        self.meter.add(quartile, stats, norm)
        return self.count_step()

    def probe(self) -> None:
        """Find a micro-batch that fits before the first step: try that step, throw it away.

        What the optimizer will hold is kept free meanwhile.  On a GPU only: a machine's own
        memory is swapped, not refused.
        """
        if self.device.type == "cuda":
            self.try_step()

    def try_step(self) -> None:
        batch = self.draw(self.step)
        weights = sum(p.numel() for p in self.net.parameters())
        still_to_come = 0 if self.optimizer.state else 2 * weights

        def work(micro: int) -> None:
            ballast = torch.empty(still_to_come, device=self.device)
            self.accumulate(batch, micro)
            del ballast

        self.micro.redo_smaller(work)
        self.optimizer.zero_grad(set_to_none=True)

    def draw(self, step: int) -> Batch:
        """The batch of a step: images, timesteps and noise for all of it, before any slicing."""
        x0, rng = self.stream[step], torch_rng("step", self.seed, step)
        t = draw_times("uniform", len(self.task.sched), len(x0), rng)
        eps = torch.randn(x0.shape, generator=rng)
        coin = torch.rand(len(x0), generator=rng)
        xi = torch.randn(x0.shape, generator=rng) if isinstance(self.task.loss, Perturb) else None
        if (kind := self.config.train.times) != "uniform":  # all else stays as it is
            again = torch_rng("times", self.seed, step)
            t = draw_times(kind, len(self.task.sched), len(x0), again)
        return Batch(x0, t, eps, coin, xi, self.labels(step))

    def labels(self, step: int) -> Tensor | None:
        """The labels of a step's images, int64 [B,A], those of a few images withheld: what the
        network says of them is the unconditional answer that guidance starts from."""
        if not self.config.net.conditional:
            return None
        y = torch.from_numpy(self.data.labels[self.stream.rows_at(step)].astype(np.int64))
        coins = torch.rand(len(y), generator=torch_rng("labels", self.seed, step))
        y[coins < self.config.train.label_dropout] = NO_LABEL
        return y

    def accumulate(self, batch: Batch, micro: int) -> dict[str, Tensor]:
        """Gradients of the batch's mean weighted loss; what the log should know of each image."""
        one = torch.ones((), device=self.device)  # asked so, the scaler makes nobody wait for a GPU
        scale = self.scaler.scale(one) if self.scaler.is_enabled() else 1.0
        facts = {"seed": self.seed, "step": self.step, "scale": scale}
        return self.sharing.gradients("step", batch, micro, facts)

    def numbers(self) -> dict[str, Any]:
        return {"the loss": self.meter.sums} | super().numbers()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not state["scaler"]:  # saved without loss scaling, on another kind of device
            state = state | {"scaler": self.scaler.state_dict()}
        super().load_state_dict(state)
        for group in self.optimizer.param_groups:
            group |= self.own  # a fork's own settings, and what this device can do

    def calm(self) -> str:
        """After NaN: give the loss scaler, if there is one, a scale a sixteenth as large; the
        second time, a sixteenth of that, as the checkpoint brought the first scale back."""
        if not self.scaler.is_enabled():
            return super().calm()
        self.calmed += 1
        self.scaler.update(self.scaler.get_scale() / 16**self.calmed)
        return f"with the loss scale lowered to {self.scaler.get_scale():g}"
