"""500 within 5000: one checkpoint, nested samples, one held-out real set, a floor at every N.

The Fréchet distance of N samples is biased by about c (1/N + 1/M), so a larger N gives a smaller
number for the very same model.  Every row therefore carries its N and the floor at that N: what
other held-out real images score against the same reference.  Columns of different N are never
compared with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from dreamlib.build import make_distance, make_extractor
from dreamlib.errors import ConfigError, RunError, WeightsUnavailable
from dreamlib.files import write_atomic
from dreamlib.generate import generate
from dreamlib.measure import REFERENCE, Measured, Plan, measure, replay_rows, score_rows
from dreamlib.measure_images import (
    WORST,
    check_apart,
    copies,
    diversity_rows,
    gaussian_images,
    label_shares,
    pixel_rows,
    strips,
)
from dreamlib.metrics.features import (
    ClassifierExtractor,
    Extractor,
    InceptionExtractor,
    extract,
)
from dreamlib.metrics.modes import worst
from dreamlib.progress import Progress, silent
from dreamlib.run import Run
from dreamlib.scores import (
    GENERATED,
    REAL,
    Origin,
    Score,
    Study,
    read_study,
    with_floors,
    write_study,
)

SHARED = 0.01  # of the held-out images may be training images: real sets hold some twice
UNTRAINED, GAUSSIAN = "untrained", "gaussian"


def metric_name(extractor: Extractor) -> str:
    """FID is the name for Inception features; with others the extractor is part of the name."""
    return "FID" if extractor.name == "inception" else f"FD[{extractor.name}]"


def evaluate(
    run: Run,
    n: Sequence[int] | None = None,
    *,
    progress: Progress = silent,
    should_stop: Callable[[], bool] = lambda: False,
) -> Study:
    """Score a run at each N of `n` and write evaluation/scores.json.

    Sets of a smaller N are disjoint parts (at most ten) of the largest set; the reference is the
    same for every row.  Generated shards and features are kept, so an interrupted evaluation
    continues.  Raises WeightsUnavailable without the extractor's weights, NotEnoughSamples when
    there are fewer held-out images than N, DataError when held-out images are training images,
    Interrupted when asked to stop.
    """
    with run.session(should_stop) as session:
        material = Material(run, sizes_of(run, n), progress, session.should_stop)
        study = _study(material)
        session.kept()
    return study


def sizes_of(run: Run, n: Sequence[int] | None) -> tuple[int, ...]:
    """The N of a study, ascending; ConfigError below 2."""
    sizes = tuple(sorted(set(n or run.config.evaluate.n)))
    if sizes[0] < 2:
        raise ConfigError(f"a distance needs at least 2 images per set, got N = {sizes[0]}")
    return sizes


@dataclass(frozen=True)
class Material:
    """Images and features of a study, each made or found once."""

    run: Run
    sizes: tuple[int, ...]
    progress: Progress = silent
    should_stop: Callable[[], bool] = lambda: False

    @property
    def largest(self) -> int:
        return self.sizes[-1]

    @cached_property
    def extractor(self) -> Extractor:
        return make_extractor(self.run.config, self.run.data, self.run.device, self.progress)

    @cached_property
    def plan(self) -> Plan:
        settings = self.run.config.evaluate
        return Plan(metric_name(self.extractor), self.sizes, settings.cells, settings.jackknife)

    def features(self, images: np.ndarray) -> np.ndarray:
        cache = self.run.dir.evaluation / "features"
        return extract(
            images,
            self.extractor,
            progress=self.progress,
            should_stop=self.should_stop,
            cache=cache,
        )

    @cached_property
    def reference(self) -> tuple[np.ndarray, np.ndarray]:
        """Held-out images and labels that every row is compared with."""
        return self.run.data.take("reference", self.run.config.evaluate.reference)

    @cached_property
    def train(self) -> np.ndarray:
        """Every training image."""
        return self.run.data.images[self.run.data.indices("train")]

    @property
    def some_train(self) -> np.ndarray:
        """As many of them as there are in the reference, or fewer."""
        return self.train[: self.run.config.evaluate.reference]

    @property
    def pair(self) -> dict[str, np.ndarray]:
        """Generated images, and held-out ones in their place."""
        return {name: self.images[name] for name in (GENERATED, REAL)}

    def generated(self, n: int, *, untrained: bool = False) -> np.ndarray:
        return generate(
            self.run,
            range(n),
            untrained=untrained,
            progress=self.progress,
            should_stop=self.should_stop,
        )

    @cached_property
    def images(self) -> dict[str, np.ndarray]:
        """Every set that is scored.  The anchors at the smallest N: they are far away, and sampling
        costs as much as for the model."""
        floor = self.run.data.take("floor", self.largest)[0]
        sets = {GENERATED: self.generated(self.largest), REAL: floor}
        if self.run.config.evaluate.anchors:
            few = self.sizes[0]
            sets[UNTRAINED] = self.generated(few, untrained=True)
            sets[GAUSSIAN] = gaussian_images(self.train, few, seed=0)
        return sets

    def origin(self, images: str, n: int, card: dict[str, Any]) -> Origin:
        """What a row of these images says of them."""
        resize = self.extractor.identity.rpartition("-")[2]
        found = Origin(self.extractor.identity, resize, seeds=f"0 to {n - 1:,}")
        sample = self.run.config.sample
        if images not in (GENERATED, UNTRAINED):
            return found
        calls = sample.steps * (2 if sample.guidance != 1 else 1)
        weights = card["sha256"] if images == GENERATED else "initial"
        return replace(
            found,
            weights=weights,
            sampler=f"{sample.sampler}, {sample.spacing} spacing",
            steps=sample.steps,
            nfe=calls,
            seed=sample.seed,
        )


def _study(material: Material) -> Study:
    run, plan = material.run, material.plan
    card = run.weights()[1]
    shared = check_apart([material.reference[0], material.images[REAL]], material.train, SHARED)
    sets = {name: material.features(images) for name, images in material.images.items()}
    reference, train = (material.features(x) for x in (material.reference[0], material.some_train))
    found = measure(plan, sets, reference, train)
    rows, absent = found.rows + pixel_rows(plan, material.pair, material.reference[0]), found.absent
    for more in (_diversity, _inception_scores):
        seen, missing = more(material, sets)
        rows, absent = rows + seen, absent | missing
    replay = replay_rows(plan, sets[GENERATED], reference, train)
    memory = _keep_pictures(material, found)
    if run.weights()[1] != card:
        raise RunError(f"{run.folder} was trained further while it was scored: score it again")

    def stamped(rows: list[Score]) -> list[Score]:
        return [
            replace(row, origin=material.origin(row.images, row.n * max(1, len(row.parts)), card))
            for row in rows
        ]

    study = Study(
        _facts(material, card) | {"held_out_in_train": shared},
        with_floors(stamped(rows)),
        absent=absent,
        shares=_shares(material),
        modes={name: asdict(study) for name, study in found.modes.items()},
        fit=found.fit,
        memorisation=memory,
        replay=stamped(replay),
        guests=guests_of(run),
    )
    write_study(run.folder, study)
    return study


def guests_of(run: Run) -> list[Score]:
    """Rows of other people's images outlive a new evaluation: each names what it compares.

    A file that cannot be read (an older format, damage) is put aside, not lost.
    """
    path = run.dir.evaluation / "scores.json"
    try:
        return read_study(run.folder).guests if path.exists() else []
    except RunError as error:
        aside = path.with_name("scores-old.json")
        path.replace(aside)
        run.say(f"{error}; it is now {aside.name}")
        return []


def _diversity(
    material: Material, sets: dict[str, np.ndarray]
) -> tuple[list[Score], dict[str, str]]:
    config = material.run.config
    wanted = config.evaluate.lpips
    if wanted is None:
        wanted = config.evaluate.extractor == "inception"
    if not wanted:
        return [], {}
    try:
        distance = make_distance(config, material.run.device, material.progress)
    except WeightsUnavailable as error:
        return [], {"LPIPS diversity": str(error)}
    asked = material.progress, material.should_stop
    return diversity_rows(material.plan, material.pair, distance, *asked), {}


def _inception_scores(
    material: Material, sets: dict[str, np.ndarray]
) -> tuple[list[Score], dict[str, str]]:
    if not material.run.config.evaluate.inception_score:
        return [], {}
    if not isinstance(material.extractor, InceptionExtractor):
        return [], {"IS": "evaluate.inception_score needs evaluate.extractor=inception"}
    pair = {name: sets[name] for name in (GENERATED, REAL)}
    return score_rows(material.plan, pair, material.extractor.logits), {}


def _shares(material: Material) -> dict[str, Any]:
    """By the classifier's answers, where it is the extractor."""
    if not isinstance(material.extractor, ClassifierExtractor):
        return {}
    answers = material.extractor.classifier.predict(material.images[GENERATED])
    return label_shares(material.run.data.attributes, answers, material.reference[1])


