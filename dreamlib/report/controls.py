"""A board of controls, and pictures that follow them: what every part of the playground is.

Works with ipywidgets 7.7 and 8 in any front end; where there is none (papermill), a board is shown
as a still picture.
"""

from __future__ import annotations

import html
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import fill

import ipywidgets as widgets
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from dreamlib.errors import DreamlibError
from dreamlib.images import enlarge, to_rgb
from dreamlib.progress import Advance, Progress, TextProgress, duration, silent
from dreamlib.report.live import headless
from dreamlib.report.plotting import style

SIDE = 96  # pixels of the page that a small image takes
SHARP = 2  # pixels of the picture to one of the page, for fine screens
COLUMNS, GAP, LETTER, LINE = 8, 14, 5.5, 12  # of a still picture: images in a row, and pixels
# What a drawing may fail of for a setting that was asked, a full memory or disk among them.
FAILURES = (DreamlibError, ValueError, ArithmeticError, RuntimeError, OSError)
WRAP = {"display": "flex", "flex_flow": "row wrap", "align_items": "flex-start"}


@dataclass(frozen=True)
class Tile:
    """One picture: uint8 [H,W,1 or 3], its caption, and its width on the page in pixels."""

    image: np.ndarray
    caption: str = ""
    width: int = SIDE


@dataclass(frozen=True)
class View:
    """What a board shows: rows of pictures, and a sentence or two on them (plain text)."""

    rows: Sequence[Sequence[Tile]]
    text: str = ""


def board(
    draw: Callable[..., View],
    controls: dict[str, widgets.Widget],
    *,
    extra: Sequence[widgets.Widget] = (),
    still: Callable[..., View] | None = None,
) -> widgets.VBox:
    """One widget: the controls, and below them what draw(progress, **values) returns for them.

    Drawn now, and again whenever a control changes.  A failure is one sentence on the board, and
    the pictures stay.  `extra` widgets stand beside the controls; `still` draws what is shown
    where nothing can be moved, `draw` itself if not given.
    """
    note, text, area = widgets.HTML(), widgets.HTML(), widgets.VBox()
    show = _Shelf(area).show

    def redraw(report: Progress) -> None:
        view = _attempt(draw, report, controls, note)
        if view is not None:
            show(view)
            text.value = _line(view.text)

    redraw(TextProgress())  # the note is not on the page yet
    for control in controls.values():
        control.observe(lambda change: redraw(_Note(note)), names="value")
    head = widgets.HBox([*controls.values(), *extra], layout=widgets.Layout(**WRAP))
    box = widgets.VBox([head, note, area, text])
    if headless():
        # Not the widget: without its program a page would hold dead sliders.
        view = _attempt(still or draw, silent, controls, note)
        box._ipython_display_ = lambda **kwargs: _display_still(view, note.value)
    return box


def _attempt(
    draw: Callable[..., View],
    progress: Progress,
    controls: dict[str, widgets.Widget],
    note: widgets.HTML,
) -> View | None:
    """What is drawn for the controls as they are, or None and the reason in the note."""
    failed = "stopped: change a setting to draw again"
    try:
        view = draw(progress, **{name: control.value for name, control in controls.items()})
        failed = ""
        return view
    except FAILURES as error:
        failed = str(error).partition("\n")[0] or type(error).__name__
        return None
    finally:
        note.value = _line(failed, "var(--jp-error-color1, #B00020)") if failed else ""


def _line(text: str, colour: str = "inherit") -> str:
    return f'<div style="line-height:1.5;color:{colour}">{html.escape(text)}</div>'


class _Note:
    """Progress in one line of the board, only while there is something to wait for."""

    def __init__(self, widget: widgets.HTML, every: float = 0.3):
        self.widget, self.every = widget, every

    def __call__(self, label: str, total: int) -> Advance:
        begun = time.monotonic()
        due, done = begun + self.every, 0
        self.widget.value = _line("working ...")

        def advance(count: int) -> None:
            nonlocal due, done
            done += count
            now = time.monotonic()
            if now >= due and done:
                due, left = now + self.every, (total - done) * (now - begun) / done
                self.widget.value = _line(
                    f"working: {label} {done / total:.0%}, {duration(left)} left"
                )

        return advance


