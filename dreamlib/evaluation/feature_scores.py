"""Features to scores: the same measures for generated, held-out and anybody's images.

Every function takes features by the name of their images, and one real set for all of them.  A set
of a smaller N is a disjoint part of the whole set; of those there are at most ten.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dreamlib.evaluation.results import (
    GENERATED,
    REAL,
    REFERENCE,
    Plan,
    Score,
    cuts,
    of_parts,
    parts_of,
    score_of,
)
from dreamlib.metrics.estimate import Estimate, error_of_means
from dreamlib.metrics.frechet import Few, Moments, frechet, summary
from dreamlib.metrics.frechet_stats import (
    SAMPLES_PER_FEATURE,
    corrected_se,
    fourth_moments,
    frechet_corrected,
    frechet_fit,
    frechet_floor,
    frechet_jackknife,
    frechet_se,
    frechet_variances,
)
from dreamlib.metrics.kid import kernel_reference, kid_and_pulls
from dreamlib.metrics.kmeans import assign, kmeans
from dreamlib.metrics.mind import METHOD as MIND_METHOD
from dreamlib.metrics.mind import mind_null, minds
from dreamlib.metrics.modes import ModeStudy, study_of_cells
from dreamlib.metrics.prdc import DENSITY_NULL, Manifold, coverage_null, prdc
from dreamlib.utils.errors import NotEnoughSamples

GROUPS = 20  # of a jackknife
NEIGHBOURS = 5
OWN_FOURTH = "fourth moments of the reference's features"
GAUSSIAN = "of Gaussian features, as a file of moments holds no more"
SETS = "disjoint sets"
PAIRS = "disjoint pairs of generated and real sets"
PER_CELL = 20  # images that a mode's cell should hold on average, at least
BATCHES = (32, 64, 128)  # training batches that a careless comparison takes for the real images

Features = Mapping[str, np.ndarray]  # name of the images -> their features [n,d]


def distance_rows(
    plan: Plan, sets: Features, reference: np.ndarray | Moments, real: str = REFERENCE
) -> list[Score]:
    """The Fréchet distance of every set at every size that it is large enough for."""
    side = reference if isinstance(reference, Moments) else summary(reference)
    nulls, scores = _nulls(plan.sizes, reference, side), []
    how = GAUSSIAN if isinstance(reference, Moments) else OWN_FOURTH
    for size, images, parts in cuts(plan, sets):
        sides = [summary(part) for part in parts]
        values = [frechet(each, side) for each in sides]
        error = _distance_error(plan, parts, sides, reference, side, values)
        estimate = Estimate(float(np.mean(values)), *error)
        null = {"null": nulls[size], "null_method": how} if size in nulls else {}
        scores.append(
            score_of(plan.metric, images, estimate, size, side.n, values, real=real, **null)
        )
    return scores


def _nulls(
    sizes: Sequence[int], reference: np.ndarray | Moments, side: Few | Moments
) -> dict[int, float]:
    """What a perfect generator is expected to score, for the N that are large enough for that."""
    if isinstance(side, Few) or side.n is None:
        return {}
    known, least = side.n, SAMPLES_PER_FEATURE * len(side.mean)
    sizes = [n for n in sizes if min(n, known) >= least]
    if not sizes:
        return {}
    if isinstance(reference, Moments):
        return {n: frechet_floor(side.eigenvalues, n, known) for n in sizes}
    values, fourth = fourth_moments(reference, side)
    return {n: frechet_floor(values, n, known, fourth) for n in sizes}


def _distance_error(
    plan: Plan,
    sets: Sequence[np.ndarray],
    sides: Sequence[Few | Moments],
    real: np.ndarray | Moments,
    real_side: Few | Moments,
    values: Sequence[float],
) -> tuple[float | None, str]:
    """Of the mean of all sets' values; the sides sum up the sets and the real images."""
    _, spread, method = of_parts(values, "none: a file of moments does not say how they vary", SETS)
    if isinstance(real, Moments):
        return spread, method if spread is None else f"{method}; reference left out: no images"
    (n, d), m = sets[0].shape, len(real)
    if isinstance(real_side, Moments) and min(n, m) > d:
        se = math.sqrt(sum(frechet_variances(sets, sides, real, real_side)))
        return se, "delta method, both sides" + f" of {len(sets)} sets" * (len(sets) > 1)
    if isinstance(real_side, Moments) and spread is not None and m > d:
        shared = frechet_variances(sets, sides, real, real_side)[1]
        return math.sqrt(spread**2 + shared), f"{method}; reference: delta method"
    if min(n, m) < 2 * GROUPS:
        return None, f"none: a jackknife needs {2 * GROUPS} images"
    how = f"jackknife of {GROUPS} groups"
    if spread is None:
        how += f"; of one of {len(sets)} sets" * (len(sets) > 1)
        return frechet_jackknife(sets[0], real, plan.seed, GROUPS), how
    shared = frechet_jackknife(real, sets[0], plan.seed, GROUPS, both=False)
    return math.hypot(spread, shared), f"{method}; reference: {how}"


