"""Training batches from a pack against a DataLoader that decodes JPEGs with two workers.

    python -m tests.benchmarks.data_path

Interleaved A/B rounds in one process; images/s as medians, and their ratio with its spread.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dreamlib.data.celeba import celeba_source
from dreamlib.data.folder import load_square
from dreamlib.data.packing import pack
from dreamlib.data.stream import Stream
from dreamlib.images import dequantise
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        folder = synthetic_celeba(Path(home) / "celeba", options.images)
        source = celeba_source(SIZE, path=folder, downloads=Path(home), say=lambda text: None)
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
        rounds = []
        for _ in range(options.rounds):
            time.sleep(1)  # the workers fill their queue, and then stand still
            first = seconds(ours, options.batches)
            theirs(QUEUE)  # what lay ready does not count
            rounds.append((first, seconds(theirs, options.batches)))
    images = options.batches * BATCH
    ratios = sorted(b / a for a, b in rounds)
    print("| images/s from the pack | DataLoader, 2 workers, JPEG | ratio, median (min to max) |")
    print("|---|---|---|")
    pace = [images / median(column) for column in zip(*rounds)]
    print(
        f"| {pace[0]:,.0f} | {pace[1]:,.0f} | {median(ratios):.1f} "
        f"({ratios[0]:.1f} to {ratios[-1]:.1f}) |"
    )


def cycle_epochs(loader: DataLoader) -> Iterator[torch.Tensor]:
    for _ in cycle([None]):
        yield from loader


if __name__ == "__main__":
    main()
