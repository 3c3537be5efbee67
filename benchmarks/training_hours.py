"""Loss, scores and previews against training time: the table "by the hour" in docs/TRAINING.md.

    python -m benchmarks.training_hours --out runs/hours --clock runs/demo \
        --json benchmarks/training_hours.json --figure figures

Trains a preset to 5, 10, 25, 50, 75 and 100 % of its steps, leaves the loop each time (which
saves), scores the averaged weights, and goes on.  What is done is kept in OUT: the same command
continues.  Such a run is disturbed, so the time that training takes is read from the log of another
run of the same preset, which nothing disturbed (`--clock`); without it, from this run's own log.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

from dreamlib.config.factory import make_stream, total_steps
from dreamlib.evaluation.evaluate import evaluate
from dreamlib.report.figures.style import footer, new_figure, save_figure
from dreamlib.runs.open import open_run
from dreamlib.runs.run import Run
from dreamlib.training.train import train
from dreamlib.utils.files import read_json, write_json, write_text

SHARES = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
N = (500, 2000)
ROWS = 4  # of the log, over which a loss is averaged
SETTINGS = ["evaluate.anchors=false", "train.preview_every=5 %"]
GAP = 3  # times the usual time between two rows: a pause, not training


def read_log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]


def clock(log: list[dict[str, Any]], batch: int) -> tuple[list[int], list[float], int]:
    """Steps, the seconds of training up to each, and the pauses that were left out.

    A pause counts as what a row usually takes.  The first row says by its images per second how
    long it took.
    """
    took = [log[0]["step"] * batch / log[0]["images_per_s"]]
    took += [after["time"] - before["time"] for before, after in pairwise(log)]
    steps = [row["step"] for row in log]
    pace = [t / n for t, n in zip(took, np.diff([0, *steps]))]
    usual = float(median(pace))
    pauses = [p > GAP * usual for p in pace]
    kept = [usual if pause else p for p, pause in zip(pace, pauses)]
    seconds = np.cumsum(np.array(kept) * np.diff([0, *steps]))
    return steps, seconds.tolist(), sum(map(int, pauses))


def loss_at(log: list[dict[str, Any]], step: int) -> float:
    """The mean loss of the last rows up to a step."""
    return float(np.mean([row["loss"] for row in log if row["step"] <= step][-ROWS:]))


def train_to(run: Run, stop: int) -> None:
    if (run.weights_step() or 0) >= stop:
        return
    for tick in train(run):
        if tick.step == stop:
            break  # saves, and pauses


def scored(run: Run) -> dict[str, Any]:
    """FD and KID of the averaged weights at every N, each with its standard error and floor."""
    study = evaluate(run, n=N)
    found: dict[str, Any] = {"metric": study.facts["metric"]}
    for short, metric in (("fd", None), ("kid", study.facts["metric"].replace("FD", "KID"))):
        for n in N:
            row = study.find("generated", n, metric)
            found[f"{short}_{n}"] = {"value": row.value, "se": row.se, "floor": row.floor}
    return found


def measure(folder: Path, preset: str, data: Path | None) -> dict[str, Any]:
    """Train and score; what is done is kept in FOLDER/hours.json."""
    path = folder / "hours.json"
    done = read_json(path) if path.exists() else {}
    named = [f"data.path={json.dumps(str(data.absolute()))}"] if data else []
    run = open_run(folder / preset, preset, overrides=[*SETTINGS, *named])
    epoch = make_stream(run.config, run.data, run.device).epoch_steps
    total = total_steps(run.config, epoch)
    for share in SHARES:
        step = max(1, round(share * total))
        if str(step) in done:
            continue
        train_to(run, step)
        loss = loss_at(read_log(run.folder), step)
        done[str(step)] = {"share": share, "step": step, "loss": loss, **scored(run)}
        write_json(path, done)
        print(f"step {step:,} of {total:,}: {done[str(step)]}", flush=True)
    return {
        "preset": preset,
        "run": run.folder.name,
        "n": list(N),
        "sampler": f"{run.config.sample.sampler} {run.config.sample.steps}",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "precision": run.precision.name,
        "weights": run.weights()[1]["sha256"],
        "rows": list(done.values()),
    }


def timed(measured: dict[str, Any], folder: Path, batch: int) -> dict[str, Any]:
    """The same with the seconds of training that an undisturbed run's log tells."""
    steps, seconds, pauses = clock(read_log(folder), batch)
    rows = [
        row | {"seconds": float(np.interp(row["step"], [0, *steps], [0, *seconds]))}
        for row in measured["rows"]
    ]
    about = {"run": folder.name, "rows": len(steps), "pauses": pauses, "seconds": seconds[-1]}
    return measured | {"clock": about, "rows": rows}


