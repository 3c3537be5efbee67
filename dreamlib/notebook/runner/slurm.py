"""Commands as jobs of a Slurm cluster, by submitit.

A job is asked to stop before its time is up, saves, and goes back into the queue.  What is done is
decided by our own files: Slurm's exit codes say 0 for a node that failed (srun, 22.05).
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreamlib.config.load import parse_value
from dreamlib.notebook.runner.jobs import FAILED, UNFINISHED
from dreamlib.runs.time_budget import StopFlag
from dreamlib.utils import files
from dreamlib.utils.errors import ConfigError

DELAY = 120  # seconds before the end of its time at which a job is asked to stop
LAST_SAVE = 60.0  # seconds that its command may take for it
LOOK = 5.0  # seconds between two looks at the queue
TRIES = 3  # jobs in a row that end without a word of ours
NEVER = ("PartitionNodeLimit", "PartitionTimeLimit", "BadConstraints", "InvalidQOS", "Dependency")
_running: list[subprocess.Popen[bytes]] = []  # in a job: its command


@dataclass(frozen=True)
class Work:
    """A command that goes on where it was, and the file that will hold its exit code."""

    name: str
    command: tuple[str, ...]
    record: Path

    def __call__(self) -> None:
        """In a job.  One that Slurm thinks dead may still run: its end is waited for."""
        self.record.parent.mkdir(parents=True, exist_ok=True)
        with open(self.record.with_suffix(".lock"), "a+b") as file:
            while not files.try_lock(file):
                time.sleep(1.0)
            # handed on, so that the command holds it even when this process is killed
            child = subprocess.Popen(self.command, pass_fds=(file.fileno(),))
            _running.append(child)
            while child.poll() is None:  # wait() would hold a lock that `checkpoint` needs
                time.sleep(0.2)
            files.write_json(self.record, {"code": child.returncode})

    def checkpoint(self) -> Any:
        """In a job whose time is nearly up: the command saves, and the job is queued again."""
        from submitit.helpers import DelayedSubmission

        for child in _running:
            child.terminate()
        for child in _running:
            with suppress(subprocess.TimeoutExpired):  # the next job waits for its end
                child.wait(LAST_SAVE)
        return DelayedSubmission(self)

    def code(self) -> int | None:
        """The command's exit code; None while it has not ended by itself."""
        try:
            return files.check_fields(files.read_json(self.record), code=int)["code"]
        except (OSError, ValueError):
            return None


def options_of(text: str) -> dict[str, Any]:
    """'partition=gpu,time=120,gpus_per_node=1' -> what submitit's SlurmExecutor takes."""
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    if any(not (name.strip() and equals) for name, equals, _ in pairs):
        raise ConfigError(f"--slurm reads NAME=value,...: partition=gpu,time=120, not {text!r}")
    found = {name.strip(): parse_value(value, "--slurm") for name, _, value in pairs}
    if not isinstance(found.get("time", 1), int):
        raise ConfigError(f"--slurm time is in whole minutes, not {found['time']!r}")
    return found


