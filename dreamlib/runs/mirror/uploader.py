"""The thread that carries a run to its mirror.  Training only ever asks it to."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dreamlib.data.dataset import Packed
from dreamlib.runs.folder import RunDir
from dreamlib.runs.lock import BEAT, Owner
from dreamlib.runs.mirror.facts import UNKNOWN, Facts, describe
from dreamlib.runs.mirror.filesystem import Folder
from dreamlib.runs.mirror.packs import copy_pack
from dreamlib.runs.mirror.store import Generation, Mirror
from dreamlib.utils.context import using
from dreamlib.utils.errors import RunError
from dreamlib.utils.progress import duration

PATIENCE = 30.0  # seconds between two lines while somebody waits for the mirror
ANSWER = 60.0  # seconds that the beginning of a training waits for it to answer at all
SHARE = 0.05  # of the time may be spent on copying
CLOSEST = 10.0  # seconds between two copies, however little they cost
GLANCE = 2.0  # seconds between two looks at an upload that is under way
REASONS = {
    errno.ENOSPC: "it is full: free some space there, its trash included",
    errno.ENOTCONN: "it is not connected: mount it again",
    errno.EIO: "it answers with input/output errors",
}


class Uploader:
    """Pushes when asked, as often as the last copy's cost allows (at least every `minutes`, where
    they are given); backs off while the mirror fails; keeps beating.

    Nothing here can stop training, but that another machine has taken the run (`lease_lost`).
    """

    def __init__(
        self,
        mirror: Mirror,
        owner: Owner,
        run: RunDir,
        images: Packed | None = None,
        *,
        minutes: float | None = None,
        say: Callable[[str], None],
        take_over: bool = False,
        beat: float = BEAT,
        retry: tuple[float, float] = (5.0, 600.0),
    ):
        self.mirror, self.owner, self.run, self.images, self.say = mirror, owner, run, images, say
        self.identity = run.identity()
        self.minutes, self.beat, self.retry = minutes, beat, retry
        self.take_over = take_over
        self.changed = threading.Condition()
        self.asked = self.done = 0  # number of the last request, and of the last one carried out
        self.hurry = self.closing = False
        self.lease_lost = self.failing = ""
        self.failures, self.cost = 0, 0.0
        self.beaten, self.pushed, self.tried = float("-inf"), 0.0, 0.0
        mirror.pulse = self._pulse_on  # copying may take longer than a heartbeat
        self.without_images = ""  # why the packed images are not there
        self.last: Generation | None = None
        self.upload, self.unknown = "unknown", 0.0  # and since when, through a FUSE mount
        self.warned, self.sent = False, 0.0  # sent: when the last copy began
        # A mount that hangs must not keep the process from ending.
        self.thread = threading.Thread(target=self._live, name="mirror", daemon=True)

    def request(self) -> None:
        """There is something new.  Returns at once."""
        with self.changed:
            self.asked += 1
            self.changed.notify_all()

    def due(self) -> bool:
        """Whether a newer checkpoint could be carried at once."""
        with self.changed:
            idle = self.asked == self.done and not (self.failing or self.lease_lost)
            return idle and time.monotonic() >= self.tried + self._every()

    def ready(self, stop: Callable[[], bool]) -> None:
        """Wait until the run is ours on the mirror too.  RunError when it is somebody else's.

        Waits no longer when the mirror fails or does not answer, or when `stop` asks for it.
        """
        until = time.monotonic() + ANSWER
        with self.changed:
            while not (self.owner.beats or self.failing or self.lease_lost or stop()):
                if time.monotonic() > until and not self.owner.watching:
                    self.say(f"the mirror {self.mirror.home} does not answer: going on without it")
                    break
                self.changed.wait(1.0)
        if self.lease_lost:
            raise RunError(self.lease_lost)

    def flush(self, timeout: float) -> bool:
        """Ask, and wait until everything is carried; False when that fails or takes longer."""
        start = time.monotonic()
        with self.changed:
            self.asked += 1
            self.hurry = True
            wanted, failures, told = self.asked, self.failures, start
            self.changed.notify_all()
            while self.done < wanted and self.failures == failures and self.thread.is_alive():
                now = time.monotonic()
                if self.lease_lost or now - start >= timeout:
                    break
                if now - told >= PATIENCE:
                    told = now
                    self.say(f"copying to {self.mirror.home} ({duration(now - start)} so far)")
                self.changed.wait(1.0)
            return self.done >= wanted

    def close(self, timeout: float) -> None:
        """Carry what is new, let the run go, end the thread; says how that went."""
        watching = self.owner.watching and not self.owner.beats  # whether another owner lives
        if self.asked > self.done and not watching and self.flush(timeout):
            self.say(f"mirror: {self.report()}")
        elif self.lease_lost:
            self.say(f"not mirrored: {self.lease_lost}")
        elif self.done < self.asked:
            self.say(
                f"NOT everything is copied to {self.mirror.home} ({self.report()}); later: "
                f"dreamlib run push {self.run.folder}"
            )
        with self.changed:
            self.closing = True
            self.changed.notify_all()
        self.thread.join(min(timeout, PATIENCE))

    def facts(self) -> Facts:
        """What status.json says of the mirror; `describe` puts it into words."""
        return {
            "mirror": str(self.mirror.home),
            "mirrored": self.last.step if self.last else None,
            "mirrored_at": self.pushed,
            "upload": self.upload,
            "mirror_fails": self.failing,
        }

    def report(self) -> str:
        return describe(self.facts())

    # ------------------------------------------------------------------ the thread

    def _live(self) -> None:
        while True:
            with self.changed:
                if not (self._push_in() <= 0 or self.closing):
                    self.changed.wait(self._pause())
                wanted, push, closing = self.asked, self._push_in() <= 0, self.closing
            try:
                if push or not self.failing:
                    self._pulse()
                    if self.last and self.upload == "uploading":
                        self._look(self.last)
                if push and not self.lease_lost:
                    self._push()
                    self._settled(wanted)
                if closing and self.owner.beats:
                    self.owner.release()
            except Exception as error:  # noqa: BLE001  a mount may make anything of a file
                if not self.lease_lost:
                    self._failed(error)
            if closing:
                return

    def _push_in(self) -> float:
        """Seconds until the next push is due; infinite if none is waited for."""
        if self.asked == self.done or self.lease_lost:
            return float("inf")
        if self.hurry or (self.last is None and not self.failing):
            return 0.0
        first, longest = self.retry
        backoff = min(longest, first * 2 ** (self.failures - 1))
        return self.tried + (backoff if self.failing else self._every()) - time.monotonic()

    def _every(self) -> float:
        """Seconds from the end of one copy to the beginning of the next."""
        free = max(CLOSEST, self.cost * (1 / SHARE - 1))
        if self.upload == "uploading":  # what is still under way is not joined by more
            free = max(free, UNKNOWN)
        return free if self.minutes is None else min(free, 60 * self.minutes)

    def _pause(self) -> float:
        """Seconds until the next heartbeat, or the next push if one is waited for."""
        beat_in = self.beaten + self.beat - time.monotonic()
        if self.failing or self.lease_lost:
            beat_in = self.beat
        if self.upload == "uploading":
            beat_in = min(beat_in, GLANCE)
        return min(self.beat, max(0.01, min(beat_in, self._push_in())))

    def _pulse(self) -> None:
        """Show that we live, and see whether somebody took the run from us."""
        now = time.monotonic()
        if self.lease_lost or now - self.beaten < self.beat:
            return
        self.beaten = now
        self.mirror.attach()
        try:
            self._claim()
        except RunError as error:
            self.lease_lost = str(error)
        if self.last:
            self._look(self.last)
        with self.changed:
            self.changed.notify_all()

    def _pulse_on(self) -> None:
        """Within a copy: as `_pulse`, and no further when the run is somebody else's."""
        self._pulse()
        if self.lease_lost:
            raise RunError(self.lease_lost)

    def _claim(self) -> None:
        if not self.owner.beats:
            self.mirror.check_same(self.mirror.generations(), self.identity, self.run.folder)
            with using(say=self.say, should_stop=lambda: self.closing):
                self.owner.claim(take_over=self.take_over)
        elif other := self.owner.lease_lost():
            raise RunError(f"another session took this run over ({other})")
        else:
            self.owner.beat()

    def _push(self) -> None:
        self.sent, first = time.monotonic(), self.last is None
        new = self.mirror.push(self.run, self.identity)
        self.last, self.pushed = new, time.time()
        self.cost = time.monotonic() - self.sent
        self._look(new)
        if first:
            self.say(self._arithmetic(new))
        try:
            if self.images:
                copy_pack(self.images, self.mirror)
        except OSError as error:  # the run itself is carried
            if not self.without_images:
                self.without_images = error.strerror or str(error)
                self.say(
                    f"the packed images are not copied to {self.mirror.home}: {self.without_images}"
                )

    def _look(self, generation: Generation) -> None:
        """Whether it is stored.  A mount that takes everything and delivers nothing is named once:
        it gives back what it took, so reading proves nothing."""
        now, former = time.monotonic(), self.upload
        self.upload, store = self.mirror.uploaded(generation), self.mirror.store
        if former == "uploading" and self.upload == "uploaded":
            self.cost = max(self.cost, now - self.sent)  # of the link, as far as a mount tells
        if self.upload == "uploaded" or not isinstance(store, Folder) or store.vouched:
            self.unknown, self.warned = 0.0, False
            return
        self.unknown = self.unknown or now
        refused = self.upload == "refused"
        if not self.warned and (refused or now - self.unknown >= UNKNOWN):
            self.warned = True
            why = store.complaint() or "full, over quota, read-only?"
            open_question = {"refused": "its server refuses some", "uploading": "still uploads"}
            self.say(
                f"NOT KNOWN TO BE SAFE: the mount {self.mirror.home} has taken every copy, but "
                f"{open_question.get(self.upload, 'nothing tells whether its server has')} "
                f"({why}): look there from another machine, or name a second place too (--mirror "
                "s3://..., hf://buckets/..., sftp://...)"
            )

    def _arithmetic(self, generation: Generation) -> str:
        one, keep, home = generation.bytes / 2**20, self.mirror.keep, self.mirror.home
        more = ""
        if isinstance(self.mirror.store, Folder):
            ours, theirs = (os.stat(x).st_dev for x in (self.run.folder, home))
            alone = "; THE SAME DISK as the run's: it is lost with it" if ours == theirs else ""
            more = f"{self.mirror.store.room()}{alone}"
        elif not self.mirror.holds_lease():
            more = f"; {home} cannot refuse a second owner: train this run on one machine at a time"
        return (
            f"mirror: a copy of this run is {one:,.1f} MiB; {keep} to {keep + 2} of them are "
            f"kept, at most {(keep + 3) * one:,.0f} MiB while one is written{more}"
        )

    def _settled(self, wanted: int) -> None:
        if self.failing:
            self.say(f"the mirror {self.mirror.home} is back, and has everything")
        with self.changed:
            self.failing, self.failures = "", 0
            self.hurry = self.hurry and self.asked > wanted  # somebody waits for what came since
            self.done, self.tried = wanted, time.monotonic()
            self.changed.notify_all()

    def _failed(self, error: Exception) -> None:
        number, reason = getattr(error, "errno", None), getattr(error, "strerror", None)
        mounted = isinstance(self.mirror.store, Folder)  # others say themselves what to do
        reason = (REASONS.get(number or 0) if mounted else "") or reason or str(error)
        failed = getattr(error, "filename", None) or self.mirror.home
        if not Path(failed).is_relative_to(Path(self.mirror.home)):  # a file of the run's own
            reason = f"{failed} cannot be read: {os.strerror(number or 0)}"
        if not self.failing:
            fails = (
                f"MIRROR FAILS: {self.mirror.home}: {reason} (errno {number}).  Training goes on"
            )
            self.say(f"{fails}, saved on this machine only; the copy is tried again and again")
        with self.changed:
            self.mirror.distrust()
            self.beaten = float("-inf")
            self.asked += self.asked == self.done
            self.failing, self.failures, self.hurry = reason, self.failures + 1, False
            self.tried = time.monotonic()
            self.changed.notify_all()
