"""The driver around any trainer's steps: resume, save, roll back, stop in time, say so."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from dreamlib.runs.checkpoints import Checkpoint, look, save_checkpoint
from dreamlib.runs.folder import RunDir, disk_error
from dreamlib.runs.lock import Lock, locked
from dreamlib.runs.mirror.uploader import LONGEST, Courier, carrying
from dreamlib.runs.time_budget import Clock, StopFlag
from dreamlib.training.async_save import Saver
from dreamlib.training.trainer import Check, Tick, Trainer, check_finite, moved
from dreamlib.utils.errors import CheckpointError, DreamlibError, Interrupted, NotFinite, RunError
from dreamlib.utils.weights import averaged_of

ROLLBACKS = 2
BEAT = 15.0  # seconds between two heartbeats in status.json


@dataclass
class Driver:
    """One session of training in a run folder; `drive` once."""

    dir: RunDir
    trainer: Trainer
    clock: Clock
    facts: dict[str, Any]  # what a checkpoint must agree with, and `changes` to tell how it differs
    changes: Callable[[dict[str, Any]], list[str]]
    where: dict[str, Any]  # device, precision, threads: equal ones continue bit for bit
    export: Callable[[int, dict[str, Tensor]], None]  # averaged weights of a step
    exported: Callable[[int], bool]  # whether those of a step are there, and whole
    write_row: Callable[[dict[str, Any]], None]
    preview: Callable[[dict[str, np.ndarray]], None]
    previews: set[int]
    say: Callable[[str], None]
    take_over: bool
    validation: Check
    courier: Courier | None
    fetch: Callable[[int, Callable[[], bool]], None]  # what is newer on the mirror
    intact: Callable[..., None] = lambda wait=False: None  # DataError once the images are not
    saver: Saver = field(default_factory=Saver, init=False)
    saved: int | None = field(default=None, init=False)  # step of the newest checkpoint
    saved_at: float = field(default=0.0, init=False)
    done: int = field(default=-1, init=False)  # step whose row and preview are written, too
    rollbacks: int = field(default=0, init=False)
    beaten: float = field(default=0.0, init=False)
    lock: Lock | None = field(default=None, init=False)
    lost: bool = field(default=False, init=False)  # the run, to another process

    # ------------------------------------------------------------------ a session

    def drive(self) -> Iterator[Tick]:
        """Take the trainer's steps to their end, the deadline, or a request to stop.

        Resumes first.  Saves by the clock, at the end, and when the caller leaves the loop.
        """
        with (
            locked(self.dir.lock, take_over=self.take_over, say=self.say) as lock,
            StopFlag().listening() as stop,
            self._mirrored(stop),
        ):
            self.lock = lock
            try:
                yield from self._session(stop)
            except GeneratorExit:
                raise
            except BaseException as error:
                self._emergency(error)
                if isinstance(error, OSError):
                    raise disk_error(error, self.dir.folder, self.saved) from error
                raise

    def _mirrored(self, stop: StopFlag) -> AbstractContextManager:
        if self.courier is None:
            return nullcontext()
        return carrying(self.courier, stop=lambda: bool(stop), patience=self._patience)

    def _session(self, stop: StopFlag) -> Iterator[Tick]:
        self._resume(stop)
        try:
            state = yield from self._steps(stop)
        except GeneratorExit:
            self._close("interrupted", "its caller left the loop")
            raise
        self._close(state, stop.reason)

    def _steps(self, stop: StopFlag) -> Generator[Tick, None, str]:
        """The loop, again from the last good checkpoint when numbers stop being numbers."""
        while True:
            try:
                state = yield from self._loop(stop)
                self._save()
                self.saver.wait()
                return state
            except NotFinite as error:
                self._roll_back(error)

    def _loop(self, stop: StopFlag) -> Generator[Tick, None, str]:
        trainer = self.trainer
        while trainer.step < trainer.total and not self.validation.over:
            if self.clock.over():
                return "paused_deadline"
            if stop or (self.courier and self.courier.usurped):
                return "interrupted"
            row = trainer.advance()
            self._check_ours()
            if row:
                self.write_row(row)
            if trainer.step in self.previews:
                self.preview(trainer.preview())
            if trainer.step in self.validation.steps:
                self.validation.check()
            self.done = trainer.step
            self.saver.check()
            if self.clock.save_due() and not self.saver.busy:
                self._save()
            self._beat()
            yield Tick(trainer.step, trainer.total, row)
        return "finished"

    # ------------------------------------------------------------------ beginning

    def _resume(self, stop: StopFlag) -> None:
        """Load the newest checkpoint that verifies, here or on the mirror; say so in one banner."""
        # Until a checkpoint is loaded, status.json goes on saying what had been saved: a refusal
        # must not be forgotten by the time the same command is given again.
        status = self.dir.status()
        self.saved, self.saved_at = status.get("saved"), status.get("saved_at", 0.0)
        newest, broken = look(self.dir.checkpoints)
        # A mirror that fails, or hangs, is not asked for more than is here.
        if self.courier and (self.courier.owner.beats or newest is None):
            self.fetch(newest.step if newest else -1, lambda: bool(stop))
            newest, broken = look(self.dir.checkpoints)
        if broken:
            raise broken
        if newest is None:
            self._check_fresh()
            self.saved = None
            self.dir.cut_log(0)
            self._tell(f"FRESH START because {self.dir.checkpoints} holds no whole checkpoint")
        else:
            self._load(newest)
            step, total = f"{self.trainer.step:,}", f"{self.trainer.total:,}"
            sha = newest.manifest["sha256"][:8]
            self._tell(
                f"RESUMED at step {step} of {total} from {newest.path} (sha {sha}) on "
                f"{self.where['device']}, {self.where['precision']}"
            )
            if differs := moved(newest.manifest, self.where):
                self._tell(f"this session differs ({differs}): it goes on, not bit for bit")
        self.done = self.trainer.step
        with suppress(Interrupted):  # the loop asks the same, and ends as it does there
            self.validation.begin(lambda: bool(stop) or self.clock.over())
        self._set_status("running")
        self.trainer.probe()

    def _check_fresh(self) -> None:
        """RunError when this run had saved before: beginning anew must be the user's will."""
        if saved := self.dir.last_saved():
            raise RunError(
                f"{self.dir.folder} had a checkpoint of step {saved:,}, and none is left: restore "
                "its checkpoints/ from a copy (dreamlib run pull), or delete the folder to begin "
                "anew"
            )

    def _load(self, checkpoint: Checkpoint) -> None:
        """Into the trainer, if it is this run's.  CheckpointError names what differs."""
        changes = self.changes(checkpoint.manifest)
        if changes:
            raise CheckpointError(
                f"{checkpoint.path} belongs to another run ({'; '.join(changes)}): put this run's "
                "own checkpoints back, or begin a new run folder"
            )
        state = checkpoint.load()
        try:
            self.trainer.load_state_dict(state)
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{checkpoint.path} does not fit this network or optimizer ({reason}): delete it "
                "and its .json to go on from the generation before"
            ) from error
        if checkpoint.step and not self.exported(checkpoint.step):
            self.export(checkpoint.step, averaged_of(state))
        self.dir.cut_log(self.trainer.step)
        self.saved, self.saved_at = checkpoint.step, checkpoint.manifest["time"]

    # ------------------------------------------------------------------ saving

    def _check_ours(self, wait: bool = False) -> None:
        """RunError or DataError once the run or its images are another's: nothing is written."""
        self.intact(wait=wait)
        if self.lock and not self.lock.held():
            self.lost = True
            raise RunError(f"another process took {self.dir.folder} over: this one saves no more")

    def _save(self) -> None:
        """Copy the state, and let the saver's thread write it: none of images not verified yet."""
        self._check_ours(wait=True)
        self.saver.wait()  # it may be writing just this step
        step = self.trainer.step
        if step == self.saved:
            return
        self.clock.reset()
        self.saver.save(self.trainer.state_dict(), lambda state: self._write(step, state))

    def _write(self, step: int, state: dict[str, Any]) -> None:
        """In the saver's thread: nothing here may touch the trainer's own state."""
        check_finite(state, step)
        saved = save_checkpoint(
            self.dir.checkpoints, step, state, self.facts | {"where": self.where}
        )
        if step:
            with self.dir.pair:
                self.export(step, averaged_of(state))
        self.saved, self.saved_at = step, time.time()
        self.dir.note("saved", step=step, sha256=saved.manifest["sha256"])
        if self.courier:
            self.courier.request()

    def _roll_back(self, error: NotFinite) -> None:
        """Go on from the last good checkpoint, at most twice; then the error stands."""
        with suppress(NotFinite):  # an earlier state was being written: as bad, or good
            self.saver.wait()
        good, _ = look(self.dir.checkpoints)
        if good is None or self.rollbacks == ROLLBACKS:
            raise error
        self.rollbacks += 1
        self._load(good)
        done = self.trainer.calm()
        self.validation.begin(lambda: False)
        self.done = self.trainer.step
        self._tell(
            f"ROLLED BACK to step {good.step:,} ({self.rollbacks} of {ROLLBACKS}), {done}: {error}"
        )

    # ------------------------------------------------------------------ ending

    def _close(self, state: str, reason: str) -> None:
        """Save what is not yet saved, and say how to go on."""
        self._save()
        self.saver.wait()
        self._set_status(state)
        if state == "finished":
            self.dir.note("finished", step=self.trainer.step)
            return
        why = f"Asked to stop ({reason})"
        if self.courier and self.courier.usurped:
            why = self.courier.usurped
        elif state == "paused_deadline":
            why = (
                f"The time budget of {self.clock.hours:g} h since this process began is used up: "
                "begin a new session, or give more hours"
            )
        self._tell(
            f"PAUSED at step {self.trainer.step:,} of {self.trainer.total:,}; everything is saved. "
            f"{why}; run the same command or cell again to go on"
        )

    def _emergency(self, error: BaseException) -> None:
        """Save if the state is good and whole; then the error goes on its way."""
        if self.lost:
            return
        state = "interrupted" if isinstance(error, (KeyboardInterrupt, Interrupted)) else "failed"
        whole = self.trainer.whole and self.done == self.trainer.step > 0
        try:
            if whole and not isinstance(error, NotFinite):
                self._save()
            self.saver.wait()
        except (OSError, RuntimeError, DreamlibError) as second:
            why = disk_error(second, self.dir.folder, self.saved)
            self.say(f"the state in memory could not be saved: {why}")
        try:
            self._set_status(state, error=str(error))
            self.dir.note(state, step=self.trainer.step, error=str(error))
        except OSError as second:
            why = disk_error(second, self.dir.folder, self.saved)
            self.say(f"nor could status.json be written: {why}")

    def _patience(self) -> float:
        """Seconds to wait for the mirror at the end: inside the budget, if there is one."""
        return min(LONGEST, max(30.0, self.clock.left() + 2 * self.clock.cost))

    # ------------------------------------------------------------------ telling

    def _tell(self, text: str) -> None:
        self.say(text)
        self.dir.note("said", text=text)

    def _beat(self) -> None:
        """A sign of life, at a low rate, from the thread that works."""
        if time.monotonic() - self.beaten >= BEAT:
            self._set_status("running")

    def _set_status(self, state: str, **more: Any) -> None:
        self.beaten = time.monotonic()
        self.clock.cost = self.saver.longest + (self.courier.cost if self.courier else 0.0)
        facts: dict[str, Any] = {
            "step": self.trainer.step,
            "total": self.trainer.total,
            "saved": self.saved,
            "saved_at": self.saved_at,
            "save_seconds": self.saver.cost,
            "blocked_seconds": self.saver.blocked,
            "left_seconds": None if self.clock.hours is None else self.clock.left(),
        }
        if self.courier:
            facts |= self.courier.facts()
        self.dir.set_status(state, **facts, **more)
        if self.courier and state != "running":
            self.courier.request()
