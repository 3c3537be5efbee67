"""A run folder: layout, status, log, lock.  The only state there is."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dreamlib.errors import RunError
from dreamlib.files import read_json, try_lock, write_bytes, write_json
from dreamlib.runtime.clock import process_age


class RunDir:
    """Paths and small files of one run."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.config = self.folder / "config.yaml"
        self.data = self.folder / "data.json"
        self.checkpoints = self.folder / "checkpoints"
        self.weights = self.folder / "weights"
        self.samples = self.folder / "samples"
        self.generated = self.folder / "generated"
        self.evaluation = self.folder / "evaluation"
        self.figures = self.folder / "figures"
        self.log = self.folder / "log.jsonl"

    def check_writable(self) -> None:
        """RunError when the folder, or the first parent that exists, cannot be written in."""
        place = self.folder
        while not place.exists() and place != place.parent:
            place = place.parent
        if not (place.is_dir() and os.access(place, os.W_OK)):
            raise RunError(
                f"cannot write in the run folder {self.folder} ({place} is not a folder that may "
                "be written in): choose another folder or change its permissions"
            )

    def create(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    # ------------------------------------------------------------------ status

    def status(self) -> dict[str, Any]:
        """{'state': 'new' | 'running' | 'finished' | 'paused_deadline' | 'interrupted' | 'failed'}

        with step, total and time beside it once training has begun.
        """
        path = self.folder / "status.json"
        return read_json(path) if path.exists() else {"state": "new", "step": 0}

    def set_status(self, state: str, **facts: Any) -> None:
        write_json(self.folder / "status.json", {"state": state, "time": time.time(), **facts})

    # ------------------------------------------------------------------ log

    def append_log(self, row: dict[str, Any]) -> None:
        with open(self.log, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read_log(self) -> list[dict[str, Any]]:
        """The log's rows.  A torn last line, left by a crash, is not a row yet."""
        if not self.log.exists():
            return []
        *lines, _torn = self.log.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line]

    def cut_log(self, step: int) -> None:
        """Forget rows beyond `step`: the steps behind them are about to be taken again."""
        rows = [row for row in self.read_log() if row["step"] <= step]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if self.log.exists() and text != self.log.read_text(encoding="utf-8"):
            write_bytes(self.log, text.encode())

    # ------------------------------------------------------------------ lock

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second trainer off this run.  The system frees the lock when its owner dies."""
        with open(self.folder / "lock", "a+", encoding="utf-8") as file:
            if not try_lock(file):
                file.seek(0)
                raise RunError(
                    f"{self.folder} is being trained by another process ({file.read().strip()}): "
                    "wait for it, or stop it first"
                )
            file.seek(0)
            file.truncate()
            began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() - process_age()))
            file.write(f"pid {os.getpid()} on {socket.gethostname()}, begun {began}\n")
            file.flush()
            yield
