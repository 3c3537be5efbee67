"""Seconds and digits of a Fréchet distance of 2,048 features, against the matrix root of scipy.

    OPENBLAS_NUM_THREADS=1 python -m benchmarks.frechet_speed --json \
        benchmarks/frechet_speed.json

Rounds are interleaved in one process, and a ratio is one of the same round.  The other side is
clean-fid's `frechet_distance` (scipy's sqrtm), given both sets' moments for nothing; ours is given
features at N = 500, and moments at N = 5,000, fresh or with the reference's factor kept.  What a
whole study costs is `study_cost`'s question.

One thread, because on a machine with other work threads that wait for each other cost more than
they give; two on an idle machine are about 1.5 times as fast.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from dreamlib.metrics.frechet import Moments, frechet
from dreamlib.utils.files import write_text
from dreamlib.utils.rng import numpy_rng

D, N = 2048, 5000


def feature_sets() -> dict[str, np.ndarray]:
    """Non-negative, correlated, variances falling as i^-1.2, in float32: like Inception's."""
    turn, _ = np.linalg.qr(numpy_rng("speed rotation").standard_normal((D, D)))
    sd = np.sqrt(np.arange(1, D + 1) ** -1.2)
    sets = {}
    for key, name in enumerate(("real", "gen")):
        noise = numpy_rng("speed noise", key).standard_normal((N, D))
        wide = 1.2 if name == "gen" else 1.0
        sets[name] = np.maximum((noise * (sd * wide)) @ turn.T + 0.05, 0).astype(np.float32)
    return sets


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    value = call()
    return time.perf_counter() - begun, value


def trusted(a: np.ndarray, b: np.ndarray) -> float:
    """No covariance, no root of an eigenvalue, and LAPACK's older, plainer algorithm (gesvd):
    singular values of the product of two QR factors."""
    from scipy.linalg import svd

    factors = []
    for x in (a, b):
        x = x.astype(np.float64)
        centred = (x - x.mean(0)) / np.sqrt(len(x) - 1)
        factors.append(np.linalg.qr(centred, mode="r") if len(x) > D else centred)
    shift = np.square(a.mean(0, dtype=np.float64) - b.mean(0, dtype=np.float64)).sum()
    traces = sum(np.square(factor).sum() for factor in factors)
    overlap = svd(factors[0] @ factors[1].T, compute_uv=False, lapack_driver="gesvd").sum()
    return float(shift + traces - 2 * overlap)


def theirs(stats: list[tuple[np.ndarray, np.ndarray]]) -> float:
    from cleanfid import fid

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return float(fid.frechet_distance(*stats[0], *stats[1]))


def speed(a: np.ndarray, b: np.ndarray, rounds: int) -> dict[str, Any]:
    """Every route of one pair of sets, round by round."""
    kept = Moments.of(b)
    value = frechet(a, kept)  # the reference's factor is made here
    stats = [(m.mean, m.cov) for m in (Moments.of(a), kept)]
    routes: dict[str, Callable[[], float]] = {
        "sqrtm, from moments": lambda: theirs(stats),
        "ours, from features": lambda: frechet(a, b),
        "ours, from features, reference kept": lambda: frechet(a, kept),
    }
    if len(a) > D:
        own = Moments.of(a)

        def fresh(moments: Moments) -> Moments:
            return Moments(moments.n, moments.mean, moments.m2)

        routes |= {
            "ours, from moments": lambda: frechet(fresh(own), fresh(kept)),
            "ours, from moments, reference kept": lambda: frechet(fresh(own), kept),
        }
    found: dict[str, Any] = {name: {"seconds": []} for name in routes}
    truth = trusted(a, b)
    for number in range(rounds):
        for name, route in routes.items():
            seconds, value = timed(route)
            found[name] |= {"value": value, "error": abs(value / truth - 1)}
            found[name]["seconds"].append(seconds)
        print(f"N = {len(a)}, round {number + 1}: done", flush=True)
    return {"n": len(a), "trusted": truth, "routes": found}


def table(result: dict[str, Any]) -> str:
    lines = [
        "| N | route | seconds | sqrtm is slower by | value | relative error |",
        "|---|---|---|---|---|---|",
    ]
    for each in result["speed"]:
        base = each["routes"]["sqrtm, from moments"]["seconds"]
        for name, found in each["routes"].items():
            ratios = [slow / fast for slow, fast in zip(base, found["seconds"])]
            spread = f"{median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
            value, error = found["value"], found["error"]
            seconds = f"{median(found['seconds']):.3f}"
            lines.append(
                f"| {each['n']} | {name} | {seconds} | {spread} | {value:.8f} | {error:.1e} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    import scipy

    sets = feature_sets()
    found = [speed(sets["gen"][:n], sets["real"][:n], options.rounds) for n in (500, N)]
    facts = {
        "d": D,
        "cores": os.cpu_count(),
        "threads": os.environ.get("OPENBLAS_NUM_THREADS", "one per core"),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "python": platform.python_version(),
    }
    result = {**facts, "speed": found}
    print(table(result))
    if options.json:
        write_text(options.json, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
