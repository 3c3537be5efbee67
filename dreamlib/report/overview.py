"""The evaluation on one page: nine panels, each the idea of a figure of its own."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dreamlib.report import panels
from dreamlib.report.kept import newest, study_footer
from dreamlib.report.plotting import (
    GREY,
    TWO,
    attempt,
    footer,
    new_figure,
    say_missing,
    show_sheet,
    style,
)
from dreamlib.report.score_figures import scored
from dreamlib.report.training import draw_loss, log_of
from dreamlib.run import Run

ACROSS, DOWN = 6, 7  # images in the panel of samples
BARS = 10  # attribute values in the panel of shares


@style()
def evaluation(run: Run) -> Figure:
    """Samples, distances, manifolds, modes, shares, replay, copies and the loss, on one page.

    A panel whose file or score is missing says so.  NotEnoughSamples when the run has no scores.
    """
    study = scored(run)
    fig, axes = new_figure(TWO, 7.4, 3, 3)
    draw: dict[str, Callable[[Axes], None]] = {
        "Samples": lambda ax: _samples(ax, run),
        "Distance against 1/N": lambda ax: panels.draw_fd(ax, study, brief=True),
        "KID, ± 2 errors": lambda ax: panels.draw_kid(ax, study),
        "Attributes": lambda ax: panels.draw_shares(ax, study, BARS),
        "Precision and recall": lambda ax: panels.draw_manifold(ax, study),
        "Modes": lambda ax: panels.draw_modes(ax, study),
        "Compared with what": lambda ax: panels.draw_replay(ax, study, brief=True),
        "Nearest training image": lambda ax: panels.draw_memorisation(ax, study),
        "Training loss": lambda ax: _loss(ax, run),
    }
    for letter, ax, (title, panel) in zip("abcdefghi", axes, draw.items()):
        attempt(lambda a=ax, p=panel: p(a), lambda why, a=ax: say_missing(a, why))
        ax.set_title(rf"$\bf{{{letter}}}$  {title}", loc="left")
    keys = [axes[-1].plot([], [], "o", color=c, ms=4, label=k)[0] for k, c in panels.KINDS]
    keys += axes[-1].plot([], [], color=GREY, lw=0.8, label="a perfect model's expectation")
    fig.legend(handles=keys, loc="outside upper center", ncols=3)
    footer(fig, study_footer(run, study))
    return fig


def _samples(axes: Axes, run: Run) -> None:
    images = newest(run).images(ACROSS * DOWN)
    rows = max(1, len(images) // ACROSS)
    show_sheet(axes, images[: rows * ACROSS].reshape(rows, -1, *images.shape[1:]))


def _loss(axes: Axes, run: Run) -> None:
    draw_loss(axes, log_of(run))
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(panels.MaxNLocator(4, integer=True))
