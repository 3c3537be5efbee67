"""What log.jsonl tells of a GAN's training: both players, their regularisers, the augmentation."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dreamlib.report.figures.palette import BLUE, GREEN, GREY, ORANGE, TWO
from dreamlib.report.figures.style import footer, log_scale, new_figure, say_missing, style
from dreamlib.report.figures.training_curves import Rows, log_of, mark_steps
from dreamlib.report.sources import name_of
from dreamlib.runs.run import Run

Line = tuple[str, str, str]  # key of the row, label, colour
PANELS: list[tuple[str, list[Line]]] = [
    ("Losses", [("loss", "discriminator", ORANGE), ("generator_loss", "generator", BLUE)]),
    (
        "Sign of the discriminator's answer",
        [("sign_real", "real images", ORANGE), ("sign_fake", "generated images", BLUE)],
    ),
    ("Augmentation: p", [("p", "p", GREEN)]),
    ("R1: squared gradient at real images", [("r1", "R1", ORANGE)]),
    ("Path length", [("path", "path", BLUE)]),
    (
        "Gradient norms",
        [("judge_norm", "discriminator", ORANGE), ("grad_norm", "generator", BLUE)],
    ),
    (
        "Variety: standard deviation of a pixel",
        [("spread", "among images", BLUE), ("contrast", "within an image", GREEN)],
    ),
    ("Learning rate of the generator", [("lr", "lr", GREEN)]),
    ("Images per second", [("images_per_s", "images/s", GREY)]),
]
LOG = {"R1: squared gradient at real images", "Path length", "Gradient norms"}


@style()
def players(run: Run) -> Figure:
    """Nine panels against the optimizer step; from log.jsonl."""
    rows = log_of(run)
    fig, axes = new_figure(TWO, 6.0, 3, 3)
    for ax, (title, lines) in zip(axes, PANELS):
        draw_lines(ax, rows, lines)
        ax.set_title(title)
        if not ax.lines:  # a regulariser that is off
            say_missing(ax, "This run has none.")
            continue
        if title in LOG:
            log_scale(ax)
        if len(lines) > 1:
            ax.legend()
    mark_steps([ax for ax in axes if ax.lines], run, rows)
    target = run.config.gan.ada
    if target is not None:
        axes[1].axhline(target, color=ORANGE, lw=0.8, ls="--")
    axes[2].set_ylim(bottom=0)
    axes[8].set_ylim(bottom=0)
    every = run.config.train.log_every
    aim = "" if target is None else f" · dashed: p's target for real images, {target:g}"
    footer(
        fig,
        f"{name_of(run)} · step {rows[-1]['step']:,} · every point is the mean of {every:,} steps "
        f"of {run.config.train.batch:,} images{aim}",
    )
    return fig


def draw_lines(axes: Axes, rows: Rows, lines: list[Line]) -> None:
    """A line per key, over the rows that have it: regularisers do not come in every one."""
    for key, label, colour in lines:
        points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        if points:
            axes.plot(*zip(*points), color=colour, label=label)
