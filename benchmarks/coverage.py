"""Do the errors hold what they promise?  Coverage, false verdicts and expected scores, simulated.

    python -m benchmarks.coverage --json benchmarks/coverage.json [PART ...]

Every repetition draws fresh images and a fresh reference, and scores them by the functions that
`evaluate` and `compare` call.

coverage   how often the mean of all repetitions lies within two standard errors of one's value
verdicts   how often `compare` names one of two generators that are equally far away, one narrow
           and one wide: it should nearly never
expected   what perfect generators score on average, beside what is printed as their null
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.gaussian_truth import laws
from dreamlib.evaluation.compare import Comparison, differences_of
from dreamlib.evaluation.feature_scores import distance_rows, kernel_rows
from dreamlib.evaluation.results import Plan
from dreamlib.metrics.frechet import Moments
from dreamlib.metrics.frechet_stats import frechet_floor
from dreamlib.utils.files import write_text
from dreamlib.utils.rng import numpy_rng

Draw = Callable[[int, np.random.Generator], np.ndarray]

SIZES, REFERENCE = (500, 5000), 5000
PLAN = Plan("FD", SIZES)
COVERED = ("mixture", "Gaussian", "ReLU")
REPETITIONS = 300
MORE = {("mixture", 16): 1000}  # 300 left open on which side of 0.97 its shares lie
EXPECTED = ("Gaussian", "mixture", "ReLU", "t5", "elliptical t5", "lognormal")
MOST, FEW = 1000, 300  # repetitions at 16 and at 64 features: heavy tails need many
PAIRS = {64: (500, 200), 512: (5000, 40), 2048: (5000, 16)}  # d: (N, repetitions)
APART = 0.2  # the narrow generator's sd is 0.8 of the real one's, the wide one's 1.2


def draws(name: str, d: int) -> dict[str, Draw]:
    """How features of "real" and of "gen" images are drawn, [n,d] each."""
    fixed = numpy_rng("coverage laws", d)
    real, gen = laws(d)["real"], laws(d)["gen"]
    centres = fixed.standard_normal((10, d)) * real.sd
    turn = np.linalg.qr(fixed.standard_normal((d, d)))[0]
    shares = {"real": np.full(10, 0.1), "gen": np.linspace(0.04, 0.16, 10)}

    def draw(which: str, n: int, rng: np.random.Generator) -> np.ndarray:
        law = {"real": real, "gen": gen}[which]
        noise = rng.standard_normal((n, d))
        if name == "mixture":
            return law.mean + centres[rng.choice(10, n, p=shares[which])] + 0.7 * noise * law.sd
        if name == "ReLU":
            return np.maximum(3 * (law.mean + noise * law.sd) @ turn - 0.5, 0)
        if name == "t5":
            noise = rng.standard_t(5, (n, d)) * math.sqrt(3 / 5)
        if name == "elliptical t5":
            noise /= np.sqrt(rng.chisquare(5, (n, 1)) / 3)
        if name == "lognormal":
            noise = np.exp(noise) / math.sqrt(math.e * (math.e - 1))
        return law.mean + noise * law.sd

    return {which: lambda n, rng, which=which: draw(which, n, rng) for which in ("real", "gen")}


def coverage(name: str, d: int, repetitions: int) -> dict:
    """Per metric and N: mean and sd of the value, root mean square error, share within 2 SE."""
    law, found = draws(name, d), {}
    for i in range(repetitions):
        rng = numpy_rng("coverage", d, i)
        reference, sets = law["real"](REFERENCE, rng), {"generated": law["gen"](SIZES[-1], rng)}
        for row in [*distance_rows(PLAN, sets, reference), *kernel_rows(PLAN, sets, reference)]:
            found.setdefault(f"{row.metric} {row.n}", []).append((row.value, row.se))
    return {"law": name, "d": d, "repetitions": repetitions} | {
        what: _covered(*np.array(each).T) for what, each in found.items()
    }


def _covered(values: np.ndarray, errors: np.ndarray) -> dict[str, float]:
    return {
        "mean": float(values.mean()),
        "sd": float(values.std(ddof=1)),
        "se": float(np.sqrt(np.square(errors).mean())),
        "within": float((np.abs(values - values.mean()) < 2 * errors).mean()),
    }


def verdicts(d: int, n: int, repetitions: int) -> dict:
    """How often each measure, and `compare`, tells the narrow from the wide generator."""
    real, found = laws(d)["real"], []
    for i in range(repetitions):
        rng = numpy_rng("verdicts", d, i)
        reference = rng.standard_normal((REFERENCE, d)) * real.sd
        pair = tuple(
            rng.standard_normal((n, d)) * (real.sd * scale) for scale in (1 - APART, 1 + APART)
        )
        rows = differences_of("FD", pair, reference, False, {})
        told = Comparison({"a": "narrow", "b": "wide", "paired": False}, rows, {}).nearer
        found.append([*(row.clear for row in rows), told is not None])
    named = np.mean(found, axis=0).tolist()
    return {"d": d, "n": n, "repetitions": repetitions} | dict(
        zip(("raw", "corrected", "KID", "compare"), named)
    )


def expected(name: str, d: int, repetitions: int) -> dict:
    """Per N: what a perfect generator scores, with the error of that mean, and the nulls."""
    law, found = draws(name, d), {}
    for i in range(repetitions):
        rng = numpy_rng("expected", d, i)
        reference, sets = law["real"](REFERENCE, rng), {"generated": law["real"](SIZES[-1], rng)}
        eigenvalues = Moments.of(reference).eigenvalues
        for row in distance_rows(PLAN, sets, reference):
            gaussian = frechet_floor(eigenvalues, row.n, REFERENCE)
            found.setdefault(str(row.n), []).append((row.value, row.null, gaussian))
    rows = {"law": name, "d": d, "repetitions": repetitions}
    for n, each in found.items():
        mean, null, gaussian = np.mean(each, axis=0).tolist()
        error = float(np.std(np.array(each)[:, 0], ddof=1) / math.sqrt(repetitions))
        rows[n] = {"scored": mean, "error": error, "null": null, "gaussian": gaussian}
    return rows


PARTS: dict[str, Callable[[], dict]] = {
    **{
        f"coverage, {d}, {name}": partial(coverage, name, d, MORE.get((name, d), REPETITIONS))
        for d in (16, 64)
        for name in COVERED
    },
    **{
        f"expected, {d}, {name}": partial(expected, name, d, count)
        for d, count in ((16, MOST), (64, FEW))
        for name in EXPECTED
    },
    **{f"verdicts, {d}": partial(verdicts, d, *own) for d, own in PAIRS.items()},
}


def of(found: dict[str, dict], what: str) -> list[dict]:
    """The rows of one kind, in the order of PARTS."""
    return [found[part] for part in PARTS if part.startswith(what)]


def coverage_table(found: dict[str, dict]) -> str:
    kinds = [f"{metric}, N = {n:,}" for metric in ("FD", "KID") for n in SIZES]
    lines = [f"| d | features | {' | '.join(kinds)} |", "|" + "---|" * (2 + len(kinds))]
    for row in of(found, "coverage"):
        cells = [row[kind.replace(", N = ", " ").replace(",", "")] for kind in kinds]
        text = [f"{each['within']:.3f} ({each['se'] / each['sd']:.2f})" for each in cells]
        lines.append(f"| {row['d']} | {row['law']} | {' | '.join(text)} |")
    return "\n".join(lines)


def verdicts_table(found: dict) -> str:
    kinds = ("raw", "corrected", "KID", "compare")
    head = "| d | N | repetitions | raw FD | corrected FD | KID | `compare` |\n|" + "---|" * 7
    return "\n".join(
        [
            head,
            *(
                f"| {row['d']:,} | {row['n']:,} | {row['repetitions']} | "
                + " | ".join(f"{100 * row[kind]:.1f} %" for kind in kinds)
                + " |"
                for row in of(found, "verdicts")
            ),
        ]
    )


def expected_table(found: dict[str, dict]) -> str:
    head = "| d | features | N | scored | null | of Gaussian features |\n|" + "---|" * 6
    lines = [
        f"| {row['d']} | {row['law']} | {n:,} | {each['scored']:.3f} ± {each['error']:.3f} | "
        f"{each['null']:.3f} ({each['null'] / each['scored']:.2f}) | "
        f"{each['gaussian']:.3f} ({each['gaussian'] / each['scored']:.2f}) |"
        for row in of(found, "expected")
        for n in SIZES
        for each in (row[str(n)],)
    ]
    return "\n".join([head, *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help="beginnings of their names")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    for part in (part for part in PARTS if part.startswith(tuple(options.parts or [""]))):
        begun = time.perf_counter()
        found = PARTS[part]()
        print(f"{part}: {time.perf_counter() - begun:.0f} s\n{json.dumps(found)}", flush=True)
        if options.json:
            kept = json.loads(options.json.read_text("utf-8")) if options.json.exists() else {}
            write_text(options.json, json.dumps(kept | {part: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
