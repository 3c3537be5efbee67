"""Training batches from a pack against a DataLoader that decodes JPEGs with two workers.

python -m benchmarks data_path
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.timing import ratios, text
from dreamlib.data.celeba import celeba_source
from dreamlib.data.image_folder import load_square
from dreamlib.data.loader import Stream
from dreamlib.data.prepare import pack
from dreamlib.utils.images import dequantise
from tests.crash.test_pack import synthetic_celeba

SIZE, BATCH = 64, 128
QUEUE = 4  # batches that two workers prepare ahead


class Jpegs(Dataset):
    """What a DataLoader usually does: open, crop, resize, flip, for every image of every epoch."""

    def __init__(self, folder: Path):
        self.paths = sorted(folder.glob("*.jpg"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> torch.Tensor:
        image = load_square(self.paths[i], SIZE)
        image = image[:, ::-1].copy() if np.random.default_rng(i).random() < 0.5 else image
        return dequantise(image[None])[0]


def seconds(take: Callable[[int], None], batches: int) -> float:
    begun = time.perf_counter()
    take(batches)
    return time.perf_counter() - begun


def measure(rounds: int, quick: bool) -> dict[str, Any]:
    """Seconds of the same number of images by either way, round by round."""
    images, count = (1000, 5) if quick else (4000, 20)
    with tempfile.TemporaryDirectory() as home:
        folder = synthetic_celeba(Path(home) / "celeba", images)
        source = celeba_source(SIZE, path=folder, downloads=Path(home))
        packed = pack(source, Path(home) / "packed")
        stream = Stream(packed.images, packed.indices("train"), BATCH, seed=0, flip=True)
        loader = DataLoader(
            Jpegs(folder),
            BATCH,
            shuffle=True,
            num_workers=2,
            drop_last=True,
            persistent_workers=True,
        )
        batches: Iterator[torch.Tensor] = cycle_epochs(loader)
        next(batches)  # the workers are up
        steps = iter(range(10**9))

        def ours(count: int) -> None:
            for step in islice(steps, count):
                stream[step]

        def theirs(count: int) -> None:
            for _ in islice(batches, count):
                pass

        ours(1)
        found: dict[str, list[float]] = {"pack": [], "loader": []}
        for _ in range(rounds):
            time.sleep(1)  # the workers fill their queue, and then stand still
            found["pack"].append(seconds(ours, count))
            theirs(QUEUE)  # what lay ready does not count
            found["loader"].append(seconds(theirs, count))
    return {"images": count * BATCH, "seconds": found}


def table(found: dict[str, Any]) -> str:
    seconds, images = found["seconds"], found["images"]
    pace = [images / median(seconds[name]) for name in ("pack", "loader")]
    times = text(ratios(seconds["loader"], seconds["pack"]))
    return (
        "| images/s from the pack | DataLoader, 2 workers, JPEG | times as many |\n|---|---|---|\n"
        f"| {pace[0]:,.0f} | {pace[1]:,.0f} | {times} |"
    )


def cycle_epochs(loader: DataLoader) -> Iterator[torch.Tensor]:
    for _ in cycle([None]):
        yield from loader
