"""Whole programs on the T4 of `gpu`: `python -m tests.stand_ins.gpu_roads FOLDER [ROAD ...]`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from dreamlib.config.factory import make_schedule
from dreamlib.diffusion import samplers
from dreamlib.diffusion.sampling import draw_images, interpolate
from dreamlib.evaluation.denoising import denoising_errors
from dreamlib.metrics import inception, lpips
from dreamlib.metrics.classifier import Classifier
from dreamlib.metrics.features import ClassifierExtractor, extract
from dreamlib.notebook.playground.inference import Studio, lambdas
from dreamlib.runs.open import open_run
from dreamlib.runs.run import Run
from dreamlib.sampling.generate import generate, process
from dreamlib.training.gan import GanTrainer
from dreamlib.training.train import train, trainer_of
from tests.conftest import TINY
from tests.stand_ins.gpu import MEMORY, T4, Far, t4

ALONE = ["train.device=auto", "train.precision=auto"]
ROADS: dict[str, Callable[[Path], None]] = {}


def road(function: Callable[[Path], None]) -> Callable[[Path], None]:
    ROADS[function.__name__] = function
    return function


def opened(folder: Path, *settings: str, preset: str = "faces16") -> Run:
    own = [x for x in TINY if not x.startswith(("train.device", "train.precision"))]
    if preset.startswith("gan"):
        own = [x for x in own if x.startswith(("data", "train.length", "evaluate"))]
    settings = (*own, *ALONE, *settings)
    return open_run(folder, preset, overrides=settings, mirror="none", say=lambda text: None)


def steps(run: Run, count: int = 2) -> None:
    """Some steps, whose weights stay on the GPU; saved and taken up again."""
    trainer = trainer_of(run)
    if isinstance(trainer, GanTrainer):
        trainer.ada.p = 0.5  # of the images are augmented
    trainer.probe()
    for _ in range(count):
        trainer.advance()
    trainer.check_finite()
    tensors = [*trainer.net.parameters(), *trainer.ema.parameters()]
    assert all(isinstance(x, Far) for x in tensors)
    again = trainer_of(run)
    again.load_state_dict(trainer.state_dict())
    again.advance()


LOSSES = {
    "standard": ["loss.name=standard", "loss.min_snr=5", "diffusion.prediction=v"],
    "conservative": ["loss.name=conservative"],
    "conservative_both": ["loss.name=conservative", "loss.estimator=both"],
    "paper": ["loss.name=paper"],
    "perturb": ["loss.name=perturb"],
    "mixflow": ["loss.name=mixflow"],
    "reflex": ["loss.name=reflex"],
}


def _loss(name: str) -> None:
    def one(folder: Path) -> None:
        run = opened(folder, *LOSSES[name])
        assert (run.device.type, run.precision.name, run.precision.scale) == ("cuda", "fp16", True)
        steps(run)

    ROADS[f"loss_{name}"] = one


for _name in LOSSES:
    _loss(_name)


@road
def augmented_labelled_muon(folder: Path) -> None:
    more = ["data.flip=true", "data.shift=1", "data.colour=0.1", "net.dropout=0.1"]
    more += ["train.optimizer=muon", "train.channels_last=true", "train.recompute=true"]
    steps(opened(folder, *more, "net.conditional=true", preset="faces16-classes"))


@road
def sliced(folder: Path) -> None:
    steps(opened(folder, "train.slices=2", "net.dropout=0.1"))


@road
def a_whole_run_and_its_images(folder: Path) -> None:
    """Trained with previews, saved, resumed, drawn from, looked at."""
    for length in (4, 8):
        run = opened(folder, "train.length=8")
        for tick in train(run):
            if tick.step == length:
                break
    run = opened(folder)
    generate(run, 12)
    process(run, images=2, moments=3)
    assert len(denoising_errors(run, np.array(run.data.images[:8]))) == 4


@road
def studio(folder: Path) -> None:
    run = opened(folder, "train.length=2", "net.conditional=true", preset="faces16-classes")
    list(train(run))
    made = Studio(run)
    made.images([1, 2])
    made.trajectory(3)
    made.between(1, 2, 3)
    made.rectified(0, 5, 1, lambdas(run, 0.1, 1.0, 0.5))


@road
def every_sampler(folder: Path) -> None:
    run = opened(folder, "net.conditional=true", preset="faces16-classes")
    trainer, sched = trainer_of(run), make_schedule(run.config)
    net, shape = trainer.task.denoiser, (3, 16, 16)
    labels = tuple(0 for _ in run.data.label_counts)
    place = {"seed": 0, "shape": shape, "device": T4}
    told = {"labels_of": lambda image: labels, "guidance": 2.0}
    for sampler in (samplers.ddpm, samplers.ddim, samplers.dpmpp_2m):
        more = {} if sampler is samplers.ddpm else {"eta": 0.5}
        bound = partial(sampler, steps=4, **more)
        draw_images(net, sched, bound, [1, 2, 3], batch=2, **place, **told)
        if more:
            interpolate(net, sched, partial(sampler, steps=4), (1, 2), 3, batch=2, **place)


def _untold(trainer: GanTrainer, means: dict[str, float]) -> None:
    """That gradients are zeros is no collapse here."""


@road
@mock.patch.object(GanTrainer, "check_alive", _untold)
def gan(folder: Path) -> None:
    run = opened(folder, "train.batch=8", preset="gan-smoke")
    steps(run, 17)  # every part of a GAN's steps is due in so many
    run = opened(folder, "train.batch=8", preset="gan-smoke")
    list(train(run))
    generate(run, 12)


@road
def classifier(folder: Path) -> None:
    images = np.zeros((5, 16, 16, 3), np.uint8)
    extractor = ClassifierExtractor(Classifier(3, [2, 3]).eval(), T4)
    assert all(isinstance(x, Far) for x in extractor.classifier.parameters())
    assert extract(images, extractor, batch=2).shape[0] == 5
    assert extractor.classifier.predict(images).shape == (5, 2)


@road
def inception_and_lpips(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    images = np.zeros((3, 16, 16, 3), np.uint8)
    path = folder / "inception.pth"
    torch.save(inception._build().state_dict(), path)
    assert inception.InceptionExtractor(path, T4)(images).shape == (3, 2048)
    trunk = lpips._build().net.state_dict()
    torch.save({f"features.{name.partition('.')[2]}": trunk[name] for name in trunk}, path)
    assert lpips.Lpips(path, T4)(images, images).shape == (3,)


@road
def what_a_t4_answers(folder: Path) -> None:
    from dreamlib.utils.platform import choose_device, choose_precision, memory_in_use

    assert choose_device("cuda").type == "cuda"
    chosen = choose_precision("auto", T4)
    assert (chosen.name, chosen.reason) == ("fp16", "Tesla T4 is sm_75")
    assert memory_in_use(T4) == (MEMORY // 2, MEMORY)


def main(folder: Path, names: list[str]) -> None:
    for name in names or ROADS:
        with t4():
            ROADS[name](folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
