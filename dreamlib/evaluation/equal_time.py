"""Two models trained for the same time: how many steps of each fit into it on this machine.

A step of one model costs another time than a step of the other, so equal steps or epochs would
favour the more expensive one.  Both are timed in turns, and the lengths of both trainings follow.
A length that is known beforehand lets a training decay its rate to the end, and resume exactly.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch

from dreamlib.evaluation.results import Record, read_record
from dreamlib.runs.open import find_run, open_run
from dreamlib.runs.run import Run
from dreamlib.training.diffusion import DiffusionTrainer
from dreamlib.training.gan import GanTrainer
from dreamlib.training.train import trainer_of
from dreamlib.utils.arguments import listed
from dreamlib.utils.context import Say, progress, using
from dreamlib.utils.errors import ConfigError
from dreamlib.utils.files import write_json
from dreamlib.utils.platform import Places
from dreamlib.utils.progress import Progress

TURN = 4.0  # seconds that a model is timed at once
ROUNDS = 5
WARM = 3  # steps that are not timed
P = 0.5  # of a GAN's augmentation while it is timed


@dataclass(frozen=True)
class Pace(Record):
    """What a training step of a model costs on this machine."""

    seconds: float  # of a step: the median of the rounds
    rounds: list[float]


@dataclass(frozen=True)
class Contest(Record):
    """What contest.json holds."""

    minutes: float  # asked for
    seconds: float  # that each training takes here
    paces: dict[str, Pace]  # by preset

    def steps(self, preset: str) -> int:
        return max(1, round(self.seconds / self.paces[preset].seconds))


def equal_time(
    presets: Sequence[str],
    folder: Path | str,
    minutes: float,
    *,
    seed: int = 0,
    overrides: Sequence[str] = (),
    turn: float = TURN,
    mirror: Places = None,
    hours: float | None = None,
    progress: Progress | None = None,
    say: Say | None = None,
) -> list[Run]:
    """A run of every preset in `folder`, each as long as `minutes` of training take here.

    Paces are measured once, in turns of `turn` seconds, and kept in contest.json.  A run that has
    begun keeps its length; where contest.json is gone, as on another machine, the others get the
    steps that take as long there as those of the first run that was restored.  `hours`: as of
    `open_run`.  ConfigError when the folder holds a contest of other minutes or presets.
    """
    presets, overrides, folder = listed(presets), listed(overrides), Path(folder)
    settings, where = [*overrides, f"train.seed={seed}"], {"mirror": mirror, "hours": hours}
    places = {preset: place(folder, preset, seed) for preset in presets}
    with using(progress=progress, say=say):
        known = _known(folder, presets, minutes)
        begun = {preset: at for preset, at in places.items() if find_run(at, mirror)}
        runs = {preset: open_run(at, overrides=settings, **where) for preset, at in begun.items()}
        if len(runs) < len(presets):
            contest = known or _measured(presets, folder, minutes, overrides, turn, runs)
            for preset in [preset for preset in presets if preset not in begun]:
                own = [*settings, f"train.length={contest.steps(preset)}"]
                runs[preset] = open_run(places[preset], preset, overrides=own, **where)
    return [runs[preset] for preset in presets]


def _known(folder: Path, presets: list[str], minutes: float) -> Contest | None:
    """What was measured before, for a question that can be answered."""
    if len(presets) < 2 or len(set(presets)) < len(presets) or not minutes > 0:
        raise ConfigError(
            "a contest needs two different presets or more, and minutes above 0; got "
            f"{', '.join(presets)} and {minutes:g}"
        )
    path = folder / "contest.json"
    if not path.exists():
        return None
    contest = read_record(Contest, path, "delete it, and it is measured again")
    if contest.minutes != minutes or set(contest.paces) != set(presets):
        raise ConfigError(
            f"{folder} holds a contest of {', '.join(contest.paces)} for {contest.minutes:g} "
            "minutes: name another folder, or ask for the same"
        )
    return contest


def _measured(
    presets: list[str],
    folder: Path,
    minutes: float,
    overrides: list[str],
    turn: float,
    begun: dict[str, Run],
) -> Contest:
    measured, seconds = paces(presets, folder, overrides, turn=turn), 60 * minutes
    for preset in list(begun)[:1]:
        seconds = trainer_of(begun[preset]).total * measured[preset].seconds
    contest = Contest(minutes, seconds, measured)
    write_json(folder / "contest.json", asdict(contest))
    return contest


def place(folder: Path, preset: str, seed: int) -> Path:
    """Where a run lies; the contest begins its name, because a mirror knows runs by their names."""
    tail = f"-seed{seed}" if seed else ""
    return folder / f"{folder.absolute().name}-{Path(preset).stem}{tail}"


def paces(
    presets: Sequence[str],
    folder: Path,
    overrides: Sequence[str] = (),
    *,
    turn: float = TURN,
    rounds: int = ROUNDS,
) -> dict[str, Pace]:
    """What a step of each preset takes, in turns: a shared machine is not equally fast all the
    time."""
    places = {preset: folder / f".pace-{Path(preset).stem}" for preset in presets}
    try:
        more = {"overrides": overrides, "mirror": "none", "say": lambda text: None}
        runs = {preset: open_run(at, preset, **more) for preset, at in places.items()}
        trainers = {preset: _in_the_middle(trainer_of(run)) for preset, run in runs.items()}
        steps = {preset: _steps(trainer, turn) for preset, trainer in trainers.items()}
        advance = progress("timing a step of each", rounds * len(presets))
        seconds: dict[str, list[float]] = {preset: [] for preset in presets}
        for number in range(rounds):
            for preset in presets if number % 2 == 0 else presets[::-1]:
                taken = _timed(trainers[preset], steps[preset])
                seconds[preset].append(taken / steps[preset])
                advance(1)
    finally:
        for at in places.values():
            shutil.rmtree(at, ignore_errors=True)
    return {preset: Pace(median(each), each) for preset, each in seconds.items()}


def _in_the_middle(trainer: DiffusionTrainer | GanTrainer) -> DiffusionTrainer | GanTrainer:
    """As in most of a training: DREAM fully there, a GAN's images augmented."""
    trainer.step = trainer.total // 2
    if isinstance(trainer, GanTrainer) and trainer.config.gan.ada is not None:
        trainer.ada.p = P
    return trainer


def _steps(trainer: DiffusionTrainer | GanTrainer, turn: float) -> int:
    """Steps of a turn: whole rounds of a GAN's regularisers; the trainer is warm then."""
    each = _timed(trainer, WARM) / WARM
    gan, whole = trainer.config.gan, 1
    if isinstance(trainer, GanTrainer):
        whole = math.lcm(gan.r1_every, gan.path_every)
    return whole * max(1, round(turn / (each * whole)))


def _timed(trainer: DiffusionTrainer | GanTrainer, steps: int) -> float:
    """Seconds of so many steps."""
    begun = time.perf_counter()
    for _ in range(steps):
        trainer.advance()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
    return time.perf_counter() - begun
