"""Training: the loop that the run drives, and a diffusion model's optimizer step."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dreamlib.build import (
    make_denoiser,
    make_drawing,
    make_loss,
    make_net,
    make_optimizer,
    make_schedule,
    make_stream,
    rate_factor,
    total_steps,
)
from dreamlib.diffusion.dream import Batch, Perturb
from dreamlib.diffusion.ema import Averaged
from dreamlib.diffusion.prediction import NO_LABEL
from dreamlib.diffusion.process import loss_weight
from dreamlib.meter import QUARTILES, SEEN, Meter
from dreamlib.rng import seeded, torch_rng
from dreamlib.run import Run
from dreamlib.runtime.driver import Tick, check_finite
from dreamlib.runtime.memory import MicroBatch
from dreamlib.runtime.trainer import PREVIEWS
from dreamlib.train_gan import GanTrainer
from dreamlib.validation import Validation
from dreamlib.weights import averaged_of


def train(run: Run, hours: float | None = None) -> Iterator[Tick]:
    """Train a run from where it stands: yields a Tick per optimizer step.

    Stops at the end, at the deadline (`hours`, counted from the start of this process), or on
    a signal that asks to (runtime/clock.py); each time, and when the caller leaves the loop,
    everything is saved first.
    A finished run yields nothing.  Raises RunError when another process trains this run.
    """
    status = run.dir.status()
    if status["state"] == "finished" and run.weights_step() == status["step"]:
        run.say(
            f"FINISHED at step {status['step']:,}: nothing left to train in {run.folder}; for more "
            f"steps: dreamlib run fork {run.folder} NEW --set train.length=..."
        )
        if run.mirror and status.get("mirrored") != status["step"]:
            run.keep()  # the copy may have failed then
        return
    if run.config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch asks for it
    torch.use_deterministic_algorithms(run.config.train.deterministic)
    trainer = trainer_of(run)
    yield from run.drive(trainer, hours, Validation(run, trainer))


def trainer_of(run: Run) -> DiffusionTrainer | GanTrainer:
    """What takes the steps of the run's kind of model."""
    return GanTrainer(run) if run.config.model == "gan" else DiffusionTrainer(run)


