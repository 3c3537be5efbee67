"""A trained network as the page's kernels read it: numbers in one row of bytes, and what they are.

Matrices are held in 16 bits with a step per column, an eighth of float16's error in no more room.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator

import numpy as np
from torch import Tensor

PANEL = 8  # columns of a matrix that the kernels take at once
LARGEST = 32767


def pack_weights(weights: dict[str, Tensor]) -> tuple[list[tuple[str, int, int]], bytes]:
    """Every array's (name, count, columns), 0 columns for a vector; and their numbers, gzipped:

    float32 vectors and columns' steps, in order; then the integers of all matrices [n/8,k,8], all
    high bytes before all low ones, which packs better.
    """
    table, floats, integers = [], [np.zeros(0, np.float32)], [np.zeros(0, np.int16)]
    for name, array in _arrays(weights):
        if array.ndim == 1:
            table.append((name, array.size, 0))
            floats.append(array.astype(np.float32))
            continue
        whole = np.pad(array, ((0, 0), (0, -array.shape[1] % PANEL)))
        step = (np.abs(whole).max(axis=0) / LARGEST).astype(np.float32)
        held = np.rint(whole / np.where(step > 0, step, 1)).astype(np.int16)
        table.append((name, held.size, held.shape[1]))
        floats.append(step)
        integers.append(held.reshape(len(held), -1, PANEL).transpose(1, 0, 2).ravel())
    numbers = np.concatenate(integers).astype("<i2").view(np.uint8).reshape(-1, 2)
    planes = numbers[:, 1].tobytes() + numbers[:, 0].tobytes()
    return table, gzip.compress(np.concatenate(floats).tobytes() + planes, mtime=0)


def _arrays(weights: dict[str, Tensor]) -> Iterator[tuple[str, np.ndarray]]:
    """Layers as matrices [k,n] from pixels before channels; the rest as vectors."""
    for name, tensor in weights.items():
        array, (layer, _, kind) = tensor.float().numpy(), name.rpartition(".")
        if layer.startswith("grow."):  # a transposed convolution: every tap's product, then sums
            if kind == "bias":
                yield f"{layer}.own", array
            else:
                yield f"{layer}.bias", np.zeros(array[0].size)
                yield name, array.transpose(0, 2, 3, 1).reshape(len(array), -1)
        elif array.ndim == 4:  # [out,in,rows,columns]
            yield name, array.transpose(2, 3, 1, 0).reshape(-1, len(array))
        elif array.ndim == 2 and not layer.startswith("labels."):
            yield name, array.T
        else:
            yield name, np.pad(array.ravel(), (0, -array.size % PANEL))
