"""Figures from scores: each function reads a run's or an ablation's files and returns a Figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from dreamlib.evaluation.ablation_results import (
    BUDGETS,
    STANDARD,
    Ablation,
    Cell,
    read_ablation,
)
from dreamlib.evaluation.results import GENERATED, Study, read_scores
from dreamlib.report.contents import Missing
from dreamlib.report.figures import score_panels as panels
from dreamlib.report.figures.curves import draw_loss, log_of
from dreamlib.report.figures.palette import BLUE, GREEN, GREY, ONE, ORANGE, TWO
from dreamlib.report.figures.style import (
    attempt,
    footer,
    new_figure,
    say_missing,
    sheet_figure,
    show_sheet,
    style,
)
from dreamlib.report.sources import extractor_of, scored_images, stored, study_footer
from dreamlib.report.tables import named
from dreamlib.runs.run import Run
from dreamlib.utils.errors import NotEnoughSamples, RunError

ACROSS, DOWN = 6, 7  # images in the panel of samples
BARS = 10  # attribute values in the panel of shares
LETTERS = 8  # points: the page is read at half its width, too


def scored(run: Run) -> Study:
    """The run's study.  NotEnoughSamples when it has not been evaluated."""
    study = read_scores(run.folder)
    if not study.rows:
        raise NotEnoughSamples(
            f"{run.folder} has scores of other images only: run `dreamlib evaluate {run.folder}`"
        )
    return study


# --------------------------------------------------------------------------- all on one page


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
        _panel(ax, panel)
        title = rf"$\bf{{{letter}}}$  {title}"
        ax.set_title(title, loc="left", fontsize=LETTERS + 1, parse_math=True)
    perfect = Line2D([], [], color=GREY, lw=0.8, label="a perfect model's expectation")
    keys = [*panels.fd_keys(study), perfect]
    fig.legend(handles=keys, loc="outside upper center", ncols=3, fontsize=LETTERS)
    return _finished(fig, run, study)


