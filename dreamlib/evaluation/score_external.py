"""Anybody's images, scored by the same measures: a folder, an array, a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dreamlib.config.factory import make_frozen
from dreamlib.data.pipelines import pipeline_images
from dreamlib.evaluation.external_images import (
    as_channels,
    check_images,
    fit_of,
    is_statistics,
    read_images,
    read_statistics,
)
from dreamlib.evaluation.feature_scores import measure_external
from dreamlib.evaluation.inputs import (
    StudyInputs,
    check_apart,
    check_sizes,
    kept_features,
    sizes_of,
)
from dreamlib.evaluation.results import (
    REFERENCE,
    Origin,
    Plan,
    Score,
    Study,
    read_scores,
    scores_lock,
    with_floors,
    write_study,
)
from dreamlib.metrics.features import Extractor, metric_name
from dreamlib.metrics.frechet import Moments
from dreamlib.runs.run import Run
from dreamlib.utils.context import say
from dreamlib.utils.errors import ConfigError, DataError, NotEnoughSamples
from dreamlib.utils.files import readable, row_hashes, sha256_array, sha256_file
from dreamlib.utils.platform import choose_device

SIZES = (500, 5000)


class Real(NamedTuple):
    """What images are compared with: its name in the scores, and its features or moments."""

    name: str
    features: np.ndarray | Moments
    known: frozenset[bytes] = frozenset()  # its images' hashes, where there are images


@dataclass(frozen=True)
class ExternalEvaluator:
    """What looks at images, where its features are kept, and what they are compared with."""

    extractor: Extractor
    folder: Path  # evaluation/ in here holds scores.json and features/
    run: Run | None

    def features(self, images: np.ndarray) -> np.ndarray:
        return kept_features(images, self.extractor, self.folder)

    def read(self, place: Path, size: int | None = None) -> np.ndarray:
        """Images of a folder, a zip or an array; with a run, prepared as its own were.

        ConfigError for another size than the run's, DataError for images that do not get it.
        """
        if self.run is None:
            return read_images(place, size=size)
        data, fit = self.run.data, fit_of(self.run.data)
        if size not in (None, data.size):
            raise ConfigError(
                f"the run's images have {data.size} pixels: leave --size out; or leave out the "
                "run, and name --reference and --out"
            )
        how = {"channels": data.channels, "size": data.size if fit else size, "fit": fit or "crop"}
        return self.fitting(read_images(place, **how), place.name)

    def reference(self, place: Path | None, size: int | None) -> Real:
        """What to compare with: a statistics file (mu and sigma, or features), images, or the
        run's own reference.  DataError for images that the run was trained on."""
        if place is None:
            if self.run is None:
                raise ConfigError("name the real images: --reference FOLDER or STATS.npz")
            images = StudyInputs(self.run, sizes_of(self.run, None)).reference
            return Real(REFERENCE, self.features(images), frozenset(row_hashes(images)))
        if is_statistics(place):
            statistics = read_statistics(
                place, self.extractor.name, self.extractor.dim, self.extractor.identity
            )
            return Real(f"{name_of(place)} {sha256_file(place)[:8]}", statistics)
        images = self.read(place, size)
        if self.run is not None:
            check_apart([images], self.run.data.rows("train"), share=0.0)
        known = frozenset(row_hashes(images))
        if repeats := len(images) - len(known):
            say(f"WARNING: {repeats:,} of the {len(images):,} images of {place} are repeats")
        name = f"{name_of(place)} {sha256_array(images)[:8]}"
        return Real(name, self.features(images), known)

    def fitting(self, images: np.ndarray, name: str) -> np.ndarray:
        """uint8 [N,H,W,C] as the run's are; DataError for another size: an extractor would answer,
        and mean nothing."""
        check_images(images, name)
        if self.run is None:
            return as_channels(images, 3, name)
        data = self.run.data
        images = as_channels(images, data.channels, name)
        if images.shape[1:3] != (data.size, data.size):
            how = "save them as image files, which are prepared as the run's were"
            if not fit_of(data):
                how = f"the run's are never resized; --size {data.size} crops and resizes files"
            shape = f"{images.shape[1:3]}, not {data.size}x{data.size}"
            raise DataError(f"{name} holds images of {shape}: {how}")
        return images

    def warnings(self, images: np.ndarray, known: frozenset[bytes]) -> list[str]:
        """What makes these images look better than they are: "30 are training images"."""
        hashes = row_hashes(images)
        train = set(row_hashes(self.run.data.rows("train"))) if self.run else set()
        counts = {
            "training images": sum(each in train for each in hashes),
            "images of the reference": sum(each in known for each in hashes),
            "repeats": len(hashes) - len(set(hashes)),
        }
        return [f"{count:,} are {what}" for what, count in counts.items() if count]

    def saved(self) -> Study:
        """The scores that are there, or none."""
        if (self.folder / "evaluation" / "scores.json").exists():
            return read_scores(self.folder)
        facts = {"metric": metric_name(self.extractor), "preset": "", "step": 0}
        return Study(facts | {"extractor": self.extractor.identity}, [])


