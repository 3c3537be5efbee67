"""All mirrors of a run, each carried by a thread of its own: what one suffers is its own matter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from dreamlib.runs.folder import RunDir
from dreamlib.runs.mirror.facts import Facts, of_all
from dreamlib.runs.mirror.uploader import Uploader
from dreamlib.utils.errors import RunError

LEAST, LONGEST = 30.0, 600.0  # seconds that anybody waits for a mirror at the end
_active: dict[tuple[Path, str], Uploader] = {}


@contextmanager
def carrying(
    uploader: Uploader,
    *,
    wait: bool = True,
    stop: Callable[[], bool] = lambda: False,
    left: Callable[[], float] = lambda: LONGEST,
) -> Iterator[Uploader]:
    """Keep a run's uploader going for a while; inside such a block the one that goes already.

    With `wait` the run is ours on the mirror first: RunError when it is somebody else's.  Ends with
    what is new carried, in the seconds `left` of a session, at least 30 and at most LONGEST.
    """
    place = uploader.run.folder, str(uploader.mirror.home)
    if place in _active:
        yield _active[place]
        return
    uploader.thread.start()
    try:
        if wait:
            uploader.ready(stop)
        _active[place] = uploader
        yield uploader
    finally:
        _active.pop(place, None)
        uploader.close(min(LONGEST, max(LEAST, left())))


class Fleet:
    """As one `Uploader`; false when there is none."""

    def __init__(self, run: RunDir, each: Sequence[Uploader]):
        self.run, self.each = run, tuple(each)

    def __bool__(self) -> bool:
        return bool(self.each)

    @contextmanager
    def carrying(self, **how: Any) -> Iterator[Fleet]:
        """`carrying` of each; status.json then says how that ended."""
        try:
            with ExitStack() as stack:
                each = [stack.enter_context(carrying(one, **how)) for one in self.each]
                yield Fleet(self.run, each)
        finally:
            with suppress(OSError, RunError):  # a report: a full disk is told by whoever needs it
                if self:
                    self.run.update_status(**self.facts())

    def request(self) -> None:
        for one in self.each:
            one.request()

    def flush(self, timeout: float) -> bool:
        return all([one.flush(timeout) for one in self.each])

    def due(self) -> bool:
        return any(one.due() for one in self.each)

    @property
    def beats(self) -> bool:
        """Whether the run is ours on one of them."""
        return any(one.owner.beats for one in self.each)

    @property
    def lease_lost(self) -> str:
        return next((one.lease_lost for one in self.each if one.lease_lost), "")

    @property
    def cost(self) -> float:
        return max((one.cost for one in self.each), default=0.0)

    def facts(self) -> Facts:
        return of_all([one.facts() for one in self.each]) if self else {}

    def report(self) -> str:
        return "; ".join(one.report() for one in self.each)
