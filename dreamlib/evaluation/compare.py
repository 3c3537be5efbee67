"""Two runs at the same N, against the same reference, with the same seeds: who is nearer?

This is the comparison that one may make.  The Fréchet distance's bias differs between generators
(the less varied one has less), so the raw difference decides nothing: the corrected one does, or
KID where there are too few images for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dreamlib.evaluation.difference import Difference, differences_of
from dreamlib.evaluation.inputs import StudyInputs, sizes_of
from dreamlib.runs.run import Run
from dreamlib.utils.context import Stop, using
from dreamlib.utils.errors import ConfigError, RunError
from dreamlib.utils.files import write_json
from dreamlib.utils.progress import Progress


@dataclass(frozen=True)
class Comparison:
    """What comparison-NAME-HASH.json holds."""

    facts: dict[str, Any]
    rows: list[Difference]
    absent: dict[str, str]

    def sentence(self) -> str:
        """What may be said at the largest N, and its limits."""
        raw, *judges = self._first
        seeds = "the same seeds" if self.facts["paired"] else "different seeds"
        text = f"At N = {raw.n:,}, one reference, {seeds}: {'; '.join(map(self._finds, judges))}. "
        if self.nearer is not None:
            text += f"{self.nearer} is nearer to the real images. "
        elif any(row.clear for row in judges):
            text += "The measures disagree, so neither is called nearer. "
        else:
            text += "They cannot be told apart. "
        if raw.clear and self._lower(raw) != self.nearer:
            text += f"Raw, {self._finds(raw)}: its bias is smaller for images that vary less. "
        return text + "The error is that of sampling: training again with another seed moves both."

    @property
    def nearer(self) -> str | None:
        """The run that may be called nearer at the largest N; None where nobody can tell.

        The corrected distance must say so beyond two standard errors, and KID not the opposite;
        where there are too few images to correct, KID decides alone.
        """
        judge, *others = self._first[1:]
        sides = {row.value < 0 for row in (judge, *others) if row.clear}
        return self._lower(judge) if judge.clear and len(sides) == 1 else None

    @property
    def _first(self) -> list[Difference]:
        """Of the largest N: raw distance, corrected distance where it was computed, KID."""
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
    _check_comparable(a, b)
    sizes = sizes_of(a, n)
    rows: list[Difference] = []
    absent: dict[str, str] = {}
    cards = [run.weights()[1] for run in (a, b)]
    with using(progress=progress, should_stop=should_stop), a.session() as keep:
        seen = [StudyInputs(run, sizes) for run in (a, b)]
        reference = seen[0].features(seen[0].reference[0])
        sets = [each.features(each.generated(range(sizes[-1]))) for each in seen]
        if seen[0].extractor.identity != seen[1].extractor.identity:
            raise ConfigError("the runs use different extractors: set evaluate.extractor alike")
        for size in reversed(sizes):
            pair = sets[0][:size], sets[1][:size]
            rows += differences_of(seen[0].plan.metric, pair, reference, paired_seeds(a, b), absent)
        if [run.weights()[1] for run in (a, b)] != cards:
            raise RunError("a run was trained further while it was compared: compare again")
        alike = a.folder.name == b.folder.name
        facts = {
            "a": str(a.folder) if alike else a.folder.name,
            "b": str(b.folder) if alike else b.folder.name,
            "weights": [card["sha256"] for card in cards],
            "samplers": [run.config.sample.model_dump(mode="json") for run in (a, b)],
            "extractor": seen[0].extractor.identity,
            "data": a.data.fingerprint,
            "paired": paired_seeds(a, b),
        }
        found = Comparison(facts, rows, absent)
        write_json(comparison_path(a.folder, found), asdict(found))
        keep()
    return found


def comparison_path(a: Path, found: Comparison) -> Path:
    """Beside the scores of run `a`; by name and weights of the other."""
    name = f"{Path(found.facts['b']).name}-{found.facts['weights'][1][:8]}"
    return a / "evaluation" / f"comparison-{name}.json"


def paired_seeds(a: Run, b: Run) -> bool:
    """Image i of both runs begins at the same noise."""
    return a.config.sample.seed == b.config.sample.seed


def _check_comparable(a: Run, b: Run) -> None:
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
