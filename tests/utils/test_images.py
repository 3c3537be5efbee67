"""Pixels on their way into the network and out of it."""

from __future__ import annotations

import numpy as np

from dreamlib.utils.images import dequantise, quantise


def test_all_256_levels_come_back():
    """A cut of 255 (x + 1) / 2, as torchvision's ToPILImage makes it, loses 63 of them."""
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    x = dequantise(levels)
    assert np.array_equal(quantise(x), levels)
    cut = ((x + 1) / 2 * 255).byte().permute(0, 2, 3, 1).numpy()
    assert (cut != levels).sum() == 63  # the test can see it
