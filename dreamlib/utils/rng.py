"""Randomness as a function of position.

Every random number is drawn from a generator keyed by what it is for: (purpose, seed, step) in
training, (purpose, seed, image, step) in sampling.  Nothing depends on what was drawn before, so
resuming needs no generator state, and any split of the work gives the same numbers.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import permutations

import numpy as np
import torch
from torch import Tensor


def mix(purpose: str, *key: int) -> int:
    """One 63-bit seed from a purpose and non-negative integers (NumPy's SeedSequence hash)."""
    entropy = [zlib.crc32(purpose.encode()), *key]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) & (2**63 - 1)


def mix_each(purpose: str, seed: int, images: Sequence[int], t: int) -> list[int]:
    """[mix(purpose, seed, image, t) for image in images], all at once.

    SeedSequence takes 9 µs a seed, more than the noise of a small image; this is its hash, on
    arrays.  O'Neill 2015, "Developing a seed_seq alternative".
    """
    words = [zlib.crc32(purpose.encode()), seed, t]
    few = len(images) < 12  # sooner done one by one
    if few or max(*words, max(images)) >= 2**32:  # it hashes larger ones as more words
        return [mix(purpose, seed, image, t) for image in images]
    entropy = [np.array([words[0]]), np.array([seed]), np.asarray(images), np.array([t])]
    factor = 0x43B0D7E5

    def scramble(word: np.ndarray, times: int) -> np.ndarray:
        nonlocal factor
        word = word ^ np.uint32(factor)
        factor = factor * times & 0xFFFFFFFF
        word = word * np.uint32(factor)
        return word ^ word >> np.uint32(16)

    pool = [scramble(word.astype(np.uint32), 0x931E8875) for word in entropy]
    for source, target in permutations(range(4), 2):
        other = scramble(pool[source], 0x931E8875) * np.uint32(0x4973F715)
        mixed = pool[target] * np.uint32(0xCA01F9DD) - other
        pool[target] = mixed ^ mixed >> np.uint32(16)
    factor = 0x8B51F9DD
    low, high = (scramble(pool[i], 0x58F38DED).astype(np.uint64) for i in range(2))
    return ((high << np.uint64(32) | low) & np.uint64(2**63 - 1)).tolist()


def torch_rng(purpose: str, *key: int) -> torch.Generator:
    """A CPU generator, so that every device sees the same numbers."""
    return torch.Generator().manual_seed(mix(purpose, *key))


def numpy_rng(purpose: str, *key: int) -> np.random.Generator:
    return np.random.default_rng(mix(purpose, *key))


@contextmanager
def seeded(purpose: str, *key: int) -> Iterator[None]:
    """Key torch's global generators (weight initialisation, dropout); restore them afterwards."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(mix(purpose, *key))
        yield


def image_noise(
    seed: int, slots: Sequence[int | None], shape: Sequence[int], t: int, device: torch.device
) -> Tensor:
    """Standard normal [B,*shape]; row r is keyed by (seed, slots[r], t), empty slots are zero.

    A CPU generator of torch takes the low 32 bits of a seed: of n images, n^2 / 2^33 pairs share
    their noise at a given t, 0.3 of 50,000 and 5 of 200,000.
    """
    noise, rng = torch.zeros(len(slots), *shape), torch.Generator()
    filled = {row: image for row, image in enumerate(slots) if image is not None}
    for row, key in zip(filled, mix_each("image", seed, list(filled.values()), t)):
        noise[row].normal_(generator=rng.manual_seed(key))
    return noise.to(device)
