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

_IMPORTED = time.monotonic()


def process_age() -> float:
    """Seconds since this process began: set-up and data preparation count against a session too.

    Linux says so itself; elsewhere the age of this import stands in for it.
    """
    stat = Path("/proc/self/stat")
    if not stat.exists():
        return time.monotonic() - _IMPORTED
    ticks = int(stat.read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


@dataclass
class Clock:
    """Says when to save and when to stop.

    The deadline is the budget minus twice the longest save so far and a margin, so that the last
    save ends inside the budget.  `hours` None means no deadline.
    """

    hours: float | None
    save_minutes: float
    margin: float = 5.0  # seconds
    longest_save: float = 0.0
    saved: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        """Seconds until the deadline; infinite without one."""
        if self.hours is None:
            return float("inf")
        return self.hours * 3600 - process_age() - self.margin - 2 * self.longest_save

    def over(self) -> bool:
        return self.left() <= 0

    def save_due(self) -> bool:
        return time.monotonic() - self.saved >= 60 * self.save_minutes

    @contextmanager
    def saving(self) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.saved = time.monotonic()
        self.longest_save = max(self.longest_save, self.saved - start)


class StopFlag:
    """Set by SIGTERM or SIGINT (the notebook's stop button); polled between units of work.

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
        former = {n: signal.signal(n, self._set) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
