"""A folder as a mirror: single files on a mount that may upload late, run full, or vanish."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PurePath
from typing import IO, Any, Protocol

from dreamlib.utils.errors import MirrorError
from dreamlib.utils.files import check_fields, naming, parse_json

UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)  # what a mount answers to fsync
BELIEVABLE = 2**50  # bytes: mounts without a limit make up a number beyond it
RCLONE = "RCLONE_RC_ADDR"  # rclone's own name for where `rclone mount --rc` answers
BLOCK = 1 << 20
SAID = 200  # characters of a server's words that are passed on


class Store(Protocol):
    """Where copies go: five calls.  Names are paths below `home`, with slashes.

    Every error is an OSError whose `filename` lies below `home`; FileNotFoundError only where the
    file is surely absent, FileExistsError where `replace` found another content than was `known`.
    """

    @property
    def home(self) -> Path | str:
        """A folder, or an address without its last slash."""
        ...

    @property
    def at_once(self) -> int:
        """How many files may be on their way together."""
        ...

    @property
    def lease(self) -> bool:
        """Whether `replace` may be relied on to refuse; that endpoints differ, `Mirror` finds."""
        ...

    def create(self, name: str, blocks: Iterable[bytes], size: int) -> bool | None:
        """A file of `size` bytes, over a torn one of its name -> whether the store has answered
        with these bytes' hash; else they are to be read back."""
        ...

    def replace(self, name: str, data: bytes, known: str | None = None) -> str:
        """Put small `data` in the place of the content of tag `known` ('': of none; None: of any)
        -> its tag."""
        ...

    def read(self, name: str) -> tuple[str, Iterator[bytes]]:
        """The content's tag, and the content."""
        ...

    def list(self, under: str) -> dict[str, int]:
        """Bytes by name of all files below a folder, as they are now."""
        ...

    def delete(self, *names: str) -> None:
        """Remove files that may be gone already."""
        ...


class Folder:
    """A folder that outlives this machine: `Store` on a file system."""

    at_once = 1
    lease = False  # a mount shows late what others wrote: `runs/lock.py` waits and watches

    def __init__(self, home: Path):
        self.home = home

    def create(self, name: str, blocks: Iterable[bytes], size: int) -> None:
        path = self.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as copy:
            for block in blocks:
                copy.write(block)
            sync(copy)

    def replace(self, name: str, data: bytes, known: str | None = None) -> str:
        """Straight to its name: a rename promises nothing on a mount that uploads later."""
        self.create(name, [data], len(data))
        return ""

    def read(self, name: str) -> tuple[str, Iterator[bytes]]:
        return "", whole(open(self.home / name, "rb"))

    def list(self, under: str) -> dict[str, int]:
        found = {}
        for folder, _, names in os.walk(self.home / under, onerror=_refused):
            for name in names:
                path = Path(folder, name)
                with suppress(FileNotFoundError):
                    found[path.relative_to(self.home).as_posix()] = path.stat().st_size
        return found

    def delete(self, *names: str) -> None:
        for name in names:
            discard(self.home / name)

    # ------------------------------------------------------------------ what only a folder has

    def uploaded(self, names: Iterable[str]) -> str:
        """'uploaded', 'uploading', 'refused' or 'unknown': what its mount says of these files."""
        ids = [drive_id(self.home / name) for name in names]
        if any(identity is None for identity in ids):
            return rclone_says() if filesystem_of(self.home) == "fuse.rclone" else "unknown"
        return "uploading" if any(i.startswith(b"local") for i in ids if i) else "uploaded"

    def complaint(self) -> str:
        """What its mount last met, in words; '' where nothing is known."""
        return rclone_error() if filesystem_of(self.home) == "fuse.rclone" else ""

    @property
    def vouched(self) -> bool:
        """Whether a file that reads back well is stored: not through a FUSE mount, which gives it
        back from this machine while its server refuses it."""
        return not filesystem_of(self.home).startswith("fuse")

    def room(self) -> str:
        """Of the disk, in words; '' where the mount makes it up."""
        free = shutil.disk_usage(self.home).free
        return f"; {free / 2**20:,.0f} MiB are free there" if free < BELIEVABLE else ""


