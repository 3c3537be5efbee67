"""Pack any image set once: a uint8 memmap, its labels and splits, and a manifest.

A source says what there is and yields it; `pack` streams it into a folder; `Packed` reads that
folder.  Decoding, cropping and resizing happen once here and never during training.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from dreamlib.errors import DataError, NotEnoughSamples
from dreamlib.files import (
    fingerprint,
    read_json,
    sha256_file,
    sweep,
    write_atomic,
    write_json,
    write_npy,
)
from dreamlib.progress import Progress, silent

FORMAT = 1
SPLITS = ("train", "reference", "floor")  # split.npy holds positions in this tuple
IMAGES, LABELS, SPLIT, MANIFEST = "images.npy", "labels.npy", "split.npy", "manifest.json"


class Item(NamedTuple):
    """One candidate image of a source."""

    name: str  # unique inside the source
    image: np.ndarray | None  # uint8 [H,W,C]; None when rejected
    labels: tuple[int, ...] = ()  # one per attribute of the source
    split: str = ""  # one of SPLITS
    reject: str = ""  # why it is not used


@dataclass(frozen=True)
class Source:
    """An image set before packing: what decides its pixels, and how to iterate over it."""

    name: str
    description: dict[str, Any]  # JSON: everything that decides the pixels
    attributes: dict[str, tuple[str, ...]]  # attribute -> names of its values; {} when unlabelled
    count: int  # how many items will come, rejects included
    items: Callable[[], Iterator[Item]]
    place: str = ""  # where the images are, for messages


@dataclass(frozen=True, eq=False)
class Packed:
    """A packed folder, opened read-only; rows are in the order in which the source gave them."""

    folder: Path
    manifest: dict[str, Any]
    images: np.ndarray  # memmap, uint8 [N,H,W,C]
    labels: np.ndarray  # int16 [N,A]
    split_codes: np.ndarray  # uint8 [N], positions in SPLITS

    @property
    def fingerprint(self) -> str:
        """Identity of pixels, labels and splits; the same on every machine."""
        return self.manifest["fingerprint"]

    @property
    def size(self) -> int:
        """Side of the square images, in pixels."""
        return self.images.shape[1]

    @property
    def channels(self) -> int:
        return self.images.shape[3]

    @property
    def attributes(self) -> dict[str, tuple[str, ...]]:
        return {name: tuple(values) for name, values in self.manifest["attributes"].items()}

    def indices(self, split: str) -> np.ndarray:
        """Sorted row numbers of a split, int64 [n].  DataError if it is unknown or empty."""
        counts = self.manifest["splits"]
        if not counts.get(split):
            have = ", ".join(f"{name} {count:,}" for name, count in counts.items())
            raise DataError(
                f"{self.folder} has no images in split {split!r}; use one that has some ({have})"
            )
        return np.flatnonzero(self.split_codes == SPLITS.index(split))

    @property
    def label_counts(self) -> tuple[int, ...]:
        """How many values each attribute has."""
        return tuple(len(values) for values in self.attributes.values())

    def take(self, split: str, n: int, start: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """n images of a split from position `start`: uint8 [n,H,W,C] and labels int16 [n,A].

        Smaller n with equal start are prefixes of larger ones.  NotEnoughSamples if too few exist.
        """
        if n < 0 or start < 0:
            raise ValueError(f"n and start must not be negative, got {n} and {start}")
        rows = self.indices(split)
        if start + n > len(rows):
            raise NotEnoughSamples(
                f"split {split!r} of {self.folder} holds {len(rows):,} images, but {n:,} from "
                f"position {start:,} were asked; ask for fewer or pack a larger set"
            )
        rows = rows[start : start + n]
        return np.asarray(self.images[rows]), self.labels[rows]

    def verify(self) -> None:
        """Hash every file again.  DataError if one is not what the manifest says."""
        for name, record in self.manifest["files"].items():
            if sha256_file(self.folder / name) != record["sha256"]:
                raise _damaged(self.folder, f"{name} has changed since it was packed")


def pack(source: Source, folder: Path | str, progress: Progress = silent) -> Packed:
    """Stream a source into `folder`, unless that was done already, and open it.

    A folder packed from another description is packed again in place.  The manifest is written
    last, so that an interrupted packing is never mistaken for a whole one.  DataError when no
    image is usable.
    """
    folder = Path(folder)
    if (folder / MANIFEST).is_file() and _origin(_read_manifest(folder)) == _wanted(source):
        return open_packed(folder)
    sweep(folder)
    (folder / MANIFEST).unlink(missing_ok=True)
    writer = _Writer(source, folder, progress)
    write_atomic(folder / IMAGES, writer.write_images)
    write_npy(folder / LABELS, np.array(writer.labels, np.int16))
    write_npy(folder / SPLIT, np.array(writer.codes, np.uint8))
    write_json(folder / MANIFEST, writer.manifest())
    return open_packed(folder)


def open_packed(folder: Path | str) -> Packed:
    """Open what `pack` wrote, with cheap checks (format, file sizes, shapes); see Packed.verify."""
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise DataError(f"no packed images in {folder}; run `python -m dreamlib data` first")
    manifest = _read_manifest(folder)
    if manifest.get("format") != FORMAT:
        raise _damaged(
            folder, f"its format is {manifest.get('format')}, this version reads {FORMAT}"
        )
    for name, record in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != record["bytes"]:
            raise _damaged(folder, f"{name} is missing or does not have {record['bytes']:,} bytes")
    images = np.load(folder / IMAGES, mmap_mode="r", allow_pickle=False)
    labels = np.load(folder / LABELS, allow_pickle=False)
    codes = np.load(folder / SPLIT, allow_pickle=False)
    count, columns = manifest["count"], len(manifest["attributes"])
    found = [(a.dtype.name, a.shape) for a in (images, labels, codes)]
    images_shape = (count, *manifest["shape"])
    if found != [("uint8", images_shape), ("int16", (count, columns)), ("uint8", (count,))]:
        raise _damaged(folder, "its arrays do not have the shapes of its manifest")
    return Packed(folder, manifest, images, labels, codes)


class _Writer:
    """Collects everything about a source while its images stream to disk."""

    def __init__(self, source: Source, folder: Path, progress: Progress):
        self.source, self.folder, self.progress = source, folder, progress
        self.shape: tuple[int, ...] = ()
        self.labels: list[tuple[int, ...]] = []
        self.codes: list[int] = []
        self.rejects: list[dict[str, str]] = []
        self.digests: set[bytes] = set()

    def write_images(self, file: IO[bytes]) -> None:
        """Write a .npy file whose number of rows is known only at its end.

        NumPy pads the header so that the first axis may grow in place; writing the header again
        therefore moves nothing.
        """
        advance = self.progress(f"packing {self.source.name}", self.source.count)
        for item in self.source.items():
            if item.image is None:
                self.rejects.append({"name": item.name, "reason": item.reject})
            else:
                if not self.shape:
                    self.shape = item.image.shape
                    _write_header(file, 0, self.shape)
                self._accept(item)
                file.write(item.image.tobytes())
            advance(1)
        if not self.codes:
            raise self._nothing_usable()
        file.seek(0)
        _write_header(file, len(self.codes), self.shape)

    def _accept(self, item: Item) -> None:
        """Note labels and split of an image.  ValueError for what only a wrong source can give."""
        if item.image.dtype != np.uint8 or item.image.shape != self.shape or len(self.shape) != 3:
            raise ValueError(
                f"{item.name} is {item.image.dtype} {item.image.shape}, not one uint8 "
                f"[H,W,C] shape for the whole source"
            )
        sizes = [len(values) for values in self.source.attributes.values()]
        in_range = [0 <= label < size for label, size in zip(item.labels, sizes)]
        if len(item.labels) != len(sizes) or not all(in_range):
            raise ValueError(f"{item.name} has labels {item.labels}, not one per attribute value")
        self.labels.append(item.labels)
        self.codes.append(SPLITS.index(item.split))
        self.digests.add(hashlib.sha256(item.image.tobytes()).digest())

    def _nothing_usable(self) -> DataError:
        reasons = "; ".join(f"{r['name']}: {r['reason']}" for r in self.rejects[:3])
        return DataError(
            f"no usable image in {self.source.place or self.source.name} "
            f"({len(self.rejects)} rejected; {reasons or 'it is empty'}); "
            "put readable images there and pack again"
        )

    def manifest(self) -> dict[str, Any]:
        """Everything about the files just written; the fingerprint covers what training sees."""
        paths = [self.folder / name for name in (IMAGES, LABELS, SPLIT)]
        files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in paths}
        attributes = {name: list(values) for name, values in self.source.attributes.items()}
        held = Counter(self.codes)
        splits = {name: held[code] for code, name in enumerate(SPLITS)}
        hashes = {name: record["sha256"] for name, record in files.items()}
        return {
            "format": FORMAT,
            "source": self.source.name,
            "description": self.source.description,
            "count": len(self.codes),
            "shape": list(self.shape),
            "splits": splits,
            "attributes": attributes,
            "rejects": self.rejects,
            "duplicates": len(self.codes) - len(self.digests),
            "files": files,
            "fingerprint": fingerprint([hashes, attributes, list(SPLITS)]),
        }


def _write_header(file: IO[bytes], count: int, shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
    np.lib.format.write_array_header_1_0(file, header)


def _wanted(source: Source) -> str:
    return fingerprint([FORMAT, source.name, source.description, source.attributes])


def _origin(manifest: dict[str, Any]) -> str:
    keys = ("format", "source", "description", "attributes")
    return fingerprint([manifest.get(key) for key in keys])


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / MANIFEST)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _damaged(folder, f"{MANIFEST} is not JSON") from error


def _damaged(folder: Path, what: str) -> DataError:
    return DataError(
        f"the packed images in {folder} cannot be used ({what}); "
        "delete that folder and run `python -m dreamlib data` again"
    )
