"""Images: uint8 [N,H,W,C] between stages, float [B,C,H,W] in [-1, 1] inside the network."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dreamlib.utils.files import write_atomic

DIM = 64  # of 255; 14 bits in a 16-bit file reach it


def quantise(x: Tensor) -> np.ndarray:
    """float [B,C,H,W] in [-1, 1] -> uint8 [B,H,W,C]: floor(clip(127.5 x + 128, 0, 255)).

    The only place where images become integers.  Non-finite values are an error, never a colour.
    """
    if not torch.isfinite(x).all():
        raise FloatingPointError("cannot quantise images that hold NaN or infinite values")
    levels = (127.5 * x.float() + 128).clamp(0, 255).floor()
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def dequantise(images: np.ndarray | Tensor) -> Tensor:
    """uint8 [B,H,W,C] -> float32 [B,C,H,W] in [-1, 1]; `quantise` undoes it exactly."""
    pixels = torch.as_tensor(images)
    if pixels.dtype != torch.uint8:
        raise TypeError(f"images are uint8 between stages, got {pixels.dtype}")
    # In the layout that its shape says: strides left as [B,H,W,C] would have every convolution
    # behind it work channels-last, where normalising small images takes 20 times as long on a CPU.
    planes = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return planes.div_(127.5).sub_(1)


def to_rgb(images: np.ndarray) -> np.ndarray:
    """uint8 [N,H,W,1 or 3] -> uint8 [N,H,W,3]."""
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def range_told(images: np.ndarray) -> str:
    """What is to be said of uint8 images whose range is far below their type's; "" for others."""
    brightest = int(images.max(initial=0))
    if brightest > DIM:
        return ""
    return (
        f"the brightest pixel is {brightest} of 255: if these are 12-bit images, masks or values "
        "from 0 to 1, scale them to their type's range first"
    )


def enlarge(images: np.ndarray, size: int) -> np.ndarray:
    """Repeat pixels so that the images measure at least about `size`, without inventing any."""
    times = max(1, round(size / images.shape[1]))
    return images.repeat(times, axis=1).repeat(times, axis=2)


def grid(images: np.ndarray, columns: int | None = None, gap: int = 1) -> np.ndarray:
    """Lay uint8 [N,H,W,C] out on white, row by row -> uint8 [H',W',3]."""
    images = to_rgb(images)
    n, height, width, _ = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    step_y, step_x = height + gap, width + gap
    sheet = np.full((rows * step_y + gap, columns * step_x + gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = gap + (i // columns) * step_y, gap + (i % columns) * step_x
        sheet[y : y + height, x : x + width] = image
    return sheet


def save_png(image: np.ndarray, path: Path) -> None:
    """uint8 [H,W,1 or 3] -> an RGB file with exactly these pixels."""
    picture = Image.fromarray(to_rgb(image[None])[0])
    write_atomic(path, lambda file: picture.save(file, format="PNG"))
