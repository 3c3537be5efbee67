"""A board of controls, and pictures that follow them: what every part of the playground is.

Works with ipywidgets 7.7 and 8 in any front end; where there is none (papermill), a board is shown
as a still picture.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from textwrap import fill
from typing import Any

import ipywidgets as widgets
import numpy as np
from IPython.display import HTML, display
from matplotlib.artist import Artist
from matplotlib.offsetbox import HPacker, OffsetImage, TextArea, VPacker
from PIL import Image

from dreamlib.notebook.session import headless
from dreamlib.report.figures.palette import SMALL
from dreamlib.report.figures.style import Picture, style
from dreamlib.report.html import render
from dreamlib.utils.context import using
from dreamlib.utils.errors import DreamlibError
from dreamlib.utils.images import enlarge, to_rgb
from dreamlib.utils.progress import Advance, Progress, TextProgress

SIDE = 96  # pixels of the page that a small image takes
COLUMNS, GAP, LETTER = 8, 10, 5.5  # of a still picture: images in a row, points, pixels
POINTS = 0.72  # of a still picture, to a pixel of the page
# What a drawing may fail of for a setting that was asked, a full memory or disk among them.
FAILURES = (DreamlibError, ValueError, ArithmeticError, RuntimeError, OSError)


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
    controls: Mapping[str, widgets.ValueWidget],
    *,
    extra: Sequence[widgets.Widget] = (),
    still: Callable[..., View] | None = None,
) -> widgets.VBox:
    """One widget: the controls, and below them what draw(**values) returns for them.

    Drawn now, and again whenever a control changes.  A failure is one sentence on the board, and
    the pictures stay.  `extra` widgets stand beside the controls; `still` draws what is shown
    where nothing can be moved, `draw` itself if not given.
    """
    note, area = widgets.HTML(), widgets.HTML()
    draw = (still if headless() else None) or draw

    def redraw(progress: Progress) -> View | None:
        view, failed = None, "stopped: change a setting to draw again"
        try:
            with using(progress=progress):
                view = draw(**{name: control.value for name, control in controls.items()})
            failed = ""
        except FAILURES as error:
            failed = str(error).partition("\n")[0] or type(error).__name__
        finally:
            note.value = _line(failed, "var(--jp-error-color1, #B00020)")
        if view is not None:
            area.value = render("board.html", rows=view.rows, text=view.text, png=png)
        return view

    view = redraw(TextProgress())  # the note is not on the page yet
    for control in controls.values():
        control.observe(lambda change: redraw(noted(note)), names="value")
    wrap = widgets.Layout(flex_flow="row wrap", align_items="flex-start")
    head = widgets.HBox([*controls.values(), *extra], layout=wrap)
    box: Any = widgets.VBox([head, note, area])
    if headless():  # not the widget: without its program a page would hold dead sliders
        why = partial(display, HTML(note.value))
        box._ipython_display_ = why if view is None else still_figure(view)._ipython_display_
    return box


def _line(text: str, colour: str = "inherit") -> str:
    return f'<div style="line-height:1.5;color:{colour}">{html.escape(text)}</div>' if text else ""


def noted(note: widgets.HTML, every: float = 0.3) -> Progress:
    """Progress in one line of a board, only while there is something to wait for."""

    def show(text: str) -> None:
        note.value = _line(f"working: {text}")

    def progress(label: str, total: int) -> Advance:
        note.value = _line("working ...")
        return TextProgress(every, every, show)(label, total)

    return progress


def png(image: np.ndarray, width: int) -> str:
    """uint8 [H,W,1 or 3] as a PNG file of about `width` pixels, in base64; pixels are repeated, not
    mixed."""
    file, height = io.BytesIO(), round(width * image.shape[0] / image.shape[1])
    Image.fromarray(to_rgb(enlarge(image[None], height))[0]).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


@style()
def still_figure(view: View) -> Picture:
    """A view as one figure, captions and text included."""

    def words(text: str, width: int, align: str) -> TextArea:
        props = {"size": SMALL, "multialignment": align}
        return TextArea(fill(text, int(width / LETTER)), textprops=props)

    def cell(tile: Tile) -> VPacker:
        zoom = POINTS * tile.width / tile.image.shape[1]
        picture = OffsetImage(to_rgb(tile.image[None])[0], zoom=zoom, interpolation="nearest")
        parts = [picture, words(tile.caption, tile.width, "center")]
        return VPacker(children=parts, align="center", pad=0, sep=3)

    rows = [row[i : i + COLUMNS] for row in view.rows for i in range(0, len(row), COLUMNS)]
    width = max(420, *(sum(tile.width + GAP for tile in row) for row in rows))
    lines: list[Artist] = [
        HPacker(children=[*map(cell, row)], align="top", pad=0, sep=GAP) for row in rows
    ]
    lines.append(words(view.text, width, "left"))
    sheet = VPacker(children=lines, align="left", pad=GAP, sep=GAP)
    fig = Picture()
    fig.add_artist(sheet)
    extent = sheet.get_window_extent()
    sheet.set_offset((-extent.x0, -extent.y0))
    fig.set_size_inches(extent.width / fig.dpi, extent.height / fig.dpi)
    return fig
