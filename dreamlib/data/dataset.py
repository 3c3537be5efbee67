"""Packed images: a uint8 memmap, its labels and splits, an index of every item, and a manifest.

A source says what there is and yields it; `prepare.pack` streams it into a folder, decoded, cropped
and resized; `Packed` reads that folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dreamlib.utils.errors import DataError, NotEnoughSamples
from dreamlib.utils.files import (
    check_fields,
    fingerprint,
    naming,
    plain_name,
    read_json,
    sha256_file,
)
from dreamlib.utils.images import range_told

FORMAT = 2
SPLITS = ("train", "reference", "floor")  # split.npy holds positions in this tuple
IMAGES, LABELS, SPLIT = "images.npy", "labels.npy", "split.npy"
INDEX = "index.jsonl"  # a line per item: name, split, labels, hash of its pixels, or why rejected
MANIFEST = "manifest.json"
SOON = 1.0  # seconds in which what is small is hashed
SOME = 500  # images by which their range is judged: of a folder in the order of hashes
SHOWN = 12  # classes in a line for people
FIELDS: dict[str, type] = {"source": str, "fingerprint": str, "count": int, "duplicates": int}
FIELDS |= {"shape": list, "rejects": list}
FIELDS |= dict.fromkeys(["description", "splits", "attributes", "files"], dict)


class Item(NamedTuple):
    """One candidate image of a source."""

    name: str  # unique inside the source
    image: np.ndarray | None  # uint8 [H,W,C]; None when rejected
    labels: tuple[int, ...] = ()  # one per attribute of the source
    split: str = ""  # one of SPLITS
    reject: str = ""  # why it is not used


@dataclass(frozen=True)
class Contents:
    """A source, opened."""

    attributes: dict[str, tuple[str, ...]]  # attribute -> names of its values; {} when unlabelled
    count: int  # how many items will come, rejects included
    items: Callable[[int], Iterator[Item]]  # those from this position on, always in one order
    origin: str = ""  # which items these are, where the description does not say it
    others: str = ""  # what was not looked at, for people


@dataclass(frozen=True)
class Source:
    """An image set before packing.  `open` is called only if it is not packed yet."""

    name: str
    description: dict[str, Any]  # JSON: everything that decides the pixels
    open: Callable[[], Contents]
    place: str = ""  # where the images are, for messages


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a memmap, read when they are asked for: it may be larger than memory."""

    images: np.ndarray  # uint8 [M,H,W,C]
    rows: np.ndarray  # int64 [N]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> np.ndarray:
        return np.asarray(self.images[self.rows[index]])

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.images.shape[1:])

    @property
    def ndim(self) -> int:
        return self.images.ndim

    @property
    def dtype(self) -> np.dtype:
        return self.images.dtype


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
        if not self.manifest["splits"].get(split):
            raise DataError(
                f"{self.folder} has no images in split {split!r}; use one that has some "
                f"({self._counts()})"
            )
        return np.flatnonzero(self.split_codes == SPLITS.index(split))

    def _counts(self) -> str:
        return ", ".join(f"{name} {count:,}" for name, count in self.manifest["splits"].items())

    @property
    def label_counts(self) -> tuple[int, ...]:
        """How many values each attribute has."""
        return tuple(len(values) for values in self.attributes.values())

    def shares(self, split: str) -> dict[str, dict[str, float]]:
        """Each attribute's values with their shares among the images of a split."""
        shares, columns = {}, self.labels[self.indices(split)].T
        for (attribute, values), column in zip(self.attributes.items(), columns):
            counts = np.bincount(column, minlength=len(values))
            shares[attribute] = dict(zip(values, (counts / len(column)).tolist()))
        return shares

    def summary(self) -> str:
        """What this holds, what its labels are and what is not used, for people: one line."""
        manifest, names = self.manifest, self.attributes.get("class") or tuple(self.attributes)
        shown = [name if name.isprintable() else ascii(name)[1:-1] for name in names[:SHOWN]]
        shown += ["..."] if len(names) > SHOWN else []
        kind = "classes" if "class" in self.attributes else "labels"
        parts = [
            f"{manifest['count']:,} images in {self.folder}",
            self._counts(),
            f"{kind}: {', '.join(shown) or 'none'}",
            f"rejected: {len(manifest['rejects']):,}" if manifest["rejects"] else "",
            manifest.get("others", ""),
            range_told(self.images[:SOME]),
        ]
        return "; ".join(filter(None, parts))

    def rows(self, split: str) -> Rows:
        """All images of a split, not yet read.  DataError if it is unknown or empty."""
        return Rows(self.images, self.indices(split))

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
        files = self.manifest["files"]
        for name, record in files.items():
            try:
                if sha256_file(self.folder / name) != record["sha256"]:
                    raise _damaged(self.folder, f"{name} has changed since it was packed")
            except OSError as error:
                raise DataError(
                    f"{self.folder / name} cannot be read ({error.strerror or error}): put that "
                    "right, then run the same command or cell again"
                ) from error
        counts = np.bincount(self.split_codes, minlength=len(SPLITS)).tolist()
        ours = pack_fingerprint(files, self.manifest["attributes"]), dict(zip(SPLITS, counts))
        if ours != (self.fingerprint, self.manifest["splits"]):
            raise _damaged(self.folder, f"{MANIFEST} does not describe its files")

    def watch(self) -> Callable[..., None]:
        """Verify in the background, or at once what is small.

        -> what raises DataError once a file is known to differ; with wait=True it waits to know.
        """
        pool = ThreadPoolExecutor(1)
        verified = pool.submit(self.verify)
        pool.shutdown(wait=False)
        wait_for([verified], SOON)
        return lambda wait=False: verified.result() if wait or verified.done() else None