def _refused(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def content(store: Store, name: str) -> Any:
    """A small JSON file.  ValueError when it is none."""
    return parse_json(b"".join(store.read(name)[1]))


def dumped(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, indent=1) + "\n").encode()


def write_record(path: Path, record: dict[str, Any]) -> None:
    Folder(path.parent).replace(path.name, dumped(record))


def sync(file: IO[bytes]) -> None:
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def discard(path: Path) -> None:
    """Empty, then delete: a deleted file keeps using quota while it lies in a Drive's trash."""
    with suppress(OSError):  # some mounts refuse it while they upload; what counts comes next
        if not path.is_symlink():
            os.truncate(path, 0)
    path.unlink(missing_ok=True)


def holds(path: Path, entry: dict[str, Any]) -> bool:
    """Whether a file here is the one that an entry of a manifest describes."""
    try:
        if path.stat().st_size != entry["size"]:
            return False
    except FileNotFoundError:
        return False
    with open(path, "rb") as file:
        return hash_of(blocks(file, entry["size"])) == entry["sha256"]


def whole(file: IO[bytes]) -> Iterator[bytes]:
    with file, naming(Path(file.name)):
        yield from iter(lambda: file.read(BLOCK), b"")


def blocks(file: IO[bytes], size: int) -> Iterator[bytes]:
    """The first `size` bytes: a log may grow while it is read."""
    file.seek(0)
    while size > 0 and (block := file.read(min(size, BLOCK))):
        size -= len(block)
        yield block


def hash_of(blocks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def hashing(blocks: Iterable[bytes], digest: Any) -> Iterator[bytes]:
    for block in blocks:
        digest.update(block)
        yield block


def inside(folder: Path, name: str) -> Path:
    """A path below `folder`; MirrorError for a name that a forged manifest leads elsewhere with."""
    odd = PurePath(name).anchor or not {"", ".", ".."}.isdisjoint(name.split("/"))
    if odd or "\\" in name or "\0" in name:
        raise MirrorError(f"a manifest in the mirror names {name!r}, outside its folder: delete it")
    return folder / name


def drive_id(path: Path) -> bytes | None:
    """What a mounted Drive calls a file: begins with b"local" until it has been uploaded."""
    if not hasattr(os, "getxattr"):
        return None
    try:
        return os.getxattr(path, "user.drive.id")
    except OSError:  # no such attribute, or no attributes at all: any other folder
        return None


def filesystem_of(path: Path) -> str:
    """The type of the file system that a path lies on, as Linux names it; '' elsewhere."""
    try:
        mounts = Path("/proc/self/mounts").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    spoken = {point: kind for _, point, kind, *_ in (line.split(" ") for line in mounts)}
    plain = {re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), at): spoken[at] for at in spoken}
    here = os.path.abspath(path)  # not resolved: what it leads through may hang
    held = (at for at in plain if here == at or here.startswith(at.rstrip("/") + "/"))
    return plain.get(max(held, key=len, default=""), "")


def rclone_says() -> str:
    """What `rclone mount --rc` knows of the files that wait for its server; 'unknown' when it does
    not answer."""
    try:
        cache = check_fields(_rclone("vfs/stats"), diskCache=dict)["diskCache"]
        waiting = check_fields(cache, uploadsQueued=int, uploadsInProgress=int)
    except (OSError, ValueError):
        return "unknown"
    if cache.get("erroredFiles") or cache.get("outOfSpace"):
        return "refused"
    return "uploading" if waiting["uploadsQueued"] + waiting["uploadsInProgress"] else "uploaded"


def rclone_error() -> str:
    """The last error that `rclone mount --rc` has met, in its server's words; '' for none.  A file
    that is refused stays in the queue, and vfs/stats does not count it as errored."""
    try:
        said = check_fields(_rclone("core/stats"), lastError=str)["lastError"]
    except (OSError, ValueError):
        return ""
    words = re.sub(r"<[^>]*>", " ", said)  # some servers answer with a page
    return " ".join("".join(c if c.isprintable() else " " for c in words).split())[-SAID:]


def _rclone(question: str) -> Any:
    address = os.environ.get(RCLONE, "localhost:5572").removeprefix("http://")
    with urllib.request.urlopen(f"http://{address}/{question}", b"", timeout=2) as answer:
        return parse_json(answer.read())
