"""The live view of a training: what it does, how far it is, and whether the page may be closed."""

from __future__ import annotations

import io
import time
from collections.abc import Generator, Iterable
from typing import Any

from dreamlib.notebook.session import Panel, is_live
from dreamlib.report.figures.palette import BLUE
from dreamlib.report.figures.style import log_scale, new_figure, style
from dreamlib.runs.mirror.facts import at_stake, lines
from dreamlib.runs.run import Run
from dreamlib.training.loop import Tick
from dreamlib.utils.errors import Interrupted, OutOfTime
from dreamlib.utils.platform import memory_in_use, platform
from dreamlib.utils.progress import duration, tell

LOOK = 10.0  # seconds between two looks for newer pictures


def watch(run: Run, ticks: Iterable[Tick], every: float | None = None) -> None:
    """Drive a training to its end or pause, showing where it stands.

    In a live notebook one panel is replaced in place, with the loss curve and the newest previews;
    elsewhere (a terminal, papermill) the same facts are a line of text every `every` seconds.
    Raises Interrupted when training was asked to stop, OutOfTime when the budget paused it.
    """
    view = _Live(run) if is_live() else None
    every = every if every is not None else 1.0 if view else 15.0
    begun, due, first = time.monotonic(), 0.0, None
    entry: dict[str, Any] = {}
    try:
        for tick in ticks:
            first = first if first is not None else tick.step - 1
            entry = tick.row or entry
            now = time.monotonic()
            if now < due and tick.step < tick.total:
                continue
            due = now + every
            text = facts(run, tick, entry, (tick.step - first) / (now - begun))
            if view:
                view.show(tick, text)
            else:
                run.say(" · ".join(text))
    finally:  # at once, even while somebody keeps the traceback of an error in `show`
        if isinstance(ticks, Generator):
            ticks.close()
        if view:
            view.close()
    status = run.dir.status()
    where = f"{run.folder} was paused at step {status['step']:,}"
    if status["state"] == "paused_deadline":
        raise OutOfTime(f"{where}; what follows shows the model as it is")
    if status["state"] == "interrupted":
        raise Interrupted(where)


class _Live:
    """Facts, the loss so far, and the newest previews, in one widget; a line when it is over."""

    def __init__(self, run: Run):
        self.run, self.panel, self.due = run, Panel(), 0.0
        self.facts: list[str] = []

    def show(self, tick: Tick, facts: list[str]) -> None:
        self.facts = facts
        self.panel.show(tick.step / tick.total, facts)
        if time.monotonic() >= self.due or tick.step == tick.total:
            self.due = time.monotonic() + LOOK
            self.panel.pictures(self._pictures())

    def _pictures(self) -> dict[str, bytes]:
        entries, stages = self.run.dir.read_log(), self.run.dir.stages()
        pictures = {"the loss so far": loss_png(entries)} if len(entries) > 1 else {}
        for newest in stages[-1:]:
            raw = newest.with_name(f"{newest.stem}-raw.png")
            files = {"newest preview: averaged weights": newest, "the same: raw weights": raw}
            pictures |= {name: path.read_bytes() for name, path in files.items() if path.exists()}
        return pictures

    def close(self) -> None:
        self.panel.close()
        if self.facts:
            tell(" · ".join(self.facts[:3]))


@style()
def loss_png(entries: list[dict[str, Any]]) -> bytes:
    """The loss so far, as a small PNG picture."""
    fig, (axes,) = new_figure(3.6, 2.4)
    axes.plot(*zip(*((entry["step"], entry["loss"]) for entry in entries)), color=BLUE)
    axes.set(xlabel="optimizer step", title="training loss")
    log_scale(axes)
    file = io.BytesIO()
    fig.savefig(file, format="png", dpi=100)
    return file.getvalue()


def facts(run: Run, tick: Tick, entry: dict[str, Any], rate: float) -> list[str]:
    """Where training stands: step, loss, lambda or p, speed, time left, the last checkpoint."""
    left = (tick.total - tick.step) / rate if rate else float("inf")
    text = [f"step {tick.step:,}/{tick.total:,} ({tick.step / tick.total:.0%})"]
    if entry:
        own = f"λ {entry['lam']:.3f}" if "lam" in entry else f"p {entry['p']:.3f}"
        text.append(f"loss {entry['loss']:.4f} · {own}")
    text.append(f"{rate * run.config.train.batch:,.0f} images/s · ETA {duration(left)}")
    if rates := entry.get("images_per_s_by_rank"):  # while each computes
        text.append("each " + ", ".join(f"{each:,.0f}/s" for each in rates))
    status = run.dir.status()
    text.append(safety(run, status))
    if (budget := status.get("left_seconds")) is not None:
        text.append(f"pauses by itself in {duration(max(0.0, budget))}")
    used, there = memory_in_use(run.device)
    total = f" of {there / 2**30:.0f}" if there else ""
    return [*text, f"memory {used / 2**30:.1f}{total} GiB"]


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
    often = run.config.train.mirror_minutes or run.config.train.save_minutes
    late = behind > 120 * often or (status["mirrored"] or -1) < 0
    safe = not (late or status["mirror_fails"] or status["upload"] in ("uploading", "refused"))
    words = [text, *lines(status), at_stake(status)]
    return f"{'safe' if safe else 'not yet safe'} to close: {', '.join(words)}"