def pack_fingerprint(files: Mapping[str, dict[str, Any]], attributes: dict[str, list[str]]) -> str:
    """Identity of what training sees: pixels, labels, splits, and what the labels mean."""
    hashes = {name: files[name]["sha256"] for name in (IMAGES, LABELS, SPLIT)}
    return fingerprint([hashes, attributes, SPLITS])


def open_packed(folder: Path | str) -> Packed:
    """Open what `pack` wrote, with cheap checks (format, file sizes, shapes); see Packed.verify."""
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise DataError(f"no packed images in {folder}; run `dreamlib data prepare` first")
    manifest = read_manifest(folder)
    if (version := manifest.get("format")) != FORMAT:
        raise _damaged(folder, f"its format is {version}, this version reads {FORMAT}")
    for name, record in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != record["bytes"]:
            raise _damaged(folder, f"{name} is missing or does not have {record['bytes']:,} bytes")
    try:
        with naming(folder):
            images = np.load(folder / IMAGES, mmap_mode="r", allow_pickle=False)
            labels, codes = (np.load(folder / x, allow_pickle=False) for x in (LABELS, SPLIT))
    except (ValueError, EOFError) as error:
        raise _damaged(folder, f"an array is none: {error}") from error
    n = manifest["count"]
    shapes = [(n, *manifest["shape"]), (n, len(manifest["attributes"])), (n,)]
    arrays = [(array.dtype.name, array.shape) for array in (images, labels, codes)]
    if arrays != list(zip(("uint8", "int16", "uint8"), shapes)):
        raise _damaged(folder, "its arrays do not have the shapes of its manifest")
    return Packed(folder, manifest, images, labels, codes)


def empty_pack(folder: Path, fingerprint: str, shape: tuple[int, int, int]) -> Packed:
    """What is known of images [H,W,C] that are not here."""
    manifest = {"fingerprint": fingerprint, "attributes": {}, "splits": {}, "files": {}}
    none = np.empty((0, *shape), np.uint8)
    return Packed(folder, manifest, none, np.empty((0, 0), np.int16), np.empty(0, np.uint8))


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `pack` wrote of a folder's files; of another format, whatever it is."""
    try:
        manifest = check_fields(read_json(folder / MANIFEST))
        if manifest.get("format") == FORMAT:
            files = check_fields(manifest, **FIELDS)["files"]
            check_fields(files, **dict.fromkeys([IMAGES, LABELS, SPLIT], dict))
            check_fields(manifest["attributes"], **dict.fromkeys(manifest["attributes"], list))
            for reject in manifest["rejects"]:
                check_fields(reject, name=str, reason=str)
            for name, record in files.items():
                check_fields(record, bytes=int, sha256=str)
                plain_name(name)
    except ValueError as error:
        raise _damaged(folder, f"{MANIFEST} is not what was written: {error}") from error
    return manifest


def wanted(source: Source) -> str:
    """Which pack a source becomes."""
    return fingerprint([FORMAT, source.name, source.description])


def holds(folder: Path, source: Source) -> bool:
    """Whether a folder holds a pack of this very source."""
    if not (folder / MANIFEST).is_file():
        return False
    identity = [read_manifest(folder).get(key) for key in ("format", "source", "description")]
    return fingerprint(identity) == wanted(source)


def _damaged(folder: Path, what: str) -> DataError:
    return DataError(
        f"the packed images in {folder} cannot be used ({what}); "
        "delete that folder and run `dreamlib data prepare` again"
    )
