"""FD and seconds of each sampler, for several trained models: the table in docs/TRAINING.md.

    python -m benchmarks.sampler_table --out runs/sampler-table

Trains the preset once per seed (about five minutes each for faces16 on two cores), then draws and
scores the same number of images with every sampler.  What is done is kept in OUT: the same command
goes on where it was, and prints the table again when there is nothing left to do.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from statistics import mean, stdev

from dreamlib.evaluation.evaluate import evaluate
from dreamlib.runs.open import open_run
from dreamlib.runs.run import Run
from dreamlib.sampling.generate import generate
from dreamlib.training.train import train
from dreamlib.utils.files import read_json, write_json
from dreamlib.utils.progress import TextProgress

ROWS = [
    ("ddpm", "uniform", 100),
    ("ddim", "uniform", 10),
    ("ddim", "uniform", 20),
    ("ddim", "uniform", 50),
    ("ddim", "uniform", 100),
    ("ddim", "karras", 20),
    ("ddim", "karras", 100),
    ("dpmpp_2m", "uniform", 20),
    ("dpmpp_2m", "karras", 10),
    ("dpmpp_2m", "karras", 20),
    ("dpmpp_2m", "karras", 50),
]


def trained(folder: Path, preset: str, seed: int, sample: tuple[str, str, int]) -> Run:
    """The model of one training seed, trained to its end, about to sample like this."""
    sampler, spacing, steps = sample
    overrides = [
        *[f"train.seed={seed}", f"sample.seed={seed}"],
        *[f"sample.sampler={sampler}", f"sample.spacing={spacing}", f"sample.steps={steps}"],
        "evaluate.anchors=false",
    ]
    run = open_run(folder / f"seed{seed}", preset, overrides=overrides)
    for tick in train(run):
        if tick.row:
            print(f"seed {seed}: step {tick.step:,}/{tick.total:,}", end="\r")
    return run


def measure(run: Run, n: int) -> dict[str, float]:
    """FD at N = n with its standard error, and the seconds that drawing the images took."""
    shutil.rmtree(run.dir.generated, ignore_errors=True)  # shards of an interrupted measurement
    begun = time.perf_counter()
    generate(run, range(n), progress=TextProgress())
    seconds = time.perf_counter() - begun
    study = evaluate(run, n=(n,))
    score, floor = study.find("generated", n), study.find("held-out real", n)
    return {"fd": score.value, "se": score.se, "floor": floor.value, "seconds": seconds}


def table(results: dict[str, dict[str, float]], seeds: int) -> str:
    lines = [
        "| sampler | spacing | steps | FD[classifier]: mean | sd over seeds | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        found = [results[key(row, seed)] for seed in range(seeds)]
        fd, seconds = [r["fd"] for r in found], mean(r["seconds"] for r in found)
        lines.append(
            f"| {row[0]} | {row[1]} | {row[2]} | {mean(fd):.2f} | {stdev(fd):.2f} | {seconds:.0f} |"
        )
    floor = mean(results[key(ROWS[0], seed)]["floor"] for seed in range(seeds))
    return "\n".join([*lines, f"\nfloor {floor:.2f}"])


def key(row: tuple[str, str, int], seed: int) -> str:
    return "-".join(map(str, (*row, seed)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="faces16")
    parser.add_argument("--out", type=Path, default=Path("runs/sampler-table"))
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    path = options.out / f"{options.preset}-{options.n}.json"
    results = read_json(path) if path.exists() else {}
    for seed in range(options.seeds):
        for row in ROWS:
            if key(row, seed) not in results:
                run = trained(options.out / options.preset, options.preset, seed, row)
                results[key(row, seed)] = measure(run, options.n)
                write_json(path, results)
    print(table(results, options.seeds))


if __name__ == "__main__":
    main()
