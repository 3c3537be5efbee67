"""What a whole study costs once features are there: 5,000 against 5,000, 2048 features.

python -m benchmarks.study_cost --json benchmarks/study_cost.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
from pathlib import Path

import numpy as np

from dreamlib.evaluation import feature_scores as measure
from dreamlib.evaluation.results import GENERATED, REAL, Plan
from dreamlib.utils.files import write_text
from dreamlib.utils.rng import numpy_rng

D, N = 2048, 5000
STEPS = ("distance_rows", "corrected_rows", "kernel_rows", "manifold_rows", "mode_rows")


def features(key: int, scale: float = 1.0) -> np.ndarray:
    """Non-negative features with a decaying spectrum, as a network's pooled ones are."""
    rng = numpy_rng("study cost", key)
    sd = np.arange(1, D + 1) ** -0.6
    return np.abs(rng.standard_normal((N, D)) * sd * scale + 0.5 * sd)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cost(jackknife: bool) -> dict[str, float]:
    """Seconds of every part of `measure`, of generated and held-out images at 500 and 5,000."""
    sets = {GENERATED: features(0, 1.1), REAL: features(1)}
    reference, train = features(2), features(3)
    seconds = dict.fromkeys(STEPS, 0.0)
    plain = {name: getattr(measure, name) for name in STEPS}

    def timed(name: str):
        def call(*args, **more):
            begun = time.perf_counter()
            found = plain[name](*args, **more)
            seconds[name] += time.perf_counter() - begun
            return found

        return call

    for name in STEPS:
        setattr(measure, name, timed(name))
    plan = Plan("FID", (500, N), jackknife=jackknife)
    before, begun = peak_mb(), time.perf_counter()
    try:
        measure.measure(plan, sets, reference, train)
    finally:
        for name, function in plain.items():
            setattr(measure, name, function)
    total = time.perf_counter() - begun
    return seconds | {"total": total, "growth_mb": peak_mb() - before}


def table(found: dict[str, dict[str, float]]) -> str:
    parts = [*STEPS, "total"]
    lines = [f"| | {' | '.join(part.removesuffix('_rows') for part in parts)} | memory |"]
    lines.append("|" + "---|" * (len(parts) + 2))
    names = ("without jackknife", "with jackknife")
    memory = max(found[name]["growth_mb"] for name in names)
    for name in names:
        cells = [f"{found[name][part]:.0f} s" for part in parts]
        lines.append(f"| {name} | {' | '.join(cells)} | {memory / 1024:.1f} GB |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    names = {False: "without jackknife", True: "with jackknife"}
    found = {names[jackknife]: cost(jackknife) for jackknife in names}
    print(table(found))
    facts = {"cores": os.cpu_count(), "numpy": np.__version__, "python": platform.python_version()}
    if options.json:
        write_text(options.json, json.dumps(facts | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
