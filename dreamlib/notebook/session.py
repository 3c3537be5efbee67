"""What a notebook begins with, and what moves in it: one panel that is replaced in place."""

from __future__ import annotations

import base64
import html
import inspect
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from dreamlib.config.factory import make_loss, make_stream
from dreamlib.notebook.runner.execute import PAUSED
from dreamlib.report.texts import as_table
from dreamlib.runs import open as runs
from dreamlib.runs.history import story
from dreamlib.runs.run import Run
from dreamlib.training import cost
from dreamlib.training.loop import Tick
from dreamlib.training.train import train as train_run
from dreamlib.utils.arguments import listed
from dreamlib.utils.errors import (
    ConfigError,
    Interrupted,
    NotEnoughSamples,
    NotThere,
    OutOfTime,
    RunError,
)
from dreamlib.utils.images import enlarge, grid
from dreamlib.utils.platform import Places, flush_drive, mount_drive, working_folder
from dreamlib.utils.progress import Advance, Progress, TextProgress, duration, tell

if TYPE_CHECKING:
    from IPython.display import Markdown

FIRST = (
    "run notebook 03_training (or 00_complete) first, with the same RUN; on Colab say yes to the "
    "Drive it was mirrored to, on Kaggle attach the output of the notebook that trained it"
)

_paused = False  # the time budget ended work of this notebook


def open_run(
    folder: str | Path,
    preset: str | None = None,
    *,
    overrides: Iterable[str] | str = (),
    mirror: Places = None,
    hours: float | None = None,
) -> Run:
    """Open the run that a notebook works on, wherever it is: here, on Drive, attached on Kaggle.

    A relative `folder` lies under the clone's root, whichever folder the notebook is opened in.
    With a preset, a run that is nowhere is begun.  Without one RunError says what to run first,
    and the environment variable DREAMLIB_RUN, if set, names the run: a page served by Voilà
    cannot be given parameters.  On Colab the user is asked for their Drive.
    """
    mount_drive()
    if preset is None:
        folder = os.environ.get("DREAMLIB_RUN") or folder
    place = working_folder() / folder
    if preset is None and not runs.find_run(place, mirror):
        raise RunError(f"there is no run {place} yet, and none of its name to bring back: {FIRST}")
    return runs.open_run(
        place, preset, overrides=overrides, mirror=mirror, hours=hours, progress=progress()
    )


@contextmanager
def stop_cleanly() -> Iterator[None]:
    """In a notebook: long work, and what shows its result; whatever stops it is one sentence.

    When the session's time budget ends, the cells that follow go on: they show what there is, and
    those that lack it say so.  Work that was asked to stop (the stop button, SIGTERM) ends the
    notebook: hosted runners take SystemExit(0) for an end, and any other exception for a failure,
    with which some of them throw the outputs away.
    """
    global _paused
    try:
        yield
    except OutOfTime as error:
        _paused = True
        tell(f"{PAUSED}{error}")
    except Interrupted as error:
        tell(f"STOPPED: {error}")
        flush_drive()
        raise SystemExit(0) from None  # IPython 7 fails on one that has a context
    except (NotThere, NotEnoughSamples) as error:
        if not _paused:
            raise
        tell(f"{PAUSED}{error}")


def train(run: Run, devices: int | None = None) -> Iterator[Tick]:
    """`dreamlib.train` by every GPU that the run may use, or by so many."""
    wanted = run.config.train.device in ("auto", "cuda")
    return train_run(run, devices=devices or (max(1, torch.cuda.device_count()) if wanted else 1))


def headless() -> bool:
    """Whether nobody looks: a notebook of ours that runs without a reader (runner/execute.py), or
    Kaggle's "Save & Run All"."""
    batch = os.environ.get("KAGGLE_KERNEL_RUN_TYPE") == "Batch"
    return batch or bool(os.environ.get("DREAMLIB_HEADLESS"))


