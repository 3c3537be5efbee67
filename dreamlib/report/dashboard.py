"""The live view of a training: one line of facts, replaced in place where that is possible."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

from dreamlib.progress import duration
from dreamlib.run import Run
from dreamlib.runtime.driver import Tick


def watch(run: Run, ticks: Iterable[Tick], every: float = 15.0) -> None:
    """Drive a training to its end or pause, showing where it stands.

    In a live notebook the line is replaced in place; elsewhere (a terminal, papermill) it is
    printed at most every `every` seconds.
    """
    show = _in_place() or run.say
    begun, due, first = time.monotonic(), 0.0, None
    row: dict[str, Any] = {}
    for tick in ticks:
        first = first if first is not None else tick.step - 1
        row = tick.row or row
        now = time.monotonic()
        if now < due and tick.step < tick.total:
            continue
        due = now + every
        show(line(run, tick, row, (tick.step - first) / (now - begun)))


def line(run: Run, tick: Tick, row: dict[str, Any], rate: float) -> str:
    """Where training stands: step, loss, lambda, speed, time left, age of the last checkpoint."""
    left = (tick.total - tick.step) / rate if rate else float("inf")
    facts = [f"step {tick.step:,}/{tick.total:,} ({tick.step / tick.total:.0%})"]
    if row:
        facts.append(f"loss {row['loss']:.4f} · λ {row['lam']:.3f}")
    facts.append(f"{rate * run.config.train.batch:,.0f} images/s · ETA {duration(left)}")
    newest = max(run.dir.checkpoints.glob("step-*.json"), default=None)
    if newest:
        facts.append(f"last checkpoint {duration(time.time() - newest.stat().st_mtime)} ago")
    return " · ".join(facts)


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
    import os

    return bool(os.environ.get("DREAMLIB_HEADLESS"))