def name_of(place: Path) -> str:
    """What images are called after their place: a folder's whole name, a file's without ending."""
    place = place.resolve()
    return readable(place.name if place.is_dir() else place.stem)


def evaluator(
    run: Run | None, out: Path | None, weights: str | None = None, extractor: str | None = None
) -> ExternalEvaluator:
    """With a run, its extractor and folder; else `extractor` or Inception, and the folder `out`.

    ConfigError without a folder, for a classifier, and for `extractor` beside a run.
    """
    if run is not None and extractor:
        raise ConfigError("a run has an extractor: --set evaluate.extractor=... in its place")
    if run is not None:
        return ExternalEvaluator(StudyInputs(run, sizes_of(run, None)).extractor, run.folder, run)
    if out is None:
        raise ConfigError("name a run folder, or a folder for the scores: --out runs/guests")
    if extractor == "classifier":
        raise ConfigError("a classifier is trained on a run's images: name the run folder")
    return ExternalEvaluator(
        make_frozen(extractor or "inception", weights, choose_device()), out, None
    )


def score_external(
    evaluator: ExternalEvaluator,
    name: str,
    images: np.ndarray,
    reference: Real,
    n: Sequence[int] | None = None,
    origin: Origin | None = None,
) -> Study:
    """Score uint8 images [N,H,W,C] and append the scores, under `name`, to scores.json.

    Sizes above N are left out; without any, N itself is scored.  Earlier scores of the same images,
    reference and sizes are replaced.  Images of the training set or the reference, and repeats,
    are counted, in the scores too.  NotEnoughSamples for fewer images than every size asked for,
    ConfigError when the name is that of other images, or for sizes below 2.
    """
    images = evaluator.fitting(images, name)
    sizes = tuple(size for size in check_sizes(n or SIZES) if size <= len(images))
    if n and not sizes:
        raise NotEnoughSamples(f"{name} has {len(images):,} images, fewer than N = {min(n):,}")
    which = f"{len(images):,} images {sha256_array(images)[:12]}"
    _check_name(evaluator.saved(), name, which)
    _check_extractor(evaluator)
    warnings = evaluator.warnings(images, reference.known)
    if warnings:
        say(f"WARNING: of {which} of {name}, {', '.join(warnings)}: scores look too good")
    plan = Plan(metric_name(evaluator.extractor), sizes or (len(images),))
    sets = {name: evaluator.features(images)}
    scores = measure_external(plan, sets, reference.features, reference.name)
    identity = evaluator.extractor.identity
    stamp = {"extractor": identity, "resize": identity.rpartition("-")[2]}
    made = replace(origin or Origin(""), **stamp, seeds="; ".join([which, *warnings]))
    with scores_lock(evaluator.folder):  # another process may have added some meanwhile
        study = evaluator.saved()
        _check_name(study, name, which)
        scores = with_floors([replace(each, origin=made) for each in scores], study.rows)
        new = set(map(_key, scores))
        kept = [score for score in study.guests if _key(score) not in new]
        study = replace(study, guests=[*kept, *scores])
        write_study(evaluator.folder, study)
    return study


def _key(score: Score) -> tuple[str, str, str, int]:
    return score.images, score.real, score.metric, score.n


def _check_name(study: Study, name: str, which: str) -> None:
    """ConfigError when the name is that of other images; what follows a ; is said of them only."""
    saved = {each.origin.seeds.partition(";")[0] for each in study.guests if each.images == name}
    if saved - {which}:
        raise ConfigError(f"{name} is the name of other images in these scores: give --name")


def _check_extractor(evaluator: ExternalEvaluator) -> None:
    """ConfigError where rows of the same name are by another network or another way of resizing."""
    ours, metric = evaluator.extractor.identity, metric_name(evaluator.extractor)
    for each in evaluator.saved().guests:
        if each.metric == metric and each.origin.extractor not in (ours, ""):
            raise ConfigError(
                f"{metric} here is by {each.origin.extractor}, and now by {ours}: another --out, "
                "or another name in the extractor's card"
            )


def score_pipeline(
    evaluator: ExternalEvaluator,
    name: str,
    folder: Path,
    reference: Real,
    n: Sequence[int] | None = None,
    steps: int | None = None,
    seed: int = 0,
) -> Study:
    """The same of images that a local diffusers pipeline draws, as many as the largest N."""
    device = evaluator.run.device if evaluator.run else choose_device()
    drawn = {"seed": seed, "steps": steps}
    keep = evaluator.folder / "generated"
    images = pipeline_images(folder, max(n or SIZES), keep, device=device, **drawn)
    made = Origin("", sampler=f"diffusers pipeline {folder.name}", **drawn)
    return score_external(evaluator, name, images, reference, n, made)
