"""What may be an image, by its name and by its content; and a source of files of any kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import IO, NamedTuple

from PIL import Image

# Of pictures.  Pillow goes by a file's content and knows more formats, some of which (PostScript)
# have it start another program.
FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000"),
    *("MPO", "PCX", "PNG", "PPM", "SGI", "TGA", "TIFF", "WEBP"),
)
LARGEST_PICTURE = Image.MAX_IMAGE_PIXELS or 2**26  # pixels; Pillow begins to warn there
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
