"""What a training's files tell, against the optimizer step: log.jsonl and validation.jsonl."""

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

Log = list[dict[str, Any]]
QUARTERS = ("first quarter of t", "second", "third", "last (most noise)")
FEW = 40  # entries of the log that are drawn as points as well
VALUES = (  # the last panels: key of an entry, title, colour
    ("lr", "Learning rate", GREEN),
    ("grad_norm", "Gradient norm, before clipping", BLUE),
    ("images_per_s", "Images per second", GREY),
)
PLAYERS = {  # key of an entry: label and colour of its line
    "Losses": {"loss": ("discriminator", ORANGE), "generator_loss": ("generator", BLUE)},
    "Sign of the discriminator's answer": {
        "sign_real": ("real images", ORANGE),
        "sign_fake": ("generated images", BLUE),
    },
    "Augmentation: p": {"p": ("p", GREEN)},
    "R1: squared gradient at real images": {"r1": ("R1", ORANGE)},
    "Path length": {"path": ("path", BLUE)},
    "Gradient norms": {"judge_norm": ("discriminator", ORANGE), "grad_norm": ("generator", BLUE)},
    "Variety: standard deviation of a pixel": {
        "spread": ("among images", BLUE),
        "contrast": ("within an image", GREEN),
    },
    "Learning rate of the generator": {"lr": ("lr", GREEN)},
    "Images per second": {"images_per_s": ("images/s", GREY)},
}
LOGARITHMIC = {"R1: squared gradient at real images", "Path length", "Gradient norms"}
DOTTED = {"color": GREY, "lw": 0.8, "ls": (0, (2, 2))}


def log_of(run: Run) -> Log:
    """The log's entries.  RunError when there are none yet."""
    log = run.dir.read_log()
    if not log:
        raise RunError(f"{run.folder} has no log yet: run `dreamlib train RUN`")
    return log


@style()
def curves(run: Run) -> Figure:
    """Loss, loss by quartile of t, and lambda."""
    log = log_of(run)
    fig, axes = new_figure(TWO, 2.5, 3)
    draw_loss(axes[0], log)
    _quarters(axes[1], log, "loss_by_quartile", "Loss by quarter of t")
    _lam(axes[2], log)
    _finish(fig, axes, run, log)
    return fig


@style()
def training(run: Run) -> Figure:
    """Everything that the log of a diffusion model holds."""
    log = log_of(run)
    fig, axes = new_figure(TWO, 6.0, 3, 3)
    draw_loss(axes[0], log)
    _quarters(axes[1], log, "loss_by_quartile", "Loss by quarter of t")
    _quarters(axes[2], log, "error_by_quartile", "Model's error D (rms)")
    _lam(axes[3], log)
    _branches(axes[4], run, log)
    _quarters(axes[5], log, "shift_by_quartile", "Shift of the input (rms)", logarithmic=False)
    for ax, (key, title, colour) in zip(axes[6:], VALUES):
        _line(ax, log, [row[key] for row in log], color=colour)
        ax.set_title(title)
        ax.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4))
    if skipped := sum(row.get("skipped_steps", 0) for row in log):
        words = f"{skipped:,} steps not taken (overflow)"
        axes[7].text(0.98, 0.95, words, ha="right", transform=axes[7].transAxes, fontsize=7)
    axes[8].set_ylim(bottom=0)
    _finish(fig, axes, run, log)
    return fig


@style()
def players(run: Run) -> Figure:
    """Everything that the log of a GAN holds: players, regularisers, augmentation."""
    log, target = log_of(run), run.config.gan.ada
    fig, axes = new_figure(TWO, 6.0, 3, 3)
    for ax, (title, lines) in zip(axes, PLAYERS.items()):
        ax.set_title(title)
        for key, (label, colour) in lines.items():  # regularisers do not come in every entry
            points = [(row["step"], row[key]) for row in log if row.get(key) is not None]
            if points:
                ax.plot(*zip(*points), color=colour, label=label)
        if not ax.lines:
            say_missing(ax, "This run has none.")
            continue
        if title in LOGARITHMIC:
            log_scale(ax)
        if len(lines) > 1:
            ax.legend()
    mark_steps([ax for ax in axes if ax.lines], run, log)
    aim = ""
    if target is not None:
        axes[1].axhline(target, color=ORANGE, lw=0.8, ls="--")
        aim = f" · dashed: p's target for real images, {target:g}"
    axes[2].set_ylim(bottom=0)
    axes[8].set_ylim(bottom=0)
    footer(fig, f"{name_of(run)} · step {log[-1]['step']:,} · {_points(run)}{aim}")
    return fig


@style()
def validation(run: Run) -> Figure:
    """The averaged weights' distance to held-out images; from validation.jsonl."""
    scores = run.dir.read_validation()
    if not scores:
        raise RunError(
            f"{run.folder} has no validation yet: run `dreamlib train RUN` with "
            "--set validation.every=5% or so"
        )
    best = min(scores, key=lambda row: row["score"])
    fig, (axes,) = new_figure(ONE, 2.4)
    axes.plot([r["step"] for r in scores], [r["score"] for r in scores], "o-", color=BLUE, ms=3)
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


