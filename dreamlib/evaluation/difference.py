"""How much nearer one generator is than another: same N, same reference, with the error of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dreamlib.metrics.estimate import Estimate
from dreamlib.metrics.frechet import frechet
from dreamlib.metrics.frechet_stats import frechet_corrected, frechet_difference
from dreamlib.metrics.kid import kid_difference
from dreamlib.utils.errors import NotEnoughSamples


@dataclass(frozen=True)
class Difference:
    """One metric of a minus that of b: below zero, a is nearer to the real images."""

    metric: str
    value: float
    se: float | None
    se_method: str
    n: int
    n_real: int

    @property
    def clear(self) -> bool:
        """Beyond two standard errors."""
        return self.se is not None and abs(self.value) > 2 * self.se


def differences_of(
    metric: str,
    pair: tuple[np.ndarray, np.ndarray],
    reference: np.ndarray,
    paired: bool,
    absent: dict[str, str],
    seed: int = 0,
) -> list[Difference]:
    """FD, corrected FD where there are enough images, and KID, of a's features minus b's.

    The second one decides: FD's bias is smaller for the generator that varies less.
    """
    gen_a, gen_b = pair
    _, bracket, extractor = metric.partition("[")
    found: dict[str, Estimate] = {}
    found[metric] = raw = _raw(gen_a, gen_b, reference, paired, seed)
    try:
        a, b = (frechet_corrected(gen, reference, seed) for gen in pair)
        # The correction spreads by up to 1.45 times as much as the raw distance.
        error = None if raw.se is None else 1.5 * raw.se
        found[f"{metric} corrected"] = Estimate(a - b, error, f"1.5 x {raw.method}")
    except NotEnoughSamples as error:
        absent[f"{metric} corrected at N = {len(gen_a)}"] = str(error)
    found["KID" + bracket + extractor] = kid_difference(gen_a, gen_b, reference, paired)
    return [
        Difference(name, each.value, each.se, each.method, len(gen_a), len(reference))
        for name, each in found.items()
    ]


def _raw(
    gen_a: np.ndarray, gen_b: np.ndarray, reference: np.ndarray, paired: bool, seed: int
) -> Estimate:
    """The plain difference; without an error where there are too few images for one."""
    try:
        return frechet_difference(gen_a, gen_b, reference, seed, paired=paired)
    except NotEnoughSamples as error:
        value = frechet(gen_a, reference) - frechet(gen_b, reference)
        return Estimate(value, None, f"none: {error}")