def corrected_rows(
    plan: Plan, sets: Features, reference: np.ndarray, raw: Sequence[Score]
) -> tuple[list[Score], dict[str, Any]]:
    """The distance with its bias taken off, of every set; and the fit against 1/N.

    `raw` holds the sets' own scores, with delta errors.  NotEnoughSamples where half a set holds
    too few images for the features.
    """
    name, scores, fits = f"{plan.metric} corrected", [], {}
    for images, features in sets.items():
        (whole,) = [r for r in raw if (r.images, r.n) == (images, len(features))]
        known, delta = (None, None) if whole.parts else (whole.value, whole.se)
        value = frechet_corrected(features, reference, plan.seed, known)
        if delta is None:
            delta = frechet_se(features, reference)
        jackknife, how = None, "delta method"
        if plan.jackknife:
            jackknife = frechet_jackknife(features, reference, plan.seed, GROUPS)
            how = "the larger of jackknife and delta method"
        se = corrected_se(whole.value, whole.null or 0.0, delta, jackknife)
        estimate = Estimate(value, se, f"{how}; near the floor the latter times 1.5")
        scores.append(score_of(name, images, estimate, len(features), len(reference), null=0.0))
        fits[images] = frechet_fit(features, reference, plan.seed, points=4)._asdict()
    return scores, fits


def kernel_rows(plan: Plan, sets: Features, reference: np.ndarray) -> list[Score]:
    """KID: unbiased, so that its values at different N may be compared with each other."""
    name, real, scores = plan.named("KID"), kernel_reference(reference), []
    for size, images, parts in cuts(plan, sets):
        results, own, shared = zip(*(kid_and_pulls(part, real) for part in parts))
        values = [each.value for each in results]
        se = error_of_means(np.concatenate(own), np.mean(shared, axis=0))
        mean = Estimate(float(np.mean(values)), se, results[0].method)
        scores.append(score_of(name, images, mean, size, len(reference), values, null=0.0))
    return scores


def mind_rows(plan: Plan, sets: Features, reference: np.ndarray) -> list[Score]:
    """MIND at every N, and without its bias, which takes no least number of images."""
    places = list(cuts(plan, sets))
    found, scores = iter(minds([x for *_, parts in places for x in parts], reference)), []
    for size, images, parts in places:
        results = [next(found) for _ in parts]
        gen = np.concatenate([each.gen for each in results])
        se = error_of_means(gen, np.mean([each.real for each in results], axis=0))
        nulls = mind_null(reference, size), 0.0
        for corrected, null in enumerate(nulls):
            values = [(each.value, each.corrected)[corrected] for each in results]
            name = plan.named("MIND") + " corrected" * corrected
            mean = Estimate(float(np.mean(values)), se, MIND_METHOD)
            how = "parts of the reference" if null else ""
            more = {"null": null, "null_method": how}
            scores.append(score_of(name, images, mean, size, len(reference), values, **more))
    return scores


def manifold_rows(plan: Plan, sets: Features, reference: np.ndarray) -> list[Score]:
    """Precision, recall, density, coverage: N generated against as many real images, part by
    part.  Their nulls hold at equal sizes; a fixed real set would read .38 for a perfect model."""
    scores = []
    for size, images, parts in cuts(plan, sets):
        if size <= NEIGHBOURS or len(reference) < size:
            continue
        nulls = {"density": DENSITY_NULL, "coverage": coverage_null(size, size, NEIGHBOURS)}
        nulls |= {"clipped_density": 1.0, "clipped_coverage": 1.0}
        pairs = zip(parts, parts_of(reference, size))
        results = [prdc(gen, real, k=NEIGHBOURS) for gen, real in pairs]
        for metric, estimates in zip(Manifold._fields, zip(*results)):
            values = [each.value for each in estimates]
            mean, null = of_parts(values, estimates[0].method, PAIRS), nulls.get(metric)
            name = plan.named(metric.replace("_", " "))
            scores.append(score_of(name, images, mean, size, size, values, null=null))
    return scores


