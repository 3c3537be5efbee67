"""Training batches by step number: permuted, endless, addressable, without a DataLoader."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dreamlib.utils.errors import DataError
from dreamlib.utils.images import dequantise
from dreamlib.utils.rng import numpy_rng, torch_rng


class Stream:
    """`stream[step]` is the batch of that step, whatever was asked before.

    Batches are cut from an endless row of permutations of `rows`, one for each epoch; a batch may
    straddle epochs.  The order is keyed by (seed, epoch), changes of the images by (seed, step):
    `flip` mirrors half of them, `shift` moves each by up to that many pixels (edges mirrored),
    `colour` changes brightness and contrast by up to that share.
    """

    def __init__(
        self,
        images: np.ndarray,
        rows: np.ndarray,
        batch: int,
        seed: int,
        *,
        flip: bool = False,
        shift: int = 0,
        colour: float = 0.0,
        device: torch.device | None = None,
    ):
        """images uint8 [N,H,W,C] (a memmap will do), rows [n] are those to train on."""
        if not len(rows):
            raise DataError("there are no rows to train on; pack a source with a train split")
        if batch < 1:
            raise ValueError(f"a batch holds at least one image, got {batch}")
        self.images, self.rows = images, np.asarray(rows)
        self.batch, self.seed = batch, seed
        self.device = device or torch.device("cpu")
        self.flip, self.shift, self.colour = flip, shift, colour
        self._order = lru_cache(maxsize=2)(self._permute)  # a straddling batch needs two epochs

    @property
    def epoch_steps(self) -> float:
        """Steps in which every row is seen once."""
        return len(self.rows) / self.batch

    def rows_at(self, step: int) -> np.ndarray:
        """The row numbers of batch `step`, [B]."""
        if step < 0:
            raise IndexError(f"steps count from 0, got {step}")
        places = np.arange(step * self.batch, (step + 1) * self.batch)
        epochs, offsets = np.divmod(places, len(self.rows))
        parts = [self._order(int(e))[offsets[epochs == e]] for e in np.unique(epochs)]
        return np.concatenate(parts)

    def __getitem__(self, step: int) -> Tensor:
        """Batch `step`: float32 [B,C,H,W] in [-1, 1], on the stream's device.

        Bytes travel, and everything else is done there; what is random is drawn on the CPU, so
        that it is the same on every device.
        """
        pixels = torch.from_numpy(np.asarray(self.images[self.rows_at(step)]))
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()  # so that the copy does not wait
        pixels = pixels.to(self.device, non_blocking=True)
        if self.flip:  # of bytes: a quarter of the memory
            coins = torch.rand(self.batch, generator=torch_rng("flip", self.seed, step))
            chosen = torch.nonzero(coins < 0.5).flatten().to(self.device)
            pixels[chosen] = pixels[chosen].flip(2)
        x = dequantise(pixels)
        if self.shift:
            x = _shifted(x, self.shift, torch_rng("shift", self.seed, step))
        if self.colour:
            x = _recoloured(x, self.colour, torch_rng("colour", self.seed, step))
        return x

    def _permute(self, epoch: int) -> np.ndarray:
        return self.rows[numpy_rng("order", self.seed, epoch).permutation(len(self.rows))]


def _shifted(x: Tensor, most: int, rng: torch.Generator) -> Tensor:
    """Every image moved by its own whole number of pixels, up to `most` each way."""
    height, width = x.shape[2:]
    wide = F.pad(x, [most] * 4, mode="reflect")
    corners = torch.randint(2 * most + 1, (len(x), 2), generator=rng).tolist()
    return torch.stack(
        [image[:, y : y + height, x : x + width] for image, (y, x) in zip(wide, corners)]
    )


def _recoloured(x: Tensor, most: float, rng: torch.Generator) -> Tensor:
    """Every image's contrast times, and brightness plus, its own uniform draw; kept in [-1, 1]."""
    draws = (2 * torch.rand(2, len(x), 1, 1, 1, generator=rng) - 1).to(x.device)
    contrast, brightness = most * draws
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return ((x - mean) * (1 + contrast) + mean + brightness).clamp(-1, 1)
