"""Pack any image set once, streaming, resumable: `pack(source, folder)`.

Images are appended to `images.npy.part`; what is known of them, one line each, to `index.jsonl`.  A
line is written after its pixels are safe on the disk: after a kill the index says how many images
are good, and packing goes on behind them.  A folder without a manifest, written last, is no pack.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

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
        begun = writer.resume()
        label = f"packing {source.name}" + (f" (going on behind {begun:,})" if begun else "")
        writer.write(contents.items(begun), progress(label, contents.count - begun))
        if not writer.used:
            for name in (PART, INDEX):
                (folder / name).unlink()
            raise _nothing_usable(source, writer.rejects())
        writer.finish()
    return open_packed(folder)


def _alone(folder: Path) -> AbstractContextManager[None]:
    """Nobody else packs this folder, or brings it, meanwhile."""
    text = f"waiting for another process, which packs {folder}"
    return files.exclusive(folder / LOCK, waiting=lambda: say(text))


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
            if (folder / MANIFEST).is_file():  # since we looked
                return
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
            say(f"brought the packed images from {there}")
    except (OSError, DataError) as error:
        say(f"the packed images in {there} are passed over: {what_failed(error)}")


class _Writer:
    """Images to `images.npy.part`, and a line about each item to the index."""

    def __init__(self, source: Source, contents: Contents, folder: Path):
        self.source, self.contents = source, contents
        self.folder, self.part, self.index = folder, folder / PART, folder / INDEX
        origin = files.fingerprint([contents.origin, contents.count, contents.attributes])
        self.head = json.dumps({"wanted": wanted(source), "origin": origin}).encode() + b"\n"
        self.shape: tuple[int, ...] = ()  # of every image; the first line that has one says it
        self.lines: list[dict[str, Any]] = []  # that are safe on the disk

    @property
    def used(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if not line.get("reject")]

    def resume(self) -> int:
        """Items that an earlier attempt has done; cuts off what was not yet safe."""
        if not self.part.exists() and (self.folder / IMAGES).exists():
            os.replace(self.folder / IMAGES, self.part)  # it was killed before its manifest
        data = self.index.read_bytes() if self.index.exists() else b""
        head, *whole = [x for x in data.splitlines(keepends=True) if x.endswith(b"\n")] or [b""]
        try:
            if head != self.head or not self.part.exists():
                raise ValueError("it was begun with other images")
            self.lines = [_parsed(text) for text in whole]
        except (ValueError, TypeError):
            self.index.write_bytes(self.head)
            self.part.write_bytes(b"")
            return 0
        os.truncate(self.index, len(head) + sum(map(len, whole)))
        safe, count = 0, len(self.used)
        if count:
            self.shape = tuple(self.used[0].get("shape", ()))
            with open(self.part, "r+b") as file:
                _write_header(file, 0, self.shape)  # `finish` may have been killed while writing it
                safe = file.tell() + count * math.prod(self.shape)
        os.truncate(self.part, safe)
        return len(self.lines)

    def write(self, items: Iterator[Item], advance: Callable[[int], None]) -> None:
        with (
            files.naming(self.folder),
            open(self.part, "r+b") as images,
            open(self.index, "ab") as index,
        ):
            images.seek(0, os.SEEK_END)
            while lines := [self._take(item, images) for item in islice(items, SAFE_EVERY)]:
                texts = [json.dumps(line, separators=(",", ":")) + "\n" for line in lines]
                # Pixels first: the index never speaks of rows that a power cut could take back.
                files.sync(images)
                index.write("".join(texts).encode())
                files.sync(index)
                self.lines += lines
                advance(len(lines))

    def _take(self, item: Item, images: IO[bytes]) -> dict[str, Any]:
        if item.image is None:
            return {"name": item.name, "reject": item.reject}
        first = not self.shape
        if first:
            self.shape = item.image.shape
            _write_header(images, 0, self.shape)
        self._check(item, item.image)
        pixels = item.image.tobytes()
        images.write(pixels)
        line = {
            "name": item.name,
            "split": item.split,
            "labels": item.labels,
            "sha256": hashlib.sha256(pixels).hexdigest(),
            "shape": self.shape if first else (),
        }
        return {key: value for key, value in line.items() if value}

    def _check(self, item: Item, image: np.ndarray) -> None:
        """ValueError for what only a wrong source can give."""
        sizes = [len(values) for values in self.contents.attributes.values()]
        alike = image.dtype == np.uint8 and image.shape == self.shape and len(self.shape) == 3
        in_range = [0 <= label < size for label, size in zip(item.labels, sizes)]
        labelled = len(item.labels) == len(sizes) and all(in_range)
        if not (alike and labelled and item.split in SPLITS):
            raise ValueError(
                f"{item.name} is {image.dtype} {image.shape} with labels {item.labels} and split "
                f"{item.split!r}, not one uint8 [H,W,C] shape for the whole source with one value "
                f"per attribute and one of {SPLITS}"
            )

    def finish(self) -> None:
        """The header's count, the small arrays, the rename, the manifest."""
        used = self.used
        with open(self.part, "r+b") as file:
            _write_header(file, len(used), self.shape)
            files.sync(file)
        labels = np.array([line.get("labels", ()) for line in used], np.int16)
        codes = np.array([SPLITS.index(line["split"]) for line in used], np.uint8)
        files.write_npy(self.folder / LABELS, labels)
        files.write_npy(self.folder / SPLIT, codes)
        os.replace(self.part, self.folder / IMAGES)
        files.sync_folder(self.folder)
        files.write_json(self.folder / MANIFEST, self.manifest(used))

    def manifest(self, used: list[dict[str, Any]]) -> dict[str, Any]:
        """Everything about the files just written; the fingerprint covers what training sees."""
        paths = [self.folder / name for name in (IMAGES, LABELS, SPLIT, INDEX)]
        written = {
            path.name: {"bytes": path.stat().st_size, "sha256": files.sha256_file(path)}
            for path in paths
        }
        attributes = {name: list(values) for name, values in self.contents.attributes.items()}
        counts = Counter(line["split"] for line in used)
        return {
            "format": FORMAT,
            "source": self.source.name,
            "description": self.source.description,
            "count": len(used),
            "shape": list(self.shape),
            "splits": {name: counts[name] for name in SPLITS},
            "attributes": attributes,
            "rejects": self.rejects(),
            "others": self.contents.others,
            "duplicates": len(used) - len({line["sha256"] for line in used}),
            "files": written,
            "fingerprint": pack_fingerprint(written, attributes),
        }

    def rejects(self) -> list[dict[str, str]]:
        rejects = [line for line in self.lines if line.get("reject")]
        return [{"name": line["name"], "reason": line["reject"]} for line in rejects]


def _parsed(text: bytes) -> dict[str, Any]:
    """A line of the index; ValueError or TypeError for anything else."""
    line = files.check_fields(files.parse_json(text), name=str)
    if not line.get("reject"):
        files.check_fields(line, split=str, sha256=str)
        SPLITS.index(line["split"])
        line |= {key: list(map(int, line[key])) for key in ("labels", "shape") if key in line}
    return line


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
