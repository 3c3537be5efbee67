"""The look of every figure, how one is saved, and what stands in the place of a missing one."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import Any, TypeVar

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from dreamlib.report.contents import Missing
from dreamlib.report.figures.palette import GREY, SMALL, TWO
from dreamlib.utils.errors import DataError, NotEnoughSamples, RunError
from dreamlib.utils.files import write_atomic
from dreamlib.utils.images import grid

_SHEET = Path(__file__).with_suffix(".mplstyle")
STYLE: dict[str, Any] = {**matplotlib.rc_params_from_file(_SHEET, use_default_template=False)}
DPI = 300  # in a file
TRUETYPE = {"pdf.fonttype": 42}  # letters stay letters: publishers refuse Type 3
ABSENT = (RunError, NotEnoughSamples, DataError)  # what a figure needs and a run does not hold
Drawn = TypeVar("Drawn")


@contextmanager
def style(settings: dict[str, Any] = STYLE) -> Iterator[None]:
    """Matplotlib's own defaults and these while a figure is drawn, whatever its user's matplotlibrc
    says; `@style()` stands on functions that draw one."""
    with matplotlib.style.context(["default", settings]):
        yield


class Picture(Figure):
    """A figure that a notebook shows as PNG, whatever matplotlib's backend is there."""

    def _ipython_display_(self) -> None:
        from IPython.display import Image, display

        file = io.BytesIO()
        with style():
            self.savefig(file, format="png", metadata={"Software": None})
        display(Image(file.getvalue(), format="png"))


@style()
def new_figure(
    width: float, height: float, columns: int = 1, rows: int = 1, **layout: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of `width` x `height` inches and its axes, row by row.

    `layout`: width_ratios or height_ratios, as matplotlib's subplots has them.
    """
    fig = Picture(figsize=(width, height), layout="constrained")
    return fig, list(fig.subplots(rows, columns, squeeze=False, **layout).flat)


def footer(fig: Figure, text: str) -> None:
    """What the figure is of, below it; broken between facts (' · ') where it is too long."""
    room, lines = 19 * fig.get_figwidth(), [""]  # letters to a line
    for fact in filter(None, text.split(" · ")):
        longer = f"{lines[-1]} · {fact}" if lines[-1] else fact
        lines = [*lines[:-1], longer] if len(longer) <= room else [*lines, fact]
    fig.supxlabel("\n".join(line for line in lines if line), fontsize=SMALL, color=GREY)


@style()  # laying out makes ticks, too
def save_figure(fig: Figure, folder: Path, name: str) -> list[Path]:
    """NAME.png at 300 dpi and NAME.pdf, without dates, so that equal figures are equal files."""
    _lay_out(fig)
    fig.set_layout_engine("none")  # laid out once; both files are the same picture
    usual, fig.dpi = fig.dpi, DPI
    # Not `savefig`, which draws a figure once more before it does
    png = partial(FigureCanvasAgg(fig).print_png, metadata={"Software": None})
    pdf = partial(FigureCanvasPdf(fig).print_pdf, metadata={"CreationDate": None})
    paths = {folder / f"{name}.png": png, folder / f"{name}.pdf": pdf}
    with style(STYLE | TRUETYPE):
        for path, write in paths.items():
            write_atomic(path, write)
    fig.dpi = usual
    return list(paths)


def _lay_out(fig: Figure) -> None:
    """A figure that is laid out already stays as it is."""
    engine = fig.get_layout_engine()
    if engine is not None:
        engine.execute(fig)


# --------------------------------------------------------------------------- what is missing


def attempt(draw: Callable[[], Drawn]) -> Drawn | Missing:
    """What `draw` draws, or what the run lacks for it and which command makes that."""
    try:
        return draw()
    except ABSENT as error:
        return Missing(str(error))


@style()
def missing(name: str, why: str, below: str) -> Figure:
    """A figure in the place of one that cannot be drawn: what is missing, in words; `below` is its
    footer."""
    fig, (axes,) = new_figure(TWO, 1.2)
    say_missing(axes, why, width=100)
    axes.set_title(f"{name.replace('_', ' ')}: not drawn", loc="left", fontweight="bold")
    footer(fig, below)
    return fig


def say_missing(axes: Axes, why: str, width: int = 32) -> None:
    """The same inside one panel; `width` in letters."""
    plain(axes)
    axes.set(xticks=[], yticks=[])
    text = fill(why, width, break_on_hyphens=False)
    axes.text(0, 0.95, text, va="top", fontsize=7.5, transform=axes.transAxes)


# --------------------------------------------------------------------------- pictures


def plain(axes: Axes) -> None:
    """No frame, no grid, no tick marks."""
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def show_sheet(
    axes: Axes, images: np.ndarray, rows: Sequence[str] = (), columns: Sequence[str] = ()
) -> None:
    """uint8 [R,K,H,W,C] as R rows of K images, with words at the left and above."""
    count, across, height, width = images.shape[:4]
    gap = max(1, height // 16)  # pixels between images
    sheet = grid(images.reshape(-1, *images.shape[2:]), across, gap=gap)
    axes.set_anchor("N")
    axes.imshow(sheet, interpolation="nearest")
    axes.set_yticks([gap + (height + gap) * (i + 0.5) for i in range(count)][: len(rows)], rows)
    places = [gap + (width + gap) * (i + 0.5) for i in range(across)]
    axes.set_xticks(places[: len(columns)], columns)
    axes.xaxis.tick_top()
    plain(axes)


def log_scale(axes: Axes) -> None:
    """Logarithmic in y where the values span enough, with ticks that can be read."""
    low, high = axes.dataLim.y0, axes.dataLim.y1
    if not 0 < 4 * low < high:
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")  # matplotlib's own is mathematics, which is not read
    axes.yaxis.set_minor_formatter(NullFormatter())
    if high / low < 100:
        axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))


@style()
def sheet_figure(
    images: np.ndarray,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    *,
    below: str,
    title: str = "",
    letters: float = 8,
    width: float = TWO,
) -> Figure:
    """A sheet of uint8 [R,K,H,W,C] on a figure of its own; `below` is its footer, `letters` are the
    title's points."""
    fig, (axes,) = new_figure(width, width * images.shape[0] / images.shape[1] + 0.5)
    show_sheet(axes, images, rows, columns)
    axes.set_title(title, fontsize=letters)
    footer(fig, below)
    fit(fig)
    return fig


def fit(fig: Figure, rows: int = 1) -> None:
    """Make a figure as high as its pictures, in `rows` rows of axes, and its words need."""
    axes = fig.axes[0]
    for _ in range(3):  # words move as the height does
        _lay_out(fig)
        axes.apply_aspect()
        space, used = axes.get_position(original=True), axes.get_position()
        wide, high = fig.get_size_inches()
        across, down = (space.width - used.width) * wide, (space.height - used.height) * high
        ratio = used.height * high / (used.width * wide)
        fig.set_figheight(high + rows * (across * ratio - down))
