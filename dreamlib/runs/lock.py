"""One trainer per run: a lock on this host, an owner with a heartbeat on a shared mirror."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from dreamlib.runs.mirror.filesystem import UNSUPPORTED, Store, dumped, write_record
from dreamlib.runs.time_budget import process_age, process_start
from dreamlib.utils import files
from dreamlib.utils.context import Say, say, should_stop
from dreamlib.utils.errors import RunError
from dreamlib.utils.files import boot_id, check_fields, no_link, parse_json, read_json, try_lock

BEAT = 60.0  # seconds between two heartbeats on a mirror
STALE = 600.0  # an owner whose heart has stood still for so long is gone
WATCH = 3 * BEAT  # however old its last beat seems: that is two machines' clocks compared


def myself() -> dict[str, Any]:
    """Who owns a lock, so that anybody can tell later whether this process still lives."""
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() - process_age()))
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "boot": boot_id(),
        "start": process_start(os.getpid()),
        "began": began,
        "token": uuid.uuid4().hex,
    }


def alive(owner: dict[str, Any]) -> bool | None:
    """Whether an owner lives; None when it is, or may be, on another machine."""
    if not owner.get("boot") or owner["boot"] != boot_id():
        return None
    pid, start = owner.get("pid"), owner.get("start")
    return pid is not None and start is not None and process_start(pid) == start


def describe(owner: dict[str, Any]) -> str:
    return f"pid {owner.get('pid')} on {owner.get('host')}, begun {owner.get('began')}"


def read_owner(path: Path) -> dict[str, Any]:
    """What a lock or owner file says; {} when it is absent, empty, torn or of another kind."""
    try:
        return _checked(read_json(path))
    except (FileNotFoundError, ValueError, TypeError):
        return {}


def _checked(owner: Any) -> dict[str, Any]:
    kinds = {"pid": int, "token": str, "time": (int, float), "ousted": list}
    return check_fields(owner, **{name: kinds[name] for name in kinds if name in owner})


# ---------------------------------------------------------------------- on this host


class Lock:
    """Held while it stands in its file.  The system frees it when its owner dies."""

    def __init__(self, path: Path, file: IO[str]):
        self.path, self.file = path, file

    def held(self) -> bool:
        """False once somebody took over by force: the path is another file then."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.file.fileno()))
        except FileNotFoundError:
            return False


@contextmanager
def locked(path: Path, *, take_over: bool = False, say: Say = say) -> Iterator[Lock]:
    """Keep a second process off the folder of `path`.  RunError while another one lives there.

    A dead owner is replaced at once, with one line.  `take_over` replaces a living one as well:
    it notices at its next step, and stops.
    """
    if take_over:
        path.unlink(missing_ok=True)
    with _opened(path) as file:
        former = read_owner(path)
        try:
            free = try_lock(file)
        except OSError:  # a file system without locks: the former owner's pulse decides
            free = not former or alive(former) is False
        if not free:
            raise RunError(
                f"{path.parent} is being trained by another process ({describe(former)}): wait "
                "for it, stop it, or take the run from it with --take-over"
            )
        if former:
            say(f"the former owner of {path.parent} ({describe(former)}) is gone: taking over")
        _write(file, json.dumps(myself()) + "\n")
        try:
            yield Lock(path, file)
        finally:
            with suppress(OSError):  # what ended the work is what counts, and is said
                _write(file, "")


def _opened(path: Path) -> IO[str]:
    try:
        return open(path, "a+", encoding="utf-8", opener=no_link)
    except OSError as error:
        raise RunError(
            f"the lock {path} cannot be opened ({error.strerror or error}): it must be a plain "
            "file that may be written; delete what stands there, or change its permissions"
        ) from error


