"""Two runs at the same N, against the same reference, with the same seeds: who is nearer?

This is the comparison that one may make.  The Fréchet distance's bias differs between generators
(the less varied one has less), so the raw difference decides nothing.  Corrected MIND decides,
which can be had at any N: first whether the images differ at all, by a test that is right where
they are of one law, then which are nearer; the corrected distance and KID may object.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dreamlib.evaluation.inputs import StudyInputs, sizes_of
from dreamlib.evaluation.results import Plan
from dreamlib.metrics.estimate import Estimate
from dreamlib.metrics.frechet import frechet
from dreamlib.metrics.frechet_stats import frechet_corrected, frechet_difference
from dreamlib.metrics.kid import kid_difference
from dreamlib.metrics.mind import Told, mind_difference
from dreamlib.runs.run import Run
from dreamlib.utils.context import Stop, using
from dreamlib.utils.errors import ConfigError, NotEnoughSamples, RunError
from dreamlib.utils.files import write_json
from dreamlib.utils.progress import Progress

LEVEL = 0.05  # how often images of one law may be called different


@dataclass(frozen=True)
class Difference:
    """One metric of a minus that of b: below zero, a is nearer to the real images."""

    metric: str
    value: float
    se: float | None
    se_method: str
    n: int
    n_real: int
    p: float = 1.0  # of images that differ so much, where both are of one law; 1: not tested
    needed: int | None = None  # images of each that would make a difference of this size clear

    @property
    def clear(self) -> bool:
        """Beyond two standard errors."""
        return self.se is not None and abs(self.value) > 2 * self.se


def differences_of(
    metric: str,
    pair: tuple[np.ndarray, np.ndarray],
    reference: np.ndarray,
    paired: bool,
    absent: dict[str, str],
    seed: int = 0,
) -> list[Difference]:
    """FD, corrected FD where there are enough images, KID and corrected MIND, of a's features minus
    b's.  The raw one decides nothing: its bias is smaller for the generator that varies less."""
    try:
        raw = frechet_difference(*pair, reference, seed, paired=paired)
    except NotEnoughSamples as error:
        a, b = (frechet(gen, reference) for gen in pair)
        raw = Estimate(a - b, None, f"none: {error}")
    named = Plan(metric, ()).named
    estimates = {metric: raw}
    try:
        a, b = (frechet_corrected(gen, reference, seed) for gen in pair)
        # The correction spreads by up to 1.45 times as much as the raw distance.
        se = None if raw.se is None else 1.5 * raw.se
        estimates[f"{metric} corrected"] = Estimate(a - b, se, f"1.5 x {raw.method}")
    except NotEnoughSamples as error:
        absent[f"{metric} corrected at N = {len(pair[0])}"] = str(error)
    estimates[named("KID")] = kid_difference(*pair, reference, paired)
    sizes = len(pair[0]), len(reference)
    rows = [Difference(name, *estimate, *sizes) for name, estimate in estimates.items()]
    told, name = mind_difference(*pair, reference, paired, seed), f"{named('MIND')} corrected"
    return [*rows, Difference(name, *told.minus, *sizes, told.p, _needed(told, len(pair[0])))]


def _needed(told: Told, n: int) -> int | None:
    """Images of each set that would put their difference two standard errors from 0, if it is what
    it looks like; None where the reference's share of the error alone is more than that."""
    value, se, _ = told.minus
    shared = (se or 0.0) ** 2 - told.own
    left = value**2 / 4 - shared
    return math.ceil(n * told.own / left) if left > 0 else None


