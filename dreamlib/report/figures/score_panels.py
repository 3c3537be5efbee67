"""Scores on one pair of axes: every idea once, for its own figure and for the page of all."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from dreamlib.evaluation.results import GENERATED, REAL, Score, Study
from dreamlib.report.contents import EVALUATE
from dreamlib.report.figures.palette import BLUE, GREY, ORANGE, PALE, PURPLE
from dreamlib.report.tables import named
from dreamlib.utils.errors import NotEnoughSamples

KINDS = ((GENERATED, BLUE), (REAL, ORANGE))
LEAST, MOST = 1 / 16, 16  # ratios that are shown; those beyond are drawn at the edge
EDGES = 1 / 4, 4  # the same, of shares
CROSS, STAR = "floor by the formula", "bias taken off, ± error"  # marks of distances
FLOOR = "held-out real: the floor"


def needs(condition: object, what: str, command: str = EVALUATE) -> None:
    """NotEnoughSamples where a study does not hold what a panel shows."""
    if not condition:
        raise NotEnoughSamples(f"the scores hold no {what}: run `dreamlib {command}`")


# --------------------------------------------------------------------------- distances


def draw_fd(axes: Axes, study: Study) -> None:
    """The distance against 1/N with the floor at the same N, every disjoint set as a dash, and the
    corrected estimate at 0; more images are further to the right."""
    metric = study.facts["metric"]
    needs(study.of(GENERATED), metric)
    sizes = sorted({row.n for row in study.of(GENERATED)})
    for kind, colour in KINDS:
        rows = study.of(kind)
        axes.plot([1 / r.n for r in rows], [r.value for r in rows], "o-", ms=4, color=colour)
        for row in rows:  # a dash for each disjoint set
            axes.plot([1 / row.n] * len(row.parts), row.parts, "_", color=colour, alpha=0.5, ms=8)
        for row in study.of(kind, f"{metric} corrected"):
            axes.errorbar(0, row.value, row.se, fmt="*", ms=7, color=colour, clip_on=False)
    nulls = [(1 / row.n, row.null) for row in study.of(GENERATED) if row.null is not None]
    if nulls:
        axes.plot(*zip(*nulls), "x", color=GREY, ms=4)
    axes.axvline(0, color=PALE, lw=0.8, ls="--", zorder=1)
    _inverse_sizes(axes, sizes)
    axes.set(xlabel="1/N (more images →)", ylabel=metric)
    axes.set(xlim=(1.06 / sizes[0], 0), ylim=(min(0, axes.get_ylim()[0]), None))


def fd_keys(study: Study) -> list[Line2D]:
    """What the marks of `draw_fd` mean, those that it has."""
    rows = study.of(GENERATED)
    marks = [("o", BLUE, 4, GENERATED), ("o", ORANGE, 4, FLOOR)]
    if any(row.parts for row in rows):
        marks.append(("_", BLUE, 8, "a disjoint set"))
    if any(row.null is not None for row in rows):
        marks.append(("x", GREY, 4, CROSS))
    if study.of(GENERATED, f"{study.facts['metric']} corrected"):
        marks.append(("*", GREY, 7, STAR))
    return [Line2D([], [], marker=m, ls="", color=c, ms=s, label=k) for m, c, s, k in marks]


def _inverse_sizes(axes: Axes, sizes: Sequence[int]) -> None:
    """Ticks at 0 and 1/N, without those whose words would touch."""
    shown: list[int] = []
    for n in sizes:
        if not shown or 1 / shown[-1] - 1 / n > 0.22 / sizes[0]:
            shown.append(n)
    axes.xaxis.set_major_locator(FixedLocator([*(1 / n for n in shown), 0]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([*(f"1/{n:,}" for n in shown), "\n1/N = 0"])  # lower: the last is near
    axes.get_xticklabels()[-1].set_horizontalalignment("right")


def draw_kid(axes: Axes, study: Study) -> None:
    """KID with its standard errors at every N, which may be compared: it has no such bias."""
    metric = named(study, "KID")
    sizes = sorted({row.n for row in study.of(GENERATED, metric)})
    needs(sizes, metric)
    for (kind, colour), shift in zip(KINDS, (-0.08, 0.08)):
        rows = [row for row in study.of(kind, metric) if row.n in sizes]
        values, errors = [row.value for row in rows], [2 * (row.se or 0) for row in rows]
        look = {"fmt": "o", "ms": 4, "color": colour, "label": kind, "capsize": 2}
        places = [sizes.index(row.n) + shift for row in rows]
        axes.errorbar(places, values, errors, elinewidth=0.9, **look)
    axes.axhline(0, color=GREY, lw=0.8)
    axes.set_xticks(range(len(sizes)), [f"N = {n:,}" for n in sizes])
    axes.set(xlim=(-0.5, len(sizes) - 0.5), ylabel=metric)


# --------------------------------------------------------------------------- manifolds, modes


def draw_manifold(axes: Axes, study: Study) -> None:
    """Precision, recall, density and coverage at the largest N, generated beside held-out real."""
    metrics = ("coverage", "density", "recall", "precision")
    rows = {metric: study.of(GENERATED, named(study, metric)) for metric in metrics}
    needs(all(rows.values()), "precision and recall")
    size = max(row.n for row in rows["precision"])
    for (kind, colour), shift in zip(KINDS, (0.13, -0.13)):
        for height, metric in enumerate(metrics):
            for row in [r for r in study.of(kind, named(study, metric)) if r.n == size]:
                where, error = (row.value, height + shift), 2 * (row.se or 0)
                axes.errorbar(*where, xerr=error, fmt="o", ms=4, color=colour, lw=0.9)
                if row.null is not None:
                    axes.plot([row.null] * 2, [height - 0.3, height + 0.3], color=GREY, lw=0.8)
    axes.set_yticks(range(len(metrics)), metrics)
    axes.set(ylim=(-0.5, len(metrics) - 0.5), xlabel=f"N = {size:,}")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.margins(x=0.1)


def draw_modes(axes: Axes, study: Study, brief: bool = False) -> None:
    """Each mode's share among generated images over its real share, with its interval; briefly, one
    band of all intervals."""
    needs(GENERATED in study.modes, "modes")
    of_generated = study.modes[GENERATED]
    table = [mode for mode in of_generated["table"] if mode["real"] and mode["ratio"] is not None]
    table.sort(key=lambda mode: mode["ratio"])
    high = np.array([math.inf if mode["high"] is None else mode["high"] for mode in table])
    low = np.array([mode["low"] for mode in table])
    middle = np.array([mode["ratio"] for mode in table]).clip(LEAST, MOST)
    off, ends = (low > 1) | (high < 1), (low.clip(LEAST, MOST), high.clip(LEAST, MOST))
    place = np.arange(len(table))
    looks = (~off, PALE, "interval holds 1"), (off, PURPLE, "it does not")
    for chosen, colour, label in looks:
        bars = [(middle - ends[0])[chosen].clip(0), (ends[1] - middle)[chosen].clip(0)]
        shape = {"fmt": "o", "ms": 2.2, "lw": 0.7, "color": colour, "label": label}
        axes.errorbar(place[chosen], middle[chosen], None if brief else bars, **shape)
    if brief:
        axes.fill_between(place, *ends, color=PALE, alpha=0.35, lw=0)
        text = f"{of_generated['ndb']:.0%} differ\n(by chance {of_generated['ndb_null']:.0%})"
        axes.text(0.04, 0.98, text, va="top", transform=axes.transAxes)
    axes.axhline(1, color=GREY, lw=0.8)
    axes.set(yscale="log", ylim=(LEAST, MOST), xlim=(-1, len(table)), xticks=[])
    axes.set_yticks([LEAST, 1 / 4, 1, 4, MOST], ["1/16", "1/4", "1", "4", "16"])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set(ylabel="generated / real share", xlabel=f"{len(table)} modes, by ratio")


def draw_shares(axes: Axes, study: Study, most: int | None = None) -> None:
    """Each attribute value's share among generated images, relative to real ones; of many, the
    `most` that deviate furthest."""
    if not study.shares:
        raise NotEnoughSamples(
            "the scores hold no shares of attributes: they need images with labels, and `dreamlib "
            "evaluate RUN --set evaluate.extractor=classifier`"
        )
    several = len(study.shares) > 1
    bars = [
        (f"{attribute}: {value}".replace("_", " ") if several else value, share)
        for attribute, values in study.shares.items()
        for value, share in values.items()
        if share["real"] > 0
    ]
    ratios = {label: share["generated"] / share["real"] for label, share in bars}
    far = sorted(ratios, key=lambda label: -abs(math.log(max(ratios[label], LEAST))))
    labels = [label for label in ratios if label in far[:most]][::-1]
    values = [ratios[label] for label in labels]
    axes.plot([1, 1], [-0.7, len(labels) - 0.3], color=GREY, lw=0.8)
    axes.hlines(labels, 1, np.clip(values, *EDGES), color=BLUE, lw=2)
    for label, value in zip(labels, values):  # an arrow where the value lies beyond the edge
        mark = "<" if value < EDGES[0] else ">" if value > EDGES[1] else "o"
        place = np.clip(value, *EDGES)
        axes.plot(place, label, mark, color=BLUE, ms=3.5, clip_on=False, zorder=3)
    axes.set(xscale="log", xlim=EDGES, ylim=(-0.7, len(labels) - 0.3))
    axes.set_xticks([0.25, 0.5, 1, 2, 4], ["1/4", "1/2", "1", "2", "4"])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("generated / real share")


# --------------------------------------------------------------------------- care and copies


def draw_replay(axes: Axes, study: Study, brief: bool = False) -> None:
    """One model, compared carelessly first and with care last."""
    rows = study.replay
    needs(rows, "replay")
    heights = range(len(rows))[::-1]
    colours = [BLUE if row.real == "reference" else PURPLE for row in rows]
    axes.barh(heights, [row.value for row in rows], color=colours, height=0.6)
    for height, row in zip(heights, rows):
        axes.text(row.value, height, f" {row.value:.2f}", va="center", fontsize=7)
    axes.set_yticks(list(heights), [_compared(row, rows[0].n if brief else 0) for row in rows])
    metric = study.facts["metric"]
    axes.set(xlabel=f"{metric} of {rows[0].n:,} images" if brief else metric)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.3 if brief else 0.1)


def _compared(row: Score, usual: int) -> str:
    """The images of a bar; briefly, where `usual` of them are generated, the real ones alone."""
    kind = row.real.partition(" of ")[2]
    if usual:
        real = f"{row.n_real:,} " + ("of a batch" if "batch" in kind else "held-out")
        return real if row.n == usual else f"{row.n:,} images:\n{real}"
    if row.real == "reference":
        return f"{row.n:,} generated, {row.n_real:,} held-out real"
    return f"{row.n:,} generated, {row.n_real:,} real ({kind})"


def draw_parts(axes: Axes, study: Study, metric: str) -> None:
    """Every disjoint set of the smallest N as a dot; the bar is their mean."""
    for height, (kind, colour) in enumerate(((REAL, ORANGE), (GENERATED, BLUE))):
        for row in [row for row in study.of(kind, metric) if row.parts][:1]:
            spread = np.linspace(-0.12, 0.12, len(row.parts))
            axes.plot(row.parts, height + spread, "o", color=colour, ms=3.5, alpha=0.7)
            axes.plot(row.value, height, "|", color=colour, ms=26, mew=2)
    axes.set_yticks([0, 1], [REAL, GENERATED])
    axes.set(ylim=(-0.6, 1.6), xlabel=metric)
    axes.xaxis.set_major_locator(MaxNLocator(5, prune="both"))
    axes.margins(x=0.15)


def draw_memorisation(axes: Axes, study: Study) -> None:
    """Median distance to the nearest training image, of generated and of held-out images, and the
    share of generated ones that lie nearer than nearly all held-out ones."""
    memory = study.memorisation
    needs(memory, "nearest neighbours")
    values = [memory["held_out"], memory["generated"]]
    axes.barh([0, 1], values, color=[ORANGE, BLUE], height=0.5)
    for height, value in enumerate(values):
        axes.text(value, height, f" {value:,.0f}", va="center", fontsize=7)
    axes.set_yticks([0, 1], [REAL.replace(" ", "\n"), GENERATED])
    axes.set(ylim=(-0.5, 2.3), xlabel="median distance, grey levels")
    axes.margins(x=0.3)
    axes.grid(visible=False, axis="y")
    near = f"very near: {memory['share']:.1%}\n(by chance {memory['null']:.1%})"
    axes.text(0.04, 0.98, near, va="top", transform=axes.transAxes)
