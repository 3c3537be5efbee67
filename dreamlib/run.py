"""A run: a folder, its config, its images; and the driver around any trainer's steps."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from dreamlib.build import check, make_source, net_shape
from dreamlib.config import differences, identity, load_config, save_config
from dreamlib.data.packed import Packed, open_packed
from dreamlib.data.packing import bring, pack
from dreamlib.errors import ConfigError, DataError, RunError
from dreamlib.files import fingerprint, read_json, sweep, write_json
from dreamlib.host import Precision, choose_device, choose_precision
from dreamlib.images import enlarge, grid, save_png
from dreamlib.progress import Progress, silent
from dreamlib.runtime.checkpoint import newest_checkpoint, save_checkpoint
from dreamlib.runtime.clock import Clock, StopFlag
from dreamlib.runtime.rundir import RunDir
from dreamlib.sections import Config, span_steps
from dreamlib.weights import read_weights, write_weights

STAGES = (0.05, 0.25, 0.5, 0.75, 1.0)  # of training, at which a grid is always kept


class Trainer(Protocol):
    """What the driver needs of a trainer.  One `advance` is one optimizer step."""

    step: int
    total: int
    epoch: float  # optimizer steps per epoch

    def advance(self) -> dict[str, Any] | None: ...  # a log row, when one is due
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
    def averaged(self) -> dict[str, Tensor]: ...  # the weights to generate with
    def preview(self) -> dict[str, np.ndarray]: ...  # name -> uint8 images


class Tick(NamedTuple):
    """Where training stands after a step.  `row` is the log row of this step, if it has one."""

    step: int
    total: int
    row: dict[str, Any] | None


@dataclass(frozen=True)
class Run:
    """An opened run.  Everything it knows lies in its folder."""

    dir: RunDir
    config: Config
    data: Packed
    say: Callable[[str], None]

    @property
    def folder(self) -> Path:
        return self.dir.folder

    @property
    def device(self) -> torch.device:
        return choose_device(self.config.train.device)

    @property
    def precision(self) -> Precision:
        return choose_precision(self.config.train.precision, self.device)

    @property
    def facts(self) -> dict[str, str]:
        """What a checkpoint must agree with: settings and images."""
        # Defaults are left out, so that a setting added later leaves older runs what they are.
        settings = identity(self.config, exclude_defaults=True)
        return {"config": fingerprint(settings), "data": self.data.fingerprint}

    @property
    def network(self) -> dict[str, Any]:
        """What a reader without this config needs to rebuild the network from its weights."""
        net = net_shape(self.config, self.data.channels, self.data.label_counts)
        return {"net": net, "prediction": self.config.diffusion.prediction}

    # ------------------------------------------------------------------ weights

    def export_weights(self, step: int, weights: dict[str, Tensor]) -> None:
        """weights/ema.safetensors, then its card: step, hash, settings, images."""
        write_weights(self.dir.weights, step, weights, self.facts | self.network)

    def has_weights(self) -> bool:
        try:
            self.weights()
        except RunError:
            return False
        return True

    def weights(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The averaged weights and their card.  Raises RunError when there are none yet."""
        return read_weights(self.dir.weights)

    # ------------------------------------------------------------------ driver

    def drive(self, trainer: Trainer, hours: float | None = None) -> Iterator[Tick]:
        """Take a trainer's steps to their end, the deadline, or a request to stop.

        Resumes first.  Saves by the clock, at the end, and when the caller leaves the loop.
        """
        hours = hours if hours is not None else self.config.train.hours
        if hours is not None and hours <= 0:
            raise ConfigError(f"the time budget must be above 0 hours, got {hours}")
        clock = Clock(hours, self.config.train.save_minutes)
        with self.dir.locked(), StopFlag().listening() as stop:
            self._resume(trainer)
            self.dir.set_status("running", step=trainer.step, total=trainer.total)
            write_row = self._row_writer(trainer.step)
            try:
                state = yield from self._loop(trainer, clock, stop, write_row)
            except GeneratorExit:
                self._close(trainer, clock, "interrupted")
                raise
            except BaseException:
                # Nothing is saved: the last checkpoint is good, the state in memory may not be.
                self.dir.set_status("failed", step=trainer.step, total=trainer.total)
                raise
            self._close(trainer, clock, state)

    def _row_writer(self, step: int) -> Callable[[dict[str, Any]], None]:
        """Where log rows go: log.jsonl, and TensorBoard beside it if the run asks for it."""
        if not self.config.train.tensorboard:
            return self.dir.append_log
        from torch.utils.tensorboard import SummaryWriter

        board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)

        def write(row: dict[str, Any]) -> None:
            self.dir.append_log(row)
            for name in ("loss", "lam", "grad_norm", "lr", "images_per_s"):
                board.add_scalar(name, row[name], row["step"])
            board.flush()

        return write

    def _loop(
        self,
        trainer: Trainer,
        clock: Clock,
        stop: StopFlag,
        write_row: Callable[[dict[str, Any]], None],
    ) -> Generator[Tick, None, str]:
        previews = self._preview_steps(trainer)
        while trainer.step < trainer.total:
            if clock.over():
                return "paused_deadline"
            if stop:
                return "interrupted"
            row = trainer.advance()
            if row:
                write_row(row)
            if trainer.step in previews:
                self._preview(trainer)
            if clock.save_due():
                self._save(trainer, clock)
            yield Tick(trainer.step, trainer.total, row)
        return "finished"

    def _resume(self, trainer: Trainer) -> None:
        """Load the newest checkpoint that verifies, and say so in one banner."""
        for folder in (self.dir.checkpoints, self.dir.weights, self.dir.samples):
            sweep(folder)
        newest = newest_checkpoint(self.dir.checkpoints)
        if newest is None:
            self.dir.cut_log(0)
            self.say(f"FRESH START because {self.dir.checkpoints} holds no checkpoint")
            return
        wrong = [k for k, v in self.facts.items() if newest.manifest.get(k) != v]
        if wrong:
            raise RunError(f"{newest.path} was saved under another {' and '.join(wrong)}")
        trainer.load_state_dict(newest.load())
        self.dir.cut_log(trainer.step)
        self.say(
            f"RESUMED at step {trainer.step:,} of {trainer.total:,} from {newest.path} "
            f"(sha {newest.manifest['sha256'][:8]}) on {self.device}, {self.precision.name}"
        )

    def _save(self, trainer: Trainer, clock: Clock) -> None:
        with clock.saving():
            facts = self.facts | self.network
            save_checkpoint(self.dir.checkpoints, trainer.step, trainer.state_dict(), facts)
            if trainer.step:
                self.export_weights(trainer.step, trainer.averaged())
        self.dir.set_status("running", step=trainer.step, total=trainer.total)

    def _close(self, trainer: Trainer, clock: Clock, state: str) -> None:
        """Save, and say how to go on."""
        self._save(trainer, clock)
        self.dir.set_status(state, step=trainer.step, total=trainer.total)
        if state != "finished":
            say = f"PAUSED at step {trainer.step:,} of {trainer.total:,}; everything is saved. "
            if state == "paused_deadline":
                say += (
                    f"The time budget of {clock.hours} h since this process began is used up: "
                    "begin a new session, or give more hours, and run the same command or cell"
                )
            else:
                say += "Asked to stop: run the same command or cell again to go on"
            self.say(say)

    def _preview_steps(self, trainer: Trainer) -> set[int]:
        steps = {max(1, round(share * trainer.total)) for share in STAGES}
        every = span_steps(
            self.config.train.preview_every, epoch=trainer.epoch, total=trainer.total
        )
        return steps | set(range(every, trainer.total, every) if every else ())

    def _preview(self, trainer: Trainer) -> None:
        for name, images in trainer.preview().items():
            path = self.dir.samples / f"step-{trainer.step:08d}{name}.png"
            save_png(grid(enlarge(images, 64), gap=4), path)


