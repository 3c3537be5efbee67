"""Scores as records: how estimates become some, and scores.json, read with every field checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from dreamlib.metrics.estimate import Estimate, mean_estimate
from dreamlib.utils.errors import NotEnoughSamples, RunError
from dreamlib.utils.files import check_fields, exclusive, write_json

GENERATED, REAL = "generated", "held-out real"
REFERENCE = "reference"
PARTS = 10  # disjoint sets of the smaller N that are cut from the largest
ENOUGH = 5  # disjoint sets for an error from their spread
# What tables and figures take from a study's facts
FACTS = {
    **dict.fromkeys(["preset", "extractor", "sampler", "spacing", "weights"], str),
    **dict.fromkeys(["step", "steps", "seed"], int),
    **{"sizes": list, "sample": dict},
}
Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[FiniteFloat, Field(ge=0)]
Kind = TypeVar("Kind", bound="Record")


class Record:
    """Of a JSON file: other fields and kinds than it tells are errors where it is read."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True)
class Origin(Record):
    """Where a row's images come from, and what looked at them."""

    extractor: str  # identity: name, 12 hex of the weights' SHA-256, resize; "" for pixels
    resize: str = "native"  # how images reach the extractor's size
    weights: str = ""  # SHA-256 of the generator's weights; "" for images that nobody generated
    sampler: str = ""
    steps: Count | None = None
    nfe: Count | None = None  # network evaluations per image
    seed: int | None = None  # of the sampler
    seeds: str = ""  # which images: "0 to 4,999"


@dataclass(frozen=True)
class Score(Record):
    """One number and everything needed to defend it."""

    metric: str  # "FD[classifier]", "FID", "KID[classifier]", "coverage", ...
    images: str  # "generated", "held-out real", "untrained", "gaussian", or a guest's name
    value: FiniteFloat  # the mean over `parts` when there are several
    n: Count  # images per set
    n_real: Count | None  # real images it was compared with; None when a statistics file hides it
    se: NotNegative | None  # standard error of `value`: sampling noise, not bias
    se_method: str
    real: str = "reference"  # which real images: "reference", "train", "32 of a training batch"
    null: FiniteFloat | None = None  # expected of a perfect generator, where a formula says
    null_method: str = ""  # how a distance's null was found; "" in older files: Gaussian features
    floor: FiniteFloat | None = None  # what held-out real images score in this place
    parts: list[FiniteFloat] = field(default_factory=list)  # each disjoint set's own value
    origin: Origin = Origin("")


@dataclass(frozen=True)
class Study(Record):
    """What scores.json holds."""

    facts: dict[str, Any]  # metric, run, step, sampler, sizes, splits, library versions
    rows: list[Score]
    absent: dict[str, str] = field(default_factory=dict)  # metric -> why it was not computed
    shares: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    modes: dict[str, dict[str, Any]] = field(default_factory=dict)  # images -> metrics.ModeStudy
    fit: dict[str, dict[str, Any]] = field(default_factory=dict)  # images -> FD against 1/N
    memorisation: dict[str, Any] = field(default_factory=dict)
    replay: list[Score] = field(default_factory=list)  # the same images, compared wrongly
    guests: list[Score] = field(default_factory=list)  # somebody else's images, same reference
    format: Literal[2] = 2

    def find(
        self, images: str, n: int, metric: str | None = None, real: str = "reference"
    ) -> Score:
        """The score of these images at this N; KeyError when it was not computed."""
        for score in self.of(images, metric, real):
            if score.n == n:
                return score
        wanted = metric or self.facts["metric"]
        raise KeyError(f"no {wanted} of {images} images against {real} at N = {n}: {self.absent}")

    def of(self, images: str, metric: str | None = None, real: str = "reference") -> list[Score]:
        """Scores of these images by this metric, the smallest N first."""
        wanted = images, metric or self.facts["metric"], real
        scores = [each for each in self.rows if (each.images, each.metric, each.real) == wanted]
        return sorted(scores, key=lambda score: score.n)


