"""Feature sets to rows of scores: the same measures for generated, held-out and anybody's images.

Every function takes features by the name of their images, and one real set for all of them.  A set
of a smaller N is a disjoint part of the whole set; of those there are at most ten.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dreamlib.evaluation.aggregate import REFERENCE, Plan, cuts, of_parts, parts_of, row_of
from dreamlib.evaluation.results import GENERATED, REAL, Score
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
from dreamlib.metrics.inception_score import inception_score
from dreamlib.metrics.kid import kernel_reference, kid_and_pulls
from dreamlib.metrics.kmeans import assign, kmeans
from dreamlib.metrics.modes import ModeStudy, study_of_cells
from dreamlib.metrics.prdc import DENSITY_NULL, Manifold, coverage_null, prdc
from dreamlib.utils.errors import NotEnoughSamples

log = logging.getLogger(__name__)

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
    plan: Plan, sets: Features, reference: np.ndarray | Moments, real: str = "reference"
) -> list[Score]:
    """The Fréchet distance of every set at every size that it is large enough for."""
    kept = reference if isinstance(reference, Moments) else summary(reference)
    floors = _floors(plan.sizes, reference, kept)
    how = GAUSSIAN if isinstance(reference, Moments) else OWN_FOURTH
    rows = []
    for size, images, parts in cuts(plan, sets):
        sides = [summary(part) for part in parts]
        values = [frechet(side, kept) for side in sides]
        error = _distance_error(plan, parts, sides, reference, kept, values)
        found = Estimate(float(np.mean(values)), *error)
        row = row_of(plan.metric, images, found, size, kept.n, values, real, floors.get(size))
        rows.append(replace(row, null_method=how if size in floors else ""))
    return rows


def _floors(
    sizes: Sequence[int], reference: np.ndarray | Moments, kept: Few | Moments
) -> dict[int, float]:
    """What a perfect generator is expected to score, for the N that are large enough for that."""
    known = 0 if isinstance(kept, Few) or kept.n is None else kept.n
    sizes = [n for n in sizes if min(n, known) >= SAMPLES_PER_FEATURE * len(kept.mean)]
    if not sizes or isinstance(reference, Moments):
        return {n: frechet_floor(kept.eigenvalues, n, known) for n in sizes}
    values, fourth = fourth_moments(reference, kept)
    return {n: frechet_floor(values, n, known, fourth) for n in sizes}


def _distance_error(
    plan: Plan,
    sets: Sequence[np.ndarray],
    sides: Sequence[Few | Moments],
    real: np.ndarray | Moments,
    kept: Few | Moments,
    values: Sequence[float],
) -> tuple[float | None, str]:
    """Of the mean of all sets' values; `sides` sum up the sets, `kept` the real images."""
    several = of_parts(values, "none: a file of moments does not say how they vary", SETS)
    if isinstance(real, Moments):
        how = several.method
        return several.se, how if several.se is None else f"{how}; reference left out: no images"
    (n, d), m = sets[0].shape, len(real)
    if min(n, m) > d:
        se = math.sqrt(sum(frechet_variances(sets, sides, real, kept)))
        return se, "delta method, both sides" + f" of {len(sets)} sets" * (len(sets) > 1)
    if several.se is not None and m > d:
        shared = frechet_variances(sets, sides, real, kept)[1]
        return math.sqrt(several.se**2 + shared), f"{several.method}; reference: delta method"
    if min(n, m) < 2 * GROUPS:
        return None, f"none: a jackknife needs {2 * GROUPS} images"
    how = f"jackknife of {GROUPS} groups"
    if several.se is None:
        how += f"; of one of {len(sets)} sets" * (len(sets) > 1)
        return frechet_jackknife(sets[0], real, plan.seed, GROUPS), how
    shared = frechet_jackknife(real, sets[0], plan.seed, GROUPS, both=False)
    return math.hypot(several.se, shared), f"{several.method}; reference: {how}"


