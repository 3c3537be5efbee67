"""What a study is made from: images and features of every set, each made or found once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dreamlib.config.factory import make_extractor
from dreamlib.data.dataset import Rows
from dreamlib.evaluation.aggregate import Plan
from dreamlib.evaluation.image_scores import gaussian_images
from dreamlib.evaluation.results import GENERATED, REAL, Origin, Score
from dreamlib.metrics.features import CHUNK_IMAGES, Extractor, extract, metric_name
from dreamlib.runs.run import Run
from dreamlib.sampling.generate import generate
from dreamlib.utils.arguments import SIZES, listed, taken
from dreamlib.utils.errors import ConfigError

UNTRAINED, GAUSSIAN = "untrained", "gaussian"


def sizes_of(run: Run, n: Sequence[int] | int | None) -> tuple[int, ...]:
    """The N of a study, ascending; ConfigError below 2."""
    return check_sizes(n or run.config.evaluate.n)


def check_sizes(n: Sequence[int] | int) -> tuple[int, ...]:
    return tuple(sorted(set(taken(SIZES, listed(n), "N"))))


class Evaluator:
    """Whoever has an extractor, and a folder to keep features in."""

    extractor: Extractor
    folder: Path  # evaluation/ in here holds scores.json and features/

    def features(self, images: np.ndarray) -> np.ndarray:
        cache = self.folder / "evaluation" / "features"
        return extract(images, self.extractor, cache=cache)


@dataclass(frozen=True)
class StudyInputs(Evaluator):
    """Images and features of a study, each made or found once."""

    run: Run
    sizes: tuple[int, ...]

    @property
    def folder(self) -> Path:
        return self.run.folder

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
    def reference(self) -> tuple[np.ndarray, np.ndarray]:
        """Held-out images and labels that every row is compared with."""
        return self.run.data.take("reference", self.run.config.evaluate.reference)

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

    def generated(self, seeds: Sequence[int], *, untrained: bool = False) -> np.ndarray:
        return generate(self.run, seeds, untrained=untrained)

    @cached_property
    def images(self) -> dict[str, np.ndarray]:
        """Every set that is scored.  The anchors at the smallest N: they are far away, and sampling
        costs as much as for the model."""
        floor = self.run.data.take("floor", self.largest)[0]
        sets = {GENERATED: self.generated(range(self.largest)), REAL: floor}
        if self.run.config.evaluate.anchors:
            few = self.sizes[0]
            sets[UNTRAINED] = self.generated(range(few), untrained=True)
            sets[GAUSSIAN] = gaussian_images(self.train, few, seed=0)
        return sets

    def origin(self, row: Score, card: dict[str, Any]) -> Origin:
        """What a row says of its images, and of what looked at them if it does not say so."""
        own = self.extractor.identity
        found = row.origin if row.origin.extractor else Origin(own, own.rpartition("-")[2])
        found = replace(found, seeds=f"0 to {row.n * max(1, len(row.parts)) - 1:,}")
        gan, sample = self.run.config.gan, self.run.config.sample
        if row.images not in (GENERATED, UNTRAINED):
            return found
        sampler = f"{sample.sampler}, {sample.spacing} spacing"
        if self.run.config.model == "gan":
            sampler = f"one pass of the generator, truncation {gan.truncation:g}"
        return replace(
            found,
            weights=card["sha256"] if row.images == GENERATED else "initial",
            sampler=sampler,
            steps=sample.steps,
            nfe=sample.steps * (2 if sample.guidance != 1 else 1),
            seed=sample.seed,
        )


def prepare(run: Run, part: tuple[int, int], n: Sequence[int] | None = None) -> None:
    """One process's share of a later `evaluate`: part (k, of) makes and looks at chunk k, k + of,
    and so on of every set, by image number.  Processes share nothing but the run folder."""
    k, of = part
    if not 0 <= k < of:
        raise ConfigError(f"part {k + 1} of {of} does not exist")
    with run.session() as keep:
        inputs = StudyInputs(run, sizes_of(run, n))
        for start in range(k * CHUNK_IMAGES, inputs.largest, of * CHUNK_IMAGES):
            numbers = range(start, min(start + CHUNK_IMAGES, inputs.largest))
            inputs.features(inputs.generated(numbers))
        floor = run.data.take("floor", inputs.largest)[0]
        for images in (inputs.reference[0], floor, inputs.some_train):
            for start in range(k * CHUNK_IMAGES, len(images), of * CHUNK_IMAGES):
                inputs.features(images[start : start + CHUNK_IMAGES])
        keep()
