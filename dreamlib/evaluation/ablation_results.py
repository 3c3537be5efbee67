"""An ablation's results, ablation.json, and what several training seeds say of a difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from dreamlib.evaluation.results import Record, read_record
from dreamlib.metrics.estimate import error_of_means
from dreamlib.utils.errors import NotThere
from dreamlib.utils.rng import numpy_rng

STANDARD = "standard"  # the loss that others differ from
BUDGETS = ("steps", "passes")
RESOLVED = 0.05  # of the standard loss's distance: a difference that a study should see
LEVEL = 0.05  # of calling any difference clear where there is none
TRIES = 100_000


class Contrast(NamedTuple):
    """An arm minus the standard one, over training seeds that are paired."""

    value: float  # mean over seeds
    se: float  # standard error over seeds: training and sampling together
    clear: bool  # beyond chance, corrected for the number of arms
    needed: int  # seeds that would know a difference of the wanted size by two standard errors


def contrast(minus: Sequence[float], arms: int, wanted: float) -> Contrast:
    """Of one difference per seed, at least two of them; `arms` are compared with one standard."""
    mean, se = fmean(minus), error_of_means(np.asarray(minus))
    needed = math.ceil((2 * se / wanted) ** 2 * len(minus))
    return Contrast(mean, se, abs(mean) > critical(len(minus), arms) * se, max(2, needed))


@lru_cache
def critical(seeds: int, arms: int) -> float:
    """How many of its own standard errors the largest of `arms` mean differences exceeds by chance
    in LEVEL of all studies, where no arm differs.

    Simulated: normal values per seed, of every arm and of the standard one that all are compared
    with (Dunnett 1955, with a variance of each difference's own).
    """
    rng = numpy_rng("critical", seeds, arms)
    largest = np.zeros(TRIES)
    standard = rng.standard_normal((TRIES, seeds))
    for _ in range(arms):
        minus = rng.standard_normal((TRIES, seeds)) - standard
        error = minus.std(axis=1, ddof=1) / math.sqrt(seeds)
        largest = np.maximum(largest, np.abs(minus.mean(axis=1)) / error)
    return float(np.quantile(largest, 1 - LEVEL))


@dataclass(frozen=True)
class Cell(Record):
    """One trained model, sampled one way."""

    arm: str
    budget: str  # what is equal among the arms: "steps" or "passes"
    seed: int  # of training
    steps: int
    passes: int  # network evaluations per image position, gradient or not
    sampler: str  # name:steps:spacing, and eta and sigma_min where they are not the usual ones
    fd: float
    kid: float
    kid_se: float | None
    # Against the standard loss at the same budget, training seed and sampler, image by image.
    minus_standard: float | None
    minus_standard_se: float | None
    weights: str  # SHA-256
    minus_metric: str = ""  # what that is a difference of; "" in older files: the raw distance
    # None, or nothing, in older files
    precision: float | None = None
    recall: float | None = None
    coverage: float | None = None
    errors: list[float] = field(default_factory=list)  # `denoising_errors`, by quartile of t


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

    def difference(self, arm: str, budget: str, sampler: str) -> tuple[float | None, float | None]:
        """Mean difference to the standard loss and its error: over training seeds, or that of
        sampling where there is one seed; None where there is none."""
        if found := self.contrast(arm, budget, sampler):
            return found.value, found.se
        cell = self.of(arm, budget, sampler)[0]
        return cell.minus_standard, cell.minus_standard_se

    def contrast(self, arm: str, budget: str, sampler: str) -> Contrast | None:
        """The arm minus the standard loss, over training seeds; None for that itself."""
        cells = self.of(arm, budget, sampler)
        minus = [cell.minus_standard for cell in cells if cell.minus_standard is not None]
        if arm == STANDARD or len(minus) < 2:
            return None
        size = fmean(cell.fd for cell in self.of(STANDARD, budget, sampler))
        return contrast(minus, len({cell.arm for cell in self.cells}) - 1, RESOLVED * size)


def read_ablation(folder: Path | str) -> Ablation:
    """What `ablate` wrote.  RunError when there is nothing, or it does not hold."""
    path = Path(folder) / "ablation.json"
    if not path.exists():
        raise NotThere(
            f"{folder} holds no ablation: run notebook 07_dream_ablation, or "
            f"`dreamlib ablate PRESET --steps N --out {folder}`"
        )
    return read_record(Ablation, path, "run `dreamlib ablate` again")