@dataclass(frozen=True)
class Comparison:
    """What comparison-NAME-HASH.json holds."""

    facts: dict[str, Any]
    rows: list[Difference]
    absent: dict[str, str]

    def sentence(self) -> str:
        """What may be said at the largest N, and its limits."""
        raw, *deciding = self._first
        mind = deciding[-1]
        seeds = "the same seeds" if self.facts["paired"] else "different seeds"
        text = (
            f"At N = {raw.n:,}, one reference, {seeds}: {'; '.join(map(self._finds, deciding))}. "
        )
        text += f"Images of one law differ as much in {100 * mind.p:.2g} % of comparisons. "
        if self.nearer is not None:
            text += f"{self.nearer} is nearer to the real images. "
        elif len({row.value < 0 for row in deciding if row.clear}) > 1:
            text += "The measures disagree, so neither is called nearer. "
        elif self.different:
            text += "They differ, and which lies nearer cannot be told. "
        else:
            many = f"about {mind.needed:,} images of each would" if mind.needed else ""
            many = many or f"no number of images would against {raw.n_real:,} real ones"
            text += f"They cannot be told apart (if the difference is what it looks like, {many}). "
        if raw.clear and self._lower(raw) != self.nearer:
            text += f"Raw, {self._finds(raw)}: its bias is smaller for images that vary less. "
        return text + (
            "The error is that of sampling: training again with another seed moves both (compare "
            "folders of several seeds each)."
        )

    @property
    def nearer(self) -> str | None:
        """The run that may be called nearer at the largest N; None where nobody can tell.

        They must differ, corrected MIND say which beyond two standard errors, and neither the
        corrected distance nor KID the opposite.
        """
        sides = {row.value < 0 for row in self._first[1:] if row.clear}
        mind = self._first[-1]
        return self._lower(mind) if self.different and mind.clear and len(sides) == 1 else None

    @property
    def different(self) -> bool:
        """Whether images of one law would differ as much in at most 5 % of comparisons."""
        return self._first[-1].p < LEVEL

    @property
    def _first(self) -> list[Difference]:
        """Of the largest N: raw distance, corrected distance where it was computed, KID, corrected
        MIND."""
        return [row for row in self.rows if row.n == self.rows[0].n]

    def _lower(self, row: Difference) -> str:
        return self.facts["a" if row.value < 0 else "b"]

    def _finds(self, row: Difference) -> str:
        size = f"{abs(row.value):.3g} ± {row.se:.2g}"
        if row.clear:
            return f"{row.metric} is lower for {self._lower(row)} by {size}"
        return f"{row.metric} differs by {size}, which is within two standard errors"


def compare(
    a: Run,
    b: Run,
    n: Sequence[int] | int | None = None,
    *,
    progress: Progress | None = None,
    should_stop: Stop | None = None,
) -> Comparison:
    """Differences of run `a` minus run `b` at each N, with their standard errors.

    Written to evaluation/comparison-NAME-HASH.json of run `a`: b's folder and weights.  The
    larger N comes first.  Image i of both is paired where the sampler seeds agree.  ConfigError
    where the runs are not comparable: other images, or another extractor.
    """
    check_comparable(a, b)
    sizes, cards = sizes_of(a, n), [run.weights()[1] for run in (a, b)]
    rows: list[Difference] = []
    absent: dict[str, str] = {}
    with using(progress=progress, should_stop=should_stop), a.session() as keep:
        inputs = StudyInputs(a, sizes), StudyInputs(b, sizes)
        reference = inputs[0].features(inputs[0].reference)
        sets = [each.features(each.generated(range(sizes[-1]))) for each in inputs]
        if inputs[0].extractor.identity != inputs[1].extractor.identity:
            raise ConfigError("the runs use different extractors: set evaluate.extractor alike")
        for size in reversed(sizes):
            pair = sets[0][:size], sets[1][:size]
            rows += differences_of(inputs[0].plan.metric, pair, reference, _paired(a, b), absent)
        if [run.weights()[1] for run in (a, b)] != cards:
            raise RunError("a run was trained further while it was compared: compare again")
        facts = _facts(*inputs) | {"weights": [card["sha256"] for card in cards]}
        comparison = Comparison(facts, rows, absent)
        write_json(comparison_path(a.folder, comparison), asdict(comparison))
        keep()
    return comparison


def comparison_path(a: Path, comparison: Comparison) -> Path:
    """Beside the scores of run `a`; by name and weights of the other."""
    facts = comparison.facts
    name = f"{Path(facts['b']).name}-{facts['weights'][1][:8]}"
    return a / "evaluation" / f"comparison-{name}.json"


def _paired(a: Run, b: Run) -> bool:
    """Image i of both begins at the same noise."""
    return a.config.sample.seed == b.config.sample.seed


def _facts(a: StudyInputs, b: StudyInputs) -> dict[str, Any]:
    folders = [each.run.folder for each in (a, b)]
    alike = folders[0].name == folders[1].name
    names = [str(folder) if alike else folder.name for folder in folders]
    return {
        **dict(zip("ab", names)),
        "samplers": [each.run.config.sample.model_dump(mode="json") for each in (a, b)],
        "extractor": a.extractor.identity,
        "data": a.run.data.fingerprint,
        "paired": _paired(a.run, b.run),
    }


def check_comparable(a: Run, b: Run) -> None:
    """ConfigError where two runs know other images, or are scored differently."""
    if a.data.fingerprint != b.data.fingerprint:
        raise ConfigError(
            f"{a.folder} and {b.folder} know different images: distances to different references "
            "cannot be compared; score both against one (dreamlib evaluate --images, --reference)"
        )
    ours, theirs = a.config.evaluate, b.config.evaluate
    if (ours.extractor, ours.reference) != (theirs.extractor, theirs.reference):
        raise ConfigError(
            "the runs are scored differently: give both the same evaluate.extractor and "
            "evaluate.reference (--set)"
        )
