"""Pack any image set once, streaming, resumable: `pack(source, folder)`.

Rows are appended to `images.npy.part`; what is known of them, one line each, to `index.jsonl`.  A
line is written after its pixels are safe on the disk, so after a kill the index says how many rows
are good, and packing goes on behind them.  The manifest comes last: a folder without one is no
pack.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from dreamlib.data.dataset import (
    FORMAT,
    IMAGES,
    INDEX,
    LABELS,
    MANIFEST,
    SPLIT,
    SPLITS,
    Contents,
    Item,
    Packed,
    Source,
    holds,
    open_packed,
    pack_fingerprint,
    read_manifest,
    wanted,
)
from dreamlib.utils import files
from dreamlib.utils.context import progress, say
from dreamlib.utils.errors import DataError, what_failed

PART, LOCK = f"{IMAGES}.part", "lock"
SAFE_EVERY = 500  # images between two waits for the disk; at most as many are decoded twice


def pack(source: Source, folder: Path | str) -> Packed:
    """Stream a source into `folder`, unless that was done already, and open it.

    Interrupted packing goes on where it was; what another process packs is waited for.  A folder
    packed from another description is packed again in place.  DataError when no image is usable,
    or when the source fails.
    """
    folder = Path(folder)
    if holds(folder, source):
        return open_packed(folder)
    with _alone(folder):
        if holds(folder, source):  # it was packed while we looked
            return open_packed(folder)
        files.sweep(folder)
        contents = source.open()  # before anything is taken away: it may not be there any more
        if (folder / MANIFEST).is_file():  # of something else
            for name in (MANIFEST, INDEX, PART, IMAGES):
                (folder / name).unlink(missing_ok=True)
        writer = _Writer(source, contents, folder)
        begun = writer.begun()
        label = f"packing {source.name}" + (f" (going on behind {begun:,})" if begun else "")
        advance = progress(label, contents.count - begun)
        writer.write(iter(contents.items(begun)), advance)
        if not writer.used:
            for name in (PART, INDEX):
                (folder / name).unlink()
            raise _nothing_usable(source, writer.rejects)
        writer.finish()
    return open_packed(folder)


def _alone(folder: Path) -> AbstractContextManager[None]:
    """Nobody else packs this folder, or brings it, meanwhile."""
    return files.exclusive(
        folder / LOCK, waiting=lambda: say(f"waiting for another process, which packs {folder}")
    )


def bring(there: Path, folder: Path) -> None:
    """Copy a pack from another place, unless one is here already or none is there.

    It is verified beside its place before it takes it; a damaged one is said and passed over.
    """
    beside = folder.with_name(f".{folder.name}.brought")
    try:
        if beside.exists():  # left by a kill, or by a disk that failed
            with _alone(folder):
                shutil.rmtree(beside, ignore_errors=True)
        if (folder / MANIFEST).is_file() or not (there / MANIFEST).is_file():
            return
        with _alone(folder):
            if not (folder / MANIFEST).is_file():  # nor since we looked
                _copy(there, folder, beside)
                say(f"brought the packed images from {there}")
    except (OSError, DataError) as error:
        say(f"the packed images in {there} are passed over: {what_failed(error)}")


def _copy(there: Path, folder: Path, beside: Path) -> None:
    names = (*read_manifest(there)["files"], MANIFEST)
    try:
        for name in names:
            with open(there / name, "rb") as source:
                files.write_atomic(beside / name, partial(shutil.copyfileobj, source))
        open_packed(beside).verify()
        (folder / PART).unlink(missing_ok=True)
        for name in names:  # the manifest last
            os.replace(beside / name, folder / name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


class _Line(NamedTuple):
    """What the index says of one item."""

    name: str
    reject: str = ""
    split: str = ""
    labels: tuple[int, ...] = ()
    sha256: str = ""  # of the pixels
    shape: tuple[int, ...] = ()  # of every image; the first line that has one says it

    @classmethod
    def of(cls, text: bytes) -> _Line | None:
        """What `text` wrote; None for anything else."""
        try:
            fields = files.check_fields(files.parse_json(text), name=str)
            lists = {key: tuple(map(int, fields.get(key, ()))) for key in ("labels", "shape")}
            line = cls(**fields | lists)
            return line if line.reject or line.split in SPLITS else None
        except (ValueError, TypeError):
            return None

    def text(self) -> str:
        used = {key: value for key, value in self._asdict().items() if value}
        return json.dumps(used, separators=(",", ":")) + "\n"


class _Writer:
    """Images to disk, and everything about them to the index."""

    def __init__(self, source: Source, contents: Contents, folder: Path):
        self.source, self.contents, self.folder = source, contents, folder
        self.head = {
            "wanted": wanted(source),
            "origin": files.fingerprint([contents.origin, contents.count, contents.attributes]),
        }
        self.shape: tuple[int, ...] = ()
        self.used: list[_Line] = []
        self.rejects: list[dict[str, str]] = []

    def begun(self) -> int:
        """Items that an earlier attempt has done; cuts off what was not yet safe."""
        part, index = self.folder / PART, self.folder / INDEX
        if not part.exists() and (self.folder / IMAGES).exists():
            os.replace(self.folder / IMAGES, part)  # it was killed before its manifest
        lines = index.read_bytes().splitlines(keepends=True) if index.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]
        head = json.dumps(self.head).encode() + b"\n"
        known = [_Line.of(line) for line in whole[1:]]
        if not (part.exists() and whole and whole[0] == head and all(known)):
            index.write_bytes(head)
            part.write_bytes(b"")
            return 0
        for line in known:
            self._note(line)
        os.truncate(index, sum(map(len, whole)))
        safe = 0
        if self.used:
            with open(part, "r+b") as file:
                _write_header(file, 0, self.shape)  # `finish` may have been killed while writing it
                safe = file.tell() + len(self.used) * int(np.prod(self.shape))
        os.truncate(part, safe)
        return len(whole) - 1

    def _note(self, line: _Line) -> None:
        if line.reject:
            self.rejects.append({"name": line.name, "reason": line.reject})
        else:
            self.used.append(line)
            self.shape = self.shape or line.shape

    def write(self, items: Iterator[Item], advance: Callable[[int], None]) -> None:
        part, told = self.folder / PART, self.folder / INDEX
        with files.naming(self.folder), open(part, "r+b") as images, open(told, "ab") as index:
            images.seek(0, os.SEEK_END)
            while lines := [self._take(item, images) for item in islice(items, SAFE_EVERY)]:
                self._make_safe(lines, images, index)
                advance(len(lines))

    def _take(self, item: Item, images: IO[bytes]) -> _Line:
        if item.image is None:
            return _Line(item.name, reject=item.reject)
        first = not self.shape
        if first:
            self.shape = item.image.shape
            _write_header(images, 0, self.shape)
        self._check(item)
        pixels = item.image.tobytes()
        images.write(pixels)
        digest = hashlib.sha256(pixels).hexdigest()
        shape = self.shape if first else ()
        return _Line(item.name, split=item.split, labels=item.labels, sha256=digest, shape=shape)

    def _check(self, item: Item) -> None:
        """ValueError for what only a wrong source can give."""
        image, sizes = item.image, [len(values) for values in self.contents.attributes.values()]
        alike = image.dtype == np.uint8 and image.shape == self.shape and len(self.shape) == 3
        in_range = [0 <= label < size for label, size in zip(item.labels, sizes)]
        told = len(item.labels) == len(sizes) and all(in_range) and item.split in SPLITS
        if not alike or not told:
            raise ValueError(
                f"{item.name} is {image.dtype} {image.shape} with labels {item.labels} and split "
                f"{item.split!r}, not one uint8 [H,W,C] shape for the whole source with one value "
                f"per attribute and one of {SPLITS}"
            )

    def _make_safe(self, lines: list[_Line], images: IO[bytes], index: IO[bytes]) -> None:
        """Pixels first: the index never speaks of rows that a power cut could take back."""
        for file, data in ((images, b""), (index, "".join(x.text() for x in lines).encode())):
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        for line in lines:
            self._note(line)

    def finish(self) -> None:
        """The header's count, the small arrays, the rename, the manifest."""
        part = self.folder / PART
        with open(part, "r+b") as file:
            _write_header(file, len(self.used), self.shape)
            file.flush()
            os.fsync(file.fileno())
        labels = np.array([line.labels for line in self.used], np.int16)
        codes = np.array([SPLITS.index(line.split) for line in self.used], np.uint8)
        files.write_npy(self.folder / LABELS, labels)
        files.write_npy(self.folder / SPLIT, codes)
        os.replace(part, self.folder / IMAGES)
        files.sync_folder(self.folder)
        files.write_json(self.folder / MANIFEST, self.manifest())

    def manifest(self) -> dict[str, Any]:
        """Everything about the files just written; the fingerprint covers what training sees."""
        paths = [self.folder / name for name in (IMAGES, LABELS, SPLIT, INDEX)]
        digests = map(files.sha256_file, paths)
        told = {p.name: {"bytes": p.stat().st_size, "sha256": d} for p, d in zip(paths, digests)}
        attributes = {name: list(values) for name, values in self.contents.attributes.items()}
        held = Counter(line.split for line in self.used)
        return {
            "format": FORMAT,
            "source": self.source.name,
            "description": self.source.description,
            "count": len(self.used),
            "shape": list(self.shape),
            "splits": {name: held[name] for name in SPLITS},
            "attributes": attributes,
            "rejects": self.rejects,
            "others": self.contents.others,
            "duplicates": len(self.used) - len({line.sha256 for line in self.used}),
            "files": told,
            "fingerprint": pack_fingerprint(told, attributes),
        }


def _write_header(file: IO[bytes], count: int, shape: tuple[int, ...]) -> None:
    """NumPy pads it so that the first axis may grow in place: written again, it moves nothing."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
    np.lib.format.write_array_header_1_0(file, header)


def _nothing_usable(source: Source, rejects: list[dict[str, str]]) -> DataError:
    reasons = "; ".join(f"{r['name']}: {r['reason']}" for r in rejects[:3])
    return DataError(
        f"no usable image in {source.place or source.name} ({len(rejects)} rejected; "
        f"{reasons or 'it is empty'}); put readable images there and pack again"
    )
