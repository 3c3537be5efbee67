"""The verb: a run is trained from where it stands."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing

import torch

from dreamlib.runs.run import Run
from dreamlib.training.base import BaseTrainer
from dreamlib.training.diffusion import DiffusionTrainer
from dreamlib.training.gan import GanTrainer
from dreamlib.training.launch import train_by
from dreamlib.training.loggers import open_loggers
from dreamlib.training.loop import Tick, TrainingLoop
from dreamlib.training.ranks import Ranks
from dreamlib.training.validation import Validation


def train(
    run: Run, hours: float | None = None, devices: int = 1, *, ranks: Ranks | None = None
) -> Iterator[Tick]:
    """Train a run from where it stands: yields a Tick per optimizer step.

    `devices` above 1: by so many GPUs, or processes on a CPU, which torchrun starts (`launch`); a
    Tick whenever another step is known of.  `ranks`: this process is the first of those.

    Stops at the end, at the deadline (`hours`, counted from the start of this process), or on
    a signal that asks to (runs/time_budget.py); each time, and when the caller leaves the loop,
    everything is saved first.  A finished run yields nothing.  Raises RunError when another
    process trains this run.
    """
    status = run.dir.status()
    if status["state"] == "finished" and run.weights_step() == status["step"]:
        run.say(
            f"FINISHED at step {status['step']:,}: nothing left to train in {run.folder}; for more "
            f"steps: dreamlib run fork {run.folder} NEW --set train.length=..."
        )
        if run.mirrors and status.get("mirrored") != status["step"]:
            run.keep()  # the copy may have failed then
        return
    if devices > 1:
        yield from train_by(run, devices, hours)
        return
    if run.config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch asks for it
    torch.use_deterministic_algorithms(run.config.train.deterministic)
    yield from drive(run, trainer_of(run, ranks), hours)


def trainer_of(run: Run, ranks: Ranks | None = None) -> DiffusionTrainer | GanTrainer:
    """What takes the steps of the run's kind of model."""
    return (GanTrainer if run.config.model == "gan" else DiffusionTrainer)(run, ranks)


def drive(run: Run, trainer: BaseTrainer, hours: float | None = None) -> Iterator[Tick]:
    """Take a trainer's steps to their end, the deadline, or a request to stop."""
    with closing(open_loggers(run.dir, run.config, run.say)) as loggers:
        loop = TrainingLoop(run, trainer, Validation(run, trainer), loggers, hours)
        yield from loop.drive()
