"""What a training's files tell: loss and its parts, lambda, the branches, rate, gradient; the
distance of held-out images, and where it was least."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dreamlib.config.factory import total_steps
from dreamlib.config.schema import span_steps
from dreamlib.report.figures.palette import BLUE, GREEN, GREY, ONE, ORANGE, QUARTILES, TWO
from dreamlib.report.figures.style import footer, log_scale, new_figure, say_missing, style
from dreamlib.report.sources import name_of
from dreamlib.runs.run import Run
from dreamlib.utils.errors import RunError

Rows = list[dict[str, Any]]
QUARTERS = ("first quarter of t", "second", "third", "last (most noise)")
FEW = 40  # rows that are drawn as points as well


def log_of(run: Run) -> Rows:
    """The log's rows.  RunError when there are none yet."""
    rows = run.dir.read_log()
    if not rows:
        raise RunError(f"{run.folder} has no log yet: run `dreamlib train RUN`")
    return rows


@style()
def curves(run: Run) -> Figure:
    """Loss, loss by quartile of t, and lambda against the optimizer step; from log.jsonl."""
    rows = log_of(run)
    fig, (loss, quartiles, lam) = new_figure(TWO, 2.5, 3)
    draw_loss(loss, rows)
    loss.set_title("Training loss")
    draw_quartiles(quartiles, rows, "loss_by_quartile", "Loss by quarter of t")
    draw_lam(lam, rows)
    _finish(fig, [loss, quartiles, lam], run, rows)
    return fig


@style()
def training(run: Run) -> Figure:
    """Everything that the log holds: nine panels against the optimizer step."""
    rows = log_of(run)
    fig, panels = new_figure(TWO, 6.0, 3, 3)
    draw_loss(panels[0], rows)
    panels[0].set_title("Training loss")
    draw_quartiles(panels[1], rows, "loss_by_quartile", "Loss by quarter of t")
    draw_quartiles(panels[2], rows, "error_by_quartile", "Model's error D (rms)")
    draw_lam(panels[3], rows)
    draw_branches(panels[4], run, rows)
    draw_quartiles(panels[5], rows, "shift_by_quartile", "Shift of the input (rms)", log=False)
    draw_row(panels[6], rows, "lr", "Learning rate", GREEN)
    draw_row(panels[7], rows, "grad_norm", "Gradient norm, before clipping", BLUE)
    skipped = sum(row.get("skipped_steps", 0) for row in rows)
    if skipped:
        words = f"{skipped:,} steps not taken (overflow)"
        panels[7].text(0.98, 0.95, words, ha="right", transform=panels[7].transAxes, fontsize=7)
    draw_row(panels[8], rows, "images_per_s", "Images per second", GREY)
    panels[8].set_ylim(bottom=0)
    _finish(fig, panels, run, rows)
    return fig


@style()
def validation(run: Run) -> Figure:
    """The averaged weights' distance against the optimizer step; from validation.jsonl."""
    rows = run.dir.read_validation()
    if not rows:
        raise RunError(
            f"{run.folder} has no validation yet: run `dreamlib train RUN` with "
            "--set validation.every=5% or so"
        )
    best = min(rows, key=lambda row: row["score"])
    fig, (axes,) = new_figure(ONE, 2.4)
    axes.plot([r["step"] for r in rows], [r["score"] for r in rows], "o-", color=BLUE, ms=3)
    axes.plot(best["step"], best["score"], "o", color=ORANGE, label=f"best, step {best['step']:,}")
    axes.set(xlabel="optimizer step", ylabel=best["metric"], title="Validation")
    log_scale(axes)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.legend()
    footer(
        fig,
        f"{name_of(run)} · averaged weights, N = {best['n']:,} · {best['n_real']:,} held-out "
        "images (split floor)",
    )
    return fig


def _finish(fig: Figure, panels: list[Axes], run: Run, rows: Rows) -> None:
    """Marks of resumption, one legend for all panels, and the footer."""
    resumed = mark_steps(panels, run, rows)
    keys = [panels[0].plot([], [], color=c, label=q)[0] for c, q in zip(QUARTILES, QUARTERS)]
    keys += panels[0].plot([], [], color="black", lw=1.2, ls="--", label="mean over t")
    if resumed:
        keys += panels[0].plot([], [], color=GREY, lw=0.8, ls=(0, (2, 2)), label="resumed")
    fig.legend(handles=keys, loc="outside upper center", ncols=len(keys), columnspacing=1.2)
    every = run.config.train.log_every
    footer(
        fig,
        f"{name_of(run)} · step {rows[-1]['step']:,} · {run.config.loss.name} loss · every point "
        f"is the mean of {every:,} steps of {run.config.train.batch:,} images",
    )