def _panel(axes: Axes, draw: Callable[[Axes], None]) -> None:
    """With letters that can still be read where the page is one column wide."""
    problem = attempt(lambda: draw(axes))
    if isinstance(problem, Missing):
        say_missing(axes, problem.reason)
        return
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
    axes.set(title="", xlabel="optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))


def _finished(fig: Figure, run: Run, study: Study) -> Figure:
    footer(fig, study_footer(run, study))
    return fig


# --------------------------------------------------------------------------- one idea each


@style()
def fd_against_n(run: Run) -> Figure:
    """The distance against 1/N with the floor at the same N, every disjoint set as a dash, and the
    corrected estimate at 0."""
    study = scored(run)
    fig, (axes,) = new_figure(ONE, 3.0)
    panels.draw_fd(axes, study)
    axes.set_title("The same model at every N: the slope is bias")
    fig.legend(handles=panels.fd_keys(study), loc="outside upper center", ncols=2)
    return _finished(fig, run, study)


@style()
def parts(run: Run) -> Figure:
    """Every disjoint set of the smallest N as a dot: how far one evaluation can be off."""
    study = scored(run)
    several = [row for row in study.of(GENERATED) if row.parts]
    most = max(study.facts["sizes"])
    sizes = f"evaluate RUN --n {max(2, most // 10)} --n {most}"
    panels.needs(several, "disjoint sets, as the smallest N must fit into the largest twice", sizes)
    fig, axes = new_figure(TWO, 2.2, 2)
    for axis, metric in zip(axes, (study.facts["metric"], named(study, "KID"))):
        panels.draw_parts(axis, study, metric)
    axes[1].set_yticklabels([])
    sets = f"{len(several[0].parts)} disjoint sets of {several[0].n:,} images of one model"
    fig.suptitle(f"{sets}; bars are their means")
    return _finished(fig, run, study)


@style()
def replay(run: Run) -> Figure:
    """One model, compared carelessly first and with care last."""
    study = scored(run)
    fig, (axes,) = new_figure(TWO, 0.26 * len(study.replay) + 1.1)
    panels.draw_replay(axes, study)
    fig.suptitle("One model: only the real images change, and in the last bar its own number")
    return _finished(fig, run, study)


@style()
def modes(run: Run) -> Figure:
    """Each mode's share among generated images over its real share, with its interval; below,
    images of the modes that deviate most: real ones left, generated ones right."""
    study = scored(run)
    panels.needs(GENERATED in study.modes, "modes")
    pictures = stored(
        run.dir.evaluation / "modes.npz", "evaluate RUN", real=5, generated=5, cells=1
    )
    deepest = 0.31 * len(pictures["cells"])
    fig, (axes, strip) = new_figure(TWO, 2.9 + deepest, rows=2, height_ratios=(2.2, deepest))
    panels.draw_modes(axes, study)
    of_generated = study.modes[GENERATED]
    axes.set_title(
        f"N = {of_generated['n']:,}: {of_generated['ndb']:.0%} of modes differ (NDB/K; by chance "
        f"{of_generated['ndb_null']:.0%}, p = {of_generated['ndb_p']:.3f})"
    )
    axes.legend(loc="upper left", ncols=2)
    _show_strips(strip, pictures, {mode["cell"]: mode["ratio"] for mode in of_generated["table"]})
    return _finished(fig, run, study)


def _show_strips(axes: Axes, pictures: dict[str, np.ndarray], ratios: dict[int, Any]) -> None:
    """A row per mode: its real images, a gap, its generated ones; black where they end."""
    real, generated = pictures["real"], pictures["generated"]
    count = real.shape[1]
    both = np.concatenate([real, np.full_like(real[:, :1], 255), generated], axis=1)
    shown = [ratios[int(cell)] for cell in pictures["cells"]]
    show_sheet(axes, both, ["–" if ratio is None else f"{ratio:.2f}" for ratio in shown])
    pitch = axes.dataLim.x1 / both.shape[1]
    axes.set_xticks(
        [pitch * count / 2, pitch * (count + 1 + count / 2)],
        ["real images of the modes that deviate most", "generated images of the same modes"],
    )
    axes.xaxis.tick_bottom()
    axes.tick_params(length=0)
    axes.set_ylabel("ratio")


def nearest(run: Run) -> Figure:
    """The generated images that lie nearest to a training image, each above that image."""
    study = scored(run)
    memory = study.memorisation
    panels.needs(memory, "nearest neighbours")
    pictures = stored(run.dir.evaluation / "nearest.npz", "evaluate RUN", generated=4, train=4)
    pairs = np.stack([pictures["generated"], pictures["train"]])
    title = (
        f"The nearest to a training image of {memory['n']:,} generated; median distance of all "
        f"{memory['generated']:,.0f} (held-out real: {memory['held_out']:,.0f})"
    )
    below = study_footer(run, study)
    return sheet_figure(pairs, ["generated", "training"], title=title, below=below)


@style()
def shares(run: Run) -> Figure:
    """Each attribute value's share among generated images, relative to real ones."""
    study = scored(run)
    bars = sum(len(values) for values in study.shares.values())
    fig, (axes,) = new_figure(ONE, 0.14 * max(8, bars) + 0.9)
    panels.draw_shares(axes, study)
    axes.set_title("Shares by the classifier's answers")
    return _finished(fig, run, study)


# --------------------------------------------------------------------------- sensitivity


def sensitivity(folder: Path | None) -> Figure:
    """Losses compared, from the real trainings of an ablation's folder.  RunError without one."""
    if folder is None:
        raise RunError(
            "no ablation was named: `dreamlib ablate PRESET --steps N --out FOLDER` trains and "
            "scores every loss; then name its folder: `dreamlib figures RUN --ablation FOLDER`"
        )
    return ablation(folder)


@style()
def ablation(folder: Path | str) -> Figure:
    """Every loss's distance, and its difference to the standard loss; a column per sampler.

    Above, every training seed and their mean; below, every seed's difference and the mean of them
    with two standard errors: over training seeds, or of the images' sampling where there is one.
    """
    results = read_ablation(folder)
    facts, samplers = results.facts, results.facts["samplers"]
    arms = list(dict.fromkeys(cell.arm for cell in results.cells))[::-1]
    ratios = (len(arms), max(len(arms) - 0.6, 1))
    height = 0.36 * (2 * len(arms) - 1) + 1.7
    fig, axes = new_figure(TWO, height, len(samplers), 2, height_ratios=ratios)
    for place, (above, below, sampler) in enumerate(zip(axes, axes[len(samplers) :], samplers)):
        _distances(above, results, arms, sampler)
        _differences(below, results, [arm for arm in arms if arm != STANDARD], sampler)
        name, steps, spacing, *eta = sampler.split(":")
        above.set_title(f"{name}, {steps} steps, {spacing}" + (f", eta {eta[0]}" if eta else ""))
        if place > 0:
            above.set_yticklabels([])
            below.set_yticklabels([])
    marks: list[tuple[str, dict[str, Any]]] = [
        ("equal steps", {"marker": "o", "ls": "", "color": BLUE, "ms": 4}),
        ("equal network passes", {"marker": "o", "ls": "", "color": GREEN, "ms": 4}),
        ("floor: held-out real", {"color": ORANGE, "lw": 1}),
        ("± 2 standard errors", {"color": GREY, "lw": 1}),
    ]
    keys = [Line2D([], [], label=label, **look) for label, look in marks]
    fig.legend(handles=keys, loc="outside upper center", ncols=4)
    footer(
        fig,
        f"{facts['preset']} · {facts['images']} · {facts['steps']:,} steps of {facts['batch']} · "
        f"training seeds {', '.join(map(str, facts['seeds']))} · N = {facts['n']:,} · "
        f"{facts['n_real']:,} real images · {extractor_of(facts)}",
    )
    return fig


def _rows(
    results: Ablation, arms: list[str], sampler: str
) -> Iterator[tuple[list[Cell], str, float]]:
    """The cells of every budget and loss, their colour, and the height of their row."""
    for budget, colour, shift in zip(BUDGETS, (BLUE, GREEN), (0.16, -0.16)):
        for height, arm in enumerate(arms):
            yield results.of(arm, budget, sampler), colour, height + shift


def _distances(axis: Axes, results: Ablation, arms: list[str], sampler: str) -> None:
    for cells, colour, height in _rows(results, arms, sampler):
        values = [cell.fd for cell in cells]
        axis.plot(values, [height] * len(values), "o", color=colour, ms=3.5)
        axis.plot(np.mean(values), height, "|", color=colour, ms=11, mew=1.5)
    axis.axvline(results.facts["floor"], color=ORANGE, lw=1)
    axis.set_yticks(range(len(arms)), arms)
    axis.set(xlim=(0, None), ylim=(-0.5, len(arms) - 0.5), xlabel=f"raw {results.facts['metric']}")


def _differences(axis: Axes, results: Ablation, arms: list[str], sampler: str) -> None:
    """Below 0 the loss scored lower than the standard one, at the same seed and budget."""
    for every, colour, height in _rows(results, arms, sampler):
        values = [cell.minus_standard for cell in every if cell.minus_standard is not None]
        mean, error = results.difference(every[0].arm, every[0].budget, sampler)
        if mean is None:
            continue
        bar = None if error is None else 2 * error
        axis.plot(values, [height] * len(values), "o", ms=2.5, color=colour, alpha=0.5)
        axis.errorbar(mean, height, xerr=bar, fmt="|", ms=9, color=colour, lw=1.2)
    axis.axvline(0, color=GREY, lw=0.8)
    axis.set_yticks(range(len(arms)), arms)
    axis.set(ylim=(-0.5, max(len(arms), 1) - 0.5), xlabel=f"{results.minus_metric} − standard's")
