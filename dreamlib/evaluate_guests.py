"""Anybody's images, scored by the same measures: a folder, an array, a diffusers pipeline."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dreamlib.build import make_inception
from dreamlib.errors import ConfigError, DataError, NotEnoughSamples
from dreamlib.files import sha256_array, sha256_file
from dreamlib.guests import as_channels, check_images, pipeline_images, read_images, read_statistics
from dreamlib.host import choose_device
from dreamlib.material import Material, metric_name, sizes_of
from dreamlib.measure import measure_guest
from dreamlib.measure_images import check_apart
from dreamlib.metrics.features import Extractor, extract
from dreamlib.metrics.frechet import Moments
from dreamlib.progress import Progress, silent
from dreamlib.rows import REFERENCE, Plan
from dreamlib.run import Run
from dreamlib.scores import REAL, Origin, Score, Study, read_study, write_study

SIZES = (500, 5000)


@dataclass(frozen=True)
class Judge:
    """What looks at images, where its features are kept, and what they are compared with."""

    extractor: Extractor
    folder: Path  # evaluation/ in here holds scores.json and features/
    run: Run | None
    progress: Progress = silent
    should_stop: Callable[[], bool] = lambda: False

    def features(self, images: np.ndarray) -> np.ndarray:
        return extract(
            images,
            self.extractor,
            progress=self.progress,
            should_stop=self.should_stop,
            cache=self.folder / "evaluation" / "features",
        )

    @property
    def device(self) -> torch.device:
        return self.run.device if self.run else choose_device()

    @property
    def channels(self) -> int:
        return self.run.data.channels if self.run else 3

    def reference(self, place: Path | None, size: int | None) -> Real:
        """What to compare with: a statistics file (mu and sigma, or feats), images, or the run's
        own reference.  DataError for images that the run was trained on."""
        if place is None:
            if self.run is None:
                raise ConfigError("name the real images: --reference FOLDER or STATS.npz")
            material = Material(self.run, sizes_of(self.run, None))
            return Real(REFERENCE, self.features(material.reference[0]))
        if place.suffix == ".npz" and _is_statistics(place):
            found = read_statistics(place, self.extractor.name, self.extractor.dim)
            return Real(f"{place.stem} {sha256_file(place)[:8]}", found)
        images = self.fitting(read_images(place, channels=self.channels, size=size), place.name)
        if self.run is not None and images.shape[1:] == self.run.data.images.shape[1:]:
            check_apart([images], self.run.data.rows("train"), share=0.0)
        return Real(f"{place.stem} {sha256_array(images)[:8]}", self.features(images))

    def fitting(self, images: np.ndarray, name: str) -> np.ndarray:
        """uint8 [N,H,W,C] as the extractor takes them; DataError for another size.

        The classifier has learnt one size; it would answer for others, and mean nothing.
        """
        check_images(images, name)
        images = as_channels(images, self.channels, name)
        if self.run is not None and self.extractor.identity.endswith("-native"):
            wanted = self.run.data.images.shape[1:]
            if images.shape[1:] != wanted:
                raise DataError(
                    f"{name} holds images of {images.shape[1:]}, and {self.extractor.name} knows "
                    f"{wanted} only: say --size {wanted[0]}"
                )
        return images


class Real(NamedTuple):
    """What images are compared with: its name in the rows, and its features or moments."""

    name: str
    features: np.ndarray | Moments


def judge(
    run: Run | None,
    out: Path | None,
    weights: str | None = None,
    progress: Progress = silent,
    should_stop: Callable[[], bool] = lambda: False,
) -> Judge:
    """With a run, its extractor and folder; else Inception, and the folder `out`."""
    if run is not None:
        material = Material(run, sizes_of(run, None), progress)
        return Judge(material.extractor, run.folder, run, progress, should_stop)
    if out is None:
        raise ConfigError("name a run folder, or a folder for the scores: --out runs/guests")
    return Judge(
        make_inception(weights, choose_device(), progress), out, None, progress, should_stop
    )


def score_guest(
    judge: Judge,
    name: str,
    images: np.ndarray,
    reference: Real,
    n: Sequence[int] | None = None,
    origin: Origin | None = None,
) -> Study:
    """Score uint8 images [N,H,W,C] and append the rows, under `name`, to scores.json.

    Sizes above N are left out; without any, N itself is scored.  Earlier rows of the same images,
    reference and sizes are replaced.  NotEnoughSamples for fewer images than every size asked for,
    ConfigError when the name is that of other images.
    """
    images = judge.fitting(images, name)
    sizes = tuple(size for size in sorted(set(n or SIZES)) if size <= len(images))
    if n and not sizes:
        raise NotEnoughSamples(f"{name} has {len(images):,} images, fewer than N = {min(n):,}")
    plan = Plan(metric_name(judge.extractor), sizes or (len(images),))
    identity = judge.extractor.identity
    made = replace(
        origin or Origin(identity),
        extractor=identity,
        resize=identity.rpartition("-")[2],
        seeds=f"{len(images):,} images {sha256_array(images)[:12]}",
    )
    study = _study_so_far(judge, plan)
    theirs = {row.origin.seeds for row in study.guests if row.images == name}
    if theirs - {made.seeds}:
        raise ConfigError(f"{name} is the name of other images in these scores: give --name")
    rows = measure_guest(plan, {name: judge.features(images)}, reference.features, reference.name)
    rows = [replace(row, origin=made, floor=_floor_of(study, row)) for row in rows]
    new = {(row.images, row.real, row.metric, row.n) for row in rows}
    kept = [r for r in study.guests if (r.images, r.real, r.metric, r.n) not in new]
    study = replace(study, guests=[*kept, *rows])
    write_study(judge.folder, study)
    return study


def _floor_of(study: Study, row: Score) -> float | None:
    """What the run's held-out images score in this place, where that is the same place."""
    for own in study.of(REAL, row.metric, row.real):
        if (own.n, own.n_real) == (row.n, row.n_real) and row.real == REFERENCE:
            return own.value
    return None


def _study_so_far(judge: Judge, plan: Plan) -> Study:
    if (judge.folder / "evaluation" / "scores.json").exists():
        return read_study(judge.folder)
    facts = {"metric": plan.metric, "preset": "", "step": 0}
    return Study(facts | {"extractor": judge.extractor.identity}, [])


def _is_statistics(path: Path) -> bool:
    """An .npz of mu and sigma, or of features; not one of images."""
    if not path.is_file():
        return False
    try:
        with np.load(path, allow_pickle=False) as file:
            return bool({"mu", "feats"} & set(file.files))
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def score_folder(
    judge: Judge,
    name: str,
    place: Path,
    reference: Real,
    n: Sequence[int] | None = None,
    size: int | None = None,
) -> Study:
    """`score_guest` of the images in a folder, a zip, an .npy or an .npz file."""
    images = read_images(place, channels=judge.channels, size=size)
    return score_guest(judge, name, images, reference, n)


def score_pipeline(
    judge: Judge,
    name: str,
    folder: Path,
    reference: Real,
    n: Sequence[int] | None = None,
    steps: int | None = None,
    seed: int = 0,
) -> Study:
    """`score_guest` of images that a local diffusers pipeline draws, as many as the largest N."""
    images = pipeline_images(
        folder,
        max(n or SIZES),
        judge.folder / "generated",
        seed=seed,
        steps=steps,
        device=judge.device,
        progress=judge.progress,
        should_stop=judge.should_stop,
    )
    made = Origin("", sampler=f"diffusers pipeline {folder.name}", steps=steps, nfe=None, seed=seed)
    return score_guest(judge, name, images, reference, n, made)
