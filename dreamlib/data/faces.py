"""The embedded data set: cartoon faces drawn by code, with known attributes, at any size.

Face i of a seed is a function of (seed, i) alone, and the same person at every size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from dreamlib.data.dataset import SPLITS, Contents, Item, Source
from dreamlib.data.faces_canvas import ALL, Canvas, Field, Rows, arc, box, ellipse, glow
from dreamlib.utils.errors import DataError
from dreamlib.utils.rng import numpy_rng

DRAWING = 1  # raise it whenever a change here or in faces_canvas.py alters a pixel of any face
BLOCK = 64  # consecutive faces whose parameters are drawn together
MIN_SIZE = 16  # pixels; below, eyes are smaller than two pixels and their colour is lost

# attribute -> value -> share of the faces
SHARES = {
    "skin": {"light": 0.3, "tan": 0.25, "brown": 0.25, "dark": 0.2},
    "hair_colour": {"black": 0.24, "brown": 0.22, "blond": 0.2, "red": 0.18, "grey": 0.16},
    "hair_style": {"short": 0.3, "long": 0.28, "bun": 0.2, "curly": 0.22},
    "eyes": {"brown": 0.4, "blue": 0.33, "green": 0.27},
    "mouth": {"smile": 0.42, "neutral": 0.3, "open": 0.28},
    "glasses": {"none": 0.54, "round": 0.26, "square": 0.2},
    "background": {"sky": 0.24, "mint": 0.22, "rose": 0.2, "violet": 0.18, "cream": 0.16},
}
ATTRIBUTES = {name: tuple(shares) for name, shares in SHARES.items()}

# nuisance -> (lowest, highest); lengths are in halves of the image's side
NUISANCES = {
    "shift_x": (-0.06, 0.06),
    "shift_y": (-0.04, 0.04),
    "scale": (0.98, 1.08),
    "width": (0.95, 1.06),
    "gaze": (-0.02, 0.02),
    "light": (-0.35, 0.35),
    "skin_tone": (0.96, 1.04),
    "hair_tone": (0.9, 1.1),
    "back_tone": (0.96, 1.03),
    "blush": (0.3, 0.5),
    "shirt": (0.0, 1.0),
}

# RGB, 0 to 255, in the order of SHARES
SKIN = [(255, 220, 194), (240, 182, 132), (180, 116, 74), (112, 70, 48)]
HAIR = [(40, 34, 46), (124, 72, 36), (246, 206, 90), (216, 76, 30), (194, 198, 208)]
IRIS = [(104, 54, 22), (36, 116, 240), (24, 158, 66)]
BACKGROUND = [(112, 186, 242), (128, 214, 164), (250, 150, 170), (170, 138, 236), (253, 238, 200)]
SHIRT = [(244, 246, 252), (70, 92, 170)]  # the two ends between which shirts lie
FRAMES = np.array([[[34, 34, 60]], [[216, 30, 60]]], np.float32)  # round, square
BLUSH = np.array([[240, 84, 90]], np.float32)
WHITE = np.array([[255, 255, 255]], np.float32)
INK = np.array([[30, 22, 30]], np.float32)
LIPS = np.array([[150, 30, 44]], np.float32)
THROAT = np.array([[110, 16, 36]], np.float32)
TONGUE = np.array([[240, 120, 124]], np.float32)

# centres of the curls about the head, and of those over the forehead
CURLS_RIGHT = [(0.0, -0.66), (0.34, -0.58), (0.58, -0.34), (0.68, -0.02), (0.62, 0.30)]
CURLS = [*CURLS_RIGHT, *((-x, y) for x, y in CURLS_RIGHT[1:])]
FRINGE_CURLS = [(-0.42, -0.26), (-0.15, -0.36), (0.15, -0.36), (0.42, -0.26)]


class _Faces:
    """n people about to be painted: their labels, nuisances, colours and coordinates."""

    def __init__(self, labels: np.ndarray, nuisances: np.ndarray, size: int):
        self.canvas = Canvas(len(labels), size)
        self.label = dict(zip(SHARES, labels.T))
        self.vary = {k: v[:, None, None] for k, v in zip(NUISANCES, nuisances.T)}
        vary = self.vary
        self.x = (self.canvas.x - vary["shift_x"]) / (vary["scale"] * vary["width"])
        self.y = (self.canvas.y - vary["shift_y"]) / vary["scale"]
        self.skin = self.tone(SKIN, "skin", "skin_tone")
        self.hair = self.tone(HAIR, "hair_colour", "hair_tone")

    # Colours are float32 [n,3] from 0 to 255, one for each person, or [1,3] for all alike.

    def tone(self, palette: Sequence, attribute: str, nuisance: str) -> np.ndarray:
        colours = np.array(palette, np.float32)[self.label[attribute]]
        return np.minimum(colours * self.vary[nuisance][:, :, 0], 255)

    def rows_by(self, attribute: str) -> list[np.ndarray]:
        """For each value of an attribute, which of the people have it."""
        return [np.flatnonzero(self.label[attribute] == v) for v in range(len(SHARES[attribute]))]

    def paint(self, colour: Field, distance: Field, opacity: Field | float = 1, rows: Rows = ALL):
        self.canvas.paint(colour, self.canvas.cover(distance) * opacity, rows)


def _paint_background(f: _Faces) -> None:
    colour = f.tone(BACKGROUND, "background", "back_tone")
    f.canvas.rgb[:] = colour[:, :, None, None]
    slope = np.clip(0.5 + 0.5 * f.canvas.y + f.vary["light"] * f.canvas.x, 0, 1)
    f.canvas.paint(WHITE, 0.3 * (1 - slope))
    f.canvas.paint(colour * np.float32(0.7), 0.35 * slope)


def _behind(style: int, x: Field, y: Field) -> Field:
    """Distance to the hair behind the head, by position in SHARES['hair_style']."""
    if style == 0:
        return np.maximum(ellipse(x, y + 0.02, 0.68, 0.72), y - 0.2)
    if style == 1:
        return np.minimum(ellipse(x, y - 0.02, 0.74, 0.78), box(x, y - 0.5, 0.76, 0.5, 0.2))
    if style == 2:
        return np.minimum(ellipse(x, y - 0.06, 0.64, 0.7), ellipse(x, y + 0.74, 0.27, 0.2))
    return np.minimum.reduce([ellipse(x - cx, y - cy, 0.27, 0.27) for cx, cy in CURLS])


def _front(style: int, x: Field, y: Field) -> Field:
    """Distance to the hair over the forehead."""
    if style == 0:  # swept to one side
        cap = np.maximum(ellipse(x, y + 0.02, 0.68, 0.72), y - 0.1)
        return np.maximum(cap, -ellipse(x - 0.14, y - 0.4, 0.7, 0.6))
    if style == 1:  # parted in the middle, falling along the cheeks
        cap = np.maximum(ellipse(x, y - 0.02, 0.7, 0.76), y - 0.6)
        return np.maximum(cap, -ellipse(np.abs(x) - 0.12, y - 0.4, 0.42, 0.68))
    if style == 2:  # combed up
        cap = np.maximum(ellipse(x, y - 0.06, 0.64, 0.7), y + 0.1)
        return np.maximum(cap, -ellipse(x, y - 0.32, 0.62, 0.66))
    cap = np.maximum(ellipse(x, y - 0.14, 0.6, 0.66), y + 0.32)
    curls = [ellipse(x - cx, y - cy, 0.2, 0.19) for cx, cy in FRINGE_CURLS]
    return np.minimum.reduce([cap, *curls])


def _paint_hair_behind(f: _Faces) -> None:
    for style, rows in enumerate(f.rows_by("hair_style")):
        shape = _behind(style, f.x[rows], f.y[rows])
        f.paint(f.hair[rows] * np.float32(0.85), shape, rows=rows)


def _paint_hair_in_front(f: _Faces) -> None:
    gleam = np.minimum(f.hair * np.float32(1.1) + 40, 255)
    for style, rows in enumerate(f.rows_by("hair_style")):
        x, y = f.x[rows], f.y[rows]
        shape = _front(style, x, y)
        f.paint(f.hair[rows], shape, rows=rows)
        shine = glow(x + f.vary["light"][rows], y + 0.5, 0.4, 0.16)
        f.paint(gleam[rows], shape, 0.55 * shine, rows)


def _paint_body(f: _Faces) -> None:
    light, dark = np.array(SHIRT, np.float32)
    shirt = light + f.vary["shirt"][:, :, 0] * (dark - light)
    f.paint(f.skin * np.float32(0.82), box(f.x, f.y - 0.8, 0.2, 0.25, 0.05))
    f.paint(shirt, ellipse(f.x, f.y - 1.2, 0.62, 0.36))


def _paint_head(f: _Faces) -> None:
    x, y = f.x, f.y
    f.paint(f.skin * np.float32(0.92), ellipse(np.abs(x) - 0.6, y - 0.18, 0.1, 0.14))
    head = ellipse(x, y - 0.14, 0.6, 0.66)
    f.paint(f.skin, head)
    shade = np.clip(0.1 + 0.45 * (y - 0.14) + f.vary["light"] * x, 0, 1)
    f.paint(f.skin * np.float32(0.72), head, 0.55 * shade)
    lit = np.minimum(f.skin * np.float32(1.22), 255)
    f.paint(lit, head, 0.7 * glow(x + f.vary["light"], y, 0.5, 0.5))
    cheeks = glow(np.abs(x) - 0.36, y - 0.44, 0.22, 0.17)
    f.canvas.paint(BLUSH, f.vary["blush"] * cheeks)


def _paint_eyes(f: _Faces) -> None:
    x, y = np.abs(f.x) - 0.28, f.y - 0.17
    side = np.where(f.x < 0, np.float32(-1), np.float32(1))
    look = x - side * f.vary["gaze"]  # both irises move the same way
    iris = np.array(IRIS, np.float32)[f.label["eyes"]]
    f.paint(WHITE, ellipse(x, y, 0.175, 0.2))
    f.paint(iris, ellipse(look, y - 0.01, 0.13, 0.17))
    f.paint(INK, ellipse(look, y - 0.01, 0.05, 0.07))
    glint = look + side * 0.05
    f.paint(WHITE, ellipse(glint, y + 0.07, 0.045, 0.05))
    f.paint(f.hair * np.float32(0.6), arc(x, y + 0.27, 0.14, -0.04, 0.055), 0.9)


def _paint_mouth(f: _Faces) -> None:
    rows = f.rows_by("mouth")
    x, y = f.x, f.y - 0.56
    smile, neutral, opened = ((x[r], y[r]) for r in rows)
    grin = np.maximum(ellipse(smile[0], smile[1] + 0.09, 0.27, 0.25), -smile[1] - 0.09)
    f.paint(LIPS, grin, rows=rows[0])
    f.paint(WHITE, np.maximum(grin + 0.03, smile[1] - 0.015), rows=rows[0])
    f.paint(LIPS, arc(neutral[0], neutral[1], 0.17, 0.0, 0.085), rows=rows[1])
    mouth = ellipse(opened[0], opened[1], 0.13, 0.14)
    f.paint(THROAT, mouth, rows=rows[2])
    tongue = np.maximum(mouth + 0.03, -(opened[1] - 0.05))
    f.paint(TONGUE, tongue, rows=rows[2])


def _paint_glasses(f: _Faces) -> None:
    _, *with_glasses = f.rows_by("glasses")
    for shape, (rows, colour) in enumerate(zip(with_glasses, FRAMES)):
        x, y = f.x[rows], f.y[rows] - 0.17
        lens_x = np.abs(x) - 0.28
        lens = ellipse(lens_x, y, 0.23, 0.25) if shape == 0 else box(lens_x, y, 0.25, 0.22, 0.06)
        bridge = box(x, y, 0.06, 0.03, 0.02)
        f.paint(colour, np.minimum(np.abs(lens) - 0.03, bridge), rows=rows)


def _paint(labels: np.ndarray, nuisances: np.ndarray, size: int) -> np.ndarray:
    f = _Faces(labels, nuisances, size)
    _paint_background(f)
    _paint_hair_behind(f)
    _paint_body(f)
    _paint_head(f)
    _paint_hair_in_front(f)
    _paint_eyes(f)
    f.canvas.paint(f.skin * np.float32(0.7), 0.8 * glow(f.x, f.y - 0.38, 0.08, 0.08))
    _paint_mouth(f)
    _paint_glasses(f)
    return f.canvas.pixels()


def people(indices: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels int16 [N,A] and nuisances float32 [N,K] of the faces with these numbers."""
    blocks, inverse = np.unique(indices // BLOCK, return_inverse=True)
    width = len(SHARES) + len(NUISANCES)
    drawn = [numpy_rng("faces", seed, int(b)).random((BLOCK, width)) for b in blocks]
    uniform = np.reshape(drawn, (-1, BLOCK, width))[inverse, indices % BLOCK]
    edges = [np.cumsum(list(shares.values()))[:-1] for shares in SHARES.values()]
    columns = [np.searchsorted(edge, uniform[:, i], "right") for i, edge in enumerate(edges)]
    low, high = np.array(list(NUISANCES.values())).T
    nuisances = low + (high - low) * uniform[:, len(SHARES) :]
    return np.stack(columns, 1).astype(np.int16), nuisances.astype(np.float32)


def draw_faces(
    indices: Sequence[int] | np.ndarray, size: int = 16, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Faces by number: uint8 [N,size,size,3] and labels int16 [N,A], columns as in ATTRIBUTES."""
    if size < MIN_SIZE:
        raise DataError(f"faces need at least {MIN_SIZE} pixels, got {size}; set a larger size")
    labels, nuisances = people(np.asarray(indices, np.int64), seed)
    images = np.empty((len(labels), size, size, 3), np.uint8)
    for start in range(0, len(labels), BLOCK):  # small enough for the processor's cache
        part = slice(start, start + BLOCK)
        images[part] = _paint(labels[part], nuisances[part], size)
    return images, labels


def faces_source(size: int, n_train: int, n_reference: int, n_floor: int, seed: int) -> Source:
    """Faces 0 .. n_train-1 to train on, the next n_reference and n_floor held out."""
    counts = dict(zip(SPLITS, (n_train, n_reference, n_floor)))
    total = sum(counts.values())
    splits = np.repeat(SPLITS, list(counts.values()))

    def items(start: int) -> Iterator[Item]:
        for first in range(start, total, BLOCK):
            numbers = range(first, min(first + BLOCK, total))
            for i, image, labels in zip(numbers, *draw_faces(numbers, size, seed)):
                yield Item(f"face/{i:06d}", image, tuple(labels.tolist()), str(splits[i]))

    description = {"drawing": DRAWING, "size": size, "seed": seed, **counts}
    return Source("faces", description, lambda: Contents(ATTRIBUTES, total, items))
