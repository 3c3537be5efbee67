"""Where log rows go: log.jsonl, the one truth; then TensorBoard and Weights & Biases, if wanted.

Both are copies.  TensorBoard's is written anew from log.jsonl by the first row of a session, and
whenever training went back; Weights & Biases is sent what it has not been sent yet.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
from PIL import Image

from dreamlib.config.schema import Config
from dreamlib.runs.folder import RunDir
from dreamlib.utils.context import Say
from dreamlib.utils.errors import ConfigError
from dreamlib.utils.files import check_fields, read_json, write_json

Row = dict[str, Any]  # of the log
FINISH = 60.0  # seconds for the last rows to reach Weights & Biases
APART = ("step", "time")  # of a row: where and when it was written, no curves of their own


def scalars(row: Row) -> dict[str, float]:
    """The numbers of a row by name; a list's are name/1, name/2, ..., without its gaps."""
    named: dict[str, Any] = {}
    for name, value in row.items():
        many = isinstance(value, list)
        named |= {f"{name}/{i}": x for i, x in enumerate(value, 1)} if many else {name: value}
    numbers = {name: x for name, x in named.items() if isinstance(x, (int, float))}
    return {name: float(x) for name, x in numbers.items() if name not in APART}


class Loggers:
    """log.jsonl, and copies of it elsewhere."""

    def __init__(self, run: RunDir, copies: Sequence[TensorBoard | WeightsAndBiases]):
        self.run, self.copies = run, copies
        self.step: int | None = None  # of the last row of this session

    def write(self, row: Row) -> None:
        """Append a row to log.jsonl, then show it."""
        self.run.append_log(row)
        anew = self.step is None or row["step"] <= self.step
        self.step = row["step"]
        rows = self.run.read_log() if anew and self.copies else [row]
        for copy in self.copies:
            copy.show(rows, anew)

    def close(self) -> None:
        for copy in self.copies:
            copy.close()


def open_loggers(run: RunDir, config: Config, say: Say) -> Loggers:
    """The loggers that train.tensorboard and train.wandb ask for, to be closed at the end.

    Raises ConfigError, naming the remedy, when one of them cannot be had; from then on only the
    disk can fail: Weights & Biases is a courtesy, and no reason to stop.
    """
    copies: list[TensorBoard | WeightsAndBiases] = []
    if config.train.tensorboard:
        copies.append(TensorBoard(run))
    if config.train.wandb:
        copies.append(WeightsAndBiases(run, config, say))
    return Loggers(run, copies)


def _need(package: str, module: str) -> Any:
    """A module of an optional package that a setting of its name asks for."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"train.{package} is true, but {package} is not installed: pip install {package}, or "
            f"--set train.{package}=false"
        ) from error


class TensorBoard:
    """Event files in the run's tensorboard/: curves, and the previews of the averaged weights."""

    def __init__(self, run: RunDir):
        self.run = run
        self.folder = run.folder / "tensorboard"
        self.make = _need("tensorboard", "torch.utils.tensorboard").SummaryWriter
        self.writer: Any = None
        self.shown = -1  # step of the last preview
        self.row: Row = {}  # the last one

    def show(self, rows: list[Row], anew: bool) -> None:
        """Show exactly these rows: training has begun, resumed, or gone back.  Or, if not `anew`,
        these more, later than all others."""
        if anew:
            if self.writer:
                self.writer.close()
            self._clear()
            # Of the first session too: TensorBoard's Python server ignores the first purge it meets
            self.writer, self.shown = self.make(str(self.folder), purge_step=rows[0]["step"]), -1
        for self.row in rows:
            for name, value in scalars(self.row).items():
                self.writer.add_scalar(name, value, self.row["step"], walltime=self.row["time"])
            self._previews()
        self.writer.flush()

    def _clear(self) -> None:
        """Take old events away.  The last file stays, empty: a page that reads it would look for
        its name for ever, and show nothing more."""
        *before, last = [None, *sorted(self.folder.glob("events.out.tfevents.*"))]
        for old in filter(None, before):
            old.unlink()
        if last:
            os.truncate(last, 0)

    def close(self) -> None:
        """The preview at the end is drawn after the last row."""
        if self.writer:
            self._previews()
            self.writer.close()

    def _previews(self) -> None:
        """Those drawn up to the last row's step and not shown yet."""
        for path in self.run.stages():
            step = int(path.stem.removeprefix("step-"))
            if self.shown < step <= self.row["step"]:
                sheet = np.asarray(Image.open(path, formats=["PNG"]).convert("RGB"))
                when = {"walltime": self.row["time"], "dataformats": "HWC"}
                self.writer.add_image("preview", sheet, step, **when)
                self.shown = step


class WeightsAndBiases:
    """The run's curves on Weights & Biases, under its own id: a later session goes on there."""

    def __init__(self, run: RunDir, config: Config, say: Say):
        wandb = _need("wandb", "wandb")
        self.failures = (wandb.Error, OSError)  # OSError: its own process is gone
        self.say, self.id, self.sent = say, run.identity(), run.folder / "wandb" / "sent.json"
        try:
            self.board: Any = _open_wandb(wandb, run, config)
        except self.failures as error:
            raise ConfigError(
                f"Weights & Biases cannot be opened ({' '.join(str(error).split())}): log in "
                "(wandb login), set WANDB_MODE=offline, or --set train.wandb=false"
            ) from error
        self.step = self._remembered()
        if self.board is not None and self.board.resumed:
            self.step = max(self.step, self.board.step - 1)

    def _remembered(self) -> int:
        """The last step that this machine has sent, -1 for none: an offline run cannot be asked."""
        try:
            record = check_fields(read_json(self.sent), id=str, step=int)
        except (OSError, ValueError):
            return -1
        return record["step"] if record["id"] == self.id else -1

    def show(self, rows: list[Row], anew: bool) -> None:
        """Rows that it has are not sent again, nor taken back: steps taken twice are the same."""
        for row in rows:
            if row["step"] > self.step and self._ask("log", scalars(row), step=row["step"]):
                self.step = row["step"]
                write_json(self.sent, {"id": self.id, "step": self.step})

    def close(self) -> None:
        self._ask("finish")

    def _ask(self, method: str, *values: Any, **named: Any) -> bool:
        """Whether it did; after its first failure it is asked no more."""
        if self.board is None:
            return False
        try:
            getattr(self.board, method)(*values, **named)
        except self.failures as error:
            self.board = None
            self.say(
                f"Weights & Biases failed ({' '.join(str(error).split())}): training goes on "
                "without it; log.jsonl has every row, and a later session sends what is missing"
            )
        return self.board is not None


def _open_wandb(wandb: Any, run: RunDir, config: Config) -> Any:
    """The run over there, opened without a question: nobody may be there to answer it.  None where
    WANDB_MODE=disabled."""
    mode = wandb.setup().settings.mode
    if mode == "disabled":
        return None
    if mode not in ("offline", "dryrun") and not wandb.login(prompt=False, verify=False):
        raise wandb.Error("nobody is logged in")
    return wandb.init(
        id=run.identity(),
        resume="allow",
        name=run.folder.resolve().name,
        config=config.model_dump(mode="json"),
        dir=str(run.folder),
        settings=wandb.Settings(console="off", silent=True, finish_timeout=FINISH),
    )
