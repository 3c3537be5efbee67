"""What the rows of a study share: its plan, disjoint parts, and how an estimate becomes a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dreamlib.evaluation.results import Score
from dreamlib.metrics.estimate import Estimate, mean_estimate

REFERENCE = "reference"
PARTS = 10  # disjoint sets of the smaller N that are cut from the largest
ENOUGH = 5  # disjoint sets for an error from their spread


@dataclass(frozen=True)
class Plan:
    """What a study computes."""

    metric: str  # name of the Fréchet distance: "FID", "FD[classifier]"
    sizes: tuple[int, ...]  # ascending
    cells: int = 100  # of the mode study, at most
    jackknife: bool = True  # for large sets too, where the delta method has an error already
    seed: int = 0

    def named(self, what: str) -> str:
        """'KID' for Inception features, with others 'KID[classifier]'."""
        _, bracket, extractor = self.metric.partition("[")
        return what + bracket + extractor

    @property
    def largest(self) -> int:
        return self.sizes[-1]


def parts_of(features: np.ndarray, size: int) -> list[np.ndarray]:
    """Disjoint sets of `size`, at most ten; the first is the prefix of every larger set."""
    count = min(PARTS, len(features) // size)
    return [features[i * size : (i + 1) * size] for i in range(count)]


def cuts(plan: Plan, sets: Mapping[str, np.ndarray]) -> Iterator[tuple[int, str, list[np.ndarray]]]:
    """Every size, and the sets that are large enough for it: their names, their disjoint parts."""
    for size in plan.sizes:
        for images, features in sets.items():
            if parts := parts_of(features, size):
                yield size, images, parts


def of_parts(values: Sequence[float], why: str, what: str) -> Estimate:
    """The mean of disjoint sets' values, with its error from their spread; `what` they are.

    Fewer than ENOUGH say too little about a spread, and then there is none: `why`.
    """
    if len(values) >= ENOUGH:
        return mean_estimate(np.array(values), what)
    return Estimate(float(np.mean(values)), None, why)


def row_of(
    metric: str,
    images: str,
    found: Estimate,
    n: int,
    n_real: int | None,
    parts: Sequence[float] = (),
    real: str = "reference",
    null: float | None = None,
) -> Score:
    """An estimate as a row; `parts` are listed where there are several."""
    kept = [float(part) for part in parts] if len(parts) > 1 else []
    value, se, method = found
    return Score(metric, images, value, n, n_real, se, method, real, null, parts=kept)
