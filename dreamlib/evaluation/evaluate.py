"""500 within 5000: one checkpoint, nested samples, one held-out real set, a floor at every N.

The Fréchet distance of N samples is biased by about c (1/N + 1/M), so a larger N gives a smaller
number for the very same model.  Every row therefore carries its N and the floor at that N: what
other held-out real images score against the same reference.  Columns of different N are never
compared with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from dreamlib.config.factory import make_distance
from dreamlib.evaluation.aggregate import REFERENCE
from dreamlib.evaluation.feature_scores import Measured, measure, replay_rows, score_rows
from dreamlib.evaluation.image_scores import (
    WORST,
    check_apart,
    copies,
    diversity_rows,
    label_shares,
    pixel_rows,
    strips,
)
from dreamlib.evaluation.inputs import StudyInputs, sizes_of
from dreamlib.evaluation.results import (
    GENERATED,
    REAL,
    Score,
    Study,
    read_scores,
    scores_lock,
    with_floors,
    write_study,
)
from dreamlib.metrics.features import ClassifierExtractor, InceptionExtractor
from dreamlib.metrics.modes import worst
from dreamlib.runs.run import Run
from dreamlib.utils.context import Stop, using
from dreamlib.utils.errors import RunError, WeightsUnavailable
from dreamlib.utils.files import write_atomic
from dreamlib.utils.progress import Progress

SHARED = 0.01  # of the held-out images may be training images: real sets hold some twice


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
    run, plan = inputs.run, inputs.plan
    card = run.weights()[1]
    shared = check_apart([inputs.reference[0], inputs.images[REAL]], inputs.train, SHARED)
    sets = {name: inputs.features(images) for name, images in inputs.images.items()}
    reference, train = (inputs.features(x) for x in (inputs.reference[0], inputs.some_train))
    found = measure(plan, sets, reference, train)
    rows, absent = found.rows + pixel_rows(plan, inputs.pair, inputs.reference[0]), found.absent
    for seen, missing in (_diversity(inputs), _inception_scores(inputs, sets)):
        rows, absent = rows + seen, absent | missing
    replay = replay_rows(plan, sets[GENERATED], reference, train)
    memory = _keep_pictures(inputs, found)
    if run.weights()[1] != card:
        raise RunError(f"{run.folder} was trained further while it was scored: score it again")
    intact(wait=True)

    def stamped(rows: list[Score]) -> list[Score]:
        return [replace(row, origin=inputs.origin(row, card)) for row in rows]

    study = Study(
        _facts(inputs, card) | {"held_out_in_train": shared},
        with_floors(stamped(rows)),
        absent=absent,
        shares=_shares(inputs),
        modes={name: asdict(study) for name, study in found.modes.items()},
        fit=found.fit,
        memorisation=memory,
        replay=stamped(replay),
    )
    with scores_lock(run.folder):
        study = replace(study, guests=external_of(run))
        write_study(run.folder, study)
    return study


def external_of(run: Run) -> list[Score]:
    """Rows of other people's images outlive a new evaluation: each names what it compares.

    A file that cannot be read (an older format, damage) is put aside, not lost.
    """
    path = run.dir.evaluation / "scores.json"
    try:
        return read_scores(run.folder).guests if path.exists() else []
    except RunError as error:
        aside = path.with_name("scores-old.json")
        path.replace(aside)
        run.say(f"{error}; it is now {aside.name}")
        return []


def _diversity(inputs: StudyInputs) -> tuple[list[Score], dict[str, str]]:
    config = inputs.run.config
    wanted = config.evaluate.lpips
    if wanted is None:
        wanted = config.evaluate.extractor == "inception"
    if not wanted:
        return [], {}
    try:
        distance = make_distance(config, inputs.run.device)
    except WeightsUnavailable as error:
        return [], {"LPIPS diversity": str(error)}
    return diversity_rows(inputs.plan, inputs.pair, distance), {}


def _inception_scores(
    inputs: StudyInputs, sets: dict[str, np.ndarray]
) -> tuple[list[Score], dict[str, str]]:
    if not inputs.run.config.evaluate.inception_score:
        return [], {}
    if not isinstance(inputs.extractor, InceptionExtractor):
        return [], {"IS": "evaluate.inception_score needs evaluate.extractor=inception"}
    pair = {name: sets[name] for name in (GENERATED, REAL)}
    return score_rows(inputs.plan, pair, inputs.extractor.logits), {}


def _shares(inputs: StudyInputs) -> dict[str, Any]:
    """By the classifier's answers, where it is the extractor."""
    if not isinstance(inputs.extractor, ClassifierExtractor):
        return {}
    predict = inputs.extractor.classifier.predict  # of both, so that its mistakes cancel
    answers = predict(inputs.images[GENERATED]), predict(inputs.reference[0])
    return label_shares(inputs.run.data.attributes, *answers)


def _keep_pictures(inputs: StudyInputs, found: Measured) -> dict[str, Any]:
    """evaluation/modes.npz and nearest.npz, for figures; -> the memorisation record."""
    pictures = {}
    if GENERATED in found.modes:
        cells = worst(found.modes[GENERATED], WORST)
        pictures["modes"] = {
            "cells": np.array(cells),
            "real": strips(found.cells[REFERENCE], inputs.reference[0], cells),
            "generated": strips(found.cells[GENERATED], inputs.images[GENERATED], cells),
        }
    ours, held_out = inputs.images[GENERATED], inputs.images[REAL]
    record, pictures["nearest"] = copies(ours, held_out, inputs.train)
    for name, arrays in pictures.items():
        path = inputs.run.dir.evaluation / f"{name}.npz"
        write_atomic(path, lambda file, a=arrays: np.savez_compressed(file, **a))
    return record


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
