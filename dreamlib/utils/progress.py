"""One progress helper for all long work: honest, throttled, with an ETA.

A `Progress` is a function that opens a bar and returns its `advance`.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable

Advance = Callable[[int], None]
Progress = Callable[[str, int], Advance]


CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|\r(?!\n)")


class Screen:
    """Standard output, or `name`, for lines that people read and that never end the work.

    What it cannot show is escaped, as are control characters, which names and files of others may
    hold.  Once nobody reads it (a closed pipe or terminal, a full disk), the rest goes nowhere.
    """

    def __init__(self, name: str = "stdout"):
        self.name = name

    def write(self, text: str) -> None:
        code = getattr(getattr(sys, self.name), "encoding", None) or "utf-8"
        shown = CONTROL.sub(lambda match: repr(match[0])[1:-1], text)
        self._try("write", shown.encode(code, "backslashreplace").decode(code))

    def flush(self) -> None:
        self._try("flush")

    def _try(self, method: str, *values: str) -> None:
        stream = getattr(sys, self.name)
        if stream is None:  # a process may have been given none
            return
        try:
            getattr(stream, method)(*values)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if self.name != "stderr":
                tell(f"nobody can read the output any more ({error.strerror}): going on", "stderr")


def tell(text: object, name: str = "stdout") -> None:
    """Print a line to `Screen(name)`."""
    print(text, file=Screen(name), flush=True)


def silent(label: str, total: int) -> Advance:
    return lambda count: None


def duration(seconds: float) -> str:
    """3725 -> '1 h 02 min'; 65 -> '1 min 05 s'; 8.2 -> '8 s'."""
    whole = max(0, round(seconds))  # a clock may have been set back
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole} s"


class TextProgress:
    """Lines of plain text: the first after `first` seconds, then at most one every `every`.

    Plain text reads the same in a terminal, in a notebook and in papermill's log, and a low rate
    keeps a hosted notebook's page alive.  Short jobs print nothing until they finish.
    """

    def __init__(self, every: float = 10.0, first: float = 3.0, show: Callable[[str], None] = tell):
        self.every, self.first, self.show = every, first, show

    def __call__(self, label: str, total: int) -> Advance:
        start = time.monotonic()
        due, done, shown = start + self.first, 0, False

        def advance(count: int) -> None:
            nonlocal due, done, shown
            done += count
            now = time.monotonic()
            finished = done >= total
            if now < due and not (finished and shown):
                return
            seconds = now - start
            rate = done / seconds if seconds else 0.0
            left = "done" if finished else f"ETA {duration((total - done) / rate)}" if rate else ""
            text = f"{label}: {done:,}/{total:,} ({done / total:.0%}) · {rate:.3g}/s · {left}"
            self.show(text)
            due, shown = now + self.every, True

        return advance
