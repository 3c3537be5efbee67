"""Any folder of images, made square RGB of one size.

What cannot be decoded whole is rejected with a reason; nothing is guessed or filled in.  Of an
animation the first frame is used.  Hidden files and folders are not looked at.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from dreamlib.data.packed import Item, Source
from dreamlib.errors import DataError
from dreamlib.files import fingerprint, sha256_file

EXTENSIONS = frozenset({"jpg", "jpeg", "png", "bmp", "gif", "webp", "tif", "tiff", "ppm"})
TRANSPARENT = frozenset({"LA", "PA", "RGBA", "RGBa"})
# What Pillow's decoders raise on damaged files
UNREADABLE = (
    *(OSError, ValueError, SyntaxError, EOFError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)


class _Picture(NamedTuple):
    digest: str  # sha256 of the file
    name: str  # path relative to the folder, with forward slashes


def folder_source(folder: Path | str, size: int) -> Source:
    """All images below `folder` as size x size RGB: centre crop, then Pillow's bicubic filter.

    Split by content, 80 % train, 10 % reference, 10 % floor, so that adding a file moves no other
    and equal pictures never straddle splits.  Images come in the order of their files' hashes: the
    first n of a split are a fair sample of it, whatever the names.  Sub-folders become the
    attribute "class" if there are at least two and all images lie in them.  DataError if there
    are no images.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(
            f"there is no folder {folder}; create it with images inside or name another"
        )
    paths = [path for path in folder.rglob("*") if _is_candidate(path, folder)]
    if not paths:
        known = ", ".join(sorted(EXTENSIONS))
        raise DataError(f"{folder} holds no images; put some there ({known})")
    pictures = sorted(_Picture(_digest(p), p.relative_to(folder).as_posix()) for p in paths)
    classes = _classes(pictures)
    description = {
        "size": size,
        "crop": "centre square, after the EXIF orientation",
        "filter": "Pillow bicubic, antialiased",
        "colour": "RGB, transparency on white, 16-bit greys scaled to 8",
        "splits": "sha256 of the pixels: 80 % train, 10 % reference, 10 % floor",
        "files": fingerprint(pictures),
        "count": len(pictures),
    }
    attributes = {"class": classes} if classes else {}
    items = partial(_items, folder, pictures, classes, size)
    return Source("folder", description, attributes, len(pictures), items, place=str(folder))


def load_square(path: Path | str, size: int) -> np.ndarray:
    """One image file as uint8 [size,size,3].  Raises one of UNREADABLE if it is damaged."""
    with Image.open(path) as opened:
        opened.load()
        picture = to_rgb(ImageOps.exif_transpose(opened))
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    return np.array(square.resize((size, size), Image.Resampling.BICUBIC))


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any Pillow mode as RGB: transparency laid on white, 16-bit greys scaled and not clipped.

    ValueError for values without a known range (floating point, 32 bits).
    """
    if picture.mode.startswith(("I", "F")):
        return _scaled_grey(picture).convert("RGB")
    if "transparency" in picture.info or picture.mode in TRANSPARENT:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")


def _scaled_grey(picture: Image.Image) -> Image.Image:
    """Pillow gives 16-bit greys as mode I;16 or, in some versions, as I."""
    values = np.array(picture)
    if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError("its pixels are not 8-bit or 16-bit; convert it to one of these")
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _items(
    folder: Path, pictures: list[_Picture], classes: tuple[str, ...], size: int
) -> Iterator[Item]:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise DataError(
            "Pillow is told to fill truncated images with grey; "
            "set PIL.ImageFile.LOAD_TRUNCATED_IMAGES to False"
        )
    for _, name in pictures:
        try:
            image = load_square(folder / name, size)
        except UNREADABLE as error:
            yield Item(name, None, reject=_reason(error))
            continue
        labels = (classes.index(name.split("/")[0]),) if classes else ()
        yield Item(name, image, labels, split_of(image))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its own message holds the full path
        return "not an image that Pillow can read"
    return f"{type(error).__name__}: {error}"


def split_of(image: np.ndarray) -> str:
    """The split of an image, decided by its pixels alone."""
    tenth = int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:8], "big") % 10
    return "train" if tenth < 8 else "reference" if tenth == 8 else "floor"


def _is_candidate(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    hidden = any(part.startswith((".", "__MACOSX")) for part in parts)
    return path.suffix[1:].lower() in EXTENSIONS and not hidden and path.is_file()


def _classes(pictures: list[_Picture]) -> tuple[str, ...]:
    """Names of the first-level sub-folders, if all images lie in at least two of them."""
    if any("/" not in picture.name for picture in pictures):
        return ()
    names = sorted({picture.name.split("/")[0] for picture in pictures})
    return tuple(names) if len(names) > 1 else ()


def _digest(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError:  # decoding it will fail too, and is where it gets its reason
        return "unreadable"
