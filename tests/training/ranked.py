"""Trainings of one process group, one after the other: `torchrun -m tests.training.ranked FOLDER`.

Rank 0 writes the weights that each ends with; without torchrun the same is done by one process.
"""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.torch import save_file

from dreamlib.runs.open import open_run
from dreamlib.training.launch import joined
from dreamlib.training.tasks import DiffusionTask
from dreamlib.training.train import trainer_of
from tests.conftest import TINY
from tests.training.conftest import TINY_GAN

SLICED = ["train.slices=4", "train.batch=9"]
CASES = {
    "standard": ["loss.name=standard", "train.precision=bf16"],
    "conservative": ["loss.name=conservative", "loss.start=1", "loss.ramp=1", "train.clip=0.1"],
    "both": ["loss.name=conservative", "loss.start=0", "loss.ramp=1", "loss.estimator=both"],
    "paper": ["loss.name=paper", "train.micro=2", "train.optimizer=muon"],
    "perturb": ["loss.name=perturb", "train.precision=bf16"],
    "mixflow": ["loss.name=mixflow", "net.dropout=0.2"],
    "reflex": ["loss.name=reflex", "net.conditional=true"],
    "few": ["train.batch=3"],
    "fp16": ["train.precision=fp16"],  # with loss scaling
    "two": ["train.slices=2", "train.micro=2"],
    "scarce": ["train.slices=2"],  # where the last process has memory for two images at once
}
GAN = ["train.slices=2", "train.batch=12"]  # groups of 4: one, and two
STEPS = 6


def tensors(trainer):
    parts = {"net": trainer.net, "ema": trainer.ema}
    parts |= {"judge": trainer.discriminator} if hasattr(trainer, "discriminator") else {}
    return {f"{k}.{name}": v for k, part in parts.items() for name, v in part.state_dict().items()}


def scarcely(losses):
    def of(self, what, rows, facts, stats):
        if len(rows.x0) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return losses(self, what, rows, facts, stats)

    return of


def main(folder: Path, only: str = "") -> None:
    with joined() as ranks:
        if ranks and ranks.rank:
            if only == "scarce":
                DiffusionTask.losses = scarcely(DiffusionTask.losses)
            ranks.follow()
            return
        for name, settings in [*CASES.items(), ("gan", GAN)]:
            if only and name != only:
                continue
            preset, tiny = ("gan-faces16", TINY_GAN) if name == "gan" else ("faces16", TINY)
            more = settings if name == "gan" else [*SLICED, *settings]
            run = open_run(folder / name, preset, overrides=[*tiny, *more], say=print)
            trainer = trainer_of(run, ranks)
            for _ in range(STEPS):
                trainer.advance()
            save_file(
                {k: v.contiguous() for k, v in tensors(trainer).items()},
                folder / f"{name}.safetensors",
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
