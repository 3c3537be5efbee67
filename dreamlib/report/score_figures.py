"""Figures from scores: each function reads a run's or an ablation's files and returns a Figure."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from dreamlib.ablate import BUDGETS, Ablation, read_ablation
from dreamlib.errors import NotEnoughSamples
from dreamlib.images import grid
from dreamlib.report.plotting import BLUE, GREEN, GREY, ORANGE, STYLE, footer, new_figure
from dreamlib.run import Run
from dreamlib.scores import GENERATED, REAL, Score, Study, read_study


def scored(run: Run) -> Study:
    """The run's study.  NotEnoughSamples when it has not been evaluated."""
    study = read_study(run.folder)
    if not study.rows:
        raise NotEnoughSamples(
            f"{run.folder} has scores of other images only: run `dreamlib evaluate {run.folder}`"
        )
    return study


def all_of(run: Run) -> dict[str, Figure]:
    """Every figure that the run's scores allow, by name."""
    study = scored(run)
    drawn = {"fd_against_n": fd_against_n(run), "replay": replay(run), "nearest": nearest(run)}
    if any(row.parts for row in study.of(GENERATED)):
        drawn["parts"] = parts(run)
    if GENERATED in study.modes:
        drawn["modes"] = modes(run)
    if study.shares:
        drawn["shares"] = shares(run)
    return drawn


def fd_against_n(run: Run) -> Figure:
    """The distance against 1/N with the floor at the same N, every disjoint set as a dash, the
    corrected estimate at 0, and the line through the points that allow one."""
    study = scored(run)
    metric = study.facts["metric"]
    fig, (axes,) = new_figure(4.8, 3.4)
    for kind, colour, label in (
        (GENERATED, BLUE, "generated"),
        (REAL, ORANGE, "floor: other held-out real images"),
    ):
        _points(axes, study.of(kind), colour, label)
        for row in study.of(kind, f"{metric} corrected"):
            axes.errorbar(0, row.value, row.se, fmt="*", ms=9, color=colour, clip_on=False)
        if kind in study.fit:
            _line_of(axes, study.fit[kind], colour)
    nulls = [row for row in study.of(GENERATED) if row.null is not None]
    if nulls:
        axes.plot([1 / r.n for r in nulls], [r.null for r in nulls], "x", color=GREY, ms=5)
        axes.plot([], [], "x", color=GREY, ms=5, label="floor by the formula")
    sizes = sorted({row.n for row in study.of(GENERATED)})
    axes.xaxis.set_major_locator(FixedLocator([1 / n for n in sizes]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"1/{n:,}" for n in sizes])
    axes.set(xlabel="1/N", ylabel=metric, ylim=(min(0, axes.get_ylim()[0]), None))
    axes.set_title("The same model at every N: the slope is bias", fontsize=9)
    if study.fit:
        axes.plot([], [], ".:", ms=3, lw=1, color=GREY, label="N against N real, and a line")
    if study.of(GENERATED, f"{metric} corrected"):
        axes.plot([], [], "*", ms=9, color=GREY, label="bias corrected, ± standard error")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.45 * (high - low))  # room for the legend
    axes.legend(fontsize=7, loc="upper left", frameon=False)
    footer(fig, study_footer(study))
    return fig


def _points(axes: Axes, rows: list[Score], colour: str, label: str) -> None:
    """A line through the rows, and a dash for each disjoint set."""
    axes.plot([1 / r.n for r in rows], [r.value for r in rows], "o-", color=colour, label=label)
    for row in rows:
        axes.plot([1 / row.n] * len(row.parts), row.parts, "_", color=colour, alpha=0.5, ms=9)


def _line_of(axes: Axes, fit: dict, colour: str) -> None:
    """The straight line of the 1/N fit, from infinitely many images to its fewest."""
    inverse = 1 / np.array(fit["sizes"], float)
    slope, _ = np.polyfit(inverse, np.array(fit["values"]), 1)
    ends = np.array([0, inverse.max()])
    axes.plot(ends, fit["linear"] + slope * ends, ":", color=colour, lw=1)
    axes.plot(inverse, fit["values"], ".", color=colour, ms=3)


def parts(run: Run) -> Figure:
    """Every disjoint set of the smallest N as a dot: how far one evaluation can be off."""
    study = scored(run)
    metric = study.facts["metric"]
    fig, axes = new_figure(6.4, 2.6, 2)
    for axis, name in zip(axes, (metric, metric.replace("FD", "KID").replace("FID", "KID"))):
        for height, (kind, colour) in enumerate(((REAL, ORANGE), (GENERATED, BLUE))):
            rows = [row for row in study.of(kind, name) if row.parts]
            for row in rows[:1]:
                spread = np.linspace(-0.12, 0.12, len(row.parts))
                axis.plot(row.parts, height + spread, "o", color=colour, ms=4, alpha=0.7)
                axis.plot(row.value, height, "|", color=colour, ms=26, mew=2)
        axis.set_yticks([0, 1], [REAL, GENERATED])
        axis.set(ylim=(-0.6, 1.6), xlabel=name)
        axis.margins(x=0.15)
    smallest = study.of(GENERATED)[0]
    count = len(smallest.parts)
    fig.suptitle(
        f"{count} disjoint sets of {smallest.n:,} images of one model; bars are their means",
        fontsize=9,
    )
    footer(fig, study_footer(study))
    return fig