def corrected_rows(
    plan: Plan, sets: Features, reference: np.ndarray, raw: Sequence[Score]
) -> tuple[list[Score], dict[str, Any]]:
    """The distance with its bias taken off, of every set; and the fit against 1/N.

    `raw` holds the sets' own rows, with delta errors.  NotEnoughSamples where half a set holds too
    few images for the features.
    """
    rows, fits = [], {}
    for images, features in sets.items():
        (whole,) = [r for r in raw if (r.images, r.n) == (images, len(features))]
        known = None if whole.parts else whole.value
        value = frechet_corrected(features, reference, plan.seed, known)
        found = Estimate(value, *_corrected_error(plan, features, reference, whole))
        row = row_of(f"{plan.metric} corrected", images, found, len(features), len(reference))
        rows.append(replace(row, null=0.0))
        fit = frechet_fit(features, reference, plan.seed, points=4)
        fits[images] = fit._asdict()
    return rows, fits


def _corrected_error(
    plan: Plan, gen: np.ndarray, real: np.ndarray, raw: Score
) -> tuple[float | None, str]:
    delta = raw.se if raw.se is not None and not raw.parts else frechet_se(gen, real)
    jackknife = frechet_jackknife(gen, real, plan.seed, GROUPS) if plan.jackknife else None
    se = corrected_se(raw.value, raw.null, delta, jackknife)
    how = "the larger of jackknife and delta method" if plan.jackknife else "delta method"
    return se, f"{how}; near the floor the latter times 1.5"


def kernel_rows(plan: Plan, sets: Features, reference: np.ndarray) -> list[Score]:
    """KID: unbiased, so that its values at different N may be compared with each other."""
    name, real, rows = plan.named("KID"), kernel_reference(reference), []
    for size, images, parts in cuts(plan, sets):
        found, own, shared = zip(*(kid_and_pulls(part, real) for part in parts))
        values = [each.value for each in found]
        se = error_of_means(np.concatenate(own), np.mean(shared, axis=0))
        total = Estimate(float(np.mean(values)), se, found[0].method)
        rows.append(row_of(name, images, total, size, len(reference), values, null=0.0))
    return rows


def manifold_rows(plan: Plan, sets: Features, reference: np.ndarray) -> list[Score]:
    """Precision, recall, density, coverage: N generated against as many real images, part by
    part.  Their nulls hold at equal sizes; a fixed real set would read .38 for a perfect model."""
    rows = []
    for size, images, parts in cuts(plan, sets):
        if size <= NEIGHBOURS or len(reference) < size:
            continue
        nulls = {"density": DENSITY_NULL, "coverage": coverage_null(size, size, NEIGHBOURS)}
        pairs = zip(parts, parts_of(reference, size))
        found = [prdc(gen, real, k=NEIGHBOURS) for gen, real in pairs]
        for metric in Manifold._fields:
            values = [getattr(each, metric).value for each in found]
            total = of_parts(values, getattr(found[0], metric).method, PAIRS)
            row = row_of(plan.named(metric), images, total, size, size, values)
            rows.append(replace(row, null=nulls.get(metric)))
    return rows


