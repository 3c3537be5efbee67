"""Estimates of a Fréchet distance that is known: raw, its floor, and corrected, at 500 and 5,000.

    python -m benchmarks.gaussian_truth --json benchmarks/gaussian_truth.json

Images' features are imitated by Gaussians whose variances fall as i^-1.2 and add up to 90.  The
"gen" law is shifted and has other variances, so its distance has a closed form; the "perfect" law
is the real one.  The real side is the whole population (M = inf) or as many samples as generated.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dreamlib.metrics.frechet import Moments, frechet
from dreamlib.metrics.frechet_stats import SAMPLES_PER_FEATURE, frechet_corrected, frechet_floor
from dreamlib.utils.files import write_text
from dreamlib.utils.rng import numpy_rng

TRACE, DECAY = 90.0, 1.2
SIZES = (500, 5000)
REPETITIONS = {64: 200, 512: 40, 2048: 10}


@dataclass(frozen=True)
class Law:
    """Independent Gaussian features; a rotation would change no distance."""

    mean: np.ndarray  # [d]
    sd: np.ndarray  # [d]

    def draw(self, n: int, *key: int) -> np.ndarray:
        noise = numpy_rng("gaussian truth", *key).standard_normal((n, len(self.sd)))
        return self.mean + noise * self.sd

    @property
    def moments(self) -> Moments:
        return Moments.from_stats(self.mean, np.diag(self.sd**2))

    def distance(self, other: Law) -> float:
        """The closed form."""
        shift = np.square(self.mean - other.mean).sum()
        return float(shift + np.square(self.sd - other.sd).sum())


def laws(d: int) -> dict[str, Law]:
    """real, perfect (the same law again), and gen: off by 3 in the mean and by 5.625 in spread."""
    variances = np.arange(1, d + 1) ** -DECAY
    sd = np.sqrt(variances * TRACE / variances.sum())
    mean = np.zeros(d)
    mean[:3] = 1.0
    real = Law(np.zeros(d), sd)
    return {
        "real": real,
        "perfect": real,
        "gen": Law(mean, sd * (1 + 0.25 * (-1.0) ** np.arange(d))),
    }


def estimates(d: int, name: str, repetition: int, sizes: tuple[int, ...]) -> dict[str, float]:
    """Every estimate from one draw of the largest size; smaller ones use its beginning."""
    real, law = laws(d)["real"], laws(d)[name]
    a = law.draw(max(sizes), d, repetition, 0)
    b = real.draw(max(sizes), d, repetition, 1)
    population, found = real.moments, {}
    for n in sizes:
        found[f"raw {n}/inf"] = frechet(a[:n], population)
        found[f"raw {n}/{n}"] = frechet(a[:n], b[:n])
        if n >= 2 * SAMPLES_PER_FEATURE * d:
            found[f"corrected {n}/{n}"] = frechet_corrected(a[:n], b[:n], seed=repetition)
    return found


def case(d: int, name: str, repetitions: int, sizes: tuple[int, ...] = SIZES) -> dict:
    """Mean and sd of every estimate over repetitions, with the truth and the floors beside them."""
    found = [estimates(d, name, i, sizes) for i in range(repetitions)]
    real = laws(d)["real"]
    rows = {}
    for what in found[0]:
        values = [each[what] for each in found]
        kind, n, m = what.replace("/", " ").split()
        floor = frechet_floor(real.sd**2, float(n), math.inf if m == "inf" else float(m))
        rows[what] = {
            "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)),
            "floor": floor if kind == "raw" else 0.0,
        }
    truth = laws(d)[name].distance(real)
    return {"d": d, "law": name, "truth": truth, "repetitions": repetitions, "rows": rows}


def table(cases: list[dict]) -> str:
    kinds = ["raw 500/inf", "raw 500/500", "raw 5000/inf", "raw 5000/5000"]
    kinds += ["corrected 500/500", "corrected 5000/5000"]
    lines = [
        f"| d | law | truth | {' | '.join(kinds)} |",
        "|" + "---|" * (3 + len(kinds)),
    ]
    for each in cases:
        cells = []
        for kind in kinds:
            row = each["rows"].get(kind)
            text = "refused" if row is None else f"{row['mean']:.3f} ± {row['sd']:.3f}"
            if row and each["law"] == "perfect" and kind.startswith("raw"):
                text += f" (floor {row['floor']:.3f})"
            cells.append(text)
        name = f"{each['law']}, {each['repetitions']} times"
        lines.append(f"| {each['d']} | {name} | {each['truth']:.3f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    begun, cases = time.perf_counter(), []
    for d, repetitions in REPETITIONS.items():
        for name in ("gen", "perfect"):
            cases.append(case(d, name, repetitions))
            print(f"{time.perf_counter() - begun:.0f} s: {cases[-1]}", flush=True)
    print(table(cases))
    facts = {"numpy": np.__version__, "python": platform.python_version()}
    result = {**facts, "seconds": time.perf_counter() - begun, "cases": cases}
    if options.json:
        write_text(options.json, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
