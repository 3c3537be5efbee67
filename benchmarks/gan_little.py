"""Few images: StyleGAN2 with and without ADA on 500 drawn faces.

    python -m benchmarks.gan_little --out runs/little --figure figures

Trains `gan-faces16` on 500 images, with the augmentation and without, and scores the averaged
weights on the way.  The classifier and the reference are those of all drawn faces: 500 images make
no classifier, and what counts is how near the generated images are to faces that were not seen.  R1
is low, so that the discriminator may learn its images by heart; p is ten times as quick as usual:
it is meant for trainings of millions of images.  What is done is kept in OUT; the same command
goes on.  The results go into gan_little.json beside this file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.timing import machine
from benchmarks.training_hours import train_to, with_error
from dreamlib.config.factory import make_extractor
from dreamlib.evaluation.feature_scores import measure_external
from dreamlib.evaluation.results import Plan
from dreamlib.metrics.features import Extractor, extract
from dreamlib.report.figures.palette import BLUE, GREY, ORANGE, TWO
from dreamlib.report.figures.style import footer, new_figure, save_figure, style
from dreamlib.runs.open import open_run
from dreamlib.runs.run import Run
from dreamlib.sampling.generate import generate
from dreamlib.utils.files import read_json, write_json

JSON = Path(__file__).with_suffix(".json")
PRESET, IMAGES, N, SHARES = "gan-faces16", 500, 1000, 12
ARMS = {"with ADA": [], "without ADA": ["gan.ada=null"]}
COLOURS = {"with ADA": BLUE, "without ADA": ORANGE}
SETTINGS = ["train.device=cpu", "gan.r1=0.05", "gan.ada_images=50000"]
COLUMNS = ("step", "sign_real", "sign_fake", "p")  # of the log


def open_arm(out: Path, arm: str, settings: list[str]) -> Run:
    overrides = [f"data.train={IMAGES}", *SETTINGS, *settings, *ARMS[arm]]
    return open_run(out / arm.replace(" ", "-"), PRESET, overrides=overrides)


def judge(out: Path) -> tuple[Extractor, np.ndarray]:
    """A classifier of all drawn faces, and its features of 5,000 that nobody trains on."""
    run = open_run(out / "judge", PRESET, say=lambda text: None)
    extractor = make_extractor(run.config, run.data, run.device)
    return extractor, extract(run.data.take("reference", 5000)[0], extractor)


def follow(out: Path, arm: str, settings: list[str]) -> dict[str, Any]:
    """Train an arm in parts, scoring it after each."""
    run, (extractor, reference) = open_arm(out, arm, settings), judge(out)
    total = run.config.train.length
    scores = []
    for part in range(1, SHARES + 1):
        step = total * part // SHARES
        path = out / f"{run.folder.name}-{step}.json"
        if not path.exists():
            train_to(run, step)
            features = extract(generate(run, range(N)), extractor)
            plan = Plan("FD", (N,))
            rows = measure_external(plan, {"images": features}, reference, "reference")
            found = {row.metric: {"value": row.value, "se": row.se} for row in rows}
            write_json(path, {"step": step, **found})
            print(f"{arm}: step {step:,} of {total:,}, FD {found['FD']['value']:.2f}", flush=True)
        scores.append(read_json(path))
    log = [{name: row[name] for name in COLUMNS} for row in run.dir.read_log()]
    return {"batch": run.config.train.batch, "scores": scores, "log": log}


def table(found: dict[str, Any]) -> str:
    """Each arm at half its training and at its end; the sign and p are means of the last half."""
    lines = [
        f"| arm | images seen | FD, N = {found['n']:,} | images seen | FD | sign of D(real) | p |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm, each in found["arms"].items():
        cells = [arm]
        for row in (each["scores"][SHARES // 2 - 1], each["scores"][-1]):
            cells += [f"{row['step'] * each['batch']:,}", with_error(row["FD"], 1)]
        late = each["log"][len(each["log"]) // 2 :]
        cells += [f"{mean(row[name] for row in late):.2f}" for name in ("sign_real", "p")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@style()
def figure(found: dict[str, Any]) -> Figure:
    """The discriminator's sign for training images, p, and the distance, against images seen."""
    fig, (sign, p, fd) = new_figure(TWO, 2.5, 3)
    for arm, each in found["arms"].items():
        colour, batch = COLOURS[arm], each["batch"]
        seen = [row["step"] * batch / 1000 for row in each["log"]]
        sign.plot(seen, [row["sign_real"] for row in each["log"]], color=colour, lw=1, label=arm)
        p.plot(seen, [row["p"] for row in each["log"]], color=colour, lw=1)
        fd.errorbar(
            [row["step"] * batch / 1000 for row in each["scores"]],
            [row["FD"]["value"] for row in each["scores"]],
            [2 * row["FD"]["se"] for row in each["scores"]],
            color=colour,
            marker="o",
            ms=2.5,
            lw=1,
            elinewidth=0.8,
        )
    sign.axhline(0.6, color=GREY, lw=0.8)
    sign.set(title="Sign of D(real images)", ylim=(-0.2, 1.05))
    sign.legend(loc="lower right")
    p.set(title="p of the augmentation")
    fd.set(title="FD[classifier]")
    for axes in (p, fd):
        axes.set_ylim(bottom=0)
    for axes in (sign, p, fd):
        axes.set_xlabel("thousand images seen")
    footer(
        fig,
        f"{PRESET}, {IMAGES} drawn faces · N = {N:,} · averaged weights · classifier and 5,000 "
        "reference images of all faces · bars: 2 standard errors",
    )
    return fig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arms", nargs="*", default=list(ARMS))
    parser.add_argument("--out", type=Path, default=Path("runs/little"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", dest="settings", action="append", default=[])
    parser.add_argument("--figure", type=Path, help="a folder for the picture")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for arm in options.arms:
        write_json(options.out / f"{arm}.json", follow(options.out, arm, options.settings))
    done = {arm: options.out / f"{arm}.json" for arm in ARMS}
    if all(path.exists() for path in done.values()):
        facts = {
            "preset": PRESET,
            "images": IMAGES,
            "n": N,
            "settings": [*SETTINGS, *options.settings],
        }
        arms = {arm: read_json(path) for arm, path in done.items()}
        found = {**facts, "arms": arms, "machine": machine()}
        write_json(JSON, found)
        print(table(found))
        if options.figure:
            save_figure(figure(found), options.figure, "little_data")


if __name__ == "__main__":
    main()