def time_text(seconds: float) -> str:
    minutes = round(seconds) // 60
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {round(seconds) % 60:02d} s" if minutes else f"{round(seconds)} s"


def with_error(score: dict[str, Any], digits: int) -> str:
    error = "–" if score["se"] is None else f"{score['se']:.{digits}f}"
    return f"{score['value']:.{digits}f} ± {error}"


def table(measured: dict[str, Any]) -> str:
    few, many = measured["n"]
    metric = measured["rows"][0]["metric"]
    lines = [
        f"| training time | steps | share | loss | {metric}, N = {few:,} | N = {many:,} "
        f"| KID, N = {many:,} |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in measured["rows"]:
        cells = [with_error(row[f"fd_{n}"], 2) for n in measured["n"]]
        cells.append(with_error(row[f"kid_{many}"], 4))
        lines.append(
            f"| {time_text(row['seconds'])} | {row['step']:,} | {row['share']:.0%} "
            f"| {row['loss']:.4f} | {' | '.join(cells)} |"
        )
    floors = [measured["rows"][-1][f"fd_{n}"]["floor"] for n in measured["n"]]
    kid = measured["rows"][-1][f"kid_{many}"]["floor"]
    lines.append(f"| floor | | | | {floors[0]:.2f} | {floors[1]:.2f} | {kid:.4f} |")
    return "\n".join(lines)


def precision_table(one: dict[str, Any], other: dict[str, Any]) -> str:
    """The same training in two precisions: FD at the larger N, and how far it differs."""
    many = one["n"][-1]
    metric, names = one["rows"][0]["metric"], (one["precision"], other["precision"])
    lines = [
        f"| steps | {metric}, N = {many:,}, in {names[0]} | in {names[1]} | difference |",
        "|---|---|---|---|",
    ]
    for a, b in zip(one["rows"], other["rows"], strict=True):
        cells = [with_error(row[f"fd_{many}"], 2) for row in (a, b)]
        lines.append(f"| {a['step']:,} | {' | '.join(cells)} | {difference(a, b, many)} |")
    return "\n".join(lines)


def difference(a: dict[str, Any], b: dict[str, Any], n: int) -> str:
    """Of the distances of two models, with the error of images drawn by chance."""
    one, other = a[f"fd_{n}"], b[f"fd_{n}"]
    error = float(np.hypot(one["se"], other["se"]))
    return with_error({"value": one["value"] - other["value"], "se": error}, 2)


def strip(measured: dict[str, Any], samples: Path):
    """The previews of each row side by side: samples/step-*.png of the run that was measured."""
    rows, many = measured["rows"], measured["n"][-1]
    fig, axes = new_figure(1.55 * len(rows), 2.35, len(rows))
    for ax, row in zip(axes, rows):
        image = plt.imread(samples / f"step-{row['step']:08d}.png")
        ax.imshow(image, interpolation="nearest")
        ax.set_title(f"{time_text(row['seconds'])}\nstep {row['step']:,}", fontsize=8)
        ax.text(
            0.5,
            -0.04,
            f"FD {row[f'fd_{many}']['value']:.2f}",
            transform=ax.transAxes,
            ha="center",
            va="top",
            fontsize=8,
        )
        ax.axis("off")
    footer(
        fig,
        f"{measured['preset']} · samples/step-*.png, averaged weights (EMA), seeds 0 to 15 "
        f"throughout, not selected · {rows[0]['metric']} at N = {many:,}, {measured['sampler']} · "
        f"time from the log of {measured['clock']['run']}",
    )
    return fig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="faces16")
    parser.add_argument("--data", type=Path, help="a folder of images, as `dreamlib train --data`")
    parser.add_argument("--out", type=Path, default=Path("runs/hours"))
    parser.add_argument("--clock", type=Path, help="an undisturbed run of the same preset")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path, help="a folder for hours.png")
    options = parser.parse_args()
    found = measure(options.out, options.preset, options.data)
    run = open_run(options.out / options.preset, say=lambda text: None)
    found = timed(found, options.clock or run.folder, run.config.train.batch)
    print(table(found))
    if options.json:
        write_text(options.json, json.dumps(found, indent=1) + "\n")
    if options.figure:
        print(save_figure(strip(found, run.dir.samples), options.figure, "hours"))


if __name__ == "__main__":
    main()
