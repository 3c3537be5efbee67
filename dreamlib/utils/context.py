"""Whom long work talks to, and who may stop it: one frozen `Context` around everything it calls.

The public verbs (`open_run`, `generate`, `evaluate` ...) take `progress`, `say` and `should_stop`
and set them with `using`; what they call asks `progress`, `say` and `should_stop` of this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

from dreamlib.utils.progress import Advance, Progress, silent, tell

Say = Callable[[str], None]
Stop = Callable[[], bool]


@dataclass(frozen=True)
class Context:
    """Without any, a library call is silent but for what it `say`s, and nothing stops it."""

    progress: Progress = silent
    say: Say = tell
    should_stop: Stop = lambda: False


_NOBODY = Context()
_around: ContextVar[Context] = ContextVar("dreamlib", default=_NOBODY)


@contextmanager
def using(
    *, progress: Progress | None = None, say: Say | None = None, should_stop: Stop | None = None
) -> Iterator[None]:
    """Within this block they are the ones asked; None keeps the one around it.

    A thread begins without any: `contextvars.copy_context().run` hands it the one around it.
    """
    given = {"progress": progress, "say": say, "should_stop": should_stop}
    changes = {name: value for name, value in given.items() if value is not None}
    token = _around.set(replace(current(), **changes))
    try:
        yield
    finally:
        _around.reset(token)


def current() -> Context:
    """The one around us."""
    return _around.get()


def progress(label: str, total: int) -> Advance:
    """Open a progress bar of `total` steps; call what it returns with the steps just done."""
    return current().progress(label, total)


def say(text: str) -> None:
    """One line for whoever watches."""
    current().say(text)


def should_stop() -> bool:
    """Whether long work should end now, politely: raise Interrupted."""
    return current().should_stop()
