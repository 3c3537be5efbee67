"""The live view of a training: what it does, how far it is, and whether the page may be closed."""

from __future__ import annotations

import io
import time
from collections.abc import Generator, Iterable
from typing import Any

from dreamlib.notebook.session import Panel, is_live
from dreamlib.report.figures.palette import BLUE
from dreamlib.report.figures.style import log_scale, new_figure, style
from dreamlib.runs.mirror.uploader import describe
from dreamlib.runs.run import Run
from dreamlib.training.loop import Tick
from dreamlib.utils.errors import Interrupted, OutOfTime
from dreamlib.utils.platform import memory_in_use, platform
from dreamlib.utils.progress import duration, tell


def watch(run: Run, ticks: Iterable[Tick], every: float | None = None) -> None:
    """Drive a training to its end or pause, showing where it stands.

    In a live notebook one panel is replaced in place, with the loss curve and the newest previews;
    elsewhere (a terminal, papermill) the same facts are a line of text every `every` seconds.
    Raises Interrupted when training was asked to stop, OutOfTime when the budget paused it.
    """
    view = _Live(run) if is_live() else _Lines(run)
    every = view.every if every is None else every
    begun, due, first = time.monotonic(), 0.0, None
    row: dict[str, Any] = {}
    try:
        for tick in ticks:
            first = first if first is not None else tick.step - 1
            row = tick.row or row
            now = time.monotonic()
            if now < due and tick.step < tick.total:
                continue
            due = now + every
            view.show(tick, facts(run, tick, row, (tick.step - first) / (now - begun)))
    finally:  # at once, even while somebody keeps the traceback of an error in `show`
        if isinstance(ticks, Generator):
            ticks.close()
        view.close()
    status = run.dir.status()
    where = f"{run.folder} was paused at step {status['step']:,}"
    if status["state"] == "paused_deadline":
        raise OutOfTime(f"{where}; what follows shows the model as it is")
    if status["state"] == "interrupted":
        raise Interrupted(where)


class _Lines:
    """Facts as lines of text."""

    every = 15.0

    def __init__(self, run: Run):
        self.say = run.say

    def show(self, tick: Tick, told: list[str]) -> None:
        self.say(" · ".join(told))

    def close(self) -> None:
        pass


CAPTIONS = ("the loss so far", "newest preview: averaged weights", "the same: raw weights")


class _Live:
    """Facts, the loss so far, and the newest previews, in one widget; a line when it is over."""

    every = 1.0
    pictures = 10.0  # seconds between two looks for newer ones

    def __init__(self, run: Run):
        self.run, self.told = run, [""]
        self.panel: Panel | None = None  # from the first step on: the banner stands above it
        self.due = 0.0

    def show(self, tick: Tick, told: list[str]) -> None:
        self.told = told
        self.panel = self.panel or Panel(CAPTIONS)
        self.panel.show(tick.step / tick.total, told)
        if time.monotonic() >= self.due or tick.step == tick.total:
            self.due = time.monotonic() + self.pictures
            for slot, png in enumerate(self._pictures()):
                if png is not None:
                    self.panel.picture(slot, png)

    def _pictures(self) -> list[bytes | None]:
        rows, stages = self.run.dir.read_log(), self.run.dir.stages()
        found: list[bytes | None] = [loss_png(rows) if len(rows) > 1 else None]
        if stages:  # averaged weights, and the raw ones beside them
            raw = stages[-1].with_name(f"{stages[-1].stem}-raw.png")
            found += [path.read_bytes() if path.exists() else None for path in (stages[-1], raw)]
        return found

    def close(self) -> None:
        if self.panel is not None:
            self.panel.close()
            tell(" · ".join(self.told[:3]))


@style()
def loss_png(rows: list[dict[str, Any]]) -> bytes:
    """The loss so far, as a small PNG picture."""
    fig, (axes,) = new_figure(3.6, 2.4)
    axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], color=BLUE)
    axes.set(xlabel="optimizer step", title="training loss")
    log_scale(axes)
    file = io.BytesIO()
    fig.savefig(file, format="png", dpi=100)
    return file.getvalue()


def facts(run: Run, tick: Tick, row: dict[str, Any], rate: float) -> list[str]:
    """Where training stands: step, loss, lambda or p, speed, time left, the last checkpoint."""
    left = (tick.total - tick.step) / rate if rate else float("inf")
    told = [f"step {tick.step:,}/{tick.total:,} ({tick.step / tick.total:.0%})"]
    if row:
        own = f"λ {row['lam']:.3f}" if "lam" in row else f"p {row['p']:.3f}"
        told.append(f"loss {row['loss']:.4f} · {own}")
    told.append(f"{rate * run.config.train.batch:,.0f} images/s · ETA {duration(left)}")
    status = run.dir.status()
    told.append(safety(run, status))
    if (budget := status.get("left_seconds")) is not None:
        told.append(f"pauses by itself in {duration(max(0.0, budget))}")
    return [*told, _memory(run)]


def safety(run: Run, status: dict[str, Any]) -> str:
    """Whether the page may be closed now: what is saved here, and what is on the mirror."""
    if not status.get("saved"):
        return "not yet safe to close: no checkpoint yet"
    text = f"last checkpoint {duration(time.time() - status['saved_at'])} ago"
    if status.get("save_seconds"):
        text += f" (took {status['save_seconds']:.1f} s, training waited "
        text += f"{status['blocked_seconds']:.1f} s)"
    if not status.get("mirror"):
        where = platform()
        if where == "colab":
            return f"NOT safe to close, no mirror: {text}"
        if where == "kaggle":  # of an interactive session, nothing is kept by itself
            return f"safe to close only by 'Save & Run All', or with files kept: {text}"
        return f"safe to close: {text}"
    behind = status["saved_at"] - status["mirrored_at"]
    late = behind > 120 * run.config.train.mirror_minutes or (status["mirrored"] or -1) < 0
    safe = not (late or status["mirror_fails"] or status["upload"] == "uploading")
    return f"{'safe' if safe else 'not yet safe'} to close: {text}, {describe(status)}"


def _memory(run: Run) -> str:
    used, there = memory_in_use(run.device)
    total = f" of {there / 2**30:.0f}" if there else ""
    return f"memory {used / 2**30:.1f}{total} GiB"
