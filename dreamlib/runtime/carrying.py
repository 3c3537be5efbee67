"""When a run's courier goes: while something long is done, started and ended in one place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dreamlib.errors import RunError
from dreamlib.runtime.courier import Courier

LONGEST = 600.0  # seconds that anybody waits for a mirror at the end

_active: dict[Path, Courier] = {}


@contextmanager
def carrying(
    courier: Courier,
    *,
    wait: bool = True,
    stop: Callable[[], bool] = lambda: False,
    patience: Callable[[], float] = lambda: LONGEST,
) -> Iterator[Courier]:
    """Keep a run's courier going for a while; inside such a block the one that goes already.

    Begins by waiting until the run is ours on the mirror, with RunError when it is somebody
    else's (`wait` False: that is only said).  Ends with what is new carried, in at most
    `patience()` seconds.
    """
    folder = courier.job.dir.folder
    if folder in _active:
        yield _active[folder]
        return
    courier.start()
    try:
        if wait:
            courier.ready(stop)
        _active[folder] = courier
        yield courier
    finally:
        _active.pop(folder, None)
        courier.close(patience())
        with suppress(OSError, RunError):  # a report: a full disk is told by whoever needs it
            courier.job.dir.update_status(**courier.facts())
