"""500 within 5000: one checkpoint, nested samples, one held-out real set, a floor at every N.

The Fréchet distance of N samples is biased by about c (1/N + 1/M), so a larger N gives a smaller
number for the very same model.  Every row therefore carries its N and the floor at that N: what
other held-out real images score against the same reference.  Columns of different N are never
compared with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from dreamlib.config.factory import make_distance
from dreamlib.evaluation.denoising import memorised_by_noise
from dreamlib.evaluation.feature_scores import Measured, measure, replay_rows
from dreamlib.evaluation.inputs import StudyInputs, check_apart, sizes_of
from dreamlib.evaluation.results import (
    GENERATED,
    REAL,
    REFERENCE,
    Origin,
    Score,
    Study,
    cuts,
    read_scores,
    score_of,
    scores_lock,
    with_floors,
    write_study,
)
from dreamlib.metrics.estimate import Estimate
from dreamlib.metrics.features import ClassifierExtractor
from dreamlib.metrics.inception import InceptionExtractor
from dreamlib.metrics.inception_score import inception_score
from dreamlib.metrics.lpips import pair_diversity
from dreamlib.metrics.modes import worst
from dreamlib.metrics.pixel_stats import memorisation, pixel_stats
from dreamlib.runs.run import Run
from dreamlib.utils.context import Stop, using
from dreamlib.utils.errors import RunError, WeightsUnavailable
from dreamlib.utils.files import write_atomic
from dreamlib.utils.progress import Progress

SHARED = 0.01  # of the held-out images may be training images: real sets hold some twice
QUERIES = 1000  # images whose nearest training image is looked for
DENOISED = 500  # training images, and held-out ones, that are denoised at every noise level
WORST, STRIP = 5, 10  # modes, and images of a mode, that are kept for figures

Scores = tuple[list[Score], dict[str, str]]  # and metric -> why it was not computed


def evaluate(
    run: Run,
    n: Sequence[int] | int | None = None,
    *,
    progress: Progress | None = None,
    should_stop: Stop | None = None,
) -> Study:
    """Score a run at each N of `n` and write evaluation/scores.json.

    Sets of a smaller N are disjoint parts (at most ten) of the largest set; the reference is the
    same for every row.  Generated shards and features are kept, so an interrupted evaluation
    continues.  Raises WeightsUnavailable without the extractor's weights, NotEnoughSamples when
    there are fewer held-out images than N, DataError when held-out images are training images or
    the packed ones have changed, Interrupted when asked to stop.
    """
    intact = run.data.watch()
    intact()
    with using(progress=progress, should_stop=should_stop), run.session() as keep:
        study = _study(StudyInputs(run, sizes_of(run, n)), intact)
        keep()
    return study


def _study(inputs: StudyInputs, intact: Callable[..., None]) -> Study:
    run, card = inputs.run, inputs.run.weights()[1]
    shared = check_apart([inputs.reference, inputs.images[REAL]], inputs.train, SHARED)
    sets = {name: inputs.features(images) for name, images in inputs.images.items()}
    reference, train = (inputs.features(x) for x in (inputs.reference, inputs.some_train))
    measured = measure(inputs.plan, sets, reference, train)
    scores, absent = measured.rows + _pixel_scores(inputs), measured.absent
    for more, missing in (_diversity_scores(inputs), _inception_scores(inputs, sets)):
        scores, absent = scores + more, absent | missing
    replay = replay_rows(inputs.plan, sets[GENERATED], reference, train)
    memorised = _save_pictures(inputs, measured)
    if run.config.model != "gan":
        held_out = inputs.images[REAL][:DENOISED]
        memorised["by_noise"] = memorised_by_noise(run, inputs.some_train[:DENOISED], held_out)
    if run.weights()[1] != card:
        raise RunError(f"{run.folder} was trained further while it was scored: score it again")
    intact(wait=True)

    def stamped(scores: list[Score]) -> list[Score]:
        return [replace(score, origin=inputs.origin(score, card)) for score in scores]

    study = Study(
        _facts(inputs, card) | {"held_out_in_train": shared},
        with_floors(stamped(scores)),
        absent=absent,
        shares=_label_shares(inputs),
        modes={name: asdict(study) for name, study in measured.modes.items()},
        fit=measured.fit,
        memorisation=memorised,
        replay=stamped(replay),
    )
    with scores_lock(run.folder):
        study = replace(study, guests=_external_of(run))
        write_study(run.folder, study)
    return study


def _external_of(run: Run) -> list[Score]:
    """Scores of external images outlive a new evaluation: each names what it compares.

    A file that cannot be read (an older format, damage) is renamed, not lost.
    """
    path = run.dir.evaluation / "scores.json"
    try:
        return read_scores(run.folder).guests if path.exists() else []
    except RunError as error:
        aside = path.with_name("scores-old.json")
        path.replace(aside)
        run.say(f"{error}; it is now {aside.name}")
        return []


def _pixel_scores(inputs: StudyInputs) -> list[Score]:
    """Statistics of plain pixels, of whole sets; they catch what features are trained to ignore."""
    reference, scores = inputs.reference, []
    for images, pixels in inputs.pair.items():
        for metric, value in pixel_stats(pixels, reference).items():
            name, estimate = f"pixels: {metric}", Estimate(value, None, "none: descriptive")
            sizes, origin = (len(pixels), len(reference)), Origin("none: pixels")
            scores.append(score_of(name, images, estimate, *sizes, origin=origin))
    return scores


def _diversity_scores(inputs: StudyInputs) -> Scores:
    """LPIPS between disjoint pairs; higher than held-out real's is not better."""
    name, config = "LPIPS diversity", inputs.run.config
    wanted = config.evaluate.lpips
    if wanted is None:
        wanted = config.evaluate.extractor == "inception"
    if not wanted:
        return [], {}
    try:
        distance = make_distance(config, inputs.run.device)
    except WeightsUnavailable as error:
        return [], {name: str(error)}
    scores, origin = [], Origin(distance.identity)
    for size, images, (pixels, *_) in cuts(inputs.plan, inputs.pair):
        if size >= 4:
            estimate = pair_diversity(pixels, distance, inputs.plan.seed)
            scores.append(score_of(name, images, estimate, size, None, real="", origin=origin))
    return scores, {}


