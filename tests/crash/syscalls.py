"""Faults at system calls: a process whose calls on chosen folders are watched, failed or fatal.

The process puts a seccomp filter over itself, and over whatever it starts, that asks us before
every call that has to do with files.  We look at the path, and let the call pass, let it fail with
an errno, do half of a write, or kill.  Nothing in the watched process is replaced, so calls of
C libraries (NumPy's `tofile`) are seen as well as Python's.  For Linux 5.9 and newer.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import re
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

# What each call is about: a descriptor, a path, a path at a descriptor, or two of them.
FD, FIFTH, PATH, AT, TWO_PATHS, TWO_AT = "fd", "fifth", "path", "at", "two paths", "two at"
CALLS: dict[str, tuple[int, int, str]] = {  # name: (x86-64, arm64, about); -1: it has none
    "open": (2, -1, PATH),
    "openat": (257, 56, AT),
    "close": (3, 57, FD),
    "read": (0, 63, FD),
    "pread64": (17, 67, FD),
    "readv": (19, 65, FD),
    "write": (1, 64, FD),
    "pwrite64": (18, 68, FD),
    "writev": (20, 66, FD),
    "sendfile": (40, 71, FD),
    "fsync": (74, 82, FD),
    "fdatasync": (75, 83, FD),
    "ftruncate": (77, 46, FD),
    "truncate": (76, 45, PATH),
    "mmap": (9, 222, FIFTH),
    "getdents64": (217, 61, FD),
    "flock": (73, 32, FD),
    "fstat": (5, 80, FD),
    "stat": (4, -1, PATH),
    "lstat": (6, -1, PATH),
    "newfstatat": (262, 79, AT),
    "statx": (332, 291, AT),
    "access": (21, -1, PATH),
    "faccessat": (269, 48, AT),
    "faccessat2": (439, 439, AT),
    "getxattr": (191, 8, PATH),
    "mkdir": (83, -1, PATH),
    "mkdirat": (258, 34, AT),
    "rmdir": (84, -1, PATH),
    "unlink": (87, -1, PATH),
    "unlinkat": (263, 35, AT),
    "rename": (82, -1, TWO_PATHS),
    "renameat": (264, 38, TWO_AT),
    "renameat2": (316, 276, TWO_AT),
}
ARM = platform.machine() == "aarch64"
NUMBERS = {CALLS[name][ARM]: name for name in CALLS if CALLS[name][ARM] >= 0}
SECCOMP = 277 if ARM else 317
PIDFD_OPEN, PIDFD_GETFD = 434, 438
AT_FDCWD, WRITING = -100, os.O_WRONLY | os.O_RDWR | os.O_CREAT
NOTIFICATION, ANSWER = struct.Struct("QIIiIQ6Q"), struct.Struct("QqiI")
RECEIVE, SEND = 0xC0502100, 0xC0182101  # ioctls of a filter's listener
CONTINUE = 1
LIBC: Any = ctypes.CDLL(None, use_errno=True)
TEMPORARY = re.compile(r"^\.(.+?)(\.[0-9a-f]{8})?\.\d+\.\d+\.tmp$")

# Which failure may befall which call.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
GONE = frozenset({errno.EIO, errno.ENOTCONN})
DENIED = frozenset({errno.EACCES})
FAILURES: dict[str, frozenset[int]] = {
    **dict.fromkeys(("write", "pwrite64", "writev", "sendfile", "fsync", "fdatasync"), FULL | GONE),
    **dict.fromkeys(("close", "ftruncate", "truncate"), FULL | GONE),
    **dict.fromkeys(("read", "pread64", "readv", "mmap", "getdents64"), GONE),
    **dict.fromkeys(("flock", "fstat", "getxattr"), GONE),
    **dict.fromkeys(("stat", "lstat", "newfstatat", "statx"), GONE | DENIED),
    **dict.fromkeys(("access", "faccessat", "faccessat2"), GONE | DENIED),
    **dict.fromkeys(("unlink", "unlinkat", "rmdir"), GONE | DENIED),
    **dict.fromkeys(("mkdir", "mkdirat", "rename", "renameat", "renameat2"), FULL | GONE | DENIED),
    **dict.fromkeys(("open", "openat"), GONE | DENIED | {errno.EMFILE}),
    "create": FULL | GONE | DENIED | {errno.EMFILE},  # an open that may write
}
WRITES = ("write", "pwrite64", "writev", "sendfile", "fsync", "fdatasync", "ftruncate", "truncate")
WRITES += ("create", "mkdir", "mkdirat", "rename", "renameat", "renameat2", "unlink", "unlinkat")
KILL = "kill"


class Call(NamedTuple):
    """A call on one of the watched folders."""

    name: str  # of the system call; "create" is an open that may write
    root: str  # the name of the folder
    path: str  # below it

    @property
    def point(self) -> str:
        """What is alike from one save to the next."""
        folder, name = os.path.split(self.path)
        path = os.path.join(folder, TEMPORARY.sub(r"\1 (tmp)", name))
        return f"{self.name} {self.root}/{re.sub('[0-9a-f]{8,}|[0-9]+', '#', path)}"


@dataclass(frozen=True)
class Fault:
    """What happens at the `number`-th call of a point, counted from 1."""

    point: str
    number: int
    what: int | str  # an errno, or KILL
    short: bool = False  # a write has half its bytes written first
    lasts: int = 1  # so many calls fail that can, on that folder: 1 is a hiccup
    everyone: bool = False  # a kill takes all that descends from the command, too

    def text(self) -> str:
        what = errno.errorcode[self.what] if isinstance(self.what, int) else self.what
        how = " after half of it" * self.short + " for all" * self.everyone
        long = "" if self.lasts == 1 else f", {self.lasts} times"
        return f"{what}{how} at {self.point} number {self.number}{long}"


@dataclass
class Watch:
    """One attempt: folders by name, at most one fault, and what was seen."""

    roots: dict[str, str]
    fault: Fault | None = None
    calls: list[Call] = field(default_factory=list)
    processes: dict[int, int] = field(default_factory=dict)  # by thread
    struck: int = 0  # calls that failed, or the kill
    counted: int = 0
    root: str = ""  # the folder that fails, once it does

    # ------------------------------------------------------------------ deciding

    def decide(self, call: Call) -> bool:
        """Whether the fault befalls this call."""
        fault = self.fault
        self.calls.append(call)
        if fault is None:
            return False
        self.counted += call.point == fault.point
        begins = not self.root and self.counted == fault.number
        if not begins and not (self.root == call.root and self.struck < fault.lasts):
            return False
        if not begins and fault.what not in _failures(call, fault.what):
            return False
        self.root = call.root
        self.struck += 1
        return True

    # ------------------------------------------------------------------ looking

    def see(self, name: str, task: int, args: tuple[int, ...]) -> Call | None:
        """The call, if it is on one of our folders."""
        path = self._path(CALLS[name][2], task, args)
        if path is None:
            return None
        for root, folder in self.roots.items():
            if path == folder or path.startswith(folder + "/"):
                if name in ("open", "openat") and args[1 + (name == "openat")] & WRITING:
                    name = "create"
                if name == "close" and not _may_fail_to_close(task, args[0]):
                    return None
                return Call(name, root, os.path.relpath(path, folder))
        return None

    def _path(self, about: str, task: int, args: tuple[int, ...]) -> str | None:
        if about in (FD, FIFTH):
            return _link(f"/proc/{task}/fd/{args[4 * (about == FIFTH)]}")
        if about in (TWO_PATHS, TWO_AT):  # the target
            at, text = (args[2], args[3]) if about == TWO_AT else (AT_FDCWD, args[1])
        else:
            at, text = (args[0], args[1]) if about == AT else (AT_FDCWD, args[0])
        path = os.fsdecode(_memory(task, text, 4096, b"\0"))
        if path.startswith("/"):
            return os.path.normpath(path)
        here = ctypes.c_int(at & 0xFFFFFFFF).value
        base = _link(f"/proc/{task}/cwd" if here == AT_FDCWD else f"/proc/{task}/fd/{here}")
        return base and os.path.normpath(os.path.join(base, path))


def _failures(call: Call, what: int | str) -> frozenset[int]:
    """How a call may fail while a folder does: a full disk is still read."""
    found = FAILURES.get(call.name, frozenset())
    return found if what not in DENIED | FULL or call.name in WRITES else frozenset()


def _link(path: str) -> str | None:
    with suppress(OSError):
        return os.readlink(path)
    return None


def _may_fail_to_close(task: int, number: int) -> bool:
    """A file that was written to.  A lock's would stay open, as we only say that it failed."""
    with suppress(OSError), open(f"/proc/{task}/fdinfo/{number}") as file:
        flags = next(int(line.split()[1], 8) for line in file if line.startswith("flags"))
        return bool(flags & WRITING) and "lock" not in str(_link(f"/proc/{task}/fd/{number}"))
    return False


