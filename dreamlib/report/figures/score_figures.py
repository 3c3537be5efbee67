"""Figures from scores: each function reads a run's or an ablation's files and returns a Figure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dreamlib.evaluation.ablation import BUDGETS, STANDARD, Ablation, Cell, read_ablation
from dreamlib.evaluation.results import GENERATED, Study, read_scores
from dreamlib.report.figures import score_panels as panels
from dreamlib.report.figures.palette import BLUE, GREEN, GREY, ONE, ORANGE, TWO
from dreamlib.report.figures.style import footer, new_figure, sheet_figure, show_sheet, style
from dreamlib.report.sources import extractor_of, stored, study_footer
from dreamlib.report.tables import named
from dreamlib.runs.run import Run
from dreamlib.utils.errors import NotEnoughSamples


def scored(run: Run) -> Study:
    """The run's study.  NotEnoughSamples when it has not been evaluated."""
    study = read_scores(run.folder)
    if not study.rows:
        raise NotEnoughSamples(
            f"{run.folder} has scores of other images only: run `dreamlib evaluate {run.folder}`"
        )
    return study


@style()
def fd_against_n(run: Run) -> Figure:
    """The distance against 1/N with the floor at the same N, every disjoint set as a dash, and the
    corrected estimate at 0."""
    study = scored(run)
    fig, (axes,) = new_figure(ONE, 3.0)
    panels.draw_fd(axes, study)
    axes.set_title("The same model at every N: the slope is bias")
    fig.legend(handles=panels.fd_keys(study), loc="outside upper center", ncols=2)
    footer(fig, study_footer(run, study))
    return fig


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
    fig.suptitle(
        f"{len(several[0].parts)} disjoint sets of {several[0].n:,} images of one model; bars are "
        "their means"
    )
    footer(fig, study_footer(run, study))
    return fig


@style()
def replay(run: Run) -> Figure:
    """One model, compared carelessly first and with care last."""
    study = scored(run)
    fig, (axes,) = new_figure(TWO, 0.26 * len(study.replay) + 1.1)
    panels.draw_replay(axes, study)
    fig.suptitle("One model: only the real images change, and in the last bar its own number")
    footer(fig, study_footer(run, study))
    return fig


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
    axes.set_title(panels.modes_title(study))
    axes.legend(loc="upper left", ncols=2)
    _show_strips(strip, pictures, {mode["cell"]: mode for mode in study.modes[GENERATED]["table"]})
    footer(fig, study_footer(run, study))
    return fig


def _show_strips(axes: Axes, pictures: dict, modes: dict[int, dict]) -> None:
    """A row per mode: its real images, a gap, its generated ones; black where they end."""
    real, generated = pictures["real"], pictures["generated"]
    count = real.shape[1]
    both = np.concatenate([real, np.full_like(real[:, :1], 255), generated], axis=1)
    ratios = [modes[int(cell)]["ratio"] for cell in pictures["cells"]]
    show_sheet(axes, both, ["–" if ratio is None else f"{ratio:.2f}" for ratio in ratios])
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
    found = study.memorisation
    panels.needs(found, "nearest neighbours")
    pictures = stored(run.dir.evaluation / "nearest.npz", "evaluate RUN", generated=4, train=4)
    pairs = np.stack([pictures["generated"], pictures["train"]])
    title = (
        f"The nearest to a training image of {found['n']:,} generated; median distance of all "
        f"{found['generated']:,.0f} (held-out real: {found['held_out']:,.0f})"
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
    footer(fig, study_footer(run, study))
    return fig


# --------------------------------------------------------------------------- sensitivity


@style()
def ablation(folder: Path | str) -> Figure:
    """Every loss's distance, and its difference to the standard loss; a column per sampler.

    Above, every training seed and their mean; below, every seed's difference with two standard
    errors of the images' sampling, which seeds of training come on top of.
    """
    found = read_ablation(folder)
    arms = list(dict.fromkeys(cell.arm for cell in found.cells))[::-1]
    samplers = found.facts["samplers"]
    size = TWO, 0.36 * (2 * len(arms) - 1) + 1.7
    ratios = (len(arms), max(len(arms) - 0.6, 1))
    fig, axes = new_figure(*size, len(samplers), 2, height_ratios=ratios)
    above, below = axes[: len(samplers)], axes[len(samplers) :]
    for axis, under, sampler in zip(above, below, samplers):
        _distances(axis, found, arms, sampler)
        others = [arm for arm in arms if arm != STANDARD]
        _differences(under, found, others, sampler)
        axis.set_title(", ".join(sampler.split(":")[:2]) + " steps, " + sampler.split(":")[2])
        if axis is not above[0]:
            axis.set_yticklabels([])
            under.set_yticklabels([])
    keys = [
        above[0].plot([], [], "o", color=BLUE, ms=4, label="equal steps")[0],
        above[0].plot([], [], "o", color=GREEN, ms=4, label="equal network passes")[0],
        above[0].plot([], [], color=ORANGE, lw=1, label="floor: held-out real")[0],
        above[0].plot([], [], color=GREY, lw=1, label="± 2 standard errors")[0],
    ]
    fig.legend(handles=keys, loc="outside upper center", ncols=4)
    footer(fig, ablation_footer(found))
    return fig


def _rows(
    found: Ablation, arms: list[str], sampler: str
) -> Iterator[tuple[list[Cell], str, float]]:
    """The cells of every budget and loss, their colour, and the height of their row."""
    for budget, colour, shift in zip(BUDGETS, (BLUE, GREEN), (0.16, -0.16)):
        for height, arm in enumerate(arms):
            yield found.of(arm, budget, sampler), colour, height + shift


def _distances(axis: Axes, found: Ablation, arms: list[str], sampler: str) -> None:
    for cells, colour, height in _rows(found, arms, sampler):
        values = [cell.fd for cell in cells]
        axis.plot(values, [height] * len(values), "o", color=colour, ms=3.5)
        axis.plot(np.mean(values), height, "|", color=colour, ms=11, mew=1.5)
    axis.axvline(found.facts["floor"], color=ORANGE, lw=1)
    axis.set_yticks(range(len(arms)), arms)
    axis.set(xlim=(0, None), ylim=(-0.5, len(arms) - 0.5), xlabel=f"raw {found.facts['metric']}")


def _differences(axis: Axes, found: Ablation, arms: list[str], sampler: str) -> None:
    """Below 0 the loss scored lower than the standard one, at the same seed and budget."""
    for every, colour, height in _rows(found, arms, sampler):
        cells = [cell for cell in every if cell.minus_standard is not None]
        for place, cell in zip(np.linspace(0.08, -0.08, len(cells)), cells):
            error = 2 * (cell.minus_standard_se or 0)
            where = cell.minus_standard, height + place
            axis.errorbar(*where, xerr=error, fmt="o", ms=3, color=colour, lw=0.9)
    axis.axvline(0, color=GREY, lw=0.8)
    axis.set_yticks(range(len(arms)), arms)
    axis.set(ylim=(-0.5, max(len(arms), 1) - 0.5), xlabel=f"{found.minus_metric} − standard's")


def ablation_footer(found: Ablation) -> str:
    facts = found.facts
    return (
        f"{facts['preset']} · {facts['images']} · {facts['steps']:,} steps of {facts['batch']} · "
        f"training seeds {', '.join(map(str, facts['seeds']))} · N = {facts['n']:,} · "
        f"{facts['n_real']:,} real images · {extractor_of(facts)}"
    )
