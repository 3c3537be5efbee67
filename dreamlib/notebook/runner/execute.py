"""One notebook in one kernel: papermill executes it, and a leash ends it in time, in good order."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from dreamlib.runs.time_budget import BEGUN, process_age
from dreamlib.utils.errors import ConfigError
from dreamlib.utils.progress import Screen

PAUSED = "PAUSED: "  # begins a line of a notebook whose time budget ended before its work


@dataclass(frozen=True)
class Ending:
    """How a notebook ended, and where: `cell` is the number in its `In [ ]`, if one is known.

    state   done      every cell ran
            failed    a cell raised `ename`: `evalue`
            stopped   its time budget ended before its work, it left by sys.exit(), or it was asked
                      to stop; `evalue` is the line that says so
            timeout   its time was up
            killed    its process died
    """

    state: str
    cell: int | None = None
    ename: str = ""
    evalue: str = ""

    def text(self) -> str:
        """'in cell 4: ValueError: no such thing', as far as it is known."""
        where = f"in cell {self.cell}" if self.cell is not None else ""
        return ": ".join(part for part in (where, self.ename, self.evalue) if part)


@dataclass
class Leash:
    """Ends a kernel when `stop()` says so or after `timeout` seconds: SIGTERM to its process group,
    at which training saves, and `grace` seconds later SIGKILL to all that descends from it."""

    stop: Callable[[], bool] = lambda: False
    timeout: float | None = None
    grace: float = 30.0
    begun: Callable[[int], None] = lambda pid: None  # told the kernel's process id
    why: str = field(default="", init=False)  # stopped, timeout: what it was asked to end for
    pid: int | None = field(default=None, init=False)  # it leads a process group of its own
    _family: list[Any] = field(default_factory=list, init=False)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Whatever happens inside, no process of the kernel's is left behind."""
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(over,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
            self.kill()
            self.pid = None  # the system may give the number to another process

    def hold(self, pid: int) -> None:
        """The kernel has begun."""
        self.pid = pid
        self.begun(pid)

    def _watch(self, over: threading.Event) -> None:
        limit = float("inf") if self.timeout is None else time.monotonic() + self.timeout
        while not (self.why and self.pid):  # one that has not begun is waited for
            if over.wait(0.1):
                return
            late = "timeout" if time.monotonic() > limit else ""
            self.why = self.why or ("stopped" if self.stop() else late)
        self._family = _descendants(self.pid)
        _signal_group(self.pid, signal.SIGTERM)
        if not over.wait(self.grace):
            self.kill()

    def kill(self) -> None:
        """At once: the kernel, its group, and descendants that left the group."""
        if (pid := self.pid) is None:
            return
        import psutil

        family = [*self._family, *_descendants(pid)]
        _signal_group(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
        for process in family:
            with suppress(psutil.Error):  # it is gone, or not ours
                process.kill()


def _descendants(pid: int) -> list[Any]:
    import psutil  # ipykernel needs it, too

    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def _signal_group(pid: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # it is gone, or going
        getattr(os, "killpg", os.kill)(pid, number)


def execute(
    path: Path,
    output: Path,
    parameters: dict[str, Any],
    leash: Leash,
    out: IO[str] | None = None,
    env: Mapping[str, str] | None = None,
) -> Ending:
    """Run a notebook into `output`, saved cell by cell -> how it ended.

    What cells print goes to `out`, else to this process's own output.  The kernel works in the
    current folder with the variables `env` set besides.
    """
    _prepare_papermill()
    import nbformat
    from nbclient.exceptions import DeadKernelError
    from papermill import PapermillExecutionError, execute_notebook

    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with leash.watching():
            done = execute_notebook(
                *map(_plain, (path, output)),
                parameters=parameters,
                kernel_name="python3",
                language="python",
                kernel_manager_class=_manager(leash, env or {}, out),
                progress_bar=False,
                stdout_file=out or Screen(),
                stderr_file=out,  # else only the notebook has it
                iopub_timeout=60,  # the default of 4 s fails on a busy machine
            )
        ending = _last(done.cells)
    except PapermillExecutionError as error:
        ending = Ending("failed", error.exec_count, error.ename, _short(error.evalue))
    except DeadKernelError:
        ending = replace(_last(nbformat.read(output, 4).cells), state="killed")
    except RuntimeError as error:  # the kernel did not begin
        ending = Ending("failed", None, type(error).__name__, _short(str(error)))
    return ending if ending.state == "done" else replace(ending, state=leash.why or ending.state)


def _prepare_papermill() -> None:
    needed = ("papermill", "ipykernel", "nbconvert", "psutil")
    if absent := " ".join(name for name in needed if find_spec(name) is None):
        raise ConfigError(f"notebooks need {absent}: {sys.executable} -m pip install {absent}")
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # our ending says it


def _manager(leash: Leash, env: Mapping[str, str], out: IO[str] | None) -> type:
    """A kernel manager class whose kernel is this interpreter's, and on the leash.

    Variables tell it that nobody reads it, and that its session began with this command's.
    DREAMLIB_RUN is for a served page: here, parameters name the run.
    """
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    marks = {"DREAMLIB_HEADLESS": "1", "DREAMLIB_RUN": "", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    if hasattr(time, "CLOCK_BOOTTIME"):
        marks[BEGUN] = str(time.clock_gettime(time.CLOCK_BOOTTIME) - process_age())
    ours: dict[str, Any] = {"cwd": os.getcwd(), "env": {**os.environ, **marks, **env}}
    ours |= {"stdout": out, "stderr": out} if out else {}
    words = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]

    class Manager(AsyncKernelManager):
        # Not the kernel that is called python3 here: a hub's may be another interpreter's.
        kernel_spec = KernelSpec(  # pyright: ignore  a property there, asked for nothing else
            argv=words, display_name="Python 3", language="python"
        )

        async def start_kernel(self, **options: Any) -> None:
            more = [*options.pop("extra_arguments", []), "--log-level=ERROR"]
            await super().start_kernel(extra_arguments=more, **{**options, **ours})
            provisioner: Any = self.provisioner
            leash.hold(provisioner.pid)

    return Manager


def _last(cells: list[Any]) -> Ending:
    """Where the last cell that began stands: done, unless it left by sys.exit or was paused."""
    number, paused, outputs, lines = 0, None, [], [""]
    for cell in cells:
        if cell["cell_type"] == "code" and cell["metadata"].get("papermill", {}).get("start_time"):
            number = cell["execution_count"] or number + 1  # it may die before it tells its own
            outputs = cell["outputs"]
            printed = "".join(out["text"] for out in outputs if out.get("name") == "stdout")
            lines = printed.splitlines() or [""]
            if reason := next((line for line in lines if line.startswith(PAUSED)), ""):
                paused = paused or Ending("stopped", number, "", _short(reason))
    if any(out.get("ename") == "SystemExit" for out in outputs):
        return Ending("stopped", number, "", _short(lines[-1]))
    return paused or Ending("done", number or None)


def _short(text: str) -> str:
    return " ".join(text.split())[:300]


def _plain(path: Path) -> str:
    """Papermill fills braces in paths with parameters: these are the path's own."""
    return str(path.absolute()).replace("{", "{{").replace("}", "}}")
