"""A small GAN on two cores: `gan-faces16` with three seeds, its scores, and how long it took.

    python -m benchmarks.gan_faces --out runs/gan-faces --figure figures

Trains the preset with every seed and evaluates it as a user would, N = 500 and 5,000, beside its
own untrained generator.  Minutes are those of the training's log, pauses left out: of a seed that
has the machine to itself (--threads 2) they are worth quoting.  What is done is kept in OUT; the
same command goes on.  The results go into gan_faces.json beside this file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.timing import machine
from benchmarks.training_hours import clock, time_text, with_error
from dreamlib.evaluation.evaluate import evaluate
from dreamlib.evaluation.inputs import UNTRAINED
from dreamlib.evaluation.results import GENERATED
from dreamlib.report.figures.palette import TWO
from dreamlib.report.figures.style import fit, footer, new_figure, save_figure, show_sheet, style
from dreamlib.runs.open import open_run
from dreamlib.runs.run import Run
from dreamlib.sampling.generate import generate
from dreamlib.training.train import train
from dreamlib.utils.files import read_json, write_json

JSON = Path(__file__).with_suffix(".json")
PRESET, SEEDS, SHOWN, ACROSS = "gan-faces16", (0, 1, 2), 32, 8
COLUMNS = ("step", "sign_real", "sign_fake", "p", "r1", "spread", "contrast")  # of the log


def open_seed(out: Path, seed: int) -> Run:
    return open_run(out / f"seed-{seed}", PRESET, overrides=[f"train.seed={seed}"])


def measure(run: Run) -> dict[str, Any]:
    """Train a run to its end and score it."""
    for _ in train(run):
        pass
    study, log = evaluate(run), run.dir.read_log()
    steps, seconds, pauses = clock(log, run.config.train.batch)
    names = {row.metric for row in study.rows if row.images == GENERATED}
    scores = {
        name: {str(row.n): {"value": row.value, "se": row.se} for row in study.of(GENERATED, name)}
        for name in sorted(names)
    }
    untrained = study.of(UNTRAINED)[-1]
    every = max(1, len(log) // 100)
    return {
        "steps": steps[-1],
        "seconds": seconds[-1],
        "pauses": pauses,
        "threads": torch.get_num_threads(),
        "metric": study.facts["metric"],
        "scores": scores,
        "untrained": {"n": untrained.n, "value": untrained.value, "se": untrained.se},
        "shares": study.shares,
        "log": [{name: row[name] for name in COLUMNS} for row in log[every - 1 :: every]],
    }


def rarest(shares: dict[str, Any]) -> tuple[str, float]:
    """The attribute value that is rarest beside its real share, and that ratio."""
    found = {
        f"{attribute}: {value}".replace("_", " "): each["generated"] / each["real"]
        for attribute, values in shares.items()
        for value, each in values.items()
    }
    name = min(found, key=found.__getitem__)
    return name, found[name]


def table(found: dict[str, Any]) -> str:
    lines = [
        "| seed | training | threads | steps | FD, N = 500 | FD, N = 5,000 | untrained | of it "
        "| recall | coverage | rarest beside its real share |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for seed, each in found["seeds"].items():
        few, many = (each["scores"][each["metric"]][n] for n in ("500", "5000"))
        untrained = each["untrained"]["value"]
        name, ratio = rarest(each["shares"])
        cells = [seed, time_text(each["seconds"]), str(each["threads"]), f"{each['steps']:,}"]
        cells += [with_error(few, 2), with_error(many, 2), f"{untrained:.1f}"]
        cells.append(f"1/{untrained / many['value']:.0f}")
        names = [each["metric"].replace("FD", word) for word in ("recall", "coverage")]
        cells += [f"{each['scores'][name]['5000']['value']:.2f}" for name in names]
        lines.append(f"| {' | '.join(cells)} | {name}, {ratio:.2f} |")
    return "\n".join(lines)


@style()
def figure(sheets: dict[int, np.ndarray]) -> Figure:
    """The first images of every seed, uint8 [N,H,W,C]."""
    fig, axes = new_figure(TWO, 1.7, len(sheets))
    for panel, (seed, images) in zip(axes, sheets.items()):
        show_sheet(panel, images.reshape(-1, ACROSS, *images.shape[1:]))
        panel.set_title(f"seed {seed}")
    footer(fig, f"{PRESET}: the first {SHOWN} images of each seed, averaged weights, unselected")
    fit(fig)
    return fig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gan-faces"))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--figure", type=Path, help="a folder for the picture")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for seed in options.seeds:
        path = options.out / f"seed-{seed}.json"
        if not path.exists():
            write_json(path, measure(open_seed(options.out, seed)))
    done = {seed: options.out / f"seed-{seed}.json" for seed in SEEDS}
    if not all(path.exists() for path in done.values()):
        return
    found = {"preset": PRESET, "seeds": {seed: read_json(path) for seed, path in done.items()}}
    write_json(JSON, found | {"machine": machine()})
    print(table(read_json(JSON)))
    if options.figure:
        sheets = {seed: generate(open_seed(options.out, seed), range(SHOWN)) for seed in SEEDS}
        save_figure(figure(sheets), options.figure, "gan_faces")


if __name__ == "__main__":
    main()
