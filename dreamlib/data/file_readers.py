"""Image files wherever they lie: a folder, a zip, parquet files.  Read in place, never extracted.

So nothing can escape from a folder; archives that try to are refused all the same, because somebody
else may unpack them.
"""

from __future__ import annotations

import os
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import IO, NamedTuple

from PIL import Image

from dreamlib.utils.errors import DataError

# Of pictures.  Pillow goes by a file's content and knows more formats, some of which (PostScript)
# have it start another program.
FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000"),
    *("MPO", "PCX", "PNG", "PPM", "SGI", "TGA", "TIFF", "WEBP"),
)
LARGEST_PICTURE = Image.MAX_IMAGE_PIXELS or 2**26  # pixels; Pillow begins to warn there
LARGEST_FILE = 256 * 2**20  # bytes of one file, unpacked
LARGEST_ARCHIVE = 64 * 2**30  # bytes of all members together, unpacked
LARGEST_RATIO = 200  # of unpacked to packed bytes; JPEG and PNG do not shrink at all


class Files(NamedTuple):
    """Names, with forward slashes and sorted, and how to read one; safe to call from threads.

    `read` raises DataError when the source fails, and something else when a file in it is bad.
    """

    place: str
    names: tuple[str, ...]
    read: Callable[[str], bytes]
    # of parquet files: true-or-false column -> name -> value
    flags: Mapping[str, dict[str, bool]] = MappingProxyType({})
    classes: Mapping[str, str] = MappingProxyType({})  # name -> class, where they have a column


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
    from dreamlib.data.parquet import parquet_files  # which reads by what stands here

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


def ending(name: str) -> str:
    return PurePosixPath(name).suffix[1:].lower()


def formats() -> list[str]:
    """Those that Pillow, with the plugins there are, opens here."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def extensions() -> set[str]:
    """The endings of files that may be images: jpg, jpeg, jfif, png and so on."""
    known = {*formats(), "MPO"}  # which Pillow opens as a kind of JPEG
    return {end[1:] for end, name in Image.registered_extensions().items() if name in known}


def open_image(file: Path | str | IO[bytes]) -> Image.Image:
    """Pillow's Image.open, for pictures of a size that can be meant."""
    picture = Image.open(file, formats=formats())
    if picture.width * picture.height > LARGEST_PICTURE:
        raise Image.DecompressionBombError(
            f"it has {picture.width:,} x {picture.height:,} pixels, and more than "
            f"{LARGEST_PICTURE:,} are not read: make it smaller"
        )
    return picture


def images_among(files: Files) -> tuple[list[str], str]:
    """The names of files that may be images, and what is to be said of the others ("" for none)."""
    known = extensions()
    names = [name for name in files.names if ending(name) in known]
    others = Counter(end for end in map(ending, files.names) if end not in known)
    kinds = ", ".join(f"{n:,} {'.' + end if end else '?'}" for end, n in others.most_common(5))
    return names, f"files not looked at: {others.total():,} ({kinds})" if others else ""


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
