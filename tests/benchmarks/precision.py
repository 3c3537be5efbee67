"""What bfloat16 costs in quality: trained in it, and drawn in it, against float32.

    python -m tests.benchmarks.precision --out runs/precision --json tests/benchmarks/precision.json

Trains `faces16` in both precisions with the same seeds, steps and noise, and takes the difference
of their distances; then draws the same images of one model in both.  What is done is kept in OUT.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch

from dreamlib.build import make_denoiser, make_sampler, make_schedule
from dreamlib.compare import compare
from dreamlib.diffusion.draw import draw_images
from dreamlib.diffusion.unet import UNet
from dreamlib.files import write_json
from dreamlib.host import choose_precision
from dreamlib.material import Material
from dreamlib.metrics.frechet import frechet
from dreamlib.metrics.frechet_error import frechet_difference
from dreamlib.opening import open_run
from dreamlib.run import Run
from dreamlib.train import train
from tests.benchmarks.timing import machine

PRESET, N = "faces16", 5000
PRECISIONS = ("bf16", "fp32")


def trained(out: Path, precision: str, seed: int) -> Run:
    """The preset to its end; sampled in float32, whatever it was trained in."""
    settings = [f"train.precision={precision}", f"train.seed={seed}", "evaluate.anchors=false"]
    run = open_run(out / f"{precision}-{seed}", PRESET, overrides=settings)
    for tick in train(run):
        if tick.row:
            print(f"{precision}, seed {seed}: step {tick.step:,}/{tick.total:,}", end="\r")
    return run


def drawn(run: Run, precision: str, n: int) -> np.ndarray:
    """The first n images of the run's averaged weights, computed in this precision."""
    net, size = UNet.from_run(run.folder, say=lambda text: None), run.config.data.size
    sched = make_schedule(run.config)
    kind = choose_precision(precision, torch.device("cpu"))
    return draw_images(
        make_denoiser(run.config, net, sched, kind).eval(),
        sched,
        make_sampler(run.config),
        range(n),
        seed=0,
        shape=(run.data.channels, size, size),
        batch=run.config.sample.batch,
        device=torch.device("cpu"),
    )


def training(out: Path, seed: int, n: int) -> dict[str, Any]:
    """FD of bf16 minus that of fp32, for one seed of training."""
    runs = {precision: trained(out, precision, seed) for precision in PRECISIONS}
    row = compare(runs["bf16"], runs["fp32"], (n,)).rows[0]
    return {"seed": seed, "metric": row.metric, "difference": row.value, "se": row.se}


def sampling(run: Run, n: int) -> dict[str, Any]:
    """FD of the same images drawn in bf16 minus that of fp32, image by image."""
    material = Material(run, (n,))
    features = [material.features(drawn(run, precision, n)) for precision in PRECISIONS]
    reference = material.features(material.reference[0])
    found = frechet_difference(*features, reference, seed=0, paired=True)
    values = {p: frechet(each, reference) for p, each in zip(PRECISIONS, features)}
    return {"fd": values, "difference": found.value, "se": found.se}


def table(found: dict[str, Any]) -> str:
    differences = [each["difference"] for each in found["training"]]
    lines = ["| bf16 - fp32 | FD[classifier] | standard error |", "|---|---|---|"]
    for each in found["training"]:
        lines.append(
            f"| trained, seed {each['seed']} | {each['difference']:+.3f} | {each['se']:.3f} |"
        )
    spread = stdev(differences) / len(differences) ** 0.5
    lines.append(f"| trained, mean of seeds | {mean(differences):+.3f} | {spread:.3f} |")
    drawing = found["sampling"]
    lines.append(f"| drawn, one model | {drawing['difference']:+.4f} | {drawing['se']:.4f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/precision"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--n", type=int, default=N)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = {"n": options.n, "preset": PRESET, "machine": machine()}
    found["training"] = [training(options.out, s, options.n) for s in range(options.seeds)]
    found["sampling"] = sampling(trained(options.out, "bf16", 0), options.n)
    print(table(found))
    if options.json:
        write_json(options.json, found)


if __name__ == "__main__":
    main()