def clip_gradients(net: nn.Module, most: float) -> Tensor:
    """Scale the gradients down to a norm of at most `most`; returns the norm before.

    torch multiplies by 1 where nothing is to be done, so that a GPU need not be waited for; on a
    CPU there is nobody to wait for, and the pass over the gradients is spared.
    """
    if next(net.parameters()).device.type == "cpu":
        norms = [torch.linalg.vector_norm(p.grad) for p in net.parameters() if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        if norm + 1e-6 <= most:  # where its factor is 1
            return norm
    return nn.utils.clip_grad_norm_(net.parameters(), most)


class DiffusionTrainer:
    """Net, averaged weights, optimizer, loss scaler and log means; one step at a time."""

    def __init__(self, run: Run):
        config, self.device = run.config, run.device
        self.run = run
        self.config, self.data = config, run.data
        self.stream = make_stream(config, run.data, self.device)
        self.epoch = self.stream.epoch_steps
        self.total = total_steps(config, self.epoch)
        self.sched = make_schedule(config)
        self.loss = make_loss(config, self.epoch, self.total)
        self.net = make_net(config, run.data.channels, run.data.label_counts).to(self.device)
        self.ema = Averaged(self.net, config.train.ema)
        self.optimizer = make_optimizer(config, self.net, self.device)
        own = self.optimizer.param_groups[0]
        self.own = {name: own[name] for name in ("fused", "weight_decay")}
        precision = run.precision
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision.scale)
        self.denoiser = make_denoiser(config, self.net, self.sched, precision)
        micro = min(config.train.micro or config.train.batch, config.train.batch)
        self.micro = MicroBatch(micro, self.smaller)
        self.meter = Meter(self.device)
        self.step = 0
        self.calmed = 0  # times, in this session
        self.whole = True  # False while a step has moved some of the state, and not yet all
        self.clock = (time.monotonic(), 0)  # when, and at which step, the last row was written

    # ------------------------------------------------------------------ one step

    def advance(self) -> dict[str, Any] | None:
        """One optimizer step.  Everything random in it is keyed by (seed, step)."""
        batch = self.draw(self.step)
        self.set_lr()
        seen = self.micro.redo_smaller(lambda micro: self.accumulate(batch, micro))
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.net, self.config.train.clip)
        self.whole = False
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.ema.update_parameters(self.net)
        quartile = (batch.t * QUARTILES // len(self.sched)).to(self.device)
        self.meter.add(quartile, seen, norm)
        self.step += 1
        self.whole = True
        due = self.step % self.config.train.log_every == 0 or self.step == self.total
        return self.row() if due else None

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
        seed, x0 = self.config.train.seed, self.stream[step]
        rng = torch_rng("step", seed, step)
        t = torch.randint(len(self.sched), (len(x0),), generator=rng)
        eps = torch.randn(x0.shape, generator=rng)
        coin = torch.rand(len(x0), generator=rng)
        xi = torch.randn(x0.shape, generator=rng) if isinstance(self.loss, Perturb) else None
        return Batch(x0, t, eps, coin, xi, self.labels(step))

    def labels(self, step: int) -> Tensor | None:
        """The labels of a step's images, int64 [B,A], those of a few images withheld: what the
        network says of them is the unconditional answer that guidance starts from."""
        if not self.config.net.conditional:
            return None
        y = torch.from_numpy(self.data.labels[self.stream.rows_at(step)].astype(np.int64))
        coins = torch.rand(len(y), generator=torch_rng("labels", self.config.train.seed, step))
        y[coins < self.config.train.label_dropout] = NO_LABEL
        return y

    def accumulate(self, batch: Batch, micro: int) -> dict[str, Tensor]:
        """Gradients of the batch's mean weighted loss, `micro` images at a time.

        Returns what the log should know of each image, [B] by name.  "loss" is unweighted: the
        error in eps, comparable between settings.
        """
        self.optimizer.zero_grad(set_to_none=True)
        size, settings = len(batch.x0), self.config
        seen = {name: torch.zeros(size, device=self.device) for name in SEEN}
        with seeded("dropout", self.config.train.seed, self.step):
            for start in range(0, size, micro):
                part = slice(start, start + micro)
                rows = batch.rows(part).to(self.device)
                weight = loss_weight(
                    settings.diffusion.prediction, self.sched, rows.t, settings.loss.min_snr
                )
                for error, found in self.loss(self.denoiser, self.sched, rows, self.step):
                    self.scaler.scale((weight * error).sum() / size).backward()
                    seen["loss"][part] += error.detach()
                    for name, value in found.items():
                        seen[name][part] = value.to(self.device, torch.float32)
        return seen

    def set_lr(self) -> None:
        """The learning rate is a function of the step."""
        factor = rate_factor(self.config, self.step, self.epoch, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.train.lr * factor

    def row(self) -> dict[str, Any]:
        """A log row; raises RunError when the weights are no longer numbers."""
        self.check_finite()
        row = {"step": self.step, "epoch": self.step / self.epoch, **self.meter.row()}
        (then, before), now = self.clock, time.monotonic()
        row["lr"] = self.optimizer.param_groups[0]["lr"]
        row["images_per_s"] = (self.step - before) * self.config.train.batch / (now - then)
        row["time"] = time.time()
        self.clock = (now, self.step)
        self.meter = Meter(self.device)
        return row

    def check_finite(self) -> None:
        """NaN is said at once, and never becomes a log row or a preview."""
        check_finite(
            {
                "the loss": self.meter.sums,
                "net": dict(self.net.named_parameters()),
                "ema": dict(self.ema.named_parameters()),
            },
            self.step,
        )

    def smaller(self, micro: int) -> None:
        """Memory ran out, and slices are smaller from now on."""
        self.run.say(f"out of memory at step {self.step}: micro-batches of {micro} from now on")
        self.run.dir.note("micro-batch", step=self.step, micro=micro)

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        parts = {name: getattr(self, name).state_dict() for name in self.PARTS}
        return {"step": self.step, **parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.PARTS:
            if name == "scaler" and not state[name]:
                continue  # saved without loss scaling, on another kind of device
            getattr(self, name).load_state_dict(state[name])
        for group in self.optimizer.param_groups:
            group |= self.own  # a fork's own settings, and what this device can do
        self.step, self.whole = state["step"], True
        self.clock = (time.monotonic(), self.step)

    PARTS = ("net", "ema", "optimizer", "scaler", "meter")

    def averaged(self, state: dict[str, Any]) -> dict[str, Tensor]:
        return averaged_of(state)

    def calm(self) -> str:
        """After NaN: give the loss scaler, if there is one, a scale a sixteenth as large; the
        second time, a sixteenth of that, as the checkpoint brought the first scale back."""
        if not self.scaler.is_enabled():
            return "with the same arithmetic"
        self.calmed += 1
        self.scaler.update(self.scaler.get_scale() / 16**self.calmed)
        return f"with the loss scale lowered to {self.scaler.get_scale():g}"

    def preview(self) -> dict[str, np.ndarray]:
        """The same few seeds from the averaged and from the raw weights."""
        self.check_finite()
        nets = {"": self.ema.module, "-raw": self.net}
        how = self.run.precision, self.device
        return {
            name: make_drawing(self.config, self.data, net, *how)(range(PREVIEWS), batch=PREVIEWS)
            for name, net in nets.items()
        }
