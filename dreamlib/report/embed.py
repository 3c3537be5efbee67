"""Figures inside a page: which hold something, and how they are made light enough."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from dreamlib.report.captions import NOT_DRAWN

WIDTHS = (100_000, 1600, 1200, 900, 600)  # pixels of a picture: the first that make a light page
LIGHT = 11 << 20  # bytes of all pictures in the page
SCREEN = 115  # pixels of a screen that an inch of paper gets


def drawn(path: Path) -> bool:
    """Whether a PNG file is a figure, and not words in the place of one."""
    with Image.open(path, formats=["PNG"]) as image:
        return image.info.get("Comment") != NOT_DRAWN


def embedded(paths: dict[str, Path]) -> list[tuple[str, bytes, tuple[int, int], int]]:
    """(name, PNG file, its size, its width on a screen) of each; smaller ones if need be."""
    for most in WIDTHS:
        found = [(name, *_picture(path, most)) for name, path in paths.items()]
        if sum(len(picture) for _, picture, *_ in found) * 4 / 3 <= LIGHT:
            break
    return found


def _picture(path: Path, most: int) -> tuple[bytes, tuple[int, int], int]:
    """A PNG file as it is, or shrunk to `most` pixels where that makes it lighter: mixed colours
    can weigh more than fewer pixels spare."""
    data = path.read_bytes()
    with Image.open(path, formats=["PNG"]) as image:
        size, wide = image.size, round(image.width / image.info.get("dpi", (SCREEN,))[0] * SCREEN)
        if image.width <= most:
            return data, size, wide
        small_size = most, max(1, round(image.height * most / image.width))
        small = image.convert("RGB").resize(small_size, Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, format="PNG")
    lighter = len(file.getvalue()) < len(data)
    return (file.getvalue(), small_size, wide) if lighter else (data, size, wide)
