"""The live view of a training: one line of facts, replaced in place where that is possible."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from dreamlib.errors import Interrupted
from dreamlib.host import memory_in_use, platform
from dreamlib.progress import duration
from dreamlib.run import Run
from dreamlib.runtime.courier import describe
from dreamlib.runtime.driver import Tick


def watch(run: Run, ticks: Iterable[Tick], every: float = 15.0) -> None:
    """Drive a training to its end or pause, showing where it stands.

    In a live notebook the line is replaced in place; elsewhere (a terminal, papermill) it is
    printed at most every `every` seconds.  Raises Interrupted when training was asked to stop, so
    that what stands behind it does not begin; a deadline is no reason to: what is left of the
    session's time is for looking at the model as it is, once there is one.
    """
    show = _in_place() or run.say
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
            show(line(run, tick, row, (tick.step - first) / (now - begun)))
    finally:  # at once, even while somebody keeps the traceback of an error in `show`
        if isinstance(ticks, Generator):
            ticks.close()
    status = run.dir.status()
    early = status["state"] == "paused_deadline" and not (run.dir.read_log() and run.dir.stages())
    if early or status["state"] == "interrupted":
        raise Interrupted(f"{run.folder} was paused at step {status['step']:,}")


@contextmanager
def politely() -> Iterator[None]:
    """In a notebook: end it cleanly, with one sentence, when long work was asked to stop.

    Hosted runners take SystemExit(0) for an end and any other exception for a failure, with which
    some of them throw the outputs away.
    """
    try:
        yield
    except Interrupted as error:
        print(f"STOPPED: {error}")  # noqa: T201  to a reader
        sys.exit(0)


def line(run: Run, tick: Tick, row: dict[str, Any], rate: float) -> str:
    """Where training stands: step, loss, lambda, speed, time left, age of the last checkpoint."""
    left = (tick.total - tick.step) / rate if rate else float("inf")
    facts = [f"step {tick.step:,}/{tick.total:,} ({tick.step / tick.total:.0%})"]
    if row:
        facts.append(f"loss {row['loss']:.4f} · λ {row['lam']:.3f}")
    facts.append(f"{rate * run.config.train.batch:,.0f} images/s · ETA {duration(left)}")
    status = run.dir.status()
    return " · ".join([*facts, safety(run, status), *_budget(status), _memory(run)])


def safety(run: Run, status: dict[str, Any]) -> str:
    """Whether the page may be closed now: what is saved here, and what is on the mirror."""
    if not status.get("saved"):
        return "not yet safe to close: no checkpoint yet"
    text = f"last checkpoint {duration(time.time() - status['saved_at'])} ago"
    if status.get("save_seconds"):
        text += f" (took {status['save_seconds']:.1f} s, training waited "
        text += f"{status['blocked_seconds']:.1f} s)"
    if not status.get("mirror"):
        lost = platform() == "colab"
        return f"NOT safe to close, no mirror: {text}" if lost else f"safe to close: {text}"
    behind = status["saved_at"] - status["mirrored_at"]
    late = behind > 120 * run.config.train.mirror_minutes or (status["mirrored"] or -1) < 0
    safe = not (late or status["mirror_fails"] or status["upload"] == "uploading")
    return f"{'safe' if safe else 'not yet safe'} to close: {text}, {describe(status)}"


def _budget(status: dict[str, Any]) -> list[str]:
    left = status.get("left_seconds")
    return [] if left is None else [f"pauses by itself in {duration(max(0.0, left))}"]


def _memory(run: Run) -> str:
    used, there = memory_in_use(run.device)
    total = f" of {there / 2**30:.0f}" if there else ""
    return f"memory {used / 2**30:.1f}{total} GiB"


def _in_place() -> Any:
    """A function that replaces one notebook output, or None where there is no live front end.

    Papermill marks its runs by an environment of its own (no front end), set in notebooks.py.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is None or not hasattr(shell, "kernel") or _headless():
        return None
    from IPython.display import Markdown, display

    handle = display(Markdown("starting"), display_id=True)
    return lambda text: handle.update(Markdown(text))


def _headless() -> bool:
    return bool(os.environ.get("DREAMLIB_HEADLESS"))