@dataclass(frozen=True)
class Plan:
    """What a study computes."""

    metric: str  # name of the Fréchet distance: "FID", "FD[classifier]"
    sizes: tuple[int, ...]  # ascending
    cells: int = 100  # of the mode study, at most
    jackknife: bool = True  # for large sets too, where the delta method has an error already
    seed: int = 0

    def named(self, what: str) -> str:
        """'KID' for Inception features, with others 'KID[classifier]'."""
        _, bracket, extractor = self.metric.partition("[")
        return what + bracket + extractor

    @property
    def largest(self) -> int:
        return self.sizes[-1]


def parts_of(features: np.ndarray, size: int) -> list[np.ndarray]:
    """Disjoint sets of `size`, at most ten; the first is the prefix of every larger set."""
    count = min(PARTS, len(features) // size)
    return [features[i * size : (i + 1) * size] for i in range(count)]


def cuts(plan: Plan, sets: Mapping[str, np.ndarray]) -> Iterator[tuple[int, str, list[np.ndarray]]]:
    """Every size, and the sets that are large enough for it: their names, their disjoint parts."""
    for size in plan.sizes:
        for images, features in sets.items():
            if parts := parts_of(features, size):
                yield size, images, parts


def of_parts(values: Sequence[float], why: str, what: str) -> Estimate:
    """The mean of disjoint sets' values, with its error from their spread; `what` they are.

    Fewer than ENOUGH say too little about a spread, and then there is none: `why`.
    """
    if len(values) >= ENOUGH:
        return mean_estimate(np.array(values), what)
    return Estimate(float(np.mean(values)), None, why)


def score_of(
    metric: str,
    images: str,
    estimate: Estimate,
    n: int,
    n_real: int | None,
    parts: Sequence[float] = (),
    **more: Any,
) -> Score:
    """An estimate as a record; `parts` are listed where there are several."""
    value, se, method = estimate
    several = [float(part) for part in parts] if len(parts) > 1 else []
    return Score(metric, images, value, n, n_real, se, method, parts=several, **more)


def with_floors(scores: list[Score], among: list[Score] | None = None) -> list[Score]:
    """Every score with that of held-out real images (`among` others) in the same place: by the
    same metric, at the same sizes, against the same images."""
    among = scores if among is None else among
    floors = {_place(score): score.value for score in among if score.images == REAL}
    return [replace(score, floor=floors.get(_place(score))) for score in scores]


def _place(score: Score) -> tuple[str, int, int | None, str]:
    return score.metric, score.n, score.n_real, score.real


def scores_lock(folder: Path) -> AbstractContextManager[None]:
    """Held by whoever reads evaluation/scores.json in order to write it."""
    return exclusive(folder / "evaluation" / ".lock")


def write_study(folder: Path, study: Study) -> None:
    """evaluation/scores.json of a run folder."""
    write_json(folder / "evaluation" / "scores.json", asdict(study))


def read_scores(folder: Path | str) -> Study:
    """The study that `evaluate` wrote into a run folder.

    NotEnoughSamples when there is none, RunError naming the field when it does not hold.
    """
    path = Path(folder) / "evaluation" / "scores.json"
    if not path.exists():
        raise NotEnoughSamples(f"{folder} has no scores yet: run `dreamlib evaluate {folder}`")
    return study_from(path)


def study_from(path: Path) -> Study:
    """A study from any scores.json; RunError naming the field that does not hold."""
    remedy = "delete it and run `dreamlib evaluate` again; images and features are kept"
    study = read_record(Study, path, remedy)
    try:
        check_fields(study.facts, metric=str, **(FACTS if study.rows else {}))
    except ValueError as error:
        raise RunError(f"{path} cannot be read (facts: {error}): {remedy}") from error
    return study


def read_record(kind: type[Kind], path: Path, remedy: str) -> Kind:
    """A JSON file as that record; RunError naming the first field that does not hold."""
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise RunError(f"{path} cannot be read ({why}): {remedy}") from error
