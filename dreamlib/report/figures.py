"""Figures from a run folder's files: each function reads, draws and returns a Figure."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from dreamlib.build import make_loss, make_schedule
from dreamlib.diffusion.dream import Conservative, Paper
from dreamlib.diffusion.samplers import spaced
from dreamlib.errors import RunError
from dreamlib.evaluate import Score, Study, read_study
from dreamlib.files import write_atomic
from dreamlib.images import grid
from dreamlib.run import STAGES, Run
from dreamlib.sections import Config

# Okabe & Ito's colours: distinct for colour-blind readers and in grey print.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
QUARTILES = ("#56B4E9", "#0072B2", "#E69F00", "#D55E00")
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "savefig.dpi": 200,
}


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    # Not rc_context: it would also put back what the first figure of a notebook switches on
    # (interactive), and no later figure would be shown.
    before = {name: plt.rcParams[name] for name in STYLE}
    plt.rcParams.update(STYLE)
    try:
        fig, axes = plt.subplots(1, columns, figsize=(width, height), layout="constrained")
    finally:
        plt.rcParams.update(before)
    return fig, list(np.atleast_1d(axes))


def _footer(fig: Figure, text: str) -> None:
    fig.supxlabel(text, fontsize=6.5, color=GREY)


def _name(run: Run) -> str:
    data = run.config.data
    return f"{run.config.preset} · {data.name} {data.size}x{data.size}"


def schedule(config: Config) -> Figure:
    """Signal a, noise s and DREAM's fully ramped lambda against t; and the sampler's steps."""
    sched = make_schedule(config)
    t = torch.arange(len(sched))
    a, s = sched.alpha_bar.sqrt(), (1 - sched.alpha_bar).sqrt()
    fig, (left, right) = _figure(7.2, 2.8, 2)
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
    _footer(
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
    fig, (left, right) = _figure(7.2, 2.8, 2)
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
    _footer(
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
    fig, axes = _figure(1.9 * len(paths), 2.5, len(paths))
    for ax, (step, path) in zip(axes, paths.items()):
        ax.imshow(plt.imread(path), interpolation="nearest")
        ax.set_title(f"step {step:,}", fontsize=8)
        ax.axis("off")
    _footer(fig, f"{_name(run)} · averaged weights (EMA) · the same seeds throughout")
    return fig


def sample_grid(run: Run, images: np.ndarray, columns: int = 8) -> Figure:
    """uint8 [N,H,W,C] as a sheet."""
    rows = -(-len(images) // columns)
    fig, (axes,) = _figure(0.62 * columns, 0.62 * rows + 0.35)
    axes.imshow(grid(images, columns, gap=max(1, images.shape[1] // 16)), interpolation="nearest")
    axes.axis("off")
    sample, step = run.config.sample, run.weights()[1]["step"]
    _footer(
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
    fig, (axes,) = _figure(0.8 * columns, 0.8 * rows + 0.6)
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
    _footer(
        fig,
        f"{_name(run)} · state after each step · {sample.sampler} {sample.steps} · "
        f"seed {sample.seed}, images 0 to {rows - 1}",
    )
    return fig


def fd_against_n(run: Run) -> Figure:
    """The distance against 1/N, with the floor at the same N; from scores.json."""
    study = read_study(run.folder)
    metric = study.facts["metric"]
    fig, (axes,) = _figure(4.6, 3.3)
    for kind, colour, label in (
        ("generated", BLUE, "generated"),
        ("held-out real", ORANGE, "floor: other held-out real images"),
    ):
        rows = [row for row in study.rows if (row.images, row.metric) == (kind, metric)]
        _points(axes, rows, colour, label)
        fixed = [r for r in study.rows if (r.images, r.metric) == (kind, f"{metric} corrected")]
        for row in fixed:
            axes.plot(0, row.value, marker="*", ms=9, color=colour, ls="none", clip_on=False)
    sizes = sorted({row.n for row in study.rows})
    axes.xaxis.set_major_locator(FixedLocator([1 / n for n in sizes]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"1/{n:,}" for n in sizes])
    axes.set(xlabel="1/N", ylabel=metric, ylim=(min(0, axes.get_ylim()[0]), None))
    axes.set_title("The same model at every N: the slope is bias", fontsize=9)
    if not study.absent:
        axes.plot([], [], "*", ms=9, color=GREY, label="bias corrected (N → ∞)")
    axes.legend(fontsize=7, loc="center right", frameon=False)
    _footer(fig, _study_footer(study))
    return fig


def _points(axes: Axes, rows: list[Score], colour: str, label: str) -> None:
    """A line through the rows, and a dash for each disjoint set."""
    rows = sorted(rows, key=lambda row: row.n)
    axes.plot([1 / r.n for r in rows], [r.value for r in rows], "o-", color=colour, label=label)
    for row in rows:
        axes.plot([1 / row.n] * len(row.parts), row.parts, "_", color=colour, alpha=0.5, ms=9)


def shares(run: Run) -> Figure:
    """Each attribute value's share among generated images, relative to real ones."""
    study = read_study(run.folder)
    bars = [
        (f"{attribute}: {value}", share["generated"] / share["real"])
        for attribute, values in study.shares.items()
        for value, share in values.items()
        if share["real"] > 0
    ]
    fig, (axes,) = _figure(4.6, 0.16 * len(bars) + 0.9)
    labels, ratios = zip(*bars[::-1])
    axes.barh(labels, ratios, color=BLUE, height=0.7)
    for edge, style in ((0.5, ":"), (1, "-"), (2, ":")):
        axes.axvline(edge, color=GREY, ls=style, lw=1)
    axes.set(xlabel="share among generated / share among real", xscale="log", xlim=(0.25, 4))
    axes.set_xticks([0.25, 0.5, 1, 2, 4], ["¼", "½", "1", "2", "4"])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="y", labelsize=7)
    axes.margins(y=0.01)
    _footer(fig, _study_footer(study))
    return fig


def _study_footer(study: Study) -> str:
    facts = study.facts
    extractor = facts["extractor"].rsplit("-", 1)[0]
    return (
        f"{facts['preset']} · step {facts['step']:,} · {facts['sampler']} {facts['steps']} · "
        f"{study.rows[0].n_real:,} real images · {extractor}"
    )


def save_figure(fig: Figure, folder: Path, name: str) -> list[Path]:
    """NAME.png and NAME.pdf, without dates, so that equal figures are equal files."""
    paths = []
    for kind, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        path = folder / f"{name}.{kind}"
        write_atomic(path, lambda file, k=kind, m=metadata: fig.savefig(file, format=k, metadata=m))
        paths.append(path)
    plt.close(fig)
    return paths


def save_all(run: Run, images: np.ndarray) -> list[Path]:
    """Every figure that the run's files allow, into its figures/ folder."""
    figures = {
        "curves": curves(run),
        "stages": stages(run),
        "samples": sample_grid(run, images),
        "process": process(run),
        "fd_against_n": fd_against_n(run),
    }
    if read_study(run.folder).shares:
        figures["shares"] = shares(run)
    saved = [save_figure(fig, run.dir.figures, name) for name, fig in figures.items()]
    return [path for paths in saved for path in paths]