def mode_rows(
    plan: Plan, sets: Features, reference: np.ndarray, train: np.ndarray
) -> tuple[list[Score], dict[str, ModeStudy], dict[str, np.ndarray]]:
    """Cells are found on training images; held-out and generated ones are counted in them.

    Rows at every size, from the first set of it, in as many cells as leave each PER_CELL images.
    The study at the largest, and there the cell of every image by the name of its set.
    """
    rows, studies, cells = [], {}, {}
    for size in (size for size in plan.sizes if size <= len(reference)):
        count = max(2, min(plan.cells, size // PER_CELL, len(train) // PER_CELL))
        centres = kmeans(train, count, plan.seed)
        real = assign(reference[:size], centres)
        cells[REFERENCE] = real
        for images, features in sets.items():
            if len(features) < size:
                continue
            cells[images] = assign(features[:size], centres)
            study = study_of_cells(real, cells[images], count, seed=plan.seed)
            entries = {
                "NDB/K": (study.ndb, study.ndb_null),
                "JS above null": (study.js_above_null, 0.0),
                "modes / real modes": (study.effective_gen / study.effective_real, 1.0),
            }
            for metric, (value, null) in entries.items():
                found = Estimate(value, None, f"none: permutations of {count} cells instead")
                row = row_of(plan.named(metric), images, found, size, size)
                rows.append(replace(row, null=null))
            studies[images] = study
    return rows, studies, cells


def score_rows(
    plan: Plan, sets: Features, logits: Callable[[np.ndarray], np.ndarray]
) -> list[Score]:
    """Inception score; only the gap to held-out real images at the same N can be read."""
    rows = []
    for images, features in sets.items():
        for size in plan.sizes:
            if len(features) >= size >= 20:
                found = inception_score(logits(features[:size]), seed=plan.seed)
                rows.append(row_of("IS", images, found, size, None, real=""))
    return rows


def replay_rows(
    plan: Plan, generated: np.ndarray, reference: np.ndarray, train: np.ndarray
) -> list[Score]:
    """One model, compared carelessly and then with care: nothing but the counts changes.

    The smallest N against one training batch, which is what a loader hands out first; against as
    many real images; against the whole reference; then the largest N.
    """
    small, rows = plan.sizes[0], []
    cases = [(small, f"{b} of a training batch", train[:b]) for b in BATCHES if b <= len(train)]
    if small < len(reference):
        cases.append((small, f"{small:,} of the reference", reference[:small]))
    cases += [(size, "reference", reference) for size in sorted({small, plan.largest})]
    for size, real, images in cases:
        value = frechet(generated[:size], images)
        found = Estimate(value, None, "none: an example of what not to do")
        rows.append(row_of(plan.metric, GENERATED, found, size, len(images), real=real))
    return rows


@dataclass(frozen=True)
class Measured:
    """What features tell."""

    rows: list[Score]
    modes: dict[str, ModeStudy]
    cells: dict[str, np.ndarray]  # name of a set -> the mode of each of its images
    fit: dict[str, Any]  # the distance against 1/N
    absent: dict[str, str]  # metric -> why it could not be computed


def measure(plan: Plan, sets: Features, reference: np.ndarray, train: np.ndarray) -> Measured:
    """Every measure of features, of every set against one reference."""
    absent: dict[str, str] = {}
    whole = {name: x[: plan.largest] for name, x in sets.items() if name in (GENERATED, REAL)}
    rows = distance_rows(plan, sets, reference)
    fit: dict[str, Any] = {}
    try:
        found, fit = corrected_rows(plan, whole, reference, rows)
        rows += found
    except NotEnoughSamples as error:
        absent[f"{plan.metric} corrected"] = str(error)
    rows += distance_rows(replace(plan, sizes=(plan.largest,)), whole, train, real="train")
    rows += kernel_rows(plan, sets, reference)
    rows += manifold_rows(plan, sets, reference)
    for size in plan.sizes:
        if size > len(reference):
            absent[f"coverage, NDB and their like at N = {size:,}"] = (
                f"they need as many real images, and the reference has {len(reference):,} "
                "(evaluate.reference)"
            )
    found, modes, cells = mode_rows(plan, sets, reference, train)
    return Measured(rows + found, modes, cells, fit, absent)


def measure_external(
    plan: Plan, sets: Features, reference: np.ndarray | Moments, real: str = REFERENCE
) -> list[Score]:
    """The measures that need nothing but images and something to compare them with: `real`.

    Moments alone (a file of mu and sigma) allow the Fréchet distance only.
    """
    rows = distance_rows(plan, sets, reference)
    if isinstance(reference, Moments):
        return [replace(row, real=real) for row in rows]
    whole = {name: features[: plan.largest] for name, features in sets.items()}
    try:
        rows += corrected_rows(plan, whole, reference, rows)[0]
    except NotEnoughSamples as error:
        log.info("no corrected distance: %s", error)
    rows += kernel_rows(plan, sets, reference) + manifold_rows(plan, sets, reference)
    return [replace(row, real=real) for row in rows]