def is_live() -> bool:
    """Whether somebody looks at a page that can change, and not at a terminal."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return hasattr(shell, "kernel") and not headless() and find_spec("ipywidgets") is not None


NOWRAP = '<span style="white-space:nowrap">'
PICTURE = """
<div style="display:inline-block; vertical-align:top; margin:4px 12px 0 0; line-height:1.5">
<small>{}</small><br><img src="data:image/png;base64,{}" alt="" style="max-width:280px"></div>
"""


class Panel:
    """A bar, a few facts and pictures, in one widget (ipywidgets 7.7 and 8), once there are any."""

    is_open = False

    def _open(self) -> None:
        import ipywidgets as widgets
        from IPython.display import display

        wide = widgets.Layout(width="100%")
        self.bar = widgets.IntProgress(max=1000, layout=wide)
        self.text, self.images = widgets.HTML(layout=wide), widgets.HTML(layout=wide)
        self.box = widgets.VBox([self.bar, self.text, self.images])
        self.handle = display(self.box, display_id=True)
        self.is_open = True

    def show(self, share: float, facts: Iterable[str]) -> None:
        """The share that is done, 0 to 1, and facts of plain text."""
        if not self.is_open:
            self._open()
        self.bar.value = round(1000 * share)
        lines = [html.escape(fact) for fact in facts if fact]
        self.text.value = NOWRAP + f"&ensp;·</span>&ensp; {NOWRAP}".join(lines) + "</span>"

    def pictures(self, pngs: Mapping[str, bytes]) -> None:
        """Show PNG pictures by their captions, in place of those before."""
        self.images.value = "".join(
            PICTURE.format(html.escape(caption), base64.b64encode(png).decode())
            for caption, png in pngs.items()
        )

    def close(self) -> None:
        """Take the widget away: pages that are saved show text, and no dead widgets."""
        if not self.is_open:
            return
        from IPython.display import HTML

        self.is_open = False
        if self.handle is not None:  # where a page does not take outputs back by itself
            self.handle.update(HTML(""))
        for part in (self.box, self.bar, self.text, self.images):
            part.close()


class LiveProgress:
    """Bars of long work: one panel, and a line of text for each that ends."""

    def __init__(self, first: float = 1.0, every: float = 0.5):
        self.first, self.every, self.panel = first, every, Panel()

    def __call__(self, label: str, total: int) -> Advance:
        begun = time.monotonic()
        due, done = begun + self.first, 0
        self.panel.close()

        def advance(count: int) -> None:
            nonlocal due, done
            done += count
            now = time.monotonic()
            if done >= total and self.panel.is_open:
                self.panel.close()
                tell(f"{label}: {total:,} in {duration(now - begun)}")
            elif done < total and now >= due:
                due = now + self.every
                rate = done / (now - begun)
                left = f"ETA {duration((total - done) / rate)}" if rate else ""
                facts = (f"{label}: {done:,}/{total:,} ({done / total:.0%})", f"{rate:.3g}/s", left)
                self.panel.show(done / total, facts)

        return advance


def progress() -> Progress:
    """Bars in a live notebook; elsewhere plain lines at a low rate, with the same facts."""
    return LiveProgress() if is_live() else TextProgress()


def status(run: Run) -> Markdown:
    """Where a run stands, as a table."""
    state, splits = run.dir.status(), run.data.manifest["splits"]
    total = state.get("total")
    share = f" of {total:,} ({state['step'] / total:.0%})" if total else ""
    facts = {
        "run": str(run.folder),
        "preset": str(run.config.preset),
        "state": state["state"].replace("_", " "),
        "step": f"{state['step']:,}{share}",
        "images": ", ".join(f"{count:,} {split}" for split, count in splits.items() if count),
        "computes on": f"{run.device}, {run.precision.name} ({run.precision.reason})",
        "mirror": " and ".join(str(mirror.root) for mirror in run.mirrors) or "none",
    }
    return show(as_table(("", ""), facts.items()))


def show(text: str) -> Markdown:
    """Markdown, as the page shows it."""
    from IPython.display import Markdown

    return Markdown(text)


def sheet(images: np.ndarray, columns: int = 12, side: int = 48) -> Image.Image:
    """uint8 [N,H,W,C] side by side, each enlarged to about `side` pixels."""
    return Image.fromarray(grid(enlarge(images, side), columns=columns, gap=3))


def settings(given: Iterable[str] | str = (), **named: Any) -> list[str]:
    """Overrides as one passes them, and more by name, as in data__path; None leaves one out."""
    more = {name.replace("__", "."): value for name, value in named.items() if value is not None}
    return [*listed(given), *(f"{name}={json.dumps(value)}" for name, value in more.items())]


def place(folder: str | Path) -> Path:
    """A folder of a notebook's work, under the clone's root; on Colab the Drive is asked for, so
    that what is done outlives the machine there."""
    mount_drive()
    return working_folder() / folder


def forecast(run: Run) -> str:
    """How long the training would take here: a few steps are measured, the rest is projected."""
    return cost.forecast(run.config, make_stream(run.config, run.data, run.device).epoch_steps)


def source(run: Run) -> Markdown:
    """The source of the loss that the run is trained with."""
    loss = make_loss(run.config, epoch=1, total=1)
    text = inspect.getsource(loss if inspect.isfunction(loss) else type(loss))
    return show(f"```python\n{text}```")


def share_page(run: Run) -> None:
    """Make the page that draws this model's images in a browser, and say where it lies."""
    from dreamlib.export.page import share

    try:
        page = share(run)
    except (ConfigError, NotThere) as error:  # a GAN, a large network, no weights yet
        return tell(error)
    tell(f"{page} ({page.stat().st_size / 1e6:.1f} MB): download it and open it, or send it")


def history(run: Run) -> None:
    """Every session of a run of late, with what was saved and what was resumed."""
    for line in story(run.dir):
        tell(line)
