"""Figures from a run folder's files: each function reads, draws and returns a Figure."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from dreamlib.build import make_loss, make_schedule
from dreamlib.diffusion.dream import Conservative, Paper
from dreamlib.diffusion.samplers import spaced
from dreamlib.errors import RunError
from dreamlib.images import grid
from dreamlib.report import score_figures
from dreamlib.report.plotting import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    QUARTILES,
    footer,
    new_figure,
    save_figure,
)
from dreamlib.run import STAGES, Run
from dreamlib.sections import Config


def _name(run: Run) -> str:
    data = run.config.data
    return f"{run.config.preset} · {data.name} {data.size}x{data.size}"


def schedule(config: Config) -> Figure:
    """Signal a, noise s and DREAM's fully ramped lambda against t; and the sampler's steps."""
    sched = make_schedule(config)
    t = torch.arange(len(sched))
    a, s = sched.alpha_bar.sqrt(), (1 - sched.alpha_bar).sqrt()
    fig, (left, right) = new_figure(7.2, 2.8, 2)
    left.plot(t, a, color=BLUE, label="a (image)")
    left.plot(t, s, color=ORANGE, label="s (noise)")
    loss = make_loss(config, epoch=1, total=1)
    if isinstance(loss, (Conservative, Paper)):
        left.plot(t, loss.lam(sched, t, sys.maxsize), color=GREEN, label="λ (DREAM)")
    left.set(xlabel="t", ylim=(0, 1.25), title="What x_t is made of")
    left.legend(fontsize=7, ncols=3, loc="upper center", frameon=False)
    sample = config.sample
    taken = spaced(sched, sample.steps, sample.spacing)
    right.plot(t, s / a, color=GREY, lw=1)
    right.plot(taken, (s / a)[taken], "|", color=BLUE, ms=9)
    right.set(xlabel="t", ylabel="noise / signal", yscale="log", title="Where the sampler stops")
    footer(
        fig,
        f"{config.preset} · {config.diffusion.schedule}, {len(sched)} steps · {sample.sampler} "
        f"{sample.steps}, {sample.spacing} spacing",
    )
    return fig


def curves(run: Run) -> Figure:
    """Loss, loss by quartile of t, and lambda against the optimizer step; from log.jsonl."""
    rows = run.dir.read_log()
    if not rows:
        raise RunError(f"{run.folder} has no log yet: train it first")
    steps = [row["step"] for row in rows]
    fig, (left, right) = new_figure(7.2, 2.8, 2)
    left.plot(steps, [row["loss"] for row in rows], color=BLUE)
    left.set(xlabel="optimizer step", ylabel="training loss", yscale="log", title="Loss and λ")
    left.yaxis.label.set_color(BLUE)
    twin = left.twinx()
    twin.plot(steps, [row["lam"] for row in rows], color=ORANGE, lw=1)
    twin.set_ylabel("mean λ of the batch", color=ORANGE)
    twin.grid(visible=False)
    for i, colour in enumerate(QUARTILES):
        values = [row["loss_by_quartile"][i] for row in rows]
        label = ("t in first quarter", "second", "third", "last (most noise)")[i]
        right.plot(steps, [np.nan if v is None else v for v in values], color=colour, label=label)
    right.set(xlabel="optimizer step", yscale="log", title="Loss by quartile of t")
    low, high = right.get_ylim()
    right.set_ylim(low, 6 * high)  # room for the legend
    right.legend(fontsize=7, ncols=2, frameon=False)
    footer(
        fig,
        f"{_name(run)} · {run.config.loss.name} loss · every point is a mean of "
        f"{run.config.train.log_every} steps",
    )
    return fig


def stages(run: Run) -> Figure:
    """The same seeds at 5, 25, 50, 75 and 100 % of training, as far as it got; from
    samples/step-*.png."""
    total = run.dir.status()["total"]
    steps = [max(1, round(share * total)) for share in STAGES]
    paths = {step: run.dir.samples / f"step-{step:08d}.png" for step in steps}
    paths = {step: path for step, path in paths.items() if path.exists()}
    if not paths:
        raise RunError(f"{run.dir.samples} holds no stage yet: train further first")
    fig, axes = new_figure(1.9 * len(paths), 2.5, len(paths))
    for ax, (step, path) in zip(axes, paths.items()):
        ax.imshow(plt.imread(path), interpolation="nearest")
        ax.set_title(f"step {step:,}", fontsize=8)
        ax.axis("off")
    footer(fig, f"{_name(run)} · averaged weights (EMA) · the same seeds throughout")
    return fig


def sample_grid(run: Run, images: np.ndarray, columns: int = 8) -> Figure:
    """uint8 [N,H,W,C] as a sheet."""
    rows = -(-len(images) // columns)
    fig, (axes,) = new_figure(0.62 * columns, 0.62 * rows + 0.35)
    axes.imshow(grid(images, columns, gap=max(1, images.shape[1] // 16)), interpolation="nearest")
    axes.axis("off")
    sample, step = run.config.sample, run.weights()[1]["step"]
    footer(
        fig,
        f"{_name(run)} · step {step:,} · {sample.sampler} {sample.steps} · seed "
        f"{sample.seed}, images 0 to {len(images) - 1}, not selected",
    )
    return fig


def process(run: Run) -> Figure:
    """Samples (rows) at moments of their denoising (columns); from samples/process.npz."""
    path = run.dir.samples / "process.npz"
    if not path.exists():
        raise RunError(f"{path} is missing: call generate.process(run) first")
    stored = np.load(path)
    x_t, t = stored["x_t"], stored["t"]
    rows, columns = x_t.shape[:2]
    fig, (axes,) = new_figure(0.8 * columns, 0.8 * rows + 0.6)
    gap = max(1, x_t.shape[2] // 16)
    sheet = grid(x_t.reshape(-1, *x_t.shape[2:]), columns, gap=gap)
    axes.imshow(sheet, interpolation="nearest")
    pitch = x_t.shape[3] + gap
    axes.set_xticks([gap + pitch * (i + 0.5) for i in range(columns)], [f"t = {k}" for k in t])
    axes.xaxis.tick_top()
    axes.set_yticks([])
    axes.tick_params(length=0, labelsize=7)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    sample = run.config.sample
    footer(
        fig,
        f"{_name(run)} · state after each step · {sample.sampler} {sample.steps} · "
        f"seed {sample.seed}, images 0 to {rows - 1}",
    )
    return fig


def save_all(run: Run, images: np.ndarray) -> list[Path]:
    """Every figure that the run's files allow, into its figures/ folder."""
    figures = {
        "curves": curves(run),
        "stages": stages(run),
        "samples": sample_grid(run, images),
        "process": process(run),
        **score_figures.all_of(run),
    }
    saved = [save_figure(fig, run.dir.figures, name) for name, fig in figures.items()]
    return [path for paths in saved for path in paths]
