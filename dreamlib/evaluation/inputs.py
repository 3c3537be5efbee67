"""What a study is made from: images and features of every set, each made or found once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dreamlib.config.factory import make_extractor
from dreamlib.data.dataset import Rows
from dreamlib.evaluation.results import GENERATED, REAL, Origin, Plan, Score
from dreamlib.metrics.features import CHUNK_IMAGES, Extractor, extract, metric_name
from dreamlib.metrics.pixel_stats import FLOATS
from dreamlib.runs.run import Run
from dreamlib.sampling.generate import generate
from dreamlib.utils.arguments import SIZES, listed, taken
from dreamlib.utils.errors import ConfigError, DataError
from dreamlib.utils.files import ArrayRows, row_hashes
from dreamlib.utils.images import dequantise, quantise
from dreamlib.utils.rng import torch_rng

UNTRAINED, GAUSSIAN = "untrained", "gaussian"


def sizes_of(run: Run, n: Sequence[int] | int | None) -> tuple[int, ...]:
    """The N of a study, ascending; ConfigError below 2."""
    return check_sizes(n or run.config.evaluate.n)


def check_sizes(n: Sequence[int] | int) -> tuple[int, ...]:
    return tuple(sorted(set(taken(SIZES, listed(n), "N"))))


def kept_features(images: np.ndarray, extractor: Extractor, folder: Path) -> np.ndarray:
    """Features [N,dim] of uint8 images [N,H,W,C], kept beside the scores in `folder`."""
    return extract(images, extractor, cache=folder / "evaluation" / "features")


@dataclass(frozen=True)
class StudyInputs:
    """Images and features of a study, each made or found once."""

    run: Run
    sizes: tuple[int, ...]

    @property
    def largest(self) -> int:
        return self.sizes[-1]

    @cached_property
    def extractor(self) -> Extractor:
        return make_extractor(self.run.config, self.run.data, self.run.device)

    @cached_property
    def plan(self) -> Plan:
        settings = self.run.config.evaluate
        return Plan(metric_name(self.extractor), self.sizes, settings.cells, settings.jackknife)

    @cached_property
    def reference(self) -> np.ndarray:
        """Held-out images that every score is compared with."""
        return self.run.data.take("reference", self.run.config.evaluate.reference)[0]

    @cached_property
    def held_out(self) -> np.ndarray:
        """Other held-out images, in the place of generated ones."""
        return self.run.data.take("floor", self.largest)[0]

    @cached_property
    def train(self) -> Rows:
        """Every training image, read when it is asked for."""
        return self.run.data.rows("train")

    @property
    def some_train(self) -> np.ndarray:
        """As many of them as there are in the reference, or fewer."""
        return self.train[: self.run.config.evaluate.reference]

    @property
    def pair(self) -> dict[str, np.ndarray]:
        """Generated images, and held-out ones in their place."""
        return {name: self.images[name] for name in (GENERATED, REAL)}

    def features(self, images: np.ndarray) -> np.ndarray:
        return kept_features(images, self.extractor, self.run.folder)

    def generated(self, seeds: Sequence[int], *, untrained: bool = False) -> np.ndarray:
        return generate(self.run, seeds, untrained=untrained)

    @cached_property
    def images(self) -> dict[str, np.ndarray]:
        """Every set that is scored.  The anchors at the smallest N: they are far away, and sampling
        costs as much as for the model."""
        held_out = self.held_out  # too few are said before any is drawn
        sets = {GENERATED: self.generated(range(self.largest)), REAL: held_out}
        if self.run.config.evaluate.anchors:
            few = self.sizes[0]
            sets[UNTRAINED] = self.generated(range(few), untrained=True)
            sets[GAUSSIAN] = gaussian_images(self.train, few, seed=0)
        return sets

    def origin(self, score: Score, card: dict[str, Any]) -> Origin:
        """What a score says of its images, and of what looked at them if it does not say so."""
        name = self.extractor.identity
        origin = score.origin if score.origin.extractor else Origin(name, name.rpartition("-")[2])
        origin = replace(origin, seeds=f"0 to {score.n * max(1, len(score.parts)) - 1:,}")
        gan, sample = self.run.config.gan, self.run.config.sample
        if score.images not in (GENERATED, UNTRAINED):
            return origin
        sampler = f"{sample.sampler}, {sample.spacing} spacing"
        if self.run.config.model == "gan":
            sampler = f"one pass of the generator, truncation {gan.truncation:g}"
        return replace(
            origin,
            weights=card["sha256"] if score.images == GENERATED else "initial",
            sampler=sampler,
            steps=sample.steps,
            nfe=sample.steps * (2 if sample.guidance != 1 else 1),
            seed=sample.seed,
        )


def prepare(run: Run, part: tuple[int, int], n: Sequence[int] | None = None) -> None:
    """One process's share of a later `evaluate`: part (k, of) makes and looks at chunk k, k + of,
    and so on of every set, by image number.  Processes share nothing but the run folder."""
    k, of = check_part(part)

    def chunks(total: int) -> list[range]:
        starts = range(k * CHUNK_IMAGES, total, of * CHUNK_IMAGES)
        return [range(start, min(start + CHUNK_IMAGES, total)) for start in starts]

    with run.session() as keep:
        inputs = StudyInputs(run, sizes_of(run, n))
        for chunk in chunks(inputs.largest):
            inputs.features(inputs.generated(chunk))
        for images in (inputs.reference, inputs.held_out, inputs.some_train):
            for chunk in chunks(len(images)):
                inputs.features(images[chunk.start : chunk.stop])
        keep()


def check_part(part: tuple[int, int]) -> tuple[int, int]:
    """(k, of) with 0 <= k < of, else ConfigError."""
    k, of = part
    if not 0 <= k < of:
        raise ConfigError(f"part {k + 1} of {of} does not exist")
    return part


def check_apart(held_out: Sequence[np.ndarray], train: ArrayRows, share: float) -> int:
    """How many of the held-out uint8 images are training images too, pixel for pixel.

    DataError where it is more than `share` of them.
    """
    known = set(row_hashes(train))
    equal = [each in known for images in held_out for each in row_hashes(images)]
    if sum(equal) > share * len(equal):
        raise DataError(
            f"{sum(equal):,} of {len(equal):,} images to compare with are training images: a model "
            "that learnt them by heart would look good; take images that it has not seen"
        )
    return sum(equal)


def gaussian_images(train: ArrayRows, n: int, seed: int) -> np.ndarray:
    """Images with the pixel mean and covariance of uint8 `train` [M,H,W,C] -> uint8 [n,H,W,C].

    mean + X' w / sqrt(M - 1), with w standard normal, has exactly the covariance of the centred
    rows X; the covariance itself, large for large images, is never formed.
    """
    rng, size = torch_rng("gaussian", seed), len(train)
    rows = max(1, min(4096, FLOATS // math.prod(train.shape[1:])))
    parts = [slice(start, start + rows) for start in range(0, size, rows)]
    sums = (train[part].sum(axis=0, dtype=np.float64) for part in parts)
    total = sum(sums, np.zeros(train.shape[1:]))
    mean = torch.from_numpy((total / size).astype(np.float32)) / 127.5 - 1
    drawn = torch.zeros(n, mean.numel())
    for part in parts:
        centred = dequantise(train[part]).permute(0, 2, 3, 1) - mean
        drawn += torch.randn(n, len(centred), generator=rng) @ centred.flatten(1)
    images = mean + drawn.view(n, *mean.shape) / (size - 1) ** 0.5
    return quantise(images.permute(0, 3, 1, 2))