def _keep_pictures(material: Material, found: Measured) -> dict[str, Any]:
    """evaluation/modes.npz and nearest.npz, for figures; -> the memorisation record."""
    pictures = {}
    if GENERATED in found.modes:
        cells = worst(found.modes[GENERATED], WORST)
        pictures["modes"] = {
            "cells": np.array(cells),
            "real": strips(found.cells[REFERENCE], material.reference[0], cells),
            "generated": strips(found.cells[GENERATED], material.images[GENERATED], cells),
        }
    record, pictures["nearest"] = copies(
        material.images[GENERATED], material.images[REAL], material.train
    )
    for name, arrays in pictures.items():
        path = material.run.dir.evaluation / f"{name}.npz"
        write_atomic(path, lambda file, a=arrays: np.savez_compressed(file, **a))
    return record


def _facts(material: Material, card: dict[str, Any]) -> dict[str, Any]:
    run, sample = material.run, material.run.config.sample
    size = run.config.data.size
    return {
        "metric": material.plan.metric,
        "preset": run.config.preset,
        "images": f"{run.config.data.name} {size}x{size}",
        "step": card["step"],
        "weights": card["sha256"],
        "data": run.data.fingerprint,
        "extractor": material.extractor.identity,
        "sizes": list(material.sizes),
        "reference": "held-out split 'reference', the same for every row",
        "floor": "held-out split 'floor', disjoint from the reference",
        "sampler": sample.sampler,
        "steps": sample.steps,
        "spacing": sample.spacing,
        "guidance": sample.guidance,
        "seed": sample.seed,
        "torch": torch.__version__,
    }