def _memory(task: int, address: int, size: int, end: bytes = b"") -> bytes:
    """Of another process: so many bytes, or those before `end`."""
    found = b""
    with suppress(OSError), open(f"/proc/{task}/mem", "rb", buffering=0) as memory:
        while len(found) < size:
            place = address + len(found)
            memory.seek(place)
            part = memory.read(min(size - len(found), 4096 - place % 4096))
            found += part
            if not part or (end and end in part):
                break
    return found.split(end)[0] if end else found


# ---------------------------------------------------------------------- the filter


def put_filter_on_myself(to: socket.socket) -> None:
    """From now on and for good, in this process and what it starts; `to` gets the listener."""
    numbers = sorted(NUMBERS)
    load = struct.pack("HBBI", 0x20, 0, 0, 0)  # the number of the call
    jumps = [struct.pack("HBBI", 0x15, len(numbers) - i, 0, n) for i, n in enumerate(numbers)]
    allow, ask = (struct.pack("HBBI", 0x06, 0, 0, what) for what in (0x7FFF0000, 0x7FC00000))
    program = ctypes.create_string_buffer(b"".join([load, *jumps, allow, ask]))
    head = struct.pack("HxxxxxxP", len(numbers) + 3, ctypes.addressof(program))
    if LIBC.prctl(38, 1, 0, 0, 0):  # no new privileges, the condition for a filter
        raise OSError(ctypes.get_errno(), "no_new_privs was refused")
    listener = LIBC.syscall(SECCOMP, 1, 1 << 3, head)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "a seccomp filter with a listener was refused")
    socket.send_fds(to, [b"x"], [listener])
    os.close(listener)