class _Shelf:
    """Pictures with captions, replaced in place while their number and widths stay the same."""

    def __init__(self, area: widgets.VBox):
        self.area, self.widths, self.slots = area, None, []

    def show(self, view: View) -> None:
        widths = [[tile.width for tile in row] for row in view.rows]
        if widths != self.widths:
            self._build(widths)
        tiles = [tile for row in view.rows for tile in row]
        for (picture, caption), tile in zip(self.slots, tiles):
            picture.value = png(tile.image, SHARP * tile.width)
            caption.value = (
                f'<div style="width:{tile.width}px;font-size:12px;line-height:1.35;'
                f'text-align:center;overflow-wrap:anywhere">{html.escape(tile.caption)}</div>'
            )

    def _build(self, widths: list[list[int]]) -> None:
        old, self.widths, self.slots, rows = self.area.children, widths, [], []
        for row in widths:
            cells = []
            for width in row:
                size = widgets.Layout(width=f"{width}px", height="auto", max_width="none")
                self.slots.append((widgets.Image(format="png", layout=size), widgets.HTML()))
                margin = widgets.Layout(margin="4px 8px 4px 0", overflow="visible")
                cells.append(widgets.VBox(self.slots[-1], layout=margin))
            rows.append(widgets.HBox(cells, layout=widgets.Layout(**WRAP)))
        self.area.children = rows
        _close(old)


def _close(children: Sequence[widgets.Widget]) -> None:
    for child in children:
        _close(getattr(child, "children", ()))
        child.close()


def png(image: np.ndarray, width: int) -> bytes:
    """uint8 [H,W,1 or 3] as a PNG file of about `width` pixels; pixels are repeated, not mixed."""
    file, height = io.BytesIO(), round(width * image.shape[0] / image.shape[1])
    Image.fromarray(to_rgb(enlarge(image[None], height))[0]).save(file, format="PNG")
    return file.getvalue()


def paint(fig: Figure, dpi: int) -> np.ndarray:
    """A figure as pixels, uint8 [H,W,3], `dpi` of them to an inch."""
    fig.set_dpi(dpi)
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


# --------------------------------------------------------------------------- without a front end


def _display_still(view: View | None, why: str) -> None:
    from IPython.display import HTML, display
    from IPython.display import Image as Shown

    display(HTML(why) if view is None else Shown(data=still_png(view)))


def still_png(view: View) -> bytes:
    """A view as one PNG picture, captions and text included."""
    rows = [row[i : i + COLUMNS] for row in view.rows for i in range(0, len(row), COLUMNS)]
    width = max(420, *(sum(tile.width + GAP for tile in row) for row in rows))
    words = [[fill(tile.caption, int(tile.width / LETTER)) for tile in row] for row in rows]
    below = [LINE * max(len(text.splitlines()) for text in texts) + GAP for texts in words]
    highs = [[tile.width * tile.image.shape[0] / tile.image.shape[1] for tile in r] for r in rows]
    text = fill(view.text, int(width / LETTER))
    bottom = LINE * len(text.splitlines()) + GAP
    height = sum(map(max, highs)) + sum(below) + bottom
    with style():
        fig = Figure(figsize=(width / 100, height / 100))
        top = height
        for row, texts, tall, down in zip(rows, words, highs, below):
            left, top = GAP / 2, top - max(tall)
            for tile, caption, high in zip(row, texts, tall):
                place = left / width, top / height, tile.width / width, high / height
                axes = fig.add_axes(place, xticks=[], yticks=[], frame_on=False)
                axes.imshow(to_rgb(tile.image[None])[0], interpolation="nearest")
                middle = (left + tile.width / 2) / width
                fig.text(middle, (top - 3) / height, caption, ha="center", va="top", fontsize=7)
                left += tile.width + GAP
            top -= down
        fig.text(GAP / 2 / width, (bottom - GAP) / height, text, va="top", fontsize=7)
        picture = paint(fig, 150)
    return png(picture, picture.shape[1])
