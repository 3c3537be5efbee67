"""Single files on a mount that may upload late, run full, or vanish."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PurePath
from typing import IO, Any

from dreamlib.data.dataset import MANIFEST, Packed
from dreamlib.utils.errors import MirrorError
from dreamlib.utils.files import check_fields, read_json, seal

MARKER = "dreamlib-mirror.json"
UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)  # what a mount answers to fsync
Through = Callable[[Iterable[bytes]], Iterable[bytes]]


def copy_pack(data: Packed, home: Path, through: Through = iter) -> None:
    """Copy packed images into the mirror's data/ under their own names, the manifest last, unless
    they are there.  Every block passes `through`, on its way there and back."""
    folder, there = data.folder, home / "data" / data.folder.name
    if not data.manifest["files"] or (
        size_of(there / MANIFEST) is not None
        and (there / MANIFEST).read_bytes() == (folder / MANIFEST).read_bytes()
    ):
        return
    there.mkdir(parents=True, exist_ok=True)
    for name in (*data.manifest["files"], MANIFEST):
        with open(folder / name, "rb") as source, open(there / name, "wb") as copy:
            size = os.fstat(source.fileno()).st_size
            sha256 = hash_of(_tee(through(blocks(source, size)), copy))
            sync(copy)
        with open(there / name, "rb") as copy:
            back = hash_of(through(blocks(copy, size)))
        if back != sha256:
            raise OSError(errno.EIO, "reads back differently than written", str(there / name))


def _tee(blocks: Iterable[bytes], file: IO[bytes]) -> Iterator[bytes]:
    for block in blocks:
        file.write(block)
        yield block


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Straight to its name: a rename promises nothing on a mount that uploads later."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write((json.dumps(record, indent=1) + "\n").encode())
        sync(file)


def marker_id(home: Path, known: str) -> str:
    """The id in a mirror's marker file, made where there is none yet.

    Where a mount is gone, its empty mount point looks like a folder on this machine's own disk: a
    marker tells them apart.  A torn one (its writer was killed, a cloud folder emptied it) tells as
    much, and is written again.  OSError when the mirror is not there; `known` is its id if it was.
    """
    if not home.parent.is_dir():
        raise OSError(errno.ENOTCONN, "the folder it lies in is not there", str(home))
    try:
        return check_fields(read_json(home / MARKER), id=str)["id"]
    except (FileNotFoundError, ValueError) as error:
        if isinstance(error, FileNotFoundError) and known:
            raise OSError(errno.ENOTCONN, "it is not mounted", str(home)) from error
    made = known or uuid.uuid4().hex
    write_record(home / MARKER, seal({"id": made}))
    return made


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


def size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def holds(path: Path, entry: dict[str, Any], through: Through = iter) -> bool:
    """Whether a file is the one that an entry of a manifest describes."""
    if size_of(path) != entry["size"]:
        return False
    with open(path, "rb") as file:
        return hash_of(through(blocks(file, entry["size"]))) == entry["sha256"]


def blocks(file: IO[bytes], size: int) -> Iterator[bytes]:
    """The first `size` bytes: a log may grow while it is read."""
    file.seek(0)
    while size > 0 and (block := file.read(min(size, 1 << 20))):
        size -= len(block)
        yield block


def hash_of(blocks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


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
