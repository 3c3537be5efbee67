"""Images by number, drawn in batches whose company changes none of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import torch

from dreamlib.utils.threads import one_thread, side_by_side

ROWS = 32  # as fast a row as more of them, and a small sheet has work for two threads
Slots = list[int | None]  # the image of every row of a batch


def batches(images: Sequence[int], batch: int) -> list[Slots]:
    """Deal images out to batches of one fixed size; image i always sits in row i % batch.

    A network's floats may depend on the batch size and on the row, never on the other rows'
    values; so with both fixed an image's bytes do not depend on its company.  An image goes into
    the first batch whose row is free.
    """
    dealt: list[Slots] = []
    full: Counter[int] = Counter()  # row -> how many batches have it taken
    for image in images:
        row = image % batch
        if full[row] == len(dealt):
            dealt.append([None for _ in range(batch)])
        dealt[full[row]][row] = image
        full[row] += 1
    return dealt


def drawn_by(
    draw: Callable[[Slots], np.ndarray],
    images: Sequence[int],
    batch: int,
    device: torch.device,
    *,
    ordered: bool = False,
) -> np.ndarray:
    """What `draw` makes of rows, uint8 [B,H,W,C] -> uint8 [N,H,W,C], in the order asked.

    On a CPU a batch is drawn in fixed parts of ROWS, side by side by one thread each, so that bits
    depend neither on the threads nor on who else is drawn; parts without an image are left out.
    Whole batches, one after the other, where that is to be watched (`ordered`).
    """
    dealt = batches(list(dict.fromkeys(images)), batch)
    if device.type == "cpu" and not ordered:
        cut = (slots[k : k + ROWS] for slots in dealt for k in range(0, batch, ROWS))
        dealt = [part for part in cut if any(image is not None for image in part)]
    with one_thread() if device.type == "cpu" else nullcontext(1) as threads:
        done = side_by_side(draw, dealt, 1 if ordered else threads)
    rows = {image: row for slots, made in zip(dealt, done) for image, row in zip(slots, made)}
    return np.stack([rows[image] for image in images])
