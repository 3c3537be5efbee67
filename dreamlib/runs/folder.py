"""A run folder: layout, status, log, events.  The only state there is."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
import uuid
from pathlib import Path
from types import NoneType
from typing import Any

from dreamlib.utils import files
from dreamlib.utils.errors import REMEDIES, RunError

STATUS: dict[str, Any] = {  # fields of status.json; the last ones may be absent
    **{"state": str, "step": int},
    **dict.fromkeys(("total", "saved", "mirrored"), (int, NoneType)),
    **dict.fromkeys(("time", "saved_at", "mirrored_at"), (int, float, NoneType)),
}
ESSENTIAL = ("run.json", "data.json", "config.yaml")  # a folder with the last one holds a run


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
        self.validation = self.folder / "validation.jsonl"
        self.events = self.folder / "events.jsonl"
        self.lock = self.folder / "lock"
        self.pair = threading.Lock()  # held while weights and their card are replaced

    @property
    def name(self) -> str:
        """What mirrors know this run by: the folder's own name, whatever path or link led to it.
        RunError when it has none."""
        try:
            return files.plain_name(self.folder.resolve().name)
        except ValueError as error:
            raise RunError(
                f"{self.folder} cannot be a run folder ({error}): name another one"
            ) from error

    def check_writable(self) -> None:
        """RunError when the folder, or the first parent that exists, cannot be written in, or
        when a part of the run is a symbolic link: it would lead what is written elsewhere."""
        for path in vars(self).values():
            if isinstance(path, Path) and path != self.folder and path.is_symlink():
                raise RunError(
                    f"{path} is a symbolic link, and a run is read and written in its own folder "
                    "only: put what it leads to in its place (the whole run folder may be a link)"
                )
        place = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        if not (place.is_dir() and os.access(place, os.W_OK)):
            raise RunError(
                f"cannot write in the run folder {self.folder} ({place} is not a folder that may "
                "be written in): choose another folder or change its permissions"
            )

    def create(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def identity(self) -> str:
        """The run's own id, made when it is first asked for: its name may be another run's too."""
        path = self.folder / "run.json"
        if not path.exists():
            files.write_json(path, {"id": uuid.uuid4().hex, "begun": time.time()})
        try:
            return files.check_fields(files.read_json(path), id=str)["id"]
        except ValueError as error:
            raise RunError(
                f"{path} is damaged ({error}): restore it from a copy; or delete it, and this run "
                "is another one to its mirror"
            ) from error

    def stages(self) -> list[Path]:
        """The previews of the averaged weights, by step."""
        return sorted(self.samples.glob("step-????????.png"))

    def to_mirror(self, step: int | None = None) -> list[str]:
        """What another machine needs to go on, first; then everything else worth keeping.

        The checkpoint is that of `step`, or the newest.
        """
        pattern = "step-*.json" if step is None else f"step-{step:08d}.json"
        paths = [self.folder / name for name in ESSENTIAL]
        for manifest in sorted(self.checkpoints.glob(pattern))[-1:]:
            paths += [manifest.with_suffix(".pt"), manifest]
        paths += [self.weights / "ema.safetensors", self.weights / "card.json"]
        paths += [self.log, self.validation, self.events, self.folder / "status.json"]
        paths += [*self.folder.glob("*.ipynb"), *self.folder.glob("*.html")]
        folders = [self.weights / "best", self.samples, self.generated]
        for folder in (*folders, self.evaluation, self.figures):
            paths += sorted(folder.rglob("*"))
        worth = [path for path in paths if files.is_own(path) and path.name[0] != "."]
        return [path.relative_to(self.folder).as_posix() for path in dict.fromkeys(worth)]

    # ------------------------------------------------------------------ status

    def status(self) -> dict[str, Any]:
        """Where the run stands, and its heartbeat.

        {'state': 'new' | 'forked' | 'running' | 'finished' | 'paused_deadline' | 'interrupted' |
        'failed'} and, once training has begun: step, total, saved (the step of the last
        checkpoint), time (of the last sign of life, seconds since 1970) and more for people.
        """
        path = self.folder / "status.json"
        if not path.exists():
            return {"state": "new", "step": 0}
        try:
            return files.check_fields(files.read_json(path), **STATUS)
        except ValueError as error:
            raise RunError(
                f"{path} is damaged ({error}): delete it, nothing but a report of where the run "
                "stands is lost"
            ) from error

    def set_status(self, state: str, **facts: Any) -> None:
        status = {"state": state, "time": time.time(), **facts}
        files.write_json(self.folder / "status.json", status)

    def update_status(self, **facts: Any) -> None:
        """Change some facts and leave the others; not while a training writes its own."""
        status = self.status()
        if status["state"] not in ("new", "running"):
            files.write_json(self.folder / "status.json", status | facts)

    def note(self, event: str, **facts: Any) -> None:
        """One line in events.jsonl: what happened to this run, for people (and evidence that
        something had been saved)."""
        _append(self.events, {"time": time.time(), "event": event, **facts})

    def read_events(self) -> list[dict[str, Any]]:
        """Lines torn by a crash are left out: later ones were written behind them."""
        return _read(self.events, skip_damaged=True, time=(int, float), event=str)

    def last_saved(self) -> int:
        """The largest step that was ever saved, whether or not its checkpoint is still here."""
        steps = [e.get("step") for e in self.read_events() if e["event"] == "saved"]
        return max(x for x in (0, self.status().get("saved"), *steps) if isinstance(x, int))

    # ------------------------------------------------------------------ log

    def append_log(self, row: dict[str, Any]) -> None:
        _append(self.log, row)

    def read_log(self) -> list[dict[str, Any]]:
        """The log's rows.  A torn last line, left by a crash, is not a row yet."""
        return _read(self.log, step=int)

    def append_validation(self, row: dict[str, Any]) -> None:
        _append(self.validation, row)

    def read_validation(self) -> list[dict[str, Any]]:
        """Scores taken during training, by step."""
        return _read(self.validation, step=int, score=(int, float))

    def cut_log(self, step: int) -> None:
        """Forget rows beyond `step`: the steps behind them are about to be taken again."""
        for path, rows in ((self.log, self.read_log()), (self.validation, self.read_validation())):
            text = "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step).encode()
            if path.exists() and text != path.read_bytes():
                files.write_bytes(path, text)


def _append(path: Path, row: dict[str, Any]) -> None:
    """One line, behind a torn one if a crash left such (a log is cut before it is continued)."""
    with files.naming(path), open(path, "a+b", opener=files.no_link) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            file.write(b"" if file.read(1) == b"\n" else b"\n")
        file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path, *, skip_damaged: bool = False, **kinds: Any) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows += [files.check_fields(files.parse_json(line), **kinds)] if line else []
        except ValueError as error:
            if not skip_damaged:
                raise RunError(
                    f"line {number} of {path} is damaged ({error}): delete that line, or restore "
                    "the file from a copy"
                ) from error
    return rows


def disk_error(error: Exception, folder: Path, saved: int | None) -> Exception:
    """What to do about a disk that a run cannot be written to; `saved` is safe on it.  Another
    error stays what it is."""
    if not isinstance(error, OSError):
        return error
    last = f"step {saved:,} is saved and whole" if saved else "nothing was saved yet"
    if error.errno == errno.ENOSPC:
        return RunError(
            f"the disk of {folder} is full; {last}: free some space, then run the same command "
            "or cell again"
        )
    remedy = REMEDIES.get(error.errno or 0, "put that right")
    return RunError(
        f"{error.filename or folder} cannot be used ({error.strerror or error}); {last}: {remedy}, "
        "then run the same command or cell again"
    )