def replay(run: Run) -> Figure:
    """One model, compared carelessly first and with care last."""
    study = scored(run)
    rows = study.replay
    fig, (axes,) = new_figure(5.6, 0.34 * len(rows) + 1.2)
    labels = [f"{row.n:,} generated, {_real_of(row)}" for row in rows]
    heights = range(len(rows))[::-1]
    careful = [row.real == "reference" for row in rows]
    colours = [BLUE if fine else ORANGE for fine in careful]
    axes.barh(heights, [row.value for row in rows], color=colours, height=0.6)
    for height, row in zip(heights, rows):
        axes.text(row.value, height, f" {row.value:.2f}", va="center", fontsize=7)
    axes.set_yticks(list(heights), labels, fontsize=7)
    axes.set(xlabel=study.facts["metric"])
    axes.margins(x=0.12)
    fig.suptitle(
        "The same images of the same model: only what they are compared with changes", fontsize=9
    )
    footer(fig, study_footer(study))
    return fig


def _real_of(row: Score) -> str:
    if row.real == "reference":
        return f"{row.n_real:,} held-out real"
    return f"{row.n_real:,} real ({row.real.partition(' of ')[2]})"


def modes(run: Run) -> Figure:
    """Each mode's share among generated images over its real share, with its interval; below,
    images of the modes that deviate most: real ones left, generated ones right."""
    study = scored(run)
    found = study.modes[GENERATED]
    table = [mode for mode in found["table"] if mode["real"] and mode["ratio"] is not None]
    table.sort(key=lambda mode: mode["ratio"])
    pictures = np.load(run.dir.evaluation / "modes.npz")
    fig, (axes, strip) = _two_rows(6.8, 4.6)
    middle = np.array([max(mode["ratio"], 1 / 16) for mode in table])
    low = np.array([max(mode["low"], 1 / 16) for mode in table])
    high = np.array([mode["high"] if mode["high"] is not None else 16 for mode in table])
    off = np.array([not mode["low"] <= 1 <= mode["high"] for mode in table])
    place = np.arange(len(table))
    for chosen, colour, label in (
        (~off, GREY, "interval holds 1"),
        (off, ORANGE, "interval does not"),
    ):
        bars = [(middle - low)[chosen].clip(0), (high - middle)[chosen].clip(0)]
        axes.errorbar(
            place[chosen], middle[chosen], bars, fmt="o", ms=2.5, lw=0.8, color=colour, label=label
        )
    axes.axhline(1, color=GREY, lw=1)
    axes.set(yscale="log", ylim=(1 / 16, 16), xlim=(-1, len(table)), xticks=[])
    axes.set_yticks([1 / 16, 1 / 4, 1, 4, 16], ["1/16", "1/4", "1", "4", "16"])
    axes.set_ylabel("generated / real share", fontsize=8)
    axes.set_title(
        f"{len(table)} modes at N = {found['n']:,}: NDB/K {found['ndb']:.2f} "
        f"(by chance {found['ndb_null']:.2f}, p = {found['ndb_p']:.3f})",
        fontsize=9,
    )
    axes.legend(fontsize=7, loc="upper left", ncols=2, frameon=False)
    _show_strips(strip, pictures, {mode["cell"]: mode for mode in found["table"]})
    footer(fig, study_footer(study))
    return fig


def _two_rows(width: float, height: float) -> tuple[Figure, list[Axes]]:
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(2, 1, figsize=(width, height), layout="constrained")
    return fig, list(axes)