def mode_rows(
    plan: Plan, sets: Features, reference: np.ndarray, train: np.ndarray
) -> tuple[list[Score], dict[str, ModeStudy], dict[str, np.ndarray]]:
    """Cells are found on training images; held-out and generated ones are counted in them.

    Scores at every size, from the first set of it, in as many cells as leave each PER_CELL images.
    The study at the largest, and there the cell of every image by the name of its set.
    """
    scores, studies, cells = [], {}, {}
    for size in (size for size in plan.sizes if size <= len(reference)):
        count = max(2, min(plan.cells, size // PER_CELL, len(train) // PER_CELL))
        centres = kmeans(train, count, plan.seed)
        how = f"none: permutations of {count} cells instead"
        cells[REFERENCE] = real = assign(reference[:size], centres)
        for images, features in sets.items():
            if len(features) < size:
                continue
            cells[images] = assign(features[:size], centres)
            studies[images] = study = study_of_cells(real, cells[images], count, seed=plan.seed)
            for metric, value, null in (
                ("NDB/K", study.ndb, study.ndb_null),
                ("JS above null", study.js_above_null, 0.0),
                ("modes / real modes", study.effective_gen / study.effective_real, 1.0),
            ):
                estimate = Estimate(value, None, how)
                scores.append(score_of(plan.named(metric), images, estimate, size, size, null=null))
    return scores, studies, cells


def replay_rows(
    plan: Plan, generated: np.ndarray, reference: np.ndarray, train: np.ndarray
) -> list[Score]:
    """One model, compared carelessly and then with care: nothing but the counts changes.

    The smallest N against one training batch, which is what a loader hands out first; against as
    many real images; against the whole reference; then the largest N.
    """
    small, scores = plan.sizes[0], []
    cases = [(small, f"{b} of a training batch", train[:b]) for b in BATCHES if b <= len(train)]
    if small < len(reference):
        cases.append((small, f"{small:,} of the reference", reference[:small]))
    cases += [(size, REFERENCE, reference) for size in sorted({small, plan.largest})]
    for size, real, images in cases:
        value = frechet(generated[:size], images)
        estimate = Estimate(value, None, "none: an example of what not to do")
        scores.append(score_of(plan.metric, GENERATED, estimate, size, len(images), real=real))
    return scores


@dataclass(frozen=True)
class Measured:
    """What features tell."""

    rows: list[Score]
    modes: dict[str, ModeStudy] = field(default_factory=dict)
    cells: dict[str, np.ndarray] = field(default_factory=dict)  # images -> the mode of each
    fit: dict[str, Any] = field(default_factory=dict)  # the distance against 1/N
    absent: dict[str, str] = field(default_factory=dict)  # metric -> why it was not computed


def measure(
    plan: Plan, sets: Features, reference: np.ndarray | Moments, train: np.ndarray | None = None
) -> Measured:
    """Every measure of features, of every set against one reference.

    Moments (a file of mu and sigma) allow the Fréchet distance only.  Modes are found on `train`;
    without it, as for anybody's images, they are left out.
    """
    result = Measured(distance_rows(plan, sets, reference))
    if isinstance(reference, Moments):
        return result
    counted = sets if train is None else (GENERATED, REAL)
    whole = {name: x[: plan.largest] for name, x in sets.items() if name in counted}
    try:
        corrected, fits = corrected_rows(plan, whole, reference, result.rows)
        result.rows.extend(corrected)
        result.fit.update(fits)
    except NotEnoughSamples as error:
        result.absent[f"{plan.metric} corrected"] = str(error)
    if train is not None:
        largest = replace(plan, sizes=(plan.largest,))
        result.rows.extend(distance_rows(largest, whole, train, real="train"))
    result.rows.extend(kernel_rows(plan, sets, reference))
    result.rows.extend(mind_rows(plan, sets, reference))
    result.rows.extend(manifold_rows(plan, sets, reference))
    for size in plan.sizes:
        if size > len(reference):
            result.absent[f"coverage, NDB and their like at N = {size:,}"] = (
                f"they need as many real images, and the reference has {len(reference):,} "
                "(evaluate.reference)"
            )
    if train is None:
        return result
    scores, modes, cells = mode_rows(plan, sets, reference, train)
    return replace(result, rows=result.rows + scores, modes=modes, cells=cells)


def measure_external(
    plan: Plan, sets: Features, reference: np.ndarray | Moments, real: str = REFERENCE
) -> list[Score]:
    """The measures that need nothing but images and something to compare them with: `real`."""
    return [replace(score, real=real) for score in measure(plan, sets, reference).rows]
