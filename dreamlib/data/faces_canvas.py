"""A painter for many small pictures at once: signed distances in, anti-aliased pixels out.

Arithmetic keeps to + - * / sqrt min max, which IEEE 754 rounds alike everywhere: no exp, no sin,
so that the bytes do not depend on the machine.
"""

from __future__ import annotations

import numpy as np

Field = np.ndarray  # float32, broadcastable to [n,h,w]
Rows = np.ndarray | slice  # which of the pictures
ALL = slice(None)


class Canvas:
    """n pictures of size x size pixels, painted layer over layer; x and y run from -1 to 1."""

    def __init__(self, n: int, size: int):
        self.size, self.fine = size, max(1, -(-32 // size))  # small pictures: average finer pixels
        side = size * self.fine
        ticks = ((np.arange(side) * 2 + 1) / side - 1).astype(np.float32)
        self.x, self.y = ticks[None, None, :], ticks[None, :, None]
        self.pixel = np.float32(2 / side)
        self.rgb = np.zeros((n, 3, side, side), np.float32)

    def cover(self, distance: Field) -> Field:
        """Share of each pixel that lies inside: 1 deep within (distance < 0), 0 outside."""
        return np.clip(0.5 - distance / self.pixel, 0, 1)

    def paint(self, colour: np.ndarray, alpha: Field, rows: Rows = ALL) -> None:
        """Lay colour [n,3] (0 to 255) over the pictures `rows`, alpha [n,h,w] of it (0 to 1)."""
        below = self.rgb[rows]
        self.rgb[rows] = below + alpha[:, None] * (colour[:, :, None, None] - below)

    def pixels(self) -> np.ndarray:
        """The finished pictures, uint8 [n,size,size,3]."""
        fine = self.fine
        parts = [self.rgb[:, :, i::fine, j::fine] for i in range(fine) for j in range(fine)]
        mean = sum(parts[1:], parts[0]) / np.float32(fine * fine)
        return np.floor(np.clip(mean + 0.5, 0, 255)).astype(np.uint8).transpose(0, 2, 3, 1).copy()


def ellipse(x: Field, y: Field, rx: Field | float, ry: Field | float) -> Field:
    """Distance to an ellipse about the origin, to first order; negative inside."""
    u, v = x / rx, y / ry
    level = np.sqrt(u * u + v * v)
    slope = np.sqrt((u / rx) ** 2 + (v / ry) ** 2)
    return level * (level - 1) / np.maximum(slope, np.float32(1e-6))


def box(x: Field, y: Field, rx: float, ry: float, corner: float) -> Field:
    """Distance to a rectangle with rounded corners about the origin; negative inside."""
    u, v = np.abs(x) - (rx - corner), np.abs(y) - (ry - corner)
    outside = np.sqrt(np.maximum(u, 0) ** 2 + np.maximum(v, 0) ** 2)
    return outside + np.minimum(np.maximum(u, v), 0) - corner


def arc(x: Field, y: Field, half: float, sag: float, thick: float) -> Field:
    """Distance to a parabolic stroke through the origin whose ends at x = +-half rise by `sag`."""
    bend = sag / (half * half)
    across = np.abs(y + bend * x * x) / np.sqrt(1 + (2 * bend * x) ** 2) - thick / 2
    return np.maximum(across, np.abs(x) - half)


def glow(x: Field, y: Field, rx: float, ry: float) -> Field:
    """A soft spot about the origin: 1 at its centre, 0 from the ellipse outwards."""
    return np.maximum(1 - (x / rx) ** 2 - (y / ry) ** 2, 0) ** 2
