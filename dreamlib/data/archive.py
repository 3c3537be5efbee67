"""Image files wherever they lie: a folder, a zip, parquet files.  Read in place, never extracted.

So there is nothing to escape from a folder; archives that try to are refused all the same, because
somebody else may unpack them.
"""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from threading import Lock
from types import MappingProxyType
from typing import Any, NamedTuple

from dreamlib.errors import DataError

EXTENSIONS = frozenset({"jpg", "jpeg", "png", "bmp", "gif", "webp", "tif", "tiff", "ppm"})
LARGEST_FILE = 256 * 2**20  # bytes of one member, unpacked
LARGEST_ARCHIVE = 64 * 2**30  # bytes of all members together, unpacked
LARGEST_RATIO = 200  # of unpacked to packed bytes; JPEG and PNG do not shrink at all


class Files(NamedTuple):
    """Names, with forward slashes and sorted, and how to read one; safe to call from threads."""

    place: str
    names: tuple[str, ...]
    read: Callable[[str], bytes]
    # of parquet files: true-or-false column -> name -> value
    flags: Mapping[str, dict[str, bool]] = MappingProxyType({})


def open_files(place: Path | str) -> Files:
    """The files of a folder, a zip, a parquet file, or a folder of parquet files.

    Hidden files are not looked at.  DataError when there is nothing of that name, or when the
    archive is damaged or hostile.
    """
    place = Path(place)
    if place.is_dir():
        files = folder_files(place)
        endings = {name.rpartition(".")[2].lower() for name in files.names}
        if "parquet" in endings and not endings & EXTENSIONS:
            return parquet_files(sorted(place.rglob("*.parquet"), key=_part_order))
        return files
    if not place.is_file():
        raise DataError(f"there is no folder or archive {place}: check the path")
    if place.suffix.lower() == ".parquet":
        return parquet_files([place])
    return zip_files(place)


def _part_order(path: Path) -> tuple[int, str]:
    """The hub's parts in their usual order: train, validation, test; numbered inside each."""
    parts = ("train", "val", "test")
    found = [i for i, part in enumerate(parts) if path.name.startswith(part)]
    return (found[0] if found else len(parts), path.name)


def folder_files(folder: Path) -> Files:
    names = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return Files(str(folder), _visible(names), lambda name: (folder / name).read_bytes())


def zip_files(path: Path) -> Files:
    """Raises DataError for a zip with members that point outside it, links, or bombs."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
        raise DataError(
            f"{path} is not a whole zip file ({error}): fetch it again, or name a folder"
        ) from error
    members = [info for info in archive.infolist() if not info.is_dir()]
    for info in members:
        if reason := _refusal(info):
            raise DataError(f"{path} is refused: its member {info.filename!r} {reason}")
    check_unpacked(path, members)
    names = [info.filename for info in members]
    if len(set(names)) != len(names):
        raise DataError(f"{path} is refused: it holds two members of one name")
    return Files(str(path), _visible(names), archive.read)


def check_unpacked(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Raises DataError for members that would unpack to far more than they are."""
    packed, unpacked = (sum(getattr(i, k) for i in members) for k in ("compress_size", "file_size"))
    if unpacked > LARGEST_ARCHIVE or unpacked > LARGEST_RATIO * max(packed, 2**20):
        raise DataError(
            f"{path} is refused: its {packed:,} bytes would unpack to {unpacked:,}; if you trust "
            "it, unpack it yourself and name what is in it"
        )


def _refusal(info: zipfile.ZipInfo) -> str:
    """Why a member makes its archive untrustworthy; '' when it does not."""
    name = info.filename
    windows = PureWindowsPath(name)
    if name.startswith("/") or windows.drive or "\\" in name or ".." in PurePosixPath(name).parts:
        return "points outside the archive"
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        return "is a link or a device, not a file"
    if info.flag_bits & 1:
        return "is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # Python unpacks these in pieces without a bound, whatever size the member claims
        return "is compressed in another way than zip's usual one: unpack it and name the folder"
    if info.file_size > LARGEST_FILE:
        return f"would unpack to {info.file_size:,} bytes"
    return ""


def _visible(names: Iterator[str] | Sequence[str]) -> tuple[str, ...]:
    def hidden(name: str) -> bool:
        return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))

    return tuple(sorted(name for name in names if not hidden(name)))


class _Row(NamedTuple):
    file: int
    group: int
    row: int


def parquet_files(paths: Sequence[Path]) -> Files:
    """Images of parquet files with an `image` column, as the Hugging Face hub stores them.

    Names are the stored paths, or numbers when there are none; neighbours lie in one row group,
    which is kept, so that reading in order decodes each group once.
    """
    groups = list(_row_groups(paths))
    names: dict[str, _Row] = {}
    for file, group, images in groups:
        for row, path in enumerate(images("path")):
            name = path or f"{len(names) + 1:06d}.jpg"
            if name in names:
                raise DataError(f"{paths[file]} holds a second image of the name {name}")
            names[name] = _Row(file, group, row)
    kept: dict[tuple[int, int], list[bytes]] = {}
    lock = Lock()
    opener = {(file, group): images for file, group, images in groups}

    def read(name: str) -> bytes:
        file, group, row = names[name]
        with lock:
            if (file, group) not in kept:
                kept.clear()
                kept[file, group] = opener[file, group]("bytes")
            return kept[file, group][row]

    return Files(str(paths[0].parent), tuple(sorted(names)), read, _flags(paths, list(names)))


def _flags(paths: Sequence[Path], names: list[str]) -> dict[str, dict[str, bool]]:
    """The true-or-false columns that all files have; `names` are in the files' own order."""
    import pyarrow
    from pyarrow import parquet

    schemas = [parquet.read_schema(path) for path in paths]
    shared = [
        field.name
        for field in schemas[0]
        if all(s.get_field_index(field.name) >= 0 for s in schemas)
        and all(s.field(field.name).type == pyarrow.bool_() for s in schemas)
    ]
    if not shared:
        return {}
    table = pyarrow.concat_tables(parquet.read_table(path, columns=shared) for path in paths)
    return {name: dict(zip(names, table.column(name).to_pylist())) for name in shared}


def _row_groups(paths: Sequence[Path]) -> Iterator[tuple[int, int, Callable[[str], list[Any]]]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError("parquet files need pyarrow: pip install pyarrow") from error
    for number, path in enumerate(paths):
        try:
            file = parquet.ParquetFile(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path} is not a whole parquet file ({error})") from error
        fields = {field.name: field.type for field in file.schema_arrow}
        if "image" not in fields or not pyarrow.types.is_struct(fields["image"]):
            raise DataError(f"{path} has no column 'image' of bytes and path, but {list(fields)}")
        for group in range(file.num_row_groups):

            def images(field: str, file: Any = file, group: int = group) -> list[Any]:
                column = file.read_row_group(group, columns=[f"image.{field}"]).column("image")
                return [entry[field] for entry in column.to_pylist()]

            yield number, group, images
