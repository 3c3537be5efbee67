"""Image files wherever they lie: a folder, a zip, parquet files.  Read in place, never extracted.

So nothing can escape from a folder; archives that try to are refused all the same, because somebody
else may unpack them.
"""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

from dreamlib.data.formats import LARGEST_RATIO, Files, ending, extensions
from dreamlib.data.parquet import parquet_files
from dreamlib.utils.errors import DataError

LARGEST_FILE = 256 * 2**20  # bytes of one file, unpacked
LARGEST_ARCHIVE = 64 * 2**30  # bytes of all members together, unpacked


def open_files(place: Path | str) -> Files:
    """The files of a folder, a zip, a parquet file, or a folder of parquet files.

    Links are followed, hidden files left out.  DataError for what is absent, damaged or hostile.
    """
    with reading(place, below=True):
        files = _opened(Path(place))

    def read(name: str) -> bytes:
        with reading(f"{name} in {files.place}"):
            return files.read(name)

    return files._replace(read=read)


def _opened(place: Path) -> Files:
    if place.is_dir():
        files = folder_files(place)
        tables = [place / name for name in files.names if ending(name) == "parquet"]
        if tables and not extensions() & set(map(ending, files.names)):
            # the hub's parts in their usual order; numbered inside each
            parts = ("train", "val", "test")
            tables.sort(key=lambda p: ([not p.name.startswith(part) for part in parts], p.name))
            return parquet_files(tables)
        return files
    if not place.is_file():
        raise DataError(f"there is no folder or archive {place}: check the path")
    return parquet_files([place]) if ending(place.name) == "parquet" else _zip_files(place)


@contextmanager
def reading(what: Path | str, below: bool = False) -> Iterator[None]:
    """The disk's errors, or the mount's, as DataError of `what`, or of the place `below` it."""
    try:
        yield
    except OSError as error:
        what = (below and error.filename) or what
        raise DataError(
            f"{what} cannot be read ({error.strerror or error}): see that it is there and may be "
            "read (a mounted folder may have to be mounted again), then run the same command or "
            "cell again; what is packed already is kept"
        ) from error  # the file itself may be good


def folder_files(folder: Path) -> Files:
    """Raises OSError for a folder that cannot be listed."""

    def read(name: str) -> bytes:
        path = folder / name
        if (size := path.stat().st_size) > LARGEST_FILE:
            raise ValueError(f"it has {size:,} bytes, and more than {LARGEST_FILE:,} are not read")
        return path.read_bytes()

    return Files(str(folder), tuple(sorted(_below(str(folder)))), read)


def _below(folder: str, start: str = "", above: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """Names of files, through links to folders but those that this folder lies in itself."""
    info = os.stat(folder)
    here = info.st_dev, info.st_ino
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if not _hidden(entry.name):
                if entry.is_dir():
                    yield from _below(entry.path, f"{start}{entry.name}/", (*above, here))
                elif entry.is_file() or entry.is_symlink():  # to nowhere: reading it says so
                    yield start + entry.name


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def _zip_files(path: Path) -> Files:
    """Raises DataError for a zip with members that point outside it, links, or bombs."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(
            f"{path} is not a whole zip file ({error}): fetch it again; unpack an archive of "
            "another kind, such as a tar, and name its folder"
        ) from error
    # Some programs write Windows' backslashes
    named = [(info.filename.replace("\\", "/"), info) for info in archive.infolist()]
    members = [(name, info) for name, info in named if not name.endswith("/")]
    for name, info in members:
        if reason := _refusal(name, info):
            raise DataError(f"{path} is refused: its member {info.filename!r} {reason}")
    check_unpacked(path, [info for _, info in members])
    by_name = dict(members)
    if len(by_name) != len(members):
        raise DataError(f"{path} is refused: it holds two members of one name")
    names = tuple(sorted(name for name in by_name if not _hidden(name)))
    return Files(str(path), names, lambda name: archive.read(by_name[name]))


def check_unpacked(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Raises DataError for members that would unpack to far more than they are."""
    packed, unpacked = (sum(getattr(i, k) for i in members) for k in ("compress_size", "file_size"))
    if unpacked > LARGEST_ARCHIVE or unpacked > LARGEST_RATIO * max(packed, 2**20):
        raise DataError(
            f"{path} is refused: its {packed:,} bytes would unpack to {unpacked:,}; if you trust "
            "it, unpack it yourself and name what is in it"
        )


def _refusal(name: str, info: zipfile.ZipInfo) -> str:
    """Why a member makes its archive untrustworthy; '' when it does not."""
    rooted = name.startswith("/") or PureWindowsPath(name).drive
    kind = stat.S_IFMT(info.external_attr >> 16)
    # Python unpacks these in pieces without a bound, whatever size the member claims
    rare = info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    reasons = {
        "points outside the archive": rooted or ".." in PurePosixPath(name).parts,
        "is a link or a device, not a file": kind not in (0, stat.S_IFREG),
        "is encrypted": info.flag_bits & 1,
        "is compressed in another way than zip's usual one: unpack it and name the folder": rare,
        f"would unpack to {info.file_size:,} bytes": info.file_size > LARGEST_FILE,
    }
    return next((reason for reason, true in reasons.items() if true), "")
