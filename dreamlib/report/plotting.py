"""The look of every figure, and how one is saved."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dreamlib.files import write_atomic

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


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    # Not rc_context: it would also put back what the first figure of a notebook switches on
    # (interactive), and no later figure would be shown.
    before = {name: plt.rcParams[name] for name in STYLE}
    plt.rcParams.update(STYLE)
    try:
        fig, axes = plt.subplots(1, columns, figsize=(width, height), layout="constrained")
    finally:
        plt.rcParams.update(before)
    return fig, list(np.atleast_1d(axes))


def footer(fig: Figure, text: str) -> None:
    fig.supxlabel(text, fontsize=6.5, color=GREY)


def save_figure(fig: Figure, folder: Path, name: str) -> list[Path]:
    """NAME.png and NAME.pdf, without dates, so that equal figures are equal files."""
    paths = []
    for kind, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        path = folder / f"{name}.{kind}"
        write_atomic(path, lambda file, k=kind, m=metadata: fig.savefig(file, format=k, metadata=m))
        paths.append(path)
    plt.close(fig)
    return paths
