"""Anybody's images, scored by the same measures: a folder, an array, a diffusers pipeline."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from dreamlib.build import make_inception
from dreamlib.errors import ConfigError, DataError, NotEnoughSamples
from dreamlib.files import sha256_array
from dreamlib.guests import check_images, pipeline_images, read_images, read_statistics
from dreamlib.host import choose_device
from dreamlib.material import Material, metric_name, sizes_of
from dreamlib.measure import Plan, measure_guest
from dreamlib.measure_images import check_apart
from dreamlib.metrics.features import Extractor, extract
from dreamlib.metrics.frechet import Moments
from dreamlib.progress import Progress, silent
from dreamlib.run import Run
from dreamlib.scores import Origin, Study, read_study, write_study

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

    def reference(self, place: Path | None, size: int | None) -> np.ndarray | Moments:
        """Features to compare with, or moments alone.

        A statistics file (mu and sigma, or feats), images, or the run's own reference.  DataError
        for images that the run was trained on.
        """
        if place is None:
            if self.run is None:
                raise ConfigError("name the real images: --reference FOLDER or STATS.npz")
            material = Material(self.run, sizes_of(self.run, None))
            return self.features(material.reference[0])
        if place.suffix == ".npz" and _is_statistics(place):
            return read_statistics(place, self.extractor.name, self.extractor.dim)
        images = read_images(place, channels=self.channels, size=size)
        if self.run is not None and images.shape[1:] == self.run.data.images.shape[1:]:
            train = self.run.data.images[self.run.data.indices("train")]
            check_apart([images], train, share=0.0)
        return self.features(images)


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
    reference: np.ndarray | Moments,
    n: Sequence[int] | None = None,
    origin: Origin | None = None,
) -> Study:
    """Score uint8 images [N,H,W,C] and append the rows, under `name`, to scores.json.

    Sizes above N are left out; without any, N itself is scored.  Rows of the same name are
    replaced.  NotEnoughSamples for fewer images than the only size asked for.
    """
    check_images(images, name)
    sizes = tuple(size for size in sorted(n or SIZES) if size <= len(images))
    if n and not sizes:
        raise NotEnoughSamples(f"{name} has {len(images):,} images, fewer than N = {min(n):,}")
    plan = Plan(metric_name(judge.extractor), sizes or (len(images),))
    rows = measure_guest(plan, {name: judge.features(images)}, reference)
    identity = judge.extractor.identity
    made = replace(
        origin or Origin(identity),
        extractor=identity,
        resize=identity.rpartition("-")[2],
        seeds=f"{len(images):,} images {sha256_array(images)[:12]}",
    )
    rows = [replace(row, origin=made) for row in rows]
    study = _study_so_far(judge, plan)
    kept = [row for row in study.guests if row.images != name]
    study = replace(study, guests=[*kept, *rows])
    write_study(judge.folder, study)
    return study


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
    reference: np.ndarray | Moments,
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
    reference: np.ndarray | Moments,
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