def mark_steps(panels: list[Axes], run: Run, rows: Rows) -> list[int]:
    """Whole optimizer steps below every panel, named under the last row; a dashed line at those
    where training was resumed, which are returned."""
    resumed = resumptions(run, rows[-1]["step"])
    for axes in panels[-3:]:
        axes.set_xlabel("optimizer step")
    for axes in panels:
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        for step in resumed:
            axes.axvline(step, color=GREY, lw=0.6, ls=(0, (2, 2)), zorder=0.5)
    return resumed


def resumptions(run: Run, last: int) -> list[int]:
    """Steps at which training went on from a checkpoint, as far as the log reaches."""
    said = (str(row.get("text", "")) for row in run.dir.read_events())
    found = (re.match(r"RESUMED at step ([\d,]+)", text) for text in said)
    steps = {int(match[1].replace(",", "")) for match in found if match}
    return sorted(step for step in steps if 0 < step < last)


# --------------------------------------------------------------------------- one panel each


def _line(axes: Axes, rows: Rows, values: list[float], **look: Any) -> None:
    """Against the step; a few rows are points as well."""
    marks = {"marker": "o", "ms": 2} if len(rows) <= FEW else {}
    axes.plot([row["step"] for row in rows], values, **look, **marks)


def draw_loss(axes: Axes, rows: Rows) -> None:
    _line(axes, rows, [row["loss"] for row in rows], color=BLUE)
    log_scale(axes)


def draw_quartiles(axes: Axes, rows: Rows, key: str, title: str, log: bool = True) -> None:
    """A line for each quarter of the timesteps; a gap where no image fell into one."""
    for i, colour in enumerate(QUARTILES):
        values = [np.nan if row[key][i] is None else row[key][i] for row in rows]
        _line(axes, rows, values, color=colour, lw=1)
    axes.set_title(title)
    if log:
        log_scale(axes)
    else:
        axes.set_ylim(bottom=0)


def draw_lam(axes: Axes, rows: Rows) -> None:
    """Lambda by quarter of t, and its mean over the batch."""
    draw_quartiles(axes, rows, "lam_by_quartile", "λ", log=False)
    steps, means = zip(*((row["step"], row["lam"]) for row in rows))
    axes.plot(steps, means, color="black", ls="--")
    axes.set_ylim(0, max(0.1, 1.05 * axes.dataLim.y1))


def draw_branches(axes: Axes, run: Run, rows: Rows) -> None:
    """The shares of the conservative loss's two branches, alpha and 1 - alpha, by its settings."""
    loss, last = run.config.loss, rows[-1]["step"]
    axes.set_title("Share of the branches")
    if loss.name != "conservative":
        say_missing(axes, f"The {loss.name} loss has one branch: no share to show.", 26)
        return
    epoch = len(run.data.indices("train")) / run.config.train.batch
    total = total_steps(run.config, epoch)
    start = max(1, span_steps(loss.start, epoch=epoch, total=total))
    begun = start < last  # steps count from 0: after `start` of them none was adapted yet
    ends, shares = [0, last], np.zeros(2)
    if begun:
        ends, shares = [0, start, start, last], np.array([0, 0, loss.weight, loss.weight])
    axes.plot(ends, 1 - shares, color=BLUE)
    axes.plot(ends, shares, color=ORANGE)
    middle = {"ha": "center", "fontsize": 7}
    heights = (1 - loss.weight + 0.05, loss.weight - 0.11) if begun else (0.89, 0.05)
    later = "" if begun else f": from step {start:,}"
    axes.text(last * 0.55, heights[0], "standard, α", color=BLUE, **middle)
    axes.text(last * 0.55, heights[1], f"adapted, 1 − α{later}", color=ORANGE, **middle)
    axes.set_ylim(-0.03, 1.08)


def draw_row(axes: Axes, rows: Rows, key: str, title: str, colour: str) -> None:
    _line(axes, rows, [row[key] for row in rows], color=colour)
    axes.set_title(title)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4))