def _write(file: IO[str], text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()


# ---------------------------------------------------------------------- across hosts


class Owner:
    """owner.json in a folder that several machines see: who trains this run, and a heartbeat.

    A living owner elsewhere is known by its heart: the count in the file moves.  One that stands
    still for `stale` seconds is replaced, and none before it was watched for `watch` seconds.
    """

    def __init__(
        self, path: Path, *, stale: float = STALE, poll: float = 10.0, watch: float = WATCH
    ):
        self.path, self.stale, self.poll, self.watch = path, stale, poll, watch
        self.where = str(path.parent)
        self.me, self.beats = myself(), 0
        self.ousted: list[str] = []  # tokens of the owner we took over from, and those before it
        self.watching = False  # whether another owner's heart beats

    def claim(self, *, take_over: bool) -> None:
        """RunError when another machine trains this run; waits while that is not clear."""
        other = self._read()
        if not (take_over or other.get("token") in (None, self.me["token"]) or "released" in other):
            self._outlive(other)
        self._sweep()
        self.ousted = [*other.get("ousted", []), other.get("token", "")][-20:]
        self.beat()

    def _outlive(self, other: dict[str, Any]) -> None:
        where = f"{self.where} is being trained elsewhere ({describe(other)})"
        remedy = "stop it there, or take the run from it with --take-over"
        lives = alive(other)
        if lives and other["pid"] == self.me["pid"]:
            return  # this process's own earlier training, which the mirror did not let sign off
        if lives:
            raise RunError(f"{where}: {remedy}")
        age = max(0.0, time.time() - other.get("time", time.time()))
        wait = max(self.stale - age, self.watch)
        if lives is None:
            say(
                f"{where}; its heart beat {age:.0f} s ago by the clocks of both.  Watching for "
                f"{wait:.0f} s whether it lives (--take-over does not wait)"
            )
        until = time.monotonic() + wait
        self.watching = True
        while lives is None and time.monotonic() < until:
            time.sleep(min(self.poll, max(0.0, until - time.monotonic())))
            if should_stop():
                raise RunError(f"{where}, and nobody waited to see whether it lives")
            now = self._read()
            if "released" in now or not now:
                return
            if (now.get("token"), now.get("beats")) != (other["token"], other.get("beats")):
                raise RunError(f"{where}, and its heart beats: {remedy}")
        say(f"the former owner ({describe(other)}) is gone: taking over")

    def beat(self) -> None:
        self.beats += 1
        self._write(beats=self.beats, time=time.time())

    def _read(self) -> dict[str, Any]:
        return read_owner(self.path)

    def _sweep(self) -> None:
        """Remove what a beat that failed has left."""
        files.sweep(self.path.parent)

    def _write(self, **facts: Any) -> None:
        record = self.me | {"ousted": self.ousted} | facts
        try:
            files.write_json(self.path, record)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            write_record(self.path, record)

    def lease_lost(self) -> str:
        """Who took the run from us since our last beat; '' when nobody did.

        The owner that we took it from did not take it back: its heartbeat and our claim crossed.
        Our next beat replaces it, and that tells it.  Where two claims crossed, and neither knew of
        the other (a mirror shows late what was written), the smaller token stays.
        """
        other = self._read()
        token, mine, known = other.get("token"), self.me["token"], other.get("ousted")
        if token in (None, mine, *self.ousted):
            return ""
        crossed = known is not None and mine not in known
        return "" if crossed and mine < token else describe(other)

    def release(self) -> None:
        if not self.lease_lost():
            self._write(released=True)


class RemoteOwner(Owner):
    """The same in a store on the network.  Where that holds a lease, each beat replaces only the
    one that was read: of two machines that claim a run at once, one is refused."""

    def __init__(self, store: Store, name: str, lease: Callable[[], bool], **waits: float):
        super().__init__(Path(name), **waits)
        self.store, self.name, self.lease, self.tag = store, name, lease, ""
        self.where = f"{store.home}/{self.path.parent}"

    def _sweep(self) -> None:
        """What is cut short does not appear."""

    def _read(self) -> dict[str, Any]:
        try:
            self.tag, blocks = self.store.read(self.name)
            return _checked(parse_json(b"".join(blocks)))
        except FileNotFoundError:
            self.tag = ""
        except (ValueError, TypeError):
            pass
        return {}

    def _write(self, **facts: Any) -> None:
        data = dumped(self.me | {"ousted": self.ousted} | facts)
        try:
            self.tag = self.store.replace(self.name, data, self.tag if self.lease() else None)
        except FileExistsError:
            other = self._read()
            if other.get("token") != self.me["token"]:  # not an answer of ours that got lost
                raise RunError(f"another session took this run over ({describe(other)})") from None
            self.tag = self.store.replace(self.name, data, self.tag)
