"""Which loss is worth its cost?  Arms at equal steps and at equal network passes, several seeds.

One pass more per image is time that a plain loss could have trained on, so every arm is trained
twice: for the same number of optimizer steps, and for the same number of forward passes.  What is
done is kept; the same call goes on where it was.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from dreamlib.config.load import load_config
from dreamlib.config.schema import Config, span_steps
from dreamlib.evaluation.compare import differences_of
from dreamlib.evaluation.inputs import StudyInputs
from dreamlib.evaluation.results import Record, read_record
from dreamlib.metrics.frechet import frechet
from dreamlib.metrics.kid import kid
from dreamlib.runs.open import open_run
from dreamlib.runs.run import Run
from dreamlib.training.train import train
from dreamlib.utils.arguments import listed
from dreamlib.utils.context import Say, using
from dreamlib.utils.context import progress as open_bar
from dreamlib.utils.errors import ConfigError, Interrupted, NotThere, OutOfTime
from dreamlib.utils.files import write_json
from dreamlib.utils.progress import Progress

STANDARD = "standard"
ARMS = {
    STANDARD: ("loss.name=standard",),
    "conservative": ("loss.name=conservative",),
    "paper-p1": ("loss.name=paper", "loss.p=1.0"),
    "paper-p10": ("loss.name=paper", "loss.p=10.0"),
    "perturb-0.1": ("loss.name=perturb", "loss.gamma=0.1"),
    "mixflow-0.4": ("loss.name=mixflow", "loss.reach=0.4"),
    "reflex-0.1": ("loss.name=reflex", "loss.reach=0.1"),
}
BUDGETS = ("steps", "passes")
SAMPLERS = ("dpmpp_2m:25:karras", "ddim:50:uniform", "ddim:10:uniform")


@dataclass(frozen=True)
class Cell(Record):
    """One trained model, sampled one way."""

    arm: str
    budget: str  # what is equal among the arms: "steps" or "passes"
    seed: int  # of training
    steps: int
    passes: int  # network evaluations per image position, gradient or not
    sampler: str  # name:steps:spacing
    fd: float
    kid: float
    kid_se: float | None
    # Against the standard loss at the same budget, training seed and sampler, image by image.
    minus_standard: float | None
    minus_standard_se: float | None
    weights: str  # SHA-256
    minus_metric: str = ""  # what that is a difference of; "" in older files: the raw distance


@dataclass(frozen=True)
class Ablation(Record):
    """What ablation.json holds."""

    facts: dict[str, Any]
    cells: list[Cell]

    @property
    def minus_metric(self) -> str:
        """What the differences are of."""
        return self.cells[-1].minus_metric or f"raw {self.facts['metric']}"

    def of(self, arm: str, budget: str, sampler: str) -> list[Cell]:
        """One cell per seed."""
        wanted = arm, budget, sampler
        return [cell for cell in self.cells if (cell.arm, cell.budget, cell.sampler) == wanted]


def passes(config: Config, total: int) -> float:
    """Forward passes per image position in `total` steps: `paper` and `reflex` ask it twice, and
    `conservative` once more for the adapted share (`sampled`) or all (`both`) while lambda > 0."""
    loss = config.loss
    if loss.name in ("paper", "reflex"):
        return 2.0 * total
    if loss.name != "conservative":
        return float(total)
    if "epoch" in str(loss.start):
        raise ConfigError(
            f"loss.start is {loss.start!r}: an ablation changes the length, so give a share "
            '("10 %") or steps (--set)'
        )
    start = span_steps(loss.start, epoch=1, total=total)
    more = loss.weight if loss.estimator == "sampled" else 1.0
    return total + more * max(0, total - max(1, start))


def ablate(
    preset: str | Path,
    losses: Sequence[str] = tuple(ARMS),
    seeds: Sequence[int] = (0, 1),
    *,
    folder: str | Path,
    steps: int,
    n: int = 2000,
    samplers: Sequence[str] = SAMPLERS,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    say: Say | None = None,
    watch: Callable[[Run, Iterator[Any]], Any] = lambda run, ticks: deque(ticks, maxlen=0),
) -> Ablation:
    """Train every loss at `steps` optimizer steps, and at as many forward passes, for every seed;
    score `n` images of each by every sampler.  Writes ablation.json into `folder`.

    Runs lie in `folder` and continue like any other; its name begins theirs, because a mirror knows
    runs by the names of their folders alone.  `watch` drives a training and shows it.
    ConfigError for an unknown loss or sampler; Interrupted when a training was stopped.
    """
    losses, samplers, seeds = listed(losses), listed(samplers), listed(seeds)
    _check(losses, samplers, seeds, steps)
    arms = [STANDARD, *(arm for arm in losses if arm != STANDARD)]  # it is what others differ from
    begin = partial(_training, preset, Path(folder), listed(overrides), steps)
    trainings = {key: begin(*key) for key in product(BUDGETS, seeds, arms)}
    with using(progress=progress, say=say):
        # What is missing for scores is said before any training.
        facts = _facts(trainings[BUDGETS[0], seeds[0], STANDARD], n)
        for training in trainings.values():
            _train(training, watch)
        cells, advance = [], open_bar("scored", len(trainings) * len(samplers))
        for (budget, seed, _), training in trainings.items():
            for sampler in samplers:
                cells.append(_score(training, trainings[budget, seed, STANDARD], sampler, n))
                advance(1)
    facts |= {"steps": steps, "seeds": list(seeds), "samplers": list(samplers)}
    ablation = Ablation(facts, cells)
    write_json(Path(folder) / "ablation.json", asdict(ablation))
    return ablation


def read_ablation(folder: Path | str) -> Ablation:
    """What `ablate` wrote.  RunError when there is nothing, or it does not hold."""
    path = Path(folder) / "ablation.json"
    if not path.exists():
        raise NotThere(
            f"{folder} holds no ablation: run notebook 07_dream_ablation, or "
            f"`dreamlib ablate PRESET --steps N --out {folder}`"
        )
    return read_record(Ablation, path, "run `dreamlib ablate` again")


@dataclass(frozen=True)
class _Training:
    """A run of the ablation; fields as of a Cell."""

    arm: str
    budget: str
    seed: int
    steps: int
    passes: int
    preset: str | Path
    folder: Path
    settings: tuple[str, ...]

    def open(self, sampler: str = "") -> Run:
        parts = zip(("sampler", "steps", "spacing"), sampler.split(":") if sampler else ())
        settings = [*self.settings, *(f"sample.{name}={value}" for name, value in parts)]
        name, mirror = f"{self.arm}-seed{self.seed}-{self.steps}", "none"
        if not (self.folder / name).exists():  # all had such names once: a mirror would mix them
            name, mirror = f"{self.folder.absolute().name}-{name}", None
        return open_run(self.folder / name, self.preset, overrides=settings, mirror=mirror)

    def draw(self, sampler: str, n: int) -> tuple[StudyInputs, np.ndarray]:
        """Features [n,d] of its images."""
        inputs = StudyInputs(self.open(sampler), (n,))
        return inputs, inputs.features(inputs.generated(range(n)))


def _training(
    preset: str | Path,
    folder: Path,
    overrides: list[str],
    steps: int,
    budget: str,
    seed: int,
    arm: str,
) -> _Training:
    settings = [*overrides, *ARMS[arm], f"train.seed={seed}"]
    count = partial(passes, load_config(preset, settings))
    total = steps
    if budget == "passes":
        total = bisect_right(range(steps + 1), steps, key=count) - 1
        if total < 1:
            raise ConfigError(f"{steps} passes are less than a step of {arm}: --steps 2")
    settings = (*settings, f"train.length={total}")
    return _Training(arm, budget, seed, total, round(count(total)), preset, folder, settings)


def _train(training: _Training, watch: Callable[[Run, Iterator[Any]], Any]) -> None:
    run = training.open()
    watch(run, train(run))
    state = run.dir.status()["state"]
    if state != "finished":
        kind = OutOfTime if state == "paused_deadline" else Interrupted
        raise kind(f"{run.folder} was paused: the same command goes on")


def _score(training: _Training, standard: _Training, sampler: str, n: int) -> Cell:
    inputs, features = training.draw(sampler, n)
    reference = inputs.features(inputs.reference)
    distance, less = kid(features, reference), None
    if training.arm != STANDARD:
        pair = features, standard.draw(sampler, n)[1]
        less = differences_of(inputs.plan.metric, pair, reference, True, {})[1]
    return Cell(
        *(training.arm, training.budget, training.seed, training.steps, training.passes, sampler),
        fd=frechet(features, reference),
        kid=distance.value,
        kid_se=distance.se,
        minus_standard=less.value if less else None,
        minus_standard_se=less.se if less else None,
        weights=inputs.run.weights()[1]["sha256"],
        minus_metric=less.metric if less else "",
    )


def _facts(training: _Training, n: int) -> dict[str, Any]:
    """What all cells share; the floor is what other held-out images score at the same n."""
    run = training.open()
    inputs, size = StudyInputs(run, (n,)), run.config.data.size
    reference = inputs.features(inputs.reference)
    return {
        "metric": inputs.plan.metric,
        "preset": run.config.preset,
        "images": f"{run.config.data.name} {size}x{size}",
        "data": run.data.fingerprint,
        "extractor": inputs.extractor.identity,
        "batch": run.config.train.batch,
        "n": n,
        "n_real": len(reference),
        "floor": frechet(inputs.features(inputs.held_out), reference),
    }


def _check(
    losses: Sequence[str], samplers: Sequence[str], seeds: Sequence[int], steps: int
) -> None:
    if unknown := [name for name in losses if name not in ARMS]:
        raise ConfigError(f"unknown losses {', '.join(unknown)}: choose from {', '.join(ARMS)}")
    if odd := [name for name in samplers if name.count(":") != 2]:
        raise ConfigError(f"a sampler reads name:steps:spacing (ddim:50:uniform), not {odd[0]}")
    if not seeds or steps < 1:
        raise ConfigError("an ablation needs at least one seed and one step")
