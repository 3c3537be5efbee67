"""The training loop: resume, step, log, preview, validate, save, roll back, stop in time."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import torch

from dreamlib.runs.checkpoints import Checkpoint, look, moved, save_checkpoint
from dreamlib.runs.folder import disk_error
from dreamlib.runs.lock import Lock, locked
from dreamlib.runs.mirror.uploader import CLOSEST, SHARE
from dreamlib.runs.run import Run
from dreamlib.runs.time_budget import StopFlag
from dreamlib.training.async_save import Saver
from dreamlib.training.base import BaseTrainer, check_finite
from dreamlib.training.loggers import Loggers
from dreamlib.training.validation import Validation
from dreamlib.utils.context import using
from dreamlib.utils.errors import CheckpointError, DreamlibError, Interrupted, NotFinite, RunError
from dreamlib.utils.weights import averaged_of

ROLLBACKS = 2
BEAT = 15.0  # seconds between two heartbeats in status.json


class Tick(NamedTuple):
    """Where training stands after a step.  `row` is the log row of this step, if it has one."""

    step: int
    total: int
    row: dict[str, Any] | None


class TrainingLoop:
    """One session of training in a run's folder; `drive` once."""

    def __init__(
        self,
        run: Run,
        trainer: BaseTrainer,
        validation: Validation,
        loggers: Loggers,
        hours: float | None = None,
    ):
        self.run, self.dir, self.trainer = run, run.dir, trainer
        self.validation, self.loggers = validation, loggers
        self.clock = run.clock(hours)
        # Equal ones continue bit for bit.
        self.where: dict[str, Any] = {"device": run.device.type, "precision": run.precision.name}
        if not trainer.sharing.sliced:
            self.where["threads"] = torch.get_num_threads()
        self.previews = trainer.preview_steps()
        self.fleet = run.fleet()
        self.intact = run.data.watch()  # DataError once the images are not what they were
        self.saver, self.stop = Saver(), StopFlag()
        self.saved: int | None = None  # step of the newest checkpoint
        self.saved_at = 0.0
        self.done = -1  # step whose row and preview are written, too
        self.rollbacks, self.beaten = 0, 0.0
        self.lock: Lock | None = None
        self.lost = False  # the run, to another process

    # ------------------------------------------------------------------ a session

    def drive(self) -> Iterator[Tick]:
        """Take the trainer's steps to their end, the deadline, or a request to stop.

        Resumes first.  Saves by the clock, at the end, and when the caller leaves the loop.
        """
        with (
            locked(self.dir.lock, take_over=self.run.take_over, say=self.run.say) as lock,
            self.stop.listening(),
            self.fleet.carrying(stop=lambda: bool(self.stop), left=self._left),
        ):
            self.lock = lock
            try:
                yield from self._session()
            except GeneratorExit:
                raise
            except BaseException as error:
                self._emergency(error)
                if isinstance(error, OSError):
                    raise disk_error(error, self.dir.folder, self.saved) from error
                raise

    def _session(self) -> Iterator[Tick]:
        self._resume()
        try:
            state = yield from self._steps()
        except GeneratorExit:
            self._close("interrupted", "its caller left the loop")
            raise
        self._close(state, self.stop.reason)

    def _steps(self) -> Generator[Tick, None, str]:
        """The loop, again from the last good checkpoint when numbers stop being numbers."""
        while True:
            try:
                state = yield from self._loop()
                self._save()
                self.saver.wait()
                return state
            except NotFinite as error:
                self._roll_back(error)

    def _loop(self) -> Generator[Tick, None, str]:
        trainer = self.trainer
        while trainer.step < trainer.total and not self.validation.over:
            if self.clock.over():
                return "paused_deadline"
            if self.stop or self.fleet.lease_lost:
                return "interrupted"
            # a step, with everything random in it keyed by its number
            row = trainer.advance()
            self._check_ours()
            # what is told of it
            if row:
                self.loggers.write(row)
            if trainer.step in self.previews:
                trainer.save_preview(self.dir.samples)
            if trainer.step in self.validation.steps:
                self.validation.check()
            self.done = trainer.step
            # saved by the clock, in a thread of its own
            self.saver.check()
            if (self.clock.save_due() or self._mirror_waits()) and not self.saver.busy:
                self._save()
            self._beat()
            yield Tick(trainer.step, trainer.total, row)
        return "finished"

    # ------------------------------------------------------------------ beginning

    def _resume(self) -> None:
        """Load the newest checkpoint that verifies, here or on the mirror; say so in one banner."""
        # Until a checkpoint is loaded, status.json goes on saying what had been saved: a refusal
        # must not be forgotten by the time the same command is given again.
        status = self.dir.status()
        self.saved, self.saved_at = status.get("saved"), status.get("saved_at", 0.0)
        newest, broken = look(self.dir.checkpoints)
        # A mirror that fails, or hangs, is not asked for more than is here.
        each = [x.mirror for x in self.fleet.each if x.owner.beats or newest is None]
        if each:
            self.run.fetch_newer(newest.step if newest else -1, each, lambda: bool(self.stop))
            newest, broken = look(self.dir.checkpoints)
        if broken:
            raise broken
        if newest is None:
            if step := self.dir.last_saved():  # beginning anew must be the user's will
                raise RunError(
                    f"{self.dir.folder} had a checkpoint of step {step:,}, and none is left: "
                    "restore its checkpoints/ from a copy (dreamlib run pull), or delete the "
                    "folder to begin anew"
                )
            self.saved = None
            self.dir.cut_log(0)
            self._tell(f"FRESH START because {self.dir.checkpoints} holds no whole checkpoint")
        else:
            self._load(newest)
            step, total, sha = self.trainer.step, self.trainer.total, newest.manifest["sha256"][:8]
            text = f"RESUMED at step {step:,} of {total:,} from {newest.path} (sha {sha}) on "
            text += f"{self.where['device']}, {self.where['precision']}"
            self._tell(text, event="resumed", step=step)
            if differs := moved(newest.manifest, self.where):
                self._tell(f"this session differs ({differs}): it goes on, not bit for bit")
        self.done = self.trainer.step
        asked = using(should_stop=lambda: bool(self.stop) or self.clock.over())
        with suppress(Interrupted), asked:  # the loop asks the same, and ends as it does there
            self.validation.begin()
        self._set_status("running")
        self.trainer.probe()

    def _load(self, checkpoint: Checkpoint) -> None:
        """Into the trainer, if it is this run's.  CheckpointError names what differs."""
        changes = self.run.changes(checkpoint.manifest)
        if changes:
            raise CheckpointError(
                f"{checkpoint.path} belongs to another run ({'; '.join(changes)}): put this run's "
                "own checkpoints back, or begin a new run folder"
            )
        state = self.trainer.load(checkpoint)
        if checkpoint.step and self.run.weights_step() != checkpoint.step:
            self.run.export_weights(checkpoint.step, averaged_of(state))
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
            self.dir.checkpoints, step, state, self.run.checkpoint_facts | {"where": self.where}
        )
        if step:
            with self.dir.pair:
                self.run.export_weights(step, averaged_of(state))
        self.saved, self.saved_at = step, time.time()
        self.dir.note("saved", step=step, sha256=saved.manifest["sha256"])
        self.fleet.request()

    def _mirror_waits(self) -> bool:
        """Whether a mirror could take a newer checkpoint, and saving has not cost its share yet."""
        apart = max(CLOSEST, self.saver.longest * (1 / SHARE - 1))
        return bool(self.fleet) and self.clock.since() >= apart and self.fleet.due()

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
        self.validation.begin()
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
        if self.fleet.lease_lost:
            why = self.fleet.lease_lost
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
            self.run.say(f"the state in memory could not be saved: {why}")
        try:
            self._set_status(state, error=str(error))
            self.dir.note(state, step=self.trainer.step, error=str(error))
        except OSError as second:
            why = disk_error(second, self.dir.folder, self.saved)
            self.run.say(f"nor could status.json be written: {why}")

    def _left(self) -> float:
        """Seconds that the mirror may take at the end: inside the budget, if there is one."""
        return self.clock.left() + 2 * self.clock.cost

    # ------------------------------------------------------------------ telling

    def _tell(self, text: str, event: str = "said", **facts: Any) -> None:
        self.run.say(text)
        self.dir.note(event, text=text, **facts)

    def _beat(self) -> None:
        """A sign of life, at a low rate, from the thread that works."""
        if time.monotonic() - self.beaten >= BEAT:
            self._set_status("running")

    def _set_status(self, state: str, **more: Any) -> None:
        self.beaten = time.monotonic()
        self.clock.cost = self.saver.longest + self.fleet.cost
        facts: dict[str, Any] = {
            "step": self.trainer.step,
            "total": self.trainer.total,
            "saved": self.saved,
            "saved_at": self.saved_at,
            "save_seconds": self.saver.cost,
            "blocked_seconds": self.saver.blocked,
            "left_seconds": None if self.clock.hours is None else self.clock.left(),
        }
        self.dir.set_status(state, **facts, **self.fleet.facts(), **more)
        if state != "running":
            self.fleet.request()
