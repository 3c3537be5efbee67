"""The evaluation on one page: nine panels, each the idea of a figure of its own."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dreamlib.evaluation.results import Study
from dreamlib.report.contents import Missing
from dreamlib.report.figures import score_panels as panels
from dreamlib.report.figures.curves import draw_loss, log_of
from dreamlib.report.figures.palette import GREY, TWO
from dreamlib.report.figures.score_figures import scored
from dreamlib.report.figures.style import (
    attempt,
    footer,
    new_figure,
    say_missing,
    show_sheet,
    style,
)
from dreamlib.report.sources import scored_images, study_footer
from dreamlib.runs.run import Run
from dreamlib.utils.errors import RunError

ACROSS, DOWN = 6, 7  # images in the panel of samples
BARS = 10  # attribute values in the panel of shares
LETTERS = 8  # points: the page is read at half its width, too


@style()
def evaluation(run: Run) -> Figure:
    """Samples, distances, manifolds, modes, shares, replay, copies and the loss, on one page.

    A panel whose file or score is missing says so.  NotEnoughSamples when the run has no scores.
    """
    study = scored(run)
    fig, axes = new_figure(TWO, 7.9, 3, 3)
    draw: dict[str, Callable[[Axes], None]] = {
        "Samples": lambda ax: _samples(ax, run, study),
        "Distance against 1/N": lambda ax: panels.draw_fd(ax, study),
        "KID, ± 2 errors": lambda ax: panels.draw_kid(ax, study),
        "Attributes": lambda ax: panels.draw_shares(ax, study, BARS),
        "Precision and recall": lambda ax: panels.draw_manifold(ax, study),
        "Modes": lambda ax: panels.draw_modes(ax, study, brief=True),
        "Compared with what": lambda ax: panels.draw_replay(ax, study, brief=True),
        "Nearest training image": lambda ax: panels.draw_memorisation(ax, study),
        "Training loss": lambda ax: _loss(ax, run),
    }
    for letter, ax, (title, panel) in zip("abcdefghi", axes, draw.items()):
        problem = attempt(lambda a=ax, p=panel: _large(a, p))
        if isinstance(problem, Missing):
            say_missing(ax, problem.reason)
        ax.set_title(
            rf"$\bf{{{letter}}}$  {title}", loc="left", fontsize=LETTERS + 1, parse_math=True
        )
    perfect = Line2D([], [], color=GREY, lw=0.8, label="a perfect model's expectation")
    keys = [*panels.fd_keys(study), perfect]
    fig.legend(handles=keys, loc="outside upper center", ncols=3, fontsize=LETTERS)
    footer(fig, study_footer(run, study))
    return fig


def _large(axes: Axes, panel: Callable[[Axes], None]) -> None:
    """A panel whose letters can still be read where the page is one column wide."""
    panel(axes)
    axes.tick_params(labelsize=LETTERS)
    for text in (axes.xaxis.label, axes.yaxis.label, *axes.texts):
        text.set_fontsize(LETTERS)


def _samples(axes: Axes, run: Run, study: Study) -> None:
    """The scored images themselves, and no others."""
    kept = scored_images(run, study)
    if kept is None:
        raise RunError("The images that were scored are not kept here: run `dreamlib evaluate RUN`")
    images = kept.images(ACROSS * DOWN)
    rows = max(1, len(images) // ACROSS)
    show_sheet(axes, images[: rows * ACROSS].reshape(rows, -1, *images.shape[1:]))


def _loss(axes: Axes, run: Run) -> None:
    draw_loss(axes, log_of(run))
    axes.set_title("")
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(panels.MaxNLocator(4, integer=True))
