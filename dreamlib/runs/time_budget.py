"""A session's clock: a time budget, when to save, and polite signals."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

MARGIN = 5.0  # seconds at the end of a budget in which nothing new begins
BEGUN = "DREAMLIB_BEGUN"  # when the session of this process's parent began, as `process_age` counts
_IMPORTED = time.monotonic()


def process_start(pid: int) -> int | None:
    """When a process began, in the system's own ticks; None when there is none, or no /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat.rpartition(")")[2].split()[19])


def process_age() -> float:
    """Seconds since this process began: set-up and data preparation count against a session too.

    Linux says so itself; elsewhere the age of this import stands in for it.  A kernel that
    run_notebook started is as old as the command that did so.
    """
    ticks = process_start(os.getpid())
    if ticks is None:
        return time.monotonic() - _IMPORTED
    began = ticks / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - min(began, float(os.environ.get(BEGUN, began)))


@dataclass
class Clock:
    """A session's time budget, counted from the start of this process, and when to save.

    Training's deadline is the budget minus what `reserve` keeps for sampling and scoring, twice
    the longest save so far and a margin, so that the last save ends inside the budget.
    """

    hours: float | None  # None: no deadline
    save_minutes: float
    reserve: float = 0.0  # seconds
    cost: float = 0.0  # seconds: the longest save, with its copy to a mirror
    saved: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        """Seconds until training's deadline; infinite without one."""
        return spare(self.hours) - self.reserve - MARGIN - 2 * self.cost

    def over(self) -> bool:
        return self.left() <= 0

    def save_due(self) -> bool:
        return self.since() >= 60 * self.save_minutes

    def since(self) -> float:
        """Seconds since a save began."""
        return time.monotonic() - self.saved

    def reset(self) -> None:
        """A save begins now; the next is due `save_minutes` later."""
        self.saved = time.monotonic()


def spare(hours: float | None) -> float:
    """Seconds left of a session's budget; infinite without one."""
    return float("inf") if hours is None else hours * 3600 - process_age()


# The notebook's stop button; a system that shuts down; a closed terminal; what batch systems send
# before a job's time is up.  One that the parent had this process ignore (nohup) stays ignored.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
POLITE = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


class StopFlag:
    """Set by a signal that asks to stop; polled between units of work.

    A handler that only sets a flag cannot tear a file.  The former handlers come back on exit;
    a second SIGINT interrupts at once.
    """

    def __init__(self) -> None:
        self.reason = ""

    def __bool__(self) -> bool:
        return bool(self.reason)

    def _set(self, number: int, frame: object) -> None:
        if self.reason and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name

    @contextmanager
    def listening(self) -> Iterator[StopFlag]:
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        former = {n: signal.getsignal(n) for n in POLITE}
        former = {n: old for n, old in former.items() if old not in (signal.SIG_IGN, None)}
        try:
            for number in former:
                signal.signal(number, self._set)
            yield self
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
                outer = getattr(handler, "__self__", None)
                if isinstance(outer, StopFlag):  # work within work: it was asked to stop as well
                    outer.reason = outer.reason or self.reason