def _inception_scores(inputs: StudyInputs, features: Mapping[str, np.ndarray]) -> Scores:
    """Inception score; only the gap to held-out real images at the same N can be read."""
    if not inputs.run.config.evaluate.inception_score:
        return [], {}
    if not isinstance(inputs.extractor, InceptionExtractor):
        return [], {"IS": "evaluate.inception_score needs evaluate.extractor=inception"}
    scores = []
    for images in (GENERATED, REAL):
        for size in inputs.sizes:
            if len(features[images]) >= size >= 20:
                logits = inputs.extractor.logits(features[images][:size])
                estimate = inception_score(logits, seed=inputs.plan.seed)
                scores.append(score_of("IS", images, estimate, size, None, real=""))
    return scores, {}


def _label_shares(inputs: StudyInputs) -> dict[str, Any]:
    """Each attribute value's share in the classifier's answers, where it is the extractor."""
    if not isinstance(inputs.extractor, ClassifierExtractor):
        return {}
    predict = inputs.extractor.classifier.predict  # of both, so that its mistakes cancel
    sets = {"real": inputs.reference, "generated": inputs.images[GENERATED]}
    answers = {kind: predict(images) for kind, images in sets.items()}
    return {
        attribute: {
            value: {kind: float((of[:, column] == code).mean()) for kind, of in answers.items()}
            for code, value in enumerate(values)
        }
        for column, (attribute, values) in enumerate(inputs.run.data.attributes.items())
    }


def _save_pictures(inputs: StudyInputs, measured: Measured) -> dict[str, Any]:
    """evaluation/modes.npz and nearest.npz, for figures; -> the memorisation record: whether
    generated images are nearer to training images than held-out ones are, in pixels."""
    ours, held_out = inputs.images[GENERATED], inputs.images[REAL]
    pictures = {}
    if GENERATED in measured.modes:
        cells = worst(measured.modes[GENERATED], WORST)
        pictures["modes"] = {
            "cells": np.array(cells),
            "real": _strips(measured.cells[REFERENCE], inputs.reference, cells),
            "generated": _strips(measured.cells[GENERATED], ours, cells),
        }
    n = min(len(ours), len(held_out), QUERIES)
    study = memorisation(ours[:n], inputs.train, held_out[:n])
    queries, nearest = map(list, zip(*study.closest))
    pictures["nearest"] = {"generated": ours[queries], "train": inputs.train[nearest]}
    for name, arrays in pictures.items():
        path = inputs.run.dir.evaluation / f"{name}.npz"
        write_atomic(path, lambda file, a=arrays: np.savez_compressed(file, **a))
    record = asdict(study) | {"share": study.share.value, "share_se": study.share.se}
    return record | {"closest": [list(pair) for pair in study.closest]}


def _strips(cells: np.ndarray, images: np.ndarray, wanted: Sequence[int]) -> np.ndarray:
    """The first images of each wanted cell, black where they end: uint8 [K,STRIP,H,W,C]."""
    strips = np.zeros((len(wanted), STRIP, *images.shape[1:]), np.uint8)
    for strip, cell in zip(strips, wanted):
        members = images[np.flatnonzero(cells == cell)[:STRIP]]
        strip[: len(members)] = members
    return strips


def _facts(inputs: StudyInputs, card: dict[str, Any]) -> dict[str, Any]:
    run, sample = inputs.run, inputs.run.config.sample
    size = run.config.data.size
    return {
        "metric": inputs.plan.metric,
        "preset": run.config.preset,
        "images": f"{run.config.data.name} {size}x{size}",
        "step": card["step"],
        "weights": card["sha256"],
        "data": run.data.fingerprint,
        "extractor": inputs.extractor.identity,
        "sizes": list(inputs.sizes),
        "reference": "held-out split 'reference', the same for every row",
        "floor": "held-out split 'floor', disjoint from the reference",
        **{name: getattr(sample, name) for name in ("sampler", "steps", "spacing", "seed")},
        "sample": sample.model_dump(mode="json"),
        "torch": torch.__version__,
    }
