"""Many notebooks: runs side by side, each run's notebooks in order, again from where it was."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dreamlib.notebook.runner.execute import Ending, Leash, execute
from dreamlib.notebook.runner.index_page import index, rows
from dreamlib.notebook.runner.job_spec import Planned
from dreamlib.notebook.runner.notebooks import to_html
from dreamlib.runs.time_budget import StopFlag
from dreamlib.utils import files
from dreamlib.utils.errors import DreamlibError, RunError, what_failed
from dreamlib.utils.progress import duration, tell

UNFINISHED = 75  # exit code: stopped stop_cleanly or out of time; the same command goes on
FAILED = 2
BEAT = 15.0  # seconds between two signs of life in status.json


@dataclass
class Batch:
    """Notebooks, `jobs` runs of them at a time; `run` it once.

    Every notebook leaves in its run's folder NAME.ipynb, NAME.html, NAME.json (what went in, and
    how it ended, written last) and, with several jobs, NAME.log.  `out` gets status.json and
    index.html.
    """

    items: list[Planned]
    out: Path
    jobs: int = 1
    timeout: float | None = None  # seconds for each notebook
    again: bool = False
    say: Callable[[str], None] = tell
    status: dict[str, Any] = field(default_factory=dict, init=False)
    runs: dict[str, list[Planned]] = field(default_factory=dict, init=False)
    _mutex: Any = field(default_factory=threading.RLock, init=False)
    _leashes: dict[str, Leash] = field(default_factory=dict, init=False)
    _stop: StopFlag = field(default_factory=StopFlag, init=False)

    def run(self) -> int:
        """Do what is not yet done -> the exit code: 0, UNFINISHED or FAILED.

        SIGINT and SIGTERM end the kernels in good order; the same command then goes on.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        with open(self.out / ".lock", "a+b") as file:
            if not files.try_lock(file):
                raise RunError(
                    f"another command runs notebooks in {self.out}: wait for it, or use --out"
                )
            files.sweep(self.out)
            self._begin()
            try:
                with self._stop.listening(), ThreadPoolExecutor(self.jobs) as pool:
                    self._watch([pool.submit(self._do, run) for run in self.runs.values()])
            finally:
                code = self.code()
                self.status["state"] = {0: "done", FAILED: "failed"}.get(code, "unfinished")
                self._write()
        return code

    def _begin(self) -> None:
        self.status = {"state": "running", "pid": os.getpid(), "since": time.time(), "runs": {}}
        for item in self.items:
            self.runs.setdefault(item.run, []).append(item)
            run = {"folder": str(item.folder), "notebooks": {}}
            facts = self.status["runs"].setdefault(item.run, run)
            facts["notebooks"][item.stem] = {"state": "waiting"}
        self.jobs = min(self.jobs, len(self.runs))
        self._write()

    def code(self) -> int:
        states = {facts["state"] for _, _, facts in rows(self.status)}
        if states & {"failed", "killed"}:
            return FAILED
        return UNFINISHED if states - {"done"} else 0

    def _watch(self, futures: list[Future[None]]) -> None:
        try:
            while wait(futures, timeout=BEAT).not_done:
                self._write()
        finally:  # a second SIGINT does not wait
            for leash in list(self._leashes.values()):
                leash.kill()
        for run, future in zip(self.runs.values(), futures):
            if error := future.exception():  # of our own: it is raised below, once all is told
                for item in run:
                    if self.status["runs"][item.run]["notebooks"][item.stem]["state"] == "running":
                        self._set(item, state="failed", evalue=str(error))
        for future in futures:
            future.result()

    # ------------------------------------------------------------------ a run

    def _do(self, run: list[Planned]) -> None:
        """Its notebooks, in order, up to the first that does not reach its end."""
        after, halted = None, ""
        for item in run:
            if halted:
                self._set(item, state="skipped", note=halted)
            elif not self._stop:
                record = self._one(item, after)
                after, state = record["output"], record["state"]
                halted = "" if state == "done" else f"after {item.stem} ({state})"

    def _one(self, item: Planned, after: str | None) -> dict[str, Any]:
        """Execute a notebook, unless that was done -> its manifest."""
        inputs = _inputs(item, after)
        record = None if self.again else _finished(item, inputs)
        if record:
            if not item.result(".html").is_file():
                self._show(item)
            self._set(item, state="done", seconds=record["seconds"], page=_page(item))
            self.say(f"{item.name}: done before, with the same inputs; --again runs it anew")
            return record
        for kind in (".json", ".html"):
            item.result(kind).unlink(missing_ok=True)
        log = item.result(".log") if self.jobs > 1 else None
        self.say(f"{item.name}: begins" + (f", log in {log}" if log else ""))
        begun, clock = time.time(), time.monotonic()
        self._set(item, state="running", since=begun)
        ending = self._execute(item, log, begun)
        output = item.result(".ipynb")
        record = {
            "notebook": item.stem,
            **asdict(ending),
            "begun": begun,
            "seconds": time.monotonic() - clock,
            "inputs": inputs,
            "output": files.sha256_file(output) if output.is_file() else None,
        }
        files.write_json(item.result(".json"), files.seal(record))
        self._ended(item, ending, record["seconds"])
        return record

    def _execute(self, item: Planned, log: Path | None, since: float) -> Ending:
        """In a kernel of its own, with a page of what came of it."""
        item.folder.mkdir(parents=True, exist_ok=True)
        leash = self._leashes[item.name] = Leash(lambda: bool(self._stop), self.timeout)
        try:
            with open(log, "w", encoding="utf-8") if log else nullcontext() as out:
                ending = execute(
                    item.notebook,
                    item.result(".ipynb"),
                    item.parameters,
                    leash,
                    out=out,
                    env=self._shared(),
                    begun=lambda pid: self._set(item, state="running", since=since, pid=pid),
                )
        except OSError as error:  # a full disk: the others may go on
            return Ending("failed", None, type(error).__name__, what_failed(error))
        self._show(item)
        return ending

    def _show(self, item: Planned) -> None:
        """Its page, of what ran; what was computed stands without one, too."""
        try:
            to_html(item.result(".ipynb"))
        except (DreamlibError, OSError) as error:
            self.say(f"{item.name}: {what_failed(error)}")

    def _ended(self, item: Planned, ending: Ending, seconds: float) -> None:
        page = _page(item)
        note = f"asked by {self._stop.reason}" if self._stop and ending.state != "done" else ""
        self._set(item, **asdict(ending), seconds=seconds, page=page, note=note)
        text = f"{item.name}: {ending.state} after {duration(seconds)}"
        if ending.state != "done":
            text = f"{text} {ending.text()}".rstrip() + (f" ({note})" if note else "")
        self.say(text + (f"; page {page}" if page else ""))

    def _shared(self) -> dict[str, str]:
        """Jobs share the cores, and runs their packed images, unless the user has said how."""
        found = {}
        if self.jobs > 1:
            found["OMP_NUM_THREADS"] = str(max(1, _cores() // self.jobs))
        if len(self.runs) > 1:
            found["DREAMLIB_DATA"] = str(self.out.absolute() / "data")
        return {name: value for name, value in found.items() if name not in os.environ}

    # ------------------------------------------------------------------ telling

    def _set(self, item: Planned, **facts: Any) -> None:
        known = {key: value for key, value in facts.items() if value not in (None, "")}
        with self._mutex:
            self.status["runs"][item.run]["notebooks"][item.stem] = known
            self._write()

    def _write(self) -> None:
        with self._mutex:
            files.write_json(self.out / "status.json", {**self.status, "time": time.time()})
            files.write_text(self.out / "index.html", index(self.status, self.out))


def _inputs(item: Planned, after: str | None) -> dict[str, Any]:
    """What a notebook's result depends on; `after` is the output of the one before it, whose run
    folder it shares."""
    from dreamlib import __version__

    return {
        "source": files.sha256_file(item.notebook),
        "parameters": item.parameters,
        "dreamlib": __version__,
        "after": after,
    }


def _finished(item: Planned, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a notebook that was done with these inputs and whose output is whole."""
    output = item.result(".ipynb")
    try:
        record = files.read_json(item.result(".json"))
    except (OSError, ValueError):
        return None
    same = files.sealed(record) and record["state"] == "done" and record["inputs"] == inputs
    whole = same and output.is_file() and files.sha256_file(output) == record["output"]
    return record if whole else None


def _page(item: Planned) -> str | None:
    page = item.result(".html")
    return str(page) if page.is_file() else None


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
