"""Many notebooks: runs side by side, each run's notebooks in order, again from where it was."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import dreamlib
from dreamlib.notebook.runner.execute import Ending, Leash, execute
from dreamlib.notebook.runner.index_page import index, records
from dreamlib.notebook.runner.job_spec import Job
from dreamlib.notebook.runner.notebooks import to_html
from dreamlib.runs.time_budget import StopFlag
from dreamlib.utils import files
from dreamlib.utils.errors import DreamlibError, RunError, what_failed
from dreamlib.utils.progress import duration, tell

UNFINISHED = 75  # exit code: stopped in good order or out of time; the same command goes on
FAILED = 2
CODES = {"done": 0, "unfinished": UNFINISHED, "failed": FAILED}
BEAT = 15.0  # seconds between two signs of life in status.json


@dataclass
class Batch:
    """Notebooks, `jobs` runs of them at a time; `run` it once.

    Every notebook leaves in its run's folder NAME.ipynb, NAME.html, NAME.json (what went in, and
    how it ended, written last) and, with several jobs, NAME.log.  `out` gets status.json and
    index.html.
    """

    items: list[Job]
    out: Path
    jobs: int = 1
    timeout: float | None = None  # seconds for each notebook
    again: bool = False
    say: Callable[[str], None] = tell
    status: dict[str, Any] = field(default_factory=dict, init=False)
    _mutex: Any = field(default_factory=threading.RLock, init=False)
    _leashes: list[Leash] = field(default_factory=list, init=False)
    _stop: StopFlag = field(default_factory=StopFlag, init=False)
    _env: dict[str, str] = field(default_factory=dict, init=False)

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
            runs = self._begin()
            try:
                self._work(runs)
            finally:
                states = {row["state"] for row in records(self.status)}
                bad = states & {"failed", "killed"}
                state = "failed" if bad else "unfinished" if states - {"done"} else "done"
                self.status["state"] = state
                self._write()
        return CODES[state]

    def _begin(self) -> list[list[Job]]:
        """The jobs of each run; all of them wait."""
        runs: dict[str, list[Job]] = {}
        self.status = {"state": "running", "pid": os.getpid(), "since": time.time(), "runs": {}}
        for item in self.items:
            runs.setdefault(item.run, []).append(item)
            run = self.status["runs"].setdefault(
                item.run, {"folder": str(item.folder), "notebooks": {}}
            )
            run["notebooks"][item.stem] = {"state": "waiting"}
        self.jobs = min(self.jobs, len(runs))
        # Jobs share the cores, and runs their packed images, unless the user has said how.
        shared = {"OMP_NUM_THREADS": str(max(1, _cores() // self.jobs))} if self.jobs > 1 else {}
        if len(runs) > 1:
            shared["DREAMLIB_DATA"] = str(self.out.absolute() / "data")
        self._env = {name: value for name, value in shared.items() if name not in os.environ}
        self._write()
        return list(runs.values())

    def _work(self, runs: list[list[Job]]) -> None:
        with self._stop.listening(), ThreadPoolExecutor(self.jobs) as pool:
            futures = [pool.submit(self._do, run) for run in runs]
            try:
                while wait(futures, timeout=BEAT).not_done:
                    self._write()
            finally:  # a second SIGINT does not wait
                for leash in list(self._leashes):
                    leash.kill()
            for future in futures:  # an error of our own, once all have ended
                future.result()

    def _do(self, run: list[Job]) -> None:
        """The notebooks of a run, in order, up to the first that does not reach its end."""
        after, halted = None, ""
        for item in run:
            if halted:
                self._set(item, state="skipped", note=halted)
            elif not self._stop:
                try:
                    record = self._one(item, after)
                except Exception as error:  # our own
                    self._set(item, state="failed", evalue=str(error))
                    raise
                after, state = record["output"], record["state"]
                halted = "" if state == "done" else f"after {item.stem} ({state})"

    def _one(self, item: Job, after: str | None) -> dict[str, Any]:
        """Execute a notebook, unless that was done -> its manifest.

        `after` is the hash of the output of the one before it, whose run folder it shares.
        """
        inputs = {
            "source": files.sha256_file(item.notebook),
            "parameters": item.parameters,
            "dreamlib": dreamlib.__version__,
            "after": after,
        }
        record = None if self.again else _finished(item, inputs)
        if record is not None:
            if not item.result(".html").is_file():
                self._show(item)
            self._set(item, state="done", seconds=record["seconds"], page=_page(item))
            self.say(f"{item.name}: done before, with the same inputs; --again runs it anew")
            return record
        for kind in (".json", ".html"):
            item.result(kind).unlink(missing_ok=True)
        begun, clock = time.time(), time.monotonic()
        ending = self._execute(item, begun)
        seconds, output = time.monotonic() - clock, item.result(".ipynb")
        record = {
            "notebook": item.stem,
            **asdict(ending),
            "begun": begun,
            "seconds": seconds,
            "inputs": inputs,
            "output": files.sha256_file(output) if output.is_file() else None,
        }
        files.write_json(item.result(".json"), files.seal(record))
        done, page = ending.state == "done", _page(item)
        note = f"asked by {self._stop.reason}" if self._stop and not done else ""
        self._set(item, **asdict(ending), seconds=seconds, page=page, note=note)
        why = "" if done else f" {ending.text()}".rstrip() + (f" ({note})" if note else "")
        shown = f"; page {page}" if page else ""
        self.say(f"{item.name}: {ending.state} after {duration(seconds)}{why}{shown}")
        return record

    def _execute(self, item: Job, since: float) -> Ending:
        """In a kernel of its own, with a page of what came of it."""
        log = item.result(".log") if self.jobs > 1 else None
        self.say(f"{item.name}: begins" + (f", log in {log}" if log else ""))
        self._set(item, state="running", since=since)
        leash = Leash(
            lambda: bool(self._stop),
            self.timeout,
            begun=lambda pid: self._set(item, state="running", since=since, pid=pid),
        )
        self._leashes.append(leash)
        output = item.result(".ipynb")
        try:
            item.folder.mkdir(parents=True, exist_ok=True)
            with open(log, "w", encoding="utf-8") if log else nullcontext() as out:
                ending = execute(item.notebook, output, item.parameters, leash, out, self._env)
        except OSError as error:  # a full disk: the others may go on
            return Ending("failed", None, type(error).__name__, what_failed(error))
        self._show(item)
        return ending

    def _show(self, item: Job) -> None:
        """Its page, of what ran; what was computed stands without one, too."""
        try:
            to_html(item.result(".ipynb"))
        except (DreamlibError, OSError) as error:
            self.say(f"{item.name}: {what_failed(error)}")

    def _set(self, item: Job, **facts: Any) -> None:
        known = {key: value for key, value in facts.items() if value not in (None, "")}
        with self._mutex:
            self.status["runs"][item.run]["notebooks"][item.stem] = known
            self._write()

    def _write(self) -> None:
        with self._mutex:
            files.write_json(self.out / "status.json", {**self.status, "time": time.time()})
            files.write_text(self.out / "index.html", index(self.status, self.out))


def gathered(items: list[Job], out: Path) -> dict[str, Any]:
    """The status of runs that each have one of their own, as one, in `out` with its page."""
    runs: dict[str, Any] = {}
    for run, folder in {item.run: item.folder for item in items}.items():
        known = folder / "status.json"
        runs |= files.read_json(known)["runs"] if known.is_file() else {}
        waiting = {item.stem: {"state": "waiting"} for item in items if item.run == run}
        runs.setdefault(run, {"folder": str(folder), "notebooks": waiting})
    status = {"state": "gathered", "pid": os.getpid(), "time": time.time(), "runs": runs}
    files.write_json(out / "status.json", status)
    files.write_text(out / "index.html", index(status, out))
    return status


def _finished(item: Job, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a notebook that was done with these inputs and whose output is whole."""
    output = item.result(".ipynb")
    try:
        record = files.read_json(item.result(".json"))
    except (OSError, ValueError):
        return None
    same = files.sealed(record) and record["state"] == "done" and record["inputs"] == inputs
    whole = same and output.is_file() and files.sha256_file(output) == record["output"]
    return record if whole else None


def _page(item: Job) -> str | None:
    page = item.result(".html")
    return str(page) if page.is_file() else None


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