def _show_strips(axes: Axes, pictures, modes: dict[int, dict]) -> None:
    """A row per mode: its real images, a gap, its generated ones; black where they end."""
    real, generated = pictures["real"], pictures["generated"]
    rows, count = real.shape[:2]
    both = np.concatenate([real, np.full_like(real[:, :1], 255), generated], axis=1)
    gap = max(1, real.shape[2] // 16)
    columns = both.shape[1]
    sheet = grid(both.reshape(-1, *both.shape[2:]), columns, gap=gap)
    axes.imshow(sheet, interpolation="nearest", aspect="equal")
    pitch = real.shape[2] + gap
    ratios = [modes[int(cell)]["ratio"] for cell in pictures["cells"]]
    labels = ["–" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
    axes.set_yticks([gap + pitch * (i + 0.5) for i in range(rows)], labels, fontsize=7)
    axes.set_xticks(
        [pitch * count / 2, pitch * (count + 1 + count / 2)],
        ["real images of the modes that deviate most", "generated images of the same modes"],
        fontsize=7,
    )
    axes.set_ylabel("ratio", fontsize=7)
    _plain(axes)


def nearest(run: Run) -> Figure:
    """The generated images that lie nearest to a training image, each above that image."""
    study = scored(run)
    pictures = np.load(run.dir.evaluation / "nearest.npz")
    pairs = np.concatenate([pictures["generated"], pictures["train"]])
    columns = len(pictures["generated"])
    fig, (axes,) = new_figure(0.8 * columns, 2.2)
    gap = max(1, pairs.shape[1] // 16)
    axes.imshow(grid(pairs, columns, gap=gap), interpolation="nearest")
    pitch = pairs.shape[1] + gap
    axes.set_yticks([gap + pitch * 0.5, gap + pitch * 1.5], ["generated", "training"], fontsize=7)
    axes.set_xticks([])
    _plain(axes)
    found = study.memorisation
    axes.set_title(
        "Nearest to a training image, of all "
        f"{found['n']:,}: median distance {found['generated']:.0f} "
        f"(held-out {found['held_out']:.0f})",
        fontsize=8,
    )
    footer(fig, study_footer(study))
    return fig


def _plain(axes: Axes) -> None:
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def shares(run: Run) -> Figure:
    """Each attribute value's share among generated images, relative to real ones."""
    study = scored(run)
    bars = [
        (f"{attribute}: {value}", share["generated"] / share["real"])
        for attribute, values in study.shares.items()
        for value, share in values.items()
        if share["real"] > 0
    ]
    fig, (axes,) = new_figure(4.6, 0.16 * len(bars) + 0.9)
    labels, ratios = zip(*bars[::-1])
    axes.barh(labels, ratios, color=BLUE, height=0.7)
    for edge, style in ((0.5, ":"), (1, "-"), (2, ":")):
        axes.axvline(edge, color=GREY, ls=style, lw=1)
    axes.set(xlabel="share among generated / share among real", xscale="log", xlim=(0.25, 4))
    axes.set_xticks([0.25, 0.5, 1, 2, 4], ["¼", "½", "1", "2", "4"])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="y", labelsize=7)
    axes.margins(y=0.01)
    footer(fig, study_footer(study))
    return fig


def study_footer(study: Study) -> str:
    facts = study.facts
    extractor = facts["extractor"].rsplit("-", 1)[0]
    return (
        f"{facts['preset']} · step {facts['step']:,} · {facts['sampler']} {facts['steps']} · "
        f"{study.rows[0].n_real:,} real images · {extractor}"
    )


def ablation(folder: Path | str) -> Figure:
    """The distance of every loss, a panel per sampler: every training seed, and their mean."""
    found = read_ablation(folder)
    arms = list(dict.fromkeys(cell.arm for cell in found.cells))
    samplers = found.facts["samplers"]
    fig, axes = new_figure(2.6 * len(samplers) + 1, 0.42 * len(arms) + 1.7, len(samplers))
    for axis, sampler in zip(axes, samplers):
        for budget, colour, shift in zip(BUDGETS, (BLUE, GREEN), (0.14, -0.14)):
            for height, arm in enumerate(arms[::-1]):
                values = [cell.fd for cell in found.of(arm, budget, sampler)]
                axis.plot(values, [height + shift] * len(values), "o", color=colour, ms=4)
                axis.plot(np.mean(values), height + shift, "|", color=colour, ms=13, mew=2)
        axis.axvline(found.facts["floor"], color=ORANGE, lw=1)
        axis.set_yticks(range(len(arms)), arms[::-1] if axis is axes[0] else [""] * len(arms))
        axis.set(xlim=(0, None), xlabel=found.facts["metric"])
        axis.set_title(" ".join(sampler.split(":")), fontsize=8)
    for colour, label in ((BLUE, "equal steps"), (GREEN, "equal passes"), (ORANGE, "floor")):
        axes[-1].plot([], [], "o" if colour != ORANGE else "-", color=colour, ms=4, label=label)
    fig.legend(fontsize=7, loc="outside upper right", ncols=3, frameon=False)
    footer(fig, ablation_footer(found))
    return fig


def ablation_footer(found: Ablation) -> str:
    facts = found.facts
    return (
        f"{facts['preset']} · {facts['images']} · {facts['steps']:,} steps of {facts['batch']} · "
        f"training seeds {', '.join(map(str, facts['seeds']))} · {facts['n']:,} images against "
        f"{facts['n_real']:,} held-out real"
    )