@dataclass
class Cluster:
    """Works as jobs, one each, watched until all are done; `run` it once.

    `home` keeps their numbers and logs, so that the same command finds the jobs that it began.
    """

    works: Sequence[Work]
    options: dict[str, Any]
    home: Path
    say: Callable[[str], None]
    jobs: dict[str, dict[str, int]] = field(default_factory=dict, init=False)
    told: set[tuple[str, str]] = field(default_factory=set, init=False)

    def run(self) -> int:
        """The exit code: 0, UNFINISHED or FAILED.  A signal ends the watching, not the jobs."""
        executor, book = self._executor(), self.home / "jobs.json"
        known = files.read_json(book) if book.is_file() else {}
        self.jobs = {name: {"id": job["id"], "tries": 0} for name, job in known.items()}
        states = dict.fromkeys((work.name for work in self.works), "queued")
        with StopFlag().listening() as stop:
            while not stop:
                if (queue := _queue()) is not None:
                    states = {w.name: self._state(w, executor, queue) for w in self.works}
                    files.write_json(book, self.jobs)
                if "queued" not in states.values():
                    break
                time.sleep(LOOK)
        if stop:
            self.say("the jobs go on; the same command watches them again, scancel ends them")
            return UNFINISHED
        codes = {"done": 0, "failed": FAILED}
        return max((codes.get(state, UNFINISHED) for state in states.values()), key=_badness)

    def _executor(self) -> Any:
        try:
            import submitit
        except ImportError as error:
            raise ConfigError('--slurm needs submitit: pip install "dreamlib[slurm]"') from error
        delay = min(DELAY, 30 * self.options.get("time", 5))
        usual = {"signal_delay_s": delay, "stderr_to_stdout": True}
        try:
            executor = submitit.SlurmExecutor(self.home, max_num_timeout=10**6)
            executor.update_parameters(**usual | self.options)
        except (RuntimeError, ValueError, TypeError) as error:
            raise ConfigError(f"--slurm: {error}") from error
        return executor

    def _state(self, work: Work, executor: Any, queue: dict[int, tuple[str, str]]) -> str:
        """done, failed, queued, or stuck: submitted again where a job ended without our word."""
        job = self.jobs.setdefault(work.name, {"id": 0, "tries": 0})
        code, queued = work.code(), queue.get(job["id"])
        if code == 0:
            return self._tell(work, "done", f"done, job {job['id']}")
        if queued:
            return self._waiting(work, job["id"], *queued)
        if code == FAILED or job["tries"] >= TRIES:
            why = f"exit code {code}" if code else f"{TRIES} jobs ended without a word"
            return self._tell(work, "failed", f"failed, {why}: see {self._log(job['id'])}")
        if job["id"] and code is None and _cancelled(job["id"]):
            return self._tell(work, "stuck", "cancelled; the same command begins it again", job)
        job["tries"] = 0 if code == UNFINISHED else job["tries"] + 1
        work.record.unlink(missing_ok=True)
        executor.update_parameters(job_name=work.name)
        job["id"] = int(self._submitted(executor, work))
        self.say(f"{work.name}: job {job['id']}, log {self._log(job['id'])}")
        return "queued"

    def _submitted(self, executor: Any, work: Work) -> str:
        from submitit.core.utils import FailedSubmissionError

        try:
            return executor.submit(work).job_id
        except (subprocess.CalledProcessError, FailedSubmissionError) as error:
            said = getattr(error, "stderr", None) or getattr(error, "output", None) or str(error)
            raise ConfigError(f"Slurm refuses {work.name}: {' '.join(said.split())}") from error

    def _waiting(self, work: Work, number: int, state: str, reason: str) -> str:
        if "held" in reason.lower():
            remedy = f"scontrol release {number}, or scancel {number} and give the command again"
            return self._tell(work, "stuck", f"job {number} is held ({reason}): {remedy}")
        if state == "PENDING" and reason in NEVER:
            remedy = f"scancel {number} and ask for less (--slurm)"
            return self._tell(work, "stuck", f"job {number} cannot begin ({reason}): {remedy}")
        return "queued"

    def _tell(self, work: Work, state: str, text: str, forget: dict[str, int] | None = None) -> str:
        if (work.name, text) not in self.told:
            self.told.add((work.name, text))
            self.say(f"{work.name}: {text}")
        if forget is not None:
            forget |= {"id": 0, "tries": 0}
        return state

    def _log(self, number: int) -> Path:
        return self.home / f"{number}_0_log.out"


def _badness(code: int) -> int:
    return [0, UNFINISHED, FAILED].index(code)


def _queue() -> dict[int, tuple[str, str]] | None:
    """Number of each of our jobs -> its state, and why it waits; None when Slurm says nothing."""
    said = _asked("squeue", "--me", "--noheader", "--format=%A|%T|%r")
    if said is None:
        return None
    rows = [line.split("|", 2) for line in said.splitlines() if line.count("|") == 2]
    return {int(number): (state, reason) for number, state, reason in rows}


def _cancelled(number: int) -> bool:
    """Whether somebody ended it; Slurm forgets after a while, and then nobody knows."""
    return "JobState=CANCELLED" in (_asked("scontrol", "show", "job", str(number)) or "")


def _asked(*words: str) -> str | None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    except FileNotFoundError as error:
        raise ConfigError(f"{words[0]} is not here: --slurm is for a cluster's machines") from error
    except subprocess.TimeoutExpired:
        return None
    return None if done.returncode else done.stdout
