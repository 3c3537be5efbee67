"""Files that are whole or absent: atomic writes, hashes, fingerprints."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PureWindowsPath
from typing import IO, Any, Protocol

import numpy as np

# What numpy raises for files of arrays that are damaged, or none at all
DAMAGED = (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)
TEMPORARY = re.compile(r"^\..+\.([0-9a-f]{8})\.\d+\.(\d+)\.tmp$")


def boot_id() -> str:
    """Which start of which machine, and which of its containers, process numbers are of; '' where
    the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


PLACE = hashlib.sha256(boot_id().encode()).hexdigest()[:8]


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError of an open file's read, write or close knows its file."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # numpy's "38400 requested and 8064 written"
            text = f"not written whole: {error}"
            raise OSError(errno.ENOSPC, text, str(path)) from error
        error.filename = error.filename or str(path)
        raise


def readable(name: str) -> str:
    """A file's name as text that every file of ours takes: bytes that are no UTF-8 as '\\udcb0'."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def sync(file: IO[bytes]) -> None:
    """Wait until what was written is safe from a power cut."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` durable (POSIX asks for this; Windows has no such call)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with naming(folder):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Let `write` fill a temporary file, then put it in place: the old file or the new one.

    Order: write, flush, fsync(file), rename, fsync(folder).  A failed write leaves no debris.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two threads may write the same file, and two containers whose processes have one number.
    writer = f"{PLACE}.{threading.get_native_id()}.{os.getpid()}"
    temporary = path.with_name(f".{path.name}.{writer}.tmp")
    try:
        with naming(path), open(temporary, "wb") as file:
            write(file)
            sync(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sweep(folder: Path) -> None:
    """Remove temporary files of `write_atomic` that killed processes left in and below `folder`."""
    for path in folder.rglob(".*.tmp"):
        if match := TEMPORARY.match(path.name):
            place, process = match.groups()
            with suppress(OSError):  # it is gone, or not ours to remove
                # Of this process and of what runs elsewhere, a day's rest tells that it is left.
                rest = time.time() - path.stat().st_mtime
                known = boot_id() and place == PLACE and process != str(os.getpid())
                if rest > 86400 or (known and not Path(f"/proc/{process}").exists()):
                    path.unlink()


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    write_atomic(path, lambda file: file.write(data))


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_npy(path: Path, array: np.ndarray) -> str:
    """Write an array -> the file's SHA-256, found before it is written.  OSError when the disk
    gives back anything else: into a file, numpy's own writer loses the error of the last block."""
    memory = io.BytesIO()
    np.save(memory, array, allow_pickle=False)
    digest = hashlib.sha256(memory.getbuffer()).hexdigest()
    write_bytes(path, memory.getbuffer())
    if sha256_file(path) != digest:
        raise OSError(errno.EIO, "what was written cannot be read back", str(path))
    return digest


def read_npy(path: Path) -> np.ndarray | None:
    """An array that `write_npy` wrote; None when there is none, or no whole one."""
    return read_npz(path).get("arr_0")


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; {} when there is none, or no whole one."""
    try:
        return load_arrays(path)
    except (FileNotFoundError, *DAMAGED):
        return {}


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, or an .npy file's as arr_0.  FileNotFoundError, or DAMAGED."""
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return {"arr_0": loaded}
    with loaded:
        return dict(loaded)


def parse_json(text: str | bytes) -> Any:
    """ValueError, of one kind or another, for everything that is no JSON."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: Path) -> Any:
    with naming(path):
        return parse_json(path.read_text(encoding="utf-8"))


def check_fields(value: Any, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
    """`value`, if it is a JSON object with at least these fields (those that may be None may be
    absent) and numbers in reason; else ValueError."""
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    for name, kind in kinds.items():
        field = value.get(name)
        wild = isinstance(field, (int, float)) and not abs(field) < 1e15  # NaN is, too
        if wild or not isinstance(field, kind):
            raise ValueError(f"its {name} is odd" if name in value else f"it has no {name}")
    return value


def plain_name(name: Any) -> str:
    """`name`, if it is one component of a path on every system; else ValueError."""
    plain = isinstance(name, str) and name not in ("", "..") and "\0" not in name
    if not plain or PureWindowsPath(name).name != name:  # which knows / and \\ and drives
        raise ValueError(f"{name!r} is no plain name")
    return name


def sha256_file(path: Path) -> str:
    with naming(path), open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_array(array: np.ndarray) -> str:
    """Hash of dtype, shape and values, read in blocks so that a memmap is never held whole."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    for start in range(0, len(array), 1024):
        digest.update(array[start : start + 1024].tobytes())
    return digest.hexdigest()


class ArrayRows(Protocol):
    """An array, or what reads an array's rows when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def ndim(self) -> int: ...
    @property
    def dtype(self) -> np.dtype: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> np.ndarray: ...


def row_hashes(array: ArrayRows) -> list[bytes]:
    """A short hash of every row: equal rows have equal ones."""
    return [
        hashlib.blake2b(row.tobytes(), digest_size=12).digest()
        for start in range(0, len(array), 1024)
        for row in array[start : start + 1024]
    ]


def fingerprint(value: Any) -> str:
    """Hash of a JSON value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def seal(record: dict[str, Any]) -> dict[str, Any]:
    """A record with a hash of itself, by which `sealed` sees whether it has been altered."""
    return {**record, "seal": fingerprint(record)}


def sealed(record: Any) -> bool:
    if not isinstance(record, dict):
        return False
    rest = {key: value for key, value in record.items() if key != "seal"}
    try:
        return record.get("seal") == fingerprint(rest)
    except ValueError:  # NaN, which JSON does not have
        return False


def no_link(path: str, flags: int) -> int:
    """For `open(..., opener=no_link)`: OSError when a symbolic link stands there.  A folder that
    one was given may hold some, and they lead anywhere."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def is_own(path: Path) -> bool:
    """A file that lies here itself: neither it nor the folder it is in is a symbolic link."""
    return path.is_file() and not path.is_symlink() and not path.parent.is_symlink()


def try_lock(file: Any) -> bool:
    """Lock an open file for this process; False when another holds it.  Closing it frees it, as
    does the system when its owner dies."""
    if os.name == "nt":
        import msvcrt

        try:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def exclusive(
    path: Path, every: float = 0.05, waiting: Callable[[], Any] = lambda: None
) -> Iterator[None]:
    """Hold the lock file `path`, waiting for whoever holds it; `waiting` is called once then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b", opener=no_link) as file:
        if not try_lock(file):
            waiting()
            while not try_lock(file):
                time.sleep(every)
        yield