def _finish(fig: Figure, axes: list[Axes], run: Run, log: Log) -> None:
    """Marks of resumption, one legend for all panels, and the footer."""
    resumed = mark_steps(axes, run, log)
    looks: list[dict[str, Any]] = [{"color": c, "label": q} for c, q in zip(QUARTILES, QUARTERS)]
    looks.append({"color": "black", "lw": 1.2, "ls": "--", "label": "mean over t"})
    if resumed:
        looks.append(DOTTED | {"label": "resumed"})
    keys = [axes[0].plot([], [], **look)[0] for look in looks]
    fig.legend(handles=keys, loc="outside upper center", ncols=len(keys), columnspacing=1.2)
    facts = f"step {log[-1]['step']:,} · {run.config.loss.name} loss"
    footer(fig, f"{name_of(run)} · {facts} · {_points(run)}")


def _points(run: Run) -> str:
    train = run.config.train
    return f"every point is the mean of {train.log_every:,} steps of {train.batch:,} images"


def mark_steps(panels: list[Axes], run: Run, log: Log) -> list[int]:
    """Whole optimizer steps below every panel, named under the last row; a dashed line at those
    where training was resumed, which are returned."""
    resumed = resumptions(run, log[-1]["step"])
    for axes in panels[-3:]:
        axes.set_xlabel("optimizer step")
    for axes in panels:
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        for step in resumed:
            axes.axvline(step, **(DOTTED | {"lw": 0.6}), zorder=0.5)
    return resumed


def resumptions(run: Run, last: int) -> list[int]:
    """Steps at which training went on from a checkpoint, as far as the log reaches."""
    steps = set()
    for event in run.dir.read_events():
        if event["event"] == "resumed":
            steps.add(event["step"])
        elif old := re.match(r"RESUMED at step ([\d,]+)", str(event.get("text", ""))):
            steps.add(int(old[1].replace(",", "")))  # older versions left a sentence only
    return sorted(step for step in steps if 0 < step < last)


# --------------------------------------------------------------------------- one panel each


def _line(axes: Axes, log: Log, values: list[float], **look: Any) -> None:
    """Against the step; a few entries are points as well."""
    marks = {"marker": "o", "ms": 2} if len(log) <= FEW else {}
    axes.plot([row["step"] for row in log], values, **look, **marks)


def draw_loss(axes: Axes, log: Log) -> None:
    _line(axes, log, [row["loss"] for row in log], color=BLUE)
    axes.set_title("Training loss")
    log_scale(axes)


def _quarters(axes: Axes, log: Log, key: str, title: str, logarithmic: bool = True) -> None:
    """A line for each quarter of the timesteps; a gap where no image fell into one."""
    for i, colour in enumerate(QUARTILES):
        values = [np.nan if row[key][i] is None else row[key][i] for row in log]
        _line(axes, log, values, color=colour, lw=1)
    axes.set_title(title)
    if logarithmic:
        log_scale(axes)
    else:
        axes.set_ylim(bottom=0)


def _lam(axes: Axes, log: Log) -> None:
    """Lambda by quarter of t, and its mean over the batch."""
    _quarters(axes, log, "lam_by_quartile", "λ", logarithmic=False)
    axes.plot([row["step"] for row in log], [row["lam"] for row in log], color="black", ls="--")
    axes.set_ylim(0, max(0.1, 1.05 * axes.dataLim.y1))


def _branches(axes: Axes, run: Run, log: Log) -> None:
    """The shares of the conservative loss's two branches, alpha and 1 - alpha, by its settings."""
    loss, last = run.config.loss, log[-1]["step"]
    axes.set_title("Share of the branches")
    if loss.name != "conservative":
        say_missing(axes, f"The {loss.name} loss has one branch: no share to show.", 26)
        return
    epoch = len(run.data.indices("train")) / run.config.train.batch
    start = max(1, span_steps(loss.start, epoch=epoch, total=total_steps(run.config, epoch)))
    begun = start < last  # steps count from 0: after `start` of them none was adapted yet
    ends, shares = [0, last], np.zeros(2)
    heights, later = (0.89, 0.05), f": from step {start:,}"
    if begun:
        ends, shares = [0, start, start, last], np.array([0, 0, loss.weight, loss.weight])
        heights, later = (1 - loss.weight + 0.05, loss.weight - 0.11), ""
    axes.plot(ends, 1 - shares, color=BLUE)
    axes.plot(ends, shares, color=ORANGE)
    middle = {"ha": "center", "fontsize": 7}
    axes.text(last * 0.55, heights[0], "standard, α", color=BLUE, **middle)
    axes.text(last * 0.55, heights[1], f"adapted, 1 − α{later}", color=ORANGE, **middle)
    axes.set_ylim(-0.03, 1.08)