def watched(do: Callable[[], int], watch: Watch, limit: float) -> int | None:
    """Fork, let the child `do` (-> its exit code) under `watch`, until nothing of it is left.

    -> its exit code, -SIGKILL if it was killed, or None when it took more than `limit` seconds.
    """
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        code = 120
        try:
            ours.close()
            put_filter_on_myself(theirs)
            theirs.close()
            code = do()
        finally:
            os._exit(code)
    theirs.close()
    with ours:
        listeners = socket.recv_fds(ours, 1, 1)[1]
    if not listeners:
        os.waitpid(child, 0)
        raise OSError(errno.ENOSYS, "this system lets no process watch another's system calls")
    watch.processes[child] = child
    try:
        over = _serve(listeners[0], watch, time.monotonic() + limit)
    finally:
        os.close(listeners[0])
        for pid in set(watch.processes.values()) if not over else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if over else None


def possible() -> bool:
    """Whether this system lets a process watch another one's calls in this way."""
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"):
        return False
    try:
        return watched(lambda: 0, Watch({}), 10.0) == 0
    except OSError:
        return False


def _serve(listener: int, watch: Watch, until: float) -> bool:
    """Answer until no watched process is left -> whether that came in time."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while time.monotonic() < until:
        for _, events in poll.poll(500):
            if events & select.POLLIN:
                _answer(listener, watch)
            elif events & select.POLLHUP:
                return True
    return False


def _answer(listener: int, watch: Watch) -> None:
    asked = bytearray(NOTIFICATION.size)
    try:
        fcntl.ioctl(listener, RECEIVE, asked)
    except OSError:  # who asked is dead
        return
    identity, task, _flags, number, _arch, _ip, *args = NOTIFICATION.unpack(asked)
    call = watch.see(NUMBERS[number], task, tuple(args))
    if task not in watch.processes:
        watch.processes[task] = _process_of(task)
    value, error, flags = 0, 0, CONTINUE
    if call and watch.decide(call):
        value, error, flags = _strike(watch, NUMBERS[number], task, tuple(args))
    with suppress(OSError):  # it died meanwhile
        fcntl.ioctl(listener, SEND, ANSWER.pack(identity, value, error, flags))


def _strike(watch: Watch, name: str, task: int, args: tuple[int, ...]) -> tuple[int, int, int]:
    """Carry the fault out -> what the call gives: value, error, flags."""
    fault = watch.fault
    assert fault is not None
    half = _half(name, watch.processes[task], args) if fault.short and watch.struck == 1 else 0
    if fault.what != KILL:
        return (half, 0, 0) if half else (0, -int(fault.what), 0)
    victims = set(watch.processes.values()) if fault.everyone else {watch.processes[task]}
    for pid in victims - {0}:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return half, 0, 0


def _process_of(task: int) -> int:
    with suppress(OSError), open(f"/proc/{task}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Tgid"))
    return 0


def _half(name: str, pid: int, args: tuple[int, ...]) -> int:
    """Write half of what a process asks to have written -> bytes; 0 where that is not to be had."""
    if name not in ("write", "pwrite64") or args[2] < 2:
        return 0
    data = _memory(pid, args[1], args[2] // 2)
    with _descriptor(pid, args[0]) as mine:
        if mine < 0:
            return 0
        return os.write(mine, data) if name == "write" else os.pwrite(mine, data, args[3])


@contextmanager
def _descriptor(pid: int, number: int) -> Iterator[int]:
    """Another process's open file, as one of ours."""
    process = LIBC.syscall(PIDFD_OPEN, pid, 0)
    mine = LIBC.syscall(PIDFD_GETFD, process, number, 0) if process >= 0 else -1
    try:
        yield mine
    finally:
        for descriptor in (mine, process):
            if descriptor >= 0:
                os.close(descriptor)