# ---------------------------------------------------------------------- opening


def open_run(
    folder: str | Path,
    preset: str | Path | None = None,
    *,
    overrides: Iterable[str] = (),
    progress: Progress = silent,
    say: Callable[[str], None] = print,
) -> Run:
    """Open a run folder, or make one from a preset; opening it again continues it.

    Packs the images on first use.  On an existing run, overrides hold for this opening only.
    Raises ConfigError, DataError, or RunError when the folder holds a run with other settings
    (naming the fields).
    """
    run_dir = RunDir(folder)
    config = _settle_config(run_dir, preset, tuple(overrides))
    run_dir.check_writable()
    data = _settle_data(run_dir, config, progress, say)
    check(config, data)
    run_dir.create()
    if not run_dir.config.exists():
        save_config(config, run_dir.config)
    if not run_dir.data.exists():
        write_json(run_dir.data, {"packed": data.folder.name, "fingerprint": data.fingerprint})
    return Run(run_dir, config, data, say)


def _settle_config(
    run_dir: RunDir, preset: str | Path | None, overrides: tuple[str, ...]
) -> Config:
    """The config asked for, if it is the run's own up to fields that may change."""
    if not run_dir.config.exists():
        if preset is None:
            raise RunError(f"{run_dir.folder} holds no run yet: name a preset to begin one")
        return load_config(preset, overrides)
    saved = load_config(run_dir.config)
    wanted = load_config(preset or run_dir.config, overrides)
    changed = differences(identity(saved), identity(wanted))
    if changed:
        raise RunError(
            f"{run_dir.folder} holds a run with other settings ({'; '.join(changed)}): "
            "use another folder, or the run's own settings"
        )
    return wanted


def data_home(run_dir: RunDir) -> Path:
    """Packed images are shared by the runs beside each other; DREAMLIB_DATA names another place."""
    return Path(os.environ.get("DREAMLIB_DATA", run_dir.folder.parent / "data"))


def pack_data(
    config: Config,
    home: Path,
    progress: Progress = silent,
    say: Callable[[str], None] = print,
) -> Packed:
    """The config's images, packed once under a name that says which ones they are.

    Looked for in `home`, then in data/ of the folder DREAMLIB_MIRROR names, then in the source.
    """
    source = make_source(config, home / "downloads", say)
    name = f"{source.name}-{config.data.size}-{fingerprint(source.description)[:8]}"
    mirror = os.environ.get("DREAMLIB_MIRROR")
    if mirror:
        bring(Path(mirror) / "data" / name, home / name, say)
    return pack(source, home / name, progress)


def _settle_data(
    run_dir: RunDir, config: Config, progress: Progress, say: Callable[[str], None]
) -> Packed:
    """The run's packed images: those it began with, else packed from their source."""
    home = data_home(run_dir)
    recorded = read_json(run_dir.data) if run_dir.data.exists() else None
    if recorded and (home / recorded["packed"]).exists():
        data = open_packed(home / recorded["packed"])
    else:
        data = pack_data(config, home, progress, say)
    if recorded and data.fingerprint != recorded["fingerprint"]:
        raise DataError(
            f"the images in {data.folder} are not those that {run_dir.folder} was begun with: "
            "put the original images back, or begin a new run folder"
        )
    return data
