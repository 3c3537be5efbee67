"""Randomness as a function of position.

Every random number is drawn from a generator keyed by what it is for: (purpose, seed, step) in
training, (purpose, seed, image, step) in sampling.  Nothing depends on what was drawn before, so
resuming needs no generator state, and any split of the work gives the same numbers.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def mix(purpose: str, *key: int) -> int:
    """One 63-bit seed from a purpose and non-negative integers (NumPy's SeedSequence hash)."""
    entropy = [zlib.crc32(purpose.encode()), *key]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) & (2**63 - 1)


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
