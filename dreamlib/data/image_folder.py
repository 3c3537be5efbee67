"""Any folder or archive of images, made square RGB of one size.

What cannot be decoded whole is rejected with a reason; nothing is guessed or filled in.  Of an
animation the first frame is used.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import struct
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, TypeVar

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from dreamlib.data.dataset import MANIFEST, Contents, Item, Packed, Source
from dreamlib.data.file_readers import folder_files, open_files
from dreamlib.data.formats import Files, images_among, open_image
from dreamlib.utils.errors import DataError
from dreamlib.utils.files import fingerprint, parse_json, readable

T = TypeVar("T")
R = TypeVar("R")
About = Callable[[str, np.ndarray], tuple[tuple[int, ...], str]]  # name, image -> labels, split

TRANSPARENT = {"LA", "PA", "RGBA", "RGBa"}
# What Pillow's decoders raise on damaged files; random damage finds all of them
UNREADABLE = (
    *(OSError, ValueError, SyntaxError, EOFError, TypeError, KeyError, IndexError, OverflowError),
    *(struct.error, zlib.error, zipfile.BadZipFile, NotImplementedError),
    Image.DecompressionBombError,
)
FITS = {
    "crop": "centre square, after the EXIF orientation",
    "pad": "whole image on black, after the EXIF orientation",
}
SPLIT_FOLDERS = {"train", "training", "val", "valid", "validation", "test", "testing"}
HEAP = re.compile(r"(?:.*/)?(\d{5})/(?:img)?(\d{5,8})\.\w+")  # a thousand images in each
MOST_CLASSES = np.iinfo(np.int16).max


def folder_source(
    place: Path | str, size: int, *, fit: str = "crop", held_out: float = 0.1
) -> Source:
    """All images in a folder or archive as size x size RGB: fitted, then Pillow's bicubic filter.

    Split by content: shares of `held_out` each for reference and floor, the rest to train on; so
    adding a file moves no other and equal pictures never straddle splits.  Images come in the order
    of their files' hashes: the first n of a split are a fair sample of it, whatever the names.
    The attribute "class" is what a label column or NVIDIA's dataset.json says, or the sub-folders:
    if there are at least two, all images lie in them, and they are no splits and no numbered heaps.
    DataError if there are no images, or when they cannot be read.
    """
    files = open_files(place)
    names, others = images_among(files)
    if not names:
        raise DataError(f"{place} holds no images; put some there" + (others and f" ({others})"))
    pictures = sorted(zip(in_order(partial(_digest, files), names), names))
    class_of, origin = _classes(files, names)
    by_number = lambda name: (len(name) if name.isdecimal() else 0, name)  # noqa: E731
    classes = sorted(set(class_of.values()), key=by_number if origin else str)
    description = {
        "size": size,
        "crop": FITS[fit],
        "filter": "Pillow bicubic, antialiased",
        "colour": "RGB, transparency on white, 16-bit greys scaled to 8",
        "splits": f"sha256 of the pixels: {held_out:g} reference, {held_out:g} floor, rest train",
        "files": fingerprint(pictures),
        "count": len(pictures),
    }
    if origin:
        description["classes"] = f"{origin}: {fingerprint(dict(class_of))[:16]}"

    def about(name: str, image: np.ndarray) -> tuple[tuple[int, ...], str]:
        labels = (classes.index(class_of[name]),) if classes else ()
        return labels, split_of(image, held_out)

    items = items_of(files, [name for _, name in pictures], size, about, fit)
    attributes = {"class": tuple(classes)} if classes else {}
    contents = Contents(attributes, len(pictures), items, others=others)
    return Source("folder", description, lambda: contents, place=str(place))


def touched(place: Path, packed: Packed) -> bool:
    """Whether a folder or archive seems to hold others than were packed: by number and times."""
    try:
        names, _ = images_among(open_files(place))
        lie = [place / n for n in folder_files(place).names] if place.is_dir() else [place]
        newest = max((path.stat().st_mtime for path in lie), default=0.0)
    except (DataError, OSError):  # there no more
        return False
    packed_at = (packed.folder / MANIFEST).stat().st_mtime
    return newest > packed_at or len(names) != packed.manifest["description"]["count"]


def items_of(
    files: Files, names: Sequence[str], size: int, about: About, fit: str = "crop"
) -> Callable[[int], Iterator[Item]]:
    """Contents.items of these images, in this order."""

    def item(name: str) -> Item:
        image, reject = decoded(files.read, name, size, fit)
        if image is None:
            return Item(name, None, reject=reject)
        return Item(name, image, *about(name, image))

    return lambda start: in_order(item, names[start:])


def decoded(
    read: Callable[[str], bytes], name: str, size: int, fit: str = "crop"
) -> tuple[np.ndarray | None, str]:
    """An image as uint8 [size,size,3] and '', or None and why it cannot be used."""
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise DataError(
            "Pillow is told to fill truncated images with grey; "
            "set PIL.ImageFile.LOAD_TRUNCATED_IMAGES to False"
        )
    try:
        return load_square(io.BytesIO(read(name)), size, fit), ""
    except UnidentifiedImageError:  # its own message tells nothing
        return None, "not an image that Pillow can read"
    except UNREADABLE as error:
        return None, f"{type(error).__name__}: {error}"


def load_square(file: Path | str | IO[bytes], size: int, fit: str = "crop") -> np.ndarray:
    """One image as uint8 [size,size,3].  Raises one of UNREADABLE if it is damaged."""
    with open_image(file) as opened:
        opened.load()
        if opened.mode == "I" and opened.format != "PNG":  # older Pillow's 16-bit PNG is an I
            raise ValueError("its pixels are not 8-bit or 16-bit; convert it to one of these")
        picture = to_rgb(ImageOps.exif_transpose(opened))
    side = min(picture.size)
    if fit == "pad":
        if not round(side / max(picture.size) * size):  # too thin a line; before 13, Pillow refuses
            return np.zeros((size, size, 3), np.uint8)
        padded = ImageOps.pad(picture, (size, size), Image.Resampling.BICUBIC, "black")
        return np.array(padded)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    return np.array(square.resize((size, size), Image.Resampling.BICUBIC))


def in_order(work: Callable[[T], R], inputs: Sequence[T]) -> Iterator[R]:
    """work(x) for every input, in order, a few ahead: Pillow decodes outside Python's lock."""
    threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        rest = iter(inputs)
        ahead = deque(pool.submit(work, x) for x in islice(rest, 4 * threads))
        while ahead:
            done = ahead.popleft().result()
            ahead.extend(pool.submit(work, x) for x in islice(rest, 1))
            yield done


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any Pillow mode as RGB: transparency laid on white, 16-bit greys scaled and not clipped.

    ValueError for values without a known range (floating point, 32 bits).
    """
    if picture.mode.startswith(("I", "F")):  # 16-bit greys are I;16 or, in some versions, I
        values = np.array(picture)
        if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError("its pixels are not 8-bit or 16-bit; convert it to one of these")
        eight_bits = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
        return Image.fromarray(eight_bits).convert("RGB")
    if "transparency" in picture.info or picture.mode in TRANSPARENT:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")


def split_of(image: np.ndarray, held_out: float = 0.1) -> str:
    """The split of an image, decided by its pixels alone."""
    place = int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:8], "big") % 10_000
    shares = round(10_000 * held_out)
    if place >= 10_000 - shares:
        return "floor"
    return "reference" if place >= 10_000 - 2 * shares else "train"


def _classes(files: Files, names: Sequence[str]) -> tuple[Mapping[str, str], str]:
    """Name -> class, {} unless every image has one; and where they are told, or why there are
    none: "" for plain sub-folders."""
    if files.classes:
        return files.classes, "the label column"
    for note in map(PurePosixPath, files.names):
        if note.name == "dataset.json":  # as NVIDIA's tools write it
            try:
                labels = parse_json(files.read(str(note)))["labels"]
                listed = {str(note.parent / name): f"{label:d}" for name, label in labels}
                return {name: listed[name] for name in names}, "dataset.json"
            except (ValueError, LookupError, TypeError):  # somebody else's, or of other images
                continue
    return _by_folder(names)


def _by_folder(names: Sequence[str]) -> tuple[dict[str, str], str]:
    """The sub-folders below those that all share, or that are splits; {} unless there are at least
    two, all images lie in them, and they are no numbered heaps."""
    parents, where, shared = [PurePosixPath(name).parent.parts for name in names], "", 0
    while all(len(p) > shared for p in parents):
        level = {p[shared] for p in parents}
        if len(level) > 1 and {part.lower() for part in level} <= SPLIT_FOLDERS:
            where = "below the split folders"
        elif len(level) > 1:
            if len(level) > MOST_CLASSES or all(map(_in_heap, names)):
                return {}, "numbered folders are none"
            return {n: readable(p[shared]) for n, p in zip(names, parents)}, where
        shared += 1
    return {}, where


def _in_heap(name: str) -> bool:
    """00001/img00001234.png as NVIDIA's tools write it, or 01000/01234.png as FFHQ has it: its
    folder is the image's number, cut to thousands, and says nothing else."""
    match = HEAP.fullmatch(name)
    return bool(match) and int(match[2]) // 1000 * 1000 in (int(match[1]), 1000 * int(match[1]))


def _digest(files: Files, name: str) -> str:
    try:
        return hashlib.sha256(files.read(name)).hexdigest()
    except UNREADABLE:  # reading it again is where it gets its reason
        return "unreadable"
