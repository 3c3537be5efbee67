"""Crashes on purpose: a training in a process of its own, to be killed before the reader's eyes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dreamlib.runs.checkpoints import Checkpoint, whole_checkpoints
from dreamlib.runs.folder import RunDir
from dreamlib.runs.time_budget import BEGUN
from dreamlib.utils.errors import RunError
from dreamlib.utils.progress import tell
from dreamlib.utils.weights import read_weights

BANNERS = ("FRESH START", "RESUMED", "FINISHED")


@dataclass
class CrashDemo:
    """`dreamlib train FOLDER` as a process: start it, kill it, start it again."""

    folder: Path
    preset: str
    overrides: Sequence[str] = ()
    mirror: str | Path = "none"
    say: Callable[[str], None] = tell
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    before: int = field(default=-1, init=False)  # newest step on disk when it was started

    @property
    def dir(self) -> RunDir:
        return RunDir(self.folder)

    @property
    def output(self) -> Path:
        """What the process of the last start() printed."""
        return self.folder.with_name(f"{self.folder.name}.txt")

    def start(self, hours: float | None = None) -> CrashDemo:
        """Begin or continue the training.  What it prints is told when it ends."""
        words = [sys.executable, "-m", "dreamlib", "train", str(self.folder)]
        words += ["--preset", self.preset, "--mirror", str(self.mirror)]
        words += [word for item in self.overrides for word in ("--set", item)]
        if hours is not None:  # all of them for training: nothing is scored here
            words += ["--hours", repr(hours), "--set", "train.reserve_minutes=0"]
        # The place of this library, for a notebook that found it without installing it.
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        environment = os.environ | {"PYTHONPATH": path}
        environment.pop(BEGUN, None)  # a session of its own begins with it
        self.before = self._newest()
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with open(self.output, "w", encoding="utf-8") as out:
            self.process = subprocess.Popen(
                words, stdout=out, stderr=subprocess.STDOUT, env=environment
            )
        self.say(f"process {self.process.pid} trains {self.folder}")
        return self

    def kill_at(self, step: int) -> bool:
        """SIGKILL, once it has saved a checkpoint of at least `step` -> False if it ended before.

        RunError, with its own words, when it failed instead.
        """
        process = self._running()
        while process.poll() is None:
            newest = self._newest()
            if newest >= max(step, self.before + 1):
                process.kill()
                process.wait()
                self.say(
                    f"process {process.pid} killed (SIGKILL, exit code {process.returncode}): no "
                    "handler ran, nothing was written.  "
                    f"The newest checkpoint is of step {newest:,}"
                )
                return True
            time.sleep(0.02)
        self.finish()
        return False

    def finish(self) -> str:
        """Wait for its end -> the line that says where it began."""
        process = self._running()
        process.wait()
        lines = self.output.read_text("utf-8").splitlines() or [""]
        if process.returncode not in (0, 75):  # finished; paused
            raise RunError(f"training {self.folder} failed: {lines[-1]}")
        lines = [line for line in lines if not line.startswith("step ")]
        self.say("\n".join(lines))
        return next((line for line in lines if line.startswith(BANNERS)), "")

    def checkpoints(self) -> list[Checkpoint]:
        """Those that verify, oldest first."""
        return sorted(
            whole_checkpoints(self.dir.checkpoints), key=lambda checkpoint: checkpoint.step
        )

    def cut_newest(self) -> Path:
        """Halve the newest checkpoint, as a disk that fills up or a torn upload would do it."""
        if not (whole := self.checkpoints()):
            raise RunError(f"{self.folder} has no checkpoint to damage: let it train first")
        path = whole[-1].path
        os.truncate(path, path.stat().st_size // 2)
        self.say(f"{path.name} of {self.folder} now holds half of its bytes")
        return path

    def lose(self) -> None:
        """The machine with the run's folder is gone."""
        shutil.rmtree(self.folder)

    def weights_hash(self) -> str:
        """SHA-256 of the averaged weights, read and verified."""
        return read_weights(self.dir.weights)[1]["sha256"]

    def _newest(self) -> int:
        """A manifest is written last: the checkpoint beside it is whole."""
        manifests = self.dir.checkpoints.glob("step-*.json")
        return max((int(path.stem.removeprefix("step-")) for path in manifests), default=-1)

    def _running(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            raise RunError("nothing was started: call start() first")
        return self.process
