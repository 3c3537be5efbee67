"""Does showing a model its own errors help?  Arms at equal steps and at equal network passes.

One pass more per image is time that a plain loss could have trained on, so every arm is trained
twice: for the same number of optimizer steps, and for the same number of forward passes.  Seeds of
training are paired: an arm's seed k has the initial weights, images, timesteps and noise of the
standard one's, wherever the arm leaves them.  What is done is kept; the same call goes on where it
was.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from dreamlib.config.load import load_config
from dreamlib.config.schema import Config, Sample, span_steps
from dreamlib.evaluation.ablation_results import BUDGETS, STANDARD, Ablation, Cell
from dreamlib.evaluation.ablation_results import read_ablation as read_ablation  # for notebooks
from dreamlib.evaluation.compare import differences_of
from dreamlib.evaluation.denoising import denoising_errors
from dreamlib.evaluation.inputs import StudyInputs, check_part
from dreamlib.metrics.frechet import frechet
from dreamlib.metrics.kid import kid
from dreamlib.metrics.prdc import prdc
from dreamlib.runs.open import open_run
from dreamlib.runs.run import Run
from dreamlib.training.train import train
from dreamlib.utils.arguments import listed
from dreamlib.utils.context import Say, using
from dreamlib.utils.context import progress as open_bar
from dreamlib.utils.errors import ConfigError, Interrupted, OutOfTime
from dreamlib.utils.files import write_json
from dreamlib.utils.progress import Progress

ARMS = {
    STANDARD: ("loss.name=standard",),
    "conservative": ("loss.name=conservative",),
    "paper-p1": ("loss.name=paper", "loss.p=1.0"),
    "paper-p10": ("loss.name=paper", "loss.p=10.0"),
    "perturb-0.1": ("loss.name=perturb", "loss.gamma=0.1"),
    "mixflow-0.4": ("loss.name=mixflow", "loss.reach=0.4"),
    "reflex-0.1": ("loss.name=reflex", "loss.reach=0.1"),
    "logit-normal": ("loss.name=standard", "train.times=logit_normal"),
    "flow": ("loss.name=standard", "diffusion.schedule=flow", "diffusion.prediction=velocity"),
}
MANIFOLD = 1000  # images of precision, recall, coverage and denoising, or fewer
SAMPLER = "sampler:steps:spacing:eta:sigma_min"  # how one is named
SAMPLERS = ("dpmpp_2m:25:karras", "dpmpp_2m:25:karras:1:0.1")


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
    part: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
    say: Say | None = None,
    watch: Callable[[Run, Iterator[Any]], Any] = lambda run, ticks: deque(ticks, maxlen=0),
) -> Ablation:
    """Train every loss at `steps` optimizer steps, and at as many forward passes, for every seed;
    score `n` images of each by every sampler.  Writes ablation.json into `folder`.

    Runs lie in `folder` and continue like any other; its name begins theirs, because a mirror knows
    runs by the names of their folders alone.  `watch` drives a training and shows it.  Part (k, of)
    makes trainings k, k + of ... and looks at their images, without cells: for several processes,
    after which the call for all of it scores.
    ConfigError for an unknown loss or sampler; Interrupted when a training was stopped.
    """
    losses, samplers, seeds = listed(losses), listed(samplers), listed(seeds)
    _check(losses, samplers, seeds, steps)
    arms = [STANDARD, *(arm for arm in losses if arm != STANDARD)]  # it is what others differ from
    begin = partial(_training, preset, Path(folder), listed(overrides), steps)
    planned = {key: begin(*key) for key in product(BUDGETS, seeds, arms)}
    each = list({training.name: training for training in planned.values()}.values())
    ours = each[slice(check_part(part)[0], None, part[1])]
    with using(progress=progress, say=say):
        # What is missing for scores is said before any training.
        facts = _facts(planned[BUDGETS[0], seeds[0], STANDARD], n)
        facts |= {"steps": steps, "seeds": list(seeds), "samplers": list(samplers)}
        for training in ours:
            _train(training, watch)
        advance = open_bar("drawn", len(ours) * len(samplers))
        for training, sampler in product(ours, samplers):
            training.draw(sampler, n)
            advance(1)
        if len(ours) < len(each):
            return Ablation(facts, [])
        ablation = Ablation(facts, list(_cells(planned, samplers, n)))
    write_json(Path(folder) / "ablation.json", asdict(ablation))
    return ablation


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

    @property
    def name(self) -> str:
        """One training serves both budgets where an arm asks the network no more than once."""
        return f"{self.arm}-seed{self.seed}-{self.steps}"

    def open(self, sampler: str = "") -> Run:
        parts: dict[str, Any] = {}
        if sampler:  # what it leaves out is the usual, whatever the preset or the last one had
            parts = {"eta": Sample().eta, "sigma_min": Sample().sigma_min}
            parts |= zip(SAMPLER.split(":"), sampler.split(":"))
        settings = [*self.settings, *(f"sample.{name}={value}" for name, value in parts.items())]
        name, mirror = self.name, "none"
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


def _cells(planned: dict[Any, _Training], samplers: Sequence[str], n: int) -> Iterator[Cell]:
    """Of every training and sampler; what serves both budgets is scored once."""
    scored: dict[tuple[str, ...], Cell] = {}
    advance = open_bar("scored", len(planned) * len(samplers))
    for ((budget, seed, _), training), sampler in product(planned.items(), samplers):
        standard = planned[budget, seed, STANDARD]
        key = training.name, standard.name, sampler
        if key not in scored:
            scored[key] = _score(training, standard, sampler, n)
        yield replace(scored[key], budget=budget, passes=training.passes)
        advance(1)


def _score(training: _Training, standard: _Training, sampler: str, n: int) -> Cell:
    inputs, features = training.draw(sampler, n)
    reference = inputs.features(inputs.reference)
    distance, less = kid(features, reference), None
    if training.arm != STANDARD:
        pair = features, standard.draw(sampler, n)[1]
        less = differences_of(inputs.plan.metric, pair, reference, True, {})[1]
    few = min(n, len(reference), MANIFOLD)
    manifold = prdc(features[:few], reference[:few])
    return Cell(
        *(training.arm, training.budget, training.seed, training.steps, training.passes, sampler),
        fd=frechet(features, reference),
        kid=distance.value,
        kid_se=distance.se,
        minus_standard=less.value if less else None,
        minus_standard_se=less.se if less else None,
        weights=inputs.run.weights()[1]["sha256"],
        minus_metric=less.metric if less else "",
        precision=manifold.precision.value,
        recall=manifold.recall.value,
        coverage=manifold.coverage.value,
        errors=denoising_errors(inputs.run, inputs.held_out[:MANIFOLD]),
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
    if odd := [name for name in samplers if not 2 <= name.count(":") <= 4]:
        raise ConfigError(
            f"a sampler reads {SAMPLER}, the last two as wanted (ddim:50:uniform), not {odd[0]}"
        )
    if not seeds or steps < 1:
        raise ConfigError("an ablation needs at least one seed and one step")
