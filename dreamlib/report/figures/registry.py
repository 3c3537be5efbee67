"""Every figure of a run, drawn from its folder's files and saved into figures/."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from dreamlib.report.captions import CAPTIONS, captions_of, why_absent
from dreamlib.report.contents import Missing
from dreamlib.report.figures import score_figures as scores
from dreamlib.report.figures.curves import curves, players, training, validation
from dreamlib.report.figures.images import process, process_x0, quality, samples, stages
from dreamlib.report.figures.network import architecture, schedule
from dreamlib.report.figures.style import attempt, missing, save_figure
from dreamlib.report.sources import folder_name, name_of
from dreamlib.runs.run import Run
from dreamlib.utils.errors import ConfigError

OF_A_RUN = (
    *(curves, training, players, stages, samples, process, process_x0, quality),
    *(scores.evaluation, scores.fd_against_n, scores.parts, scores.replay, scores.modes),
    *(scores.nearest, scores.shares, validation),
)


def all_of(run: Run, ablation: Path | None = None) -> dict[str, Callable[[], Figure]]:
    """How each figure of the run is drawn, by the name of its files."""
    drawings: dict[str, Callable[[], Figure]] = {
        **{draw.__name__: partial(draw, run) for draw in OF_A_RUN},
        "architecture": partial(architecture, run.config, folder_name(run)),
        "schedule": partial(schedule, run.config, folder_name(run)),
        "sensitivity": partial(scores.sensitivity, ablation),
    }
    wanted = captions_of(run.config)
    return {name: draw for name, draw in drawings.items() if name in wanted}


def build(run: Run, ablation: Path | None = None) -> dict[str, Figure | Missing]:
    """Every figure of the run, from its files alone, or what is missing for it.

    `ablation` is the folder of an ablation's results.
    """
    return {name: _attempt(run, draw) for name, draw in all_of(run, ablation).items()}


def draw(run: Run, name: str, ablation: Path | None = None) -> Figure:
    """One of them by name, or a figure in its place that says what is missing, and the remedy."""
    known = all_of(run, ablation)
    if name in known:
        return _shown(run, name, _attempt(run, known[name]))
    if name in CAPTIONS:
        return _shown(run, name, Missing(why_absent(run.config, name)))
    raise ConfigError(f"there is no figure {name!r}: known are {', '.join(sorted(known))}")


def save_all(run: Run, figures: Mapping[str, Figure | Missing]) -> list[Path]:
    """Every figure as PNG and PDF into the run's figures/; words in the place of a missing one."""
    saved: list[Path] = []
    for name, figure in figures.items():
        saved += save_figure(_shown(run, name, figure), run.dir.figures, name)
    return saved


def _attempt(run: Run, draw: Callable[[], Figure]) -> Figure | Missing:
    figure = attempt(draw)
    if isinstance(figure, Missing):  # the run by its name: the same wherever the folder lies
        return Missing(figure.reason.replace(str(run.folder), folder_name(run)))
    return figure


def _shown(run: Run, name: str, figure: Figure | Missing) -> Figure:
    return missing(name, figure.reason, name_of(run)) if isinstance(figure, Missing) else figure
