"""Every figure of a run, drawn from its folder's files and saved into figures/."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure

from dreamlib.config.factory import make_loss, make_schedule
from dreamlib.config.schema import Config
from dreamlib.diffusion.losses import Conservative, Paper
from dreamlib.diffusion.samplers import spaced
from dreamlib.report.captions import CAPTIONS, captions_of, why_absent
from dreamlib.report.contents import Missing
from dreamlib.report.figures import score_figures
from dreamlib.report.figures.curves import curves, players, training, validation
from dreamlib.report.figures.images import process, process_x0, quality, samples, stages
from dreamlib.report.figures.images import sample_grid as sample_grid  # notebooks draw it from here
from dreamlib.report.figures.network import architecture
from dreamlib.report.figures.overview import evaluation
from dreamlib.report.figures.palette import BLUE, GREEN, GREY, ORANGE, TWO
from dreamlib.report.figures.style import (
    attempt,
    footer,
    log_scale,
    missing,
    new_figure,
    save_figure,
    style,
)
from dreamlib.report.sources import folder_name, name_of
from dreamlib.runs.run import Run
from dreamlib.utils.errors import ConfigError, RunError


@style()
def schedule(config: Config, run: str = "") -> Figure:
    """Signal a, noise s and DREAM's fully ramped lambda against t; and the sampler's steps."""
    sched = make_schedule(config)
    t = torch.arange(len(sched))
    a, s = sched.alpha_bar.sqrt(), (1 - sched.alpha_bar).sqrt()
    fig, (left, right) = new_figure(TWO, 2.5, 2)
    left.plot(t, a, color=BLUE, label="a (image)")
    left.plot(t, s, color=ORANGE, label="s (noise)")
    loss = make_loss(config, epoch=1, total=1)
    if isinstance(loss, (Conservative, Paper)):
        left.plot(t, loss.lam(sched, t, sys.maxsize), color=GREEN, label="λ (DREAM)")
    left.set(xlabel="t", ylim=(0, 1.2), title="What x_t is made of")
    left.legend(ncols=3, loc="upper center")
    sample = config.sample
    taken = spaced(sched, sample.steps, sample.spacing)
    right.plot(t, s / a, color=GREY, lw=1)
    right.plot(taken, (s / a)[taken], "|", color=BLUE, ms=9)
    right.set(xlabel="t", ylabel="noise / signal", title="Where the sampler stops")
    log_scale(right)
    footer(
        fig,
        f"{run} · {config.preset} · {config.diffusion.schedule}, {len(sched)} steps · "
        f"{sample.sampler}, {sample.steps} steps, {sample.spacing}",
    )
    return fig


def sensitivity(run: Run, ablation: Path | None) -> Figure:
    """Losses compared, from the real trainings of an ablation's folder.  RunError without one."""
    if ablation is None:
        raise RunError(
            "no ablation was named: `dreamlib ablate PRESET --steps N --out FOLDER` trains and "
            "scores every loss; then name its folder: `dreamlib figures RUN --ablation FOLDER`"
        )
    return score_figures.ablation(ablation)


def all_of(run: Run, ablation: Path | None = None) -> dict[str, Callable[[], Figure]]:
    """How each figure of the run is drawn, by the name of its files."""
    name, config = folder_name(run), run.config
    own = [curves, training, players, stages, samples, process, process_x0, quality, evaluation]
    scores = ["fd_against_n", "parts", "replay", "modes", "nearest", "shares"]
    own += [*(getattr(score_figures, each) for each in scores), validation]
    drawn: dict[str, Callable[[], Figure]] = {each.__name__: partial(each, run) for each in own}
    drawn |= {
        "architecture": lambda: architecture(config, name),
        "schedule": lambda: schedule(config, name),
        "sensitivity": lambda: sensitivity(run, ablation),
    }
    wanted = captions_of(config)
    return {name: draw for name, draw in drawn.items() if name in wanted}


def build(run: Run, ablation: Path | None = None) -> dict[str, Figure | Missing]:
    """Every figure of the run, from its files alone, or what is missing for it."""
    return {name: _draw(run, each) for name, each in all_of(run, ablation).items()}


def draw(run: Run, name: str, ablation: Path | None = None) -> Figure:
    """One of them by name, or a figure in its place that says what is missing, and the remedy."""
    known = all_of(run, ablation)
    if name in known:
        return _shown(run, name, _draw(run, known[name]))
    if name in CAPTIONS:
        return _shown(run, name, Missing(why_absent(run.config, name)))
    raise ConfigError(f"there is no figure {name!r}: known are {', '.join(sorted(known))}")


def save_all(run: Run, figures: Mapping[str, Figure | Missing]) -> list[Path]:
    """Every figure as PNG and PDF into the run's figures/; words in the place of a missing one."""
    saved: list[Path] = []
    for name, figure in figures.items():
        saved += save_figure(_shown(run, name, figure), run.dir.figures, name)
    return saved


def _draw(run: Run, draw: Callable[[], Figure]) -> Figure | Missing:
    figure = attempt(draw)
    if isinstance(figure, Missing):  # the run by its name: the same wherever the folder lies
        return Missing(figure.reason.replace(str(run.folder), folder_name(run)))
    return figure


def _shown(run: Run, name: str, figure: Figure | Missing) -> Figure:
    return missing(name, figure.reason, name_of(run)) if isinstance(figure, Missing) else figure
